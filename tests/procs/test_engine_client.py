"""EngineClient on a real socket: attached, lost, forgotten, replaced, and what becomes of its requests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from paced import PacedEngine, model_folder
from patience import PATIENCE_S
from served import wait_until

from octavo.client.base import Prompt
from octavo.client.engine import EngineClient
from octavo.client.model import ClientModel
from octavo.client.prepare import Seeds
from octavo.errors import EngineError, OctavoError, Unavailable
from octavo.modelfiles.files import ModelFiles
from octavo.types import SamplingParams
from octavo.wire.messages import Hello


async def _until(condition: Any, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_S))


async def _ids(client: EngineClient, first: int, count: int) -> list[int]:
    generation = await client.generate(Prompt(token_ids=[first]), SamplingParams(temperature=0, max_tokens=count))
    return [id async for delta in generation for id in delta.token_ids]


async def _text(client: EngineClient, prompt: str, max_tokens: int) -> str:
    generation = await client.generate(
        Prompt(token_ids=list(prompt.encode())), SamplingParams(temperature=0, max_tokens=max_tokens)
    )
    return "".join([delta.text async for delta in generation])


def _counted(prompt: str, max_tokens: int) -> str:
    last = prompt.encode()[-1]
    return bytes((last + 1 + i) % 256 for i in range(max_tokens)).decode()


def test_answers_and_leaves_in_order(endpoint: str, model: Path) -> None:
    async def work() -> None:
        client = EngineClient(endpoint)
        await client.start()
        assert not client.ready
        with pytest.raises(Unavailable):
            await _text(client, "A", 5)
        engine = PacedEngine(endpoint, model)
        await _until(lambda: client.ready)
        assert client.info is not None
        assert client.info.model == "counting"
        texts = await asyncio.gather(*[_text(client, "A" + "xyz"[i % 3], 4) for i in range(12)])
        assert texts == [_counted("A" + "xyz"[i % 3], 4) for i in range(12)]
        generation = await client.generate(Prompt(token_ids=[1]), SamplingParams(temperature=0, max_tokens=900))
        await anext(aiter(generation))
        await client.close()
        wait_until(lambda: not engine.scheduler.has_requests, "the abort")
        assert engine.scheduler.counters.aborts == 1
        engine.kill()

    _run(work())


@pytest.mark.parametrize(("expected", "loads"), [("right", 1), ("another", 2)])
def test_the_expected_model_is_loaded_before_the_engine_is_there(
    endpoint: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str, loads: int
) -> None:
    loaded: list[str] = []
    real = ClientModel.load
    monkeypatch.setattr(ClientModel, "load", lambda files: (real(files), loaded.append(str(files.path)))[0])
    other = tmp_path / "other"
    other.mkdir()
    folder = model if expected == "right" else model_folder(other)

    async def work() -> None:
        client = EngineClient(endpoint, model=ModelFiles("counting", folder))
        await client.start()
        await _until(lambda: len(loaded) == 1)
        engine = PacedEngine(endpoint, model)
        await _until(lambda: client.ready)
        assert len(loaded) == loads and loaded[-1] == str(model)
        assert await _text(client, "A", 4) == _counted("A", 4)
        await client.close()
        engine.kill()

    _run(work())


def test_requests_without_a_seed_take_the_engines(endpoint: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same engine seed gives the same series of seeds, whichever server asks."""

    async def seeds_sent(engine: PacedEngine) -> list[int]:
        sent: list[int] = []
        add = engine.scheduler.add
        monkeypatch.setattr(engine.scheduler, "add", lambda c, a, now: (sent.append(a.seed), add(c, a, now))[1])
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        for _ in range(3):
            await _text(client, "A", 2)
        await client.close()
        return sent

    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        first, second = await seeds_sent(engine), await seeds_sent(engine)
        engine.kill()
        expected = Seeds(11)
        assert first[:3] == second == [expected.next() for _ in range(3)]
        assert len(set(second)) == 3

    _run(work())


def test_streams_go_on_when_the_engine_is_killed(endpoint: str, model: Path) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        prompts = [chr(33 + i) for i in range(6)]
        tasks = [asyncio.create_task(_text(client, prompt, 60)) for prompt in prompts]
        await _until(lambda: engine.scheduler.counters.generated_tokens > 60)
        await asyncio.to_thread(engine.kill)
        await _until(lambda: not client.ready)
        with pytest.raises(Unavailable, match="restarting"):
            await _text(client, "A", 1)
        engine = PacedEngine(endpoint, model)
        assert await asyncio.gather(*tasks) == [_counted(prompt, 60) for prompt in prompts]
        assert client.engine_restarts == 1
        assert engine.scheduler.tables is not None
        await client.close()
        engine.kill()

    _run(work())


def test_a_client_that_stood_still_loses_nothing(endpoint: str, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its connection stands: nothing is aborted or computed again, and the next request is taken."""

    async def work() -> None:
        engine = PacedEngine(endpoint, model, delay=0.01)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_ids(client, 0, 300))
        await asyncio.sleep(0.1)
        time.sleep(3.0)
        assert await task == [i % 256 for i in range(1, 301)]
        assert client.ready and await _text(client, "A", 5) == _counted("A", 5)
        counters = engine.scheduler.counters
        assert (counters.aborts, counters.prompt_tokens, client.engine_restarts) == (0, 2, 0)
        await client.close()
        engine.kill()

    caplog.set_level(logging.INFO)
    _run(work())
    assert "this process stood still for" in caplog.text


def test_an_engine_that_stands_still_is_told_of_and_kept(
    endpoint: str, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model, delay=0.01)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_text(client, "!", 60))
        await _until(lambda: engine.scheduler.counters.generated_tokens > 3)
        engine.executor.delay = 3.0
        await _until(lambda: "does not answer" in caplog.text)
        engine.executor.delay = 0.0
        assert client.ready
        texts = await asyncio.gather(task, _text(client, "A", 5))
        assert texts == [_counted("!", 60), _counted("A", 5)]
        await _until(lambda: "answers again" in caplog.text)
        assert (engine.scheduler.counters.prompt_tokens, client.engine_restarts) == (2, 0)
        await client.close()
        engine.kill()

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("octavo.client.connection.QUIET_S", 1.0)
    _run(work())


def test_requests_of_a_client_that_is_behind_pause_and_go_on(endpoint: str, model: Path) -> None:
    """What the engine holds for it is bounded; others go on meanwhile, and then it gets the rest."""

    async def work() -> None:
        engine = PacedEngine(endpoint, model, delay=0.0, hold_bytes=8 << 10)
        slow, other = EngineClient(endpoint), EngineClient(endpoint)
        for client in (slow, other):
            await client.start()
        await _until(lambda: slow.ready and other.ready)
        tasks = [asyncio.create_task(_ids(slow, i, 900)) for i in range(12)]
        await _until(lambda: engine.scheduler.num_running == 8)
        end = time.monotonic() + PATIENCE_S
        while not engine.scheduler.holding.behind and time.monotonic() < end:  # the kernel's buffers take some of it
            time.sleep(0.01)
        assert engine.scheduler.holding.behind and engine.scheduler.num_running == 0
        assert await _text(other, "A", 50) == _counted("A", 50)
        assert await asyncio.gather(*tasks) == [[(i + 1 + n) % 256 for n in range(900)] for i in range(12)]
        assert engine.scheduler.counters.aborts == 0
        for client in (slow, other):
            await client.close()
        wait_until(lambda: not engine.scheduler.has_requests, "the end")
        engine.scheduler.check()
        engine.kill()

    _run(work())


def test_draining_engine_finishes_and_refuses(endpoint: str, model: Path) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_text(client, "!", 50))
        await _until(lambda: engine.scheduler.has_requests)
        drained = asyncio.create_task(asyncio.to_thread(engine.drain))
        await _until(lambda: not client.ready)
        with pytest.raises(Unavailable, match="shutting down"):
            await _text(client, "A", 1)
        assert await task == _counted("!", 50)
        await drained
        await client.close()

    _run(work())


def test_several_clients_share_an_engine(endpoint: str, model: Path) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        clients = [EngineClient(endpoint) for _ in range(3)]
        for client in clients:
            await client.start()
        await _until(lambda: all(client.ready for client in clients))
        texts = await asyncio.gather(*[_text(client, "#", 20) for client in clients])
        assert texts == [_counted("#", 20)] * 3
        for client in clients:
            await client.close()
        engine.kill()

    _run(work())


def test_model_without_tokenizer_is_fatal(endpoint: str, tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "config.json").write_text("{}")
        engine = PacedEngine(endpoint, tmp_path)
        errors: list[OctavoError] = []
        client = EngineClient(endpoint, on_fatal=errors.append)
        await client.start()
        await _until(lambda: errors)
        assert errors[0].exit_code == 3
        assert not client.ready
        await client.close()
        engine.kill()

    _run(work())


def test_slow_reader_costs_one_merged_delta(endpoint: str, model: Path) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model, delay=0.0)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        generation = await client.generate(Prompt(token_ids=[32]), SamplingParams(temperature=0, max_tokens=90))
        await _until(lambda: client.num_in_flight == 0)
        deltas = [delta async for delta in generation]
        assert len(deltas) == 1
        assert deltas[0].text == _counted(" ", 90)
        assert deltas[0].finish_reason == "length"
        assert generation.metrics.completion_tokens == 90
        await client.close()
        engine.kill()

    _run(work())


def test_engine_of_another_protocol_is_fatal(endpoint: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        errors: list[OctavoError] = []
        client = EngineClient(endpoint, on_fatal=errors.append)
        await client.start()
        await _until(lambda: errors)
        assert errors[0].exit_code == 2
        assert "protocol" in errors[0].message
        assert not client.ready
        await client.close()
        engine.kill()

    monkeypatch.setattr("octavo.client.connection.Hello", lambda: Hello(version=99))
    _run(work())


def test_engine_that_does_not_come_back_ends_the_wait(
    endpoint: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_text(client, "!", 200))
        await _until(lambda: engine.scheduler.counters.generated_tokens > 3)
        await asyncio.to_thread(engine.kill)
        with pytest.raises(EngineError, match="did not come back"):
            await task
        await client.close()

    monkeypatch.setattr("octavo.client.connection.HOLD_S", 0.2)
    _run(work())


def test_engine_with_another_model_fails_what_waits(endpoint: str, model: Path, tmp_path: Path) -> None:
    async def work() -> None:
        (tmp_path / "other").mkdir()
        engine = PacedEngine(endpoint, model)
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_text(client, "!", 200))
        await _until(lambda: engine.scheduler.counters.generated_tokens > 3)
        await asyncio.to_thread(engine.kill)
        engine = PacedEngine(endpoint, model_folder(tmp_path / "other"))
        with pytest.raises(EngineError, match="another model"):
            await task
        await _until(lambda: client.ready)
        assert await _text(client, "!", 5) == _counted("!", 5)
        await client.close()
        engine.kill()

    _run(work())
