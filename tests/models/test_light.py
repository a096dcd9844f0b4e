"""The light head: what its inputs do, what stands in for a missing one, and what it brings to which grid."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldznet.config import UNetConfig
from ldznet.errors import InputError
from ldznet.models import LightHead, build_head
from ldznet.tinyworld import world
from ldznet.train.tiers import tier_config

CONFIG = world.head_config("light")


@pytest.fixture(scope="module")
def head() -> LightHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_head(CONFIG).eval().requires_grad_(False)
        made.missing.normal_()
    assert isinstance(made, LightHead)
    return made


def inputs(size: tuple[int, int] = (16, 16)) -> tuple:
    generator = torch.Generator().manual_seed(1)
    latents, context = torch.randn(2, 4, *size, generator=generator), torch.randn(2, 77, 64, generator=generator)
    taps = {
        block: torch.randn(2, spec.channels, size[0] // spec.stride, size[1] // spec.stride, generator=generator)
        for block, spec in CONFIG.tap_specs.items()
    }
    return latents, torch.zeros(2, dtype=torch.int64), context, taps


def test_every_input_matters_for_its_own_row(head: LightHead) -> None:
    latents, zeros, context, taps = inputs()
    before = head(latents, zeros, context, taps)
    assert before.shape == (2, 1, 128, 128)
    changes = [(latents.clone(), context, taps), (latents, context.clone(), taps)]
    changes += [(latents, context, {**taps, block: taps[block].clone()}) for block in taps]
    places = [changes[0][0], changes[1][1], *(changes[2 + i][2][block] for i, block in enumerate(taps))]
    for (z, c, t), place in zip(changes, places, strict=True):
        place[0] += torch.randn(place[0].shape, generator=torch.Generator().manual_seed(2))
        after = head(z, zeros, c, t)
        assert (after[0] - before[0]).abs().max() > 1e-3
        torch.testing.assert_close(after[1], before[1], atol=1e-5, rtol=0)


def test_what_is_left_out_is_a_constant(head: LightHead) -> None:
    latents, zeros, context, taps = inputs()
    other = torch.randn(latents.shape), {block: torch.randn(tap.shape) for block, tap in taps.items()}
    for kept, same_z, same_taps in (([0.0, 1.0], False, True), ([1.0, 0.0], True, False)):
        row = torch.tensor([kept, kept])
        one = head.features(latents, zeros, context, taps, row)
        two = head.features(latents if same_z else other[0], zeros, context, taps if same_taps else other[1], row)
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    none = head.features(latents, zeros, context, None)
    torch.testing.assert_close(none, head.features(latents, zeros, context, taps, torch.tensor([[1.0, 0], [1, 0]])))


def test_a_tap_goes_to_the_grid_of_its_stride() -> None:
    """With one layer that says where its input lies, a tap of 8 x 8 reaches the coarse map alone."""
    head = build_head(CONFIG).eval().requires_grad_(False)
    assert isinstance(head, LightHead)
    seen = {}
    head._decoded = lambda layers, h, context: seen.setdefault(id(layers), h)  # type: ignore[method-assign]
    latents, zeros, context, taps = inputs()
    head.features(latents, zeros, context, taps)
    before, seen = dict(seen), {}
    head._decoded = lambda layers, h, context: seen.setdefault(id(layers), h)  # type: ignore[method-assign]
    head.features(latents, zeros, context, {**taps, "output.11": taps["output.11"] + 1 + torch.rand(16, 16)})
    assert torch.equal(seen[id(head.coarse_layers)], before[id(head.coarse_layers)])
    assert not torch.equal(seen[id(head.fine_layers)], before[id(head.fine_layers)])


@pytest.mark.parametrize("size", [(24, 16), (18, 34)])
def test_other_sizes(size: tuple[int, int], head: LightHead) -> None:
    assert head(*inputs(size)).shape == (2, 1, 8 * size[0], 8 * size[1])


def test_presence_has_a_logit_a_row(head: LightHead) -> None:
    presence = head.masks_and_presence(*inputs())[1]
    assert presence is not None
    assert presence.shape == (2,)
    assert build_head(dataclasses.replace(CONFIG, has_presence=False)).presence_head is None


def test_a_missing_tap_is_named(head: LightHead) -> None:
    latents, zeros, context, taps = inputs()
    del taps["output.8"]
    with pytest.raises(InputError, match=r"a tap for block output\.8"):
        head(latents, zeros, context, taps)


def test_over_sd1_it_costs_less_than_six_billion_multiply_adds() -> None:
    """At 384 px, without text encoder and feature pass, as docs/cost.md has it."""
    config = tier_config("light", "sd1", UNetConfig(), 384)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        taps = {b: torch.zeros(1, s.channels, 48 // s.stride, 48 // s.stride) for b, s in config.tap_specs.items()}
        given = torch.zeros(1, 4, 48, 48), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, 768)
        build_head(config).masks_and_presence(*given, taps)
    assert counter.get_total_flops() / 2e9 == pytest.approx(5.63, abs=0.01)
