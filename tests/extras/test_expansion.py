"""A language model that goes on writing after a prompt, with allowed words alone."""

import json

import pytest
import torch
import transformers

from extras.expansion import load_gpt_expander
from ldm_patched.modules.errors import CorruptModelFile, UnsafeModelFile, UnsupportedModel
from tests.support.tiny_gpt2 import WORDS, write_tiny_gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_gpt2(tmp_path_factory.mktemp("gpt2") / "tiny")


def words_in(phrases):
    return [word for phrase in phrases for word in phrase.split()]


def test_only_listed_words_that_are_not_there_yet_are_added(folder):
    expander = load_gpt_expander(folder, ())
    for seed in range(5):
        added = words_in(expander.expand("a castle by the river", seed))
        assert added
        assert set(added) <= set(WORDS[:6]) - {"castle", "river"}
        assert len(added) == len(set(added))


def test_the_seed_decides_and_counts_to_two_to_the_32(folder):
    expander = load_gpt_expander(folder, ())
    found = [expander.expand("a fox", seed) for seed in range(4)]
    assert len(set(found)) > 1
    again = load_gpt_expander(folder, ())
    assert [again.expand("a  fox ", seed + 2**32) for seed in range(4)] == found
    assert expander.expand(" ", 1) == ()


def test_each_word_is_drawn_by_the_formula(folder):
    """By hand: no cache, and the logit of every word that may not come lowered by 8192."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = tokenizer.get_vocab()
    tokens = tokenizer("a fox,", add_special_tokens=False)["input_ids"]
    draw = torch.Generator().manual_seed(5)
    listed = [vocabulary[f"Ġ{word}"] for word in WORDS[:6]]
    while len(tokens) < 75:
        bias = torch.full((len(vocabulary),), -8192.0)
        bias[[token for token in listed if token not in tokens]] = 0.0
        bias[vocabulary[","]] = 0.0
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1] + bias
        scores, places = logits.topk(int((bias == 0).sum()))  # fewer than 100; none else counts
        tokens.append(int(places[torch.multinomial(scores.softmax(0), 1, generator=draw)]))
    text = tokenizer.decode(tokens)
    expected = [part.strip() for part in text.split(",")][1:]
    found = load_gpt_expander(folder, ()).expand("a fox", 5)
    assert words_in(found) == words_in(expected)


def test_a_prompt_of_whole_windows_or_longer_than_the_model_reads_is_no_fault(folder):
    expander = load_gpt_expander(folder, ())
    tokens = len("b" * 74 + ",")
    assert tokens == 75 and expander.expand("b" * 74, 1) == ()
    assert words_in(expander.expand("b" * 400, 1))


def test_it_can_be_stopped_between_words(folder):
    class Stop(Exception):
        pass

    seen = []

    def check():
        seen.append(1)
        if len(seen) == 3:
            raise Stop

    with pytest.raises(Stop):
        load_gpt_expander(folder, ()).expand("a fox", 1, check=check)


def test_without_a_list_of_its_own_the_given_words_count(tmp_path):
    folder = write_tiny_gpt2(tmp_path / "bare", listed=None, pickled=True)
    added = words_in(load_gpt_expander(folder, ["calm", "deep", "nowhere"]).expand("a fox", 1))
    assert set(added) == {"calm", "deep"}
    with pytest.raises(UnsupportedModel, match="bare for prompt expansion cannot be used"):
        load_gpt_expander(folder, ["nowhere"])


def test_numbers_that_no_computer_holds_are_one_sentence(tmp_path):
    folder = write_tiny_gpt2(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    for odd in ({"n_embd": 10**12}, {"n_head": 0}, {"vocab_size": 2**62}):
        (folder / "config.json").write_text(json.dumps(config | odd))
        with pytest.raises((UnsupportedModel, CorruptModelFile), match="copy its folder there"):
            load_gpt_expander(folder, ())


def test_code_that_a_folder_brings_is_never_asked_for(tmp_path, monkeypatch):
    folder = write_tiny_gpt2(tmp_path / "tiny")
    seen = {}
    real = transformers.AutoTokenizer.from_pretrained
    take = lambda path, **how: seen.update(how) or real(path, **how)  # noqa: E731
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", take)
    load_gpt_expander(folder, ())
    assert seen == {"local_files_only": True, "trust_remote_code": False}


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_folder_that_is_not_whole_is_one_sentence(tmp_path):
    folder = write_tiny_gpt2(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptModelFile, match="tiny for prompt expansion"):
        load_gpt_expander(folder, ())
    weights.unlink()
    with pytest.raises(CorruptModelFile, match=r"model\.safetensors is missing"):
        load_gpt_expander(folder, ())
    torch.save({"x": Runs(tmp_path / "marker")}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelFile):
        load_gpt_expander(folder, ())
    assert not (tmp_path / "marker").exists()
    (folder / "pytorch_model.bin").unlink()
    torch.save({"transformer.wte.weight": torch.zeros(2, 2)}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptModelFile, match=r"not those that its config\.json says"):
        load_gpt_expander(folder, ())
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptModelFile) as caught:
        load_gpt_expander(folder, ())
    assert str(tmp_path) not in str(caught.value)
