"""A LLaMA checkpoint as a GGUF file with 16-bit weights, padded to multiples of 256, the block of llama.cpp's small types.

What is missing is filled with zeros and changes nothing: the hidden width, the inner width, and heads (whole groups, so that
every query head keeps its key-value head). RMS norms take their mean over the padded width p instead of h, which a factor
sqrt(h / p) of their weights and h / p of their epsilon makes up for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

BLOCK = 256
F32 = npt.NDArray[np.float32]


def up(value: int, multiple: int = BLOCK) -> int:
    return -(-value // multiple) * multiple


def padded(matrix: F32, rows: int, columns: int) -> F32:
    """The matrix with zeros below and to the right."""
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def interleaved(matrix: F32, heads: int) -> F32:
    """Rows of a q or k projection in the order of llama.cpp's rotary embedding: the two of a pair side by side."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(checkpoint: Path, target: Path, block: int = BLOCK, *, tokenizer: bool = True) -> None:
    """Write the file.

    Args:
        checkpoint: of a LLaMA model.
        target: the file.
        block: what sizes are padded to multiples of; 1 pads nothing.
        tokenizer: False leaves it out: enough for who gives the model token ids.

    Raises:
        typer.BadParameter: a checkpoint of another kind.
    """
    import torch
    from gguf import GGUFWriter, LlamaFileType, TokenType
    from safetensors import safe_open

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if (
        config["architectures"] != ["LlamaForCausalLM"]
        or config.get("attention_bias")
        or rope.get("rope_type") not in (None, "default")
    ):
        raise typer.BadParameter(f"{checkpoint}: expected a LLaMA without biases and stretched positions")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    group = heads // kv_heads
    more_kv = next(count for count in range(kv_heads, kv_heads + block + 1) if count * group * head % block == 0)
    wide, broad = up(hidden, block), up(inner, block)

    writer = GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(wide)
    writer.add_feed_forward_length(broad)
    writer.add_head_count(more_kv * group)
    writer.add_head_count_kv(more_kv)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"] * hidden / wide)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    if (wide, broad, more_kv) != (hidden, inner, kv_heads):
        writer.add_description(
            f"padded with zeros: width {hidden} to {wide}, inner width {inner} to {broad}, heads {heads} to {more_kv * group}"
        )
    if tokenizer:
        _add_tokenizer(writer, checkpoint, config, TokenType)
    else:
        writer.add_tokenizer_model("no_vocab")

    files = [safe_open(path, "pt") for path in sorted(checkpoint.glob("*.safetensors"))]
    stored = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def tensor(name: str) -> F32:
        found: F32 = stored[name].get_tensor(name).to(torch.float32).numpy()
        return found

    def add(name: str, matrix: F32, rows: int, columns: int) -> None:
        writer.add_tensor(name, padded(matrix, rows, columns).astype(np.float16))

    def add_norm(name: str, weights: F32) -> None:
        writer.add_tensor(name, (np.pad(weights, (0, wide - hidden)) * np.sqrt(hidden / wide)).astype(np.float32))

    vocabulary = config["vocab_size"]
    add("token_embd.weight", tensor("model.embed_tokens.weight"), vocabulary, wide)
    add_norm("output_norm.weight", tensor("model.norm.weight"))
    if not config.get("tie_word_embeddings"):
        add("output.weight", tensor("lm_head.weight"), vocabulary, wide)
    for layer in range(config["num_hidden_layers"]):
        source, name = f"model.layers.{layer}", f"blk.{layer}"
        query, key = more_kv * group * head, more_kv * head
        attention = f"{source}.self_attn"
        add_norm(f"{name}.attn_norm.weight", tensor(f"{source}.input_layernorm.weight"))
        add_norm(f"{name}.ffn_norm.weight", tensor(f"{source}.post_attention_layernorm.weight"))
        add(f"{name}.attn_q.weight", interleaved(tensor(f"{attention}.q_proj.weight"), heads), query, wide)
        add(f"{name}.attn_k.weight", interleaved(tensor(f"{attention}.k_proj.weight"), kv_heads), key, wide)
        add(f"{name}.attn_v.weight", tensor(f"{attention}.v_proj.weight"), key, wide)
        add(f"{name}.attn_output.weight", tensor(f"{attention}.o_proj.weight"), wide, query)
        add(f"{name}.ffn_gate.weight", tensor(f"{source}.mlp.gate_proj.weight"), broad, wide)
        add(f"{name}.ffn_up.weight", tensor(f"{source}.mlp.up_proj.weight"), broad, wide)
        add(f"{name}.ffn_down.weight", tensor(f"{source}.mlp.down_proj.weight"), wide, broad)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, checkpoint: Path, config: dict[str, Any], types: Any) -> None:
    """A byte-level BPE tokenizer that splits as SmolLM's does; llama-imatrix reads its text with it."""
    stored = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    model = stored["model"]
    if model.get("type") != "BPE":
        raise typer.BadParameter(f"{checkpoint}: expected a BPE tokenizer, found {model.get('type')}")
    special = {entry["id"]: entry["content"] for entry in stored.get("added_tokens", ())}
    tokens = {**{index: token for token, index in model["vocab"].items()}, **special}
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens.get(index, f"[unused{index}]") for index in range(size)])
    writer.add_token_types(
        [types.CONTROL if index in special else types.NORMAL if index in tokens else types.UNUSED for index in range(size)]
    )
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def bits_per_weight(gguf: Path, checkpoint: Path) -> float:
    """Stored bits of the decoder's linear layers per weight; a tensor counts with the size it had before it was padded."""
    from gguf import GGUFReader

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    sizes = {
        "attn_q": query * hidden, "attn_k": key * hidden, "attn_v": key * hidden, "attn_output": hidden * query,
        "ffn_gate": inner * hidden, "ffn_up": inner * hidden, "ffn_down": hidden * inner,
    }  # fmt: skip
    bits = count = 0.0
    for tensor in GGUFReader(gguf).tensors:
        part = tensor.name.split(".")[-2]
        if part in sizes:
            bits += sizes[part] * 8 * tensor.n_bytes / tensor.n_elements
            count += sizes[part]
    return bits / count
