import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from modules.worker.progress import LivePreview, StepClock


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_nothing_is_foretold_before_the_second_step_and_the_warm_up_never_counts():
    time = Time()
    clock = StepClock(time)
    clock.start_image()
    assert clock.seconds_left(10, 0, 10) is None
    time.now += 9.0
    clock.step()
    assert clock.seconds_left(9, 0, 10) is None
    for took, left, median in ((1.0, 8, 1.0), (2.0, 7, 1.5), (9.0, 6, 2.0)):
        time.now += took
        clock.step()
        assert clock.seconds_left(left, 0, 10) == pytest.approx((left + 1) * median)


def test_pictures_of_one_step_are_foretold_from_the_second_on():
    time = Time()
    clock = StepClock(time)
    for took in (9.0, 1.0):
        clock.start_image()
        time.now += took
        clock.step()
    assert clock.seconds_left(0, 2, 1) == pytest.approx(2 * 1.0 + 3 * 1.0)


def test_decoding_and_later_pictures_are_counted():
    time = Time()
    clock = StepClock(time)
    clock.start_image()
    for _ in range(4):
        time.now += 2.0
        clock.step()
    time.now += 5.0
    clock.end_image()
    clock.start_image()
    # two pictures of 4 steps at 2 s, each with 5 s of decoding
    assert clock.seconds_left(4, 1, 4) == pytest.approx(2 * (4 * 2.0 + 5.0))


class Latents:
    """A previewer whose 'latents' are numbers that become grey pictures."""

    def to_jpeg_ready(self, denoised):
        return np.full((4, 6, 3), denoised, dtype=np.uint8)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_previews_are_jpegs_at_their_pace(threads):
    time, seen = Time(), []
    preview = LivePreview(threads, seen.append, every_seconds=1.0, now=time)
    offered = []
    for _ in range(9):
        offered.append(preview.offer(Latents(), 10))
        preview.finish()
        time.now += 0.4
    assert offered == [True, False, False] * 3
    assert [(p.width, p.height, p.jpeg[:3]) for p in seen] == [(6, 4, b"\xff\xd8\xff")] * 3


def test_a_frame_is_dropped_while_the_one_before_is_pending(threads):
    gate, time, seen = threading.Event(), Time(), []
    threads.submit(gate.wait)
    preview = LivePreview(threads, seen.append, every_seconds=0.0, now=time)
    assert preview.offer(Latents(), 1)
    assert not preview.offer(Latents(), 2)
    gate.set()
    preview.finish()
    assert len(seen) == 1
    assert preview.offer(Latents(), 3)
