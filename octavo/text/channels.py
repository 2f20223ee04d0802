"""The channels of a model's output: reasoning, content and tool calls, told apart in its text as it streams.

`Channels` says how the text of one request divides; who renders the prompt knows (server/conversation.py,
client/local.py). client/stream.py feeds the text of each choice through a splitter.
"""

from __future__ import annotations

import msgspec


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """How one request's output divides."""

    reasoning: tuple[str, str] | None = None
    """Tags that open and close the reasoning."""
    in_reasoning: bool = False
    """The prompt ends inside the reasoning: the template has opened it."""
    tool_parser: str | None = None
    """Name of the family (text/toolcalls) in whose form calls are written; None: calls are not looked for."""
    tools: tuple[str, ...] = ()
    """Names of the tools that may be called."""
