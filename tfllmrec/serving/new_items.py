"""Items that came after training: read, encoded, and put into a fitted model without any training.

To the model, an item that nobody had yet is what a cold item of the training catalogue is. Its ``e_i`` is made of its
text and its fields, as the id part fades to nothing without events; the gates see a popularity of 0; and the
closed-form item-item weights, which cold items enter by the text in ``A`` and ``B``
(:mod:`tfllmrec.models.item_weights`), are solved again over the larger catalogue from the same events with the same
settings. So the behaviour term is what a fit with these items in its catalogue would have solved with these settings,
and the weights among the old items move a little where a new item shares their text.
What was learnt by gradient stays as it is, and with it the means of the training catalogue's texts and other vectors,
which are subtracted from those of new items too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from tfllmrec.assets import cache_folder
from tfllmrec.columns import ITEM
from tfllmrec.config import DataConfig
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
    """What became of the rows of a file of new items.

    Attributes:
      file: its name.
      added: items that the run does not know.
      replaced: items that it knows, with another text or field now.
      unchanged: items that it knows, with the text and fields that they had.
      dropped: rows without an id or that cannot be read, repeated ids, and new items without text and fields.
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
    """A run's items, in their order, and after them the new ones, in natural order of their ids.

    Attributes:
      items: as :attr:`Split.items`, with the run's columns.
      text: float32 ``[N', Dt]``.
      counts: what was added and replaced.
    """

    items: pd.DataFrame
    text: np.ndarray
    counts: Counts


def read_new_items(
    run: Run, path: Path | str, encoder: Encoder | None, fields: Sequence[Field], tell: Tell
) -> GrownCatalogue:
    """Reads a file of items, and encodes the new items and the items with a new text.

    The file is read like the training catalogue: its columns are mapped and cleaned in the same way, and those of the
    run's template make the text; columns that the run does not have are left out. Vectors are cells of the file, such
    as lists in Parquet. For an item that the run knows, each value in
    the file replaces the old one; an empty value replaces nothing. The item keeps its training events and learned id.

    Args:
      run: complete.
      path: CSV, TSV, JSONL, Parquet and so on; see :func:`tfllmrec.data.read_items`.
      encoder: the run's own; ``None`` where it has no text.
      fields: of items, those that the run's model reads (:attr:`ItemFusion.fields_read`); a new item without text is
        added if it has one of them.
      tell: called with a line for each finding.

    Raises:
      DataError: the file cannot be read, has none of the columns that the run reads, or no row that can be used.
      ModelError: the run reads neither text nor fields, so nothing can be said about an item that nobody had.
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
    # What cannot be read is counted and told: one bad row of twenty is no reason to do without the others. Where most
    # are bad, the file is something else.
    told = {name: source[name] for name in ("columns", "encoding") if name in source}
    config = DataConfig(max_bad_rows=0.5, **told)
    came, report = read_items(path, config, known)
    for line in report.lines():
        tell(f"new items: {line}")
    columns = list(dict.fromkeys([*(template.columns if template else ()), *(field.name for field in fields)]))
    if not set(columns) & set(came.columns):
        raise DataError(
            f"{path.name}: expected at least one of the columns {', '.join(columns)}, which the run reads of an item; "
            f"found {', '.join(came.columns)}."
        )
    items = extended_entities(known, came.reindex(columns=known.columns, fill_value=""), ITEM)
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
    items, texts = items[~blank].reset_index(drop=True), texts[~blank]
    names = [field.name for field in fields]
    told_anew = changed[: len(known)] | (items[names][: len(known)].to_numpy() != known[names].to_numpy()).any(axis=1)

    text = np.zeros((len(items), run.text.shape[1]), np.float32)
    text[: len(known)] = run.text
    if encoder is not None:
        with show_progress("Encoding new items", "texts") as progress:
            store = VectorStore(cache_folder() / "vectors")
            text[changed] = encode_items(texts[changed].tolist(), encoder, store, progress)
    dropped = report.dropped("items") + int(blank.sum())
    replaced = int(told_anew.sum())
    counts = Counts(path.name, len(items) - len(known), replaced, len(came) - n_new - replaced, dropped)
    return GrownCatalogue(items, text, counts)
