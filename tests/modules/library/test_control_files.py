"""The files that image prompts need: found by name and family, told when they are not there."""

from dataclasses import replace

import pytest

from modules.library.catalog import Catalog
from modules.library.control_files import (
    LARGER_VISION,
    NEEDED,
    NEGATIVE,
    VISION,
    find_file,
    look_for,
    missing_files,
    needed_for,
    optional_files,
    vision_for,
)
from modules.settings.config import load_settings
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing
from modules.spec.image_prompt import ImagePromptType as Type


@pytest.fixture
def catalog(tmp_path):
    return Catalog(load_settings([], {}, root=tmp_path), {})


def put(tmp_path, folder, *names):
    path = tmp_path / "models" / folder
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"x")
    return path


def test_the_known_name_is_preferred_and_the_other_family_passed_over(tmp_path, catalog):
    names = ["a_canny.safetensors", "control-lora-canny-rank128.safetensors"]
    names += ["control_v11p_sd15_canny.pth", "diffusers_xl_canny_mid.safetensors"]
    path = put(tmp_path, "controlnet", *names)

    def found(context_dim):
        return find_file(catalog, NEEDED[Type.CANNY], Type.CANNY, context_dim).name

    assert found(2048) == found(None) == names[1]
    (path / names[1]).unlink()
    (path / names[0]).unlink()
    assert found(2048) == names[3]
    assert found(768) == names[2]


def test_a_file_that_tells_its_family_is_preferred_to_one_that_tells_none(tmp_path, catalog):
    names = ["flux-depth-controlnet-v3.safetensors", "sai_xl_depth_256lora.safetensors"]
    names += ["t2i_depth_sd15.safetensors"]
    put(tmp_path, "controlnet", *names)

    def found(context_dim):
        return look_for(catalog, NEEDED[Type.DEPTH], context_dim).name

    assert [found(width) for width in (2048, 768, None)] == [names[1], names[2], names[0]]


def test_easel_s_own_small_model_takes_what_ships_with_it(tmp_path, catalog):
    endings = ("", "-canny", "-ip-adapter", "-ip-negative", "-clip-vision", "-lcm")
    put(tmp_path, "builtin", *(f"easel-mini{ending}.safetensors" for ending in endings))
    put(tmp_path, "controlnet", "control-lora-canny-rank128.safetensors")

    def found(needed, context_dim):
        file = look_for(catalog, needed, context_dim)
        return None if file is None else file.name

    assert found(NEEDED[Type.CANNY], 192) == "builtin/easel-mini-canny.safetensors"
    assert found(NEEDED[Type.CANNY], 2048) == "control-lora-canny-rank128.safetensors"
    assert found(NEEDED[Type.IMAGE_PROMPT], 192) == "builtin/easel-mini-ip-adapter.safetensors"
    assert found(NEEDED[Type.IMAGE_PROMPT], 2048) is None
    assert found(NEGATIVE, 192) == "builtin/easel-mini-ip-negative.safetensors"
    assert found(VISION, 192) == "builtin/easel-mini-clip-vision.safetensors"
    assert [file.name for file in catalog.checkpoints()] == ["builtin/easel-mini.safetensors"]
    loras = catalog.files(ModelFolder.LORAS)
    assert [file.name for file in loras] == ["builtin/easel-mini-lcm.safetensors"]


def test_what_is_missing_is_told_with_where_it_goes(tmp_path, catalog):
    own = NEEDED[Type.IMAGE_PROMPT]
    assert missing_files(catalog, Type.IMAGE_PROMPT) == [own, VISION]
    assert missing_files(catalog, Type.CANNY) == [NEEDED[Type.CANNY]]
    with pytest.raises(ModelMissing, match=r"needs .*canny.* in models/controlnet"):
        find_file(catalog, NEEDED[Type.CANNY], Type.CANNY)
    put(tmp_path, "clip_vision", "tower.safetensors")
    put(tmp_path, "controlnet", "my_canny.safetensors")
    assert missing_files(catalog, Type.IMAGE_PROMPT) == [own]
    assert missing_files(catalog, Type.CANNY, 2048) == []


def test_the_negative_embedding_is_offered_until_it_is_there(tmp_path, catalog):
    adapters = (Type.IMAGE_PROMPT, Type.FACE)
    for kind in adapters:
        assert optional_files(catalog, kind) == optional_files(catalog, kind, 2048) == [NEGATIVE]
        assert optional_files(catalog, kind, 768) == optional_files(catalog, kind, 192) == []
    assert optional_files(catalog, Type.CANNY, 2048) == []
    put(tmp_path, "ipadapter", NEEDED[Type.FACE].file, "ip-adapter_sdxl_vit-h.safetensors")
    assert optional_files(catalog, Type.FACE, 2048) == [NEGATIVE]
    assert optional_files(catalog, Type.IMAGE_PROMPT, 2048) == []  # it is for "plus" alone
    put(tmp_path, "ipadapter", NEGATIVE.file)
    assert optional_files(catalog, Type.FACE, 2048) == []


@pytest.mark.parametrize("width", [None, 2048])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("image_prompt", "ip-adapter-plus_sdxl_vit-h.bin in models/ipadapter"),
        ("face", "ip-adapter-plus-face_sdxl_vit-h.bin in models/ipadapter"),
        ("canny", "control-lora-canny-rank128.safetensors in models/controlnet"),
        ("cpds", "fooocus_xl_cpds_128.safetensors in models/controlnet"),
        ("depth", "control-lora-depth-rank128.safetensors in models/controlnet"),
    ],
)
def test_a_missing_file_is_named_with_its_folder(catalog, kind, words, width):
    with pytest.raises(ModelMissing, match=words):
        find_file(catalog, needed_for(Type(kind), width), Type(kind), width)


def test_a_checkpoint_of_sd1_is_told_the_files_of_its_own_family(tmp_path, catalog):
    own = {
        "image_prompt": "ip-adapter-plus_sd15.safetensors",
        "canny": "control_v11p_sd15_canny.pth",
    }
    for kind, file in own.items():
        missing = missing_files(catalog, Type(kind), 768)[0]
        assert missing.file == file
        put(tmp_path, missing.folder, file)  # what is told does help
        assert missing.file not in [need.file for need in missing_files(catalog, Type(kind), 768)]
        assert look_for(catalog, NEEDED[Type(kind)], 768).name == file


@pytest.mark.parametrize(
    ("width", "without"),
    [
        (768, {Type.CPDS}),
        (1024, set(Type)),
        (1280, set(Type)),
        (192, set(Type)),
        (2048, set()),
        (None, set()),
    ],
)
def test_what_no_family_has_is_not_offered(catalog, width, without):
    assert {kind for kind in Type if missing_files(catalog, kind, width) is None} == without
    for kind in without:
        needed = needed_for(kind, width)
        assert needed.url == ""
        with pytest.raises(ModelMissing, match=f"models/{needed.folder} .* and none is known"):
            find_file(catalog, needed, kind, width)


@pytest.mark.parametrize("width", [192, 768, 1024, 2048])
def test_what_is_offered_to_one_family_fits_no_other(tmp_path, catalog, width):
    for family in (768, 2048):
        for kind in Type:
            needed = needed_for(kind, family)
            if needed.file:
                put(tmp_path, needed.folder, needed.file)
    for kind in Type:
        needed = needed_for(kind, width)
        file = look_for(catalog, needed, width)
        assert (file.name if file else "") == needed.file


def test_one_of_the_user_s_own_fits_where_none_is_known(tmp_path, catalog):
    put(tmp_path, "controlnet", "control_v11p_sd21_canny.safetensors", "my-depth.safetensors")
    names = ("control_v11p_sd21_canny.safetensors", "my-depth.safetensors")
    for kind, name in zip((Type.CANNY, Type.DEPTH), names, strict=True):
        assert missing_files(catalog, kind, 1024) == []
        assert look_for(catalog, needed_for(kind, 1024), 1024).name == name
    assert missing_files(catalog, Type.CANNY, 768)[0].file == "control_v11p_sd15_canny.pth"
    assert missing_files(catalog, Type.CANNY, 192) is None
    assert missing_files(catalog, Type.DEPTH, 192) == []


def test_every_file_has_a_size_and_an_address():
    of_sd1 = [needed_for(kind, 768) for kind in Type if kind is not Type.CPDS]
    for needed in [*NEEDED.values(), *of_sd1, VISION, LARGER_VISION]:
        assert needed.size > 9 * 10**7
        assert needed.url.endswith("/" + needed.file)
        assert replace(needed, source="https://x/").url == f"https://x/{needed.file}"


def test_adapters_of_kinds_that_are_not_supported_are_not_taken_for_faces(tmp_path, catalog):
    released = "ip-adapter-plus-face_sdxl_vit-h.safetensors"
    put(tmp_path, "ipadapter", "ip-adapter-faceid_sdxl.bin", "ip-adapter-full-face_sdxl.bin")
    assert look_for(catalog, NEEDED[Type.FACE], 2048) is None
    put(tmp_path, "ipadapter", "a-plus-face_sdxl.bin", released)
    assert look_for(catalog, NEEDED[Type.FACE], 2048).name == released


def test_an_encoder_of_another_size_is_no_help(tmp_path, catalog):
    put(tmp_path, "ipadapter", "ip-adapter-plus_sdxl_vit-h.safetensors")
    path = put(tmp_path, "clip_vision", "clip_vision_g.safetensors")
    assert missing_files(catalog, Type.IMAGE_PROMPT, 2048) == [VISION]
    put(tmp_path, "clip_vision", "model.safetensors")
    assert missing_files(catalog, Type.IMAGE_PROMPT, 2048) == []
    (path / "model.safetensors").unlink()
    # The adapters of SDXL that do not say ViT-H were made for the larger one.
    (tmp_path / "models" / "ipadapter" / "ip-adapter-plus_sdxl_vit-h.safetensors").unlink()
    put(tmp_path, "ipadapter", "ip-adapter_sdxl.safetensors", "ip-adapter_sd15_vit-G.safetensors")
    put(tmp_path, "clip_vision", VISION.file)
    for width in (2048, 768):
        adapter = look_for(catalog, needed_for(Type.IMAGE_PROMPT, width), width)
        found = look_for(catalog, vision_for(adapter), width)
        assert found.name == "clip_vision_g.safetensors"
    assert look_for(catalog, vision_for(None), 2048).name == VISION.file


def test_the_adapter_that_needs_the_larger_encoder_is_told_so(tmp_path, catalog):
    path = put(tmp_path, "ipadapter", "ip-adapter_sdxl.safetensors")
    put(tmp_path, "clip_vision", VISION.file)
    assert missing_files(catalog, Type.IMAGE_PROMPT, 2048) == [LARGER_VISION]
    put(tmp_path, "clip_vision", LARGER_VISION.file)
    assert missing_files(catalog, Type.IMAGE_PROMPT, 2048) == []
    (tmp_path / "models" / "clip_vision" / LARGER_VISION.file).unlink()
    (path / "ip-adapter_sdxl.safetensors").rename(path / "my-ip-adapter-xl.safetensors")
    assert missing_files(catalog, Type.IMAGE_PROMPT, 2048) == []  # which one it needs is not known
