"""EngineClient: the server's (or anyone's) way to an engine in another process, over a Unix socket.

Owns the connection's state (lost → connected → greeted → attached), the ledger, and what a client loads of the model:
tokenizer, template, sampling defaults. Called by the HTTP handlers on one event loop. Invariant: a request that was
accepted goes on when the engine is lost and a new one appears; new requests are refused meanwhile.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.client.base import Prompt
from octavo.client.generation import LedgerGeneration
from octavo.client.ledger import Ledger
from octavo.client.prepare import Seeds, sequences
from octavo.client.totals import Totals
from octavo.errors import ConfigError, EngineError, ModelFileError, OctavoError, Unavailable
from octavo.grammar.checker import GrammarChecker
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.generation import sampling_defaults
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams
from octavo.wire.connection import SocketConnection
from octavo.wire.messages import (
    HEARTBEAT_S,
    QUIET_S,
    VERSION_MISMATCH,
    Bye,
    Draining,
    EngineInfo,
    Failed,
    Hello,
    Ping,
    Pong,
    Stats,
    ToClient,
    Welcome,
)

logger = logging.getLogger(__name__)

HOLD_S = 300.0
"""How long requests in flight wait for a lost engine to come back before they fail."""
HOLD_AFTER_DRAIN_S = 20.0
"""The same for an engine that was told to stop and did not finish them: somebody may be replacing it."""


class _State(enum.IntEnum):
    """How far this client has come with the engine; each includes those before it."""

    LOST = 0
    GREETED = 1
    """Hello is on its way; the engine answers when its model is loaded."""
    WELCOMED = 2
    """The engine holds a session; tokenizer and template are loading."""
    ATTACHED = 3


@dataclass(frozen=True)
class _Model:
    """What a client loads of the model that the engine serves."""

    path: str
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams

    @classmethod
    def load(cls, files: ModelFiles) -> _Model:
        tokenizer = Tokenizer.load(files)
        return cls(files.address, tokenizer, ChatTemplate.load(files, tokenizer), sampling_defaults(files))


class EngineClient:
    """Implements client.base.Client. `on_fatal` is called once when no engine at this endpoint can ever be served: its
    protocol is another, or its model's tokenizer or template cannot be read. `model`: what the engine is expected to
    serve, loaded here while the engine loads it there. `on_attached` is called whenever an engine's model can be asked
    from then on."""

    def __init__(
        self,
        endpoint: str,
        on_fatal: Callable[[OctavoError], None] | None = None,
        model: ModelFiles | None = None,
        on_attached: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine_restarts = 0
        """Engines that took the place of a lost one."""
        self._on_fatal = on_fatal
        self._on_attached = on_attached
        self._connection = SocketConnection(
            endpoint,
            on_message=self._receive,
            on_outputs=lambda outputs: self._ledger.receive(outputs),
            on_connected=self._greet,
            on_lost=self._lose,
        )
        self._ledger = Ledger(self._connection.send)
        self._seeds = Seeds()
        self._info: EngineInfo | None = None
        self._model: _Model | None = None
        self._grammars: GrammarChecker | None = None
        self._totals = Totals()
        self._asked: asyncio.Future[None] | None = None
        self._pinged: float | None = None
        """When the Ping was sent that is not answered yet."""
        self._silent = False
        """The log has said that the engine does not answer."""
        self._state = _State.LOST
        self._session = 0
        self._draining = False
        self._hold_until = 0.0
        self._heart: asyncio.Task[None] | None = None
        self._attaching: asyncio.Task[None] | None = None
        self._expected = model
        self._preloading: asyncio.Task[_Model] | None = None

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def ready(self) -> bool:
        return self._state is _State.ATTACHED and not self._draining

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded().tokenizer

    @property
    def template(self) -> ChatTemplate:
        """Raises Unavailable while nothing was attached yet."""
        return self._loaded().template

    @property
    def defaults(self) -> SamplingParams:
        """The model's sampling defaults. Raises Unavailable while nothing was attached yet."""
        return self._loaded().defaults

    @property
    def stats(self) -> Stats:
        """As of the last heartbeat; counters of all engines so far."""
        return self._totals.stats

    async def refresh(self, timeout: float) -> None:
        """One question for all who ask while it is on its way."""
        if self._state < _State.WELCOMED:
            return
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._pinged = None  # what an earlier Ping is told may be old by now
            self._ping()
        await asyncio.wait([self._asked], timeout=timeout)

    def _told(self) -> None:
        """`stats` are new."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_result(None)

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._ledger)

    async def start(self) -> None:
        """Begin to look for the engine; does not wait for it."""
        if self._expected is not None:
            self._preloading = asyncio.create_task(asyncio.to_thread(_load_model, self._expected))
        self._connection.open()
        self._heart = asyncio.create_task(self._beat(), name="octavo-heartbeat")

    async def close(self) -> None:
        """Leave in good order: the engine aborts what is in flight, which fails with Unavailable here."""
        self._state = _State.LOST
        tasks = [task for task in (self._heart, self._attaching, self._preloading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._grammars is not None:
            await self._grammars.close()
        self._ledger.fail_all(Unavailable("the server is shutting down", retry_after=1))
        self._connection.send(Bye())
        self._connection.close()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> LedgerGeneration:
        model, info = self._attached()
        if prompt.grammar is not None and self._grammars is not None:
            prompt.hard_grammar = await self._grammars.check(prompt.grammar, prompt.owner)
            model, info = self._attached()  # much may have happened meanwhile
        adds = sequences(
            prompt,
            params,
            tokenizer=model.tokenizer,
            defaults=model.defaults,
            max_model_len=info.max_model_len,
            default_max_tokens=None,
            base_seed=self._seeds.next(),
        )
        generation = LedgerGeneration(prompt, params, adds, model.tokenizer, self._ledger)
        limit = info.max_num_seqs + info.max_queued_requests if info.max_queued_requests else None
        self._ledger.enter(generation, limit)
        return generation

    def _attached(self) -> tuple[_Model, EngineInfo]:
        if not self.ready or self._info is None:
            raise Unavailable(f"the engine is {self._why_not_ready()}; try again soon", retry_after=1)
        return self._loaded(), self._info

    def _loaded(self) -> _Model:
        if self._model is None:
            raise Unavailable("the model is loading; try again soon", retry_after=1)
        return self._model

    def _why_not_ready(self) -> str:
        if self._draining:
            return "shutting down"
        return "loading" if self._info is None else "restarting"

    # -- what the connection tells

    def _greet(self) -> None:
        """Say Hello; the engine answers once its model is loaded."""
        if self._connection.connected and self._state is _State.LOST and self._connection.send(Hello()):
            self._state = _State.GREETED
            self._session += 1

    def _lose(self) -> None:
        logger.warning("lost the engine; %d requests in flight wait for it", len(self._ledger))
        was_draining, self._draining = self._draining, False
        self._hold_until = time.monotonic() + (HOLD_AFTER_DRAIN_S if was_draining else HOLD_S)
        self._state = _State.LOST
        self._pinged, self._silent = None, False
        self._totals.lose()
        self._told()
        self._ledger.suspend(died=not was_draining)

    def _receive(self, message: ToClient) -> None:
        if isinstance(message, Failed):
            if message.code == VERSION_MISMATCH:
                self._fatal(ConfigError(message.message))
            else:
                self._ledger.receive(message)
        elif isinstance(message, Pong):
            self._answered(message)
        elif isinstance(message, Draining):
            logger.info("the engine is shutting down")
            self._draining = True
        elif isinstance(message, Welcome):
            self._welcomed(message)

    def _answered(self, pong: Pong) -> None:
        if self._silent:
            logger.info("the engine answers again")
        self._pinged, self._silent = None, False
        self._totals.take(pong.instance, pong.stats)
        self._told()

    def _ping(self) -> None:
        """One question at a time: a stopped engine finds no heap of them."""
        if self._pinged is None and self._connection.send(Ping()):
            self._pinged = time.monotonic()

    def _welcomed(self, message: Welcome) -> None:
        if self._state is _State.GREETED:
            self._state = _State.WELCOMED
            self._ping()  # its pages, before anybody asks for them
            self._attaching = asyncio.create_task(self._attach(message.info, self._session), name="octavo-attach")

    async def _attach(self, info: EngineInfo, session: int) -> None:
        """Load what a client needs of the model, off the loop, then send what the ledger holds."""
        if self._model is None or self._model.path != info.model_path:
            try:
                model = await self._load(info)
            except OctavoError as error:
                self._fatal(error)
                return
            if self._model is not None:
                self._ledger.fail_all(EngineError("the engine came back with another model"))
            self._model = model
            self._seeds = Seeds(info.seed)
            grammars, self._grammars = self._grammars, GrammarChecker(_files(info), info.vocab_size)
            if grammars is not None:
                await grammars.close()
        if self._session != session or self._state is not _State.WELCOMED:  # lost again meanwhile
            return
        crashed = False
        if self._info is not None and self._info.instance != info.instance:
            self.engine_restarts += 1
            crashed = info.crashed == self._info.instance
        self._info = info
        self._state = _State.ATTACHED
        count = self._ledger.resume(crashed=crashed)
        logger.info("attached to engine %d, model %s; requests going on: %d", info.pid, info.model, count)
        self._on_attached()

    async def _load(self, info: EngineInfo) -> _Model:
        """Of the model that the engine says it serves, whatever was expected."""
        preloading, self._preloading = self._preloading, None
        if preloading is not None:
            model = await preloading
            if model.path == info.model_path:
                return model
        return await asyncio.to_thread(_load_model, _files(info))

    def _fatal(self, error: OctavoError) -> None:
        if self._on_fatal is None:
            logger.error("%s", error.message)
            return
        on_fatal, self._on_fatal = self._on_fatal, lambda _error: None
        on_fatal(error)

    async def _beat(self) -> None:
        """Questions while the engine holds a session, and a word in the log when they are not answered; an end to
        waiting when a lost engine does not come back."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            now = time.monotonic()
            late = now - asleep - HEARTBEAT_S
            if late > QUIET_S / 2:  # this process was stopped, or busy: what the engine said waits to be read
                logger.warning("this process stood still for %.1f s", late)
            elif self._state >= _State.WELCOMED:
                if self._pinged is not None and now - self._pinged > QUIET_S and not self._silent:
                    self._silent = True
                    count = len(self._ledger)
                    what = "the engine does not answer since %.1f s; its connection stands, %d requests go on waiting"
                    logger.warning(what, now - self._pinged, count)
                self._ping()
            elif self._state is _State.LOST and len(self._ledger) and now > self._hold_until:
                self._ledger.fail_all(EngineError("the engine was lost and did not come back"))


def _files(info: EngineInfo) -> ModelFiles:
    return ModelFiles.at(info.model_path, info.model)


def _load_model(files: ModelFiles) -> _Model:
    try:
        return _Model.load(locate(files.path, files.name))
    except OSError as error:
        raise ModelFileError(files.path.name, f"cannot be read: {error.strerror}") from None
