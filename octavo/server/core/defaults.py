"""What the operator of a server has set for requests that say nothing: options of `octavo serve` by the names of
sampling fields. Invariant: a request that gives a field, with whatever value, gets its own.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from types import UnionType
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin

import msgspec

from octavo.types import SamplingParams

T_co = TypeVar("T_co", covariant=True)


class Decodes(Protocol[T_co]):
    """What msgspec's decoders do, or who wraps one."""

    @property
    def type(self) -> Any: ...

    def decode(self, body: bytes, /) -> T_co: ...


T = TypeVar("T")


def _without_none(declared: Any) -> Any:
    """A null means the same as no field: the decoder refuses it, and reads the body again without (http/decode.py)."""
    if get_origin(declared) not in (Union, UnionType):
        return declared
    return Union[tuple(each for each in get_args(declared) if each is not type(None))]  # noqa: UP007


class Defaults:
    """`sampling`: what is set; fields at their neutral values are not."""

    def __init__(self, sampling: SamplingParams) -> None:
        neutral = SamplingParams()
        given = {name: getattr(sampling, name) for name in SamplingParams.__struct_fields__}
        self._given = {name: value for name, value in given.items() if value != getattr(neutral, name)}
        self._decoders: dict[tuple[Any, Any], Any] = {}

    def decoder(self, decoder: Decodes[T]) -> Decodes[T]:
        """The same, with these as the defaults of its type; a field that the type requires stays required."""
        kind: Any = decoder.type
        if not self._given or not isinstance(kind, type) or not issubclass(kind, SamplingParams):
            return decoder
        make: Any = decoder.__class__
        if (make, kind) not in self._decoders:
            self._decoders[make, kind] = make(self._derived(kind))
        found: Decodes[T] = self._decoders[make, kind]
        return found

    def _derived(self, kind: type[SamplingParams]) -> type[SamplingParams]:
        fields: list[tuple[str, Any, Any]] = []
        for field in msgspec.structs.fields(kind):
            if field.name in self._given and not field.required:
                plain = msgspec.to_builtins(self._given[field.name], str_keys=True)
                declared = _without_none(field.type)
                value = msgspec.convert(plain, declared, strict=False)
                fields.append((field.name, declared, msgspec.field(default_factory=partial(copy, value))))
        derived = msgspec.defstruct(
            kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True, omit_defaults=True, module=kind.__module__
        )
        assert issubclass(derived, SamplingParams)
        return derived
