"""The nodes of the pack, for ComfyUI alone. Each `execute` converts, calls the library, converts back.

To add a node: a class, a line in `NODES`, a help page web/docs/<id>.md, its names in tests/nodes/registry.json and
locales/en/nodeDefs.json. Ids, names and their order are only ever appended to: saved workflows name them.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

NODES: dict[str, str] = {  # node id → module and class
    "LDZNetLoadHead": "load.LoadHead",
    "LDZNetSegment": "segment.SegmentByText",
    "LDZNetCapture": "capture.CaptureWhileSampling",
    "LDZNetSegmentCaptured": "capture.SegmentCaptured",
    "LDZNetMask": "mask.MaskFromSegmentation",
    "LDZNetLabelMap": "labelmap.LabelMap",
    "LDZNetRegionPrompts": "regions.RegionPrompts",
    "LDZNetPreview": "preview.PreviewSegmentation",
    "LDZNetTinyWorld": "tinyworld.TinyWorld",
    "LDZNetInnerSegment": "segment.InnerSegment",
    "LDZNetInnerMasks": "segment.InnerMasks",
    "LDZNetInnerCaptured": "capture.InnerCaptured",
    "LDZNetInnerPrompt": "prompts.InnerPrompt",
    "LDZNetDetail": "detail.DetailByWords",
    "LDZNetInnerDetail": "detail.InnerDetail",
    "LDZNetInnerPiece": "detail.InnerPiece",
    "LDZNetSteer": "steering.RegionPromptsWhileSampling",
    "LDZNetSteered": "steering.RegionsFound",
    "LDZNetInnerSteered": "steering.InnerSteered",
    "LDZNetStop": "steering.StopIfMissing",
    "LDZNetClusters": "clusters.RegionsWithoutWords",
    "LDZNetFrames": "clusters.SmoothOverFrames",
}


def working_nodes(registry: dict[str, str] | None = None) -> list[Any]:
    """The classes of `registry` (`NODES`) whose module imports and whose schema builds; the others are logged.

    ComfyUI builds the schemas in one loop, in which a bad one would take all after it down.
    """
    found = []
    for node_id, place in (NODES if registry is None else registry).items():
        module, name = place.split(".")
        try:
            node = getattr(importlib.import_module(f".{module}", __name__), name)
            node.GET_SCHEMA()
        except Exception:
            logging.getLogger(__name__).exception("LD-ZNet: the node %s is left out", node_id)
        else:
            found.append(node)
    return found


def extension() -> Any:
    """The ComfyExtension of this pack."""
    from comfy_api.latest import ComfyExtension

    from .load import register_folder

    class LDZNetExtension(ComfyExtension):
        async def get_node_list(self) -> list[Any]:
            """Every node that works."""
            register_folder()
            return working_nodes()

    return LDZNetExtension()
