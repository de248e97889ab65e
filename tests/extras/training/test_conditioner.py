"""Conditions: the order that SDXL's files expect, and what is left out at random."""

import pytest
import torch

from extras.training.builtin_model import TOY, make_text_encoders
from extras.training.caption_tokens import caption_ids, framed, used_ids
from extras.training.conditioner import AbstractEmbModel, GeneralConditioner
from extras.training.stage_diffusion import sdxl_conditioner
from extras.training.window import conditions
from ldm_patched.modules.model_base import SDXL as SDXLModel
from ldm_patched.modules.sdxl_clip import SDXLTokenizer
from ldm_patched.modules.supported_models import SDXL


class Row(AbstractEmbModel):
    """Passes its input on."""

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return make_text_encoders(TOY, used_ids())


def test_the_vector_is_the_one_that_the_engine_makes(encoders):
    conditioner = sdxl_conditioner(*encoders, 0.0)
    tokens = torch.from_numpy(framed(caption_ids("a red house"))).long()[None]
    numbers = torch.tensor([[192, 320, 7, 9, 160, 288]])
    with torch.no_grad():
        found = conditioner(conditions(tokens, numbers, torch.device("cpu")))
        hidden_l, _ = encoders[0](tokens)
        hidden_g, pooled = encoders[1](conditions(tokens, numbers, tokens.device)["tokens_g"])
        model = SDXLModel(SDXL(TOY.unet_config()), device="meta")
        model.embedder.to("cpu")
        y = model.encode_adm(
            pooled_output=pooled, height=192, width=320, crop_h=7, crop_w=9,
            target_height=160, target_width=288,
        )  # fmt: skip
    torch.testing.assert_close(found["vector"], y)
    torch.testing.assert_close(found["crossattn"], torch.cat([hidden_l, hidden_g], dim=-1))


def test_token_rows_are_those_of_the_engines_tokenizers():
    for text in ("", "a cat", "two small red boats on the sea at sunset, watercolor"):
        tokens = torch.from_numpy(framed(caption_ids(text))).long()[None]
        rows = conditions(tokens, torch.zeros(1, 6), torch.device("cpu"))
        theirs = SDXLTokenizer().tokenize_with_weights(text)
        assert rows["tokens_l"][0].tolist() == [token for token, _ in theirs["l"][0]]
        assert rows["tokens_g"][0].tolist() == [token for token, _ in theirs["g"][0]]


def test_outputs_join_by_their_number_of_axes():
    conditioner = GeneralConditioner([Row("a"), Row("b"), Row("c"), Row("d"), Row("e")])
    batch = {
        "a": torch.ones(2, 3), "b": torch.ones(2, 5), "c": torch.ones(2, 7, 4),
        "d": torch.ones(2, 7, 6), "e": torch.ones(2, 4, 8, 8),
    }  # fmt: skip
    shapes = {key: tuple(value.shape) for key, value in conditioner(batch).items()}
    assert shapes == {"vector": (2, 8), "crossattn": (2, 7, 10), "concat": (2, 4, 8, 8)}


def test_each_embedder_is_left_out_at_its_own_rate():
    torch.manual_seed(0)
    conditioner = GeneralConditioner([Row("a", ucg_rate=0.25), Row("b")])
    found = conditioner({"a": torch.ones(4000, 2), "b": torch.ones(4000, 1)})["vector"]
    assert float(found[:, 0].mean()) == pytest.approx(0.75, abs=0.03)
    assert bool((found[:, 0] == found[:, 1]).all())  # a whole embedding, not single numbers
    assert bool((found[:, 2] == 1).all())


def test_a_stand_in_takes_the_place_of_the_input():
    torch.manual_seed(0)
    row = Row("a", ucg_rate=0.5, legacy_ucg_val=torch.tensor([-1.0, -2.0]))
    found = GeneralConditioner([row])({"a": torch.ones(1000, 2)})["vector"]
    share = (found[:, 0] == -1).float().mean()
    assert 0.45 < float(share) < 0.55
    assert bool(((found[:, 1] == -2) == (found[:, 0] == -1)).all())


def test_unconditional_conditioning_leaves_out_nothing_and_restores_the_rates():
    conditioner = GeneralConditioner([Row("a", ucg_rate=1.0), Row("b", ucg_rate=0.5)])
    batch = {"a": torch.ones(3, 1), "b": torch.ones(3, 1)}
    cond, uncond = conditioner.get_unconditional_conditioning(
        batch, {"a": torch.zeros(3, 1), "b": torch.ones(3, 1)}, force_uc_zero_embeddings=["b"]
    )
    assert bool((cond["vector"] == 1).all())
    assert bool((uncond["vector"] == 0).all())
    assert [embedder.ucg_rate for embedder in conditioner.embedders] == [1.0, 0.5]


def test_frozen_encoders_get_no_gradient(encoders):
    tokens = torch.from_numpy(framed([])).long()[None]
    batch = conditions(tokens, torch.zeros(1, 6), torch.device("cpu"))
    trained = sdxl_conditioner(*encoders, 0.0)
    assert trained(batch)["crossattn"].requires_grad
    for embedder in trained.embedders:
        embedder.is_trainable = False
    assert not trained(batch)["crossattn"].requires_grad
