"""FreeU from the request to the picture."""

import numpy as np
from PIL import Image

from modules.async_worker import run_task
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from tests.support.recording_task import RecordingTask


def pixels(studio, freeu=()):
    task = RecordingTask(TaskSpec(prompt="a house", steps=2, seed=7, image_count=1, freeu=freeu))
    run_task(task, studio)
    assert task.state is TaskState.DONE, task.message
    with Image.open(studio.settings.output_path / task.commits[0]["path"]) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_it_changes_the_picture_and_leaves_no_trace(studio):
    plain = pixels(studio)
    assert np.abs(plain - pixels(studio, (1.3, 1.4, 0.9, 0.2))).max() > 2
    assert np.array_equal(plain, pixels(studio))
