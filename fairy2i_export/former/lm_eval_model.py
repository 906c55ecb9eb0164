"""Importing this registers the model ``fairy2i`` with lm_eval; run, it is ``fairy2i lm-eval``. See check/lm_eval."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # without lm_eval, the command says what is missing
    from fairy2i_export.commands.tools import main

    sys.argv.insert(1, "lm-eval")
    sys.exit(main())

from fairy2i_export.check.lm_eval import Fairy2iLM

__all__ = ["Fairy2iLM"]
