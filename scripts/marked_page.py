"""The part of a page that a script writes, between two marks."""

from __future__ import annotations

import re


def replaced(page: str, begin: str, end: str, contents: str) -> str:
    """The page with other contents between its marks; as it is where they are missing."""
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}{contents}{end}", page, count=1, flags=re.S)
