"""Options and how they become the values in force."""

from octavo.config.engine import EngineConfig, ServerConfig

__all__ = ["EngineConfig", "ServerConfig"]
