"""ComfyUI's side of steering: wrappers that look into a running sampler, and let regions' prompts in where they belong.

Vocabulary of ComfyUI: a guider holds `conds`, lists of conditionings by kind; `WrappersMP.OUTER_SAMPLE` runs around a
sampler's whole run, `SAMPLER_SAMPLE` around its loop in model space, `PREDICT_NOISE` around each evaluation of the
guider, which gives an estimate of the clean latents; an `attn2_patch` sees what goes into a cross-attention and an
`attn2_output_patch` what comes out. Until a run has been looked at, nothing of this changes a call.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention import AttentionConfig
from ..attention.prompts import prompts_of
from ..capture import AttentionCapture, Typed, same
from ..config import HeadConfig
from ..phrases import fill, read, terms_of
from ..segmentation import Segmentation
from ..shapes import Float, Size
from ..steering import Plan, Region, Run, grid_of, mixed
from ..taps import spatial_transformers
from .comfyui import (
    ComfyHost,
    cross_attention,
    executing_node,
    running_prompt,
    typed,
    with_wrappers,
)
from .comfyui_capture import REGION, Seen, calling_into, run_through, sampling_into, words_of
from .comfyui_graph import encoders_of

KEY = "ldznet_steering"
WORDS_KEY = "ldznet_steering_words"
KEPT = 8  # runs

Look = Callable[[Any, Run], Segmentation]
Areas = Callable[[Segmentation, Size], "Tensor | None"]


class Text(NamedTuple):
    """A prompt as CLIP Text Encode makes it: its context, and what else its conditioning says."""

    context: Float[Tensor, "1 n d"]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, clip: Any, prompt: str) -> Text:
        """Of a prompt, weights and all."""
        return cls(*clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0])


class SamplingHost(ComfyHost):
    """A ComfyHost of a model that is sampling: its UNet is where it has to be, and texts that were `encoded` before are
    not encoded anew, which might drive it out of there."""

    def __init__(self, model: Any, clip: Any, encoded: dict[str, dict[str, Tensor]]) -> None:
        super().__init__(model, clip)
        self._encoded = encoded

    def _encode(self, clip: Any, phrase: str) -> dict[str, Tensor]:
        if phrase not in self._encoded:
            self._encoded[phrase] = super()._encode(clip, phrase)
        return self._encoded[phrase]

    def encode(self, config: HeadConfig | AttentionConfig, phrases: Sequence[str]) -> None:
        """All that a head of `config` will ask for `phrases`, but for presence by passes of its own."""
        terms = terms_of(read(phrases))
        if isinstance(config, HeadConfig):
            self.encode_text([fill(config.template, term) for term in terms])
        else:
            self.condition([prompt.text for prompt in prompts_of(terms, config, self.tokenize)])


class Words:
    """The attention that the sampler's own calls pay to the words of its prompt, so that finding those takes no pass.

    `node` is the id of the node whose MODEL samplers get: from there the graph that runs is walked to its prompts.
    """

    def __init__(self, model: Any, clip: Any, config: AttentionConfig, node: Any) -> None:
        host = ComfyHost(model)
        self.capture, self.clip, self.node = AttentionCapture(model, config, host.specs), clip, node
        self.said: list[Typed] = []
        self._timesteps: Callable[[Tensor], list[float]] = lambda sigmas: host.step_of(sigmas[:-1])

    def begin(self, plan: Plan, sigmas: Tensor) -> None:
        """Before a run: its prompts are encoded, and self-attention is to be that of the step before the first look."""
        encoders = encoders_of(running_prompt(), [str(self.node), 0])
        texts = [encoder.text for encoder in encoders if isinstance(encoder.text, str)]
        self.said = [typed(self.clip, text) for text in dict.fromkeys(texts)]
        steps = self._timesteps(sigmas)
        self.capture.timestep = round(steps[min(plan.first(len(steps)), len(steps)) - 1]) if steps else 0
        self.capture.reading = bool(self.said)

    def seen(self, host: ComfyHost, phrases: Sequence[str]) -> Seen:
        """What the run has shown so far of those of `phrases` that stand in its prompts."""
        return words_of(self.capture, self.capture.present, self.said, phrases, host)

    def wrappers(self) -> dict[str, Any]:
        """As `capturing` hangs them into a MODEL."""
        sampling = sampling_into(self.capture, executing_node, self._timesteps)
        return {"OUTER_SAMPLE": sampling, "DIFFUSION_MODEL": calling_into(self.capture)}


class Steering:
    """What the samplers of one patched MODEL found: the latest run of each. `regions`, `threshold` and `model` are kept
    for whoever reads that."""

    regions: Sequence[Region] = ()
    threshold = 0.5
    model: Any = None
    words: Words | None = None

    def __init__(self, plan: Plan, look: Look, areas: Areas, texts: Sequence[Text] = ()) -> None:
        """`look(guider, run)` segments a run's estimate; it may raise, which ends the run. `areas(found, size)` says
        where the regions of `texts` lie in latents of `size`, None where nothing is to be steered."""
        self.plan, self.look, self.areas, self.texts = plan, look, areas, texts
        self.done: dict[Any, Run] = {}
        self._run: Run | None = None

    def returned(self, samples: Float[Tensor, "b c h w"]) -> Run | None:
        """The latest run that returned `samples` of a LATENT."""
        fitting = [run for run in self.done.values() if any(same(samples, known) for known in run.samples)]
        return fitting[-1] if fitting else None

    def sample(
        self, executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
    ) -> Any:
        """Around a whole run."""
        before, run = self._run, Run([float(level) for level in sigmas], self.plan)
        self._run, key = run, executing_node()
        self.done.pop(key, None)
        if self.words is not None:
            self.words.begin(self.plan, sigmas)
        try:
            samples, denoised = run_through(executor, noise, latent_image, sampler, sigmas, *rest, **named)
        finally:
            self._run = before
            if self.words is not None:
                self.words.capture.done.clear()
        run.samples, run.estimate = [samples.cpu()], None
        run.sized.clear()
        if denoised is not None:
            run.samples.append(executor.class_obj.model_patcher.model.process_latent_out(denoised.cpu()))
        self.done[key] = run
        for oldest in list(self.done)[:-KEPT]:
            del self.done[oldest]
        return samples

    def predict(self, executor: Any, x: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Any:
        """Around each evaluation of the guider, at noise levels `timestep`."""
        run, guider = self._run, executor.class_obj
        if run is None:
            return executor(x, timestep, *rest, **named)
        run.sigma = float(timestep.max())
        if run.due:
            found = self.look(guider, run)
            run.look(found, self.areas(found, (x.shape[-2], x.shape[-1])))
            if self.words is not None and not self.plan.every:
                self.words.capture.reading = False
        options, *others = [*rest, named.pop("model_options", {})][: max(1, len(rest))]
        with self.steered(guider, run, options) as options:
            run.estimate = executor(x, timestep, options, *others, **named)
        return run.estimate

    @contextlib.contextmanager
    def steered(self, guider: Any, run: Run, options: Any) -> Iterator[Any]:
        """Model options with which the guider is evaluated inside: `options` themselves where nothing is steered."""
        yield options


class CrossAttention(Steering):
    """Regions' texts enter by cross-attention alone, in the rows of positive conditionings: no further row is run."""

    @contextlib.contextmanager
    def steered(self, guider: Any, run: Run, options: Any) -> Iterator[Any]:
        """With the patches of cross-attention, where there are regions."""
        if run.areas is None:
            yield options
            return
        transformer = options.get("transformer_options", {})
        patches = transformer.get("patches", {})
        couple = _Couple(guider, run, [text.context for text in self.texts], transformer.get("patches_replace", {}))
        added = {"attn2_patch": couple.enter, "attn2_output_patch": couple.leave}
        patches = {**patches, **{name: [*patches.get(name, []), patch] for name, patch in added.items()}}
        yield {**options, "transformer_options": {**transformer, "patches": patches}}


class _Couple:
    """The two patches of one evaluation: what goes into each cross-attention of positive rows, and what comes out."""

    def __init__(self, guider: Any, run: Run, contexts: Sequence[Tensor], replaced: Mapping[str, Any]) -> None:
        positive = guider.conds.get("positive") or []
        self.positive = {cond["uuid"] for cond in positive if "area" not in cond}
        unet = guider.model_patcher.model.diffusion_model
        self.transformers: dict[str, Any] = spatial_transformers(getattr(unet, "_orig_mod", unet))
        device = guider.model_patcher.load_device
        self.run, self.replaced = run, replaced.get("attn2", {})
        self.contexts = [context.to(device) for context in contexts]
        self.entered: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    def enter(self, n: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Keeps what goes in, and changes none of it."""
        self.entered[_place(extra)] = (n, context, value)
        return n, context, value

    def leave(self, out: Tensor, extra: Mapping[str, Any]) -> Tensor:
        """With the regions' texts in their areas."""
        n, context, value = self.entered.pop(_place(extra))
        uuids = extra.get("uuids") or []
        areas = self._areas(n.shape[1], extra)
        if areas is None or not uuids or len(out) != len(uuids) * len(areas):
            return out
        (stage, number), layer = extra["block"][:2], extra["block_index"]
        module = self.transformers[f"{stage}.{number}"].transformer_blocks[layer].attn2
        beside = any(place in self.replaced for place in ((stage, number), (stage, number, layer)))
        rows = list(out.chunk(len(uuids)))
        for i, (key, query) in enumerate(zip(uuids, n.chunk(len(uuids)), strict=True)):
            if key in self.positive:
                texts = [cross_attention(module, query, context.to(query), extra) for context in self.contexts]
                plain = rows[i]
                if beside:  # an adapter adds to it what has to stay
                    keys, values = (part.chunk(len(uuids))[i] for part in (context, value))
                    ours = cross_attention(module, query, keys, extra, values)
                    texts = [text + (plain - ours) for text in texts]
                rows[i] = mixed(plain, texts, areas)
        return torch.cat(rows)

    def _areas(self, tokens: int, extra: Mapping[str, Any]) -> Tensor | None:
        """The regions' areas b r n at a block of so many tokens; None where the call is of another size: a crop."""
        assert self.run.areas is not None
        shape, size = extra["original_shape"], self.run.areas.shape[2:]
        grid = grid_of(tokens, (size[0], size[1]))
        return None if grid is None or tuple(shape[2:]) != tuple(size) else self.run.areas_at(grid).flatten(2)


def _place(extra: Mapping[str, Any]) -> Any:
    return extra["block"], extra["block_index"]


class MaskedConditionings(Steering):
    """Regions' texts enter as conditionings within masks: on any model, and a UNet row more for each region and step.

    Copies of the positive conditionings are added before the run, so that ComfyUI encodes them; the guider gets them
    from the first look on.
    """

    def sample(self, executor: Any, *rest: Any, **named: Any) -> Any:
        """With the regions' conditionings behind the positive ones."""
        conds = executor.class_obj.conds
        positive = conds.get("positive") or []
        copies = [_copied(cond, r, text) for cond in positive for r, text in enumerate(self.texts)]
        executor.class_obj.conds = {**conds, "positive": [*positive, *copies]}
        return super().sample(executor, *rest, **named)

    @contextlib.contextmanager
    def steered(self, guider: Any, run: Run, options: Any) -> Iterator[Any]:
        """While the guider has those conditionings that count now."""
        conds = guider.conds
        guider.conds = {**conds, "positive": _counting(conds.get("positive") or [], run.areas)}
        try:
            yield options
        finally:
            guider.conds = conds


def _copied(cond: Mapping[str, Any], region: int, text: Text) -> dict[str, Any]:
    """A positive conditioning with a region's text in the place of its own."""
    others = {name: part for name, part in cond["model_conds"].items() if name != "c_crossattn"}
    changed = {"cross_attn": text.context, **text.options, "model_conds": others, "uuid": uuid.uuid4()}
    return {**cond, **changed, REGION: region}


def _counting(positive: Sequence[Any], areas: Float[Tensor, "b r h w"] | None) -> list[Any]:
    """The prompt's own conditionings, outside of all regions, and those of regions that have an area, inside."""
    if areas is None:
        return [cond for cond in positive if REGION not in cond]
    counting = []
    for cond in positive:
        area = areas[:, cond[REGION]] if REGION in cond else 1 - areas.sum(dim=1)
        if area.any():
            counting.append({**cond, "mask": area * cond["mask"].to(area) if "mask" in cond else area})
    return counting


BY_WAY: dict[str, type[Steering]] = {"cross-attention": CrossAttention, "masked conditionings": MaskedConditionings}


class Enough(BaseException):
    """Ends a sampler's loop: what there is, `estimate`, is kept. Never leaves this module."""

    def __init__(self, estimate: Float[Tensor, "b c h w"]) -> None:
        self.estimate = estimate


def keeping(executor: Any, *rest: Any, **named: Any) -> Any:
    """A wrapper of SAMPLER_SAMPLE, around a sampler's loop: where that ends by `Enough`, its result is the estimate."""
    try:
        return executor(*rest, **named)
    except Enough as end:
        *_, latent_image, mask, _ = [*rest, None, None, None][: max(8, len(rest))]
        return end.estimate if mask is None else end.estimate * mask + latent_image * (1 - mask)


def steered(model: Any, steering: Steering, additional: Sequence[Any] = ()) -> Any:
    """A clone of MODEL whose samplers are looked into; `additional` patchers are loaded along with it."""
    wrappers = {"OUTER_SAMPLE": steering.sample, "SAMPLER_SAMPLE": keeping, "PREDICT_NOISE": steering.predict}
    clone, steering.model = with_wrappers(model, KEY, wrappers), model
    if steering.words is not None:
        clone = with_wrappers(clone, WORDS_KEY, steering.words.wrappers())
    if additional:
        clone.set_additional_models(KEY, list(additional))
    return clone
