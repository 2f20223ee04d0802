"""What the output has to match, from whichever field a client says it in. Used by the OpenAI routes.

OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_*`, llama.cpp's `grammar` and `json_schema`: each
becomes one StructuredOutputs and the name of the field, which errors name. Invariant: of several fields none wins.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octavo.errors import Field, RequestError
from octavo.grammar.spec import grammar_of
from octavo.types import StructuredOutputs

INLINE_CHARS = 4096
"""A larger constraint is written as a grammar in a thread, so that other streams keep their pace."""


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None = None
    description: str | None = None
    schema: Annotated[dict[str, Any] | bool, Meta(description="JSON Schema; left out: any object.")] | None = None
    strict: Annotated[bool, Meta(description="Schemas are enforced either way.")] | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, Meta(description="`text`, `json_object` or `json_schema`.")]
    json_schema: JsonSchemaFormat | None = None
    schema: Annotated[dict[str, Any], Meta(description="With `json_object`, as llama.cpp has it.")] | None = None

    def structured(self) -> StructuredOutputs | None:
        """Raises RequestError."""
        if self.type == "text":
            return None
        if self.type not in ("json_object", "json_schema"):
            message = f"response_format.type is {self.type[:40]!r}; it must be text, json_object or json_schema"
            raise RequestError(message, param="response_format.type")
        schema: Any = self.schema
        if self.type == "json_schema":
            if self.json_schema is None:
                message = "response_format.json_schema is required for type json_schema"
                raise RequestError(message, param="response_format.json_schema")
            schema = self.json_schema.schema
        return StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json=schema)


def only_one(given: dict[str, StructuredOutputs | None]) -> tuple[StructuredOutputs | None, str]:
    """The constraint and its field, of those by name. Raises RequestError when there are several."""
    found = [(name, structured) for name, structured in given.items() if structured is not None]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise RequestError(f"{names} each say what the output must match; send one of them", param=found[1][0])
    return (found[0][1], found[0][0]) if found else (None, "structured_outputs")


async def written(structured: StructuredOutputs | None, param: Field) -> str | None:
    """The grammar of the whole output. Raises RequestError."""
    if structured is None:
        return None
    if len(msgspec.json.encode(structured)) <= INLINE_CHARS:
        return grammar_of(structured, param)
    return await asyncio.to_thread(grammar_of, structured, param)
