"""What ``fairy2i-export --dry-run`` shows, as data; see compile/dry_run.py."""

from __future__ import annotations

from fairy2i_export.compile.dry_run import DeviceMemory, DryRun, TensorGroup, dry_run

__all__ = ["DeviceMemory", "DryRun", "TensorGroup", "dry_run"]
