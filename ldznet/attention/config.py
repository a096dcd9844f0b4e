"""Every constant of the training-free mask in one dataclass, with its source, and one of these per host family.

Imports contracts, errors and shapes; the rest of this folder, the predictor's side and tests import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..contracts import FAMILIES, Block, Host, JointHost, TapSpec
from ..errors import HostError
from ..shapes import PIXELS_PER_LATENT

COMMON_BACKGROUND = ("background", "ground", "grass", "tree", "building", "wall", "sky", "water", "road")


@dataclasses.dataclass(frozen=True)
class Presence:
    """Score = sigmoid(slope * (measure - middle)): how a measure becomes a probability that a phrase is there.

    `measure` is a name of `presence.MEASURES`, which cost nothing, or of `denoising.RIVALS`, the diffusion
    classifier's, which cost a pass per 16 texts and timestep. `middle` None: nothing was calibrated for such hosts.
    Then scores can be compared with each other only, and everything counts as found.
    """

    measure: str = "contrast"
    timesteps: tuple[int, ...] = (300, 400, 500, 600)  # of RIVALS, a noise each: where things are told apart; ours
    middle: float | None = None
    slope: float = 1.0
    found_from: float = 0.5  # the score from which a phrase counts as found


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """What is read where, and what is done with it. The defaults are for SD 1.x and 2.x.

    iSeg: Sun et al., arXiv 2409.03209. GoCA: Meng et al., CVPR 2026, arXiv 2603.06178. Places are named by downsampling
    in latent pixels: "4/input" is every input block there, "2/output.1" the second output block (see `blocks_at`).
    The combination of the two papers is unpublished; what has no source here was chosen on the tiny world.
    """

    coarse: tuple[str, ...] = ("4/input", "4/output")  # cross-attention at 16 x 16 for 512 px; iSeg
    fine: tuple[str, ...] = ("2/input.1", "2/output.0", "2/output.1")  # and at 32 x 32; iSeg
    weights: tuple[float, float] = (0.7, 0.3)  # of the coarse and the fine maps; iSeg
    self_attention: tuple[str, ...] = ("1/output.1",)  # self-attention that propagates, at 64 x 64; iSeg
    timestep: int = 100  # of the one pass; iSeg
    timestep_range: tuple[int, int] = (50, 150)  # what an ensemble spreads over; ours
    rescaling: float = 1.6  # of the text encoder's rows of the phrases' tokens; iSeg's category enhancement
    per_pixel: bool = True  # divide by the sum over all content tokens at each pixel; GoCA
    sharpening: float = 0.015  # lambda of the step that lowers the entropy of the self-attention; iSeg
    steps: int = 8  # of propagation; iSeg takes 5 to 10. With 0 no self-attention is read
    scale: str = "phrase"  # "phrase": min-max each; "common": one scale, so that an argmax over phrases has a meaning
    threshold: float = 0.45  # on the min-maxed map; iSeg. Becomes probability 0.5
    steepness: float = 10.0  # logits = steepness * (map - threshold), so that 0 .. 1 becomes about 0.01 .. 0.996; ours
    opening: str = "a photograph of"  # of the prompt; iSeg
    joiner: str = "and"  # between phrases; iSeg
    closing: str = "and other object and"  # between phrases and background words; iSeg
    background: tuple[str, ...] = COMMON_BACKGROUND  # what else may be there; iSeg, GoCA
    latent_grid: tuple[int, int] = (64, 64)  # 512 px; iSeg. The image is brought to about this area
    size_multiple: int = 64  # pixels; so that every level halves evenly
    in_channels: int = 4
    pixels_per_latent: int = PIXELS_PER_LATENT
    concepts: bool = False  # read by concept attention (`concepts`), thresholds at the mean of each map; its authors'
    source: str = "published"  # of the blocks that are read and of the timestep
    presence: Presence = Presence()
    most_positions: int = 16_384  # of self-attention: 128 x 128, a matrix of 1 GB in float32; ours

    takes_pixels = False  # this and the next two: what the predictor asks of every head's configuration
    phrases_compete = True
    tap_specs: dict[str, TapSpec] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def presence_threshold(self) -> float:
        """The score from which a phrase counts as found: any where nothing was calibrated."""
        return self.presence.found_from if self.calibrated else 0.0

    @property
    def calibrated(self) -> bool:
        """Whether scores are probabilities."""
        return self.presence.middle is not None


SD = AttentionConfig()
SDXL = (
    dataclasses.replace(  # no attention at downsampling 1; its lowest level, the middle block included, is at 4; GoCA
        SD,
        coarse=("4/input", "4/middle", "4/output"),
        fine=("2/input", "2/output"),
        self_attention=("2/output",),
        latent_grid=(128, 128),
    )
)
TINY = dataclasses.replace(  # benchmarks/attention.py chose what differs, on scenes from 500,000 on
    SD,
    coarse=("1/input", "1/output"),  # 16 x 16, as SD's coarse maps; at 4, where SD has those, a thing is one pixel
    fine=(),
    weights=(1.0, 0.0),
    timestep=50,
    timestep_range=(10, 90),
    rescaling=1.0,
    steps=0,  # its self-attention spreads a thing over others
    threshold=0.55,
    opening="a photo of",
    closing="and",
    background=("sky", "grass", "sand", "water", "brick", "night", "snow"),  # all of its stuff
    latent_grid=(16, 16),
    size_multiple=32,
    presence=Presence("weakest", middle=-0.041, slope=20.0, found_from=0.27),  # keeps 95 % of what is there
)
CONFIGS: dict[str, AttentionConfig] = {"tiny": TINY, "sd1": SD, "sd2": SD, "sdxl": SDXL}


class Studied(NamedTuple):
    """Of a family whose attention holds text and picture together: which of its `depth` blocks show where words are, at
    which timestep, and who found that. A model of another depth is read in the middle third of its blocks."""

    blocks: tuple[int, ...]
    depth: int
    timestep: int
    source: str


SYSTEM_PROMPTS = {  # what a family was trained to find before every prompt, where its host's tokenizer does not put it
    "lumina2": "You are an assistant designed to generate superior images with the superior degree of image-text "
    "alignment based on textual prompts or user prompts. <Prompt Start>",
}
HALF = 500  # the timestep where nothing was published: half of a schedule before a model's shift
GUESS = "a guess: nothing is published, so the middle third"
CONCEPTS = "published: ConceptAttention, arXiv 2502.04320, and its code"
GOCA = "published with the code of GoCA, arXiv 2603.06178"
STUDIED = {
    "sd3": Studied((9,), 24, 260, "published: Seg4Diff, arXiv 2509.18096; t is its step 8 of 28, counted from the end"),
    "flux": Studied((15, 16, 17, 18), 19, HALF, CONCEPTS),
    "flux2": Studied((5, 6, 7), 8, HALF, CONCEPTS),
    "chroma": Studied((15, 16, 17, 18), 19, HALF, "a guess: those of Flux.1, which this model was made from"),
    "pixart": Studied(tuple(range(9, 19)), 28, 100, f"t {GOCA}; blocks {GUESS}"),
    "hydit": Studied(tuple(range(20, 30)), 40, 100, f"{GOCA}, which weighs these blocks by their self-attention"),
}
BY_CONCEPTS: dict[str, Any] = {"concepts": True, "per_pixel": False}  # the softmax is over concepts already
WITH_CONCEPTS = ("flux", "chroma")  # whose rows of text have no place of their own, so that further ones change nothing


def config_for(host: Host) -> AttentionConfig:
    """The constants for a host, by its family. Raises HostError for one that has none."""
    if isinstance(host, JointHost):
        return joint_config(host)
    if host.family not in CONFIGS:
        raise HostError(f'Expected a host of {", ".join(CONFIGS)}, got "{host.family}". Load a Stable Diffusion model.')
    return CONFIGS[host.family]


def concept_config(host: Host) -> AttentionConfig:
    """The constants of concept attention for a host. Raises HostError for a family that does not allow it."""
    if host.family not in WITH_CONCEPTS:
        names = " or ".join(FAMILIES[family].title for family in WITH_CONCEPTS)
        raise HostError(
            f"Expected {names} for concept attention, got {FAMILIES[host.family].title}. Take the head attention (no "
            "download) for this model."
        )
    return dataclasses.replace(config_for(host), **BY_CONCEPTS)


def joint_config(host: JointHost) -> AttentionConfig:
    """For a transformer: the blocks that were studied, or the middle third, all counting alike, and no propagation.

    The text encoder's rows stay as they are (several of these networks normalise them), and the picture is brought to
    about 1024 x 1024 pixels, where these models are at home, or to what the model says (`latent_side`, in latent
    pixels); ours, as is the recipe for what is read.
    """
    blocks = [Block.parse(name) for name in host.specs]
    stage = blocks[0].stage
    depth = sum(block.stage == stage for block in blocks)
    studied = STUDIED.get(host.family)
    if studied is None or studied.depth != depth:
        timestep = HALF if studied is None else studied.timestep
        studied = Studied(tuple(range(depth // 3, max(1, depth - depth // 3))), depth, timestep, GUESS)
    stride = next(iter(host.specs.values())).stride
    places = tuple(f"{stride}/{stage}.{i}" for i in studied.blocks)
    side = getattr(host, "latent_side", 1024 // host.pixels_per_latent)
    return dataclasses.replace(
        SD,
        coarse=places,
        fine=(),
        weights=(1.0, 0.0),
        self_attention=places[-1:],
        timestep=studied.timestep,
        timestep_range=(max(1, studied.timestep - 100), min(999, studied.timestep + 100)),
        rescaling=1.0,
        steps=0,
        latent_grid=(side, side),
        in_channels=host.latent_channels,
        pixels_per_latent=host.pixels_per_latent,
        source=studied.source,
        opening=" ".join([*SYSTEM_PROMPTS.get(host.family, "").split(), SD.opening]),
    )


def blocks_at(places: Sequence[str], specs: Mapping[str, TapSpec]) -> tuple[str, ...]:
    """Block names of places such as "4/input" or "2/output.1" in a host's `specs`, in the order in which they run.

    Raises HostError for a place at which this host has no attention.
    """
    found: set[Block] = set()
    for place in places:
        stride, _, rest = place.partition("/")
        stage, _, index = rest.partition(".")
        parsed = [Block.parse(name) for name, spec in specs.items() if spec.stride == int(stride)]
        there = sorted((block for block in parsed if block.stage == stage), key=lambda block: block.order)
        chosen = there[int(index) : int(index) + 1] if index else there
        if not chosen:
            raise HostError(f"Expected attention at {place}, got none there. Use a model whose attention is read.")
        found.update(chosen)
    return tuple(str(block) for block in sorted(found, key=lambda block: block.order))


def require_readable(config: AttentionConfig, host: Host) -> None:
    """Raises HostError where a host lacks one of the places of `config`."""
    for places in (config.coarse, config.fine, config.self_attention):
        blocks_at(places, host.specs)
