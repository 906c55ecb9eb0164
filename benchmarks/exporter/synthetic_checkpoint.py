"""Writes a LLaMA checkpoint of any size with random bfloat16 latents, a tensor at a time, in shards as on the Hugging Face hub.

The sizes are those of LLaMA-2-7B unless said otherwise. Nothing but the time it takes to export is to be learnt from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

SHARD_BYTES = 5_000_000_000
STD = 0.02
Shape = tuple[int, ...]
BF16 = npt.NDArray[np.uint16]  # bit patterns


# arguments of llama_config that make the shapes of models; the number in a name counts parameters
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"layers": 30, "hidden": 576, "inner": 1536, "heads": 9, "kv_heads": 3, "vocab": 49152, "tied": True},
    "SmolLM2-360M": {"layers": 32, "hidden": 960, "inner": 2560, "heads": 15, "kv_heads": 5, "vocab": 49152, "tied": True},
    "Qwen2.5-0.5B": {"layers": 24, "hidden": 896, "inner": 4864, "heads": 14, "kv_heads": 2, "vocab": 151936, "tied": True},
    "Llama-3.2-1B": {"layers": 16, "hidden": 2048, "inner": 8192, "heads": 32, "kv_heads": 8, "vocab": 128256, "tied": True},
    "SmolLM2-1.7B": {"layers": 24, "hidden": 2048, "inner": 8192, "heads": 32, "kv_heads": 32, "vocab": 49152, "tied": True},
    "Llama-3.2-3B": {"layers": 28, "hidden": 3072, "inner": 8192, "heads": 24, "kv_heads": 8, "vocab": 128256, "tied": True},
    "Llama-2-7B": {},
    "Llama-2-7B, 1 layer": {"layers": 1},
}


def llama_config(
    layers: int = 32,
    hidden: int = 4096,
    inner: int = 11008,
    heads: int = 32,
    vocab: int = 32000,
    kv_heads: int | None = None,
    tied: bool = False,
) -> dict[str, object]:
    """config.json; the defaults are LLaMA-2-7B. A tied head has no tensor of its own."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def linear_shapes(config: dict[str, object]) -> dict[str, Shape]:
    """Tensor name -> [out, in] of every linear layer."""
    hidden, inner = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    keys = hidden // int(str(config["num_attention_heads"])) * int(str(config["num_key_value_heads"]))
    shapes: dict[str, Shape] = {}
    for layer in range(int(str(config["num_hidden_layers"]))):
        prefix = f"model.layers.{layer}"
        outs = {"q": hidden, "k": keys, "v": keys, "o": hidden}
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (out, hidden) for name, out in outs.items()}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
    shapes["lm_head.weight"] = (int(str(config["vocab_size"])), hidden)
    return shapes


def write_checkpoint(directory: Path, config: dict[str, object], seed: int = 0, *, hollow: bool = False) -> None:
    """Write config.json, tokenizer.json and sharded safetensors.

    Args:
        directory: to be made.
        config: config.json.
        seed: of the values.
        hollow: all values are zeros, as a hole in the file that takes no disk space: for what reads no weights.
    """
    write_tensors(directory, config, _all_shapes(config), seed, hollow=hollow)


def write_tensors(
    directory: Path, config: dict[str, object], tensors: dict[str, Shape], seed: int = 0, *, hollow: bool = False
) -> None:
    """:func:`write_checkpoint` with other tensors: their names and shapes."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(directory, int(str(config["vocab_size"])))
    rng, table = np.random.default_rng(seed), gaussian_table()
    shards = list(_shards(tensors))
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shapes, name)
        _write_shard(directory / name, shapes, rng, None if hollow else table)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def gaussian_table() -> BF16:
    """Bit patterns of 65,536 equally likely values of a normal distribution of deviation STD."""
    normal = NormalDist(0, STD)
    values = [normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)]
    return np.array(values, ml_dtypes.bfloat16).view(np.uint16)


def random_latents(shape: Shape, rng: np.random.Generator, table: BF16) -> BF16:
    """Random bfloat16 values as bit patterns."""
    return table[rng.integers(0, 65536, shape, np.uint16)]


def _all_shapes(config: dict[str, object]) -> dict[str, Shape]:
    hidden, layers = int(str(config["hidden_size"])), int(str(config["num_hidden_layers"]))
    linears = linear_shapes(config)
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (int(str(config["vocab_size"])), hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {name: shape for name, shape in linears.items() if name.startswith(prefix)}
        shapes |= {f"{prefix}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": linears["lm_head.weight"]}
    return {**shapes, "model.norm.weight": (hidden,), **head}


def _shards(shapes: dict[str, Shape]) -> Iterator[dict[str, Shape]]:
    shard: dict[str, Shape] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if shard and size + nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def _write_shard(path: Path, shapes: dict[str, Shape], rng: np.random.Generator, table: BF16 | None) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if table is None:
            file.truncate(file.tell() + end)
            return
        for shape in shapes.values():
            step = max(1, (1 << 22) // int(np.prod(shape[1:])))
            for start in range(0, shape[0], step):
                rows = min(step, shape[0] - start)
                random_latents((rows, *shape[1:]), rng, table).tofile(file)


def write_tokenizer(directory: Path, words: int) -> None:
    """A tokenizer.json of whole words: <unk>, <s>, </s>, w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, words)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
