"""Run a model folder in onnxruntime-genai, as it is: nothing is copied into it, and the same one serves every system.

>>> import onnxruntime_genai
>>> from fairy2i_runtime import genai
>>> model = genai.load("stories-onnx", threads=2)
>>> tokenizer = onnxruntime_genai.Tokenizer(model)

genai_config.json names the operator library, which onnxruntime-genai takes from the model folder, from the working directory, or
by a bare name from the system's loader; a path elsewhere it refuses. So the installed library is loaded here first, and its name
is laid over that of the file, in memory.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairy2i_runtime.engine.failures import opening_failure
from fairy2i_runtime.engine.session import check_kernel_names
from fairy2i_runtime.engine.threads import check_threads, default_threads, warn_of_too_many
from fairy2i_runtime.errors import LibraryError, ModelFolderError, OptionError, check_text
from fairy2i_runtime.folder import (
    CONFIG_FILE,
    ISA_ENTRY,
    KERNEL_ENTRY,
    KERNEL_VARIABLE,
    LIBRARY_ENTRY,
    ModelFolder,
    open_folder,
)
from fairy2i_runtime.jsonfile import read_json
from fairy2i_runtime.ops import core
from fairy2i_runtime.ops.library import library_path, load_by_name
from fairy2i_runtime.ops.tuning import TUNING_ENTRY, kept_tuning

if TYPE_CHECKING:
    import onnxruntime_genai

MINIMUM_GENAI = (0, 12)  # hands entries it does not know on to the session, such as the kernel
_INSTALL = "pip install --upgrade 'onnxruntime-genai>={}.{}'".format(*MINIMUM_GENAI)


def load(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    kernel: str | None = None,
    isa: str | None = None,
    provider: str | None = None,
) -> onnxruntime_genai.Model:
    """Load a model folder written by fairy2i-export into onnxruntime-genai. Arguments are those of :func:`config`.

    Raises:
        ModelFolderError: if the folder is missing, incomplete or damaged.
        LibraryError: if onnxruntime-genai or the operator library is missing, too old or does not load.
        OptionError: if an option is unknown or out of range.
        OutOfMemoryError: if memory is short.
    """
    chosen = config(folder, threads=threads, kernel=kernel, isa=isa, provider=provider)
    genai = _import_genai()
    try:
        return genai.Model(chosen)
    except Exception as error:  # what it raises depends on the library underneath
        if provider is not None and not _is_processor(provider):
            raise OptionError(
                f"provider: onnxruntime-genai {genai.__version__} cannot run {folder} on {provider!r}: {error}; install the "
                "onnxruntime-genai that has it, or leave provider out, for the processor"
            ) from error
        opener = f"onnxruntime-genai {genai.__version__}"
        raise opening_failure(str(folder), error, open_folder(folder).model_file, opener) from error


def config(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    kernel: str | None = None,
    isa: str | None = None,
    provider: str | None = None,
) -> onnxruntime_genai.Config:
    """What onnxruntime-genai makes a model of, for programs that change more of it (``overlay``) before they do.

    Args:
        folder: the folder, of any backend.
        threads: threads to run with; None = what genai_config.json says, else one per physical (big) core, where
            onnxruntime-genai alone takes half of the logical processors.
        kernel: ``lut``, ``exact``, ``dot`` (which multiplies) or ``auto`` (which may); None = what FAIRY2I_KERNEL says,
            else what the folder says, else ``lut``.
        isa: instruction set, such as ``scalar`` or ``avx2``; None = the best one.
        provider: execution provider by onnxruntime-genai's name, such as ``cuda``, instead of those in genai_config.json; ``cpu`` =
            none of them. The operator library's layers run on the processor whatever it is. Whether this build of
            onnxruntime-genai has it shows when the model is made of the configuration.

    Raises:
        ModelFolderError: if the folder is missing or its configuration is damaged.
        LibraryError: if onnxruntime-genai or the operator library is missing, too old or does not load.
        OptionError: if an option is unknown or out of range.
    """
    genai = _import_genai()
    opened = open_folder(folder)
    path = opened.path.absolute()  # the tokenizer is read from it later
    if threads is not None:
        check_threads(threads)
    if provider is not None and not check_text("provider", provider):
        raise OptionError("provider: expected the name of an execution provider, such as 'cpu' or 'cuda', got an empty text")
    check_kernel_names(str(path), kernel, isa, needs_library=opened.needs_library)
    _check_libraries(path / CONFIG_FILE, opened)
    entries = _session_entries(path / CONFIG_FILE, threads)
    if opened.needs_library:
        entries |= _library_entries(path, opened, kernel, isa)
        tuning = kept_tuning(int(entries.get("intra_op_num_threads", 0)), isa)
        entries |= {} if tuning is None else {TUNING_ENTRY: tuning}
    try:
        made = genai.Config(str(path))
        made.overlay(json.dumps({"model": {"decoder": {"session_options": entries}}}))
        if provider is not None:  # overlay adds to a list and never shortens it
            made.clear_providers()
            if not _is_processor(provider):  # which is what there is without one; 0.12 does not know its name
                made.append_provider(provider)
    except Exception as error:  # RuntimeError for JSON that it reads otherwise than Python does
        raise ModelFolderError(
            f"{path / CONFIG_FILE}: onnxruntime-genai {genai.__version__} refuses it: {error}; export the model again"
        ) from error
    return made


def _import_genai() -> Any:
    """The package, imported when it is needed: nothing else here asks for it."""
    try:
        import onnxruntime_genai
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime_genai":
            raise LibraryError(f"onnxruntime_genai needs the package {error.name}, which is missing: {_INSTALL}") from error
        raise LibraryError(f"expected the package onnxruntime_genai, which is not installed: {_INSTALL}") from None
    except ImportError as error:  # of another onnxruntime, or of a system that is too old
        raise LibraryError(f"onnxruntime_genai cannot be imported: {error}; try {_INSTALL} onnxruntime") from error
    version = str(getattr(onnxruntime_genai, "__version__", "unknown"))
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    if tuple(numbers) < MINIMUM_GENAI:
        raise LibraryError(
            "expected onnxruntime_genai {}.{} or newer, found {} in {}: {}".format(
                *MINIMUM_GENAI, version, Path(onnxruntime_genai.__file__).parent, _INSTALL
            )
        )
    return onnxruntime_genai


def _is_processor(provider: str) -> bool:
    return provider.lower() in ("cpu", "cpuexecutionprovider")


def _session_entries(path: Path, threads: int | None) -> dict[str, Any]:
    """Session options for a model of any backend; what the file says itself is not repeated."""
    written = read_json(path)["model"]["decoder"].get("session_options")
    written = written if isinstance(written, dict) else {}
    entries: dict[str, Any] = {}
    stated = written.get("intra_op_num_threads")
    if threads is None and isinstance(stated, int):
        warn_of_too_many(stated)
    count = default_threads() if threads is None and stated is None else threads
    if count:  # 0: unknown on this system
        entries["intra_op_num_threads"] = int(count)
    if "log_severity_level" not in written:
        entries["log_severity_level"] = 4  # fatal only: errors are raised, no need to print them too
    return entries


def _library_entries(path: Path, folder: ModelFolder, kernel: str | None, isa: str | None) -> dict[str, str]:
    """Session options that name the installed library, and what to run in it.

    Raises:
        LibraryError: if it is missing or does not load, or onnxruntime-genai would find another one before it.
        OptionError: if it has no such kernel for this processor.
    """
    name = load_by_name()
    for place in (path, Path.cwd()):
        other = place / name
        if other.is_file() and not filecmp.cmp(other, library_path(), shallow=False):
            raise LibraryError(
                f"{other} is another library than the installed one, {library_path()}, and onnxruntime-genai would run it: "
                f"remove it, no copy is needed{'' if place == path else ', or work in another directory'}"
            )
    # the environment comes before the folder, which the session would heed first
    family = kernel if kernel is not None else os.environ.get(KERNEL_VARIABLE) or folder.kernel
    try:
        core.chosen_kernel(family, isa)
    except core.KernelError as error:
        raise OptionError(str(error)) from error
    chosen = {KERNEL_ENTRY: family, ISA_ENTRY: isa}
    return {LIBRARY_ENTRY: name, **{entry: value for entry, value in chosen.items() if value is not None}}


def _check_libraries(path: Path, folder: ModelFolder) -> None:
    """Refuse a configuration that names a library in a place where it is not replaced: loading one is executing it.

    Raises:
        ModelFolderError: if there is one.
    """
    named = 0

    def count(pairs: list[tuple[str, Any]]) -> None:
        nonlocal named
        named += sum(key == LIBRARY_ENTRY for key, _ in pairs)

    # pairs, not dictionaries: of a key that comes twice those keep one, and onnxruntime-genai reads both
    json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=count)
    if named != int(folder.needs_library):
        raise ModelFolderError(
            f"{path}: expected {LIBRARY_ENTRY} once, in model.decoder.session_options, or nowhere; found it {named} times. "
            "onnxruntime-genai would load what stands elsewhere: remove it, or export the model again"
        )
