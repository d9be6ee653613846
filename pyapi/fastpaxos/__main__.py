"""`python -m fastpaxos` and the `fastpaxos` command."""

from __future__ import annotations

import sys

from fastpaxos.cli.main import run

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 misused."""
    sys.exit(run())


if __name__ == "__main__":
    main()
