"""Prompt expansion by a GPT-2: it goes on writing after the prompt, with allowed words alone.

The prompt and a comma are continued up to the next multiple of 75 tokens, each drawn by a seeded
generator from the 100 likeliest. A token counts only if it is a listed word that is not there
yet, or the comma. Runs on the CPU in float32, so the same seed gives the same words everywhere.

The package transformers is imported when a model is loaded, and not before.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ldm_patched.modules.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from ldm_patched.modules.utils import load_torch_file

CHUNK = 75  # tokens of a text encoder's window, without its start and end
LIKELIEST = 100
WORD_FILE = "positive.txt"
_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
_WORD_FILE_BYTES = 4 * 1024 * 1024
_SPACE = "Ġ"  # how the byte-level vocabulary writes a leading space


class GptExpander:
    """A loaded model with its allowed words. `load_gpt_expander` makes one."""

    def __init__(self, model: Any, tokenizer: Any, words: Iterable[str]) -> None:
        """model, tokenizer: of transformers. words: what may be added. Raises UnsupportedModel."""
        vocabulary = tokenizer.get_vocab()
        allowed = {vocabulary[key] for word in words if (key := _SPACE + word) in vocabulary}
        if "," not in vocabulary or not allowed:
            raise UnsupportedModel("The vocabulary has none of the words that may be added.")
        self._model, self._tokenizer = model, tokenizer
        self._comma = vocabulary[","]
        self._allowed = torch.tensor(sorted(allowed - {self._comma}))

    @torch.inference_mode()
    def expand(
        self, prompt: str, seed: int, *, check: Callable[[], None] = lambda: None
    ) -> tuple[str, ...]:
        """Phrases to follow `prompt`; none for an empty one. check: may raise between words."""
        words = " ".join(prompt.split())
        if not words:
            return ()
        room = int(self._model.config.n_positions)
        given = self._tokenizer(f"{words},", add_special_tokens=False)["input_ids"]
        missing = min(-len(given) % CHUNK, room - 1)
        given = given[-(room - missing) :]
        draw = torch.Generator().manual_seed(seed % 2**32)
        is_free = ~torch.isin(self._allowed, torch.tensor(given))
        tokens, past, added = torch.tensor([given]), None, []
        for _ in range(missing):
            check()
            out = self._model(tokens, past_key_values=past, use_cache=True)
            past = out.past_key_values
            choices = torch.cat([self._allowed[is_free], torch.tensor([self._comma])])
            scores, places = out.logits[0, -1, choices].float().topk(min(LIKELIEST, len(choices)))
            drawn = torch.multinomial(scores.softmax(0), 1, generator=draw)
            token = choices[places[drawn]]
            is_free &= self._allowed != token
            added.append(int(token))
            tokens = token[None]
        parts = (" ".join(part.split()) for part in self._tokenizer.decode(added).split(","))
        return tuple(dict.fromkeys(part for part in parts if part))


def load_gpt_expander(folder: Path, words: Iterable[str]) -> GptExpander:
    """The model of `folder` in transformers' layout.

    words: what may be added where the folder has no positive.txt, one word a line. Raises
    ModelFileError, and ImportError where the package is not there or cannot be loaded.
    """
    try:
        from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # One that does not fit the other packages raises any of these.
        raise ImportError("transformers cannot be loaded") from error

    try:
        config = GPT2Config.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model = GPT2LMHeadModel(config)
        _put_weights(model, folder)
        return GptExpander(model.eval().float(), tokenizer, _words_of(folder, words))
    except ModelFileError as error:
        raise type(error)(f"{_about(folder)} cannot be used: {error}") from error
    except (RuntimeError, MemoryError, ArithmeticError) as error:  # by numbers in config.json
        raise UnsupportedModel(
            f"{_about(folder)} cannot be built as its config.json says; copy its folder there "
            "again, or take it away to have Easel's own phrases."
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptModelFile(
            f"{_about(folder)} is not whole; copy its folder there again, or take it away to have "
            "Easel's own phrases."
        ) from error


def _about(folder: Path) -> str:
    return f"The language model {folder.name[:80]} for prompt expansion"


def _put_weights(model: Any, folder: Path) -> None:
    """Read the safe way, whatever the file is; the head is the embedding's own matrix."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CorruptModelFile(f"{_WEIGHTS[0]} is missing.")
    known = model.state_dict()
    found = {}
    for name, tensor in load_torch_file(path).items():
        whole = name if name in known else f"transformer.{name}"
        if whole in known:
            found[whole] = tensor
    found.setdefault("lm_head.weight", found["transformer.wte.weight"])
    try:
        model.load_state_dict(found)
    except RuntimeError as error:  # a weight of another shape, or none
        raise CorruptModelFile("Its weights are not those that its config.json says.") from error
    model.tie_weights()


def _words_of(folder: Path, otherwise: Iterable[str]) -> frozenset[str]:
    path = folder / WORD_FILE
    if not path.is_file():
        return frozenset(otherwise)
    with path.open("rb") as file:
        text = file.read(_WORD_FILE_BYTES).decode("utf-8-sig", "replace")
    return frozenset(line.strip().lower() for line in text.splitlines() if line.strip())
