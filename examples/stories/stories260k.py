"""Convert karpathy's stories260K from the llama2.c format to a Hugging Face directory, without torch.

stories260K is a real LLaMA with 264 thousand parameters, trained on TinyStories. llama2.c keeps it in two flat files: a
checkpoint (seven int32 of shape, then float32 weights) and a tokenizer (pieces with merge scores). This script writes what
``transformers`` and ``fairy2i-export`` read: config.json, model.safetensors, tokenizer.json and friends.

    python examples/stories/stories260k.py OUTPUT_DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

DATA = Path(__file__).resolve().parents[1] / "data"
CHECKPOINT = DATA / "stories260K" / "stories260K.bin"
VOCABULARY = DATA / "stories260K" / "tok512.bin"

UNKNOWN, BOS, EOS = 0, 1, 2
BYTE_OFFSET = 3  # token of byte b is b + 3
SPACE = "\u2581"  # how tokenizer.json spells a space, the SentencePiece convention every LLaMA tokenizer follows

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The header of a llama2.c checkpoint."""

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    context: int


def read_checkpoint(path: Path) -> tuple[Shape, dict[str, F32]]:
    """Read a llama2.c checkpoint (version 0, tied embeddings): its shape and its weights under their Hugging Face names.

    Raises:
        ValueError: if the file is not such a checkpoint.
    """
    raw = path.read_bytes()
    shape = Shape(*struct.unpack("<7i", raw[:28]))
    if shape.vocab_size < 0:
        raise ValueError(f"{path}: checkpoints with a separate output matrix (negative vocabulary size) are not read")
    values = np.frombuffer(raw, "<f4", offset=28)
    position = 0

    def take(*dims: int) -> F32:
        nonlocal position
        count = int(np.prod(dims))
        if position + count > values.size:
            raise ValueError(f"{path}: {len(raw)} bytes are too few for the shape in its header, {shape}")
        position += count
        return values[position - count : position].reshape(dims).copy()

    layers, dim, hidden, kv_dim = shape.layers, shape.dim, shape.hidden_dim, shape.dim * shape.kv_heads // shape.heads
    tensors = {"model.embed_tokens.weight": take(shape.vocab_size, dim)}
    # every kind of weight is stored for all layers in a row, in this order
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    rotary_tables = shape.context * dim // shape.heads  # cos and sin, recomputed by every reader
    if values.size - position != rotary_tables:
        raise ValueError(f"{path}: {values.size - position} numbers follow the weights, expected {rotary_tables}")
    for name, stack in stacked.items():
        for layer, weight in enumerate(stack):
            if name.endswith(("q_proj", "k_proj")):
                weight = _rotary_halves(weight, shape.dim // shape.heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight
    return shape, tensors


def _rotary_halves(weight: F32, head_size: int) -> F32:
    """Reorder the rows of every head: llama2.c rotates neighbours (0, 1), (2, 3) ..., Hugging Face rotates the two halves."""
    rows, columns = weight.shape
    paired = weight.reshape(rows // head_size, head_size // 2, 2, columns)
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows, columns))


def read_vocabulary(path: Path, size: int) -> list[tuple[bytes, float]]:
    """Read ``size`` (piece, merge score) pairs of a llama2.c tokenizer file."""
    raw, position, pieces = path.read_bytes(), 4, []
    for _ in range(size):
        score, length = struct.unpack_from("<fi", raw, position)
        position += 8 + length
        pieces.append((raw[position - length : position], score))
    return pieces


def build_tokenizer(pieces: list[tuple[bytes, float]]) -> Tokenizer:
    """The same tokenizer for the ``tokenizers`` library: BPE with byte fallback, a space before the text, BOS in front.

    llama2.c merges the neighbours whose joined piece scores best. The library ranks pairs instead: every way to split a
    piece in two becomes a merge, ordered by the score of the piece.
    """
    names = [piece.decode().replace(" ", SPACE) for piece, _ in pieces]
    names[UNKNOWN], names[BOS], names[EOS] = "<unk>", "<s>", "</s>"
    ids = {name: token for token, name in enumerate(names)}
    first_text_token = BYTE_OFFSET + 256
    text_tokens = range(first_text_token, len(names))
    known = {names[token] for token in text_tokens}
    merges = [
        (names[token][:cut], names[token][cut:])
        for token in sorted(text_tokens, key=lambda token: -pieces[token][1])
        for cut in range(1, len(names[token]))
        if names[token][:cut] in known and names[token][cut:] in known
    ]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    special = [AddedToken(names[token], special=True, normalized=False) for token in (UNKNOWN, BOS, EOS)]
    tokenizer.add_special_tokens(special)
    return tokenizer


def model_config(shape: Shape) -> dict[str, Any]:
    """config.json of the float model.

    The model was trained on stories joined by BOS and has never seen EOS, so BOS also ends a story: both count as end.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.dim // shape.heads,
        "max_position_embeddings": shape.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": [BOS, EOS],
        "torch_dtype": "float32",
    }


def write_tokenizer(directory: Path, shape: Shape) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and generation_config.json."""
    build_tokenizer(read_vocabulary(VOCABULARY, shape.vocab_size)).save(str(directory / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", special)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape.context,
        },
    )
    write_json(directory / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [BOS, EOS]})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert(directory: Path) -> None:
    """Write the float model as a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    shape, tensors = read_checkpoint(CHECKPOINT)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", model_config(shape))
    write_tokenizer(directory, shape)


def main() -> None:
    """Command line: convert to the directory given."""
    parser = argparse.ArgumentParser(description="Convert stories260K (llama2.c) to a Hugging Face directory")
    parser.add_argument("directory", type=Path)
    convert(parser.parse_args().directory)


if __name__ == "__main__":
    main()
