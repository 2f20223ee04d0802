"""Just enough HTTP/1.1 for a load generator that costs little beside the server it shares a machine with.

Used by bench/serve.py. One connection per request, whose answer is handed on line by line, in the callback in which
it arrives: no task wakes up for a token. Invariant: `exchange` returns after the whole answer, or raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from octavo.errors import ConfigError

MAX_LINE = 1 << 20


class Server:
    """Where requests go. Raises ConfigError for a URL that is not http(s)."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a URL; write it as http://127.0.0.1:8000")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._netloc = parts.netloc
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._api_key = api_key

    async def exchange(
        self, method: str, path: str, on_line: Callable[[bytes], None], body: dict[str, Any] | None = None
    ) -> None:
        """`on_line`: told each line of the answer's body as it comes, without its end. Raises ConnectionError with the
        server's words on a status that is not 200, what `on_line` raises, OSError, EOFError, ValueError."""
        content = b"" if body is None else json.dumps(body).encode()
        head = [f"{method} {self._base}{path} HTTP/1.1", f"Host: {self._netloc}", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        head += [f"Authorization: Bearer {self._api_key}"] if self._api_key else []
        loop = asyncio.get_running_loop()
        transport, answer = await loop.create_connection(
            lambda: _Answer(on_line, loop.create_future()), self._host, self._port, ssl=True if self._tls else None
        )
        try:
            transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + content)
            await answer.whole
        finally:
            transport.close()


class _Answer(asyncio.Protocol):
    """Reads one answer: head, then a body in chunks, of known length, or until the connection ends."""

    def __init__(self, on_line: Callable[[bytes], None], whole: asyncio.Future[None]) -> None:
        self.whole = whole
        self._on_line = on_line
        self._received = b""
        self._line = b""
        self._status = 0
        self._refusal = b""
        self._chunked = False
        self._left: int | None = None
        """Bytes until the end of the body, or of this chunk and the line end after it; None: not known."""

    def data_received(self, data: bytes) -> None:
        if self.whole.done():
            return
        try:
            self._read(self._received + data if self._received else data)
        except Exception as error:
            self.whole.set_exception(error)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.whole.done():
            return
        if self._status and not self._chunked and self._left is None:
            self._end()
        else:
            self.whole.set_exception(EOFError("the connection ended within the answer"))

    def _read(self, data: bytes) -> None:
        at = 0
        if not self._status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._received = data
                return
            self._read_head(data[:end].decode("latin-1").split("\r\n"))
            at = end + 4
        if self._chunked:
            at = self._read_chunks(data, at)
            self._received = data[at:]
            return
        self._received = b""
        self._body(data[at:])
        if self._left is not None:
            self._left -= len(data) - at
            if self._left <= 0:
                self._end()

    def _read_head(self, head: list[str]) -> None:
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        try:
            self._status = int(head[0].split()[1])
        except (IndexError, ValueError):
            raise ConnectionError(f"not HTTP: {head[0][:80]!r}") from None
        self._chunked = fields.get("transfer-encoding", "").lower() == "chunked"
        if not self._chunked and "content-length" in fields:
            self._left = int(fields["content-length"])

    def _read_chunks(self, data: bytes, at: int) -> int:
        """Hands on the whole chunks; → where the first one begins that has not come whole."""
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end].split(b";")[0], 16)
            begin = line_end + 2
            if len(data) < begin + size + 2:
                break
            at = begin + size + 2
            if not size:
                self._end()
                break
            self._body(data[begin : begin + size])
        return at

    def _body(self, data: bytes) -> None:
        if self._status != 200:
            self._refusal += data
            return
        *whole, self._line = (self._line + data if self._line else data).split(b"\n")
        if len(self._line) > MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        for line in whole:
            if line:
                self._on_line(line.rstrip(b"\r"))

    def _end(self) -> None:
        if self._status != 200:
            text = self._refusal.decode(errors="replace")
            raise ConnectionError(f"HTTP {self._status}: {text[:300].strip()}")
        if self._line:
            self._on_line(self._line)
        if not self.whole.done():
            self.whole.set_result(None)
