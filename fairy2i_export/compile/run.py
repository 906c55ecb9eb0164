"""The export itself: checkpoint in, folder out. Reads top to bottom; every step lives in a file of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fairy2i_export.codes.native import Workers
from fairy2i_export.codes.training_entry import says_trained
from fairy2i_export.compile.estimate import make_estimate
from fairy2i_export.compile.identity import identity
from fairy2i_export.compile.prepare import Prepared, prepare
from fairy2i_export.compile.result.cache_scales import calibrate_cache
from fairy2i_export.compile.result.kernel_check import check_kernels, kernel_for_hosts, kernel_warning, text_to_run
from fairy2i_export.compile.result.loading import check_loads
from fairy2i_export.compile.result.model_card import model_card
from fairy2i_export.compile.result.report import ExportReport
from fairy2i_export.compile.tasks import Task
from fairy2i_export.onnx_graph.formats import FORMATS, multiplier_bytes, stored_bytes
from fairy2i_export.onnx_graph.stage_map import stage_entries
from fairy2i_export.output.contents import CARD
from fairy2i_export.output.contract.kernels import Verdict
from fairy2i_export.output.data_file import DATA, MODEL, DataFile
from fairy2i_export.output.disk.space import check_space
from fairy2i_export.output.genai_config import write_end_tokens, write_genai_config
from fairy2i_export.output.journal import Journal
from fairy2i_export.output.metadata import describe_export
from fairy2i_export.output.progress import Observer
from fairy2i_export.output.sizes import peak_ram_bytes
from fairy2i_export.output.workspace import Workspace, output_folder
from fairy2i_export.request.option import build, takes
from fairy2i_export.request.request import Request
from fairy2i_export.source.tensor_stream import ReadFile, ReadTensor, TensorStream
from fairy2i_export.source.text.tokenizer_files import copy_files, has_chat_template
from fairy2i_runtime.engine.integrity import write_sums


@takes(Request, "checkpoint")
def export(
    source: str | Path, out: str | Path | None = None, *, observer: Observer | None = None, **options: Any
) -> ExportReport:
    """Compile a checkpoint into a folder that ONNX Runtime and onnxruntime-genai can run.

    An export that was interrupted is continued: the same call finds what is finished beside ``out`` and makes the rest.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder to write; ``./NAME-fairy2i`` by default.
        observer: hears about progress.
        **options: fields of :class:`~fairy2i_export.request.request.Request`; None is an option that is not given.

    Returns:
        What was done; see :class:`ExportReport`.

    Raises:
        Fairy2iError: a subclass for everything that is wrong with the checkpoint, the options or the output folder. Nothing
            is left behind then.
    """
    started = time.monotonic()
    observer = observer or Observer()
    request: Request = build(Request, "checkpoint", options, str(source))
    prepared = prepare(source, out, request)
    checkpoint, decoder, chosen, plan = prepared.checkpoint, prepared.decoder, prepared.options, prepared.plan
    warnings = list(prepared.warnings)

    with output_folder(prepared.target, force=request.force, source=checkpoint.directory) as workspace:
        folder, journal = workspace.folder, workspace.journal
        if prepared.text is not None and chosen.bits is not None and prepared.earlier is None:
            from fairy2i_export.compile.calibrate.stages.choose import choose_stages  # needs torch

            prepared = prepared.with_stages(choose_stages(prepared, workspace.stages, observer))
            plan = prepared.plan
        _resume(prepared, workspace, observer)
        estimate = make_estimate(prepared)
        check_space(prepared.target, estimate.output_bytes)
        observer.planned(estimate, chosen)
        copy_files(checkpoint, folder)
        if prepared.tokenizer is not None:
            prepared.tokenizer.write(folder)
        if prepared.text is not None:
            from fairy2i_export.compile.calibrate.run import calibrate_model  # needs torch

            calibrate_model(prepared, workspace.calibrated, observer)
        elif prepared.earlier is not None:
            prepared.weights.calibrated = prepared.earlier.linear
            prepared.weights.replaced = prepared.earlier.norms(decoder.norm_offset)
        observer.phase("quantizing", prepared.parameters)
        count = prepared.threads
        pool = ThreadPoolExecutor(count, "fairy2i-quantizer") if count > 1 else None
        with closing(DataFile(folder / DATA, prepared.places, prepared.data_bytes)) as data, pool or nullcontext():
            reused = _write_tensors(prepared, data, journal, Workers(pool, count), observer)
            sha256 = checkpoint.sha256_of(journal.files)
            if prepared.earlier is not None:
                prepared.earlier.check_source(checkpoint, sha256)
            _write_model(prepared, data, folder, sha256)
        errors = {
            task.layer: float(journal.tensors[name]["error"])
            for name, task in prepared.tasks.items()
            if task.layer is not None
        }
        if prepared.calibration_ids is not None:
            # the scales it writes come from no tensor: nothing that the journal vouches for changes
            observer.phase("calibrating", 1)
            calibrate_cache(folder / MODEL, decoder, prepared.calibration_ids)
            observer.advance(1)
        library = FORMATS[chosen.backend].library
        verdicts: dict[str, Verdict] = {}
        if prepared.calibration is not None and library:
            verdicts = check_kernels(folder / MODEL, text_to_run(folder, chosen.context_length), observer).verdicts
            warnings += filter(None, [kernel_warning(verdicts)])
        kernel = kernel_for_hosts(verdicts) if verdicts else None
        write_genai_config(folder, decoder, prepared.tokens, chosen.context_length, library=library, kernel=kernel)
        write_end_tokens(folder, prepared.tokens.eos)
        check_loads(folder, checkpoint.name)
        write_sums(folder)  # of all but the card
        trained = says_trained(checkpoint.config) or decoder.complex_weights
        untrained = not (request.trained or trained or prepared.calibration is not None)
        if untrained:
            warnings.append(_untrained_warning(errors))
        report = ExportReport(
            path=prepared.target,
            source=checkpoint.name,
            source_sha256=sha256,
            options=chosen,
            linears=tuple(plan.linears.values()),
            errors=errors,
            warnings=tuple(warnings),
            weight_bytes=sum(stored_bytes(x, chosen) + multiplier_bytes(x, chosen) for x in plan.rewritten),
            output_bytes=_bytes_on_disk(folder),
            source_bytes=checkpoint.weight_bytes(),
            parameters=prepared.parameters,
            chat_template=has_chat_template(folder),
            untrained=untrained,
            verdicts=verdicts,
            calibrated=prepared.calibration is not None,
            peak_ram_bytes=peak_ram_bytes(),
            seconds=time.monotonic() - started,
            reused=reused,
        )
        (folder / CARD).write_text(model_card(report, decoder), encoding="utf-8")
    return report


def _resume(prepared: Prepared, workspace: Workspace, observer: Observer) -> None:
    """Take up an unfinished export of the same model, or clear away one of another."""
    why_not = workspace.resume(identity(prepared.checkpoint, prepared.options, prepared.places))
    if why_not is not None:
        observer.note(f"starting anew: an unfinished export was found, but {why_not}")
    if not workspace.journal.tensors:
        workspace.clear()
    else:
        workspace.clear(but=DATA)  # all else is written anew, and what is not written does not belong there
        done, total = len(workspace.journal.tensors), len(prepared.tasks)
        observer.note(f"continuing an unfinished export: {done} of {total} tensors are there")


def _write_tensors(prepared: Prepared, data: DataFile, journal: Journal, workers: Workers, observer: Observer) -> int:
    """Make everything that is not in the journal already; returns the number of tasks that were."""
    tasks = prepared.tasks
    done = {name for name, entry in journal.tensors.items() if name in tasks and _is_done(tasks[name], entry, data)}
    observer.advance(sum(tasks[name].parameters for name in done))
    by_tensor: dict[str, list[str]] = {}
    for name, task in tasks.items():
        by_tensor.setdefault(task.tensor, []).append(name)
    checkpoint = prepared.checkpoint
    needed = {part for name, task in tasks.items() if name not in done for part in checkpoint.stored(task.tensor)}
    unfinished = {checkpoint.owners[part].path.name for part in needed}
    with TensorStream(checkpoint, by_tensor, set(journal.files) - unfinished) as stream:
        for item in stream:
            if isinstance(item, ReadFile):
                journal.finished_file(item.name, item.sha256)
                continue
            for name in by_tensor[item.name]:
                if name in done and journal.tensors[name]["digest"] != item.digest:
                    # the same size and time of change, but other bytes
                    observer.note(f"{item.name}: the checkpoint has changed; this tensor is made again")
                    observer.advance(-tasks[name].parameters)
                    done.remove(name)
                if name not in done:
                    _run(tasks[name], item, data, journal, workers)
                    observer.advance(tasks[name].parameters)
    return len(done)


def _is_done(task: Task, entry: Mapping[str, Any], data: DataFile) -> bool:
    """Whether the journal's word for a task is true: all of its initializers are there, and an error where it has one."""
    complete = set(task.outputs) == set(entry["outputs"]) and (task.layer is None) == (entry["error"] is None)
    return complete and data.holds(entry["outputs"])


def _run(task: Task, item: ReadTensor, data: DataFile, journal: Journal, workers: Workers) -> None:
    writer = data.start()
    error = task.make(item.array, writer, workers)
    journal.finished_tensor(task.outputs[0], item.digest, writer.record(), error)


def _write_model(prepared: Prepared, data: DataFile, folder: Path, sha256: str) -> None:
    """The initializers that come from no tensor of the checkpoint, and model.onnx itself."""
    model, plan = prepared.model, prepared.plan
    made = {output for task in prepared.tasks.values() for output in task.outputs}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            raise AssertionError(f"{value.name}: an initializer without contents")
        if tensor.name not in made:
            writer = data.start()
            writer.write(str(tensor.name), tensor.numpy())
            writer.record()
        value.const_value = data.replacement(tensor)
    describe_export(
        model,
        prepared.options,
        stages=stage_entries(plan.stages, plan.parameters),
        architecture=prepared.decoder.architecture,
        source=prepared.checkpoint.name,
        sha256=sha256,
        calibration=prepared.calibration,
    )
    ir.save(model, folder / MODEL)


def _bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _untrained_warning(errors: dict[str, float]) -> str:
    mean = sum(errors.values()) / len(errors)
    return (
        "config.json does not say that this model was trained with Fairy2i, and weights alone cannot tell. "
        f"Quantization changed them by {mean:.0%} on average: a model trained for that (such as PKU-DS-LAB/Fairy2i-W2) is "
        "fine, and --trained confirms it; a plain pretrained model is not, and will produce nonsense: convert it with "
        "--calibrate TEXT"
    )
