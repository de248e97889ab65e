"""Everything that can go wrong in words a user can act on.

    StudioError                 base; `code` is stable, `str(error)` is the sentence for the page
    ├── SpecError      E_INPUT          a field of the request is wrong; `field` names it
    ├── LimitError     E_LIMIT          a cap of limits.py was reached
    │   └── QueueFull                   by the tasks that wait
    ├── Conflict       E_CONFLICT       the request contradicts an earlier one
    ├── ModelMissing   E_MODEL_MISSING  a named file is not there
    ├── ModelCorrupt   E_MODEL_CORRUPT  a file is truncated or not what its name says
    ├── ModelUnsafe    E_MODEL_UNSAFE   a file could run code when read
    ├── ModelUnsupported E_MODEL_UNSUPPORTED  readable, but of a family Easel does not know
    ├── DiskFull       E_DISK_FULL      nothing more can be written
    ├── OutputFolder   E_OUTPUT         the output folder is read-only or gone
    ├── OutOfMemory    E_OOM            the device or the computer ran out of memory
    ├── NotANumber     E_NAN            the network produced no valid numbers
    ├── WorkerCrashed  E_WORKER_CRASHED the painting process died
    ├── TaskStalled    E_TIMEOUT        a task made no progress for too long
    ├── NotFound       E_NOT_FOUND      no such task or picture
    ├── InstanceRunning E_INSTANCE      another Easel uses the same data folder
    ├── ConfigError    E_CONFIG         a setting, preset or flag is wrong
    ├── OwnerOnly      E_OWNER          what only the owner of this Easel may do
    └── DownloadFailed E_DOWNLOAD       a file could not be fetched

A message says what happened, why, and what to do; never a traceback, never a server path.
"""


class StudioError(Exception):
    """Base of every error that is shown to the user as it is."""

    code = "E_INTERNAL"


class SpecError(StudioError):
    """A field of the request is wrong. `field` is its TaskSpec name, or '' for the whole."""

    code = "E_INPUT"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class LimitError(StudioError):
    """A cap was reached; the message names the cap and how to stay below it.

    `field` is the TaskSpec name of what is too long, or '' when it is no field of the request.
    """

    code = "E_LIMIT"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class QueueFull(LimitError):
    """As many tasks wait as may; the same request can be sent again later."""


class Conflict(StudioError):
    """The request contradicts an earlier one that bears the same key."""

    code = "E_CONFLICT"


class ModelMissing(StudioError):
    """A model file that the request names is not in the model folders."""

    code = "E_MODEL_MISSING"


class ModelCorrupt(StudioError):
    """A model file is truncated, or holds something else than its name says."""

    code = "E_MODEL_CORRUPT"


class ModelUnsafe(StudioError):
    """A model file holds code (a pickle with more than tensors in it)."""

    code = "E_MODEL_UNSAFE"


class ModelUnsupported(StudioError):
    """A model file is sound, but of a family or kind that cannot be used here."""

    code = "E_MODEL_UNSUPPORTED"


class DiskFull(StudioError):
    """The disk that should take the picture or the database is full."""

    code = "E_DISK_FULL"


class OutputFolder(StudioError):
    """The output folder cannot be written to."""

    code = "E_OUTPUT"


class OutOfMemory(StudioError):
    """The device's or the computer's memory was exhausted."""

    code = "E_OOM"


class NotANumber(StudioError):
    """The network's output held NaN or infinity."""

    code = "E_NAN"


class WorkerCrashed(StudioError):
    """The worker process died while it had the task, twice."""

    code = "E_WORKER_CRASHED"


class TaskStalled(StudioError):
    """A task made no progress for `limits.STALLED_SECONDS`."""

    code = "E_TIMEOUT"


class NotFound(StudioError):
    """No such task or picture."""

    code = "E_NOT_FOUND"


class InstanceRunning(StudioError):
    """Another Easel already serves this data folder."""

    code = "E_INSTANCE"


class ConfigError(StudioError):
    """A flag, an environment variable, a settings file or a preset is wrong."""

    code = "E_CONFIG"


class OwnerOnly(StudioError):
    """A guest asked for what only the owner may do."""

    code = "E_OWNER"


class DownloadFailed(StudioError):
    """A download that the user asked for did not succeed."""

    code = "E_DOWNLOAD"


class Cancelled(Exception):
    """The user pressed Stop. Not an error: it ends the task and keeps what is finished."""


class Skipped(Exception):
    """The user pressed Skip. Not an error: it ends the current picture only."""
