"""Two processes, gloo on the CPU: FSDP2 and DDP train as one process does, with scales over whole matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402

from fairy2i_export.train import QuantizationOptions, fake_quantize, prepare  # noqa: E402
from training_worker import run_forked  # noqa: E402

STEPS = 3
IDS = torch.arange(32).reshape(2, 16) * 7 % 60


def make_model() -> Any:
    """A small LLaMA whose upper rows are larger than the lower ones: the halves of a matrix would have other scales."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, vocab_size=60, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data[: module.out_features // 2] *= 3
    prepare(model, QuantizationOptions())
    return model


def train(model: Any, ids: Any, average: Any = float) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # no normalisation that would hide a factor
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(average(loss.detach()))
    return losses


def mean_over_ranks(loss: Any) -> float:
    dist.all_reduce(loss)
    return float(loss) / dist.get_world_size()


def worker(rank: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        model = make_model()
        trained = model
        if kind == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (2,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            weight = model.model.layers[0].mlp.up_proj.weight
            assert weight.to_local().shape[0] == weight.shape[0] // 2
        else:
            trained = torch.nn.parallel.DistributedDataParallel(model)
        losses = train(trained, IDS[rank : rank + 1], mean_over_ranks)
        state = {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in model.state_dict().items()
        }
        if rank == 0:
            torch.save({"losses": losses, "state": state}, f"{folder}/result.pt")
        dist.barrier()  # nobody leaves while another still talks
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_two_processes_train_as_one(kind: str, tmp_path: Path) -> None:
    assert run_forked(worker, [(rank, kind, str(tmp_path)) for rank in range(2)]) == [0, 0]
    result = torch.load(tmp_path / "result.pt")
    model = make_model()
    losses = train(model, IDS)
    assert result["losses"] == pytest.approx(losses, rel=2e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result["state"][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_scales_of_shards_would_be_noticed() -> None:
    """What the test above would find if every shard had its own scales: another loss from the first step on."""
    model = make_model()
    whole = float(model(input_ids=IDS, labels=IDS).loss.detach())
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "quantized_weight"):
                module.weight.copy_(torch.cat([fake_quantize(half, module.options) for half in module.weight.chunk(2)]))
                module.__class__ = torch.nn.Linear
        sharded = float(model(input_ids=IDS, labels=IDS).loss)
    assert abs(sharded - whole) > 1e-3 * whole
