"""How loading tells its progress: a function that a checkpoint calls with the bytes read so far and in all, and the one
that writes it to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Bytes read so far, bytes of all tensors."""

FIRST_AFTER = 1.0
LINE_EVERY = 3.0
"""Seconds. What loads in less than the first says nothing."""


class LoadingLog:
    """Implements Progress: `loading weights: 43% of 16.1 GB, 2.1 GB/s`. Time counts from when it is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._next = self._began + FIRST_AFTER

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now < self._next or not total:
            return
        self._next = now + LINE_EVERY
        rate = done / (now - self._began)
        unit, name, digits = (1e9, "GB", 1) if total >= 1e9 else (1e6, "MB", 0)
        logger.info(
            "loading weights: %.0f%% of %.*f %s, %.*f %s/s",
            *(100 * done / total, digits, total / unit, name, digits, rate / unit, name),
        )
