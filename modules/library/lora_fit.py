"""Whether a LoRA can be for a checkpoint, told from the headers of both before anything runs.

What decides is the width of the text that cross-attention reads, which a LoRA's key and value
layers repeat. Where a LoRA has none of them, its trainer's word on the family does.
"""

from modules.library.catalog import ModelFile
from modules.library.lora_info import LoraInfo, lora_info
from modules.library.text_width import TextWidth, text_width


def misfit(lora: ModelFile, checkpoint: ModelFile) -> str:
    """A sentence if `lora` cannot be for `checkpoint`; '' if it can, or if nobody can tell.

    Headers alone are read, and kept in memory until a file changes. Never raises.
    """
    said, base = lora_info(lora), text_width(checkpoint)
    if said.text_width is not None and base.width is not None:
        fits = said.text_width == base.width
    else:
        fits = not said.family or not base.family or said.family == base.family
    return "" if fits else _sentence(said, base, checkpoint.name)


def _sentence(said: LoraInfo, base: TextWidth, checkpoint: str) -> str:
    made_for = said.family
    if not made_for or made_for == base.family:  # its trainer's word and its shapes disagree
        made_for = "a model of another width"
    here = f"{checkpoint} is {base.family}" if base.family else f"{checkpoint} is not"
    wanted = base.family or checkpoint
    link = "and" if base.family else "which"
    return (
        f"{said.name} is made for {made_for}, {link} {here}; choose a LoRA made for {wanted}, or "
        "another checkpoint."
    )
