"""A denoiser that is known exactly: every number of a picture is drawn from a Gaussian mixture.

Written for numpy and for torch alike, so that a sampler in float32 can be held against formulas
in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Mixture:
    """Modes at `means` with `weights`, each of standard deviation `std`."""

    means: tuple[float, ...] = (-1.0, 0.2, 1.4)
    weights: tuple[float, ...] = (0.3, 0.5, 0.2)
    std: float = 0.4

    def denoised(self, x: np.ndarray, sigma: float) -> np.ndarray:
        """E[clean | x = clean + sigma * noise], float64."""
        variance = self.std**2 + sigma**2
        logs = [
            np.log(w) - (x - m) ** 2 / (2 * variance)
            for m, w in zip(self.means, self.weights, strict=True)
        ]
        top = np.max(logs, axis=0)
        shares = np.exp(np.array(logs) - top)
        shares /= shares.sum(axis=0)
        posterior = np.array([(self.std**2 * x + sigma**2 * m) / variance for m in self.means])
        return (shares * posterior).sum(axis=0)

    def model(self, x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        """The same as a sampler's model: x (B, ...), sigma (B,), in the precision of x."""
        sigma = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        variance = self.std**2 + sigma**2
        means = torch.tensor(self.means, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
        weights = torch.tensor(self.weights, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
        shares = (weights.log() - (x - means) ** 2 / (2 * variance)).softmax(dim=0)
        return (shares * (self.std**2 * x + sigma**2 * means) / variance).sum(dim=0)

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    @property
    def variance(self) -> float:
        second = np.dot(self.weights, np.square(self.means))
        return float(second - self.mean**2 + self.std**2)
