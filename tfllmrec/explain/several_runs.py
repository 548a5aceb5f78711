"""The sections of the report of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tfllmrec.config import settings_by_key
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.report import MIN_TARGETS, MODEL, hidden_columns
from tfllmrec.explain.compare import Comparison, folders_of, names_of
from tfllmrec.explain.epochs import epochs_of
from tfllmrec.explain.sections import (
    CLAIM_TARGETS,
    SETTINGS,
    SIGNIFICANT,
    Section,
    Table,
    add_data,
    count,
    fit_again,
    interval,
    provenance,
    score_rows,
    without_folders,
)
from tfllmrec.runs.run import Run


def headline_of_runs(comparison: Comparison) -> str:
    """Says which of the other runs are better or worse than the first one, and whether that is significant at 5 %."""
    first, *others = [run for run, recommender in comparison.results if recommender == MODEL]
    if not comparison.differences:
        return f"The runs have fewer than {MIN_TARGETS} test targets, which are too few to compare them."
    label, rows = next(iter(comparison.differences.items()))
    parts = []
    for run in others:
        difference, low, high = rows[run]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not significantly different"
        parts.append(f"{run} is {verdict} ({difference:+.4f}, {low:+.4f} to {high:+.4f})")
    few = comparison.targets.get(label, 0)
    hint = f" Fewer than {CLAIM_TARGETS} targets make these hints, not claims." if few < CLAIM_TARGETS else ""
    return (
        f"Compared with {first} in {label}, statistically significant at 5 % or not: {'; '.join(parts)}. The intervals "
        f"cover users, not how far seeds lie apart.{hint}"
    )


def sections_of_runs(runs: Sequence[Run], comparison: Comparison) -> list[Section]:
    """Returns the sections of a report of several runs; nothing is computed with a model."""
    names, results = names_of(runs), {run or name: result for (run, name), result in comparison.results.items()}
    side_by_side = Section("Side by side")
    side_by_side.table(
        Table(
            ["", *comparison.labels],
            [
                *score_rows(results, comparison.labels),
                ["targets", *(count(comparison.targets.get(label)) for label in comparison.labels)],
            ],
            f"Runs first, then the baselines. ± is half the 95 % interval over users. {hidden_columns(results) or ''}",
        )
    )
    differences = Section(f"Differences to {names[0]}")
    if comparison.differences:
        differences.table(
            Table(
                ["", *comparison.differences],
                [
                    [name, *(interval(rows[name]) for rows in comparison.differences.values())]
                    for name in list(results)[1:]
                ],
                f"With paired 95 % intervals over users. {SIGNIFICANT}",
            )
        )
        others = {label: {name: rows[name] for name in names[1:]} for label, rows in comparison.differences.items()}
        caption = f"Differences to {names[0]}; filled where statistically significant at 5 %."
        differences.figure(figures.difference_intervals(others, names[0]), "differences", caption)
    training = Section("Training")
    epochs = [epochs_of(run, events=False) for run in runs]
    curves = {name: each.selection for name, each in zip(names, epochs, strict=True) if each.selection}
    if curves:
        figure = figures.training_curves(curves)
        training.figure(figure, "training", "The selection value on validation queries by epoch.")
    settings = Section("Settings that differ")
    settings.table(_different_settings(names, runs))
    chosen = Section("Chosen from the data")
    for name, run in zip(names, runs, strict=True):
        chosen.text(f"{name}:")
        chosen.items(run.record["chosen"])
    data = Section("Data and split")
    data.text("The same for all runs:")
    add_data(data, runs[0])
    reproduce = Section("How to reproduce")
    reproduce.code(*map(fit_again, dict.fromkeys(folders_of(runs))))
    facts = [[of[0][0], *(value for _, value in of)] for of in zip(*map(provenance, runs), strict=True)]
    differing = [row for row in facts if len(set(row[1:])) > 1]
    reproduce.table(Table(["", *names], differing, numbers=False))
    reproduce.text("The same for all runs:")
    reproduce.table(Table(["", ""], [row[:2] for row in facts if row not in differing], numbers=False))
    sections = (side_by_side, differences, training, settings, chosen, data, reproduce)
    return [section for section in sections if section.parts]


def _different_settings(names: Sequence[str], runs: Sequence[Run]) -> Table:
    settings = [settings_by_key(run.config) for run in runs]
    different = [name for name in settings[0] if any(each[name] != settings[0][name] for each in settings)]
    rows = [[name, *(without_folders(each[name]) for each in settings)] for name in different]
    note = "" if rows else "All settings are the same."
    return Table(["setting", *names], rows, note, numbers=False).shortened(SETTINGS)
