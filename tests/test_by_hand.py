"""What the predictor makes of the shipped models, computed here a second time, step by step, from the host's and the
network's own calls: template, t, noise, presence, ensemble, score and "a - b"."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ldznet import Predictor, load_head
from ldznet.hosts.tiny import TinyHost
from ldznet.models import CapturedTaps, LDZNet, build_head
from ldznet.tinyworld import scene

SEED, LOUDER = 11, 40
PHRASES = {"a purple cup": "a photo of a purple cup.", "snow": "a photo of a snow."}  # and what the encoder is to read
AS_READ = ("a purple cup", "a snow", "a flower")
BETAS = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
KEPT = (1 - BETAS).cumprod(0)  # of a picture's variance at each t


@pytest.fixture(scope="module")
def host() -> TinyHost:
    return TinyHost.load()


@pytest.fixture(scope="module")
def head() -> LDZNet:
    """The tiny head with the published one's template and t, and taps that are heard: its own template adds nothing
    that could be missed, and as trained its taps move logits by hundredths."""
    head = changed(load_head("tiny"), template="a photo of a {}.", timestep=400, timestep_range=(300, 499))
    for name, weight in head.named_parameters():
        if "attn3.to_out" in name:
            weight *= LOUDER
    return head


@pytest.fixture(scope="module")
def latents(host: TinyHost) -> torch.Tensor:
    """Of two scenes, so that a mask may be soft in one and hard in another."""
    pictures = torch.stack([torch.from_numpy(scene(seed, "photo").image) for seed in (3, 900_004)])
    return host.encode_image(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)


@torch.no_grad()
def once(
    host: TinyHost, head: LDZNet, latents: torch.Tensor, texts: list[str], t: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mask logits b p h w and presence logits b p of one (t, noise), each pair of a picture and a text by itself."""
    noise = torch.randn(1, 4, *latents.shape[2:], generator=torch.Generator().manual_seed(seed))
    maps, presences = [], []
    for clean in latents[:, None]:
        for text in texts:
            context = host.encode_text([text])
            noisy = float(KEPT[t].sqrt()) * clean + float((1 - KEPT[t]).sqrt()) * noise
            taps = host.extract(noisy, torch.tensor([t]), context, list(head.head_config.tap_specs))
            logits, presence = head.masks_and_presence(clean, torch.tensor([0]), context, taps)
            maps.append(logits[0, 0])
            presences.append(presence)
    shape = (len(latents), len(texts))
    there = None if presences[0] is None else torch.cat(presences).unflatten(0, shape)
    return torch.stack(maps).unflatten(0, shape), there


def predicted(host: TinyHost, head: LDZNet, latents: torch.Tensor, phrases: list[str], **settings: int):
    predictor = Predictor(host, head, seed=SEED, **settings)
    predictor.set_latents(latents)
    return predictor.predict(phrases)


def changed(head: LDZNet, **changes: object) -> LDZNet:
    """The same weights, as far as there is a place for them, under another configuration."""
    other = build_head(dataclasses.replace(head.head_config, **changes))
    names = other.state_dict().keys()
    other.load_state_dict({name: weight for name, weight in head.state_dict().items() if name in names})
    return other.eval().requires_grad_(False)


def test_one_pass_is_template_noise_t_taps_and_presence(host: TinyHost, head: LDZNet, latents: torch.Tensor) -> None:
    result = predicted(host, head, latents, list(PHRASES))
    logits, presence = once(host, head, latents, list(PHRASES.values()), 400, SEED)
    torch.testing.assert_close(result.logits, logits, atol=2e-3, rtol=0)
    assert presence is not None
    torch.testing.assert_close(result.scores, presence.sigmoid(), atol=1e-4, rtol=0)
    assert result.scores.max() > 0.9
    bare, _ = once(host, head, latents, list(PHRASES), 400, SEED)
    assert (result.logits - bare).abs().max() > 0.1  # the template is seen in the masks
    other_noise, _ = once(host, head, latents, list(PHRASES.values()), 400, SEED + 1)
    assert (result.logits - other_noise).abs().max() > 0.1  # and the taps


@pytest.mark.parametrize("chunk", [2, 100])
def test_captured_taps_are_each_picture_s_own(host: TinyHost, head: LDZNet, latents: torch.Tensor, chunk: int) -> None:
    """In pieces of two pairs, and all at once; the UNet is not asked."""
    blocks = list(head.head_config.tap_specs)
    context = host.encode_text(["snow", "grass"])
    taps = dict(host.extract(latents, torch.tensor([400, 300]), context, blocks))
    predictor = Predictor(host, head, chunk=chunk)
    predictor.set_latents(latents, captured=CapturedTaps(taps))
    logits = predictor.predict(["a purple cup", "snow", "a flower"]).logits
    for i in range(2):
        for p, text in enumerate(("a photo of a purple cup.", "a photo of a snow.", "a photo of a flower.")):
            own = {block: tap[i : i + 1] for block, tap in taps.items()}
            with torch.no_grad():
                expected = head(latents[i : i + 1], torch.tensor([0]), host.encode_text([text]), own)
            torch.testing.assert_close(logits[i, p], expected[0, 0], atol=2e-3, rtol=0)
    swapped = {block: tap.flip(0) for block, tap in taps.items()}
    predictor.set_latents(latents, captured=CapturedTaps(swapped))
    assert (predictor.predict(["snow"]).logits[:, 0] - logits[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_pieces_come_together_in_order(host: TinyHost, head: LDZNet, latents: torch.Tensor, chunk: int) -> None:
    texts = ["a purple cup", "snow", "a flower"]
    result = predicted(host, head, latents, texts, chunk=chunk)
    expected, presence = once(host, head, latents, [f"a photo of {text}." for text in AS_READ], 400, SEED)
    torch.testing.assert_close(result.logits, expected, atol=2e-3, rtol=0)
    assert presence is not None
    torch.testing.assert_close(result.scores, presence.sigmoid(), atol=1e-4, rtol=0)


def test_the_template_is_the_head_s_own(host: TinyHost, head: LDZNet, latents: torch.Tensor) -> None:
    other = changed(head, template="the {} on snow")
    result = predicted(host, other, latents, ["a purple cup", "snow"])
    logits, _ = once(host, head, latents, ["the purple cup on snow", "the snow on snow"], 400, SEED)
    torch.testing.assert_close(result.logits, logits, atol=2e-3, rtol=0)


def test_an_ensemble_is_a_mean_over_its_own_t_and_noise(host: TinyHost, head: LDZNet, latents: torch.Tensor) -> None:
    result = predicted(host, head, latents, list(PHRASES), ensemble=3)
    texts = list(PHRASES.values())
    members = [once(host, head, latents, texts, t, SEED + i) for i, t in enumerate((333, 400, 466))]
    logits = torch.stack([maps for maps, _ in members])
    scores = torch.stack([presence.sigmoid() for _, presence in members if presence is not None])
    torch.testing.assert_close(result.logits, logits.mean(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(result.scores, scores.mean(0), atol=1e-4, rtol=0)
    assert result.deviation is not None
    mean = logits.sigmoid().mean(0)
    deviation = ((logits.sigmoid() - mean) ** 2).sum(0).div(3 - 1).sqrt()
    torch.testing.assert_close(result.deviation, deviation, atol=1e-3, rtol=0)
    narrow = predicted(host, changed(head, timestep_range=(100, 100)), latents, list(PHRASES), ensemble=2)
    at_100 = [once(host, head, latents, texts, 100, SEED + i)[0] for i in range(2)]
    torch.testing.assert_close(narrow.logits, torch.stack(at_100).mean(0), atol=2e-3, rtol=0)


def test_the_score_of_a_head_without_presence_is_its_best_square(
    host: TinyHost, head: LDZNet, latents: torch.Tensor
) -> None:
    """The mean probability of the 8 x 8 pixels, beginning at multiples of 8, where that is highest."""
    result = predicted(host, changed(head, has_presence=False), latents, ["a purple cup", "snow", "a blue fish"])
    maps = result.logits.sigmoid()
    best = torch.zeros(2, 3)
    for y in range(0, maps.shape[2], 8):
        for x in range(0, maps.shape[3], 8):
            best = torch.maximum(best, maps[:, :, y : y + 8, x : x + 8].mean(dim=(2, 3)))
    torch.testing.assert_close(result.scores, best, atol=1e-5, rtol=0)
    assert (maps.amax(dim=(2, 3)) - best).max() > 0.02  # one pixel alone would say more


def test_what_counts_as_found_is_the_head_s_own(host: TinyHost, head: LDZNet, latents: torch.Tensor) -> None:
    scores = predicted(host, head, latents, list(PHRASES)).scores
    middle = float((scores.amax() + scores.amin()) / 2)
    result = predicted(host, changed(head, presence_threshold=middle), latents, list(PHRASES))
    assert result.found_threshold == middle
    assert torch.equal(result.found, scores > middle)
    assert {True, False} == set(result.found.flatten().tolist())


def test_a_minus_b_is_a_product(host: TinyHost, head: LDZNet, latents: torch.Tensor) -> None:
    """p(a) (1 - p(b)) (1 - p(c)) at every pixel, of what is found of b and c; the score of a, less where little of a
    is left."""
    parts = predicted(host, head, latents, ["a cup", "a purple cup", "snow"])
    cup, _, snow = parts.logits.double().sigmoid().unbind(1)
    taken = (parts.logits.double().sigmoid() * parts.found[:, :, None, None]).unbind(1)
    result = predicted(host, head, latents, ["a cup - a purple cup", "snow - a cup - a purple cup", "a cup - snow"])
    product = [cup * (1 - taken[1]), snow * (1 - taken[0]) * (1 - taken[1]), cup * (1 - taken[2])]
    torch.testing.assert_close(result.logits.double().sigmoid(), torch.stack(product, dim=1), atol=1e-5, rtol=0)
    least = torch.minimum(cup, 1 - taken[1])
    assert parts.found.any(dim=0).all()
    assert (least - product[0]).max() > 0.05  # the smaller of the two is another mask
    assert (result.scores <= parts.scores[:, [0, 2, 0]]).all()
