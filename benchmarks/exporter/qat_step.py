"""What a quantization-aware training step costs: a LLaMA with dense layers, with ours, and with the published formulas in torch.

    python benchmarks/exporter/qat_step.py [--size 10M|28M] [--dtype float32|bfloat16] [--rounds 9] [--accumulate 1] [--cpu-time]
    python benchmarks/exporter/qat_step.py --memory ...

A step is forward, backward (--accumulate times) and AdamW on random tokens, 4 sequences of 256. Variants take turns, so that a
machine that slows down slows all of them; printed are medians, the spread (quartiles), and ratios to the dense model within
each round. --cpu-time counts the seconds of the process instead of the clock's, for machines that have other work; use it with
--threads 1. --memory runs every variant in a process of its own instead and prints the peak of its resident memory.

"formulas" is a straightforward implementation of the published method, that of quantize.py: angles, a mask per direction, whole
matrices at every step; as an autograd function with identity gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporter.quantize import published_formulas

SIZES = {"10M": (320, 800, 2048), "28M": (512, 1280, 4096)}  # hidden, intermediate, vocabulary
LAYERS, BATCH, LENGTH, STAGES = 8, 4, 256, 2
VARIANTS = ("dense", "ours", "formulas")


class Formulas(torch.autograd.Function):
    """The dequantized matrix of a latent one [2n, 2m], with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor) -> Tensor:
        (u_re, u_im), (w_re, w_im) = published_formulas(latent, STAGES)
        top = torch.cat([w_re + u_re, w_im - u_im], dim=1)
        return torch.cat([top, torch.cat([w_im + u_im, u_re - w_re], dim=1)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class FormulaLinear(nn.Linear):
    """A linear layer that quantizes its weight by the formulas in every forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, Formulas.apply(self.weight), self.bias)


def make_model(size: str, dtype: torch.dtype, variant: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    from fairy2i_export.train import QuantizationOptions, prepare

    hidden, intermediate, vocabulary = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if variant == "ours":
        profile = "bf16-reference" if dtype == torch.bfloat16 else "fp32"
        prepare(model, QuantizationOptions(stages=STAGES, profile=profile))  # type: ignore[arg-type]
    if variant == "formulas":
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FormulaLinear
    return model


def make_step(model: nn.Module, accumulate: int) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, model.config.vocab_size, (BATCH, LENGTH))  # type: ignore[union-attr, arg-type]

    def step() -> float:
        for _ in range(accumulate):
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, arguments.dtype)
    models = {variant: make_model(arguments.size, dtype, variant) for variant in arguments.variants}
    steps = {variant: make_step(model, arguments.accumulate) for variant, model in models.items()}
    losses = {variant: step() for variant, step in steps.items()}  # warm-up
    seconds: dict[str, list[float]] = {variant: [] for variant in steps}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    for round_ in range(arguments.rounds):
        order = list(steps) if round_ % 2 == 0 else list(reversed(steps))
        for variant in order:
            start = clock()
            losses[variant] = steps[variant]()
            seconds[variant].append(clock() - start)
    parameters = sum(p.numel() for p in next(iter(models.values())).parameters())
    result: dict[str, Any] = {"parameters": parameters, "threads": torch.get_num_threads(), "variants": {}}
    for variant, times in seconds.items():
        quartiles = statistics.quantiles(times, n=4)
        ratios = [a / b for a, b in zip(times, seconds["dense"], strict=True)]
        result["variants"][variant] = {
            "seconds": statistics.median(times),
            "quartiles": [quartiles[0], quartiles[2]],
            "ratio": statistics.median(ratios),
            "loss": losses[variant],
        }
    return result


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of each variant after three steps, in a process of its own.

    Every block has a mapping of its own there, as far as glibc allows: the peak is then what is alive, not how the heap of that
    run happened to be cut up, which differs between equal runs by more than a buffer.
    """
    result: dict[str, Any] = {"variants": {}}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    for variant in arguments.variants:
        command = [sys.executable, __file__, "--size", arguments.size, "--dtype", arguments.dtype, "--alone", variant]
        command += ["--accumulate", str(arguments.accumulate), "--threads", str(arguments.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        result["variants"][variant] = json.loads(done.stdout)
    base = result["variants"]["dense"]["peak"]
    for figures in result["variants"].values():
        figures["extra weights"] = (figures["peak"] - base) / figures["weights"]
    return result


def alone(arguments: argparse.Namespace) -> dict[str, Any]:
    model = make_model(arguments.size, getattr(torch, arguments.dtype), arguments.alone)
    step = make_step(model, arguments.accumulate)
    for _ in range(3):
        step()
    weights = sum(m.weight.nbytes for m in model.modules() if isinstance(m, nn.Linear))
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="10M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches in a step")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch likes")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the process, not of the clock")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--alone", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.alone:
        print(json.dumps(alone(arguments)))
        return
    result = measure_memory(arguments) if arguments.memory else measure_time(arguments)
    print({key: value for key, value in result.items() if key != "variants"})
    for variant, figures in result["variants"].items():
        if arguments.memory:
            print(f"{variant:10} peak {figures['peak'] / 1e6:7.0f} MB, {figures['extra weights']:+.2f} weight-sized buffers")
        else:
            low, high = figures["quartiles"]
            print(
                f"{variant:10} {1000 * figures['seconds']:7.0f} ms ({1000 * low:.0f} to {1000 * high:.0f}), "
                f"{figures['ratio']:.3f} x dense, loss {figures['loss']:.4f}"
            )


if __name__ == "__main__":
    main()
