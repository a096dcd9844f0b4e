"""Makes the pictures of workflows/ and web/docs/ anew, in a real ComfyUI. Run it when the embedded weights change.

python tests/comfyui/pictures.py
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import graphs
import host
import page
from PIL import Image

WORKFLOWS, DOCS = host.ROOT / "workflows", host.ROOT / "web" / "docs"
SIDE, GAP = 256, 8
TINY = "tiny (embedded)"
SIZES = {"width": 128, "height": 128}
SAMPLER = {"steps": 20, "cfg": 5.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
ON_A_CHECKPOINT: dict[str, dict[str, dict[str, Any]]] = {  # shown on the tiny world: node, and what is another there
    "5_inpaint_by_text_sd15": {
        "2": {"head": TINY},
        "3": {"text": "a photo of a purple house on sand"},
        "4": {"text": ""},
        "5": SIZES,
        "6": {**SAMPLER, "seed": 9},
        "8": {"text": "a purple house"},
        "10": {"drop_specks": 16},
        "12": {"text": "a photo of a yellow flower on sand"},
        "13": {**SAMPLER, "seed": 7},
    },
    "7_attention_any_checkpoint": {
        "3": {"text": "a photo of a green heart on snow"},
        "4": {"text": ""},
        "5": SIZES,
        "6": {**SAMPLER, "seed": 3},
        "8": {"text": "a green heart\nsnow"},
    },
    "8_segment_any_picture": {
        "2": {"megapixels": 128 * 128 / 1024**2},
        "5": {"text": "a white boat\nwater"},
        "7": {"phrases": "a white boat", "drop_specks": 16},
        "8": {"text": "a photo of a red star on water"},
        "9": {"text": ""},
        "12": {**SAMPLER, "seed": 9, "denoise": 1.0},
    },
}
LOADED = ("a photo of a white boat on water", 9)  # in the place of what Load Image loads: prompt and seed
SHOWN = {  # help page's picture: workflow, and which of its outputs by node type
    "segment": ("1_generate_and_segment", "LDZNetPreview"),
    "captured": ("3_capture_and_composite", "LDZNetPreview"),
    "regions": ("4_region_prompts", "PreviewImage"),
    "steer": ("10_region_prompts_while_sampling", "LDZNetSteered", "PreviewImage"),
}
SEGMENTING = ("LDZNetSegment", "LDZNetSegmentCaptured")
OPERATIONS = {"mode": "soft", "phrases": "", "threshold": 0.5, "refine": "none", "fill_holes": False, "drop_specks": 0}


def opened(server: host.Server, entry: dict[str, Any], node_id: str) -> list[Image.Image]:
    """The pictures that a node of a finished prompt shows, or what it expanded to."""
    shown = [key for key, meta in entry["meta"].items() if meta["display_node"] == node_id]
    images = [image for key in shown for image in entry["outputs"][key].get("images", [])]
    return [Image.open(io.BytesIO(server.picture(image))).convert("RGB") for image in images]


def row(pictures: list[Image.Image]) -> Image.Image:
    """Side by side, at one height."""
    scaled = [p.resize((round(p.width * SIDE / p.height), SIDE), Image.Resampling.LANCZOS) for p in pictures]
    canvas = Image.new("RGB", (sum(p.width for p in scaled) + GAP * (len(scaled) - 1), SIDE), "white")
    left = 0
    for picture in scaled:
        canvas.paste(picture, (left, 0))
        left += picture.width + GAP
    return canvas


def on_the_tiny_world(prompt: graphs.Prompt, changes: dict[str, dict[str, Any]]) -> graphs.Prompt:
    """The prompt of a workflow with the tiny world in the place of its checkpoint and of the picture that it loads."""
    text, seed = LOADED
    world = next(key for key, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple")
    prompt = {key: {**node, "inputs": {**node["inputs"], **changes.get(key, {})}} for key, node in prompt.items()}
    prompt[world] = graphs.node("LDZNetTinyWorld")  # with the same outputs
    for key in [key for key, node in prompt.items() if node["class_type"] == "LoadImage"]:
        prompt |= {
            "loaded size": graphs.node("EmptyLatentImage", **SIZES, batch_size=1),
            "positive": graphs.node("CLIPTextEncode", clip=[world, 1], text=text),
            "negative": graphs.node("CLIPTextEncode", clip=[world, 1], text=""),
            "loaded": graphs.sampler([world, 0], ["loaded size", 0], seed=seed, **SAMPLER),
            key: graphs.node("VAEDecode", samples=["loaded", 0], vae=[world, 2]),
        }
    return prompt


def operations() -> graphs.Prompt:
    """A soft mask, a grown one, a feathered one; and a colour map."""
    prompt = {**graphs.sampled(steps=20, cfg=5.0, seed=3), "segment": graphs.segment("a red star\ngrass")}
    for name, changes in {"soft": {}, "grown": {"mode": "threshold", "grow": 8}, "feathered": {"feather": 8}}.items():
        settings = {**OPERATIONS, "grow": 0, "feather": 0, "phrases": "1", **changes}
        prompt[name] = graphs.node("LDZNetMask", segmentation=["segment", 2], **settings)
        prompt[f"show {name}"] = graphs.node("MaskPreview", mask=[name, 0])
    prompt["labels"] = graphs.node("LDZNetLabelMap", segmentation=["segment", 2], background=0.5)
    prompt["show labels"] = graphs.node("PreviewImage", images=["labels", 1])
    return prompt


def make(server: host.Server) -> None:
    """Every picture."""
    infos, shown = server.get("/object_info"), {}
    for path in sorted(WORKFLOWS.glob("*.json")):
        prompt = page.to_prompt(path, infos)
        if path.stem in ON_A_CHECKPOINT:
            prompt = on_the_tiny_world(prompt, ON_A_CHECKPOINT[path.stem])
        entry = server.run(prompt)
        assert host.error_of(entry) is None, host.error_of(entry)
        present = {node["class_type"] for node in prompt.values()}
        for node_id, node in prompt.items():
            if "LDZNetPreview" in present and node["class_type"] in SEGMENTING:
                continue  # which shows the same
            shown.setdefault((path.stem, node["class_type"]), []).extend(opened(server, entry, node_id))
        pictures = [picture for key, found in shown.items() if key[0] == path.stem for picture in found]
        row(pictures).save(path.with_suffix(".jpg"), quality=88)
    for name, (workflow, *kinds) in SHOWN.items():
        row([picture for kind in kinds for picture in shown[workflow, kind]]).save(DOCS / f"{name}.png", optimize=True)
    entry = server.run(operations())
    assert host.error_of(entry) is None, host.error_of(entry)
    masks = [opened(server, entry, f"show {name}")[0] for name in ("soft", "grown", "feathered")]
    row(masks).save(DOCS / "mask.png", optimize=True)
    row(opened(server, entry, "show labels")).save(DOCS / "labelmap.png", optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        running = host.Server(Path(folder))
        try:
            make(running)
        finally:
            running.stop()
