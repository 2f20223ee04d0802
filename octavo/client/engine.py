"""EngineClient: the server's (or anyone's) way to an engine in another process, over a Unix socket.

Owns the ledger, the connection to the engine, and what a client loads of the model: tokenizer, template, sampling
defaults. Called by the HTTP handlers on one event loop. Invariant: a request that was accepted goes on when the engine
is lost and a new one appears; new requests are refused meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from octavo.client.base import Prompt
from octavo.client.connection import EngineConnection
from octavo.client.generation import LedgerGeneration
from octavo.client.ledger import Ledger
from octavo.client.model import ClientModel
from octavo.client.prepare import Seeds, prepared
from octavo.client.trial import ModelTrial
from octavo.errors import EngineError, OctavoError, Unavailable
from octavo.grammar.checker import GrammarChecker
from octavo.modelfiles.files import ModelFiles
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams
from octavo.wire.messages import EngineInfo, Stats

logger = logging.getLogger(__name__)


class EngineClient:
    """Implements client.base.Client. `on_fatal` is called once when no engine at this endpoint can ever be served: its
    protocol is another, or its model's tokenizer or template cannot be read. `model`: what the engine is expected to
    serve, which somebody has tried (client/trial.py), loaded here while the engine loads it there. `on_attached` is
    called whenever an engine's model can be asked from then on."""

    def __init__(
        self,
        endpoint: str,
        on_fatal: Callable[[OctavoError], None] | None = None,
        model: ModelFiles | None = None,
        on_attached: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_fatal = on_fatal
        self._ledger = Ledger()
        self._engine = EngineConnection(
            endpoint, self._ledger, prepare=self._prepare, on_attached=on_attached, on_fatal=self._fatal
        )
        self._seeds = Seeds()
        self._model: ClientModel | None = None
        self._grammars: GrammarChecker | None = None
        self._expected = model
        self._preloading: asyncio.Task[ClientModel] | None = None

    @property
    def info(self) -> EngineInfo | None:
        return self._engine.info

    @property
    def ready(self) -> bool:
        return self._engine.attached and not self._engine.draining

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
    def engine_restarts(self) -> int:
        return self._engine.restarts

    @property
    def stats(self) -> Stats:
        return self._engine.stats

    async def refresh(self, timeout: float) -> None:
        await self._engine.refresh(timeout)

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._ledger)

    async def start(self) -> None:
        """Begin to look for the engine; does not wait for it."""
        if self._expected is not None:
            self._preloading = asyncio.create_task(asyncio.to_thread(ClientModel.load, self._expected))
        self._engine.open()

    async def close(self) -> None:
        """Leave in good order: the engine aborts what is in flight, which fails with Unavailable here."""
        await self._engine.stop()
        if self._preloading is not None:
            self._preloading.cancel()
            await asyncio.gather(self._preloading, return_exceptions=True)
        if self._grammars is not None:
            await self._grammars.close()
        self._ledger.fail_all(Unavailable("the server is shutting down", retry_after=1))
        self._engine.close()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> LedgerGeneration:
        model, info = self._attached()
        if prompt.grammar is not None and self._grammars is not None:
            prompt.hard_grammar = await self._grammars.check(prompt.grammar, prompt.owner)
            model, info = self._attached()  # much may have happened meanwhile
        adds = await prepared(
            prompt,
            params,
            tokenizer=model.tokenizer,
            defaults=model.defaults,
            max_model_len=info.max_model_len,
            default_max_tokens=None,
            base_seed=self._seeds.next(),
        )
        self._attached()
        generation = LedgerGeneration(prompt, params, adds, model.tokenizer, self._ledger)
        limit = info.max_num_seqs + info.max_queued_requests if info.max_queued_requests else None
        self._ledger.enter(generation, limit)
        return generation

    def _attached(self) -> tuple[ClientModel, EngineInfo]:
        if not self.ready or self.info is None:
            raise Unavailable(f"the engine is {self._why_not_ready()}; try again soon", retry_after=1)
        return self._loaded(), self.info

    def _loaded(self) -> ClientModel:
        if self._model is None:
            raise Unavailable("the model is loading; try again soon", retry_after=1)
        return self._model

    def _why_not_ready(self) -> str:
        if self._engine.draining:
            return "shutting down"
        return "loading" if self.info is None else "restarting"

    async def _prepare(self, info: EngineInfo) -> None:
        """Load what a client needs of the engine's model, off the loop. Raises OctavoError."""
        if self._model is not None and self._model.path == info.model_path:
            return
        model = await self._load(info)
        if self._model is not None:
            self._ledger.fail_all(EngineError("the engine came back with another model"))
        self._model = model
        self._seeds = Seeds(info.seed)
        grammars, self._grammars = self._grammars, GrammarChecker(_files(info), info.vocab_size)
        if grammars is not None:
            await grammars.close()

    async def _load(self, info: EngineInfo) -> ClientModel:
        """Of the model that the engine says it serves, whatever was expected."""
        preloading, self._preloading = self._preloading, None
        if preloading is not None:
            model = await preloading
            if model.path == info.model_path:
                return model
        return await asyncio.to_thread(_tried_and_loaded, _files(info))

    def _fatal(self, error: OctavoError) -> None:
        if self._on_fatal is None:
            logger.error("%s", error.message)
            return
        on_fatal, self._on_fatal = self._on_fatal, lambda _error: None
        on_fatal(error)


def _files(info: EngineInfo) -> ModelFiles:
    return ModelFiles.at(info.model_path, info.model)


def _tried_and_loaded(files: ModelFiles) -> ClientModel:
    with ModelTrial(files) as trial:
        trial.finish()
    return ClientModel.load(files)
