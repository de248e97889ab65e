"""Errors of the engine: typed, worded for a person, free of server paths.

EngineError
├── ModelFileError       a weight file cannot be used; `code` says why
│   ├── CorruptModelFile     E_MODEL_CORRUPT      truncated, garbage, wrong content
│   ├── UnsafeModelFile      E_MODEL_UNSAFE       a pickle with more than tensors in it
│   └── UnsupportedModel     E_MODEL_UNSUPPORTED  sound, but not a family or kind known here
├── VocabularyMissing    E_MODEL_MISSING      the CLIP vocabulary is not installed
├── EmbeddingMissing     E_MODEL_MISSING      a prompt names an embedding that is not there
├── DeviceMissing        E_CONFIG             the device that was asked for is not there
└── NotFinite            E_NAN                a network gave NaN or infinity
"""

import errno

_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "alloc_cpu", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or in the computer, as Python or PyTorch say it."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY_WORDS)


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""

    code = "E_INTERNAL"


class ModelFileError(EngineError):
    """A weight file cannot be used."""

    code = "E_MODEL_CORRUPT"


class CorruptModelFile(ModelFileError):
    """The file is truncated, is garbage, or is not what its name says."""


class UnsafeModelFile(ModelFileError):
    """The file is a pickle that holds more than tensors; it was not executed."""

    code = "E_MODEL_UNSAFE"


class UnsupportedModel(ModelFileError):
    """The file is sound but holds no model of a kind that is known here."""

    code = "E_MODEL_UNSUPPORTED"


class VocabularyMissing(EngineError):
    """The CLIP vocabulary file is not installed, or is not the known one."""

    code = "E_MODEL_MISSING"


class EmbeddingMissing(EngineError):
    """A prompt names an embedding that is not in the folder."""

    code = "E_MODEL_MISSING"


class DeviceMissing(EngineError):
    """The flags name an accelerator by a number that none has."""

    code = "E_CONFIG"


class NotFinite(EngineError):
    """A network's output held NaN or infinity."""

    code = "E_NAN"
