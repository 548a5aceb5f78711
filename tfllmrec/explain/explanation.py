"""Explains scores for one user as sums over terms, events, fields and words, and writes the explanations as a page.

from tfllmrec.explain.explanation import explain
from tfllmrec.runs.run import Run

for item in explain(Run.open("runs/shop"), ["B02"], history=["A17", "C99"]):
    print(item.title, item.score, item.terms)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllmrec.durable import write_text
from tfllmrec.errors import DataError, ModelError
from tfllmrec.explain.pages import html_page
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.version import __version__

if TYPE_CHECKING:
    from tfllmrec.client.fields import Fields
    from tfllmrec.models.words import TextOfItem
    from tfllmrec.runs.run import Run

#: The maximum number of items explained in one call.
ITEMS = 20
#: The number of events of a history that a page shows at first.
SHOWN = 10


@dataclass(frozen=True)
class EventPart:
    """The contribution of an event of the history.

    Attributes:
      item_id: The item of the event.
      title: Its title.
      rating: The rating of the event; ``None`` if there is none.
      added: The contribution of the event to each term, by the name of the term.
    """

    item_id: str
    title: str
    rating: float | None
    added: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.added.values())


@dataclass(frozen=True)
class WordPart:
    """The contribution of a word of the item's text.

    Attributes:
      word: The word as written in the text.
      start: The index of its first character.
      end: The index after its last character.
      left_out: The decrease of the meaning term if the word is left out.
      gradients: The contribution by integrated gradients; ``None`` if the encoder does not support them.
    """

    word: str
    start: int
    end: int
    left_out: float
    gradients: float | None


@dataclass(frozen=True)
class ItemExplained:
    """The explanation of a score: ``popularity`` and the terms sum to it, and each term is the sum of its parts.

    Attributes:
      item_id: The item.
      title: Its title.
      score: Its score.
      reason: The reason in words; see :mod:`tfllmrec.models.reasons`.
      terms: The contribution of each term to the score, by name.
      events: The contributions of the events of the history, the largest first.
      fields: The contribution of the fields of the request and its user to the meaning term.
      anyone: The remainder of each term, which does not depend on the user, by name.
      popularity: log(1 + training events) without a history, else 0.
      text: The item's text as the encoder reads it.
      words: The contributions of the words of the text, at most 64.
    """

    item_id: str
    title: str
    score: float
    reason: str
    terms: dict[str, float]
    events: list[EventPart]
    fields: float
    anyone: dict[str, float]
    popularity: float
    text: str
    words: list[WordPart]


def explain(
    run: Run,
    items: Sequence[str],
    user: str | None = None,
    history: Sequence[str] | None = None,
    ratings: Sequence[float | None] | None = None,
    event_fields: Sequence[Fields | None] | None = None,
    context: Fields | None = None,
    reasons: Mapping[str, str] | None = None,
    tell: Tell = to_stderr,
) -> list[ItemExplained]:
    """Explains the scores of a few items.

    Args:
      run: A complete run.
      items: Item ids, at most :data:`ITEMS`.
      user: The id of a user of the run's data, as an alternative to ``history``.
      history: Item ids, oldest first, as an alternative to ``user``. Unknown ids are ignored.
      ratings: The ratings of the history.
      event_fields: The fields of each event of the history.
      context: The fields of the request and its user, by name. With ``user``, the other fields come from the data.
      reasons: The reasons by item id, as shown in a list; by default they are derived from titles and categories.
      tell: Called with a line for each step.

    Raises:
      DataError: There are too many items, or one that the run does not have; or both or neither of ``user`` and
        ``history`` are given.
      ModelError: The run is not complete or damaged.
    """
    if not 1 <= len(items) <= ITEMS:
        raise DataError(f"Expected 1 to {ITEMS} items to explain, found {len(items)}. Explain fewer at once.")
    import numpy as np

    from tfllmrec.models.answers import no_such_item, queries_of, reasons_of

    model, dataset = run.load_model(refit=True), run.dataset
    index = {item: row for row, item in enumerate(model.item_ids)}
    for item in items:
        if item not in index:
            raise no_such_item(item, index)
    histories = None if history is None else [history]
    rated = None if ratings is None else [ratings]
    users = None if user is None else [user]
    fields = None if event_fields is None else [event_fields]
    query, _ = queries_of(model, users, histories, rated, (), dataset, None if context is None else [context], fields)
    rows = np.array([index[item] for item in items])
    parts = model.contributions(query, rows)
    if reasons is None:
        reasons = dict(zip(items, reasons_of(model, query, rows[np.newaxis], dataset)[0], strict=True))
    titles = dataset.titles
    newest = slice(len(query.history.values) - len(parts.events), None)
    events, marks = query.history.values[newest], query.ratings.values[newest]
    texts = _texts(run, rows, model, query, tell)

    def by_term(values: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(model.term_names, values, strict=True)}

    told = []
    for place, item in enumerate(items):
        of_events = [
            EventPart(
                str(model.item_ids[event]),
                titles[model.item_ids[event]],
                float(mark) if np.isfinite(mark) else None,
                by_term(parts.events[number, place]),
            )
            for number, (event, mark) in enumerate(zip(events, marks, strict=True))
        ]
        told.append(
            ItemExplained(
                item,
                titles[item],
                float(parts.scores[place]),
                reasons.get(item, ""),
                by_term(parts.terms[place]),
                sorted(of_events, key=lambda part: -abs(part.total)),
                float(parts.fields[place]),
                by_term(parts.anyone[place]),
                float(parts.popularity[place]),
                texts[place].text if texts else "",
                _words(texts[place], tell) if texts else [],
            )
        )
    return told


def _texts(run: Run, rows: Any, model: Any, query: Any, tell: Tell) -> list[TextOfItem]:
    """Returns the texts of the items ``rows`` as the run's encoder reads them; none if the model reads no text."""
    import numpy as np

    from tfllmrec.models.words import TextOfItem
    from tfllmrec.text.template import ItemTemplate

    catalogue = np.asarray(run.text)
    if "meaning" not in model.config.terms or not np.any(catalogue):
        return []
    encoder = run.text_encoder(tell)
    items = run.split.items
    read = ItemTemplate.from_items(items, run.config.text.template).texts(items.iloc[rows])
    return [TextOfItem(model, query, int(row), text, encoder, catalogue) for row, text in zip(rows, read, strict=True)]


def _words(text: TextOfItem, tell: Tell) -> list[WordPart]:
    from tfllmrec.assets import cache_folder
    from tfllmrec.text.store import VectorStore

    with show_progress("Reading texts without a word", "texts") as progress:
        found = text.left_out(VectorStore(cache_folder() / "vectors"), progress)
    gradients: Sequence[float | None] = [None] * len(found.spans)
    try:
        gradients = [float(value) for value in text.by_gradients().added]
    except ModelError as error:
        tell(f"words: only by leave-one-out: {error}")
    return [
        WordPart(found.text[start:end], start, end, float(left_out), gradient)
        for (start, end), left_out, gradient in zip(found.spans, found.added, gradients, strict=True)
    ]


def write_explanation(explained: Sequence[ItemExplained], asked: str, out: Path) -> Path:
    """Writes a page: one HTML file that needs neither JavaScript nor other files.

    Args:
      explained: The explained items.
      asked: Describes whom the scores are for.
      out: The file.

    Raises:
      ConfigError: jinja2 is not installed.
      WriteError: The disk is full, read-only or broken.
    """
    items = [
        {"item": item, "pieces": _pieces(item), "events": item.events[:SHOWN], "others": item.events[SHOWN:]}
        for item in explained
    ]
    write_text(out, html_page("explanation.html", items=items, asked=asked, version=__version__))
    return out


def _pieces(item: ItemExplained) -> list[tuple[str, float, float]]:
    """Splits the text into pieces, each with its contribution (0 between words) and its share of the largest one."""
    most = max((abs(word.left_out) for word in item.words), default=0.0) or 1.0
    pieces, at = [], 0
    for word in item.words:
        pieces.append((item.text[at : word.start], 0.0, 0.0))
        pieces.append((word.word, word.left_out, round(word.left_out / most, 2)))
        at = word.end
    return [*pieces, (item.text[at:], 0.0, 0.0)]
