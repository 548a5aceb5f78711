import numpy as np
import pytest

from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import Field
from tfllmrec.evaluation.groups import figures_of_groups, groups_of
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import group_rows, groups_table

SCENE = Field("scene", "request", "category", vocabulary=("home", "mail"))


def result(values):
    return Result({}, {}, {}, {"ndcg@10": np.array(values), "recall@10": np.array(values) * 2}, [])


def test_queries_are_grouped_by_the_values_of_a_field():
    queries = Queries.from_histories([[0]] * 5, fields={"request.scene": np.array([2, 3, 3, 1, 0], np.int32)})
    found = groups_of(queries, SCENE)
    assert {value: rows.tolist() for value, rows in found.items()} == {
        "": [False, False, False, True, True],
        "mail": [False, True, True, False, False],
        "home": [True, False, False, False, False],
    }


def test_figures_are_means_over_the_queries_of_a_group_that_have_targets():
    home, mail = np.arange(50) < 30, np.arange(50) >= 30
    values = np.where(home, 0.25, 0.5)
    values[0] = np.nan
    results = {"hybrid": result(values), "markov": result(values / 2), "text": result(values / 5)}
    figures = figures_of_groups(
        results, {"home": home, "mail": mail, "few": np.arange(50) < 5}, ["ndcg@10", "recall@10"]
    )
    assert figures.keys() == {"home", "mail"}  # one of five queries has no target, so four are left
    assert figures["home"]["queries"] == 29 and figures["mail"]["queries"] == 20
    assert figures["home"]["results"]["hybrid"] == {"ndcg@10": pytest.approx(0.25), "recall@10": pytest.approx(0.5)}
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as printed:
        console.print(groups_table("request.scene", figures))
    lines = printed.get().splitlines()
    assert [line.split() for line in lines if line.strip().startswith(("home", "mail"))] == [
        ["home", "29", "0.2500", "0.5000", "markov", "0.1250"],
        ["mail", "20", "0.5000", "1.0000", "markov", "0.2500"],
    ]


def test_a_table_of_groups_has_the_columns_of_all_of_them():
    few, all_figures = {"ndcg@10": 0.25}, {"ndcg@10": 0.5, "recall@10": 0.75}
    groups = {"home": {"queries": 20, "results": {"hybrid": few}}, "mail": {"queries": 5, "results": {"hybrid": {}}}}
    groups["shop"] = {"queries": 30, "results": {"hybrid": all_figures}}
    assert group_rows(groups) == (
        ["queries", "ndcg@10", "recall@10", "best other, ndcg@10"],
        [["home", "20", "0.2500", "", ""], ["mail", "5", "", "", ""], ["shop", "30", "0.5000", "0.7500", ""]],
    )
