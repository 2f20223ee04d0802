"""Signals as whoever started a process left them: ignored ones stay ignored, blocked ones are let through.

nohup and `trap "" HUP` ignore a signal for all that they start. A mask of blocked signals is inherited too, but mostly
by accident (a thread of the starter's), and a process that hears of neither its end nor its children's serves nobody.
"""

from __future__ import annotations

import signal

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks a command to end."""
STOPPED_AT_ONCE = 130
"""Exit code after a second one."""


def let_through() -> None:
    """Unblock what our processes live by."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP, signal.SIGCHLD})


def heeded(numbers: tuple[signal.Signals, ...] = STOP) -> tuple[signal.Signals, ...]:
    """Those that the starter has not told this process to ignore."""
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def obey_parent() -> None:
    """In a child: its parent ends it with SIGTERM, whatever the parent's own starter said of that signal."""
    let_through()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
