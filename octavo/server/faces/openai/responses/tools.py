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
            raise RequestError(f"{place}.name must have 1 to 128 letters, digits and _ - . : /", param=place / "name")
        if seen in found.tools:
            raise RequestError(f"{place}.name {seen!r} is there twice", param=place / "name")
        if not isinstance(parameters, dict | None):
            raise RequestError(f"{place}.parameters must be a JSON Schema", param=place / "parameters")
        if not isinstance(description, str | None):
            raise RequestError(f"{place}.description must be a text", param=place / "description")
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
            raise RequestError(f"{place}.type is required", param=place / "type")
        if kind == "function":
            yield place, None, tool
        elif kind == "namespace":
            name, inner = tool.get("name"), tool.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise RequestError(f"{place} must have a name and a list of tools", param=place)
            for number, one in enumerate(inner):
                if isinstance(one, dict) and one.get("type") == "function":
                    yield place / "tools" / number, name, one


def tool_choice(choice: Any, found: Functions) -> tuple[Choice, str | None, set[str] | None]:
    """→ the choice, the one function it names, the names it is narrowed to."""
    if choice is None or choice in ("none", "auto"):
        return choice or "auto", None, None
    if choice == "required":
        if not found.tools:
            raise RequestError("tool_choice 'required' needs tools that are functions", param="tool_choice")
        return "required", None, None
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        name = _chosen(choice)
        if name not in found.tools:
            raise RequestError(f"tool_choice names {name[:64]!r}, which is not among the tools", param="tool_choice")
        return "required", name, None
    if kind == "allowed_tools":
        given = choice.get("tools")
        if not isinstance(given, list):
            raise RequestError("tool_choice.tools must be a list", param=Place("tool_choice", "tools"))
        allowed = {_chosen(tool) for tool in given if isinstance(tool, dict)} & found.tools.keys()
        if choice.get("mode") != "required":
            return "auto", None, allowed
        if not allowed:
            raise RequestError(
                "tool_choice.tools names no function among the tools", param=Place("tool_choice", "tools")
            )
        return "required", None, allowed
    if isinstance(kind, str):
        raise Unsupported(f"tool_choice of type {kind[:40]!r}: only functions can be called here", param="tool_choice")
    raise RequestError("tool_choice must be none, auto, required, a function or allowed_tools", param="tool_choice")


def _chosen(choice: Item) -> str:
    inner = choice.get("function")
    about = inner if isinstance(inner, dict) else choice
    return seen_name(str(about.get("name")), choice.get("namespace"))


def shown(tool: Item) -> Item:
    """As it is told back: a function complete, of others all but what is secret."""
    if tool.get("type") == "function" and not isinstance(tool.get("function"), dict):
        return {"description": None, "parameters": None, **tool, "strict": tool.get("strict") is True}
    return {key: value for key, value in tool.items() if key not in SECRETS}
