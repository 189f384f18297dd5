"""`python -m infinitalk_cli`, and what the `talk` command starts."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from infinitalk_cli.main import app  # takes a while, in which Ctrl-C must not look like a fault of ours

        app()
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")  # the console may not be there yet
        sys.exit(130)


if __name__ == "__main__":
    main()
