"""The same model in the form that onnx_ir holds whole: sparse tensors dense, external tensors in initializers only.

A Constant node of a graph whose tensor is sparse or lies in another file becomes an initializer. Where there can be none (in
functions, in other attributes) the data come into the model file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from fairy2i_export.errors import ModelError
from fairy2i_export.rewrite.opening.fields import is_sparse_constant
from fairy2i_export.rewrite.opening.sparse import Sparse
from fairy2i_export.rewrite.opening.tensors import byte_count, is_external, place_of
from fairy2i_export.rewrite.opening.walk import Spot, spots

EMBEDDED_LIMIT = 1 << 30  # bytes that may come into the model file, which can have 2 GB
_OVERRIDABLE_IR_VERSION = 4  # from here on an initializer that is an input too may be replaced by the caller


class _Strings(ir.StringTensor):
    """Strings that are too short for a data file, however many they are: ONNX has none in data files."""

    @property
    def nbytes(self) -> int:
        return 0


class Normal:
    """Brings a model into that form, in place.

    Args:
        model: the file as it was parsed, without problems.
        found: all its messages.
        path: of the file.

    Attributes:
        sparse: location of a placeholder -> the sparse tensor it stands for.
    """

    def __init__(self, model: onnx.ModelProto, found: list[Spot], path: Path) -> None:
        self.sparse: dict[str, Sparse] = {}
        self._path = path
        self._embedded = 0
        if any(_must_change(spot) for spot in found):
            for spot in found:
                if spot.kind == "GraphProto" and spot.inside("FunctionProto") is None:
                    self._lift_constants(spot.message)
            for spot in found:
                if spot.kind == "GraphProto":
                    self._dense_initializers(spot)
            for spot in spots(model):
                if spot.kind == "AttributeProto" and is_sparse_constant(spot):
                    self._dense_constant(spot)
                elif spot.kind == "TensorProto" and is_external(spot.message) and not _is_plain_initializer(spot):
                    self._embed(spot)
        if model.ir_version < _OVERRIDABLE_IR_VERSION:
            _take_out_inputs(model)

    def fill(self, model: ir.Model) -> None:
        """Put the sparse tensors into the model that was made of the file, to be made dense when they are read.

        Strings are marked as what cannot lie in a data file.
        """
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) in self.sparse:
                    value.const_value = self.sparse[str(tensor.location)].lazy(value.name)
                elif isinstance(tensor, ir.StringTensor):
                    value.const_value = _Strings(tensor.string_data(), shape=tensor.shape, name=value.name)

    def _lift_constants(self, graph: Any) -> None:
        outputs = {value.name for value in graph.output}
        for index in reversed(range(len(graph.node))):
            node = graph.node[index]
            tensor = _far_value(node)
            if tensor is None or node.output[0] in outputs:
                continue
            if isinstance(tensor, onnx.SparseTensorProto):
                self._placeholder(graph, tensor, node.output[0])
            else:
                graph.initializer.append(tensor)
                graph.initializer[-1].name = node.output[0]
            del graph.node[index]

    def _dense_initializers(self, spot: Spot) -> None:
        graph = spot.message
        for proto in graph.sparse_initializer:
            if spot.inside("FunctionProto") is None:
                self._placeholder(graph, proto, proto.values.name)
            else:
                graph.initializer.append(self._dense(spot, proto))
        del graph.sparse_initializer[:]

    def _placeholder(self, graph: Any, proto: onnx.SparseTensorProto, name: str) -> None:
        location = f"\0{len(self.sparse)}"  # no file can be called so
        copy = onnx.SparseTensorProto()
        copy.CopyFrom(proto)
        copy.values.name = name
        self.sparse[location] = Sparse(copy, self._path.parent)
        tensor = graph.initializer.add()
        tensor.name, tensor.data_type = name, copy.values.data_type
        tensor.dims.extend(copy.dims)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    def _dense_constant(self, spot: Spot) -> None:
        attribute = spot.message
        dense = self._dense(spot, attribute.sparse_tensor)
        attribute.Clear()
        attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
        attribute.t.CopyFrom(dense)

    def _dense(self, spot: Spot, proto: onnx.SparseTensorProto) -> onnx.TensorProto:
        sparse = Sparse(proto, self._path.parent)
        self._count(spot, sparse.lazy(None).nbytes)
        return ir.serde.serialize_tensor(sparse.dense())

    def _embed(self, spot: Spot) -> None:
        tensor = spot.message
        place = place_of(tensor, self._path.parent)
        self._count(spot, byte_count(tensor))
        with place.file.open("rb") as file:
            file.seek(place.offset)
            tensor.raw_data = file.read(place.length)
        tensor.ClearField("data_location")
        del tensor.external_data[:]

    def _count(self, spot: Spot, size: int) -> None:
        self._embedded += size
        if self._embedded > EMBEDDED_LIMIT:
            raise ModelError(
                f"{self._path}: {spot}: tensors in attributes and functions would add more than {EMBEDDED_LIMIT:,} bytes to the "
                "model file, whose limit is 2 GB; make them initializers, or inline the functions: "
                "onnx.inliner.inline_local_functions"
            )


def _far_value(node: Any) -> Any:
    """The tensor, sparse or not, of a Constant node that must become an initializer."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    if len(node.output) != 1 or len(node.attribute) != 1 or node.input or node.attribute[0].ref_attr_name:
        return None
    attribute = node.attribute[0]
    if attribute.name == "sparse_value" and attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
        return attribute.sparse_tensor
    if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR and is_external(attribute.t):
        return attribute.t
    return None


def _must_change(spot: Spot) -> bool:
    if spot.kind == "TensorProto":
        return is_external(spot.message) and not _is_plain_initializer(spot)
    return spot.kind == "SparseTensorProto"


def _is_plain_initializer(spot: Spot) -> bool:
    in_graph = spot.parent is not None and spot.parent.kind == "GraphProto"
    return in_graph and spot.inside("FunctionProto") is None


def _take_out_inputs(model: onnx.ModelProto) -> None:
    """In files this old every initializer had to be listed as an input, and none of them could be replaced by callers."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    copies: Iterator[onnx.ValueInfoProto] = iter([onnx.ValueInfoProto.FromString(x.SerializeToString()) for x in inputs])
    del model.graph.input[:]
    model.graph.input.extend(copies)
    model.ir_version = _OVERRIDABLE_IR_VERSION
