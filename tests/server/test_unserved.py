"""Routes of the APIs spoken here that are not served say so by name, instead of a 405 that sends people looking."""

from __future__ import annotations

from server_harness import Api, error_of, run

from octavo.server.core.errors import clean
from octavo.server.faces.unserved import UNSERVED, unserved
from octavo.server.routes import ENDPOINTS

NOT_SERVED = [
    ("GET", "/v1/chat/completions"), ("GET", "/chat/completions"), ("POST", "/v1/chat/completions/chatcmpl-1"),
    ("DELETE", "/v1/chat/completions/chatcmpl-1"), ("GET", "/v1/chat/completions/chatcmpl-1/messages"),
    ("POST", "/v1/responses/input_tokens"), ("POST", "/responses/input_tokens"), ("POST", "/v1/responses/compact"),
    ("DELETE", "/v1/models/fake-model"), ("POST", "/v1/audio/speech"), ("POST", "/v1/images/generations"),
    ("POST", "/v1/moderations"), ("GET", "/v1/files"), ("GET", "/v1/files/f-1/content"), ("POST", "/v1/batches"),
    ("POST", "/v1/messages/batches"), ("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/v1/rerank"),
    ("POST", "/rerank"), ("GET", "/slots"), ("POST", "/completion"), ("GET", "/ping"),
]  # fmt: skip


def test_known_routes_that_are_not_served_are_named() -> None:
    async def test(api: Api) -> None:
        for method, path in NOT_SERVED:
            response = await api.http.request(method, path, headers={"content-type": "application/json"})
            message = response.json()["error"]["message"]
            assert response.status_code == 404 and "is not served" in message
            assert f"{method} {path} (" in message or f"{method} /v1{path} (" in message
            if not path.startswith("/v1/messages"):
                assert error_of(response, 404)["code"] == "route_not_served"
        # A row hides nothing that is served, and makes no other path a known one.
        assert error_of(await api.http.get("/v1/responses/input_tokens"), 404)["code"] != "route_not_served"
        for path in ("/v1/audiobooks", "/v1/chat/completionsx", "/apis/x", "/v1/" + "files/" * 100, "/files%00"):
            assert error_of(await api.http.get(path), 404)["code"] == "not_found"
        for endpoint in ENDPOINTS:
            assert unserved(endpoint.method, endpoint.path) is None, endpoint.path
        for row in UNSERVED:
            path = row.path.replace("{}", "x").replace("/*", "/x")
            message = str(unserved("POST" if row.method == "*" else row.method, path))
            assert clean(message) == message

    run(test)
