"""The store of input pictures: by content, once, whole or not at all."""

import contextlib
import hashlib
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from modules.gallery import inputs
from modules.gallery.inputs import InputStore
from modules.spec import limits
from modules.spec.errors import DiskFull, LimitError, NotFound, SpecError
from modules.spec.image_prompt import ImagePrompt


def picture(colour="red", size=(8, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def store(tmp_path):
    return InputStore(tmp_path / "inputs")


def test_a_picture_is_kept_by_its_content(store, tmp_path):
    data = picture()
    stored = store.add(data)
    assert stored.image == hashlib.sha256(data).hexdigest()
    assert (stored.width, stored.height) == (8, 6)
    assert store.add(data) == stored
    files = [path for path in (tmp_path / "inputs").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [stored.image]
    assert store.bytes_of(stored.image) == data
    assert np.array_equal(store.read(stored.image), np.full((6, 8, 3), (255, 0, 0), np.uint8))
    assert store.has(stored.image)


@pytest.mark.parametrize("data", [b"", b"no picture", picture()[:-30]])
def test_what_is_no_picture_leaves_nothing_behind(store, tmp_path, data):
    with pytest.raises(SpecError):
        store.add(data)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("image", ["", "../../etc/passwd", "a" * 64, "A" * 64, "a" * 63])
def test_what_is_not_there_is_said(store, image):
    assert not store.has(image)
    with pytest.raises(NotFound):
        store.bytes_of(image)
    with pytest.raises(SpecError, match="/api/inputs"):
        store.read(image)


def test_a_request_needs_its_pictures(store):
    there = ImagePrompt(image=store.add(picture()).image)
    store.require((there,))
    with pytest.raises(SpecError, match="image prompt 2 is not stored here") as caught:
        store.require((there, ImagePrompt(image="b" * 64)))
    assert caught.value.field == "image_prompts"
    with pytest.raises(SpecError, match="region of image prompt 1"):
        store.require((ImagePrompt(image=there.image, region="b" * 64),))


def test_there_is_a_bound_to_all_of_them(store, monkeypatch):
    first = picture()
    monkeypatch.setattr(limits, "INPUTS_BYTES", len(first) + 10)
    store.add(first)
    store.add(first)  # the same again takes no room
    with pytest.raises(LimitError, match="delete old ones"):
        store.add(picture("blue"))


def test_two_uploads_at_once_do_not_share_the_last_room(store, monkeypatch):
    pictures = [picture("red"), picture("blue")]
    monkeypatch.setattr(limits, "INPUTS_BYTES", max(map(len, pictures)))
    require, both = InputStore._require_room, threading.Barrier(2)

    def slowly(self, size):
        require(self, size)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # were both here, both would write

    monkeypatch.setattr(InputStore, "_require_room", slowly)

    def add(data):
        try:
            return store.add(data)
        except LimitError:
            return None

    with ThreadPoolExecutor(2) as threads:
        stored = list(threads.map(add, pictures))
    assert stored.count(None) == 1


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_full_disk_is_said_and_nothing_half_stays(store, monkeypatch, tmp_path, step):
    def full(path, *_args):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs.Path, step, full)
    with pytest.raises(DiskFull):
        store.add(picture())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_while_it_is_written_keeps_no_half(store, monkeypatch, tmp_path):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs.Path, "replace", full)
    with pytest.raises(DiskFull):
        store.add(picture())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("left", [b"", b"x", None])
def test_a_picture_that_was_damaged_is_whole_again_once_it_is_sent_again(store, tmp_path, left):
    data = picture()
    stored = store.add(data)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(bytes(len(data)) if left is None else left)
    with pytest.raises(SpecError):
        store.read(stored.image)
    assert store.add(data) == stored
    assert store.bytes_of(stored.image) == data


def test_of_a_huge_picture_fewer_pixels_are_read(store, monkeypatch):
    monkeypatch.setattr(inputs, "PIXELS_READ", 10_000)
    small = picture("blue", size=(100, 100))
    assert store.read(store.add(small).image).shape == (100, 100, 3)
    huge = store.read(store.add(picture("blue", size=(400, 100))).image)
    assert huge.shape == (50, 200, 3)
    assert (huge == (0, 0, 255)).all()
    thin = store.read(store.add(picture("blue", size=(20_000, 1))).image)
    assert thin.shape[0] == 1


def test_what_nobody_has_asked_for_in_a_month_makes_room(store, tmp_path, monkeypatch):
    pictures = [picture(colour) for colour in ("red", "green", "blue", "white")]
    monkeypatch.setattr(limits, "INPUTS_BYTES", sum(map(len, pictures[:3])) + 5)
    first, second, third = (store.add(data).image for data in pictures[:3])
    files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    for image, days in ((first, 40), (second, 50), (third, 60)):
        then = time.time() - days * 86_400
        os.utime(files[image], (then, then))
    store.require((ImagePrompt(image=third),))  # asked for again, so the oldest is the second
    fourth = store.add(pictures[3]).image
    assert [store.has(image) for image in (first, second, third, fourth)] == [
        True, False, True, True,
    ]  # fmt: skip
