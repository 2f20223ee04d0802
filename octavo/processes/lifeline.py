"""A child that must not outlive its parent: first thing in every process that another of ours starts."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
POLL_S = 0.5


def die_with_parent(parent: int) -> None:
    """From now on this process is killed when `parent` ends, however that ends; at once if it has ended already."""
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
        _check(parent)
        return
    threading.Thread(target=_watch, args=(parent,), name="octavo-lifeline", daemon=True).start()


def _check(parent: int) -> None:
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while True:
        _check(parent)
        time.sleep(POLL_S)
