"""How the source is divided: which folder may use which, and how large folders and files may become."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fairy2i_export
import fairy2i_runtime
from conftest import ROOT

C_SOURCE = ROOT / "custom_ops" / "src"
C_RANKS = {"base": 0, "kernels": 1, "quantizer": 1, "layer": 2, "ort": 3}
C_PUBLIC = {"fairy2i.h": set(C_RANKS), "onnxruntime_c_api.h": {"ort"}}  # header outside: who may include it
C_LINES = 400
FOLDER_ENTRIES = 12


def c_files() -> list[Path]:
    return sorted(path for path in C_SOURCE.rglob("*") if path.suffix in (".c", ".h"))


def c_includes() -> Iterator[tuple[Path, str]]:
    """Files of our own C source, relative to it, with each name that they include in quotes."""
    for path in c_files():
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(encoding="utf-8"), re.M):
            yield path.relative_to(C_SOURCE), name


def may_include(path: Path, name: str) -> bool:
    """Whether a file may include a name: of its own folder, or of one below it."""
    own, other = path.parts[0], Path(name).parts[0]
    if name in C_PUBLIC:
        return own in C_PUBLIC[name]
    return (C_SOURCE / name).is_file() and (own == other or C_RANKS[other] < C_RANKS[own])


def test_c_includes_go_down() -> None:
    includes = list(c_includes())
    assert len(includes) > 50
    assert not [f"{path} includes {name}" for path, name in includes if not may_include(path, name)]


def test_c_only_dispatch_names_kernels() -> None:
    assert {str(path) for path, name in c_includes() if name.endswith("kernel_list.h")} == {"layer/dispatch.c"}


def test_c_files_and_folders_stay_small() -> None:
    assert not [path.name for path in c_files() if len(path.read_text(encoding="utf-8").splitlines()) > C_LINES]
    folders = [C_SOURCE, *(path for path in C_SOURCE.rglob("*") if path.is_dir())]
    assert not [str(path) for path in folders if len(list(path.iterdir())) > FOLDER_ENTRIES]


def test_c_conditions_name_files() -> None:
    """A row or branch whose condition no file fulfils would be gone without a word."""
    files = {f"F2I_HAVE_{path.stem.upper()}" for path in c_files() if {"x86", "arm"} & set(path.parts)}
    texts = [path.read_text(encoding="utf-8") for path in [*c_files(), *(ROOT / "custom_ops" / "tests").glob("*.c")]]
    named = {name for text in texts for name in re.findall(r"defined\((F2I_HAVE_\w+)\)", text)}
    assert named
    assert named <= files


# Python: folder or file at the top of a package -> floor; what stands on one floor does not import its neighbours
PACKAGES: dict[str, Path] = {"fairy2i_export": ROOT, "fairy2i_runtime": ROOT / "runtime"}
RANKS: dict[str, dict[str, int]] = {
    "fairy2i_export": {
        "errors": 0,
        **dict.fromkeys(("codes", "decoder"), 1),
        "source": 2,
        "onnx_graph": 3,
        "request": 4,
        "output": 5,
        **dict.fromkeys(("compile", "rewrite", "train", "check"), 6),
        "commands": 7,
        **dict.fromkeys(("__init__", "__main__", "former"), 8),
    },
    "fairy2i_runtime": {
        **dict.fromkeys(("version", "errors", "regular_file"), 0),
        "jsonfile": 1,
        "folder": 2,
        "ops": 3,
        "engine": 4,
        "text": 5,
        "model": 6,
        **dict.fromkeys(("measure", "genai", "serve"), 7),
        "commands": 8,
        **dict.fromkeys(("__init__", "__main__"), 9),
    },
}
TORCH = ("torch", "transformers", "accelerate", "datasets")
TORCH_IN = ("train/", "compile/calibrate/", "source/transformers_model.py", "check/source_weights.py")
PYTHON_LINES = 300
NOT_COUNTED = {"__init__.py", "__main__.py", "__pycache__", "py.typed", "lib"}  # lib is built


def python_files(package: str) -> dict[str, Path]:
    """Module name, dotted from the package on -> file."""
    root = PACKAGES[package]
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "former" in parts and parts[-1] != "__init__":
            parts = tuple(part for part in parts if part != "former")  # its modules are found as if they lay beside it
            found[".".join((*parts, "(former)"))] = path
        else:
            found[".".join(parts)] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports; a folder stands for its ``__init__``."""
    files = python_files(package)
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        wanted = set(imports_of(path))
        graph[name] = {other for other in files if other in wanted or other.removesuffix(".__init__") in wanted} - {name}
    return graph


def floor(package: str, module: str) -> tuple[str, int]:
    top = "former" if module.endswith("(former)") else module.split(".")[1]
    return top, RANKS[package][top]


@pytest.mark.parametrize("package", RANKS)
def test_python_imports_go_down(package: str) -> None:
    wrong = []
    for module, imported in edges(package).items():
        top, rank = floor(package, module)
        for other in imported:
            other_top, other_rank = floor(package, other)
            if top != other_top and other_rank >= rank and other != f"{package}.__init__":
                wrong.append(f"{module} imports {other}")
    assert not wrong
    assert sum(map(len, edges(package).values())) > 50


@pytest.mark.parametrize("package", RANKS)
def test_python_has_no_circles(package: str) -> None:
    graph = {name: {x for x in found if not x.endswith("__init__")} for name, found in edges(package).items()}
    try:
        assert list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle: {' imports '.join(error.args[1][::-1])}") from None


def test_torch_stays_in_its_rooms() -> None:
    root = ROOT / "fairy2i_export"
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if any(name.split(".")[0] in TORCH for name in imports_of(path))
    }
    assert found
    assert not [name for name in found if not name.startswith(TORCH_IN)]


def test_the_runtime_imports_nothing_of_the_exporter() -> None:
    users = [
        name
        for name, path in python_files("fairy2i_runtime").items()
        if any(x.split(".")[0] == "fairy2i_export" for x in imports_of(path))
    ]
    assert not users


def test_only_commands_use_the_commands_of_the_runtime() -> None:
    users = [
        name
        for name, path in python_files("fairy2i_export").items()
        if any(x.startswith("fairy2i_runtime.commands") for x in imports_of(path))
    ]
    assert users
    assert all(name.startswith("fairy2i_export.commands.") for name in users)


@pytest.mark.parametrize("name", ["tests", "benchmarks"])
def test_folders_beside_the_packages_stay_small(name: str) -> None:
    folders = [ROOT / name, *(path for path in (ROOT / name).rglob("*") if path.is_dir() and path.name not in NOT_COUNTED)]
    assert len(folders) > 5
    assert not [str(path) for path in folders if len({p.name for p in path.iterdir()} - NOT_COUNTED) > FOLDER_ENTRIES + 1]


def test_tests_use_those_of_their_own_folder_alone() -> None:
    """What several folders need lies in tests/helpers; pytest finds files by their names, which are there once."""
    files = {path.stem: path for path in (ROOT / "tests").rglob("*.py")}
    assert len(files) == len([*(ROOT / "tests").rglob("*.py")])
    wrong = [
        f"{path} imports {name}"
        for path in files.values()
        for name in imports_of(path)
        if name.startswith("test_") and name in files and files[name].parent != path.parent
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_python_files_and_folders_stay_small(package: str) -> None:
    root = PACKAGES[package] / package
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in root.rglob("*.py")}
    assert not {str(path) for path, count in lines.items() if count > PYTHON_LINES}
    folders = [root, *(path for path in root.rglob("*") if path.is_dir() and path.name not in NOT_COUNTED)]
    assert not [str(path) for path in folders if len({p.name for p in path.iterdir()} - NOT_COUNTED) > FOLDER_ENTRIES + 1]


def test_quantizers_are_named_in_their_table_alone() -> None:
    """A quantizer is a file and a row: no other code may ask for one by its name."""
    from fairy2i_export.codes.strategies import STRATEGIES

    root = ROOT / "fairy2i_export"
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in tuple(STRATEGIES)
    }
    # choices.py has the default
    assert found == {"codes/choices.py", *(f"codes/strategies/{name}.py" for name in STRATEGIES)}


def test_sessions_are_opened_in_one_place() -> None:
    """Whatever runs an exported model opens it alike; two run graphs of their own, without our operators, and one runs nothing."""
    found = {
        path.name
        for root, package in ((PACKAGES[name], name) for name in PACKAGES)
        for path in (root / package).rglob("*.py")
        if "InferenceSession(" in path.read_text(encoding="utf-8")
    }
    assert found == {"session.py", "constant.py", "check.py", "trial.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_says_what_it_is_for(package: str) -> None:
    for path in (PACKAGES[package] / package).rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_progress_bars_are_made_in_one_place() -> None:
    files = [path for package in PACKAGES for path in python_files(package).values()]
    makers = [path.name for path in files if re.search(r"\(Progress\)|\bProgress\(", path.read_text(encoding="utf-8"))]
    assert makers == ["progress.py"]


def test_one_version() -> None:
    assert fairy2i_export.__version__ == fairy2i_runtime.__version__
    cmake = (ROOT / "custom_ops" / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.findall(r"^project\(\w+ VERSION (\S+)", cmake, re.M) == [fairy2i_runtime.__version__]
    export = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))
    assert all(
        "version" in project["project"]["dynamic"] for project in (export, runtime)
    )  # and read by the build from here:
    files = (
        ROOT / export["tool"]["hatch"]["version"]["path"],
        ROOT / "runtime" / runtime["tool"]["scikit-build"]["metadata"]["version"]["input"],
    )
    for path in files:
        assert path.read_text(encoding="utf-8").count(f'__version__ = "{fairy2i_runtime.__version__}"') == 1
