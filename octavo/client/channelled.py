"""What one choice of a request with channels has said outside its content: reasoning and tool calls. Owned by
client/stream.py, which gets the content from here; made only where `Prompt.channels` is set.

Invariant: a log-probability belongs to the content exactly if its token's text begins there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from octavo.text.channels import Channels, Part, Reasoning, Splitter, joined_calls
from octavo.text.tokenizer import Tokenizer
from octavo.text.toolcalls.parser import Content
from octavo.types import Delta, TokenLogprobs, ToolCall, ToolCallDelta

Placed = tuple[str, list[tuple[int, TokenLogprobs]]]
"""Text of the content, and the log-probabilities of the tokens that begin in it, each with its place there."""


class ChannelledText:
    def __init__(self, tokenizer: Tokenizer, channels: Channels) -> None:
        ids = (tokenizer.special_id(marker) for marker in channels.markers)
        self.kept = frozenset(id for id in ids if id is not None)
        """Special tokens that are markers: the splitter has to see them."""
        self.reasoning_tokens = 0
        self.calls: list[ToolCallDelta] = []
        self._splitter = Splitter(channels)
        self._reasoning: list[str] = []
        self._taken = (0, 0)
        """How much of reasoning and calls is in deltas."""
        self._length = 0
        self._tokens: deque[tuple[int, TokenLogprobs]] = deque()
        """Where in all text a token begins that may be one of the content's."""

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return joined_calls(self.calls)

    @property
    def complete(self) -> bool:
        return self._splitter.complete

    def push(self, text: str, logprobs: TokenLogprobs | None) -> Iterator[Placed]:
        """The text of one token. What is left of the iteration is as if it had never been said."""
        if logprobs is not None:
            self._tokens.append((self._length, logprobs))
        self._length += len(text)
        before = self._splitter.in_reasoning
        parts = self._splitter.push(text)
        self.reasoning_tokens += before or self._splitter.in_reasoning
        return self._route(parts)

    def finish(self, text: str, cut: bool) -> Iterator[Placed]:
        """The last text, no token's own. `cut`: a limit was reached."""
        self._length += len(text)
        return self._route(self._splitter.push(text) + self._splitter.finish(cut))

    def fill(self, delta: Delta) -> None:
        """Puts what is new into a delta."""
        reasoning, calls = self._taken
        delta.reasoning = "".join(self._reasoning[reasoning:])
        delta.tool_calls = self.calls[calls:]
        self._taken = len(self._reasoning), len(self.calls)

    def _route(self, parts: list[Part]) -> Iterator[Placed]:
        for part in parts:
            if isinstance(part, Content):
                yield part.text, self._tokens_of(part)
            elif isinstance(part, Reasoning):
                self._reasoning.append(part.text)
            else:
                self.calls.append(part)

    def _tokens_of(self, part: Content) -> list[tuple[int, TokenLogprobs]]:
        found: list[tuple[int, TokenLogprobs]] = []
        end = part.start + len(part.text)
        while self._tokens and self._tokens[0][0] < end:
            start, logprobs = self._tokens.popleft()
            if start >= part.start:
                found.append((start - part.start, logprobs))
        return found
