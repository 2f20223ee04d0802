"""The tools of a response: which of them the model may call, and how it sees their names.

Pure. Functions in a namespace are shown to the model as NAMESPACE__NAME. All other kinds are
run elsewhere or nowhere: they are told back and ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import Place, RequestError, Unsupported
from octavo.server.faces.openai.protocol.shared import Item
from octavo.text.toolcalls.tool import NAME, Tool

Choice = Literal["none", "auto", "required"]
SECRETS = ("authorization", "headers")
"""Of a tool that is an MCP server: never kept, never shown."""


@dataclass
class Functions:
    """By the names that the model sees."""

    tools: dict[str, Tool] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    """Where in the request each stands."""
    spaces: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of those in a namespace: its name and their own."""


def seen_name(name: str, namespace: Any) -> str:
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def functions(tools: list[Item]) -> Functions:
    """Raises RequestError that names the place."""
    found = Functions()
    for place, namespace, tool in _each(tools):
        inner = tool.get("function")
        about = inner if isinstance(inner, dict) else tool  # the form of chat completions is understood, too
        name, parameters, description = about.get("name"), about.get("parameters"), about.get("description")
        seen = seen_name(name, namespace) if isinstance(name, str) else ""
        if not NAME.fullmatch(seen):
            raise RequestError.about(place / "name", "must have 1 to 128 letters, digits and _ - . : /")
        if seen in found.tools:
            raise RequestError.about(place / "name", f"{seen!r} is there twice")
        if not isinstance(parameters, dict | None):
            raise RequestError.about(place / "parameters", "must be a JSON Schema")
        if not isinstance(description, str | None):
            raise RequestError.about(place / "description", "must be a text")
        found.tools[seen] = Tool(
            name=seen, description=description, parameters=parameters, strict=about.get("strict") is True
        )
        found.places[seen] = place / "parameters"
        if namespace is not None:
            found.spaces[seen] = (namespace, str(name))
    return found


def _each(tools: list[Item]) -> Iterator[tuple[Place, str | None, Item]]:
    """→ place, namespace, function"""
    for index, tool in enumerate(tools):
        place, kind = Place("tools", index), tool.get("type")
        if not isinstance(kind, str):
            raise RequestError.about(place / "type", "is required")
        if kind == "function":
            yield place, None, tool
        elif kind == "namespace":
            name, inner = tool.get("name"), tool.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise RequestError.about(place, "must have a name and a list of tools")
            for number, one in enumerate(inner):
                if isinstance(one, dict) and one.get("type") == "function":
                    yield place / "tools" / number, name, one


def tool_choice(choice: Any, found: Functions) -> tuple[Choice, str | None, set[str] | None]:
    """→ the choice, the one function it names, the names it is narrowed to."""
    if choice is None or choice in ("none", "auto"):
        return choice or "auto", None, None
    if choice == "required":
        if not found.tools:
            raise RequestError.about("tool_choice", "'required' needs tools that are functions")
        return "required", None, None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        name = _chosen(choice)
        if name not in found.tools:
            raise RequestError.about("tool_choice", f"names {name[:64]!r}, which is not among the tools")
        return "required", name, None
    if kind == "allowed_tools":
        given = choice.get("tools")
        if not isinstance(given, list):
            raise RequestError.about(Place("tool_choice", "tools"), "must be a list")
        allowed = {_chosen(tool) for tool in given if isinstance(tool, dict)} & found.tools.keys()
        if choice.get("mode") != "required":
            return "auto", None, allowed
        if not allowed:
            raise RequestError.about(Place("tool_choice", "tools"), "names no function among the tools")
        return "required", None, allowed
    if isinstance(kind, str):
        raise Unsupported.about("tool_choice", f"of type {kind[:40]!r}: only functions can be called here")
    raise RequestError.about("tool_choice", "must be none, auto, required, a function or allowed_tools")


def _chosen(choice: Item) -> str:
    inner = choice.get("function")
    about = inner if isinstance(inner, dict) else choice
    return seen_name(str(about.get("name")), choice.get("namespace"))


def shown(tool: Item) -> Item:
    """As it is told back: a function complete, of others all but what is secret."""
    if tool.get("type") == "function" and not isinstance(tool.get("function"), dict):
        return {"description": None, "parameters": None, **tool, "strict": tool.get("strict") is True}
    return {key: value for key, value in tool.items() if key not in SECRETS}
