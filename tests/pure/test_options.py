"""Options: one definition gives flags, environment, TOML and messages; the order of the sources holds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.flags import load, options
from octavo.errors import ConfigError


def test_every_option_has_help_and_a_flag() -> None:
    for struct in (EngineConfig, ServerConfig):
        for option in options(struct):
            assert option.is_bool or option.metavar in ("N", "X", "TEXT") or "|" in option.metavar, option.name
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
    "flags,needle",
    [
        ({"port": "99999"}, "--port: '99999'"),
        ({"port": "x"}, "--port: 'x'"),
        ({"log_level": "loud"}, "one of debug, error, info, warning"),
        ({"drain_timeout": "-1"}, "--drain-timeout: '-1'"),
        ({"drain_timeout": "nan"}, "--drain-timeout: 'nan'"),
        ({"port": "x"}, "give a whole number from 0 to 65535"),
        ({"drain_timeout": "x"}, "give a number of at least 0"),
        ({"header_timeout": "0"}, "give a number above 0"),
        ({"host": 5}, "--host: 5 is not valid; give text"),
        ({"access_log": "maybe"}, "--access-log: 'maybe' is not valid; give true or false"),
        ({"max_inflight": "0"}, "give a whole number of at least 1"),
    ],
)
def test_wrong_values_name_the_option_and_say_what_to_give(flags: dict[str, str], needle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load((ServerConfig,), flags, None, {})
    assert needle in caught.value.message


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
