"""The command ``fairy2i report DIR --against SOURCE -o report.html``."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fairy2i_export.errors import OptionError, OutputError
from fairy2i_export.output.disk.held_signals import signals_held
from fairy2i_export.source.text.sample_text import DEFAULT_TEXT
from fairy2i_runtime.commands.measure import read_text
from fairy2i_runtime.commands.options import TrustGraph
from fairy2i_runtime.commands.process.streams import note_done

_HEAD = 2048  # bytes that tell a page of ours: by its generator, or by its title, which is all that earlier versions wrote
_MARKS = (b'content="fairy2i report"', b" in Fairy2i</title>")


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder written by fairy2i-export.")],
    against: Annotated[str, typer.Option(metavar="SOURCE", help="The checkpoint it was exported from.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Page to write.")] = Path("report.html"),
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to run through the model.", show_default="a short built-in one"),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Use at most this many tokens of the text.")] = 256,
    torch: Annotated[
        bool,
        typer.Option(help="Compare logits with torch's (4 bytes of memory per weight), or with the model's own exact mode."),
    ] = True,
    trust_graph: TrustGraph = False,
) -> None:
    """Write one self-contained page of pictures: errors by layer, codes, scales, sizes, agreement with the source."""
    if tokens < 2:
        raise OptionError(f"--tokens: expected at least 2, got {tokens}")
    if output.is_dir():
        raise OutputError(f"--output {output}: expected a file name, found a folder; try {output / 'report.html'}")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"--output {output}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"--output {output}: cannot be written: no permission to write to {parent}")
    _check_replaceable(output)
    content = DEFAULT_TEXT if text is None else read_text(text)
    import numpy as np
    from rich.console import Console

    import fairy2i_runtime
    from fairy2i_export.check.page.collect import collect
    from fairy2i_export.check.page.page import render
    from fairy2i_export.output.contract.nodes import read_nodes
    from fairy2i_export.output.sizes import human_bytes
    from fairy2i_export.source.hub import open_source
    from fairy2i_export.source.text.sample_text import sample_ids
    from fairy2i_runtime.commands.display import progress_bar
    from fairy2i_runtime.folder import open_folder
    from fairy2i_runtime.text.special_tokens import TOKENIZER_FILE

    checkpoint = open_source(against)
    nodes = read_nodes(open_folder(folder).model_file)  # before loading, which would find fault with a kernel chosen here
    model = fairy2i_runtime.load(folder, kernel="lut", trust_graph=trust_graph)
    count = min(tokens, model.context_length)
    ids = np.array(model.tokenizer.encode(content)[:count], np.int64)
    if text is None:
        ids, known = sample_ids(model.folder.path / TOKENIZER_FILE, ids.tolist(), count)
    elif len(ids) < 2:
        raise OptionError(f"--text {text}: expected at least 2 tokens, found {len(ids)}")
    with progress_bar("report", 2 * len(nodes) + 3) as advance:
        data = collect(model, nodes, checkpoint, ids, lambda name: advance(1), use_torch=torch)
    if text is None and not known:
        data.notes.append("The tokenizer does not know the words of the built-in text: random tokens are used instead.")
    page = render(data)
    write_file(output, page)
    out = Console()
    for note in (*checkpoint.notes, *data.notes):
        out.print(f"[yellow]note[/]: {note}", highlight=False, soft_wrap=True)
    out.print(f"{output} ({human_bytes(len(page.encode()))})", highlight=False, soft_wrap=True, markup=False)


def write_file(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it, then rename it: it appears complete or not at all.

    Raises:
        OutputError: if it cannot be written, or something else than an earlier page is there.
    """
    _check_replaceable(path)
    with signals_held():  # else a file of the temporary name could stay
        _write_and_place(path, text)
        note_done(f"The page is written: {path}")


def _write_and_place(path: Path, text: str) -> None:
    from fairy2i_export.output.placing import free_name, move_command, place_file

    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.absolute().parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)  # mkstemp makes private files; the page shall have the permissions of any new file
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        if not place_file(Path(temporary), path, _is_report):
            finished, temporary = temporary, None
            raise OutputError(
                f"--output {path}: something else was put there meanwhile, and it is left as it is. The finished page is kept: "
                f"{move_command(Path(finished), free_name(path))}"
            )
    except OSError as error:
        raise OutputError(f"--output {path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


def _check_replaceable(path: Path) -> None:
    """Raise OutputError if there is something else than an earlier page: another file, or a device."""
    if os.path.lexists(path) and not _is_report(path):
        raise OutputError(f"--output {path}: exists and is no report that could be replaced; choose another name")


def _is_report(path: Path) -> bool:
    """Whether a file is a page of this command, or empty."""
    with suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(_HEAD).lstrip()
            return not start or (start.lower().startswith(b"<!doctype html") and any(mark in start for mark in _MARKS))
    return False
