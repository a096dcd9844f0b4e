"""The delta head: nothing where it holds nothing, the head that it was made from where it holds all, never a part."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from ldznet import Predictor, load_head, tinyworld
from ldznet.checkpoints import save_head
from ldznet.checkpoints.load import WEIGHTS, head_info
from ldznet.checkpoints.shrink import shrink
from ldznet.contracts import Conditioning
from ldznet.errors import CheckpointError, HostError, InputError, TapError
from ldznet.hosts.tiny import TinyHost
from ldznet.models import DeltaHead, UNet, build_head
from ldznet.models.delta import clean, layer_key, layers_of, ldm_name, matrices_of
from ldznet.models.trained import CapturedTaps
from ldznet.tinyworld import world
from ldznet.train.head import start_from
from ldznet.train.recipe import seeded

PHRASES = ["a purple cat", "grass"]
HEAD, BASE = WEIGHTS / "ldznet.safetensors", WEIGHTS / "unet.safetensors"


@pytest.fixture(scope="module")
def host() -> TinyHost:
    return TinyHost.load()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """*tiny* at full rank, in float32."""
    path = tmp_path_factory.mktemp("delta") / "whole.safetensors"
    shrink(HEAD, path, BASE, rank=4096, dtype=torch.float32)
    return path


def empty(blocks: tuple[str, ...] = ("input.8", "middle.0")) -> DeltaHead:
    """A delta head that changes nothing: what it learned is zero, and attn3 says nothing."""
    config = dataclasses.replace(world.head_config("ldznet"), network="delta", blocks=blocks)
    head = build_head(dataclasses.replace(config, ranks=(2,) * len(matrices_of(config.unet))))
    assert isinstance(head, DeltaHead)
    for addition in head.additions.values():
        torch.nn.init.zeros_(addition.attn3.to_out[0].weight)
        torch.nn.init.zeros_(addition.attn3.to_out[0].bias)
    return head.eval().requires_grad_(False)


def logits(host: TinyHost, head: Any) -> torch.Tensor:
    predictor = Predictor(host, head)
    predictor.set_image(tinyworld.scene(22, "photo").image)
    return predictor.predict(PHRASES).logits


@torch.no_grad()
def passed(host: TinyHost, head: DeltaHead | None) -> list[torch.Tensor]:
    """The noise that the UNet predicts and what its blocks input.8 and middle.0 give, with the head's changes or
    without."""
    unet = host.models.unet
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given = latents, torch.tensor([0, 0]), host.encode_text(PHRASES)
    found = dict(host.extract(*given, ["input.8", "middle.0"]))
    if head is None:
        return [unet(*given), *found.values()]
    places = (unet.input_blocks[8][1], unet.middle_block[1])  # type: ignore[index]
    kept: list[torch.Tensor] = []
    handles = [place.register_forward_hook(lambda module, args, out: kept.append(out.clone())) for place in places]
    try:
        with head.applied(unet, found):
            noise = unet(*given)
    finally:
        for handle in handles:
            handle.remove()
    return [noise, *kept]


def test_one_that_holds_nothing_changes_nothing(host: TinyHost) -> None:
    """To the bit: the noise, and the hidden states at the very blocks that attn3 stands in."""
    for changed, plain in zip(passed(host, empty()), passed(host, None), strict=True):
        assert torch.equal(changed, plain)


@pytest.mark.parametrize("part", ["changes.input_blocks_4_0_in_layers_2.bias", "changes.time_embed_0.bias"])
def test_one_that_holds_something_changes_something(host: TinyHost, part: str) -> None:
    head = empty()
    dict(head.named_parameters())[part].data.fill_(0.1)
    assert not torch.equal(passed(host, head)[0], passed(host, None)[0])


def test_at_full_rank_it_is_the_head_that_it_was_made_from(host: TinyHost, whole: Path) -> None:
    expected, got = logits(host, load_head("tiny")), logits(host, load_head(whole))
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)
    assert expected.amax() - expected.amin() > 10


def test_without_blocks_it_is_a_znet(host: TinyHost, tmp_path: Path) -> None:
    save_head(load_head("tiny-znet"), tmp_path / "znet.safetensors", {})
    shrink(tmp_path / "znet.safetensors", tmp_path / "delta.safetensors", BASE, rank=4096, dtype=torch.float32)
    head = load_head(tmp_path / "delta.safetensors")
    assert head.head_config.tap_specs == {}
    torch.testing.assert_close(logits(host, head), logits(host, load_head("tiny-znet")), atol=1e-3, rtol=0)


def test_attn3_stands_in_the_last_of_several_blocks() -> None:
    """Of transformers two blocks deep, as SDXL's are deeper: with no changes and an LD-ZNet's own attn3, its masks."""
    deep = dataclasses.replace(world.UNET, transformer_depth=(2,))
    config = dataclasses.replace(
        world.head_config("ldznet"), unet=dataclasses.replace(deep, out_channels=1), host_unet=deep
    )
    with seeded(0):
        host = TinyHost(world.fresh()._replace(unet=UNet(deep)))
        whole = build_head(config)
    start_from(whole, host.unet)
    delta = build_head(dataclasses.replace(config, network="delta", ranks=(0,) * len(matrices_of(config.unet))))
    state = whole.state_dict()
    for name in delta.state_dict():
        group, _, rest = name.partition(".")
        if group == "additions":
            key, _, part = rest.partition(".")
            block = next(ldm_name(block) for block in config.blocks if layer_key(block) == key)
            own = f"{block}.{part}" if part.startswith("attentionpool2D") else f"{block}.transformer_blocks.1.{part}"
            delta.state_dict()[name].copy_(state[own])
        elif group != "changes":
            delta.state_dict()[name].copy_(state[name])
    latents, text = torch.randn(2, 4, 16, 16), Conditioning(host.encode_text(PHRASES))
    with torch.no_grad():
        taps = whole.extracted(host, latents, text, 200, 0)
        expected, _ = whole.masks_over(host, latents, text, taps)
        got, _ = delta.masks_over(host, latents, text, taps)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.01


def test_captured_taps_spare_the_first_pass(host: TinyHost, whole: Path) -> None:
    head = load_head(whole)
    latents = host.encode_image(torch.zeros(1, 3, 128, 128))
    given = {"timestep": 200, "seed": 0}
    text = Conditioning(host.encode_text(PHRASES[:1]))
    taps = CapturedTaps(head.extracted(host, latents, text, 200, 0))
    passes = 0

    def count(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1

    handle = host.models.unet.register_forward_pre_hook(count)
    captured, _ = head.segment(host, latents, PHRASES[:1], captured=taps, **given)
    assert passes == 1
    own, _ = head.segment(host, latents, PHRASES[:1], **given)
    handle.remove()
    assert passes == 3
    assert torch.equal(captured, own)


def test_the_host_s_unet_gets_the_clean_latents_themselves(host: TinyHost) -> None:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy, timesteps = clean(host, latents)
    torch.testing.assert_close(noisy, latents, atol=1e-6, rtol=0)
    assert timesteps.tolist() == [0]


def test_a_layer_that_does_not_run_is_named(host: TinyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    embed: Any = host.models.unet.time_embed
    weights = [embed[0].weight, embed[0].bias]
    monkeypatch.setattr(embed, "forward", lambda x: embed[2](embed[1](torch.nn.functional.linear(x, *weights))))
    with pytest.raises(TapError, match=r"time_embed.0 to run once in the head's pass, got 0 times \(1 of"):
        passed(host, empty())


def test_whatever_happens_the_host_is_as_it_was(host: TinyHost) -> None:
    head, unet = empty(), host.models.unet
    before = logits(host, load_head("tiny"))
    with pytest.raises(KeyError), head.applied(unet, {}):
        unet(torch.zeros(1, 4, 16, 16), torch.tensor([0]), host.encode_text(PHRASES[:1]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert torch.equal(logits(host, load_head("tiny")), before)


def test_a_host_that_cannot_run_again_is_refused(host: TinyHost) -> None:
    class Bare:
        family, specs, context_dim = host.family, host.specs, host.context_dim

    with pytest.raises(HostError, match="no `observe`"):
        empty().fitted_to(Bare())  # type: ignore[arg-type]


def test_a_file_carries_it_there_and_back(tmp_path: Path) -> None:
    head = empty()
    save_head(head, tmp_path / "head.safetensors", {"licence": "none"})
    again = load_head(tmp_path / "head.safetensors", dtype=torch.float16)
    assert again.head_config == head.head_config
    assert head_info(tmp_path / "head.safetensors").config.ranks == head.head_config.ranks
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half())


def test_layers_are_those_before_the_last_hidden_state() -> None:
    layers = layers_of(world.UNET)
    own = {name.rpartition(".")[0] for name, _ in TinyHost.load().models.unet.named_parameters()}
    assert own - set(layers) == {"out.0", "out.2"}
    assert set(matrices_of(world.UNET)) < set(layers)


def test_its_conditioning_is_the_phrase(host: TinyHost, whole: Path) -> None:
    """Another text, another mask: the second pass reads the phrase as well as the first."""
    head = load_head(whole)
    assert isinstance(head, DeltaHead)
    latents = host.encode_image(torch.zeros(1, 3, 128, 128))
    text, other = map(Conditioning, host.encode_text(PHRASES).split(1))
    taps = head.extracted(host, latents, text, 200, 0)
    first, second = (head.masks_over(host, latents, given, taps)[0] for given in (text, other))
    assert (first - second).abs().max() > 0.1


class TestShrink:
    def test_a_known_change_of_low_rank_comes_back(self, tmp_path: Path) -> None:
        """A head made of the base and changes of rank 3: those, to 1e-3 of them, at rank 3, and less at rank 1."""
        base = {name: t.float() for name, t in TinyHost.load().models.unet.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        head = build_head(world.head_config("znet"))
        state = {name: t.clone() for name, t in head.state_dict().items()}
        changes = {}
        for layer, shapes in layers_of(world.UNET).items():
            weight = f"{layer}.weight"
            if len(shapes["weight"]) > 1:
                left = torch.randn(shapes["weight"][0], 3, generator=generator)
                right = torch.randn(3, shapes["weight"][1:].numel(), generator=generator)
                changes[weight] = (left @ right).reshape(shapes["weight"]) * 0.01
                state[weight] = base[weight] + changes[weight]
        head.load_state_dict(state)
        save_head(head, tmp_path / "head.safetensors", {}, torch.float32)
        found = shrink(tmp_path / "head.safetensors", tmp_path / "3.safetensors", BASE, rank=3, dtype=torch.float32)
        assert found.energy == pytest.approx(1, abs=1e-6)
        small: Any = load_head(tmp_path / "3.safetensors")
        for name, change in changes.items():
            product = small.changes[name.removesuffix(".weight").replace(".", "_")]
            got = (product.up @ product.down.flatten(1)).reshape(change.shape)
            assert (got - change).norm() / change.norm() < 1e-3, name
        assert shrink(tmp_path / "head.safetensors", tmp_path / "1.safetensors", BASE, rank=1).energy < 0.8

    def test_a_size_is_kept_and_filled_with_what_matters_most(self, tmp_path: Path) -> None:
        found = shrink(HEAD, tmp_path / "small.safetensors", BASE, megabytes=3.0)
        size = (tmp_path / "small.safetensors").stat().st_size
        assert 2.9e6 < found.size <= 3.0e6
        assert size - found.size < 200_000  # names and metadata
        even = shrink(HEAD, tmp_path / "even.safetensors", BASE, rank=13)
        assert even.size == pytest.approx(found.size, rel=0.05)
        assert found.energy > even.energy + 0.01
        assert set(found.energies) > {"time", "input.0", "middle", "output.11"}

    def test_the_base_is_never_written_over(self, tmp_path: Path) -> None:
        base = tmp_path / "base.safetensors"
        base.write_bytes(BASE.read_bytes())
        with pytest.raises(InputError, match="Expected another file than the source"):
            shrink(HEAD, base, base, rank=1, force=True)
        assert base.read_bytes() == BASE.read_bytes()

    @pytest.mark.parametrize(
        ("source", "base", "setting", "message"),
        [
            (HEAD, BASE, {}, "a rank of at least 1 or a size in MB"),
            (HEAD, BASE, {"rank": 0}, "a rank of at least 1"),
            (HEAD, BASE, {"megabytes": 0.1}, "at least 0.7 MB"),
            (WEIGHTS / "light.safetensors", BASE, {"rank": 1}, "got a head of the network light"),
            (HEAD, WEIGHTS / "vae.safetensors", {"rank": 1}, "got something else, with tensors such as decoder"),
            (BASE, BASE, {"rank": 1}, "seems to be a Stable Diffusion UNet"),
        ],
    )
    def test_what_cannot_be_is_said(
        self, tmp_path: Path, source: Path, base: Path, setting: dict[str, Any], message: str
    ) -> None:
        with pytest.raises((InputError, CheckpointError), match=message):
            shrink(source, tmp_path / "small.safetensors", base, **setting)
        assert list(tmp_path.iterdir()) == []
