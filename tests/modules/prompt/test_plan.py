import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.prompt.expansion import build_expander
from modules.prompt.plan import LoraUse, PicturePrompt, PromptBooks, make_plan
from modules.prompt.styles import Style, StyleBook
from modules.prompt.wildcards import WildcardBook
from modules.spec.errors import LimitError, ModelMissing, SpecError, StudioError
from modules.spec.task_spec import TaskSpec

EXPANDER = build_expander(
    {"kinds": {"any": {"words": [], "lists": [["soft light", "fine detail"]]}}, "rivals": []}
)


@pytest.fixture
def books(tmp_path):
    (tmp_path / "pet.txt").write_text("a cat\na dog <lora:dog:0.7>\na {red|blue} bird\n")
    styles = [
        Style("oil", "Oil", "oil painting of {prompt}", "photo, sharp"),
        Style("film", "Film", "film photo of {prompt} <lora:grain:0.3>", "painting"),
        Style("mood", "Mood", "misty", "crowd"),
    ]
    return PromptBooks(
        wildcards=WildcardBook([tmp_path]),
        styles=StyleBook(styles),
        expander=EXPANDER,
        loras=("animals/dog.safetensors", "grain.safetensors"),
    )


def plan(books, prompt, **fields):
    return make_plan(TaskSpec.from_mapping({"prompt": prompt, "seed": 1, **fields}), books)


def test_a_plain_prompt_is_one_text(books):
    [picture] = plan(books, "a cat", negative_prompt="a dog", image_count=1).pictures
    assert picture == PicturePrompt(positive=("a cat",), negative=("a dog",))


def test_no_words_at_all_still_give_a_text(books):
    [picture] = plan(books, " # \n", image_count=1, expand_prompt=True).pictures
    assert picture == PicturePrompt(positive=("",), negative=("",))


def test_lines_styles_and_expansion_are_texts_in_this_order(books):
    [picture] = plan(
        books,
        "a cat\n# note\na mat",
        negative_prompt="a dog\nrain",
        styles=("oil", "mood"),
        expand_prompt=True,
        image_count=1,
    ).pictures
    assert picture.positive[:3] == ("oil painting of a cat", "misty", "a mat")
    assert picture.positive[3].startswith("a cat, ")
    assert picture.expansion in picture.positive[3]
    assert picture.pooled_count == 3
    assert picture.negative == ("photo, sharp", "crowd", "a dog", "rain")
    assert picture.styles == ("oil", "mood")


def test_without_a_place_for_it_the_prompt_comes_first(books):
    [picture] = plan(books, "a cat\na mat", styles="mood", image_count=1).pictures
    assert picture.positive == ("a cat", "misty", "a mat")


@pytest.mark.parametrize("in_order", [False, True])
def test_each_picture_has_its_words_when_it_is_painted_alone(books, in_order):
    fields = {"image_count": 6, "first_index": 2, "wildcards_in_order": in_order}
    prompt = "[[red, green, blue]] __pet__ {mat|hat|rug} [[day, night]]"
    spec = TaskSpec(prompt=prompt, negative_prompt="[[rain, fog]]", seed=9, **fields)
    pictures = make_plan(spec, books).pictures
    assert pictures[0].positive[0].startswith("blue ")
    assert len({picture.positive for picture in pictures}) == 6
    for index, picture in enumerate(pictures):
        alone = spec.of_picture(index)
        assert (alone.seed, alone.image_count) == (9 + index, 1)
        assert make_plan(alone, books).pictures == (picture,)


def test_loras_belong_to_the_picture_whose_text_names_them(books):
    pictures = plan(books, "__pet__", image_count=3, wildcards_in_order=True).pictures
    assert [p.positive[0] for p in pictures][:2] == ["a cat", "a dog"]
    dog = LoraUse(file="animals/dog.safetensors", weight=0.7, clip_weight=0.7)
    assert [p.loras for p in pictures] == [(), (dog,), ()]


def test_loras_in_arrays_choices_and_styles(books):
    found = plan(
        books, "a [[cat, dog <lora:dog:1:0.5>]] {<lora:dog:1:0.5>|<lora:dog:1:0.5>}", styles="film"
    ).pictures
    dog = LoraUse(file="animals/dog.safetensors", weight=1, clip_weight=0.5)
    grain = LoraUse(file="grain.safetensors", weight=0.3, clip_weight=0.3)
    assert [p.loras for p in found] == [(dog, grain), (dog, grain)]
    assert [p.positive for p in found] == [("film photo of a cat",), ("film photo of a dog",)]


def test_a_missing_lora_is_named_and_can_stop_the_task(books):
    found = plan(books, "a cat <lora:../../x:1>")
    assert found.missing_loras == ("../../x",)
    with pytest.raises(ModelMissing, match=r"'\.\./\.\./x' is not in the loras folder"):
        found.raise_if_missing()
    plan(books, "<lora:dog:1>").raise_if_missing()


def test_what_is_odd_becomes_a_notice(books):
    found = plan(books, "(a __nope__ cat [[b,c,d]]", negative_prompt="<lora:dog:1> x")
    assert found.combinations == 3
    assert found.wildcards == ("nope",)
    assert found.missing_wildcards == ("nope",)
    text = " ".join(found.notices)
    for words in ("never closed", "3 combinations; 2 of them", "__nope__", "no effect"):
        assert words in text
    assert all(notice.endswith(".") for notice in found.notices)


def test_embeddings_are_named_however_much_there_is_to_read(books):
    much = "word " * 1_400
    found = plan(books, f"{much} [[a, b, c, (embedding:late:1.2)]]", image_count=4)
    assert found.embeddings == ("late",)


def test_conflicts_are_said_in_words(books):
    found = plan(books, "sharp photo of a cat", negative_prompt="cat", styles="oil, film")
    assert set(found.conflicts) == {
        "The prompt asks for 'cat', which the negative prompt rules out.",
        "The prompt asks for 'photo', which the style Oil rules out.",
        "The prompt asks for 'sharp', which the style Oil rules out.",
        "The style Film asks for 'photo', which the style Oil rules out.",
        "The style Oil asks for 'painting', which the style Film rules out.",
    }
    assert plan(books, "a cat", negative_prompt="a dog", styles="oil").conflicts == ()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": "x", "styles": "no such"}, SpecError),
        ({"prompt": "<lora:dog:x>"}, SpecError),
        ({"prompt": "[[1,2,3,4,5,6,7,8,9,0]]" * 7}, LimitError),
        ({"prompt": "x", "negative_prompt": "[[1,2,3,4,5,6,7,8,9,0]]" * 7}, LimitError),
        ({"prompt": "x" * 8_193}, LimitError),
        ({"prompt": "x", "styles": ["a" * 81]}, SpecError),
        ({"prompt": "x", "styles": [str(n) for n in range(33)]}, SpecError),
        ({"prompt": "x", "styles": 5}, SpecError),
        ({"prompt": "x", "expand_prompt": "perhaps"}, SpecError),
    ],
)
def test_what_would_lose_something_is_one_sentence(books, fields, error):
    with pytest.raises(error) as caught:
        make_plan(TaskSpec.from_mapping(fields), books)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_eight_thousand_characters_in_every_style_are_refused(books):
    with pytest.raises(LimitError, match="32 KiB"):
        plan(books, "é" * 8_192, negative_prompt="é" * 8_192, styles="oil, film")


RICH = "__pet__ {a|b|c|d} [[x,y,z]]\n__pet__ second"


@given(st.integers(0, 2**63 - 10), st.integers(1, 6))
def test_a_picture_depends_on_its_own_seed_and_place_alone(tmp_path_factory, seed, count):
    folder = tmp_path_factory.getbasetemp() / "pets"
    folder.mkdir(exist_ok=True)
    (folder / "pet.txt").write_text("a cat\na dog\na bird\n")
    made = PromptBooks(wildcards=WildcardBook([folder]), expander=EXPANDER)
    spec = TaskSpec(prompt=RICH, seed=seed, image_count=count, expand_prompt=True)
    whole = make_plan(spec, made).pictures
    for index in reversed(range(count)):
        assert make_plan(spec, made, [index]).pictures == (whole[index],)


def test_a_style_more_changes_no_draw(books):
    plain = plan(books, RICH).pictures
    styled = plan(books, RICH, styles="mood").pictures
    assert [p.positive for p in plain] == [(p.positive[0], *p.positive[2:]) for p in styled]


def test_a_seed_that_is_not_fixed_yet_counts_as_zero(books):
    spec = TaskSpec(prompt=RICH)
    fixed = spec.model_copy(update={"seed": 0})
    assert make_plan(spec, books).pictures == make_plan(fixed, books).pictures


@given(st.text(alphabet="(){}[]<>|,:._\\lora aB1\n#", max_size=120), st.booleans())
def test_any_words_end_in_a_plan_or_a_sentence(text, in_order):
    spec = TaskSpec(prompt=text, negative_prompt=text, seed=3, wildcards_in_order=in_order)
    try:
        made = make_plan(spec, PromptBooks(styles=StyleBook([Style("a", "A", "{prompt}")])))
    except StudioError as error:
        assert str(error).endswith(".")
        return
    assert len(made.pictures) == 2
    assert all(picture.positive and picture.negative for picture in made.pictures)
