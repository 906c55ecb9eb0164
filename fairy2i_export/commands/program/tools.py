"""The commands that this package adds to ``fairy2i``, and that program with them."""

from __future__ import annotations

TYPE_CHECKING = False  # the table alone is read whenever fairy2i starts
if TYPE_CHECKING:
    from collections.abc import Sequence

# command -> module and function; an entry point of pyproject.toml names this table
COMMANDS = {
    "ppl": "fairy2i_export.commands.ppl:ppl_command",  # with --against, which that of the runtime has not
    "verify": "fairy2i_export.commands.verify:verify_command",
    "inspect": "fairy2i_export.commands.inspect:inspect_command",
    "report": "fairy2i_export.commands.report:report_command",
    "tokenizer-onnx": "fairy2i_export.commands.tokenizer_onnx:tokenizer_onnx_command",
    "train": "fairy2i_export.commands.train:train_command",
    "lm-eval": "fairy2i_export.commands.lm_eval:lm_eval_command",
}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run ``fairy2i``; returns the exit code."""
    from fairy2i_runtime.commands.program import run as run_program

    return run_program(arguments, COMMANDS)
