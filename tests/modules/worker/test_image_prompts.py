"""Image prompts from the request to the picture: files found, maps made, nothing left behind."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extras import ip_attention
from ldm_patched.controlnet import cldm
from ldm_patched.modules import control_networks
from ldm_patched.modules import sample as sampling
from ldm_patched.t2ia.adapter import Adapter, AdapterConfig
from modules.async_worker import run_task
from modules.gallery.inputs import InputStore
from modules.gallery.recipe import read_full_recipe
from modules.library.control_files import NEEDED
from modules.spec import limits
from modules.spec.errors import SpecError
from modules.spec.flags import TaskState
from modules.spec.image_prompt import ImagePrompt, ImagePromptMode
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Loading
from modules.worker import generate_cli, image_prompts
from modules.worker.image_prompts import Picture, content_of, hint_of
from tests.support.control_oracle import control_lora_file, write
from tests.support.drawn_face import draw_face
from tests.support.recording_task import RecordingTask
from tests.support.tiny_checkpoint import TINY
from tests.support.tiny_ip_adapter import write_adapter, write_vision
from tests.support.unet_oracle import randomise


def test_the_request_and_the_engine_know_the_same_modes():
    assert tuple(ImagePromptMode) == ip_attention.MODES


def picture_bytes(colour=(200, 40, 30), size=(96, 64)):
    image = Image.new("RGB", size, (20, 90, 160))
    image.paste(colour, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def put(studio, colour=(200, 40, 30)):
    """The hash of a stored picture."""
    return InputStore(studio.settings.inputs_path).add(picture_bytes(colour)).image


def folder(studio, name):
    path = studio.settings.models_path / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def network_config(studio):
    file = studio.catalog.find_checkpoint("tiny.safetensors")
    return studio.pipeline.refresh(file).unet.model.diffusion_model.config


def put_control(studio, name="my-canny.safetensors", seed=8):
    network = cldm.ControlNet(network_config(studio))
    randomise(network, seed)
    save_file(dict(network.state_dict()), str(folder(studio, "controlnet") / name))


def put_adapter(studio, name="ip-adapter-tiny.safetensors", seed=2):
    config = network_config(studio)
    blocks = sorted(
        config.attention_blocks, key=lambda b: (("input", "output", "middle").index(b[0]), b[1])
    )
    from extras.ip_attention import site_width

    widths = [site_width(config, (n, i, 0)) for n, i, depth in blocks for _ in range(depth)]
    write_adapter(folder(studio, "ipadapter") / name, widths, TINY.context, seed=seed)
    write_vision(folder(studio, "clip_vision") / "tower.safetensors")


def run(studio, entries=(), **values):
    values = {"prompt": "a red house", "steps": 2, "seed": 7, "image_count": 1} | values
    task = RecordingTask(TaskSpec.from_mapping({**values, "image_prompts": list(entries)}))
    run_task(task, studio)
    return task


def pixels(studio, entries=(), index=0, **values):
    task = run(studio, entries, **values)
    assert task.state is TaskState.DONE, task.message
    with Image.open(studio.settings.output_path / task.commits[index]["path"]) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def differ(one, other):
    return bool(np.abs(one - other).max() > 2)


# --- structure --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("canny", "x-Canny.safetensors"),
        ("cpds", "cpds_a.safetensors"),
        ("depth", "depth.safetensors"),
        ("lineart", "my-sketch.safetensors"),
    ],
)
def test_structure_changes_the_picture_and_leaves_no_trace(studio, kind, name):
    put_control(studio, name)
    plain = pixels(studio)
    entry = {"image": put(studio), "type": kind}
    steered = pixels(studio, [entry])
    assert differ(plain, steered)
    assert np.array_equal(steered, pixels(studio, [entry]))
    assert np.array_equal(plain, pixels(studio))
    assert np.array_equal(plain, pixels(studio, [{**entry, "weight": 0}]))
    assert np.array_equal(plain, pixels(studio, [{**entry, "stop": 0}]))


def test_a_control_lora_paints_as_the_network_that_it_makes_of_the_checkpoint(studio):
    checkpoint = studio.catalog.find_checkpoint("tiny.safetensors")
    unet = studio.pipeline.refresh(checkpoint).unet.model.diffusion_model
    network = cldm.ControlNet(unet.config)
    randomise(network, 8)
    file, merged = control_lora_file(network, unet)
    plain, entry = pixels(studio), {"image": put(studio), "type": "canny"}
    place = folder(studio, "controlnet") / "canny.safetensors"
    steered = []
    for weights in (file, dict(merged.state_dict())):
        write(place, weights)
        steered.append(pixels(studio, [entry]))
        assert np.array_equal(plain, pixels(studio))
    assert differ(plain, steered[0])
    assert np.abs(steered[0] - steered[1]).max() <= 2


def test_an_adapter_s_picture_changes_the_painting_and_leaves_no_trace(studio):
    config = network_config(studio)
    widths = tuple(config.model_channels * m for m in config.channel_mult)
    adapter = Adapter(AdapterConfig(unshuffle=16, channels=(*widths, widths[-1])))
    randomise(adapter, 1)
    write(folder(studio, "controlnet") / "canny.safetensors", dict(adapter.state_dict()))
    plain, entry = pixels(studio), {"image": put(studio), "type": "canny"}
    steered = pixels(studio, [entry])
    assert differ(plain, steered)
    assert np.array_equal(steered, pixels(studio, [entry]))
    assert differ(steered, pixels(studio, [{**entry, "skip_preprocess": True}]))
    assert np.array_equal(plain, pixels(studio))


def test_weight_stop_softness_and_thresholds_matter(studio):
    put_control(studio)
    entry = {"image": put(studio), "type": "canny"}
    base = pixels(studio, [entry], steps=4)
    fewer_edges = {"canny_low": 200, "canny_high": 255}
    changes = ({"weight": 0.4}, {"stop": 1.0}, {"start": 0.3}, {"skip_preprocess": True})
    for change in (*changes, fewer_edges):
        changed = pixels(studio, [{**entry, **change}], steps=4)
        assert not np.array_equal(base, changed), change
    assert differ(base, pixels(studio, [entry], steps=4, control_softness=0.9))


def test_several_at_once_count_together(studio):
    put_control(studio)
    put_control(studio, "cpds.safetensors", seed=9)
    one = {"image": put(studio), "type": "canny"}
    two = {"image": put(studio, (10, 200, 10)), "type": "cpds"}
    pictures = [pixels(studio, entries) for entries in ([one], [two], [one, two], [two, one])]
    assert differ(pictures[2], pictures[0])
    assert differ(pictures[2], pictures[1])
    assert np.abs(pictures[2] - pictures[3]).max() <= 2  # but for rounding, the order is nothing


def test_a_control_is_loaded_once(studio):
    put_control(studio)
    entry = {"image": put(studio), "type": "canny"}
    first = run(studio, [entry])
    again = run(studio, [entry, entry])
    words = [[e.message for e in t.events if isinstance(e, Loading)] for t in (first, again)]
    assert any("my-canny.safetensors" in message for message in words[0])
    assert words[1] == []


def test_controls_of_one_task_do_not_put_each_other_out(studio):
    kinds = {"canny": "canny", "cpds": "cpds", "depth": "depth"}
    for name in kinds.values():
        put_control(studio, f"{name}.safetensors")
    entries = [{"image": put(studio), "type": kind} for kind in kinds]
    first, second = run(studio, entries), run(studio, entries)
    told = [[e.message for e in task.events if isinstance(e, Loading)] for task in (first, second)]
    assert all(any(name in words for words in told[0]) for name in kinds.values())
    assert not [words for words in told[1] if any(name in words for name in kinds.values())]


def test_the_files_that_are_read_are_told_and_no_others(studio):
    put_adapter(studio)
    entries = [{"image": put(studio)}, {"image": put(studio, (9, 9, 90))}]
    first, second = run(studio, entries), run(studio, entries)
    told = [[e.message for e in task.events if isinstance(e, Loading)] for task in (first, second)]
    assert [sum(name in words for words in told[0]) for name in ("tower", "ip-adapter")] == [1, 1]
    assert not [words for words in told[1] if "tower" in words or "ip-adapter" in words]


def test_maps_have_the_size_of_the_picture_that_is_painted():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 50:] = 255
    for kind in ("canny", "cpds", "depth"):
        picture = Picture(ImagePrompt(image="a" * 64, type=kind), image)
        hint = hint_of(picture, 128, 64)
        assert hint.shape == (1, 3, 64, 128)
        assert 0.0 <= float(hint.min()) < float(hint.max()) <= 1.0
    edges = hint_of(Picture(ImagePrompt(image="a" * 64, type="canny"), image), 128, 64)
    assert abs(int(edges[0, 0].sum(0).argmax()) - 64) <= 3


# --- content ----------------------------------------------------------------------------------


def test_a_picture_s_content_changes_the_picture_and_leaves_no_trace(studio):
    put_adapter(studio)
    plain = pixels(studio)
    entry = {"image": put(studio), "stop": 1.0, "weight": 1.0}
    steered = pixels(studio, [entry])
    assert differ(plain, steered)
    assert not np.array_equal(
        steered, pixels(studio, [{**entry, "image": put(studio, (0, 255, 0))}])
    )
    assert np.array_equal(plain, pixels(studio))
    assert np.array_equal(plain, pixels(studio, [{**entry, "weight": 0}]))


def test_start_and_mode_of_a_picture_s_content_matter(studio):
    put_adapter(studio)
    entry = {"image": put(studio), "stop": 1.0, "weight": 1.0}
    plain, joint, late, apart, other = (
        pixels(studio, entries, steps=4)
        for entries in (
            [],
            [entry],
            [{**entry, "start": 0.5}],
            [{**entry, "mode": "decoupled"}],
            [entry, {**entry, "mode": "decoupled"}],
        )
    )
    for one, another in ((late, joint), (late, plain), (apart, joint), (other, joint)):
        assert not np.array_equal(one, another)
    assert not np.array_equal(other, apart)
    assert np.array_equal(late, pixels(studio, [{**entry, "start": 0.5}], steps=4))


def put_mask(studio, left, right):
    """The hash of a stored region, its halves these greys."""
    image = Image.new("L", (64, 64), left)
    image.paste(right, (32, 0, 64, 64))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return InputStore(studio.settings.inputs_path).add(buffer.getvalue()).image


def test_a_region_bounds_where_the_picture_counts(studio):
    put_adapter(studio)
    entry = {"image": put(studio), "stop": 1.0, "weight": 1.0}
    plain, everywhere = pixels(studio), pixels(studio, [entry])
    white = pixels(studio, [{**entry, "region": put_mask(studio, 255, 255)}])
    assert np.abs(white - everywhere).max() <= 2
    left = pixels(studio, [{**entry, "region": put_mask(studio, 255, 0)}])
    right = pixels(studio, [{**entry, "region": put_mask(studio, 0, 255)}])
    assert differ(left, right)
    assert differ(left, plain)
    both = [{**entry, "region": put_mask(studio, *greys)} for greys in ((255, 0), (0, 255))]
    assert differ(pixels(studio, both), left)


def test_a_region_that_is_gone_is_said(studio):
    put_adapter(studio)
    task = run(studio, [{"image": put(studio), "region": "e" * 64}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_INPUT")


def test_the_same_picture_runs_no_tower_again(studio):
    put_adapter(studio)
    entry = {"image": put(studio)}
    run(studio, [entry])
    store = studio.pipeline.image_prompts._adapters
    runs = store.runs
    run(studio, [entry], seed=8)
    assert store.runs == runs


@pytest.mark.parametrize("mode", ["joint", "decoupled"])
def test_a_run_joins_keys_and_values_once(studio, mode, monkeypatch):
    put_adapter(studio)
    joined = []
    join = ip_attention.ImagePromptAttention._join

    def counted(self, index, *rest):
        joined.append(index)
        return join(self, index, *rest)

    monkeypatch.setattr(ip_attention.ImagePromptAttention, "_join", counted)
    run(studio, [{"image": put(studio), "mode": mode, "stop": 0.7}], steps=6)
    layers = len(ip_attention.own_sites(network_config(studio)))
    assert sorted(joined) == list(range(layers))


def test_a_face_takes_the_adapter_for_faces(studio):
    put_adapter(studio)
    put_adapter(studio, "ip-adapter-plus-face.safetensors", seed=5)
    entry = {"image": put(studio), "stop": 1.0, "weight": 1.0, "skip_preprocess": True}
    assert differ(pixels(studio, [entry]), pixels(studio, [{**entry, "type": "face"}]))


def test_a_picture_without_that_face_is_said(studio):
    put_adapter(studio, "ip-adapter-plus-face.safetensors", seed=5)
    task = run(studio, [{"image": put(studio), "type": "face"}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_INPUT")
    assert "No face was found" in task.message
    portrait = Picture(ImagePrompt(image="a" * 64, type="face", face=2), draw_face())
    with pytest.raises(SpecError, match="shows one face, but face 2 is asked for"):
        content_of(portrait)
    alone = Picture(ImagePrompt(image="a" * 64, type="face"), draw_face())
    assert content_of(alone).shape == (512, 512, 3)


def test_of_two_faces_the_one_that_was_chosen_is_cropped():
    both = np.full((400, 700, 3), 200, dtype=np.uint8)
    both[50:350, 20:320] = draw_face(300)
    both[100:300, 420:620] = draw_face(200)[..., ::-1]  # blue
    for face, red in ((1, 1.0), (2, -1.0)):
        prompt = ImagePrompt(image="a" * 64, type="face", face=face)
        crop = content_of(Picture(prompt, both))[128:384, 128:384].astype(float)
        assert red * (crop[..., 0] - crop[..., 2]).mean() > 30.0


def test_content_and_structure_go_together(studio):
    put_adapter(studio)
    put_control(studio)
    content = {"image": put(studio), "stop": 1.0, "weight": 1.0}
    edges = {"image": put(studio), "type": "canny"}
    both = pixels(studio, [content, edges])
    assert differ(both, pixels(studio, [content]))
    assert differ(both, pixels(studio, [edges]))


def test_both_go_with_a_painting_that_begins_from_another(studio, monkeypatch):
    """What image-to-image does: a part of the schedule, and a mask of what is painted."""
    put_adapter(studio)
    put_control(studio)
    start = torch.linspace(-3, 3, 4 * 8 * 8).reshape(1, 4, 8, 8)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1.0
    found = []
    engine = sampling.sample

    def from_another(unet, noise, steps, *settings, **more):
        *settings, _empty = settings
        made = engine(unet, noise, steps, *settings, start, denoise=0.5, noise_mask=mask, **more)
        found.append(made)
        return made

    monkeypatch.setattr(sampling, "sample", from_another)
    content = {"image": put(studio), "stop": 1.0, "weight": 1.0}
    edges = {"image": put(studio), "type": "canny", "stop": 1.0}
    size = {"width": 64, "height": 64, "steps": 4}
    for entries in ([], [content], [edges], [content, edges]):
        assert run(studio, entries, **size).state is TaskState.DONE
    for made in found:
        torch.testing.assert_close(made[..., :4], start[..., :4])
    painted = [made[..., 4:] for made in found]
    for i, one in enumerate(painted):
        assert all((one - other).abs().max() > 1e-3 for other in painted[:i])


def test_as_many_as_a_task_may_have_count(studio):
    put_adapter(studio)
    put_control(studio)
    how = {"stop": 1.0, "weight": 1.0, "mode": "decoupled"}  # together they count little each
    content = [{"image": put(studio, (20 * n, 40, 200)), **how} for n in range(12)]
    edges = [{"image": put(studio, (250 - 60 * n, 255, 9)), "type": "canny"} for n in range(4)]
    assert len(content) + len(edges) == limits.IMAGE_PROMPTS_PER_TASK
    found = pixels(studio, [*content, *edges])
    assert differ(found, pixels(studio, [*content[:-1], *edges]))
    assert differ(found, pixels(studio, [*content, *edges[:-1]]))


# --- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "place"), [("face", "ipadapter"), ("canny", "controlnet")])
def test_a_file_of_another_family_is_neither_asked_for_nor_taken(studio, kind, place):
    for entry in NEEDED.values():
        (folder(studio, entry.folder) / entry.file).write_bytes(b"x")
    task = run(studio, [{"image": put(studio), "type": kind}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_MISSING")
    assert f"needs a file in models/{place} that is made for this checkpoint" in task.message
    assert str(studio.settings.root) not in task.message
    assert run(studio).state is TaskState.DONE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": -1}, "layers, but this checkpoint's network needs"),
        ({"wider": 2}, "wide, but this checkpoint's network needs"),
        ({"text": 2 * TINY.context}, "made for another family"),
    ],
)
def test_an_adapter_for_another_network_is_said_whatever_its_name(studio, change, message):
    put_adapter(studio, "my-ip-adapter.safetensors")
    before = pixels(studio)
    path = folder(studio, "ipadapter") / "my-ip-adapter.safetensors"
    widths = [w.shape[0] for k, w in load_file(path).items() if k.endswith("to_k_ip.weight")]
    widths = [change.get("wider", 1) * w for w in widths[: change.get("layers")]]
    write_adapter(path, widths, change.get("text", TINY.context), seed=3)
    task = run(studio, [{"image": put(studio)}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_UNSUPPORTED"), task.message
    assert re.search(message, task.message)
    assert not differ(pixels(studio), before)


def test_without_an_image_encoder_it_is_named(studio):
    put_adapter(studio)
    (studio.settings.models_path / "clip_vision" / "tower.safetensors").unlink()
    task = run(studio, [{"image": put(studio)}])
    assert "clip_vision_vit_h.safetensors in models/clip_vision" in task.message


def test_a_picture_that_is_gone_is_said(studio):
    put_control(studio)
    task = run(studio, [{"image": "f" * 64, "type": "canny"}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_INPUT")
    assert "/api/inputs" in task.message


@pytest.mark.parametrize("content", [b"", b"garbage", b"<html>"])
def test_a_broken_file_ends_this_task_alone(studio, content):
    (folder(studio, "controlnet") / "canny.safetensors").write_bytes(content)
    task = run(studio, [{"image": put(studio), "type": "canny"}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_CORRUPT")
    assert task.message.startswith("canny.safetensors")
    assert run(studio).state is TaskState.DONE


def test_memory_that_runs_out_forgets_controls_and_tries_again(studio, monkeypatch):
    put_control(studio)
    entry = {"image": put(studio), "type": "canny"}
    whole = pixels(studio, [entry])
    asked = []
    real = control_networks.ControlNet.get_control

    def fail_once(self, *args):
        asked.append(1)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("no room")
        return real(self, *args)

    monkeypatch.setattr(control_networks.ControlNet, "get_control", fail_once)
    assert np.abs(whole - pixels(studio, [entry])).max() <= 2


def test_memory_that_runs_out_at_a_later_file_makes_no_earlier_one_count_twice(studio, monkeypatch):
    put_adapter(studio)
    kinds = ("canny", "cpds")
    for seed, kind in enumerate(kinds):
        put_control(studio, f"{kind}.safetensors", seed=seed + 8)
    entries = [{"image": put(studio), "type": kind} for kind in ("image_prompt", *kinds)]
    whole = pixels(studio, entries)
    studio.pipeline.image_prompts.clear()
    asked, real = [], image_prompts.load_controlnet

    def fail_once(path, **options):
        asked.append(path.stem)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("no room")
        return real(path, **options)

    monkeypatch.setattr(image_prompts, "load_controlnet", fail_once)
    assert np.abs(whole - pixels(studio, entries)).max() <= 2
    assert asked == [*kinds, *kinds]


# --- recipe and command line ------------------------------------------------------------------


def test_the_recipe_names_the_pictures_by_their_hash(studio):
    put_control(studio)
    entry = {"image": put(studio), "type": "canny", "weight": 0.8}
    task = run(studio, [entry])
    recipe = read_full_recipe(studio.settings.output_path / task.commits[0]["path"])
    assert recipe.spec == task.spec
    assert recipe.spec.image_prompts[0].image == entry["image"]


def test_the_command_line_takes_pictures(tmp_path):
    path = tmp_path / "a house.png"
    path.write_bytes(picture_bytes())
    argv = ["x", "--data-path", str(tmp_path / "data")]
    for text in (f"{path}", f"{path}:canny", f"{path}:cpds:0.5", f"{path}:face:0.5:0.25"):
        argv += ["--image-prompt", text]
    spec, settings, _ = generate_cli.read_request(argv)
    found = [(p.type.value, p.weight, p.stop) for p in spec.image_prompts]
    assert found == [
        ("image_prompt", None, None),
        ("canny", None, None),
        ("cpds", 0.5, None),
        ("face", 0.5, 0.25),
    ]
    assert InputStore(settings.inputs_path).has(spec.image_prompts[0].image)


@pytest.mark.parametrize("text", ["none.png", "none.png:canny", "", "x:canny:high"])
def test_a_picture_that_cannot_be_read_is_a_sentence(tmp_path, text, capsys):
    argv = ["x", "--data-path", str(tmp_path / "data"), "--image-prompt", text]
    assert generate_cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "--image-prompt" in error
    assert error.count("\n") == 1
