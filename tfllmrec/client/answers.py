"""What a served model says, as Python values: the same whether it was asked in this process or over the network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..columns import ITEM, QUERY, RANK, REASON, SCORE, TITLE, USER

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


class Answer(list[T]):
    """The lines of an answer; recommendations come best first, fewer than ``k`` where fewer items remain.

    Attributes:
      unknown: how many ids of the request the catalogue does not have; they counted as absent.
      unread: how many entries of ``context`` and ``event_fields`` no field of the model takes, or could not be read;
        labels of ``label_weights`` that the model does not have are counted, too.
      request_id: what the server's log calls the request; ``""`` if no server was asked.
    """

    def __init__(self, lines: Iterable[T] = (), unknown: int = 0, request_id: str = "", unread: int = 0) -> None:
        super().__init__(lines)
        self.unknown, self.unread = unknown, unread
        self.request_id = request_id


class Outputs(dict[str, Any]):
    """The outputs of a signature by name, as nested lists.

    Attributes:
      request_id: as in :class:`Answer`.
    """

    def __init__(self, outputs: dict[str, Any], request_id: str) -> None:
        super().__init__(outputs)
        self.request_id = request_id


@dataclass(frozen=True)
class Recommendation:
    """One line of an answer.

    Attributes:
      item_id, title: the title is the id where the catalogue has none, or where the server does not send it.
      score: higher is better; comparable within one answer only.
      reason: a fact behind the score, such as ``similar text to The Abyss: science fiction``; ``""`` where there is
        none, or where reasons were not asked for.
    """

    item_id: str
    title: str
    score: float
    reason: str = ""


def to_frame(answers: Sequence[Sequence[Recommendation]], users: Sequence[str] | None = None) -> pd.DataFrame:
    """A table of recommendations: a row for each, in the order of the answers. Only this function needs pandas.

    Args:
      answers: the recommendations of each query, best first.
      users: the user id of each query; ``None`` if the queries have no users.

    Returns:
      Columns ``user_id``, or ``query`` (row number in ``answers``, from 0) without ``users``; ``rank`` (from 1),
      ``item_id``, ``title``, ``score`` (float32), ``reason``. ``attrs`` has ``unknown`` and ``unread``, as in
      :class:`Answer`, a number for each query; 0 for a plain list.
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
    """Why one item has its score.

    Attributes:
      terms: what each term adds to the score; all 0 for an item that the catalogue does not have.
      because: the history item behind the terms; ``""`` where there is none.
    """

    item_id: str
    terms: dict[str, float]
    because: str


@dataclass(frozen=True)
class Interest:
    """One interest of a user.

    Attributes:
      label: in the catalogue's own words, such as a category.
      weight: above 0: the label's share among the listed labels.
      because: the history item that adds the most to it; ``""`` if no item of the history has the label.
      level: *broad* for a label of at least 2 % of the catalogue's items, otherwise *specific*.
      trend: *rising* if the label's share of the newest quarter of the events is at least 1.5 times its share of all,
        *falling* if the latter is at least 1.5 times the former, otherwise *steady*. Five events with the shares of
        the whole history are added to the newest quarter, because a few events are unreliable. ``""`` if no item of the
        history has the label, or if the events have no order. Level and trend are ``""`` from models that earlier
        versions exported.
    """

    label: str
    weight: float
    because: str
    level: str = ""
    trend: str = ""


@dataclass(frozen=True)
class Ranked:
    """One of the items that were offered.

    Attributes:
      item_id, title: as in :class:`Recommendation`.
      click_probability: that this is the next item, given that one of those offered is; those of an answer sum
        to 1. It is 0 for an item that the catalogue does not have.
      rating: the expected one; ``None`` where the model predicts none, or the catalogue does not have the item.
    """

    item_id: str
    title: str
    click_probability: float
    rating: float | None = None


def ranked(
    item_ids: Sequence[str], titles: Sequence[str], probabilities: Sequence[float], ratings: Sequence[float] | None
) -> list[Ranked]:
    """The answer of the ``rank`` signature about ``item_ids``, most likely first; ties in the order of the request."""
    marks = [None] * len(item_ids) if ratings is None else ratings
    lines = [
        Ranked(item, title, float(probability), None if mark is None or not probability else float(mark))
        for item, title, probability, mark in zip(item_ids, titles, probabilities, marks, strict=True)
    ]
    return sorted(lines, key=lambda line: -line.click_probability)


@dataclass(frozen=True)
class Refused:
    """An event that was not taken: its place in the batch, from 0, and what is wrong with it."""

    event: int
    reason: str


@dataclass(frozen=True)
class Receipt:
    """What became of a batch of events: each was accepted, or is a duplicate, or was refused.

    Attributes:
      accepted: how many are new. They are on the log's disk.
      duplicates: how many the log had already, or came twice in the batch.
      refused: the invalid ones, which are not in the log.
      late: how many of the valid ones came more than an hour after they happened.
      skewed: how many of the valid ones were more than five minutes ahead of the log's clock, and got its time.
      request_id: as in :class:`Answer`.
    """

    accepted: int
    duplicates: int
    refused: tuple[Refused, ...] = ()
    late: int = 0
    skewed: int = 0
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class ModelVersion:
    """A version that the server knows.

    Attributes:
      state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
      error: why it could not be loaded; ``""`` where nothing went wrong.
    """

    version: int
    state: str
    error: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: ``DT_STRING`` and the like, and its shape; ``None`` is any size, or any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """What goes in and out of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class Metadata:
    """The version that answers, and what may be asked of it; ``request_id`` as in :class:`Answer`."""

    name: str
    version: int
    signatures: dict[str, Signature]
    request_id: str = field(default="", compare=False)
