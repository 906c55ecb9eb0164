"""``python -m fairy2i_export``: the command ``fairy2i``, for launchers of several processes."""

from __future__ import annotations

import sys

from fairy2i_export.commands.tools import main

if __name__ == "__main__":
    sys.exit(main())
