"""The dense item vector ``e_i``, from text, other fields, and an id embedding that fades out for rare items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf

from tfllmrec.data.schema import Field
from tfllmrec.layers.item_field import ItemField
from tfllmrec.layers.seeded_dropout import SeededDropout

#: Share of the items with text whose fields a training step hides, because new items may lack fields, and ``reads``
#: may be 0.
HIDDEN_FIELDS = 0.1


class Content(NamedTuple):
    """The part of item vectors that does not depend on ids.

    Attributes:
      text: ``[M, D]``, from the text alone.
      every: ``[M, D]``, from the text and the other fields.
    """

    text: tf.Tensor
    every: tf.Tensor


@tf.keras.utils.register_keras_serializable("tfllmrec")
class ItemFusion(tf.keras.layers.Layer):
    """Computes ``e_i = sum_m a_im x_im + g(n_i) v_i``: attention over an item's modalities, plus an id embedding.

    - The modalities m are the text, ``x = F = W t_i`` with the frozen text vector ``t_i``, and the item's fields
      (categories, numbers, times, other vectors), ``x = s_m F`` with ``F`` from :class:`ItemField` and a learned scalar
      ``s_m``.
    - ``a_im = M_i softmax_m <k_m, F>``, over the ``M_i`` modalities that item i has; ``k_m`` is learned. These weights
      are 1 on average, so an item that lacks a modality has the same vector as if there were no such modality.
    - ``v_i`` is a learned id embedding, ``n_i`` the number of the item's training events, and ``g(n) = n / (n + c)``
      with a learned ``c > 0``. The vector of a tail item is mostly its content, and that of a cold item is its content
      alone.

    ``s_m`` and ``k_m`` start at 0, so training starts from ``W t_i + g(n_i) v_i``. Each training step hides the ids of
    a share of the items (rows, not entries). It also hides the fields of the share :data:`HIDDEN_FIELDS` of the items
    with text, so that the text alone must represent these items. The scalar ``reads`` is chosen on validation data and
    not trained; if it is 0, no field is read.

    Args:
      text: Float32 ``[N, Dt]``, from :func:`tfllmrec.text.centring.centred_unit`; the row of an item without text is
        zero.
      dim: The width D of the result.
      id_dropout: The share of ids that a training step hides; 1.0 removes the id part from the model.
      seed: Random seed of the dropout and the initialisers.
      fields: The fields of the items, each with an encoder.
      values: The values of all items by the keys of the fields, as :meth:`Field.encode` returns them.
    """

    def __init__(
        self,
        text: np.ndarray,
        dim: int,
        id_dropout: float,
        seed: int,
        fields: Iterable[Field | Mapping[str, Any]] = (),
        values: Mapping[str, np.ndarray] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # counts stay float32 in every precision
        self.dim, self.rate, self.seed = dim, id_dropout, seed
        self.n_items = len(text)
        glorot = tf.keras.initializers.GlorotUniform(seed=seed)
        # These are mappings because checkpoints contain their names.
        vectors = tf.constant_initializer(text.astype(np.float32))
        self.blocks = {"text": self.add_weight("text_vectors", text.shape, initializer=vectors, trainable=False)}
        self.maps = {"text": self.add_weight("text_map", (text.shape[1], dim), initializer=glorot)}
        self.use_ids = id_dropout < 1
        if self.use_ids:
            self.id_embedding = self.add_weight(
                name="id_embedding",
                shape=(self.n_items, dim),
                initializer=tf.keras.initializers.RandomNormal(stddev=0.02, seed=seed),
            )
            self.id_half_count = self.add_weight(
                name="id_half_count", shape=(), initializer=tf.constant_initializer(1.0)
            )
            self.id_dropout = SeededDropout(id_dropout, seed, noise_shape=(None, 1), name="id_dropout")
        known = [Field.of(field) for field in fields]
        self.fields = [
            ItemField(field, (values or {})[field.key], dim, seed + 10 + place, name=f"field_{place}")
            for place, field in enumerate(known)
        ]
        if self.fields:
            self.strengths = self.add_weight("field_strengths", (len(known),), initializer="zeros")
            self.keys = self.add_weight("modality_keys", (1 + len(known), dim), initializer="zeros")
            frozen = {"trainable": False, "dtype": tf.float32, "experimental_autocast": False}
            self.reads = self.add_weight("reads", (), initializer="ones", **frozen)
            self.hide_fields = SeededDropout(HIDDEN_FIELDS, seed + 1, noise_shape=(None, 1), name="hide_fields")

    @property
    def fields_read(self) -> list[Field]:
        """The fields that the vectors depend on; empty if ``reads`` is 0."""
        return [each.field for each in self.fields] if self.fields and float(self.reads) > 0 else []

    def content(
        self, indices: tf.Tensor | None = None, text: tf.Tensor | None = None, own_text: tf.Tensor | None = None
    ) -> Content:
        """Computes the part of the vectors that does not depend on ids.

        Args:
          indices: Int32 ``[M]``, the items; by default all items.
          text: Float32 ``[N, Dt]``, text vectors that replace those of the layer.
          own_text: Float32 ``[M, Dt]``, text vectors of ``indices`` alone. An item may then occur several times in
            ``indices``.
        """
        vectors = _rows(self.blocks["text"] if text is None else text, indices) if own_text is None else own_text
        of_text = tf.matmul(tf.cast(vectors, self.compute_dtype), tf.cast(self.maps["text"], self.compute_dtype))
        if not self.fields:
            return Content(of_text, of_text)
        of_fields, given = zip(*(field(indices) for field in self.fields), strict=True)
        parts = [of_text, *(tf.cast(part, of_text.dtype) for part in of_fields)]
        there = tf.stack([tf.reduce_any(vectors != 0, axis=1), *given], axis=1)
        strengths = tf.concat([[1.0], tf.cast(self.strengths, tf.float32)], axis=0)
        weights = self._weights(parts, there) * strengths
        weights = tf.where(self.reads > 0, weights, tf.one_hot(0, len(parts)))
        weighed = zip(parts, tf.unstack(tf.cast(weights, of_text.dtype), axis=1), strict=True)
        return Content(of_text, tf.add_n([part * weight[:, tf.newaxis] for part, weight in weighed]))

    def _weights(self, parts: Sequence[tf.Tensor], there: tf.Tensor) -> tf.Tensor:
        """Returns ``a_im``, float32 ``[M, P]``, of P ``parts`` ``[M, D]``; 0 where ``there``, ``[M, P]``, is False."""
        keys = tf.unstack(tf.cast(self.keys, self.compute_dtype))
        logits = [tf.linalg.matvec(part, key) for part, key in zip(parts, keys, strict=True)]
        logits = tf.where(there, tf.cast(tf.stack(logits, axis=1), tf.float32), -1e9)
        known = tf.cast(there, tf.float32)
        return tf.nn.softmax(logits) * known * tf.reduce_sum(known, axis=1, keepdims=True)

    def call(
        self,
        counts: tf.Tensor,
        indices: tf.Tensor | None = None,
        content: Content | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Returns item vectors, ``[M, D]``.

        Args:
          counts: Float32 ``[M]``, the number of training events of each item.
          indices: Int32 ``[M]``, the items; by default all items.
          content: The result of :meth:`content` for the items, if it is already computed.
          training: Whether ids and fields are hidden.
        """
        content = self.content(indices) if content is None else content
        result = content.every
        if self.fields:
            shown = self.hide_fields(tf.ones_like(result[:, :1]), training=training) > 0
            without_text = tf.reduce_all(content.text == 0, axis=1, keepdims=True)  # else their vector would be 0
            result = tf.where(shown | without_text, result, content.text)
        if self.use_ids:
            fade = counts / (counts + tf.nn.softplus(tf.cast(self.id_half_count, counts.dtype)))
            # No gather if all rows are read: its gradient would be sparse, which is slower in the optimizer.
            ids = tf.cast(_rows(self.id_embedding, indices), self.compute_dtype)
            ids *= tf.cast(fade, ids.dtype)[:, tf.newaxis]
            result += tf.cast(self.id_dropout(ids, training=training), result.dtype)
        return result

    def get_config(self) -> dict[str, Any]:
        sizes = {"n_items": self.n_items, "width": self.blocks["text"].shape[1], "dim": self.dim}
        fields = [asdict(field.field) for field in self.fields]
        return {**super().get_config(), **sizes, "id_dropout": self.rate, "seed": self.seed, "fields": fields}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Creates a layer of the same sizes, without text and values until weights are loaded."""
        config = dict(config)
        n_items, fields = config.pop("n_items"), [Field(**field) for field in config.pop("fields")]
        values = {field.key: field.blank(n_items) for field in fields}
        text = np.zeros((n_items, config.pop("width")), np.float32)
        return cls(text, fields=fields, values=values, **config)


def _rows(table: tf.Variable | tf.Tensor, indices: tf.Tensor | None) -> tf.Tensor:
    return tf.convert_to_tensor(table) if indices is None else tf.gather(table, indices)
