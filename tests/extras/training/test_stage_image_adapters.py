"""Image prompts and edge control of the frozen base, from training to the engine's own loaders."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from extras.ip_adapter import IPAdapterStore, patch_model
from extras.training import picturebook
from extras.training.base_parts import MODEL_FILE
from extras.training.detector import TOWER_FILE, TOY_TOWER, Detector, FactTower
from extras.training.errors import CheckpointError, TrainingFolderError
from extras.training.noise import NearestSampling
from extras.training.stage_control import CONTROL_FILE, ControlStage
from extras.training.stage_ip import (
    IP_FILE,
    NEGATIVE_FILE,
    ImagePromptNetwork,
    ImagePromptPlan,
    ImagePromptStage,
)
from extras.training.train_builtin import build_parser, make_run
from extras.training.writing import half
from ldm_patched.modules.controlnet import load_controlnet
from ldm_patched.modules.errors import EngineError
from ldm_patched.modules.sd import load_checkpoint_guess_config
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

PLAN = ImagePromptPlan(width=64, depth=1, tokens=3, picture_dropout=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a toy base and a toy image encoder."""
    made = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        write_toy_base(made)
        save_file(half(FactTower(TOY_TOWER).result()), made / TOWER_FILE)
    return made


def ip(folder: Path, _place: Path | None = None) -> ImagePromptStage:
    return ImagePromptStage(PLAN, folder / MODEL_FILE, PAGES, WINDOW, place(folder))


def aligned_ip(folder: Path, _place: Path | None = None) -> ImagePromptStage:
    plan = replace(PLAN, levels="middle", emphasis=3.0)
    return ImagePromptStage(
        plan, folder / MODEL_FILE, PAGES, WINDOW, place(folder), teacher=teacher()
    )


def teacher(seed: int = 0) -> Detector:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Detector((8, 8, 8, 16)).eval().requires_grad_(False)


def control(folder: Path, _place: Path | None = None) -> ControlStage:
    pages = replace(PAGES, edges=True)
    return ControlStage(folder / MODEL_FILE, pages, WINDOW, place(folder), rank=4)


@pytest.mark.parametrize("make", [ip, aligned_ip, control])
def test_resumes_to_the_weights_of_an_uninterrupted_run(make, folder, tmp_path):
    assert_resumes(lambda _folder: make(folder), tmp_path)


def test_another_image_encoder_is_refused_on_resuming(folder, tmp_path):
    stage = ip(folder)
    first = run_of(stage, tmp_path)
    first.prepare()
    first.save()
    run_of(stage, tmp_path, resume=True).prepare()
    with torch.no_grad():
        next(stage.tower.parameters()).add_(0.5)
    with pytest.raises(CheckpointError, match="another image encoder"):
        run_of(stage, tmp_path, resume=True).prepare()


def test_another_teacher_is_refused_on_resuming(folder, tmp_path):
    stage = aligned_ip(folder)
    first = run_of(stage, tmp_path)
    first.prepare()
    first.save()
    stage.lessons = replace(stage.lessons, teacher=teacher(1))
    with pytest.raises(CheckpointError, match="another"):
        run_of(stage, tmp_path, resume=True).prepare()


def test_what_is_told_counts_as_much_as_its_place(folder):
    stage = aligned_ip(folder)
    stage.begin(0)
    stage.window.advance(0)
    batch = stage.window.batch(0)
    stage.window.advance = lambda _step: None

    @torch.no_grad()
    def missed() -> float:
        stage.window.batch = lambda _step: dict(batch)
        return float(stage.compute_loss(0)[1]["untold"])

    before = missed()  # nothing is told yet, so that noise does not matter
    batch["emphasis"] = batch["emphasis"] * 2.0
    assert missed() == pytest.approx(2.0 * before, rel=1e-3)
    assert isinstance(stage.loss.sigma_sampler, NearestSampling)
    assert not isinstance(ip(folder).loss.sigma_sampler, NearestSampling)


def test_what_the_teacher_sees_is_learnt_by_way_of_the_picture(folder):
    stage = aligned_ip(folder)
    stage.begin(0)
    stage.window.advance(0)
    batch = stage.window.batch(0)
    places = batch["latents"].shape[-2] * batch["latents"].shape[-1] // 4
    assert batch["seen"].shape == (2, places, 16)
    stage.window.advance = lambda _step: None
    stage.window.batch = lambda _step: dict(batch)
    with torch.no_grad():
        stage.model["sight"][-1].weight.normal_()
    stage.compute_loss(0)[1]["untold"].backward()
    assert all(weight.grad is not None for weight in stage.adapter.image_proj.parameters())
    assert stage.model["sight"][0].weight.grad.any()
    assert not any(weight.requires_grad for weight in stage.base.unet.parameters())


@pytest.mark.parametrize(("make", "share"), [(ip, 0.96), (aligned_ip, 0.96), (control, 0.9)])
def test_learns_one_batch(make, share, folder, tmp_path):
    assert learns_one_batch(make(folder), tmp_path, steps=20, rate=1e-2, share=share)


@pytest.mark.parametrize("make", [ip, aligned_ip, control])
def test_grids_show_what_was_given_and_what_came(make, folder):
    assert make(folder).grid().shape == (134, 134, 3)


@torch.no_grad()
def test_pictures_are_read_as_texts_are_at_first(folder):
    stage = ip(folder)
    texts = stage.preview_batch(["two yellow cats in a meadow", "a red house"], (64, 64))
    context = super(ImagePromptStage, stage).condition(texts)["crossattn"].float()
    ours = zip(stage.adapter.keys, stage.adapter.values, strict=True)
    read = [torch.cat([k(context), v(context)], dim=-1) for k, v in ours]
    layers = [m.attn2 for m in stage.base.unet.modules() if hasattr(m, "attn2")]
    assert len(layers) == len(read)
    for layer in layers:
        wanted = torch.cat([layer.to_k(context), layer.to_v(context)], dim=-1)
        assert any(torch.equal(one, wanted) for one in read)
    tokens = stage.adapter.image_proj(torch.randn(4, 17, TOY_TOWER.width))
    assert float(tokens.std()) == pytest.approx(float(context.std()), rel=0.3)


def latents(count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((count, 4, 8, 8), (count, 77, 192), (count, 128 + 6 * 256))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def test_the_program_paints_with_the_adapter_as_it_was_trained(folder, tmp_path):
    stage = ip(folder)
    stage.place = replace(stage.place, folder=tmp_path)
    with torch.no_grad():
        stage.adapter.negative.normal_()
        for layer in stage.adapter.values:
            layer.weight.mul_(20.0)
    adapter, negative = stage.finish()
    assert (adapter.name, negative.name) == (IP_FILE, NEGATIVE_FILE)
    image = picturebook.draw(5, size=(96, 64)).image
    x, context, y = latents(2)
    t = torch.tensor([400.0, 400.0])
    features = stage.features(torch.from_numpy(image)[None]).expand(2, -1, -1)
    batch = {**stage.preview_batch([""], (64, 64)), "features": features}
    batch["without"] = torch.tensor([False, True])
    with torch.no_grad():
        options = stage.condition(batch)["unet"]
        ours = stage.base.unet(x, t, context=context, y=y, **options)
        bare = stage.base.unet(x, t, context=context, y=y)

    model, _, _, _ = load_checkpoint_guess_config(folder / MODEL_FILE, policy=POLICY)
    store = IPAdapterStore(POLICY)
    store.load_ip_adapter(folder / TOWER_FILE, negative, adapter)
    conds = store.preprocess(image, adapter)
    patched = patch_model(model, [(conds, 2.0, 1.0)])
    options = {**patched.model_options["transformer_options"], "cond_or_uncond": [0, 1]}
    with torch.no_grad():
        theirs = patched.model.diffusion_model(
            x, t, context=context, y=y, transformer_options=options
        )
    torch.testing.assert_close(ours, theirs, atol=3e-3, rtol=3e-3)
    assert float((ours - bare).abs().max()) > 0.03


def test_the_program_follows_maps_with_the_control_as_it_was_trained(folder, tmp_path):
    stage = control(folder)
    stage.place = replace(stage.place, folder=tmp_path)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in stage.model.named_parameters():
            if not weight.any() and "bias" not in name:
                weight.normal_(std=0.1)
    (path,) = stage.finish()
    assert path.name == CONTROL_FILE
    x, context, y = latents(2)
    sigma = torch.tensor([3.0, 3.0])
    maps = torch.from_numpy(stage.preview_maps(1, (64, 64)))
    hint = (maps.float()[:, None] / 255.0).expand(2, 3, -1, -1)
    with torch.no_grad():
        cond = {"crossattn": context, "vector": y, "hint": hint}
        ours = stage.denoiser(stage.network, x, sigma, cond)

    model, _, _, _ = load_checkpoint_guess_config(folder / MODEL_FILE, policy=POLICY)
    made = load_controlnet(path, model, policy=POLICY).set_cond_hint(hint[:1])
    made.pre_run(model.model)
    keywords = {"c_crossattn": context, "y": y, "transformer_options": {"cond_or_uncond": [0]}}
    with torch.inference_mode():
        additions = made.get_control(x, sigma, keywords, 1)
        theirs = model.model.apply_model(x, sigma, control=additions, **keywords)
        bare = model.model.apply_model(x, sigma, **keywords)
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
    assert float((ours - bare).abs().max()) > 0.2


@pytest.mark.parametrize("make", [ip, control])
def test_a_stage_goes_on_from_what_it_left(make, folder, tmp_path):
    old, new = make(folder), make(folder)
    old.place = replace(old.place, folder=tmp_path)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in old.model.parameters():
            weight.normal_(std=0.1)
    path = old.finish()[0]
    new.begin_with(path)
    ours, theirs = (dict(stage.model.named_parameters()) for stage in (new, old))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=2e-4, rtol=1e-3)  # of float16


@pytest.mark.parametrize("make", [ip, control])
def test_what_is_no_adapter_of_the_stage_is_said(make, folder, tmp_path):
    stage = make(folder)
    before = {name: weight.clone() for name, weight in stage.model.named_parameters()}
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for path, message in (
        (folder / "none.safetensors", r"none\.safetensors in '.*' could not be read"),
        (folder, "is a folder where a file is wanted"),
        (folder / TOWER_FILE, "is not of this stage"),
        (tmp_path / "empty.safetensors", r"empty\.safetensors"),
    ):
        with pytest.raises((TrainingFolderError, EngineError), match=message):
            stage.begin_with(path)
    for name, weight in stage.model.named_parameters():
        assert torch.equal(weight, before[name])


def test_an_adapter_without_its_negative_embedding_is_not_taken_by_half(folder, tmp_path):
    old, new = ip(folder), ip(folder)
    old.place = replace(old.place, folder=tmp_path)
    with torch.no_grad():
        for weight in old.model.parameters():
            weight.normal_(std=0.1)
    adapter, negative = old.finish()
    negative.unlink()
    before = {name: weight.clone() for name, weight in new.model.named_parameters()}
    with pytest.raises(TrainingFolderError, match="negative embedding beside it"):
        new.begin_with(adapter)
    for name, weight in new.model.named_parameters():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(("stage", "make"), [("ip", ip), ("control", control)])
def test_the_command_line_goes_on_from_a_file(stage, make, folder, tmp_path):
    """In a folder of its own: the image encoder is the one beside the adapter."""
    old = make(folder)
    old.place = replace(old.place, folder=tmp_path)
    if stage == "ip":
        old.plan = ImagePromptPlan(width=64, depth=1)
        network = ImagePromptNetwork(old.plan, old.base.unet.config, old.tower.config.width)
        old.adapter = old.model["adapter"] = network
        (tmp_path / TOWER_FILE).write_bytes((folder / TOWER_FILE).read_bytes())
    with torch.no_grad():
        for weight in old.model.parameters():
            weight.normal_(std=0.1)
    path = old.finish()[0]
    line = ["--stage", stage, "--device", "cpu", "--folder", str(tmp_path / "run"), "--page", "64",
            "--start-from", str(folder / MODEL_FILE), "--adapter", str(path), "--workers", "0",
            *(["--size", "toy"] if stage == "ip" else ["--rank", "4"])]  # fmt: skip
    made = make_run(build_parser().parse_args(line)).stage
    ours, theirs = (dict(which.model.named_parameters()) for which in (made, old))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=2e-4, rtol=1e-3)


def test_what_is_not_trained_stays_as_it_is(folder, tmp_path):
    stage = control(folder)
    before = {n: w.clone() for n, w in stage.control.state_dict().items()}
    assert run_of(stage, tmp_path, steps=3).train()
    changed = [n for n, w in stage.control.state_dict().items() if not torch.equal(w, before[n])]
    assert changed
    own = ("input_hint_block", "zero_convs", "middle_block_out")
    assert all(name.startswith(own) for name in changed)


def test_the_result_is_small_and_lies_in_both_folders(folder, tmp_path):
    stage = ip(folder)
    stage.place, stage.output = replace(stage.place, folder=tmp_path), tmp_path / "models"
    names = [str(path.relative_to(tmp_path)) for path in stage.finish()]
    shipped = [f"models/{name}" for name in (IP_FILE, NEGATIVE_FILE, TOWER_FILE)]
    assert set(names) == {IP_FILE, NEGATIVE_FILE, *shipped}
    first, second = (load_file(tmp_path / name) for name in (IP_FILE, shipped[0]))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_without_an_image_encoder_it_is_said_what_to_do(folder, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes((folder / MODEL_FILE).read_bytes())
    with pytest.raises(TrainingFolderError, match="run the stage `tower`"):
        ip(tmp_path)
