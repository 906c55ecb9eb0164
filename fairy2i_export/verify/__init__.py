"""``fairy2i verify``: hold an exported folder against independent computations, arrow by arrow."""

from __future__ import annotations

from fairy2i_export.verify.command import verify_command

__all__ = ["verify_command"]
