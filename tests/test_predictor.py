"""The predictor on stand-ins that carry the picture losslessly, and on the rules that every prediction keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ldznet import HeadConfig, Predictor, Segmentation, UNetConfig
from ldznet.errors import HostError, InputError
from ldznet.hosts.tiny import TinyHost
from ldznet.models import CapturedTaps, TrainedHead, build_head
from ldznet.tinyworld import world


class LosslessHost:
    """Latents are the picture's red channel, unshuffled by 8."""

    family, specs, context_dim, device, dtype = "tiny", {}, 4, torch.device("cpu"), torch.float32

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(pixels[:, :1], 8)

    def encode_text(self, phrases: list[str]) -> torch.Tensor:
        return torch.zeros(len(phrases), 77, 4)


class LosslessHead(TrainedHead):
    """Logits are the latents shuffled back, so the mask is where the picture is white."""

    example, scale = torch.zeros(()), 20.0

    def __init__(self, multiple: int = 32) -> None:
        unet = UNetConfig(in_channels=64, context_dim=4)
        self.head_config = HeadConfig(network="znet", unet=unet, latent_grid=(16, 16), size_multiple=multiple)

    def masks_and_presence(self, latents, timesteps, context, taps):
        return F.pixel_shuffle(latents, 8) * self.scale, None


@pytest.mark.parametrize("resolution", ["head", "native"])
@pytest.mark.parametrize("size", [(128, 128), (125, 131), (97, 203), (301, 77), (256, 256), (63, 65)])
def test_a_rectangle_stays_where_it_is(size: tuple[int, int], resolution: str) -> None:
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    top, bottom, left, right = height // 4, height * 3 // 4, width // 5, width * 4 // 5
    image[top:bottom, left:right] = 255
    predictor = Predictor(LosslessHost(), LosslessHead(), resolution=resolution)
    predictor.set_image(image)
    result = predictor.predict(["the rectangle"])
    assert result.probabilities.shape == (1, 1, height, width)
    rows, columns = result.masks()[0, 0].nonzero(as_tuple=True)
    network = result.logits.shape[2:]
    pixel = (max(1.0, height / network[0]), max(1.0, width / network[1]))
    edges = [rows.min() - top, rows.max() + 1 - bottom, columns.min() - left, columns.max() + 1 - right]
    for edge, limit in zip(edges, (pixel[0], pixel[0], pixel[1], pixel[1]), strict=True):
        assert abs(float(edge)) <= limit, (edges, pixel)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    models = world.fresh()
    head = build_head(world.head_config("ldznet"))
    for module in (*models[:3], head):
        module.eval().requires_grad_(False)
    return Predictor(TinyHost(models), head)


PHRASES = ["a red star", "grass", "a blue cat", "zebra 🦓 雪"]


def test_alone_or_together_in_any_order_masks_agree(predictor: Predictor) -> None:
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    predictor.set_latents(latents)
    together = predictor.predict(PHRASES).probabilities
    assert torch.equal(together, predictor.predict(PHRASES).probabilities)
    backwards = predictor.predict(PHRASES[::-1]).probabilities.flip(1)
    assert (together - backwards).abs().max() < 1e-4
    predictor.set_latents(latents[1:2])
    alone = predictor.predict(["a blue cat"]).probabilities
    assert (together[1:2, 2:3] - alone).abs().max() < 1e-4


def test_ensemble_gives_a_spread(predictor: Predictor) -> None:
    three = Predictor(predictor.host, predictor.head, ensemble=3)
    three.set_latents(torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(1)), size=(100, 150))
    result = three.predict(["grass"])
    assert result.spread is not None
    assert result.spread.shape == (1, 1, 100, 150)
    assert result.spread.max() > 0
    predictor.set_latents(torch.zeros(1, 4, 16, 16))
    assert predictor.predict(["grass"]).spread is None


def test_progress_counts_and_stops(predictor: Predictor) -> None:
    seen = []
    counting = Predictor(
        predictor.host, predictor.head, chunk=2, progress=lambda done, total: seen.append((done, total))
    )
    counting.set_latents(torch.zeros(1, 4, 16, 16))
    counting.predict(PHRASES)
    assert seen == [(2, 4), (4, 4)]
    counting.ensemble = 2
    counting.predict(PHRASES[:3])
    assert seen[2:] == [(2, 6), (4, 6), (5, 6), (6, 6)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    stopping = Predictor(predictor.host, predictor.head, progress=stop)
    stopping.set_latents(torch.zeros(1, 4, 16, 16))
    with pytest.raises(KeyboardInterrupt):
        stopping.predict(PHRASES)
    assert not any(m._forward_hooks for m in predictor.host.models.unet.modules())


def test_minus_subtracts() -> None:
    predictor = Predictor(LosslessHost(), LosslessHead())
    predictor.set_image(np.full((128, 128, 3), 255, np.uint8))
    result = predictor.predict(["cat", "cat - dog"])
    assert result.probabilities[0, 0].min() > 0.99
    assert result.probabilities[0, 1].max() < 0.01


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (40, 30), (255, 0, 0, 10)),
        Image.new("P", (40, 30)),
        Image.new("L", (1, 90)),
        Image.new("1", (40, 30)),
        Image.new("I;16", (40, 30)),
        Image.new("LA", (8000, 3)),
        Image.new("CMYK", (17, 19)),
    ],
    ids=lambda image: f"{image.mode} {image.size}",
)
def test_pictures_as_people_have_them(image: Image.Image, predictor: Predictor) -> None:
    predictor.set_image(image)
    assert predictor.predict(["grass"]).probabilities.shape == (1, 1, image.height, image.width)


def test_exif_rotation_is_applied(predictor: Predictor) -> None:
    image = Image.new("RGB", (40, 30))
    image.getexif()[0x0112] = 6
    predictor.set_image(image)
    assert predictor.predict(["grass"]).probabilities.shape[2:] == (40, 30)


@pytest.mark.parametrize(
    "image",
    [
        "photo.png",
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 4, 8, 8),
        torch.full((1, 3, 8, 8), 255.0),
        torch.full((1, 3, 8, 8), float("nan")),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=str,
)
def test_wrong_images_say_what_came(image: object, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"Expected .*, got "):
        predictor.set_image(image)


@pytest.mark.parametrize(
    "latents",
    [
        torch.zeros(4, 16, 16),
        torch.zeros(1, 3, 16, 16),
        torch.zeros(1, 4, 1, 16, 16),
        torch.full((1, 4, 2, 2), torch.nan),
        torch.zeros(1, 4, 2, 2, dtype=torch.complex64),
        np.zeros((1, 4, 2, 2), np.float32),
        None,
    ],
    ids=lambda t: str(tuple(t.shape)) if isinstance(t, torch.Tensor) else type(t).__name__,
)
def test_wrong_latents_say_what_came(latents: object, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"Expected .*, got "):
        predictor.set_latents(latents)


@pytest.mark.parametrize("size", [(0, 5), (5,), (1, 2, 3), "ab", (2.5, 3), (-1, 4), 7], ids=str)
def test_wrong_sizes_say_what_came(size: object, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"Expected a size \(height, width\).*, got "):
        predictor.set_latents(torch.zeros(1, 4, 2, 2), size)


def captured(predictor: Predictor) -> dict[str, torch.Tensor]:
    return {spec.block: torch.zeros(1, spec.channels, 2, 2) for spec in predictor.config.tap_specs.values()}


@pytest.mark.parametrize(
    "change",
    [
        lambda taps: {},
        lambda taps: {**taps, "middle.0": taps["middle.0"][:, 1:]},
        lambda taps: {**taps, "middle.0": taps["middle.0"][0]},
        lambda taps: {**taps, "middle.0": taps["middle.0"].expand(2, -1, -1, -1)},
        lambda taps: {**taps, "middle.0": taps["middle.0"] + torch.nan},
    ],
    ids=["none", "channels", "rank", "batch", "NaN"],
)
def test_wrong_taps_say_what_came(change: Callable, predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 8, 8), captured=CapturedTaps(captured(predictor)))
    assert predictor.predict(["grass"]).probabilities.shape == (1, 1, 64, 64)
    with pytest.raises(InputError, match=r"Expected .*, got "):
        predictor.set_latents(torch.zeros(1, 4, 8, 8), captured=CapturedTaps(change(captured(predictor))))


def test_float64_and_gradients_are_taken_as_they_are(predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 16, 16, dtype=torch.float64, requires_grad=True))
    result = predictor.predict(["grass"])
    assert result.probabilities.dtype == torch.float32
    assert not result.logits.requires_grad


@pytest.mark.parametrize(
    "phrase",
    [
        *("雪", "собака", "כלב", "कुत्ता", "🦓🏽‍🦓", "e\u0301", "Ǆ", "cat\ud800", "a\nb\tc", "a" * 70),
        *("<endoftext>", "{0}", "%s", "a-b", "(x:1.3)", "a\u00a0dog", "100 %"),
    ],
    ids=ascii,
)
def test_any_script_gets_an_answer(phrase: str, predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 8, 8))
    result = predictor.predict([phrase])
    assert result.phrases == (phrase,)
    assert result.probabilities.isfinite().all()


class Counting(LosslessHost):
    """Says how often it was asked, and for how many phrases at once."""

    def __init__(self) -> None:
        self.images, self.texts = 0, []

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images += 1
        return super().encode_image(pixels)

    def encode_text(self, phrases: list[str]) -> torch.Tensor:
        self.texts.append(len(phrases))
        return super().encode_text(phrases)


def test_a_thousand_phrases_and_one_encoded_image() -> None:
    host = Counting()
    predictor = Predictor(host, LosslessHead(), chunk=100)
    predictor.set_image(np.full((20, 30, 3), 255, np.uint8))
    phrases = [f"thing {i}" for i in range(1000)]
    result = predictor.predict(phrases)
    assert result.masks().shape == (1, 1000, 20, 30)
    assert result.masks().all()
    assert result.phrases == tuple(phrases)
    assert host.images == 1
    assert sum(host.texts) == 1000
    assert max(host.texts) <= 64


def test_a_phrase_given_twice_is_run_once() -> None:
    host = Counting()
    predictor = Predictor(host, LosslessHead())
    predictor.set_image(np.full((64, 64, 3), 255, np.uint8))
    assert predictor.predict(["cat", "dog", "cat", "cat - dog"]).probabilities.shape == (1, 4, 64, 64)
    assert host.texts == [2]


def test_phrases_may_come_one_by_one(predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 8, 8))
    assert predictor.predict(phrase for phrase in ("grass", "sky")).phrases == ("grass", "sky")


@pytest.mark.parametrize("phrases", ["a dog", [], [3], [None], ["a", b"b"], None, 3])
def test_what_are_no_phrases_says_so(phrases: object, predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match=r"Expected .*, got "):
        predictor.predict(phrases)


def test_predicting_nothing_says_what_to_do(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="Call set_image or set_latents"):
        Predictor(predictor.host, predictor.head).predict(["grass"])


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, 2**70])
def test_any_whole_number_is_a_seed(seed: int, predictor: Predictor) -> None:
    three = Predictor(predictor.host, predictor.head, seed=seed, ensemble=3)
    three.set_latents(torch.zeros(1, 4, 8, 8))
    assert three.predict(["grass"]).probabilities.isfinite().all()


WRONG_SETTINGS = [
    *({"ensemble": 0}, {"ensemble": 1.5}, {"chunk": 0}, {"chunk": "8"}, {"resolution": "full"}),
    *({"seed": 0.5}, {"seed": "a"}, {"host": "tiny"}, {"head": "tiny"}),
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
def test_wrong_settings_say_so(wrong: dict, predictor: Predictor) -> None:
    with pytest.raises(InputError, match=r"Expected .*, got "):
        Predictor(**{"host": predictor.host, "head": predictor.head, **wrong})


def test_nan_of_a_host_or_a_head_is_said() -> None:
    host, head = LosslessHost(), LosslessHead()
    predictor = Predictor(host, head)
    predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    head.scale = float("nan")
    with pytest.raises(InputError, match=r"finite numbers in the masks, got NaN.*float32 or bfloat16"):
        predictor.predict(["grass"])
    host.encode_image = lambda pixels: torch.full((1, 64, 2, 2), torch.inf)
    with pytest.raises(InputError, match=r"VAE's latents, got NaN or infinity. Run the VAE in float32"):
        predictor.set_image(np.zeros((64, 64, 3), np.uint8))


def test_a_panorama_costs_no_more_than_a_square(predictor: Predictor) -> None:
    predictor.set_image(Image.new("RGB", (8000, 1)))
    result = predictor.predict(["grass"])
    assert result.logits.shape[2] * result.logits.shape[3] <= 1.2 * 128 * 128
    assert result.probabilities.shape == (1, 1, 1, 8000)


def test_images_of_any_float_and_with_gradients(predictor: Predictor) -> None:
    pixels = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    predictor.set_image(pixels)
    expected = predictor.predict(["grass"])
    predictor.set_image(pixels.double().requires_grad_())
    result = predictor.predict(["grass"])
    assert not result.logits.requires_grad
    torch.testing.assert_close(result.probabilities, expected.probabilities)
    assert result.probabilities.shape == (2, 1, 40, 56)


def test_a_picture_of_0_to_1_gives_the_masks_of_its_bytes(predictor: Predictor) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    predictor.set_image(array)
    expected = predictor.predict(["grass"]).logits
    picture = torch.from_numpy(array).permute(2, 0, 1)[None] / 255
    predictor.set_image(picture, value_range=(0, 1))
    torch.testing.assert_close(predictor.predict(["grass"]).logits, expected, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="Expected a value_range"):
        predictor.set_image(picture)


def test_a_refused_picture_leaves_the_one_before() -> None:
    host = LosslessHost()
    predictor = Predictor(host, LosslessHead())
    predictor.set_image(np.zeros((40, 56, 3), np.uint8))
    expected = predictor.predict(["grass"]).probabilities
    host.encode_image = lambda pixels: torch.full((1, 64, 2, 2), torch.inf)
    with pytest.raises(InputError, match="the VAE's latents"):
        predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    assert torch.equal(predictor.predict(["grass"]).probabilities, expected)


@pytest.mark.parametrize("size", [(40, 56), (33, 71), (1, 9)])
def test_rgbnet_reads_pixels(size: tuple[int, int]) -> None:
    config = HeadConfig(network="rgbnet", unet=world.head_config("znet").unet, latent_grid=(8, 8), size_multiple=32)
    predictor = Predictor(TinyHost(world.fresh()), build_head(config).eval())
    predictor.set_image(np.zeros((*size, 3), np.uint8))
    assert predictor.predict(["grass", "sky"]).probabilities.shape == (1, 2, *size)
    with pytest.raises(InputError, match="Call set_image"):
        predictor.set_latents(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("phrase", ["", "  ", " - the cat", "the cat - ", "word " * 300])
def test_unusable_phrases_say_so(phrase: str, predictor: Predictor) -> None:
    predictor.set_latents(torch.zeros(1, 4, 16, 16))
    with pytest.raises(InputError):
        predictor.predict([phrase])


def test_a_head_for_another_model_is_refused() -> None:
    with pytest.raises(HostError, match="context width"):
        Predictor(LosslessHost(), build_head(world.head_config("ldznet")))


def test_not_found_is_a_mask_of_zeros_and_probabilities_stay() -> None:
    logits = torch.full((1, 2, 8, 8), 5.0)
    result = Segmentation(logits, ("a", "b"), (16, 16), torch.tensor([[0.9, 0.1]]))
    assert result.masks()[0, 0].all()
    assert not result.masks()[0, 1].any()
    assert result.probabilities[0, 1].min() > 0.9
    assert result.found.tolist() == [[True, False]]


def test_too_much_says_how_much_and_what_to_do() -> None:
    logits = torch.zeros(1, 1, 8, 8).expand(1, 300, 8, 8)
    result = Segmentation(logits, ("a",) * 300, (4000, 4000), torch.zeros(1, 300))
    with pytest.raises(InputError, match=r"17\.9 GB"):
        _ = result.probabilities
    assert result.select([0]).probabilities.shape == (1, 1, 4000, 4000)
