"""Over a real uvicorn on 127.0.0.1: the official client, disconnects, oversized bodies, SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from patience import PATIENCE_S
from server_harness import HELLO, TEXT, Live, events, live

from octavo.client.fake import FakeClient
from octavo.config import ServerConfig
from octavo.errors import ModelFileError, OctavoError
from octavo.processes.listen import listen
from octavo.server import process as server_process

POST = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LONG = {"messages": HELLO, "temperature": 0, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ServerConfig(max_body_size="64KiB", drain_timeout=1)) as found:
        yield found


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake-model", messages=HELLO, temperature=0, logprobs=True)
    assert answer.choices[0].message.content == TEXT and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.choices[0].logprobs is not None and answer._request_id


def test_openai_chat_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="fake-model", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == TEXT and usage is not None and usage.completion_tokens > 50


def test_openai_completions_and_models(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="fake-model", prompt=["a", "b"], max_tokens=4, temperature=0, logprobs=1)
    assert [c.text for c in whole.choices] == [TEXT[:4]] * 2
    stream = client.completions.create(model="fake-model", prompt="a", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == TEXT[:4]
    assert [m.id for m in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").object == "model"


def test_openai_error_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake-model", messages=HELLO, temperature=-1)
    assert bad.value.param == "temperature" and bad.value.request_id
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "x" * 5000}], stream=True
        )
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model="fake-model",
            messages=HELLO,
            response_format={"type": "yaml"},
            stream=True,  # type: ignore[arg-type]
        )


def test_openai_sees_the_error_inside_a_stream() -> None:
    with live(fail_at=5) as found, openai.OpenAI(base_url=found.url + "/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="fake-model", messages=HELLO, temperature=0, stream=True)
        with pytest.raises(openai.APIError, match="engine failed"):
            list(stream)


def test_bodies_over_the_limit_on_the_wire(server: Live) -> None:
    for chunked in (False, True):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        body = b" " * 1_000_000
        blocks = [body[i : i + 10_000] for i in range(0, len(body), 10_000)]
        headers = {"content-type": "application/json"}
        connection.request(
            "POST", "/v1/completions", iter(blocks) if chunked else body, headers, encode_chunked=chunked
        )
        response = connection.getresponse()
        assert response.status == 413 and json.loads(response.read())["error"]["code"] == "content_too_large"
        connection.close()


def test_lying_content_lengths(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.server.http.middleware.LINGER_S", 0.3)

    def answer(head: str, body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
            start = (
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            )
            sock.sendall((start + head + "\r\n\r\n").encode() + body)
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
            return received

    good = b'{"prompt": "a", "max_tokens": 1}'
    assert b" 200 " in answer(f"content-length: {len(good)}", good)
    assert b" 413 " in answer("content-length: 999999999", good).split(b"\r\n")[0]
    assert b" 400 " in answer("content-length: 5", good).split(b"\r\n")[0]
    for head in ("content-length: -1", "content-length: x", "content-length: 5\r\ntransfer-encoding: chunked"):
        assert b" 400 " in answer(head, good).split(b"\r\n")[0]


def test_disconnect_on_the_wire_aborts() -> None:
    with live(step_delay=0.005) as found:
        for stream in (True, False):
            with socket.create_connection(("127.0.0.1", found.port), timeout=PATIENCE_S) as sock:
                body = json.dumps({**LONG, "stream": stream}).encode()
                head = f"{POST}content-length: {len(body)}\r\n\r\n"
                sock.sendall(head.encode() + body)
                if stream:
                    assert sock.recv(100)
                else:
                    time.sleep(0.1)
                assert found.engine.num_running == 1
            for _ in range(50):
                if not found.engine.num_running:
                    break
                time.sleep(0.01)
            assert found.engine.num_running == 0


def test_slow_reader_on_the_wire_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with live(step_delay=0.0, max_model_len=10**6) as found:
        found.app.state.serving.inflight.send_timeout = 0.5
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", found.port))
            body = json.dumps({**LONG, "max_tokens": 900_000, "stream": True}).encode()
            head = f"{POST}content-length: {len(body)}\r\n\r\n"
            sock.sendall(head.encode() + body)
            for _ in range(1000):
                if found.engine.aborts:
                    break
                time.sleep(0.02)
            assert found.engine.aborts == 1 and found.engine.num_running == 0


def test_signal_drains_then_stops() -> None:
    with live(ServerConfig(drain_timeout=10), step_delay=0.01) as found, httpx.Client(base_url=found.url) as http:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(
                httpx.post(found.url + "/v1/chat/completions", json={**LONG, "max_tokens": 60, "stream": True})
            )

        thread = threading.Thread(target=ask)
        thread.start()
        found.until(lambda: found.engine.num_running)
        found.signal()
        found.until(lambda: found.inflight.draining)
        refused = http.post("/v1/chat/completions", json=LONG)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        thread.join(PATIENCE_S)
        assert events(answers[0].text)[-1] == "[DONE]"
        found.thread.join(PATIENCE_S)
        assert not found.thread.is_alive()


def test_signal_cuts_off_what_does_not_end() -> None:
    with live(ServerConfig(drain_timeout=0.2), step_delay=0.01) as found:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(found.url + "/v1/chat/completions", json={**LONG, "stream": True}))

        thread = threading.Thread(target=ask)
        thread.start()
        found.until(lambda: found.engine.num_running)
        found.signal()
        found.thread.join(PATIENCE_S)
        assert not found.thread.is_alive()
        thread.join(PATIENCE_S)
        assert events(answers[0].text)[-1]["error"]["code"] == "draining"


def test_second_signal_ends_at_once() -> None:
    with live(ServerConfig(drain_timeout=3000), step_delay=0.01) as found:
        failures: list[Exception] = []

        def ask() -> None:
            try:
                body = {**LONG, "max_tokens": 7500, "stream": True}  # 75 s
                events(httpx.post(found.url + "/v1/chat/completions", json=body, timeout=PATIENCE_S).text)
            except (httpx.HTTPError, AssertionError) as error:
                failures.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.2)
        found.signal()
        time.sleep(0.1)
        found.signal()
        found.thread.join(PATIENCE_S)
        assert not found.thread.is_alive()
        thread.join(PATIENCE_S)
        assert failures, "the stream was waited for"


def test_engine_that_can_never_be_served_ends_the_process_with_its_error() -> None:
    class Broken(FakeClient):
        def __init__(self, endpoint: str, on_fatal: Callable[[OctavoError], None], **_: object) -> None:
            super().__init__()
            self.on_fatal = on_fatal

        async def start(self) -> None:
            await super().start()
            self.on_fatal(ModelFileError("model.gguf", "its tokenizer is of an unknown kind"))

    (listener,) = listen("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_process, "EngineClient", Broken)
        patch.setattr("octavo.log.setup", lambda *_: None)
        with pytest.raises(ModelFileError, match="unknown kind"):
            server_process.main(ServerConfig(), "ipc://nowhere", (listener.detach(),))


def test_process_without_an_engine_answers_and_ends_with_0() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        code = (
            "from octavo.config import ServerConfig; from octavo.server.process import main; "
            f"main(ServerConfig(), 'ipc:///tmp/octavo-test-no-engine-{os.getpid()}', ({fd},))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(fd,), stderr=subprocess.PIPE, text=True)
        try:
            url = f"http://127.0.0.1:{port}"
            assert httpx.get(url + "/health", timeout=PATIENCE_S).json()["service"] == "octavo"
            assert httpx.get(url + "/ready").status_code == 503
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0 and "Traceback" not in log
        assert f"listening on {url}" in log and "draining" in log
