"""Every loader against every way in which its file can be wrong.

One sentence that names the file and says what to do; nothing of the file stays behind; what was
loaded before works as it did.
"""

import gc
import re
import weakref

import pytest
import torch
from safetensors.torch import save

from ldm_patched.modules.errors import (
    CorruptModelFile,
    EmbeddingMissing,
    EngineError,
    UnsafeModelFile,
    UnsupportedModel,
)
from ldm_patched.modules.weight_file import SafetensorsFile, TensorDict
from tests.support import wrong_files
from tests.support.sound_files import NAME, POLICY, make_loaders

LOADERS = (
    "checkpoint", "diffusers folder", "VAE", "text encoder", "LoRA", "embedding", "ControlNet",
    "control-LoRA", "T2I-Adapter", "image encoder", "IP-Adapter", "negative of an IP-Adapter",
    "tiny decoder", "latent interposer",
)  # fmt: skip
# The others' numbers are looked at when they are used: see test_bad_models, test_control_networks.
LOOK_AT_NUMBERS = (
    "LoRA", "embedding", "image encoder", "IP-Adapter", "negative of an IP-Adapter",
    "tiny decoder", "latent interposer",
)  # fmt: skip
ON_DISK = ("a program in disguise", "a directory", "gone", "gone while it is read")
WAYS = (*wrong_files.DAMAGE, *wrong_files.MISFITS, "another kind of file", *ON_DISK)
CASES = [
    (name, way)
    for name in LOADERS
    for way in WAYS
    if way != "a weight that is no number" or name in LOOK_AT_NUMBERS
]
# What a way comes to where it is not damage.
ERRORS = {
    "a program in disguise": UnsafeModelFile,
    "another kind of file": UnsupportedModel,
    "a directory": (UnsupportedModel, EmbeddingMissing),
    "gone": (FileNotFoundError, EmbeddingMissing, UnsupportedModel),
    "gone while it is read": (FileNotFoundError, CorruptModelFile),
} | dict.fromkeys(wrong_files.MISFITS, (CorruptModelFile, UnsupportedModel))
REMEDY = re.compile(r"\b([Dd]ownload|[Cc]hoose|[Ll]oad|[Pp]ut|[Tt]ake|[Cc]opy|[Uu]se) ")


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """name → (the loader, what it made of a sound file, the numbers that come out of that)."""
    folder = tmp_path_factory.mktemp("sound")
    found = {}
    for name, loader in make_loaders(folder).items():
        made = loader.load(loader.write(folder / name))
        found[name] = loader, made, loader.use(made)
    assert tuple(sorted(found)) == tuple(sorted(LOADERS))
    gc.collect()
    gc.freeze()  # so that looking for what is left behind does not look through all of this
    yield found
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # what lives to the end, as before


@pytest.fixture
def made(monkeypatch):
    """Weak references to all weight files and networks that are made."""
    found = []
    for kind in (SafetensorsFile, TensorDict, torch.nn.Module):

        def noting(self, *arguments, _own=kind.__init__, **options):
            _own(self, *arguments, **options)
            found.append(weakref.ref(self))

        monkeypatch.setattr(kind, "__init__", noting)
    return found


def spoil(loader, way, folder, monkeypatch):
    """The path of a file that is wrong in this way."""
    if way in wrong_files.DAMAGE:
        return loader.write(folder, wrong_files.DAMAGE[way](loader.write(folder).read_bytes()))
    if way in wrong_files.MISFITS:
        return loader.write(folder, wrong_files.MISFITS[way](loader.weights, loader.weight))
    if way == "another kind of file":
        is_lora = any(name.endswith("lora_up.weight") for name in loader.weights)
        other = wrong_files.WRONG_FILES["a ControlNet" if is_lora else "a LoRA"]
        return loader.write(folder, save(other))
    path = loader.write(folder)
    if way == "a program in disguise":
        path.write_bytes(wrong_files.program(folder / "marker"))
    elif way == "gone while it is read":
        wrong_files.vanish_while_read(path, monkeypatch)
    else:
        path.unlink()
        if way == "a directory":
            path.mkdir()
    return path


def refusal(loader, path, way):
    """What loading says; None for a file that is passed over, since another may be taken."""
    try:
        assert loader.load(path) is None
        return None
    except EngineError as error:
        assert isinstance(error, ERRORS.get(way, CorruptModelFile))
        assert error.code.startswith("E_MODEL_")
        return str(error)
    except FileNotFoundError as error:  # the application says this one in words
        assert isinstance(error, ERRORS[way])
        return f"{error.filename} is gone. Load another file.".replace(f"{path.parent}/", "")


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_wrong_file_is_one_sentence_and_costs_nothing(
    loaders, made, name, way, tmp_path, monkeypatch, caplog
):
    loader, before, numbers = loaders[name]
    account = POLICY.budget.account()
    path = spoil(loader, way, tmp_path, monkeypatch)
    said = refusal(loader, path, way)
    assert said is not None or name == "text encoder"
    if said is not None:
        assert NAME in said or path.name in said, said
        assert REMEDY.search(said) and said.endswith("."), said
        assert str(tmp_path) not in said
    assert not (tmp_path / "marker").exists()
    caplog.clear()  # whose records hold errors, and those what they were raised in
    gc.collect()
    assert not [left for reference in made if (left := reference()) is not None]
    assert POLICY.budget.account() == account
    assert torch.equal(loader.use(before), numbers)
