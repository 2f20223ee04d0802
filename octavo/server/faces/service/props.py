"""What clients of other servers ask about this one: GET /props as llama.cpp, GET /version as vLLM.

Nothing here tells where a file of this machine lies.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import octavo
from octavo.client.prepare import first_given
from octavo.server.http.call import json_response, serving


class DefaultParams(msgspec.Struct, kw_only=True):
    """What a request that says nothing is sampled with."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    n_predict: int = -1
    seed: int = -1


class GenerationSettings(msgspec.Struct, kw_only=True):
    n_ctx: int
    params: DefaultParams


class Modalities(msgspec.Struct, kw_only=True):
    vision: bool = False
    audio: bool = False


class Props(msgspec.Struct, kw_only=True):
    """GET /props. `model_path` is the served name: paths are not told."""

    default_generation_settings: GenerationSettings
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: Modalities
    build_info: str
    is_sleeping: bool = False


class Version(msgspec.Struct, kw_only=True):
    version: str


async def props(request: Request) -> Response:
    served = serving(request).find(None)
    info, client = served.info, served.client
    defaults, names = client.defaults, client.tokenizer.special_names
    params = DefaultParams(
        temperature=first_given(defaults.temperature, 1.0),
        top_p=first_given(defaults.top_p, 1.0),
        top_k=int(first_given(defaults.top_k, 0)),
        min_p=first_given(defaults.min_p, 0.0),
        repeat_penalty=first_given(defaults.repetition_penalty, 1.0),
    )
    return json_response(
        Props(
            default_generation_settings=GenerationSettings(n_ctx=info.max_model_len, params=params),
            total_slots=info.max_num_seqs,
            model_alias=info.model,
            model_path=info.model,
            chat_template=client.template.source or "",
            bos_token=names.get("bos_token", ""),
            eos_token=names.get("eos_token", ""),
            modalities=Modalities(),
            build_info=f"octavo-{octavo.__version__}",
        )
    )


async def version(_request: Request) -> Response:
    return json_response(Version(version=octavo.__version__))
