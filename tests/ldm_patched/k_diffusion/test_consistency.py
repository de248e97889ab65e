"""What samplers for distilled models ask of the model beside predictions."""

import torch

from ldm_patched.k_diffusion.sampling import sample_tcd
from ldm_patched.modules.model_sampling import ModelSamplingDiscrete


class Levels(ModelSamplingDiscrete):
    """Counts how often its tables are read."""

    reads = 0

    def timestep(self, sigma):
        self.reads += 1
        return super().timestep(sigma)

    def sigma(self, timestep):
        self.reads += 1
        return super().sigma(timestep)


def test_tcd_reads_the_tables_once_and_not_at_each_step():
    counts = []

    class Model:
        model_sampling = Levels()

        def __call__(self, x, _sigma, **_):
            counts.append(self.model_sampling.reads)
            return 0.5 * x

    sigmas = torch.tensor([14.6, 6.0, 2.5, 0.9, 0.0])
    sample_tcd(Model(), torch.ones(1, 4, 2, 2), sigmas, disable=True)
    assert counts == [2, 2, 2, 2]
