"""Settings by processor: those that ``fairy2i tune`` measured on this machine are kept in the user's cache.

What they are is said in fairy2i.h (``f2i_plan_init_tuned``). Results do not depend on them, so nothing asks for them to be
there: without, the library takes what is known to be good on a processor.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairy2i_runtime.errors import Fairy2iWarning, ModelFolderError, OptionError
from fairy2i_runtime.folder import ISA_VARIABLE
from fairy2i_runtime.jsonfile import read_optional_json
from fairy2i_runtime.ops.processor import processor_name
from fairy2i_runtime.version import __version__

TUNING_ENTRY = "fairy2i.tuning"  # of a session's configuration
TUNING_VARIABLE = "FAIRY2I_TUNING"


def tuning_file() -> Path:
    """Where settings are kept: in the folder that the system has for caches."""
    system = platform.system()
    if system == "Windows" and os.environ.get("LOCALAPPDATA"):
        caches = Path(os.environ["LOCALAPPDATA"])
    elif system == "Darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "fairy2i" / "tuning.json"


def machine_key(threads: int) -> str:
    """What settings are good for: a processor, a number of threads (0: onnxruntime's own), a version of the library."""
    return f"{processor_name()}, {os.cpu_count()} processors, {threads} threads, {__version__}"


def kept_tuning(threads: int, isa: str | None = None) -> str | None:
    """The settings that were measured on this machine and that a session runs with; None: there are none.

    The environment's settings, which the library reads itself, come before them, and they say nothing where somebody names an
    instruction set. A file that cannot be used is warned of, and otherwise as if it were not there.

    Args:
        threads: of the session; 0 = onnxruntime's own number.
        isa: the instruction set that was named for it, or None.
    """
    if os.environ.get(TUNING_VARIABLE) or isa or os.environ.get(ISA_VARIABLE):
        return None
    try:
        entry = read_optional_json(tuning_file()).get(machine_key(threads))
    except RuntimeError:  # there is no home
        return None
    except (ModelFolderError, OSError) as error:
        warnings.warn(f"what fairy2i tune measured is not used: {error}; run it again", Fairy2iWarning, stacklevel=2)
        return None
    text = entry.get("tuning") if isinstance(entry, dict) else None
    return text if isinstance(text, str) else None


def keep_tuning(threads: int, entry: dict[str, Any] | None) -> Path:
    """Write the settings of this machine into the file, or take them out of it (None); others in it stay.

    Args:
        threads: threads that they were measured with.
        entry: ``tuning``, the settings, and whatever tells where they are from.

    Returns:
        The file.

    Raises:
        OptionError: if it cannot be written.
    """
    path = tuning_file()
    try:
        known = read_optional_json(path)
    except ModelFolderError:
        known = {}  # nothing in it could be used
    if known.pop(machine_key(threads), None) is None and entry is None:
        return path
    if entry is not None:
        known[machine_key(threads)] = entry
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OptionError(
            f"cannot write {path}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return path
