"""Starts ``fairy2i``, also as ``python -m fairy2i_runtime``: next to nothing is imported before it hears signals."""

from __future__ import annotations

import sys

from fairy2i_runtime.commands.process.startup import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i``; returns the exit code, for the console script to exit with."""
    return start("fairy2i_runtime.commands.program:run", arguments)


if __name__ == "__main__":
    sys.exit(main())
