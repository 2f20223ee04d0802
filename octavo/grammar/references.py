"""Where the `$ref`s of a JSON Schema lead: pointers, anchors and ids inside the same document.

Made by grammar/schema.py for one document. Nothing is ever fetched: a reference that leaves the document is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin

_NO_SCHEMAS = frozenset({"const", "enum", "default", "examples", "example"})
MAX_NESTING = 200


@dataclass(frozen=True)
class Place:
    """A schema and where it stands. `at`: as a JSON pointer; `base`: the address that references start from."""

    node: dict[str, Any]
    at: str
    base: str
    nesting: int


class UnknownReference(LookupError):
    """The reference leads to nothing in this document."""


class References:
    def __init__(self, root: Any) -> None:
        self._resources: dict[str, Any] = {"": root}
        self._anchors: dict[tuple[str, str], Any] = {}
        self.root_base = self.base_of(root, "")
        self._index(root, "", 0)

    @staticmethod
    def base_of(node: Any, base: str) -> str:
        """The base address inside a node that stands where `base` is in force."""
        name = node.get("$id") if isinstance(node, dict) else None
        if not isinstance(name, str) or name.startswith("#"):
            return base
        try:
            return urljoin(base, name).removesuffix("#")
        except ValueError:  # no address
            return base

    def resolve(self, reference: str, base: str) -> tuple[Any, str]:
        """(schema, the base address where it stands). Raises UnknownReference."""
        if reference.startswith("#"):
            address, fragment = base, reference[1:]
        else:
            try:
                address, _, fragment = urljoin(base, reference).partition("#")
            except ValueError:
                raise UnknownReference("it is no address") from None
        if address not in self._resources:
            raise UnknownReference("it leads out of this schema, and nothing is fetched")
        if fragment and not fragment.startswith("/"):
            if (address, fragment) not in self._anchors:
                raise UnknownReference("there is no such anchor")
            return self._anchors[address, fragment], address
        node = self._resources[address]
        for step in unquote(fragment).split("/")[1:]:
            address = self.base_of(node, address)
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and step in node:
                node = node[step]
            elif isinstance(node, list) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            else:
                raise UnknownReference(f"there is no {step[:60]!r} on the way")
        return node, address

    def _index(self, node: Any, base: str, nesting: int) -> None:
        if nesting > MAX_NESTING:
            return  # refused by whoever walks it
        if isinstance(node, list):
            for part in node:
                self._index(part, base, nesting + 1)
        if not isinstance(node, dict):
            return
        inner = self.base_of(node, base)
        if inner != base:
            self._resources.setdefault(inner, node)
        own = node.get("$id")
        for name in (
            node.get("$anchor"),
            node.get("$dynamicAnchor"),
            str(own)[1:] if str(own).startswith("#") else None,
        ):
            if isinstance(name, str):
                self._anchors.setdefault((inner, name), node)
        for key, part in node.items():
            if key not in _NO_SCHEMAS:
                self._index(part, inner, nesting + 1)
