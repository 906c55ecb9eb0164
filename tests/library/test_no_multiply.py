"""The "lut" kernels do not multiply by weights: their inner loops are disassembled and searched for multiply instructions.

An inner loop is an innermost natural loop of the control flow that looks bytes up: byte shuffles, in portable code byte
loads from a table at a computed index, or loads of whole vectors at one. Outside such loops multiplications are allowed:
they scale the sum of a whole block.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from conftest import ROOT
from fairy2i_runtime import library_path

MULTIPLY = re.compile(
    r"v?p(mul|madd|dpb|dpw)\w*"  # x86: integer vectors, dot products
    r"|i?mul[bwlq]?|mulx[lq]?"  # x86: integers
    r"|v?mul[sp][sdh]|vf(n?madd|n?msub|maddsub|msubadd|c?mulc|c?maddc)\w*|v?dpp[sd]|vdpbf16ps|vgf2p8mulb|tdp\w+"  # floats, tiles
    r"|m(ul|la|ls|add|sub|neg)|[su]m(ull|addl|subl|negl|ulh|lal|lsl)2?|pmull2?"  # ARM: integers
    r"|sqr?d(mul|mla|mls)\w*|(us|su|u|s|bf)(dot|mmla)"
    r"|fn?m(ul|la|ls|add|sub|ulx|lal2?|lsl2?)|fcmla|bfmlal[bt]"  # ARM: floats
)
SHUFFLE = re.compile(r"v?pshufb|vpermb|vperm[it]2b|tbl|tbx")
BYTE_LOAD = re.compile(r"movz[bx]\w*|ldrb|ldurb")
JUMP_X86 = re.compile(r"j[a-z]+|loop\w*")
JUMP_ARM = re.compile(r"b|b\.\w+|cbn?z|tbn?z")


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: str

    @property
    def target(self) -> tuple[int, str] | None:
        """Address and function of a direct jump or call."""
        found = re.search(r"\b([0-9a-f]+) <([\w.]+)(?:@plt)?(?:\+0x[0-9a-f]+)?>$", self.operands)
        return (int(found.group(1), 16), found.group(2)) if found else None

    @property
    def is_call(self) -> bool:
        return self.mnemonic in ("call", "callq", "bl")

    @property
    def is_jump(self) -> bool:
        return bool(JUMP_X86.fullmatch(self.mnemonic) or JUMP_ARM.fullmatch(self.mnemonic))

    @property
    def multiplies(self) -> bool:
        return bool(MULTIPLY.fullmatch(self.mnemonic))

    @property
    def loads_indexed_byte(self) -> bool:
        """Base and index registers: (%rax,%rdx,1) or [x0, x1]; addresses that only advance do not count."""
        return bool(BYTE_LOAD.fullmatch(self.mnemonic)) and bool(
            re.search(r"\(%\w+,%\w+(,\d)?\)|\[x\d+, [xw]\d+", self.operands)
        )

    @property
    def indexed_vectors(self) -> int:
        """How many vectors it loads of an entry of a table that holds a value for each row of x.

        x86: one of 64 bytes at base + index, unscaled, or the one of 32 bytes that an addition takes from there. ARM: one
        at base + index, or several where a register has the sum.
        """
        if self.mnemonic == "vpaddw":
            return int(bool(re.match(r"(-?0x[0-9a-f]+)?\(%\w+,%\w+(,\d)?\),%ymm", self.operands)))
        if re.fullmatch(r"vmovdq[au]\d*", self.mnemonic):
            return int(bool(re.match(r"(-?0x[0-9a-f]+)?\(%\w+,%\w+(,1)?\),%zmm", self.operands)))
        if self.mnemonic == "ldr":
            return int(bool(re.fullmatch(r"q\d+, \[x\d+, x\d+\]", self.operands)))
        found = re.fullmatch(r"\{v(\d+)\.16b[-,] ?v(\d+)\.16b\}, \[x\d+\]", self.operands)
        return (int(found[2]) - int(found[1])) % 32 + 1 if found and self.mnemonic == "ld1" else 0


Functions = dict[str, list[Instruction]]


def disassemble(library: Path, objdump: str = "objdump") -> Functions:
    """Instructions of every function that has a symbol."""
    command = [objdump, "-d", "--no-show-raw-insn", "--wide", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: Functions = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <([^>]+)>:", line):
            current = functions.setdefault(header.group(1), [])
        elif found := re.match(r"\s*([0-9a-f]+):\t(.*)", line):
            words = re.sub(r"\s*(#|//).*", "", found.group(2)).split(maxsplit=1)
            while len(words) > 1 and words[0] in ("rep", "repz", "bnd", "notrack", "cs", "ds", "data16", "{vex}"):
                words = words[1].split(maxsplit=1)
            if words:
                current.append(Instruction(int(found.group(1), 16), words[0], words[1] if len(words) > 1 else ""))
    return functions


def successors(function: list[Instruction]) -> list[list[int]]:
    """Indices of the instructions that may follow each one inside the function."""
    index = {instruction.address: i for i, instruction in enumerate(function)}
    result = []
    for i, instruction in enumerate(function):
        jumps = instruction.is_jump and instruction.target is not None and instruction.target[0] in index
        ends = instruction.mnemonic in ("jmp", "b", "br", "ret", "retq", "ud2", "hlt")
        following = [] if ends or i + 1 == len(function) else [i + 1]
        result.append([*following, index[instruction.target[0]]] if jumps and instruction.target else following)
    return result


def dominators(after: list[list[int]]) -> list[int]:
    """The immediate dominator of each instruction (0 for the first, -1 for unreachable ones); Cooper, Harvey and Kennedy."""
    order: list[int] = []
    seen, stack = {0}, [(0, iter(after[0]))]
    while stack:
        node, rest = stack[-1]
        step = next((n for n in rest if n not in seen), None)
        if step is None:
            order.append(stack.pop()[0])
        else:
            seen.add(step)
            stack.append((step, iter(after[step])))
    number = {node: i for i, node in enumerate(order)}
    before: dict[int, list[int]] = {node: [] for node in order}
    for node in order:
        for following in after[node]:
            before[following].append(node)
    over = [-1] * len(after)
    over[0] = 0
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            common = -1
            for other in before[node]:
                if over[other] < 0 or common < 0:
                    common = other if over[other] >= 0 else common
                    continue
                while other != common:
                    if number[other] < number[common]:
                        other = over[other]
                    else:
                        common = over[common]
            changed |= over[node] != common
            over[node] = common
    return over


def innermost_loops(function: list[Instruction]) -> Iterator[list[Instruction]]:
    """Bodies of the natural loops that contain no other loop."""
    after = successors(function)
    over = dominators(after)
    before: list[list[int]] = [[] for _ in function]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)

    def dominates(head: int, node: int) -> bool:
        while node > 0 and node != head:
            node = over[node]
        return node == head

    loops: dict[int, set[int]] = {}
    for i, following in enumerate(after):
        for head in following:
            if over[i] >= 0 and dominates(head, i):
                body = loops.setdefault(head, {head})
                todo = [i]
                while todo:
                    node = todo.pop()
                    if node not in body and over[node] >= 0:
                        body.add(node)
                        todo += before[node]
    for head, body in sorted(loops.items()):
        if not any(other != head and other in body for other in loops):
            yield [function[i] for i in sorted(body)]


def reachable(functions: Functions, names: list[str]) -> list[str]:
    """The functions and all that they call or jump to, directly or not."""
    found, todo = [], list(names)
    while todo:
        name = todo.pop()
        if name in found or name not in functions:
            continue
        found.append(name)
        todo += [i.target[1] for i in functions[name] if (i.is_call or i.is_jump) and i.target is not None]
    return found


def looks_up(body: list[Instruction]) -> bool:
    return any(SHUFFLE.fullmatch(i.mnemonic) or i.loads_indexed_byte or i.indexed_vectors for i in body)


def inner_loops(functions: Functions, symbol: str) -> list[list[Instruction]]:
    """Inner loops of a block function and of what it calls.

    A called function without loops is part of the caller's loop; a loop that calls one with loops is not an inner loop.
    """
    bodies = {name: list(innermost_loops(functions[name])) for name in reachable(functions, [symbol])}
    loops = []
    for name in bodies:
        for body in bodies[name]:
            called = reachable(functions, [i.target[1] for i in body if i.is_call and i.target is not None])
            whole = body + [i for callee in called for i in functions[callee]]
            if looks_up(whole) and not any(bodies[callee] for callee in called):
                loops.append(whole)
    return loops


def block_functions(functions: Functions, family: str) -> list[str]:
    return sorted(name for name in functions if re.fullmatch(rf"f2i_block_{family}__\w+", name))


def build(folder: Path, *options: str) -> Path:
    """A library of this repository's sources with the flags of the packaged one, but with its symbols."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "CFLAGS", "LDFLAGS")}
    for command in (
        ["cmake", "-S", str(ROOT / "custom_ops"), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *options],
        ["cmake", "--build", str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("libfairy2i_ops.*"))


@pytest.fixture(scope="module", params=["here", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return platform.machine() if request.param == "here" else str(request.param)


@pytest.fixture(scope="module")
def functions(machine: str, tmp_path_factory: pytest.TempPathFactory) -> Functions:
    """Of the packaged library, or of one built here if that is stripped or is to be for another processor."""
    native = machine == platform.machine()
    prefix = "" if native else f"{machine}-linux-gnu-"
    if shutil.which(prefix + "objdump") is None:
        pytest.skip(f"{prefix}objdump (binutils) is missing")
    if native:
        found = disassemble(Path(library_path()))
        if block_functions(found, "lut"):
            return found
    for tool in ["cmake"] + ([] if native else [prefix + "gcc"]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing, to build a library with symbols")
    toolchain = ROOT / "custom_ops" / "cmake" / f"{machine}-linux-gnu.cmake"
    options = [] if native else [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    return disassemble(build(tmp_path_factory.mktemp("symbols"), *options), prefix + "objdump")


def test_look_up_kernels_do_not_multiply(functions: Functions, machine: str) -> None:
    symbols = block_functions(functions, "lut")
    expected = {
        "x86_64": {"scalar", "avx2", "avx2_panel", "avx512", "avx512_panel"},
        "aarch64": {"scalar", "neon", "neon82", "neon_8_panel", "neon_16_panel", "neon_32_panel"},
    }.get(machine, {"scalar"})
    assert expected <= {symbol.rpartition("__")[2] for symbol in symbols}
    for symbol in symbols:
        loops = inner_loops(functions, symbol)
        assert loops, f"{symbol}: no inner loop with look-ups was found, so nothing was checked"
        if symbol.endswith("panel"):
            assert any(sum(i.indexed_vectors for i in body) >= 32 for body in loops), f"{symbol}: no look-ups"
        elif not symbol.endswith("scalar"):
            assert any(SHUFFLE.fullmatch(i.mnemonic) for body in loops for i in body), f"{symbol}: no byte shuffles"
        found = [f"{i.address:x}: {i.mnemonic} {i.operands}" for body in loops for i in body if i.multiplies]
        assert not found, f"{symbol} multiplies in an inner loop: {found}"


def test_dot_kernels_are_found_to_multiply(functions: Functions) -> None:
    """The search can fail: what is named for its multiplications has integer ones in its inner loops, or those it calls."""
    symbols = block_functions(functions, "dot")
    assert symbols
    for symbol in symbols:
        if not symbol.endswith("scalar"):
            loops = [body for name in reachable(functions, [symbol]) for body in innermost_loops(functions[name])]
            found = {i.mnemonic for body in loops for i in body if i.multiplies}
            assert any(re.match(r"v?p(dp|mul|madd)|tdp|sdot|smmla", mnemonic) for mnemonic in found), symbol


def test_a_multiplication_smuggled_into_a_look_up_loop_is_found(functions: Functions) -> None:
    """Replace the first addition of each look-up loop, in the disassembly, by a multiplication."""
    for symbol in block_functions(functions, "lut"):
        for body in inner_loops(functions, symbol):
            addition = next(i for i in body if re.fullmatch(r"v?padd\w|u?s?add\w*", i.mnemonic))
            multiplication = replace(addition, mnemonic="vpmullw")
            changed = {
                name: [multiplication if i.address == addition.address else i for i in function]
                for name, function in functions.items()
            }
            assert any(i.multiplies for loop in inner_loops(changed, symbol) for i in loop), symbol


@pytest.mark.parametrize(
    ("mnemonic", "multiplies"),
    [
        *((name, True) for name in ("pmulhuw", "pmaddwd", "vpmulld", "vpmaddubsw", "vpdpbusds", "vpdpwssd", "vpmadd52luq")),
        *((name, True) for name in ("mul", "imul", "imulq", "mulx", "mulss", "vmulsd", "vfnmadd132ps", "vdpps", "vmulph")),
        *(
            (name, True)
            for name in ("madd", "mul", "smull", "umlal2", "sdot", "usmmla", "fmla", "fmul", "fmadd", "sqrdmulh")
        ),
        *(
            (name, False)
            for name in ("vpaddw", "vpshufb", "vpsrlw", "vpsadbw", "vpermq", "vmovdqu64", "vpmovzxbw", "vpmaxub")
        ),
        *(
            (name, False)
            for name in ("add", "lea", "movzbl", "tbl", "uaddw2", "saddw", "mov", "movi", "fmov", "sshr", "umov")
        ),
        *((name, False) for name in ("vmaxps", "vminps", "vmovups", "mvn", "fadd", "smax", "sminp", "msr", "mrs", "uabal")),
    ],
)
def test_which_instructions_multiply(mnemonic: str, multiplies: bool) -> None:
    assert Instruction(0, mnemonic, "").multiplies == multiplies
