"""Check the names that static archives of Linux give to a program: the public ones, and others that begin with f2i_.

    python custom_ops/package/archive_names.py build/host/libfairy2i_ops.a

Needs pyelftools and arpy. Archives for iOS are checked by xcframework.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from archive import members
    from elf import archive_names
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; pip install pyelftools arpy")
from public_names import Refused, check_archive_names, public_names


def main() -> None:
    """Check every archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    parser.add_argument("--register-custom-ops", action="store_true", help="it may define RegisterCustomOps")
    arguments = parser.parse_args()
    try:
        for path in arguments.archives:
            names = archive_names(members(path))
            check_archive_names(path, names, arguments.register_custom_ops)
            public = len(names & public_names())
            print(f"{path}: {public} public names, {len(names) - public} others, all beginning with f2i_")
    except Refused as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
