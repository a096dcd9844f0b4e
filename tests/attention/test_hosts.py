"""SD 1.x, SD 2.x and SDXL pipelines as hosts that show their attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attention import unets

from ldznet import Predictor, load_head, open_host
from ldznet.clustering import KINDS, ClusterHead
from ldznet.contracts import AttentionHost
from ldznet.errors import HostError, InputError

pytest.importorskip("diffusers")


@pytest.fixture(scope="module", params=unets.ARCHITECTURES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = unets.pipeline(tmp_path_factory.mktemp("pipeline"), request.param)
    if request.param == "sd1":
        pipe.scheduler.register_to_config(prediction_type="epsilon")
    return pipe


def test_the_family_is_seen(pipeline: Any) -> None:
    host = open_host(pipeline)
    assert isinstance(host, AttentionHost)
    xl, linear = "XL" in type(pipeline).__name__, pipeline.unet.config.use_linear_projection
    assert host.family == ("sdxl" if xl else "sd2" if linear else "sd1")


def test_conditioning_is_the_pipeline_s_own(pipeline: Any) -> None:
    host, prompt = open_host(pipeline), "a photograph of a red star and grass"
    given = host.condition([prompt])
    with torch.no_grad():
        parts = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(given.context, parts[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(host.encode_text([prompt]), parts[0], atol=1e-5, rtol=0)
    if host.family == "sdxl":
        torch.testing.assert_close(given.extras["pooled"], parts[2], atol=1e-5, rtol=0)
    else:
        assert not given.extras


def test_tokens_are_bare_and_of_any_length(pipeline: Any) -> None:
    host = open_host(pipeline)
    assert host.tokenize("a red star") == pipeline.tokenizer("a red star").input_ids[1:-1]
    assert host.tokenize("") == []
    assert len(host.tokenize("star " * 100)) == 100
    with pytest.raises(InputError, match="got 100"):
        host.condition(["star " * 100])


def test_masks_of_any_stable_diffusion(pipeline: Any) -> None:
    predictor = Predictor(open_host(pipeline), load_head("attention"), resolution="native")
    latents = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    predictor.set_latents(latents)
    result = predictor.predict(["a red star", "grass"])
    assert result.probabilities.shape == (2, 2, 128, 192)
    assert not result.calibrated
    assert result.found.all()  # without a calibration nothing is taken away
    assert unets.hooks_of(pipeline.unet) == 0
    predictor.set_latents(latents[1:])
    assert torch.equal(predictor.predict(["a red star", "grass"]).logits, result.logits[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_any_stable_diffusion(pipeline: Any, kind: str) -> None:
    """SDXL too, which has no early block of full size, and asks for more than a context."""
    predictor = Predictor(open_host(pipeline), ClusterHead(kind), resolution="native")
    predictor.set_latents(torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0)))
    result = predictor.predict(["region 1", "region 2", "region 3"])
    assert result.probabilities.shape == (2, 3, 128, 192)
    assert ((result.logits > 0).sum(1) == 1).all()
    assert not torch.equal(result.logits[0], result.logits[1])
    assert unets.hooks_of(pipeline.unet) == 0


def test_sizes_reach_sdxl(tmp_path: Path) -> None:
    pipe = unets.pipeline(tmp_path, "sdxl")
    host, seen = open_host(pipe), []
    pipe.unet.add_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pipe.unet.add_time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predictor = Predictor(host, load_head("attention"), resolution="native")
    predictor.set_latents(torch.zeros(1, 4, 16, 24))
    predictor.predict(["grass"])
    assert seen[0].tolist() == [128, 192, 0, 0, 128, 192]
    with pytest.raises(HostError, match="by context alone"):
        host.extract(torch.zeros(1, 4, 16, 24), torch.tensor([100]), host.encode_text(["grass"]), ["input.4"])


def test_an_sdxl_pipeline_that_is_not_whole(tmp_path: Path) -> None:
    pipe = unets.pipeline(tmp_path, "sdxl")
    pipe.text_encoder_2 = None
    with pytest.raises(HostError, match="no text_encoder_2"):
        open_host(pipe)


def test_trained_heads_refuse_transformers() -> None:
    class Flux:
        family, specs, context_dim = "flux", {}, 64

    with pytest.raises(
        HostError, match=r"context width 64.*got Flux\.1, which no trained head fits yet.*attention head"
    ):
        load_head("tiny").fitted_to(Flux())


def test_a_host_without_attention_is_refused() -> None:
    class Bare:
        specs, context_dim, device, dtype = {}, 64, torch.device("cpu"), torch.float32
        encode_image = decode_latents = encode_text = add_noise = extract = None

    with pytest.raises(HostError, match="got Bare"):
        Predictor(Bare(), load_head("attention"))
