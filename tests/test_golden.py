"""Our networks on formula weights against what the reference implementation computed on the same weights.

tests/golden/README.md says how the tensors were made. Tolerances are largest absolute differences, float32 on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from golden import formula
from safetensors.torch import load_file
from torch import nn

from ldznet.config import HeadConfig, UNetConfig
from ldznet.models import UNet, build_head
from ldznet.models import layers as layers_module
from ldznet.models.layers import AttentionPool2d, BasicTransformerBlock
from ldznet.schedule import add_noise
from ldznet.taps import reading, spatial_transformers

GOLDEN = Path(__file__).parent / "golden"
CASES = {"square": (1, 48, 48, 400), "wide": (1, 16, 32, 300), "tall": (2, 24, 16, 499)}
TINY = UNetConfig(model_channels=32, context_dim=64)
TOLERANCE = {"taps": 1e-4, "eps": 1e-4, "features": 1e-3, "logits": 5e-6}
HEAD_CONFIG = HeadConfig(unet=UNetConfig(model_channels=32, context_dim=64, out_channels=1), host_unet=TINY)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "ldznet_tiny_golden.safetensors")


def with_formula_weights(model: nn.Module, keys: dict[str, list[int]]) -> nn.Module:
    state = {name: torch.from_numpy(formula.parameter(name, tuple(shape))) for name, shape in keys.items()}
    model.load_state_dict(state, strict=True)
    return model.eval()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return with_formula_weights(UNet(TINY), json.loads((GOLDEN / "ldznet_tiny_keys.json").read_text())["unet"])


@pytest.fixture(scope="module")
def head() -> nn.Module:
    keys = json.loads((GOLDEN / "ldznet_tiny_keys.json").read_text())["head"]
    return with_formula_weights(build_head(HEAD_CONFIG), keys)


def run(case: str, unet: nn.Module, head: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that the golden file holds of one case, from our code."""
    batch, height, width, t = CASES[case]
    inputs = {k: torch.from_numpy(v) for k, v in formula.inputs(case, batch, height, width, 64).items()}
    timesteps = torch.full((batch,), t)
    noisy = add_noise(inputs["z"], inputs["noise"], timesteps)
    blocks = list(spatial_transformers(unet))
    with torch.no_grad():
        with reading(unet, blocks, end_early=False) as taps:
            eps = unet(noisy, timesteps, inputs["context"])
        zeros = torch.zeros(batch, dtype=torch.int64)
        features = head.features(inputs["z"], zeros, inputs["context"], taps)
        logits = head(inputs["z"], zeros, inputs["context"], taps)
    return {"noisy": noisy, "eps": eps, "taps": list(taps.values()), "features": features, "logits": logits}


def differences(case: str, golden: dict[str, torch.Tensor], got: dict) -> dict[str, float]:
    def gap(name: str, tensor: torch.Tensor) -> float:
        return (golden[f"{case}.{name}"] - tensor).abs().max().item()

    taps = [gap(f"tap{i:02d}", got["taps"][i]) for i in range(5, 10)]
    for i, tap in enumerate(got["taps"]):
        taps += [gap(f"tap{i:02d}.mean_hw", tap.mean((2, 3))), gap(f"tap{i:02d}.std_hw", tap.std((2, 3)))]
    gaps = {name: gap(name, got[name]) for name in ("eps", "features", "logits")}
    return {"noisy": gap("noisy_latents", got["noisy"]), "taps": max(taps), **gaps}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, golden, unet, head) -> None:
    gaps = differences(case, golden, run(case, unet, head))
    assert gaps["noisy"] < 1e-6
    assert all(gaps[name] <= limit for name, limit in TOLERANCE.items()), gaps


def no_mean_token(pool: AttentionPool2d, tap: torch.Tensor) -> torch.Tensor:
    x = tap.flatten(2) + pool.position(tuple(tap.shape[2:]))[:, 1:]
    q, k, v = pool.qkv_proj(x).unflatten(1, (3, pool.heads, -1)).transpose(-1, -2).unbind(1)
    out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
    return pool.c_proj(out).transpose(1, 2)


def no_position(pool: AttentionPool2d, size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(pool.positional_embedding.shape[0], size[0] * size[1] + 1)


def bilinear(real):
    return lambda x, size, mode, **kwargs: real(x, size=size, mode="bilinear" if mode == "bicubic" else mode, **kwargs)


def attn3_first(block: BasicTransformerBlock, x, context, pooled=None):
    h = block.norm1(x)
    x = x + block.attn1(h, h)
    if pooled is not None:
        x = x + block.attn3(block.norm_sd(x), pooled)
    x = x + block.attn2(block.norm2(x), context)
    return x + block.ff(block.norm3(x))


def attn3_last(block: BasicTransformerBlock, x, context, pooled=None):
    h = block.norm1(x)
    x = x + block.attn1(h, h)
    x = x + block.attn2(block.norm2(x), context)
    x = x + block.ff(block.norm3(x))
    return x if pooled is None else x + block.attn3(block.norm_sd(x), pooled)


VARIANTS = {
    "no mean token": lambda m, head: m.setattr(AttentionPool2d, "forward", no_mean_token),
    "no positional embedding": lambda m, head: m.setattr(AttentionPool2d, "position", no_position),
    "bilinear re-gridding": lambda m, head: m.setattr(
        layers_module.F, "interpolate", bilinear(nn.functional.interpolate)
    ),
    "attn3 before attn2": lambda m, head: m.setattr(BasicTransformerBlock, "forward", attn3_first),
    "attn3 after the feed-forward": lambda m, head: m.setattr(BasicTransformerBlock, "forward", attn3_last),
    "taps 7 and 8 swapped": lambda m, head: m.setattr(
        head,
        "features",
        lambda z, t, c, taps, real=head.features: real(
            z, t, c, {**taps, "output.3": taps["output.4"], "output.4": taps["output.3"]}
        ),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_has_teeth(variant: str, golden, unet, head, monkeypatch) -> None:
    """Each wrong variant must fail at least one case, so that the golden test proves what it claims."""
    VARIANTS[variant](monkeypatch, head)
    worst = {case: differences(case, golden, run(case, unet, head)) for case in CASES}
    failed = [c for c, gaps in worst.items() if any(gaps[name] > limit for name, limit in TOLERANCE.items())]
    assert failed, worst


def test_full_size_head_has_the_published_names_and_shapes() -> None:
    expected = json.loads((GOLDEN / "ldznet_full_head_keys.json").read_text())
    with torch.device("meta"):
        state = build_head(HeadConfig()).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected
    assert sum(t.numel() for t in state.values()) == pytest.approx(925.88e6, rel=1e-4)
