"""The socket between client and engine: private, typed, never blocking; and the client that lives on it."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from paced import PacedEngine
from patience import PATIENCE_S

from octavo.errors import ConfigError
from octavo.processes.folder import MARK
from octavo.wire import sockets
from octavo.wire.endpoint import MAX_PATH_BYTES, check_endpoint, private_endpoint
from octavo.wire.messages import VERSION_MISMATCH, Abort, Bye, Hello, Outputs, Ping, Pong, Stats, ToEngine, TokenOutput
from octavo.wire.sockets import SocketTransport


def _wait(condition: Any, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# -- endpoints


def test_private_folder_is_private_and_removed() -> None:
    with private_endpoint() as address:
        folder = Path(check_endpoint(address)).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        transport = SocketTransport(address)
        assert stat.S_IMODE(Path(check_endpoint(address)).stat().st_mode) & 0o077 == 0
        transport.close()
    assert not folder.exists()


def test_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    with private_endpoint(deep) as address:
        assert len(check_endpoint(address)) <= MAX_PATH_BYTES
        SocketTransport(address).close()


@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:1", "ipc://", "ipc://@abstract", "/tmp/x", "ipc://" + "x" * 108])
def test_endpoints_that_cannot_be_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        check_endpoint(wrong)


def test_taken_endpoint_is_not_stolen(endpoint: str) -> None:
    first = SocketTransport(endpoint)
    with pytest.raises(ConfigError, match="another engine listens"):
        SocketTransport(endpoint)
    first.close()
    SocketTransport(endpoint).close()


def test_endpoint_in_no_folder_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="cannot listen there"):
        SocketTransport("ipc:///nonexistent/folder/engine")


# -- the engine's end


class _Raw:
    """A peer that sends what it likes."""

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(check_endpoint(endpoint))

    def send(self, payload: bytes) -> None:
        self.socket.sendall(struct.pack("<I", len(payload)) + payload)

    def receive(self) -> Any:
        (size,) = struct.unpack("<I", self._exactly(4))
        return msgspec.msgpack.decode(self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, "the engine has closed the connection"
            data += part
        return data

    def close(self) -> None:
        self.socket.close()


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/octavo-was-unpickled",)


def test_junk_is_dropped_and_nothing_is_unpickled(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    transport = SocketTransport(endpoint)
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
    received: list[tuple[bytes, ToEngine]] = []
    for payload in junk:
        raw.send(payload)
        received += transport.receive(0.05)
    raw.send(msgspec.msgpack.encode(Ping()))
    _wait(lambda: received.extend(transport.receive(0.05)) or received)
    assert [message for _, message in received] == [Ping()]
    assert "dropped what is no message" in caplog.text
    assert not Path("/tmp/octavo-was-unpickled").exists()
    raw.close()
    transport.close()


def test_messages_may_come_in_pieces_and_many_at_once(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    raw = _Raw(endpoint)
    abort = msgspec.msgpack.encode(Abort(list(range(100))))
    stream = (struct.pack("<I", len(abort)) + abort) * 3
    received: list[tuple[bytes, ToEngine]] = []
    for at in range(0, len(stream), 7):
        raw.socket.sendall(stream[at : at + 7])
        received += transport.receive(0)
    raw.socket.sendall(stream)
    _wait(lambda: received.extend(transport.receive(0.05)) or len(received) == 6)
    assert {message.ids[99] for _, message in received if isinstance(message, Abort)} == {99}
    raw.close()
    transport.close()


def test_a_message_without_end_ends_the_connection(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    raw = _Raw(endpoint)
    raw.socket.sendall(b"\xff" * 100)
    received: list[tuple[bytes, ToEngine]] = []
    _wait(lambda: received.extend(transport.receive(0.05)) or received)
    assert [message for _, message in received] == [Bye()]
    assert raw.socket.recv(10) == b""
    raw.close()
    transport.close()


def test_what_the_kernel_cannot_take_at_once_arrives_in_order(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Ping()))
    client = b""

    def greeted() -> bool:
        nonlocal client
        client = next((key for key, _ in transport.receive(0.05)), b"")
        return bool(client)

    _wait(greeted)
    for id in range(50):
        transport.send(client, Outputs([TokenOutput(id, [id] * 20_000)]))
    ids: list[int] = []
    thread = threading.Thread(target=lambda: ids.extend(raw.receive()[1][0][0] for _ in range(50)))
    thread.start()
    _wait(lambda: transport.receive(0.01) == [] and not thread.is_alive())
    assert ids == list(range(50))
    raw.close()
    transport.close()


def test_other_protocol_version_gets_a_clear_answer(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Hello(version=99)))
    assert transport.receive(2.0) == []
    answer = raw.receive()
    assert answer[0] == "failed"
    assert answer[2] == VERSION_MISMATCH
    assert "99" in answer[3]
    raw.close()
    transport.close()


def test_wake_ends_the_wait(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    transport.wake()
    started = time.monotonic()
    assert transport.receive(PATIENCE_S) == []
    assert time.monotonic() - started < PATIENCE_S / 2
    transport.close()


def test_an_engine_whose_socket_was_cleaned_away_listens_there_again(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LOOK_S", 0.01)
    path = Path(check_endpoint(endpoint))
    transport = SocketTransport(endpoint)
    transport.receive(0)
    path.unlink()
    (path.parent / MARK).unlink()
    path.parent.rmdir()
    _wait(lambda: (transport.receive(None), path.exists())[1])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Ping()))
    _wait(lambda: any(isinstance(message, Ping) for _, message in transport.receive(1.0)))
    raw.close()
    transport.close()
    assert not path.exists()


def test_an_engine_leaves_alone_what_stands_in_its_place(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOK_S", 0.0)
    path = Path(check_endpoint(endpoint))
    transport = SocketTransport(endpoint)
    path.unlink()
    path.write_text("a letter")
    transport.receive(0)
    transport.close()
    assert path.read_text() == "a letter"


def test_client_that_is_gone_says_bye(endpoint: str) -> None:
    transport = SocketTransport(endpoint)
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Ping()))
    [(client, _)] = transport.receive(2.0)
    raw.close()
    pong = Pong("x", Stats())

    def gone() -> bool:
        transport.send(client, pong)
        return any(type(message).__name__ == "Bye" for _, message in transport.receive(0))

    _wait(gone)
    transport.close()


def test_a_client_that_does_not_read_is_behind_and_gets_everything_later(endpoint: str) -> None:
    """What waits for it is merged and bounded; beyond the bound it is behind, and what it says waits as well."""
    transport = SocketTransport(endpoint, hold_bytes=1 << 20)
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Ping()))
    [(client, _)] = transport.receive(2.0)
    sent = 0
    while not transport.behind:
        transport.send(client, Outputs([TokenOutput(1, [sent])]))
        sent += 1
        assert sent < 1_000_000
    raw.send(msgspec.msgpack.encode(Ping()))
    assert transport.receive(0.1) == [] and transport.behind == {client}
    received: list[int] = []
    sizes: list[int] = []

    def read() -> None:
        while len(received) < sent:
            [_, [[_, ids, *_rest]]] = raw.receive()
            received.extend(ids)
            sizes.append(len(ids))

    thread = threading.Thread(target=read)
    thread.start()
    found: list[tuple[bytes, ToEngine]] = []
    _wait(lambda: found.extend(transport.receive(0.01)) or not thread.is_alive())
    assert received == list(range(sent)) and max(sizes) > 100
    assert not transport.behind
    _wait(lambda: found.extend(transport.receive(0.01)) or found)
    assert found == [(client, Ping())]
    raw.close()
    transport.close()


def test_a_client_that_ends_while_it_is_behind_is_gone(endpoint: str) -> None:
    transport = SocketTransport(endpoint, hold_bytes=1 << 20)
    raw = _Raw(endpoint)
    raw.send(msgspec.msgpack.encode(Ping()))
    [(client, _)] = transport.receive(2.0)
    for id in range(2000):
        transport.send(client, Outputs([TokenOutput(id, [1] * 1000)]))
    assert transport.behind == {client}
    raw.close()
    found: list[tuple[bytes, ToEngine]] = []
    _wait(lambda: found.extend(transport.receive(0.05)) or found)
    assert found == [(client, Bye())] and not transport.behind
    transport.send(client, Outputs([TokenOutput(1, [1])]))
    transport.close()


def test_abort_of_unknown_ids_is_harmless(endpoint: str, model: Path) -> None:
    engine = PacedEngine(endpoint, model)
    raw = _Raw(endpoint)
    for message in (Hello(), Abort([1, 2, -5]), Ping()):
        raw.send(msgspec.msgpack.encode(message))
    kinds = [raw.receive()[0] for _ in range(2)]
    assert kinds == ["welcome", "pong"]
    raw.close()
    engine.kill()
