"""Text-based recommenders built on TensorFlow, Keras and TensorFlow Recommenders."""

import os
from importlib import import_module
from typing import Any

from tfllmrec.version import __version__

# TensorFlow Recommenders and TF Hub layers need Keras 2: set this before anything accesses tf.keras.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# On machines without a GPU, TensorFlow logs messages such as "failed call to cuInit" as errors. Real errors are raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Names are imported on first access, so that importing the package is cheap and the command line starts quickly.
_HOME = {
    "DataConfig": "tfllmrec.config",
    "ExperimentConfig": "tfllmrec.config",
    "ModelConfig": "tfllmrec.config",
    "SplitConfig": "tfllmrec.config",
    "TextConfig": "tfllmrec.config",
    "read_dataset": "tfllmrec.data",
    "dataset_from_frames": "tfllmrec.data",
    "make_split": "tfllmrec.data",
    "Queries": "tfllmrec.data.queries",
    "Sequences": "tfllmrec.data.batches",
    "training_batches": "tfllmrec.data.batches",
    "evaluate": "tfllmrec.evaluation.protocol",
    "EventLog": "tfllmrec.feedback.event_log",
    "ItemTemplate": "tfllmrec.text.template",
    "TextEncoder": "tfllmrec.text.encoder",
    "TextTower": "tfllmrec.layers.text_tower",
    "Catalogue": "tfllmrec.models.hybrid",
    "TrainingData": "tfllmrec.models.fitting",
    "Hybrid": "tfllmrec.models.hybrid",
    "ItemWeightSettings": "tfllmrec.config",
    "RankingConfig": "tfllmrec.config",
    "RankingModel": "tfllmrec.models.ranking",
    "Reranked": "tfllmrec.models.ranking",
    "Scoreboard": "tfllmrec.board.scoreboard",
    "set_item_weights": "tfllmrec.training.fit",
    "fit_hybrid": "tfllmrec.training.fit",
    "fit_experiment": "tfllmrec.runs.experiment",
    "compare": "tfllmrec.explain.compare",
    "write_board": "tfllmrec.explain.board",
    "export": "tfllmrec.serving.export",
    "SavedModel": "tfllmrec.serving.saved_model",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tfllmrec' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")


def __dir__() -> list[str]:
    return sorted(__all__)
