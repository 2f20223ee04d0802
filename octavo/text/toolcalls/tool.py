"""A tool as every face of the server and the offline engine understands it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
"""What a tool may be called."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. `parameters`: JSON Schema of its arguments, None: any object."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False
    given: dict[str, Any] | None = None
    """The object it was written as, for templates that print it with all its keys."""

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates are written for."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        if self.given is None:
            return {"type": "function", "function": function}
        written = {key: value for key, value in self.given["function"].items() if key != "strict" and value is not None}
        found = {**self.given, "function": {**written, **function}}
        return found if "type" in found else {"type": "function", **found}
