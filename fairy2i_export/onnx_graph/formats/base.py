"""What a format is: one way to write a linear layer in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fairy2i_export.codes.choices import RowChoice
from fairy2i_export.codes.native import Workers
from fairy2i_export.codes.quantized import Coded
from fairy2i_export.onnx_graph.writer import GraphWriter

Treatment = Literal["fairy2i", "dense", "int8", "int4"]
Outputs = dict[str, tuple[ir.DataType, tuple[int, ...]]]  # key of an initializer -> type and shape
Put = Callable[[str, npt.NDArray[np.generic]], None]  # key of an initializer, next piece of it
# gets a layer's codes, takes pieces of the initializers in their order, and threads; returns the relative quantization error
Write = Callable[[Coded, Put, Workers], float]


@dataclass(frozen=True)
class Linear:
    """One linear layer and what becomes of it."""

    name: str  # module name
    weight: str  # tensor name, [out_features, in_features]
    bias: str | None  # tensor name, [out_features]
    in_features: int  # K
    out_features: int  # N
    treatment: Treatment
    reason: str = ""  # why it is not fairy2i
    stages: int = 0  # of a fairy2i layer
    col_multiplier: bool = False  # whether there are factors per input column
    conjugate: bool = False  # W conj(x): the tensor is W, [out_features, in_features / 2], real parts above imaginary ones
    activation_bits: int = 0  # that every half of a row of its input is rounded to; 0: it is not rounded
    shares: str = ""  # module whose rounded matrix it multiplies by, too: a tied lm_head

    @property
    def parameters(self) -> int:
        """Weights: real ones, or the complex ones of W conj(x)."""
        return self.in_features * self.out_features // (4 if self.conjugate else 1)


class Settings(Protocol):
    """What a format has to know about the options in force."""

    @property
    def backend(self) -> str: ...
    @property
    def row_multiplier(self) -> RowChoice: ...
    @property
    def dense_type(self) -> str: ...
    @property
    def accuracy_level(self) -> int: ...


class Weights(Protocol):
    """Where a format gets initializers from: their contents need not exist yet."""

    @property
    def settings(self) -> Settings:
        """The options in force."""

    def coded(self, linear: Linear, outputs: Outputs, write: Write) -> dict[str, ir.TensorProtocol]:
        """Initializers that are made of the codes of a layer, called after the layer and their keys in ``outputs``."""

    def dense(
        self,
        tensor: str,
        dtype: npt.DTypeLike = np.float32,
        *,
        name: str = "",
        transposed: bool = False,
        plus: float = 0.0,
        times: float = 1.0,
    ) -> ir.TensorProtocol:
        """A tensor converted to float32 or float16, optionally transposed, or with a constant added and then multiplied."""

    def rounded(self, tensor: str, name: str, bits: int, *, blocked: bool) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
        """(data uint8, scales float32) of a matrix rounded to 8 or 4 bits in blocks of columns, see formats/rounded.py."""

    def turn(self, module: str) -> ir.TensorProtocol | None:
        """What makes of a shared matrix that of ``module``: the factor of the input in front of it; None: they are equal.

        float32 [in_features, in_features].
        """


# graph, weights, layer, x [..., K], bias [N] or None -> y [..., N]
MakeNodes = Callable[[GraphWriter, Weights, Linear, ir.Value, ir.Value | None], ir.Value]
# graph, weights, layers, x [..., K] that all of them read -> y [..., N] of each
MakeJointNode = Callable[[GraphWriter, Weights, Sequence[Linear], ir.Value], list[ir.Value]]


@dataclass(frozen=True)
class Format:
    """One way to write a linear layer.

    Attributes:
        name: for ``--backend``, if the layers it writes are quantized.
        operator: the ONNX operator that multiplies, for reports.
        library: whether the model needs the operator library (or, slowly, the function body that then goes with it).
        options: options, by name, that mean something to this format only.
        nodes: appends the nodes of a layer.
        stored_bytes: bytes of a layer in the file without bias and multipliers, from its shape.
        copied_bytes: bytes of the copy that ONNX Runtime makes of them for its kernels when it loads the model; 0 if they
            are used where they lie in the mapped file.
        rounds_activations: rounds the input of layers that have ``activation_bits`` itself.
        joint_node: appends one node for two or three layers that read the same x; None: each has its own.
    """

    name: str
    operator: str
    library: bool
    options: tuple[str, ...]
    nodes: MakeNodes
    stored_bytes: Callable[[Linear, Settings], int]
    copied_bytes: Callable[[Linear, Settings], int]
    rounds_activations: bool = False
    joint_node: MakeJointNode | None = None


def multiplier_outputs(linear: Linear, settings: Settings) -> Outputs:
    """The initializers for the multipliers that a layer has."""
    outputs: Outputs = {}
    if settings.row_multiplier != "none":
        outputs["row_multiplier"] = (ir.DataType.FLOAT, (linear.out_features,))
    if linear.col_multiplier:
        outputs["col_multiplier"] = (ir.DataType.FLOAT, (linear.in_features,))
    return outputs


def put_multipliers(coded: Coded, put: Put) -> None:
    """Write the initializers of :func:`multiplier_outputs`."""
    if coded.row_multiplier is not None:
        put("row_multiplier", coded.row_multiplier)
    if coded.col_multiplier is not None:
        put("col_multiplier", coded.col_multiplier)


def bias_of(graph: GraphWriter, weights: Weights, linear: Linear) -> ir.Value | None:
    """The bias of a layer [N] as an initializer, or None."""
    return None if linear.bias is None else graph.initializer(weights.dense(linear.bias))


def add_bias(graph: GraphWriter, name: str, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    """The product plus the bias, where there is one."""
    return product if bias is None else graph.op(f"{name}/bias", "Add", [product, bias])
