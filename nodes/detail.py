"""Detail by Words: what each phrase names is cropped, sampled anew at the model's own size, and put back."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import masks, shaping
from ..ldznet.cropping import Crop, crop_of
from ..ldznet.errors import InputError
from ..ldznet.shapes import PIXELS_PER_LATENT, Float
from ._boundary import Segmented, mask_of
from ._phrases import read_regions
from ._schema import CATEGORY, FOLLOW, INNER, RAW, SegmentationType, head_input, schema, seed_input, threshold_input

LEAST = PIXELS_PER_LATENT**2  # pixels: what a latent cannot hold is not painted anew
MOST = 16  # pieces of a phrase in an image, the largest
REACH = 2.5  # times the feather: how far beyond a piece its mask lies over 0
PLACE = ("image", "phrase", "piece")


class DetailByWords(io.ComfyNode):
    """A picture in which what was named is painted anew, larger."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetDetail",
            display_name="Detail by Words",
            category=CATEGORY,
            description='Lines "phrase => prompt": each thing found is cropped, sampled at the model\'s own size, and '
            "put back. Two things far apart are two crops; the rest of the picture stays as it is, to the bit.",
            search_aliases=[
                "detailer",
                "ADetailer",
                "face detailer",
                "crop and stitch",
                "fix hands",
                "inpaint by text",
            ],
            inputs=[*_linked_inputs(), _details_input(), threshold_input(), *_sampling_inputs(), *_later_inputs()],
            outputs=_outputs(),
            enable_expand=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        details: str,
        threshold: float,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        side: int,
        padding: int,
        feather: int,
        image: Any = None,
        latent: Any = None,
        negative: Any = None,
        head: Any = None,
    ) -> Any:
        """Segments, and hands on to the node that will know what was found. What is linked goes on as links."""
        from ..ldznet.hosts import comfyui

        pairs = read_regions(details, "details")
        if image is None and latent is None:
            raise InputError("Expected an image or a latent, got neither. Connect one. (socket: image)")
        graph = comfyui.GraphBuilder()
        text = "\n".join(dict.fromkeys(phrase for phrase, _ in pairs))
        links = {"model": model, "clip": clip, "vae": vae, "image": image, "latent": latent, "head": head}
        links = {name: link for name, link in links.items() if link is not None}
        found = graph.node("LDZNetInnerSegment", **links, text=text, seed=0, ensemble=1, resolution="head").out(0)
        masked = graph.node("LDZNetInnerMasks", segmentation=found, threshold=threshold).out(4)
        crops = graph.node(
            "LDZNetInnerDetail",
            model=model,
            clip=clip,
            vae=vae,
            details=details,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
            side=side,
            padding=padding,
            feather=feather,
            segmentation=masked,
            found=masked,
            image=graph.node("VAEDecode", samples=latent, vae=vae).out(0) if image is None else image,
            negative=graph.node("CLIPTextEncode", clip=clip, text="").out(0) if negative is None else negative,
        )
        return io.NodeOutput(*map(crops.out, range(3)), expand=graph.finalize())


class InnerDetail(io.ComfyNode):
    """Knows what was found: ComfyUI's own nodes for each crop."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerDetail",
            display_name="Detail by Words: crops",
            category=INNER,
            description="What Detail by Words expands to. Use that node.",
            is_dev_only=True,
            inputs=[
                *_linked_inputs(),
                _details_input(),
                *_sampling_inputs(),
                SegmentationType.Input("segmentation", tooltip="What was found."),
                SegmentationType.Input("found", extra_dict=RAW, tooltip="The same, as a link."),
                io.Image.Input("image", extra_dict=RAW, tooltip="What was segmented."),
                io.Conditioning.Input("negative", extra_dict=RAW, tooltip="What is not wanted."),
            ],
            outputs=_outputs(),
            enable_expand=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        details: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        side: int,
        padding: int,
        feather: int,
        segmentation: Segmented,
        found: Any,
        image: Any,
        negative: Any,
    ) -> Any:
        """One crop after the other: each sees what those before it have painted."""
        from ..ldznet.hosts import comfyui

        graph, hard, lines, pictures = comfyui.GraphBuilder(), segmentation.masks(FOLLOW), [], []
        sampling = {
            "steps": steps,
            "cfg": cfg,
            "sampler_name": sampler_name,
            "scheduler": scheduler,
            "denoise": denoise,
        }
        links = {"model": model, "negative": negative, **sampling}
        changed = hard.new_zeros((len(hard), *hard.shape[2:]))
        for b in range(len(hard)):
            picture = image
            if len(hard) > 1:
                picture = graph.node("ImageFromBatch", image=image, batch_index=b, length=1).out(0)
            for phrase, prompt in read_regions(details, "details"):
                p = segmentation.result.phrases.index(phrase)
                pieces = masks.pieces(hard[b, p].bool(), LEAST)[:MOST]
                lines += [] if pieces else [f'image {b + 1}, "{phrase}": nothing to paint']
                for k, piece in enumerate(pieces):
                    crop = crop_of(piece, segmentation.size, padding + math.ceil(REACH * feather), side)
                    where = {"image": b, "phrase": p, "piece": k, "feather": feather}
                    mask = graph.node("LDZNetInnerPiece", segmentation=found, **where).out(0)
                    text = graph.node("CLIPTextEncode", clip=clip, text=prompt).out(0)
                    picture = painted(graph, picture, mask, crop, vae, {**links, "positive": text, "seed": seed})
                    seed += 1
                    changed[b] = changed[b].maximum(piece_mask(hard[b, p], k, feather))
                    high, wide = crop.sampled
                    place = f"{crop.width} x {crop.height} at {crop.left}, {crop.top}, sampled at {wide} x {high}"
                    lines.append(f'image {b + 1}, "{phrase}": {place}')
            pictures.append(picture)
        whole = pictures[0]
        for picture in pictures[1:]:
            whole = graph.node("ImageBatch", image1=whole, image2=picture).out(0)
        return io.NodeOutput(whole, mask_of(changed), "\n".join(lines), expand=graph.finalize())


class InnerPiece(io.ComfyNode):
    """The mask of one connected piece."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerPiece",
            display_name="Detail by Words: piece",
            category=INNER,
            description="What Detail by Words expands to. Use Mask from Segmentation.",
            is_dev_only=True,
            inputs=[
                SegmentationType.Input("segmentation", tooltip="What was found."),
                *(io.Int.Input(name, default=0, min=0, tooltip=f"Which {name}, from 0.") for name in PLACE),
                _feather_input(),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask", tooltip="Of that piece, feathered.")],
        )

    @classmethod
    def execute(cls, segmentation: Segmented, image: int, phrase: int, piece: int, feather: int) -> Any:
        """One mask, as large as the picture."""
        return io.NodeOutput(mask_of(piece_mask(segmentation.masks(FOLLOW)[image, phrase], piece, feather)[None]))


def piece_mask(hard: Float[Tensor, "h w"], number: int, feather: int) -> Float[Tensor, "h w"]:
    """The piece of that number of a mask of 0 and 1, feathered outwards: all of it stays 1."""
    piece, mask = masks.pieces(hard.bool(), LEAST)[number], hard.new_zeros(hard.shape)
    mask[piece.top : piece.bottom, piece.left : piece.right] = piece.mask.to(mask)
    return shaping.finished(mask[None], shaping.Shape(grow=feather, feather=feather))[0].maximum(mask)


def painted(graph: Any, picture: Any, mask: Any, crop: Crop, vae: Any, sampling: dict[str, Any]) -> Any:
    """A link to `picture` with what lies in `crop` sampled anew within `mask`; the latter are links too."""
    box = {"x": crop.left, "y": crop.top, "width": crop.width, "height": crop.height}
    high, wide = crop.sampled
    part, cover = graph.node("ImageCrop", image=picture, **box).out(0), graph.node("CropMask", mask=mask, **box).out(0)
    scaling = {"upscale_method": "lanczos", "crop": "disabled"}
    larger = graph.node("ImageScale", image=part, width=wide, height=high, **scaling).out(0)
    latent = graph.node("VAEEncode", pixels=larger, vae=vae).out(0)
    latent = graph.node("SetLatentNoiseMask", samples=latent, mask=cover).out(0)
    sampled = graph.node("KSampler", latent_image=latent, **sampling).out(0)
    decoded = graph.node("VAEDecode", samples=sampled, vae=vae).out(0)
    back = graph.node("ImageScale", image=decoded, width=crop.width, height=crop.height, **scaling).out(0)
    return graph.node(
        "ImageCompositeMasked",
        destination=picture,
        source=back,
        x=crop.left,
        y=crop.top,
        resize_source=False,
        mask=cover,
    ).out(0)


def _linked_inputs() -> list[Any]:
    return [
        io.Model.Input("model", extra_dict=RAW, tooltip="Finds the things, and paints them: SD 1.x, SD 2.x or SDXL."),
        io.Clip.Input("clip", extra_dict=RAW, tooltip="The model's text encoder."),
        io.Vae.Input("vae", extra_dict=RAW, tooltip="The model's VAE."),
    ]


def _details_input() -> Any:
    return io.String.Input(
        "details",
        multiline=True,
        default="",
        placeholder="the face => a detailed face, sharp eyes\nthe hand => a hand with five fingers",
        dynamic_prompts=False,
        tooltip='Lines "phrase => prompt": what to find, and what to paint there.',
    )


def _sampling_inputs() -> list[Any]:
    from ..ldznet.hosts import comfyui

    samplers, schedulers = comfyui.sampler_names()
    return [
        seed_input("Of the first crop; each further one has the next."),
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Of the sampler, for each crop."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="How strongly the prompt guides."),
        io.Combo.Input("sampler_name", options=samplers, tooltip="As in a KSampler."),
        io.Combo.Input("scheduler", options=schedulers, tooltip="As in a KSampler."),
        io.Float.Input(
            "denoise", default=0.5, min=0.0, max=1.0, step=0.01, tooltip="How much is painted anew: 1 is everything."
        ),
        io.Int.Input(
            "side",
            default=512,
            min=64,
            max=4096,
            step=64,
            tooltip="Crops are sampled at about this by this many pixels: 512 for SD 1.x, 1024 for SDXL, 128 for the "
            "Tiny World.",
        ),
        io.Int.Input("padding", default=32, min=0, max=1024, tooltip="Pixels around each thing that its crop shows."),
        _feather_input(),
    ]


def _feather_input() -> Any:
    return io.Int.Input("feather", default=8, min=0, max=512, tooltip="Pixels over which new and old melt, outside.")


def _later_inputs() -> list[Any]:
    return [
        io.Image.Input("image", optional=True, extra_dict=RAW, tooltip="The picture."),
        io.Latent.Input(
            "latent",
            optional=True,
            extra_dict=RAW,
            tooltip="In the place of the image, or beside it: what is segmented.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, extra_dict=RAW, tooltip="What is not wanted; nothing otherwise."
        ),
        head_input("From Load LD-ZNet Head; it must fit the model.", RAW),
    ]


def _outputs() -> list[Any]:
    return [
        io.Image.Output("detailed", display_name="image", tooltip="The picture, with what was found painted anew."),
        io.Mask.Output("changed", display_name="mask", tooltip="What was painted: one mask per image."),
        io.String.Output("report", display_name="report", tooltip="Each crop: its phrase, its place, its size."),
    ]
