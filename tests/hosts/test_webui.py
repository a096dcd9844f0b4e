"""What A1111's and the Forges' models ask of their adapters beyond the contract of every host."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from hosts import small, webuis
from torch import nn

from ldznet import load_head, tinyworld
from ldznet.attention import CONFIGS, AttentionHead
from ldznet.contracts import AttentionHost, Conditioning
from ldznet.errors import HostError
from ldznet.hosts import open_host
from ldznet.hosts.tiny import TinyHost
from ldznet.hosts.webui import A1111Host, ForgeHost, family_of, open_webui
from ldznet.models.layers import timestep_embedding
from ldznet.predictor import Predictor
from ldznet.taps import reading, spatial_transformers


@pytest.fixture(params=webuis.HOSTS)
def model(request: pytest.FixtureRequest) -> Any:
    return webuis.HOSTS[request.param]()


def test_the_adapter_is_chosen_by_what_the_model_has() -> None:
    assert type(open_webui(webuis.a1111())) is A1111Host
    assert {type(open_webui(webuis.HOSTS[name]())) for name in ("Forge", "reForge")} == {ForgeHost}


def test_it_shows_its_attention_and_is_sd1(model: Any) -> None:
    host = open_host(model)
    assert isinstance(host, AttentionHost)
    assert host.family == "sd1"


def test_phrases_come_from_the_last_layer_and_clip_skip_stays_the_user_s(model: Any) -> None:
    host = open_webui(model)
    encoder = host._encoders()[0]
    own = encoder.encode_with_transformers(torch.tensor([[49406, 5, 49407]]))
    options, skip = dict(webuis.opts.data), vars(encoder).get("clip_skip")
    context = host.encode_text(["a red star"])
    ids = encoder.tokenize(["a red star"])[0]
    hidden = encoder.first(encoder.embedding(torch.tensor([[49406, *ids, 49407] + [49407] * (75 - len(ids))])))
    torch.testing.assert_close(context, encoder.last(hidden.cumsum(dim=1)))
    assert (webuis.opts.data, vars(encoder).get("clip_skip")) == (options, skip)
    torch.testing.assert_close(encoder.encode_with_transformers(torch.tensor([[49406, 5, 49407]])), own)


def test_clip_skip_stays_where_the_encoder_fails(model: Any) -> None:
    host = open_webui(model)
    encoder = host._encoders()[0]
    encoder.embedding = nn.Embedding(3, 64)
    options, skip = dict(webuis.opts.data), vars(encoder).get("clip_skip")
    with pytest.raises(IndexError):
        host.encode_text(["a red star"])
    assert (webuis.opts.data, vars(encoder).get("clip_skip")) == (options, skip)


def test_brackets_are_characters(model: Any) -> None:
    host = open_webui(model)
    assert host.tokenize("a (red) star") == host._encoders()[0].words.ids("a (red) star")


def test_a_picture_is_the_posterior_s_mode_and_draws_nothing(model: Any) -> None:
    host, before = open_webui(model), torch.get_rng_state()
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = host._vae
    expected = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)[0] * webuis.SCALE
    torch.testing.assert_close(host.encode_image(pixels), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", webuis.HOSTS)
def test_an_inpainting_model_is_told_to_repaint_a_grey_picture(name: str) -> None:
    class Nine(webuis.HostUNet):
        in_channels = 9

        def forward(self, x: Any, *rest: Any, **named: Any) -> Any:
            self.seen = x
            return super().forward(x, *rest, **named)

    unet = Nine(small.UNET).eval()
    unet.input_blocks[0][0].in_channels = 9  # as the adapters count them
    host = open_webui(webuis.HOSTS[name](unet))
    latents = torch.ones(2, 4, 16, 16)
    host.extract(latents, torch.tensor([100, 100]), torch.zeros(2, 77, 64), ["input.1"])
    assert torch.equal(unet.seen[:, 4], torch.ones(2, 16, 16))
    assert unet.seen[1, 5:, 3, 3].tolist() == pytest.approx([0.8223, -0.6876, 0.6364, 0.1380])


@pytest.mark.parametrize("name", ["Forge", "reForge"])
def test_a_forge_s_models_are_loaded_before_each_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loaded = webuis.HOSTS[name](), []
    memory: Any = ModuleType("backend.memory_management")
    memory.load_models_gpu = loaded.extend
    monkeypatch.setitem(sys.modules, memory.__name__, memory)
    host, objects = open_webui(model), model.forge_objects
    host.encode_image(torch.zeros(1, 3, 8, 8))
    host.encode_text(["grass"])
    host.extract(torch.zeros(1, 4, 16, 16), torch.tensor([100]), torch.zeros(1, 77, 64), ["input.1"])
    assert [id(patcher) for patcher in loaded] == [
        id(patcher) for patcher in (objects.vae.patcher, objects.clip.patcher, objects.unet)
    ]


@pytest.mark.parametrize("name", webuis.HOSTS)
def test_a_forge_runs_in_inference_mode_and_gives_tensors_like_any_other(name: str) -> None:
    """What a Forge loads outside of that mode, it cannot use inside."""
    host, modes = open_webui(webuis.HOSTS[name]()), list[bool]()
    for module in (host._unet, host._vae.quant_conv, host._encoders()[0].embedding, host._vae.decoder):
        module.register_forward_pre_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    latents = host.encode_image(torch.zeros(1, 3, 128, 128))
    context = host.encode_text(["grass"])
    taps = host.extract(latents, torch.tensor([100]), context, ["input.1"])
    given = [latents, context, taps["input.1"], host.decode_latents(latents)]
    assert modes == [name != "A1111"] * 4
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in given)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("name", webuis.HOSTS)
def test_a_forge_is_told_of_a_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory: Any = ModuleType("backend.memory_management")
    asked: list[Any] = []
    memory.free_memory = lambda size, device: asked.append((size, device))
    monkeypatch.setitem(sys.modules, memory.__name__, memory)
    open_webui(webuis.HOSTS[name]()).make_room(5)
    assert asked == ([] if name == "A1111" else [(5, torch.device("cpu"))])


@pytest.mark.parametrize("name", ["Forge", "reForge"])
def test_a_forge_s_unet_gets_its_computation_dtype(name: str) -> None:
    model = webuis.HOSTS[name]()
    kind = model.forge_objects.unet.model
    kind.computation_dtype = kind.manual_cast_dtype = torch.bfloat16
    kind.diffusion_model.to(torch.bfloat16)
    host = open_webui(model)
    taps = host.extract(torch.zeros(1, 4, 16, 16), torch.tensor([100]), torch.zeros(1, 77, 64), ["input.1"])
    assert kind.diffusion_model.given["dtypes"] == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert taps["input.1"].isfinite().all()


def test_merged_tokens_are_parted_for_our_pass_alone(model: Any) -> None:
    host, ratios = open_webui(model), []
    arguments = {"ratio": 0.5, "generator": "theirs", "max_downsample": 1}
    host._unet._tome_info = {"args": arguments, "size": None, "hooks": []}
    host._unet.register_forward_pre_hook(lambda *_: ratios.append(dict(arguments)))
    host.extract(torch.zeros(1, 4, 16, 16), torch.tensor([100]), torch.zeros(1, 77, 64), ["input.1"])
    assert ratios == [{"ratio": 0.0, "generator": None, "max_downsample": 1}]
    assert arguments == {"ratio": 0.5, "generator": "theirs", "max_downsample": 1}


class Flux(nn.Module):
    """What a Forge may hold beside Stable Diffusion."""


def _two_channels_more(unet: Any) -> Any:
    unet.input_blocks[0][0].in_channels = 8
    return unet


def _in_gguf(unet: nn.Module) -> nn.Module:
    """Its layers as a Forge has those of a GGUF file."""
    for transformer in spatial_transformers(unet).values():
        transformer.transformer_blocks[0].attn2.to_k = nn.Identity()
    return unet


REFUSED = {
    "GGUF": (lambda: _in_gguf(webuis.unet()), "one in GGUF"),
    "another network": (lambda: Flux(), "got a Flux"),
    "SDXL's refiner": (lambda: webuis.unet(dataclasses.replace(small.UNET, context_dim=1280)), "refiner"),
    "instructions": (lambda: _two_channels_more(webuis.unet()), "8 input channels"),
    "the LDM's form at SDXL's width": (
        lambda: webuis.unet(dataclasses.replace(small.UNET, context_dim=2048)),
        r"2048 \(SDXL\) of another form",
    ),
}


@pytest.mark.parametrize("name", webuis.HOSTS)
@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_one_sentence(name: str, case: str) -> None:
    make, got = REFUSED[case]
    network = make()
    host = webuis.HOSTS[name]()
    if name != "Forge":
        host.model.diffusion_model = network
    if name != "A1111":
        host.forge_objects.unet.model.diffusion_model = network
    with pytest.raises(HostError, match=got) as error:
        open_host(host)
    assert str(error.value).count(". ") <= 1  # "1.x, 2.x" aside, one sentence
    assert "socket" not in str(error.value)


class LinearOfAForge(nn.Module):
    """A Forge's own, which is none of torch's: there each kind of stored weights has a class."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features


@pytest.mark.parametrize("linear", [nn.Linear, LinearOfAForge])
def test_the_family_is_told_by_how_pictures_enter_attention(linear: type[nn.Module]) -> None:
    """Of SD 2.x and SDXL by no convolution, whatever class a host has for what they have instead."""
    unet = webuis.unet()
    assert family_of(unet) == "sd1"
    for transformer in spatial_transformers(unet).values():
        transformer.proj_in = linear(1, 1)
    assert family_of(unet) == "sd2"
    unet.label_emb = nn.Identity()
    assert family_of(unet) == "sdxl"


def test_sd1_that_predicts_v_is_refused(model: Any) -> None:
    if hasattr(model, "parameterization"):
        model.parameterization = "v"
    else:
        model.forge_objects.unet.model.predictor.prediction_type = "v_prediction"
    with pytest.raises(HostError, match="v_prediction"):
        open_host(model)


def test_masks_of_the_tiny_world_in_their_clothes() -> None:
    """A right mask: trained weights, the trained head and the attention head, through each adapter."""
    tiny = TinyHost.load()
    scene = tinyworld.scene(22, "photo")
    for name, make in webuis.HOSTS.items():
        network = webuis.HostUNet(tiny.models.unet.config).eval()
        network.load_state_dict(tiny.models.unet.state_dict())
        host: Any = open_host(make(network))
        host.encode_text = tiny.encode_text
        host.condition, host.tokenize = tiny.condition, tiny.tokenize
        for head in (load_head("tiny"), AttentionHead(CONFIGS["tiny"])):
            expected, got = (Predictor(h, head) for h in (tiny, host))
            expected.set_image(scene.image)
            latents = expected._latents
            assert latents is not None
            got.set_latents(latents)
            phrases = ["a purple cat", "grass"]
            theirs, ours = expected.predict(phrases), got.predict(phrases)
            torch.testing.assert_close(ours.probabilities, theirs.probabilities, atol=1e-3, rtol=0, msg=name)
            torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-3, rtol=0)
            assert theirs.probabilities.amax() > 0.9


def test_sdxl_gets_its_pooled_text_and_its_sizes() -> None:
    unet: Any = webuis.unet()
    host = open_webui(webuis.forge(unet))
    host.family = "sdxl"
    unet.label_emb = nn.ModuleList([nn.ModuleList([nn.Linear(16 + 6 * 8, 4)])])
    pooled = torch.arange(16.0)
    conditioning = Conditioning(torch.zeros(2, 77, 64), {"pooled": pooled.expand(2, -1)})
    latents, timesteps = torch.zeros(2, 4, 16, 32), torch.tensor([100, 100])
    host.observe(latents, timesteps, conditioning, lambda network: reading(network, ["input.1"]))
    sizes = timestep_embedding(torch.tensor([128, 256, 0, 0, 128, 256]), 8).flatten()
    torch.testing.assert_close(unet.given["y"], torch.cat([pooled, sizes]).expand(2, -1))
