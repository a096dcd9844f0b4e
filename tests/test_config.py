"""Configurations: through JSON and back, and whatever else a file may hold."""

from __future__ import annotations

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.checkpoints.load import meta_head
from ldznet.config import HeadConfig, UNetConfig
from ldznet.contracts import Block
from ldznet.errors import CheckpointError
from ldznet.tinyworld import world

SCALARS = st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=5) | st.just("ldznet")
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
NAMES = st.sampled_from([field.name for field in dataclasses.fields(HeadConfig)])
UNET_NAMES = st.sampled_from([field.name for field in dataclasses.fields(UNetConfig)])
UNETS = st.fixed_dictionaries({"unet": st.dictionaries(UNET_NAMES, VALUES, max_size=3)})


def test_there_and_back() -> None:
    for config in (HeadConfig(), world.head_config("znet"), world.head_config("ldznet")):
        assert HeadConfig.from_json(config.to_json()) == config


@settings(deadline=None)
@given(config=st.dictionaries(NAMES, VALUES, max_size=3) | UNETS | VALUES)
def test_any_json_is_a_head_or_an_error_of_ours(config: object) -> None:
    try:
        head = meta_head(HeadConfig.from_json(json.dumps(config)))
    except CheckpointError as error:
        assert len(str(error)) > 40  # noqa: PT017 (success is right too)
    else:
        assert HeadConfig.from_json(head.head_config.to_json()) == head.head_config


@given(text=st.text())
def test_any_text_is_an_error_of_ours(text: str) -> None:
    try:
        HeadConfig.from_json(text)
    except CheckpointError as error:
        assert "as JSON" in str(error)  # noqa: PT017


def test_taps_stand_in_the_order_of_the_pass() -> None:
    specs = UNetConfig().tap_specs()
    assert len(specs) == 16
    assert [Block.parse(name).order for name in specs] == sorted(Block.parse(name).order for name in specs)
    assert specs["input.8"].channels == 1280
    assert (specs["middle.0"].stride, specs["output.5"].stride) == (8, 4)
