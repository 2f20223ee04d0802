"""The models that are served, and what every face of the server shares.

Made once, at the start; nothing here is written afterwards but what the members own.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import octavo
from octavo.client.base import Client
from octavo.client.conversation import Manner, Prompter
from octavo.errors import ModelNotFound, Unavailable
from octavo.fair import FairGate
from octavo.server.core.account import Account
from octavo.server.core.defaults import Defaults
from octavo.server.core.inflight import InFlight
from octavo.server.core.machine import Machine
from octavo.server.core.metrics import ServerMetrics
from octavo.server.core.store import ResponseStores
from octavo.types import SamplingParams
from octavo.wire.messages import EngineInfo

T = TypeVar("T")

THREADS = 4
INLINE_CHARS = 2048
"""Longer texts are tokenized in a thread, so that other streams keep their pace."""


@dataclass(frozen=True)
class Served:
    """One model: the engine that runs it, and how its prompts are written and its answers read."""

    client: Client
    metrics: ServerMetrics
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    """Names of families (text/toolcalls) and tags (text/channels); None: as the model's template shows."""
    threads: FairGate = field(default_factory=lambda: FairGate(THREADS))
    """Who tokenizes, or renders a template; one key's crowd keeps no other waiting."""

    @property
    def info(self) -> EngineInfo:
        """Raises Unavailable while no engine was ever attached."""
        info = self.client.info
        if info is None:
            raise Unavailable("the model is loading; try again shortly", code="loading", retry_after=2)
        return info

    @property
    def name(self) -> str:
        """The one in answers. Raises Unavailable as `info` does."""
        return self.info.model

    @property
    def names(self) -> tuple[str, ...]:
        """All that requests may say, the one in answers first. Raises Unavailable as `info` does."""
        return (self.info.model, *self.info.aliases)

    def fingerprint(self) -> str:
        """Of what computes: while it stays the same, a seed gives the same answer."""
        info = self.info
        parts = (octavo.__version__, info.model, info.model_path, info.dtype, info.device, info.backend)
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    async def prompted(self, work: Callable[[Prompter], T], account: Account) -> T:
        """What `work` makes of the model's template and tokenizer, in a thread: they take their time."""
        template, tokenizer = self.client.template, self.client.tokenizer
        manner = Manner.of(template, self.tool_call_parser, self.reasoning_parser)
        async with self.threads.entered(account.owner):
            return await asyncio.to_thread(work, Prompter(template, tokenizer, manner))

    async def encode(
        self,
        texts: Sequence[str | list[int]],
        account: Account,
        *,
        add_special_tokens: bool = True,
        parse_special: bool = False,
        max_tokens: int | None = None,
    ) -> list[list[int]]:
        """Token ids of each text, off the event loop when that takes long; what is ids already stays so. Arguments as
        Tokenizer.encode has them."""
        encode_one = partial(
            self.client.tokenizer.encode,
            add_special_tokens=add_special_tokens,
            parse_special=parse_special,
            max_tokens=max_tokens,
        )

        def encode() -> list[list[int]]:
            return [encode_one(text) if isinstance(text, str) else text for text in texts]

        if sum(len(text) for text in texts if isinstance(text, str)) <= INLINE_CHARS:
            return encode()
        async with self.threads.entered(account.owner):
            return await asyncio.to_thread(encode)


@dataclass(frozen=True)
class Serving:
    models: tuple[Served, ...]
    """The first is meant where a request names none."""
    inflight: InFlight
    metrics: ServerMetrics
    started: int
    """Unix seconds."""
    machine: Machine = field(default_factory=Machine)
    defaults: Defaults = field(default_factory=lambda: Defaults(SamplingParams()))
    responses: ResponseStores = field(default_factory=ResponseStores)

    def __post_init__(self) -> None:
        responses, models = self.responses, self.models
        self.metrics.held += (
            ("stored_responses", "Responses that are kept", lambda: responses.num_responses),
            ("stored_response_bytes", "Memory of kept responses", lambda: responses.num_bytes),
            (
                "threads_waiting",
                "Requests that wait for a thread that renders or tokenizes",
                lambda: sum(served.threads.num_waiting for served in models),
            ),
        )

    def find(self, asked: str | None) -> Served:
        """By one of its names. Raises ModelNotFound; Unavailable while no engine was ever attached."""
        if asked is None:
            asked = self.models[0].name
        for served in self.models:
            if asked in served.names:
                return served
        names = " and ".join(repr(name) for served in self.models for name in served.names)
        raise ModelNotFound(f"the model {asked[:100]!r} does not exist; this server has {names}", param="model")
