import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from modules.worker.progress import LivePreview, PreviewPace, StepClock


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


class Grey:
    """A previewer of latents that are grey pictures; each takes the sampler `cost` seconds."""

    def __init__(self, time, cost=0.0):
        self.time, self.cost = time, cost

    def to_jpeg_ready(self, denoised):
        self.time.now += self.cost
        return np.full((4, 6, 3), denoised[0, 0, 0, 0], dtype=np.uint8)


LATENTS = np.full((1, 4, 4, 6), 10)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_previews_are_jpegs_at_their_pace(threads):
    time, seen = Time(), []
    preview = LivePreview(threads, seen.append, PreviewPace(1.0, time))
    offered = []
    for _ in range(9):
        offered.append(preview.offer(Grey(time), LATENTS))
        preview.finish()
        time.now += 0.4
    assert offered == [True, False, False] * 3
    assert [(p.width, p.height, p.jpeg[:3]) for p in seen] == [(6, 4, b"\xff\xd8\xff")] * 3


def test_a_frame_is_dropped_while_the_one_before_is_pending(threads):
    gate, time, seen = threading.Event(), Time(), []
    threads.submit(gate.wait)
    preview = LivePreview(threads, seen.append, PreviewPace(0.0, time))
    assert preview.offer(Grey(time), LATENTS)
    assert not preview.offer(Grey(time), LATENTS)
    gate.set()
    preview.finish()
    assert len(seen) == 1
    assert preview.offer(Grey(time), LATENTS)
    preview.finish()


def begins_of_previews(threads, costs, seconds):
    """When previews were made, in seconds from the first, if a step of 10 ms follows a step."""
    time, begins = Time(), []
    pace, costs = PreviewPace(now=time), list(costs)
    while time.now < 100.0 + seconds:
        preview = LivePreview(threads, lambda _: None, pace)  # of the next picture of the task
        cost = costs[min(len(begins), len(costs) - 1)]
        began = time.now - 100.0
        if preview.offer(Grey(time, cost), LATENTS):
            begins.append(began)
        preview.finish()
        time.now += 0.01
    return begins


@pytest.mark.parametrize(
    ("cost", "pause"), [(0.0, 0.25), (0.005, 0.25), (0.0125, 0.5), (0.025, 1.0), (0.2, 8.0)]
)
def test_previews_take_no_more_than_their_share_of_sampling(threads, cost, pause):
    begins = begins_of_previews(threads, [cost], 60)
    assert begins[1] - begins[0] <= 1.0 + 0.02
    pauses = np.diff(begins[1:])
    assert (pauses >= pause - 1e-6).all()
    assert (pauses <= pause + 0.02).all()  # at the step that comes first then
    assert len(begins[2:]) * cost <= 0.03 * 60  # two may be a warm-up's


def test_one_dear_preview_is_no_reason_to_wait_longer_than_a_second(threads):
    begins = begins_of_previews(threads, [0.9, 0.005, 0.005, 0.9, 0.005], 5)
    assert np.diff(begins)[:5] == pytest.approx([1.0, 0.25, 0.25, 0.91, 0.25], abs=0.021)
