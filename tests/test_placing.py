"""Devices and dtypes as users name them, where a head or a host is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldznet import load_head, open_host
from ldznet.errors import InputError

OPENERS: dict[str, Callable[..., Any]] = {
    "head": lambda **where: load_head("tiny", **where),
    "attention": lambda **where: load_head("attention", **where),
    "host": lambda **where: open_host("tiny", **where),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("dtype", ["float16", "torch.float16", float, torch.int64, torch.float8_e4m3fn, 16])
def test_a_dtype_that_is_none_says_what_to_write(opener: str, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"Expected torch\.float16, torch\.bfloat16, .* as dtype, got"):
        OPENERS[opener](dtype=dtype)


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("device", ["gpu", "cuda:999", "npu", "cpu:x", 3.5, ""])
def test_a_device_that_is_not_there_is_an_error_of_ours(opener: str, device: Any) -> None:
    with pytest.raises(InputError, match=r"Expected a device of this machine, got .*Leave it out for the CPU"):
        OPENERS[opener](device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(InputError, match="Expected a device of this machine, got 'cuda'"):
        load_head("tiny", device="cuda")


def test_those_that_are_there_are_taken() -> None:
    head = load_head("tiny", device=torch.device("cpu"), dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in head.parameters()} == {("cpu", torch.float64)}
    assert open_host("tiny", device="cpu", dtype=torch.bfloat16).dtype is torch.bfloat16


@pytest.mark.parametrize("source", ["n" * 5000, "a\0b", "\ud800", "x\x1b[2J.safetensors"])
@pytest.mark.parametrize("opens", [load_head, open_host])
def test_names_that_no_file_has(opens: Callable[[str], Any], source: str) -> None:
    with pytest.raises(Exception, match="which does not exist") as error:
        opens(source)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600
