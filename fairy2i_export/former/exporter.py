"""The export and who hears about it; see compile/run.py."""

from __future__ import annotations

from fairy2i_export.compile.run import Observer, export

__all__ = ["Observer", "export"]
