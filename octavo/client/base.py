"""What the server needs of an engine: client/engine.py over a socket, client/fake.py in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from octavo.errors import ApiError
from octavo.text.channels import Channels
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, Metrics, Pooling, SamplingParams, TokenLogprobs
from octavo.wire.messages import EngineInfo, Stats


class Prompt(msgspec.Struct, kw_only=True):
    """A tokenized prompt and what is to be made of it beside sampling. `text` is kept for echo and outputs."""

    token_ids: list[int]
    text: str | None = None
    grammar: str | None = None
    """What the output must match, as grammar/spec.py writes it. `generate` checks it within a time and memory budget
    and raises RequestError with param "grammar"."""
    channels: Channels | None = None
    """How the output's text divides into reasoning, content and tool calls; None: all of it is content."""
    is_conversation: bool = False
    """It comes from messages: where nobody says how to sample, the unlikely tokens are left out (client/prepare.py)."""
    logprobs_of_all: bool = False
    """Deltas bring the log-probabilities of all their `token_ids`, not only of those that the text shows."""
    pooling: Pooling | None = None
    """An embedding of the prompt is wanted, and no output."""
    request_id: str = ""
    """The HTTP request's, for the log alone."""
    owner: str = ""
    """The key whose request it is: grammars are checked and compiled in turn for each."""
    hard_grammar: bool = False
    """The grammar took long to be checked."""


class Listener(Protocol):
    """Hears what becomes of requests, on the client's event loop; must not raise. `index`: which of them, as `follow`
    was told."""

    def on_delta(self, index: int, delta: Delta, /) -> None: ...

    def on_end(self, index: int, error: ApiError | None, /) -> None:
        """Once, unless the generation was closed before."""
        ...


class Generation(Protocol):
    """One request being generated: n choices, deltas as they come. Leaving the iteration early (break, cancel,
    aclose) aborts it in the engine. Raises ApiError when the request fails."""

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    def follow(self, listener: Listener, index: int) -> None:
        """Instead of iterating: the listener hears everything from now on, and at once what has come already, of what
        it is to know as `index`."""
        ...

    async def aclose(self) -> None: ...

    @property
    def metrics(self) -> Metrics:
        """Complete once the iteration has ended; completion_tokens summed over the choices."""
        ...

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None: ...

    @property
    def embedding(self) -> bytes | None:
        """[hidden] f32, little-endian, once a request with `pooling` has ended."""
        ...


class Client(Protocol):
    @property
    def info(self) -> EngineInfo | None:
        """None until the engine has said Welcome."""
        ...

    @property
    def ready(self) -> bool:
        """An engine with a loaded model is attached right now."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises Unavailable while nothing was attached yet."""
        ...

    @property
    def template(self) -> ChatTemplate:
        """Raises Unavailable while nothing was attached yet."""
        ...

    @property
    def defaults(self) -> SamplingParams:
        """Of the model, for what a request leaves out. Raises Unavailable while nothing was attached yet."""
        ...

    @property
    def engine_restarts(self) -> int:
        """Engines that took the place of a lost one."""
        ...

    @property
    def stats(self) -> Stats:
        """Gauges as last told, counters of all engines so far."""
        ...

    async def refresh(self, timeout: float) -> None:
        """Has the engine tell its stats anew, and waits for that at most `timeout` seconds."""
        ...

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """Checks what can be known up front (RequestError, ContextLengthExceeded, QueueFull, Unavailable), enters the
        request in the ledger and sends it."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...
