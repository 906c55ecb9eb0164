"""The names that the library shows to others, and how a file is refused."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CUSTOM_OPS = FOLDER.parent
GENERIC_NAME = "RegisterCustomOps"  # every library of operators has it
UNIQUE_NAME = "Fairy2i_RegisterCustomOps"


class Refused(Exception):
    """A file is not what it should be: which one, what was expected, what was found, what to do."""


def public_names() -> set[str]:
    """What the shared library exports: the names of src/exports.map."""
    text = (CUSTOM_OPS / "src" / "exports.map").read_text(encoding="utf-8")
    (block,) = re.findall(r"global:(.*?)local:", text, re.S)
    return set(re.findall(r"(\w+);", block))


def sentence(names: set[str]) -> str:
    """Names for a message, at most six of them."""
    shown = sorted(names)[:6]
    return ", ".join(shown) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def check_archive_names(path: Path, defined: set[str], generic: bool) -> None:
    """Check the names that a static archive gives to the program it is linked into.

    Args:
        path: the archive, for messages.
        defined: its external symbols that are defined, as C spells them.
        generic: whether it may define ``RegisterCustomOps``.

    Raises:
        Refused: a public name is missing, or there is one that another library could have as well.
    """
    missing = public_names() - {GENERIC_NAME} - defined
    if missing:
        raise Refused(f"{path}: expected an archive of the operator library, but it does not define {sentence(missing)}")
    if GENERIC_NAME in defined and not generic:
        raise Refused(
            f"{path}: defines {GENERIC_NAME}, which collides with onnxruntime-extensions and other libraries of operators; "
            f"build it without F2I_STATIC_REGISTER_CUSTOM_OPS, programs call {UNIQUE_NAME}"
        )
    strange = {name for name in defined if not name.startswith("f2i_")} - {GENERIC_NAME, UNIQUE_NAME}
    if strange:
        raise Refused(
            f"{path}: defines names that do not begin with f2i_ and may collide with a program's: {sentence(strange)}"
        )
