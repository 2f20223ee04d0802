"""Requests in the form in which today's coding agents and frameworks send them: taken, streamed to the end.

The forms are those of Codex (responses), Claude Code (messages), Aider, Cline and Continue (chat, completions),
LangChain and LlamaIndex (chat); the texts are short.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from patience import PATIENCE_S

SHELL = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The command to execute"},
        "workdir": {"type": "string", "description": "The working directory"},
        "timeout_ms": {"type": "number"},
        "with_escalated_permissions": {"type": "boolean"},
    },
    "required": ["command"],
    "additionalProperties": False,
}
PLAN = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string"},
        "plan": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"step": {"type": "string"}, "status": {"type": "string"}},
                "required": ["step", "status"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["plan"],
    "additionalProperties": False,
}
PATCH = 'start: begin hunk+ end\nbegin: "*** Begin Patch" LF\nhunk: /[^\\n]+/ LF\n'
PATCH += 'end: "*** End Patch" LF?\n%import common.LF\n'
CODEX: dict[str, Any] = {
    "instructions": "You are a coding agent running in a terminal.",
    "tools": [
        {"type": "function", "name": "shell", "description": "Runs.", "strict": False, "parameters": SHELL},
        {"type": "function", "name": "update_plan", "description": "Plans.", "strict": False, "parameters": PLAN},
        {"type": "local_shell"},
        {"type": "web_search", "external_web_access": False},
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": PATCH},
        },
        {"type": "image_generation"},
        {
            "type": "mcp",
            "server_label": "docs",
            "server_url": "https://example.invalid/mcp",
            "require_approval": "never",
        },
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "1"},
    "service_tier": "auto",
}
TURN = [
    {
        "type": "message",
        "role": "developer",
        "content": [{"type": "input_text", "text": "<permissions>none</permissions>"}],
    },
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<cwd>/repo</cwd>"}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "List the files."}]},
]
LATER = [
    {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "ls"}],
        "content": None,
        "encrypted_content": "gA==",
    },
    {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
    {"type": "function_call_output", "call_id": "call_1", "output": '{"output":"a.py\\n","metadata":{"exit_code":0}}'},
    {"type": "function_call", "name": "shell", "arguments": '{"command":["cat', "call_id": "call_2"},
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "refused"}]},
    {
        "type": "local_shell_call",
        "call_id": "call_3",
        "status": "completed",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
    },
    {"type": "local_shell_call_output", "call_id": "call_3", "output": "a.py"},
    {"type": "custom_tool_call", "call_id": "call_4", "name": "apply_patch", "input": "*** Begin Patch\n*** End Patch"},
    {"type": "custom_tool_call_output", "call_id": "call_4", "output": "Done."},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "One file.", "annotations": []}],
    },
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
]
BASH = {
    "type": "object",
    "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
    "required": ["command"],
}
CACHED = {"type": "ephemeral"}
CLAUDE_CODE: dict[str, Any] = {
    "max_tokens": 24,
    "stream": True,
    "temperature": 1,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": CACHED},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs.",
            "cache_control": CACHED,
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                **BASH,
                "additionalProperties": False,
            },
        },
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "metadata": {"user_id": "user_1_account__session_2"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>None.</system-reminder>"},
                {"type": "text", "text": "List the files.", "cache_control": CACHED},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "ls", "signature": "abc"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Bash", "input": {"command": "cat x"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.py"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such file", "is_error": True},
                {"type": "text", "text": "Go on."},
            ],
        },
    ],
}


def told(text: str) -> list[Any]:
    """The events of a stream: (name, data)."""
    found = []
    for record in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in record.splitlines() if not line.startswith(":"))
        if lines and lines["data"] != "[DONE]":
            found.append((lines.get("event"), json.loads(lines["data"])))
    return found


@pytest.mark.parametrize("history", [TURN, TURN + LATER], ids=["first", "later"])
def test_codex(url: str, model: str, history: list[Any]) -> None:
    body = {"model": model, **CODEX, "input": history, "max_output_tokens": 24}
    headers = {"originator": "codex_cli_rs", "session_id": "1", "openai-beta": "responses=experimental"}
    response = httpx.post(url + "/v1/responses", json=body, headers=headers, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    events = told(response.text)
    assert all(name == data["type"] for name, data in events)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert events[0][0] == "response.created" and events[-1][0] in ("response.completed", "response.incomplete")
    final = events[-1][1]["response"]
    done = [data["item"] for name, data in events if name == "response.output_item.done"]
    assert final["output"] == done and done and final["usage"]["total_tokens"] > 0 and final["store"] is False
    again = {**body, "input": [*history, *done, TURN[-1]]}
    assert httpx.post(url + "/v1/responses", json=again, timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize("thinking", [None, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}], ids=str)
def test_claude_code(url: str, model: str, thinking: Any) -> None:
    body = {"model": model, **CLAUDE_CODE} | ({} if thinking is None else {"thinking": thinking, "max_tokens": 2048})
    if thinking is not None:
        body["stop_sequences"] = ["e"]  # soon
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    }
    response = httpx.post(url + "/v1/messages?beta=true", json=body, headers=headers, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    events = told(response.text)
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "ping"]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") > 0
    counted = {key: body[key] for key in ("model", "system", "tools", "messages")}
    count = httpx.post(
        url + "/v1/messages/count_tokens?beta=true", json=counted, headers=headers, timeout=PATIENCE_S
    ).json()
    usage = events[0][1]["message"]["usage"]
    assert count["input_tokens"] == usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0) or thinking


def test_cline_aider_and_continue(url: str, model: str) -> None:
    tool = {
        "name": "read_file",
        "description": "Reads.",
        "strict": False,
        "parameters": {**BASH, "additionalProperties": False},
    }
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "You are Cline.", "cache_control": CACHED}]},
            {"role": "user", "content": [{"type": "text", "text": "<task>\nRead a.py\n</task>"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "read_file", "arguments": "{}"},
                    },
                    {"id": "call_2", "type": "function", "function": {"name": "read_file", "arguments": "{not json"}},
                    {"id": "call_3", "type": "function", "function": {"name": "read_file", "arguments": ""}},
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "x = 1"},
            {
                "role": "tool",
                "tool_call_id": "call_2",
                "content": [{"type": "text", "text": "error"}],
                "name": "read_file",
            },
            {"role": "tool", "tool_call_id": "call_3", "content": ""},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "so",
                "refusal": None,
                "annotations": [],
                "audio": None,
            },
            {"role": "user", "content": "Go on."},
        ],
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": 16,
    }
    response = httpx.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    chunks = [data for _, data in told(response.text)]
    assert chunks[-1]["usage"]["completion_tokens"] > 0 and chunks[-2]["choices"][0]["finish_reason"]
    fill = "<|fim_prefix|>def f(x):\n    <|fim_suffix|>\n<|fim_middle|>"
    asked = {
        "model": model,
        "prompt": fill,
        "max_tokens": 8,
        "stop": ["<|endoftext|>", "\n\n"],
        "stream": True,
        "temperature": 0.01,
    }
    assert told(httpx.post(url + "/v1/completions", json=asked, timeout=PATIENCE_S).text)[-1][1]["choices"][0][
        "finish_reason"
    ]


def test_langchain_and_llama_index(url: str, model: str) -> None:
    schema = {
        "title": "Answer",
        "type": "object",
        "properties": {
            "answer": {"title": "Answer", "type": "string"},
            "score": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["answer", "score"],
        "additionalProperties": False,
    }
    shaped = {"type": "json_schema", "json_schema": {"name": "Answer", "schema": schema, "strict": True}}
    said = [{"content": "Say it.", "role": "user", "name": None}]
    common = {"model": model, "n": 1, "temperature": 0.7, "max_completion_tokens": 16, "stream": False, "user": None}
    for more in (
        {"response_format": shaped},
        {"tools": [{"type": "function", "function": {"name": "Answer", "description": "", "parameters": schema}}],
         "tool_choice": {"type": "function", "function": {"name": "Answer"}}, "parallel_tool_calls": False},
        {"stop": None, "logit_bias": {}, "logprobs": False, "seed": None, "frequency_penalty": 0.0, "top_p": 1},
    ):  # fmt: skip
        response = httpx.post(
            url + "/v1/chat/completions", json={**common, "messages": said, **more}, timeout=PATIENCE_S
        )
        assert response.status_code == 200, response.text
    vectors = httpx.post(
        url + "/v1/embeddings",
        json={"model": model, "input": ["a", "b"], "encoding_format": "base64", "user": "u"},
        timeout=PATIENCE_S,
    )
    assert len(vectors.json()["data"]) == 2
    by_ids = httpx.post(url + "/v1/embeddings", json={"model": model, "input": [[1, 2, 3], [4]]}, timeout=PATIENCE_S)
    assert len(by_ids.json()["data"]) == 2
