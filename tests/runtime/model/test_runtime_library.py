"""Finding and registering the library, the number of threads, and what importing the package brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

import fairy2i_runtime
from fairy2i_runtime import library_path, register
from fairy2i_runtime.engine.session import open_session
from fairy2i_runtime.engine.threads import ORT_DEFAULT, default_threads
from fairy2i_runtime.errors import LibraryError
from fairy2i_runtime.ops import library
from runtime_models import stories_folder

MODEL = "model.onnx"


def open_with(options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(str(stories_folder() / MODEL), options, providers=["CPUExecutionProvider"])


def test_the_packaged_library_is_found(monkeypatch):
    monkeypatch.delenv("FAIRY2I_LIBRARY", raising=False)
    path = Path(library_path())
    assert path.is_absolute()
    assert path.parent == Path(fairy2i_runtime.__file__).resolve().parent / "lib"


def test_registering_twice_is_harmless_and_works_for_every_options_object():
    for _ in range(2):
        options = ort.SessionOptions()
        register(options)
        register(options)
        assert open_with(options).get_outputs()[0].name == "logits"


def test_the_environment_overrides_the_packaged_library(monkeypatch, tmp_path):
    copy = tmp_path / "mine.so"
    copy.write_bytes(Path(library_path()).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAIRY2I_LIBRARY", "mine.so")
    assert library_path() == str(copy)
    options = ort.SessionOptions()
    register(options)
    open_with(options)
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(LibraryError, match=r"FAIRY2I_LIBRARY names .*absent\.so"):
        library_path()


def test_a_missing_packaged_library_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("FAIRY2I_LIBRARY", raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(LibraryError, match=r"missing: expected .*lib.*Reinstall"):
        library_path()
    with pytest.raises(LibraryError, match="missing"):
        open_session(stories_folder() / MODEL)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_library_for_another_processor_is_recognized(monkeypatch, tmp_path):
    data = bytearray(Path(library_path()).read_bytes())
    other = 183 if int.from_bytes(data[18:20], "little") != 183 else 62
    data[18:20] = other.to_bytes(2, "little")
    (tmp_path / "other.so").write_bytes(data)
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "other.so"))
    with pytest.raises(LibraryError, match=f"built for {'aarch64' if other == 183 else 'x86_64'} and this is"):
        register(ort.SessionOptions())


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF"])
def test_a_file_that_is_no_library_is_named(monkeypatch, tmp_path, content):
    (tmp_path / "bad.so").write_bytes(content)
    monkeypatch.setenv("FAIRY2I_LIBRARY", str(tmp_path / "bad.so"))
    with pytest.raises(LibraryError, match=r"cannot load .*bad\.so"):
        register(ort.SessionOptions())


def test_an_old_onnxruntime_is_refused(monkeypatch):
    monkeypatch.setattr(ort, "__version__", "1.17.3")
    with pytest.raises(LibraryError, match=r"1\.18 or newer is needed, found 1\.17\.3"):
        register(ort.SessionOptions())


def test_choosing_a_kernel_needs_an_onnxruntime_that_tells_the_kernel(monkeypatch):
    monkeypatch.setattr(ort, "__version__", "1.20.1")
    open_session(stories_folder() / MODEL)
    with pytest.raises(fairy2i_runtime.Fairy2iRuntimeError, match=r"need onnxruntime 1\.24.*FAIRY2I_KERNEL"):
        open_session(stories_folder() / MODEL, kernel="exact")


def test_without_the_library_weights_are_not_unpacked_at_load(monkeypatch):
    """Constant folding would turn every packed weight into a float32 matrix: 16 times the memory."""
    calls = []
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **options: calls.append(options["disabled_optimizers"]))
    open_session(stories_folder() / MODEL, use_library=False)
    open_session(stories_folder() / MODEL)
    assert calls == [["ConstantFolding"], []]


def fake_sysfs(root: Path, cores: list[tuple[int, int, int | None]]) -> Path:
    """One logical processor per entry: package, core, highest clock in kHz (None: no cpufreq)."""
    for cpu, (package, core, clock) in enumerate(cores):
        folder = root / f"devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/physical_package_id").write_text(f"{package}\n")
        (folder / "topology/core_id").write_text(f"{core}\n")
        if clock is not None:
            (folder / "cpufreq").mkdir()
            (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{clock}\n")
    return root


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        pytest.param([(0, core, 2_400_000) for core in range(4)], 4, id="raspberry_pi_5"),
        pytest.param(
            [(0, core, 1_800_000) for core in range(4)] + [(1, core, 2_400_000) for core in range(4)], 4, id="rk3588"
        ),
        pytest.param(
            [(0, core, clock) for core, clock in enumerate([2_000_000] * 3 + [2_800_000] * 4 + [3_200_000])], 5, id="phone"
        ),
        pytest.param([(0, cpu // 2, 3_000_000) for cpu in range(8)], 4, id="hyperthreads"),
        pytest.param(
            [(0, cpu // 2, 5_000_000 + 100_000 * (cpu // 6)) for cpu in range(8)]
            + [(0, 4 + cpu, 3_900_000) for cpu in range(8)],
            4,
            id="intel_hybrid",
        ),
        pytest.param(
            [(package, core, None) for package in range(2) for core in range(3)], 6, id="two_sockets_without_cpufreq"
        ),
    ],
)
def test_default_threads_counts_physical_big_cores(tmp_path, cores, expected):
    assert default_threads(fake_sysfs(tmp_path, cores), range(len(cores))) == expected


def test_default_threads_counts_only_allowed_processors(tmp_path):
    sysfs = fake_sysfs(tmp_path, [(0, core, 2_400_000 if core < 4 else 1_800_000) for core in range(8)])
    assert default_threads(sysfs, [0, 1, 5]) == 2
    assert default_threads(sysfs, [6, 7]) == 2


def test_default_threads_without_topology_leaves_it_to_onnxruntime(tmp_path):
    assert default_threads(tmp_path, range(4)) == ORT_DEFAULT
    assert default_threads(tmp_path, []) == ORT_DEFAULT


def test_importing_the_package_brings_in_neither_torch_nor_the_exporter():
    code = "import sys, fairy2i_runtime.model, fairy2i_runtime.commands.program; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "onnxruntime" in modules
    assert not {"torch", "transformers", "fairy2i_export", "onnx", "onnx_ir", "safetensors"} & set(modules)


CLOSING = """
import _ctypes, ctypes, sys
handle = ctypes.CDLL(sys.argv[1])._handle
_ctypes.dlclose(handle)
print(sys.argv[1] in open("/proc/self/maps").read())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_stays_when_a_host_closes_it():
    """As onnxruntime's Java binding does with the session options, though sessions may still run its operators."""
    command = [sys.executable, "-c", CLOSING, library_path()]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
