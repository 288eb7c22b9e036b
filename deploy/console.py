"""The command `metaleak`: the command line, or one line where what it needs is not installed."""

import sys


def main() -> None:
    """Run the command line and exit, see `metaleak.deploy.cli`; exit with 1 where a library of it is missing."""
    try:
        from metaleak.deploy.cli import main as run
    except ModuleNotFoundError as error:
        from metaleak.deploy.errors import one_line

        sys.exit(f"metaleak: {one_line(error)}")
    run()
