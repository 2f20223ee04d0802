"""POST /v1/completions: texts or token ids → generations → one answer or its chunks.

Choice `index` counts over prompts and their n choices: prompt · n + choice. With echo the prompt, and with logprobs
its own log-probabilities, come first: that is how evaluation harnesses score texts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from octavo.client.base import Prompt
from octavo.client.prepare import refuse_nul
from octavo.errors import Place, RequestError
from octavo.grammar.spec import grammar_of
from octavo.server.core.account import Account
from octavo.server.core.serving import Served
from octavo.server.core.turns import moved, reworded
from octavo.server.core.work import ENTRY_BYTES, Arrived, Work
from octavo.server.faces.openai.logprobs import CompletionLogprobsBuilder, encoded, lists_encoded, prompt_logprobs
from octavo.server.faces.openai.protocol.shared import (
    CompletionLogprobs,
    GenerationRequest,
    NotYet,
    PromptLogprobs,
    Unserved,
    Usage,
)
from octavo.server.faces.openai.usage import Chunks, header_of, usage_of
from octavo.server.http.call import Call
from octavo.server.http.sse import Template, event
from octavo.server.http.stream import Source
from octavo.types import Delta, FinishReason, SamplingParams

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this route."""
TOKEN_BYTES = 8
INLINE_ENTRIES = 1000
"""More log-probabilities are written in a thread, so that other streams keep their pace."""

MAX_PROMPTS = 1024


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True, omit_defaults=True):
    """POST /v1/completions"""

    prompt: Annotated[str | list[str | int | list[int]], Meta(description="Text, token ids, or a list of either.")]
    max_completion_tokens: Annotated[int, Meta(ge=0, le=2**63 - 1, description="Wins over max_tokens.")] | None = None
    best_of: (
        Annotated[int, Meta(ge=0, le=128, description="Candidates, of which the n best are returned; 0: n.")] | None
    ) = None
    suffix: Unserved = None
    add_special_tokens: Annotated[bool, Meta(description="Put BOS before a text prompt, if the model has one.")] = True
    parse_special: Annotated[bool, Meta(description="Strings of special tokens in a prompt are those tokens.")] = True
    length_penalty: NotYet = None

    def sampling(self, **changed: Any) -> SamplingParams:
        """In the engine's terms: echo with logprobs needs those of the prompt."""
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        wanted = [k for k in (self.prompt_logprobs, self.logprobs if self.echo else None) if k is not None]
        return super().sampling(
            best_of=self.best_of or None,
            max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            prompt_logprobs=max(wanted, default=None),
            **changed,
        )


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """Streamed: in the first chunk of the choice."""


class Completion(msgspec.Struct, kw_only=True):
    """A whole completion, and a chunk of a streamed one (`usage` as stream_options say)."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET


_encode = msgspec.json.Encoder().encode


async def completions(call: Call[CompletionRequest]) -> Response:
    asked, served = call.asked, call.served
    given = split_prompts(asked.prompt)
    header = header_of(served, "cmpl")
    _check_fan_out(served, asked, len(given))
    choices: list[_Choice] = []

    async def start() -> Work:
        constraint, param = asked.constraint()
        grammar = None if constraint is None else await asyncio.to_thread(grammar_of, constraint, param)
        prompts = await _prompts(call, given, grammar)
        _charge_echo(call.account, asked, prompts)
        each = [prompt for prompt in prompts for _ in range(asked.n)]
        choices.extend(_Choice(served, asked, prompt, index) for index, prompt in enumerate(each))
        with reworded(lambda error: moved(error, {"grammar": Place(param)})):
            return await Work.start(served.client, served.metrics, prompts, asked.sampling(), call.account)

    async def whole(work: Work) -> Completion:
        arrived = await work.finish()
        if asked.logprobs is None and asked.prompt_logprobs is None:
            return _whole(served, asked, header, work, choices, arrived)
        return await asyncio.to_thread(_whole, served, asked, header, work, choices, arrived)

    if asked.stream:
        return CompletionChunks(call.source(start), asked, header, choices)
    return await call.whole(start, whole)


def split_prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per prompt. Raises RequestError where kinds are mixed or there is nothing."""
    if isinstance(prompt, str):
        return [_checked(prompt)]
    if not prompt:
        raise RequestError.about("prompt", "must not be empty")
    if set(map(type, prompt)) == {int}:  # of a million, without keeping streams waiting
        return [cast(list[int], prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError.about("prompt", f"has {len(prompt)} entries; at most {MAX_PROMPTS}")
    if any(isinstance(p, int) for p in prompt):
        raise RequestError.about("prompt", "mixes token ids with texts or lists; send one kind")
    return [_checked(p) for p in prompt if not isinstance(p, int)]


def _checked(prompt: str | list[int]) -> str | list[int]:
    if isinstance(prompt, str):
        refuse_nul(prompt, "prompt")
    elif not prompt:
        raise RequestError.about("prompt", "holds an empty list of token ids")
    return prompt


def _check_fan_out(served: Served, asked: CompletionRequest, num_prompts: int) -> None:
    """Raises RequestError for what could never be admitted, however empty the queue is."""
    info = served.info
    num_sequences = num_prompts * (asked.best_of or asked.n)
    limit = info.max_num_seqs + info.max_queued_requests
    if info.max_queued_requests and num_sequences > limit:
        raise RequestError(
            f"prompt, n and best_of ask for {num_sequences} sequences; this server holds at most {limit}",
            param="prompt",
        )


async def _prompts(call: Call[CompletionRequest], given: list[str | list[int]], grammar: str | None) -> list[Prompt]:
    asked, served = call.asked, call.served
    add, parse, limit = asked.add_special_tokens, asked.parse_special, served.info.max_model_len
    each = await served.encode(given, call.account, add_special_tokens=add, parse_special=parse, max_tokens=limit)
    texts = [prompt if isinstance(prompt, str) else None for prompt in given]
    return [
        Prompt(token_ids=ids, text=text, grammar=grammar, logprobs_of_all=asked.return_token_ids)
        for ids, text in zip(each, texts, strict=True)
    ]


def _charge_echo(account: Account, asked: CompletionRequest, prompts: list[Prompt]) -> None:
    """Each choice repeats the prompt and its log-probabilities. Raises RequestError."""
    repeated = (asked.n - 1) * sum(len(prompt.token_ids) for prompt in prompts)
    if asked.echo:
        account.charge(
            repeated * (TOKEN_BYTES + ENTRY_BYTES * (0 if asked.logprobs is None else asked.logprobs + 1)), "echo"
        )
    if asked.prompt_logprobs is not None:
        account.charge(repeated * (asked.prompt_logprobs + 1) * ENTRY_BYTES, "prompt_logprobs")


class _Choice:
    """One choice and its part of the answer, delta by delta."""

    def __init__(self, served: Served, asked: CompletionRequest, prompt: Prompt, index: int) -> None:
        self.index = index
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._prompt = prompt
        self._tokenizer = served.client.tokenizer
        self._asked = asked
        self._echo = asked.echo
        self._prompt_ids_due = asked.return_token_ids
        self._logprobs: CompletionLogprobsBuilder | None = None
        if asked.logprobs is not None:
            self._logprobs = CompletionLogprobsBuilder(
                self._tokenizer, asked.logprobs, asked.skip_special_tokens, as_ids=asked.return_tokens_as_token_ids
            )

    @property
    def num_due(self) -> int:
        """Log-probabilities of the prompt that the next delta shows."""
        top = self._asked.logprobs
        return len(self._prompt.token_ids) * (top + 1) if self._echo and top is not None else 0

    @property
    def plain(self) -> bool:
        """A delta shows its text and nothing else."""
        return not self._echo and self._logprobs is None and not self._asked.return_token_ids

    def take(self, delta: Delta, work: Work, prompt_index: int) -> CompletionChoice | None:
        """What the delta shows; None when that is nothing."""
        text = delta.text
        parts: list[CompletionLogprobs] = []
        if self._echo:  # once, before everything else
            self._echo = False
            shown = self._prompt_text()
            text = shown + text
            found = work.prompt_logprobs(prompt_index)
            if self._logprobs is not None and found is not None:
                parts.append(self._logprobs.echo(self._prompt.token_ids, found, shown))
        if self._logprobs is not None and delta.logprobs:
            parts.append(self._logprobs.build(delta.logprobs))
        ids = delta.token_ids if self._asked.return_token_ids else []
        if not text and not parts and not ids and delta.finish_reason is None:
            return None
        logprobs = None if self._logprobs is None else joined(parts)
        choice = CompletionChoice(index=self.index, text=text, logprobs=logprobs, finish_reason=delta.finish_reason)
        if delta.finish_reason is not None:
            choice.stop_reason = delta.stop_reason
        if self._asked.return_token_ids:
            choice.token_ids = ids
        if self._prompt_ids_due:
            self._prompt_ids_due = False
            choice.prompt_token_ids = self._prompt.token_ids
        return choice

    def _prompt_text(self) -> str:
        """As it was sent; of token ids all that they stand for, special tokens too."""
        if self._prompt.text is not None:
            return self._prompt.text
        return self._tokenizer.decode(self._prompt.token_ids, skip_special_tokens=False)


def joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    names = CompletionLogprobs.__struct_fields__
    return CompletionLogprobs(**{name: [entry for part in parts for entry in getattr(part, name)] for name in names})


def _whole(
    served: Served,
    asked: CompletionRequest,
    header: dict[str, Any],
    work: Work,
    choices: list[_Choice],
    arrived: list[Arrived],
) -> Completion:
    answer = Completion(**header, choices=[], usage=usage_of(work.metrics))
    for prompt_index, delta in arrived:
        choice = choices[prompt_index * asked.n + delta.index].take(delta, work, prompt_index)
        assert choice is not None, "a generation ended without a finish_reason"
        if choice.logprobs is not None:
            choice.logprobs = lists_encoded(choice.logprobs)
        if asked.prompt_logprobs is not None and (found := work.prompt_logprobs(prompt_index)) is not None:
            choice.prompt_logprobs = encoded(prompt_logprobs(served.client.tokenizer, found))
        answer.choices.append(choice)
    return answer


class CompletionChunks(Chunks):
    def __init__(
        self, source: Source, asked: CompletionRequest, header: dict[str, Any], choices: list[_Choice]
    ) -> None:
        """`choices`: there when the work has started."""
        super().__init__(source, header, asked.stream_options)
        self._choices = choices
        self._n = asked.n
        self._templates: dict[int, Template] = {}

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        index = prompt_index * self._n + delta.index
        choice = self._choices[index]
        if choice.plain and delta.finish_reason is None and not self.counts:
            if not delta.text:
                return b""
            template = self._templates.get(index)
            if template is None:
                empty = CompletionChoice(index=index, text="", logprobs=None, finish_reason=None)
                template = self._templates[index] = Template(self._event(empty), "text")
            return template.fill(delta.text)
        self.num_tokens += len(delta.token_ids)
        part = choice.take(delta, self.work, prompt_index)
        return b"" if part is None else self._event(part)

    def is_long(self, prompt_index: int, delta: Delta) -> bool:
        return self._choices[prompt_index * self._n + delta.index].num_due > INLINE_ENTRIES

    def last(self, usage: Usage) -> bytes:
        return event(_encode(Completion(**self.header, choices=[], usage=usage)))

    def _event(self, part: CompletionChoice) -> bytes:
        return event(_encode(Completion(**self.header, choices=[part], usage=self.usage)))
