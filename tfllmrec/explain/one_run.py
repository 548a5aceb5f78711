"""The sections of the report of one run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllmrec.columns import ITEM, TITLE
from tfllmrec.config import ExperimentConfig, settings_by_key
from tfllmrec.data.features import feature_report
from tfllmrec.data.queries import Queries
from tfllmrec.data.sampling import evenly_spread
from tfllmrec.errors import DataError
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.metrics import recommendable
from tfllmrec.evaluation.protocol import Result, paired_difference
from tfllmrec.evaluation.report import (
    MIN_TARGETS,
    MODEL,
    REFIT,
    baselines_of,
    exported_of,
    group_rows,
    hidden_columns,
    list_length,
    model_first,
    shown_columns,
    targets_of,
)
from tfllmrec.evaluation.result_files import load_result
from tfllmrec.explain.compare import Comparison, check_data, comparison_of
from tfllmrec.explain.epochs import Epochs, epochs_of
from tfllmrec.explain.lists import (
    EXAMPLES,
    Example,
    draw_examples,
    examples_of,
    exposure_of,
    queries_with_one_target,
)
from tfllmrec.explain.reliance import QUERIES, field_importance, term_shares
from tfllmrec.explain.sections import (
    CLAIM_TARGETS,
    ROWS,
    SETTINGS,
    SIGNIFICANT,
    Section,
    Table,
    add_data,
    count,
    fit_again,
    interval,
    plain,
    provenance,
    ranked_items,
    score_rows,
    without_folders,
)
from tfllmrec.progress import Tell, show_progress
from tfllmrec.runs.run import ABLATION, INTERESTS, Run
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from tfllmrec.models.hybrid import Hybrid

#: The maximum number of test queries whose lists are computed for the exposure.
EXPOSED = 20_000
#: Contents of an example: the newest items of the history, the best recommended items, and the first targets.
NEWEST, BEST, TARGETS = 8, 5, 3
#: The data of the calibration figures, by the predicted quantity.
_CALIBRATED = {
    "probability": "the candidates of only those test queries whose held-out item is among them",
    "rating": "the rated targets of test queries",
}
#: The number of neighbours in the picture of the graph.
NEIGHBOURS = 10
#: The maximum number of characters of a title, and of fields with a table of their values.
LETTERS, FIELDS = 90, 5


def against_baselines(run: Run) -> Comparison:
    """A run beside its baselines, which were fitted on the same events."""
    results = _results_of(run)
    return comparison_of(
        {(run.name, MODEL): results[MODEL]} | {("", name): result for name, result in baselines_of(results).items()}
    )


def headline_of(run: Run) -> str:
    """Summarises the result of a run: how good the model is, and whether it beats the best baseline."""
    results = _results_of(run)
    k, model = list_length(results), results[MODEL]
    label, found, targets = f"ndcg@{k}", model.metrics[f"recall@{k}"], model.counts["targets"]
    if found is None:
        return "No test query has a target, so nothing was measured."
    said = (
        f"On average {found:.1%} of the held-out items are among the model's {k} best of {_candidates(run).sum():,} "
        f"({targets:,} test targets; {label} {_figure_of(model, label)})."
    )
    others = {name: result.metrics[label] or 0.0 for name, result in baselines_of(results).items()}
    if not others:
        return said
    if targets < MIN_TARGETS:
        return f"{said} Fewer than {MIN_TARGETS} targets are too few to compare it with baselines."
    best = max(others, key=others.__getitem__)
    lead, low, high = paired_difference(model, results[best], label)
    if not lead:
        return f"{said} The best baseline, {best}, has the same {label}."
    verdict = f"{'' if low > 0 or high < 0 else 'not '}statistically significant at 5 %"
    few = f"; fewer than {CLAIM_TARGETS} targets make this a hint, not a claim" * (targets < CLAIM_TARGETS)
    return (
        f"{said} The model is {'ahead of' if lead > 0 else 'behind'} the best baseline, {best}, by {abs(lead):.4f} in "
        f"{label}: {verdict} (paired 95 % interval {low:+.4f} to {high:+.4f}{few}). The interval covers "
        "users, not seeds."
    )


def sections_of_run(run: Run, comparison: Comparison, tell: Tell) -> list[Section]:
    """Returns the sections of the report of one run, in the order in which a reader needs them."""
    check_data(run)
    results = _results_of(run)
    k = list_length(results)
    tell("loading the model")
    hybrid = run.load_model(refit=True)
    return [
        section
        for section in (
            _scoreboard(run, results, comparison),
            _strata(run, results, k),
            _training(run, epochs_of(run), hybrid),
            _chosen(run),
            _examples(run, hybrid, k),
            _exposure(run, hybrid, results, k),
            _terms(run, hybrid, k),
            _fields(run, hybrid, k),
            _information(run),
            _ablation(run),
            _ranking(run, hybrid, tell),
            _interests(run, hybrid, tell),
            _transfer(run),
            _graph(run),
            _data(run),
            _reproduce(run),
        )
        if section.parts
    ]


def _scoreboard(run: Run, results: Mapping[str, Result], comparison: Comparison) -> Section:
    section = Section("Scoreboard")
    columns = shown_columns(results)
    k = list_length(results)
    had = "" if run.dataset.repeats else " Items that the user had are left out."
    section.text(
        f"The test ranks {ranked_items(run)}.{had} Ties count at their expected rank. head: the items with the most "
        "training events; tail: all others; cold: those without any. ± is half the 95 % interval over users. All "
        "recommenders were tuned on the same validation queries."
        + f" {REFIT}: the model as it is exported, which has also learned from the validation events; the others have "
        "not." * (REFIT in results)
    )
    section.table(
        Table(
            ["", *columns],
            [*score_rows(results, columns), ["targets", *(count(targets_of(results, c)) for c in columns)]],
            hidden_columns(results) or "",
        )
    )
    leads = {
        label: rows for label, rows in comparison.differences.items() if label in (f"ndcg@{k}", f"recall@{k}/tail")
    }
    if baselines_of(results):
        lead = {
            label: {name: (-difference, -high, -low) for name, (difference, low, high) in rows.items()}
            for label, rows in leads.items()
        }
        section.table(
            Table(
                ["lead over", *lead],
                [[name, *(interval(rows[name]) for rows in lead.values())] for name in baselines_of(results)],
                f"Lead of the model with its paired 95 % interval over users. {SIGNIFICANT}",
            )
        )
    return section


def _strata(run: Run, results: Mapping[str, Result], k: int) -> Section:
    section = Section("Popular, rare and new items")
    label = f"recall@{k}"
    bars = {}
    for stratum in ("", "/head", "/tail", "/cold"):
        n = targets_of(results, label + stratum)
        values = {name: result.metrics.get(label + stratum) for name, result in results.items()}
        if n is None or n < MIN_TARGETS or None in values.values():
            continue
        bars[f"{stratum[1:] or 'all'} ({n:,} targets)"] = {
            name: (value, *result.intervals.get(label + stratum, (None, None)))
            for (name, result), value in zip(results.items(), values.values(), strict=True)
            if value is not None
        }
    if bars:
        caption = (
            f"{label} of each stratum of targets, with 95 % intervals. Whether two recommenders differ is said by the "
            "paired intervals under Scoreboard."
        )
        section.figure(figures.strata_intervals(bars, label), "strata", caption)
    targets = run.split.test.targets
    single = queries_with_one_target(run.split.test)
    if len(single):
        events = run.split.train_counts[targets.values[targets.offsets[:-1][single]]]
        shown = _some_baselines(results, f"ndcg@{k}")
        recall = {name: results[name].per_query[label][single] for name in shown}
        if len(figures.groups_by_popularity(events)) > 1:
            caption = f"{label} by the training events of the target, in groups of about equally many targets"
            of = "" if len(single) == len(targets) else f" ({len(single):,} queries with one target)"
            section.figure(figures.recall_by_popularity(events, recall, label), "popularity", f"{caption}{of}.")
    for key, groups in list(run.metrics.get("groups", {}).items())[:FIELDS]:
        if len(groups) > 1:
            header, rows = group_rows(groups)
            section.table(Table([key, *header], rows).shortened(ROWS))
    return section


def _training(run: Run, epochs: Epochs, hybrid: Hybrid) -> Section:
    section = Section("Training")
    if epochs.selection:
        baselines = _validation(run.metrics.get("validation", {}))
        figure = figures.training_curves(
            {"model": epochs.selection}, epochs.strata, baselines, epochs.best, epochs.label
        )
        section.figure(
            figure,
            "training",
            f"Validation by epoch. Epochs are compared by the selection value, the mean of {epochs.label} in which "
            "queries with tail targets count twice"
            + ("; lines: popularity and the three best baselines by the same value." if baselines else "."),
        )
    if hybrid.gates.trainable:
        counts = run.split.train_counts
        gate = np.asarray(hybrid.gates.gate(np.asarray(counts, np.float32)))
        section.figure(
            figures.gate_by_popularity(counts, gate),
            "gate",
            "Gate a_i by training events of the item: near 1 the score relies on meaning and feedback, near 0 on "
            "item-item weights. It is a weight, not a share of the score.",
        )
    return section


def _validation(figures_of: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Popularity and the three best baselines by their selection value."""
    values = {name: found["selection"] for name, found in baselines_of(figures_of).items()}
    best = sorted(values, key=values.__getitem__, reverse=True)[:3]
    return {name: values[name] for name in dict.fromkeys(["popularity", *best]) if name in values}


def _chosen(run: Run) -> Section:
    section = Section("Chosen from the data")
    section.items(run.record["chosen"])
    return section


def _examples(run: Run, hybrid: Hybrid, k: int) -> Section:
    section = Section("Examples")
    queries, label = run.split.test, f"recall@{k}"
    found = exported_of(run.results).per_query[label]
    good, bad = draw_examples(found, queries.user_ids, run.config.seed)
    section.text(
        f"Test queries drawn at random with seed {run.config.seed}, not picked, no user twice: up to {EXAMPLES} of the "
        f"{int((found > 0).sum()):,} with a target among the first {k}, and up to {EXAMPLES} of the "
        f"{int((found == 0).sum()):,} without. These are events of users: share this page as you may share the data."
    )
    titles = _Titles(run)
    for title, rows in ((f"Found among the first {k}", good), (f"Missed by the first {k}", bad)):
        examples = [_example(example, titles) for example in examples_of(hybrid, queries.take(rows), k)]
        if examples:
            section.examples(title, examples)
    return section if len(section.parts) > 1 else Section("")


def _example(example: Example, titles: _Titles) -> dict[str, Any]:
    """Converts an example to the values of the template."""
    wanted = {item for item, _ in example.targets}
    return {
        "user": example.user_id,
        "events": len(example.history),
        "history": [titles[item] for item in example.history[-NEWEST:]],
        "recommended": [(titles[item], int(item) in wanted) for item in example.recommended[:BEST]],
        "targets": [(titles[item], _rank(rank)) for item, rank in example.targets[:TARGETS]],
        "further": len(example.targets) - TARGETS,
    }


def _rank(rank: tuple[int, int] | None) -> str:
    if rank is None:
        return "never recommended, because the user has it already"
    first, last = rank
    return f"rank {first:,}" if first == last else f"rank {first:,} to {last:,}, with equal scores"


class _Titles:
    """The title of each item; its id if it has none."""

    def __init__(self, run: Run) -> None:
        items = run.dataset.items
        self.ids = items[ITEM]
        self.titles = items.get(TITLE, self.ids)

    def __getitem__(self, item: int) -> str:
        return clipped(str(self.titles.iloc[item] or self.ids.iloc[item]), LETTERS)


def _exposure(run: Run, hybrid: Hybrid, results: Mapping[str, Result], k: int) -> Section:
    section = Section("Exposure")
    queries, candidates = run.split.test, _candidates(run)
    events = run.split.train_counts[candidates]
    asked = queries.take(evenly_spread(len(queries), EXPOSED))
    with show_progress("Recommending to the test users", "queries") as progress:
        exposure = exposure_of(hybrid, asked, len(candidates), k, run.config.evaluation.batch_size, progress)
    exposure = exposure[candidates]
    if exposure.any():
        section.figure(
            figures.lorenz_curve({"recommended": exposure, "training events": events}),
            "exposure",
            f"How evenly {len(exposure):,} items share the {exposure.sum():,} places in the lists of {k} for "
            f"{_of_queries(asked, queries)}, and how evenly they share their {events.sum():,} training events. "
            "A straight line gives every item the same. With fewer places than items a curve is uneven whatever the "
            "model does.",
        )
    labels = [f"{name}@{k}{stratum}" for stratum in ("", "/tail") for name in ("coverage", "gini", "novelty")]
    labels = [label for label in labels if any(result.metrics.get(label) is not None for result in results.values())]
    rows = [[name, *(plain(result.metrics.get(label)) for label in labels)] for name, result in results.items()]
    note = (
        f"coverage: share of items in any list of {k}. gini: inequality, 0 if all items are shown equally often. "
        "novelty: mean of -log2 of the items' shares of the training events, in bits."
    )
    section.table(Table(["", *labels], rows, note))
    return section


def _candidates(run: Run) -> np.ndarray:
    """Returns bool ``[N]``: the items that a test query may recommend."""
    return recommendable(run.split.test, run.dataset.n_items)


def _of_queries(asked: Queries, queries: Queries) -> str:
    return f"{len(asked):,} test queries" + ("" if len(asked) == len(queries) else f" of {len(queries):,}")


def _terms(run: Run, hybrid: Hybrid, k: int) -> Section:
    section = Section("What the lists rely on")
    queries = run.split.test
    asked = queries.take(evenly_spread(len(queries), QUERIES))
    strata = run.split.strata(run.config.evaluation.head_share)
    with show_progress("Explaining lists", "queries") as progress:
        found = term_shares(hybrid, asked, {"all": np.ones(run.dataset.n_items, bool), **strata}, k, progress)
    if found:
        rows = [
            [name, f"{places:,}", *(f"{share:.0%}" for share in shares.values())]
            for name, (places, shares) in found.items()
        ]
        note = (
            f"Mean share of each term in the scores of the {k} best items of {_of_queries(asked, queries)}: its "
            "absolute value, divided by the sum of those of all terms. places: of the lists, those with such an item."
        )
        section.table(Table(["items", "places", *hybrid.term_names], rows, note))
    return section


def _fields(run: Run, hybrid: Hybrid, k: int) -> Section:
    section = Section("What the fields are worth")
    queries = run.split.test
    asked = queries.take(evenly_spread(len(queries), QUERIES))
    with show_progress("Shuffling fields", "fields") as progress:
        found = field_importance(hybrid, asked, run.split.train_counts, k, run.config.seed, progress)
    if found:
        note = (
            f"By how much ndcg@{k} falls on {_of_queries(asked, queries)} if the values of a field are shuffled, with "
            "its paired 95 % interval over users. Fields that say the same replace each other, so each falls by less."
        )
        rows = [[key, interval(difference)] for key, difference in found.items()]
        section.table(Table(["field", f"ndcg@{k}"], rows, note))
    return section


def _information(run: Run) -> Section:
    section = Section("How informative the fields are")
    if all(field.kind == "id" for field in run.dataset.schema.with_values):
        return section
    with show_progress("Measuring fields", "fields") as progress:
        report = feature_report(run.dataset, seed=run.config.seed, progress=progress)
    found = {}
    for field in report.fields:
        if told := field.told("item"):
            best = max(told, key=lambda each: (not each.by_chance, each.information))
            found[field.key] = (max(best.information, 0.0), best.by_chance)
    if found:
        best_first = sorted(found.items(), key=lambda each: (each[1][1], -each[1][0]))
        chosen = "the chosen item" if report.label == "item" else f"the {report.label} of the chosen item"
        section.figure(
            figures.field_information(dict(best_first[:ROWS]), report.label),
            "information",
            f"How much a field tells about {chosen}: mutual information above chance, as "
            "a share of the target's entropy. A field of items is compared with its value for the user's next item. "
            "In brackets: not significant.",
        )
    note = (
        f"Measured on {report.sampled:,} of {report.events:,} events of the whole data set, without the model. "
        "tells of: mutual information above chance, in brackets if not significant. outliers: numbers far from the "
        "median."
    )
    section.table(Table(report.header, report.rows, note, numbers=False).shortened(ROWS))
    section.items([pair.line() for pair in report.pairs])
    if report.advice:
        section.text(f"To {report.advice}, fit with this setting:")
        section.code(f"--set {shlex.quote(report.suggestion)}")
    return section


def _ablation(run: Run) -> Section:
    """Returns the section on the value of each part, if ``benchmarks/ablation.py`` has measured it."""
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
    return "–" if found is None else interval(found)


def _ranking(run: Run, hybrid: Hybrid, tell: Tell) -> Section:
    section = Section("Ranking of candidates")
    measured = run.metrics.get("ranking")
    if measured is None:
        return section
    from tfllmrec.explain.calibration import candidates_of, predictions_of
    from tfllmrec.models.ranking import Reranked
    from tfllmrec.training.ranking.measure import ranking_lines

    if record := run.ranking_record:
        section.items([f"On held-out validation users: {record.line()}."])
    if "left_out" not in measured:
        section.items([f"Test: {line}." for line in ranking_lines(measured, exported_of(run.results).metrics)])
    ranking = run.load_ranking(hybrid)
    if ranking is not None:
        tell("calibration of the ranking model")
        reranked = Reranked(hybrid, ranking, run.config.ranking.candidates)
        for what, (predicted, observed) in predictions_of(run, reranked, candidates_of(run, reranked)).items():
            section.figure(
                figures.calibration(predicted, observed, what),
                f"calibration-{what}",
                f"Calibration of the predicted {what}, on {_CALIBRATED[what]}: dots on the line are right on average.",
            )
    return section


def _interests(run: Run, hybrid: Hybrid, tell: Tell) -> Section:
    section = Section("Interests")
    if not run.config.interests.learned or not (run.folder / INTERESTS).is_dir():
        return section
    from tfllmrec.explain.interest_labels import label_confusion
    from tfllmrec.training.interests import InterestRecord

    section.items([f"On validation queries: {InterestRecord.load(run.folder / INTERESTS).line()}."])
    found = label_confusion(run, hybrid, tell)
    if found is not None:
        section.figure(
            figures.confusion_matrix(*found),
            "labels",
            f"Test queries by a label of the held-out item (row) and the label of the user that is listed first "
            f"(column), of the {len(found[1]) - 1} most frequent ones. If an item has several labels, its row is "
            "chosen in favour of the diagonal: it is the listed label if the item has it.",
        )
    return section


def _transfer(run: Run) -> Section:
    """Shows what the run shares with the domains that it starts from, and how different their texts are."""
    section, record = Section("Transfer"), run.transferred
    if record is not None:
        section.items([f"source: {source.name}" for source in record.sources] + record.lines())
    return section


def _graph(run: Run) -> Section:
    """Shows the relations of the graph, and the neighbours of the item with the most training events that has any."""
    section, graph = Section("Graph of the items"), run.graph
    if graph is None or not graph.relations:
        return section
    header = ["relation", "kind", "edges", "items"]
    rows = [[each.name, each.kind, count(len(each)), count(each.n_joined)] for each in graph.relations]
    section.table(Table(header, rows, numbers=False).shortened(ROWS))
    near, titles = graph.strongest(NEIGHBOURS), _Titles(run)
    words, place = near.words()
    some = np.flatnonzero(np.diff(near.offsets))
    item = int(some[np.argmax(run.split.train_counts[some])])
    own = slice(near.offsets[item], near.offsets[item + 1])
    names = [titles[other] for other in near.items[own]]
    section.figure(
        figures.neighbourhood(titles[item], names, near.weights[own], [words[at] for at in place[own]]),
        "neighbourhood",
        f"The strongest neighbours of {titles[item]}, the item with the most training events among those with edges. A "
        "wider line is a stronger edge.",
    )
    return section


def _data(run: Run) -> Section:
    section = Section("Data and split")
    add_data(section, run)
    return section


def _reproduce(run: Run) -> Section:
    section, name = Section("How to reproduce"), run.name
    both = shlex.join([name, f"{name}-again"])
    section.text("The run folder holds its data and its settings, so that these commands repeat it:")
    section.code(fit_again(name), f"tfllmrec report {both}")
    section.table(Table(["", ""], provenance(run), numbers=False))
    section.table(
        Table(
            ["setting", "value"], changed_settings(run.config), "Settings that differ from the defaults.", numbers=False
        ).shortened(SETTINGS)
    )
    return section


def changed_settings(config: ExperimentConfig) -> list[list[str]]:
    """Returns name and value of each setting that differs from its default, except the location of the data."""
    own, default = settings_by_key(config), settings_by_key(ExperimentConfig())
    changed = [name for name in own if own[name] != default[name] and name not in ("data.source", "data.format")]
    return [[name, without_folders(own[name])] for name in changed]


def _results_of(run: Run) -> dict[str, Result]:
    """Returns the results of a run, the model's first."""
    results = model_first(run.results)
    if MODEL not in results:
        raise DataError(f"The run has no results of the model: expected {MODEL!r} among {', '.join(results)}.")
    return results


def _some_baselines(results: Mapping[str, Result], label: str) -> list[str]:
    """The model, popularity, text and the best baseline, as far as there are any."""
    values = {name: result.metrics[label] or 0.0 for name, result in baselines_of(results).items()}
    best = max(values, key=values.__getitem__, default=MODEL)
    return list(dict.fromkeys([MODEL, best, *(name for name in ("popularity", "text") if name in results)]))


def _figure_of(result: Result, label: str) -> str:
    value, interval = result.metrics[label], result.intervals.get(label)
    half = f" ±{(interval[1] - interval[0]) / 2:.4f}" if interval else ""
    return f"{plain(value)}{half}"
