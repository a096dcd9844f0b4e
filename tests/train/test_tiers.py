"""Heads over a host's own UNet: they start as nothing, learn through it, leave it as it was, and lie in files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import small
from safetensors import safe_open

from ldznet import Predictor, load_head, tinyworld
from ldznet.checkpoints.load import meta_head
from ldznet.cli import train_head as command
from ldznet.config import UNetConfig, unet_like
from ldznet.contracts import Conditioning, Host
from ldznet.data import TinyWorldDataset
from ldznet.data.cache import Cache, add_latents, contexts_of, draw
from ldznet.errors import HostError, InputError
from ldznet.hosts.tiny import TinyHost
from ldznet.models import DeltaHead, LightHead
from ldznet.models.delta import clean
from ldznet.parts import OUT
from ldznet.taps import spatial_transformers
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


class FullSize:
    """A host in name."""

    def __init__(self, family: str, context_dim: int) -> None:
        self.family, self.context_dim = family, context_dim
        self.specs = UNetConfig(context_dim=context_dim).tap_specs()


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small Stable Diffusion in diffusers' classes."""
    return small.host(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def cache(sd: Any, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return add_latents(draw(TinyWorldDataset(4, size=SIDE), tmp_path_factory.mktemp("cache")), sd.encode_image)


def tier(name: str, sd: Any, cache: Cache, folder: Path, **changes: Any) -> Tier:
    config = tier_config(name, sd, SIDE, rank=2)
    return Tier(config, sd, cache, dataclasses.replace(TRAINING, **changes), folder)


def hooks(host: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in host._unet.modules())


@pytest.mark.parametrize(
    ("family", "width", "name", "rank", "megabytes"),
    [
        ("sd1", 768, "light", 32, 5.8),
        ("sd1", 768, "one", 32, 26.2),
        ("sd1", 768, "two", 32, 40.9),
        ("sd2", 1024, "two", 16, 29.2),
    ],
)
def test_full_sizes(family: str, width: int, name: str, rank: int, megabytes: float) -> None:
    host: Any = FullSize(family, width)
    config = tier_config(name, host, 384, rank)
    assert sum(p.numel() for p in meta_head(config).parameters()) * 2 / 1e6 == pytest.approx(megabytes, abs=0.06)
    assert (config.latent_grid, config.timestep, config.template) == ((48, 48), 400, "a photo of a {}.")


def test_a_unet_is_told_by_its_taps() -> None:
    for config in (UNetConfig(), UNetConfig(context_dim=1024), small.UNET, tinyworld.world.UNET):
        found = unet_like(config.tap_specs(), config.context_dim)
        assert dataclasses.replace(found, num_heads=config.num_heads) == config
    specs = {name: spec for name, spec in UNetConfig().tap_specs().items() if spec.stride > 1}
    with pytest.raises(InputError, match=r"the form of SD 1\.x or 2\.x, got one with taps at input\.4"):
        unet_like(specs, 2048)


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_starts_as_the_host_s_own_unet(name: str, sd: Any, cache: Cache, tmp_path: Path) -> None:
    head = tier(name, sd, cache, tmp_path).head
    assert isinstance(head, DeltaHead)
    latents = cache.latents[:1].float()
    context = sd.encode_text(["grass"])
    taps = {block: torch.randn(1, spec.channels, 1, 1) for block, spec in head.head_config.tap_specs.items()}

    @contextlib.contextmanager
    def plain(unet: Any) -> Iterator[dict[str, torch.Tensor]]:
        seen: dict[str, torch.Tensor] = {}
        handle = unet.conv_norm_out.register_forward_pre_hook(lambda module, args: seen.update({OUT: args[0]}))
        yield seen
        handle.remove()

    expected = sd.observe(*clean(sd, latents), Conditioning(context), plain)[OUT]
    got = head.features_over(sd, latents, context, lambda unet: head.applied(unet, taps))
    assert torch.equal(got, expected)


def gradients(it: Tier) -> Mapping[str, torch.Tensor]:
    """Of one batch, with changes that are not nothing."""
    with torch.no_grad():
        for name, parameter in it.head.named_parameters():
            if name.endswith((".up", "to_out.0.weight")):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    batch = it.task.batch(0, 2, torch.Generator().manual_seed(0))
    loss, _ = it.task.loss(it.task.module, (*batch[:-1], torch.ones(2, 2)))
    loss.backward()
    it.task.module.close()
    return {name: p.grad.clone() for name, p in it.head.named_parameters() if p.grad is not None}


def test_gradients_pass_the_host_also_where_it_computes_twice(sd: Any, cache: Cache, tmp_path: Path) -> None:
    """Every part of the head gets one, no weight of the host does; with checkpoints they are the same."""
    once = tier("two", sd, cache, tmp_path / "once")
    expected = gradients(once)
    assert {name for name, _ in once.head.named_parameters()} == set(expected)
    silent = {name for name, gradient in expected.items() if gradient.abs().max() == 0}
    assert silent == ONE_CELL
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


@pytest.mark.parametrize("name", ["light", "two"])
def test_it_learns_and_lies_in_a_file(name: str, sd: Any, cache: Cache, tmp_path: Path) -> None:
    seen = []

    def examine(head: Any) -> dict[str, float]:
        predictor = Predictor(sd, head)
        predictor.set_image(tinyworld.scene(0).image[:SIDE, :SIDE])
        seen.append(predictor.predict(["grass"]).logits)
        return {"looked": len(seen)}

    it = tier(name, sd, cache, tmp_path / "run", steps=4, save_every=2, ema=0.0, learning_rate=5e-3)
    before = {key: p.clone() for key, p in it.head.named_parameters()}
    trial = it.run.trial()
    assert trial.seconds > 0
    assert trial.memory > 10**7
    assert all(torch.equal(before[key], p) for key, p in it.head.named_parameters())
    lost = loss(it)
    it.train(tmp_path / "head.safetensors", {"what": "a try"}, examine=examine)
    assert loss(it) < lost - 0.1
    assert [row.get("looked") for row in it.run.rows] == [None, 1, None, 2]
    head = load_head(tmp_path / "head.safetensors")
    predictor = Predictor(sd, head)
    predictor.set_image(tinyworld.scene(0).image[:SIDE, :SIDE])
    torch.testing.assert_close(predictor.predict(["grass"]).logits, seen[-1], atol=0.02, rtol=0.01)  # in float16
    assert not torch.equal(seen[0], seen[-1])
    with safe_open(tmp_path / "head.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["what"], about["how"]) == ("a try", "4 steps of 2, 4 images, EMA 0.0, no")
    assert hooks(sd) == 0


def test_a_teacher_s_masks_are_half_of_what_is_learned(sd: Any, cache: Cache, tmp_path: Path) -> None:
    class Teacher(LightHead):
        """Says 0.8 everywhere."""

        def masks_over(self, host: Any, rows: Any, context: Any, taps: Any) -> Any:
            assert set(taps) == set(self.head_config.tap_specs)
            return torch.full((len(rows), 1, SIDE, SIDE), 0.8).logit(), None

    teacher = Teacher(tier_config("light", sd, SIDE))
    config = tier_config("one", sd, SIDE, rank=2)
    plain, taught = (Tier(config, sd, cache, TRAINING, tmp_path / n, t) for n, t in (("a", None), ("b", teacher)))
    labels, masks = (it.task.batch(0, 16, torch.Generator().manual_seed(0))[3] for it in (plain, taught))
    present = labels.amax(dim=(1, 2, 3)) > 0
    assert 0 < present.sum() < 16
    torch.testing.assert_close(masks[present], labels[present] * 0.5 + 0.4)
    assert torch.equal(masks[~present], labels[~present])
    with pytest.raises(HostError, match="context width 768, which this head was trained on, got 64"):
        Tier(
            config,
            TinyHost.load(),
            cache,
            TRAINING,
            tmp_path / "c",
            Teacher(tier_config("light", FullSize("sd1", 768), SIDE)),
        )


def test_contexts_wait_in_a_file_of_their_texts(tmp_path: Path) -> None:
    host, texts = TinyHost.load(), ["a red star", "grass", "sand"]
    expected = contexts_of(host, texts)
    got = contexts_of(host, texts, tmp_path, batch=2)
    torch.testing.assert_close(got.float(), expected, atol=4e-3, rtol=1e-3)
    (tmp_path / "contexts.npy").chmod(0o444)
    assert torch.equal(contexts_of(host, texts, tmp_path), got)
    other = contexts_of(host, ["a blue cat"], tmp_path)
    torch.testing.assert_close(other.float(), host.encode_text(["a blue cat"]), atol=4e-3, rtol=1e-3)


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
    assert "3 pictures, 2 steps of 2" in said[0]
    assert load_head(setting.out).head_config.latent_grid == (8, 8)
    log = (tmp_path / "runs/light/log.csv").read_text(encoding="utf-8")
    assert "mIoU" in log.splitlines()[0]
    assert "AUROC" in log.splitlines()[0]
    with pytest.raises(InputError, match=r"Expected the name of a new \.safetensors file"):
        command.train(setting, said.append)
    with pytest.raises(InputError, match="Expected a Stable Diffusion for --recompute"):
        command.train(dataclasses.replace(setting, out=tmp_path / "b.safetensors", recompute=True), said.append)


def test_hosts_of_other_forms_are_refused(sd: Any) -> None:
    host: Host = sd
    with pytest.raises(InputError, match="a tier of light, one, two, got 'three'"):
        tier_config("three", host, SIDE)
    with pytest.raises(InputError, match="multiples of 64 pixels, got 96"):
        tier_config("one", host, 96)
    assert len(spatial_transformers(sd._unet)) == len(sd.specs)
