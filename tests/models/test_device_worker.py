"""The worker on a device that runs behind the host: the same tokens as on the CPU, with a plan always in flight, by
graphs and without, and rows on the device equal to those on the host."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
import torch
from fake_device import FakeDevice
from tiny_models import BLOCK_SIZE, make_reference, resolved_config, save_safetensors

from octavo.errors import DeviceLost
from octavo.modelfiles.files import ModelFiles
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Extend, Plan, Result, Run
from octavo.worker import profile
from octavo.worker.worker import Worker

PROMPTS = ([5, 80, 3, 17, 99, 120, 44, 8, 8, 61, 140, 2], [7, 9, 30], [1] * 9, [150, 2, 77, 12, 5])
SETTINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=20),
    SamplingParams(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.4),
    SamplingParams(temperature=0.7, logprobs=3, logit_bias={3: 2.0, 40: -5.0}),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


def started(files: ModelFiles, device: FakeDevice | None, backend: str = "reference", **changes: Any) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", backend)
        worker = Worker(resolved_config(**changes), files, device)
        worker.start()
    return worker


def admit(row: int, prompt: list[int], params: SamplingParams, pages: list[int]) -> Admit:
    return Admit(row, prompt, len(prompt), 0, (pages,), params, 11 * row, [2], [])


def plans(params: tuple[SamplingParams, ...], steps: int = 14) -> list[Plan]:
    """Rows come one after the other, each with its prompt in two parts, decode together, and one leaves for another."""
    page = iter(range(100))
    made, held, lengths, running = [], dict[int, int](), dict[int, int](), list[int]()
    waiting = deque(range(len(PROMPTS)))
    rest: dict[int, int] = {}
    for index in range(steps):
        extend, runs, admits = list[Extend](), list[Run](), list[Admit]()
        for row in running:
            if lengths[row] == held[row] * BLOCK_SIZE:
                extend.append(Extend(row, ((next(page),),)))
                held[row] += 1
            runs.append(Run(row, 1, True))
            lengths[row] += 1
        for row, count in list(rest.items()):
            runs.append(Run(row, count, True))
            lengths[row] += count
            running.append(row)
            del rest[row]
        if waiting and index % 3 == 0:
            row = waiting.popleft()
            prompt = PROMPTS[row]
            held[row] = -(-len(prompt) // BLOCK_SIZE)
            admits.append(admit(row, prompt, params[row], [next(page) for _ in range(held[row])]))
            runs.append(Run(row, 2, False))
            lengths[row], rest[row] = 2, len(prompt) - 2
        made.append(Plan(index, admit=tuple(admits), extend=tuple(extend), run=tuple(runs)))
    return made


def overlapped(worker: Worker, made: list[Plan]) -> list[Result]:
    """Each plan is launched before the result of the one before is read."""
    found, in_flight = [], 0
    for plan in made:
        worker.launch(plan)
        in_flight += 1
        if in_flight == 2:
            found.append(worker.collect())
            in_flight -= 1
    return found + [worker.collect() for _ in range(in_flight)]


def same(found: list[Result], wanted: list[Result]) -> None:
    assert [result.token_ids for result in found] == [result.token_ids for result in wanted]
    for one, other in zip(found, wanted, strict=True):
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert (mine is None) == (theirs is None)
            for entry, same in zip(mine or (), theirs or (), strict=True):
                assert entry.logprob == pytest.approx(same.logprob, abs=1e-4)


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("settings", [SETTINGS[:1] * 4, SETTINGS[:2] * 2, SETTINGS], ids=["greedy", "plain", "all"])
def test_same_tokens_as_on_the_cpu(files: ModelFiles, settings: tuple[SamplingParams, ...], eager: bool) -> None:
    cpu = started(files, None)
    wanted = [cpu.run(plan) for plan in plans(settings)]
    device = FakeDevice(pick=random.Random(3))
    worker = started(files, device, enforce_eager=eager)
    before = device.num_replays
    same(overlapped(worker, plans(settings)), wanted)
    assert (device.num_replays == before) == eager


def test_a_decode_step_needs_nothing_from_the_host(files: ModelFiles) -> None:
    """From the second step of the same rows on: nothing is sent, and nothing waited for."""
    device = FakeDevice()
    worker = started(files, device)
    for row, prompt in enumerate(PROMPTS):
        worker.run(Plan(row, admit=[admit(row, prompt, SETTINGS[0], [2 * row, 2 * row + 1, 20 + row])],
                        run=[Run(row, len(prompt), True)]))  # fmt: skip
    runs = [Run(row, 1, True) for row in range(len(PROMPTS))]
    worker.launch(Plan(10, run=runs))
    pending, replays = device.pending, device.num_replays
    worker.launch(Plan(11, run=runs))
    assert device.num_replays == replays + 2
    assert device.pending == pending + 3, "two replays and a copy back wait behind those of the step before"
    worker.collect(), worker.collect()


def test_rows_on_the_device_are_those_on_the_host(files: ModelFiles) -> None:
    device = FakeDevice()
    worker = started(files, device)
    for plan in plans(SETTINGS):
        worker.run(plan)
    parts = worker._runner._steps._parts  # type: ignore[union-attr]
    batch = worker._runner._batch  # type: ignore[union-attr]
    device.synchronize()
    for row in range(len(PROMPTS)):
        blocks = batch.num_blocks[row]
        assert parts.state.num_computed[row] == batch.num_computed[row]
        assert parts.state.block_tables[0, row, :blocks].tolist() == batch.block_tables[0, row, :blocks].tolist()
    assert not parts.state.num_computed[-1] and not parts.state.last_token[-1]


def test_a_plan_that_fails_takes_only_its_own_rows_with_it(files: ModelFiles) -> None:
    cpu, device = started(files, None), FakeDevice()
    worker = started(files, device)
    first = [Plan(0, admit=[admit(0, PROMPTS[0], SETTINGS[0], [0, 1])], run=[Run(0, 12, True)])]
    wanted = [cpu.run(plan) for plan in first]
    found = overlapped(worker, first)
    device.fail_launch()
    with pytest.raises(torch.OutOfMemoryError):
        worker.launch(Plan(1, run=[Run(0, 1, True)]))
    # The next one was made before anybody knew; its other row comes to no harm.
    second = Plan(2, admit=[admit(1, PROMPTS[1], SETTINGS[0], [4])], run=[Run(0, 1, True), Run(1, 3, True)])
    worker.launch(second)
    result = worker.collect()
    wanted.append(cpu.run(Plan(2, admit=second.admit, run=second.run[1:])))
    assert found[0].token_ids == wanted[0].token_ids
    assert result.token_ids[1:] == wanted[1].token_ids
    again = Plan(3, release=[0], admit=[admit(0, PROMPTS[0], SETTINGS[0], [0, 1])], run=[Run(0, 12, True)])
    worker.launch(again)
    assert worker.collect().token_ids == wanted[0].token_ids


def test_a_lost_device_is_told_from_a_failed_step(files: ModelFiles) -> None:
    device = FakeDevice()
    worker = started(files, device)
    worker.launch(Plan(0, admit=[admit(0, PROMPTS[0], SETTINGS[0], [0, 1])], run=[Run(0, 12, True)]))
    assert not worker.is_lost
    device.lose()
    with pytest.raises(DeviceLost):
        worker.collect()
    assert worker.is_lost


def test_with_the_kernels_of_a_gpu(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted; the CPU's tokens are those of the reference."""
    monkeypatch.setattr(profile, "measure_on", lambda *_: 0)  # interpreted it takes 20 s
    cpu, made = started(files, None), plans(SETTINGS, 5)
    wanted = [cpu.run(plan) for plan in made]
    small = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 48}
    device = FakeDevice()
    same(overlapped(started(files, device, "triton", **small), made), wanted)
    assert device.num_replays
