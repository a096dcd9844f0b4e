"""SD 3 and Flux.1 of diffusers as hosts of the attention head: what is read, where words are, that nothing changes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosts import small_joint
from PIL import Image

from ldznet import Predictor, load_head, open_host
from ldznet.attention import AttentionHead
from ldznet.attention.config import config_for
from ldznet.attention.head import rescaled
from ldznet.attention.prompts import Prompt, spoken_in
from ldznet.cli import main
from ldznet.contracts import Conditioning, JointHost
from ldznet.errors import HostError, InputError, TapError

pytest.importorskip("diffusers")
PROMPT = "a photo of a red dog and the green grass"
SIZE = (12, 20)  # of the latents, not square
GRID = (6, 10)
LAST = "joint.2"


@pytest.fixture(scope="module", params=small_joint.FAMILIES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_joint.pipeline(tmp_path_factory.mktemp("joint"), request.param)


@pytest.fixture(scope="module")
def host(pipeline: Any) -> Any:
    return open_host(pipeline)


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 16, *SIZE, generator=torch.Generator().manual_seed(3))


def conditioning(host: Any, batch: int = 2) -> Conditioning:
    """Of PROMPT."""
    return rescaled(host.condition([PROMPT]), Prompt(PROMPT, (), (), ()), 1.0, batch)


def read(host: Any, batch: int = 2, given: Conditioning | None = None, blocks: Any = None, size: Any = SIZE) -> Any:
    """The library's maps of `blocks`, of all if None."""
    names = list(host.specs) if blocks is None else blocks
    return host.observe(
        latents(batch),
        torch.full((batch,), 500),
        given or conditioning(host, batch),
        lambda network: host.reading_attention(network, names, names[-1:], host.specs, size),
    )


def explicit(host: Any, batch: int = 2) -> Iterator[tuple[torch.Tensor, int]]:
    """For each block in turn: softmax(q k / sqrt c) over all rows, heads averaged, b rows rows, in float64, of queries
    and keys made here from what the block's attention is given; and how many rows the text has."""
    given: list[dict[str, Any]] = []
    attentions = [block.attn for block in host._network.transformer_blocks]
    hooks = [a.register_forward_pre_hook(lambda m, args, n: given.append(n), with_kwargs=True) for a in attentions]
    try:
        host.observe(latents(batch), torch.full((batch,), 500), conditioning(host, batch), _nothing)
    finally:
        for hook in hooks:
            hook.remove()
    for attention, named in zip(attentions, given, strict=True):
        picture, text = named["hidden_states"], named["encoder_hidden_states"]
        parts = []
        for norm, project in (("q", "q"), ("k", "k")):
            own = _heads(getattr(attention, f"to_{project}")(picture), attention, f"norm_{norm}")
            others = _heads(getattr(attention, f"add_{project}_proj")(text), attention, f"norm_added_{norm}")
            both = torch.cat([own, others] if host.family == "sd3" else [others, own], dim=2)
            parts.append(_rotated(both, named.get("image_rotary_emb")).double())
        query, key = parts
        yield (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(-1).mean(1), text.shape[1]


def _nothing(network: Any) -> Any:
    return contextlib.nullcontext()


def _heads(part: torch.Tensor, attention: Any, norm: str) -> torch.Tensor:
    return getattr(attention, norm)(part.unflatten(2, (attention.heads, -1)).transpose(1, 2))


def _rotated(part: torch.Tensor, rotary: Any) -> torch.Tensor:
    """Pairs of channels turned by each row's angles, as RoPE has it."""
    if rotary is None:
        return part
    cos, sin = rotary
    even, odd = part[..., ::2], part[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return part * cos + turned * sin


@torch.no_grad()
def test_maps_are_those_of_an_explicit_softmax(host: Any) -> None:
    found = read(host)
    pixels = GRID[0] * GRID[1]
    every = list(explicit(host))
    assert len(every) == 3
    for i, (scores, rows) in enumerate(every):
        picture = slice(0, pixels) if host.family == "sd3" else slice(rows, rows + pixels)
        text = slice(pixels, pixels + rows) if host.family == "sd3" else slice(0, rows)
        ours = found.cross[f"joint.{i}"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours.double(), scores[:, picture, text], atol=1e-6, rtol=0)
        assert ours.max() > 1e-3
    torch.testing.assert_close(found.self_attention[LAST].double(), scores[:, picture, picture], atol=1e-6, rtol=0)
    swapped = scores[:, text, picture] if rows == pixels else scores[:, :pixels, -rows:]
    wrong = {"another block": every[0][0][:, picture, text], "the other order": swapped}
    if host.family == "sd3":
        wrong["the other order"] = scores[:, rows:, :rows]
    for other in wrong.values():
        assert (ours - other).abs().max() > 1e-4


def test_it_is_a_host_of_the_attention_head(host: Any, pipeline: Any) -> None:
    assert isinstance(host, JointHost)
    assert (host.family, host.latent_channels, host.pixels_per_latent) == (host.family, 16, 8)
    assert list(host.specs) == ["joint.0", "joint.1", LAST]
    assert {spec.stride for spec in host.specs.values()} == {2}
    with pytest.raises(HostError, match="taps"):
        host.extract(latents(), torch.full((2,), 500), host.encode_text(["a dog"]), ["joint.0"])


def test_text_is_the_pipeline_s(host: Any, pipeline: Any) -> None:
    if host.family == "sd3":
        context, _, pooled, _ = pipeline.encode_prompt(PROMPT, None, None, do_classifier_free_guidance=False)
    else:
        context, pooled, _ = pipeline.encode_prompt(PROMPT, None, max_sequence_length=256)
    ours = host.condition([PROMPT])
    torch.testing.assert_close(ours.context, context, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.extras["pooled"], pooled, atol=1e-4, rtol=0)


def test_the_pass_is_the_pipeline_s(host: Any, pipeline: Any) -> None:
    """What the transformer is given is what a pipeline gives it at that step."""
    seen: list[dict[str, Any]] = []

    def record(module: Any, args: Any, named: dict[str, Any]) -> None:
        seen.append(named)

    sizes = {"height": 8 * SIZE[0], "width": 8 * SIZE[1], "num_inference_steps": 2, "output_type": "latent"}
    hook = pipeline.transformer.register_forward_pre_hook(record, with_kwargs=True)
    texts = {"prompt": PROMPT, "max_sequence_length": 256}
    try:
        start = latents(1)
        packed = pipeline._pack_latents(start, 1, 16, *SIZE) if host.family == "flux" else start
        pipeline.set_progress_bar_config(disable=True)
        pipeline(**texts, **sizes, guidance_scale=3.5 if host.family == "flux" else 1.0, latents=packed)
    finally:
        hook.remove()
    theirs = seen[0]  # at the first step all is noise
    ours = host._form.inputs(host._network, start, host.condition([PROMPT]))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].reshape(value.shape), msg=name)
    times = host._form.time * host._shares(torch.tensor([1000]), start)
    torch.testing.assert_close(times, theirs["timestep"].float())
    if host.family == "sd3":
        table = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        half = table.sigmas[table.timesteps.argsort(descending=True)][500]
    else:
        half = pipeline.scheduler.sigmas[1]  # the second of two steps, by the picture's size
    torch.testing.assert_close(host._shares(torch.tensor([500]), start), half[None])


def test_noise_is_mixed_by_share(host: Any) -> None:
    clean, noise = latents(), latents().flip(0)
    steps = torch.tensor([260, 1000])
    share = host._shares(steps, clean)[:, None, None, None]
    torch.testing.assert_close(host.add_noise(clean, noise, steps), (1 - share) * clean + share * noise)
    torch.testing.assert_close(host.add_noise(clean, noise, steps)[1], noise[1])
    if host.family == "sd3":
        assert float(share[0]) == pytest.approx(3 * 0.26 / (1 + 2 * 0.26))


def test_latents_are_the_shifted_and_scaled_mode(host: Any, pipeline: Any) -> None:
    pixels = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mode = pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(host.encode_image(pixels), (mode - 0.0609) * 1.5305)
    back = host.decode_latents((mode - 0.0609) * 1.5305)
    with torch.no_grad():
        torch.testing.assert_close(back, pipeline.vae.decode(mode).sample, atol=1e-5, rtol=1e-4)
    for wrong in (latents()[:, :4], latents()[..., 1:]):
        with pytest.raises(InputError, match="b 16 h w in model space, sides in multiples of 2"):
            host.decode_latents(wrong)


def test_words_are_the_rows_that_change_with_them(host: Any) -> None:
    texts = host.texts
    prompt = spoken_in(texts.rows(PROMPT), ["dog", "grass"], texts.spellings)
    found = dict(zip(prompt.phrases, prompt.phrase_tokens, strict=True))
    before = host.condition([PROMPT]).context
    for word, rows in found.items():
        changed = (host.condition([PROMPT.replace(word, "cat")]).context - before).abs().sum(dim=(0, 2))
        first = [77 + int(changed[77:].argmax()), int(torch.nonzero(changed[:77] > 1e-5)[0])]
        expected = first[::-1] if host.family == "sd3" else [int(changed.argmax())]
        assert list(rows) == expected


def test_no_pass_leaves_a_trace(host: Any, pipeline: Any) -> None:
    def state() -> list[Any]:
        processors = [block.attn.processor for block in pipeline.transformer.transformer_blocks]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipeline.transformer.modules()]
        return [*map(id, processors), hooks, [m.training for m in pipeline.transformer.modules()]]

    pipeline.transformer.train()
    before, given = state(), host._form.inputs(host._network, latents(), conditioning(host))
    time = torch.full((2,), 500.0 if host.family == "sd3" else 0.5)
    with torch.no_grad():
        picture = host._network(**given, timestep=time, return_dict=False)[0]
    read(host)
    broken = Conditioning(torch.zeros(2, 9, 7), conditioning(host).extras)
    with pytest.raises(RuntimeError):
        read(host, given=broken)
    with pytest.raises(TapError, match=r"6 x 9 rows of the picture were expected, and 60 came"):
        read(host, size=(12, 18))
    assert state() == before
    with torch.no_grad():
        assert torch.equal(host._network(**given, timestep=time, return_dict=False)[0], picture)
    pipeline.transformer.eval()


def test_a_pass_whose_attention_never_reaches_torch(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a kernel of its own: said, not guessed."""
    for block in host._network.transformer_blocks:
        monkeypatch.setattr(
            block.attn,
            "forward",
            lambda hidden_states, encoder_hidden_states, **named: (hidden_states, encoder_hidden_states),
        )
    with pytest.raises(TapError, match='Set the transformer\'s attention backend to "native"'):
        read(host)


def test_fused_projections(host: Any, pipeline: Any) -> None:
    """Whatever processor a pipeline has set, its call is seen; diffusers' own for SD 3 knows no second attention."""
    if host.family == "sd3":
        return
    expected = read(host, 1).cross[LAST]
    pipeline.transformer.fuse_qkv_projections()
    try:
        torch.testing.assert_close(read(host, 1).cross[LAST], expected, atol=1e-6, rtol=0)
    finally:
        pipeline.transformer.unfuse_qkv_projections()


def test_a_compiled_transformer(host: Any, pipeline: Any) -> None:
    expected = read(host, 1).cross[LAST]
    pipeline.transformer.compile()
    wrapped = torch.compile(pipeline.transformer)
    assert torch.equal(read(host, 1).cross[LAST], expected)
    whole, pipeline.transformer = pipeline.transformer, wrapped
    try:
        assert torch.equal(read(open_host(pipeline), 1).cross[LAST], expected)
    finally:
        pipeline.transformer = whole


def test_the_folder_gives_the_pipeline_s_masks(host: Any, pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    saved = open_host(tmp_path / "model")
    torch.testing.assert_close(saved.condition([PROMPT]).context, host.condition([PROMPT]).context)
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    masks = []
    for opened in (saved, host):
        small = dataclasses.replace(config_for(opened), latent_grid=(16, 16), size_multiple=16)
        predictor = Predictor(opened, AttentionHead(small))
        predictor.set_image(image)
        masks.append(predictor.predict(["a dog", "the green grass"]).probabilities)
    torch.testing.assert_close(*masks, atol=1e-4, rtol=0)
    assert masks[0].shape == (1, 2, 96, 128)
    assert (masks[0][:, 0] - masks[0][:, 1]).abs().max() > 0.1


def test_the_command_line_reads_its_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_joint.pipeline(tmp_path, "sd3", t5=False).save_pretrained(tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    options = ["--text", "a dog", "--text", "grass", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["ldznet", "segment", str(tmp_path / "a.png"), *options, "--head", "attention"])
    with contextlib.suppress(SystemExit):
        main()
    assert "a dog: " in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "00_a_dog.png") as mask:
        assert mask.size == (96, 64)


def test_a_trained_head_is_refused(host: Any) -> None:
    with pytest.raises(HostError, match="Expected"):
        Predictor(host, load_head("tiny"))


def test_too_long_a_text_is_counted(host: Any) -> None:
    most = 75 if host.family == "sd3" else 255
    host.condition([" ".join(["red"] * most)])
    with pytest.raises(InputError, match=f"Expected at most {most} tokens, got {most + 1}"):
        host.condition([" ".join(["red"] * (most + 1))])


def test_without_t5(tmp_path: Path) -> None:
    """SD 3 has CLIP's rows alone then; Flux.1 cannot be opened."""
    host: Any = open_host(small_joint.pipeline(tmp_path, "sd3", t5=False))
    assert host.condition([PROMPT]).context.shape == (1, 77, 64)
    assert [len(row) for row in host.texts.rows(PROMPT)] == [77]
    with pytest.raises(HostError, match="no text_encoder_2"):
        open_host(small_joint.pipeline(tmp_path, "flux", t5=False))


def test_strangers(tmp_path: Path) -> None:
    pipe = small_joint.pipeline(tmp_path, "flux")
    pipe.transformer = small_joint.transformer("flux", in_channels=384, out_channels=64)
    with pytest.raises(HostError, match="takes 384 channels for 64"):
        open_host(pipe)
    pipe.transformer = pipe.vae
    with pytest.raises(HostError, match="got a AutoencoderKL"):
        open_host(pipe)
    pipe.transformer = small_joint.transformer("flux", in_channels=16)
    with pytest.raises(HostError, match="VAE of 4 latent channels, got one of 16"):
        open_host(pipe)


def test_concept_attention_is_for_flux(host: Any, tmp_path: Path) -> None:
    """Of a picture; SD 3's rows have CLIP's among them."""
    if host.family == "sd3":
        with pytest.raises(HostError, match=r"Expected Flux\.1 or Chroma for concept attention, got SD 3"):
            load_head("concepts").fitted_to(host)
        return
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    found = {}
    for name in ("concepts", "attention"):
        predictor = Predictor(host, load_head(name))
        predictor.set_image(picture)
        found[name] = predictor.predict(["a red dog", "grass"])
    assert found["concepts"].masks().shape == (1, 2, 64, 96)
    assert 0 < found["concepts"].masks().float().mean() < 1
    assert (found["concepts"].probabilities - found["attention"].probabilities).abs().max() > 0.1
