"""A GPT-2 with random weights and a vocabulary of a few words, as a user's folder holds one."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

WORDS = ("misty", "golden", "light", "soft", "castle", "river", "sharp", "vivid", "calm", "deep")


def write_tiny_gpt2(
    folder: Path, listed: Sequence[str] | None = WORDS[:6], pickled: bool = False
) -> Path:
    """A folder with config, tokenizer and weights, and `listed` as positive.txt unless None."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges = []
    for word in WORDS:  # each word after a space becomes one token
        built = "Ġ"
        for letter in word:
            if built + letter not in vocabulary:
                merges.append((built, letter))
                vocabulary[built + letter] = len(vocabulary)
            built += letter
    vocabulary["<|endoftext|>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    sizes = {"n_positions": 160, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=len(vocabulary), **sizes)
    config.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        weights = GPT2LMHeadModel(config).state_dict()
    del weights["lm_head.weight"]  # the embedding's own matrix
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if listed is not None:
        (folder / "positive.txt").write_text("\n".join(listed) + "\n")
    return folder
