"""Static archives: their members, whatever these are."""

from __future__ import annotations

from pathlib import Path

import arpy
from public_names import Refused

UNIVERSAL = (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")


def members(path: Path) -> dict[str, bytes]:
    """The objects in an archive: name -> bytes; the archive's own index is left out.

    Raises:
        Refused: there is no such file, or it is no archive.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) in UNIVERSAL:
                raise Refused(f"{path}: a universal file; give the archives of its architectures instead (lipo -thin)")
            file.seek(0)
            archive = arpy.Archive(fileobj=file)
            archive.read_all_headers()
            found = {
                f"{path}({name.rstrip(bytes(1)).decode()})": item.read() for name, item in archive.archived_files.items()
            }
    except OSError as error:
        raise Refused(f"{path}: expected a static archive, found none ({error.strerror})") from None
    except (arpy.ArchiveFormatError, UnicodeDecodeError):
        raise Refused(f"{path}: expected a static archive, found something else") from None
    return {name: content for name, content in found.items() if "(__.SYMDEF" not in name}
