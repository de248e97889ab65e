import io

import numpy as np
import pytest
from PIL import Image

from modules.gallery.recipe import Recipe, read_full_recipe
from modules.gallery.save import encode_image
from modules.settings.presets import Preset
from modules.spec.errors import ConfigError, StudioError
from modules.spec.flags import OutputFormat, Sampler, TaskState
from modules.spec.performance import MODES
from modules.spec.resolving import resolve_spec
from modules.spec.sizes import SDXL
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Loading, Progress
from modules.worker import generate_cli


def test_every_field_of_a_request_has_its_option():
    options = {action.dest for action in generate_cli.build_parser()._actions}
    assert set(TaskSpec.model_fields) <= options


def test_options_become_the_request_and_the_settings(tmp_path):
    spec, settings, has_folder = generate_cli.read_request(
        ["two words", "-n", "3", "--seed", "7", "-o", str(tmp_path), "--cfg-scale", "5.5"]
        + ["--sampler", "lcm", "--format", "webp", "--width", "64", "--height", "128"]
        + ["--negative-prompt", "a, b", "--all-in-fp32", "--always-cpu", "2"]
    )
    assert spec == TaskSpec(
        prompt="two words",
        image_count=3,
        seed=7,
        cfg_scale=5.5,
        sampler=Sampler.LCM,
        output_format="webp",
        width=64,
        height=128,
        negative_prompt="a, b",
    )
    assert (settings.output_path, has_folder) == (tmp_path, True)
    assert settings.device_flags == {"all_in_fp32": True, "always_cpu": True, "threads": 2}


def test_a_folder_of_no_user_is_taken_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows has everybody beside it
    monkeypatch.chdir(tmp_path)
    _, settings, _ = generate_cli.read_request(["x", "-o", "~no-such-user/x"])
    assert settings.output_path == tmp_path / "~no-such-user" / "x"


def test_without_a_seed_one_is_drawn():
    assert generate_cli.read_request(["x"])[0].seed is not None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: prompt"),
        (["x", "--steps", "1000"], "at most 200"),
        (["x", "--steps", "many"], "whole number"),
        (["x", "--width", "65", "--height", "64"], "multiple of 8"),
        (["x", "--sampler", "magic"], "must be one of"),
        (["x", "--preset", "nowhere"], "'nowhere' is not there"),
        (["x", "--bogus"], "--bogus"),
        (["--from", "~no-such-user/a.png"], "cannot be read"),
        (["x", "--image-prompt", "~no-such-user/a.png"], "a.png of --image-prompt cannot be read"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_sentence(argv, words, capsys):
    with pytest.raises(StudioError) as caught:
        generate_cli.read_request(argv)
    assert words in str(caught.value)
    assert generate_cli.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{caught.value}\n"


def test_a_broken_command_line_is_a_config_error():
    with pytest.raises(ConfigError):
        generate_cli.read_request(["x", "--steps"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_line_is_replaced_and_cleared(tmp_path):
    out, err = io.StringIO(), Terminal()
    task = generate_cli.TerminalTask(TaskSpec(prompt="x", seed=1), tmp_path, out, err)
    task.emit(Loading(message="loading tiny.safetensors (74 MB)"))
    task.emit(Progress(image=1, image_count=2, step=10, steps=20, seconds_left=12.4))
    line = err.getvalue().split("\r")[-1]
    assert line.startswith("██████░░░░░░░░░░░░░░░░░░ picture 1 of 2 · step 10/20 · 12 s left")
    task.commit_image(0, "a.png", "", 1, 1, 1)
    assert out.getvalue() == f"{tmp_path / 'a.png'}\n"
    assert err.getvalue().endswith("\r" + " " * len(line) + "\r")
    task.finish(TaskState.FAILED, "E_X", "No.")
    assert task.failure == "No."


def test_no_progress_line_where_nobody_looks(tmp_path):
    err = io.StringIO()
    task = generate_cli.TerminalTask(TaskSpec(seed=1), tmp_path, io.StringIO(), err)
    task.emit(Progress(image=1, image_count=1, step=0, steps=2))
    assert err.getvalue() == ""


def test_a_path_that_the_terminal_cannot_spell_is_told_in_escapes(tmp_path):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    task = generate_cli.TerminalTask(TaskSpec(seed=1), tmp_path / "€ 絵", out, io.StringIO())
    task.commit_image(0, "a.png", "", 1, 1, 1)
    path = str(tmp_path / "€ 絵" / "a.png").replace("絵", "\\u7d75")
    assert out.buffer.getvalue().decode("cp1252") == f"{path}\n"


@pytest.fixture
def common(tmp_path):
    """Options of a quick picture that keep what is written in this test's folder."""
    argv = ["a red house", "--steps", "2", "--seed", "7", "--all-in-fp32", "--always-cpu", "1"]
    return [*argv, "-o", str(tmp_path / "folder"), "--data-path", str(tmp_path / "data")]


def test_pictures_are_made_without_the_page(tmp_path, tiny_checkpoint, common, capsys):
    models, folder = tmp_path / "models", tmp_path / "folder"
    (models / "checkpoints").mkdir(parents=True)
    (models / "checkpoints" / "tiny.safetensors").hardlink_to(tiny_checkpoint)
    argv = [*common, "-n", "2", "--models-path", str(models)]
    assert generate_cli.main(argv) == 0
    paths = sorted(folder.iterdir())
    assert len(paths) == 2
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in paths]
    spec = read_full_recipe(paths[0]).spec
    assert spec == TaskSpec(prompt="a red house", steps=2, seed=7, image_count=2)


def test_a_picture_is_painted_again_from_its_recipe(tmp_path, tiny_checkpoint):
    models, folder, again = tmp_path / "models", tmp_path / "folder", tmp_path / "again"
    (models / "checkpoints").mkdir(parents=True)
    (models / "checkpoints" / "tiny.safetensors").hardlink_to(tiny_checkpoint)
    place = ["--models-path", str(models), "--data-path", str(tmp_path / "data")]
    place += ["--all-in-fp32", "--always-cpu", "1", "-o"]
    words = ["a [[red, green, blue]] house", "--steps", "2", "--seed", "7", "-n", "3"]
    assert generate_cli.main([*words, *place, str(folder)]) == 0
    (third,) = (p for p in folder.iterdir() if read_full_recipe(p).image.index == 2)
    assert generate_cli.main(["--from", str(third), *place, str(again)]) == 0
    (copy,) = again.iterdir()
    recipe = read_full_recipe(copy)
    assert recipe.prompt.positive == ("a blue house",)
    assert recipe.resolved.checkpoint == "tiny.safetensors"
    with Image.open(third) as first, Image.open(copy) as second:
        assert first.tobytes() == second.tobytes()
    changed, _, _ = generate_cli.read_request(["a cat", "--from", str(copy), "--steps", "5"])
    assert changed == recipe.spec.model_copy(update={"prompt": "a cat", "steps": 5})


def settled(spec):
    mode = next((mode for mode in MODES if mode.name == spec.performance), None)
    lora = mode.lora.file if mode and mode.lora else ""
    return resolve_spec(spec, mode, checkpoint="a.safetensors", sizes=SDXL, lora=lora)


@pytest.mark.parametrize(
    ("recipe", "line", "wanted"),
    [
        ({"performance": "speed"}, "--steps 5", {"steps": 5}),
        ({"performance": "speed"}, "--cfg-scale 6", {"steps": 30, "cfg_scale": 6.0}),
        ({"performance": "speed", "overwrite_step": 12}, "--steps 5", {"steps": 5}),
        ({"performance": "speed", "overwrite_step": 12}, "--seed 5", {"steps": 12}),
        ({"overwrite_step": 12}, "--steps 5", {"steps": 5}),
        ({"performance": "lightning"}, "--sampler lcm", {"steps": 4, "sampler": "lcm"}),
        ({"performance": "lightning"}, "--steps 5", {"cfg_scale": 1.0, "sampler": "euler"}),
        ({"performance": "speed"}, "--steps 5 --performance quality", {"steps": 60}),
        ({"width": 512, "height": 768}, "--aspect-ratio 1:1", {"width": 1024, "height": 1024}),
        ({"width": 512, "height": 768}, "--steps 5", {"width": 512, "height": 768}),
        (
            {"refiner": "b.safetensors", "overwrite_switch": 9},
            "--refiner-switch 0.5",
            {"refiner_step": 15},
        ),
    ],
    ids=str,
)
def test_what_the_line_says_overrides_the_recipe(tmp_path, recipe, line, wanted):
    spec = TaskSpec(prompt="x", seed=7, image_count=1, **recipe)
    saved = Recipe.of(spec, settled(spec), 0)
    pixels = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encode_image(pixels, OutputFormat.PNG, saved))
    argv = ["--from", str(tmp_path / "a.png"), *line.split()]
    found = settled(generate_cli.read_request(argv)[0])
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_the_lora_of_a_mode_outlives_it(tmp_path):
    spec = TaskSpec(prompt="x", seed=7, image_count=1, performance="lightning")
    recipe = Recipe.of(spec, settled(spec), 0)
    both = {"loras": [{"name": "ink"}], "steps": "5"}
    changed = TaskSpec.from_mapping(
        generate_cli.with_line(recipe, both, {mode.name: mode for mode in MODES})
    )
    assert (changed.performance, settled(changed).steps) == ("", 5)
    assert [lora.name for lora in changed.loras] == ["ink", "sdxl_lightning_4step_lora.safetensors"]


def test_a_picture_without_a_recipe_or_none_at_all_is_a_sentence(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for name, words in (("plain.png", "holds no Easel recipe"), ("none.png", "cannot be read")):
        assert generate_cli.main(["--from", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1


def test_no_model_at_all_is_a_sentence_and_exit_code_1(tmp_path, common, capsys):
    argv = [*common, "--models-path", str(tmp_path / "none")]
    argv += ["--checkpoint", "nowhere.safetensors"]
    assert generate_cli.main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not (tmp_path / "folder").exists()


def test_the_log_says_more_of_what_nobody_foresaw(tmp_path, common, capsys, monkeypatch):
    monkeypatch.setattr("modules.async_worker.handler", lambda _task: 1 / 0)
    assert generate_cli.main(common) == 1
    error = capsys.readouterr().err
    assert "the log says more" in error and "Traceback" not in error
    log = (tmp_path / "data" / "logs" / "generate.log").read_text(encoding="utf-8")
    assert "Traceback" in log and "ZeroDivisionError" in log


def test_what_a_preset_lacks_is_fetched_into_the_same_folder(tmp_path, capsys):
    models = str(tmp_path / "my models")
    generate_cli.read_request(["x", "--preset", "default", "--models-path", models])
    told = capsys.readouterr().err
    key = "checkpoints/juggernautXL_v8Rundiffusion.safetensors"
    assert f"python3 launch.py download {key} --models-path '{models}'\n" in told


def test_what_a_preset_s_mode_would_decide_is_not_lost_in_silence(tmp_path):
    line = ["x", "--models-path", str(tmp_path)]
    spec, _, _ = generate_cli.read_request([*line, "--preset", "default", "--steps", "5"])
    assert settled(spec).steps == 5
    line += ["--preset", "lcm", "--sampler", "euler"]
    with pytest.raises(StudioError, match=r"mode Extreme Speed, which decides sampler: .*''"):
        generate_cli.read_request(line)
    spec, _, _ = generate_cli.read_request([*line, "--performance", ""])
    assert (spec.sampler, spec.performance) == ("euler", "")


def test_what_the_line_says_overrides_the_preset(tmp_path, monkeypatch):
    mine = {"width": 1024, "height": 768, "overwrite_step": 12}
    presets = {"mine": Preset(name="mine", title="Mine", settings=mine)}
    monkeypatch.setattr(generate_cli, "load_presets", lambda _root: presets)
    line = ["x", "--models-path", str(tmp_path), "--preset", "mine"]
    spec, _, _ = generate_cli.read_request([*line, "--steps", "40", "--aspect-ratio", "1:1"])
    found = settled(spec)
    assert (found.steps, found.width, found.height) == (40, 1024, 1024)


def test_styles_and_switches_are_options():
    argv = ["a cat", "--styles", "ink, glow", "--expand-prompt", "--no-wildcards-in-order"]
    spec, _, _ = generate_cli.read_request(argv)
    assert spec.styles == ("ink", "glow")
    assert (spec.expand_prompt, spec.wildcards_in_order) == (True, False)


def test_loras_are_given_by_name_and_weight():
    argv = ["a house", "--lora", "ink:0.8", "--lora", "sub/oil.safetensors:-1:0.5", "--lora", "x"]
    spec, _, _ = generate_cli.read_request(argv)
    found = [(lora.name, lora.weight, lora.clip_weight) for lora in spec.loras]
    assert found == [("ink", 0.8, None), ("sub/oil.safetensors", -1.0, 0.5), ("x", 1.0, None)]


@pytest.mark.parametrize("text", ["a:1:2:3", "a:", "a:x", ":1", "a:9", "../a:1"])
def test_a_lora_that_cannot_be_read_is_refused_in_a_sentence(text):
    with pytest.raises(StudioError, match=r"LoRA|--lora"):
        generate_cli.read_request(["a house", "--lora", text])


def test_ctrl_c_while_it_is_starting_is_no_traceback(monkeypatch):
    def interrupted(_argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_cli, "read_request", interrupted)
    assert generate_cli.main(["a fox"]) == generate_cli.EXIT_STOPPED
