"""Processes that train together, or get killed while they do: the environment of ``torchrun``, without its start-up time.

A server process imports torch, transformers and what the two import later once for all tests, and forks the workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairy2i_export.train.recipe import Recipe

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
}
# what workers need; some of it torch imports only when an optimizer steps or a model is sharded, which takes seconds
PRELOADED = [
    "pytest",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.state_dict",
    "transformers.models.llama.modeling_llama",
    "training_worker",
    "fairy2i_export.train.loop.trainer",
    "fairy2i_export.train.loop.progress",
    "datasets",
    "fairy2i_runtime.ops.core",
]


def run_forked(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> list[int]:
    """Run ``target``, a function of a module, in one process per tuple of arguments; returns exit codes (-9: killed)."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(entry for entry in sys.path if entry))  # for the server
    context.set_forkserver_preload(PRELOADED)
    workers = [context.Process(target=_run, args=(target, given)) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        worker.kill()
        worker.join()
    return [worker.exitcode if worker.exitcode is not None else -1 for worker in workers]


def _run(target: Callable[..., None], given: tuple[Any, ...]) -> None:
    """Leave without the interpreter's end, at which threads of gloo have been seen to wait for a peer that is gone."""
    target(*given)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def launch(recipe: Recipe, reports: Path, *, world: int = 2, fsdp: bool = False, die_at: int | None = None) -> list[int]:
    """Train in ``world`` processes; returns their exit codes. Each leaves ``reports``/rank.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reports.mkdir(exist_ok=True)
    return run_forked(work, [(rank, world, port, recipe, reports, fsdp, die_at) for rank in range(world)])


def work(rank: int, world: int, port: int, recipe: Recipe, reports: Path, fsdp: bool, die_at: int | None) -> None:
    """One process."""
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["OMP_NUM_THREADS"] = "1"
    if fsdp:
        _shard_on_the_cpu()
    from fairy2i_export.train import train
    from fairy2i_export.train.loop.trainer import QATTrainer

    writes: set[str] = set()
    out = str(recipe.output.resolve())

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path.startswith(out) and (writing or event in ("os.rename", "os.remove", "shutil.rmtree")):
            writes.add(Path(path).name)

    sys.addaudithook(audit)
    if die_at is not None:
        step = QATTrainer.training_step

        def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args, **kwargs)

        QATTrainer.training_step = dying  # type: ignore[method-assign]
    result = train(recipe)
    (reports / f"{rank}.json").write_text(
        json.dumps({"main": result.is_main, "resumed": result.resumed_from, "writes": sorted(writes)})
    )


def _shard_on_the_cpu() -> None:
    """Accelerate shards on accelerators only; torch's FSDP2 also does on the CPU. Make accelerate take gloo for such a device."""
    os.environ.update(FSDP)
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from fairy2i_export.train.loop import models

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # type: ignore[method-assign]
    models.has_accelerator = lambda: True
