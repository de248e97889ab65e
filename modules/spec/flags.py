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
    HEUN = "heun"
    HEUNPP2 = "heunpp2"
    DPM_2 = "dpm_2"
    DPM_2_ANCESTRAL = "dpm_2_ancestral"
    LMS = "lms"
    DPM_FAST = "dpm_fast"
    DPM_ADAPTIVE = "dpm_adaptive"
    DPMPP_2S_ANCESTRAL = "dpmpp_2s_ancestral"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_SDE_GPU = "dpmpp_sde_gpu"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_GPU = "dpmpp_2m_sde_gpu"
    DPMPP_3M_SDE = "dpmpp_3m_sde"
    DPMPP_3M_SDE_GPU = "dpmpp_3m_sde_gpu"
    DDPM = "ddpm"
    LCM = "lcm"
    TCD = "tcd"
    RESTART = "restart"
    DDIM = "ddim"
    UNI_PC = "uni_pc"
    UNI_PC_BH2 = "uni_pc_bh2"
    DEIS = "deis"
    IPNDM = "ipndm"
    RES_MULTISTEP = "res_multistep"


class Scheduler(StrEnum):
    """Noise schedules that the engine offers; the names are the field's."""

    NORMAL = "normal"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    SGM_UNIFORM = "sgm_uniform"
    SIMPLE = "simple"
    DDIM_UNIFORM = "ddim_uniform"
    LCM = "lcm"
    TURBO = "turbo"
    ALIGN_YOUR_STEPS = "align_your_steps"
    TCD = "tcd"
    EDM_PLAYGROUND_V2_5 = "edm_playground_v2.5"
    BETA = "beta"
    KL_OPTIMAL = "kl_optimal"
    LINEAR_QUADRATIC = "linear_quadratic"


class RefinerMethod(StrEnum):
    """How a refiner takes over from the checkpoint."""

    JOINT = "joint"
    SEPARATE = "separate"
    VAE = "vae"


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
