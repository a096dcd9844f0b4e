"""The whole recipe, at a few steps: every stage writes weights that load, and goes on from what lies there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ldznet import Predictor, load_head, tinyworld
from ldznet.cli import train as command
from ldznet.errors import InputError
from ldznet.hosts.tiny import TinyHost
from ldznet.train import recipe

STEPS, IMAGES = 2, 6


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> command.Setting:
    folder = tmp_path_factory.mktemp("runs")
    return command.Setting("tinyworld", IMAGES, STEPS, 4, folder, folder / "weights")


@pytest.fixture(scope="module")
def written(setting: command.Setting) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "JUDGES_IMAGES", 8)
        eager = dataclasses.replace(recipe.STAGES["vae"], compile=False)
        patch.setitem(recipe.STAGES, "vae", eager)
        return list(command.train("all", setting))


def test_every_stage_writes_its_weights(written: list[Path], setting: command.Setting) -> None:
    names = [path.stem for path in written]
    assert names == ["vae", "classifier", "probe", "text", "unet", "ldznet", "light", "sd3"]
    for path in written:
        with safe_open(path, "pt") as file:
            assert {"what", "how", "commit", "licence"} <= set(file.metadata())
            assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118


def test_the_weights_make_a_host_and_heads(written: list[Path], setting: command.Setting) -> None:
    host = TinyHost.load(weights=setting.weights)
    for name in ("ldznet", "light"):
        predictor = Predictor(host, load_head(setting.weights / f"{name}.safetensors"))
        predictor.set_image(tinyworld.scene(0).image)
        assert predictor.predict(["grass"]).probabilities.isfinite().all()


def test_latents_of_the_trained_vae_have_unit_deviation(written: list[Path], setting: command.Setting) -> None:
    host = TinyHost.load(weights=setting.weights)
    scenes = [tinyworld.scene(1_000_000 + i).image for i in range(IMAGES)]
    pixels = torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in scenes]) / 127.5 - 1
    deviation = host.encode_image(pixels).std(dim=(0, 2, 3))
    assert (deviation - 1).abs().max() < 0.05


def test_a_stage_goes_on_from_its_weights(written: list[Path], setting: command.Setting, tmp_path: Path) -> None:
    before = load_head(setting.weights / "light.safetensors").state_dict()
    patient = dataclasses.replace(setting, steps=1, out=tmp_path)
    config = dataclasses.replace(recipe.STAGES["light"], learning_rate=0.0, warmup=1, ema=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe.STAGES, "light", config)
        list(command.train("light", patient))
    after = load_head(setting.weights / "light.safetensors").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_stage_is_refused(setting: command.Setting) -> None:
    with pytest.raises(InputError, match=r'Expected a stage of vae, classifier, .* got "unet"'):
        list(command.train("unet", setting))


def test_a_head_needs_the_models_below_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Expected weights of the tiny world"):
        list(command.train("ldznet", command.Setting("tinyworld", 2, 1, 2, tmp_path, tmp_path / "weights")))
