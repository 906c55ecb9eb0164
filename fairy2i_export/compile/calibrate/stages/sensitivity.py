"""How much every matrix matters: the loss that its quantization is expected to cost, for 1 to 4 stages.

An error E of the weights of a layer with inputs x changes its outputs by E x. What that does to the model's predictions is told by
the gradients g of the log-likelihood with respect to those outputs, for next tokens drawn from the model itself: to second order
the divergence from the float model is, per token (Fisher information; Kronecker-factored as in K-FAC, arXiv 1503.05671),

    KL = 1/2 mean (g^T E x)^2  ~  1/2 sum over rows i of  G_i (E H E^T)_ii,    G_i = mean g_i^2,  H = mean x x^T

Errors at different tokens are taken for independent; where attention averages over many tokens they add up instead, and what
v_proj and k_proj matter comes out too small.

The codes are found with error feedback (metric.py), which leaves of an error of variance v in every entry
``v sum of d_j`` instead of ``v tr H``, where d_j is the variance of input j that the later inputs do not tell: the diagonal of H's
triangular decomposition. v is the row's mean square times the squared relative error of rounding, measured on a sample of rows.

Gradients go back through the decoder one layer at a time: the inputs of all layers are kept for a few windows of the text, and a
layer is computed again when its gradient comes by. So no more than one decoder layer is in memory, beside those inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fairy2i_export.codes.choices import MAX_STAGES
from fairy2i_export.codes.quantizer import quantize
from fairy2i_export.codes.strategies import CALIBRATED
from fairy2i_export.compile.calibrate.matrix.metric import USUAL_DAMPING, damped_gram
from fairy2i_export.compile.calibrate.skeleton import Skeleton, run_layer
from fairy2i_export.errors import WeightError
from fairy2i_export.onnx_graph.formats.base import Linear

REVISION = "fisher-1"  # a name for everything that the choice depends on beside weights and text
WINDOWS = 4  # of the text, evenly spread; each position gives every row a gradient
_SAMPLED_ROWS = 64  # complex rows whose rounding error is measured
_SEED = 0


@dataclass(frozen=True)
class Sensitivity:
    """What is known about one matrix.

    Attributes:
        gradients: torch float64 [N], mean square of the gradient of the log-likelihood with respect to each output.
        gram: torch float64 [K, K], mean of x x^T; shared by layers with the same inputs.
        left_over: sum of the variances of the inputs that later ones do not tell.
    """

    gradients: Any
    gram: Any
    left_over: float

    def divergence(self, error: Any) -> float:
        """KL per token, to second order, of an error [N, K] of the weights."""
        double = error.double()
        return 0.5 * float((self.gradients * ((double @ self.gram) * double).sum(1)).sum())

    def losses(self, weight: Any) -> list[float]:
        """KL per token that codes of 1 to 4 stages, found with error feedback, are expected to cost."""
        squares = weight.double().square().mean(1)
        at_one = 0.5 * float((self.gradients * squares).sum()) * self.left_over
        return [at_one * error for error in rounding_errors(weight)]


def rounding_errors(weight: Any) -> list[float]:
    """Squared relative error of a sample of rows [2n, 2m] at 1 to 4 stages, rounded without feedback."""
    values = weight.numpy()
    n = len(values) // 2
    rows = np.arange(0, n, -(-n // _SAMPLED_ROWS))
    sample = np.ascontiguousarray(values[np.concatenate([rows, rows + n])], np.float32)
    norm = float(np.square(sample, dtype=np.float64).sum()) or 1.0
    found = []
    for stages in range(1, MAX_STAGES + 1):
        dense = quantize(sample, stages, "fp32", quantizer=CALIBRATED.name, row_multiplier="rms").dequantize("none")
        found.append(float(np.square(sample - dense, dtype=np.float64).sum()) / norm)
    return found


def measure(
    skeleton: Skeleton,
    linears: Mapping[str, Linear],
    head: Linear,
    softcap: float | None,
    ids: Any,
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Sensitivity, Any]]:
    """(module name, sensitivity, weight [N, K]) of every layer in ``linears``, from the last to the first.

    Args:
        skeleton: of the float model.
        linears: the layers to look at, by module name.
        head: lm_head, whether it is among them or not.
        softcap: of the logits, or None.
        ids: int64 [windows, length].
        advance: called with the number of decoder layers that are done; each is done twice, forward and backward.

    Raises:
        WeightError: activations or gradients that are not finite.
    """
    import torch

    with torch.no_grad():
        hidden, calls = skeleton.begin(ids)
        states = [list(hidden.split(1))]
        for index, call in enumerate(calls):
            layer = skeleton.layer(index)
            states.append([run_layer(layer, window, call) for window in states[-1]])
            if not all(bool(torch.isfinite(window).all()) for window in states[-1]):
                raise WeightError(
                    f"model.layers.{index}: its outputs are not finite on the calibration text; the checkpoint is damaged or "
                    "overflows in float32"
                )
            advance(1)
    gradients, top = _through_the_head(skeleton, head, softcap, states.pop(), head.name in linears)
    yield from top
    for index in reversed(range(len(calls))):
        prefix = f"model.layers.{index}."
        layer = skeleton.layer(index)
        names = [name.removeprefix(prefix) for name in linears if name.startswith(prefix)]
        watch = _Watch({name: layer.get_submodule(name) for name in names})
        with torch.enable_grad():
            for at, window in enumerate(states.pop()):
                inputs = window.detach().requires_grad_()
                torch.autograd.backward(run_layer(layer, inputs, calls[index]), gradients[at])
                watch.next_window()
                gradients[at] = inputs.grad
        for name, found in watch.results(prefix):
            yield prefix + name, found, layer.get_submodule(name).weight
        advance(1)


def _through_the_head(
    skeleton: Skeleton, head: Linear, softcap: float | None, hidden: list[Any], wanted: bool
) -> tuple[list[Any], list[tuple[str, Sensitivity, Any]]]:
    """Gradients of every window after the last decoder layer, and the head's own sensitivity if it is wanted.

    The log-likelihood is that of next tokens which are drawn from the model's own distribution: then the mean square of the
    gradients is the Fisher information, and the text only has to be of the right kind.
    """
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    weight = torch.from_numpy(skeleton.tensor(head.name, tensor=head.weight))
    module = torch.nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    module.load_state_dict({"weight": weight}, assign=True)
    module.requires_grad_(False)
    norm = skeleton.module("model.norm")
    watch = _Watch({head.name: module} if wanted else {})
    gradients = []
    with torch.enable_grad():
        for window in hidden:
            inputs = window.detach().requires_grad_()
            logits = module(norm(inputs))
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logs = torch.log_softmax(logits, -1)
            drawn = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator)
            torch.autograd.backward(logs.flatten(0, 1).gather(1, drawn).sum())
            watch.next_window()
            gradients.append(inputs.grad)
    return gradients, [(name, found, weight) for name, found in watch.results("")]


class _Watch:
    """Hooks on linear modules that add up their inputs and the gradients of their outputs.

    Args:
        modules: by name.
    """

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._leaders: dict[str, str] = {}  # name -> the first module that got the same inputs
        self._grams: dict[str, Any] = {}  # of leaders
        self._squares: dict[str, Any] = {}
        self._tokens: dict[str, int] = {}
        self._seen: list[tuple[Any, str]] = []  # inputs in the present window, with their leader
        self._hooks = [module.register_forward_hook(self._noting(name)) for name, module in modules.items()]

    def next_window(self) -> None:
        """The same modules are going to be called with other inputs."""
        self._seen.clear()

    def results(self, prefix: str) -> Iterator[tuple[str, Sensitivity]]:
        """What was found, by name; the modules are not watched any longer.

        Args:
            prefix: of the names, for messages.

        Raises:
            WeightError: sums that are not finite.
        """
        import torch

        for hook in self._hooks:
            hook.remove()
        means, left_over = {}, {}
        for name, gram in self._grams.items():
            if not bool(torch.isfinite(gram).all()):
                raise WeightError(f"{prefix}{name}: its inputs are not finite on the calibration text")
            means[name] = gram / self._tokens[name]
            left_over[name] = _left_over(means[name])
        for name, squares in self._squares.items():
            if not bool(torch.isfinite(squares).all()):
                raise WeightError(f"{prefix}{name}: gradients of its outputs are not finite on the calibration text")
            leader = self._leaders[name]
            yield name, Sensitivity(squares / self._tokens[leader], means[leader], left_over[leader])

    def _noting(self, name: str) -> Callable[..., None]:
        import torch

        def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            leader = next((other for tensor, other in self._seen if tensor is inputs[0]), None)
            if leader is None:
                leader = name
                self._seen.append((inputs[0], name))
                rows = inputs[0].detach().flatten(0, -2)
                if name not in self._grams:
                    self._grams[name] = torch.zeros((rows.shape[1], rows.shape[1]), dtype=torch.float64)
                    self._tokens[name] = 0
                self._grams[name] += rows.T @ rows
                self._tokens[name] += len(rows)
            self._leaders[name] = leader
            output.register_hook(lambda gradient: add(gradient.flatten(0, -2)))

        def add(rows: Any) -> None:
            squares = rows.double().square().sum(0)
            self._squares[name] = self._squares[name] + squares if name in self._squares else squares

        return note


def _left_over(gram: Any) -> float:
    """Sum over the inputs, the heaviest first, of the variance that later ones do not tell; damped as in metric.py."""
    import torch

    diagonal = gram.diagonal()
    half = len(gram) // 2
    order = torch.argsort(
        diagonal[:half] + diagonal[half:], stable=True
    )  # a Cholesky factor goes from the last to the first
    columns = torch.stack([order + half, order], 1).flatten()
    _, factor = damped_gram(gram[columns][:, columns], USUAL_DAMPING * (float(diagonal.mean()) or 1.0))
    return float(factor.diagonal().square().sum())
