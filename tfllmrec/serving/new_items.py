"""Reads and encodes items that appeared after training, to add them to a fitted model without training.

The model treats a new item like a cold item of the training catalogue. Its ``e_i`` consists of its text and its fields,
because the id part has no weight without events; and the gates read a popularity of 0. The closed-form item-item
weights, in which cold items take part through the text in ``A`` and ``B`` (:mod:`tfllmrec.models.item_weights`), are
solved again over the larger catalogue, from the same events with the same settings. So the behaviour term equals that
of a fit with these items in its catalogue and these settings, and the weights between old items change slightly if a
new item shares their text. Parameters learned by gradient descent do not change. Neither do the means of the training
catalogue's texts and other vectors, which are subtracted from those of new items, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.assets import cache_folder
from tfllmrec.columns import DOMAIN, ITEM
from tfllmrec.config import DataConfig
from tfllmrec.data.domains import domain_names, item_domains, with_new_domains
from tfllmrec.data.extension import extended_entities
from tfllmrec.data.readers import read_items
from tfllmrec.data.schema import Field
from tfllmrec.errors import DataError, ModelError
from tfllmrec.layers.field_encoder import is_given
from tfllmrec.progress import Tell, show_progress
from tfllmrec.runs.run import Run
from tfllmrec.text.side_by_side import Encoder
from tfllmrec.text.store import VectorStore, encode_items
from tfllmrec.text.template import ItemTemplate


@dataclass(frozen=True)
class Counts:
    """The numbers of added, replaced, unchanged and dropped rows of a file of new items.

    Attributes:
      file: The name of the file.
      added: The number of items that are not in the run.
      replaced: The number of items of the run whose text or fields have changed.
      unchanged: The number of items of the run whose text and fields are the same.
      dropped: The number of rows that are unreadable or have no id, repeated ids, and new items without text and
        fields.
    """

    file: str
    added: int
    replaced: int
    unchanged: int
    dropped: int

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class GrownCatalogue:
    """A run's items, in their order, followed by the new items, in natural order of their ids.

    Attributes:
      items: The items, like :attr:`Split.items`, with the run's columns.
      text: Float32 ``[N', Dt]``, the text vectors.
      counts: The numbers of added and replaced items.
      is_reread: Whether the model reads something else of the items than in training; if not, only values that rules
        read have changed.
    """

    items: pd.DataFrame
    text: np.ndarray
    counts: Counts
    is_reread: bool


def read_new_items(
    run: Run, path: Path | str, encoder: Encoder | None, fields: Sequence[Field], tell: Tell
) -> GrownCatalogue:
    """Reads a file of items, and encodes the new items and the items with a new text.

    The file is read like the training catalogue: its columns are mapped and cleaned in the same way, and the columns of
    the run's template form the text. Columns that the run does not have are left out. Vectors are cells of the file,
    such as lists in Parquet. For an item of the run, each value in the file replaces the old one, except empty values.
    The item keeps its training events and its learned id embedding. In joined data, a new item without a ``domain``
    gets one from the prefix of its id, or else ``split.domain``.

    Args:
      run: A complete run.
      path: A CSV, TSV, JSONL, Parquet or other file; see :func:`tfllmrec.data.read_items`.
      encoder: The text encoder of the run; ``None`` if the run has no text.
      fields: The fields of items that the run's model reads (:attr:`ItemFusion.fields_read`); a new item without text
        is added if it has one of them.
      tell: Called with a line for each finding.

    Raises:
      DataError: The file cannot be read, has none of the columns that the run or its rules read, or has no usable row;
        or a new item of joined data has no domain.
      ModelError: The run reads neither text nor fields, so it cannot represent new items.
    """
    path, known = Path(path), run.split.items
    if encoder is None and not fields:
        raise ModelError(
            f"{run.folder} was trained without texts and fields of items, so it cannot represent new items. Fit again "
            "with a catalogue that has titles, descriptions or vectors."
        )
    template = None if encoder is None else ItemTemplate.from_items(known, run.config.text.template)

    def texts_of(items: pd.DataFrame) -> np.ndarray:
        return np.array(template.texts(items) if template else [""] * len(items), object)

    source = run.record["source"]
    # Unreadable rows are counted and reported, because one bad row in twenty is no reason to refuse the others. If most
    # rows are bad, it is probably the wrong file.
    told = {name: source[name] for name in ("columns", "encoding") if name in source}
    config = DataConfig(max_bad_rows=0.5, **told)
    came, report = read_items(path, config, known)
    # Rules read all fields of items but texts and vectors, whether the model reads them or not.
    names = [field.name for field in run.split.schema.of("item") if field.kind not in ("text", "vector")]
    columns = [*(template.columns if template else ()), *(field.name for field in fields), *names]
    if not set(columns) & set(came.columns):
        raise DataError(
            f"{path.name}: expected at least one of the columns {', '.join(dict.fromkeys(columns))}, which the run or "
            f"its rules read of an item; found {', '.join(came.columns)}."
        )
    items = extended_entities(known, came.reindex(columns=known.columns, fill_value=""), ITEM)
    for line in report.lines():
        tell(f"new items: {line}")
    texts, is_new = texts_of(items), np.arange(len(items)) >= len(known)
    n_new = int(is_new.sum())
    blank = is_new & (texts == "")
    for field in fields:
        blank[blank] = ~is_given(field, tf.constant(field.encode(items[field.name][blank]))).numpy()
    if blank.any():
        tell(
            f"new items:   items: {int(blank.sum()):,} dropped: without text and fields nothing is known of a new item "
            f"(such as {items[ITEM].iloc[int(np.argmax(blank))]!r})"
        )
    if len(came) == blank.sum():
        raise DataError(f"{path.name} has no row that can be used: expected an id, and a text or field, in each.")
    changed = (texts != np.array([*texts_of(known), *[""] * n_new], object))[~blank]
    items, texts, is_new = items[~blank].reset_index(drop=True), texts[~blank], is_new[~blank]
    if domains := domain_names(item_domains(known, run.split.schema)):
        empty = int((items[DOMAIN][is_new] == "").sum())
        items = with_new_domains(items, is_new, domains, run.config.split.domain)
        if empty:
            tell(f"new items:   items: {empty:,} without a domain: taken from the prefix of the id, or split.domain")

    def differ(names: list[str]) -> np.ndarray:
        return (items[names][: len(known)].to_numpy() != known[names].to_numpy()).any(axis=1)

    reread = changed[: len(known)] | differ([field.name for field in fields])

    text = np.zeros((len(items), run.text.shape[1]), np.float32)
    text[: len(known)] = run.text
    if encoder is not None:
        with show_progress("Encoding new items", "texts") as progress:
            store = VectorStore(cache_folder() / "vectors")
            text[changed] = encode_items(texts[changed].tolist(), encoder, store, progress)
    dropped = report.dropped("items") + int(blank.sum())
    added, replaced = len(items) - len(known), int((reread | differ(names)).sum())
    counts = Counts(path.name, added, replaced, len(came) - n_new - replaced, dropped)
    return GrownCatalogue(items, text, counts, bool(added or reread.any()))
