"""Names of the environment: options, the addresses Kubernetes puts beside them, mistakes; bytes that are no text."""

from __future__ import annotations

import os

import pytest

from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.environment import is_foreign
from octavo.config.flags import as_text, environment_notes, load, options
from octavo.errors import ConfigError

SERVICE = {
    "OCTAVO_SERVICE_HOST": "10.96.12.7",
    "OCTAVO_SERVICE_PORT": "8000",
    "OCTAVO_SERVICE_PORT_HTTP": "8000",
    "OCTAVO_PORT_8000_TCP": "tcp://10.96.12.7:8000",
    "OCTAVO_PORT_8000_TCP_PROTO": "tcp",
    "OCTAVO_PORT_8000_TCP_PORT": "8000",
    "OCTAVO_PORT_8000_TCP_ADDR": "10.96.12.7",
    "OCTAVO_NAME": "/web/octavo",
    "OCTAVO_ENV_PATH": "/bin",
    "OCTAVO_HOST_PORT": "tcp://10.96.12.8:80",
    "OCTAVO_HOST_SERVICE_HOST": "10.96.12.8",
    "OCTAVO_MAX_MODEL_LEN_PORT_53_UDP": "udp://10.96.12.9:53",
}
"""Of services named octavo, octavo-host and octavo-max-model-len, and of a container link."""


@pytest.mark.parametrize("address", ["tcp://10.96.12.7:8000", "udp://10.0.0.1:53", "tcp://[fd00::7]:8000"])
def test_the_address_of_a_service_is_no_port(address: str) -> None:
    env = {**SERVICE, "OCTAVO_PORT": address}
    config, server = load((EngineConfig, ServerConfig), {}, None, env)
    assert (config, server) == (EngineConfig(), ServerConfig())
    (note,) = environment_notes(env)
    assert note.startswith(f"OCTAVO_PORT={address} is left alone") and "Kubernetes Service" in note


def test_a_port_is_a_port() -> None:
    (server,) = load((ServerConfig,), {}, None, {**SERVICE, "OCTAVO_PORT": "8001"})
    assert server.port == 8001
    assert environment_notes({**SERVICE, "OCTAVO_PORT": "8001"}) == []
    for wrong in ("http://x", "80 80", "tcp"):
        with pytest.raises(ConfigError, match=r"OCTAVO_PORT: .* give a whole number"):
            load((ServerConfig,), {}, None, {"OCTAVO_PORT": wrong})


def test_no_option_is_taken_for_somebody_elses() -> None:
    for struct in (EngineConfig, ServerConfig):
        for option in options(struct):
            for value in ("x", "8000", "/web/octavo", "10.96.12.7"):
                assert not is_foreign(option.env, value), option.env


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OCTAVO_PROT", "OCTAVO_PORT"),
        ("OCTAVO_API_KEYS", "OCTAVO_API_KEY"),
        ("OCTAVO_MAX_MODEL_LENGTH", "OCTAVO_MAX_MODEL_LEN"),
        ("OCTAVO_CACHE_DIR", "OCTAVO_CACHE"),
        ("OCTAVO_NO_ACCESS_LOGS", "OCTAVO_NO_ACCESS_LOG"),
    ],
)
def test_misspelled_names_are_told_with_the_nearest(name: str, meant: str) -> None:
    assert environment_notes({name: "1"}) == [f"{name} is no option and does nothing; did you mean {meant}?"]


def test_other_names_are_told_or_left() -> None:
    assert environment_notes({"OCTAVO_QQQQQQ": "1"}) == ["OCTAVO_QQQQQQ is no option and does nothing"]
    known = {
        *("OCTAVO_PORT", "OCTAVO_NO_PREFIX_CACHE", "OCTAVO_PREFIX_CACHE", "OCTAVO_CONFIG", "OCTAVO_FAULTS"),
        *("OCTAVO_TEST_EXAMPLES", "OCTAVO", "PATH", "OCTAVOPROT"),
    }
    assert environment_notes(dict.fromkeys(known, "1")) == []


def test_text_that_python_could_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a locale without UTF-8 every letter beyond ASCII comes so; in another only what is no UTF-8."""
    assert as_text("plain", "--x") == "plain" and as_text(5, "--x") == 5
    assert as_text(os.fsdecode("café".encode()), "--x") == "café"
    assert as_text("caf\udcc3\udca9", "--x") == "café"
    with pytest.raises(ConfigError, match="--served-model-name: the value is not UTF-8"):
        load((EngineConfig,), {"served_model_name": "caf\udce9"}, None, {})
    with pytest.raises(ConfigError, match="OCTAVO_API_KEY: the value is not UTF-8"):
        load((ServerConfig,), {}, None, {"OCTAVO_API_KEY": "a,b\udce9"})
    (config,) = load((EngineConfig,), {"model": "caf\udce9.gguf"}, None, {})
    assert os.fsencode(config.model) == b"caf\xe9.gguf"
