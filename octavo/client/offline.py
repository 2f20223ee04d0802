"""The Python face for scripts: LLMEngine (alias LLM), which turns the engine in the calling thread while it waits.

AsyncLLMEngine, for event loops, is in offline_async.py. Both stand on client/local.py and add only a way to wait.
Invariant: whoever stops reading early (break, exception, Ctrl-C, close) has aborted the request; the engine goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from octavo.client.arguments import (
    Messages,
    OnePrompt,
    Tools,
    chat_options,
    conversation,
    conversation_list,
    engine_config,
    one_params,
    params_list,
    prompt_list,
)
from octavo.client.base import Prompt
from octavo.client.embedding import EMBEDDING
from octavo.client.local import IDLE_S, LocalEngine, LocalRequest
from octavo.client.offline_async import AsyncLLMEngine
from octavo.config.engine import EngineConfig
from octavo.executor.base import Executor
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, Metrics, Pooling, RequestOutput, SamplingParams
from octavo.wire.messages import EngineInfo

__all__ = ["LLM", "AsyncLLMEngine", "LLMEngine", "TokenStream"]


class TokenStream:
    """The deltas of one request, as they come. `metrics` and `output()` are complete once it has ended."""

    def __init__(self, engine: LocalEngine, request: LocalRequest) -> None:
        self._engine = engine
        self._request = request
        self._deltas = _read(engine, request)

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        """Aborts the request if it has not ended."""
        self._deltas.close()
        self._engine.abort(self._request)

    @property
    def metrics(self) -> Metrics:
        return self._request.state.metrics

    def output(self) -> RequestOutput:
        """Everything at once; reads what is left of the stream."""
        for _ in self._deltas:
            pass
        return self._request.state.output()


def _read(engine: LocalEngine, request: LocalRequest) -> Generator[Delta, None, None]:
    """Not a method of TokenStream: a stream that is dropped must end at once, so it may not be part of a cycle."""
    try:
        while True:
            while request.deltas:
                yield request.deltas.popleft()
            if request.error is not None:
                raise request.error
            if request.ended:
                return
            _turn(engine)
    finally:
        engine.abort(request)


class LLMEngine:
    """A model in this process. `config`: an EngineConfig, or a model as it is named on the command line; `options`:
    fields of EngineConfig by keyword. `executor` runs the plans instead of the model's own worker (for tests).
    To be used by one thread at a time. Raises ConfigError, ModelFileError, DownloadError, OutOfMemory."""

    def __init__(
        self, config: EngineConfig | str | None = None, *, executor: Executor | None = None, **options: Any
    ) -> None:
        self._engine = LocalEngine(engine_config(config, options), executor)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    @property
    def template(self) -> ChatTemplate:
        return self._engine.template

    @property
    def defaults(self) -> SamplingParams:
        """The model's own sampling defaults: what it says nothing of is None."""
        return self._engine.defaults

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def generate(
        self,
        prompts: OnePrompt | Sequence[OnePrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **fields: Any,
    ) -> list[RequestOutput]:
        """Completes prompts (texts or token ids), one or many, together; → their outputs in the same order.

        `sampling_params`: one for all, or one per prompt; `fields`: sampling fields by keyword, over these. max_tokens
        is 16 when not given. All are checked before the first starts: RequestError. Raises EngineError when one fails.
        """
        found = [self._engine.prompt(prompt) for prompt in prompt_list(prompts)]
        return self._run(found, params_list(sampling_params, fields, len(found)), progress)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        tools: Tools | None = None,
        tool_choice: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        **fields: Any,
    ) -> list[RequestOutput]:
        """As `generate`, for one conversation or a list of them. `tools` may be called (as OpenAI writes them, or
        Tool): the calls are in `outputs[i].tool_calls`. `tool_choice`: auto, none, required or the name of one."""
        conversations = conversation_list(messages)
        params = params_list(sampling_params, fields, len(conversations))
        options = chat_options(add_generation_prompt, continue_final_message, chat_template_kwargs)
        found = [
            self._engine.chat_prompt(conversation(one, each, tools, tool_choice, options))
            for one, each in zip(conversations, params, strict=True)
        ]
        return self._run(found, params, progress)

    def embed(
        self,
        prompts: OnePrompt | Sequence[OnePrompt],
        *,
        pooling: Pooling = "mean",
        dimensions: int | None = None,
        progress: bool = False,
    ) -> list[list[float]]:
        """One vector of length 1 for each prompt (text or token ids): the model's hidden states after its last norm,
        their mean or that of the last token. `dimensions`: only so many of the first numbers. Raises RequestError."""
        self._engine.check_dimensions(dimensions)
        found = [self._engine.embedding_prompt(prompt, pooling) for prompt in prompt_list(prompts)]
        requests = self._finish([(prompt, EMBEDDING) for prompt in found], progress)
        return [self._engine.embedding(request, dimensions) for request in requests]

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The conversation as the text that the model gets; `kwargs` are further variables of the template."""
        options = chat_options(add_generation_prompt, continue_final_message, kwargs)
        return self._engine.render(conversation(messages, SamplingParams(), None, "auto", options))

    def stream(self, prompt: OnePrompt, sampling_params: SamplingParams | None = None, **fields: Any) -> TokenStream:
        """As `generate` for one prompt, but its deltas come while they are made. The request is entered at once."""
        return self._stream(self._engine.prompt(prompt), one_params(sampling_params, fields))

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        tools: Tools | None = None,
        tool_choice: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        **fields: Any,
    ) -> TokenStream:
        """As `stream`, for one conversation; `tools` as in `chat`."""
        params = one_params(sampling_params, fields)
        options = chat_options(add_generation_prompt, continue_final_message, chat_template_kwargs)
        prompt = self._engine.chat_prompt(conversation(messages, params, tools, tool_choice, options))
        return self._stream(prompt, params)

    def close(self) -> None:
        """Ends what is in flight and frees the model; idempotent."""
        self._engine.leave()
        self._engine.shutdown()

    def __enter__(self) -> LLMEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, prompt: Prompt, params: SamplingParams) -> TokenStream:
        request = self._engine.prepare(prompt, params)
        self._engine.start(request)
        return TokenStream(self._engine, request)

    def _run(self, prompts: list[Prompt], params: list[SamplingParams], progress: bool) -> list[RequestOutput]:
        requests = self._finish(list(zip(prompts, params, strict=True)), progress)
        return [request.state.output() for request in requests]

    def _finish(self, asked: list[tuple[Prompt, SamplingParams]], progress: bool) -> list[LocalRequest]:
        """All of them together, until they have ended."""
        requests = [self._engine.prepare(*pair) for pair in asked]
        try:
            for request in requests:
                self._engine.start(request)
            with _progress(len(requests), progress) as advance:
                left = set(requests)
                while left:
                    for request in left.intersection(_turn(self._engine)):
                        request.deltas.clear()
                        if request.error is not None:
                            raise request.error
                        if request.ended:
                            left.discard(request)
                            advance()
            return requests
        finally:
            for request in requests:
                self._engine.abort(request)


LLM = LLMEngine


def _turn(engine: LocalEngine) -> list[LocalRequest]:
    """One turn and its messages; → requests with news. Ctrl-C waits for the end of the step, since a step that is cut
    in two would leave the scheduler with a plan whose result never comes."""
    with _interrupt_deferred():
        return engine.dispatch(engine.turn(IDLE_S))


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted:
        raise KeyboardInterrupt


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda: bar.advance(task)
