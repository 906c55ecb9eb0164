"""What an export takes, from shapes alone: memory, size, and about how long a calibration takes on this machine.

Times were measured with SmolLM2-135M on an AMD EPYC (Zen 4) with 2 threads; other shapes and machines follow by counting
operations.
"""

from __future__ import annotations

import re
import time

import numpy as np

from fairy2i_export.compile.calibrate.matrix.attention import TOKENS
from fairy2i_export.compile.calibrate.matrix.calibrate import ROUNDS, fits
from fairy2i_export.compile.calibrate.matrix.metric import PRECISE
from fairy2i_export.compile.calibrate.run import SCHEDULES, SWEEPS
from fairy2i_export.compile.calibrate.stages.sensitivity import WINDOWS
from fairy2i_export.compile.calibrate.streams import has_fast_bfloat16
from fairy2i_export.compile.calibrate.tuning.divergence import tokens_at_once
from fairy2i_export.compile.prepare import Prepared
from fairy2i_export.onnx_graph.formats import stored_bytes
from fairy2i_export.output.sizes import Estimate
from fairy2i_export.source.tensor_stream import BUFFERS

_BASE_RAM = 190_000_000  # Python with its libraries and what is converted at a time, measured
_TORCH_RAM = 600_000_000  # torch and transformers with what a batch needs in a layer
_SEARCH = (12e3, 20e3, 28e3, 60e3)  # operations' worth of a pair of columns in one complex row in feedback, by stages
_SWEEP = (0.8e3, 1.1e3, 1.4e3, 5e3)  # the same in a sweep of annealing, and for each column what changed codes take
_CHANGES = 3
_COUPLED = 3  # as many parameters as these layers have are passed for the metric of their outputs
_FIT = 512  # columns of outputs that fitting scales looks at, for each stage
_FORWARD = 2.5  # passes of the text through a decoder layer, float model included
_OVERHEAD = 1.65  # of what is not counted
_LAYER = re.compile(r"\.\d+\.")


def make_estimate(prepared: Prepared) -> Estimate:
    """Peak memory and output size, from shapes alone."""
    checkpoint, plan = prepared.checkpoint, prepared.plan
    sizes = sorted(
        (checkpoint.info(tensor).size for tensor in {task.tensor for task in prepared.tasks.values()}), reverse=True
    )
    packed = max(stored_bytes(x, prepared.options) for x in plan.rewritten)
    if prepared.rotated is not None:  # a matrix is rotated to float32; int8 and int4 take it by rows
        packed += max(4 * x.parameters for x in plan.linears.values() if x.treatment in ("fairy2i", "dense"))
    nodes = 1500 * len(plan.linears) + sum(place.size for place in prepared.places.values() if place.offset is None)
    peak = max(sum(sizes[:BUFFERS]) + packed, _cache_bytes(prepared), calibration_bytes(prepared))
    return Estimate(_BASE_RAM + peak, prepared.data_bytes + nodes)


def _cache_bytes(prepared: Prepared) -> int:
    """Memory to measure the scales of an int8 cache: the model's weights, mapped, and keys and values of all layers."""
    if prepared.calibration_ids is None:
        return 0
    decoder, tokens = prepared.decoder, prepared.calibration_ids.size
    kept = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim
    passing = 4 * decoder.hidden_size + 3 * decoder.intermediate_size + decoder.heads * tokens
    return prepared.data_bytes + 4 * tokens * (kept + passing)


def calibration_bytes(prepared: Prepared) -> int:
    """Memory at most; 0 if nothing is calibrated."""
    if prepared.text is None:
        return 0
    most = max(_walk_bytes(prepared), _stages_bytes(prepared))
    if prepared.earlier is None and "tuning" not in prepared.options.calibrate_without:
        most = max(most, _tuning_bytes(prepared))
    return _TORCH_RAM + most


def calibration_seconds(prepared: Prepared) -> float:
    """About how long it takes here, from the speed of a matrix product; 0 if nothing is calibrated."""
    if prepared.text is None:
        return 0.0
    tokens, decoder = prepared.text.ids.size, prepared.decoder
    bfloat16 = 0.5 if has_fast_bfloat16() else 1.0
    names = decoder.names
    first = {
        names.q,
        names.qkv,
        names.o,
        names.gate,
        names.gate_up,
        names.down,
        names.lm_head,
    }  # of layers with the same inputs
    without, effort = prepared.options.calibrate_without, prepared.options.calibrate_effort
    sweeps = 0 if "descent" in without else SWEEPS[effort]
    inside = operations = 0.0
    if prepared.earlier is not None:  # both models run the text
        layers = prepared.decoder.layers * _layer(prepared)
        operations += 2 * layers * 2 * tokens * bfloat16
        without = (*without, "tuning")
    for linear in prepared.on_text.values():
        rows, columns = linear.out_features, linear.in_features
        inside += linear.parameters if linear.name != names.lm_head else 0
        operations += linear.parameters * (2 * tokens * _FORWARD * bfloat16 + 16 * columns)
        operations += ROUNDS * linear.parameters * (_SEARCH[linear.stages - 1] / 4 + 2 * columns)
        swept = sweeps * linear.parameters * (_SWEEP[linear.stages - 1] + _CHANGES * columns) / 4
        pattern = _LAYER.sub(".{}.", linear.name)
        if sweeps and pattern in (names.q, names.k):  # few rows at a time, and a pass backward
            swept = 2 * swept + 6 * min(tokens, TOKENS) * _COUPLED * linear.parameters
        operations += swept
        operations += fits(sweeps) * 2 * columns * (_FIT * linear.stages * columns + 2 * linear.parameters)
        if pattern in first:
            operations += 2 * tokens * columns * (0.6 * columns + min(rows, columns)) + 40.0 * columns**3
    if "tuning" not in without:
        head = decoder.vocab_size * decoder.hidden_size
        windows, length = prepared.text.ids.shape
        schedule = SCHEDULES[effort].for_text(windows)
        operations += 2 * schedule.passes(windows) * length * bfloat16 * (2 * inside + 3 * head) * 1.5
    return _OVERHEAD * operations / _products_per_second()


def _walk_bytes(prepared: Prepared) -> int:
    """Two decoder layers, hidden states, what is kept of a layer's inputs, a group's statistics and the largest matrix."""
    assert prepared.text is not None
    decoder, tokens = prepared.decoder, prepared.text.ids.size
    widest = max(linear.in_features for linear in prepared.on_text.values())
    largest = max(linear.parameters for linear in prepared.on_text.values())
    hidden = 4 * 2 * tokens * decoder.hidden_size
    each, attention, inside = 2 if has_fast_bfloat16() else 4, decoder.heads * decoder.head_dim, decoder.intermediate_size
    # what a float layer reads (o_proj's and down_proj's inputs, and those of the layer, its norms and all else), and, of the
    # quantized one, what attention and the MLP end with: before o_proj's turn, after it, and after down_proj's
    first = 2 * (4 * decoder.hidden_size + attention + inside)
    second = 2 * (3 * decoder.hidden_size + attention + inside) + each * attention
    last = 2 * (decoder.hidden_size + inside) + each * (attention + inside)
    read = tokens * max(first, second, last)
    metric = widest**2 * (8 if widest <= PRECISE else 4) * 8
    at_once = 4 * (2 * _layer(prepared) + 10 * largest) + read + metric
    return hidden + max(
        4 * decoder.vocab_size * decoder.hidden_size, at_once
    )  # the embedding is read before everything else


def _stages_bytes(prepared: Prepared) -> int:
    """The choice of stages: inputs of all layers, a layer, what is in it, and the inputs' metrics."""
    if prepared.options.bits is None or prepared.earlier is not None:
        return 0
    assert prepared.text is not None
    decoder, windows, length = prepared.decoder, *map(int, prepared.text.ids.shape)
    widest = max(linear.in_features for linear in prepared.plan.rewritten)
    kept = (decoder.layers + 1) * min(WINDOWS, windows) * length * decoder.hidden_size
    passing = 3 * length * max(decoder.vocab_size, 8 * decoder.intermediate_size)
    return 4 * (kept + passing + max(decoder.vocab_size * decoder.hidden_size, _layer(prepared) + 8 * widest**2))


def _tuning_bytes(prepared: Prepared) -> int:
    """The whole model, the float model's hidden states, and what a window leaves in it for the way back."""
    assert prepared.text is not None
    decoder, windows, length = prepared.decoder, *map(int, prepared.text.ids.shape)
    head, each = decoder.vocab_size * decoder.hidden_size, 2 if has_fast_bfloat16() else 4
    heads = 2 if prepared.plan.linears[decoder.names.lm_head].treatment == "fairy2i" else 1  # what it aims at, and its own
    model = each * (_layer(prepared) * decoder.layers + heads * head) + 4 * head
    used = len(SCHEDULES[prepared.options.calibrate_effort].for_text(windows).used(windows))
    hidden = 4 * (windows + 2 * used) * length * decoder.hidden_size
    window = length * decoder.layers * (60 * decoder.hidden_size + 30 * decoder.intermediate_size)
    return model + hidden + window + 4 * (4 + heads) * tokens_at_once(decoder.vocab_size) * decoder.vocab_size


def _layer(prepared: Prepared) -> int:
    """Parameters of a decoder layer."""
    linears, head = prepared.plan.linears.values(), prepared.decoder.names.lm_head
    return sum(linear.parameters for linear in linears if linear.name != head) // prepared.decoder.layers


def _products_per_second() -> float:
    """Floating-point operations of a float32 matrix product on this machine, all threads, measured for some milliseconds."""
    matrix = np.ones((1024, 1024), np.float32)
    matrix @ matrix
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / float(best)
