"""Open an onnxruntime session: the one way for everything that runs a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from fairy2i_runtime.engine.failures import opening_failure, problem_of
from fairy2i_runtime.engine.threads import check_threads, default_threads
from fairy2i_runtime.errors import ModelFolderError, OptionError, encoding_problem
from fairy2i_runtime.folder import ISA_ENTRY, ISA_VARIABLE, KERNEL_ENTRY, KERNEL_VARIABLE
from fairy2i_runtime.ops.library import ort_version, register
from fairy2i_runtime.ops.tuning import TUNING_ENTRY, TUNING_VARIABLE, kept_tuning, tuning_file
from fairy2i_runtime.regular_file import read_regular

EXTERNAL_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"  # for models that are not read from a file
CONFIG_ENTRY_ORT = (1, 24)  # from here on a kernel can read the session's configuration entries


def open_session(
    model: Path | bytes,
    *,
    folder: Path | None = None,
    contents: bytes | None = None,
    copy: bool = False,
    threads: int | None = None,
    kernel: str | None = None,
    isa: str | None = None,
    use_library: bool = True,
    needs_library: bool = True,
    tuning: str | None = None,
    entries: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open a model on the CPU.

    Args:
        model: the .onnx file, or the contents of one; its external data is mapped, not read.
        folder: where the external data lies; beside the file by default, and needed for contents.
        contents: of the file ``model``, if they were read already: onnxruntime gets these bytes.
        copy: read the external data of ``model`` into memory instead of mapping it.
        threads: threads of the session; None = one per physical (big) core, see :mod:`fairy2i_runtime.engine.threads`.
        kernel: ``lut``, ``exact``, ``dot`` or ``auto``; None = what FAIRY2I_KERNEL says, else ``lut``.
        isa: instruction set, such as ``scalar`` or ``avx2``; None = what FAIRY2I_ISA says, else the best one here.
        use_library: False runs the operator's function body, stored in the model, with onnxruntime's own operators: slow,
            in need of memory, and independent of the library.
        needs_library: False for a model of standard operators only: the library is not looked for.
        tuning: settings for this processor, which results do not depend on (fairy2i.h); None = what FAIRY2I_TUNING says, else
            what was measured on this machine (``fairy2i tune``), unless an instruction set is named.
        entries: further entries of the session's configuration.

    Raises:
        OptionError: if an option is out of range, or the library has no such kernel for this processor.
        LibraryError: if the library is needed and does not load, or onnxruntime is too old for the model.
        ModelFolderError: if onnxruntime refuses the model.
        OutOfMemoryError: if memory is short.
    """
    if threads is not None:
        check_threads(threads)
    if not isinstance(use_library, bool):
        raise OptionError(f"use_library: expected True or False, got {use_library!r}")
    name = str(model) if isinstance(model, Path) else f"a model made of {folder}"
    check_kernel_names(name, kernel, isa, needs_library=needs_library)
    options = ort.SessionOptions()
    if contents is not None and isinstance(model, Path):
        folder = model.parent
    data = _read_data(model, options) if copy and isinstance(model, Path) else None
    if folder is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER_ENTRY, str(folder.resolve()))
    options.intra_op_num_threads = default_threads() if threads is None else int(threads)
    options.log_severity_level = 4  # fatal only: errors are raised, no need to print them too
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if needs_library and use_library:
        _choose_kernel(options, kernel, isa, kept_tuning(options.intra_op_num_threads, isa) if tuning is None else tuning)
        register(options)
    elif kernel is not None or isa is not None:
        raise OptionError("kernel and isa choose code of the operator library: they need use_library=True")
    # Without the library, folding constants would unpack every weight to float32 at once, 16 times the size.
    disabled = [] if use_library or not needs_library else ["ConstantFolding"]
    try:
        return ort.InferenceSession(
            contents if contents is not None else model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
            enable_fallback=0,  # to the same provider, after a banner on standard output
        )
    except Exception as error:  # onnxruntime's exception classes have no common base
        problem = problem_of(error)
        if "FAIRY2I_KERNEL" in problem or "FAIRY2I_ISA" in problem:  # the library does not have what was asked for
            raise OptionError(problem) from error
        if TUNING_VARIABLE in problem:
            raise OptionError(f"{problem}; correct it, or remove {tuning_file()}, where fairy2i tune kept it") from error
        raise opening_failure(name, error, model if isinstance(model, Path) else None) from error
    finally:
        del data  # onnxruntime has its own copy now


def _read_data(model: Path, options: ort.SessionOptions) -> bytes | None:
    """The external data of a model, handed to the session that is to be opened; keep it until then."""
    path = model.with_name(f"{model.name}.data")
    try:
        data = read_regular(path, 1 << 62, "weights")
    except FileNotFoundError:
        return None  # all weights are in the model's file
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    except (MemoryError, OverflowError):
        raise ModelFolderError(f"{path}: not enough memory to copy it; load the model without copy") from None
    options.add_external_initializers_from_files_in_memory([path.name], [data], [len(data)])
    return data


def check_kernel_names(model: str, kernel: object, isa: object, *, needs_library: bool) -> None:
    """Check the types of what somebody chose and of the environment's choice, not whether the library has such a kernel.

    Args:
        model: what a message calls the model.
        kernel: a name or None.
        isa: a name or None.
        needs_library: whether the model has a kernel to choose.

    Raises:
        OptionError: if one is no name, or there is none to choose.
    """
    environment = {name: os.environ.get(name) for name in (KERNEL_VARIABLE, ISA_VARIABLE)}
    for option, value in {"kernel": kernel, "isa": isa, **environment}.items():
        if value is not None and not isinstance(value, str):
            raise OptionError(f"{option}: expected a name (str), got {value!r}")
        if problem := encoding_problem(value or ""):
            raise OptionError(f"{option} {problem}; give another one")
    if not needs_library and not (kernel is None and isa is None):
        raise OptionError(
            f"{model}: kernel and isa choose code of the operator library, and this model was exported for hosts "
            "without it (--backend); leave them out, or export it with --backend fairy2i"
        )


def _choose_kernel(options: ort.SessionOptions, kernel: str | None, isa: str | None, tuning: str | None) -> None:
    if (kernel or isa) and ort_version() < CONFIG_ENTRY_ORT:
        raise OptionError(
            f"kernel and isa of one session need onnxruntime {CONFIG_ENTRY_ORT[0]}.{CONFIG_ENTRY_ORT[1]}, found "
            f"{ort.__version__}: upgrade it, or set FAIRY2I_KERNEL and FAIRY2I_ISA in the environment instead"
        )
    for key, value in ((KERNEL_ENTRY, kernel), (ISA_ENTRY, isa), (TUNING_ENTRY, tuning)):
        if value is not None:
            options.add_session_config_entry(key, value)
