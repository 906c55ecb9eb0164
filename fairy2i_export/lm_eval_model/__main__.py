"""``python -m fairy2i_export.lm_eval_model``: the same as ``fairy2i lm-eval``."""

from __future__ import annotations

import sys

from fairy2i_export.tools_cli import main

if __name__ == "__main__":
    sys.exit(main(["lm-eval", *sys.argv[1:]]))
