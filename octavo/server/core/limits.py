"""How much each API key may ask for: requests and tokens a minute, requests at once. Without keys: all together.

A request is counted when it comes,
whatever becomes of it. Of tokens the prompt's, and max_tokens where the request gives it, are set aside when the work
begins, and put right by what was really used when it ends. Nothing is refused for ever: what is larger than the whole
limit is let in when the full minute is there, and paid off before the next. Invariant: one quota for each key, made at
the start; requests make none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.config import ServerConfig
from octavo.errors import ApiError
from octavo.types import SamplingParams

MINUTE = 60.0


class RateLimited(ApiError, status=429, code="rate_limit_exceeded"):
    """`type` says of what there was too much, as with OpenAI."""

    def __init__(self, message: str, kind: str, wait: float) -> None:
        super().__init__(message, retry_after=max(1, math.ceil(wait)))
        self.type = kind


class Bucket:
    """`limit` a minute, saved up for at most a minute. The level is below zero while a debt is paid off."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._level = float(limit)
        self._at = clock()

    @property
    def level(self) -> float:
        now = self._clock()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._level

    def wait(self, amount: float) -> float:
        """Seconds until so much, or everything there can be, may be taken; 0: now."""
        missing = min(amount, self.limit) - self.level
        return missing * MINUTE / self.limit if missing > 1e-6 else 0.0

    def take(self, amount: float) -> None:
        """A negative amount is given back."""
        self._level = min(self.limit, self.level - amount)

    def headers(self, kind: str) -> dict[str, str]:
        level = self.level
        return {
            f"x-ratelimit-limit-{kind}": str(self.limit),
            f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(level))),
            f"x-ratelimit-reset-{kind}": duration((self.limit - level) * MINUTE / self.limit),
        }


class Quota:
    """What one key has left. None: no such limit."""

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_inflight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self.tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self.max_inflight = max_inflight
        self.inflight = 0

    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        found = self.requests.headers("requests") if self.requests is not None else {}
        return found if self.tokens is None else {**found, **self.tokens.headers("tokens")}


@dataclass(eq=False)
class Ticket:
    """One request's part of a quota; implements account.Allowance. `own`: what marks its parameters as its key's."""

    quota: Quota
    own: Callable[[SamplingParams], SamplingParams]
    _reserved: int = 0
    _admitted: bool = False

    def enter(self) -> None:
        """Raises RateLimited; then nothing is counted."""
        quota = self.quota
        if quota.max_inflight is not None and quota.inflight >= quota.max_inflight:
            message = f"{quota.inflight} requests are in flight, the limit for this key; wait for one to end"
            raise RateLimited(message, "requests", 1)
        if quota.requests is not None and (wait := quota.requests.wait(1)):
            raise _too_many("requests", "RPM", quota.requests, 1, wait)
        if quota.tokens is not None and (wait := quota.tokens.wait(1)):
            raise _too_many("tokens", "TPM", quota.tokens, 1, wait)
        if quota.requests is not None:
            quota.requests.take(1)
        quota.inflight += 1

    def admit(self, prompt_tokens: int, num_prompts: int, params: SamplingParams) -> SamplingParams:
        """Sets tokens aside for work that is about to begin; → the parameters it is to run with. Raises RateLimited,
        but never for a later part of a request that has begun."""
        tokens = self.quota.tokens
        if tokens is not None:
            wanted = prompt_tokens + num_prompts * (params.best_of or params.n) * (params.max_tokens or 0)
            wanted = min(wanted, tokens.limit)
            if not self._admitted and (wait := tokens.wait(wanted)):
                raise _too_many("tokens", "TPM", tokens, wanted, wait)
            tokens.take(wanted)
            self._reserved += wanted
            self._admitted = True
        return self.own(params)

    def leave(self, used: int) -> None:
        """Once, after `enter`. `used`: the tokens of its prompts and outputs."""
        self.quota.inflight -= 1
        if self.quota.tokens is not None:
            self.quota.tokens.take(used - self._reserved)


def quotas(config: ServerConfig, num_keys: int) -> list[Quota]:
    """One for each key, or one without keys."""
    each = (config.requests_per_minute, config.tokens_per_minute, config.max_inflight)
    return [Quota(*each) for _ in range(max(num_keys, 1))]


def _too_many(kind: str, short: str, bucket: Bucket, amount: int, wait: float) -> RateLimited:
    used = bucket.limit - math.floor(bucket.level)
    return RateLimited(
        f"rate limit reached on {kind} per min ({short}): limit {bucket.limit}, used {used}, requested {amount}; "
        f"try again in {duration(wait)}",
        kind,
        wait,
    )


def duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0.0) * 1000)}ms"
    if seconds < MINUTE:
        return f"{round(seconds, 3):g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
