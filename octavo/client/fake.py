"""FakeClient: the whole client (ledger, streams, tokenizer, template) on an engine that is a few lines of Python.

Called by the server's tests. No torch, no process, no socket, no model: a byte tokenizer of 259 tokens, and an engine
whose next token is a pure function of prompt, seed and number of output tokens. Greedy requests are answered with
`reply`; sampled ones with `reply` behind a tag that depends on the seed.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.client.base import Prompt
from octavo.client.generation import LedgerGeneration
from octavo.client.ledger import Ledger
from octavo.client.prepare import Seeds, prepared
from octavo.errors import RequestError, Unavailable
from octavo.modelfiles.files import locate
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import Metrics, SamplingParams, TokenLogprobs, TopLogprob
from octavo.wire.messages import Abort, Add, EngineInfo, Failed, Outputs, Stats, ToEngine, TokenOutput

REPLY = "Hello! I am a fake engine: ünïcode, 🦊 and\nnew lines work."
NUM_BYTES = 256
IM_START, IM_END, PAD = 256, 257, 258
VOCAB_SIZE = 259
HIDDEN_SIZE = 8
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_tokenizer(folder: Path) -> None:
    """Put tokenizer.json and tokenizer_config.json of a byte tokenizer with a ChatML template into a folder."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    from octavo.text.parts import byte_alphabet

    backend = Backend(models.BPE(vocab=byte_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|pad|>")])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class _Running:
    """One sequence in the fake engine."""

    def __init__(self, add: Add, script: list[int]) -> None:
        self.add = add
        self.script = script
        self.num_output = len(add.output_ids)
        self.started = time.perf_counter()
        self.first = True

    def step(self) -> TokenOutput:
        params = self.add.params
        out = TokenOutput(self.add.id, [])
        limit = params.max_tokens if params.max_tokens is not None else 16
        if limit > self.num_output:
            token = self._next()
            self.num_output += 1
            out.token_ids = [token]
            if params.logprobs is not None:
                out.logprobs = [self._logprobs(token, params.logprobs)]
            if token in self.add.stop_ids and self.num_output > params.min_tokens:
                out.finish_reason, out.stop_reason = "stop", token
        if out.finish_reason is None and self.num_output >= limit:
            out.finish_reason = "length"
        if self.add.pooling is not None:
            out.embedding = struct.pack(
                f"<{HIDDEN_SIZE}f", *(sum(self.add.prompt_ids[i::HIDDEN_SIZE]) for i in range(HIDDEN_SIZE))
            )
        if self.first and params.prompt_logprobs is not None:
            ids = self.add.prompt_ids
            out.prompt_logprobs = [None, *(self._logprobs(i, params.prompt_logprobs) for i in ids[1:])]
        if self.first or out.finish_reason is not None:
            out.metrics = self._metrics()
        self.first = False
        return out

    def _next(self) -> int:
        position = self.num_output % (len(self.script) + 1)
        may_end = self.add.stop_ids and self.num_output >= self.add.params.min_tokens
        if position < len(self.script) or not may_end:
            return self.script[position % len(self.script)]
        return self.add.stop_ids[0]

    def _logprobs(self, token: int, num_top: int) -> TokenLogprobs:
        top = [TopLogprob((token + i) % VOCAB_SIZE, -0.25 - i) for i in range(num_top)]
        return TokenLogprobs(token, -0.25, top)

    def _metrics(self) -> Metrics:
        elapsed = (time.perf_counter() - self.started) * 1e3
        return Metrics(
            prompt_tokens=len(self.add.prompt_ids),
            completion_tokens=self.num_output,
            prefill_ms=0.5,
            decode_ms=elapsed,
            decode_iterations=max(self.num_output - 1, 0),
            tokens_per_second=self.num_output / max(elapsed, 1e-3) * 1e3,
            time_to_first_token_ms=0.5,
        )


class FakeClient:
    """Implements client.base.Client. `step_delay`: seconds per token. `fail_at`: the step of a sequence at which it
    fails with an engine_error. Tests may call `crash` and `restart`, and look at `aborts` and `num_running`."""

    def __init__(
        self,
        *,
        reply: str = REPLY,
        step_delay: float = 0.0,
        max_model_len: int = 2048,
        max_num_seqs: int = 64,
        max_queued_requests: int = 1024,
        fail_at: int | None = None,
        on_step: Callable[[], None] | None = None,
        model: str = "fake-model",
        aliases: tuple[str, ...] = (),
    ) -> None:
        self.step_delay = step_delay
        self.fail_at = fail_at
        self.aborts = 0
        self.engine_restarts = 0
        self.defaults = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
        self._script = list(reply.encode())
        self._on_step = on_step
        self._limits: dict[str, Any] = {
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "max_queued_requests": max_queued_requests,
        }
        self._model, self._aliases = model, aliases
        self._running: dict[int, _Running] = {}
        self._steps = 0
        self._generated = 0
        self._prompt_tokens = 0
        self._seeds = Seeds(0)
        self._info: EngineInfo | None = None
        self._attached = False
        self._ledger = Ledger()
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._tokenizer: Tokenizer | None = None
        self._vocabulary: Any = None
        self._template: ChatTemplate | None = None

    # -- client.base.Client

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def ready(self) -> bool:
        return self._attached

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise Unavailable("the model is loading", retry_after=1)
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate:
        if self._template is None:
            raise Unavailable("the model is loading", retry_after=1)
        return self._template

    @property
    def num_running(self) -> int:
        """Sequences in the fake engine; 0 when nothing leaked."""
        return len(self._running)

    @property
    def stats(self) -> Stats:
        return Stats(
            num_running=len(self._running),
            blocks_total=1024,
            blocks_used=sum(1 + (len(r.add.prompt_ids) + r.num_output) // 16 for r in self._running.values()),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated,
            aborts=self.aborts,
            steps=self._steps,
            memory_mb=1.0,
        )

    async def refresh(self, timeout: float) -> None:
        pass

    async def start(self) -> None:
        """Ready when this returns."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text("{}")
            write_byte_tokenizer(folder)
            files = locate(folder, self._model)
            self._tokenizer = Tokenizer.load(files)
            self._template = ChatTemplate.load(files, self._tokenizer)
        self.restart()
        self.engine_restarts = 0
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._attached = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._ledger.fail_all(Unavailable("the server is shutting down", retry_after=1))

    async def generate(self, prompt: Prompt, params: SamplingParams) -> LedgerGeneration:
        if not self._attached or self._info is None:
            raise Unavailable("the engine is not attached", retry_after=1)
        if prompt.grammar is not None:
            self._check(prompt.grammar)
        adds = await prepared(
            prompt,
            params,
            tokenizer=self.tokenizer,
            defaults=self.defaults,
            max_model_len=self._info.max_model_len,
            default_max_tokens=None,
            base_seed=self._seeds.next(),
        )
        generation = LedgerGeneration(prompt, params, adds, self.tokenizer, self._ledger)
        limit = self._info.max_num_seqs + self._info.max_queued_requests if self._info.max_queued_requests else None
        self._ledger.enter(generation, limit)
        return generation

    def _check(self, grammar: str) -> None:
        """As the real client does, in this process. What is generated does not follow the grammar."""
        from octavo.grammar.matcher import Vocabulary
        from octavo.grammar.trial import verdict

        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.tokenizer, VOCAB_SIZE)
        if message := verdict(self._vocabulary, grammar):
            raise RequestError(f"the grammar cannot be used: {message}", param="grammar")

    # -- what tests do to it

    def crash(self) -> None:
        """The engine dies: not ready, what is in flight waits in the ledger."""
        self._attached = False
        self._running.clear()
        self._ledger.lose(self)

    def restart(self) -> None:
        """A new engine is attached and goes on with what the ledger holds."""
        self._attached = True
        self.engine_restarts += 1
        self._info = EngineInfo(
            instance=f"fake-{self.engine_restarts}",
            pid=os.getpid(),
            model=self._model,
            aliases=self._aliases,
            model_path=f"/nowhere/{self._model}",
            block_size=16,
            num_blocks=1024,
            vocab_size=VOCAB_SIZE,
            hidden_size=HIDDEN_SIZE,
            device="cpu",
            dtype="float32",
            backend="fake",
            **self._limits,
        )
        self._ledger.attach(self)

    # -- the fake engine

    def send(self, message: ToEngine) -> bool:
        """Implements ledger.Engine."""
        if isinstance(message, Add):
            tag = f"[{message.seed % 1000}] " if (message.params.temperature or 0) > 0 else ""
            self._running[message.id] = _Running(message, [*tag.encode(), *self._script])
            self._prompt_tokens += len(message.prompt_ids)
            self._work.set()
        elif isinstance(message, Abort):
            self.aborts += sum(self._running.pop(id, None) is not None for id in message.ids)
        return True

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            await asyncio.sleep(self.step_delay)
            if not self._running:
                self._work.clear()
                continue
            self._step()

    def _step(self) -> None:
        self._steps += 1
        if self._on_step is not None:
            self._on_step()
        items: list[TokenOutput] = []
        for id, running in list(self._running.items())[: self._limits["max_num_seqs"]]:
            if self.fail_at is not None and running.num_output >= self.fail_at:
                del self._running[id]
                self._ledger.receive_failure(
                    Failed(id, "engine_error", "the engine failed while it computed this request")
                )
                continue
            out = running.step()
            self._generated += len(out.token_ids)
            if out.finish_reason is not None:
                del self._running[id]
            items.append(out)
        self._ledger.receive(Outputs(items))
