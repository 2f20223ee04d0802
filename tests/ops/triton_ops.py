"""The Triton backend for tests that bring CPU tensors: interpreted where they are, or on the GPU there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from octavo.kernels.ops import Ops

HAS_TRITON = find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def triton_ops(dtype: torch.dtype = torch.float32, kv: torch.dtype | None = None) -> Ops:
    from octavo.kernels.triton.backend import TritonOps

    ops = TritonOps(dtype, kv or dtype, DEVICE)
    return ops if DEVICE == "cpu" else cast(Ops, _OnDevice(ops))


class _OnDevice:
    """Every tensor of a call goes to the GPU and, since it may have been written, back to where it came from."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        return self._moving(found) if callable(found) and name != "kv_page" else found

    def _moving(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def moved(*args: Any, **kwargs: Any) -> Any:
            there: list[tuple[Tensor, Tensor]] = []
            result = operation(*(_to(a, there) for a in args), **{k: _to(v, there) for k, v in kwargs.items()})
            for here, on_device in there:
                here.copy_(on_device)
            return _back(result)

        return moved


def _to(value: Any, there: list[tuple[Tensor, Tensor]]) -> Any:
    if isinstance(value, Tensor):
        if value.device.type == "cuda":
            return value
        there.append((value, value.to(DEVICE)))
        return there[-1][1]
    if isinstance(value, list):
        return [_to(item, there) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _to(getattr(value, f.name), there) for f in fields(value)})
    return value


def _back(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _back(getattr(value, f.name)) for f in fields(value)})
    return tuple(map(_back, value)) if isinstance(value, tuple) else value
