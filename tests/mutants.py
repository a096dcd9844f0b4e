"""One-line faults that the tests must notice: `python tests/mutants.py [words of a file or a fault …]`.

Each is put into a copy of this repository, where the named test files then have to fail. Prints those that nobody
noticed, and those whose line is no longer there; exits 1 where there is one. Not part of the test run: about five
seconds each. `test_mutants.py` holds the list to lines that there are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = (
    "__init__.py",
    "pyproject.toml",
    "install.py",
    "ldznet",
    "nodes",
    "scripts",
    "tests",
    "benchmarks",
    "workflows",
    "web",
    "docs",
)


class Mutant(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`; then one of `tests` (files under tests/) has to fail."""

    file: str
    old: str
    new: str
    tests: str


HAND = "test_by_hand.py"
CONCEPTS, JOINED = "attention/test_concepts.py", "attention/test_joint.py"
ROWS = "hosts/test_joint_rows.py"
DETAILS, SAMPLED = "webui/test_details.py", "hosts/test_webui_capture.py"
COMBINING, CLI = "test_combining.py", "cli/test_results.py"
VALUES, EXECUTE = "nodes/test_values.py", "nodes/test_execute.py"
MASKED, DISC = "nodes/test_mask_nodes.py", "test_masks.py"
REGIONS, PUBLISHED = "data/test_regions.py", "data/test_published.py"
FAST = "test_convolving.py"
SHOWN, WIRED, ASKED = "webui/test_showing.py", "webui/test_script.py", "webui/test_settings.py"
NAMED = "attention/test_joint_named.py"
TRANSFORMERS = "hosts/test_hf_diffusers_joint.py"
DELTA, TIERS = "models/test_delta.py", "train/test_tiers.py"
MUTANTS = [
    Mutant("ldznet/models/delta.py", "h, pooled = (before + text)", "h, pooled = (before)", DELTA),
    Mutant("ldznet/models/delta.py", "return output + plain * weight + bias", "return output + plain * weight", DELTA),
    Mutant("ldznet/models/delta.py", "if times != 1]", "if times > 1]", DELTA),
    Mutant("ldznet/models/delta.py", 'return f"{name}.{depth - 1}"', 'return f"{name}.0"', DELTA),
    Mutant("ldznet/models/delta.py", "nn.init.zeros_(last.to_out[0].weight)", "pass", TIERS),
    Mutant(
        "ldznet/models/known.py",
        "for level, depth in enumerate(depths) if depth)",
        "for level, _ in enumerate(depths))",
        TIERS,
    ),
    Mutant("ldznet/models/light.py", "if self.fine > 1:", "if self.fine > 2:", TIERS),
    Mutant("ldznet/train/head.py", "seen\n        hooks.require_once()", "seen\n        self.close()", TIERS),
    Mutant("ldznet/train/head.py", "torch.lerp(masks, soft, TAUGHT), masks)", "soft, masks)", TIERS),
    Mutant("ldznet/train/head.py", "torch.where(present, torch", "torch.where(present | True, torch", TIERS),
    Mutant("ldznet/train/tiers.py", "            self.head.load_state_dict(before)\n", "            pass\n", TIERS),
    Mutant("ldznet/train/negatives.py", "words[phrase] - shown and near", "near", TIERS),
    Mutant("ldznet/data/cache.py", " == digest):\n        named", " is not None):\n        named", TIERS),
    Mutant("ldznet/hosts/hf_diffusers_joint.py", "places[..., 1] += torch", "places[..., 2] += torch", TRANSFORMERS),
    Mutant(
        "ldznet/hosts/hf_diffusers_joint.py", "hidden_states[-2] for out", "hidden_states[-1] for out", TRANSFORMERS
    ),
    Mutant("ldznet/hosts/hf_diffusers_joint.py", "latents - self._shift", "latents + self._shift", TRANSFORMERS),
    Mutant("ldznet/hosts/hf_diffusers_joint.py", "(factor * t / (1", "(t / (1", TRANSFORMERS),
    Mutant("ldznet/hosts/hf_diffusers_joint.py", "[-1] * start + own", "[-1] * (start + 1) + own", TRANSFORMERS),
    Mutant("ldznet/attention/joint_torch.py", "if picture != self.grid[0] * self.grid[1]:", "if False:", TRANSFORMERS),
    Mutant("ldznet/models/delta.py", "float(alphas_cumprod()[0]) ** 0.5", "1", DELTA),
    Mutant("ldznet/models/delta.py", "            for handle in handles:\n", "            for handle in []:\n", DELTA),
    Mutant("ldznet/checkpoints/shrink.py", "key=lambda offer: -offer[0]", "key=lambda offer: offer[0]", DELTA),
    Mutant("ldznet/checkpoints/shrink.py", "(down / balance[:, None])", "(down * balance[:, None])", DELTA),
    Mutant("ldznet/hosts/webui_capture.py", 'vars(sampler).pop("launch_sampling", None)', "pass", SAMPLED),
    Mutant("ldznet/hosts/webui_capture.py", "self.step, self.taken = step, set()", "self.step = step", SAMPLED),
    Mutant("ldznet/hosts/webui_capture.py", "self.taken.add(key)", "pass", SAMPLED),
    Mutant("ldznet/hosts/webui_capture.py", "            del module.forward\n", "            pass\n", SAMPLED),
    Mutant("ldznet/hosts/webui_capture.py", "not _repeats(row, own)", "False", SAMPLED),
    Mutant("ldznet/hosts/webui.py", "row[first : first + count] = [-1] * count", "pass", SAMPLED),
    Mutant(
        "ldznet/hosts/webui.py", "grad_free = torch.inference_mode", "grad_free = torch.no_grad", "hosts/test_webui.py"
    ),
    Mutant("ldznet/webui/sampling.py", "_typed(part.schedules[i].cond", "_typed(part.schedules[0].cond", SAMPLED),
    Mutant("ldznet/webui/sampling.py", "max(keys, key=lambda key: said[key])", "keys[0]", SAMPLED),
    Mutant("ldznet/webui/sampling.py", "if step <= end", "if step < end", SAMPLED),
    Mutant("ldznet/webui/sampling.py", "key in self.last and ", "", SAMPLED),
    Mutant("ldznet/webui/detailing.py", "details.found[p.batch_index]", "details.found[0]", DETAILS),
    Mutant("ldznet/webui/detailing.py", "yield (picture := done)", "yield done", DETAILS),
    Mutant("ldznet/webui/detailing.py", "        if done is None:", "        if False:", DETAILS),
    Mutant("ldznet/webui/detailing.py", "if running.is_left(p) or latents is None", "if latents is None", DETAILS),
    Mutant("ldznet/webui/settings.py", "Order(phrase.strip(), prompt.strip())", "Order(phrase, prompt)", DETAILS),
    Mutant(
        "ldznet/predictor.py",
        "with quicker_convolutions():\n            latents",
        "if True:\n            latents",
        FAST,
    ),
    Mutant(
        "ldznet/predictor.py", "with quicker_convolutions():\n            return", "if True:\n            return", FAST
    ),
    Mutant("ldznet/convolving.py", "not types and ", "", FAST),
    Mutant("ldznet/convolving.py", " and not torch.is_grad_enabled()", "", FAST),
    Mutant("ldznet/convolving.py", "weight.shape[2:] == (3, 3), ", "", FAST),
    Mutant("ldznet/convolving.py", "4 if many else 2", "2", FAST),
    Mutant("ldznet/convolving.py", "band = tiles[:, :, rows]", "band = tiles", FAST),
    Mutant("ldznet/convolving.py", "1 / 24, -1 / 12", "1 / 24, 1 / 12", FAST),
    Mutant("ldznet/convolving.py", '== "highest" and', '!= "" and', FAST),
    Mutant("ldznet/webui/showing.py", "default=-1) + 1", "default=0) + 1", SHOWN),
    Mutant("ldznet/webui/showing.py", "passes=TOGETHER)", "passes=settings.passes)", SHOWN),
    Mutant("ldznet/webui/serving.py", "soft.gt(settings.threshold).any()", "soft.gt(settings.threshold).all()", SHOWN),
    Mutant("ldznet/webui/serving.py", "allow_pickle=False", "allow_pickle=True", SHOWN),
    Mutant("ldznet/webui/settings.py", '{"enabled": True, **changes} if', "changes if", ASKED),
    Mutant("scripts/parts/routes.py", "dependencies=own.dependencies", "dependencies=[]", WIRED),
    Mutant("scripts/parts/page.py", "self._host[self._canvas], self._canvas = component, None", "pass", WIRED),
    Mutant("scripts/parts/axes.py", 'value.replace(NEWLINE, "\\n")', "value", WIRED),
    Mutant("scripts/ldznet_webui.py", "if WHOLE and is_on(arguments):", "if is_on(arguments):", WIRED),
    Mutant("scripts/ldznet_webui.py", "axes.add(SETTINGS, head_names)  # the", "pass  # the", WIRED),
    Mutant("ldznet/phrases.py", 'return template.replace("{}", phrase)', "return phrase", HAND),
    Mutant("ldznet/models/trained.py", "fill(config.template, phrase)", 'fill("a photo of a {}.", phrase)', HAND),
    Mutant("ldznet/models/trained.py", "presence.float().sigmoid()", "presence.float().sigmoid() * 0.1", HAND),
    Mutant("ldznet/predictor.py", "if self.ensemble == 1:", "if True:", HAND),
    Mutant("ldznet/predictor.py", "(member + 0.5) / self.ensemble", "member / self.ensemble", HAND),
    Mutant(
        "ldznet/predictor.py",
        "seed=self.seed + member",
        "seed=self.seed",
        HAND,
    ),
    Mutant(
        "ldznet/models/trained.py",
        "F.avg_pool2d(logits.sigmoid()[:, None], PIXELS_PER_LATENT)",
        "logits.sigmoid()[:, None]",
        HAND,
    ),
    Mutant(
        "ldznet/combining.py",
        "log_left = log_left + torch.where(found, F.logsigmoid(-other.logits.double()), 0.0)",
        "log_left = torch.minimum(log_left, torch.where(found, F.logsigmoid(-other.logits.double()), 0.0))",
        HAND,
    ),
    Mutant("ldznet/combining.py", "found = (other.scores >= found_from)[", "found = (other.scores > -1)[", COMBINING),
    Mutant("ldznet/combining.py", "torch.minimum(wanted.scores, left)", "wanted.scores", COMBINING),
    Mutant("ldznet/combining.py", "if phrase.rest == rest:", "if phrase.rest != rest:", COMBINING),
    Mutant("ldznet/phrases.py", "term.strip(ENDS).translate(LITERAL)", "term.translate(LITERAL)", "test_phrases.py"),
    Mutant("ldznet/phrases.py", "depths[match.start()] > outermost", "False", "test_phrases.py"),
    Mutant("ldznet/phrases.py", "unwanted.issuperset(map(_core, phrase.wanted))", "False", "test_phrases.py"),
    Mutant("ldznet/tinyworld/world.py", "word not in WORDS and", "False and", "test_phrases.py"),
    Mutant(
        "ldznet/segmentation.py", '"" if self.calibrated else " (not', '"" if True else " (not', "test_segmentation.py"
    ),
    Mutant("ldznet/writing.py", "if path.is_dir():", "if False:", "test_writing.py"),
    Mutant("ldznet/cli/results.py", "name not in known or path.is_symlink()", "name not in known", CLI),
    Mutant("ldznet/cli/results.py", "hexdigest() == known[name]", 'hexdigest() != ""', CLI),
    Mutant("ldznet/cli/results.py", "if name not in files and _unchanged", "if _unchanged", CLI),
    Mutant("ldznet/cli/segment.py", "if result.calibrated else None", "if True else None", CLI),
    Mutant("nodes/_boundary.py", "*self.result.hints, ", "", EXECUTE),
    Mutant(
        "ldznet/shaping.py",
        "masks.feather(masks.grow(mask, shape.grow, check), shape.feather, check)",
        "masks.grow(masks.feather(mask, shape.feather, check), shape.grow, check)",
        VALUES,
    ),
    Mutant("ldznet/shaping.py", "masks.grow(mask, shape.grow,", "masks.grow(mask, -shape.grow,", VALUES),
    Mutant("ldznet/shaping.py", "check), shape.feather, check)", "check), 2 * shape.feather, check)", VALUES),
    Mutant("nodes/mask.py", "chosen.threshold_or(threshold)", "0.5", VALUES),
    Mutant("nodes/mask.py", "chosen.soft().amax(dim=1)", "chosen.soft().mean(dim=1)", VALUES),
    Mutant("nodes/mask.py", "bool(mask.any())", "bool(chosen.result.found.any())", MASKED),
    Mutant("nodes/_boundary.py", "self.offset[0] + sign * top", "self.offset[0]", MASKED),
    Mutant("nodes/_boundary.py", "round(self.offset[1] * across)", "self.offset[1]", MASKED),
    Mutant("nodes/_boundary.py", "_require_aspect(size, self.size,", "_require_aspect(self.size, self.size,", MASKED),
    Mutant(
        "nodes/_boundary.py", "_require_aspect(size, inner,", "_require_aspect(inner, inner,", "nodes/test_boundary.py"
    ),
    Mutant("nodes/labelmap.py", "masks.pieces(labels == i + 1, least)", "masks.pieces(labels == i + 1)", MASKED),
    Mutant("nodes/labelmap.py", "sorted(image, key=ORDERS[order])", "image", MASKED),
    Mutant("nodes/labelmap.py", "box_of(seg, result.calibrated)", "box_of(seg, True)", MASKED),
    Mutant("nodes/segment.py", "bool(masks.any())", "bool(following.result.found.any())", MASKED),
    Mutant(
        "ldznet/masks.py", "half = min(math.isqrt(pixels**2 - dy**2), width - 1)", "half = min(pixels, width - 1)", DISC
    ),
    Mutant("ldznet/masks.py", "above, row[dy:], out", "above, row[: height - dy], out", DISC),
    Mutant("ldznet/masks.py", "| ~torch.isin(around, around[large].unique())", "", DISC),
    Mutant("ldznet/masks.py", "iterations * max(PAMR_DILATIONS)", "iterations", DISC),
    Mutant("ldznet/masks.py", "mask, guide, 2 * radius, check", "mask, guide, 0, check", DISC),
    Mutant("ldznet/masks.py", "torch.where(out > 1 - ROUNDING, 1, out)", "out", DISC),
    Mutant("ldznet/drawing.py", "nearest.argmax()", "i", "test_drawing.py"),
    Mutant("ldznet/drawing.py", "sign in fewest else sign", "sign in () else sign", "test_drawing.py"),
    Mutant("nodes/mask.py", "1 - mask if invert else mask", "mask", MASKED),
    Mutant("nodes/mask.py", "masks.ends_pulled(mask)", "mask", MASKED),
    Mutant(
        "nodes/labelmap.py",
        "masks.label_map(soft, ",
        "masks.label_map(1 - soft, ",
        VALUES,
    ),
    Mutant("nodes/labelmap.py", "mask_of(labels / LEVELS)", "mask_of(labels / len(boxes))", VALUES),
    Mutant("nodes/preview.py", "image), opacity, check, chosen)", "image), 0.6, check, chosen)", VALUES),
    Mutant("nodes/preview.py", "shown.masks(threshold)", "shown.masks(0.7)", VALUES),
    Mutant("nodes/regions.py", "masks.grow(areas[:, index], grow, check)", "areas[:, index]", VALUES),
    Mutant(
        "nodes/regions.py",
        "bound(encoded(clip, prompt), area, strength)",
        "bound(encoded(clip, prompt), area, 1.0)",
        VALUES,
    ),
    Mutant("nodes/regions.py", "1 - covered, 1.0)", "covered, 1.0)", VALUES),
    Mutant(
        "nodes/_boundary.py",
        "self.probabilities() * self.result.found[:, :, None, None]",
        "self.probabilities()",
        VALUES,
    ),
    Mutant(
        "nodes/segment.py",
        "predictor.set_image(picture, value_range=(0, 1))",
        "predictor.set_image(picture, value_range=(-1, 1))",
        EXECUTE,
    ),
    Mutant("nodes/_boundary.py", "image[..., :3].movedim(-1, 1)", "image[..., :3].flip(-1).movedim(-1, 1)", EXECUTE),
    Mutant(
        "nodes/segment.py",
        '{"seed": seed, "ensemble": ensemble, "resolution": resolution}',
        '{"seed": 0, "ensemble": ensemble, "resolution": resolution}',
        EXECUTE,
    ),
    Mutant("nodes/segment.py", "comfyui.model_space(host.model, vae_latents)", "vae_latents", EXECUTE),
    Mutant("nodes/segment.py", "masks.amax(dim=1)", "masks.mean(dim=1)", EXECUTE),
    Mutant(
        "nodes/segment.py",
        "mask, masks, segmentation, found, text, expand",
        "mask, masks, segmentation, text, found, expand",
        EXECUTE,
    ),
    Mutant(
        "ldznet/segmentation.py",
        "self.scores >= self.found_threshold",
        "self.scores > self.found_threshold",
        "test_segmentation.py test_predictor.py nodes/test_values.py",
    ),
    Mutant(
        "ldznet/segmentation.py",
        "[:, 0].sigmoid() > threshold)",
        "[:, 0].sigmoid() >= threshold)",
        "test_segmentation.py test_predictor.py",
    ),
    Mutant(
        "ldznet/segmentation.py",
        "self._resize(self.logits).sigmoid()",
        "self._resize(self.logits.sigmoid())",
        "test_segmentation.py test_predictor.py",
    ),
    Mutant(
        "ldznet/segmentation.py",
        'mode="bilinear", align_corners=False, antialias=True)',
        'mode="bilinear", align_corners=True, antialias=True)',
        "test_segmentation.py test_predictor.py",
    ),
    Mutant(
        "ldznet/segmentation.py",
        'mode="bilinear", align_corners=False, antialias=True)',
        'mode="bilinear", align_corners=False)',
        "test_segmentation.py test_predictor.py",
    ),
    Mutant("ldznet/schedule.py", "0.00085**0.5, 0.012**0.5", "0.0001**0.5, 0.02**0.5", "test_golden.py test_shapes.py"),
    Mutant("ldznet/schedule.py", 'device="cpu") ** 2', 'device="cpu")', "test_golden.py test_shapes.py"),
    Mutant(
        "ldznet/schedule.py",
        "level.sqrt().to(latents.dtype)",
        "level.to(latents.dtype)",
        "test_golden.py test_shapes.py",
    ),
    Mutant("ldznet/schedule.py", "seed % 2**64", "seed % 2**31", "test_shapes.py"),
    Mutant(
        "ldznet/shapes.py",
        "math.floor(length / multiple + 0.5)",
        "math.floor(length / multiple)",
        "test_shapes.py test_predictor.py",
    ),
    Mutant(
        "ldznet/shapes.py",
        "math.ceil(latent_size[0] / stride), math.ceil(latent_size[1] / stride)",
        "latent_size[0] // stride, latent_size[1] // stride",
        "test_shapes.py test_predictor.py hosts/test_contract.py",
    ),
    Mutant(
        "ldznet/shapes.py",
        "longest = max(area / multiple, multiple)",
        "longest = max(area, multiple)",
        "test_shapes.py test_predictor.py",
    ),
    Mutant("ldznet/taps.py", "_tensor(output).detach().clone()", "_tensor(output).detach()", "test_taps.py"),
    Mutant("ldznet/taps.py", "if end_early and not silent:", "if end_early:", "test_taps.py"),
    Mutant("ldznet/taps.py", "            handle.remove()", "            pass", "test_taps.py"),
    Mutant(
        "ldznet/taps.py",
        "1 + int(level) * (layers_per_level + 1) + int(index)",
        "int(level) * (layers_per_level + 1) + int(index)",
        "test_taps.py",
    ),
    Mutant(
        "ldznet/config.py",
        "stride, index = stride * 2, index + 1",
        "stride, index = stride * 2, index",
        "test_config.py test_golden.py",
    ),
    Mutant(
        "ldznet/config.py",
        "mult * self.model_channels, 2**level)",
        "mult * self.model_channels, stride)",
        "test_config.py test_golden.py hosts/test_contract.py",
    ),
    Mutant(
        "ldznet/masks.py", "return -grow(-mask, -pixels, check)", "return grow(mask, -pixels, check)", "test_masks.py"
    ),
    Mutant(
        "ldznet/masks.py",
        "torch.exp(-2 * (steps / pixels) ** 2)",
        "torch.exp(-0.5 * (steps / pixels) ** 2)",
        "test_refining.py",
    ),
    Mutant("ldznet/masks.py", "reach = math.ceil(1.5 * pixels)", "reach = math.ceil(0.5 * pixels)", "test_refining.py"),
    Mutant("ldznet/masks.py", "bincount()[label] >= area", "bincount()[label] > area", "test_masks.py"),
    Mutant("ldznet/masks.py", "label[:, 0], label[:, -1]])", "label[:, 0]])", "test_masks.py"),
    Mutant(
        "ldznet/masks.py",
        "torch.where(best > threshold, index + 1, 0)",
        "torch.where(best >= threshold, index + 1, 0)",
        "test_masks.py nodes/test_values.py",
    ),
    Mutant(
        "ldznet/masks.py",
        "_box(guide * target, radius) - mean_guide * mean_target",
        "_box(guide * target, radius)",
        "test_masks.py",
    ),
    Mutant("ldznet/masks.py", "+= smoothness", "+= 0.01", "test_masks.py test_refining.py"),
    Mutant(
        "ldznet/masks.py",
        "sums = sums / (share[:, None] if axis == 1 else share)",
        "pass",
        "test_masks.py test_refining.py",
    ),
    Mutant(
        "ldznet/masks.py",
        "0.1 * (squares / (count - 1)).sqrt()",
        "(squares / (count - 1)).sqrt()",
        "test_masks.py test_refining.py",
    ),
    Mutant(
        "ldznet/masks.py",
        ".mul_(-scale)",
        ".mul_(scale)",
        "test_masks.py test_refining.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "maps * (weight / len(blocks))",
        "maps * weight",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "maps / maps.sum(dim=(2, 3), keepdim=True)",
        "maps / maps.amax(dim=(2, 3), keepdim=True)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "attention.amax(dim=1, keepdim=True)",
        "attention.amax(dim=2, keepdim=True)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "* math.e).log10_()",
        ").log10_()",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "m = links @ m",
        "m = links.transpose(1, 2) @ m",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "m = m - m.amin(dim=1, keepdim=True)",
        "pass",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/maps.py",
        "maps / content.sum(dim=1, keepdim=True)",
        "maps / content.mean(dim=1, keepdim=True)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "amax(dim=1, keepdim=True)).amax(dim=(2, 3))",
        "amax(dim=1, keepdim=True)).mean(dim=(2, 3))",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "rest = evidence.attention_background.sum(",
        "rest = evidence.attention_background.mean(",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "return _log(evidence.attention.mean(dim=(2, 3)))",
        "return _log(evidence.attention).mean(dim=(2, 3))",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "evidence.filled.amax(dim=(2, 3)) / evidence.filled.mean",
        "evidence.attention.amax(dim=(2, 3)) / evidence.attention.mean",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "presence.slope * (measured - (presence.middle or 0.0))",
        "presence.slope * (measured + (presence.middle or 0.0))",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/presence.py",
        "max(1, count * (count - 1))",
        "max(1, count * count)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant("ldznet/attention/joint_named.py", "if getattr(code, name, None) is seen:", "if False:", NAMED),
    Mutant("ldznet/attention/joint_named.py", "is seen:", "is not None:", NAMED),
    Mutant(
        "ldznet/hosts/joint.py",
        '("hydit_clip",), ("mt5xl",)',
        '("mt5xl",), ("hydit_clip",)',
        "hosts/test_joint_rows.py",
    ),
    Mutant("ldznet/attention/joint_named.py", "with exclusively(code):", "if True:", NAMED),
    Mutant(
        "ldznet/attention/joint_named.py",
        "not self.running or threading.get_ident() != self.thread",
        "not self.running",
        NAMED,
    ),
    Mutant("ldznet/attention/concepts.py", "(concepts, picture)\n", "(picture,)\n", CONCEPTS),
    Mutant("ldznet/attention/concepts.py", "_flat(output[..., rows, :])", "_flat(parts[0][..., rows, :])", CONCEPTS),
    Mutant("ldznet/attention/prompts.py", "first and not self.after_space", "first", "attention/test_prompts.py"),
    Mutant("ldznet/hosts/joint.py", "(*token, 1)[:3]", "(*token, 0)[:3]", ROWS),
    Mutant("ldznet/hosts/joint.py", "places[-1] if places else", "places[0] if places else", ROWS),
    Mutant("ldznet/hosts/joint.py", "*tokens[len(tokens) - tail :]]", "]", ROWS),
    Mutant("ldznet/attention/joint.py", "if context is None:", "if False:", JOINED),
    Mutant("ldznet/attention/joint.py", '"image_cond", "time_dim_replace",', '"image_cond",', JOINED),
    Mutant("ldznet/attention/joint.py", "slice(picture.start - skipped, picture.stop - skipped)", "picture", JOINED),
    Mutant("ldznet/attention/joint.py", "if handed is not None:", "if False:", JOINED),
    Mutant("ldznet/attention/joint.py", "list(known) if concepts else names", "names", CONCEPTS),
    Mutant("ldznet/attention/finding.py", "found.maps.mean(dim=(2, 3), keepdim=True)", "config.threshold", CONCEPTS),
    Mutant("ldznet/attention/reading.py", "q.shape[3] ** -0.5", "1.0", "attention"),
    Mutant(
        "ldznet/attention/reading.py",
        "scores.softmax(dim=-1)[..., columns].sum(dim=1)",
        "scores.mean(dim=1).softmax(dim=-1)[..., columns] * scores.shape[1]",
        "attention",
    ),
    Mutant(
        "ldznet/attention/reading.py",
        "(maps - self.maps[block]) / (len(seen) + 1)",
        "(maps - self.maps[block]) / 2",
        "attention",
    ),
    Mutant("ldznet/attention/prompts.py", "[places[at + k] for k", "[at + k for k", "attention"),
    Mutant("ldznet/attention/prompts.py", "if word not in asked]", "]", "attention"),
    Mutant("ldznet/attention/prompts.py", "<= texts.most:", "<= texts.most + 3:", "attention"),
    Mutant(
        "ldznet/attention/denoising.py",
        "(1 - sums[:, :, [row]] / sums[:, :, list(others)]).mean(dim=1).amin(dim=1)",
        "(1 - sums[:, :, [row]] / sums[:, :, list(others)]).mean(dim=1).amax(dim=1)",
        "attention/test_by_hand.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/denoising.py",
        "seed + i).to(latents)",
        "seed).to(latents)",
        "attention/test_by_hand.py attention/test_head.py",
    ),
    Mutant("ldznet/attention/head.py", "*= factor", "*= 1.0", "attention"),
    Mutant(
        "ldznet/attention/finding.py",
        "levels = ((coarse, config.weights[0]), (fine, config.weights[1]))",
        "levels = ((coarse, config.weights[1]), (fine, config.weights[0]))",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "config.steepness * (found.maps - config.threshold)",
        "config.steepness * (found.maps - 0.45)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "config.steepness * (filled - rival) / most",
        "config.steepness * filled / most",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "filled = propagated(maps, links, config.steps, stretch=False)",
        "filled = propagated(maps, links, config.steps)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "stretched = min_max(propagated(stretched, links, config.steps))",
        "stretched = min_max(propagated(stretched, links, 1))",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "sharpened(torch.stack(list(attention.self_attention.values())).mean(dim=0), config.sharpening)",
        "sharpened(torch.stack(list(attention.self_attention.values())).mean(dim=0), 0.0)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/attention/finding.py",
        "bare = group_means(token_maps(attention.cross, levels, size, normalised=False), groups)",
        "bare = group_means(token_maps(attention.cross, levels, size), groups)",
        "attention/test_by_hand.py attention/test_maps.py attention/test_head.py",
    ),
    Mutant(
        "ldznet/evaluate/metrics.py",
        "self.tp / (1 + self.tp + self.fp + self.fn)",
        "self.tp / (self.tp + self.fp + self.fn)",
        "evaluate",
    ),
    Mutant(
        "ldznet/evaluate/metrics.py",
        "(below + not_above).mean() / (2 * len(absent))",
        "below.mean() / len(absent)",
        "evaluate",
    ),
    Mutant(
        "ldznet/evaluate/metrics.py",
        "(means, (0.025, 0.975))",
        "(means, (0.05, 0.95))",
        "evaluate",
    ),
    Mutant("ldznet/evaluate/metrics.py", "tp / (1 + tp + fn)", "tp / (1 + tp + fp)", "evaluate"),
    Mutant(
        "ldznet/models/maskhead.py",
        "groups = NUM_GROUPS if published else 1",
        "groups = NUM_GROUPS",
        "test_golden.py models test_by_hand.py checkpoints",
    ),
    Mutant(
        "ldznet/models/maskhead.py",
        "peak = logits.amax(dim=(1, 2, 3))[:, None]",
        "peak = logits.mean(dim=(1, 2, 3))[:, None]",
        "test_golden.py models test_by_hand.py checkpoints",
    ),
    Mutant(
        "ldznet/predictor.py",
        "found_threshold=self.config.presence_threshold",
        "found_threshold=0.5",
        "test_by_hand.py",
    ),
    Mutant(
        "ldznet/hosts/tiny.py",
        "schedule.add_noise(latents, noise, timesteps)",
        "latents + noise",
        "hosts/test_contract.py",
    ),
    Mutant(
        "ldznet/capture.py",
        "(new - means[name]) / count",
        "(new - means[name]) / 2",
        "nodes/test_boundary.py nodes/test_execute.py attention/test_captured.py",
    ),
    Mutant(
        "ldznet/capture.py",
        "self.weights[key] / total",
        "1 / len(self.rows)",
        "nodes/test_boundary.py nodes/test_execute.py",
    ),
    Mutant(
        "ldznet/capture.py",
        ".sum(dim=1) if maps.shape[1] % tokens == 0",
        ".mean(dim=1) if maps.shape[1] % tokens == 0",
        "nodes/test_boundary.py nodes/test_execute.py attention/test_captured.py",
    ),
    Mutant(
        "ldznet/capture.py",
        "run.latest.get(keys[i]) != step",
        "True",
        "nodes/test_boundary.py nodes/test_execute.py attention/test_captured.py",
    ),
    Mutant("ldznet/drawing.py", "i * GOLDEN % 1", "i / count", "test_drawing.py"),
    Mutant("nodes/_boundary.py", 'mode="replicate"', 'mode="constant"', "nodes/test_boundary.py"),
    Mutant(
        "ldznet/images.py", "(pixels - low) * (2 / (high - low)) - 1", "(pixels - low) / (high - low)", "test_images.py"
    ),
    Mutant("ldznet/images.py", ".div_(127.5).sub_(1)", ".div_(128).sub_(1)", "test_images.py"),
    Mutant(
        "ldznet/images.py",
        'mode="bicubic", align_corners=False, antialias=True',
        'mode="bicubic", align_corners=True',
        "test_refining.py",
    ),
    Mutant("ldznet/hosts/memo.py", "known == settings and", "", "hosts/test_memo.py"),
    Mutant("ldznet/hosts/memo.py", "[-KEPT:]", "", "hosts/test_memo.py"),
    Mutant("ldznet/masks.py", "variance[first == second] += smoothness", "variance += smoothness", "test_refining.py"),
    Mutant("ldznet/masks.py", "d3 = a33 - l31 * a13 - l32 * rest", "d3 = a33 - l31 * a13", "test_refining.py"),
    Mutant(
        "ldznet/masks.py",
        "1 / (0.1 * (squares / (count - 1)).sqrt() + 1e-8)",
        "1 / ((squares / (count - 1)).sqrt() + 1e-8)",
        "test_refining.py",
    ),
    Mutant(
        "ldznet/masks.py",
        "half = min(math.isqrt(pixels**2 - dy**2), width - 1)",
        "half = min(pixels - dy, width - 1)",
        "test_masks.py",
    ),
    Mutant(
        "ldznet/masks.py",
        "((soft - LOW) / (HIGH - LOW))",
        "((soft - LOW) / HIGH)",
        "test_masks.py nodes/test_mask_nodes.py",
    ),
    Mutant(
        "ldznet/combining.py",
        "parts[i] = without(start, [*others, *unwanted] if rest else unwanted, found_from)",
        "parts[i] = without(start, unwanted, found_from)",
        "test_combining.py",
    ),
    Mutant(
        "ldznet/combining.py",
        "scores = terms.scores.amax(dim=1, keepdim=True)",
        "scores = terms.scores.mean(dim=1, keepdim=True)",
        "test_combining.py",
    ),
    Mutant(
        "ldznet/combining.py",
        "(_relative(-terms.logits, terms.deviation) * used)",
        "(_relative(terms.logits, terms.deviation) * used)",
        "test_combining.py",
    ),
    Mutant(
        "ldznet/contracts.py",
        "self.context.repeat(count, 1, 1)",
        "self.context.repeat_interleave(count, dim=0)",
        "test_by_hand.py",
    ),
    Mutant(
        "ldznet/models/trained.py", "torch.zeros(len(rows), dtype", "torch.ones(len(rows), dtype", "test_by_hand.py"
    ),
    Mutant(
        "ldznet/models/trained.py",
        "seeded_noise((1, *clean.shape[1:]), seed)",
        "seeded_noise((1, *clean.shape[1:]), 0)",
        "test_by_hand.py",
    ),
    Mutant(
        "ldznet/models/trained.py",
        "tap.repeat_interleave(phrases, dim=0)",
        "tap.repeat(phrases, 1, 1, 1)",
        "test_predictor.py nodes/test_execute.py test_by_hand.py",
    ),
    Mutant(
        "ldznet/models/trained.py",
        "{block: tap[images] for block, tap in self.taps.items()}",
        "dict(self.taps)",
        "test_predictor.py nodes/test_execute.py test_by_hand.py",
    ),
    Mutant(
        "ldznet/models/trained.py",
        "{block: self._placed(tap) for block, tap in taps.items()}",
        "{block: self._placed(tap).flip(-1) for block, tap in taps.items()}",
        "test_by_hand.py",
    ),
    Mutant(
        "ldznet/predictor.py",
        "rows.append([torch.cat(columns, dim=1)",
        "rows.append([torch.cat(columns[::-1], dim=1)",
        "test_predictor.py test_by_hand.py",
    ),
    Mutant("ldznet/predictor.py", "maps.sigmoid().std(0)", "maps.std(0)", "test_by_hand.py"),
    Mutant("ldznet/attention/captured.py", "torch.ones(", "torch.zeros(", "attention nodes/test_execute.py"),
    Mutant("nodes/capture.py", "captured=seen.captured", "captured=None", EXECUTE),
    Mutant("ldznet/data/regions.py", "np.trunc(FINER * polygon + 0.5)", "np.trunc(FINER * polygon)", REGIONS),
    Mutant("ldznet/data/regions.py", "counts[-2] if len(counts) > 2", "counts[-2] if len(counts) > 1", REGIONS),
    Mutant("ldznet/data/regions.py", "(1 << shift) if bits & NEGATIVE else 0", "0", REGIONS),
    Mutant("ldznet/data/regions.py", "mask[y[on], column[on]] = True", "pass", REGIONS),
    Mutant("ldznet/data/regions.py", "crosses = y < bottom[edge]", "crosses = y <= bottom[edge]", REGIONS),
    Mutant("ldznet/data/regions.py", "flat.reshape(size[1], size[0]).T", "flat.reshape(size)", REGIONS),
    Mutant("ldznet/data/annotated.py", "mask |= self._draw", "mask = self._draw", PUBLISHED),
    Mutant("ldznet/data/annotated.py", "picture.getexif()[ORIENTATION] = 1", "pass", PUBLISHED),
    Mutant("ldznet/data/annotated.py", "if region.phrase not in layer", "if True", PUBLISHED),
    Mutant("ldznet/data/annotated.py", "if phrase not in phrases", "if True", PUBLISHED),
    Mutant("ldznet/data/phrasecut.py", 'if task["image_id"] not in EXCLUDED:', "if True:", PUBLISHED),
    Mutant("ldznet/data/refcoco.py", 'its_split.startswith("test")', "False", PUBLISHED),
]


def noticed(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests fail with the fault in `copy`, which is as it was afterwards."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        files = (f"tests/{name}" for name in mutant.tests.split())
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode not in (0, 1, 2):
            print(done.stdout[-2000:])
        return done.returncode in (1, 2)  # a test failed, or could not be collected
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Runs the mutants whose file or fault holds one of the words given, or all."""
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in part for word in words for part in m)]
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        unseen = 0
        for mutant in chosen:
            try:
                seen = noticed(mutant, Path(folder))
            except AssertionError as error:
                seen = False
                print(f"stale: {error}", flush=True)
            else:
                print(f"{'noticed' if seen else 'UNSEEN '}: {mutant.file}: {mutant.new.strip()[:90]}", flush=True)
            unseen += not seen
    print(f"{len(chosen) - unseen} of {len(chosen)} noticed")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
