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

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates are written for."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}
