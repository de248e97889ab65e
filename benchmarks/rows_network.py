"""Rows about networks: UNet, VAE, the sampler's own cost."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import peer
from benchmarks.measure import Row, compare, require_bf16_units, require_equal
from benchmarks.sizes import DEEP_AND_NARROW, GIB, Options, fitting, name_of
from tests.support.tiny_checkpoint import UNET_PREFIX, FamilySizes, unet_shapes, vae_shapes


def _inputs(sizes: FamilySizes, side: int, batch: int, dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    numbers = [1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]
    return {
        "x": normal(batch, sizes.latent_channels, side, side),
        "t": torch.full((batch,), 500.0),
        "context": normal(batch, 77, sizes.context),
        "pooled": normal(batch, sizes.clip_g_width),
        "sizes": torch.tensor([numbers] * batch),
    }


def _our_model(weights: dict, dtype: torch.dtype) -> torch.nn.Module:
    from ldm_patched.modules.model_detection import require_model_config

    weights = {UNET_PREFIX + name: weight for name, weight in weights.items()}
    config = require_model_config(weights)
    config.set_inference_dtype(dtype)
    model = config.get_model(weights, device="meta")
    report = model.load_model_weights(weights, memory_format=torch.channels_last)
    if report.missing or report.unexpected or report.wrong_shape:
        raise RuntimeError(f"The weights do not fit the network: {report}")
    return model


def _our_unet(weights: dict, dtype: torch.dtype) -> torch.nn.Module:
    return _our_model(weights, dtype).diffusion_model.eval()


def _our_call(
    network: torch.nn.Module, given: dict, patches: dict | None = None
) -> Callable[[], torch.Tensor]:
    from ldm_patched.ldm.modules.diffusionmodules.openaimodel import Timestep

    embedded = Timestep(256)(given["sizes"].flatten()).reshape(len(given["sizes"]), -1)
    y = torch.cat([given["pooled"].float(), embedded], dim=1).to(given["x"].dtype)

    def call() -> torch.Tensor:
        return network(
            given["x"], given["t"], context=given["context"], y=y, transformer_options=patches
        )

    return call


def _their_call(
    network: torch.nn.Module, given: dict, more: dict | None = None
) -> Callable[[], torch.Tensor]:
    added = {"text_embeds": given["pooled"], "time_ids": given["sizes"], **(more or {})}

    def call() -> torch.Tensor:
        return network(
            given["x"],
            given["t"],
            given["context"],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    return call


def _against_both_layouts(
    name: str,
    setup: str,
    ours: Callable[[], torch.Tensor],
    theirs: Callable[[], torch.Tensor],
    network: torch.nn.Module,
    *,
    rounds: int,
    error: float,
    target: str = "",
) -> Row:
    """Ours against theirs as it comes and in channels-last; the row is the faster of the two.

    Two passes, each interleaved with ours: converting their `network` in place changes the first.
    """

    def against(peer_name: str) -> Row:
        peers = {peer_name: theirs}
        return compare(name, setup, ours, peers, rounds=rounds, error=error, target=target)

    rows = [against("eager")]
    network.to(memory_format=torch.channels_last)
    rows.append(against("channels-last"))
    hardest, other = sorted(rows, key=lambda row: row.ratio or 0.0)
    hardest.note += f"; vs {other.note.removeprefix('peer: ')}: {other.ratio:.2f}x"
    hardest.samples |= {f"{k} (the other pass)": v for k, v in other.samples.items()}
    return hardest


@torch.inference_mode()
def _unet_row(
    name: str,
    sizes: FamilySizes,
    dtype: torch.dtype,
    options: Options,
    *,
    side: int,
    batch: int = 1,
    rounds: int,
    target: str = "",
) -> Row:
    weights = peer.draw_weights(unet_shapes(sizes), dtype)
    theirs = peer.unet(sizes, weights, dtype)
    ours = _our_unet(weights, dtype)
    del weights
    given = _inputs(sizes, side, batch, dtype)
    our_call, their_call = _our_call(ours, given), _their_call(theirs, given)
    limit = 1e-5 if dtype is torch.float32 else 3e-2
    error = require_equal(name, our_call(), their_call(), limit)
    setup = f"{name_of(sizes)}, {side}x{side} latents, batch {batch}, {str(dtype)[6:]}"
    row = _against_both_layouts(
        name, setup, our_call, their_call, theirs, rounds=rounds, error=error, target=target
    )
    if options.quick:
        row.note += "; quick run: no statement about speed"
    return row


def unet_bf16(options: Options) -> Row:
    sizes = fitting(options, 9 * GIB)
    side = 16 if options.quick else 64
    return _unet_bf16("unet_bf16", sizes, options, side)


def unet_bf16_small(options: Options) -> Row:
    """Pictures of 256 × 256, where less of the time is arithmetic."""
    return _unet_bf16("unet_bf16_small", fitting(options, 9 * GIB), options, 32)


def _unet_bf16(name: str, sizes: FamilySizes, options: Options, side: int) -> Row:
    require_bf16_units(options.quick)
    rounds, target = options.few_rounds, ">= 1.15x"
    return _unet_row(name, sizes, torch.bfloat16, options, side=side, rounds=rounds, target=target)


def unet_fp32(options: Options) -> Row:
    return _unet_fp32("unet_fp32", options, 16 if options.quick else 64, ">= 1.0x")


def unet_fp32_small(options: Options) -> Row:
    return _unet_fp32("unet_fp32_small", options, 16 if options.quick else 32, "")


def _unet_fp32(name: str, options: Options, side: int, target: str) -> Row:
    sizes, rounds = fitting(options, 16 * GIB), options.few_rounds
    return _unet_row(name, sizes, torch.float32, options, side=side, rounds=rounds, target=target)


def unet_guided(options: Options) -> Row:
    """Both halves of guidance in one call."""
    sizes = fitting(options, 16 * GIB)
    side = 16 if options.quick else 32
    return _unet_row(
        "unet_guided", sizes, torch.float32, options, side=side, batch=2,
        rounds=options.few_rounds,
    )  # fmt: skip


def unet_overhead(options: Options) -> Row:
    return _unet_row(
        "unet_overhead",
        DEEP_AND_NARROW,
        torch.float32,
        options,
        side=8,
        rounds=options.rounds * 3,
        target=">= 1.5x",
    )


@torch.inference_mode()
def bf16_units(options: Options) -> Row:
    """The matrix products and convolutions of SDXL at 64x64 latents by themselves, both prompts.

    What both sides call alike: float32's time over bfloat16's is about what the precision gives.
    """
    from torch.nn import functional as F

    require_bf16_units(options.quick)
    part = 8 if options.quick else 1
    generator = torch.Generator().manual_seed(0)
    calls: dict[torch.dtype, list[Callable[[], torch.Tensor]]] = {}

    def add(operation: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> None:
        drawn = [torch.randn(shape, generator=generator) for shape in shapes]
        for dtype in (torch.bfloat16, torch.float32):
            cast = [tensor.to(dtype) for tensor in drawn]
            if len(shapes[0]) == 4:
                cast = [tensor.to(memory_format=torch.channels_last) for tensor in cast]
            calls.setdefault(dtype, []).append(partial(operation, *cast))

    for tokens, width in ((2048, 640), (512, 1280)):  # of SDXL's two levels with transformers
        rows, width = tokens // part, width // part
        for wide in (width, 8 * width):
            add(F.linear, (rows, width), (wide, width))
        add(F.linear, (rows, 4 * width), (width, 4 * width))
    for side, width in ((64, 320), (32, 640), (16, 1280)):
        width //= part
        add(F.conv2d, (2, width, side, side), (width, width, 3, 3))

    def call(dtype: torch.dtype) -> torch.Tensor:
        return torch.stack([operation().float().norm() for operation in calls[dtype]])

    return compare(
        "bf16_units",
        "matrix products and convolutions of SDXL's shapes at 64x64 latents, batch 2",
        lambda: call(torch.bfloat16),
        {"float32": lambda: call(torch.float32)},
        rounds=options.rounds,
        error=require_equal("bf16_units", call(torch.bfloat16), call(torch.float32), 3e-2),
        note="quick run: no statement about speed" if options.quick else "",
    )


@torch.inference_mode()
def vae_decode_bf16(options: Options) -> Row:
    from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config

    require_bf16_units(options.quick)
    dtype, sizes = torch.bfloat16, fitting(options, 4 * GIB)
    weights = peer.draw_weights(vae_shapes(sizes), dtype)
    theirs = peer.vae(sizes, weights, dtype)
    config = detect_autoencoder_config({k: tuple(v.shape) for k, v in weights.items()})
    ours = AutoencoderKL(config).to(dtype)
    ours.load_state_dict(weights)
    ours = ours.to(memory_format=torch.channels_last).eval()
    side = 16 if options.quick else 64
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, sizes.latent_channels, side, side, generator=generator).to(dtype)

    def our_call() -> torch.Tensor:
        return ours.decode(latents)

    def their_call() -> torch.Tensor:
        return theirs.decode(latents, return_dict=False)[0]

    error = require_equal("vae_decode_bf16", our_call(), their_call(), 3e-2)
    setup = f"{name_of(sizes)}, {side}x{side} latents, bfloat16"
    return _against_both_layouts(
        "vae_decode_bf16", setup, our_call, their_call, theirs, rounds=options.few_rounds,
        error=error, target=">= 2x",
    )  # fmt: skip


class _Still:
    """A network that costs nothing, with what the sampler asks of a model."""

    def __init__(self) -> None:
        from ldm_patched.modules.latent_formats import SDXL
        from ldm_patched.modules.model_base import ModelType, model_sampling

        self.model_sampling = model_sampling(None, ModelType.EPS)
        self.latent_format, self.load_device = SDXL(), "cpu"

    def extra_conds(self, **_: object) -> dict:
        return {}

    def memory_required(self, _shape: object) -> int:
        return 0

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def apply_model(self, x: torch.Tensor, t: torch.Tensor, **_: object) -> torch.Tensor:
        return x / (1 + t.view(-1, 1, 1, 1) ** 2)


def attention_learnt(options: Options) -> Row:
    """Attention over few tokens forward and back, as in training; PyTorch's fused kernel beside."""
    from torch.nn import functional as F

    from ldm_patched.ldm.modules.attention_kernels import attend

    rows, heads, tokens, keys, width = 64, 2, 64, 77, 64
    g = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(rows, heads, n, width, generator=g, dtype=torch.bfloat16).requires_grad_()
        for n in (tokens, keys, keys)
    ]

    def call(way: Callable[..., torch.Tensor]) -> torch.Tensor:
        gradients = torch.autograd.grad(way(*parts).square().sum(), parts)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def ours() -> torch.Tensor:
        return call(attend)

    def theirs() -> torch.Tensor:
        return call(F.scaled_dot_product_attention)

    return compare(
        "attention_learnt",
        f"{rows} rows, {heads} heads, {tokens} tokens, {keys} keys, bfloat16, forward and back",
        ours,
        {"fused kernel": theirs},
        rounds=options.rounds * 3,
        error=require_equal("attention_learnt", ours(), theirs(), 2e-2),
    )


@torch.inference_mode()
def sampler_loop(options: Options) -> Row:
    """30 Euler steps with guidance where the network costs nothing: what the loop itself takes."""
    from ldm_patched.modules.sample import sample

    steps, cfg = 30, 5.0
    noise = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    model, prompt = _Still(), [[torch.zeros(1, 77, 8), {}]]
    scheduler = peer.scheduler()
    scheduler.set_timesteps(steps)
    sigmas, latent = scheduler.sigmas.clone(), torch.zeros_like(noise)

    def our_call() -> torch.Tensor:
        return sample(
            model, noise, steps, cfg, "euler", "normal", prompt, prompt, latent, sigmas=sigmas
        )

    def their_call() -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = noise * scheduler.sigmas[0]  # as ours starts with a schedule of one's own
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(torch.cat([x] * 2), t)
            sigma = scheduler.sigmas[scheduler.step_index]
            # the same network, giving noise instead of the picture
            denoised = given * (sigma**2 + 1) ** 0.5 / (1 + sigma**2)
            out = (given * (sigma**2 + 1) ** 0.5 - denoised) / sigma
            uncond, cond = out.chunk(2)
            x = scheduler.step(uncond + cfg * (cond - uncond), t, x, return_dict=False)[0]
        return x / 0.13025

    error = require_equal("sampler_loop", our_call(), their_call(), 1e-4)
    return compare(
        "sampler_loop",
        "30 Euler steps with guidance, 128x128 latents, free network",
        our_call,
        {"eager": their_call},
        rounds=options.rounds * 3,
        error=error,
    )
