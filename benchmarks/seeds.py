"""Averages the results of runs with several seeds, and makes tables of differences beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result, averaged, paired_difference, users_of
from tfllmrec.evaluation.report import between_seeds, hidden_columns, markdown_table, shown_columns, targets_of
from tfllmrec.explain.sections import CLAIM_TARGETS
from tfllmrec.runs.run import Run

#: Explains figures of several seeds; shown above each table with such figures.
SEEDS = (
    "Each user's values are averaged over the seeds first; intervals are those of a paired bootstrap over users. In "
    "brackets the lowest and the highest figure of a seed, where seeds differ."
)
ONE_SEED = "One seed: the intervals cover users only, not how far seeds lie apart."


MARKS = (
    "* where its paired 95 % interval over users excludes 0; (*) where it does so with fewer than 3 seeds or "
    "500 targets."
)
#: The fewest seeds for a claim, which also needs :data:`CLAIM_TARGETS`; a significant difference with fewer is a hint.
CLAIM_SEEDS = 3


def check_seeds(runs: Sequence[Run]) -> None:
    """Checks that runs are one experiment with several seeds.

    Raises:
      ModelError: Two runs have the same seed, other data or other test users.
    """
    seeds = [run.config.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ModelError(f"Expected runs with a seed each, got the seeds {seeds} in {_names(runs)}.")
    first = runs[0]
    for run in runs[1:]:
        if run.record["data_sha256"] != first.record["data_sha256"]:
            raise ModelError(f"Expected runs on the same data; {run.folder} has other data than {first.folder}.")
        if not np.array_equal(run.split.test.user_ids, first.split.test.user_ids):
            raise ModelError(
                f"Expected runs with the same test users; those of {run.folder} and {first.folder} differ, because the "
                f"seed draws them in a {run.split.kind} split."
            )


def averaged_runs(runs: Sequence[Run]) -> dict[str, Result]:
    """Returns the results of each recommender, averaged over the seeds of the runs.

    Raises:
      ModelError: See :func:`check_seeds`; or one of several runs has other baselines.
    """
    check_seeds(runs)
    for run in runs:
        if run.results.keys() != runs[0].results.keys():
            raise ModelError(f"Expected runs with the same baselines; {run.folder} has {', '.join(run.results)}.")
    return {name: averaged([run.results[name] for run in runs]) for name in runs[0].results}


def pooled(results: Sequence[Result], user_ids: Sequence[np.ndarray]) -> Result:
    """Pools the results of one recommender on the test users of each seed into one result on all of their queries.

    Args:
      results: The result of each seed, measured in the same way.
      user_ids: The user ids of each seed's queries; a user whom several seeds drew is resampled as one.
    """
    per_query = {label: np.concatenate([each.per_query[label] for each in results]) for label in results[0].per_query}
    known = {label: [value for each in results if (value := each.metrics[label]) is not None] for label in per_query}
    return Result(
        metrics={label: float(np.nanmean(values)) if known[label] else None for label, values in per_query.items()},
        intervals={},
        counts={name: sum(each.counts[name] for each in results) for name in results[0].counts},
        per_query=per_query,
        alarms=[],
        spread={label: (min(values), max(values)) for label, values in known.items() if values},
        users=users_of(np.concatenate(user_ids)),
    )


def differences(
    results: Mapping[str, Result], n_seeds: int, more: Mapping[str, Mapping[str, str]] | None = None
) -> list[str]:
    """Returns a Markdown table of ranking metrics; all rows but the first also show the difference to the first one.

    A ``*`` marks a difference whose paired 95 % interval excludes zero, with at least :data:`CLAIM_SEEDS` seeds and
    :data:`CLAIM_TARGETS` targets; ``(*)`` marks one with fewer. Figures of several seeds show their spread.

    Args:
      results: By the name of the row, all on the same queries.
      n_seeds: How many seeds they are averaged over.
      more: Cells of further columns, by the name of the row and the label of the column.
    """
    name_of_whole, whole = next(iter(results.items()))
    columns = [label for label in shown_columns(results) if targets_of(results, label) is not None]
    further = list(next(iter(more.values()))) if more else []
    rows = []
    for name, result in results.items():
        cells = []
        for label in columns:
            difference, low, high = paired_difference(result, whole, label)
            claim = n_seeds >= CLAIM_SEEDS and (targets_of(results, label) or 0) >= CLAIM_TARGETS
            mark = "" if low <= 0 <= high else "*" if claim else "(*)"
            change = "" if name == name_of_whole else f" ({difference:+.4f}{mark})"
            cells.append(f"{result.metrics[label]:.4f}{change}{between_seeds(result, label)}")
        rows.append([name, *cells, *(more[name][label] for label in further)] if more else [name, *cells])
    rows.append(["targets", *(f"{targets_of(results, label):,}" for label in columns), *[""] * len(further)])
    hidden = hidden_columns(results)
    return [*markdown_table(["", *columns, *further], rows), *(["", hidden] if hidden else [])]


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.folder) for run in runs)
