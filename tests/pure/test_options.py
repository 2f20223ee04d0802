"""Options: one definition gives flags, environment, TOML and messages; the order of the sources holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from octavo.config.commands import EVERY, ChatOptions, ChatSampling, CompleteSampling, plain
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.flags import load, options
from octavo.config.suggest import did_you_mean, nearest
from octavo.errors import ConfigError
from octavo.types import SamplingParams, StructuredOutputs

METAVARS = ("N", "X", "TEXT", "FILE", "SIZE", "JSON", "ID:X")


def test_every_option_has_help_and_a_flag() -> None:
    for struct in (EngineConfig, ServerConfig, *EVERY):
        for option in options(struct):
            assert option.is_bool or option.metavar in METAVARS or "|" in option.metavar, option.name
            assert option.help, option.name


def test_order_flag_environment_file_default(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text('port = 1\nhost = "1.1.1.1"\nlog-level = "error"\n')
    env = {"OCTAVO_PORT": "2", "OCTAVO_HOST": "2.2.2.2"}
    (server,) = load((ServerConfig,), {"port": "3"}, file, env)
    assert (server.port, server.host, server.log_level, server.drain_timeout) == (3, "2.2.2.2", "error", 30.0)


def test_config_file_named_by_environment(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("max_num_seqs = 7")
    (engine,) = load((EngineConfig,), {}, None, {"OCTAVO_CONFIG": str(file)})
    assert engine.max_num_seqs == 7


@pytest.mark.parametrize(
    "name,value,expected", [("OCTAVO_NO_PREFIX_CACHE", "1", False), ("OCTAVO_PREFIX_CACHE", "0", False)]
)
def test_bool_from_environment(name: str, value: str, expected: bool) -> None:
    (engine,) = load((EngineConfig,), {}, None, {name: value})
    assert engine.prefix_cache is expected


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"port": "99999"}, "--port: '99999' is not valid; give a whole number from 0 to 65535"),
        ({"port": "x"}, "--port: 'x' is not valid; give a whole number from 0 to 65535"),
        ({"max_inflight": "0"}, "--max-inflight: '0' is not valid; give a whole number of at least 1"),
        (
            {"log_level": "wrning"},
            "'wrning' is not valid; give one of debug, error, info, warning; did you mean warning?",
        ),
        ({"drain_timeout": "-1"}, "--drain-timeout: '-1' is not valid; give a number of at least 0"),
        ({"header_timeout": "0"}, "--header-timeout: '0' is not valid; give a number above 0"),
        ({"drain_timeout": "nan"}, "--drain-timeout: 'nan' is not valid; give a number of at least 0"),
        ({"host": 5}, "--host: 5 is not valid; give text"),
        ({"access_log": "maybe"}, "--access-log: 'maybe' is not valid; give true or false"),
    ],
)
def test_wrong_values_name_the_option_and_what_is_right(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load((ServerConfig,), flags, None, {})
    assert caught.value.message.endswith(message)


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"device": "gpu"}, "--device: 'gpu' is not valid; give auto, cpu, cuda or cuda:N, as cuda:0"),
        ({"gpu_memory_utilization": "2"}, "'2' is not valid; give a number above 0 and at most 1"),
    ],
)
def test_no_pattern_of_a_programmer_is_shown(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load((EngineConfig,), flags, None, {})
    assert caught.value.message.endswith(message)


def test_no_option_is_explained_in_the_words_of_a_programmer() -> None:
    for struct in (EngineConfig, ServerConfig):
        for option in options(struct):
            with pytest.raises(ConfigError) as caught:
                load((struct,), {option.name: {"a": 1}}, None, {})
            message = caught.value.message
            assert message.startswith(f"{option.flag}: ") and "; give " in message
            for word in ("xpected", "`", "regex", "^", "int,", "str", "Literal", "object", "None", "null"):
                assert word not in message, message
    with pytest.raises(ConfigError, match="--device: 'gpu' is not valid; give auto, cpu, cuda or cuda:N"):
        load((EngineConfig,), {"device": "gpu"}, None, {})


def test_nearest_names() -> None:
    assert nearest("max-model-length", ["max_model_len", "max_num_seqs"]) == "max_model_len"
    assert did_you_mean("smolm2", ["smollm2-135m"]) == "; did you mean smollm2-135m?"
    assert did_you_mean("/usr", ["/help", "/reset", "/stats"]) == ""


SAMPLING = {
    "temperature": ("0.5", 0.5),
    "top_p": ("0.9", 0.9),
    "top_k": ("40", 40),
    "min_p": ("0.1", 0.1),
    "presence_penalty": ("-1.5", -1.5),
    "frequency_penalty": ("1", 1.0),
    "repetition_penalty": ("1.1", 1.1),
    "n": ("2", 2),
    "best_of": ("3", 3),
    "max_tokens": ("7", 7),
    "min_tokens": ("1", 1),
    "stop": (["a, b", "c"], ["a, b", "c"]),
    "stop_token_ids": (["1,2", "3"], [1, 2, 3]),
    "ignore_eos": (True, True),
    "logit_bias": ("5:-100, 6:1.5", {5: -100.0, 6: 1.5}),
    "bad_words": (["damn", "a,b"], ["damn", "a,b"]),
    "allowed_token_ids": (["1,2"], [1, 2]),
    "logprobs": ("3", 3),
    "prompt_logprobs": ("0", 0),
    "skip_special_tokens": (False, False),
    "include_stop_str_in_output": (True, True),
    "priority": ("-1", -1),
    "structured_outputs": ('{"regex": "[0-9]+"}', StructuredOutputs(regex="[0-9]+")),
    "cache_salt": ("x", "x"),
    "session_id": ("s", "s"),
}


@pytest.mark.parametrize("struct", [ChatSampling, CompleteSampling])
def test_every_sampling_field_is_an_option(struct: type[SamplingParams]) -> None:
    """But the seed, which is the engine's option."""
    assert {option.name for option in options(struct)} == set(SamplingParams.__struct_fields__) - {"seed"}
    assert set(SAMPLING) == set(SamplingParams.__struct_fields__) - {"seed"}
    flags = {name: given for name, (given, _) in SAMPLING.items()}
    (params,) = load((struct,), flags, None, {})
    assert {name: getattr(params, name) for name in SAMPLING} == {name: value for name, (_, value) in SAMPLING.items()}
    assert type(plain(params)) is SamplingParams and plain(params).max_tokens == 7


@pytest.mark.parametrize(
    "name,given,message",
    [
        ("temperature", "200", "give a number from 0 to 100"),
        ("logit_bias", "5", 'give ID:X, or several of them by commas, or {"ID": X}'),
        ("logit_bias", '{"a": 1}', 'give ID:X, or several of them by commas, or {"ID": X}'),
        (
            "stop_token_ids",
            ["1,x"],
            "'1,x' is not valid; give a whole number, or several of them, at most 1024",
        ),
        ("structured_outputs", "regex", "give a JSON object with json, json_object, regex, choice, grammar"),
        ("max_tokens", "-1", "give a whole number of at least 1"),
    ],
)
def test_wrong_sampling_values(name: str, given: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load((ChatSampling,), {name: given}, None, {})
    assert caught.value.message.startswith("--" + name.replace("_", "-")) and message in caught.value.message


def test_switches_of_a_template() -> None:
    (chat,) = load((ChatOptions,), {"chat_template_kwargs": '{"enable_thinking": false}'}, None, {})
    assert chat.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(ConfigError, match="--chat-template-kwargs: 'x' is not valid; give a JSON object"):
        load((ChatOptions,), {"chat_template_kwargs": "x"}, None, {})


def test_sampling_from_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text('stop = ["x", "y"]\ntop_k = 3\n[logit_bias]\n7 = 1\n')
    (params,) = load((ChatSampling,), {}, file, {"OCTAVO_TOP_K": "5", "OCTAVO_STOP_TOKEN_IDS": "1,2"})
    assert (params.stop, params.top_k, params.stop_token_ids, params.logit_bias) == (["x", "y"], 5, [1, 2], {7: 1.0})


def test_unknown_key_in_file(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("prot = 8000")
    with pytest.raises(ConfigError, match=r"unknown key 'prot'; did you mean port\?"):
        load((ServerConfig,), {}, file, {})
    file.write_text("zzzzzz = 8000")
    with pytest.raises(ConfigError, match=r"unknown key 'zzzzzz'; known: access_log, .*host"):
        load((ServerConfig,), {}, file, {})
    file.write_text("[server]\nport = 8000")
    with pytest.raises(ConfigError, match=r"\[server\] is a table; write the options at the top"):
        load((ServerConfig,), {}, file, {})


@pytest.mark.parametrize("text", [b"port = ", b"[port", b"", b'host = "caf\xe9"'])
def test_file_that_is_not_toml(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "o.toml"
    if text:
        file.write_bytes(text)
    with pytest.raises(ConfigError, match=r"--config .*o\.toml"):
        load((ServerConfig,), {}, file, {})


def test_defaults_survive_a_round_trip() -> None:
    config = EngineConfig()
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config


@pytest.mark.parametrize(
    "flags,env,toml",
    [
        ({"api_key": ["a", "b , c"]}, {"OCTAVO_API_KEY": "d"}, ""),
        ({"api_key": []}, {"OCTAVO_API_KEY": "a,b,c"}, 'api_key = "d"'),
        ({}, {}, 'api-key = ["a", "b", "c"]'),
        ({}, {}, 'api-key = "a,b,c"'),
    ],
)
def test_option_with_several_values(
    flags: dict[str, list[str]], env: dict[str, str], toml: str, tmp_path: Path
) -> None:
    file = tmp_path / "o.toml"
    file.write_text(toml)
    (server,) = load((ServerConfig,), flags, file, env)
    assert server.api_key == ("a", "b", "c")


@pytest.mark.parametrize("given", [[""], ["a", " "], ["a,"]])
def test_option_with_an_empty_value_is_an_error_and_not_none_at_all(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="--api-key: a value is empty"):
        load((ServerConfig,), {"api_key": given}, None, {})


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "o.toml"
    file.write_text("api_key = [12345678]")
    with pytest.raises(ConfigError) as caught:
        load((ServerConfig,), {}, file, {})
    assert "12345678" not in caught.value.message and "api_key" in caught.value.message
    assert [option.name for option in options(ServerConfig) if option.is_secret] == ["api_key"]
