"""Tools as Anthropic's API writes them: functions of the client, and those whose form a typed name stands for.

Pure. A client tool by type (bash_20250124, text_editor_20250728, memory_20250818) is a function whose schema is known
to everybody; tools that run on Anthropic's own servers (web_search, code_execution …) are passed over.
"""

from __future__ import annotations

from typing import Any, Literal

from octavo.errors import Place, RequestError
from octavo.server.faces.anthropic.protocol import Block, ToolChoice
from octavo.text.toolcalls.tool import NAME, Tool


def _schema(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _text(about: str, *values: str) -> dict[str, Any]:
    return {"type": "string", "description": about, **({"enum": list(values)} if values else {})}


_RANGE = {"type": "array", "items": {"type": "integer"}, "description": "view: first and last line, -1 for the end."}
_LINE = {"type": "integer", "description": "insert: the line after which; 0 for the beginning."}
_EDITING = {
    "path": _text("Absolute path of the file or directory."),
    "file_text": _text("create: the whole text."),
    "old_str": _text("str_replace: the text to replace, which must be there exactly once."),
    "new_str": _text("str_replace: what to put in its place."),
    "insert_line": _LINE,
    "insert_text": _text("insert: the text."),
    "view_range": _RANGE,
}
_BASH = (
    "Runs a command in a bash shell that stays open between calls.",
    _schema(
        [],
        command=_text("The command; required unless restart is set."),
        restart={"type": "boolean", "description": "Start the shell anew."},
    ),
)
_EDITOR = (
    "Views, creates and edits text files.",
    _schema(
        ["command", "path"],
        command=_text("What to do.", "view", "create", "str_replace", "insert"),
        **_EDITING,
    ),
)
_MEMORY = (
    "Keeps notes in files under /memories that last between conversations.",
    _schema(
        ["command"],
        command=_text("What to do.", "view", "create", "str_replace", "insert", "delete", "rename"),
        old_path=_text("rename: the path now."),
        new_path=_text("rename: the path then."),
        **_EDITING,
    ),
)
_TYPED = {"bash_": _BASH, "text_editor_": _EDITOR, "memory_": _MEMORY}


def client_tools(tools: list[Block]) -> list[Tool]:
    """Raises RequestError that names the place."""
    found: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        made = _tool(tool, Place("tools", index))
        if made is None:
            continue
        if made.name in found:
            at = Place("tools", index, "name")
            raise RequestError.about(at, f"{made.name[:64]!r} is there twice")
        found[made.name] = made
    return list(found.values())


def _tool(tool: Block, place: Place) -> Tool | None:
    kind = tool.get("type")
    typed = next((v for k, v in _TYPED.items() if isinstance(kind, str) and kind.startswith(k)), None)
    schema = tool.get("input_schema")
    if typed is None and schema is None and kind not in (None, "custom"):
        return None
    name = tool.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise RequestError.about(place / "name", "must have 1 to 128 letters, digits and _ - . : /")
    if typed is not None and schema is None:
        return Tool(name=name, description=typed[0], parameters=typed[1])
    if not isinstance(schema, dict):
        raise RequestError.about(place / "input_schema", "must be a JSON Schema")
    description = tool.get("description")
    if not isinstance(description, str | None):
        raise RequestError.about(place / "description", "must be a text")
    return Tool(name=name, description=description, parameters=schema, strict=tool.get("strict") is True)


def chosen(choice: ToolChoice | None, tools: list[Tool]) -> tuple[Literal["none", "auto", "required"], str | None]:
    """→ the choice and the one tool it names, in the words of Conversation."""
    if choice is None or choice.type == "auto":
        return "auto", None
    if choice.type == "none":
        return "none", None
    if choice.type == "any":
        if not tools:
            raise RequestError.about("tool_choice", "'any' needs tools that the client runs")
        return "required", None
    if choice.name not in {tool.name for tool in tools}:
        raise RequestError.about(
            Place("tool_choice", "name"), f"is {str(choice.name)[:64]!r}, which is not among the tools"
        )
    return "required", choice.name
