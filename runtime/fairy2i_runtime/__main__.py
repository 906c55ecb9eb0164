"""``python -m fairy2i_runtime``: the command line tools without the exporter."""

from __future__ import annotations

import sys

from fairy2i_runtime.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
