"""One-line faults that the tests must notice: `python tests/mutants.py [words of a file or a fault …]`.

Each is put into a copy of this repository, where the named test files then have to fail. Prints those that nobody
noticed, and those whose line is no longer there; exits 1 where there is one. Not part of the test run: about five
seconds each.
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
COPIED = ("__init__.py", "pyproject.toml", "install.py", "ldznet", "nodes", "tests", "benchmarks", "workflows", "web")


class Mutant(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`; then one of `tests` (files under tests/) has to fail."""

    file: str
    old: str
    new: str
    tests: str


HAND = "test_by_hand.py"
VALUES, EXECUTE = "nodes/test_values.py", "nodes/test_execute.py"
MUTANTS = [
    Mutant("ldznet/phrases.py", 'return template.replace("{}", phrase)', "return phrase", HAND),
    Mutant("ldznet/predictor.py", "fill(self.config.template, term)", 'fill("a photo of a {}.", term)', HAND),
    Mutant("ldznet/predictor.py", "presence.float().sigmoid()", "presence.float().sigmoid() * 0.1", HAND),
    Mutant("ldznet/predictor.py", "if self.ensemble == 1:", "if True:", HAND),
    Mutant("ldznet/predictor.py", "(member + 0.5) / self.ensemble", "member / self.ensemble", HAND),
    Mutant(
        "ldznet/predictor.py",
        "seeded_noise((1, *clean.shape[1:]), self.seed + member)",
        "seeded_noise((1, *clean.shape[1:]), self.seed)",
        HAND,
    ),
    Mutant(
        "ldznet/predictor.py",
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
    Mutant(
        "nodes/mask.py",
        "masks.feather(masks.grow(mask, grow, check), feather, check)",
        "masks.grow(masks.feather(mask, feather, check), grow, check)",
        VALUES,
    ),
    Mutant("nodes/mask.py", "masks.grow(mask, grow, check)", "masks.grow(mask, -grow, check)", VALUES),
    Mutant("nodes/mask.py", "check), feather, check)", "check), 2 * feather, check)", VALUES),
    Mutant("nodes/mask.py", "chosen.threshold_or(threshold)", "0.5", VALUES),
    Mutant("nodes/mask.py", "chosen.soft().amax(dim=1)", "chosen.soft().mean(dim=1)", VALUES),
    Mutant("nodes/mask.py", "bool(mask.any())", "bool(chosen.result.found.any())", "nodes/test_mask_nodes.py"),
    Mutant("nodes/mask.py", "1 - mask if invert else mask", "mask", "nodes/test_mask_nodes.py"),
    Mutant("nodes/mask.py", "masks.ends_pulled(mask)", "mask", "nodes/test_mask_nodes.py"),
    Mutant(
        "nodes/labelmap.py",
        "masks.label_map(segmentation.soft(), ",
        "masks.label_map(segmentation.probabilities(), ",
        VALUES,
    ),
    Mutant("nodes/labelmap.py", "mask_of(labels / LEVELS)", "mask_of(labels / len(boxes))", VALUES),
    Mutant("nodes/preview.py", "(pictures, masks, opacity, hues)", "(pictures, masks, 0.6, hues)", VALUES),
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
        "predictor.set_image(guide_of(image), value_range=(0, 1))",
        "predictor.set_image(guide_of(image), value_range=(-1, 1))",
        EXECUTE,
    ),
    Mutant("nodes/_boundary.py", "image[..., :3].movedim(-1, 1)", "image[..., :3].flip(-1).movedim(-1, 1)", EXECUTE),
    Mutant(
        "nodes/segment.py",
        '{"seed": seed, "ensemble": ensemble, "resolution": resolution}',
        '{"seed": 0, "ensemble": ensemble, "resolution": resolution}',
        EXECUTE,
    ),
    Mutant("nodes/segment.py", "comfyui.model_space(model, vae_latents)", "vae_latents", EXECUTE),
    Mutant("nodes/segment.py", "masks.amax(dim=1)", "masks.mean(dim=1)", EXECUTE),
    Mutant(
        "nodes/segment.py",
        "mask, masks, segmentation, found, text, expand",
        "mask, masks, segmentation, text, found, expand",
        EXECUTE,
    ),
    Mutant("ldznet/hosts/comfyui.py", "config.timestep)\n    clone", "config.timestep + 200)\n    clone", EXECUTE),
]


def noticed(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests fail with the fault in `copy`, which is as it was afterwards."""
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.old!r} stands {text.count(mutant.old)} times in {mutant.file}"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        command = ["pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in mutant.tests.split())]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode not in (0, 1):
            print(done.stdout[-2000:])
        return done.returncode == 1
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
