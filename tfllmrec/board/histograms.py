"""Gates and lengths of vectors of a hybrid, after each epoch."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from tfllmrec.models.hybrid import Hybrid


class Histograms(tf.keras.callbacks.Callback):
    """Writes histograms of a hybrid's gates over its items, and of the lengths of item vectors before normalization.

    Args:
      log_dir: A folder of TensorBoard logs for this callback alone.
    """

    def __init__(self, log_dir: Path | str) -> None:
        super().__init__()
        self.writer = tf.summary.create_file_writer(str(log_dir))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        model: Hybrid = self.model
        with self.writer.as_default(step=epoch):
            if model.gates.trainable:
                tf.summary.histogram("gates/dense terms against behaviour", model.gates.gate(model.train_counts))
            content = model.items.content()
            tf.summary.histogram("vectors/length, text and fields", tf.norm(tf.cast(content.every, tf.float32), axis=1))
            if model.items.use_ids:
                ids = tf.norm(tf.cast(model.items.id_embedding, tf.float32), axis=1)
                tf.summary.histogram("vectors/length, ids", ids)
        self.writer.flush()
