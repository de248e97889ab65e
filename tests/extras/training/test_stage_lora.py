"""LoRAs of the frozen base: a look, a folder of pictures, and few steps."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extras.training import stage_makers, train_builtin
from extras.training.base_parts import MODEL_FILE, sizes_of
from extras.training.builtin_model import CLIP_G_PREFIX, CLIP_L_PREFIX, UNET_PREFIX
from extras.training.errors import CheckpointError, TrainingFolderError
from extras.training.low_rank import LowRankSet
from extras.training.pages import nearest, page_sizes
from extras.training.picture_folder import (
    Pictured,
    PictureFolder,
    fitted,
    open_folder,
    read_picture,
)
from extras.training.scenes.finishes import FINISHES
from extras.training.scenes.scene import SIZES
from extras.training.stage_diffusion import Preview
from extras.training.stage_fewstep import SKIP, FewstepStage
from extras.training.stage_lora import LoraPlan, LoraStage
from ldm_patched.modules.lora import read_lora
from ldm_patched.modules.sd import load_checkpoint_guess_config, load_lora_for_models
from ldm_patched.modules.utils import load_metadata
from ldm_patched.modules.weight_file import open_weights
from tests.extras.training.adapter_runs import (
    PAGES,
    POLICY,
    WINDOW,
    assert_resumes,
    learns_one_batch,
    place,
    run_of,
    write_toy_base,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        write_toy_base(folder)
    return folder / MODEL_FILE


def lora(base: Path, folder: Path, **changes) -> LoraStage:
    plan = LoraPlan(title="blueprint", trigger="blueprint", rank=4)
    source = changes.pop("source", replace(PAGES, finish="blueprint"))
    return LoraStage(plan, base, source, WINDOW, place(folder), **changes)


def fewstep(base: Path, folder: Path) -> FewstepStage:
    return FewstepStage(LoraPlan(title="lcm", rank=4), base, PAGES, WINDOW, place(folder))


@pytest.mark.parametrize("make", [lora, fewstep])
def test_resumes_to_the_weights_of_an_uninterrupted_run(make, base, tmp_path):
    assert_resumes(lambda folder: make(base, folder), tmp_path)


@pytest.mark.parametrize("make", [lora, fewstep])
def test_learns_one_batch(make, base, tmp_path):
    assert learns_one_batch(make(base, tmp_path), tmp_path, steps=25, rate=2e-2, share=0.8)


def test_the_base_stays_as_it_is(base, tmp_path):
    stage = lora(base, tmp_path)
    before = {name: w.clone() for name, w in stage.base.unet.state_dict().items()}
    assert run_of(stage, tmp_path, steps=2).train()
    assert all(torch.equal(w, before[name]) for name, w in stage.base.unet.state_dict().items())


def trained(stage: LoraStage, folder: Path) -> Path:
    """Its file, with additions that are not nothing."""
    with torch.no_grad():
        for _, pair in stage.added.by_name():
            pair.up.weight.normal_(std=0.2)
    (path,) = stage.finish()
    return path


def test_the_engine_makes_the_same_network_of_the_file(base, tmp_path):
    stage = lora(base, tmp_path)
    path = trained(stage, tmp_path)
    model, clip, _, _ = load_checkpoint_guess_config(base, policy=POLICY)
    found = read_lora(open_weights(path), model, clip)
    assert found.unmatched == ()
    assert len(found.unet) == len(stage.added.pairs) > 20
    patched, _ = load_lora_for_models(model, clip, open_weights(path), 1.0, 1.0)
    patched.patch_model()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0])
    context, y = torch.randn(2, 77, 192), torch.randn(2, 128 + 6 * 256)
    with torch.no_grad():
        ours = stage.base.unet(x, t, context=context, y=y)
        theirs = patched.model.diffusion_model(x, t, context=context, y=y)
        with stage.added.off():
            stage.base.unet.clear_cache()
            bare = stage.base.unet(x, t, context=context, y=y)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert float((ours - bare).abs().max()) > 0.05


def test_the_file_tells_its_trigger(base, tmp_path):
    entries = load_metadata(trained(lora(base, tmp_path), tmp_path))
    assert entries["modelspec.trigger_phrase"] == "blueprint"
    assert json.loads(entries["ss_tag_frequency"]) == {"blueprint": {"blueprint": 1}}
    assert entries["ss_network_dim"] == "4"


def test_another_base_is_refused_on_resuming(base, tmp_path):
    run_of(lora(base, tmp_path), tmp_path, steps=1).train()
    stage = lora(base, tmp_path)
    stage.base_hash = "another"
    with pytest.raises(CheckpointError, match="other settings"):
        run_of(stage, tmp_path, steps=1, resume=True).train()


def test_without_a_base_it_is_said_what_to_do(tmp_path):
    with pytest.raises(TrainingFolderError, match="run the stage `base`"):
        lora(tmp_path / MODEL_FILE, tmp_path)


def inpainting(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    first = f"{UNET_PREFIX}input_blocks.0.0.weight"
    return {**weights, first: torch.zeros(len(weights[first]), 9, 3, 3)}


def refiner(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    label, only = f"{UNET_PREFIX}label_emb.0.0.weight", "conditioner.embedders.0.model."
    narrow = {label: weights[label][:, : 192 + 5 * 256].clone()}
    one = {n.replace(CLIP_G_PREFIX, only): w for n, w in weights.items() if CLIP_L_PREFIX not in n}
    return {**one, **narrow}


@pytest.mark.parametrize("kind", [inpainting, refiner])
def test_a_base_that_paints_not_from_words_alone_is_refused(kind, base, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(kind(load_file(base)), path)
    model, clip, *_ = load_checkpoint_guess_config(path, policy=POLICY)
    assert model is not None
    assert clip is not None
    with pytest.raises(TrainingFolderError, match=r"other\.safetensors is no whole checkpoint"):
        lora(path, tmp_path)


def test_a_base_of_zero_terminal_snr_is_trained_at_its_own_levels(base, tmp_path):
    path, marks = tmp_path / "v.safetensors", {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)}
    save_file({**load_file(base), **marks}, path)
    stage = lora(path, tmp_path)
    model, *_ = load_checkpoint_guess_config(path, policy=POLICY)
    theirs = model.model.model_sampling.sigmas
    assert float(theirs[-1]) > 4000
    for own in (stage.denoiser.sigmas, stage.loss.sigma_sampler.sigmas):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(stage.sigmas(20)[0], theirs[-1], rtol=1e-5, atol=0)
    x, sigma = theirs[500] * torch.randn(2, 4, 8, 8), theirs[[500, 999]]
    cond = {"crossattn": torch.randn(2, 77, 192), "vector": torch.randn(2, 128 + 6 * 256)}
    with torch.no_grad():
        ours = stage.denoiser(stage.network, x, sigma, cond)
        engines = model.model.apply_model(x, sigma, c_crossattn=cond["crossattn"], y=cond["vector"])
    torch.testing.assert_close(ours, engines, atol=2e-3, rtol=2e-3)


def test_additions_to_convolutions_are_convolutions():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1))
    x = torch.randn(1, 3, 8, 8)
    before = network(x)
    added = LowRankSet(network, lambda _name: True, rank=2)
    assert torch.equal(network(x), before)
    ((name, pair),) = added.by_name()
    assert name == "0"
    torch.nn.init.normal_(pair.up.weight)
    both = torch.einsum("or,rikl->oikl", pair.up.weight[:, :, 0, 0],
                        pair.down.weight)  # fmt: skip
    whole = torch.nn.functional.conv2d(x, network[0].weight + both, network[0].bias, 2, 1)
    torch.testing.assert_close(network(x), whole, atol=1e-5, rtol=1e-5)


# --- few steps --------------------------------------------------------------------------------


def test_the_teacher_goes_one_step_of_the_engines_schedule(base, tmp_path):
    stage = fewstep(base, tmp_path)
    sigma, below = stage.levels(500)
    table = stage.denoiser.sigmas
    places, lower = stage.denoiser.sigma_to_idx(sigma), stage.denoiser.sigma_to_idx(below)
    assert torch.equal(table[places], sigma)
    inside = places >= SKIP
    assert torch.equal(lower[inside], places[inside] - SKIP)
    assert bool((below[~inside] == 0).all())
    assert 0 < int(inside.sum()) < 500


def test_the_target_is_a_guided_teachers_where_nothing_is_below(base, tmp_path):
    stage = fewstep(base, tmp_path)
    stage.begin(0)
    stage.window.advance(0)
    batch = stage.window.batch(0)
    x = batch.pop("latents")
    cond = stage.condition(batch)
    empty = stage.condition({**batch, **stage.emptied(batch)})
    sigma = torch.tensor([0.5, 0.5])
    with torch.no_grad():
        for _, pair in stage.added.by_name():
            pair.up.weight.normal_(std=0.1)
        target = stage.target(x, sigma, torch.zeros(2), cond, empty)
        with stage.added.off():
            good = stage.denoiser(stage.network, x, sigma, cond)
            poor = stage.denoiser(stage.network, x, sigma, empty)
    assert not torch.equal(good, poor)
    torch.testing.assert_close(target, poor + 4.0 * (good - poor))


# --- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FINISHES)
def test_finished_pages_have_the_colours_of_their_look_and_say_so(name):
    plan = replace(PAGES, finish=name, captions=3)
    group, plain = plan.draw_group(0), PAGES.draw_group(0)
    assert group.images.shape == plain.images.shape
    assert torch.equal(group.images, plan.draw_group(0).images)
    red, _, blue = group.images.float().mean(dim=(0, 1, 2))
    assert blue > red + 30 if name == "blueprint" else red > blue + 20
    assert float(group.images.float().std()) > 25


def write_pictures(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for name, size in (("a", (90, 60)), ("b", (64, 64)), ("c", (70, 64))):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a red \n house", encoding="utf-8")


def test_a_folder_of_pictures_is_a_source(base, tmp_path):
    write_pictures(tmp_path)
    source = open_folder(tmp_path, group=3, trigger="sks", sizes=((64, 64), (96, 64)))
    assert [picture.caption for picture in source.pictures] == ["a red house", "", ""]
    assert [picture.size for picture in source.pictures] == [(96, 64), (64, 64), (64, 64)]
    for number in range(6):
        group = source.draw_group(number)
        width, height = source.group_size(number)
        assert group.images.shape == (3, height, width, 3)
        assert torch.equal(group.images, source.draw_group(number).images)
    assert run_of(lora(base, tmp_path, source=source), tmp_path, steps=2).train()


def as_once(place: Path) -> None:
    """Let a checkpoint's record tell the folder, and nothing of what the files hold."""
    path = place / "checkpoint.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    pages = entry["record"]["identity"]["pages"]
    assert "folder" not in pages
    pages.update(folder="one", pictures=[picture[:3] for picture in pages["pictures"]])
    path.write_text(json.dumps(entry), encoding="utf-8")


def test_a_run_on_pictures_goes_on_with_the_same_ones_alone(base, tmp_path):
    """Wherever they lie."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    write_pictures(one)
    stage = lora(base, tmp_path, source=open_folder(one, sizes=((64, 64),)))
    first = run_of(stage, tmp_path)
    first.prepare()
    place = first.save()
    one.rename(two)

    def resumed(**changes) -> None:
        stage.source = replace(open_folder(two, sizes=((64, 64),)), **changes)
        run_of(stage, tmp_path, resume=True).prepare()

    resumed()
    with pytest.raises(CheckpointError, match='other settings.*"pictures": 3,') as refused:
        resumed(seed=1)
    assert "a red house" not in str(refused.value)
    whole = (two / "b.png").read_bytes()
    Image.new("RGB", (64, 64)).save(two / "b.png")
    with pytest.raises(CheckpointError, match="other pictures or captions"):
        resumed()
    as_once(place)
    resumed()
    (two / "b.png").write_bytes(whole)
    (two / "b.txt").write_text("a blue house", encoding="utf-8")
    with pytest.raises(CheckpointError, match="other pictures or captions"):
        resumed()


def test_the_command_line_trains_a_lora_on_a_folder(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stage_makers, "Preview", partial(Preview, prompts=("cat",), steps=1))
    write_pictures(tmp_path)
    line = ["--stage", "lora", "--pictures", str(tmp_path), "--trigger", "sks", "--title", "mi/ne",
            "--start-from", str(base), "--folder", str(tmp_path / "run"), "--device", "cpu",
            "--batch", "1", "--workers", "0", "--steps", "1", "--rank", "2", "--capacity", "4",
            "--output", str(tmp_path / "loras")]  # fmt: skip
    assert train_builtin.main(line) == 0
    assert "Stage lora is done: mi_ne.safetensors" in capsys.readouterr().err
    entries = load_metadata(tmp_path / "loras" / "mi_ne.safetensors")
    assert (entries["modelspec.trigger_phrase"], entries["ss_network_dim"]) == ("sks", "2")


def asked(*words: str):
    return train_builtin.build_parser().parse_args(["--stage", "lora", *words])


def test_grids_of_ones_own_pictures_are_of_their_words_and_size(base, tmp_path):
    write_pictures(tmp_path)
    args = asked("--pictures", str(tmp_path), "--trigger", "sks", "--start-from", str(base),
                 "--folder", str(tmp_path), "--workers", "0")  # fmt: skip
    stage = stage_makers.STAGES["lora"](args, torch.device("cpu"), stage_makers.SCALES["cpu"])
    assert stage.place.preview == Preview(prompts=("sks, a red house", "sks"), size=(64, 64))
    stage.place = replace(stage.place, preview=replace(stage.place.preview, steps=1))
    decode, rows = stage.base.vae.decode, []
    stage.base.vae.decode = lambda latents: rows.append(len(latents)) or decode(latents)
    assert stage.grid().shape == (64, 134, 3)
    assert rows == [1, 1]


@pytest.mark.parametrize(
    ("trigger", "captions", "prompts"),
    [
        ("", ("a", "", "b", "a", "c"), ("a", "b")),
        ("sks", ("", ""), ("sks",)),
        ("", ("", ""), ("",)),
    ],
)
def test_prompts_are_the_first_words_that_differ(trigger, captions, prompts):
    pictures = tuple(Pictured("x.png", caption, (64, 64), "") for caption in captions)
    source = PictureFolder(folder="", pictures=pictures, trigger=trigger)
    assert source.prompts(2) == prompts


@pytest.mark.parametrize("title", ["vae", "Text", "detector", "tower", "easel-mini-lcm"])
def test_a_title_of_the_runs_own_files_is_refused(title, base, tmp_path, capsys):
    write_pictures(tmp_path)
    line = ["--stage", "lora", "--pictures", str(tmp_path), "--start-from", str(base),
            "--folder", str(tmp_path / "run"), "--device", "cpu", "--title", title]  # fmt: skip
    assert train_builtin.main(line) == 1
    assert f"{title!r} is a name of the trainer's own" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ones_own_pictures_have_a_pace_of_their_own(tmp_path):
    for scale in stage_makers.SCALES.values():
        pace = stage_makers.pace_of(asked("--pictures", str(tmp_path)), scale)
        assert (pace.batch, pace.learning_rate) == (1, 1e-4)
        assert stage_makers.pace_of(asked(), scale) == scale.paces["lora"]


def test_a_look_has_no_words_that_call_for_it(base, tmp_path):
    """The model has no rows for them."""
    args = asked("--start-from", str(base), "--folder", str(tmp_path), "--workers", "0")
    stage = stage_makers.STAGES["lora"](args, torch.device("cpu"), stage_makers.SCALES["cpu"])
    entries = stage.metadata()
    assert "modelspec.trigger_phrase" not in entries
    assert json.loads(entries["ss_tag_frequency"]) == {"blueprint": {}}


def test_sizes_are_those_of_the_checkpoint(base, tmp_path):
    assert sizes_of(base) == ((64, 64), (96, 64))
    assert page_sizes(256 * 256) == SIZES
    assert set(page_sizes(128 * 128)) == {(128, 128), (160, 96), (96, 160), (192, 96), (96, 192)}
    large = sizes_of(tmp_path / "an sdxl that tells nothing.safetensors")
    assert large[:3] == ((1024, 1024), (1152, 896), (896, 1152))
    square = tmp_path / "square.safetensors"
    save_file({"w": torch.zeros(1)}, square, {"easel.area": "16384", "easel.ratios": '["1:1"]'})
    assert sizes_of(square) == ((128, 128),)


def test_pictures_are_cut_to_the_nearest_size_and_tell_it():
    assert nearest(4000, 3000, SIZES) == (288, 224)
    image = np.zeros((100, 400, 3), np.uint8)
    piece, six = fitted(image, (64, 64), Random(0))
    assert piece.shape == (64, 64, 3)
    assert six[:2] == (100, 400)  # before it was scaled
    assert six[4:] == (64, 64)
    assert 0 <= six[3] <= 192  # of the scaled picture


def test_an_empty_folder_and_a_broken_picture_are_named(tmp_path):
    with pytest.raises(TrainingFolderError, match="holds no pictures"):
        open_folder(tmp_path)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(TrainingFolderError, match=r"x\.png"):
        open_folder(tmp_path)
    with pytest.raises(TrainingFolderError, match=r"'x\.png' is a file: .*--pictures"):
        open_folder(tmp_path / "x.png")
    with pytest.raises(TrainingFolderError, match=r"'mine' is not there: .*--pictures"):
        open_folder(tmp_path / "mine")


@pytest.mark.parametrize("damage", ["chunk", "exif"])
def test_a_damaged_picture_is_named(damage, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path, exif=b"none" if damage == "exif" else None)
    if damage == "chunk":
        first, second, last = path.read_bytes().split(b"IDAT")
        path.write_bytes(first + b"IDAT" + second + b"ID\1T" + last)
    with pytest.raises(TrainingFolderError, match=r"x\.png.*cannot be read"):
        read_picture(path)


def test_sixteen_bits_of_grey_are_brought_to_eight(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 257, 32_896, 65_535]], np.uint16)).save(path)
    assert read_picture(path)[0].tolist() == [[n] * 3 for n in (0, 1, 128, 255)]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_captions_are_read_without_the_mark_of_their_coding(coding, tmp_path):
    write_pictures(tmp_path)
    text = "\ufeffa café" if coding == "utf-16-be" else "a café"
    (tmp_path / "b.txt").write_bytes(text.encode(coding))
    assert open_folder(tmp_path).pictures[1].caption == "a café"


def refuse(_path: Path) -> bytes:
    raise PermissionError


@pytest.mark.parametrize("why", ["coding", "disk"])
def test_a_caption_that_cannot_be_read_is_named(why, tmp_path, monkeypatch):
    write_pictures(tmp_path)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").write_bytes("a café".encode("cp1252"))
    if why == "disk":
        (tmp_path / "b.txt").write_bytes(b"a cup")
        monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(TrainingFolderError, match=r"b\.txt.*save it as a text file in UTF-8"):
        open_folder(tmp_path)
