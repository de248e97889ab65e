"""Token ids against the `tokenizers` library, built from the same merges."""

import gzip
import random
import subprocess
import sys
import time
import unicodedata
from importlib import metadata

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ldm_patched.modules import clip_tokenizer as ct
from ldm_patched.modules.errors import VocabularyMissing

PIECES = [
    "a",
    "cat,",
    "don't",
    "we'll",
    "I'M",
    "they've",
    "12345",
    "3.14",
    "½",
    "²",
    "Ⅷ",
    "一二三",
    "東京タワー",
    "Ёлка",
    "ΟΔΥΣΣΕΥΣ",
    "İstanbul",
    "straße",
    "ﬁne",
    "🎨🖌️",
    "👨\u200d👩\u200d👧",
    "مرحبا",
    "בדיקה",
    "हिन्दी",
    "é",
    "é",
    "Å",
    "''s",
    "!'s",
    "'s'",
    "_under_",
    "<|endoftext|>",
    "(x:1.2)",
    "[y]",
    "{a|b}",
    "masterpiece",
    "8k",
    "uhd",
    "photorealistic",
    "antidisestablishmentarianism",
    "---",
    "...",
    "“quoted”",
    "™",
    "€",
    "×",
    "\\(",
]
BLANKS = (" ", "  ", "\n", "\t", "\u3000", "\u00a0", "\u2009", "\x85", "\x1c", ", ", "", "-")


@pytest.fixture(scope="module")
def merges():
    return ct.read_merges(ct.vocabulary_path())


@pytest.fixture(scope="module")
def oracle(merges):
    symbols = ct.BytePairTokenizer(merges).ids
    tokenizer = Tokenizer(
        models.BPE(vocab=symbols, merges=merges, end_of_word_suffix=ct.END_OF_WORD, unk_token=None)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def mixed_strings(count):
    """Prompts of known pieces, of random characters of the whole plane, and of letters alone."""
    rng = random.Random(20240607)
    old = unicodedata.ucd_3_2_0  # libraries' tables of newer scripts differ from each other
    assigned = [
        chr(code) for code in range(1, 0x1FAFF) if old.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    for index in range(count):
        if index % 3 == 0:
            yield "".join(
                rng.choice(PIECES) + rng.choice(BLANKS) for _ in range(rng.randint(0, 20))
            )
        elif index % 3 == 1:
            yield "".join(rng.choices(assigned, k=rng.randint(1, 30)))
        else:
            letters = "abcdefghijklmnopqrstuvwxyzABCDEFG '0123456789,.!?()"
            yield "".join(rng.choices(letters, k=rng.randint(1, 80)))


def test_ids_equal_those_of_the_tokenizers_library(oracle):
    tokenizer = ct.clip_tokenizer()
    texts = list(mixed_strings(5000))
    expected = [encoding.ids for encoding in oracle.encode_batch(texts)]
    wrong = [
        text for text, ids in zip(texts, expected, strict=True) if tokenizer.encode(text) != ids
    ]
    assert wrong == []


def test_the_vocabulary_has_the_known_size_and_ids(merges):
    tokenizer = ct.clip_tokenizer()
    assert len(merges) == 48894
    assert len(tokenizer.ids) == ct.START_TOKEN
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]


def published_ids(word):
    """CLIP's published rule, written anew: 256 byte symbols, the same at a word's end, then the
    merges in the order of the file; the adjacent pair of the earliest merge is joined first."""
    lines = gzip.decompress(ct.vocabulary_path().read_bytes()).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    order = printable + [byte for byte in range(256) if byte not in printable]
    char = {byte: chr(byte if byte in printable else 256 + order.index(byte) - len(printable))
            for byte in order}  # fmt: skip
    names = [char[byte] for byte in order]
    names += [name + "</w>" for name in names] + ["".join(pair) for pair in merges]
    names += ["<|startoftext|>", "<|endoftext|>"]
    parts = [char[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while known := set(zip(parts, parts[1:], strict=False)) & ranks.keys():
        first = min(known, key=ranks.get)
        at = list(zip(parts, parts[1:], strict=False)).index(first)
        parts[at : at + 2] = ["".join(first)]
    assert names[ct.START_TOKEN :] == ["<|startoftext|>", "<|endoftext|>"]
    assert len(names) == 49408
    return [names.index(part) for part in parts]


@pytest.mark.parametrize("word", ["🎨", "🦊🦊", "مرحبا", "שלום", "東京タワー", "½", "cat", "!"])
def test_ids_follow_the_published_order_of_bytes_and_merges(word):
    assert ct.clip_tokenizer().encode(word) == published_ids(word)


def test_one_word_of_a_hundred_thousand_letters_takes_little_time():
    started = time.perf_counter()
    ids = ct.clip_tokenizer().encode("abcdefghij" * 10_000)
    assert len(ids) > 1000
    assert time.perf_counter() - started < 5


def test_a_lone_surrogate_is_text_like_any_other():
    assert ct.clip_tokenizer().encode("a\ud800b") != []


def test_a_missing_package_is_named_with_a_remedy(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ct.metadata, "distribution", missing)
    with pytest.raises(VocabularyMissing, match="open_clip_torch.*launch.py setup"):
        ct.vocabulary_path()


def test_a_changed_vocabulary_is_refused(tmp_path):
    path = tmp_path / "bpe.txt.gz"
    path.write_bytes(ct.vocabulary_path().read_bytes()[:-1] + b"x")
    with pytest.raises(VocabularyMissing, match="not the known one"):
        ct.read_merges(path)


def test_the_package_that_carries_the_vocabulary_is_not_imported():
    code = (
        "import sys; from ldm_patched.modules.clip_tokenizer import clip_tokenizer;"
        "clip_tokenizer().encode('x');"
        "sys.exit('open_clip' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
