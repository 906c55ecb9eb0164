"""The export and who hears about it; see compile/run.py and output/progress.py."""

from __future__ import annotations

from fairy2i_export.compile.run import export
from fairy2i_export.output.progress import Observer

__all__ = ["Observer", "export"]
