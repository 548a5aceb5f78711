"""Compares several runs by paired differences on their common test queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tfllmrec.errors import DataError
from tfllmrec.evaluation.figures import difference_intervals
from tfllmrec.evaluation.protocol import Result, paired_differences
from tfllmrec.evaluation.report import MIN_TARGETS, MODEL, baselines_of, shown_columns, targets_of
from tfllmrec.progress import show_progress
from tfllmrec.runs.run import Run
from tfllmrec.wording import distinct_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A row of a comparison: the name of the run and ``hybrid``, or, for a baseline, an empty string and its name.
Row = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs and baselines on the same test queries.

    Attributes:
      table: A row for each run, the first run first, then for each baseline, indexed by ``run`` and ``recommender``.
        The columns are indexed by the metric's label and ``value``, ``low`` and ``high`` (its 95 % interval),
        ``difference`` (to the first run), ``difference_low`` and ``difference_high`` (the paired 95 % interval over
        users). Empty columns, such as a difference in coverage, are left out.
      results: The results by row.
      targets: The number of targets behind each ranking metric of ``table``.
    """

    table: pd.DataFrame
    results: Mapping[Row, Result]
    targets: Mapping[str, int]

    def plot(self, labels: Sequence[str] | None = None) -> Figure:
        """Plots the differences to the first run with their intervals, a panel for each metric.

        Args:
          labels: The labels of the metrics; by default all that have differences.

        Raises:
          ConfigError: matplotlib is not installed.
          DataError: A metric has no differences, or there are no differences at all.
        """
        differences = self.differences
        if not any(differences.values()):
            raise DataError(
                f"There is no difference to plot: no metric has {MIN_TARGETS} test targets, or nothing is compared."
            )
        if unknown := [label for label in labels or () if label not in differences]:
            raise DataError(f"No differences in {', '.join(unknown)}: expected metrics among {', '.join(differences)}.")
        shown = {label: differences[label] for label in labels or differences}
        first = next(run for run, _ in self.results)
        return difference_intervals(shown, first)

    @property
    def labels(self) -> list[str]:
        """The metrics of :attr:`table`."""
        return list(dict.fromkeys(column[0] for column in self.table.columns.tolist()))

    @property
    def differences(self) -> dict[str, dict[str, tuple[float, float, float]]]:
        """The difference to the first run and its interval, by the metric's label and the name of a run or baseline."""
        columns = ["difference", "difference_low", "difference_high"]
        labels = [column[0] for column in self.table.columns.tolist() if column[1] == "difference"]
        return {
            label: {
                run or recommender: (float(a), float(b), float(c))
                for (run, recommender), (a, b, c) in zip(
                    self.table.index[1:], self.table[label][columns].to_numpy()[1:], strict=True
                )
            }
            for label in labels
        }

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.4f}".format)


def compare(runs: Sequence[Run | Path | str]) -> Comparison:
    """Compares complete runs on their test queries, which must be the same.

        comparison = tfllmrec.compare(["runs/shop", "runs/shop-tuned"])
        comparison.table["ndcg@10"]
        comparison.plot()

    If several runs have the same baseline, the figures of the first of these runs are used.

    Args:
      runs: Run folders, or opened runs; all others are compared with the first one.

    Raises:
      ModelError: A folder is not a complete run, or damaged.
      DataError: There are no runs, or they have different data, splits or strata.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    check_same_queries(opened)
    results: dict[Row, Result] = {
        (name, MODEL): run.results[MODEL] for name, run in zip(names_of(opened), opened, strict=True)
    }
    for run in opened:
        for name, result in baselines_of(run.results).items():
            results.setdefault(("", name), result)
    return comparison_of(results)


def comparison_of(results: Mapping[Row, Result]) -> Comparison:
    """Compares results on the same queries; all others are compared with the first one."""
    first = next(iter(results.values()))
    columns = [
        label for label in shown_columns({"": first}) if all(label in result.metrics for result in results.values())
    ]
    if not columns:
        raise DataError("The runs have no metric in common: fit them with the same evaluation.ks.")
    ranking = [label for label in columns if all(label in result.per_query for result in results.values())]
    rows = []
    with show_progress("Comparing", "results") as progress:
        for done, result in enumerate(results.values(), start=1):
            differences = paired_differences(result, first, ranking)
            row = {}
            for label in columns:
                row[label, "value"] = result.metrics[label]
                row[label, "low"], row[label, "high"] = result.intervals.get(label, (None, None))
                names = ("difference", "difference_low", "difference_high")
                for name, value in zip(names, differences.get(label, (None,) * 3), strict=True):
                    row[label, name] = value
            rows.append(row)
            progress(done, len(results))
    table = pd.DataFrame(
        [list(row.values()) for row in rows],
        pd.MultiIndex.from_tuples(list(results), names=["run", "recommender"]),
        pd.MultiIndex.from_tuples(list(rows[0])),
        np.float64,
    ).dropna(axis="columns", how="all")
    counts = {label: targets_of({"": first}, label) for label in ranking}
    return Comparison(table, results, {label: count for label, count in counts.items() if count is not None})


def check_same_queries(runs: Sequence[Run]) -> None:
    """Rejects runs whose test queries differ.

    Raises:
      DataError: There are no runs, or they have different data, splits or strata.
    """
    if not runs:
        raise DataError("Expected at least one run to compare, got none.")
    for run in runs:
        check_data(run)
    first = runs[0]
    for run in runs[1:]:
        both = f"{run.folder} and {first.folder}"
        if run.record["data_sha256"] != first.record["data_sha256"]:
            raise DataError(
                f"{both} were made of different data (fingerprints {run.record['data_sha256'][:12]} and "
                f"{first.record['data_sha256'][:12]}): compare runs of the same files, read with the same settings."
            )
        test, others = run.split.test, first.split.test
        if (
            run.split.kind != first.split.kind
            or not np.array_equal(test.user_ids, others.user_ids)
            or not np.array_equal(test.targets.offsets, others.targets.offsets)
            or not np.array_equal(test.targets.values, others.targets.values)
        ):
            raise DataError(
                f"{both} have different test queries ({_split(run)}; {_split(first)}): fit them with the same section "
                "'split', and with the same seed where it draws the split."
            )
        head, others_head = (one.split.strata(one.config.evaluation.head_share)["head"] for one in (run, first))
        if not np.array_equal(head, others_head):
            raise DataError(
                f"{both} count different items as head items, so their columns of head and tail do not compare: fit "
                "them with the same evaluation.head_share, split and seed."
            )


def check_data(run: Run) -> None:
    """Rejects a run whose data was changed after its fit.

    Raises:
      DataError: The data in the folder differs from that recorded by the fit.
    """
    if run.dataset.fingerprint != run.record["data_sha256"]:
        raise DataError(f"The data in {run.folder}/data has changed since the run: fit again.")


def names_of(runs: Sequence[Run]) -> list[str]:
    """Returns the names of runs, which are those of :func:`folders_of`, made unique.

    If the same folder is given twice, a number is added to the name. A name that equals that of a baseline is preceded
    by ``run``.
    """
    taken = {name for run in runs for name in run.metrics["results"]}
    names = [f"run {name}" if name in taken else name for name in folders_of(runs)]
    return [name if names.index(name) == at else f"{name} ({at + 1})" for at, name in enumerate(names)]


def folders_of(runs: Sequence[Run]) -> list[str]:
    """Returns the names of the run folders, made distinct."""
    return distinct_names([run.folder for run in runs])


def _split(run: Run) -> str:
    return f"{run.split.kind} split, {len(run.split.test):,} queries, seed {run.config.seed}"
