import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.lora_tags import (
    LoraTag,
    distinct,
    find_name,
    index_of_names,
    take_lora_tags,
)
from modules.spec.errors import LimitError, SpecError


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a cat <lora:ink:0.8>", "a cat ", [LoraTag("ink", 0.8, 0.8)]),
        ("<lora:ink>a", "a", [LoraTag("ink", 1.0, 1.0)]),
        ("<LoRA: my ink : -0.5 : 0.25 >", "", [LoraTag("my ink", -0.5, 0.25)]),
        ("a<lora:a:1><lora:b:.5>b", "ab", [LoraTag("a"), LoraTag("b", 0.5, 0.5)]),
        ("a < b <lora > c", "a < b <lora > c", []),
        (r"\<lora:ink:1>", r"\<lora:ink:1>", []),
    ],
)
def test_tags_are_taken_out(text, rest, tags):
    assert take_lora_tags(text) == (rest, tags)


@pytest.mark.parametrize(
    "text",
    [
        "<lora:ink:much>",
        "<lora:ink:nan>",
        "<lora:ink:1e9>",
        "<lora:ink:999999>",
        "<lora::1>",
        "<lora:a:1:2:3>",
        "<lora:ink:0.8",
        "<lora:" + "x" * 400 + ":1>",
    ],
)
def test_a_tag_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(SpecError) as caught:
        take_lora_tags(text)
    assert str(caught.value).endswith(".")
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ink", "ink.safetensors"),
        ("INK", "ink.safetensors"),
        ("deep", "sub/deep.v2.safetensors"),
        ("deep.v2", "sub/deep.v2.safetensors"),
        ("sub/deep.v2", "sub/deep.v2.safetensors"),
        ("sub/deep.v2.safetensors", "sub/deep.v2.safetensors"),
        ("../ink", None),
        ("../../etc/passwd", None),
        ("/ink", None),
        ("C:\\ink", None),
    ],
)
def test_names_are_found_among_the_files_and_nowhere_else(name, file):
    index = index_of_names(["ink.safetensors", "sub/deep.v2.safetensors", "sub/ink.pt"])
    assert find_name(index, name) == (None if name == "deep" else file)


def test_each_lora_counts_once_as_named_first():
    assert distinct([LoraTag("a", 0.5), LoraTag("A", 1), LoraTag("b")]) == (
        LoraTag("a", 0.5),
        LoraTag("b"),
    )
    with pytest.raises(LimitError, match="33 LoRAs"):
        distinct([LoraTag(str(number)) for number in range(33)])


@given(st.text(alphabet="<lora:>x1. \\", max_size=100))
def test_any_text_ends_in_a_result_or_a_sentence(text):
    try:
        rest, tags = take_lora_tags(text)
    except SpecError:
        return
    assert len(rest) <= len(text)
    assert all(isinstance(tag, LoraTag) for tag in tags)
