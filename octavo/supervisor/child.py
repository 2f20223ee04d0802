"""One child process and the rule by which it is started again. Owned by the supervisor's loop.

Invariant: at most one process lives at a time; after `stop` none is started any more.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable

from octavo.env import without_keys
from octavo.processes.spawn import spawn
from octavo.supervisor.entry import READY, Spec, encoded

logger = logging.getLogger(__name__)

STARTUP_CODES = range(2, 6)
"""Exit codes of errors that a restart does not mend (errors.py)."""
MAX_FAILED_STARTS = 3
PATIENCE_S = 300.0
"""How long a child that has worked before may fail to start: what it had is held for it so long (client/engine.py)."""
KILLED = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
"""Ends that somebody else wanted; all others are of the child's own making."""
STABLE_S = 5.0
"""Who lived so long after a restart may be restarted at once again."""
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 2.0


class Child:
    """`make_spec(ready_fd)` gives what the process is told; `fds` are the descriptors it inherits."""

    def __init__(self, name: str, make_spec: Callable[[int], Spec], fds: tuple[int, ...] = ()) -> None:
        self.name = name
        self.ready = False
        self.crashed = False
        """It broke down by itself when it was last ready."""
        self._has_started = False
        """It does its work; whether there is an engine is not a server's affair."""
        self._make_spec = make_spec
        self._fds = fds
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_read: int | None = None
        self._started = 0.0
        self._restart_at: float | None = None
        self._failed_starts = 0
        self._last_good: float | None = None
        """When it was last known to be ready, None before it ever was."""
        self._kill_at: float | None = None
        self._stopping = False

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def uptime(self) -> float:
        """Seconds since its process was started."""
        return time.monotonic() - self._started

    @property
    def ready_fd(self) -> int | None:
        """Readable when the child reports how far it is, or ends before it does."""
        return self._ready_read

    @property
    def next_event(self) -> float | None:
        """When `tick` has something to do (monotonic seconds)."""
        if self._process is None:
            return self._restart_at
        return self._kill_at

    def start(self) -> None:
        read, write = os.pipe()
        spec = self._make_spec(write)
        # A session of its own: the terminal's Ctrl-C reaches the supervisor alone, which ends its children in order.
        self._process = spawn(
            "octavo.supervisor.entry",
            stdin=subprocess.PIPE,
            pass_fds=(*self._fds, write),
            env=without_keys(),
            own_session=True,
        )
        os.close(write)
        self._ready_read = read
        self._started, self._restart_at = time.monotonic(), None
        self.ready = self._has_started = False
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encoded(spec))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once: `reap` sees that

    def check_ready(self) -> bool:
        """True once, when the child has reported that it is ready."""
        if self._ready_read is None:
            return False
        # Blocks only for a child that has neither spoken nor ended: callers know that it did.
        said = os.read(self._ready_read, 16)
        self._has_started |= bool(said)
        self.ready = READY in said
        if not said or self.ready:
            os.close(self._ready_read)
            self._ready_read = None
        return self.ready

    def reap(self) -> int | None:
        """When the process has ended: plan its restart and return None, or return the exit code for giving up.
        Negative codes are signals."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        uptime = self.uptime
        while self._ready_read is not None:
            self.check_ready()  # it may have said so just before its end
        good = self._has_started
        now = time.monotonic()
        if good:
            self._last_good, self.crashed = now, code not in KILLED
        self._process, self._kill_at, self.ready = None, None, False
        if self._stopping:
            return None
        self._failed_starts = 0 if good and uptime > STABLE_S else self._failed_starts + 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        # A model that was served before may fit again; what never was, or broke later, is not mended by trying again.
        hopeless = code in STARTUP_CODES and (good or self._last_good is None)
        if self._last_good is None:
            hopeless |= self._failed_starts >= MAX_FAILED_STARTS
        else:
            hopeless |= now - self._last_good > PATIENCE_S
        if hopeless:
            if code not in STARTUP_CODES:
                logger.error("the %s does not start: it %s", self.name, how)
            return code if code > 0 else 1
        delay = 0.0 if good and self._failed_starts <= 1 else min(FIRST_DELAY_S * 2**self._failed_starts, MAX_DELAY_S)
        self._restart_at = now + delay
        logger.warning("the %s %s after %.1f s; starting it again", self.name, how, uptime)
        return None

    def tick(self) -> None:
        """Do what is due: a planned restart, or the end of patience with a child that was told to stop."""
        now = time.monotonic()
        if self._process is None:
            if self._restart_at is not None and now >= self._restart_at and not self._stopping:
                self.start()
        elif self._kill_at is not None and now >= self._kill_at:
            logger.warning("the %s did not stop in time, killing it", self.name)
            self._kill_at = None
            self.kill()

    def stop(self, patience: float) -> None:
        """Ask the process to end, kill it after `patience` seconds. Idempotent."""
        if self._stopping:
            return
        self._stopping = True
        if self._process is not None:
            self._kill_at = time.monotonic() + patience
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once; `wait` or `reap` collects it."""
        self._stopping = True
        if self._process is not None:
            self._process.kill()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
