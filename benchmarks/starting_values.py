"""Measures how the selection value depends on the starting values of a fit; writes sections of benchmarks/RESULTS.md.

    python benchmarks/starting_values.py runs/quality/beauty runs/quality/toys runs/quality/movielens-1m \\
        runs/quality/movielens-small

varies one setting of the item-item weights at a time, with all others at the values that the run's search has chosen,
and shows the selection value on validation queries. Nothing is trained. With ``--dropout``, the hybrid is compared with
one that is fitted with the other default pair of dropouts: one pair is for data whose items have many events, the other
for data whose items have few.

Finished points are stored in RUN/starting_values.json and fits in RUN/starting_values/, so that an interrupted command
continues where it stopped; delete both to measure again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sections import made_by, replace_section

from tfllmrec.config import ItemWeightSettings
from tfllmrec.durable import write_text
from tfllmrec.evaluation.protocol import paired_difference, selection_value
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.models.item_weights import rank_of
from tfllmrec.progress import to_stderr
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import measure_one
from tfllmrec.training.defaults import DROPOUTS, OFTEN, events_per_item
from tfllmrec.training.fit import fit_hybrid
from tfllmrec.training.item_weight_search import item_weights_value, searched_settings, starting_item_weights

#: The values of each setting to try; the possible starting values of a search are among them.
CURVES: dict[str, tuple[float, ...]] = {
    "decay": (0.3, 0.45, 0.6, 0.75, 0.9, 0.95, 1.0),
    "l2": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
    "co_occurrence": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "text": (0.0, 3.0, 10.0, 30.0, 50.0, 100.0, 300.0),
    "popularity": (0.0, 0.25, 0.5, 0.75, 1.0),
    "rank": (48, 96, 192, 384, 768, 1536),
}


class Points:
    """Finished measurements of a run by name, stored in a JSON file.

    Args:
      path: The JSON file; it is created with the first measurement.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, name: str, measure: Callable[[], object]) -> object:
        """Returns the stored value of ``name``; if there is none, that of ``measure``, which is then stored."""
        if name not in self.known:
            to_stderr(f"{self.path.parent}: {name}")
            self.known[name] = measure()
            write_text(self.path, json.dumps(self.known, indent=1))
        return self.known[name]


def curves(run: Run) -> tuple[ItemWeightSettings, ItemWeightSettings, dict[str, dict[float, float]]]:
    """Returns the starting values of a run's search, the values it has chosen, and the selection values around these.

    The curve of a setting has the values of :data:`CURVES`, the starting one and the chosen one. A setting that the
    search does not vary on this data has no curve: the text of items without text, the decay of events without order.
    """
    data, chosen = run.training_data, run.config.item_weights
    start = starting_item_weights(data)
    points = Points(run.folder / "starting_values.json")
    made: dict[str, dict[float, float]] = {}
    for name, values in CURVES.items():
        if name not in searched_settings(data):
            continue
        made[name] = {}
        for value in sorted({*values, number_of(chosen, name, data.n_items), number_of(start, name, data.n_items)}):
            settings = chosen.model_copy(update={name: value})
            key = settings.model_dump_json()
            made[name][value] = float(points.get(key, lambda settings=settings: item_weights_value(data, settings)))
    return start, chosen, made


def number_of(settings: ItemWeightSettings, name: str, n_items: int) -> float:
    """Returns the value of a setting; the rank *all* is the number of items."""
    return rank_of(settings.rank or "all", n_items) if name == "rank" else float(getattr(settings, name))


def curve_tables(runs: Sequence[Run]) -> list[str]:
    """Returns a table for each setting, with a row for each data set and a column for each value of :data:`CURVES`."""
    by_run = [(run, *curves(run)) for run in runs]
    lines = []
    for name, values in CURVES.items():
        rows = []
        for run, start, chosen, made in by_run:
            if name not in made:
                continue
            curve = made[name]
            begun, taken = (number_of(each, name, run.training_data.n_items) for each in (start, chosen))
            best = max(curve.values())
            cells = [
                f"{'**' if curve[value] == best else ''}{curve[value]:.4f}{'**' if curve[value] == best else ''}"
                f"{'†' if value == begun else ''}"
                for value in values
            ]
            lost = f"{curve[begun] - best:+.4f} ({curve[begun] / best - 1:+.1%})" if best else "-"
            ends = [f"{value:g}: {curve[value]:.4f}" for value in (begun, taken)]
            rows.append([run.metrics["data"]["name"], *cells, *ends, lost])
        if rows:
            header = [name, *(f"{value:g}" for value in values), "start", "chosen", "start against the best"]
            lines += ["", *markdown_table(header, rows)]
    return lines


def dropout_row(run: Run) -> list[str]:
    """Returns a row with the selection values of both settings of dropout, and their difference on validation users."""
    points = Points(run.folder / "starting_values.json")

    def measure() -> dict[str, object]:
        results = []
        for name, (dropout, id_dropout) in zip(("often", "seldom"), DROPOUTS, strict=True):
            own = run.config.model
            if (own.dropout, own.id_dropout) == (dropout, id_dropout):
                fitted = run.load_model()
            else:
                model = own.model_copy(update={"dropout": dropout, "id_dropout": id_dropout})
                config = run.config.model_copy(update={"model": model})
                folder = run.folder / "starting_values" / name
                fitted = fit_hybrid(run.training_data, config, folder, to_stderr).model
            results.append(measure_one(fitted, run.training_data.sample, run.split, run.config))
        return {
            "values": [selection_value(result) for result in results],
            "ndcg@10": paired_difference(*results, "ndcg@10"),
            "recall@10/tail": paired_difference(*results, "recall@10/tail"),
        }

    found = points.get(f"dropout {json.dumps(DROPOUTS)}", measure)
    assert isinstance(found, dict)
    differences = [
        f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        for difference, low, high in (found["ndcg@10"], found["recall@10/tail"])
    ]
    per_item = events_per_item(run.split)
    taken = DROPOUTS[0] if per_item >= OFTEN else DROPOUTS[1]
    return [
        run.metrics["data"]["name"],
        f"{per_item:.0f}",
        *(f"{value:.4f}" for value in found["values"]),
        *differences,
        " / ".join(map(str, taken)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="Complete run folders, one for each data set."
    )
    parser.add_argument("--dropout", action="store_true", help="Fit with both settings of dropout instead.")
    options = parser.parse_args()
    runs = [Run.open(folder) for folder in options.runs]
    made = made_by(shlex.join(["python", *sys.argv]), sorted({run.config.seed for run in runs}))
    if options.dropout:
        title = "starting values: dropout"
        header = ["", "events per item", *(f"selection value, {a} / {b}" for a, b in DROPOUTS)]
        header += ["ndcg@10, first against second", "recall@10/tail, first against second", "taken by default"]
        lines = [
            "Validation queries, one seed. model.dropout / model.id_dropout; in square brackets the paired 95 % "
            f"interval over users. By default the first pair is taken from {OFTEN} events per item on.",
            "",
            *markdown_table(header, [dropout_row(run) for run in runs]),
        ]
    else:
        title = "starting values: item-item weights"
        lines = [
            "Selection value (mean of ndcg@10, queries with tail targets counting twice) on validation queries. One "
            "setting is moved, all others are those that the search of the fit has chosen. Bold is the best of the "
            "row, † the value that the search starts from.",
            *curve_tables(runs),
        ]
    body = "\n".join([made, "", *lines])
    replace_section(title, body)
    print(body)


if __name__ == "__main__":
    main()
