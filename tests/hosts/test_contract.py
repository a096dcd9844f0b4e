"""What every host must keep: the same UNet weights give the same taps, and no call leaves a trace.

A new host is a line in `HOSTS`, built on the weights of `small.unet()`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import small, webuis
from torch import nn

from ldznet.contracts import Host
from ldznet.errors import InputError, TapError
from ldznet.hosts import open_host
from ldznet.hosts.tiny import TinyHost
from ldznet.schedule import add_noise
from ldznet.shapes import tap_size
from ldznet.taps import extract_taps
from ldznet.tinyworld import world


def tiny_host() -> Host:
    """A fresh tiny world around the UNet that all these hosts share."""
    with torch.random.fork_rng(devices=[]):
        models = world.fresh()._replace(unet=small.unet())
    for model in models[:3]:
        model.eval()
    return TinyHost(models)


HOSTS: dict[str, Callable[[Path], Host]] = {
    "tiny": lambda folder: tiny_host(),
    "single file": lambda folder: small.host(folder),
    "diffusers folder": lambda folder: open_host(small.diffusers_folder(folder)),
    "pipeline": lambda folder: open_host(small.pipeline(folder)),
    "A1111": lambda folder: open_host(webuis.a1111()),
    "Forge": lambda folder: open_host(webuis.forge()),
    "reForge": lambda folder: open_host(webuis.reforge()),
}
LATENT_SIZES = {"square": (1, 16, 16), "wide, batch 2": (2, 16, 24), "odd": (2, 13, 18), "narrow": (1, 8, 64)}
BLOCKS = ("input.8", "middle.0", "output.3", "output.4", "output.5")


@pytest.fixture(scope="module", params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return HOSTS[request.param](tmp_path_factory.mktemp("host"))


def inputs(host: Host, batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    latents = torch.randn(batch, 4, height, width, generator=generator)
    timesteps = torch.arange(batch) * 100 + 300
    return latents, timesteps, torch.randn(batch, 77, host.context_dim, generator=generator)


def models_of(host: Host) -> dict[str, nn.Module]:
    """Every module that a host holds, by itself, in a tuple or among its texts."""
    parts = {**vars(host), **(vars(host._texts) if hasattr(host, "_texts") else {})}
    for name, value in list(parts.items()):
        if isinstance(value, tuple):
            parts |= {f"{name}.{i}": part for i, part in enumerate(value)}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def state_of(host: Host) -> dict[str, Any]:
    """Everything about a host's modules that a call might change."""
    found: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
    for part, model in models_of(host).items():
        for name, module in model.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
            found[f"{part}.{name}"] = (module.training, hooks)
        for name, tensor in model.state_dict().items():
            found[f"{part}.{name}="] = (tensor.device, tensor.dtype, tensor.double().sum().item())
    return found


def test_is_a_host(host: Host) -> None:
    assert isinstance(host, Host)
    assert host.specs == small.UNET.tap_specs()
    assert host.context_dim == small.UNET.context_dim


@pytest.mark.parametrize("case", LATENT_SIZES)
def test_same_weights_give_the_same_taps(host: Host, case: str) -> None:
    given = inputs(host, *LATENT_SIZES[case])
    unet = small.unet()
    expected = extract_taps(unet, list(host.specs), lambda: unet(*given))
    got = host.extract(*given, list(host.specs))
    assert list(got) == list(expected)
    for block, spec in host.specs.items():
        assert got[block].shape[1:] == (spec.channels, *tap_size(LATENT_SIZES[case][1:], spec.stride))
        torch.testing.assert_close(got[block], expected[block], atol=1e-4, rtol=0)


def test_rows_of_a_batch_do_not_mix(host: Host) -> None:
    latents, timesteps, context = inputs(host, 2, 16, 16)
    both = host.extract(latents, timesteps, context, BLOCKS)
    second = host.extract(latents[1:], timesteps[1:], context[1:], BLOCKS)
    for block in BLOCKS:
        torch.testing.assert_close(both[block][1:], second[block], atol=1e-4, rtol=0)


def test_only_the_blocks_asked_for(host: Host) -> None:
    given = inputs(host, 1, 16, 16)
    taps = host.extract(*given, ["output.4", "input.8"])
    assert set(taps) == {"output.4", "input.8"}
    assert not any(tap.requires_grad for tap in taps.values())
    assert host.extract(*given, []) == {}
    with pytest.raises(TapError, match=r"got input\.3"):
        host.extract(*given, ["input.3"])


def test_no_call_leaves_a_trace(host: Host) -> None:
    before = state_of(host)
    latents, timesteps, context = inputs(host, 1, 16, 16)
    host.decode_latents(host.encode_image(torch.zeros(1, 3, 64, 64)))
    host.encode_text(["a red star"])
    host.add_noise(latents, latents, timesteps)
    host.extract(latents, timesteps, context, BLOCKS)
    assert state_of(host) == before


def test_no_failure_leaves_a_trace(host: Host) -> None:
    before = state_of(host)
    latents, timesteps, context = inputs(host, 1, 16, 16)
    with pytest.raises(RuntimeError):
        host.extract(latents, timesteps, context[..., :-1], BLOCKS)  # a context that does not fit breaks the pass
    with pytest.raises(InputError, match="b 4 h w"):
        host.extract(latents[:, :3], timesteps, context, BLOCKS)
    assert state_of(host) == before
    assert set(host.extract(latents, timesteps, context, BLOCKS)) == set(BLOCKS)


def test_training_flags_stay(host: Host) -> None:
    before = state_of(host)
    flags = [(module, module.training) for model in models_of(host).values() for module in model.modules()]
    try:
        for module, _ in flags[::2]:
            module.training = True
        mixed = state_of(host)
        host.extract(*inputs(host, 1, 16, 16), BLOCKS)
        host.encode_text(["grass"])
        host.encode_image(torch.zeros(1, 3, 64, 64))
        assert state_of(host) == mixed
    finally:
        for module, training in flags:
            module.training = training
    assert state_of(host) == before


def test_noise_follows_the_schedule(host: Host) -> None:
    latents, timesteps, _ = inputs(host, 2, 8, 8)
    noise = latents.flip(0)
    for steps in (timesteps, torch.tensor([0, 999])):
        torch.testing.assert_close(
            host.add_noise(latents, noise, steps), add_noise(latents, noise, steps), atol=1e-5, rtol=0
        )


def test_images_and_latents(host: Host) -> None:
    pixels = torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = host.encode_image(pixels)
    assert latents.shape == (2, 4, 8, 5)
    torch.testing.assert_close(host.encode_image(pixels), latents, atol=0, rtol=0)  # the mode: no noise in it
    assert host.decode_latents(latents).shape == pixels.shape
    with pytest.raises(InputError, match="multiples of 8"):
        host.encode_image(pixels[..., :-1])


def test_text(host: Host) -> None:
    context = host.encode_text(["a red star", "grass"])
    assert context.shape == (2, 77, host.context_dim)
    torch.testing.assert_close(host.encode_text(["grass"])[0], context[1], atol=1e-5, rtol=0)
    assert host.encode_text(["red " * 75]).shape == (1, 77, host.context_dim)
    assert host.encode_text([""]).shape == (1, 77, host.context_dim)
    with pytest.raises(InputError, match="got 80"):
        host.encode_text(["grass", "red " * 80])


def test_passes_in_threads_are_those_of_one_after_the_other(host: Host) -> None:
    """Each with latents and training flags of its own: nobody sees another's pass, and the flags come back."""
    sizes = [(1, 16, 16), (1, 16, 24), (2, 16, 16), (1, 24, 16)]
    given = [inputs(host, *size) for size in sizes]

    def taps(one: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Any:
        return host.extract(*one, BLOCKS)

    alone = list(map(taps, given))
    for model in models_of(host).values():
        model.train()
    try:
        with ThreadPoolExecutor(len(given)) as pool:
            together = [found for _ in range(3) for found in pool.map(taps, given)]
        assert all(m.training for model in models_of(host).values() for m in model.modules())
    finally:
        for model in models_of(host).values():
            model.eval()
    for found, expected in zip(together, alone * 3, strict=True):
        for block in BLOCKS:
            torch.testing.assert_close(found[block], expected[block], atol=1e-5, rtol=1e-4)
