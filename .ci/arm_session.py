"""One onnxruntime session on two machines: does 64-bit ARM compute what x86 computes?

    arm_session.py make DIR       write a one-node model, its input and a prompt; DIR/model is an exported model (host)
    arm_session.py run DIR NAME   run both models with $FAIRY2I_LIBRARY and write DIR/NAME.npz (host and ARM)
    arm_session.py compare DIR    NAMEs "host" and "arm": equal bits of the operator, equal tokens of the model (host)

`run` needs nothing but numpy and onnxruntime.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

FAMILIES = ("lut", "dot", "exact")
PROMPT = "Once upon a time, there was a little girl named Lily"
NEW_TOKENS = 48


def make(folder: Path) -> None:
    """Write linear.onnx, x.npy and prompt.npy."""
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer

    from fairy2i_export import pack
    from fairy2i_export.codes.quantized import QuantizedLinear

    rng = np.random.default_rng(0)
    n, m, stages = 150, 211, 2
    codes = rng.integers(0, 4, (stages, 2, n, m), dtype=np.uint8)
    packed = pack(QuantizedLinear(codes=codes, scales=rng.uniform(0.2, 1, (stages, 2, 2)).astype(np.float32)))
    node = helper.make_node(
        "Fairy2iMatMul", ["x", "packed", "scales"], ["y"], domain="ai.fairy2i",
        K=2 * m, N=2 * n, stages=stages, layout_version=1, scale_scope=0,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2 * m])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2 * n])],
        [numpy_helper.from_array(packed.packed, "packed"), numpy_helper.from_array(packed.scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.fairy2i", 1)]
    (folder / "linear.onnx").write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    np.save(folder / "x.npy", rng.standard_normal((19, 2 * m)).astype(np.float32))
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    np.save(folder / "prompt.npy", np.array(tokenizer.encode(PROMPT).ids, np.int64))


def session(path: Path, family: str):  # type: ignore[no-untyped-def]  # onnxruntime is imported where it is needed
    """A session with the library; the kernel family goes through the environment, as in any host program."""
    import onnxruntime as ort

    os.environ["FAIRY2I_KERNEL"] = family
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(os.environ["FAIRY2I_LIBRARY"])
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def generate(path: Path, family: str, prompt: np.ndarray, forced: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens and the logits of each. With `forced` the model reads these tokens instead of its own."""
    model = session(path, family)
    past = {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in model.get_inputs()
        if i.name.startswith("past_key_values.")
    }
    names = [o.name for o in model.get_outputs()]
    ids, length, tokens, logits = prompt[None], 0, [], []
    for step in range(NEW_TOKENS):
        length += ids.shape[1]
        feeds = {"input_ids": ids, "attention_mask": np.ones((1, length), np.int64), **past}
        outputs = dict(zip(names, model.run(names, feeds), strict=True))
        logits.append(outputs.pop("logits")[0, -1])
        tokens.append(int(logits[-1].argmax()))
        ids = np.array([[tokens[-1] if forced is None else forced[step]]], np.int64)
        past = {name.replace("present.", "past_key_values."): value for name, value in outputs.items()}
    return np.array(tokens), np.array(logits)


def run(folder: Path, name: str) -> None:
    """Write NAME.npz."""
    start = time.perf_counter()
    x = np.load(folder / "x.npy")
    results = {}
    for family in FAMILIES:
        linear = session(folder / "linear.onnx", family)
        results[family] = linear.run(None, {"x": x})[0]
        results[f"{family}_one_row"] = linear.run(None, {"x": x[:1]})[0]
    model, prompt = folder / "model" / "model.onnx", np.load(folder / "prompt.npy")
    results["exact_tokens"], results["exact_logits"] = generate(model, "exact", prompt, None)
    # The rest of the model is onnxruntime's own float arithmetic, which differs between machines in the last bit. Rounding
    # to int8 tables turns that within a few layers into other rounding errors of the same size. So for "lut" these
    # errors are compared, not the tokens, and both machines read the same tokens.
    forced = results["exact_tokens"] if name == "host" else np.load(folder / "host.npz")["exact_tokens"]
    results["lut_tokens"], results["lut_logits"] = generate(model, "lut", prompt, forced)
    np.savez(folder / f"{name}.npz", **results)
    print(f"{platform.machine()}: {2 * NEW_TOKENS} tokens, {time.perf_counter() - start:.1f} s")


def relative(y: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


def compare(folder: Path) -> None:
    """Exit with an error unless ARM agrees with the host."""
    from tokenizers import Tokenizer

    host, arm = np.load(folder / "host.npz"), np.load(folder / "arm.npz")
    for family in FAMILIES:
        for key in (family, f"{family}_one_row"):
            error = relative(arm[key], host[key])
            same = np.array_equal(host[key], arm[key])
            print(f"{key:14} {'equal bits' if same else f'relative difference {error:.1e}'}")
            assert same if family != "exact" else error < 1e-6, key
    np.testing.assert_array_equal(host["exact_tokens"], arm["exact_tokens"])
    difference = relative(arm["exact_logits"], host["exact_logits"])
    print(f"{'model, exact':14} {NEW_TOKENS} equal tokens, relative difference of the logits {difference:.1e}")
    assert difference < 1e-4
    errors = [relative(machine["lut_logits"], host["exact_logits"]) for machine in (host, arm)]
    equal = int((host["lut_tokens"] == arm["lut_tokens"]).sum())
    print(f"{'model, lut':14} {equal} equal tokens, error of the logits: {errors[0]:.2e} on x86, {errors[1]:.2e} on ARM")
    assert errors[1] < 1.5 * errors[0]
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    print(PROMPT + tokenizer.decode(arm["exact_tokens"].tolist()))


def main() -> None:
    """Run the command named by the first argument."""
    command, folder = sys.argv[1], Path(sys.argv[2])
    if command == "make":
        make(folder)
    elif command == "run":
        run(folder, sys.argv[3])
    elif command == "compare":
        compare(folder)
    else:
        sys.exit(f"expected make, run or compare, got {command}")


if __name__ == "__main__":
    main()
