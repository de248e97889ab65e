"""What can go wrong while training, in words a user can act on."""


class TrainingError(Exception):
    """Base of every error that the trainer raises on purpose; the text is for the user."""

    code = "E_TRAINING"


class TrainingFolderError(TrainingError):
    """The folder of a run is missing, cannot be written to, or holds another run."""

    code = "E_TRAINING_FOLDER"


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged, or of a model with other dimensions."""

    code = "E_TRAINING_CHECKPOINT"


class TrainingDiverged(TrainingError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""

    code = "E_NAN"
