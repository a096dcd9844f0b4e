"""Stable Diffusion through diffusers: every way in, what is refused, and that nothing is fetched."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import small

from ldznet.config import UNetConfig
from ldznet.errors import CheckpointError, HostError, InputError
from ldznet.hosts import open_host
from ldznet.hosts.loading import fill
from ldznet.models import UNet

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from ldznet.hosts import hf_diffusers  # noqa: E402

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
CONTEXT_KEY = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
INPAINTING = UNetConfig(in_channels=9, model_channels=32, channel_mult=(1, 2, 2, 2), context_dim=64)


@pytest.fixture(scope="module")
def state() -> small.State:
    return small.ldm_state()


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    return small.pipeline(tmp_path)


def latents(batch: int = 1, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(0))


# What the shipped configurations say


@pytest.mark.parametrize("in_channels", [4, 9])
def test_the_shipped_unet_is_ours(in_channels: int) -> None:
    """Every full-size parameter of our UNet finds its place, by name and shape, and none is left over."""
    config = json.loads((small.SD1 / "unet.json").read_text())
    with torch.device("meta"):
        ours = UNet(UNetConfig(in_channels=in_channels)).state_dict()
        theirs = diffusers.UNet2DConditionModel.from_config(config, in_channels=in_channels)
    ldm = {UNET + name: tensor for name, tensor in ours.items()}
    converted = hf_diffusers.convert_ldm_unet_checkpoint(ldm, theirs.config)
    fill(theirs, converted)
    assert len(converted) == len(ours) == 686
    assert hf_diffusers.tap_specs(theirs) == UNetConfig().tap_specs()


def test_the_shipped_vae_and_text_encoder_have_the_published_sizes() -> None:
    configs = {name: json.loads((small.SD1 / f"{name}.json").read_text()) for name in ("vae", "text_encoder")}
    with torch.device("meta"):
        vae = diffusers.AutoencoderKL.from_config(configs["vae"])
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**configs["text_encoder"]))
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    assert vae.config.scaling_factor == 0.18215


# What the parts compute


def test_text_is_the_last_hidden_state_after_the_final_norm(pipeline: Any) -> None:
    phrases = ["a red star", "grass, with 2 trees", "Café ½ 犬 🐶"]
    tokens = pipeline.tokenizer(phrases, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens).last_hidden_state
    for host in (open_host(pipeline), small.host(Path(pipeline.tokenizer.name_or_path))):
        torch.testing.assert_close(host.encode_text(phrases), expected, atol=1e-5, rtol=0)


def test_latents_are_the_scaled_mode(pipeline: Any) -> None:
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    host = open_host(pipeline)
    with torch.no_grad():
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
        image = pipeline.vae.decode(mode).sample
    torch.testing.assert_close(host.encode_image(pixels), mode * 0.18215)
    torch.testing.assert_close(host.decode_latents(mode * 0.18215), image, atol=1e-5, rtol=0)


def test_the_model_s_own_schedule(pipeline: Any) -> None:
    pipeline.scheduler = diffusers.DDPMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="linear")
    steps, noise = torch.tensor([700]), latents().flip(2)
    expected = pipeline.scheduler.add_noise(latents(), noise, steps)
    torch.testing.assert_close(open_host(pipeline).add_noise(latents(), noise, steps), expected, atol=1e-6, rtol=0)


def test_an_inpainting_model_is_told_to_repaint_a_grey_image(tmp_path: Path) -> None:
    host = small.host(tmp_path, small.ldm_state(INPAINTING))
    seen: list[torch.Tensor] = []
    host._unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    host.extract(latents(2), torch.tensor([400, 400]), host.encode_text(["grass"] * 2), ["output.5"])
    assert seen[0].shape == (2, 9, 8, 8)
    torch.testing.assert_close(seen[0][:, :4], latents(2))
    assert torch.equal(seen[0][:, 4], torch.ones(2, 8, 8))
    assert seen[0][1, 5:, 3, 4].tolist() == pytest.approx([0.8223, -0.6876, 0.6364, 0.1380])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu(tmp_path: Path, dtype: torch.dtype) -> None:
    host, exact = small.host(tmp_path, dtype=dtype), small.host(tmp_path)
    steps, context = torch.tensor([400]), exact.encode_text(["a red star"])
    noisy = latents().repeat(1, 1, 4, 4)  # large enough for the norms of the lowest level
    try:
        half = host.extract(noisy, steps, context, ["output.5"])["output.5"]
    except RuntimeError as error:
        pytest.skip(f"this torch has no half precision on a CPU: {error}")
    assert host.dtype == half.dtype == dtype
    assert host.encode_image(torch.zeros(1, 3, 16, 16)).dtype == host.encode_text(["grass"]).dtype == dtype
    expected = exact.extract(noisy, steps, context, ["output.5"])["output.5"]
    assert (half.float() - expected).abs().mean() < 10 * torch.finfo(dtype).eps * expected.abs().mean()


# Ways in


def test_a_pickled_checkpoint_is_the_same(tmp_path: Path, state: small.State) -> None:
    plain, pickled = small.host(tmp_path, state), small.host(tmp_path, state, "small.ckpt")
    given = latents(), torch.tensor([400]), plain.encode_text(["grass"])
    torch.testing.assert_close(pickled.encode_text(["grass"]), given[2])
    torch.testing.assert_close(pickled.extract(*given, ["middle.0"]), plain.extract(*given, ["middle.0"]))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_under_the_names_of_any_version(tmp_path: Path, state: small.State, prefix: str) -> None:
    saved = {n.replace(f"{TEXT}text_model.", TEXT + prefix): t for n, t in state.items()}
    saved[f"{TEXT}{prefix}embeddings.position_ids"] = torch.arange(77.0)[None]  # some merges made floats of it
    saved["cond_stage_model.logit_scale"] = torch.zeros(())
    context = small.host(tmp_path, saved).encode_text(["a red star"])
    torch.testing.assert_close(context, small.host(tmp_path, state).encode_text(["a red star"]))


def test_a_folder_with_half_precision_files_alone(tmp_path: Path) -> None:
    host = open_host(small.diffusers_folder(tmp_path, variant="fp16"))
    assert host.dtype == torch.float32
    assert host.extract(latents(), torch.tensor([400]), host.encode_text(["grass"]), ["input.8"])


def test_a_pipeline_stays_where_and_as_it_is(pipeline: Any) -> None:
    pipeline.to(dtype=torch.bfloat16)
    host = open_host(pipeline)
    assert (host.device, host.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert host._unet is pipeline.unet
    for setting in ({"device": "cpu"}, {"dtype": torch.float32}):
        with pytest.raises(InputError, match=r"pipeline\.to"):
            open_host(pipeline, **setting)


def test_a_pipeline_without_a_part(pipeline: Any) -> None:
    pipeline.text_encoder = None
    with pytest.raises(HostError, match="no text_encoder"):
        open_host(pipeline)


def test_a_compiled_unet(pipeline: Any) -> None:
    expected = open_host(pipeline).extract(latents(), torch.tensor([400]), torch.zeros(1, 77, 64), ["output.5"])
    pipeline.unet.compile()  # in place; hooks would not run inside what it compiles
    for unet in (pipeline.unet, torch.compile(pipeline.unet)):
        pipeline.unet = unet
        taps = open_host(pipeline).extract(latents(), torch.tensor([400]), torch.zeros(1, 77, 64), ["output.5"])
        torch.testing.assert_close(taps, expected)


def test_a_pipeline_s_textual_inversion(pipeline: Any) -> None:
    vector = torch.ones(2, 64)  # two vectors: diffusers writes the token as "<mine> <mine>_1"
    pipeline.load_textual_inversion({"<mine>": vector}, token="<mine>")
    host = open_host(pipeline)
    rows = host._texts._words.rows(["a photo of <mine>", "grass"])
    assert rows[0][4:6] == [49_408, 49_409]
    assert host.encode_text(["a photo of <mine>"]).shape == (1, 77, 64)


# What is none of the families

STRANGERS = {
    "SDXL's refiner": (
        {"cross_attention_dim": 1280, "addition_embed_type": "text_time"},
        r"got 1280 \(SDXL's refiner\)",
    ),
    "a width of another": ({"cross_attention_dim": 2048}, r"got 2048 \(SDXL\) in a UNet of SD 1\.x's form"),
    "deep": ({"transformer_layers_per_block": [1, 2, 10]}, "transformer_layers_per_block"),
    "shallow": ({"layers_per_block": 1}, "layers_per_block 1"),
    "with an image prompt": ({"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
    "unCLIP": ({"use_linear_projection": True, "class_embed_type": "projection"}, "class_embed_type projection"),
    "no text": ({"_class_name": "UNet2DModel"}, "got a UNet2DModel"),
    "InstructPix2Pix": ({"in_channels": 8}, "8 input channels"),
    "its SDXL": (
        {"in_channels": 8, "use_linear_projection": True, "addition_embed_type": "text_time"},
        "8 input channels, where SDXL",
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused_before_their_weights_are_read(tmp_path: Path, stranger: str) -> None:
    facts, message = STRANGERS[stranger]
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**small.config("unet"), **facts}))
    with pytest.raises(HostError, match=message) as caught:
        open_host(tmp_path)
    assert "Expected an SD 1.x (context width 768), SD 2.x (1024) or SDXL (2048) UNet" in str(caught.value)


def test_a_folder_without_a_unet(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(HostError, match="got a FluxPipeline, which has no UNet"):
        open_host(tmp_path)


def test_single_files_of_strangers(tmp_path: Path, state: small.State) -> None:
    refiner = {**state, CONTEXT_KEY: torch.zeros(32, 1280), f"{UNET}label_emb.0.0.weight": torch.zeros(1)}
    with pytest.raises(HostError, match=r"got 1280 \(SDXL's refiner\)"):
        open_host(small.write_file(tmp_path / "refiner.safetensors", refiner))
    with pytest.raises(HostError, match="v_prediction"):
        open_host(small.write_file(tmp_path / "v.safetensors", {**state, "v_pred": torch.zeros(0)}))


def test_pipelines_of_strangers(pipeline: Any) -> None:
    with pytest.raises(HostError, match="a Transformers, which has no UNet"):
        open_host(type("Transformers", (), {"transformer": None, "vae": None})())
    unet, pipeline.unet = pipeline.unet, pipeline.vae
    with pytest.raises(HostError, match="got a AutoencoderKL"):
        open_host(pipeline)
    pipeline.unet = unet
    pipeline.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **small.SCHEDULE)
    with pytest.raises(HostError, match="v_prediction"):
        open_host(pipeline)


# Files that are not whole


@pytest.mark.parametrize("prefix", [UNET, VAE, TEXT])
def test_a_file_that_lacks_a_network(tmp_path: Path, state: small.State, prefix: str) -> None:
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    with pytest.raises(CheckpointError, match=r"Expected an? .*checkpoint"):
        small.host(tmp_path, rest)


@pytest.mark.parametrize(
    "name", [f"{UNET}out.2.bias", f"{VAE}decoder.conv_in.bias", f"{TEXT}text_model.final_layer_norm.bias"]
)
def test_a_file_that_lacks_a_tensor_or_has_another(tmp_path: Path, state: small.State, name: str) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        small.host(tmp_path, {n: t for n, t in state.items() if n != name})
    with pytest.raises(CheckpointError, match=r"\(3,\) for"):
        small.host(tmp_path, {**state, name: torch.zeros(3)})


def test_widths_other_than_sd1_s_are_listed(tmp_path: Path, state: small.State) -> None:
    with pytest.raises(CheckpointError, match=r"UNet2DConditionModel, got .* and \d+ more"):
        open_host(small.write_file(tmp_path / "small.safetensors", state))


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.ckpt"])
def test_damaged_files(tmp_path: Path, state: small.State, name: str) -> None:
    whole = small.write_file(tmp_path / name, {CONTEXT_KEY: state[CONTEXT_KEY]}).read_bytes()
    for content in (whole[: len(whole) // 2], b"\x80" * 1000, b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="Expected"):
            open_host(tmp_path / name)


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


def test_no_code_of_a_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {}, "callbacks": Malicious()}, tmp_path / "bad.ckpt")
    (tmp_path / "worse.ckpt").write_bytes(pickle.dumps(Malicious()))
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    for name in ("bad.ckpt", "worse.ckpt"):
        with pytest.raises(CheckpointError, match="Expected"):
            open_host(tmp_path / name)


def test_a_pickle_with_foreign_objects_beside_its_tensors_is_read(tmp_path: Path, state: small.State) -> None:
    """As Lightning left them in SD 1.4's: they are stepped over, never made."""
    torch.save({"state_dict": state, "callbacks": {Malicious: Malicious()}}, tmp_path / "small.ckpt")
    host = hf_diffusers.DiffusersHost.from_single_file(
        tmp_path / "small.ckpt", configs=small.configs(tmp_path / "configs")
    )
    assert host.encode_text(["grass"]).shape == (1, 77, 64)


def test_a_file_is_what_it_holds_not_what_it_is_called(tmp_path: Path, state: small.State) -> None:
    renamed = small.write_file(tmp_path / "a.safetensors", state).rename(tmp_path / "a.ckpt")
    assert hf_diffusers.DiffusersHost.from_single_file(renamed, configs=small.configs(tmp_path / "configs"))


def test_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Expected a diffusers folder with unet/config\.json"):
        open_host(tmp_path)
    folder = small.diffusers_folder(tmp_path)
    weights = next((folder / "vae").glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="AutoencoderKL"):
        open_host(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="AutoencoderKL"):
        open_host(folder)


# The front door


def test_sources_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    for source, message in (
        (tmp_path / "nowhere", "which does not exist"),
        (str(tmp_path / "nowhere.safetensors"), "which does not exist"),
        (tmp_path / "photo.png", "none of .safetensors .ckpt"),
        (3, "got a int"),
        (None, "got a NoneType"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_host(source)
        assert '"tiny"' in str(caught.value)


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ldznet.hosts.hf_diffusers")
    monkeypatch.delattr("ldznet.hosts.hf_diffusers")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(HostError, match=r'pip install "ldznet\[diffusers\]"'):
        open_host(tmp_path)


OFFLINE = """
    import socket, sys
    from pathlib import Path

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
    import torch
    import ldznet.hosts
    assert not {"diffusers", "transformers"} & set(sys.modules), "imported before a host needs it"
    from ldznet.hosts.hf_diffusers import DiffusersHost

    file, configs, folder = map(Path, sys.argv[1:])
    for host in (DiffusersHost.from_single_file(file, configs=configs), ldznet.hosts.open_host(folder)):
        context = host.encode_text(["a red star"])
        latents = host.encode_image(torch.zeros(1, 3, 64, 64))
        taps = host.extract(latents, torch.tensor([400]), context, ["input.8", "output.5"])
        assert taps["output.5"].shape == (1, 64, 2, 2)
"""


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """With sockets blocked and an empty cache, in a process of its own."""
    folder = small.diffusers_folder(tmp_path)
    paths = [str(tmp_path / "small.safetensors"), str(tmp_path / "configs"), str(folder)]
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", textwrap.dedent(OFFLINE), *paths]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    cached = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [name for name in cached if not name.startswith("version")]  # the cache's own format
