"""GET /props, GET /version, POST /apply-template: what clients of other servers ask."""

from __future__ import annotations

from server_harness import Api, run

import octavo
from octavo.client.fake import CHAT_TEMPLATE


def test_props_tell_what_is_served_and_no_path() -> None:
    async def test(api: Api) -> None:
        response = await api.http.get("/props")
        props = response.json()
        assert props["model_alias"] == props["model_path"] == "fake-model" and "/nowhere" not in response.text
        assert props["total_slots"] == 64 and props["default_generation_settings"]["n_ctx"] == 2048
        assert props["default_generation_settings"]["params"]["temperature"] == 1.0
        assert props["chat_template"] == CHAT_TEMPLATE and props["eos_token"] == "<|im_end|>"
        assert props["modalities"] == {"vision": False, "audio": False}
        assert props["build_info"] == f"octavo-{octavo.__version__}"
        assert (await api.http.head("/props")).status_code == 200

    run(test)


def test_version() -> None:
    async def test(api: Api) -> None:
        assert (await api.http.get("/version")).json() == {"version": octavo.__version__}

    run(test)
