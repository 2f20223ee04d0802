"""The socket between client and engine: private, typed, never blocking; and the client that lives on it."""

from __future__ import annotations

import asyncio
import os
import pickle
import stat
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from paced import PacedEngine, model_folder

from octavo.client.base import Prompt
from octavo.client.engine import EngineClient
from octavo.errors import ConfigError, OctavoError, Unavailable
from octavo.types import SamplingParams
from octavo.wire import sockets
from octavo.wire.messages import Abort, Hello, Outputs, Ping, Pong, Stats, ToEngine, TokenOutput
from octavo.wire.sockets import MAX_PATH_BYTES, RouterTransport, check_endpoint, private_endpoint


@pytest.fixture
def endpoint() -> Iterator[str]:
    with private_endpoint() as address:
        yield address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path)


def _wait(condition: Any, seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


async def _until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


# -- endpoints


def test_private_folder_is_private_and_removed() -> None:
    with private_endpoint() as address:
        folder = Path(check_endpoint(address)).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        transport = RouterTransport(address)
        assert stat.S_IMODE(Path(check_endpoint(address)).stat().st_mode) & 0o077 == 0
        transport.close()
    assert not folder.exists()


def test_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    with private_endpoint(deep) as address:
        assert len(check_endpoint(address)) <= MAX_PATH_BYTES
        RouterTransport(address).close()


def test_stale_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    stale, foreign = tmp_path / "octavo-stale", tmp_path / "octavo-other"
    for folder in (stale, foreign):
        folder.mkdir()
        os.utime(folder, (1, 1))
    (stale / "lock").touch()
    os.utime(stale, (1, 1))
    with private_endpoint(tmp_path) as first:
        os.utime(Path(check_endpoint(first)).parent, (1, 1))
        with private_endpoint(tmp_path):
            assert Path(check_endpoint(first)).parent.exists()  # its process lives
    assert not stale.exists()
    assert foreign.exists()


@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:1", "ipc://", "ipc://@abstract", "/tmp/x", "ipc://" + "x" * 108])
def test_endpoints_that_cannot_be_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        check_endpoint(wrong)


def test_taken_endpoint_is_not_stolen(endpoint: str) -> None:
    first = RouterTransport(endpoint)
    with pytest.raises(ConfigError, match="another engine listens"):
        RouterTransport(endpoint)
    first.close()
    RouterTransport(endpoint).close()


def test_endpoint_in_no_folder_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen there"):
        RouterTransport("ipc:///nonexistent/folder/engine")


# -- the engine's end


class _Raw:
    """A peer that sends what it likes."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(endpoint)

    def close(self) -> None:
        self.context.destroy(linger=0)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/octavo-was-unpickled",)


def test_junk_is_dropped_and_nothing_is_unpickled(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    transport = RouterTransport(endpoint)
    raw = _Raw(endpoint)
    junk = [
        pickle.dumps(_Bomb()),
        b"",
        b"\xc1",
        b"\x93" * 50_000,
        os.urandom(500),
        msgspec.msgpack.encode(["add", "not an id"]),
        msgspec.msgpack.encode(["nothing", 1]),
        msgspec.msgpack.encode({"type": "hello"}),
        msgspec.msgpack.encode(["add", -1, ["x"], {}, 0]),
    ]
    for payload in junk:
        raw.socket.send(payload)
    raw.socket.send_multipart([b"a", b"b", b"c"])
    raw.socket.send(msgspec.msgpack.encode(Ping()))
    received: list[tuple[bytes, ToEngine]] = []
    _wait(lambda: received.extend(transport.receive(0.05)) or received)
    assert [message for _, message in received] == [Ping()]
    assert "dropped what is no message" in caplog.text
    assert not Path("/tmp/octavo-was-unpickled").exists()
    raw.close()
    transport.close()


def test_other_protocol_version_gets_a_clear_answer(endpoint: str) -> None:
    transport = RouterTransport(endpoint)
    raw = _Raw(endpoint)
    raw.socket.send(msgspec.msgpack.encode(Hello(version=99)))
    assert transport.receive(2.0) == []
    answer = msgspec.msgpack.decode(raw.socket.recv())
    assert answer[0] == "failed"
    assert answer[2] == sockets.VERSION_MISMATCH
    assert "99" in answer[3]
    raw.close()
    transport.close()


def test_wake_ends_the_wait(endpoint: str) -> None:
    transport = RouterTransport(endpoint)
    transport.wake()
    started = time.monotonic()
    assert transport.receive(5.0) == []
    assert time.monotonic() - started < 1.0
    transport.close()


def test_client_that_is_gone_says_bye(endpoint: str) -> None:
    transport = RouterTransport(endpoint)
    raw = _Raw(endpoint)
    raw.socket.send(msgspec.msgpack.encode(Ping()))
    [(client, _)] = transport.receive(2.0)
    raw.close()
    pong = Pong("x", True, Stats())

    def gone() -> bool:
        transport.send(client, pong)
        return any(type(message).__name__ == "Bye" for _, message in transport.receive(0))

    _wait(gone)
    transport.close()


def test_client_that_does_not_read_is_dropped_without_blocking(endpoint: str) -> None:
    transport = RouterTransport(endpoint, queue=10)
    raw = _Raw(endpoint)
    raw.socket.send(msgspec.msgpack.encode(Ping()))
    [(client, _)] = transport.receive(2.0)
    big = Outputs([TokenOutput(1, [1] * 20_000)])
    started = time.monotonic()
    byes = 0
    for _ in range(20_000):
        transport.send(client, big)
        if byes := len(transport.receive(0)):
            break
    assert byes == 1
    assert time.monotonic() - started < 10
    raw.close()
    transport.close()


# -- the client


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
        _wait(lambda: not engine.scheduler.has_requests, 1.0)
        assert engine.scheduler.counters.aborts == 1
        engine.kill()

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
        killed = time.monotonic()
        await _until(lambda: not client.ready)
        assert time.monotonic() - killed < 1.0
        with pytest.raises(Unavailable, match="restarting"):
            await _text(client, "A", 1)
        engine = PacedEngine(endpoint, model)
        assert await asyncio.gather(*tasks) == [_counted(prompt, 60) for prompt in prompts]
        assert client.engine_restarts == 1
        assert engine.scheduler.pool is not None
        await client.close()
        engine.kill()

    _run(work())


def test_client_that_was_silent_brings_everything_back(
    endpoint: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        engine = PacedEngine(endpoint, model, delay=0.01)
        engine.loop._client_timeout = 0.6
        client = EngineClient(endpoint)
        await client.start()
        await _until(lambda: client.ready)
        task = asyncio.create_task(_text(client, "!", 80))
        await asyncio.sleep(0.1)
        time.sleep(1.2)
        assert engine.scheduler.counters.aborts == 1
        assert await task == _counted("!", 80)
        assert client.engine_restarts == 0
        await client.close()
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


def test_abort_of_unknown_ids_is_harmless(endpoint: str, model: Path) -> None:
    engine = PacedEngine(endpoint, model)
    raw = _Raw(endpoint)
    for message in (Hello(), Abort([1, 2, -5]), Ping()):
        raw.socket.send(msgspec.msgpack.encode(message))
    kinds = [msgspec.msgpack.decode(raw.socket.recv())[0] for _ in range(2)]
    assert kinds == ["welcome", "pong"]
    raw.close()
    engine.kill()
