"""Frames and listening sockets: what every process speaks through."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo.processes import listen as module
from octavo.processes.frames import BrokenStream, frame, receive, send, take
from octavo.processes.listen import at_path, is_loopback, listen, listen_unix, url

BOTH = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
"""What a system with "::1 localhost" in /etc/hosts says of localhost."""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_frames() -> None:
    inbox = bytearray(frame(b"one") + frame(b"") + frame(b"three")[:-1])
    assert list(take(inbox, 8)) == [b"one", b""]
    inbox += b"e"
    assert list(take(inbox, 8)) == [b"three"] and not inbox
    with pytest.raises(BrokenStream, match="announced 9 bytes"):
        list(take(bytearray(frame(bytes(9))), 8))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            send(theirs, b"x" * 100_000)
            assert receive(ours) == b"x" * 100_000
        with pytest.raises(EOFError):
            receive(ours)


def test_listening_socket() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with listener:
        assert url(listener).startswith("http://127.0.0.1:")
        assert is_loopback(listener)
        with pytest.raises(ConfigError, match="is in use; choose another with --port"):
            listen("127.0.0.1", listener.getsockname()[1])
    (listener,) = listen("0.0.0.0", 0)
    with listener:
        assert not is_loopback(listener)


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "nowhere.invalid", "a..b"])
def test_a_wrong_host_is_not_blamed_on_the_port(host: str) -> None:
    with pytest.raises(ConfigError, match=f"--host {host}: .*127.0.0.1") as caught:
        listen(host, 8000)
    assert "--port" not in caught.value.message


def test_a_port_that_needs_a_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> socket.socket:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "_bound", refused)
    with pytest.raises(ConfigError, match=r"port 80 on 127\.0\.0\.1 needs a privilege .* from 1024 on with --port"):
        listen("127.0.0.1", 80)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_name_of_two_addresses_is_served_at_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)
    listeners = listen("localhost", 0)
    try:
        assert [listener.family for listener in listeners] == [socket.AF_INET, socket.AF_INET6]
        port = listeners[0].getsockname()[1]
        assert [url(listener) for listener in listeners] == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
        for listener in listeners:
            assert is_loopback(listener)
            with socket.socket(listener.family) as client:
                client.connect(listener.getsockname())
        with pytest.raises(ConfigError, match="in use"):
            listen("localhost", port)
    finally:
        for listener in listeners:
            listener.close()


def test_an_address_that_the_machine_only_names_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = module._bound

    def without_ipv6(family: socket.AddressFamily, *args: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return bound(family, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: BOTH)
    monkeypatch.setattr(module, "_bound", without_ipv6)
    (listener,) = listen("localhost", 0)
    with listener:
        assert url(listener).startswith("http://127.0.0.1:")


def test_unix_sockets_replace_what_was_left_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a path may have 107 bytes
    with listen_unix("s"):
        assert Path("s").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError):
            listen_unix("s")
    listen_unix("s").close()
    Path("s").unlink()
    Path("s").write_text("a letter")
    with pytest.raises(OSError, match="in use"):
        listen_unix("s")
    assert Path("s").read_text() == "a letter"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_for_clients_has_its_permissions_and_goes_with_its_owner(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "octavo.sock"
    for _ in range(2):
        with at_path(str(path), mode) as listener:
            assert path.stat().st_mode & 0o777 == mode and is_loopback(listener) and url(listener) == f"unix:{path}"
            with pytest.raises(ConfigError, match="another process listens there"), at_path(str(path), mode):
                pass
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()
    killed = listen_unix(str(path))  # its process was killed, and left the file
    killed.close()
    with at_path(str(path), mode):
        path.unlink()
        path.write_text("somebody else's by now")
    assert path.read_text() == "somebody else's by now"


@pytest.mark.parametrize(
    "name,reason",
    [
        ("file", "is there and no socket"),
        ("nowhere/x", "No such file"),
        ("x" * 120, "too long"),
        ("folder", "no socket"),
    ],
)
def test_where_no_socket_can_be_is_said_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=reason), at_path(str(tmp_path / name), 0o600):
        pass
    assert (tmp_path / "file").read_text() == "kept"
