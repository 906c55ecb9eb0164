"""The export itself: checkpoint in, folder out. Reads top to bottom; every step lives in a file of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import onnx_ir as ir

from fairy2i_export.codes.native import check_library
from fairy2i_export.compile.cache_scales import calibrate_cache
from fairy2i_export.compile.model_card import model_card
from fairy2i_export.compile.options import ExportOptions, GivenOptions, says_trained
from fairy2i_export.compile.prepare import Prepared, make_estimate, prepare
from fairy2i_export.compile.report import Estimate, ExportReport, peak_ram_bytes
from fairy2i_export.compile.tasks import Task, Workers
from fairy2i_export.errors import OptionError
from fairy2i_export.onnx_graph.formats import BACKENDS, multiplier_bytes, stored_bytes
from fairy2i_export.onnx_graph.tokenizer import write_tokenizer_graphs
from fairy2i_export.output.data_file import DATA, DataFile
from fairy2i_export.output.genai_config import write_genai_config
from fairy2i_export.output.journal import Journal, identity
from fairy2i_export.output.metadata import describe_model
from fairy2i_export.output.workspace import Workspace, check_space, output_folder
from fairy2i_export.source.tensor_stream import ReadFile, ReadTensor, TensorStream
from fairy2i_export.source.tokenizer_files import copy_files, has_chat_template

MODEL = "model.onnx"


class Observer:
    """Hears how the export goes on; the command line draws a progress bar from it. Every method may be left as it is."""

    def planned(self, estimate: Estimate, options: ExportOptions) -> None:
        """Everything is checked, work begins."""

    def phase(self, title: str, total: int) -> None:
        """A phase of ``total`` units begins."""

    def advance(self, amount: int) -> None:
        """Units of the current phase are done."""

    def note(self, message: str) -> None:
        """Something the user may want to know, one sentence."""


def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    stages: int | None = None,
    profile: str | None = None,
    quantizer: str | None = None,
    row_multiplier: str | None = None,
    lm_head: str | None = None,
    embedding: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    context_length: int | None = None,
    kv_cache: str | None = None,
    calibration: str | Path | None = None,
    calibrate: Iterable[str | Path] = (),
    calibrate_tokens: int | None = None,
    rope_scaling: str | None = None,
    backend: str | None = None,
    dense_type: str | None = None,
    accuracy_level: int | None = None,
    trained: bool = False,
    tokenizer_onnx: bool = False,
    force: bool = False,
    jobs: int | None = None,
    observer: Observer | None = None,
) -> ExportReport:
    """Compile a checkpoint into a folder that ONNX Runtime and onnxruntime-genai can run.

    An export that was interrupted is continued: the same call finds what is finished beside ``out`` and makes the rest.

    Args:
        source: Hugging Face checkpoint directory, or hub id.
        out: folder to write; ``./NAME-fairy2i`` by default.
        stages: residual stages 1 to 4, bits per weight; default from config.json, else 2.
        profile: ``bf16-reference`` or ``fp32``; default from config.json, else bf16-reference.
        quantizer: ``greedy``, the published one, or ``joint``, which leaves a smaller error; default from config.json, else
            greedy.
        row_multiplier: ``none``, ``rms`` or ``learned``, as the model was trained; default from config.json, else none.
        lm_head: ``fairy2i``, ``int8``, ``int4`` or ``float``; default from config.json, else fairy2i.
        embedding: ``float32``, ``float16`` or ``int8``; default float16 where the checkpoint has 16 bits, else float32.
        include: globs on module names; only matching linear layers are rewritten.
        exclude: globs on module names; matching linear layers stay dense.
        context_length: positions to make rotary tables for; default max_position_embeddings, at most 4096.
        kv_cache: ``float32``, ``float16`` or ``int8``; default float32.
        calibration: text file to measure the scales of an int8 cache with; default a short English text.
        calibrate: text files to convert a model with that was not trained for this: its layers get the codes that keep
            their outputs on that text. Needs torch and transformers.
        calibrate_tokens: tokens of them to use at most; default 24,576.
        rope_scaling: ``linear:FACTOR`` or ``yarn:FACTOR`` stretches the context of a model without a rope scaling of its own.
        backend: ``fairy2i``, ``matmulnbits`` or ``dense``, how quantized layers are written; default fairy2i.
        dense_type: ``float32`` or ``float16``, weights of the backend dense; default float32.
        accuracy_level: 0 or 4, of the backend matmulnbits: float32 or int8 activations; default 4.
        trained: the caller knows that the weights come from Fairy2i training; no warning about it.
        tokenizer_onnx: add tokenizer.onnx and detokenizer.onnx, graphs for hosts without a tokenizer library.
        force: replace an earlier export in ``out``.
        jobs: threads that quantize; default: as many as this process may use cores. The result does not depend on it.
        observer: hears about progress.

    Returns:
        What was done; see :class:`ExportReport`.

    Raises:
        Fairy2iError: a subclass for everything that is wrong with the checkpoint, the options or the output folder. Nothing
            is left behind then.
    """
    started = time.monotonic()
    observer = observer or Observer()
    given = GivenOptions(
        stages,
        profile,
        row_multiplier,
        lm_head,
        embedding,
        context_length,
        tuple(include),
        tuple(exclude),
        kv_cache,
        rope_scaling,
        backend,
        dense_type,
        accuracy_level,
        quantizer,
    )
    count = thread_count(jobs)
    prepared = prepare(source, out, given, calibration, tuple(calibrate), calibrate_tokens)
    checkpoint, decoder, options, plan = prepared.checkpoint, prepared.decoder, prepared.options, prepared.plan
    warnings = list(prepared.warnings)
    check_library()
    estimate = make_estimate(prepared)

    def kept(partial: Path) -> None:
        observer.note(f"interrupted: what is finished stays in {partial}; the same command continues it")

    with output_folder(prepared.target, force=force, source=checkpoint.directory, kept=kept) as workspace:
        folder, journal = workspace.folder, workspace.journal
        _resume(prepared, workspace, observer)
        check_space(folder, estimate.output_bytes - _bytes_taken(folder))
        observer.planned(estimate, options)
        copy_files(checkpoint, folder)
        if tokenizer_onnx:  # first: a tokenizer that no graph can express should not cost an export
            write_tokenizer_graphs(folder, shown=checkpoint.directory)
        if prepared.text is not None:
            from fairy2i_export.compile.calibrate.run import calibrate_model  # needs torch

            calibrate_model(prepared, workspace.calibrated, count, observer)
        observer.phase("quantizing", prepared.parameters)
        pool = ThreadPoolExecutor(count, "fairy2i-quantizer") if count > 1 else None
        with closing(DataFile(folder / DATA, prepared.places, prepared.data_bytes)) as data, pool or nullcontext():
            reused = _write_tensors(prepared, data, journal, Workers(pool, count), observer)
            _write_model(prepared, data, folder, checkpoint.sha256_of(journal.files))
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
        write_genai_config(
            folder, decoder, prepared.tokens, options.context_length, library=BACKENDS[options.backend].library
        )
        if not (trained or says_trained(checkpoint.config) or prepared.text is not None):
            warnings.append(_untrained_warning(errors))
        report = ExportReport(
            path=prepared.target,
            source=checkpoint.name,
            source_sha256=checkpoint.sha256_of(journal.files),
            options=options,
            linears=tuple(plan.linears.values()),
            errors=errors,
            warnings=tuple(warnings),
            weight_bytes=sum(stored_bytes(x, options) + multiplier_bytes(x, options) for x in plan.rewritten),
            output_bytes=_bytes_on_disk(folder),
            source_bytes=checkpoint.weight_bytes(),
            parameters=prepared.parameters,
            chat_template=has_chat_template(folder),
            peak_ram_bytes=peak_ram_bytes(),
            seconds=time.monotonic() - started,
            reused=reused,
        )
        (folder / "README.md").write_text(model_card(report, decoder), encoding="utf-8")
    return report


def thread_count(jobs: int | None) -> int:
    """Threads to quantize with; None = as many as this process may use cores.

    Raises:
        OptionError: not a number from 1.
    """
    if jobs is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise OptionError(f"jobs: expected a number from 1, got {jobs!r}")
    return jobs


def _resume(prepared: Prepared, workspace: Workspace, observer: Observer) -> None:
    """Take up an unfinished export of the same model, or clear away one of another."""
    why_not = workspace.journal.resume(identity(prepared.checkpoint, prepared.options, prepared.places))
    if why_not is not None:
        observer.note(f"starting anew: an unfinished export was found, but {why_not}")
    if not workspace.journal.tensors:
        workspace.clear()
    else:
        done, total = len(workspace.journal.tensors), len(prepared.tasks)
        observer.note(f"continuing an unfinished export: {done} of {total} tensors are there")


def _write_tensors(prepared: Prepared, data: DataFile, journal: Journal, workers: Workers, observer: Observer) -> int:
    """Make everything that is not in the journal already; returns the number of tasks that were."""
    tasks = prepared.tasks
    done = {name for name, entry in journal.tensors.items() if name in tasks and data.holds(entry["outputs"])}
    observer.advance(sum(tasks[name].parameters for name in done))
    by_tensor: dict[str, list[str]] = {}
    for name, task in tasks.items():
        by_tensor.setdefault(task.tensor, []).append(name)
    owners = prepared.checkpoint.owners
    unfinished = {owners[task.tensor].path.name for name, task in tasks.items() if name not in done}
    with TensorStream(prepared.checkpoint, by_tensor, set(journal.files) - unfinished) as stream:
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


def _run(task: Task, item: ReadTensor, data: DataFile, journal: Journal, workers: Workers) -> None:
    writer = data.start()
    error = task.make(item.array, writer, workers)
    journal.finished_tensor(task.outputs[0], item.digest, writer.record(), error)


def _write_model(prepared: Prepared, data: DataFile, folder: Path, sha256: str) -> None:
    """The initializers that come from no tensor of the checkpoint, and model.onnx itself."""
    model = prepared.model
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
    describe_model(model, prepared.decoder, prepared.checkpoint, prepared.options, sha256, prepared.text)
    ir.save(model, folder / MODEL)


def _bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _bytes_taken(folder: Path) -> int:
    """Like :func:`_bytes_on_disk` without the holes of an unfinished data file."""
    blocks = [getattr(path.stat(), "st_blocks", 0) for path in folder.iterdir()]
    return 512 * sum(blocks)


def _untrained_warning(errors: dict[str, float]) -> str:
    mean = sum(errors.values()) / len(errors)
    return (
        "config.json does not say that this model was trained with Fairy2i, and weights alone cannot tell. "
        f"Quantization changed them by {mean:.0%} on average: a model trained for that (such as PKU-DS-LAB/Fairy2i-W2) is "
        "fine, and --trained confirms it; a plain pretrained model is not, and will produce nonsense: convert it with "
        "--calibrate TEXT"
    )
