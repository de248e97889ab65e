"""The dimensions of a UNet, all of which can be read from a checkpoint's shapes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Levels run from the full size down; lists of depths run in the order of the blocks."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4)
    """Channels of each level, in model_channels."""
    num_res_blocks: tuple[int, ...] = (2, 2, 2)
    """Residual blocks on the way down, for each level; the way up has one more."""
    transformer_depth: tuple[int, ...] = (0, 0, 2, 2, 10, 10)
    """Transformer blocks after each residual block on the way down."""
    transformer_depth_middle: int | None = 10
    """Transformer blocks in the middle; 0: one residual block alone; None: no middle at all."""
    projects_middle: bool = False
    """A middle of depth 0 has a transformer without blocks, too, and a residual block after it."""
    transformer_depth_output: tuple[int, ...] = (10, 10, 10, 2, 2, 2, 0, 0, 0)
    """Transformer blocks after each residual block on the way up."""
    context_dim: int | None = 2048
    """Channels of the text embeddings; None: a network without cross-attention."""
    num_classes: str | int | None = "sequential"
    """"sequential": takes y, a vector of size conditions; a number: takes y, one of so many
    levels of noise; None: takes none."""
    adm_in_channels: int = 2816
    """Length of y."""
    time_embed_dim: int = 1280
    guidance_dim: int = 0
    """Length of the embedding of the guidance scale that an LCM is told; 0: it is told none."""
    use_linear_in_transformer: bool = True
    conv_resample: bool = True
    """Sizes change with a convolution; false: by averaging and repetition alone."""
    context_only_widths: tuple[int, ...] = ()
    """Channels of the blocks whose first attention reads the text, too, and not the picture."""
    video: bool = False
    """Every block looks along time, too; see video_blocks."""
    num_head_channels: int = 64
    """Size of an attention head, unless num_heads is set."""
    num_heads: int | None = None

    def __post_init__(self) -> None:
        down, up = sum(self.num_res_blocks), sum(n + 1 for n in self.num_res_blocks)
        lengths = (
            (len(self.channel_mult), len(self.num_res_blocks), "channel_mult"),
            (len(self.transformer_depth), down, "transformer_depth"),
            (len(self.transformer_depth_output), up, "transformer_depth_output"),
        )
        for found, needed, name in lengths:
            if found != needed:
                raise ValueError(f"{name} has {found} entries; these levels need {needed}.")

    def heads_of(self, channels: int) -> tuple[int, int]:
        """(number of heads, channels of each) at a width of so many channels."""
        if self.num_heads is not None:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels

    @property
    def level_of_input_block(self) -> tuple[int, ...]:
        """The level at which each input block's output lives."""
        levels = [0]
        for level, count in enumerate(self.num_res_blocks):
            levels += [level] * count
            if level != len(self.num_res_blocks) - 1:
                levels.append(level + 1)
        return tuple(levels)

    @property
    def attention_blocks(self) -> tuple[tuple[str, int, int], ...]:
        """(name, number, depth) of every UNet block with cross-attention, in forward order."""
        found: list[tuple[str, int, int]] = []
        number, depths = 1, iter(self.transformer_depth)
        for count in self.num_res_blocks:
            for _ in range(count):
                found.append(("input", number, next(depths)))
                number += 1
            number += 1  # the downsampling block
        found.append(("middle", 0, self.transformer_depth_middle or 0))
        found += [("output", n, depth) for n, depth in enumerate(self.transformer_depth_output)]
        return tuple(block for block in found if block[2])
