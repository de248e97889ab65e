"""Samplers and noise schedules: a denoiser in, a picture's latents out.

The methods are in files by family; common.py says what a sampler is. Everything is named here.
"""

from ldm_patched.k_diffusion.common import (
    Callback,
    Denoiser,
    get_ancestral_step,
    to_d,
)
from ldm_patched.k_diffusion.consistency import (
    sample_lcm,
    sample_tcd,
)
from ldm_patched.k_diffusion.dpm_solver import (
    sample_dpm_adaptive,
    sample_dpm_fast,
)
from ldm_patched.k_diffusion.dpmpp import (
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
)
from ldm_patched.k_diffusion.euler import (
    sample_ddim,
    sample_ddpm,
    sample_dpm_2,
    sample_dpm_2_ancestral,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_heunpp2,
)
from ldm_patched.k_diffusion.multistep import (
    sample_deis,
    sample_ipndm,
    sample_lms,
    sample_res_multistep,
)
from ldm_patched.k_diffusion.restart import (
    sample_restart,
)
from ldm_patched.k_diffusion.schedules import (
    append_zero,
    beta_quantiles,
    get_sigmas_align_your_steps,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_kl_optimal,
    get_sigmas_linear_quadratic,
)
from ldm_patched.k_diffusion.uni_pc import (
    sample_uni_pc,
    sample_uni_pc_bh2,
)

__all__ = [
    "Callback",
    "Denoiser",
    "append_zero",
    "beta_quantiles",
    "get_ancestral_step",
    "get_sigmas_align_your_steps",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_kl_optimal",
    "get_sigmas_linear_quadratic",
    "sample_ddim",
    "sample_ddpm",
    "sample_deis",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_heunpp2",
    "sample_ipndm",
    "sample_lcm",
    "sample_lms",
    "sample_res_multistep",
    "sample_restart",
    "sample_tcd",
    "sample_uni_pc",
    "sample_uni_pc_bh2",
    "to_d",
]
