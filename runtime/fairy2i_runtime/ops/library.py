"""Find the operator library and register it with onnxruntime.

The library is native code, so it is only ever taken from two places: the file named by the environment variable
``FAIRY2I_LIBRARY``, else the one packaged in ``fairy2i_runtime/lib``. Nothing in a model folder can name a library.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from fairy2i_runtime.errors import LibraryError, OptionError

if TYPE_CHECKING:  # the exporter and training use the library without onnxruntime
    import onnxruntime as ort

LIBRARY_VARIABLE = "FAIRY2I_LIBRARY"
MINIMUM_ORT = (1, 18)  # the C API version the library asks for
_LIBRARY_NAMES = {"Darwin": "libfairy2i_ops.dylib", "Windows": "fairy2i_ops.dll"}
# what the loader of a system calls a library that is loaded; on Windows it is the name of the file
_LOADED_NAMES = {"Darwin": "@rpath/libfairy2i_ops.dylib", "Linux": "libfairy2i_ops.so"}
_ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
_registered: weakref.WeakSet[ort.SessionOptions] = weakref.WeakSet()


def library_folder() -> Path:
    """Where the build puts the packaged library and its header."""
    return Path(__file__).resolve().parent.parent / "lib"


def library_path() -> str:
    """Absolute path of the operator library.

    Raises:
        LibraryError: if the file named by ``FAIRY2I_LIBRARY``, or else the packaged one, does not exist.
    """
    override = os.environ.get(LIBRARY_VARIABLE)
    if override:
        path = Path(override).absolute()
        if not path.is_file():
            raise LibraryError(f"{LIBRARY_VARIABLE} names {path}, which is not a file; correct it or unset it")
        return str(path)
    name = _LIBRARY_NAMES.get(platform.system(), "libfairy2i_ops.so")
    path = library_folder() / name
    if not path.is_file():
        raise LibraryError(
            f"the operator library is missing: expected {path}. Reinstall fairy2i-runtime for this platform "
            f"({platform.system()} {platform.machine()}), or set {LIBRARY_VARIABLE} to a library you built"
        )
    return str(path)


def register(session_options: ort.SessionOptions) -> None:
    """Register the operator library with an onnxruntime session's options. Calling it again has no effect.

    Args:
        session_options: an ``onnxruntime.SessionOptions``.

    Raises:
        LibraryError: if the library is missing or does not load, or onnxruntime is older than 1.18.
        OptionError: if it is something else.
    """
    import onnxruntime as ort

    if not isinstance(session_options, ort.SessionOptions):
        raise OptionError(
            f"session_options: expected an onnxruntime.SessionOptions, got {type(session_options).__name__} {session_options!r:.60}"
        )
    if session_options in _registered:  # onnxruntime itself refuses a second registration
        return
    if ort_version() < MINIMUM_ORT:
        raise LibraryError(
            f"onnxruntime {MINIMUM_ORT[0]}.{MINIMUM_ORT[1]} or newer is needed, found {ort.__version__}; "
            "run: pip install --upgrade onnxruntime"
        )
    path = library_path()
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime's exception classes have no common base
        raise LibraryError(f"onnxruntime cannot load {path}: {load_problem(Path(path), error)}") from error
    _registered.add(session_options)


def load_by_name() -> str:
    """Load the library into this process, for a program that takes libraries by name only, as onnxruntime-genai does.

    Returns:
        The name by which the system's loader gives this very library to whoever asks from now on: its soname on Linux, its
        install name on macOS, the name of its file on Windows.

    Raises:
        LibraryError: if the library is missing, does not load, or its name means another one.
    """
    path = library_path()
    name = _LOADED_NAMES.get(platform.system(), Path(path).name)
    try:
        handle = ctypes.CDLL(path)._handle  # stays loaded until the process ends
    except OSError as error:
        raise LibraryError(f"cannot load {path}: {load_problem(Path(path), error)}") from error
    try:
        found = ctypes.CDLL(name)._handle
    except OSError:
        found = None
    if found != handle:
        what = "nothing" if found is None else "another library, which this process loaded earlier"
        raise LibraryError(
            f"expected that the system knows {path} by the name {name} once it is loaded, found {what}. Set {LIBRARY_VARIABLE} "
            "before the program starts, if at all, and to a library that was built with this project's CMakeLists.txt"
        )
    return name


def ort_version() -> tuple[int, int]:
    """Major and minor version of the onnxruntime that is imported."""
    import onnxruntime as ort

    numbers = [int(number) for number in re.findall(r"\d+", ort.__version__)]
    return numbers[0], numbers[1]


def load_problem(path: Path, error: Exception) -> str:
    """The likeliest reason a library did not load: its processor architecture, else what onnxruntime says."""
    with path.open("rb") as file:
        header = file.read(20)
    if header[:4] == b"\x7fELF" and len(header) == 20:
        built_for = int.from_bytes(header[18:20], "big" if header[5] == 2 else "little")
        name = _ELF_MACHINES.get(built_for, f"ELF machine {built_for}")
        here = {"AMD64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "armv8l": "arm", "i686": "x86", "riscv64": "riscv"}
        machine = here.get(platform.machine(), platform.machine())
        if name != machine:
            return f"it is built for {name} and this is {machine}; install the build for this machine"
    return str(error)
