import io
import json
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from modules.gallery.recipe import NoRecipe, Recipe, read_full_recipe, recipe_of_json
from modules.gallery.save import encode_image
from modules.prompt.plan import LoraUse, PicturePrompt
from modules.spec import limits
from modules.spec.errors import SpecError
from modules.spec.flags import OutputFormat, Sampler, Scheduler
from modules.spec.task_spec import ResolvedSpec, TaskSpec

PIXELS = np.zeros((8, 8, 3), dtype=np.uint8)
TEXTS = st.text(max_size=60) | st.text(alphabet="\"\\\n\r<>&;'{}:,\u202e\ufffe😀م", max_size=60)
HOSTILE = "שלום 👩‍🎨 \n\t\"quoted\" 'x' </easel:recipe> &amp;"
SIDES = st.integers(8, 256).map(lambda n: 8 * n)


@st.composite
def specs(draw):
    sized = draw(st.booleans())
    width, height = draw(st.tuples(SIDES, SIDES)) if sized else (None, None)
    if sized and width * height > limits.PIXELS_MAX:
        height = 64
    return TaskSpec(
        prompt=draw(TEXTS),
        negative_prompt=draw(TEXTS),
        styles=draw(st.lists(st.sampled_from(["oil", "Film Still", "random"]), unique=True)),
        expand_prompt=draw(st.booleans()),
        wildcards_in_order=draw(st.booleans()),
        preset=draw(st.text(alphabet=string.ascii_letters, max_size=9)),
        checkpoint=draw(st.sampled_from(["", "a.safetensors", "sub/ü ß.safetensors"])),
        image_count=draw(st.integers(1, 32)),
        aspect_ratio=draw(st.sampled_from(["", "3:2", "1152:896"])),
        width=width,
        height=height,
        seed=draw(st.integers(0, limits.SEED_MAX)),
        steps=draw(st.integers(1, 200)),
        cfg_scale=draw(st.floats(1, 30)),
        sampler=draw(st.sampled_from(Sampler)),
        scheduler=draw(st.sampled_from(Scheduler)),
        output_format=draw(st.sampled_from(OutputFormat)),
    )


def resolve(spec):
    return ResolvedSpec(
        checkpoint=spec.checkpoint or "first.safetensors",
        width=spec.width or 64,
        height=spec.height or 64,
        seeds=tuple(spec.seed_of(i) for i in range(spec.image_count)),
        steps=spec.steps,
        cfg_scale=spec.cfg_scale,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
    )


def painted(spec, output_format, index=0):
    recipe = Recipe.of(spec, resolve(spec), index, model_sha256="ab" * 32)
    return io.BytesIO(encode_image(PIXELS, output_format, recipe))


def read_recipe(source):
    return read_full_recipe(source).spec


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), output_format=st.sampled_from(OutputFormat))
@example(
    TaskSpec(prompt="שלום 👩‍🎨 \n\t\"quoted\" 'x' </easel:recipe> &amp;", seed=1), OutputFormat.JPEG
)
@example(TaskSpec(prompt=HOSTILE, seed=1), OutputFormat.JPEG)
def test_the_equal_request_is_read_back(spec, output_format):
    full = read_full_recipe(painted(spec, output_format, spec.image_count - 1))
    assert full.spec == spec
    assert full.resolved == resolve(spec)
    assert full.image.seed == spec.seed_of(spec.image_count - 1)
    assert full.model.sha256 == "ab" * 5


def noise(characters):
    """Text that no compression makes much shorter."""
    codes = np.random.default_rng(characters).integers(0x1F300, 0x2FFFF, characters)
    return "".join(map(chr, codes))


def longest():
    text = noise(2 * limits.PROMPT_CHARACTERS)
    return TaskSpec(
        prompt=text[: limits.PROMPT_CHARACTERS],
        negative_prompt=text[limits.PROMPT_CHARACTERS :],
        seed=1,
    )


@pytest.mark.parametrize("output_format", OutputFormat)
def test_the_longest_texts_fit_every_format(output_format):
    assert read_recipe(painted(longest(), output_format)) == longest()


@pytest.mark.parametrize("output_format", OutputFormat)
def test_words_that_a_format_has_no_room_for_are_left_to_be_worked_out(output_format):
    words = PicturePrompt(positive=(noise(limits.PROMPT_OUTPUT_BYTES // 4),), negative=("",))
    recipe = Recipe.of(longest(), resolve(longest()), 0, prompt=words)
    found = read_full_recipe(io.BytesIO(encode_image(PIXELS, output_format, recipe)))
    is_short = output_format is OutputFormat.JPEG
    assert found == (recipe.model_copy(update={"prompt": None}) if is_short else recipe)


def test_a_path_works_as_well(tmp_path):
    spec = TaskSpec(prompt="red", seed=3)
    (tmp_path / "a.webp").write_bytes(painted(spec, OutputFormat.WEBP).getvalue())
    assert read_recipe(tmp_path / "a.webp") == read_recipe(str(tmp_path / "a.webp")) == spec


@pytest.mark.parametrize("output_format", OutputFormat)
def test_a_foreign_picture_has_no_recipe(output_format):
    data = io.BytesIO(encode_image(PIXELS, output_format, None))
    with pytest.raises(NoRecipe, match="no Easel recipe"):
        read_recipe(data)


def png_with(text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("easel", text)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG", pnginfo=chunks)
    return buffer


VALID = json.loads(
    Recipe.of(TaskSpec(prompt="x", seed=1), resolve(TaskSpec(prompt="x", seed=1)), 0).to_json()
)


def changed(**values):
    return json.dumps(VALID | values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "[" * 100_000,
        "__import__('os').system('touch /tmp/pwned')",
        changed(schema="1"),
        changed(schema=999),
        changed(spec=[]),
        changed(spec=VALID["spec"] | {"steps": 10**9}),
        changed(spec=VALID["spec"] | {"cfg_scale": float("nan")}),
        changed(spec=VALID["spec"] | {"checkpoint": "../../etc/passwd"}),
        changed(image={"index": -1, "seed": 1}),
        changed(resolved=None),
        " " * (limits.METADATA_BYTES + 1),
    ],
    ids=lambda text: text[:30] or "empty",
)
def test_a_bad_recipe_is_one_sentence(text):
    with pytest.raises(SpecError) as caught:
        read_recipe(png_with(text))
    assert str(caught.value).endswith(".")


def test_fields_of_another_version_are_passed_over():
    text = changed(extra=1, spec=VALID["spec"] | {"sharpness": 2.0})
    assert recipe_of_json(text).spec == TaskSpec(prompt="x", seed=1)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_only_ever_raise_a_sentence(data):
    spec = TaskSpec(prompt="a red house", seed=1)
    good = bytearray(painted(spec, data.draw(st.sampled_from(OutputFormat))).getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(good)))
    try:
        read_recipe(io.BytesIO(bytes(good[:end])))
    except SpecError as error:
        assert str(error).endswith(".")


def test_the_recipe_names_no_more_than_it_says():
    names = {"schema", "spec", "resolved", "image", "model", "prompt", "loras", "version"}
    assert set(VALID) == names
    assert set(VALID["spec"]) == set(TaskSpec.model_fields)
    assert set(VALID["resolved"]) == set(ResolvedSpec.model_fields)


def test_the_words_of_this_picture_are_kept_and_shown_to_other_programs():
    spec = TaskSpec(prompt="a {red|blue} house <lora:ink:0.8>", seed=1, image_count=2)
    words = PicturePrompt(
        positive=("oil painting of a red house", "fine"),
        negative=("photo",),
        pooled_count=2,
        loras=(LoraUse(file="sub/ink.safetensors", weight=0.8, clip_weight=0.8),),
        styles=("oil",),
    )
    recipe = Recipe.of(spec, resolve(spec), 1, prompt=words)
    image = Image.fromarray(PIXELS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **recipe.save_options(OutputFormat.PNG))
    assert read_full_recipe(buffer) == recipe
    first, second, negative, *_ = recipe.parameters().split("\n")
    assert (first, second) == ("oil painting of a red house", "fine <lora:sub/ink:0.8>")
    assert negative == "Negative prompt: photo"


def test_a_recipe_gives_the_request_for_its_own_picture_alone():
    spec = TaskSpec(prompt="[[red, green, blue]]", seed=7, image_count=3, first_index=4)
    alone = read_full_recipe(painted(spec, OutputFormat.PNG, 2)).alone()
    own = {"seed": 9, "first_index": 6, "image_count": 1, "checkpoint": "first.safetensors"}
    assert alone == spec.model_copy(update=own)


def test_a_recipe_without_the_words_is_read_still():
    old = {name: value for name, value in VALID.items() if name != "prompt"}
    old["spec"] = {k: v for k, v in old["spec"].items() if k not in ("styles", "expand_prompt")}
    assert recipe_of_json(json.dumps(old)).prompt is None
