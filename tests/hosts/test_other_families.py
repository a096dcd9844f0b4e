"""SD 2.x and SDXL from a folder and from one file: the same as the pipeline that both were saved from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attention import unets
from hosts import small

from ldznet import Predictor, load_head, open_host
from ldznet.checkpoints.load import meta_head
from ldznet.config import HeadConfig
from ldznet.errors import CheckpointError, HostError
from ldznet.hosts import single_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from ldznet.hosts.hf_diffusers import DiffusersHost, _unfilled, convert_ldm_unet_checkpoint  # noqa: E402
from ldznet.hosts.loading import fill  # noqa: E402

FAMILIES = ("sd2", "sdxl")
ROOT = Path(single_file.__file__).parent
SIZES = {"sd2": 865_910_724, "sdxl": 2_567_463_684}  # parameters of the published UNets
OTHERS = {("sd2", "text_encoder"): 340_387_840, ("sdxl", "text_encoder_2"): 694_659_840, ("sdxl", "vae"): 83_653_863}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With "!" as the padding of its OpenCLIP encoder, as the published ones have it."""
    pipe = unets.pipeline(tmp_path_factory.mktemp(family), family)
    padded = copy.deepcopy(pipe.tokenizer)
    padded.pad_token = "!"
    pipe.register_modules(**{"tokenizer_2" if family == "sdxl" else "tokenizer": padded})
    return pipe


@pytest.fixture(scope="module")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def file(pipeline: Any, family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A single file of the pipeline's weights, and the folder of what it lacks at these widths."""
    path = tmp_path_factory.mktemp("file")
    return small.write_file(path / "model.safetensors", ldm_state(pipeline, family)), written(pipeline, family, path)


def ldm_state(pipeline: Any, family: str) -> small.State:
    """The weights as Stability saved them; SD 2.x's OpenCLIP has a last layer that nobody reads."""
    last = len(pipeline.unet.up_blocks) - 1
    ups = {f"up_blocks.{i}": 2 if hasattr(pipeline.unet.up_blocks[i], "attentions") else 1 for i in range(last)}
    state = {
        single_file.UNET + small.ldm_unet_name(name, ups.get(name[:11], 2)): tensor
        for name, tensor in pipeline.unet.state_dict().items()
    }
    vae = pipeline.vae.state_dict()
    state |= {f"first_stage_model.{small._ldm_vae_name(n)}": small._ldm_vae_weight(n, t) for n, t in vae.items()}
    for encoder in single_file.ENCODERS[family]:
        text = getattr(pipeline, encoder.name).state_dict()
        if encoder.open_clip:
            text = small.open_clip_state(text)
            text["logit_scale"] = torch.zeros(())
        if family == "sd2":
            text["transformer.resblocks.2.ln_1.weight"] = torch.zeros(3)
            text["text_projection"] = torch.zeros(3, 3)
        state |= {encoder.prefix + name: tensor for name, tensor in text.items()}
    return state


def written(pipeline: Any, family: str, folder: Path) -> Path:
    """The configurations of a pipeline's networks where a single file's are looked for."""
    for name, place in single_file.CONFIGURATIONS[family].items():
        (folder / place).parent.mkdir(exist_ok=True)
        config = getattr(pipeline, name).config
        config = config if isinstance(config, dict) else config.to_dict()
        (folder / place).write_text(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}))
    (folder / single_file.MERGES).parent.mkdir(exist_ok=True)
    (folder / single_file.MERGES).write_bytes(small.MERGES.read_bytes())
    return folder


@pytest.fixture(scope="module", params=("folder", "file"))
def host(request: pytest.FixtureRequest, family: str) -> Any:
    found = request.getfixturevalue(request.param)
    return open_host(found) if request.param == "folder" else DiffusersHost.from_single_file(found[0], configs=found[1])


def test_is_the_pipeline(host: Any, pipeline: Any, family: str) -> None:
    expected, prompts = open_host(pipeline), ["a photograph of a red star", "grass"]
    assert host.family == expected.family == family
    given, theirs = host.condition(prompts), expected.condition(prompts)
    torch.testing.assert_close(given.context, theirs.context, atol=1e-5, rtol=0)
    assert set(given.extras) == set(theirs.extras)
    for name, extra in given.extras.items():
        torch.testing.assert_close(extra, theirs.extras[name], atol=1e-5, rtol=0)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(host.encode_image(pixels), expected.encode_image(pixels), atol=1e-5, rtol=0)


def test_masks_are_the_pipeline_s(host: Any, pipeline: Any) -> None:
    found = []
    for source in (host, open_host(pipeline)):
        predictor = Predictor(source, load_head("attention"), resolution="native")
        predictor.set_latents(torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0)))
        found.append(predictor.predict(["a red star", "grass"]).logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=0)  # a stretch to 0 .. 1, times ten


def test_the_published_head_does_not_fit(host: Any, family: str) -> None:
    with pytest.raises(HostError, match="Expected a host of context width 768, which this head was trained on, got 64"):
        Predictor(host, meta_head(HeadConfig()))


def test_a_file_without_an_encoder(pipeline: Any, family: str, file: Any, tmp_path: Path) -> None:
    prefix = single_file.ENCODERS[family][-1].prefix
    rest = {name: tensor for name, tensor in ldm_state(pipeline, family).items() if not name.startswith(prefix)}
    with pytest.raises(CheckpointError, match=rf"nothing under {prefix}.*diffusers folder"):
        DiffusersHost.from_single_file(small.write_file(tmp_path / "a.safetensors", rest), configs=file[1])


def test_an_sdxl_vae_in_half_precision_works_in_full(tmp_path: Path) -> None:
    pipe = unets.pipeline(tmp_path, "sdxl")
    pipe.vae.register_to_config(force_upcast=True)
    pipe.to(dtype=torch.float16)
    seen: list[torch.dtype] = []
    pipe.vae.encoder.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    assert open_host(pipe).encode_image(torch.zeros(1, 3, 64, 64)).dtype == torch.float16
    assert seen == [torch.float32]
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shipped_configurations_have_the_published_sizes(name: str) -> None:
    places = {part: ROOT / place for part, place in single_file.CONFIGURATIONS[name].items()}
    unet = _unfilled(diffusers.UNet2DConditionModel, places["unet"])
    assert sum(p.numel() for p in unet.parameters()) == SIZES[name]
    ups = {f"up_blocks.{i}": 2 if hasattr(block, "attentions") else 1 for i, block in enumerate(unet.up_blocks)}
    ldm = {small.ldm_unet_name(n, ups.get(n[:11], 2)): tensor for n, tensor in unet.state_dict().items()}
    again = convert_ldm_unet_checkpoint({single_file.UNET + n: tensor for n, tensor in ldm.items()}, unet.config)
    fill(unet, again)
    for (family_name, part), size in OTHERS.items():
        if family_name == name:
            assert sum(p.numel() for p in _network(part, places[part]).parameters()) == size


def _network(part: str, config: Path) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if part == "vae":
        return _unfilled(diffusers.AutoencoderKL, config)
    kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig(**json.loads(config.read_text())))
