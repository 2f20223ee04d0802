"""The `octavo` command, also as `python -m octavo`: what must be in order before anything else is imported."""

from __future__ import annotations

import signal

from octavo.processes.descriptors import leave_removed_folder, open_standard


def main() -> None:
    """Entry point of the `octavo` command."""
    open_standard()
    leave_removed_folder()
    if is_heeded := signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an import that is interrupted ends the process without a word
    from octavo.cli.app import main as run

    if is_heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
