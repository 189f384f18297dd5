"""`python -m infinitalk_cli`, and what the `talk` command starts."""

from __future__ import annotations

from infinitalk_cli.main import app


def main() -> None:
    """Run the command line and exit with its code."""
    app()


if __name__ == "__main__":
    main()
