"""GET /v1/models in Anthropic's form, for clients that say `anthropic-version`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Literal

import msgspec

from octavo.server.core.serving import Served, Serving


class AnthropicModel(msgspec.Struct, kw_only=True):
    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class AnthropicModelList(msgspec.Struct, kw_only=True):
    data: list[AnthropicModel]
    first_id: str
    last_id: str
    has_more: bool = False


def model(served: Served, name: str, started: int) -> AnthropicModel:
    """The entry of one of its names."""
    info = served.info
    created = datetime.fromtimestamp(started, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return AnthropicModel(
        id=name,
        display_name=name,
        created_at=created,
        max_input_tokens=info.max_model_len,
        max_tokens=info.max_model_len,
    )


def listed(serve: Serving) -> AnthropicModelList:
    found = [model(served, name, serve.started) for served in serve.models for name in served.names]
    return AnthropicModelList(data=found, first_id=found[0].id, last_id=found[-1].id)
