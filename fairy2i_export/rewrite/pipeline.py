"""The rewrite itself: ONNX model in, folder out. Reads top to bottom; every pass lives in a file of its own."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir

from fairy2i_export.codes.choices import check_stages
from fairy2i_export.codes.native import check_library, kernel_problem
from fairy2i_export.errors import ModelError, check_path
from fairy2i_export.onnx_graph.operator import layers_in
from fairy2i_export.output.companions import copy_genai_files, genai_config_of
from fairy2i_export.output.contents import REPORT, REWRITE_MARKERS
from fairy2i_export.output.data_file import ALIGNMENT, DATA, MODEL
from fairy2i_export.output.disk.space import check_space
from fairy2i_export.output.progress import Observer, thread_count
from fairy2i_export.output.target import check_free, default_target
from fairy2i_export.output.workspace import check_writable, output_folder
from fairy2i_export.request.option import build, check_choices, declared, takes
from fairy2i_export.request.request import Request
from fairy2i_export.rewrite.identity import files_identity
from fairy2i_export.rewrite.names import Names
from fairy2i_export.rewrite.opening.model_file import files_sha256, open_model
from fairy2i_export.rewrite.operands import PackedWeights
from fairy2i_export.rewrite.passes.define import define_operator
from fairy2i_export.rewrite.passes.find import find_linears, operator_names, operator_nodes
from fairy2i_export.rewrite.passes.prune import prune
from fairy2i_export.rewrite.passes.recognise import Recogniser, Setting
from fairy2i_export.rewrite.passes.replace import replace_linears
from fairy2i_export.rewrite.passes.resolve import resolve_weights
from fairy2i_export.rewrite.passes.select import select_linears
from fairy2i_export.rewrite.patterns import PATTERNS
from fairy2i_export.rewrite.replacement import Replacements
from fairy2i_export.rewrite.result.outcome import Changed, describe, rewritten_linears, warnings_of
from fairy2i_export.rewrite.result.report import LeftLinear, RewriteReport
from fairy2i_export.rewrite.result.saving import save_model, save_outline
from fairy2i_export.rewrite.result.trial import check_result
from fairy2i_export.rewrite.values.constants import Constants
from fairy2i_runtime.engine.integrity import write_sums


@takes(Request, "onnx")
def rewrite_onnx(
    source: str | Path,
    out: str | Path | None = None,
    *,
    dry_run: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> RewriteReport:
    """Rewrite the linear layers of an ONNX model to Fairy2iMatMul nodes and keep everything else.

    Args:
        source: the model, opset 18 or newer, with or without external data.
        out: folder to write; ``./NAME-fairy2i`` by default.
        dry_run: find out what would be done and write nothing.
        observer: hears about progress.
        **options: fields of :class:`~fairy2i_export.request.request.Request`; None is an option that is not given.

    Returns:
        What was done; see :class:`RewriteReport`.

    Raises:
        Fairy2iError: a subclass for everything that is wrong with the model, the options or the output folder. Nothing is
            left behind then.
    """
    started = time.monotonic()
    observer = observer or Observer()
    path = Path(check_path("source", source))
    if out is not None:
        check_path("out", out)
    request: Request = build(Request, "onnx", options, str(source))
    setting = _setting(request)
    decisive = {name: request.asked[name] for name, known in declared(Request, "onnx").items() if not known.neutral}
    count = thread_count(request.jobs)
    opened = open_model(path)
    genai_config_of(path)  # what is wrong with it is told before the work
    model, opset = opened.model, opened.opset
    source_bytes = sum(file.stat().st_size for file in opened.files)
    changed = _change(model, opset, setting, request, observer)
    _check_anything(path, changed)
    expected_bytes = _expected_bytes(model)
    target = Path(out) if out is not None else default_target(_name_of(path))
    check_free(target, request.force, path, REWRITE_MARKERS)
    check_writable(target)
    problems: list[str] = []

    def report(folder: Path | None, sha256: str | None, output_bytes: int, copied: tuple[str, ...] = ()) -> RewriteReport:
        return RewriteReport(
            path=folder,
            source=path,
            source_sha256=sha256,
            opset=opset,
            passes=changed.passes,
            rewritten=rewritten_linears(changed),
            left=tuple(LeftLinear(x.name, x.node.name or "", x.operator, x.reason) for x in changed.linears if not x.alive),
            already=changed.already,
            warnings=(*filter(None, dict.fromkeys(problems)), *warnings_of(changed, request)),
            copied=copied,
            dense_bytes=changed.dense_bytes,
            packed_bytes=sum(value.const_value.nbytes for value in changed.packed if value.const_value is not None),
            source_bytes=source_bytes,
            output_bytes=output_bytes,
            seconds=time.monotonic() - started,
        )

    if changed.rewritten:
        check_library()
        if problem := kernel_problem():
            problems.append(f"the rewritten model will not run in this environment: {problem}")
    problems.append(_try_outline(model, changed, path))
    if dry_run:
        check_space(target, expected_bytes)
        return report(None, None, expected_bytes)
    with output_folder(target, force=request.force, source=path, markers=REWRITE_MARKERS) as workspace:
        folder = workspace.folder
        workspace.start_over(files_identity(opened.files, decisive))
        check_space(target, expected_bytes)
        observer.phase("reading", source_bytes)
        sha256 = files_sha256(opened.files, observer.advance)
        if changed.rewritten:
            describe(model, changed, path, sha256)
        observer.phase("quantizing", sum({id(x.value): x.parameters for x in changed.rewritten}.values()))
        pool = ThreadPoolExecutor(count, "fairy2i-quantizer") if count > 1 else None
        with pool or nullcontext():
            changed.weights.pool = pool
            save_model(model, folder, path)
        problems.append(check_result(folder / MODEL, path))
        written = sum((folder / name).stat().st_size for name in (MODEL, DATA) if (folder / name).exists())
        result = report(target, sha256, written, copy_genai_files(path, folder))
        (folder / REPORT).write_text(result.to_json(), encoding="utf-8")
        write_sums(folder)
    return result


def _setting(request: Request) -> Setting:
    """The quantizer's options: where no config.json completes them, what is not given is the default."""
    check_choices(request, "onnx")
    known = declared(Request, "onnx")
    asked = {name: request.asked[name] for name in Setting._fields}
    values = {name: known[name].fallback if value is None else value for name, value in asked.items()}
    check_stages(values["stages"])
    return Setting(**values)


def _change(model: ir.Model, opset: int, setting: Setting, request: Request, observer: Observer) -> Changed:
    """Run all passes on the model in memory."""
    passes: dict[str, int] = {}
    already = sum(map(layers_in, operator_nodes(model)))
    constants = Constants(model)
    linears = find_linears(model, constants)
    passes["find"] = len(linears)
    if linears or request.include or request.exclude:
        passes["select"] = select_linears(linears, request.include, request.exclude, operator_names(model))
    passes["resolve"] = resolve_weights(linears, constants)
    observer.phase("recognising", sum(linear.parameters for linear in linears if linear.alive))
    recogniser = Recogniser(constants, setting)
    passes["recognise"] = recogniser.run(linears, observer.advance)

    names = Names(model)
    weights = PackedWeights(constants, model.graph, names, observer.advance)
    before = set(model.graph.initializers)
    matrices = {id(x.value): x for x in linears if x.alive}.values()
    dense_bytes = sum(int(x.parameters * (x.dtype.bitwidth if x.dtype is not None else 32) // 8) for x in matrices)
    shared = Replacements(constants, weights, names, orphans=[])
    passes["replace"] = replace_linears(linears, shared)
    passes["fuse bias"] = shared.fused
    nodes, initializers = prune(shared.orphans)
    passes["prune nodes"], passes["prune initializers"] = nodes, initializers
    passes["define"] = define_operator(model, opset, rewritten=passes["replace"] > 0)
    packed = [
        value
        for name, value in model.graph.initializers.items()
        if name not in before and isinstance(value.const_value, ir.LazyTensor)
    ]
    return Changed(passes, linears, weights, already, dense_bytes, packed)


def _try_outline(model: ir.Model, changed: Changed, path: Path) -> str:
    """Try the model before the work, without its data; returns what could not be checked."""
    with TemporaryDirectory(prefix="fairy2i-", ignore_cleanup_errors=True) as name:
        try:
            save_outline(model, Path(name), path, set(changed.packed))
        except OSError:
            return ""  # no place for it: the finished model is tried all the same
        return check_result(Path(name) / MODEL, path)


def _check_anything(path: Path, changed: Changed) -> None:
    if changed.rewritten or changed.already:
        return
    if not changed.linears:
        raise ModelError(f"{path}: holds no {' and no '.join(PATTERNS)}; there is nothing to rewrite")
    reasons = Counter(linear.reason for linear in changed.linears)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    raise ModelError(f"{path}: none of its {len(changed.linears)} products can be rewritten ({listed}); nothing was written")


def _expected_bytes(model: ir.Model) -> int:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(tensor.nbytes + ALIGNMENT // 2 for tensor in tensors if tensor is not None)


def _name_of(path: Path) -> str:
    """model.onnx is called after its folder."""
    return path.stem if path.stem != "model" else path.resolve().parent.name or path.stem
