"""A hub on 127.0.0.1 that speaks as much of the Hugging Face Hub's and ModelScope's HTTP as Octavo uses, and misbehaves
on request. Used by test_hub.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class FakeHub:
    """`repos`: id → path → contents. `cuts`: path → lengths after which the connection is dropped, one per request."""

    repos: dict[str, dict[str, bytes]]
    commit: str = COMMIT
    gated: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)
    ignores_range: bool = False
    corrupts: set[str] = field(default_factory=set)
    failures: list[int] = field(default_factory=list)
    """Statuses that the next file requests get instead of the file."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    redirect_to: str | None = None
    address: str = ""

    def file_requests(self) -> list[tuple[str, dict[str, str]]]:
        return [(path, headers) for path, headers in self.requests if "/resolve/" in path or "FilePath=" in path]


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            url = urlsplit(self.path)
            path, query = unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()}
            if path.startswith("/api/v1/models/"):
                self.modelscope(path.removeprefix("/api/v1/models/"), query)
            elif path.startswith("/api/models/"):
                repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self.huggingface_info(repo, revision)
            elif "/resolve/" in path:
                repo, _, rest = path[1:].partition("/resolve/")
                self.file(repo, rest.partition("/")[2])
            else:
                self.answer(404)

        def answer(self, status: int, body: object = None, **headers: str) -> None:
            data = json.dumps(body).encode() if body is not None else b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def huggingface_info(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if revision not in ("", "main", hub.commit):
                return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            siblings = []
            for name, data in hub.repos[repo].items():
                entry: dict[str, object] = {"rfilename": name, "size": len(data)}
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                if name.endswith((".safetensors", ".gguf")):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
                siblings.append(entry)
            return self.answer(200, {"id": repo, "sha": hub.commit, "siblings": siblings, "tags": [], "private": False})

        def modelscope(self, rest: str, query: dict[str, str]) -> None:
            repo = rest.removesuffix("/files").removesuffix("/repo")
            if repo not in hub.repos or query.get("Revision") not in ("master", "v2"):
                return self.answer(404, {"Code": 10010205001, "Message": "no such model", "Success": False})
            if not rest.endswith("/files"):
                return self.file(repo, query["FilePath"])
            files: list[dict[str, object]] = [{"Path": "onnx", "Name": "onnx", "Type": "tree", "Size": 0}]
            for name, data in hub.repos[repo].items():
                sha256 = hashlib.sha256(data).hexdigest()
                files.append({"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": sha256})
            return self.answer(200, {"Code": 200, "Data": {"Files": files}, "Message": "success", "Success": True})

        def file(self, repo: str, name: str) -> None:
            if hub.failures:
                return self.answer(hub.failures.pop(0))
            if hub.gated:
                return self.answer(401, {"error": "gated"}, X_Error_Code="GatedRepo")
            if hub.redirect_to is not None:
                return self.answer(302, Location=hub.redirect_to + self.path)
            data = hub.repos[repo][name]
            if name in hub.corrupts:
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = 0
            wish = self.headers.get("Range")
            if wish and not hub.ignores_range:
                start = int(wish.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            cuts = hub.cuts.get(name)
            length = cuts.pop(0) if cuts else len(data)
            with suppress(ConnectionError):  # whoever asked has seen enough
                self.wfile.write(data[start : start + length])
            if length < len(data) - start:
                self.close_connection = True
            return None

    return Handler


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
