"""What the library does with other onnxruntime releases than the one installed, and nodes without their optional inputs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import optional_inputs
import oracle
from conftest import ROOT
from export_helpers import make_checkpoint
from fairy2i_export import export
from fairy2i_export.onnx_graph.operator import INPUTS, OP_NAME
from fairy2i_runtime import library_path, register
from fairy2i_runtime.ops import library

SOURCE = ROOT / "custom_ops"


@pytest.fixture(scope="module")
def fake_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that plays ONNX Runtime of a given version and loads the library."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    program = tmp_path_factory.mktemp("releases") / "releases"
    path = Path(library_path())
    command = ["gcc", "-std=c11", "-o", program, SOURCE / "tests" / "test_releases.c", path, f"-Wl,-rpath,{path.parent}"]
    subprocess.run([*command, "-isystem", SOURCE / "third_party" / "onnxruntime"], check=True)
    return program


@pytest.mark.parametrize("version", ["1.18.0", "1.20.1", "1.23.2", "1.24.1", "1.31.1", "1.100.0", "2.30.0"])
def test_shape_function_only_where_absent_inputs_survive_it(fake_runtime: Path, version: str) -> None:
    """Before 1.24 onnxruntime itself crashes at an absent input of an operator that has a shape function."""
    found = subprocess.run([fake_runtime, version], capture_output=True, text=True, check=True).stdout.splitlines()
    major, minor, _ = map(int, version.split("."))
    expected = "shape function" if (major, minor) >= (1, 24) else "no shape function"
    names = ["Fairy2iMatMul", "Fairy2iMatMul2", "Fairy2iMatMul3"]
    assert found == [f"{name}: API 18, {expected}" for name in names for _ in range(2)]  # float32 and float16


def test_too_old_a_runtime_is_refused(fake_runtime: Path) -> None:
    found = subprocess.run([fake_runtime, "1.17.3"], capture_output=True, text=True, check=True).stdout
    assert found == "error: Fairy2iMatMul needs ONNX Runtime 1.18 or later, this is 1.17.3\n"
    assert library.MINIMUM_ORT == (1, 18)


@pytest.mark.parametrize("use_library", [True, False])
def test_every_combination_of_optional_inputs(use_library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    seen = 0
    for case, model, feeds, expected in optional_inputs.models():
        if not use_library and not case.body:
            continue
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if use_library:
            register(options)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, feeds)[0]
        assert found.dtype == feeds["X"].dtype
        assert oracle.relative(found.astype(np.float64), expected) < (1e-3 if case.half else 1e-5), case.name
        seen += 1
    assert seen == (96 if use_library else 48)


def test_exported_nodes_name_every_input(tmp_path: Path) -> None:
    """onnx.reference demands as many inputs of a node as its function declares: absent ones have empty names."""
    export(make_checkpoint(tmp_path / "model", attention_bias=True), tmp_path / "out", row_multiplier="rms")
    model = ir.load(tmp_path / "out" / "model.onnx")
    nodes = [node for node in model.graph if node.op_type == OP_NAME]
    given = {tuple(value is not None for value in node.inputs) for node in nodes}
    assert given == {(True, True, True, bias, True, False) for bias in (False, True)}
    assert len(INPUTS) == 6
