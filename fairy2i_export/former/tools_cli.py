"""``python -m fairy2i_export.tools_cli``: now ``python -m fairy2i_export``."""

from __future__ import annotations

import sys

from fairy2i_export.commands.tools import main

if __name__ == "__main__":
    sys.exit(main())
