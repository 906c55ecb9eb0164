"""What is fuzzed: readers of files that somebody else made, which give a result or an error that is documented, and nothing else.

An input is a byte that says which file of a sound folder it takes the place of, and the file. test_fuzz_files.py gives these
bodies some hundred inputs, run.py as many as atheris finds.
"""

from __future__ import annotations

import json
import random
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from export_helpers import make_checkpoint
from fairy2i_export.compile.dry_run import dry_run
from fairy2i_export.errors import Fairy2iError
from fairy2i_export.output.progress import Observer
from fairy2i_export.request.option import build
from fairy2i_export.request.request import Request
from fairy2i_export.rewrite.opening.model_file import open_model
from fairy2i_export.rewrite.pipeline import _change, _setting
from fairy2i_export.rewrite.result.saving import save_model
from fairy2i_export.source.checkpoint import open_checkpoint
from fairy2i_export.source.safetensors_file import SafetensorsFile
from fairy2i_runtime.engine.graph.opening import checked_graph
from fairy2i_runtime.engine.integrity import integrity_problems
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.text.recommended import recommended_sampling
from fairy2i_runtime.text.tokenizer import Tokenizer
from fuzz.mutations import change_bytes, change_field, change_header, change_json
from runtime_models import copy_of_stories
from sound_models import SOUND

Mutation = Callable[[bytes, random.Random], bytes]
MUTATIONS: dict[str, Mutation] = {".onnx": change_field, ".json": change_json, ".safetensors": change_header}
MOST = 1 << 18  # bytes of an input


@dataclass
class Body:
    """One reader.

    Attributes:
        folder: a sound one; as it was after every call.
        names: of the files in it that inputs take the place of.
        read: reads the folder, or of it what one of the names concerns, or raises a documented error.
        more: sound inputs beside those files: (number of the name, contents).
    """

    folder: Path
    names: tuple[str, ...]
    read: Callable[[Path, str], None]
    more: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        self.sound = [(self.folder / name).read_bytes() for name in self.names]

    def seeds(self) -> list[bytes]:
        """Sound inputs."""
        return [bytes([number]) + data for number, data in [*enumerate(self.sound), *self.more]]

    def __call__(self, data: bytes) -> bool:
        """Whether an input is read; False: refused, as documented. Every other exception is a fault."""
        if not data:
            return False
        number = data[0] % len(self.names)
        path = self.folder / self.names[number]
        path.write_bytes(data[1:])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.read(self.folder, path.name)
            return True
        except (Fairy2iError, Fairy2iRuntimeError) as error:
            message = str(error)
        finally:
            path.write_bytes(self.sound[number])
        assert message
        assert "\n" not in message, f"expected one line, found {message:.500}"
        return False

    def mutated(self, data: bytes, dice: random.Random) -> bytes:
        """The input with a change that suits its kind of file, where it is one; else with a changed byte."""
        if not data:
            return b"\0"
        kind = Path(self.names[data[0] % len(self.names)]).suffix
        try:
            if dice.randrange(4):
                return data[:1] + MUTATIONS.get(kind, change_bytes)(data[1:], dice)
        except Exception:  # no such file any more, or with nothing in it that could be changed
            pass
        return data[:1] + (change_bytes(data[1:], dice) if len(data) > 1 else b"{}")


def read_onnx(folder: Path, name: str) -> None:
    """What a rewrite does but for ONNX Runtime, which is not asked what it thinks of the result."""
    path, request = folder / name, build(Request, "onnx", {}, "model.onnx")
    opened = open_model(path)
    changed = _change(opened.model, opened.opset, _setting(request), request, Observer())
    if changed.rewritten:
        (folder / "out").mkdir(exist_ok=True)
        save_model(opened.model, folder / "out", path)


def read_checkpoint(folder: Path, name: str) -> None:
    """All that an export does before it reads weights, then the weights."""
    dry_run(folder, folder.parent / "out")
    checkpoint = open_checkpoint(folder)
    for tensor in checkpoint.owners:
        checkpoint.read(tensor)


def read_folder(folder: Path, name: str) -> None:
    """What loading does before onnxruntime gets the graph."""
    opened = open_folder(folder)
    if name == "SHA256SUMS":
        integrity_problems(folder)
    elif name == "model.onnx":
        checked_graph(opened)
    else:
        recommended_sampling(folder)
        Tokenizer.load(opened.path, opened.vocab_size)


@cache
def body(name: str) -> Body:
    """The body of a name of BODIES, in a folder of its own that lasts as long as the process."""
    return BODIES[name](Path(_place().name) / name)


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fairy2i-fuzz-")


def _onnx(folder: Path) -> Body:
    models = [make().SerializeToString() for make in SOUND.values()]
    folder.mkdir()
    (folder / "model.onnx").write_bytes(models[0])
    return Body(folder, ("model.onnx",), read_onnx, tuple((0, model) for model in models[1:]))


def _checkpoint(folder: Path) -> Body:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    index = "model.safetensors.index.json"
    make_checkpoint(folder, **sizes, num_hidden_layers=1, vocab_size=200, transformers_weights=index)
    tensors = SafetensorsFile(folder / "model.safetensors").tensors
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.5, "do_sample": true}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>", "bos_token": {"content": "<s>"}}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "add_bos_token": true, "chat_template": "{{ x }}"}')
    names = ("config.json", "model.safetensors", index, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    return Body(folder, (*names, "generation_config.json"), read_checkpoint)


def _folder(folder: Path) -> Body:
    copy_of_stories(folder)
    names = ("model.onnx", "genai_config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json")
    return Body(folder, (*names, "special_tokens_map.json", "SHA256SUMS"), read_folder)


BODIES: dict[str, Callable[[Path], Body]] = {"onnx": _onnx, "checkpoint": _checkpoint, "folder": _folder}
