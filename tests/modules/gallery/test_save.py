import errno
import hashlib
import os
from datetime import datetime

import numpy as np
import pytest
from PIL import Image

from modules.gallery import save
from modules.gallery.recipe import Recipe
from modules.spec.errors import DiskFull, OutputFolder
from modules.spec.flags import OutputFormat
from modules.spec.task_spec import ResolvedSpec, TaskSpec

DOWN, RIGHT = np.mgrid[0:24, 0:40]
PIXELS = np.stack([DOWN * 10, RIGHT * 6, 255 - RIGHT * 3], axis=-1).astype(np.uint8)
NOON = datetime(2026, 11, 21, 12, 30, 5)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("output_format", OutputFormat)
def test_the_file_is_what_it_says(tmp_path, output_format):
    saved = save.save_image(
        PIXELS, tmp_path, task_id="t1", index=2, output_format=output_format, now=NOON
    )
    assert saved.relative_path == f"2026-11-21/12-30-05_t1_2{output_format.suffix}"
    data = (tmp_path / saved.relative_path).read_bytes()
    assert (saved.size, saved.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (saved.width, saved.height) == (40, 24)
    with Image.open(tmp_path / saved.relative_path) as image:
        assert image.format.lower() == output_format.value
        assert image.size == (40, 24)
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - PIXELS)
        assert difference.mean() < (1e-9 if output_format is OutputFormat.PNG else 3)


def test_nothing_is_overwritten_and_no_temporary_is_left(tmp_path):
    names = [
        save.save_image(PIXELS, tmp_path, task_id="t", index=0, now=NOON).relative_path
        for _ in range(3)
    ]
    assert len(set(names)) == 3
    assert files(tmp_path) == sorted(name.split("/")[1] for name in names)


def test_a_hostile_task_id_stays_a_file_name(tmp_path):
    saved = save.save_image(PIXELS, tmp_path, task_id="../../x/\0y", index=0, now=NOON)
    assert (tmp_path / saved.relative_path).resolve().parent == tmp_path / "2026-11-21"


def test_a_disk_without_hard_links_is_served_too(tmp_path, monkeypatch):
    def no_links(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    first = save.save_image(PIXELS, tmp_path, task_id="t", index=0, now=NOON)
    second = save.save_image(PIXELS, tmp_path, task_id="t", index=0, now=NOON)
    assert first.relative_path != second.relative_path
    assert len(files(tmp_path)) == 2


CALLS = ("mkdir", "open", "write", "fsync", "link", "close")


class FaultAt:
    """Makes the n-th call among CALLS fail with one error number, and counts them."""

    def __init__(self, monkeypatch, n, number):
        self.count, self.n, self.number, self.failed = 0, n, number, ""
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.n:
                self.failed = name
                if name == "close":
                    real(*args, **kwargs)
                raise OSError(self.number, os.strerror(self.number))
            return real(*args, **kwargs)

        return call


def calls_of_one_save(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        probe = FaultAt(patch, 0, 0)
        save.save_image(PIXELS, tmp_path / "probe", task_id="t", index=0, now=NOON)
    return probe.count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_any_failing_call_leaves_no_file_and_one_sentence(tmp_path, monkeypatch, number):
    total = calls_of_one_save(tmp_path, monkeypatch)
    assert total >= 8
    wanted = DiskFull if number == errno.ENOSPC else OutputFolder
    failed = set()
    for n in range(1, total + 1):
        folder = tmp_path / f"fault-{n}"
        with monkeypatch.context() as patch:
            fault = FaultAt(patch, n, number)
            with pytest.raises(wanted) as caught:
                save.save_image(PIXELS, folder, task_id="t", index=1, now=NOON)
        failed.add(fault.failed)
        assert files(folder) == []
        sentence = str(caught.value)
        assert "picture 2" in sentence
        assert "--output-path" in sentence
        assert str(tmp_path) not in sentence
    assert failed == set(CALLS)


def test_short_writes_are_completed(tmp_path, monkeypatch):
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:100])))
        saved = save.save_image(PIXELS, tmp_path, task_id="t", index=0, now=NOON)
    data = (tmp_path / saved.relative_path).read_bytes()
    assert hashlib.sha256(data).hexdigest() == saved.sha256


def test_a_file_in_the_folders_place_is_an_output_folder_error(tmp_path):
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(OutputFolder):
        save.save_image(PIXELS, tmp_path / "outputs", task_id="t", index=0)
    assert (tmp_path / "outputs").read_text() == "a file"


def test_a_folder_that_takes_files_is_made_and_left_empty(tmp_path):
    save.require_writable(tmp_path / "new" / "outputs")
    assert files(tmp_path) == []
    assert (tmp_path / "new" / "outputs").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG])
def test_a_folder_that_takes_no_files_is_told_before_anything_is_painted(
    tmp_path, monkeypatch, number
):
    wanted = DiskFull if number == errno.ENOSPC else OutputFolder
    FaultAt(monkeypatch, 2, number)  # mkdir is no fault where the folder is there
    with pytest.raises(wanted, match="so nothing was painted") as caught:
        save.require_writable(tmp_path)
    assert "--output-path" in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_an_output_folder_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputFolder):
            save.save_image(PIXELS, tmp_path, task_id="t", index=0)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("place", [".", "2026-11-21"])
def test_old_temporaries_are_swept_and_young_ones_kept(tmp_path, place):
    day = tmp_path / place
    day.mkdir(exist_ok=True)
    old, young, picture = day / ".a.tmp", day / ".b.tmp", day / "c.png"
    for path in (old, young, picture):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    os.utime(picture, (1, 1))
    assert save.sweep_temporary_files(tmp_path) == 1
    assert files(tmp_path) == [".b.tmp", "c.png"]


@pytest.mark.parametrize("output_format", OutputFormat)
def test_without_a_recipe_the_file_holds_no_text(output_format):
    spec = TaskSpec(prompt="canary-words", seed=1, image_count=1)
    resolved = ResolvedSpec(
        checkpoint="m.safetensors",
        width=40,
        height=24,
        seeds=(1,),
        steps=1,
        cfg_scale=1,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
    )
    with_recipe = save.encode_image(PIXELS, output_format, Recipe.of(spec, resolved, 0))
    assert b"canary-words" in with_recipe
    assert b"canary-words" not in save.encode_image(PIXELS, output_format, None)


def test_a_saved_picture_is_found_by_task_and_index(tmp_path):
    for task_id, index in (("a", 1), ("a", 11), ("ba", 1)):
        save.save_image(PIXELS, tmp_path, task_id=task_id, index=index, now=NOON)
    wanted = save.save_image(PIXELS, tmp_path, task_id="ab", index=1, now=NOON)
    assert save.find_saved(tmp_path, "ab", 1) == wanted
    assert save.find_saved(tmp_path, "ab", 2) is None
    (tmp_path / wanted.relative_path).write_bytes(b"no picture")
    assert save.find_saved(tmp_path, "ab", 1) is None
