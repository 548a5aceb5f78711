"""Formats a scoreboard of several results for the terminal, in Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from tfllmrec.errors import ModelError
from tfllmrec.evaluation import alarms
from tfllmrec.evaluation.protocol import (
    ALWAYS,
    RANKING_METRICS,
    WITHOUT_LENGTH,
    Result,
    paired_difference,
    shown_length,
)
from tfllmrec.wording import visible

MODEL = "hybrid"
"""The name of the model among its baselines."""
REFIT = "hybrid_refit"
"""The name of the model after its item-item weights were solved again with the validation events."""
MIN_TARGETS = 20
"""A ranking metric of fewer targets is not shown: a single hit would move it by 5 points or more."""

T = TypeVar("T")


def scoreboard(results: Mapping[str, Result], title: str | None = None) -> Table:
    """Returns a table with one row for each recommender (``hybrid`` first) and the numbers of targets as the last row.

    The best value of each column, not counting ``hybrid_refit``, is bold; ndcg is followed by half the width of its
    95 % interval. The columns are those of :func:`shown_columns`; columns with too few targets are named below the
    table. It fits 80 characters.
    """
    columns = shown_columns(results)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for label in columns:
        table.add_column(label.replace("/", "\n/"), justify="right", no_wrap=True)
    for name, cells in scoreboard_rows(results, columns):
        table.add_row(visible(name), *(Text(text, style="bold" if best else "") for text, best in cells))
    table.add_row("targets", *_target_cells(results, columns), style="dim")
    table.caption, table.caption_justify = hidden_columns(results), "left"
    return table


def scoreboard_of(record: Mapping[str, Any]) -> Table:
    """Returns the scoreboard of a run's ``metrics.json``."""
    data, split = record["data"], record["split"]
    return scoreboard(
        results_of(record), f"{visible(data['name'])}: {split['queries']:,} test queries, {split['kind']} split"
    )


def groups_table(key: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns a table of the hybrid and the best other recommender for each value of a field.

    Args:
      key: The key of the field, such as ``request.scene``.
      groups: The result of :func:`tfllmrec.evaluation.groups.figures_of_groups`, from ``groups`` of ``metrics.json``.
    """
    header, rows = group_rows(groups)
    table = Table(title=visible(key), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for label in header:
        table.add_column(label, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(visible, row))
    return table


def group_rows(groups: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the cells of :func:`groups_table`: a header without the first column, and a row for each value."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group["results"][MODEL]))
    rows = []
    for value, group in groups.items():
        figures = group["results"]
        others = {name: each[labels[0]] for name, each in baselines_of(figures).items() if labels[0] in each}
        best = max(others, key=others.__getitem__, default="")
        cells = [f"{figures[MODEL][label]:.4f}" if label in figures[MODEL] else "" for label in labels]
        rows.append([value or "(none)", f"{group['queries']:,}", *cells, f"{best} {others[best]:.4f}" if best else ""])
    return ["queries", *labels, f"best other, {labels[0]}"], rows


def results_of(record: Mapping[str, Any]) -> dict[str, Result]:
    """Returns the results in a run's ``metrics.json``, without the values per query and their users."""
    counts = {name: n for name, n in record["split"].items() if name.startswith(("queries", "targets"))}
    return {
        name: Result(
            figures, {label: (low, high) for label, (low, high) in record["intervals"][name].items()}, counts, {}, []
        )
        for name, figures in record["results"].items()
    }


def as_markdown(results: Mapping[str, Result], quoted: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Returns the same scoreboard as a Markdown table, ending in a newline.

    Args:
      results: As for :func:`scoreboard`. A value averaged over seeds is followed by :func:`between_seeds`.
      quoted: Further rows, such as published figures: name -> label -> value. Cells without a value stay empty.
    """
    columns = shown_columns(results)
    rows = []
    for name, cells in scoreboard_rows(results, columns):
        seeds = [between_seeds(results[name], label) for label in columns]
        marked = [f"**{text}**" if best else text for text, best in cells]
        rows.append([name, *(text + between for text, between in zip(marked, seeds, strict=True))])
    for name, figures in (quoted or {}).items():
        rows.append([name, *(f"{figures[label]:.4f}" if label in figures else "" for label in columns)])
    rows.append(["targets", *_target_cells(results, columns)])
    hidden = hidden_columns(results)
    return "\n".join([*markdown_table(["", *columns], rows), *(["", hidden] if hidden else []), ""])


def between_seeds(result: Result, label: str) -> str:
    """Returns `` (LOWEST to HIGHEST)`` over the seeds of an averaged value; empty if all seeds have the same value."""
    lowest, highest = (f"{figure:.4f}" for figure in result.spread.get(label, (0.0, 0.0)))
    return "" if lowest == highest else f" ({lowest} to {highest})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table; its first column is aligned left, the others right."""
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in [header, *rows]]
    return [lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]]


def as_json(results: Mapping[str, Result]) -> dict[str, dict[str, float | None]]:
    """Returns every metric of every recommender by its label; ``None`` if there is no value, never NaN."""
    return {name: dict(result.metrics) for name, result in model_first(results).items()}


def alarm_lines(results: Mapping[str, Result], reference: str = "popularity") -> list[str]:
    """Returns warnings about the hybrid: a collapse, no lead over ``reference``, or a simpler recommender ahead.

    The hybrid is compared with every baseline. Of those ahead beyond chance (paired 95 % interval above zero) the
    best one is named. Other recommenders are not checked for collapse: popularity should give every user the same list.
    Without a hybrid there is nothing to warn about.
    """
    label = f"ndcg@{list_length(results)}"
    hybrid = results.get(MODEL)
    if hybrid is None:
        return []
    messages: list[str | None] = [*hybrid.alarms]
    value = hybrid.metrics[label]
    others = {name: other for name, one in baselines_of(results).items() if (other := one.metrics[label]) is not None}
    if value is not None:
        if reference in others:
            _, low, high = paired_difference(hybrid, results[reference], label)
            messages.append(alarms.not_better(label, value, reference, others[reference], low, high))
        higher = sorted((name for name in others if others[name] > value), key=others.__getitem__, reverse=True)
        ahead = (
            alarms.behind(label, value, name, others[name], *paired_difference(results[name], hybrid, label)[1:])
            for name in higher
        )
        messages.append(next(filter(None, ahead), None))
    return [f"hybrid: {message}" for message in messages if message]


def shown_columns(results: Mapping[str, Result]) -> list[str]:
    """Returns the labels of the scoreboard: ndcg, recall, recall of each stratum, further measured metrics, coverage.

    The metrics are at :func:`list_length`. Ranking metrics of fewer than :data:`MIN_TARGETS` targets are left out;
    those with an unknown number of targets are kept.
    """
    return [label for label in _columns(results) if label not in _too_few(results)]


def hidden_columns(results: Mapping[str, Result]) -> str | None:
    """Names the columns that :func:`shown_columns` leaves out, with their targets; ``None`` if it shows all."""
    too_few = _too_few(results)
    named = ", ".join(f"{label} ({count})" for label, count in too_few.items())
    return f"Not shown, fewer than {MIN_TARGETS} targets: {named}" if too_few else None


def targets_of(results: Mapping[str, Result], label: str) -> int | None:
    """Returns the number of targets of a ranking metric; ``None`` for other metrics, and if it is not known."""
    name, _, stratum = label.partition("/")
    if name.partition("@")[0] not in (*RANKING_METRICS, *WITHOUT_LENGTH):
        return None
    return next(iter(results.values())).counts.get(f"targets/{stratum}" if stratum else "targets")


def list_length(results: Mapping[str, Result]) -> int:
    """Returns the length of the lists whose metrics are shown: 10, or the largest measured one if 10 is missing."""
    if not results:
        raise ModelError("Expected at least one result to report, got none.")
    labels = next(iter(results.values())).metrics
    ks = {int(label.removeprefix("ndcg@")) for label in labels if label.startswith("ndcg@") and "/" not in label}
    return shown_length(ks)


def scoreboard_rows(results: Mapping[str, Result], columns: Sequence[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Returns for each recommender its name and, for each column, the text and whether it is the best printed value.

    ``hybrid_refit`` is never the best, because it has learned from more events than the others.
    """
    printed = {
        name: {label: "-" if value is None else f"{value:.4f}" for label in columns for value in [r.metrics.get(label)]}
        for name, r in results.items()
    }
    rows = []
    for name in model_first(results):
        cells = []
        for label in columns:
            number = printed[name][label]
            # "-" sorts before every digit. The refit model has learned from more events than the others.
            best = max((row[label] for other, row in printed.items() if other != REFIT), default="-")
            interval = results[name].intervals.get(label) if label == columns[0] else None
            text = f"{number} ±{(interval[1] - interval[0]) / 2:.3f}" if interval else number
            cells.append((text, name != REFIT and number == best and number not in ("-", "0.0000")))
        rows.append((name, cells))
    return rows


def model_first(results: Mapping[str, Result]) -> dict[str, Result]:
    """The results with those of the model, if there are any, before all others."""
    return dict(sorted(results.items(), key=lambda of: (of[0] != MODEL, of[0] != REFIT)))


def baselines_of(results: Mapping[str, T]) -> dict[str, T]:
    """The entries of the recommenders that are not the model."""
    return {name: result for name, result in results.items() if name not in (MODEL, REFIT)}


def exported_of(results: Mapping[str, T]) -> T:
    """The entry of the model as it is exported; that of the fitted model where there is no other."""
    return results[REFIT] if REFIT in results else results[MODEL]


def _too_few(results: Mapping[str, Result]) -> dict[str, int]:
    counts = {label: targets_of(results, label) for label in _columns(results)}
    return {label: count for label, count in counts.items() if count is not None and count < MIN_TARGETS}


def _target_cells(results: Mapping[str, Result], columns: list[str]) -> list[str]:
    counts = [targets_of(results, label) for label in columns]
    return ["" if count is None else f"{count:,}" for count in counts]


def _columns(results: Mapping[str, Result]) -> list[str]:
    k = list_length(results)
    strata = [label for label in next(iter(results.values())).metrics if label.startswith(f"recall@{k}/")]
    asked = [f"{name}@{k}" for name in RANKING_METRICS if name not in ALWAYS] + list(WITHOUT_LENGTH)
    further = [label for label in asked if label in next(iter(results.values())).metrics]
    return [f"ndcg@{k}", f"recall@{k}", *strata, *further, f"coverage@{k}"]
