"""`python -m octavo` is the `octavo` command."""

from octavo.cli.app import main

main()
