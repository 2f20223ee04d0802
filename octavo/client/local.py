"""The engine inside this process and one connection to it: what LLMEngine and AsyncLLMEngine have in common.

Owns the model's files, tokenizer and template, the engine loop with its executor, and the requests in flight.
`turn` belongs to one thread, the engine's; everything else to one thread, the reader's. They may be the same: between
them pass only messages, through wire/local.py.
"""

from __future__ import annotations

from collections import deque
from typing import get_args

import msgspec

from octavo.client.arguments import OnePrompt
from octavo.client.base import Prompt
from octavo.client.choices import RequestState
from octavo.client.conversation import Conversation, Manner, Prompter
from octavo.client.embedding import finished, numbers
from octavo.client.ledger import Ledger
from octavo.client.prepare import Seeds, sequences
from octavo.config.decide import decide, describe
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.engine.assembly import build_loop
from octavo.errors import ApiError, EngineError, RequestError
from octavo.executor import choose
from octavo.executor.base import Executor
from octavo.grammar.matcher import Vocabulary
from octavo.grammar.spec import grammar_of
from octavo.modelfiles.generation import sampling_defaults
from octavo.modelfiles.hub import fetch
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, Pooling, SamplingParams
from octavo.wire.local import LocalTransport
from octavo.wire.messages import Add, Bye, Failed, Hello, Outputs, ToClient

DEFAULT_MAX_TOKENS = 16
"""When a request names none, as in vLLM's offline API."""
IDLE_S = 0.05
"""How long a turn without work waits for some."""

_News = dict["LocalRequest", None]
"""Requests that have something new for their readers, in order."""


class LocalRequest:
    """A request in flight: its state, and the deltas that its reader has not taken yet."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, adds: list[Add], tokenizer: Tokenizer, news: _News
    ) -> None:
        self.deltas: deque[Delta] = deque()
        self.error: ApiError | None = None
        self._news = news
        self.state = RequestState(prompt, params, adds, tokenizer, self)

    @property
    def ended(self) -> bool:
        """Nothing more will come than what is in `deltas`, and then `error`."""
        return self.state.done

    def on_delta(self, _index: int, delta: Delta) -> None:
        self.deltas.append(delta)
        self._news[self] = None

    def on_end(self, _index: int, error: ApiError | None) -> None:
        self.error = error
        self._news[self] = None


class LocalEngine:
    """Loads the model when made. Raises OctavoError. `executor`: runs the plans instead of the model's own worker."""

    def __init__(self, config: EngineConfig, executor: Executor | None = None) -> None:
        self.files = fetch(config)
        config = msgspec.structs.replace(config, max_queued_requests=0)  # whoever calls also waits: no need to refuse
        settle = decide if executor is None else describe  # whose executor is its own needs no weights in the files
        resolved = settle(config, detect(), self.files).resolved
        self.tokenizer = Tokenizer.load(self.files)
        self.template = ChatTemplate.load(self.files, self.tokenizer)
        self.defaults = sampling_defaults(self.files)
        self._executor = choose.make(resolved, self.files) if executor is None else executor
        worker = self._executor.start()
        self._transport = LocalTransport()
        self._connection = self._transport.connect()
        # In one process there are no heartbeats.
        self._loop, self.info = build_loop(
            resolved,
            self.files,
            worker,
            self._executor,
            self._transport,
            quiet=None,
            vocabulary=lambda: Vocabulary(self.tokenizer, worker.vocab_size),
        )
        self._connection.send(Hello())
        self._seeds = Seeds(config.seed)
        self._ledger = Ledger()
        self._ledger.attach(self._connection)
        self._news: _News = {}
        self._left = self._closed = False
        self._broken = ""
        """Why the engine can do nothing more: something else than a step failed, as when the GPU is lost."""

    # --- the reader's side

    def prompt(self, prompt: OnePrompt) -> Prompt:
        """Text, in which the strings of special tokens mean these tokens, or ids. Raises RequestError."""
        if isinstance(prompt, Prompt):
            return prompt
        if not isinstance(prompt, str):
            try:
                return Prompt(token_ids=[id.__index__() for id in prompt])
            except (AttributeError, TypeError):
                raise RequestError("a prompt is a text or a list of token ids", param="prompt") from None
        ids = self.tokenizer.encode(prompt, parse_special=True, max_tokens=self.info.max_model_len)
        if ids[:2] == [self.tokenizer.bos_id] * 2:  # a rendered chat template brings its own
            ids = ids[1:]
        return Prompt(token_ids=ids, text=prompt)

    def chat_prompt(self, conversation: Conversation) -> Prompt:
        """A conversation as the model wants it; special tokens in the messages stay text. Without tools, all that the
        model says is text. Raises RequestError."""
        prompter = self._prompter()
        limit = self.info.max_model_len
        if conversation.tools:
            prompt = prompter.prompt(conversation, limit)
        else:
            prompt = Prompt(token_ids=prompter.encode(conversation, limit), is_conversation=True)
        return msgspec.structs.replace(prompt, text=prompter.render(conversation))

    def render(self, conversation: Conversation) -> str:
        """The text that `chat_prompt` encodes. Raises RequestError."""
        return self._prompter().render(conversation)

    def _prompter(self) -> Prompter:
        return Prompter(self.template, self.tokenizer, Manner.of(self.template, None, None))

    def embedding_prompt(self, prompt: OnePrompt, pooling: Pooling) -> Prompt:
        """A prompt of which an embedding is wanted. Raises RequestError."""
        if pooling not in get_args(Pooling):
            raise RequestError(f"pooling is {pooling!r}; it must be mean or last", param="pooling")
        return msgspec.structs.replace(self.prompt(prompt), pooling=pooling)

    def embedding(self, request: LocalRequest, dimensions: int | None) -> list[float]:
        """Of a request that has ended."""
        pooled = request.state.embedding
        assert pooled is not None
        return numbers(finished(pooled, dimensions))

    def check_dimensions(self, dimensions: int | None) -> None:
        if dimensions is not None and not 1 <= dimensions <= self.info.hidden_size:
            raise RequestError(f"dimensions is {dimensions}; the model has {self.info.hidden_size}", param="dimensions")

    def prepare(self, prompt: Prompt, params: SamplingParams) -> LocalRequest:
        """A checked request, not started yet. Raises RequestError."""
        if params.structured_outputs is not None and prompt.grammar is None:
            prompt = msgspec.structs.replace(prompt, grammar=grammar_of(params.structured_outputs))
        adds = sequences(
            prompt,
            params,
            tokenizer=self.tokenizer,
            defaults=self.defaults,
            max_model_len=self.info.max_model_len,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            base_seed=self._seeds.next(),
        )
        return LocalRequest(prompt, params, adds, self.tokenizer, self._news)

    def start(self, request: LocalRequest) -> None:
        """Raises EngineError when the engine was closed, or broke down."""
        if self._broken:
            raise EngineError(self._broken)
        if self._left:
            raise EngineError("the engine is closed")
        self._ledger.enter(request.state)

    def abort(self, request: LocalRequest) -> None:
        """No more of this request; one that has ended is left as it is."""
        request.state.left()
        self._ledger.leave(request.state)

    def fail_all(self, error: ApiError) -> None:
        """Ends all requests in flight with this error."""
        self._ledger.fail_all(error)

    def dispatch(self, messages: list[ToClient]) -> list[LocalRequest]:
        """Hands the engine's messages to their requests; → those that have something new."""
        for message in messages:
            if isinstance(message, Failed):
                self._ledger.receive_failure(message)
            elif isinstance(message, Outputs):
                self._ledger.receive(message)
        found = list(self._news)
        self._news.clear()
        return found

    # --- the engine's side

    def turn(self, timeout: float | None) -> list[ToClient]:
        """One turn of the engine loop, which waits at most `timeout` seconds for something to do. What it raises ends
        the engine; EngineError from then on."""
        if self._broken:
            raise EngineError(self._broken)
        try:
            self._loop.turn(timeout)
        except Exception as error:
            self._broken = f"the engine stopped: {type(error).__name__}: {error}"
            raise
        return self._connection.receive(0)

    def leave(self) -> None:
        """The reader's end of closing: ends what is in flight and wakes the engine's thread; idempotent."""
        if not self._left:
            self._left = True
            self.fail_all(EngineError("the engine was closed"))
            self._connection.send(Bye())

    def shutdown(self) -> None:
        """The engine's end of closing, after `leave`: frees the model; idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.close()
            self._connection.close()
            self._transport.close()
            self._executor.shutdown()
