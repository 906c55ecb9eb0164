"""What fairy2i-export depends on, for the build: pyproject.toml's list, and fairy2i-runtime from where it can be had.

In a checkout that is the folder beside it, so that ``pip install .`` installs both. An sdist has no such folder, and wheels
that are made to be handed on (``FAIRY2I_RELEASE=1``) must not name a folder of the machine that built them: there it is
the same version of fairy2i-runtime, wherever pip finds it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Dependencies(MetadataHookInterface):
    """Fills in ``project.dependencies``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the dependencies to the project's metadata."""
        runtime = Path(self.root) / "runtime"
        if (runtime / "pyproject.toml").is_file() and not os.environ.get("FAIRY2I_RELEASE"):
            wanted = f"fairy2i-runtime @ {runtime.as_uri()}"
        else:
            wanted = f"fairy2i-runtime=={metadata['version']}"
        metadata["dependencies"] = [wanted, *self.config["dependencies"]]
