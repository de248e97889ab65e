"""The trainer's command line: what it refuses, and how it ends."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from extras.training import checkpoints, train_builtin
from extras.training.options import refuse_foreign
from extras.training.stage_vae import VAE_FILE

pytestmark = pytest.mark.usefixtures("few_pieces_to_start_from")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt(), 130, "Interrupted; --resume"),
     (torch.OutOfMemoryError("CUDA out of memory"), 1, "too little memory.*--batch")],
)  # fmt: skip
def test_the_command_line_ends_in_a_sentence(error, code, words, monkeypatch, capsys):
    def fail(_args):
        raise error

    monkeypatch.setattr(train_builtin, "make_run", fail)
    assert train_builtin.main(["--stage", "vae"]) == code
    assert re.search(words, capsys.readouterr().err)


def test_base_without_its_autoencoder_says_what_to_do(tmp_path, capsys):
    code = train_builtin.main(
        ["--stage", "base", "--size", "toy", "--folder", str(tmp_path / "x"), "--device", "cpu"]
    )
    assert code == 1
    error = capsys.readouterr().err
    assert "'x' has no sound vae.safetensors" in error
    assert str(tmp_path) not in error
    assert "Traceback" not in error


def test_the_command_line_trains_resumes_and_ends(tmp_path, capsys):
    line = ["--stage", "vae", "--size", "toy", "--device", "cpu", "--folder", str(tmp_path / "run"),
            "--batch", "1", "--page", "64", "--side", "32", "--workers", "0",
            "--steps", "2"]  # fmt: skip
    assert train_builtin.main([*line, "--minutes", "0.000001"]) == 0
    assert "Stopped at step 1 of 2" in capsys.readouterr().err
    assert train_builtin.main([*line, "--resume"]) == 0
    assert "Stage vae is done: vae.safetensors in run." in capsys.readouterr().err
    assert (tmp_path / "run" / VAE_FILE).stat().st_size > 1e6


def test_an_output_that_cannot_be_written_to_is_named_before_the_training(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setitem(train_builtin.STAGES, "base", lambda *_: None)
    line = ["--stage", "base", "--device", "cpu", "--folder", str(tmp_path / "run"),
            "--output", str(tmp_path / "file" / "models")]  # fmt: skip
    assert train_builtin.main(line) == 1
    assert "folder 'models' cannot be written to" in (said := capsys.readouterr().err)
    assert "another one with --output" in said
    assert not (tmp_path / "run").exists()


def test_a_run_whose_result_could_not_be_written_is_finished_without_training(tmp_path, capsys):
    line = ["--stage", "vae", "--size", "toy", "--device", "cpu", "--folder", str(tmp_path / "run"),
            "--batch", "1", "--page", "64", "--side", "32", "--workers", "0",
            "--within", "0.000001"]  # fmt: skip
    (tmp_path / "run" / VAE_FILE).mkdir(parents=True)
    assert train_builtin.main(line) == 1
    assert "--steps 1 beside it" in capsys.readouterr().err
    (tmp_path / "run" / VAE_FILE).rmdir()
    assert train_builtin.main([*line, "--resume", "--steps", "1"]) == 0
    assert (tmp_path / "run" / VAE_FILE).is_file()
    kept = checkpoints.list_checkpoints(tmp_path / "run" / "vae")
    assert [path.name for path in kept] == ["step-00000001"]


@pytest.mark.parametrize("stage", ["vae", "lora"])
@pytest.mark.parametrize(
    "words",
    ["--book primer", "--keep-pages x", "--objective v", "--weighting v",
     "--loss l1", "--offset-noise 0.1", "--frozen-text", "--checkpointing"],
)  # fmt: skip
def test_what_is_of_the_base_is_refused_for_another_stage(words, stage, tmp_path, capsys):
    line = ["--stage", stage, "--size", "toy", *words.split(), "--folder", str(tmp_path / "run")]
    assert train_builtin.main(line) == 1
    assert f"{words.split()[0]} is of the stage base alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "words", "whose"),
    [("lora", "--compile", "vae, decoder, base, detector and tower"),
     ("vae", "--rank 4", "lora, fewstep and control"), ("text", "--reuse 2", "base, detector"),
     ("ip", "--title x", "lora alone"), ("vae", "--output x", "decoder, base, detector"),
     ("control", "--size toy", "vae, text"), ("control", "--align x", "base, tower and ip"),
     ("vae", "--levels middle", "base and ip"), ("lora", "--emphasis 2", "base, tower and ip"),
     ("lora", "--adapter x", "ip and control"),
     ("text", "--optimizer muon", "vae, decoder, base")],
)  # fmt: skip
def test_an_option_of_other_stages_is_refused(stage, words, whose, tmp_path, capsys):
    assert train_builtin.main(["--stage", stage, *words.split(), "--folder", str(tmp_path)]) == 1
    assert re.search(f"{words.split()[0]} is of the stages? {whose}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [("--page 32", "multiple of 32 from 64 to 1024"), ("--side 60", "multiple of 8 of 0 or more"),
     ("--reuse 0", "number above 0"), ("--workers -1", "of 0 or more"), ("--batch x", "of 1 or"),
     ("--seed 4294967296", "from 0 to 4294967295"), ("--minutes nan", "of 0 or more")],
)  # fmt: skip
def test_numbers_out_of_bounds_are_refused(words, allowed, capsys):
    with pytest.raises(SystemExit) as ended:
        train_builtin.main(["--stage", "vae", *words.split()])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words.split()[0] in error
    assert allowed in error


def test_a_look_is_not_of_ones_own_pictures(tmp_path, capsys):
    line = ["--stage", "lora", "--pictures", str(tmp_path), "--finish", "blueprint",
            "--device", "cpu"]  # fmt: skip
    assert train_builtin.main(line) == 1
    assert "leave it out with --pictures" in capsys.readouterr().err


def test_every_command_line_of_the_page_is_taken():
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text("utf-8")
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    shell = shell.replace("\\\n", " ")
    while found := re.search(r'^(\w)="(.*)"\n', shell, re.MULTILINE):
        shell = shell.replace(found[0], "").replace(f"${found[1]} ", f"{found[2]} ")
    lines = re.findall(r"train-builtin ([^&;)\n]*--stage [^&;)\n]*)", shell)
    assert len(lines) == 28
    parser = train_builtin.build_parser()
    for line in lines:
        refuse_foreign(parser, parser.parse_args(shlex.split(line)))


@pytest.mark.parametrize("stage", ["tower", "base", "ip"])
def test_a_folder_without_a_detector_to_align_with_is_named(stage, tmp_path, capsys):
    line = ["--stage", stage, "--size", "toy", "--device", "cpu", "--folder", str(tmp_path),
            "--align", str(tmp_path / "elsewhere")]  # fmt: skip
    assert train_builtin.main(line) == 1
    assert "'elsewhere' has no sound detector.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["tower", "ip"])
def test_emphasis_that_would_do_nothing_is_refused(stage, tmp_path, capsys):
    line = ["--stage", stage, "--size", "toy", "--device", "cpu", "--folder", str(tmp_path),
            "--emphasis", "3"]  # fmt: skip
    assert train_builtin.main(line) == 1
    alone = "has --emphasis only with --align" in capsys.readouterr().err
    assert alone == (stage == "tower")


def test_pieces_fit_on_the_pages(tmp_path, capsys):
    line = ["--stage", "vae", "--size", "toy", "--device", "cpu", "--folder", str(tmp_path),
            "--page", "128"]  # fmt: skip
    run = train_builtin.make_run(train_builtin.build_parser().parse_args(line))
    assert run.stage.pages.side == 96
    assert train_builtin.main([*line, "--side", "128"]) == 1
    assert "side 128 do not fit on pages that are 96 pixels" in capsys.readouterr().err
    assert train_builtin.main([*line, "--side", "8", "--batch", "1"]) == 1
    assert "A single piece of side 8 is one latent" in capsys.readouterr().err


def test_an_autoencoder_may_have_pages_of_several_areas_each_as_often(tmp_path):
    line = ["--stage", "vae", "--size", "toy", "--device", "cpu", "--folder", str(tmp_path),
            "--page", "128", "256", "--side", "64"]  # fmt: skip
    for ratios, words in ((1, ["--square"]), (7, [])):
        run = train_builtin.make_run(train_builtin.build_parser().parse_args([*line, *words]))
        pages = run.stage.pages
        assert {size[0] * size[1] > 128 * 192 for size in pages.sizes} == {False, True}
        assert len(pages.sizes) == 2 * ratios
        assert pages.weights[:ratios] == pages.weights[ratios:]


def test_another_stage_has_pages_of_one_area(tmp_path, capsys):
    line = ["--stage", "base", "--folder", str(tmp_path / "run"), "--page", "128", "256"]
    assert train_builtin.main(line) == 1
    assert "for the stages vae and decoder alone: give one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_absent_device_is_named(tmp_path, capsys):
    line = ["--stage", "vae", "--device", "abacus", "--folder", str(tmp_path)]
    assert train_builtin.main(line) == 1
    assert "no device 'abacus'" in capsys.readouterr().err
