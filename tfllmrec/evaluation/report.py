"""A scoreboard of several results: on the terminal, in Markdown, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tfllmrec.errors import ModelError
from tfllmrec.evaluation import alarms
from tfllmrec.evaluation.protocol import Result, paired_difference


def scoreboard(results: Mapping[str, Result], title: str | None = None) -> Table:
    """One row a recommender (``hybrid`` first), the best of each column bold, half the 95 % interval behind ndcg.

    Columns: ndcg, recall, recall of each stratum, coverage; at 10, or at the largest k measured where 10 is missing.
    Fits 80 characters.
    """
    columns = _columns(results)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for label in columns:
        table.add_column(label.replace("/", "\n/"), justify="right", no_wrap=True)
    for name, cells in _rows(results, columns):
        table.add_row(name, *(Text(text, style="bold" if best else "") for text, best in cells))
    return table


def scoreboard_of(record: Mapping[str, Any]) -> Table:
    """The scoreboard of what a run's ``metrics.json`` holds."""
    results = {
        name: Result(figures, record["intervals"][name], {}, {}, []) for name, figures in record["results"].items()
    }
    data, split = record["data"], record["split"]
    return scoreboard(results, f"{data['name']}: {split['queries']:,} test queries, {split['kind']} split")


def as_markdown(results: Mapping[str, Result]) -> str:
    """The same scoreboard as a Markdown table, ending in a newline."""
    columns = _columns(results)
    lines = ["| |" + "|".join(f" {label} " for label in columns) + "|", "|---|" + "---:|" * len(columns)]
    for name, cells in _rows(results, columns):
        lines.append(f"| {name} |" + "|".join(f" **{text}** " if best else f" {text} " for text, best in cells) + "|")
    return "\n".join(lines) + "\n"


def as_json(results: Mapping[str, Result]) -> dict[str, dict[str, float | None]]:
    """Every metric of every recommender by its label; ``None`` where there is no value, never NaN."""
    return {name: dict(results[name].metrics) for name in _ordered(results)}


def alarm_lines(results: Mapping[str, Result], reference: str = "popularity") -> list[str]:
    """What a reader of the scoreboard must be told: collapse, who does not beat ``reference``, who beats the hybrid.

    The reference itself is left out (it gives everybody the same list, and should); so is the second kind where the
    reference was not measured. Of those that are ahead of the hybrid the best is named.
    """
    lines = []
    label = _columns(results)[0]
    for name in _ordered(results):
        if name == reference:
            continue
        result = results[name]
        lines += [f"{name}: {alarm}" for alarm in result.alarms]
        value = result.metrics[label]
        reference_value = results[reference].metrics[label] if reference in results else None
        if value is not None and reference_value is not None:
            _, low, high = paired_difference(result, results[reference], label)
            message = alarms.not_better(label, value, reference, reference_value, low, high)
            lines += [f"{name}: {message}"] if message else []
    hybrid = results.get("hybrid")
    others = {name: value for name, one in results.items() if (value := one.metrics[label]) is not None}
    best = max(others, key=others.__getitem__, default="hybrid")
    if hybrid and best != "hybrid" and (value := others.get("hybrid")) is not None:
        _, low, high = paired_difference(results[best], hybrid, label)
        message = alarms.behind(label, value, best, others[best], low, high)
        lines += [f"hybrid: {message}"] if message else []
    return lines


def _ordered(results: Mapping[str, Result]) -> list[str]:
    return sorted(results, key=lambda name: name != "hybrid")


def _columns(results: Mapping[str, Result]) -> list[str]:
    if not results:
        raise ModelError("Expected at least one result to report, got none.")
    labels = next(iter(results.values())).metrics
    ks = {int(label.removeprefix("ndcg@")) for label in labels if label.startswith("ndcg@") and "/" not in label}
    k = 10 if 10 in ks else max(ks)
    strata = [label for label in labels if label.startswith(f"recall@{k}/")]
    return [f"ndcg@{k}", f"recall@{k}", *strata, f"coverage@{k}"]


def _rows(results: Mapping[str, Result], columns: list[str]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Name and, for each column, the cell's text and whether it is the best as printed."""
    printed = {
        name: {label: "-" if value is None else f"{value:.4f}" for label in columns for value in [r.metrics.get(label)]}
        for name, r in results.items()
    }
    rows = []
    for name in _ordered(results):
        cells = []
        for label in columns:
            number = printed[name][label]
            best = max(row[label] for row in printed.values())  # "-" sorts before every digit
            interval = results[name].intervals.get(label) if label == columns[0] else None
            text = f"{number} ±{(interval[1] - interval[0]) / 2:.3f}" if interval else number
            cells.append((text, number == best and number not in ("-", "0.0000")))
        rows.append((name, cells))
    return rows
