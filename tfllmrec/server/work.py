"""Estimates the work of a request from the shapes of its inputs. Needs only numpy.

A small message may require much work: a tensor without elements can have many rows, a single value can represent a
whole tensor, and one row can request the scores of a whole catalogue. Therefore, the work of a request is estimated
before its tensors are expanded and before it is queued. The unit is the cell: about one number that the model keeps in
memory while it answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfllmrec.client.inputs import MOST_REASONS
from tfllmrec.client.status import invalid
from tfllmrec.server.tensors import Signature

#: Largest number of cells of one call of a model, and thus of a row. A larger request is answered in several calls.
CALL_CELLS = 1 << 24
#: Largest number of rows of one of the calls that answer a request in parts.
CALL_ROWS = 256
#: Largest number of cells of a request.
REQUEST_CELLS = 1 << 28
#: Largest number of values in one output of a request.
ANSWER_VALUES = 1 << 22

# Cells of an id; of an event of the history, which is read with its neighbours; of an entry of the context; of the
# fields of an event (at most tfllmrec.layers.field_decoder.ENTRIES entries); of a candidate; of a text, which the
# tokenizer truncates; of a number in the vector of a field's text, which is kept with and without centring; of a token;
# and of a pair of tokens, which attention compares.
_ID, _EVENT, _ENTRY, _EVENT_FIELDS, _CANDIDATE, _TEXT, _NUMBER = 8, 128, 32, 512, 1024, 1 << 17, 2
_TOKEN, _TOKEN_PAIR = 2048, 8
# Cells of a diverse list: about 500 candidates with vectors of 128 numbers and 100 components each. Cells of a list
# with another rule: 500 candidates with 32 categories. Cells of a pinned item, in addition to those of an id: its
# vector, its components, and the candidates that it is compared with.
_DIVERSE, _RULED, _PINNED = 1 << 17, 1 << 14, 1024
# Number of labels of an item, and number of items whose labels learned interests read: PER_ITEM of
# tfllmrec.models.interests and CANDIDATES of tfllmrec.layers.interest_forecast, whose import would load TensorFlow.
_LABELS, _RECOMMENDED = 12, 200
#: Largest number of events that a model reads.
LONGEST_HISTORY = 1000  # tfllmrec.layers.neighbour_scores.LONGEST, whose import would load TensorFlow


@dataclass(frozen=True)
class Work:
    """The work of a request.

    Attributes:
      rows: The size of the first dimension of its inputs.
      row_cells: The number of cells of each row; 0 for a model not exported by tfllmrec, whose work is not known.
      row_values: The number of values in each row of the largest output; 0 for a model not exported by tfllmrec.
    """

    rows: int
    row_cells: int = 0
    row_values: int = 0

    @property
    def cells(self) -> int:
        return self.rows * self.row_cells

    @property
    def call_rows(self) -> int:
        """The largest number of rows of one call of the model."""
        return max(min(CALL_ROWS, CALL_CELLS // self.row_cells), 1) if self.row_cells else self.rows

    def check(self, max_rows: int) -> None:
        """Refuses a request that is too large.

        Args:
          max_rows: The largest number of rows of a request.

        Raises:
          RequestError: INVALID_ARGUMENT with the size of the request and the limit.
        """
        if self.rows > max_rows:
            raise invalid(f"The request has {self.rows} rows; expected {max_rows} at most: send several requests")
        if self.row_cells > CALL_CELLS:
            raise invalid(
                f"A row of the request takes {self.row_cells} cells (numbers kept while it is answered); expected "
                f"{CALL_CELLS} at most: send fewer columns"
            )
        if self.cells > REQUEST_CELLS:
            raise invalid(
                f"The request takes {self.cells} cells (numbers kept while it is answered): {self.rows} rows of "
                f"{self.row_cells}; expected {REQUEST_CELLS} at most: send fewer rows or columns"
            )
        if self.rows * self.row_values > ANSWER_VALUES:
            raise invalid(
                f"The answer would have {self.rows * self.row_values} values in one output: {self.rows} rows of "
                f"{self.row_values}; expected {ANSWER_VALUES} at most: send fewer rows"
            )


@dataclass(frozen=True)
class TextFields:
    """The fields of events, requests and users whose texts a model encodes.

    Attributes:
      fields: The keys of the fields, such as ``event.comment``.
      newest: The number of newest events of a history whose texts are encoded.
      width: The width of the vector of a text.
    """

    fields: Sequence[str] = ()
    newest: int = 0
    width: int = 0

    def in_row(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Returns an upper bound of the number of texts in a row, from the names of fields that its entries contain."""
        of_events = [key.partition(".")[2].encode() for key in self.fields if key.startswith("event.")]
        of_query = [key.partition(".")[2].encode() for key in self.fields if not key.startswith("event.")]
        named = _naming(inputs.get("event_fields"), of_events)
        return min(named, self.newest * len(of_events)) + min(_naming(inputs.get("context"), of_query), len(of_query))

    def numbers_in_row(self, inputs: Mapping[str, np.ndarray]) -> int:
        """Returns the number of values in the text vectors of a row.

        A field of events has a vector for each event that is read, even if the event has no text.
        """
        if "context" not in inputs:  # then the model reads no texts
            return 0
        of_events = sum(key.startswith("event.") for key in self.fields)
        # The model adds an empty column to each history.
        events = min(inputs["history"].shape[1] + 1 if "history" in inputs else 1, self.newest)
        return self.width * (of_events * events + len(self.fields) - of_events)


NO_TEXTS = TextFields()


def work_of(
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    catalogue: int | None,
    ranked: int = 0,
    texts: TextFields = NO_TEXTS,
) -> Work:
    """Estimates the work of a request.

    Args:
      signature: The signature.
      inputs: The result of ``Joining.checked``. Only the shapes, the values of numbers, the first column of
        ``label_weights`` and, if texts are encoded, the fields are read.
      catalogue: The number of items of a model exported by tfllmrec; ``None`` for any other model.
      ranked: The number of items that the signature orders by the ranking model.
      texts: The fields whose texts the model encodes.
    """
    rows = 1
    for name, tensor in inputs.items():
        shape = signature.inputs[name].shape
        if tensor.ndim and (shape is None or shape[0] is None):
            rows = max(rows, len(tensor))
    if catalogue is None:
        return Work(rows)
    width = {name: tensor.shape[1] if tensor.ndim > 1 else 1 for name, tensor in inputs.items()}
    ids = sum(width.get(name, 0) for name in ("history", "exclude", "allow", "categories", "items", "label_weights"))
    events = min(width.get("history", 0), LONGEST_HISTORY)
    candidates, tokens = width.get("items", 0), width.get("input_word_ids", 0)
    pinned = max(width.get("pinned", 0) - 1, 0)  # clients that pin nothing send a column of padding
    weighed = _weighed(inputs["label_weights"]) if "label_weights" in inputs else 0
    ruled = pinned or any(np.any(inputs[name] > 0) for name in ("category_cap", "tail_share") if name in inputs)
    lists = "k" in inputs or "scores" in signature.outputs
    cells = (
        _ID * ids
        + _EVENT * events
        + _ENTRY * width.get("context", 0)
        + _EVENT_FIELDS * width.get("event_fields", 0)
        + (_CANDIDATE + events) * (candidates + min(ranked, catalogue))
        + _TEXT * (int("text" in inputs) + texts.in_row(inputs))
        + _NUMBER * texts.numbers_in_row(inputs)
        + (_TOKEN + _TOKEN_PAIR * tokens) * tokens
        + _DIVERSE * bool("diversity" in inputs and np.any(inputs["diversity"] > 0))
        + _RULED * bool(ruled)
        # The contribution of each event to each part of a reason is kept.
        + (_CANDIDATE + 5 * events) * _explained(inputs)
        # Pinned items are compared with each other.
        + (_ID + _PINNED + pinned) * pinned
        + _LABELS * min(ranked, catalogue) * weighed
        + _LABELS * min(_RECOMMENDED, catalogue) * ("labels" in signature.outputs)
        # The items of each category and of each weighed label are looked up for each mention; and pinned items are
        # looked up among all items that may be listed.
        + catalogue * (lists + width.get("categories", 0) + weighed) * (1 + bool(pinned))
    )
    return Work(rows, cells, max(candidates, _listed(signature, inputs, catalogue), _fixed(signature)))


def check_rows(inputs: Mapping[str, np.ndarray]) -> None:
    """Refuses inputs of a model exported by tfllmrec that do not fit together.

    Raises:
      RequestError: INVALID_ARGUMENT if two inputs differ in the number of rows, or if there are more ratings or fields
        of events than entries of the history.
    """
    rows = {name: len(tensor) for name, tensor in inputs.items() if tensor.ndim}
    first = min(rows, key=lambda name: (name != "history", name), default="")
    for name in sorted(rows):
        if rows[name] != rows[first]:
            raise invalid(
                f"{name} has {rows[name]} rows, {first} {rows[first]}: expected one row for each query in every input"
            )
    columns = {name: tensor.shape[1] for name, tensor in inputs.items() if tensor.ndim > 1}
    for name, one in (("ratings", "rating"), ("event_fields", "text of fields")):
        if columns.get(name, 0) > columns.get("history", 0):
            raise invalid(
                f"{name} has {columns[name]} columns, history {columns.get('history', 0)}: expected at most one {one} "
                "for each entry of the history"
            )


def _explained(inputs: Mapping[str, np.ndarray]) -> int:
    """Returns the largest number of items of a list that get a reason."""
    wanted = inputs.get("reasons", np.zeros(0, int))
    return min(max(int(wanted.max(initial=0)), 0), MOST_REASONS)


def _naming(entries: np.ndarray | None, names: Sequence[bytes]) -> int:
    """Returns the number of occurrences of ``names`` in entries string ``[B, C]``, in the row with the most.

    A name counts at most once for each entry.
    """
    if entries is None or entries.ndim < 2 or not names:
        return 0
    rows, columns = entries.strides
    few = entries[: 1 if not rows else None, : 1 if not columns else None]  # a stride of 0: one value represents all
    most = max((sum(name in cell for cell in row if cell for name in names) for row in few), default=0)
    return most * (1 if columns else entries.shape[1])


def _weighed(entries: np.ndarray) -> int:
    """Returns the number of columns of weighed labels.

    A first column of padding, which clients send if they weigh no label, does not count.
    """
    if entries.ndim < 2 or not entries.size:
        return 0
    first = entries[:, 0]
    if not first.strides[0]:  # one value represents all
        first = first[:1]
    return entries.shape[1] - int(not np.any(first != b""))


def _listed(signature: Signature, inputs: Mapping[str, np.ndarray], catalogue: int) -> int:
    """Returns the number of items or labels in a row of the answer."""
    if "k" not in inputs:
        return catalogue if "scores" in signature.outputs else 0
    k = inputs["k"]
    return min(max(int(k.max()), 0), catalogue) if k.size else 0


def _fixed(signature: Signature) -> int:
    """Returns the number of values in a row of the widest output with a fixed width."""
    widths = [1]
    for spec in signature.outputs.values():
        if spec.shape and None not in spec.shape[1:]:
            widths.append(int(np.prod(spec.shape[1:], dtype=np.int64)))  # type: ignore[arg-type]
    return max(widths)
