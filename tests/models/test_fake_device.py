"""The fake device catches what it is to catch."""

from __future__ import annotations

import random

import pytest
import torch
from fake_device import FakeDevice

from octavo.errors import DeviceLost


def test_nothing_is_known_before_an_event_behind_it_is_waited_for() -> None:
    device = FakeDevice()
    source, result = device.host_buffer(3, torch.int64), device.host_buffer(3, torch.int64)
    memory, again = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    source.copy_(torch.tensor([1, 2, 3]))
    device.upload(source, memory)
    assert memory.tolist() == [0, 0, 0] and device.pending == 1
    device.launch(lambda: memory.mul_(2))
    device.download(memory, result)
    early = device.event()
    device.launch(lambda: again.copy_(memory))
    late = device.event()
    assert memory.tolist() == [2, 4, 6] == again.tolist() and device.pending == 0
    assert result[0] not in (0, 2), "there, but the host cannot know"
    early.wait()
    assert result.tolist() == [2, 4, 6]
    late.wait()
    early.wait()


def test_copies_within_a_launch_keep_their_order() -> None:
    device = FakeDevice()
    source, result = device.host_buffer(1, torch.int64), device.host_buffer(1, torch.int64)
    memory = torch.zeros(1, dtype=torch.int64)
    source.fill_(4)

    def work() -> int:
        device.upload(source, memory)
        memory.add_(1)
        device.download(memory, result)
        return 7

    assert device.launch(work) == 7
    assert memory.item() == 5 != result.item()
    device.event().wait()
    assert result.item() == 5


def test_a_buffer_rewritten_in_flight() -> None:
    device = FakeDevice()
    source, memory = device.host_buffer(2, torch.float32), torch.zeros(2)
    source.fill_(float("nan"))
    device.upload(source, memory)
    device.event().wait()
    source.fill_(1.0)
    device.upload(source[:1], memory[:1])
    device.launch(lambda: None)
    source.fill_(2.0)
    with pytest.raises(AssertionError, match=r"host buffer 0 \(\[2\] torch.float32\) was rewritten"):
        device.event().wait()


def test_a_buffer_filled_twice_in_flight() -> None:
    device = FakeDevice()
    target, memory = device.host_buffer(4, torch.int32), torch.arange(4, dtype=torch.int32)
    device.download(memory[:2], target[:2])
    device.download(memory[2:], target[2:])
    with pytest.raises(AssertionError, match="while another one fills it"):
        device.download(memory[:1], target[1:2])
    device.event().wait()
    assert target.tolist() == [0, 1, 2, 3]
    device.download(memory, target)
    assert target[0] != 0, "what was there is gone"


def test_copies_want_host_buffers() -> None:
    device = FakeDevice()
    with pytest.raises(AssertionError, match="needs a buffer of host_buffer"):
        device.upload(torch.zeros(2), torch.zeros(2))
    with pytest.raises(AssertionError, match="needs a buffer of host_buffer"):
        device.download(torch.zeros(2), torch.zeros(2))


def test_graphs_read_their_buffers_when_they_run() -> None:
    device = FakeDevice(total=100, free=90)
    device.graph_bytes = 10
    inputs, outputs = torch.tensor([1]), torch.tensor([0])
    device.launch(lambda: inputs.add_(1))
    graph = device.capture(lambda: outputs.copy_(inputs * 10), device.graph_pool())
    assert outputs.item() == 20 and device.free == 80
    graph.replay()
    device.launch(lambda: inputs.fill_(7))
    graph.replay()
    assert outputs.item() == 20
    device.synchronize()
    assert outputs.item() == 70 and device.num_replays == 2


def test_memory_and_peak_run_what_is_pending() -> None:
    device = FakeDevice(total=100, free=60)
    device.peak_bytes = 5
    done: list[int] = []
    device.launch(lambda: done.append(1))
    assert (device.memory().total, device.memory().free, done) == (100, 60, [1])
    device.launch(lambda: done.append(2))
    assert device.peak(lambda: device.launch(lambda: done.append(3))) == 5 and done == [1, 2, 3]


def test_out_of_memory_once_and_lost_for_good() -> None:
    device = FakeDevice()
    done: list[int] = []
    device.fail_launch(after=1)
    device.launch(lambda: done.append(1))
    with pytest.raises(torch.OutOfMemoryError):
        device.launch(lambda: done.append(2))
    graph = device.capture(lambda: done.append(3), device.graph_pool())
    event = device.event()
    device.lose(after=1)
    device.launch(lambda: done.append(4))
    graph.replay()
    event.wait()
    assert not device.is_lost()
    with pytest.raises(DeviceLost, match="the GPU failed"):
        device.event().wait()
    assert done == [1, 3, 4] and device.is_lost()
    with pytest.raises(RuntimeError, match="CUDA error"):
        device.launch(lambda: None)
    with pytest.raises(DeviceLost):
        event.wait()


def test_work_that_runs_early_by_chance_keeps_its_order() -> None:
    device = FakeDevice(pick=random.Random(3))
    done: list[int] = []
    graphs = [device.capture(lambda n=n: done.append(n), device.graph_pool()) for n in range(50)]  # type: ignore[misc]
    done.clear()
    early = 0
    for number, graph in enumerate(graphs):
        graph.replay()
        early += bool(done) and len(done) <= number
    device.event().wait()
    assert done == list(range(50)) and early > 5
