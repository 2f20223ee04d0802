"""The one TCP socket: bound by the supervisor before anything loads, handed to each server it starts.

So a port in use is known at once, and connections made while a server is restarted wait in the queue.
"""

from __future__ import annotations

import ipaddress
import socket

from octavo.errors import ConfigError

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: not an address of this machine; use 127.0.0.1 or 0.0.0.0") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = "is in use" if error.errno in (48, 98) else f"cannot be used: {error.strerror}"
        raise ConfigError(f"port {port} on {host} {reason}; choose another with --port") from None
    return listener


def url(listener: socket.socket, is_tls: bool = False) -> str:
    """Where the socket listens, as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if is_tls else 'http'}://" + (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
