"""`octavo serve`: a small torch-free process that starts, watches and ends the engine and the server."""

from octavo.supervisor.supervisor import run

__all__ = ["run"]
