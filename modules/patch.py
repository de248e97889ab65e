"""What must be in force in a worker before it loads a model."""

from modules.patch_precision import patch_all_precision


def patch_all() -> None:
    """Apply every patch; a worker calls this once, before it loads anything. Idempotent."""
    patch_all_precision()
