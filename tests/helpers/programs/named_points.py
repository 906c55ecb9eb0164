"""Named points of runs that write: where faulty_runs.py ends a process, or has another run begin meanwhile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """The n-th call of a function, before it or after it."""

    module: str
    function: str
    after: bool = False
    nth: int = 1


OUTPUT, RUN = "fairy2i_export.output", "fairy2i_export.compile.run"
EXPORT = {
    "a workspace is to be made": Point(f"{OUTPUT}.workspace", "_open_workspace"),
    "the workspace is made": Point(f"{OUTPUT}.workspace", "_open_workspace", after=True),
    "the journal is begun": Point(f"{OUTPUT}.journal", "Journal.resume", after=True),
    "the workspace is cleared": Point(f"{OUTPUT}.workspace", "Workspace.clear", after=True),
    "files are to be copied": Point(RUN, "copy_files"),
    "files are copied": Point(RUN, "copy_files", after=True),
    "the data file is made": Point(f"{OUTPUT}.data_file", "DataFile.__init__", after=True),
    "a tensor is begun": Point(f"{OUTPUT}.data_file", "TensorWriter.write", after=True),
    "a tensor is written": Point(f"{OUTPUT}.data_file", "TensorWriter.record", after=True, nth=2),
    "a tensor is to be noted": Point(f"{OUTPUT}.journal", "Journal.finished_tensor", nth=3),
    "a tensor is noted": Point(f"{OUTPUT}.journal", "Journal.finished_tensor", after=True, nth=3),
    "a file of the source is to be noted": Point(f"{OUTPUT}.journal", "Journal.finished_file"),
    "a file of the source is noted": Point(f"{OUTPUT}.journal", "Journal.finished_file", after=True),
    "model.onnx is to be written": Point(RUN, "_write_model"),
    "model.onnx is written": Point(RUN, "_write_model", after=True),
    "genai_config.json is written": Point(RUN, "write_genai_config", after=True),
    "the result is to be loaded": Point(RUN, "check_loads"),
    "hashes are to be written": Point(RUN, "write_sums"),
    "hashes are written": Point(RUN, "write_sums", after=True),
    "the card is to be written": Point(RUN, "model_card", after=True),
    "the folder is to be placed": Point(f"{OUTPUT}.workspace", "Workspace.place"),
    "it is known which folder": Point(f"{OUTPUT}.workspace", "place_folder"),
    "files are on the disk": Point(f"{OUTPUT}.workspace", "sync_folder", after=True),
    "the name is to be given": Point(f"{OUTPUT}.placing", "sync_names", nth=1),
    "the earlier one is to be removed": Point(f"{OUTPUT}.placing", "remove_export"),
    "the earlier one is removed": Point(f"{OUTPUT}.placing", "remove_export", after=True),
    "the folder is placed": Point(f"{OUTPUT}.workspace", "place_folder", after=True),
    "the workspace is to be removed": Point(f"{OUTPUT}.workspace", "_remove"),
}
ONLY_WITH_AN_EARLIER = {"the earlier one is to be removed", "the earlier one is removed"}

CALIBRATE = "fairy2i_export.compile.calibrate"
CALIBRATION = {  # with --bits, and with lm_head among what is calibrated
    "the text is read": Point("fairy2i_export.compile.prepare", "asked_text", after=True),
    "layers are to be measured": Point(f"{CALIBRATE}.stages.sensitivity", "measure"),
    "stages are chosen": Point(f"{CALIBRATE}.stages.choose", "allocate", after=True),
    "the choice has no name yet": Point("os", "replace"),
    "the choice is kept": Point(f"{CALIBRATE}.stages.choose", "choose_stages", after=True),
    "the store is begun": Point(f"{CALIBRATE}.store", "LayerStore.__init__", after=True),
    "a matrix is calibrated": Point(f"{CALIBRATE}.walk", "calibrate_matrix", after=True, nth=3),
    "the first layer is to be kept": Point(f"{CALIBRATE}.store", "LayerStore.write"),
    "the first layer has no name yet": Point("os", "replace", nth=2),
    "the first layer is kept": Point(f"{CALIBRATE}.store", "LayerStore.write", after=True),
    "the second layer is kept": Point(f"{CALIBRATE}.store", "LayerStore.write", after=True, nth=2),
    "the model is to be tuned": Point(f"{CALIBRATE}.run", "tune"),
    "it is tuned": Point(f"{CALIBRATE}.run", "tune", after=True),
    "the tuning has no name yet": Point("os", "replace", nth=5),
    "the tuning is kept": Point(f"{CALIBRATE}.store", "LayerStore.write_tuned", after=True),
    "a calibrated tensor is written": Point(f"{OUTPUT}.data_file", "TensorWriter.record", after=True, nth=2),
    "a calibrated tensor is noted": Point(f"{OUTPUT}.journal", "Journal.finished_tensor", after=True, nth=9),
    "kernels are to be compared": Point(RUN, "check_kernels"),
    "the result is to be loaded": Point(RUN, "check_loads"),
    "the folder is to be placed": Point(f"{OUTPUT}.workspace", "Workspace.place"),
    "the folder is placed": Point(f"{OUTPUT}.workspace", "place_folder", after=True),
}

TRAIN = "fairy2i_export.train"
TRAINING = {  # of eight steps with a checkpoint after every third and at the end
    "the folder is to be claimed": Point(f"{TRAIN}.run", "claimed"),
    "the recipe has no name yet": Point("os", "replace"),
    "texts are to be tokenized": Point(f"{TRAIN}.run", "stored_blocks"),
    "texts are tokenized": Point(f"{TRAIN}.run", "stored_blocks", after=True),
    "the folder is to be taken": Point(f"{TRAIN}.result.folder", "Claim.begin"),
    "the folder is taken": Point(f"{TRAIN}.result.folder", "Claim.begin", after=True),
    "a step is taken": Point(f"{TRAIN}.loop.trainer", "QATTrainer.training_step", after=True, nth=2),
    "the first checkpoint is to be saved": Point(f"{TRAIN}.loop.trainer", "QATTrainer._save_checkpoint"),
    "the first checkpoint is to be sealed": Point(f"{TRAIN}.loop.checkpoint_guard", "seal"),
    "the first checkpoint is sealed": Point(f"{TRAIN}.loop.checkpoint_guard", "seal", after=True),
    "the first checkpoint is saved": Point(f"{TRAIN}.loop.trainer", "QATTrainer._save_checkpoint", after=True),
    "a step after it is taken": Point(f"{TRAIN}.loop.trainer", "QATTrainer.training_step", after=True, nth=5),
    "the second checkpoint is to be sealed": Point(f"{TRAIN}.loop.checkpoint_guard", "seal", nth=2),
    "earlier checkpoints are to be removed": Point(f"{TRAIN}.loop.checkpoint_guard", "rotate", nth=3),
    "earlier checkpoints are removed": Point(f"{TRAIN}.loop.checkpoint_guard", "rotate", after=True, nth=3),
    "curves are drawn": Point(f"{TRAIN}.run", "draw_curves", after=True),
    "the result is to be placed": Point(f"{TRAIN}.result.save", "_place"),
    "a file of the result is to be placed": Point(f"{TRAIN}.result.save", "place_file"),
    "a file of the result is placed": Point(f"{TRAIN}.result.save", "place_file", after=True, nth=3),
    "the result is placed": Point(f"{TRAIN}.result.save", "_place", after=True),
    "the result is saved": Point(f"{TRAIN}.run", "save_result", after=True),
}
FINISHED = {"the result is placed", "the result is saved"}  # nothing is left to do then

POINTS = {"export": EXPORT, "calibrate": CALIBRATION, "train": TRAINING}
