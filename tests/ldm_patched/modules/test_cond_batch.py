"""Conditions are evaluated in few calls, and the number of calls never changes the picture."""

import math
from types import SimpleNamespace

import pytest
import torch

from extras.ip_attention import ImagePrompt, ImagePromptAttention
from ldm_patched.modules.cond_batch import CondBatcher, prepare_conditions
from tests.support.fake_model import FakeModel, prompt

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 3
SIGMA = torch.full((2,), 3.0)


def predict(model, positive, negative, free_bytes=None, options=None, x=X, sigma=SIGMA):
    groups = [
        prepare_conditions(model, positive, x, "positive"),
        prepare_conditions(model, negative, x, "negative"),
    ]
    return CondBatcher(model, free_bytes).predict(groups, x, sigma, options or {})


def test_both_prompts_share_one_call_when_memory_allows():
    model = FakeModel()
    predict(model, prompt(1), prompt(2))
    assert [c["cond_or_uncond"] for c in model.calls] == [[0, 1]]
    assert model.calls[0]["x"].shape == (4, 4, 8, 8)
    assert model.calls[0]["sigmas"].tolist() == [3.0] * 4


def test_prompts_go_one_after_the_other_when_memory_is_short():
    model = FakeModel(bytes_per_image=100)
    predict(model, prompt(1), prompt(2), free_bytes=300)
    assert [c["cond_or_uncond"] for c in model.calls] == [[0], [1]]


@pytest.mark.parametrize("tokens", [(77, 77), (77, 154), (154, 231)])
def test_batched_equals_sequential_for_prompts_of_any_length(tokens):
    positive, negative = prompt(1, tokens[0]), prompt(2, tokens[1])
    together = predict(FakeModel(), positive, negative)
    apart = predict(FakeModel(bytes_per_image=100), positive, negative, free_bytes=1)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1  # the prompts do say different things


class Prompted(FakeModel):
    """Sees an image prompt beside the text, as a UNet's cross-attention does."""

    def __init__(self, **options):
        super().__init__(**options)
        numbers = torch.Generator().manual_seed(5)
        conds = tuple([torch.randn(1, 3, 8, generator=numbers) for _ in "kv"] for _ in range(2))
        picture = ImagePrompt(conds, stop=1.0, weight=100.0)
        self.replace = ImagePromptAttention(SimpleNamespace(current_step=0.0), [picture]).at(0)

    def apply_model(self, x, t, c_crossattn, transformer_options, **_):
        self.calls.append(transformer_options)
        q = x.permute(0, 2, 3, 1).flatten(1, 2) @ self.query
        out = self.replace(q, c_crossattn, c_crossattn, {"n_heads": 1, **transformer_options})
        return (out @ self.value).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("tokens", [(7, 7), (14, 7), (14, 21)])
def test_batched_equals_sequential_with_an_image_prompt_too(tokens):
    positive, negative = prompt(1, tokens[0]), prompt(2, tokens[1])
    model = Prompted()
    together = predict(model, positive, negative)
    apart = predict(Prompted(bytes_per_image=100), positive, negative, free_bytes=1)
    (call,) = model.calls
    assert [n * tokens[i] for i, n in enumerate(call["text_repeats"])] == [math.lcm(*tokens)] * 2
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_contexts_of_very_different_length_are_not_padded():
    model = FakeModel()
    predict(model, prompt(1, 77), prompt(2, 77 * 5))
    assert [c["context"].shape[1] for c in model.calls] == [77, 385]


def test_an_out_of_memory_error_makes_the_calls_smaller_and_keeps_them_so():
    class Small(FakeModel):
        def apply_model(self, x, *args, **kwargs):
            if x.shape[0] > 2:
                self.calls.append({"cond_or_uncond": "refused"})
                raise torch.OutOfMemoryError("too large")
            return super().apply_model(x, *args, **kwargs)

    model = Small()
    groups = [prepare_conditions(model, prompt(s), X, "positive") for s in (1, 2)]
    batcher = CondBatcher(model)
    batcher.predict(groups, X, SIGMA, {})
    batcher.predict(groups, X, SIGMA, {})
    assert [c["cond_or_uncond"] for c in model.calls] == ["refused", [0], [1], [0], [1]]


def test_an_out_of_memory_error_of_a_single_condition_is_the_caller_s():
    class Full(FakeModel):
        def apply_model(self, *args, **kwargs):
            raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        predict(Full(), prompt(1), [])


def test_the_network_gets_the_same_context_object_at_each_step():
    model = FakeModel()
    groups = [prepare_conditions(model, prompt(s), X, "positive") for s in (1, 2)]
    batcher = CondBatcher(model)
    for _ in range(2):
        batcher.predict(groups, X, SIGMA, {})
    assert model.calls[0]["context"] is model.calls[1]["context"]


def test_a_network_in_inference_mode_can_know_a_context_by_its_version():
    model = FakeModel()
    with torch.inference_mode():
        predict(model, prompt(1), prompt(2))
        predict(model, prompt(1), [])
    assert not any(call["context"].is_inference() for call in model.calls)


def test_the_caller_s_options_are_handed_on_but_never_written_to():
    model, options = FakeModel(), {"transformer_options": {"patches": {"a": 1}}}
    predict(model, prompt(1), prompt(2), options=options)
    assert model.calls[0]["patches"] == {"a": 1}
    assert options == {"transformer_options": {"patches": {"a": 1}}}


def test_a_model_function_wrapper_stands_in_for_the_network():
    seen = {}

    def wrapper(apply_model, call):
        seen.update(call)
        return apply_model(call["input"], call["timestep"], **call["c"]) * 2

    plain = predict(FakeModel(), prompt(1), prompt(2))
    doubled = predict(
        FakeModel(), prompt(1), prompt(2), options={"model_function_wrapper": wrapper}
    )
    torch.testing.assert_close(doubled[0], plain[0] * 2)
    assert seen["cond_or_uncond"] == [0, 1]


class Control:
    """Adds a number, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def get_control(self, x, t, cond, batched_number):
        self.asked.append((x.shape[0], t.tolist(), set(cond), batched_number))
        return 0.5


def test_a_control_acts_on_its_own_condition_only():
    control = Control()
    model = FakeModel()
    predict(model, prompt(1, control=control), prompt(2))
    assert [(c["cond_or_uncond"], c["control"]) for c in model.calls] == [([0], 0.5), ([1], None)]
    assert control.asked == [(2, [3.0, 3.0], {"c_crossattn", "y", "transformer_options"}, 1)]


def test_conditions_with_the_same_control_share_a_call():
    control, model = Control(), FakeModel()
    predict(model, prompt(1, control=control), prompt(2, control=control))
    assert [c["cond_or_uncond"] for c in model.calls] == [[0, 1]]
    assert control.asked[0][3] == 2


@pytest.mark.parametrize(("percent", "counts"), [(0.0, False), (0.25, True), (0.5, False)])
def test_a_timed_condition_counts_in_its_window_only(percent, counts):
    model = FakeModel()
    sigma = model.model_sampling.percent_to_sigma(percent + 0.01)
    timed = prompt(1, start_percent=0.2, end_percent=0.4)
    positive, _ = predict(model, timed, prompt(2), sigma=torch.full((2,), sigma))
    assert (positive is not None) == counts


def test_masks_share_the_picture_between_conditions():
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    model = FakeModel()
    both = prompt(1, mask=left) + prompt(2, mask=1 - left)
    mixed, _ = predict(model, both, [])
    first, second = (predict(model, prompt(s), [])[0] for s in (1, 2))
    torch.testing.assert_close(mixed[..., :3], first[..., :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[..., 5:], second[..., 5:], rtol=0, atol=1e-5)


def test_strength_weighs_conditions_that_meet():
    model = FakeModel()
    mixed, _ = predict(model, prompt(1, strength=3.0) + prompt(2), [])
    first, second = (predict(model, prompt(s), [])[0] for s in (1, 2))
    torch.testing.assert_close(mixed, first * 0.75 + second * 0.25, rtol=0, atol=1e-5)


def test_an_area_sees_and_paints_its_part_of_the_picture():
    model = FakeModel()
    mixed, _ = predict(model, prompt(1) + prompt(2, area=(4, 8, 2, 0)), [])
    whole, _ = predict(model, prompt(1), [])
    assert torch.equal(mixed[:, :, :2], whole[:, :, :2])
    assert not torch.allclose(mixed[:, :, 2:6], whole[:, :, 2:6])
    assert (2, 4, 4, 8) in [tuple(c["x"].shape) for c in model.calls]
