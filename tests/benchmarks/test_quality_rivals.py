"""llama.cpp's types beside ours: the padded model is the same model, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from conftest import ROOT
from export_helpers import make_checkpoint

sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

from conversion.rivals import llama_types, padded


def test_padding_changes_nothing(tmp_path: Path) -> None:
    """The padded file, read back into a model of transformers of that size, gives the logits of the checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    source = make_checkpoint(
        tmp_path / "source",
        dtype=np.float32,
        num_hidden_layers=1,
        hidden_size=96,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
    )
    rewrite_as_bpe(source)
    padded.write_gguf(source, tmp_path / "padded.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "padded.gguf").tensors}
    shape = found["blk.0.attn_q.weight"].shape
    heads, kv_heads = shape[0] // 16, found["blk.0.attn_k.weight"].shape[0] // 16
    assert (shape[1], heads * 16 % 256, heads // kv_heads) == (256, 0, 3)
    config = LlamaConfig.from_pretrained(
        source, hidden_size=256, intermediate_size=256, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=16,
        rms_norm_eps=1e-5 * 96 / 256,
    )  # fmt: skip
    twin = LlamaForCausalLM(config).eval()

    def halves(matrix: Any, count: int) -> Any:  # the other way round from side by side
        rows, columns = matrix.shape
        return matrix.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    names = {
        "model.embed_tokens": found["token_embd.weight"], "model.norm": found["output_norm.weight"],
        "lm_head": found["output.weight"], "model.layers.0.input_layernorm": found["blk.0.attn_norm.weight"],
        "model.layers.0.post_attention_layernorm": found["blk.0.ffn_norm.weight"],
        "model.layers.0.self_attn.q_proj": halves(found["blk.0.attn_q.weight"], heads),
        "model.layers.0.self_attn.k_proj": halves(found["blk.0.attn_k.weight"], kv_heads),
        "model.layers.0.self_attn.v_proj": found["blk.0.attn_v.weight"],
        "model.layers.0.self_attn.o_proj": found["blk.0.attn_output.weight"],
        **{f"model.layers.0.mlp.{part}_proj": found[f"blk.0.ffn_{part}.weight"] for part in ("gate", "up", "down")},
    }  # fmt: skip
    twin.load_state_dict({f"{name}.weight": torch.from_numpy(value.astype(np.float32)) for name, value in names.items()})
    ids = torch.tensor([[5, 9, 100, 7, 33, 8]])
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        got, expected = twin(ids).logits, plain(ids).logits
    assert float((got - expected).abs().max()) < 0.02 * float(expected.abs().max())  # 16-bit weights
    assert padded.bits_per_weight(tmp_path / "padded.gguf", source) == 16


def rewrite_as_bpe(folder: Path) -> None:
    """A tokenizer.json of the kind that a GGUF file can hold."""
    vocabulary = {f"w{index}": index for index in range(200)}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}})
    )


def test_table_of_types() -> None:
    measured = [
        {"type": "F16", "pure": True, "bits": 16.0, "texts": {"wiki-2k": {"perplexity": 17.5}}},
        {"type": "IQ2_XS", "pure": True, "bits": 2.3125, "texts": {"wiki-2k": {"perplexity": 100.0}}},
    ]
    assert llama_types.table_of(measured)[2:] == ["| F16 | 16.00 | 17.50 |", "| IQ2_XS, pure | 2.31 | 100.00 |"]
