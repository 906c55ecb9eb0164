"""Two distributions from one tree: each declares what it imports, and the runtime's program takes the exporter's commands."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from test_structure import imports_of, python_files

from conftest import ROOT
from fairy2i_export.commands.program.tools import COMMANDS as ADDED
from fairy2i_runtime import __version__
from fairy2i_runtime.commands import program

PROJECTS: dict[str, dict[str, Any]] = {
    "fairy2i_export": tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")),
    "fairy2i_runtime": tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8")),
}
# distributions that are imported under another name
MODULES = {
    "onnxruntime-extensions": "onnxruntime_extensions",
    "onnxruntime-genai": "onnxruntime_genai",
    "protobuf": "google",
}
BROUGHT_ALONG = {"markupsafe", "tqdm", "packaging"}  # by jinja2, huggingface_hub, onnxruntime
# imported where they are there: onnx counts what onnxruntime copies (info), the others read what only they can read
OPTIONAL = {"fairy2i_runtime": {"onnx"}, "fairy2i_export": {"zstandard", "pyarrow"}}


def required(package: str) -> list[str]:
    project = PROJECTS[package]
    always = (
        project["project"].get("dependencies") or project["tool"]["hatch"]["metadata"]["hooks"]["custom"]["dependencies"]
    )
    return [*always, *(name for extra in project["project"]["optional-dependencies"].values() for name in extra)]


def modules(names: list[str]) -> set[str]:
    found = (re.match(r"[\w-]+", name) for name in names)
    return {MODULES.get(match[0], match[0].replace("-", "_")) for match in found if match}


@pytest.mark.parametrize("package", PROJECTS)
def test_what_is_imported_is_declared(package: str) -> None:
    imported = {name.split(".")[0] for path in python_files(package).values() for name in imports_of(path)}
    third = imported - sys.stdlib_module_names - {package, ""}
    declared = modules(required(package)) | OPTIONAL[package]
    if package == "fairy2i_export":
        declared |= {"fairy2i_runtime", *modules(required("fairy2i_runtime")), "google", *BROUGHT_ALONG}
    assert len(third) > 5
    assert third <= declared


def test_both_name_the_same_releases() -> None:
    """A package that both depend on has one lower bound."""
    bounds: dict[str, set[str]] = {}
    for name in {*required("fairy2i_export"), *required("fairy2i_runtime")}:
        package, _, bound = name.partition(";")[0].partition(">=")
        bounds.setdefault(package, set()).add(bound)
    of_one = {"onnxruntime-genai", "atheris"}  # the one has a newer bound for tests, the other one for each Python
    assert not {name for name, found in bounds.items() if len(found - {""}) > 1 and name not in of_one}


def test_licence_of_the_runtime_is_the_projects() -> None:
    assert (ROOT / "runtime" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (ROOT / "runtime" / "custom_ops").resolve() == ROOT / "custom_ops"


def test_the_entry_point_names_the_table() -> None:
    declared = PROJECTS["fairy2i_export"]["project"]["entry-points"][program.GROUP]
    assert [EntryPoint(name, value, program.GROUP).load() for name, value in declared.items()] == [ADDED]
    scripts = [project["project"]["scripts"] for project in PROJECTS.values()]
    assert sorted(name for found in scripts for name in found) == ["fairy2i", "fairy2i-export"]  # none is installed twice
    for module, _, name in (value.partition(":") for found in scripts for value in found.values()):
        assert callable(getattr(importlib.import_module(module), name))


def hook(root: Path, monkeypatch: pytest.MonkeyPatch, release: str) -> list[str]:
    pytest.importorskip("hatchling")
    monkeypatch.setenv("FAIRY2I_RELEASE", release)
    path = ROOT / PROJECTS["fairy2i_export"]["tool"]["hatch"]["metadata"]["hooks"]["custom"]["path"]
    spec = importlib.util.spec_from_file_location("dependencies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    metadata: dict[str, Any] = {"version": "9.8"}
    module.Dependencies(str(root), {"dependencies": ["numpy>=1"]}).update(metadata)
    found: list[str] = metadata["dependencies"]
    return found


def test_where_the_exporter_finds_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hook(ROOT, monkeypatch, "") == [f"fairy2i-runtime @ {(ROOT / 'runtime').as_uri()}", "numpy>=1"]
    assert hook(ROOT, monkeypatch, "1") == ["fairy2i-runtime==9.8", "numpy>=1"]
    assert hook(tmp_path, monkeypatch, "") == ["fairy2i-runtime==9.8", "numpy>=1"]


def entry_points(*found: EntryPoint) -> Any:
    return lambda *, group: [entry for entry in found if entry.group == group]


def test_commands_of_the_runtime_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "entry_points", entry_points())
    assert program.run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" {command} " in shown for command in program.COMMANDS)
    assert " verify " not in shown
    assert "come with fairy2i-export" in shown
    assert program.run(["verify", "x"]) == 2
    assert capsys.readouterr().err.startswith(
        "fairy2i: error: No such command 'verify'. More commands, which make and check"
    )
    assert program.run(["generat", "x"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'generate'" in said
    assert "come with" not in said
    assert program.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fairy2i {__version__}\n"


def test_commands_of_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    added = EntryPoint("fairy2i-export", "fairy2i_export.commands.program.tools:COMMANDS", program.GROUP)
    monkeypatch.setattr(program, "entry_points", entry_points(added))
    assert program.run(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" {command} " in shown for command in {**program.COMMANDS, **ADDED})
    assert "come with" not in shown
    assert program.run(["ppl", "--help"]) == 0
    assert "--against" in capsys.readouterr().out
    assert program.run(["verfy"]) == 2
    assert "Did you mean 'verify'?" in capsys.readouterr().err
    assert program.run(["frobnicate"]) == 2
    assert "come with" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["no_such_package_at_all:COMMANDS", "fairy2i_export.no_such_module:COMMANDS"])
def test_commands_that_cannot_be_imported(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "entry_points", entry_points(EntryPoint("other", value, program.GROUP)))
    assert program.run(["--help"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fairy2i: error: the commands of {value} cannot be imported: No module named ")
    assert message.endswith("install it again, or remove it\n")
