"""``python -m fairy2i_runtime``: the command line tools without the exporter."""

from __future__ import annotations

import sys

from fairy2i_runtime.commands.process.startup import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands of the runtime; returns the exit code."""
    return start("fairy2i_runtime.commands.main:main", arguments)


if __name__ == "__main__":
    sys.exit(main())
