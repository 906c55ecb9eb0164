"""Whether ONNX Runtime takes a model: a session is made of it, with our operator library, and nothing is run.

Weights are mapped, neither read nor packed again, so that models of any size take a moment. It is done in a process of its own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fairy2i_export.errors import reason_of
from fairy2i_export.output.contract.worker import WorkerEnd, call

_NO_KERNEL = "NOT_IMPLEMENTED"  # the model is right, but the operator has no implementation for this processor and type


@dataclass(frozen=True)
class Trial:
    """How ONNX Runtime took a model.

    Attributes:
        refusal: what it said against it; empty if it made a session.
    """

    refusal: str

    @property
    def no_kernel(self) -> bool:
        """Whether nothing is wrong but that the CPU has no implementation of an operator."""
        return _NO_KERNEL in self.refusal


def try_model(path: Path) -> Trial:
    """Make a session of a model, with our operators where the library is there and by their definition where not."""
    try:
        return Trial(str(call(open_on_trial, path.absolute())))
    except WorkerEnd as end:
        return Trial(f"ONNX Runtime died while it opened {path.name} ({end.how})")


def open_on_trial(path: Path) -> str:
    """The same in this process; returns the refusal."""
    import onnxruntime as ort

    from fairy2i_runtime.errors import Fairy2iRuntimeError
    from fairy2i_runtime.folder import ISA_ENTRY, KERNEL_ENTRY
    from fairy2i_runtime.ops.library import register

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(KERNEL_ENTRY, "lut")  # whatever the environment chooses: it is not the model's
    options.add_session_config_entry(ISA_ENTRY, "scalar")
    with suppress(Fairy2iRuntimeError):  # the function body stands for the operator then
        register(options)
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception classes have no common base
        return reason_of(error).replace(str(path), path.name)
    return ""
