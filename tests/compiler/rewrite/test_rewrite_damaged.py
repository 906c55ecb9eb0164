"""Damaged and malformed models: one message or a model that loads, nothing left behind; and models onnxruntime refuses."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fairy2i_export.commands.export import main
from fairy2i_export.errors import Fairy2iError, ModelError
from fairy2i_export.output.contract.trial import try_model
from fairy2i_export.rewrite import pipeline
from fuzz.mutations import change_bytes, change_field
from rewrite_helpers import function_calls, rewrite_onnx, run
from sound_models import (
    SOUND,
    K,
    W,
    branches,
    model_of,
    node,
)

# mutations


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.usefixtures("quiet")
def test_mutations(name: str, tmp_path: Path) -> None:
    """Every one ends with a model that onnxruntime loads, or with one of our errors; nothing else lies there afterwards."""
    dice = random.Random(name)
    path, out = tmp_path / "m.onnx", tmp_path / "out"
    ends: Counter[str] = Counter()
    for round_ in range(60):
        change = change_bytes if round_ % 3 == 0 else change_field
        path.write_bytes(change(SOUND[name]().SerializeToString(), dice))
        try:
            report = rewrite_onnx(path, out, trained=True, jobs=1)
        except Fairy2iError:
            ends["refused"] += 1
            assert [x.name for x in tmp_path.iterdir()] == ["m.onnx"]
            continue
        ends["written"] += 1
        if not any("was not loaded" in warning for warning in report.warnings):
            assert try_model(out / "model.onnx").refusal == ""
        for file in out.iterdir():
            file.unlink()
        out.rmdir()
    assert min(ends["refused"], ends["written"]) > 5, ends


def test_what_is_mutated_is_sound(tmp_path: Path) -> None:
    for number, make in enumerate(SOUND.values()):
        onnx.save(make(), tmp_path / f"{number}.onnx")
        assert rewrite_onnx(tmp_path / f"{number}.onnx", tmp_path / str(number)).rewritten


# malformed nodes


def product(weight: str = "a", **attributes: Any) -> onnx.NodeProto:
    return node("MatMul", f"x {weight}", "y", **attributes)


LEFT: list[tuple[str, list[onnx.NodeProto], str]] = [
    ("axis out of range", [node("Transpose", "w", "a", perm=[0, 7]), product()], "the constant a cannot be computed"),
    ("one axis twice", [node("Transpose", "w", "a", perm=[1, 1]), product()], "the constant a cannot be computed"),
    ("too few axes", [node("Transpose", "w", "a", perm=[0]), product()], "the constant a cannot be computed"),
    ("axes as text", [node("Transpose", "w", "a", perm="10"), product()], "the constant a cannot be computed"),
    ("cast to nothing", [node("Cast", "w", "a"), product()], "the constant a cannot be computed"),
    ("cast to a type unknown", [node("Cast", "w", "a", to=99), product()], "the constant a cannot be computed"),
    ("cast to text", [node("Cast", "w", "a", to="float"), product()], "the constant a cannot be computed"),
    ("constant without a value", [node("Constant", "", "a"), product()], "the constant a cannot be computed"),
    (
        "constant that is a wrong one",
        [node("Constant", "", "a", value_int="x"), product()],
        "the constant a cannot be computed",
    ),
    ("too large for memory", [node("ConstantOfShape", "big", "a"), product()], "the constant a cannot be computed"),
    ("no inputs", [node("MatMul", "", "y")], "malformed: 0 inputs"),
    ("one input", [node("MatMul", "x", "y")], "malformed: 1 inputs"),
    ("a third input", [node("MatMul", "x w b", "y")], "malformed: 3 inputs"),
    ("no outputs", [node("MatMul", "x w", ""), node("Relu", "x", "y")], "malformed: 0 outputs"),
    ("two outputs", [node("MatMul", "x w", "y u")], "malformed: 2 outputs"),
    ("an unknown attribute", [product("w", alpha=2.0)], "malformed: attribute alpha of type FLOAT"),
    ("a number as text", [node("Gemm", "x w", "y", transB="yes")], "malformed: attribute transB of type STRING"),
    ("a float for an integer", [node("Gemm", "x w", "y", transB=1.0)], "malformed: attribute transB of type FLOAT"),
    ("four inputs", [node("Gemm", "x w b b", "y")], "malformed: 4 inputs"),
]


@pytest.mark.parametrize(("nodes", "reason"), [pytest.param(*row[1:], id=row[0]) for row in LEFT])
def test_malformed_nodes_are_left_with_the_reason(
    nodes: list[onnx.NodeProto], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(model_of(nodes, big=np.full(2, 1 << 40)).SerializeToString())
    for arguments in ([], ["--dry-run"]):
        assert main([str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out"), *arguments]) == 2
        said = capfd.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert reason in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def circle(model: onnx.ModelProto) -> None:
    model.graph.node.extend([node("Neg", "u", "v"), node("Neg", "v", "u")])


def two_makers(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Neg", "x", "y"))


def maker_of_a_weight(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Neg", "x", "b"))


def weight_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node.append(node("Add", "x nowhere", "u"))


def dangling_in_a_branch(model: onnx.ModelProto) -> None:
    made = branches([node("Add", "x nowhere", "u")], "u")
    made[-1].output[0] = "other"
    model.graph.node.extend(made)


def no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def nothing_at_all(model: onnx.ModelProto) -> None:
    model.Clear()


def no_utf8(model: onnx.ModelProto) -> None:
    data = model.SerializeToString().replace(b"MatMul y", b"MatMul \xff")
    model.ParseFromString(data)


def short_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def absurd_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-K, -K]


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def unknown_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 77


DAMAGE: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (circle, "wait for each other in a circle"),
    (two_makers, "'Neg y' ('Neg') makes 'y', which is made elsewhere too"),
    (maker_of_a_weight, "makes 'b', which is made elsewhere too"),
    (weight_twice, "two inputs or two initializers are called 'w'"),
    (dangling, "node 'Add u' ('Add') reads 'nowhere', which nothing makes"),
    (dangling_in_a_branch, "'then_branch' of node 'If y' ('If'): node 'Add u' ('Add') reads 'nowhere'"),
    (no_output, "the graph: its output 'nowhere' is made by nothing in it"),
    (no_nodes, "its output 'y' is made by nothing"),
    (nothing_at_all, "imports no standard ONNX operators"),
    (no_utf8, r"node 'MatMul \\xff' ('MatMul'): name is not UTF-8"),
    (short_tensor, "tensor 'w': has 255 bytes of data, its shape [8, 8] needs 256"),
    (absurd_shape, "tensor 'w': has 256 bytes of data"),
    (negative_shape, "tensor 'w': has the shape [-8, -8]"),
    (unknown_type, "tensor 'w': number format 99 is unknown"),
    (unknown_input_type, "value 'x': is of number format 77"),
]


@pytest.mark.parametrize(("damage", "words"), [pytest.param(*row, id=row[0].__name__) for row in DAMAGE])
def test_damaged_models_are_refused_by_name(
    damage: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_of([product("w")])
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for arguments in ([], ["--dry-run"]):
        assert main([str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out"), *arguments]) == 2
        said = capfd.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert words in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_nodes_in_any_order(tmp_path: Path) -> None:
    """Onnxruntime sorts them itself."""
    model = model_of([node("Neg", "p", "y"), node("MatMul", "n w", "p"), node("Relu", "x", "n")])
    onnx.save(model, tmp_path / "m.onnx")
    assert len(rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out").rewritten) == 1
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")


@pytest.mark.parametrize("op", ["Identity", "Transpose"])
def test_a_weight_behind_thousands_of_nodes(op: str, tmp_path: Path) -> None:
    chain = [node(op, f"c{i}" if i else "w", f"c{i + 1}") for i in range(2000)]
    onnx.save(model_of([*chain, product("c2000")]), tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert report.passes["prune nodes"] == 2000
    onnx.save(model_of([product("w")]), tmp_path / "n.onnx")
    rewrite_onnx(tmp_path / "n.onnx", tmp_path / "plain")
    x = {"x": W[:2]}
    outputs = [run(tmp_path / name / "model.onnx", x, library=True)[0] for name in ("out", "plain")]
    np.testing.assert_array_equal(*outputs)


# what onnxruntime refuses


def refused_for_shapes() -> onnx.ModelProto:
    return model_of([node("MatMul", "x w", "p"), node("Add", "p odd", "y")], odd=np.zeros(5, np.float32))


def refused_for_an_operator() -> onnx.ModelProto:
    return model_of([node("MatMul", "x w", "p"), node("NoSuchThing", "p", "y")])


def refused_for_an_attribute() -> onnx.ModelProto:
    return model_of([node("MatMul", "x w", "p"), node("Relu", "p", "y", slope=0.5)])


@pytest.mark.parametrize("make", [refused_for_shapes, refused_for_an_operator, refused_for_an_attribute])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_source_that_onnxruntime_refuses_is_not_rewritten(
    make: Callable[[], onnx.ModelProto], dry_run: bool, tmp_path: Path
) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx: ONNX Runtime refuses the model as it is: .*; nothing was written"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", dry_run=dry_run)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_fault_of_ours_is_not_written(dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a pass does wrong: here it takes away a bias that is used."""

    def too_much(orphans: Any) -> tuple[int, int]:
        graph = next(iter(orphans)).graph
        del graph.initializers["b"]
        return 0, 1

    monkeypatch.setattr(pipeline, "prune", too_much)
    onnx.save(model_of([product("w"), node("Add", "x b", "u")]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"ONNX Runtime loads this model but not what was made of it: .*please report it"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", dry_run=dry_run)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def of_another_library(with_mistake: bool = False) -> onnx.ModelProto:
    model = model_of([node("MatMul", "x w", "p"), node("Attention", "p", "y", domain="com.acme")])
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    if with_mistake:
        model.graph.node.append(node("Relu", "x", "u", slope=0.5))
    return model


def test_operators_of_another_library_are_not_tried(tmp_path: Path) -> None:
    onnx.save(of_another_library(), tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", trained=True)
    assert len(report.rewritten) == 1
    assert [warning.partition(",")[0] for warning in report.warnings] == ["the model has operators of 'com.acme'"]
    onnx.checker.check_model(tmp_path / "out" / "model.onnx")


def test_their_structure_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(orphans: Any) -> tuple[int, int]:
        graph = next(iter(orphans)).graph
        del graph.initializers["b"]
        return 0, 1

    monkeypatch.setattr(pipeline, "prune", too_much)
    model = of_another_library()
    model.graph.node.append(node("Add", "x b", "u"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"what was made of it is no ONNX model: .*reads 'b', which nothing makes"):
        rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_without_an_implementation_here(tmp_path: Path) -> None:
    """bfloat16 products: right, but not for this processor, before and after."""
    model = model_of(
        [
            node("Cast", "x", "h", to=16),
            node("Cast", "w", "v", to=16),
            node("MatMul", "h v", "p"),
            node("Cast", "p", "y", to=1),
        ]
    )
    model.graph.node.extend([node("Cast", "h", "h2", to=16), node("Gemm", "h2 h2", "u", transB=1)])
    onnx.save(model, tmp_path / "m.onnx")
    report = rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", trained=True)
    assert [warning.partition(",")[0] for warning in report.warnings] == [
        "ONNX Runtime has no implementation for this processor"
    ]


# time


def shared_weight(count: int) -> onnx.ModelProto:
    return model_of([node("MatMul", "x w", f"p{i}") for i in range(count)] + [node("Neg", "p0", "y")])


def no_names(count: int) -> onnx.ModelProto:
    model = shared_weight(count)
    for each in model.graph.node:
        each.name = ""
    return model


def own_weights(count: int) -> onnx.ModelProto:
    nodes = [node("Gemm", f"x w{i} b", f"p{i}") for i in range(count)] + [node("Neg", "p0", "y")]
    return model_of(nodes, **{f"w{i}": W + i for i in range(count)})


def chain(count: int) -> onnx.ModelProto:
    nodes = []
    for i in range(count):
        nodes += [node("MatMul", f"c{i} w" if i else "x w", f"p{i}"), node("Add", f"p{i} b", f"c{i + 1}")]
    return model_of([*nodes, node("Neg", f"c{count}", "y")])


@pytest.mark.parametrize("make", [shared_weight, no_names, own_weights, chain])
def test_the_work_grows_with_the_number_of_products_and_no_faster(
    make: Callable[[int], onnx.ModelProto], tmp_path: Path
) -> None:
    """Counted in calls of functions, which are the same in every run."""
    calls = []
    for count in (50, 100, 200):
        onnx.save(make(count), tmp_path / "m.onnx")
        calls.append(function_calls(lambda: rewrite_onnx(tmp_path / "m.onnx", tmp_path / "out", force=True, jobs=1)))
    assert calls[2] - calls[1] < 2.1 * (calls[1] - calls[0])
