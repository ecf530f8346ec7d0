"""The command line."""

from fedsim.cli.commands import main

__all__ = ["main"]
