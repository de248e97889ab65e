"""CLIP image encoders against transformers, in both layouts, and the real file's names."""

import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import clip_vision
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from tests.support.counting_transfer import CountingTransfer
from tests.support.engine_report import agree

transformers = pytest.importorskip("transformers")
POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True))
TOWERS = {  # width, heads and activation, as published
    "ViT-B": (768, 12, "quick_gelu"),
    "ViT-L": (1024, 16, "quick_gelu"),
    "ViT-H": (1280, 16, "gelu"),
    "ViT-bigG": (1664, 16, "gelu"),
}


def oracle(width: int, heads: int, activation: str):
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        image_size=28,
        patch_size=14,
        projection_dim=48,
        hidden_act=activation,
    )
    torch.manual_seed(0)
    model = transformers.CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # the library's own start is too small to tell much
        parameter.normal_(0.0, parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3)
    return model


def openclip_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as OpenCLIP writes them, by its rules."""
    parts = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    tops = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
        "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
        "vision_model.post_layernorm.weight": "visual.ln_post.weight",
        "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    }
    out = {"visual.proj": weights["visual_projection.weight"].t().contiguous()}
    out |= {theirs: weights[ours] for ours, theirs in tops.items()}
    layers = {name.split(".")[3] for name in weights if ".layers." in name}
    for n in layers:
        old, new = f"vision_model.encoder.layers.{n}", f"visual.transformer.resblocks.{n}"
        for ours, theirs in parts.items():
            for kind in ("weight", "bias"):
                out[f"{new}.{theirs}.{kind}"] = weights[f"{old}.{ours}.{kind}"]
        for kind in ("weight", "bias"):
            joint = [weights[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"{new}.attn.in_proj_{kind}"] = torch.cat(joint)
    return out


@pytest.mark.parametrize("layout", ["transformers", "openclip"])
@pytest.mark.parametrize("name", TOWERS)
def test_outputs_are_those_of_transformers(tmp_path, layout, name):
    """Two layers of each tower's width, in which heads and activation are its own."""
    theirs = oracle(*TOWERS[name])
    weights = {name: w.contiguous() for name, w in theirs.state_dict().items()}
    weights.pop("vision_model.embeddings.position_ids", None)
    whole = {"logit_scale": torch.ones(()), "text_projection.weight": torch.ones(2, 2)}
    path = tmp_path / "tower.safetensors"
    save_file((openclip_layout(weights) if layout == "openclip" else weights) | whole, path)
    ours = clip_vision.load(path, POLICY)
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    out = ours.encode(pixels)
    expected = theirs(pixels, output_hidden_states=True)
    assert expected.image_embeds.std() > 0.1
    for mine, right in (
        (out.last_hidden_state, expected.last_hidden_state),
        (out.penultimate_hidden_states, expected.hidden_states[-2]),
        (out.image_embeds, expected.image_embeds),
    ):
        words = f"{name}, {layout} layout"
        agree("image encoder", words, "transformers CLIPVisionModel", mine, right, 1e-4)


def vit_h_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released clip_vision_vit_h file, by rule."""
    root, width = "vision_model", 1280
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, 3, 14, 14),
        f"{root}.embeddings.position_embedding.weight": (257, width),
        "visual_projection.weight": (1024, width),
    }
    norms = [f"{root}.pre_layrnorm", f"{root}.post_layernorm"]
    linear = {}
    for n in range(32):
        layer = f"{root}.encoder.layers.{n}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linear |= {f"{layer}.self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")}
        linear |= {f"{layer}.mlp.fc1": (5120, width), f"{layer}.mlp.fc2": (width, 5120)}
    shapes |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def test_the_real_file_s_names_fill_vit_h_exactly():
    shapes = vit_h_shapes()
    config = clip_vision.detect_config(shapes)
    assert config is not None
    assert (config.name, config.layers, config.heads, config.image_size) == ("ViT-H", 32, 16, 224)
    with torch.device("meta"):
        tower = clip_vision.ClipVisionTower(config)
    assert {name: tuple(w.shape) for name, w in tower.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("width", "layers", "projection", "name", "heads"),
    [(1024, 24, 768, "ViT-L", 16), (1664, 48, 1280, "ViT-bigG", 16), (768, 12, 512, "ViT-B", 12)],
)
def test_towers_are_told_by_their_width(width, layers, projection, name, heads):
    norms = {f"visual.transformer.resblocks.{n}.ln_1.weight": (width,) for n in range(layers)}
    config = clip_vision.detect_config(
        norms
        | {
            "visual.conv1.weight": (width, 3, 14, 14),
            "visual.positional_embedding": (257, width),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": (4 * width, width),
            "visual.proj": (width, projection),
        }
    )
    assert config is not None
    assert (config.name, config.heads, config.layers) == (name, heads, layers)
    assert config.projection == projection


def test_a_picture_of_another_size_is_refused():
    config = clip_vision.ClipVisionConfig(
        width=64, layers=1, patch=14, positions=5, intermediate=64, projection=8
    )
    with torch.device("meta"):
        tower = clip_vision.ClipVisionTower(config)
    with pytest.raises(ValueError, match=r"\(B, 3, 28, 28\)"):
        tower(torch.zeros(1, 3, 29, 28, device="meta"))


def test_an_image_encoder_goes_by_the_budget_and_makes_room(tmp_path):
    theirs = oracle(128, 2, "quick_gelu")
    weights = {name: w.contiguous() for name, w in theirs.state_dict().items()}
    weights.pop("vision_model.embeddings.position_ids", None)
    save_file(weights, tmp_path / "tower.safetensors")
    transfer = CountingTransfer()
    policy = DevicePolicy(DeviceFlags(all_in_fp32=True), Hardware(kind="cpu"))
    policy.text_encoder_device = torch.device("cuda")  # what only the budget looks at here
    policy.budget = MemoryBudget("normal", transfer.free, transfer=transfer, reserve=0)
    tower = clip_vision.load(tmp_path / "tower.safetensors", policy)
    assert tower.patcher.offload_device == torch.device("cpu")
    tower.patcher.patch_model("cuda")
    (line,) = policy.budget.account()
    assert line.device_bytes == line.size == transfer.used > 0
    policy.budget.make_room(None)
    assert transfer.used == 0
