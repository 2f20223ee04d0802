"""`octavo serve`: a small torch-free process that starts, watches and ends the engine and the server.

Nothing is imported here: the children come through entry.py, and need nothing of the supervisor's own."""
