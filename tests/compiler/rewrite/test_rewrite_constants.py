"""Constants of a model that is rewritten are computed in a process of its own: ONNX Runtime may die there, or hang."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import worker_functions
from fairy2i_export.errors import Fairy2iError
from fairy2i_export.output.contract import worker
from fairy2i_export.rewrite import rewrite_onnx
from fairy2i_export.rewrite.values import subgraph
from fairy2i_runtime.text.sandbox.process import is_apart
from rewrite_helpers import rewrite, save_model

pytestmark = pytest.mark.skipif(sys.platform == "win32" or not is_apart(), reason="needs signals and a process of its own")
K, N = 64, 32
rng = np.random.default_rng(3)
W = rng.standard_normal((K, N)).astype(np.float32)
X = {"x": ("float", ["rows", K])}
Y = {"y": "float"}
# two matrices that are computed: one of bfloat16, one of a quantizer's int8
COMPUTED = """
    wide = Mul (w, two)
    y0 = MatMul (x, wide)
    half = Cast <to = 1> (b)
    scaled = Mul (half, two)
    plain = Transpose <perm = [1, 0]> (scaled)
    back = DequantizeLinear (q, s)
    turned = Add (plain, back)
    y = MatMul (y0, turned)
"""
CONSTANTS = {
    "w": rng.standard_normal((K, K)).astype(np.float32),
    "two": np.array(2, np.float32),
    "b": W.T.astype(ml_dtypes.bfloat16),
    "q": rng.integers(-127, 128, (K, N), np.int8),
    "s": np.array(0.01, np.float32),
}
GQA = """
    o, key, value = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1099511627776> (q, q, q, , , s, t)
    w = Reshape (o, shape)
    y = MatMul (x, w)
"""
ATTENTION = {
    "q": W[None],
    "s": np.array([K - 1], np.int32),
    "t": np.array(K, np.int32),
    "shape": np.array([K, N], np.int64),
}


def deadly(folder: Path, kind: str) -> Path:
    """A model with a constant that ONNX Runtime dies of."""
    path = folder / "model.onnx"
    if kind == "gqa":
        return save_model(path, GQA, X, Y, ATTENTION)
    save_model(path, "w = Max (v, v)\ny = MatMul (x, w)", X, Y, {"v": W})
    model = onnx.load(path)
    model.graph.node[0].input[1] = ""
    onnx.save(model, path)
    return path


def files_of(folder: Path) -> dict[str, str]:
    """Name -> hash of what a rewriting writes; not the report, which says how long it took, and its hash."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name in ("model.onnx", "model.onnx.data")
    }


@pytest.mark.parametrize(("kind", "signal"), [("max", "SIGSEGV"), ("gqa", "SIGFPE")])
def test_a_death_is_one_error_and_leaves_nothing(kind: str, signal: str, tmp_path: Path) -> None:
    source = deadly(tmp_path, kind)
    for dry_run in (True, False):
        with pytest.raises(
            Fairy2iError, match=rf"^ONNX Runtime died while it computed the constant w \({signal}\): "
        ) as caught:
            rewrite_onnx(source, tmp_path / "out", dry_run=dry_run)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == [source]
    save_model(source, COMPUTED, X, Y, CONSTANTS)
    assert rewrite(source).passes["replace"] == 2


def test_a_constant_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_model(tmp_path / "model.onnx", COMPUTED, X, Y, CONSTANTS)
    before = worker.call(worker_functions.process_id)
    with monkeypatch.context() as patch:
        patch.setattr(subgraph, "compute", worker_functions.hang)
        patch.setattr(subgraph, "CONSTANT_SECONDS", 1.0)
        with pytest.raises(Fairy2iError, match=r"^ONNX Runtime computes the constant wide for more than 1 s: "):
            rewrite_onnx(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [source]
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(before)), 0)
    assert rewrite(source).passes["replace"] == 2


def test_the_same_bytes_as_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_model(tmp_path / "model.onnx", COMPUTED, X, Y, CONSTANTS, external=True)
    started = []
    real = worker._Process

    def counted() -> worker._Process:
        started.append(real())
        return started[-1]

    monkeypatch.setattr(worker, "_Process", counted)
    monkeypatch.setattr(worker, "_running", None)
    rewrite(source, "apart")
    assert len(started) == 1  # for all constants and all trials
    monkeypatch.setattr(worker, "is_apart", lambda: False)
    rewrite(source, "here")
    started[0].kill()
    assert files_of(tmp_path / "apart") == files_of(tmp_path / "here")
    assert len(files_of(tmp_path / "here")) == 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (700, 3000)], ids=str)
def test_arrays_there_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = rng.standard_normal(shape).astype(getattr(ml_dtypes, dtype, dtype))
    for given in (array, array.T):
        feeds: dict[str, Any] = {"other": np.zeros(3), "a": given}
        got = worker.call(worker_functions.twice, "a", feeds=feeds, seconds=60)
        assert isinstance(got, np.ndarray)
        assert (got.dtype, got.shape) == (given.dtype, given.shape)
        np.testing.assert_array_equal(got.astype(np.float64), given.astype(np.float64) * 2)
        assert not feeds  # each is let go when it is sent


@pytest.mark.parametrize(
    "array",
    [np.arange(6, dtype=np.int64).reshape(2, 3), np.array([1, -8, 7]).astype(ml_dtypes.int4), np.array(["a", "b"], object)],
    ids=["int64", "int4", "text"],
)
def test_other_arrays_there(array: Any) -> None:
    said = worker.call(worker_functions.twice, "a", feeds={"a": array})
    assert said == f"{array.dtype.name} {array.shape} {np.asarray(array, object).tolist()}"


def test_texts_are_constants_too(tmp_path: Path) -> None:
    nodes = "number = Cast <to = 1> (text)\nscaled = Mul (w, number)\ny = MatMul (x, scaled)"
    source = save_model(tmp_path / "model.onnx", nodes, X, Y, {"w": W, "text": np.array("1.5", object)})
    assert rewrite(source).passes["replace"] == 1
