"""Heads over a host's own UNet: they start as nothing, learn through it, leave it as it was, and lie in files."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attention import unets
from hosts import small
from safetensors import safe_open

from ldznet import Predictor, load_head, open_host, tinyworld
from ldznet.checkpoints.load import meta_head
from ldznet.cli import train_head as command
from ldznet.config import HeadConfig, UNetConfig
from ldznet.data import TinyWorldDataset
from ldznet.data.cache import Cache, add_latents, draw, texts_of
from ldznet.errors import HostError, InputError
from ldznet.hosts import hf_diffusers
from ldznet.hosts.tiny import TinyHost
from ldznet.models import DeltaHead, LightHead, build_head
from ldznet.models.delta import clean, layers_of
from ldznet.models.known import unet_config
from ldznet.models.trained import conditioned
from ldznet.parts import OUT
from ldznet.train.engine import TrainConfig
from ldznet.train.negatives import with_absent
from ldznet.train.tiers import Tier, tier_config

TRAINING = TrainConfig(4, 2, 1e-3, warmup=1, log_every=1, graphs=False)
SIDE = 64


ONE_CELL = {
    f"additions.middle_0.{name}"
    for name in ("attn3.to_q.weight", "attn3.to_k.weight", "norm_sd.weight", "norm_sd.bias")
}
"""What has no say in where attention goes, since the taps of the middle block are one cell here."""


SDXL = UNetConfig(channel_mult=(1, 2, 4), attention_downsampling=(2, 4), context_dim=2048, transformer_depth=(0, 2, 10))
FULL_SIZE = {"sd1": UNetConfig(), "sd2": UNetConfig(context_dim=1024), "sdxl": SDXL}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def sd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small Stable Diffusion in diffusers' classes."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sd1":
        return small.host(folder)
    return open_host(unets.pipeline(folder, "sdxl"))


@pytest.fixture(scope="module")
def cache(sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return add_latents(draw(TinyWorldDataset(4, size=SIDE), tmp_path_factory.mktemp("cache")), sd.encode_image)


def config_of(name: str, host: Any) -> HeadConfig:
    return tier_config(name, host.family, unet_config(host.unet), SIDE, rank=2)


def tier(name: str, sd: Any, cache: Cache, folder: Path, **changes: Any) -> Tier:
    return Tier(config_of(name, sd), sd, cache, dataclasses.replace(TRAINING, **changes), folder)


def hooks(host: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host._unet.modules())


@pytest.mark.parametrize(
    ("family", "name", "rank", "megabytes"),
    [
        ("sd1", "light", None, 5.8),
        ("sd1", "one", None, 26.2),
        ("sd1", "two", 16, 29.0),
        ("sd2", "two", None, 41.5),
        ("sdxl", "light", None, 7.6),
        ("sdxl", "two", None, 119.8),
    ],
)
def test_full_sizes(family: str, name: str, rank: int | None, megabytes: float) -> None:
    side = 1024 if family == "sdxl" else 384
    config = tier_config(name, family, FULL_SIZE[family], side, rank)
    assert sum(p.numel() for p in meta_head(config).parameters()) * 2 / 1e6 == pytest.approx(megabytes, abs=0.06)
    assert (config.latent_grid, config.timestep, config.template) == ((side // 8,) * 2, 400, "a photo of a {}.")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_unet_is_told_by_its_layers(family: str) -> None:
    """Of diffusers' classes: of the full one its size, of a small one its layers and taps."""
    unet = unets.unet(family)
    found = unet_config(unet)
    assert found.tap_specs() == hf_diffusers.tap_specs(unet)
    assert found.context_dim == unets.CONTEXT
    layers = sum(shape.numel() for shapes in layers_of(found).values() for shape in shapes.values())
    after = sum(
        p.numel() for name, p in unet.named_parameters() if name.startswith(("conv_norm_out", "conv_out", "add_e"))
    )
    assert layers + after == sum(p.numel() for p in unet.parameters())
    tiny = TinyHost.load().unet
    assert dataclasses.replace(unet_config(tiny), num_heads=4) == tiny.config
    unet.mid_block.resnets[0].conv1.weight.data = torch.zeros(1, 1, 3, 3)
    with pytest.raises(InputError, match=r"differs in 1 layers, first middle_block\.0\.in_layers\.2\. Take a model"):
        unet_config(unet)


def test_the_published_sdxl_has_these_layers() -> None:
    """2,567,463,684 parameters, of which 5,245,440 are of its sizes and 11,524 + 640 after the last hidden state."""
    layers = sum(shape.numel() for shapes in layers_of(SDXL).values() for shape in shapes.values())
    assert layers == 2_567_463_684 - 5_245_440 - 11_524 - 640


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_starts_as_the_host_s_own_unet(name: str, sd: Any, cache: Cache, tmp_path: Path) -> None:
    head = tier(name, sd, cache, tmp_path).head
    assert isinstance(head, DeltaHead)
    latents = cache.latents[:1].float()
    text = conditioned(sd, ["grass"])
    assert bool(text.extras) == (sd.family == "sdxl")
    taps = {block: torch.randn(1, spec.channels, 1, 1) for block, spec in head.head_config.tap_specs.items()}

    @contextlib.contextmanager
    def plain(unet: Any) -> Iterator[dict[str, torch.Tensor]]:
        seen: dict[str, torch.Tensor] = {}
        handle = unet.conv_norm_out.register_forward_pre_hook(lambda module, args: seen.update({OUT: args[0]}))
        yield seen
        handle.remove()

    expected = sd.observe(*clean(sd, latents), text, plain)[OUT]
    got = head.features_over(sd, latents, text, lambda unet: head.applied(unet, taps))
    assert torch.equal(got, expected)


def gradients(it: Tier) -> Mapping[str, torch.Tensor]:
    """Of one batch, with changes that are not nothing."""
    with torch.no_grad():
        for name, parameter in it.head.named_parameters():
            if name.endswith((".up", "to_out.0.weight")):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    batch = it.task.batch(0, 2, torch.Generator().manual_seed(0))
    loss, _ = it.task.loss(it.task.module, (*batch[:-2], torch.ones(2, 2), batch[-1]))
    loss.backward()
    it.task.module.close()
    return {name: p.grad.clone() for name, p in it.head.named_parameters() if p.grad is not None}


def test_gradients_pass_the_host_also_where_it_computes_twice(sd: Any, cache: Cache, tmp_path: Path) -> None:
    """Every part of the head gets one, no weight of the host does; with checkpoints they are the same."""
    once = tier("two", sd, cache, tmp_path / "once")
    expected = gradients(once)
    assert {name for name, _ in once.head.named_parameters()} == set(expected)
    silent = {name for name, gradient in expected.items() if gradient.abs().max() == 0}
    assert silent == (ONE_CELL if sd.family == "sd1" else set())
    assert not any(p.grad is not None or p.requires_grad for p in sd._unet.parameters())
    sd.recompute()
    try:
        again = gradients(tier("two", sd, cache, tmp_path / "again"))
    finally:
        sd._unet.disable_gradient_checkpointing()
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4)
    assert hooks(sd) == 0


def test_hooks_stay_for_the_gradients_and_go_before_the_next_taps(sd: Any, cache: Cache, tmp_path: Path) -> None:
    it = tier("two", sd, cache, tmp_path)
    batch = it.task.batch(0, 2, torch.Generator().manual_seed(0))
    it.task.loss(it.task.module, batch)
    assert hooks(sd) > 100
    it.task.batch(1, 2, torch.Generator().manual_seed(0))
    assert hooks(sd) == 0


@torch.no_grad()
def loss(it: Tier) -> float:
    """Of one batch, always the same."""
    found = it.task.loss(it.task.module, it.task.batch(0, 8, torch.Generator().manual_seed(0)))[0].item()
    it.task.module.close()
    return found


def test_it_learns_and_lies_in_a_file(sd: Any, cache: Cache, tmp_path: Path) -> None:
    name, seen = {"sd1": "two", "sdxl": "light"}[sd.family], []

    def examine(head: Any) -> dict[str, float]:
        predictor = Predictor(sd, head)
        predictor.set_image(tinyworld.scene(0).image[:SIDE, :SIDE])
        seen.append(predictor.predict(["grass"]).logits)
        return {"looked": len(seen)}

    it = tier(name, sd, cache, tmp_path / "run", steps=4, save_every=2, ema=0.5, learning_rate=5e-3)
    before = {key: p.clone() for key, p in it.head.named_parameters()}
    trial = it.run.trial()
    assert trial.seconds > 0
    assert trial.memory > 10**7
    assert all(torch.equal(before[key], p) for key, p in it.head.named_parameters())
    lost = loss(it)
    it.train(tmp_path / "head.safetensors", {"what": "a try"}, examine=examine)
    assert loss(it) < lost - 0.1
    averages = it.run.ema.parameters  # which stand in the file, while the head goes on with its own
    assert not any(torch.equal(p, averages[f"head.{key}"]) for key, p in it.head.named_parameters() if p.ndim > 1)
    assert [row.get("looked") for row in it.run.rows] == [None, 1, None, 2]
    head = load_head(tmp_path / "head.safetensors")
    predictor = Predictor(sd, head)
    predictor.set_image(tinyworld.scene(0).image[:SIDE, :SIDE])
    torch.testing.assert_close(predictor.predict(["grass"]).logits, seen[-1], atol=0.02, rtol=0.01)  # in float16
    assert not torch.equal(seen[0], seen[-1])
    with safe_open(tmp_path / "head.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["what"], about["how"]) == ("a try", "4 steps of 2, 4 images, EMA 0.5, no")
    assert hooks(sd) == 0


def test_a_teacher_s_masks_are_half_of_what_is_learned(sd: Any, cache: Cache, tmp_path: Path) -> None:
    class Teacher(LightHead):
        """Says 0.8 everywhere."""

        def masks_over(self, host: Any, rows: Any, context: Any, taps: Any) -> Any:
            assert set(taps) == set(self.head_config.tap_specs)
            return torch.full((len(rows), 1, SIDE, SIDE), 0.8).logit(), None

    teacher, config = Teacher(config_of("light", sd)), config_of("one", sd)
    plain, taught = (Tier(config, sd, cache, TRAINING, tmp_path / n, t) for n, t in (("a", None), ("b", teacher)))
    labels, masks = (it.task.batch(0, 16, torch.Generator().manual_seed(0))[3] for it in (plain, taught))
    present = labels.amax(dim=(1, 2, 3)) > 0
    assert 0 < present.sum() < 16
    torch.testing.assert_close(masks[present], labels[present] * 0.5 + 0.4)
    assert torch.equal(masks[~present], labels[~present])
    stranger = Teacher(tier_config("light", "sd1", UNetConfig(), SIDE))
    with pytest.raises(HostError, match="context width 768, which this head was trained on, got 64"):
        Tier(config, sd, cache, TRAINING, tmp_path / "c", stranger)


def test_texts_wait_in_files_of_their_own(sd: Any, tmp_path: Path) -> None:
    texts = ["a red star", "grass", "sand"]
    expected, got = texts_of(sd, texts), texts_of(sd, texts, tmp_path, batch=2)
    assert set(got.extras) == set(expected.extras)
    for one, other in zip(
        (got.context, *got.extras.values()), (expected.context, *expected.extras.values()), strict=True
    ):
        torch.testing.assert_close(one.float(), other, atol=4e-3, rtol=1e-3)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert torch.equal(texts_of(sd, texts, tmp_path).context, got.context)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    other = texts_of(sd, ["a blue cat"], tmp_path).context
    torch.testing.assert_close(other.float(), sd.encode_text(["a blue cat"]), atol=4e-3, rtol=1e-3)


def record(*phrases: str, absent: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"phrases": phrases, "absent": list(absent)}


def test_absent_phrases_by_hand() -> None:
    records = [record("a red car", "blue sky"), record("a blue car"), record("sand"), record(absent=("a dog",))]
    found = [set(r["absent"]) for r in with_absent(records)]
    assert found[0] == {"sand"}  # a blue car says nothing that the first does not say
    assert found[1] == {"a red car", "blue sky", "sand"}  # near, near, far
    assert found[2] == {"a red car", "blue sky", "a blue car"}
    assert found[3] == {"a dog"}
    assert with_absent(records) == with_absent(records)


def test_the_command_trains_on_a_dataset(tmp_path: Path) -> None:
    said: list[str] = []
    setting = command.Setting(
        tier="light",
        model="tiny",
        dataset="tinyworld",
        folder=None,
        split="train",
        out=tmp_path / "head.safetensors",
        runs=tmp_path / "runs",
        steps=2,
        batch=2,
        size=SIDE,
        rank=4,
        images=3,
        check=1,
        recompute=False,
        teacher=None,
        seed=0,
    )
    assert command.train(setting, said.append) == setting.out
    assert re.search(r"3 pictures, 2 steps of 2: .* s each, about 0 minutes; .* GB at the peak", said[0])
    assert load_head(setting.out).head_config.latent_grid == (8, 8)
    log = (tmp_path / "runs/light-tinyworld-train-64-tiny/log.csv").read_text(encoding="utf-8")
    assert "mIoU" in log.splitlines()[0]
    assert "AUROC" in log.splitlines()[0]
    with pytest.raises(InputError, match=r"Expected the name of a new \.safetensors file"):
        command.train(setting, said.append)
    with pytest.raises(InputError, match="Expected a Stable Diffusion for --recompute"):
        command.train(dataclasses.replace(setting, out=tmp_path / "b.safetensors", recompute=True), said.append)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="a tier of light, one, two, got 'three'"):
        tier_config("three", "sd1", UNetConfig(), SIDE)
    with pytest.raises(InputError, match="multiples of 64 pixels, got 96"):
        tier_config("one", "sd1", UNetConfig(), 96)


def test_a_coarser_light_head_gives_masks_of_the_latents_size(sd: Any) -> None:
    head = build_head(dataclasses.replace(config_of("light", sd), strides=(2, 4)))
    taps = {block: torch.zeros(1, spec.channels, 2, 2) for block, spec in head.head_config.tap_specs.items()}
    context = torch.zeros(1, 77, 64)
    for size in ((8, 8), (7, 9)):
        masks, _ = head.masks_and_presence(torch.zeros(1, 4, *size), torch.zeros(1, dtype=torch.int64), context, taps)
        assert masks.shape[2:] == (size[0] * 8, size[1] * 8)
