"""What every head must keep: shapes at any size, gradients, half precision, compiling. It runs over HEADS, but for
the one that runs the host's network: test_delta.py has that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldznet.config import HeadConfig, UNetConfig
from ldznet.errors import CheckpointError, InputError
from ldznet.models import HEADS, LDZNet, build_head
from ldznet.shapes import tap_size

SMALL: dict[str, Any] = {"model_channels": 32, "channel_mult": (1, 1, 2), "num_res_blocks": 1, "num_heads": 4}
OWN = [name for name in HEADS if name != "delta"]
UNET = UNetConfig(**SMALL, context_dim=16, attention_downsampling=(2, 4))
MASK_HEADS = {"published": (1,), "wide": (16, 8, 4)}
SIZES = {"square": (8, 8), "odd": (5, 7), "wide": (2, 13), "one": (1, 1)}


def config(network: str, mask_head: str = "wide", presence: bool = True) -> HeadConfig:
    return HeadConfig(
        network=network,
        unet=UNetConfig(**{**vars(UNET), "out_channels": 1}),
        host_unet=UNET,
        blocks=("input.3", "middle.0", "output.2"),
        latent_grid=(6, 6),
        mask_channels=MASK_HEADS[mask_head],
        has_presence=presence,
    )


def head_of(network: str, **kwargs: Any) -> LDZNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_head(config(network, **kwargs)).eval()


def inputs(head: LDZNet, size: tuple[int, int], batch: int = 2) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """What a head of these tests takes for latents of `size`: its input, timesteps, context, taps."""
    generator = torch.Generator().manual_seed(size[0] * 100 + size[1])

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    given = noise(3, size[0] * 8, size[1] * 8) if head.head_config.takes_pixels else noise(4, *size)
    specs = head.head_config.tap_specs.values()
    taps = {spec.block: noise(spec.channels, *tap_size(size, spec.stride)) for spec in specs}
    return given, torch.zeros(batch, dtype=torch.int64), noise(77, 16), taps


def cast(given: Any, dtype: torch.dtype) -> Any:
    latents, timesteps, context, taps = given
    return latents.to(dtype), timesteps, context.to(dtype), {block: tap.to(dtype) for block, tap in taps.items()}


@pytest.fixture(params=OWN)
def head(request: pytest.FixtureRequest) -> LDZNet:
    return head_of(request.param)


@pytest.mark.parametrize("mask_head", MASK_HEADS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("network", OWN)
def test_a_logit_for_every_pixel(network: str, size: str, mask_head: str) -> None:
    head = head_of(network, mask_head=mask_head)
    given = inputs(head, SIZES[size])
    with torch.no_grad():
        logits, presence = head.masks_and_presence(*given)
        assert torch.equal(head(*given), logits)
        assert torch.equal(head.presence(*given), presence)
    assert logits.shape == (2, 1, SIZES[size][0] * 8, SIZES[size][1] * 8)
    assert presence.shape == (2,)
    assert logits.isfinite().all()


def test_presence_is_none_where_nothing_was_trained_for_it() -> None:
    head = head_of("znet", presence=False)
    assert head.presence(*inputs(head, (4, 4))) is None


def test_rows_do_not_mix(head: LDZNet) -> None:
    latents, timesteps, context, taps = inputs(head, (6, 4))
    second = latents[1:], timesteps[1:], context[1:], {block: tap[1:] for block, tap in taps.items()}
    with torch.no_grad():
        torch.testing.assert_close(head(latents, timesteps, context, taps)[1:], head(*second), atol=1e-5, rtol=0)


def test_every_input_matters(head: LDZNet) -> None:
    latents, timesteps, context, taps = inputs(head, (6, 4))
    with torch.no_grad():
        logits = head(latents, timesteps, context, taps)
        others = [head(-latents, timesteps, context, taps), head(latents, timesteps, -context, taps)]
        others += [head(latents, timesteps, context, {**taps, block: -tap}) for block, tap in taps.items()]
    assert all((other - logits).abs().max() > 1e-6 for other in others)


def test_it_is_a_pure_function(head: LDZNet) -> None:
    given = inputs(head, (5, 6))
    before = cast(given, torch.float32), {block: tap.clone() for block, tap in given[3].items()}
    latents = given[0].clone()
    random = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(head(*given), head(*given))
    assert torch.equal(given[0], latents)
    assert list(given[3]) == list(before[1])
    assert all(torch.equal(given[3][block], tap) for block, tap in before[1].items())
    assert torch.equal(torch.get_rng_state(), random)


def test_every_parameter_gets_a_gradient(head: LDZNet) -> None:
    logits, presence = head.masks_and_presence(*inputs(head, (6, 5)))
    (logits.square().mean() + presence.square().mean()).backward()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    idle = [name for name, p in head.named_parameters() if p.ndim > 1 and name != "missing" and not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close(head: LDZNet, dtype: torch.dtype) -> None:
    given = inputs(head, (6, 4))
    with torch.no_grad():
        expected = head(*given)
        try:
            logits = head.to(dtype)(*cast(given, dtype))
        except RuntimeError as error:
            pytest.skip(f"this torch cannot on a CPU: {error}")
    assert logits.dtype == dtype
    tolerance = 0.02 if dtype == torch.float16 else 0.1
    assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("network", [name for name in OWN if name != "rgbnet"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 3, 8, 8), (2, 4, 8)])
def test_wrong_latents_are_refused(network: str, shape: tuple[int, ...]) -> None:
    head = head_of(network)
    _, timesteps, context, taps = inputs(head, (8, 8))
    with pytest.raises(InputError, match=r"Expected latents b 4 h w, got"):
        head(torch.zeros(shape), timesteps, context, taps)


def test_taps_are_needed_in_their_width() -> None:
    head = head_of("ldznet")
    latents, timesteps, context, taps = inputs(head, (8, 8))
    wrong = [(None, "got none"), ({}, "got none"), ({"input.3": taps["input.3"]}, r"middle\.0, got input\.3")]
    wrong += [({**taps, "middle.0": taps["middle.0"][:, 1:]}, r"middle\.0 as b 64 h w, got \(2, 63")]
    for given, words in wrong:
        with pytest.raises(InputError, match=words):
            head(latents, timesteps, context, given)


@pytest.mark.parametrize("shape", [(2, 3, 64, 60), (2, 4, 64, 64), (3, 64, 64), (2, 3, 7, 8)])
def test_rgbnet_takes_pixels_in_multiples_of_8(shape: tuple[int, ...]) -> None:
    head = head_of("rgbnet")
    with pytest.raises(InputError, match="Expected pixels b 3 h w with sides in multiples of 8"):
        head(torch.zeros(shape), *inputs(head, (8, 8))[1:])


def test_rgbnet_needs_no_taps() -> None:
    head = head_of("rgbnet")
    pixels, timesteps, context, _ = inputs(head, (5, 3))
    assert torch.equal(head(pixels, timesteps, context), head(pixels, timesteps, context, {"input.3": pixels}))


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(CheckpointError, match='rgbnet, znet, ldznet, concatenation, light, delta, got "sdxl"'):
        build_head(config("sdxl"))


def compiled_like_eager(module: nn.Module, given: Any) -> None:
    """Through dynamo; not the code generator behind it, which takes minutes on a slow machine.

    In one graph, but on torch 2.1, which breaks it at the dict of taps.
    """
    whole = not torch.__version__.startswith("2.1.")
    with torch.no_grad():
        got = torch.compile(module, backend="eager", fullgraph=whole)(*given)
        torch.testing.assert_close(got, module(*given), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_they_compile_without_a_break() -> None:
    unet = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, num_heads=4, context_dim=16)
    fields = {**vars(config("ldznet")), "unet": unet, "host_unet": unet, "blocks": ("middle.0", "output.1")}
    head = build_head(HeadConfig(**fields)).eval()  # the feature UNet's layers are among its own
    compiled_like_eager(head, inputs(head, (4, 3)))


@pytest.mark.parametrize(("mask_head", "tells"), [("published", False), ("wide", True)])
def test_the_wide_mask_head_sees_the_mean_of_a_channel(mask_head: str, tells: bool) -> None:
    out = head_of("znet", mask_head=mask_head).out
    features = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    raised = features + torch.arange(32.0)[None, :, None, None]
    assert torch.allclose(out(features), out(raised), atol=1e-3) is not tells
