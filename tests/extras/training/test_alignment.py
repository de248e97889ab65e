"""What a UNet tells of the page while it learns to denoise it."""

import pytest
import torch

from extras.training.alignment import Lessons, TellingUNet, untold
from extras.training.builtin_model import MINI, TOY, make_unet


def test_what_is_not_told_is_a_share_of_what_there_is_to_tell():
    features = torch.randn(40, 9, 3) * torch.tensor([0.1, 1.0, 50.0]) + torch.tensor(
        [7.0, 0.0, 2.0]
    )
    deviation, mean = torch.std_mean(features, dim=(0, 1))
    right = (features - mean) / deviation
    assert float(untold(right, features)) == pytest.approx(0.0, abs=1e-4)
    assert float(untold(torch.zeros_like(features), features)) == pytest.approx(1.0, abs=0.02)
    right[..., 1] = 0.0  # nothing of one channel in three
    assert float(untold(right, features)) == pytest.approx(1 / 3, abs=0.02)


def test_what_is_not_told_counts_as_much_as_its_place():
    features = torch.randn(40, 9, 3)
    told = (features - features.mean(dim=(0, 1))) / features.std(dim=(0, 1))
    told[:, 4] = 0.0  # nothing of one place in nine
    counts = torch.full((40, 9), 0.75)
    counts[:, 4] = 3.0
    assert float(untold(told, features)) == pytest.approx(1 / 9, rel=0.2)
    assert float(untold(told, features, counts)) == pytest.approx(3 / 9, rel=0.2)


def test_errors_count_more_where_things_are_and_as_much_in_all():
    things = torch.zeros(2, 64, 96, dtype=torch.uint8)
    things[0, 16:24, 32:40] = 1
    assert Lessons().counts(things) == {}
    counts = Lessons(emphasis=4.0).counts(things)["emphasis"]
    assert counts.shape == (2, 8, 12)
    assert counts.mean(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0])
    assert torch.equal(counts[1], torch.ones(8, 12))
    more = counts[0] / counts[0].min()
    assert float(more[2, 4]) == pytest.approx(4.0)
    assert int((more > 3.9).sum()) == 9  # with the places around it


@pytest.mark.parametrize("sizes", [TOY, MINI])
def test_a_unet_paints_the_same_and_tells_of_each_place(sizes):
    torch.manual_seed(0)
    unet = make_unet(sizes)
    with torch.no_grad():
        unet.out[-1].weight.normal_()
    telling = TellingUNet(unet, seen=5)
    width = sizes.clip_g_width + sizes.clip_l_width
    told = {
        "timesteps": torch.tensor([10.0, 900.0]),
        "context": torch.randn(2, 77, width),
        "y": torch.randn(2, sizes.clip_g_width + 6 * 256),
    }
    x = torch.randn(2, 4, 16, 24)  # of 128 by 192 pixels: 8 by 12 places
    prediction, seen = telling(x, **told)
    assert torch.equal(prediction, unet(x, **told))
    assert seen.shape == (2, 8 * 12, 5)
    with torch.no_grad():
        telling.sight[-1].weight.normal_()
    telling(x, **told)[1].square().sum().backward()
    reached = {n.split(".")[0] for n, p in unet.named_parameters() if p.grad is not None}
    assert {"input_blocks", "middle_block", "output_blocks", "time_embed"} <= reached
    assert unet.out[-1].weight.grad is None  # it is told from inside


def test_it_tells_of_the_right_places():
    torch.manual_seed(0)
    unet = make_unet(TOY)
    telling = TellingUNet(unet, seen=4)
    with torch.no_grad():
        telling.sight[-1].weight.normal_()
    told = {"timesteps": torch.tensor([5.0]), "context": torch.zeros(1, 1, 192),
            "y": torch.zeros(1, 128 + 6 * 256)}  # fmt: skip
    x = torch.zeros(1, 4, 16, 16)
    before = telling(x, **told)[1]
    x[:, :, 0:2, 12:14] = 9.0
    change = (telling(x, **told)[1] - before).abs().sum(dim=-1).view(8, 8)
    row, column = divmod(int(change.argmax()), 8)
    assert row <= 2
    assert column >= 4
