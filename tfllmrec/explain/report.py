"""The report of a run, or of several side by side: one HTML file that needs neither JavaScript nor other files.

Whatever a run folder has recorded is read from there. Only the examples, the exposure, the gate and the calibration of
a single run are computed, with its model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.columns import ITEM, TITLE
from tfllmrec.config import ExperimentConfig
from tfllmrec.data.findings import CleaningReport
from tfllmrec.data.queries import Queries
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.durable import write_text
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import (
    MIN_TARGETS,
    hidden_columns,
    list_length,
    scoreboard_rows,
    shown_columns,
    targets_of,
)
from tfllmrec.evaluation.result_files import load_result
from tfllmrec.explain.compare import MODEL, Comparison, check_data, compare, comparison_of, names_of
from tfllmrec.explain.epochs import Epochs, epochs_of
from tfllmrec.explain.lists import EXAMPLES, Example, draw_examples, examples_of, exposure_of
from tfllmrec.explain.pages import as_is, html_page, require_jinja
from tfllmrec.progress import Tell, show_progress, to_stderr
from tfllmrec.runs.run import ABLATION, INTERESTS, Run
from tfllmrec.version import __version__
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tfllmrec.models.hybrid import Hybrid

#: File names of the report of one run and of several.
REPORT, COMPARISON = "report.html", "comparison.html"
#: Runs in a report, at most.
RUNS = 8
#: Test queries whose lists are computed for the exposure, at most.
EXPOSED = 20_000
#: Rows of a list or table whose length depends on the data, at most.
ROWS = 30
#: The newest items of a history in an example, and targets of it.
NEWEST, TARGETS = 8, 3
#: Letters of a title, at most.
LETTERS = 90
#: Fewer targets than these make no claim, only a hint.
CLAIM_TARGETS = 500


@dataclass(frozen=True)
class Table:
    """A table of a page: the first cell of each row names it; ``numbers``: the others are short, and not broken."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    numbers: bool = True


@dataclass
class Section:
    """A section of a page, with its parts in the order in which they appear."""

    title: str
    parts: list[tuple[str, Any]] = field(default_factory=list)

    def text(self, *lines: str) -> None:
        self.parts += [("text", line) for line in lines]

    def items(self, lines: Sequence[str]) -> None:
        """A list; of a long one the first :data:`ROWS`."""
        shown = [*lines[:ROWS], *([f"and {len(lines) - ROWS:,} more"] if len(lines) > ROWS else [])]
        if shown:
            self.parts.append(("items", shown))

    def code(self, *lines: str) -> None:
        self.parts.append(("code", list(lines)))

    def table(self, table: Table) -> None:
        self.parts.append(("table", table))

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        self.parts.append(("figure", {"svg": as_is(figures.svg(figure, name, caption)), "caption": caption}))

    def examples(self, title: str, examples: Sequence[Mapping[str, Any]]) -> None:
        self.parts.append(("examples", {"title": title, "examples": examples}))


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
      path: of the HTML file. headline: its first sentence. comparison: of the runs, or of a run with its baselines.
    """

    path: Path
    headline: str
    comparison: Comparison

    def differences(self) -> dict[str, dict[str, dict[str, float]]]:
        """:attr:`Comparison.differences` as JSON values."""
        names = ("difference", "low", "high")
        return {
            label: {name: dict(zip(names, found, strict=True)) for name, found in rows.items()}
            for label, rows in self.comparison.differences.items()
        }


def write_report(runs: Sequence[Path | str], out: Path | None = None, tell: Tell = to_stderr) -> Report:
    """Writes the report of a run, or of several runs side by side.

    Args:
      runs: complete run folders; all others are compared with the first one.
      out: the HTML file; by default ``report.html`` in the run folder, of several runs ``comparison.html`` in the
        first one.
      tell: called with a line for each step.

    Raises:
      ConfigError: no run, or too many; matplotlib or jinja2 is not installed.
      DataError: the runs do not have the same data and test queries, or the data has changed since the fit.
      ModelError: a folder is no complete run, or damaged.
      WriteError: the disk is full, read-only or broken.
    """
    if not 1 <= len(runs) <= RUNS:
        raise ConfigError(f"Expected 1 to {RUNS} runs for a report, got {len(runs)}.")
    require_jinja()
    opened = [Run.open(run) for run in runs]
    if len(opened) == 1:
        title, comparison = opened[0].metrics["data"]["name"], against_baselines(opened[0])
        headline, sections = headline_of(opened[0], comparison), sections_of_run(opened[0], comparison, tell)
        alarms = opened[0].metrics.get("alarms", [])
    else:
        comparison = compare(opened)
        title = f"{opened[0].metrics['data']['name']}: {len(opened)} runs"
        headline, sections, alarms = headline_of_runs(comparison), sections_of_runs(opened, comparison), []
    page = html_page("report.html", title=title, headline=headline, alarms=alarms, sections=sections, version=__version__)
    path = out or opened[0].folder / (REPORT if len(opened) == 1 else COMPARISON)
    write_text(path, page)
    return Report(path, headline, comparison)


# One run --------------------------------------------------------------------------------------------------------------


def against_baselines(run: Run) -> Comparison:
    """A run beside its baselines."""
    return comparison_of(
        {(run.folder.name if name == MODEL else "", name): result for name, result in _model_first(run.results).items()}
    )


def headline_of(run: Run, comparison: Comparison) -> str:
    """The result of a run in a few sentences: how good the model is, and whether it beats the best baseline."""
    results = run.results
    k = list_length(results)
    model, counts = results[MODEL], results[MODEL].counts
    label = f"ndcg@{k}"
    found = model.metrics[f"recall@{k}"]
    if found is None or model.metrics[label] is None:
        return "No test query has a target, so nothing was measured."
    share = f"finds {found:.1%} of the items that came next" + f" among its {k} best of {run.dataset.n_items:,} items"
    said = f"The model {share} ({counts['targets']:,} test targets; {label} {_figure_of(model, label)})."
    others = {name: result.metrics[label] or 0.0 for name, result in results.items() if name != MODEL}
    if not others:
        return said
    best = max(others, key=others.__getitem__)
    difference, low, high = comparison.differences[label][best]
    verdict = "larger than chance" if low > 0 or high < 0 else "within chance"
    lead = "ahead of" if difference < 0 else "behind"
    few = f"; fewer than {CLAIM_TARGETS} targets make this a hint, not a claim" * (counts["targets"] < CLAIM_TARGETS)
    return (
        f"{said} It is {lead} the best baseline, {best}, by {abs(difference):.4f} in {label}: {verdict} (paired 95 % "
        f"interval {-high:+.4f} to {-low:+.4f}{few})."
    )


def sections_of_run(run: Run, comparison: Comparison, tell: Tell) -> list[Section]:
    """The sections of the report of one run, in the order in which a reader needs them."""
    check_data(run)
    results = _model_first(run.results)
    k = list_length(results)
    tell("loading the model")
    hybrid = run.load_model()
    return [
        section
        for section in (
            _scoreboard(results, comparison),
            _strata(run, results, k),
            _training(run, epochs_of(run), hybrid),
            _chosen(run),
            _examples(run, hybrid, k),
            _exposure(run, hybrid, results, k),
            _ablation(run),
            _ranking(run, hybrid, tell),
            _interests(run, hybrid, tell),
            _data(run),
            _reproduce(run),
        )
        if section.parts
    ]


def _scoreboard(results: Mapping[str, Result], comparison: Comparison) -> Section:
    section = Section("Scoreboard")
    columns = shown_columns(results)
    k = list_length(results)
    section.text(
        "Whole catalogue, what the user has already is left out, ties count at their expected rank. head: the items "
        "with the most training events; tail: all others; cold: those without any. ± is half the 95 % interval over "
        "users. All recommenders were tuned on the same validation queries."
    )
    section.table(
        Table(
            ["", *columns],
            [*_score_rows(results, columns), ["targets", *(_count(targets_of(results, c)) for c in columns)]],
            hidden_columns(results) or "",
        )
    )
    leads = {
        label: rows for label, rows in comparison.differences.items() if label in (f"ndcg@{k}", f"recall@{k}/tail")
    }
    if len(results) > 1:
        lead = {label: {name: (-d, -h, -l) for name, (d, l, h) in rows.items()} for label, rows in leads.items()}
        section.table(
            Table(
                ["lead of the model over", *lead],
                [[name, *(_interval(rows[name]) for rows in lead.values())] for name in list(results)[1:]],
                "Difference with its paired 95 % interval over users; an interval without 0 is larger than chance.",
            )
        )
    return section


def _strata(run: Run, results: Mapping[str, Result], k: int) -> Section:
    section = Section("Popular, rare and new items")
    label = f"recall@{k}"
    bars = {}
    for stratum in ("", "/head", "/tail", "/cold"):
        count = targets_of(results, label + stratum)
        values = {name: result.metrics.get(label + stratum) for name, result in results.items()}
        if count is None or count < MIN_TARGETS or None in values.values():
            continue
        bars[f"{stratum[1:] or 'all'} ({count:,} targets)"] = {
            name: (value, *result.intervals.get(label + stratum, (None, None)))
            for (name, result), value in zip(results.items(), values.values(), strict=True)
            if value is not None
        }
    if bars:
        caption = f"{label} of each stratum of targets, with 95 % intervals."
        section.figure(figures.strata_intervals(bars, label), "strata", caption)
    targets = run.split.test.targets
    single = np.flatnonzero(targets.lengths == 1)
    if len(single) >= max(2 * MIN_TARGETS, len(targets) / 2):
        events = run.split.train_counts[targets.values[targets.offsets[:-1][single]]]
        shown = _some_baselines(results, f"ndcg@{k}")
        recall = {name: results[name].per_query[label][single] for name in shown}
        if len(figures.groups_by_popularity(events)) > 1:
            caption = f"{label} by the training events of the target, in groups of about equally many targets"
            of = "" if len(single) == len(targets) else f" ({len(single):,} queries with one target)"
            section.figure(figures.recall_by_popularity(events, recall, label), "popularity", f"{caption}{of}.")
    for key, groups in run.metrics.get("groups", {}).items():
        if len(groups) > 1:
            section.table(_of_groups(key, groups))
    return section


def _of_groups(key: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """The model beside the best other recommender for each value of a field."""
    labels = list(next(iter(groups.values()))["results"][MODEL])
    rows = []
    for value, group in list(groups.items())[:ROWS]:
        found = group["results"]
        others = {name: each[labels[0]] for name, each in found.items() if name != MODEL and labels[0] in each}
        best = max(others, key=others.__getitem__, default="")
        cells = [f"{found[MODEL][label]:.4f}" if label in found[MODEL] else "–" for label in labels]
        rows.append([value or "(none)", f"{group['queries']:,}", *cells, f"{best} {others[best]:.4f}" if best else "–"])
    return Table([key, "queries", *labels, f"best other, {labels[0]}"], rows)


def _training(run: Run, epochs: Epochs, hybrid: Hybrid) -> Section:
    section = Section("Training")
    if epochs.selection:
        baselines = _validation(run.metrics.get("validation", {}))
        figure = figures.training_curves({"model": epochs.selection}, epochs.strata, baselines, epochs.best)
        section.figure(
            figure,
            "training",
            "Validation by epoch. Epochs are compared by the selection value, the mean of ndcg@10 in which queries with "
            "tail targets count twice" + ("; lines: the best baselines by the same value." if baselines else "."),
        )
    if hybrid.gates.trainable:
        counts = run.split.train_counts
        gate = np.asarray(hybrid.gates.gate(np.asarray(counts, np.float32)))
        section.figure(
            figures.gate_by_popularity(counts, gate),
            "gate",
            "How much the text of an item weighs against what users did, by the events of the item.",
        )
    return section


def _validation(figures_of: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Popularity and the three best baselines by their selection value."""
    values = {name: found["selection"] for name, found in figures_of.items() if name != MODEL}
    best = sorted(values, key=values.__getitem__, reverse=True)[:3]
    return {name: values[name] for name in dict.fromkeys(["popularity", *best]) if name in values}


def _chosen(run: Run) -> Section:
    section = Section("Chosen from the data")
    section.items(run.record["chosen"])
    return section


def _examples(run: Run, hybrid: Hybrid, k: int) -> Section:
    section = Section("Examples")
    queries, label = run.split.test, f"recall@{k}"
    found = run.results[MODEL].per_query[label]
    good, bad = draw_examples(found, queries.user_ids, run.config.seed)
    section.text(
        f"Drawn at random with seed {run.config.seed}, not picked: {EXAMPLES} of the {int((found > 0).sum()):,} test "
        f"queries with a target among the first {k}, and {EXAMPLES} of the {int((found == 0).sum()):,} without; no user "
        "twice. These are events of real users: share this page as you may share the data."
    )
    titles = _Titles(run)
    for title, rows in ((f"Found among the first {k}", good), (f"Missed by the first {k}", bad)):
        examples = [_example(example, titles) for example in examples_of(hybrid, queries.take(rows), k)]
        if examples:
            section.examples(title, examples)
    return section if len(section.parts) > 1 else Section("")


def _example(example: Example, titles: _Titles) -> dict[str, Any]:
    """An example as the template prints it."""
    wanted = {item for item, _ in example.targets}
    return {
        "user": example.user_id,
        "events": len(example.history),
        "history": [titles[item] for item in example.history[-NEWEST:]],
        "recommended": [(titles[item], int(item) in wanted) for item in example.recommended[:NEWEST]],
        "targets": [(titles[item], _rank(rank)) for item, rank in example.targets[:TARGETS]],
        "further": len(example.targets) - TARGETS,
    }


def _rank(rank: tuple[int, int] | None) -> str:
    if rank is None:
        return "never recommended, because the user has it already"
    first, last = rank
    return f"rank {first:,}" if first == last else f"rank {first:,} to {last:,}, with equal scores"


class _Titles:
    """The title of each item, or its id where it has none."""

    def __init__(self, run: Run) -> None:
        items = run.dataset.items
        self.ids = items[ITEM]
        self.titles = items[TITLE] if TITLE in items else self.ids

    def __getitem__(self, item: int) -> str:
        return clipped(str(self.titles.iloc[item] or self.ids.iloc[item]), LETTERS)


def _exposure(run: Run, hybrid: Hybrid, results: Mapping[str, Result], k: int) -> Section:
    section = Section("Exposure")
    queries, n_items = run.split.test, run.dataset.n_items
    asked = queries.take(evenly_spread(len(queries), EXPOSED))
    with show_progress("Recommending to the test users", "queries") as progress:
        exposure = exposure_of(hybrid, asked, n_items, k, run.config.evaluation.batch_size, progress)
    if exposure.any():
        section.figure(
            figures.lorenz_curve({"recommended": exposure, "training events": run.split.train_counts}),
            "exposure",
            f"How evenly the {k} places of {_of_queries(asked, queries)} are given to the {n_items:,} items, beside how "
            "evenly users chose them. A straight line gives every item the same.",
        )
    labels = [f"{name}@{k}{stratum}" for stratum in ("", "/tail") for name in ("coverage", "gini", "novelty")]
    labels = [label for label in labels if any(result.metrics.get(label) is not None for result in results.values())]
    rows = [[name, *(_plain(result.metrics.get(label)) for label in labels)] for name, result in results.items()]
    note = (
        f"coverage: share of items in any list of {k}. gini: inequality, 0 if all items are shown equally often. "
        "novelty: mean of -log2 of the items' shares of the training events, in bits."
    )
    section.table(Table(["", *labels], rows, note))
    return section


def _of_queries(asked: Queries, queries: Queries) -> str:
    return f"{len(asked):,} test queries" + ("" if len(asked) == len(queries) else f" of {len(queries):,}")


def _ablation(run: Run) -> Section:
    """What each part is worth, where ``benchmarks/ablation.py`` has measured it."""
    section = Section("What each part is worth")
    files = sorted((run.folder / ABLATION).glob("*.npz"), key=lambda path: path.stem != "whole_model")
    results = {path.stem.replace("_", " "): load_result(path) for path in files}
    if len(results) > 1 and "whole model" in results:
        compared = comparison_of({("", name): result for name, result in results.items()})
        rows = [
            [name, *(_difference(compared, label, name) for label in compared.targets)] for name in list(results)[1:]
        ]
        section.table(
            Table(
                ["without it", *compared.targets],
                rows,
                "Difference to the whole model on the test queries, with its paired 95 % interval over users.",
            )
        )
    return section


def _difference(comparison: Comparison, label: str, name: str) -> str:
    found = comparison.differences.get(label, {}).get(name)
    return "–" if found is None else _interval(found)


def _ranking(run: Run, hybrid: Hybrid, tell: Tell) -> Section:
    from tfllmrec.explain.calibration import predictions_of
    from tfllmrec.training.ranking import ranking_lines

    section = Section("Ranking of candidates")
    measured = run.metrics.get("ranking")
    if measured is None:
        return section
    if record := run.ranking_record:
        section.items([f"On held-out validation users: {record.line()}."])
    if "left_out" not in measured:
        section.items([f"Test: {line}." for line in ranking_lines(measured, run.results[MODEL].metrics)])
    ranking = run.load_ranking(hybrid)
    if ranking is not None:
        tell("calibration of the ranking model")
        for what, (predicted, observed) in predictions_of(run, hybrid, ranking).items():
            section.figure(
                figures.calibration(predicted, observed, what),
                f"calibration-{what}",
                f"Calibration of the predicted {what}, on test queries: dots on the line are right on average.",
            )
    return section


def _interests(run: Run, hybrid: Hybrid, tell: Tell) -> Section:
    from tfllmrec.explain.interest_labels import label_confusion
    from tfllmrec.training.interests import InterestRecord

    section = Section("Interests")
    if not run.config.interests.learned or not (run.folder / INTERESTS).is_dir():
        return section
    section.items([f"On validation queries: {InterestRecord.load(run.folder / INTERESTS).line()}."])
    found = label_confusion(run, hybrid, tell)
    if found is not None:
        section.figure(
            figures.confusion_matrix(*found),
            "labels",
            f"Test queries by a label of the next item and the first listed label of the user, the {len(found[1]) - 1} "
            "most frequent ones. A query is on the diagonal if the next item has that label.",
        )
    return section


def _data(run: Run) -> Section:
    section = Section("Data and split")
    _add_data(section, run)
    return section


def _add_data(section: Section, run: Run) -> None:
    measured, split = run.metrics["data"], run.metrics["split"]
    cleaning = run.record.get("cleaning")
    report = CleaningReport.from_dict(cleaning) if cleaning else run.dataset.report
    section.table(
        Table(
            ["", ""],
            [
                ["users", _count(measured.get("users"))],
                ["items", _count(measured.get("items"))],
                ["events", _count(measured.get("events"))],
                ["split", split["kind"]],
                ["training events", _count(split.get("train_events"))],
                ["test queries", _count(split["queries"])],
                *([name.replace("/", ", "), _count(split[name])] for name in split if name.startswith("targets")),
                ["head", f"the {split.get('head_share', 0.2):.0%} of items with the most training events"],
            ],
        )
    )
    section.items(report.lines())
    section.items([f"split: {finding}" for finding in run.split.findings])
    section.items([f"field: {line}" for line in run.split.schema.lines()])


def _reproduce(run: Run) -> Section:
    section, name = Section("How to reproduce"), run.folder.name
    section.text("The run folder holds its data and its settings, so that these commands repeat it:")
    section.code(f"tfllmrec fit {name}/config.yaml --out {name}-again", f"tfllmrec report {name} {name}-again")
    section.table(Table(["", ""], _provenance(run), numbers=False))
    section.table(Table(["setting", "value"], changed_settings(run.config), "Settings that differ from the defaults.", numbers=False))
    return section


def _provenance(run: Run) -> list[list[str]]:
    record = run.record
    source = {role: without_folders(value) for role, value in record["source"].items()}
    return [
        ["run", run.folder.name],
        ["source", ", ".join(f"{role} {value}" for role, value in source.items()) or "–"],
        ["data fingerprint", record["data_sha256"]],
        ["seed", str(record["seed"])],
        ["date", str(record.get("date", "–"))],
        ["time", f"{record['seconds']:,.0f} s"],
        ["peak memory", f"{record['peak_memory_mb']:,.0f} MB"],
        ["versions", ", ".join(f"{name} {version or '–'}" for name, version in record["versions"].items())],
    ]


def changed_settings(config: ExperimentConfig) -> list[list[str]]:
    """Name and value of each setting that differs from its default, except where the data is."""
    own, plain = (one.model_dump(mode="json") for one in (config, ExperimentConfig()))
    rows = []
    for section, values in own.items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for name, value in pairs:
            default = plain[section][name] if name else plain[section]
            if value != default and (section, name) not in (("data", "source"), ("data", "format")):
                rows.append([f"{section}.{name}".rstrip("."), without_folders(value)])
    return rows[: 2 * ROWS]


def without_folders(value: Any) -> str:
    """A setting for display, with the folders of the machine left out of an absolute path."""
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return str(value)


# Several runs ---------------------------------------------------------------------------------------------------------


def headline_of_runs(comparison: Comparison) -> str:
    """Which of the other runs are better or worse than the first one, beyond chance."""
    (first, _), *others = [row for row in comparison.results if row[1] == MODEL]
    label, rows = next(iter(comparison.differences.items()))
    parts = []
    for run, _ in others:
        difference, low, high = rows[run]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not shown to differ"
        parts.append(f"{run} is {verdict} ({difference:+.4f}, {low:+.4f} to {high:+.4f})")
    few = comparison.targets.get(label, 0)
    hint = f" Fewer than {CLAIM_TARGETS} targets make these hints, not claims." if few < CLAIM_TARGETS else ""
    return (
        f"Compared with {first} in {label}, by paired 95 % intervals over users: {'; '.join(parts)}. The intervals cover "
        f"users, not how far seeds lie apart.{hint}"
    )


def sections_of_runs(runs: Sequence[Run], comparison: Comparison) -> list[Section]:
    """The sections of a report of several runs; nothing is computed with a model."""
    names, results = names_of(runs), {run or name: result for (run, name), result in comparison.results.items()}
    side_by_side = Section("Side by side")
    columns = list(dict.fromkeys(label for label, _ in comparison.table.columns))
    side_by_side.table(
        Table(
            ["", *columns],
            [
                *_score_rows(results, columns),
                ["targets", *(_count(comparison.targets.get(label)) for label in columns)],
            ],
            "Runs first, then the baselines. ± is half the 95 % interval over users.",
        )
    )
    differences = Section(f"Differences to {names[0]}")
    differences.table(
        Table(
            ["", *comparison.differences],
            [
                [name, *(_interval(rows[name]) for rows in comparison.differences.values())]
                for name in list(results)[1:]
            ],
            "With paired 95 % intervals over users; an interval without 0 is larger than chance.",
        )
    )
    others = {label: {name: rows[name] for name in names[1:]} for label, rows in comparison.differences.items()}
    caption = f"Differences to {names[0]}; filled where larger than chance."
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
    _add_data(data, runs[0])
    reproduce = Section("How to reproduce")
    folders = [f"{name}/config.yaml --out {name}-again" for name in names]
    reproduce.code(*(f"tfllmrec fit {folder}" for folder in folders))
    provenance = [_provenance(run) for run in runs]
    reproduce.table(
        Table(["", *names], [[rows[0][0], *(value for _, value in rows)] for rows in zip(*provenance, strict=True)], numbers=False)
    )
    sections = (side_by_side, differences, training, settings, chosen, data, reproduce)
    return [section for section in sections if section.parts]


def _different_settings(names: Sequence[str], runs: Sequence[Run]) -> Table:
    settings = [{"seed": str(run.config.seed), **dict(map(tuple, _all_settings(run.config)))} for run in runs]
    different = [name for name in settings[0] if len({each.get(name) for each in settings}) > 1]
    rows = [[name, *(each.get(name, "–") for each in settings)] for name in different[: 2 * ROWS]]
    note = "" if rows else "All settings are the same."
    return Table(["setting", *names], rows, note, numbers=False)


def _all_settings(config: ExperimentConfig) -> list[tuple[str, str]]:
    dumped = config.model_dump(mode="json", exclude={"seed"})
    return [
        (f"{section}.{name}", without_folders(value)) for section, of in dumped.items() for name, value in of.items()
    ]


# Cells ----------------------------------------------------------------------------------------------------------------


def _model_first(results: Mapping[str, Result]) -> dict[str, Result]:
    if MODEL not in results:
        raise DataError(f"The run has no results of the model: expected {MODEL!r} among {', '.join(results)}.")
    return {MODEL: results[MODEL], **results}


def _score_rows(results: Mapping[str, Result], columns: Sequence[str]) -> list[list[str]]:
    """The rows of a scoreboard, the best figure of each column bold."""
    return [
        [name, *(as_is(f"<b>{text}</b>") if best else text for text, best in cells)]
        for name, cells in scoreboard_rows(results, columns)
    ]


def _some_baselines(results: Mapping[str, Result], label: str) -> list[str]:
    """The model, popularity, text and the best baseline, as far as there are any."""
    values = {name: result.metrics[label] or 0.0 for name, result in results.items() if name != MODEL}
    best = max(values, key=values.__getitem__, default=MODEL)
    return list(dict.fromkeys([MODEL, best, *(name for name in ("popularity", "text") if name in results)]))


def _figure_of(result: Result, label: str) -> str:
    value, interval = result.metrics[label], result.intervals.get(label)
    half = f" ±{(interval[1] - interval[0]) / 2:.4f}" if interval else ""
    return f"{_plain(value)}{half}"


def _interval(found: tuple[float, float, float]) -> str:
    difference, low, high = found
    return f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
