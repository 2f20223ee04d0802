"""The Python face for event loops: AsyncLLMEngine. The engine runs in a thread of its own in this process.

The thread touches the engine's side of client/local.py only; requests, text and readers belong to the event loop, which
gets the engine's messages by call_soon_threadsafe. Invariant: a reader that is cancelled or leaves its loop has aborted
its request; a thread that ends has ended all requests.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

from octavo.client.arguments import Messages, OnePrompt, Tools, chat_options, conversation, engine_config, one_params
from octavo.client.base import Prompt
from octavo.client.embedding import EMBEDDING
from octavo.client.local import LocalEngine, LocalRequest
from octavo.config.engine import EngineConfig
from octavo.errors import EngineError
from octavo.executor.base import Executor
from octavo.types import Delta, Metrics, Pooling, RequestOutput, SamplingParams
from octavo.wire.messages import EngineInfo, ToClient


class AsyncStream:
    """The deltas of one request, for `async for`; it starts when first read. `metrics` are complete at its end."""

    def __init__(self, engine: AsyncLLMEngine, prompt: Callable[[LocalEngine], Prompt], params: SamplingParams) -> None:
        self._started: list[LocalRequest] = []
        self._deltas = _read(engine, prompt, params, self._started)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas

    def __anext__(self) -> Awaitable[Delta]:
        return self._deltas.__anext__()

    async def aclose(self) -> None:
        """Aborts the request if it has not ended."""
        await self._deltas.aclose()

    async def output(self) -> RequestOutput:
        """Everything at once; reads what is left of the stream."""
        async for _ in self._deltas:
            pass
        if not self._started:
            raise EngineError("the stream was closed before it was read")
        return self._started[0].state.output()

    @property
    def metrics(self) -> Metrics:
        return self._started[0].state.metrics if self._started else Metrics()


async def _read(
    engine: AsyncLLMEngine,
    prompt: Callable[[LocalEngine], Prompt],
    params: SamplingParams,
    started: list[LocalRequest],
) -> AsyncGenerator[Delta, None]:
    """Not a method of AsyncStream: a stream that is dropped must end soon, so it may not be part of a cycle.
    `started`: where the request is put once there is one."""
    local = await engine.start()
    request = local.prepare(await asyncio.to_thread(prompt, local), params)
    started.append(request)
    news = engine._enter(local, request)
    try:
        while True:
            while request.deltas:
                yield request.deltas.popleft()
            if request.error is not None:
                raise request.error
            if request.ended:
                return
            news.clear()
            await news.wait()
    finally:
        engine._leave(local, request)


class AsyncLLMEngine:
    """A model in this process, for one event loop. Arguments are those of LLMEngine; the model loads in the engine's
    thread at `start`, at `async with` or with the first request, and errors of loading are raised there."""

    def __init__(
        self, config: EngineConfig | str | None = None, *, executor: Executor | None = None, **options: Any
    ) -> None:
        self._config = engine_config(config, options)
        self._executor = executor
        self._readers: dict[LocalRequest, asyncio.Event] = {}
        self._started: asyncio.Future[LocalEngine] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    async def start(self) -> LocalEngine:
        """Loads the model, once; every call waits until it is there. Raises OctavoError."""
        if self._stopping.is_set():
            raise EngineError("the engine is closed")
        if self._started is None:
            loop = asyncio.get_running_loop()
            self._started = loop.create_future()
            self._thread = threading.Thread(
                target=self._run, args=(loop, self._started), name="octavo-engine", daemon=True
            )
            self._thread.start()
        return await asyncio.shield(self._started)

    async def info(self) -> EngineInfo:
        return (await self.start()).info

    def generate(self, prompt: OnePrompt, sampling_params: SamplingParams | None = None, **fields: Any) -> AsyncStream:
        """Completes one prompt (text or token ids). max_tokens is 16 when not given. The stream raises RequestError,
        EngineError."""
        return AsyncStream(self, lambda local: local.prompt(prompt), one_params(sampling_params, fields))

    def chat(
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
    ) -> AsyncStream:
        """As `generate`, for one conversation; `tools` as in LLMEngine.chat."""
        params = one_params(sampling_params, fields)
        options = chat_options(add_generation_prompt, continue_final_message, chat_template_kwargs)

        def prompt(local: LocalEngine) -> Prompt:
            return local.chat_prompt(conversation(messages, params, tools, tool_choice, options))

        return AsyncStream(self, prompt, params)

    async def embed(
        self, prompt: OnePrompt, *, pooling: Pooling = "mean", dimensions: int | None = None
    ) -> list[float]:
        """As LLMEngine.embed, for one prompt."""
        local = await self.start()
        local.check_dimensions(dimensions)
        started: list[LocalRequest] = []
        async for _ in _read(self, lambda local: local.embedding_prompt(prompt, pooling), EMBEDDING, started):
            pass
        return local.embedding(started[0], dimensions)

    async def apply_chat_template(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The conversation as the text that the model gets; `kwargs` are further variables of the template."""
        local = await self.start()
        options = chat_options(add_generation_prompt, continue_final_message, kwargs)
        asked = conversation(messages, SamplingParams(), None, "auto", options)
        return await asyncio.to_thread(local.render, asked)

    async def close(self) -> None:
        """Ends requests in flight with EngineError and frees the model; idempotent."""
        self._stopping.set()
        if self._started is None or self._thread is None:
            return
        thread, self._thread = self._thread, None
        await asyncio.wait([self._started])
        if self._started.exception() is None:
            self._started.result().leave()
            self._wake(list(self._readers))
        await asyncio.to_thread(thread.join)

    async def __aenter__(self) -> AsyncLLMEngine:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- on the event loop

    def _enter(self, local: LocalEngine, request: LocalRequest) -> asyncio.Event:
        local.start(request)
        news = self._readers[request] = asyncio.Event()
        return news

    def _leave(self, local: LocalEngine, request: LocalRequest) -> None:
        self._readers.pop(request, None)
        local.abort(request)

    def _wake(self, requests: list[LocalRequest]) -> None:
        for request in requests:
            if (news := self._readers.get(request)) is not None:
                news.set()

    def _receive(self, local: LocalEngine, messages: list[ToClient]) -> None:
        self._wake(local.dispatch(messages))

    def _fail(self, local: LocalEngine, error: Exception) -> None:
        local.fail_all(EngineError(f"the engine stopped: {type(error).__name__}: {error}"))
        local.leave()
        self._stopping.set()
        self._wake(list(self._readers))

    # --- on the engine's thread

    def _run(self, loop: asyncio.AbstractEventLoop, started: asyncio.Future[LocalEngine]) -> None:
        try:
            local = LocalEngine(self._config, self._executor)
        except Exception as error:
            self._post(loop, _settle, started, None, error)
            return
        self._post(loop, _settle, started, local, None)
        try:
            alive = True
            while alive and not self._stopping.is_set():
                messages = local.turn(None)
                if messages:
                    alive = self._post(loop, self._receive, local, messages)
        except Exception as error:
            self._post(loop, self._fail, local, error)
        finally:
            local.shutdown()

    @staticmethod
    def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> bool:
        """→ whether the event loop still takes calls."""
        try:
            loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # closed without close(): nobody is left to tell
            return False
        return True


def _settle(started: asyncio.Future[LocalEngine], local: LocalEngine | None, error: Exception | None) -> None:
    if started.done():
        return
    if local is not None:
        started.set_result(local)
    elif error is not None:
        started.set_exception(error)
