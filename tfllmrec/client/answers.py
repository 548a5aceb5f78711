"""The answers of a served model as Python objects, the same for in-process and remote calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..columns import ITEM, QUERY, RANK, REASON, SCORE, TITLE, USER

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class Answer(list[T]):
    """A list of results; recommendations come best first, fewer than ``k`` if fewer items remain.

    Attributes:
      unknown: The number of ids in the history that the catalogue does not have; they are ignored.
      unread: The number of ignored entries: those of ``context`` and ``event_fields`` that match no field of the model
        and no business rule in force, or whose value cannot be read or is unknown; labels of ``label_weights`` that the
        model does not have; and ids and categories of ``exclude``, ``allow``, ``pinned`` and ``categories`` that the
        catalogue does not have.
      request_id: The id of the request in the server's log; ``""`` if no server was asked.
    """

    def __init__(self, lines: Iterable[T] = (), unknown: int = 0, request_id: str = "", unread: int = 0) -> None:
        super().__init__(lines)
        self.unknown, self.unread = unknown, unread
        self.request_id = request_id


class Outputs(dict[str, Any]):
    """The outputs of a signature by name, as nested lists.

    Attributes:
      request_id: See :class:`Answer`.
    """

    def __init__(self, outputs: dict[str, Any], request_id: str) -> None:
        super().__init__(outputs)
        self.request_id = request_id


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
      item_id: The id in the catalogue.
      title: The title in the catalogue; the id if the item has none, or if the server does not send titles.
      score: Higher is better. Scores are comparable only within one answer.
      reason: A fact behind the score, such as ``similar text to The Abyss: science fiction``; ``""`` if there is none,
        or if no reasons were requested.
    """

    item_id: str
    title: str
    score: float
    reason: str = ""


def to_frame(answers: Sequence[Sequence[Recommendation]], users: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns a table of recommendations with one row for each, in the order of the answers. Requires pandas.

    Args:
      answers: The recommendations of each query, best first.
      users: The user id of each query; ``None`` if the queries have no users.

    Returns:
      A frame with the columns ``user_id`` or, without ``users``, ``query`` (the row number in ``answers``, from 0);
      ``rank`` (from 1), ``item_id``, ``title``, ``score`` (float32) and ``reason``. Its ``attrs`` hold ``unknown`` and
      ``unread`` (see :class:`Answer`), each as a list with one number for each query; 0 for a plain list.
    """
    import pandas as pd

    names = range(len(answers)) if users is None else users
    lines = [
        (name, rank, line.item_id, line.title, line.score, line.reason)
        for name, answer in zip(names, answers, strict=True)
        for rank, line in enumerate(answer, start=1)
    ]
    types = {QUERY if users is None else USER: "int64" if users is None else "str"}
    types |= {RANK: "int64", ITEM: "str", TITLE: "str", SCORE: "float32", REASON: "str"}
    frame = pd.DataFrame(lines, columns=list(types)).astype(types)
    frame.attrs = {name: [getattr(answer, name, 0) for answer in answers] for name in ("unknown", "unread")}
    return frame


@dataclass(frozen=True)
class Explanation:
    """The explanation of one item's score.

    Attributes:
      item_id: The explained item.
      terms: The contribution of each term to the score; all 0 for an item that the catalogue does not have.
      because: The history item that explains the terms; ``""`` if there is none.
    """

    item_id: str
    terms: dict[str, float]
    because: str


@dataclass(frozen=True)
class Interest:
    """One interest of a user.

    Attributes:
      label: The label in the catalogue's own words, such as a category.
      weight: The label's share among the listed labels, above 0.
      because: The history item that contributes most to the interest; ``""`` if no item of the history has the label.
      level: *broad* for a label of at least 2 % of the catalogue's items, otherwise *specific*; ``""`` from models that
        earlier versions exported.
      trend: *rising* if the label's share in the newest quarter of the events is at least 1.5 times its share in all
        events, *falling* if its share in all events is at least 1.5 times its share in the newest quarter, otherwise
        *steady*. Because a share of few events is unreliable, five events with the shares of the whole history are
        added to the newest quarter. ``""`` if no item of the history has the label, if the events have no order, or
        from models that earlier versions exported.
    """

    label: str
    weight: float
    because: str
    level: str = ""
    trend: str = ""


@dataclass(frozen=True)
class Ranked:
    """One of the items that were passed to ``rank``.

    Attributes:
      item_id: The id in the catalogue.
      title: See :class:`Recommendation`.
      click_probability: The probability that this is the user's next item, given that the next item is one of those
        passed. The probabilities of an answer sum to 1. It is 0 for an item that the catalogue does not have.
      rating: The expected rating; ``None`` if the model predicts no ratings, or the catalogue does not have the item.
    """

    item_id: str
    title: str
    click_probability: float
    rating: float | None = None


def ranked(
    item_ids: Sequence[str], titles: Sequence[str], probabilities: Sequence[float], ratings: Sequence[float] | None
) -> list[Ranked]:
    """Returns the answer of the ``rank`` signature, most likely items first; ties keep the order of the request."""
    marks = [None] * len(item_ids) if ratings is None else ratings
    lines = [
        Ranked(item, title, float(probability), None if mark is None or not probability else float(mark))
        for item, title, probability, mark in zip(item_ids, titles, probabilities, marks, strict=True)
    ]
    return sorted(lines, key=lambda line: -line.click_probability)


@dataclass(frozen=True)
class Refused:
    """A rejected event: its index in the batch, from 0, and the reason."""

    event: int
    reason: str


@dataclass(frozen=True)
class Receipt:
    """The outcome of a batch of events: each event was accepted, a duplicate, or refused.

    Attributes:
      accepted: The number of new events. They are on the log's disk.
      duplicates: The number of events that the log already had, or that occurred twice in the batch.
      refused: The invalid events, which are not in the log.
      late: The number of valid events that arrived more than an hour after they happened.
      skewed: The number of valid events whose time was more than five minutes ahead of the log's clock; they were
        given the log's time.
      request_id: See :class:`Answer`.
    """

    accepted: int
    duplicates: int
    refused: tuple[Refused, ...] = ()
    late: int = 0
    skewed: int = 0
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class ModelVersion:
    """A model version that the server knows.

    Attributes:
      version: The number of the version.
      state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
      error: The reason why the version could not be loaded; ``""`` if there was no error.
    """

    version: int
    state: str
    error: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """The type (such as ``DT_STRING``) and shape of an input or output; ``None`` stands for any size, or any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """The version that answers, and its signatures by name; for ``request_id`` see :class:`Answer`."""

    name: str
    version: int
    signatures: dict[str, Signature]
    request_id: str = field(default="", compare=False)
