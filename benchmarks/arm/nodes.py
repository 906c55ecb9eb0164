"""Instructions per weight of whole onnxruntime nodes on ARM: Fairy2iMatMul against MatMulNBits, counted under qemu-user.

    nodes.py WORK                  print the table (WORK: what .ci/arm makes, .work/arm)
    nodes.py WORK --json FILE      and write the records; nodes.json holds those of docs/arm.md

A session of a one-node model runs R and 2R times in one process, three times over. The (median) difference of the two counts,
divided by R, the weights and the rows of activations, is the cost of a weight for one row, with everything that onnxruntime does
for the node. What a call costs without a node is counted with a model that does nothing, and taken off. All models are made of
the same weights.
Instructions are not time: no statement about the speed of a processor may be made from them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import fairy2i_export

HERE = Path(__file__).resolve().parent
N, K = 2048, 1024
CPUS = {  # number and features in /proc/cpuinfo: onnxruntime takes its kernels by them, and qemu 7.2 shows the host's
    "cortex-a72": ("0xd08", "fp asimd evtstrm crc32 cpuid"),  # Raspberry Pi 4
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),  # Raspberry Pi 5
}
ROWS = (1, 64)
KINDS = {"lut": "Fairy2iMatMul, lut", "q2": "MatMulNBits, 2 bits", "q4": "MatMulNBits, 4 bits"}
BLOCKS = {"q2": 128, "q4": 32}  # weights that share a scale, as onnxruntime's ARM kernels like it best
REPEATS = 3
TOLERANCE = 0.03  # of the result: activations become int8 in all of them
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Emulated:
    """An ARM machine: the folder that .ci/arm lays out, and what is run in it."""

    work: Path
    folder: Path  # of our own, with count_plugin.so in it

    def root(self, cpu: str) -> Path:
        """Its system, with the /proc/cpuinfo of a processor."""
        root = self.folder / cpu
        if not root.exists():
            (root / "proc").mkdir(parents=True)
            for path in (self.work / "root").iterdir():
                if path.name != "proc":
                    (root / path.name).symlink_to(path)
            number, features = CPUS[cpu]
            lines = {"processor": 0, "Features": features, "CPU implementer": "0x41", "CPU architecture": 8}
            lines |= {"CPU variant": "0x0", "CPU part": number, "CPU revision": 3}
            (root / "proc/cpuinfo").write_text("".join(f"{name}\t: {value}\n" for name, value in lines.items()) + "\n")
        return root

    def count(self, cpu: str, *arguments: object) -> float:
        """Instructions of one run of the session in repeat_node.py, the median of its rounds."""
        root = self.root(cpu)
        settings = {"PYTHONPATH": self.work / "site", "PYTHONHOME": "/usr", "PYTHONHASHSEED": 0, "OPENBLAS_NUM_THREADS": 1}
        command = ["qemu-aarch64", "-cpu", cpu, "-L", root, "-plugin", self.folder / "count_plugin.so"]
        command += [word for name, value in settings.items() for word in ("-E", f"{name}={value}")]
        command += [root / "usr/bin/python3.11", HERE / "repeat_node.py", *arguments]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        found = [int(number) for number in re.findall(r"^so far (\d+)$", done.stderr, re.M)]
        if done.returncode != 0 or len(found) < 3:
            sys.exit(f"{cpu}: {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        blocks = np.diff(found)
        return float(np.median(blocks[1::2] - blocks[::2])) / REPEATS

    def version(self) -> str:
        """Of the onnxruntime."""
        return next((self.work / "site").glob("onnxruntime-*.dist-info")).name.split("-")[1].removesuffix(".dist")


def write_model(path: Path, node: onnx.NodeProto, tensors: dict[str, npt.NDArray[np.generic]], width: int) -> None:
    """A model of one node with the input x [rows, K] and the output y [rows, width]."""
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    domains = {"": 18, "ai.fairy2i": 1, "com.microsoft": 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def fairy2i_model(path: Path, weight: F32) -> F32:
    """Write the node with two stages of codes; returns the matrix [N, K] that it multiplies by."""
    quantized = fairy2i_export.quantize(weight, stages=2)
    packed = fairy2i_export.pack(quantized)
    size = {"K": K, "N": N, "stages": 2, "layout_version": 1, "scale_scope": 0}
    node = helper.make_node("Fairy2iMatMul", ["x", "packed", "scales"], ["y"], domain="ai.fairy2i", **size)
    write_model(path, node, {"packed": packed.packed, "scales": packed.scales}, N)
    return quantized.dequantize("none")


def nbits_model(path: Path, weight: F32, bits: int, block: int) -> F32:
    """Write a MatMulNBits node with the nearest codes; returns the matrix [N, K] that it multiplies by."""
    middle = 1 << (bits - 1)
    blocks = weight.reshape(N, K // block, block)
    scales = (np.abs(blocks).max(axis=2) / (middle - 0.5)).astype(np.float32)
    codes = np.clip(np.rint(blocks / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    places = 8 // bits
    parts = codes.reshape(N, K // block, block // places, places) << (bits * np.arange(places, dtype=np.uint8))
    size = {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": 4}  # 4: int8 activations, the fast path
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **size)
    write_model(path, node, {"codes": np.bitwise_or.reduce(parts, axis=3), "scales": scales}, N)
    return ((codes.astype(np.float32) - middle) * scales[..., None]).reshape(N, K)


def make_models(folder: Path) -> dict[str, F32]:
    """Write KIND.onnx of every kind, and empty.onnx; returns the matrix of each kind."""
    weight = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32) / 32
    matrices = {kind: nbits_model(folder / f"{kind}.onnx", weight, int(kind[1:]), BLOCKS[kind]) for kind in BLOCKS}
    matrices["lut"] = fairy2i_model(folder / "lut.onnx", weight)
    ends = {"starts": np.array([0]), "ends": np.array([1]), "axes": np.array([1])}
    write_model(folder / "empty.onnx", helper.make_node("Slice", ["x", *ends], ["y"]), ends, 1)
    return matrices


def count_all(machine: Emulated, folder: Path, cpus: list[str], rows: list[int]) -> list[dict[str, object]]:
    """A record for every processor, kind and number of rows."""
    matrices = make_models(folder)
    records: list[dict[str, object]] = []
    for cpu in cpus:
        for count in rows:
            x = np.random.default_rng(count).standard_normal((count, K)).astype(np.float32)
            np.save(folder / "x.npy", x)

            def call(kind: str, cpu: str = cpu) -> float:
                library = machine.work / "build/libfairy2i_ops.so" if kind == "lut" else "-"
                files = (folder / f"{kind}.onnx", library, folder / "x.npy", folder / "y.npy")
                return machine.count(cpu, *files, REPEATS)

            empty = call("empty")
            for kind, text in KINDS.items():
                node = call(kind) - empty
                expected = x @ matrices[kind].T
                error = float(np.linalg.norm(np.load(folder / "y.npy") - expected) / np.linalg.norm(expected))
                if error > TOLERANCE:
                    sys.exit(f"{cpu}: {text}: wrong by {error:.1%}")
                per_weight = node / (N * K * count)
                print(f"{cpu}  {text:20} M={count:<3} {per_weight:8.3f} per weight and row   error {error:.2%}", flush=True)
                records.append({"cpu": cpu, "kind": kind, "M": count, "instructions_per_weight": round(per_weight, 4)})
            print(f"{cpu}  a call without a node: {empty:.0f} instructions", flush=True)
    return records


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cpu", action="append", choices=CPUS)
    parser.add_argument("--rows", "-M", action="append", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = folder / "count_plugin.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", HERE / "count_plugin.c", "-o", plugin], check=True)
        machine = Emulated(arguments.work.resolve(), folder)
        print(f"onnxruntime {machine.version()}, N = {N}, K = {K}, one thread")
        records = count_all(machine, folder, arguments.cpu or list(CPUS), arguments.rows or list(ROWS))
    if arguments.json:
        text = json.dumps({"onnxruntime": machine.version(), "N": N, "K": K, "records": records}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
