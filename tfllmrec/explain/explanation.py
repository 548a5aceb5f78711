"""Why items have their scores for one user: terms, events, fields and words, which add up; and a page of them.

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
    from tfllmrec.models.words import TextOfItem
    from tfllmrec.runs.run import Run

#: Items that are explained at once.
ITEMS = 20
#: Events of a history that a page or a table names.
SHOWN = 10


@dataclass(frozen=True)
class EventPart:
    """An event of the history.

    Attributes:
      item_id, title, rating: of the event; the rating is ``None`` where there is none.
      added: by the names of the terms, what the event adds to each.
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
    """A word of the item's text.

    Attributes:
      word: as it stands there. start, end: where.
      left_out: by how much the meaning term falls without it.
      gradients: what it adds by integrated gradients; ``None`` where the encoder has none to give.
    """

    word: str
    start: int
    end: int
    left_out: float
    gradients: float | None


@dataclass(frozen=True)
class ItemExplained:
    """Why an item has its score: ``popularity`` and the terms add up to it, and each term is the sum of its parts.

    Attributes:
      item_id, title, score: of the item.
      reason: in words, see :mod:`tfllmrec.models.reasons`.
      terms: by their names, what each adds to the score.
      events: of the history, those that add most first.
      fields: what the fields of the request and its user add to the meaning term.
      anyone: by the names of the terms, the remainder, which does not depend on the user.
      popularity: log(1 + training events) without a history, else 0.
      text: the item's, as the encoder reads it. words: of the text, at most 64.
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
    reasons: Mapping[str, str] | None = None,
    tell: Tell = to_stderr,
) -> list[ItemExplained]:
    """Explains the scores of a few items.

    Args:
      run: complete. items: ids, at most :data:`ITEMS`.
      user: id of a user of the run's data; or history: ids, oldest first, with their ``ratings``. Unknown ids count as
        absent.
      reasons: by ids, as a list gave them; by default they are made of titles and categories.
      tell: called with a line for each step.

    Raises:
      DataError: too many items, or one that the run does not have; both or neither of user and history.
      ModelError: the run is not complete or damaged.
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
    query, _ = queries_of(model, users, histories, rated, (), dataset, None, None)
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
    """The texts of the items ``rows`` as the run's encoder reads them; none where the model reads no text."""
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
      asked: whom the scores are for. out: the file.

    Raises:
      ConfigError: jinja2 is not installed.
      WriteError: the disk is full, read-only or broken.
    """
    items = [
        {"item": item, "pieces": _pieces(item), "events": item.events[:SHOWN], "others": item.events[SHOWN:]}
        for item in explained
    ]
    write_text(out, html_page("explanation.html", items=items, asked=asked, version=__version__))
    return out


def _pieces(item: ItemExplained) -> list[tuple[str, float, float]]:
    """The text in pieces: each with what it adds (0 between words), and that as a share of the largest part."""
    most = max((abs(word.left_out) for word in item.words), default=0.0) or 1.0
    pieces, at = [], 0
    for word in item.words:
        pieces.append((item.text[at : word.start], 0.0, 0.0))
        pieces.append((word.word, word.left_out, round(word.left_out / most, 2)))
        at = word.end
    return [*pieces, (item.text[at:], 0.0, 0.0)]
