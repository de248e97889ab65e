"""Choices that a request may name. Each member carries the word users know."""

from enum import StrEnum


class OutputFormat(StrEnum):
    """File format of saved pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def mime_type(self) -> str:
        return f"image/{self.value}"

    @property
    def suffix(self) -> str:
        return {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[self.value]


class Sampler(StrEnum):
    """Samplers that the engine offers; the names are the field's (k-diffusion)."""

    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_SDE = "dpmpp_sde"
    LCM = "lcm"


class Scheduler(StrEnum):
    """Noise schedules that the engine offers."""

    NORMAL = "normal"
    KARRAS = "karras"
    SIMPLE = "simple"
    SGM_UNIFORM = "sgm_uniform"
    EXPONENTIAL = "exponential"


class TaskState(StrEnum):
    """The life of a task: queued → running → one of the last three."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (TaskState.DONE, TaskState.STOPPED, TaskState.FAILED)
