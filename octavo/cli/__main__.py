"""`python -m octavo.cli` is the `octavo` command."""

from octavo.cli.app import main

main()
