"""The page that lists what the engine is held against."""

import re

import pytest

from modules.spec.flags import Sampler, Scheduler
from tests.support.engine_table import TARGET, page

ROOT = TARGET.parents[1]


def line(**changes):
    return {
        "kind": "sampler",
        "name": "euler",
        "test": "tests/a.py::test_euler[1]",
        "reference": "diffusers",
        "difference": 2e-6,
        "tolerance": 1e-4,
    } | changes


def test_the_largest_difference_of_a_test_s_cases_is_shown():
    text = page([line(), line(difference=3.14e-5, test="tests/a.py::test_euler[2]"), line()])
    row = "| euler | diffusers | [test_euler](../tests/a.py) | 3.1e-05 | 1.0e-04 |"
    assert [found for found in text.splitlines() if "euler" in found] == [row]


def test_no_bound_is_stated_weaker_than_it_is():
    assert "| 3.0e-01 | 3.6e-01 |" in page([line(difference=0.3, tolerance=0.36)])


def test_what_a_test_does_not_allow_is_no_row():
    with pytest.raises(ValueError, match="test_euler.*more than it allows"):
        page([line(difference=1.0)])


def test_kinds_have_sections_in_a_fixed_order():
    text = page([line(), line(kind="vae", name="a|b"), line(kind="family", name="SDXL")])
    assert re.findall("## (.*)", text) == ["Model families", "Samplers", "Vae"]
    assert "a\\|b" in text


def test_the_page_lists_every_sampler_and_scheduler_and_real_tests():
    text = TARGET.read_text(encoding="utf-8")
    for name in [*Sampler, *Scheduler]:
        assert f"| {name.value.removesuffix('_gpu')} |" in text, name
    found = re.findall(r"\[(\w+)\]\(\.\./(tests/[\w/]+\.py)\)", text)
    assert len(found) > 60
    for function, path in set(found):
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), (path, function)


NEEDED = {
    "Model families": (
        "SD 1.5", "SD 1.5 inpaint", "SD 2.x eps", "SD 2.x v", "SDXL", "SDXL refiner",
        "SDXL inpaint", "SSD-1B", "Segmind Vega", "SDXL v-prediction", "SDXL zero-SNR",
        "Playground v2.5, euler", "Playground v2.5, dpmpp_2m",
        "LCM that is told its guidance scale", "SDXL Turbo, 4 steps", "SDXL Lightning, 4 steps",
        "Stable Video Diffusion, UNet", "Stable Video Diffusion, decoder",
    ),
    "Text encoders": (
        "SD 1.5", "SD 2.x", "SDXL, first encoder (CLIP-L)", "SDXL, second encoder (CLIP-G)",
    ),
    "Image encoders": tuple(
        f"{tower}, {layout} layout"
        for tower in ("ViT-L", "ViT-H", "ViT-bigG")
        for layout in ("openclip", "transformers")
    ),
    "VAE": ("decoder", "encoder"),
    "Adapters": (
        "LoRA file, kohya's names", "LoRA file, PEFT's names", "LoRA file, both text encoders",
        *(f"LoRA file ({family}), {part}" for family in ("SD 1.x", "SD 2.x")
          for part in ("kohya", "PEFT", "text encoder")),
        "LoRA file, LyCORIS: LoHa, LoKr, LoCon, full in turn",
        "LoRA, LoCon", "LoHa", "LoKr", "DoRA", "GLoRA", "full difference", "norm difference",
        "bias difference", "textual inversion", "textual inversion, SDXL pair",
        *(f"{kind} ({family})" for family in ("SDXL", "SD 1.x")
          for kind in ("ControlNet", "ControlNet on the UNet", "control-LoRA",
                       "T2I-Adapter on the UNet")),
        "TAESD", "IP-Adapter plus, resampler", "IP-Adapter, decoupled", "IP-Adapter, joint",
    ),
    "Guidance": ("FreeU v2's backbone", "FreeU's filter"),
}  # fmt: skip


@pytest.mark.parametrize("section", NEEDED)
def test_the_page_lists_every_family_and_adapter_that_is_promised(section):
    text = TARGET.read_text(encoding="utf-8").partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = set(re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE))
    assert not set(NEEDED[section]) - found


def test_the_guide_to_samplers_names_every_one():
    text = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    for name in [*Sampler, *Scheduler]:
        assert f"`{name.value}`" in text, name
