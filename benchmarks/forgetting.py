"""Measures how much accuracy a model loses on its first domains when another domain is added.

    python benchmarks/forgetting.py runs/two-shops runs/three-shops

Both arguments are complete runs on joined data; the second one has all domains of the first and at least one more. Both
are measured on the test queries of the first run, separately for each of its domains, with the items of that domain as
candidates. Queries whose target is a training event of the second run are left out. Writes a section of
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sections import made_by, replace_section

from tfllmrec.columns import ITEM, ITEM_INDEX, USER, USER_INDEX
from tfllmrec.data.domains import domain_names, items_of_domain
from tfllmrec.data.queries import Queries
from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result, evaluate, paired_difference
from tfllmrec.evaluation.recommender import Recommender
from tfllmrec.evaluation.report import markdown_table
from tfllmrec.runs.run import Run


class InItsCatalogue:
    """A recommender for a smaller catalogue, backed by a model of a larger one."""

    def __init__(self, model: Recommender, rows: np.ndarray, n_items: int) -> None:
        self.model, self.rows, self.n_items = model, rows, n_items

    def score(self, queries: Queries) -> np.ndarray:
        history, exclude = (replace(each, values=self.rows[each.values]) for each in (queries.history, queries.exclude))
        targets = replace(queries.targets, values=self.rows[queries.targets.values])
        asked = replace(queries, history=history, exclude=exclude, targets=targets, candidates=None)
        return self.model.score(asked)[:, self.rows]


def trained_on(queries: Queries, rows: np.ndarray, users: pd.Series, train: pd.DataFrame) -> np.ndarray:
    """Returns for each query whether one of its targets is a training event of its user, bool ``[B]``.

    Args:
      queries: The queries.
      rows: The row of each item of the queries in the catalogue of the events, int ``[N]``.
      users: The user ids; ``user_index`` is their position.
      train: The training events, with ``user_index`` and ``item_index``.
    """
    user = pd.Index(users).get_indexer(pd.Index(queries.user_ids))[queries.targets.row_of_value]
    asked = pd.MultiIndex.from_arrays([user, rows[queries.targets.values]])
    known = asked.isin(pd.MultiIndex.from_frame(train[[USER_INDEX, ITEM_INDEX]]))
    return np.bincount(queries.targets.row_of_value, known, minlength=len(queries)) > 0


def forgotten(before: Run, after: Run) -> tuple[dict[str, tuple[Result, Result]], int]:
    """Measures both runs on the test queries of the first one.

    Queries whose target the second model was trained on are left out, because they would hide what it forgot.

    Returns:
      The results of both runs by domain of the first run, and the number of queries that are left out.

    Raises:
      ModelError: The data of the first run has no domains, or the second run lacks some of its items.
    """
    names, items = domain_names(before.training_data.domains), before.dataset.items
    rows = after.dataset.items[ITEM].reset_index().set_index(ITEM)["index"].reindex(items[ITEM])
    if not names or rows.isna().any():
        raise ModelError(
            f"Expected joined data in {before.folder}, and all of its items in {after.folder}. Join the domains of "
            "both with 'tfllmrec data join', with the same names."
        )
    # Each model encodes fields by its own schema, so both can read only queries without fields.
    test = replace(before.split.test, fields={}, weights=None)
    in_after = rows.to_numpy(np.int64)
    known = trained_on(test, in_after, after.dataset.users[USER], after.split.train)
    test = test.take(~known)
    models = (
        before.load_model(),
        InItsCatalogue(after.load_model(), in_after, before.dataset.n_items),
    )
    found = {}
    for name in names:
        inside = items_of_domain(items, name)
        asked = test.take(np.bincount(test.targets.row_of_value, inside[test.targets.values], len(test)) > 0)
        if len(asked):
            split, strata = before.split, before.split.strata(before.config.evaluation.head_share)
            first, second = (
                evaluate(
                    model, replace(asked, candidates=inside), train_counts=split.train_counts, strata=strata, ks=[10],
                    bootstrap=0,
                )
                for model in models
            )  # fmt: skip
            found[name] = first, second
    return found, int(known.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="Without and with the further domain.")
    options = parser.parse_args()
    before, after = map(Run.open, options.runs)
    found, known = forgotten(before, after)
    rows = []
    for name, (first, second) in found.items():
        difference, low, high = paired_difference(second, first, "ndcg@10")
        was, now = first.metrics["ndcg@10"] or 0.0, second.metrics["ndcg@10"] or 0.0
        change = f"{now / was - 1:+.1%}" if was else "-"
        cells = [f"{was:.4f}", f"{now:.4f}", f"{difference:+.4f} [{low:+.4f}, {high:+.4f}]", change]
        rows.append([name, *cells, f"{first.counts['queries']:,}"])
    new = ", ".join(name for name in domain_names(after.training_data.domains) if name not in {row[0] for row in rows})
    table = markdown_table(["ndcg@10 in", "before", f"with {new}", "difference", "share", "queries"], rows)
    left_out = f"Test queries left out, because the second model was trained on their targets: {known:,}."
    body = "\n".join([made_by(shlex.join(["python", *sys.argv]), before.config.seed), "", left_out, "", *table])
    title = f"forgetting: {before.dataset.name} with {new}"
    replace_section(title, body)
    print(f"{title}\n\n{body}\n")


if __name__ == "__main__":
    main()
