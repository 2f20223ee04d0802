"""A real engine loop on a real socket, with an executor that counts instead of computing: next token = last + 1."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from pathlib import Path

from octavo.client.fake import VOCAB_SIZE, write_byte_tokenizer
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.wire.messages import EngineInfo
from octavo.wire.plan import GroupInfo, Masks, Plan, Result, WorkerInfo
from octavo.wire.sockets import HOLD_BYTES, SocketTransport


class CountingExecutor:
    depth = 1

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self._plans: deque[Plan] = deque()
        self._last: dict[int, int] = {}

    def start(self) -> WorkerInfo:
        raise NotImplementedError

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)

    def masks(self, masks: Masks) -> None:
        raise NotImplementedError

    def collect(self) -> Result:
        time.sleep(self.delay)
        plan = self._plans.popleft()
        for admit in plan.admit:
            self._last[admit.row] = admit.token_ids[-1]
        found = []
        for run in plan.run:
            if run.samples:
                self._last[run.row] = (self._last[run.row] + 1) % 256
                found.append((self._last[run.row],))
        return Result(plan.index, tuple(found))

    def shutdown(self) -> None:
        pass


def model_folder(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    write_byte_tokenizer(folder)
    return folder


class PacedEngine:
    """Runs in a thread. `kill` ends it without a word, as a crash does."""

    def __init__(self, endpoint: str, model: Path, delay: float = 0.005, hold_bytes: int = HOLD_BYTES) -> None:
        self.transport = SocketTransport(endpoint, hold_bytes=hold_bytes)
        self.scheduler = Scheduler(
            SchedulerConfig(
                groups=(GroupInfo(256, 16),),
                max_num_seqs=8,
                max_num_batched_tokens=256,
                max_model_len=1024,
                vocab_size=VOCAB_SIZE,
                max_queued_requests=16,
            )
        )
        self.info = EngineInfo(
            instance=uuid.uuid4().hex,
            pid=1,
            model="counting",
            model_path=str(model),
            max_model_len=1024,
            max_num_seqs=8,
            block_size=16,
            num_blocks=256,
            vocab_size=VOCAB_SIZE,
            device="cpu",
            dtype="none",
            backend="none",
            max_queued_requests=16,
            seed=11,
        )
        self.executor = CountingExecutor(delay)
        self.loop = EngineLoop(self.scheduler, self.executor, self.transport, self.info, time.monotonic)
        self._stop = False
        self._thread = threading.Thread(target=self.loop.run, args=(lambda: self._stop,), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        self._stop = True
        self.transport.wake()
        self._thread.join()
        self.transport.close()

    def drain(self) -> None:
        self.loop.drain()
        self.transport.wake()
        self._thread.join()
        self.transport.close()
