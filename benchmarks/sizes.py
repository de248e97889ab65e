"""How large the measured models are, and what the machine has room for."""

from dataclasses import dataclass

from tests.support.tiny_checkpoint import SDXL, TINY, FamilySizes

GIB = 1024**3

HALF = FamilySizes(
    model_channels=128,
    channel_mult=(1, 2, 4),
    depths=(0, 2, 10),
    res_blocks=2,
    clip_l_width=384,
    clip_l_layers=12,
    clip_g_width=640,
    clip_g_layers=16,
    vae_channels=64,
)
DEEP_AND_NARROW = FamilySizes(  # as many layers as SDXL, so little work in each that calls dominate
    model_channels=32,
    channel_mult=(1, 2, 4),
    depths=(0, 2, 10),
    res_blocks=2,
    clip_l_width=64,
    clip_l_layers=2,
    clip_g_width=128,
    clip_g_layers=2,
    vae_channels=32,
)
NAMES = {id(SDXL): "SDXL", id(HALF): "0.4 x SDXL's width", id(TINY): "tiny"}


@dataclass(frozen=True)
class Options:
    """How a run of the benchmarks is done."""

    quick: bool = False
    rounds: int = 7

    @property
    def few_rounds(self) -> int:
        """For rows that take long: at least 3, at most 5."""
        return max(2 if self.quick else 3, min(5, self.rounds))


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 * GIB


def fitting(options: Options, needed: int) -> FamilySizes:
    """SDXL where `needed` bytes are free, else a narrower model; tiny for a quick run."""
    if options.quick:
        return TINY
    return SDXL if available_bytes() > needed else HALF


def name_of(sizes: FamilySizes) -> str:
    return NAMES.get(id(sizes), "narrow")
