"""Sockets to serve on: TCP at every address of a host, and Unix sockets for this user alone.

TCP sockets are bound before anything loads and handed to each process that serves on them, so a port in use is known at
once; that process listens when it knows that it can serve, and connections made while it is replaced wait in the queue.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octavo.errors import ConfigError

BACKLOG = 2048
PORT_TRIES = 16
"""For --port 0 and a host of several addresses: how many free ports of the first may be taken at another."""
_Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


def listen(host: str, port: int) -> list[socket.socket]:
    """The sockets of `bind`, listening. Raises ConfigError."""
    listeners = bind(host, port)
    begin(listeners)
    return listeners


def begin(listeners: list[socket.socket]) -> None:
    """Listen on bound sockets; again is nothing. Raises ConfigError where another process was faster."""
    for listener in listeners:
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            host, port = listener.getsockname()[:2]
            raise ConfigError(_why_not(host, port, error)) from None


def bind(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of `host` ("" is all of this machine), those of IPv4 first, all with the same
    port; 0 takes a free one. Addresses that a machine names and has not (IPv6 switched off) are left out while there is
    another. Raises ConfigError, also for a port on which somebody listens."""
    addresses = _addresses(host, port)
    for attempt in range(PORT_TRIES):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE or attempt == PORT_TRIES - 1:
                raise ConfigError(_why_not(host, port, error)) from None
    raise AssertionError("the loop returns or raises")


def url(listener: socket.socket, is_tls: bool = False) -> str:
    """Where the socket listens: as a browser takes it, or unix:PATH."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://" + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def is_loopback(listener: socket.socket) -> bool:
    """Whether nobody from elsewhere can reach it."""
    if listener.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def listen_unix(path: str, backlog: int = BACKLOG) -> socket.socket:
    """A listening, non-blocking Unix socket that only this user may use. What a killed process left at the path is
    replaced, what listens there or is no socket is not. Raises OSError; FileExistsError when somebody listens there."""
    if _listens(path):
        raise FileExistsError(errno.EADDRINUSE, "another process listens there", path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    umask = os.umask(0o177)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(Path(path).lstat().st_mode):
                Path(path).unlink()
        listener.bind(path)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


@contextmanager
def at_path(path: str, mode: int) -> Iterator[socket.socket]:
    """A listening Unix socket whose file has the permissions `mode`, and goes when this ends unless another process has
    put its own there. Raises ConfigError that says why there can be none."""
    try:
        listener = listen_unix(path)
        Path(path).chmod(mode)  # from this user's alone upwards: never open to more for a moment
        made = Path(path).stat()
    except FileExistsError:
        raise ConfigError(f"--uds {path}: another process listens there; end it, or choose another path") from None
    except OSError as error:
        is_other = error.errno == errno.EADDRINUSE  # and is no socket, or it had been replaced
        reason = "is there and no socket; it is left as it is" if is_other else error.strerror or str(error)
        raise ConfigError(f"--uds {path}: {reason}; choose a path in a folder where you may write") from None
    try:
        with listener:
            yield listener
    finally:
        with suppress(OSError):
            if os.path.samestat(Path(path).lstat(), made):
                Path(path).unlink()


def _addresses(host: str, port: int) -> list[_Address]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: not an address of this machine; use 127.0.0.1 or 0.0.0.0") from None
    addresses: dict[_Address, None] = {(family, address): None for family, _, _, _, address in found}  # type: ignore[misc]
    return sorted(addresses, key=lambda item: item[0] != socket.AF_INET)


def _bind_all(addresses: list[_Address], port: int) -> list[socket.socket]:
    """Raises OSError when one of the addresses is in use, or none of them can be had."""
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_bound(family, (address[0], port, *address[2:]), alone=len(addresses) == 1))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
                continue
            port = listeners[0].getsockname()[1]
        if not listeners and missing is not None:
            raise missing
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _bound(family: socket.AddressFamily, address: tuple[str | int, ...], alone: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not alone:  # IPv4 has a socket of its own
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs a privilege that this user has not; choose one from 1024 on with --port"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return (
            f"--host {host}: this machine has no such address; use 127.0.0.1 for itself alone, 0.0.0.0 for all that "
            "reach it"
        )
    return f"port {port} on {host} cannot be used: {error.strerror}; choose another --host or --port"


def _listens(path: str) -> bool:
    """Binding anew would silently take the path from a process that already listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:  # too many are knocking
            return True
        except OSError:
            return False
        return True
