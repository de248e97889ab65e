"""Each form of adapter against its formula in float64, written out independently."""

import numpy as np
import pytest
import torch

from ldm_patched.modules import weight_patches
from ldm_patched.modules.weight_patches import delta_of, patched_weight, require_fit
from tests.support.engine_report import agree

NAMES = {
    "lora": "LoRA, LoCon",
    "loha": "LoHa",
    "lokr": "LoKr",
    "glora": "GLoRA",
    "dora": "DoRA",
    "diff": "full difference",
}
LINEAR = (6, 10)
CONV = (6, 4, 3, 3)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for shape in shapes]


def doubles(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.double().numpy() for t in tensors]


def check(patch, weight: torch.Tensor, expected: np.ndarray) -> None:
    found = delta_of(patch, weight)
    assert found.dtype == torch.float32
    assert found.shape == weight.shape
    name, reference = NAMES[patch[0]], "the formula in float64"
    agree("adapter", name, reference, found, torch.from_numpy(expected), 1e-5)


def test_lora_of_a_linear_layer():
    weight, up, down = draw(1, LINEAR, (6, 2), (2, 10))
    u, d = doubles(up, down)
    check(("lora", (up, down, 3.0, None)), weight, 1.5 * u @ d)
    check(("lora", (up, down, None, None)), weight, u @ d)


def test_lora_of_a_convolution_and_its_tucker_form():
    weight, up, down = draw(2, CONV, (6, 2, 1, 1), (2, 4, 3, 3))
    u, d = doubles(up, down)
    check(("lora", (up, down, 1.0, None)), weight, 0.5 * np.tensordot(u[:, :, 0, 0], d, 1))
    weight, up, down, middle = draw(3, CONV, (6, 2, 1, 1), (2, 4, 1, 1), (2, 2, 3, 3))
    u, d, m = doubles(up, down, middle)
    expected = np.zeros(CONV)
    for r in range(2):
        for s in range(2):
            outer = np.multiply.outer(u[:, r, 0, 0], d[s, :, 0, 0])
            expected += np.multiply.outer(outer, m[r, s])
    check(("lora", (up, down, 2.0, middle)), weight, expected)


def test_loha_and_its_tucker_form():
    weight, *w = draw(4, LINEAR, (6, 2), (2, 10), (6, 2), (2, 10))
    a, b, c, d = doubles(*w)
    check(("loha", (*w, 1.0, None, None)), weight, 0.5 * (a @ b) * (c @ d))
    weight, *w = draw(5, CONV, (2, 6), (2, 4), (2, 6), (2, 4), (2, 2, 3, 3), (2, 2, 3, 3))
    a, b, c, d, t1, t2 = doubles(*w)

    def rebuilt(core, out, into):
        return sum(
            np.multiply.outer(np.multiply.outer(out[r], into[s]), core[r, s])
            for r in range(2)
            for s in range(2)
        )

    expected = rebuilt(t1, a, b) * rebuilt(t2, c, d)
    check(("loha", (*w[:4], 2.0, *w[4:])), weight, expected)


def test_lokr_in_whole_and_in_low_rank_factors():
    weight, w1, w2 = draw(6, LINEAR, (2, 5), (3, 2))
    check(("lokr", (w1, None, None, w2, None, None, None, 7.0)), weight, np.kron(*doubles(w1, w2)))
    weight, a, b, c, d = draw(7, LINEAR, (2, 1), (1, 5), (3, 1), (1, 2))
    w1_a, w1_b, w2_a, w2_b = doubles(a, b, c, d)
    expected = 4.0 * np.kron(w1_a @ w1_b, w2_a @ w2_b)
    check(("lokr", (None, a, b, None, c, d, None, 4.0)), weight, expected)


def test_lokr_of_a_convolution():
    weight, w1, a, b = draw(8, CONV, (2, 2), (3, 2), (2, 2 * 9))
    one, small = doubles(w1)[0], (doubles(a)[0] @ doubles(b)[0]).reshape(3, 2, 3, 3)
    expected = np.zeros(CONV)
    for i in range(2):
        for j in range(2):
            expected[3 * i : 3 * i + 3, 2 * j : 2 * j + 2] = one[i, j] * small
    check(("lokr", (w1, None, None, None, a, b, None, 2.0)), weight, expected)
    weight, w1, a, b, core = draw(9, CONV, (2, 2), (2, 3), (2, 2), (2, 2, 3, 3))
    one, u, v, t = doubles(w1, a, b, core)
    small = np.einsum("rskl,ro,si->oikl", t, u, v)
    for i in range(2):
        for j in range(2):
            expected[3 * i : 3 * i + 3, 2 * j : 2 * j + 2] = one[i, j] * small
    check(("lokr", (w1, None, None, None, a, b, core, 2.0)), weight, expected)


def test_glora_in_both_layouts():
    weight, a1, a2, b1, b2 = draw(10, LINEAR, (10, 2), (2, 10), (6, 2), (2, 10))
    w, p, q, r, s = doubles(weight, a1, a2, b1, b2)
    expected = 1.5 * (w @ p @ q + r @ s)
    check(("glora", (a1, a2, b1, b2, 3.0)), weight, expected)
    check(("glora", (a2, a1, b2, b1, 3.0)), weight, expected)


def test_glora_of_a_convolution():
    weight, a1, a2, b1, b2 = draw(11, CONV, (4, 2, 1, 1), (2, 4, 1, 1), (6, 2, 1, 1), (2, 4, 3, 3))
    w, p, q, r, s = doubles(weight, a1, a2, b1, b2)
    through = np.einsum("oikl,ij->ojkl", w, p[:, :, 0, 0] @ q[:, :, 0, 0])
    expected = through + np.tensordot(r[:, :, 0, 0], s, 1)
    check(("glora", (a1, a2, b1, b2, None)), weight, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_dora_sets_the_length_of_each_output_or_input(axis):
    weight, up, down, lengths = draw(12, LINEAR, (6, 2), (2, 10), (LINEAR[axis],))
    w, u, d, m = doubles(weight, up, down, lengths)
    moved = w + 0.5 * u @ d
    norms = np.sqrt((moved**2).sum(axis=1 - axis, keepdims=True))
    m = m[:, None] if axis == 0 else m[None, :]
    scale = lengths[:, None] if axis == 0 else lengths[None, :]
    expected = moved * m / norms - w
    check(("dora", (("lora", (up, down, 1.0, None)), scale)), weight, expected)


def test_a_difference_of_a_one_by_one_convolution_may_be_a_matrix():
    weight, difference = draw(13, (6, 4, 1, 1), (6, 4))
    check(("diff", (difference,)), weight, difference.double().numpy()[..., None, None])


def test_several_patches_add_up_and_each_sees_the_weight_as_loaded():
    weight, up, down, lengths = draw(14, LINEAR, (6, 2), (2, 10), (6, 1))
    lora = ("lora", (up, down, None, None))
    dora = ("dora", (lora, lengths))
    both = patched_weight(weight, [(0.5, lora, 1.0), (-2.0, dora, 1.0)])
    expected = weight + 0.5 * delta_of(lora, weight) - 2.0 * delta_of(dora, weight)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(
    "patch",
    [
        ("diff", (torch.zeros(3, 3),)),
        ("lora", (torch.zeros(6, 2), torch.zeros(2, 7), None, None)),
        ("lora", (torch.zeros(6, 2), torch.zeros(3, 10), None, None)),
        ("loha", (torch.zeros(6, 2), torch.zeros(2, 9)) * 2),
        ("nonsense", ()),
    ],
)
def test_what_does_not_fit_is_refused(patch):
    with pytest.raises((ValueError, RuntimeError)):
        delta_of(patch, torch.zeros(LINEAR))
    with pytest.raises((ValueError, RuntimeError)):
        require_fit(patch, LINEAR)


def test_a_large_weight_is_patched_some_rows_at_a_time(monkeypatch):
    weight, *factors = draw(15, LINEAR, (6, 2), (2, 10), (6, 3), (3, 10))
    patches = [
        (0.7, ("lora", (*factors[:2], 4.0, None)), 1.0),
        (-1.5, ("lora", (*factors[2:], None, None)), 0.5),
    ]
    first, second = (delta_of(patch, weight) for _, patch, _ in patches)
    expected = 0.5 * (weight + 0.7 * first) - 1.5 * second
    for numbers in (1, 20, 10**6):  # one row, two rows, all
        monkeypatch.setattr(weight_patches, "AT_A_TIME", numbers)
        torch.testing.assert_close(patched_weight(weight, patches), expected)


@pytest.mark.parametrize("has_units", [True, False])
def test_products_for_a_bfloat16_weight_are_rounded_once(monkeypatch, has_units):
    weight, *factors = draw(16, (64, 80), (64, 8), (8, 80), (64, 4), (4, 80))
    weight = weight.bfloat16()
    ways = [(0.7, 1.0), (-1.5, 0.5)]  # of the change, of the weight with all before it
    pairs = [factors[:2], factors[2:]]
    patches = [
        (strength, ("lora", (*pair, None, None)), own)
        for pair, (strength, own) in zip(pairs, ways, strict=True)
    ]
    monkeypatch.setattr(weight_patches, "cpu_has_bf16", lambda: has_units)
    found = patched_weight(weight, patches)
    expected, added = weight.double(), 0.0
    for (up, down), (strength, own) in zip(pairs, ways, strict=True):
        up, down = up.double(), down.double()
        expected = own * expected + strength * (up @ down)
        added = own * added + abs(strength) * (up.abs() @ down.abs())
    assert found.dtype == torch.bfloat16
    within = 2**-8 * expected.abs() + (2**-7 * added if has_units else 1e-6)
    assert ((found.double() - expected).abs() <= within * 1.01).all()


@pytest.mark.parametrize(
    ("up", "down", "shape"),
    [((6,), (1, 10), (6, 10)), ((6, 1), (1,), (6, 1)), ((6, 0), (0, 10), (6, 10))],
    ids=["up is no matrix", "down is no matrix", "no rank"],
)
def test_factors_that_cannot_be_merged_are_refused_before(up, down, shape):
    with pytest.raises(ValueError, match="no matrix"):
        require_fit(("lora", (torch.ones(up), torch.ones(down), 1.0, None)), shape)


def test_a_product_for_a_norm_is_added():
    weight, up, down = draw(11, (6,), (6, 2), (2, 1))
    patch = ("lora", (up, down, 1.0, None))
    require_fit(patch, weight.shape)
    found = patched_weight(weight, [(0.7, patch, 1.0)])
    torch.testing.assert_close(found, weight + 0.7 * 0.5 * (up @ down).flatten())
