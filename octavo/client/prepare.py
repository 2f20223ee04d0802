"""From a prompt and parameters to the sequences that the engine runs: every limit checked, every default filled.

Called by the clients before anything is queued, so all that is wrong with a request is a RequestError that names
the field. Pure and torch-free. Invariant: the Adds it returns hold concrete values that no later part has to doubt:
finite numbers, ids inside the vocabulary, prompt + max_tokens within the context, one seed per choice.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from octavo.client.base import Prompt
from octavo.errors import ContextLengthExceeded, Field, RequestError
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams
from octavo.wire.messages import Add

MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 1_000
"""Of a request, and of each of them."""
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_BAD_WORDS, MAX_BAD_WORD_CHARS, MAX_BAD_WORD_TOKENS = 1024, 1_000, 64
MAX_BAD_WORDS_CHARS = 32_768
"""Of all of them together."""
MAX_SENT_IDS = 1 << 20
"""Ids of allowed_token_ids, and of bad_words, that go to the engine: each sequence has its own."""
HEAVY_IDS, HEAVY_WORDS = 8_192, 32
"""More of these are prepared in a thread, so that streams keep their pace."""
CONVERSATION_MIN_P = 0.1
"""In conversations where neither the request nor the model says anything of how to sample: at temperature 1 the many
unlikely tokens together are likely enough to make small models talk nonsense."""
CHAT_TEMPERATURE = 0.7
"""Of a chat at the terminal, where nobody says another."""
_LIMITS = ("top_p", "top_k", "min_p")


class Seeds:
    """Seeds for requests that give none: a function of the base, random when None or negative, and of how
    many were taken before."""

    def __init__(self, base: int | None = None) -> None:
        self._base = secrets.randbits(64) if base is None or base < 0 else base
        self._taken = 0

    def next(self) -> int:
        """A signed 64-bit integer."""
        self._taken += 1
        return derived_seed(self._base, self._taken)


def derived_seed(seed: int, index: int) -> int:
    """Seed of choice `index`: the seed itself for the first, well-mixed 64 bits (splitmix64) for the others."""
    if index == 0:
        return seed
    x = (seed + index * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def sequences(
    prompt: Prompt,
    params: SamplingParams,
    *,
    tokenizer: Tokenizer,
    defaults: SamplingParams,
    max_model_len: int,
    default_max_tokens: int | None,
    base_seed: int,
) -> list[Add]:
    """One Add per choice (per candidate with best_of), ids 0, 1, …: the client gives them its own.

    `defaults` are the model's (modelfiles/generation.py); `default_max_tokens` None means the rest of the context;
    `base_seed` is used when the request has no seed, or a negative one. Raises RequestError, ContextLengthExceeded.
    """
    assert params.structured_outputs is None or prompt.grammar is not None, "the grammar has not been written"
    check(params, tokenizer.vocab_size)
    max_tokens = _room(prompt.token_ids, params, tokenizer.vocab_size, max_model_len, default_max_tokens)
    candidates = params.best_of or params.n
    logprobs = 0 if candidates > params.n and params.logprobs is None else params.logprobs
    resolved = msgspec.structs.replace(
        params,
        temperature=first_given(params.temperature, defaults.temperature, 1.0),
        top_p=first_given(params.top_p, defaults.top_p, 1.0),
        top_k=min(first_given(params.top_k, defaults.top_k, 0), tokenizer.vocab_size),
        min_p=first_given(params.min_p, defaults.min_p, _unstated_min_p(prompt, params, defaults)),
        repetition_penalty=first_given(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        n=1,
        best_of=None,
        max_tokens=max_tokens,
        min_tokens=min(params.min_tokens, max_tokens),
        logprobs=logprobs,
        structured_outputs=None,
    )
    later = msgspec.structs.replace(resolved, prompt_logprobs=None)  # the same prompt: one answer is enough
    stop_ids = set(params.stop_token_ids or ())
    if not params.ignore_eos:
        stop_ids |= tokenizer.eos_ids | set(defaults.stop_token_ids or ())
    bad_word_ids = _bad_word_ids(params.bad_words or [], tokenizer)
    _check_sent("bad_words", sum(map(len, bad_word_ids)), candidates)
    seed = base_seed if params.seed is None or params.seed < 0 else params.seed
    return [
        Add(
            id=index,
            prompt_ids=prompt.token_ids,
            params=later if index else resolved,
            seed=derived_seed(seed, index),
            stop_ids=sorted(stop_ids),
            bad_word_ids=bad_word_ids,
            grammar=prompt.grammar,
            pooling=prompt.pooling,
            request_id=prompt.request_id,
            owner=prompt.owner,
            hard_grammar=prompt.hard_grammar,
        )
        for index in range(candidates)
    ]


def _unstated_min_p(prompt: Prompt, params: SamplingParams, defaults: SamplingParams) -> float:
    is_stated = any(_states(given, ("temperature", *_LIMITS)) for given in (params, defaults))
    return CONVERSATION_MIN_P if prompt.is_conversation and not is_stated else 0.0


def _states(params: SamplingParams, names: Iterable[str]) -> bool:
    return any(getattr(params, name) is not None for name in names)


def for_terminal(params: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """The parameters of a chat at the terminal, with what it has of its own where neither they nor the model's
    `defaults` say anything: a temperature, and a limit to the likely tokens."""
    temperature = CHAT_TEMPERATURE if defaults.temperature is None else None
    is_limited = _states(params, _LIMITS) or _states(defaults, _LIMITS)
    return msgspec.structs.replace(
        params,
        temperature=temperature if params.temperature is None else params.temperature,
        min_p=params.min_p if is_limited else CONVERSATION_MIN_P,
    )


async def prepared(prompt: Prompt, params: SamplingParams, **how: Any) -> list[Add]:
    """`sequences`, in a thread where that takes long."""
    is_heavy = len(params.allowed_token_ids or ()) > HEAVY_IDS or len(params.bad_words or ()) > HEAVY_WORDS
    make = partial(sequences, prompt, params, **how)
    return await asyncio.to_thread(make) if is_heavy else make()


def check(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError, with `param`, for a value of a wrong type, out of its range or over a cap."""
    _check_sizes(params, vocab_size)
    for name in params.__struct_fields__:
        value = getattr(params, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{name} must be a finite number, not {value}", param=name)
    try:
        msgspec.convert(msgspec.to_builtins(params, str_keys=False), SamplingParams)
    except (msgspec.ValidationError, TypeError) as error:
        field = re.search(r"`\$\.(\w+)", str(error))
        param = field[1] if field else None
        what = re.sub(r" - at `\$.*", "", str(error))
        raise RequestError(f"{param or 'sampling parameters'}: {what}", param=param) from None
    if params.best_of is not None and params.best_of < params.n:
        raise RequestError(f"best_of ({params.best_of}) must be at least n ({params.n})", param="best_of")
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise RequestError(
            f"min_tokens ({params.min_tokens}) must be at most max_tokens ({params.max_tokens})", param="min_tokens"
        )
    _check_sent("allowed_token_ids", len(params.allowed_token_ids or ()), params.best_of or params.n)
    _check_bias(params.logit_bias or {}, vocab_size)
    _check_ids(params.stop_token_ids or (), vocab_size, "stop_token_ids")
    if params.allowed_token_ids is not None:
        if not params.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty", param="allowed_token_ids")
        _check_ids(params.allowed_token_ids, vocab_size, "allowed_token_ids")


def _check_sizes(params: SamplingParams, vocab_size: int) -> None:
    """Before anything is made of them; of values that a caller in Python gave the types are not known yet."""
    for name, most, unit in (
        ("logit_bias", MAX_LOGIT_BIAS, "entries"),
        ("stop_token_ids", MAX_STOP_TOKEN_IDS, "ids"),
        ("allowed_token_ids", vocab_size, "ids"),
        ("bad_words", MAX_BAD_WORDS, "words"),
    ):
        value = getattr(params, name)
        if isinstance(value, list | dict | tuple) and len(value) > most:
            raise RequestError(f"{name}: {len(value)} {unit}, at most {most}", param=name)
    check_texts(params)


def check_texts(params: SamplingParams) -> None:
    """Raises RequestError for too many or too long stop strings and bad words, before anybody looks into them."""
    stops = [params.stop] if isinstance(params.stop, str) else params.stop or []
    if isinstance(stops, list) and len(stops) > MAX_STOP_STRINGS:
        raise RequestError(f"stop: {len(stops)} strings, at most {MAX_STOP_STRINGS}", param="stop")
    words = params.bad_words if isinstance(params.bad_words, list) else []
    for name, texts, most in (("stop", stops, MAX_STOP_CHARS), ("bad_words", words, MAX_BAD_WORD_CHARS)):
        sizes = [len(text) for text in texts if isinstance(text, str)]
        if sizes and max(sizes) > most:
            raise RequestError(f"{name}: a text of {max(sizes)} characters, at most {most}", param=name)
    if sum(len(word) for word in words if isinstance(word, str)) > MAX_BAD_WORDS_CHARS:
        raise RequestError(f"bad_words: more than {MAX_BAD_WORDS_CHARS} characters together", param="bad_words")


def _check_sent(param: str, num_ids: int, candidates: int) -> None:
    if num_ids * candidates > MAX_SENT_IDS:
        what = f"{num_ids} token ids for each of {candidates} choices are {num_ids * candidates}"
        raise RequestError(f"{param}: {what}, at most {MAX_SENT_IDS}; ask for fewer choices", param=param)


def _check_bias(bias: dict[int, float], vocab_size: int) -> None:
    _check_ids(bias, vocab_size, "logit_bias")
    for token_id, value in bias.items():
        if not -100 <= value <= 100:
            raise RequestError(f"logit_bias of token {token_id} is {value}, not within -100 to 100", param="logit_bias")


def _check_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    ids = list(ids)
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"{param}: token id {token_id} is out of vocabulary: the model has {vocab_size} tokens, from 0 on",
                param=param,
            )


def _room(
    prompt_ids: list[int], params: SamplingParams, vocab_size: int, max_model_len: int, default_max_tokens: int | None
) -> int:
    """Checks the prompt; → the number of tokens that may follow it."""
    if not prompt_ids:
        raise RequestError("the prompt is empty: it has no tokens", param="prompt")
    room = max_model_len - len(prompt_ids)
    if room < (params.max_tokens != 0):
        raise ContextLengthExceeded(
            f"the prompt has {len(prompt_ids)} tokens, but the model's context is {max_model_len} tokens "
            "and needs room for one more; shorten the prompt",
            param="prompt",
            facts={"tokens": len(prompt_ids), "limit": max_model_len},
        )
    _check_ids(prompt_ids, vocab_size, "prompt")
    wanted = params.max_tokens if params.max_tokens is not None else default_max_tokens
    return room if wanted is None else min(wanted, room)


def _bad_word_ids(words: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each word as it begins a text and as it follows a space (as vLLM does)."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise RequestError("bad_words: a word is empty", param="bad_words")
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if len(ids) > MAX_BAD_WORD_TOKENS:
                raise RequestError(
                    f"bad_words: a word has {len(ids)} tokens, at most {MAX_BAD_WORD_TOKENS}", param="bad_words"
                )
            if ids:
                found[tuple(ids)] = None
    return list(map(list, found))


def first_given(*values: float | int | None) -> float | int:
    return next(value for value in values if value is not None)


def refuse_nul(text: str, param: Field) -> None:
    """Raises RequestError."""
    if "\0" in text:
        raise RequestError(f"{param} holds a NUL character, which no model's text has; remove it", param=param)
