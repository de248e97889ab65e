"""Which model files each type of image prompt needs, and whether they are there.

Files are found by what they are called, the released names first. Sizes and addresses are those of
the released files, for people who have to fetch them.
"""

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from modules.library.catalog import Catalog, ModelFile
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing
from modules.spec.image_prompt import ImagePromptType

Type = ImagePromptType
_SD1, _SD2, _REFINER, _SDXL = FAMILY_WIDTHS = (768, 1024, 1280, 2048)
"""Text widths of the released families; what ships with Easel is for its own small model."""
_NAMES = (  # ControlNets of SD 2 are called control_v11p_sd21_…, so it comes first
    (_SD2, re.compile(r"sd_?-?2(\.?[01])?(?!\d)")),
    (_SDXL, re.compile(r"xl")),
    (_SD1, re.compile(r"sd_?-?1\.?5|sd1|_v11|v1-5")),
)
WORDS = {
    Type.IMAGE_PROMPT: "An image prompt",
    Type.FACE: "A face",
    Type.CANNY: "Edges (canny)",
    Type.CPDS: "Structure (cpds)",
    Type.DEPTH: "Depth",
    Type.LINEART: "Line art",
}
_FOOOCUS = "https://huggingface.co/lllyasviel/misc/resolve/main/"
_STABILITY = "https://huggingface.co/stabilityai/control-lora/resolve/main/control-LoRAs-rank128/"


@dataclass(frozen=True, slots=True)
class Needed:
    """A model file that a type needs: where, under which name, or any with one of the words.

    file: '' where none is known for the family; then there is no url either. size: of the file of
    that name, in bytes, to three figures.
    """

    folder: ModelFolder
    file: str
    words: tuple[str, ...]
    without: tuple[str, ...] = ()
    rather: tuple[str, ...] = ()
    """Of several files one with such a word comes first."""
    size: int = 0
    source: str = _FOOOCUS

    @property
    def url(self) -> str:
        """Where the file of that name may be fetched."""
        return self.source + self.file if self.file else ""


_CONTROL, _ADAPTER = ModelFolder.CONTROLNET, ModelFolder.IPADAPTER
NEEDED = {
    Type.IMAGE_PROMPT: Needed(
        _ADAPTER,
        "ip-adapter-plus_sdxl_vit-h.bin",
        ("ip-adapter", "ip_adapter"),
        ("face",),
        size=1_010_000_000,
    ),
    Type.FACE: Needed(
        _ADAPTER,
        "ip-adapter-plus-face_sdxl_vit-h.bin",
        ("face",),
        ("faceid", "face-id", "face_id", "full-face", "full_face"),  # kinds that are not supported
        size=1_010_000_000,
    ),
    Type.CANNY: Needed(
        _CONTROL, "control-lora-canny-rank128.safetensors", ("canny",), size=396_000_000
    ),
    Type.CPDS: Needed(_CONTROL, "fooocus_xl_cpds_128.safetensors", ("cpds",), size=396_000_000),
    Type.DEPTH: Needed(
        _CONTROL,
        "control-lora-depth-rank128.safetensors",
        ("depth",),
        size=396_000_000,
        source=_STABILITY,
    ),
    Type.LINEART: Needed(
        _CONTROL,
        "control-lora-sketch-rank128-metadata.safetensors",
        ("lineart", "sketch", "scribble"),
        size=396_000_000,
        source=_STABILITY,
    ),
}
_SD1_ADAPTERS = "https://huggingface.co/h94/IP-Adapter/resolve/main/models/"
_SD1_CONTROLS = "https://huggingface.co/lllyasviel/ControlNet-v1-1/resolve/main/"
_SD1_FILES = {
    Type.IMAGE_PROMPT: ("ip-adapter-plus_sd15.safetensors", 98_200_000, _SD1_ADAPTERS),
    Type.FACE: ("ip-adapter-plus-face_sd15.safetensors", 98_200_000, _SD1_ADAPTERS),
    Type.CANNY: ("control_v11p_sd15_canny.pth", 1_450_000_000, _SD1_CONTROLS),
    Type.DEPTH: ("control_v11f1p_sd15_depth.pth", 1_450_000_000, _SD1_CONTROLS),
    Type.LINEART: ("control_v11p_sd15_lineart.pth", 1_450_000_000, _SD1_CONTROLS),
}
"""What the same types need with a checkpoint of Stable Diffusion 1."""
_FAMILY_OF_FILE = {needed.file.casefold(): _SDXL for needed in NEEDED.values()} | {
    file.casefold(): _SD1 for file, _, _ in _SD1_FILES.values()
}
_LARGER = ("vit_g", "vit-g", "bigg", "vision_g")
VISION = Needed(
    ModelFolder.CLIP_VISION,
    "clip_vision_vit_h.safetensors",
    ("",),
    (*_LARGER, "vit_l", "vit-l", "vision_l"),
    size=1_260_000_000,
)
LARGER_VISION = Needed(
    ModelFolder.CLIP_VISION,
    "clip_vision_g.safetensors",
    ("",),
    ("vit_h", "vit-h", "vision_h", "vit_l", "vit-l", "vision_l"),
    rather=_LARGER,
    size=3_690_000_000,
    source="https://huggingface.co/comfyanonymous/clip_vision_g/resolve/main/",
)
_OF_LARGER_VISION = "ip-adapter_sdxl"
"""The released adapter that needs it and does not say so."""
NEGATIVE = Needed(
    _ADAPTER, "fooocus_ip_negative.safetensors", ("ip_negative", "ip-negative"), size=65_600
)
"""Of SDXL's "plus" adapters; without it an adapter's own picture of nothing is taken."""


def needed_for(kind: ImagePromptType, context_dim: int | None = None) -> Needed:
    """The file of its own that `kind` needs with a network whose texts are that wide.

    context_dim: None where it is not known, which is taken for SDXL's.
    """
    if context_dim in (None, _SDXL):
        return NEEDED[kind]
    of_sd1 = _SD1_FILES.get(kind) if context_dim == _SD1 else None
    file, size, source = of_sd1 or ("", 0, "")
    return replace(NEEDED[kind], file=file, size=size, source=source)


def missing_files(
    catalog: Catalog, kind: ImagePromptType, context_dim: int | None = None
) -> list[Needed] | None:
    """What `kind` still needs with a network whose texts are that wide (None: not known).

    None where it is missing and none is known that would fit.
    """
    own = needed_for(kind, context_dim)
    needed = [own]
    if not kind.is_structure:
        needed.append(vision_for(look_for(catalog, own, context_dim)))
    missing = [each for each in needed if look_for(catalog, each, context_dim) is None]
    return missing if all(each.file for each in missing) else None


def optional_files(
    catalog: Catalog, kind: ImagePromptType, context_dim: int | None = None
) -> list[Needed]:
    """What is not there and would serve `kind` without being needed: the negative embedding, for a
    "plus" adapter of SDXL, there or still to come."""
    own = needed_for(kind, context_dim)
    if own.folder != _ADAPTER or context_dim not in (None, _SDXL):
        return []
    adapter = look_for(catalog, own, context_dim)
    is_plus = "plus" in (own.file if adapter is None else adapter.name).casefold()
    return [NEGATIVE] if is_plus and look_for(catalog, NEGATIVE, context_dim) is None else []


def vision_for(adapter: ModelFile | None) -> Needed:
    """The image encoder for an adapter: ViT-H, or the larger one for those that say so and for that
    of SDXL which is known to need it; for others of SDXL that say nothing rather the larger one."""
    name = "" if adapter is None else PurePosixPath(adapter.name).name.casefold()
    says_h = "vit-h" in name or "vit_h" in name
    if PurePosixPath(name).stem == _OF_LARGER_VISION or any(word in name for word in _LARGER):
        return LARGER_VISION
    is_silent = _family_of(name) == _SDXL and not says_h
    return replace(VISION, without=(), rather=_LARGER) if is_silent else VISION


def find_file(
    catalog: Catalog, needed: Needed, kind: ImagePromptType, context_dim: int | None = None
) -> ModelFile:
    """The file that `kind` needs. Raises ModelMissing, which says what to put where."""
    found = look_for(catalog, needed, context_dim)
    if found is None and not needed.file:
        raise ModelMissing(
            f"{WORDS[kind]} needs a file in models/{needed.folder} that is made for this "
            "checkpoint's family, and none is known; take that image prompt out, or choose "
            "another checkpoint."
        )
    if found is None:
        raise ModelMissing(
            f"{WORDS[kind]} needs {needed.file} in models/{needed.folder}; put it there, or take "
            "that image prompt out."
        )
    return found


def look_for(catalog: Catalog, needed: Needed, context_dim: int | None) -> ModelFile | None:
    """The file of the known name, else the first one that a word fits; of the right family, those
    that say so before those that say none.

    For Easel's own small model those that ship with it come first.
    """

    def base(file: ModelFile) -> str:
        return PurePosixPath(file.name).name.casefold()

    def is_released(file: ModelFile) -> bool:
        stem = PurePosixPath(needed.file.casefold()).stem
        return bool(stem) and PurePosixPath(base(file)).stem == stem

    def fits(file: ModelFile) -> bool:
        name = base(file)
        if file.is_builtin and context_dim in FAMILY_WIDTHS:
            return False
        if context_dim is not None and _family_of(name) not in (None, context_dim):
            return False
        has_word = any(word in name for word in needed.words)
        return has_word and not any(word in name for word in needed.without)

    files = [file for file in catalog.files(needed.folder) if fits(file)]
    small = context_dim is not None and context_dim not in FAMILY_WIDTHS
    return min(
        files,
        key=lambda file: (
            small and not file.is_builtin,
            not any(word in base(file) for word in needed.rather),
            not is_released(file),
            context_dim is not None and _family_of(base(file)) != context_dim,
        ),
        default=None,
    )


def _family_of(name: str) -> int | None:
    """The text width of the family that a file's name, without capitals, tells; None for none."""
    told = (width for width, words in _NAMES if words.search(name))
    return _FAMILY_OF_FILE.get(name) or next(told, None)
