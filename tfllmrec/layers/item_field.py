"""Vectors of all items from one of their fields, such as a category or an image vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import tensorflow as tf

from tfllmrec.data.schema import Field, missing
from tfllmrec.layers.field_encoder import FieldEncoder, is_given
from tfllmrec.layers.rows_of import rows_of


@tf.keras.utils.register_keras_serializable("tfllmrec")
class ItemField(tf.keras.layers.Layer):
    """The values of one field for all items, which are not trained, and their :class:`FieldEncoder`, which is trained.

    Values of the kind *vector* are stored minus their mean and scaled to length 1, like text vectors
    (:func:`tfllmrec.text.centring.centred_unit`). The mean of the first catalogue is also subtracted from the vectors
    of new items.

    Args:
      field: The field, with the vocabulary and the statistics of the training data.
      values: ``[N]`` or ``[N, width]``, as :meth:`Field.encode` returns them.
      dim: The width D of the result.
      seed: Random seed of the initial weights.
    """

    def __init__(
        self, field: Field | Mapping[str, Any], values: np.ndarray, dim: int, seed: int = 42, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.field = field if isinstance(field, Field) else Field(**field)
        self.dim, self.seed = dim, seed
        self.encoder = FieldEncoder(self.field, dim, seed, name="encoder")
        if self.field.kind == "vector":
            known = values[~missing(values)].astype(np.float64)
            mean = known.sum(axis=0) / max(len(known), 1)
            self.mean = self._frozen("mean", mean, tf.float32)
        self.values = self._frozen("values", self._centred(values), self.field.dtype)

    def _frozen(self, name: str, value: np.ndarray, dtype: Any) -> tf.Variable:
        # HDF5 files need distinct weight names within a layer, which may have several fields.
        name, start = f"{self.name}_{name}", tf.constant_initializer(value)
        frozen = {"trainable": False, "experimental_autocast": False}
        return self.add_weight(name=name, shape=value.shape, dtype=dtype, initializer=start, **frozen)

    def _centred(self, values: np.ndarray) -> np.ndarray:
        if self.field.kind != "vector":
            return values
        centred = values - self.mean.numpy()
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        # If all vectors are equal, only rounding errors are left after centring.
        apart = ~(length <= 1e-6 * np.linalg.norm(values, axis=1, keepdims=True))
        return np.divide(centred, length, out=np.zeros_like(centred), where=apart)

    def set_values(self, values: np.ndarray) -> None:
        """Sets the values of all items; ``values`` is as in the constructor."""
        self.values.assign(self._centred(values))

    def call(self, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns vectors of items, ``[M, D]``, and which of them have a value, bool ``[M]``.

        The vector of an item without a value is meaningless.

        Args:
          indices: Int32 ``[M]``, the items; by default all items.
        """
        values = tf.convert_to_tensor(self.values) if indices is None else rows_of(self.values, indices)
        return self.encoder(values), is_given(self.field, values)

    def get_config(self) -> dict[str, Any]:
        sizes = {"n_items": self.values.shape[0], "dim": self.dim, "seed": self.seed}
        return {**super().get_config(), "field": asdict(self.field), **sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer of the same sizes; all values are missing until weights are loaded."""
        config = dict(config)
        field = Field(**config.pop("field"))
        return cls(field, field.blank(config.pop("n_items")), **config)
