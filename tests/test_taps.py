"""Taps: names, what is kept, and that nothing stays behind in the model, whatever stops the pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldznet.config import PUBLISHED_BLOCKS, UNetConfig
from ldznet.contracts import Block
from ldznet.errors import TapError
from ldznet.models import UNet
from ldznet.taps import block_of, extract_taps, reading, spatial_transformers

TINY = UNetConfig(model_channels=32, channel_mult=(1, 2, 2, 2), context_dim=64)

BLOCK_NAMES = {
    "input_blocks.1.1": "input.1",
    "model.diffusion_model.input_blocks.8.1": "input.8",
    "middle_block.1": "middle.0",
    "model.diffusion_model.middle_block.1": "middle.0",
    "output_blocks.11.1": "output.11",
    "down_blocks.0.attentions.0": "input.1",
    "down_blocks.0.attentions.1": "input.2",
    "down_blocks.1.attentions.0": "input.4",
    "unet.down_blocks.2.attentions.1": "input.8",
    "mid_block.attentions.0": "middle.0",
    "up_blocks.0.attentions.2": "output.2",  # SDXL has a transformer on its lowest level
    "up_blocks.1.attentions.0": "output.3",
    "up_blocks.1.attentions.2": "output.5",
    "up_blocks.3.attentions.2": "output.11",
}
OTHER_NAMES = (
    "",
    "input_blocks.4",
    "input_blocks.4.1.transformer_blocks.9",  # SDXL's are ten deep
    "middle_block.1.transformer_blocks.0.attn2",
    "down_blocks.1.attentions.0.transformer_blocks.1",
    "mid_block.attentions.1",
    "mid_block.resnets.0",
    "my_input_blocks.4.1",
    "transformer_blocks.3",
)


class SpatialTransformer(nn.Module):
    """A stand-in under the class name by which taps are found; what it gives back is up to the test."""

    def __init__(self, form=lambda x: x) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: torch.Tensor):
        return self.form(x + 1)


class Line(nn.Module):
    """A UNet of three transformers in a row. `between` sees and may change the hidden state after each."""

    def __init__(self, between=lambda x: x, form=lambda x: x) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), SpatialTransformer(form)]) for _ in range(3)])
        self.between, self.runs = between, [0, 0, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.input_blocks):
            self.runs[i] += 1
            out = block[1](x)
            x = self.between(out if isinstance(out, torch.Tensor) else x)
        return x


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_block_of(name: str) -> None:
    assert str(block_of(name)) == BLOCK_NAMES[name]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_block_of_any_other_name(name: str) -> None:
    assert block_of(name) is None


def test_block_of_counts_the_layers_of_a_level() -> None:
    assert block_of("down_blocks.2.attentions.0", layers_per_level=1) == Block("input", 5)
    assert block_of("up_blocks.1.attentions.1", layers_per_level=3) == Block("output", 5)


def test_spatial_transformers_are_named_and_in_order() -> None:
    with torch.device("meta"):
        assert list(spatial_transformers(UNet(TINY))) == list(TINY.tap_specs())
    assert spatial_transformers(nn.Linear(2, 2)) == {}


def test_only_the_blocks_asked_for_and_no_further() -> None:
    line = Line()
    taps = extract_taps(line, ["input.1"], lambda: line(torch.zeros(1)))
    assert taps == {"input.1": torch.tensor([2.0])}
    assert line.runs == [1, 1, 0]
    assert extract_taps(line, [], lambda: line(torch.zeros(1))) == {}
    assert line.runs == [1, 1, 0]


def test_order_and_repetition_do_not_matter() -> None:
    line = Line()
    taps = extract_taps(line, ["input.2", "input.0", "input.2"], lambda: line(torch.zeros(1)))
    assert {block: tap.item() for block, tap in taps.items()} == {"input.0": 1, "input.2": 3}


def test_a_tap_is_a_copy() -> None:
    """A ControlNet adds to the hidden state in place, after the hook."""
    line = Line(between=lambda x: x.add_(100))
    taps = extract_taps(line, ["input.0", "input.2"], lambda: line(torch.zeros(1)))
    assert taps["input.0"].item() == 1


@pytest.mark.parametrize("form", [lambda x: (x,), lambda x: [x, None], lambda x: type("Output", (), {"sample": x})()])
def test_a_hidden_state_in_any_wrapping(form) -> None:
    line = Line(form=form)
    assert extract_taps(line, ["input.0"], lambda: line(torch.zeros(1)))["input.0"].item() == 1


def test_reading_on_lets_the_pass_end() -> None:
    line = Line()
    with reading(line, ["input.0"], end_early=False) as taps:
        out = line(torch.zeros(1))
    assert out.item() == 3
    assert taps["input.0"].item() == 1
    assert hooks_of(line) == 0


def test_unknown_block() -> None:
    line = Line()
    with pytest.raises(TapError, match=r"input\.0, input\.1, input\.2.*got output\.5"):
        extract_taps(line, ["input.0", "output.5"], lambda: line(torch.zeros(1)))
    assert line.runs == [0, 0, 0]
    with pytest.raises(TapError, match="none"):
        extract_taps(nn.Linear(2, 2), ["input.0"], lambda: None)


def test_a_block_that_never_fired() -> None:
    line = Line()
    with pytest.raises(TapError, match=r"input\.1, got none"):
        extract_taps(line, ["input.1"], lambda: line.input_blocks[0][1](torch.zeros(1)))
    assert hooks_of(line) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_stays_when_the_pass_is_stopped(error: type[BaseException]) -> None:
    def stop(x: torch.Tensor) -> torch.Tensor:
        raise error

    line = Line(between=stop)
    with pytest.raises(error):
        extract_taps(line, ["input.2"], lambda: line(torch.zeros(1)))
    assert hooks_of(line) == 0
    line.between = nn.Identity()
    assert line(torch.zeros(1)).item() == 3


def test_no_handler_of_a_host_can_keep_the_pass_going() -> None:
    line = Line()

    def run() -> None:
        try:
            line(torch.zeros(1))
        except Exception:
            line(torch.zeros(1))

    extract_taps(line, ["input.0"], run)
    assert line.runs == [1, 0, 0]


def test_a_pass_that_was_ended_early_leaves_the_model_usable() -> None:
    torch.manual_seed(0)
    unet = UNet(TINY).eval()
    given = torch.randn(1, 4, 8, 16), torch.tensor([400]), torch.randn(1, 77, 64)
    with torch.no_grad():
        before = unet(*given)
        first = extract_taps(unet, PUBLISHED_BLOCKS, lambda: unet(*given))
        second = extract_taps(unet, PUBLISHED_BLOCKS, lambda: unet(*given))
        torch.testing.assert_close(unet(*given), before, atol=0, rtol=0)
    assert all(torch.equal(first[block], second[block]) for block in PUBLISHED_BLOCKS)
    assert hooks_of(unet) == 0


def test_taps_carry_no_gradient() -> None:
    unet = UNet(TINY)
    given = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 77, 64)
    taps = extract_taps(unet, ["input.1"], lambda: unet(*given))
    assert not taps["input.1"].requires_grad


def test_the_truncated_pass_costs_half() -> None:
    """Multiply-adds at full size and 384 px, as docs/cost.md has them: 211.5 and 109.3 G, 52 %."""
    with torch.device("meta"):
        unet = UNet(UNetConfig())
        given = torch.zeros(1, 4, 48, 48), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 77, 768)
    full, truncated = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad(), full:
        unet(*given)
    with truncated:
        extract_taps(unet, PUBLISHED_BLOCKS, lambda: unet(*given))
    giga = [counter.get_total_flops() / 2e9 for counter in (full, truncated)]
    assert giga == pytest.approx([211.5, 109.3], rel=1e-2)
    assert giga[1] / giga[0] <= 0.53
