"""The texts that lead to a sampler, in prompts as the page sends them."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui import graphs

from ldznet.hosts.comfyui_graph import Encoder, encoders_of

CAPTURED = ["capture", 0]
CLIP = ["world", 1]
INNER, XL = (["5:2", 0], ["5:1", 0]), "CLIPTextEncodeSDXL"
A, B = Encoder("a red star", CLIP), Encoder("grass", CLIP)


def captured(positive: list[Any], **more: Any) -> graphs.Prompt:
    """A KSampler under a capture, with texts "a", "b" and "bad" to make conditionings of."""
    texts = {"a": A.text, "b": B.text, "bad": "blurry"}
    prompt = {name: graphs.node("CLIPTextEncode", clip=CLIP, text=text) for name, text in texts.items()}
    prompt |= {"world": graphs.node("LDZNetTinyWorld"), "capture": graphs.node("LDZNetCapture", model=["world", 0])}
    links = {"model": CAPTURED, "positive": positive, "negative": ["bad", 0]}
    return {**prompt, "sampler": graphs.node("KSampler", **links, seed=1, cfg=5.0), **more}


CONTROL = graphs.node("ControlNetApplyAdvanced", positive=["a", 0], negative=["bad", 0], strength=1.0)
BOTH = {"conditioning_1": ["a", 0], "conditioning_2": ["b", 0]}
CONCAT = {"conditioning_to": ["b", 0], "conditioning_from": ["a", 0]}


@pytest.mark.parametrize(
    ("positive", "more", "texts"),
    [
        (["a", 0], {}, [A]),
        (["both", 0], {"both": graphs.node("ConditioningCombine", **BOTH)}, [A, B]),
        (["both", 0], {"both": graphs.node("ConditioningConcat", **CONCAT)}, [B, A]),
        (["control", 0], {"control": CONTROL}, [A]),
        (["control", 1], {"control": CONTROL}, [Encoder("blurry", CLIP)]),
        (["way", 0], {"way": {"class_type": "Reroute", "inputs": {"": ["a", 0]}}}, [A]),
        (["way", 0], {"way": graphs.node("AnySwitch", on=True, any_01=["a", 0], any_02=["b", 0])}, [A, B]),
        (
            ["5:3", 0],
            {"5:3": graphs.node("CLIPTextEncode", clip=["5:1", 0], text=["5:2", 0])},
            [(["5:2", 0], ["5:1", 0])],
        ),
        (
            ["xl", 0],
            {"xl": graphs.node("CLIPTextEncodeSDXL", clip=CLIP, text_g="a", text_l="a", width=64)},
            [("a", CLIP)],
        ),
        (
            ["xl", 0],
            {"xl": graphs.node("CLIPTextEncodeSDXL", clip=CLIP, text_g="a", text_l="b")},
            [("a", CLIP), ("b", CLIP)],
        ),
        (["gone", 0], {}, []),
    ],
)
def test_a_sampler_s_positive_texts(positive: list[Any], more: graphs.Prompt, texts: list[Any]) -> None:
    assert encoders_of(captured(positive, **more), CAPTURED) == texts


def test_models_and_guiders_between() -> None:
    """LoRAs, schedulers and guiders; another model's sampler is not looked at."""
    prompt = captured(["bad", 0])
    del prompt["sampler"]
    prompt |= {
        "lora": graphs.node("LoraLoaderModelOnly", model=CAPTURED, strength_model=1.0),
        "guider": graphs.node("CFGGuider", model=["lora", 0], positive=["a", 0], negative=["bad", 0], cfg=1.0),
        "sigmas": graphs.node("BasicScheduler", model=["lora", 0], steps=3),
        "custom": graphs.node("SamplerCustomAdvanced", guider=["guider", 0], sigmas=["sigmas", 0]),
        "other": graphs.node("KSampler", model=["world", 0], positive=["b", 0], negative=["bad", 0]),
    }
    assert encoders_of(prompt, CAPTURED) == [A]
    prompt["guider"] = graphs.node(
        "DualCFGGuider", model=["lora", 0], cond1=["a", 0], cond2=["b", 0], negative=["bad", 0]
    )
    assert encoders_of(prompt, CAPTURED) == [A, B]
    prompt["guider"] = graphs.node("BasicGuider", model=["lora", 0], conditioning=["b", 0])
    assert encoders_of(prompt, CAPTURED) == [B]


def test_rings_and_what_reads_the_capture_alone_lead_nowhere() -> None:
    prompt = captured(
        ["one", 0], one=graphs.node("X", conditioning=["two", 0]), two=graphs.node("X", conditioning=["one", 0])
    )
    assert encoders_of(prompt, CAPTURED) == []
    reader = graphs.node("LDZNetSegmentCaptured", capture=["capture", 1], positive=["b", 0])
    assert encoders_of(captured(["a", 0], reader=reader), CAPTURED) == [A]
