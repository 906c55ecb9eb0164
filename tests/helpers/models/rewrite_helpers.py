"""Small ONNX models for the rewriter, and the comparison that every rewritten model has to pass.

The expected output is that of the *original* model in onnxruntime with the matrix of every rewritten node replaced by the
dense matrix of its codes, which is computed by tests/helpers/oracle.py from the unpacked bytes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import oracle
from fairy2i_export.codes.layout import PackedLinear, unpack
from fairy2i_export.rewrite import RewriteReport, rewrite_onnx
from fairy2i_runtime import register

Array = npt.NDArray[Any]


def save_model(
    path: Path,
    nodes: str,
    inputs: Mapping[str, tuple[str, Sequence[int | str]]],
    outputs: Mapping[str, str],
    initializers: Mapping[str, Array],
    *,
    opset: int = 18,
    external: bool = False,
) -> Path:
    """Write a model from node lines in ONNX text syntax; inputs are name -> (type, shape), outputs name -> type."""
    types = {"float": 1, "float16": 10, "bfloat16": 16, "double": 11, "int64": 7}
    body = f"agraph () => () {{\n{nodes}\n}}"
    graph = onnx.parser.parse_graph(body)
    graph.input.extend(helper.make_tensor_value_info(n, types[t], list(s)) for n, (t, s) in inputs.items())
    graph.output.extend(helper.make_tensor_value_info(n, types[t], None) for n, t in outputs.items())
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    for i, node in enumerate(graph.node):
        node.name = node.name or f"node{i}"
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def run(model: Path | onnx.ModelProto, feeds: Mapping[str, Array], *, library: bool = False) -> list[Array]:
    """Outputs in onnxruntime: with the C library in exact mode, or without it by the operator's function body."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.add_session_config_entry("fairy2i.kernel", "exact")
        register(options)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )
    outputs: list[Array] = session.run(None, dict(feeds))
    return outputs


def operator_matrices(folder: Path) -> dict[str, Array]:
    """Layer -> dense float64 matrix [N, K] of every Fairy2iMatMul node, multipliers included.

    A layer is called as its node, or, in nodes of several, as its codes.
    """
    model = onnx.load(folder / "model.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.domain != "ai.fairy2i":
            continue
        a = {attribute.name: attribute.i for attribute in node.attribute}
        for layer in range(len(node.output)):
            packed, scales, _, row_multiplier, _ = node.input[1 + 5 * layer : 6 + 5 * layer]
            several = len(node.output) > 1
            n, stages = (a[f"{key}_{layer}" if several else key] for key in ("N", "stages"))
            q = unpack(PackedLinear(tensors[packed], tensors[scales], n // 2, a["K"] // 2, stages))
            rows = tensors[row_multiplier][:, None] if row_multiplier else 1
            found[packed.removesuffix(".packed") if several else node.name] = oracle.dense(q.codes, q.scales) * rows
    return found


def dequantized_original(source: Path, folder: Path) -> onnx.ModelProto:
    """The original model with the operators' matrices in the place of its own."""
    model = onnx.load(source)
    matrices = operator_matrices(folder)
    replaced = 0
    for node in model.graph.node:
        if node.name not in matrices:
            continue
        matrix = matrices[node.name]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm":
            index, transposed = 1, not attributes.get("transB", 0)
            matrix = matrix / attributes.get("alpha", 1.0)
        else:
            constants = {t.name for t in model.graph.initializer}
            index = 0 if node.input[0] in constants else 1
            transposed = index == 1
        dense = (matrix.T if transposed else matrix).astype(np.float32)
        node.input[index] = f"{node.name}/dequantized"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(dense), node.input[index]))
        replaced += 1
    assert replaced == len(matrices) > 0
    return model


def assert_equal_outputs(source: Path, folder: Path, feeds: Mapping[str, Array], limit: float = 1e-5) -> None:
    """Rewritten with our library, rewritten without it, and the original with dequantized weights agree."""
    expected = run(dequantized_original(source, folder), feeds)
    for library in (True, False):
        for got, wanted in zip(run(folder / "model.onnx", feeds, library=library), expected, strict=True):
            assert got.dtype == wanted.dtype
            assert got.shape == wanted.shape
            if wanted.dtype.kind == "f":
                assert np.abs(got.astype(np.float64) - wanted).max() <= limit * max(1e-3, np.abs(wanted).max()), library
            else:
                np.testing.assert_array_equal(got, wanted)


def rewrite(source: Path, name: str = "out", **options: Any) -> RewriteReport:
    """Rewrite into a folder beside the source; checks the result as any ONNX tool would."""
    report = rewrite_onnx(source, source.parent / name, **options)
    onnx.checker.check_model(str(source.parent / name / "model.onnx"), full_check=True)
    return report


def function_calls(work: Callable[[], object]) -> int:
    """How many functions some work calls, in Python or from it: a measure that no other load on the machine changes."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def torch_export(module: Any, arguments: tuple[Any, ...], path: Path, **options: Any) -> Path:
    """Export with torch's current exporter, external data beside the model as it does by itself."""
    import torch

    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):  # transformers starts them at zero, and torch drops such biases
            torch.nn.init.normal_(parameter, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), arguments, path, dynamo=True, verbose=False, **options)
    return path
