"""What is read is what the host computes: equal to diffusers' own explicit attention, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention import unets
from einops import rearrange
from torch import Tensor, nn

from ldznet.attention import reading
from ldznet.attention.config import CONFIGS, blocks_at
from ldznet.attention.reading import probabilities, reading_attention
from ldznet.contracts import TapSpec
from ldznet.errors import TapError
from ldznet.models import UNet
from ldznet.taps import spatial_transformers
from ldznet.tinyworld.world import UNET

pytest.importorskip("diffusers")

from diffusers.models.attention_processor import AttnProcessor

from ldznet.hosts.hf_diffusers import tap_specs


def explicit(unet: Any, given: dict[str, Any]) -> dict[str, Tensor]:
    """Head means b n m of every attention layer, by module name, as diffusers' own explicit processor computes them."""
    seen: dict[str, Tensor] = {}

    def spied(name: str, module: Any, scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            weights = scores(*args, **kwargs)
            seen[name] = weights.unflatten(0, (-1, module.heads)).mean(dim=1)
            return weights

        return call

    before = unet.attn_processors
    unet.set_attn_processor(AttnProcessor())
    modules = {name: m for name, m in unet.named_modules() if name.endswith(("attn1", "attn2"))}
    for name, module in modules.items():
        module.get_attention_scores = spied(name, module, module.get_attention_scores)
    with torch.no_grad():
        unet(**given)
    for module in modules.values():
        del module.get_attention_scores
    unet.set_attn_processor(before)
    return seen


def read(unet: Any, given: dict[str, Any], cross: list[str], self_blocks: list[str], **kwargs: Any) -> Any:
    size = tuple(given["sample"].shape[2:])
    with torch.no_grad(), reading_attention(unet, cross, self_blocks, tap_specs(unet), size, **kwargs) as attention:
        unet(**given)
    return attention


def require_those_of_the_explicit_processor(architecture: str) -> None:
    """The golden test: every block's maps, of both kinds, are diffusers' own."""
    unet, given = unets.unet(architecture), unets.inputs(architecture, batch=2)
    expected = explicit(unet, given)
    transformers = spatial_transformers(unet)
    attention = read(unet, given, list(transformers), list(transformers))
    names = {module: name for name, module in unet.named_modules()}
    assert len(transformers) == (11 if architecture == "sdxl" else 16)
    for block, transformer in transformers.items():
        inner = [f"{names[transformer]}.transformer_blocks.{i}" for i in range(len(transformer.transformer_blocks))]
        cross = torch.stack([expected[f"{name}.attn2"] for name in inner]).mean(dim=0)
        itself = torch.stack([expected[f"{name}.attn1"] for name in inner]).mean(dim=0)
        read_cross = attention.cross[block].flatten(2).transpose(1, 2)
        torch.testing.assert_close(read_cross, cross, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(attention.self_attention[block], itself, atol=1e-6, rtol=1e-4)
        stride = tap_specs(unet)[block].stride
        assert attention.cross[block].shape == (2, 77, 16 // stride, 24 // stride)


@pytest.mark.parametrize("architecture", unets.ARCHITECTURES)
def test_maps_are_those_of_the_explicit_processor(architecture: str) -> None:
    require_those_of_the_explicit_processor(architecture)


def _wrong(heads_first: bool = False, scaled: bool = True, over_pixels: bool = False, mean_first: bool = False) -> Any:
    """`reading.probabilities` with one mistake."""

    def probabilities(query: Tensor, key: Tensor, heads: int) -> Tensor:
        pattern = "b n (c heads) -> b heads n c" if heads_first else "b n (heads c) -> b heads n c"
        q, k = (rearrange(x, pattern, heads=heads) for x in (query, key))
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scaled else 1)
        if mean_first:
            return scores.mean(dim=1).softmax(dim=-1)
        return scores.softmax(dim=2 if over_pixels else 3).mean(dim=1)

    return probabilities


WRONG = {
    "heads cut the other way": _wrong(heads_first=True),
    "no scale": _wrong(scaled=False),
    "softmax over pixels": _wrong(over_pixels=True),
    "mean over heads before the softmax": _wrong(mean_first=True),
    "one head": lambda query, key, heads: probabilities(query, key, 1),
    "keys for queries": lambda query, key, heads: probabilities(key, query, heads).transpose(1, 2),
}


@pytest.mark.parametrize("architecture", unets.ARCHITECTURES)
@pytest.mark.parametrize("mistake", WRONG)
def test_the_golden_test_has_teeth(monkeypatch: pytest.MonkeyPatch, architecture: str, mistake: str) -> None:
    monkeypatch.setattr(reading, "probabilities", WRONG[mistake])
    with pytest.raises(AssertionError):
        require_those_of_the_explicit_processor(architecture)


def test_it_tells_the_last_layer_from_the_mean_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading._Mean, "add", lambda self, block, layer, maps: maps)
    require_those_of_the_explicit_processor("sd1")  # one layer a block
    with pytest.raises(AssertionError):
        require_those_of_the_explicit_processor("sdxl")


@pytest.mark.parametrize("architecture", unets.ARCHITECTURES)
def test_the_published_places(architecture: str) -> None:
    """SD's and SDXL's blocks as iSeg and GoCA name them, by downsampling."""
    config, specs = CONFIGS[architecture], tap_specs(unets.unet(architecture))
    found = [blocks_at(places, specs) for places in (config.coarse, config.fine, config.self_attention)]
    sd = [("input.7", "input.8", "output.3", "output.4", "output.5"), ("input.5", "output.6", "output.7")]
    xl = [("input.7", "input.8", "middle.0", "output.0", "output.1", "output.2")]
    xl += [("input.4", "input.5", "output.3", "output.4", "output.5"), ("output.3", "output.4", "output.5")]
    assert found == (xl if architecture == "sdxl" else [*sd, ("output.10",)])


def test_our_own_unet_reads_the_same() -> None:
    """Under the LDM's names, and the tiny world's 16 x 16 latents resolve to blocks as well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet(UNET).eval()
    given = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([100])
    context = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1))
    config = CONFIGS["tiny"]
    cross, self_blocks = (
        blocks_at(p, UNET.tap_specs()) for p in ((*config.coarse, *config.fine), config.self_attention)
    )
    inputs: dict[str, Tensor] = {}
    attn = unet.get_submodule("output_blocks.10.1.transformer_blocks.0.attn1")
    handle = attn.register_forward_pre_hook(lambda module, args: inputs.update(x=args[0]))
    with torch.no_grad(), reading_attention(unet, cross, self_blocks, UNET.tap_specs(), (16, 16)) as attention:
        unet(*given, context)
    handle.remove()
    q, k = (part(inputs["x"]).unflatten(2, (4, -1)).transpose(1, 2) for part in (attn.to_q, attn.to_k))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    torch.testing.assert_close(attention.self_attention["output.10"], scores.softmax(-1).mean(1), atol=1e-6, rtol=1e-4)
    for maps in attention.cross.values():
        torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))


@pytest.mark.parametrize("most", [1, 100, 2**24])
def test_chunks_do_not_matter(most: int) -> None:
    q, k = (torch.randn(2, n, 32, generator=torch.Generator().manual_seed(n)) for n in (13, 7))
    whole = probabilities(q, k, heads=4)
    torch.testing.assert_close(probabilities(q, k, heads=4, most_scores=most), whole)
    torch.testing.assert_close(whole.sum(dim=2), torch.ones(2, 13))
    assert probabilities(q.half(), k.half(), heads=4).dtype == torch.float32


def test_the_pass_ends_with_the_last_keys() -> None:
    unet, given = unets.unet("sd1"), unets.inputs("sd1")
    runs: list[str] = []
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: runs.append(name))
        for name, module in unet.named_modules()
    ]
    try:
        read(unet, given, ["input.5"], ["input.4"])
    finally:
        for handle in handles:
            handle.remove()
    last = "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k"
    assert runs[-1] == last or runs[-2] == last
    assert not any(name.startswith(("mid_block", "up_blocks")) for name in runs)


def test_the_output_of_a_pass_that_is_let_run_is_unchanged() -> None:
    unet, given = unets.unet("sd1"), unets.inputs("sd1")
    with torch.no_grad():
        expected = unet(**given).sample
        size = (16, 24)
        with reading_attention(unet, ["input.5"], ["output.10"], tap_specs(unet), size, end_early=False) as attention:
            first = unet(**given).sample
            kept = attention.cross["input.5"]
            again = unet(**{**given, "timestep": torch.tensor([900])}).sample
    assert torch.equal(first, expected)
    assert not torch.equal(again, expected)
    assert not torch.equal(attention.cross["input.5"], kept)  # a later run replaces what was read
    assert unets.hooks_of(unet) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_stays_when_the_pass_is_stopped(error: type[BaseException]) -> None:
    unet, given = unets.unet("sd1"), unets.inputs("sd1")

    def stop(*args: Any) -> None:
        raise error

    handle = unet.mid_block.register_forward_hook(stop)
    with pytest.raises(error):
        read(unet, given, ["input.5"], ["output.10"])
    handle.remove()
    assert unets.hooks_of(unet) == 0
    assert set(read(unet, given, ["input.5"], ["output.10"]).self_attention) == {"output.10"}


def test_blocks_that_cannot_be_read() -> None:
    unet, given = unets.unet("sd1"), unets.inputs("sd1")
    with pytest.raises(TapError, match=r"got input\.3"):
        read(unet, given, ["input.3"], [])
    unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k = None
    with pytest.raises(TapError, match=r"to_k in attn2 of input\.1"):
        read(unet, given, ["input.1"], [])
    assert unets.hooks_of(unet) == 0


def test_merged_tokens_are_no_pixels() -> None:
    unet, given = unets.unet("sd1"), unets.inputs("sd1")
    specs = {**tap_specs(unet), "output.10": TapSpec("output.10", 32, 2)}
    reading = reading_attention(unet, [], ["output.10"], specs, (16, 24))
    with pytest.raises(TapError, match=r"8 x 12 tokens in output\.10.*got 384"), torch.no_grad(), reading:
        unet(**given)
    assert unets.hooks_of(unet) == 0


def test_fused_projections_are_said_to_be_missing() -> None:
    """`fuse_qkv_projections` leaves `to_q` without a call."""
    unet, given = unets.unet("sd1"), unets.inputs("sd1")
    unet.fuse_qkv_projections()
    with pytest.raises(TapError, match=r"attn1\.to_q.*never ran"):
        read(unet, given, [], ["output.10"])


def test_a_stranger_without_transformer_blocks() -> None:
    class SpatialTransformer(nn.Module):
        pass

    odd = nn.Module()
    odd.input_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), SpatialTransformer()])])
    reading = reading_attention(odd, ["input.0"], [], {"input.0": TapSpec("input.0", 4, 1)}, (4, 4))
    with pytest.raises(TapError, match=r"transformer blocks in input\.0"), reading:
        pass


@pytest.mark.parametrize("second", [None, 12], ids=["never ran", "merged tokens"])
def test_somebody_else_s_pass_shows_whole_blocks_or_nothing_of_them(second: int | None) -> None:
    """Of a block with several layers, none counts where one cannot be read; and nothing is raised into that pass."""
    unet = unets.unet("sdxl")
    layers = spatial_transformers(unet)["input.4"].transformer_blocks
    assert len(layers) == 2
    with torch.no_grad(), reading_attention(unet, [], ["input.4"], tap_specs(unet), (16, 24), end_early=False) as read:
        for layer, tokens in zip(layers, (96, second), strict=True):
            if tokens is not None:
                hidden = torch.randn(1, tokens, layer.attn1.to_q.in_features)
                layer.attn1.to_k(hidden)
                layer.attn1.to_q(hidden)
    assert read.self_attention == {}
    assert unets.hooks_of(unet) == 0
