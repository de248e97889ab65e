"""The UNet against diffusers, and its hooks against what they promise."""

import copy

import pytest
import torch
from torch import Tensor

from ldm_patched.ldm.modules.attention import BasicTransformerBlock
from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetConfig, UNetModel
from ldm_patched.ldm.modules.diffusionmodules.unet_blocks import ResBlock
from tests.support.unet_oracle import call_diffusers, diffusers_unet, make_unet

POOLED = 96
ADM = POOLED + 6 * 256
SDXL_SHAPED = UNetConfig(
    model_channels=64,
    transformer_depth=(0, 0, 1, 1, 2, 2),
    transformer_depth_middle=2,
    transformer_depth_output=(2, 2, 2, 1, 1, 1, 0, 0, 0),
    context_dim=128,
    adm_in_channels=ADM,
    time_embed_dim=256,
)
UNEVEN = UNetConfig(
    model_channels=32,
    channel_mult=(1, 2, 4),
    num_res_blocks=(1, 2, 1),
    transformer_depth=(0, 1, 3, 4),
    transformer_depth_middle=2,
    transformer_depth_output=(3, 1, 2, 1, 2, 0, 0),
    context_dim=80,
    adm_in_channels=ADM,
    time_embed_dim=128,
)
SMALL = UNetConfig(
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    transformer_depth=(0, 2),
    transformer_depth_middle=1,
    transformer_depth_output=(2, 1, 0, 0),
    context_dim=48,
    adm_in_channels=ADM,
    time_embed_dim=128,
)


class Case:
    """Inputs for a UNet of `config`."""

    def __init__(self, config: UNetConfig, batch: int = 2, size: int = 16, seed: int = 1) -> None:
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(batch, 4, size, size, generator=g)
        self.t = torch.tensor([981.0, 3.25])[:batch]
        self.context = torch.randn(batch, 77, config.context_dim, generator=g)
        self.pooled = torch.randn(batch, POOLED, generator=g)
        self.sizes = [1216, 832, 16, 8, 1152, 896]
        numbers = openaimodel.timestep_embedding(torch.tensor(self.sizes), 256).flatten()
        self.y = torch.cat([self.pooled, numbers.repeat(batch, 1)], dim=1)

    def run(self, unet: UNetModel, **keywords: object) -> Tensor:
        with torch.no_grad():
            return unet(self.x, self.t, self.context, self.y, **keywords)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("config", [SDXL_SHAPED, UNEVEN], ids=["sdxl", "uneven"])
def test_predicts_what_diffusers_predicts(config: UNetConfig) -> None:
    unet, case = make_unet(config), Case(config)
    with torch.no_grad():
        theirs = call_diffusers(
            diffusers_unet(unet), case.x, case.t, case.context, case.pooled, case.sizes
        )
    ours = case.run(unet)
    assert theirs.std() > 0.1
    assert relative_difference(ours, theirs) < 1e-4
    assert not torch.allclose(ours[0], ours[1])


def test_channels_last_weights_give_the_same(batch: int = 2) -> None:
    unet, case = make_unet(SMALL), Case(SMALL, batch)
    plain = case.run(unet)
    fast = case.run(unet.to(memory_format=torch.channels_last))
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert relative_difference(fast, plain) < 1e-5


def test_odd_sizes_come_back_in_the_same_shape() -> None:
    case = Case(SMALL)
    case.x = case.x[..., :13, :15]
    assert case.run(make_unet(SMALL)).shape == (2, 4, 13, 15)


def test_inference_equals_training_and_leaves_its_inputs_alone() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    before = [v.clone() for v in (case.x, case.context, case.y)]
    fast = case.run(unet)
    with torch.enable_grad():
        plain = unet(case.x, case.t, case.context, case.y)
    assert torch.equal(fast, plain)
    assert all(map(torch.equal, before, (case.x, case.context, case.y)))


def count_runs(unet: UNetModel) -> dict[str, int]:
    """How often each block of the network has run so far, by its name."""
    runs = {}
    for name, block in unet.named_modules():
        if isinstance(block, ResBlock | BasicTransformerBlock):
            first = block.in_layers[0] if isinstance(block, ResBlock) else block.norm1
            runs[name] = 0

            def count(*_: object, name: str = name) -> None:
                runs[name] += 1

            first.register_forward_hook(count)
    assert {type(unet.get_submodule(name)) for name in runs} == {ResBlock, BasicTransformerBlock}
    return runs


def test_checkpointing_changes_no_gradient() -> None:
    plain = UNetModel(SMALL, operations=torch.nn)
    saving = UNetModel(SMALL, operations=torch.nn, use_checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    source, case = make_unet(SMALL), Case(SMALL)
    grads = []
    for unet, often in (plain, 1), (saving, 2):
        unet.load_state_dict(source.state_dict())
        runs = count_runs(unet)
        loss = unet(case.x, case.t, case.context, case.y).square().mean()
        assert set(runs.values()) == {1}
        loss.backward()
        assert set(runs.values()) == {often}  # what was forgotten is computed again
        grads.append({n: p.grad for n, p in unet.named_parameters()})
    assert all(g is not None and g.abs().max() > 0 for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_current_step_runs_from_0_to_1() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    case.t = torch.tensor([999.0, 999.0])
    case.run(unet)
    assert unet.current_step == 0.0
    case.t = torch.tensor([249.75, 0.0])
    case.run(unet)
    assert unet.current_step == 0.75


def test_an_assigned_timestep_embedding_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    before, calls = case.run(unet), []

    def zeros(t: Tensor, dim: int, *args: object) -> Tensor:
        calls.append(dim)
        return torch.zeros(t.shape[0], dim)

    monkeypatch.setattr(openaimodel, "timestep_embedding", zeros)
    assert not torch.allclose(case.run(unet), before)
    assert openaimodel.Timestep(256)(case.t).abs().max() == 0
    assert calls == [64, 256]


def test_a_network_with_sizes_refuses_to_run_without() -> None:
    case = Case(SMALL)
    with pytest.raises(ValueError, match="size conditions"), torch.no_grad():
        make_unet(SMALL)(case.x, case.t, case.context)


# --- keys and values of the text ---------------------------------------------------------------


def test_texts_are_recognised_by_value_and_forgotten_in_turn() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    first = case.run(unet)
    calls = []
    layer = unet.middle_block[1].transformer_blocks[0].attn2.to_k
    layer.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(case.run(unet), first)
    case.context = case.context.clone()
    assert torch.equal(case.run(unet), first)
    assert calls == []
    for seed in range(2, 8):
        Case(SMALL, seed=seed).run(unet)
    assert len(calls) == 6
    assert len(unet._contexts) <= 4
    assert torch.equal(case.run(unet), first)
    assert len(calls) == 7


def test_a_text_changed_in_place_is_another_text() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    case.run(unet)
    case.context.mul_(0.5)
    changed = case.run(unet)
    unet.clear_cache()
    assert torch.equal(case.run(unet), changed)


@pytest.mark.parametrize("way", ["replaced", "in place"])
def test_changed_weights_make_new_keys(way: str) -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    before = case.run(unet)
    attention = unet.middle_block[1].transformer_blocks[0].attn2
    if way == "replaced":
        attention.to_v.weight = torch.nn.Parameter(attention.to_v.weight * 2)
    else:
        with torch.no_grad():
            attention.to_v.weight.mul_(2)
    after = case.run(unet)
    unet.clear_cache()
    assert torch.equal(case.run(unet), after)
    assert not torch.equal(after, before)


def test_no_keys_are_kept_while_training_or_under_autocast() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    unet(case.x, case.t, case.context, case.y)
    with torch.autocast("cpu", torch.bfloat16):
        case.run(unet)
    assert len(unet._contexts) == 0


def test_a_copy_of_the_network_has_a_cache_of_its_own() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    case.run(unet)
    assert len(copy.deepcopy(unet)._contexts) == 0
    assert len(unet._contexts) == 1


# --- hooks -------------------------------------------------------------------------------------


class StopNow(Exception):
    pass


def test_interrupt_is_asked_before_each_block_and_stops() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    blocks = len(unet.input_blocks) + 1 + len(unet.output_blocks)
    calls: list[int] = []
    case.run(unet, transformer_options={"interrupt": lambda: calls.append(1)})
    assert len(calls) == blocks

    def stop() -> None:
        calls.append(1)
        if len(calls) == blocks + 3:
            raise StopNow

    with pytest.raises(StopNow):
        case.run(unet, transformer_options={"interrupt": stop})
    assert len(calls) == blocks + 3


def attention_of(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    from ldm_patched.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v, options["n_heads"])


def test_replacements_are_called_where_they_are_registered() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    plain, seen = case.run(unet), []

    def same(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        place = (*options["block"], options["block_index"])
        seen.append((place, k.shape[1], options["dim_head"], options["cond_or_uncond"]))
        return attention_of(q, k, v, options)

    keys = [("input", 3, 1), ("middle", 0), ("output", 0, 0)]
    options = {"cond_or_uncond": [1, 0], "patches_replace": {"attn2": {k: same for k in keys}}}
    torch.testing.assert_close(case.run(unet, transformer_options=options), plain)
    places = [("input", 3, 1), ("middle", 0, 0), ("output", 0, 0)]
    assert seen == [(p, 77, 64, [1, 0]) for p in places]

    def silence(q: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(q)

    options["patches_replace"] = {"attn1": {("middle", 0): silence}}
    assert not torch.allclose(case.run(unet, transformer_options=options), plain)
    assert "block" not in options  # what the caller handed in is not written to


def test_patches_change_query_context_and_output() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    plain = case.run(unet)
    doubled = [lambda n, context, value, _: (n, context.repeat(1, 2, 1), value.repeat(1, 2, 1))]
    found = case.run(unet, transformer_options={"patches": {"attn2_patch": doubled}})
    assert relative_difference(found, plain) < 1e-5  # twice the same tokens: the same mean
    halved = [lambda n, _: n * 0.5]
    for name in ("attn1_output_patch", "attn2_output_patch"):
        found = case.run(unet, transformer_options={"patches": {name: halved}})
        assert relative_difference(found, plain) > 1e-3


def test_block_patches_see_the_feature_maps() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    plain, seen = case.run(unet), []

    def entering(h: Tensor, options: dict) -> Tensor:
        seen.append(options["block"])
        return h

    def leaving(h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        seen.append(options["block"])
        return h, skip

    patches = {"input_block_patch": [entering], "output_block_patch": [leaving]}
    assert torch.equal(case.run(unet, transformer_options={"patches": patches}), plain)
    assert seen == [("input", i) for i in range(4)] + [("output", i) for i in range(4)]
    patches["output_block_patch"] = [lambda h, skip, _: (h * 1.1, skip)]
    assert not torch.allclose(case.run(unet, transformer_options={"patches": patches}), plain)


def test_control_is_added_from_the_end_and_left_whole() -> None:
    unet, case = make_unet(SMALL), Case(SMALL)
    plain = case.run(unet)
    shapes = [(64, 16), (64, 16), (64, 8), (128, 8)]
    none = {"output": [None] * 4, "middle": [torch.zeros(2, 128, 8, 8)]}
    assert torch.equal(case.run(unet, control=none), plain)
    control = {
        "output": [torch.full((2, c, s, s), 0.5) for c, s in shapes],
        "middle": [torch.full((2, 128, 8, 8), 0.5)],
    }
    first = case.run(unet, control=control)
    assert not torch.allclose(first, plain)
    assert [len(v) for v in control.values()] == [4, 1]
    assert torch.equal(case.run(unet, control=control), first)
