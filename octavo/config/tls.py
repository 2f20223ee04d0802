"""The TLS context that the options name. Built by the supervisor, to refuse early, and by the server, to use it."""

from __future__ import annotations

import ssl
from pathlib import Path

from octavo.config.engine import ServerConfig
from octavo.errors import ConfigError


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """None: plain HTTP. Raises ConfigError that names the option and the file."""
    if config.ssl_certfile is None:
        for option, value in (("--ssl-keyfile", config.ssl_keyfile), ("--ssl-ca-certs", config.ssl_ca_certs)):
            if value is not None:
                raise ConfigError(f"{option} needs --ssl-certfile: without it the server would speak plain http")
        return None
    _readable("--ssl-certfile", config.ssl_certfile)
    if config.ssl_keyfile is not None:
        _readable("--ssl-keyfile", config.ssl_keyfile)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password=_no_password)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(_why(config, error)) from None
    if config.ssl_ca_certs is not None:
        _readable("--ssl-ca-certs", config.ssl_ca_certs)
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except (ssl.SSLError, OSError):
            raise ConfigError(f"--ssl-ca-certs {config.ssl_ca_certs}: holds no certificate in PEM form") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _readable(option: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror})") from None


def _no_password() -> str:
    """A key that is encrypted would be asked for on the terminal."""
    raise ConfigError("the private key is encrypted; give --ssl-keyfile one without a password")


def _why(config: ServerConfig, error: OSError) -> str:
    certificate, key = config.ssl_certfile, config.ssl_keyfile
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"--ssl-keyfile {key or certificate}: not the key of the certificate in {certificate}"
    if key is None:
        return f"--ssl-certfile {certificate}: holds no certificate with its private key (PEM); give --ssl-keyfile too"
    return f"--ssl-certfile {certificate}, --ssl-keyfile {key}: not a certificate and its private key in PEM form"
