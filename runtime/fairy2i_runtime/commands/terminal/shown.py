"""What a model writes, on its way to a terminal."""

from __future__ import annotations

import sys

from fairy2i_runtime.errors import without_controls


def shown(text: str) -> str:
    """A model's text as it is, or, where a terminal would obey its control characters, with those escaped."""
    return without_controls(text) if sys.stdout.isatty() else text
