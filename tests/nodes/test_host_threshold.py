"""One threshold: what Segment by Text and Segment Captured are set to, every node after them follows, unless it has
its own; and no step of the UNet is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import graphs, host

pytestmark = pytest.mark.host

FOLLOW = -1.0
SHOWN = {"mask": ("mask", 0), "overlay": ("preview", 0), "uncovered": ("regions", 1), "labels": ("labels", 0)}


def following(prompt: graphs.Prompt, own: float) -> graphs.Prompt:
    """`prompt`, whose "segment" reads the model "counted", and every node with a threshold, which is set to `own`."""
    segmentation = ["segment", 2]
    shape = {"phrases": "", "mode": "threshold", "refine": "none", "fill_holes": False, "drop_specks": 0}
    text = {"regions": "grass => sand", "background": "sky", "strength": 1.0}
    prompt |= {
        "mask": graphs.node("LDZNetMask", segmentation=segmentation, threshold=own, grow=0, feather=0, **shape),
        "preview": graphs.node("LDZNetPreview", segmentation=segmentation, threshold=own, opacity=1.0),
        "labels": graphs.node("LDZNetLabelMap", segmentation=segmentation, background=own),
        "regions": graphs.node(
            "LDZNetRegionPrompts", segmentation=segmentation, clip=["world", 1], threshold=own, grow=0, **text
        ),
        "state": graphs.node("ProbeState", model=["counted", 0], after=["segment", 0]),
    }
    saves = {name: graphs.save(list(link), name) for name, link in SHOWN.items()}
    saves |= {"state": graphs.save(["state", 0], "state"), "maps": graphs.save(["segment", 2], "maps")}
    return prompt | {f"save {name}": save for name, save in saves.items()}


def segmented() -> graphs.Prompt:
    """Segment by Text of a sampler's latent."""
    prompt = {**graphs.sampled(seed=41), "counted": graphs.node("ProbeModel", model=["world", 0], kind="counted")}
    return {**prompt, "segment": graphs.segment("grass", model=["counted", 0])}


def captured() -> graphs.Prompt:
    """Segment Captured of the same."""
    prompt = graphs.captured("grass", seed=42)
    prompt["counted"] = graphs.node("ProbeModel", model=["world", 0], kind="counted")
    prompt["capture"]["inputs"]["model"] = ["counted", 0]
    return prompt


def outputs(server: host.Server, prompt: graphs.Prompt, threshold: float) -> dict[str, Any]:
    """What each node gives, the UNet calls so far, and the soft map, at a threshold of the segmenting node."""
    prompt["segment"]["inputs"]["threshold"] = threshold
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed
    return {name: server.saved(name)[0] for name in (*SHOWN, "state", "maps")}


@pytest.mark.parametrize("graph", [segmented, captured], ids=["by text", "captured"])
def test_every_node_follows_and_no_unet_runs(server: host.Server, graph: Any) -> None:
    prompt = following(graph(), FOLLOW)
    low, high = outputs(server, prompt, 0.2), outputs(server, prompt, 0.8)
    for found, threshold in ((low, 0.2), (high, 0.8)):
        expected = (found["maps"]["probabilities"][:, 0] > threshold).float()
        assert 0 < expected.mean() < 1
        assert torch.equal(found["mask"], expected)
        assert torch.equal(found["uncovered"], 1 - expected)
        assert torch.equal(found["labels"] * 255, expected)
    assert not torch.equal(low["mask"], high["mask"])
    assert not torch.equal(low["overlay"], high["overlay"])
    assert low["state"] == high["state"]


def test_a_threshold_of_its_own_stays_where_it_is(server: host.Server) -> None:
    prompt = following(segmented(), 0.5)
    low, high = outputs(server, prompt, 0.2), outputs(server, prompt, 0.8)
    for name in SHOWN:
        assert torch.equal(low[name], high[name]), name
    assert torch.equal(low["mask"], (low["maps"]["probabilities"][:, 0] > 0.5).float())


def shown_in_page(server: host.Server, prompt: graphs.Prompt, threshold: float) -> list[dict[str, Any]]:
    """All that a page is told to show in the node "segment" of a run that it queues."""
    prompt["segment"]["inputs"]["threshold"] = threshold
    messages, extra = host.Messages(server), {"extra_pnginfo": {"workflow": {}}}
    server.post("/prompt", {"prompt": prompt, "client_id": server.client, "extra_data": extra})
    told = [message["data"] for message in messages.until_done() if message["type"] == "executed"]
    messages.close()
    outputs = [data["output"] or {} for data in told if data["display_node"] == "segment"]
    return [run for output in outputs for run in output.get("ldznet", []) if run]


@pytest.mark.parametrize("graph", [segmented, captured], ids=["by text", "captured"])
def test_the_page_is_told_again_what_the_host_kept(server: host.Server, graph: Any) -> None:
    """Of a node that expands ComfyUI sends again what the outer one showed, and runs nothing."""
    prompt = graph()
    first = shown_in_page(server, prompt, 0.3)[-1]
    assert first["threshold"] == 0.3
    assert first["maps"]
    assert shown_in_page(server, prompt, 0.3) == [first]
    assert shown_in_page(server, prompt, 0.7)[-1]["threshold"] == 0.7
