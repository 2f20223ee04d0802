"""A served Octavo behind TLS and API keys: the whole command, from outside."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import openai
import pytest
from patience import PATIENCE_S
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model

from octavo.config import ServerConfig
from octavo.config.tls import tls_context
from octavo.errors import ConfigError

KEY, FILED = "sk-on-the-command-line-1234", "sk-in-the-file-5678"
NEEDS_OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


def make_certificate(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *(more or ("-nodes",))], check=True, capture_output=True)
    return certificate, key


@NEEDS_OPENSSL
def test_serving_with_keys_over_tls(tmp_path: Path) -> None:
    """T-KEY on the real thing: keys in no log, title or environment; a restarted server is closed as before."""
    certificate, key = make_certificate(tmp_path, "server")
    keys = tmp_path / "keys"
    keys.write_text(f"# one a line\n{FILED}\n")
    keys.chmod(0o600)
    octavo = Octavo(
        tmp_path, "serve", str(write_tiny_model(tmp_path / "tiny")), "--port", "0", *OPTIONS,
        "--api-key-file", str(keys), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key),
        "--log-level", "debug", OCTAVO_API_KEY=KEY,
    )  # fmt: skip
    try:
        found = wait_until(lambda: re.search(r"ready after .*: (https://127\.0\.0\.1:\d+)", octavo.output), "ready")
        _check(found[1], certificate)
        server = octavo.child("octavo-server")
        server.kill()
        wait_until(lambda: octavo.child("octavo-server").pid != server.pid, "another server")
        _check(found[1], certificate)
        shown = octavo.output + " ".join(octavo.ps.cmdline())
        for child in octavo.children().values():
            shown += " ".join(child.cmdline()) + str(child.environ())
        assert KEY not in shown and FILED not in shown
        assert f"listening on {found[1]}" in octavo.output and "anyone who reaches" not in octavo.output
        octavo.signal(signal.SIGTERM)
        assert octavo.ended() == 0
    finally:
        octavo.close()


def _check(url: str, certificate: Path) -> None:
    """Only the probes and the static pages answer without a key; the official client works with each."""
    context = ssl.create_default_context(cafile=str(certificate))

    def ask(path: str, given: str | None) -> int:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", int(url.rpartition(":")[2]), context=context, timeout=PATIENCE_S
        )
        try:
            connection.request("GET", path, headers={} if given is None else {"authorization": f"Bearer {given}"})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    wait_until(lambda: ask("/ready", KEY) == 200, "the model")
    for path in ("/health", "/live", "/ready", "/docs", "/openapi.json"):
        assert ask(path, None) == 200
    for path in ("/metrics", "/v1/models", "/nowhere"):
        assert ask(path, None) == 401 and ask(path, "wrong") == 401
    for given in (KEY, FILED):
        with (
            openai.DefaultHttpxClient(verify=context) as transport,
            openai.OpenAI(base_url=url + "/v1", api_key=given, http_client=transport, max_retries=0) as client,
        ):
            model = client.models.list().data[0].id
            stream = client.completions.create(model=model, prompt="abc", max_tokens=4, stream=True)
            assert list(stream)[-1].choices[0].finish_reason in ("length", "stop")
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE_S) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" not in sock.recv(4096)  # plain http is not spoken


def test_open_to_the_world_is_said_in_one_line(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "tiny"))
    for more, is_said in (((), True), (("--api-key", KEY), False)):
        octavo = Octavo(tmp_path, "serve", model, "--host", "0.0.0.0", "--port", "0", *OPTIONS, *more)
        try:
            wait_until(lambda: "listening on" in octavo.output, "the server", 60)  # noqa: B023
            assert octavo.output.count("anyone who reaches http://0.0.0.0:") == is_said, octavo.output
            assert KEY not in octavo.output + " ".join(octavo.ps.cmdline())
        finally:
            octavo.close()


@NEEDS_OPENSSL
def test_certificates_that_are_wrong_start_nothing(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    other, other_key = make_certificate(tmp_path, "two")
    _, encrypted = make_certificate(tmp_path, "three", "-passout", "pass:secret")
    text = tmp_path / "text"
    text.write_text("no certificate")

    def refusal(**options: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            tls_context(ServerConfig(**{name: str(path) for name, path in options.items()}))  # type: ignore[arg-type]
        return caught.value.message

    assert "not the key of the certificate" in refusal(ssl_certfile=certificate, ssl_keyfile=other_key)
    assert "--ssl-keyfile" in refusal(ssl_certfile=certificate)
    assert "needs --ssl-certfile" in refusal(ssl_keyfile=key)
    assert "needs --ssl-certfile" in refusal(ssl_ca_certs=certificate)
    assert "No such file" in refusal(ssl_certfile=tmp_path / "none")
    assert "No such file" in refusal(ssl_certfile=certificate, ssl_keyfile=tmp_path / "none")
    assert "PEM form" in refusal(ssl_certfile=text, ssl_keyfile=key)
    assert "PEM form" in refusal(ssl_certfile=certificate, ssl_keyfile=text)
    assert "encrypted" in refusal(ssl_certfile=certificate, ssl_keyfile=encrypted)
    assert "holds no certificate" in refusal(ssl_certfile=certificate, ssl_keyfile=key, ssl_ca_certs=text)

    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    assert tls_context(ServerConfig(ssl_certfile=str(both))) is not None
    asking = ServerConfig(ssl_certfile=str(both), ssl_ca_certs=str(other))
    context = tls_context(asking)
    assert context is not None and context.verify_mode == ssl.CERT_REQUIRED
    assert tls_context(ServerConfig()) is None
