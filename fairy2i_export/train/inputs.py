"""What a run reads, opened and checked before anything is loaded or written. No torch in here: mistakes are told at once."""

from __future__ import annotations

from dataclasses import dataclass

from fairy2i_export.decoder.config_values import positive_int, shown
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.refusals.float_model import check_float_model
from fairy2i_export.source.text.tokenizer_files import check_tokenizer
from fairy2i_export.train.calibrated.folder import check_untrained, open_calibrated
from fairy2i_export.train.continuing import check_teacher, complete_settings, stored_as
from fairy2i_export.train.data.documents import check_files, without_separator
from fairy2i_export.train.data.packing import Encoder, open_encoder
from fairy2i_export.train.recipe import MAX_BLOCK, Recipe
from fairy2i_export.train.result.folder import check_place


@dataclass(frozen=True)
class Inputs:
    """A run that may begin.

    Attributes:
        recipe: with the settings of :func:`~fairy2i_export.train.continuing.complete_settings`.
        checkpoint: the source.
        teacher: the teacher's checkpoint; None without one.
        encoder: the tokenizer.
        length: tokens of a training sequence.
        warnings: one sentence each.
        stored: how an export stores what stays float, for config.json's entry: see
            :func:`~fairy2i_export.train.continuing.stored_as`.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    teacher: Checkpoint | None
    encoder: Encoder
    length: int
    warnings: tuple[str, ...]
    stored: dict[str, str]


def open_inputs(recipe: Recipe) -> Inputs:
    """Open what a recipe names.

    Raises:
        Fairy2iError: options that are wrong or contradict each other, texts, models or an output folder that are none.
    """
    if not isinstance(recipe, Recipe):
        raise OptionError(f"recipe: expected a Recipe, got {recipe!r}")
    recipe.check()
    check_files(recipe.data)
    check_files(recipe.eval_data, "--eval-data")
    if recipe.source.lower().endswith(".onnx"):
        raise OptionError(f"source {recipe.source}: is an ONNX model; training starts from a Hugging Face checkpoint")
    checkpoint = open_source(recipe.source)
    check_float_model(checkpoint)
    check_place(recipe, checkpoint.directory)
    if (calibrated := open_calibrated(recipe)) is not None:
        check_untrained(recipe.source, checkpoint)
        calibrated.check_source(checkpoint)
        recipe = calibrated.complete(recipe)
    recipe, warnings = complete_settings(recipe, checkpoint)
    warnings += checkpoint.notes
    vocab_size, max_positions = _sizes(checkpoint)
    encoder = open_encoder(checkpoint, vocab_size, recipe.bos, recipe.eos)
    length = _block_length(recipe, max_positions)
    teacher = _open_teacher(recipe, checkpoint, encoder) if recipe.needs_teacher else None
    warnings += [
        f"--separator {recipe.separator!r} does not occur in {name}, which is taken for one document"
        for name in without_separator((*recipe.data, *recipe.eval_data), recipe.separator)
    ]
    stored = stored_as(recipe, checkpoint) if calibrated is None else calibrated.stored
    return Inputs(recipe, checkpoint, teacher, encoder, length, tuple(warnings), stored)


def _sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Rows of the embedding and longest context, as config.json names them."""
    path = checkpoint.directory / "config.json"
    config = checkpoint.config.get("text_config") or checkpoint.config
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: text_config: expected an object, got {shown(config)}")
    return positive_int(config, "vocab_size"), positive_int(config, "max_position_embeddings", 2048)


def _block_length(recipe: Recipe, max_positions: int) -> int:
    length = min(max_positions, MAX_BLOCK) if recipe.block_length is None else recipe.block_length
    if not 2 <= length <= max_positions:
        raise OptionError(
            f"--block-length: expected 2 to {max_positions} (max_position_embeddings of the source), got {length}"
        )
    return length


def _open_teacher(recipe: Recipe, source: Checkpoint, encoder: Encoder) -> Checkpoint:
    """The teacher, whose tokens have to be the student's and whose weights must not be latent ones."""
    checkpoint = source if recipe.teacher is None else open_source(recipe.teacher)
    check_teacher(recipe, checkpoint)
    if recipe.teacher is not None:
        theirs, vocab_size = _sizes(checkpoint)[0], _sizes(source)[0]
        if theirs != vocab_size:
            raise OptionError(
                f"--teacher {recipe.teacher}: has a vocabulary of {theirs:,}, the model {vocab_size:,}; expected the same one"
            )
        mine, other = encoder.tokenizer.get_vocab(), check_tokenizer(checkpoint, theirs)
        different = sum(mine.get(token) != number for token, number in other.items())
        if different or len(mine) != len(other):
            raise OptionError(
                f"--teacher {recipe.teacher}: its tokenizer is another one ({different:,} of {len(other):,} tokens differ); "
                "expected a teacher with the same tokens"
            )
    return checkpoint
