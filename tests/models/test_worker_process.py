"""The worker in a process of its own: all that it is told, and all that it says, crosses as encoded messages, and the
tokens are those of a worker in the engine's process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
from test_device_worker import SETTINGS, plans
from test_drafts import generate
from tiny_models import make_reference, resolved_config, save_safetensors

from octavo.errors import DeviceLost, ModelFileError
from octavo.executor.base import Executor, StepFailed
from octavo.executor.inline import InlineExecutor
from octavo.executor.process import ProcessExecutor
from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Masks, Plan, Result, Run


@dataclass
class Driven:
    """An executor, one plan at a time."""

    executor: Executor

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        self.executor.submit(plan)
        if masks is not None:
            self.executor.masks(masks)
        return self.executor.collect()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def inline(files: ModelFiles) -> Iterator[Driven]:
    executor = InlineExecutor(resolved_config(), files)
    executor.start()
    yield Driven(executor)
    executor.shutdown()


@pytest.fixture(scope="module")
def remote(files: ModelFiles) -> Iterator[Driven]:
    executor = ProcessExecutor(resolved_config(), files)
    info = executor.start()
    assert executor.pid not in (None, os.getpid()) and info.backend == "cpu"
    yield Driven(executor)
    executor.shutdown()
    executor.shutdown()
    assert executor.pid is None


def release(driven: Driven) -> None:
    driven.run(Plan(99, release=tuple(range(4))))


def test_results_are_those_of_a_worker_in_the_same_process(inline: Driven, remote: Driven) -> None:
    for plan in plans(SETTINGS):
        assert remote.run(plan) == inline.run(plan)
    release(inline), release(remote)


@pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
def test_masks_and_drafts_cross_too(inline: Driven, remote: Driven, masked: bool) -> None:
    wanted, _, steps = generate(inline, lambda _row, _found: (), masked)  # type: ignore[arg-type]
    found, _, fewer = generate(remote, lambda row, found: tuple(wanted[row][len(found) :][:3]), masked)  # type: ignore[arg-type]
    assert found == wanted and fewer < steps


def test_a_failed_step_is_told_and_the_process_goes_on(inline: Driven, remote: Driven) -> None:
    with pytest.raises(StepFailed, match=r"step 7: .*beyond the tokens"):
        remote.run(Plan(7, run=(Run(0, 1, True),)))
    release(remote)
    first = plans(SETTINGS)[0]
    assert remote.run(first) == inline.run(first)
    release(inline), release(remote)


def test_what_is_wrong_with_a_model_is_told_as_it_would_be_here(files: ModelFiles) -> None:
    (files.path / "empty").mkdir()
    broken = ModelFiles("empty", files.path / "empty")
    said = []
    for executor in (InlineExecutor(resolved_config(), broken), ProcessExecutor(resolved_config(), broken)):
        with pytest.raises(ModelFileError) as failed:
            executor.start()
        said.append((failed.value.message, failed.value.file))
        executor.shutdown()
    assert said[0] == said[1]


def test_a_process_that_ends_by_itself_is_a_lost_device(files: ModelFiles) -> None:
    executor = ProcessExecutor(resolved_config(), files)
    executor.start()
    assert executor.pid is not None
    os.kill(executor.pid, signal.SIGKILL)
    with pytest.raises(DeviceLost, match=r"ended \(status -9\)"):
        Driven(executor).run(Plan(0))
    executor.shutdown()


def test_plans_are_frozen_and_what_is_decoded_is_what_was_encoded() -> None:
    for plan in plans(SETTINGS):
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan)
        assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(plan)
        for message in (again, *again.run, *again.admit, *again.extend):
            hash(message.run if isinstance(message, Plan) else message.row)
            with pytest.raises(AttributeError):
                setattr(message, message.__struct_fields__[0], 0)
