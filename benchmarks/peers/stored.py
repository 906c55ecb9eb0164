"""What a model folder or a GGUF file stores its weights as, as far as it explains their speed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def gguf(path: Path) -> dict[str, Any]:
    """Types of the tensors of a GGUF file.

    Returns:
        layers: text, the types of the decoder's linear layers with the parts that have them.
        bits: of these per stored weight, scales included.
        head: type of the output layer.
        bytes: of the file.
        note: how it was padded, if it was.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    parts: dict[str, Counter[str]] = defaultdict(Counter)  # type -> how often every part has it
    stored = count = 0
    head = ""
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if tensor.name == HEAD or (tensor.name == EMBEDDING and not head):
            head = kind
        found = re.fullmatch(r"blk\.\d+\.((?:attn|ffn)_(?!norm)\w+)\.weight", tensor.name)
        if found:
            parts[kind][found[1]] += 1
            stored += int(tensor.n_bytes)
            count += int(tensor.n_elements)
    layers = sum(1 for tensor in reader.tensors if tensor.name.endswith("ffn_down.weight"))
    described = reader.fields.get("general.description")
    return {
        "layers": "; ".join(_parts_text(kind, found, layers) for kind, found in sorted(parts.items(), key=_by_size)),
        "bits": 8 * stored / count,
        "head": head,
        "bytes": path.stat().st_size,
        "note": described.contents() if described else "",
    }


def folder(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """The same of a model folder, of which its worker read ``said``."""
    return {
        "layers": f"Fairy2i, {said['stages']} stages",
        "bits": float(said.get("bits", said["stages"])),
        "head": said["lm_head"],
        "bytes": sum(file.stat().st_size for file in path.iterdir() if file.name.startswith("model.onnx")),
        "note": f"key-value cache {said['kv_cache']}",
    }


def genai(path: Path) -> dict[str, Any]:
    """The same of a folder of onnxruntime-genai's model builder; scales are float32."""
    import onnx

    stored = count = 0.0
    kinds: dict[str, list[str]] = {"layers": [], "head": []}
    for node in onnx.load(path / "model.onnx", load_external_data=False).graph.node:
        if node.op_type not in ("MatMul", "MatMulNBits"):
            continue
        values = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMul":
            kind, bits, size = "MatMul", 32.0, 0
        else:
            kind = f"MatMulNBits, {values['bits']} bits, blocks of {values['block_size']}"
            bits, size = values["bits"] + 32 / values["block_size"], values["K"] * values["N"]
        head = "lm_head" in node.name
        kinds["head" if head else "layers"].append(kind)
        if not head:
            stored, count = stored + bits * size, count + size
    return {
        **{part: "; ".join(dict.fromkeys(found)) for part, found in kinds.items()},
        "bits": stored / count,
        "bytes": sum(file.stat().st_size for file in path.iterdir() if file.name.startswith("model.onnx")),
        "note": "",
    }


def _by_size(item: tuple[str, Counter[str]]) -> tuple[int, str]:
    return -sum(item[1].values()), item[0]


def _parts_text(kind: str, found: Counter[str], layers: int) -> str:
    """``Q4_0: q, k, v; TQ2_0: down (29 of 30)``."""
    names = []
    for part, times in found.items():
        name = part.removeprefix("attn_").removeprefix("ffn_")
        names.append(name if times == layers else f"{name} ({times} of {layers})")
    return f"{kind}: {'all' if len(found) == 7 and set(found.values()) == {layers} else ', '.join(names)}"
