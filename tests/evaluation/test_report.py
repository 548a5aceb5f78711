import io
import json

import numpy as np
import pytest
from rich.console import Console

from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.evaluation.report import alarm_lines, as_json, as_markdown, scoreboard, scoreboard_of


def result(ndcg, cold=None, coverage=0.5, k=10, alarms=(), per_query=None):
    values = {f"ndcg@{k}": ndcg, f"recall@{k}": 2 * ndcg, f"recall@{k}/cold": cold, f"coverage@{k}": coverage}
    return Result(values, {f"ndcg@{k}": (ndcg - 0.01, ndcg + 0.01)}, {}, {f"ndcg@{k}": per_query}, list(alarms))


def test_markdown_puts_the_hybrid_first_and_the_best_in_bold():
    table = as_markdown({"popularity": result(0.1, cold=0.0), "hybrid": result(0.2, coverage=0.25)})
    assert table.splitlines() == [
        "| | ndcg@10 | recall@10 | recall@10/cold | coverage@10 |",
        "|---|---:|---:|---:|---:|",
        "| hybrid | **0.2000 ±0.010** | **0.4000** | - | 0.2500 |",
        "| popularity | 0.1000 ±0.010 | 0.2000 | 0.0000 | **0.5000** |",
    ]


def test_the_record_of_a_run_shows_the_same_table():
    results = {"a": result(0.1), "hybrid": result(0.2)}
    record = {
        "data": {"name": "shop"},
        "split": {"queries": 3, "kind": "random"},
        "results": as_json(results),
        "intervals": {name: r.intervals for name, r in results.items()},
    }
    shown, expected = io.StringIO(), io.StringIO()
    Console(file=shown, width=80).print(scoreboard_of(record))
    Console(file=expected, width=80).print(scoreboard(results, "shop: 3 test queries, random split"))
    assert shown.getvalue() == expected.getvalue()
    assert "recall@10" in shown.getvalue()


def test_equals_are_both_best():
    assert as_markdown({"a": result(0.1), "b": result(0.1)}).count("**0.2000**") == 2


def test_the_terminal_shows_the_same_cells():
    out = io.StringIO()
    Console(file=out, width=160, force_terminal=True).print(
        scoreboard({"a": result(0.1), "hybrid": result(0.2)}, "here")
    )
    text = out.getvalue()
    assert "\x1b[1m0.2000 ±0.010\x1b[0m" in text
    assert "\x1b[1m0.1000" not in text
    assert text.index("hybrid") < text.index("0.1000")
    assert "here" in text


@pytest.mark.parametrize(("ks", "shown"), [([5, 10, 20], 10), ([5, 7], 7)])
def test_ten_is_shown_or_else_the_largest_k(ks, shown):
    values = {label: value for k in ks for label, value in result(0.1, k=k).metrics.items()}
    header = as_markdown({"a": Result(values, {}, {}, {}, [])}).splitlines()[0]
    assert header == f"| | ndcg@{shown} | recall@{shown} | recall@{shown}/cold | coverage@{shown} |"


def test_json_has_the_metrics_by_name_and_no_nan():
    answer = as_json({"popularity": result(0.1), "hybrid": result(0.2)})
    assert list(answer) == ["hybrid", "popularity"]
    assert answer["hybrid"]["ndcg@10"] == 0.2
    assert answer["hybrid"]["recall@10/cold"] is None
    json.dumps(answer, allow_nan=False)


def test_nothing_to_report():
    with pytest.raises(ModelError, match="at least one result"):
        scoreboard({})


def test_who_is_ahead_of_the_hybrid_beyond_doubt_is_named():
    hybrid, ahead = np.array([0.1, 0.2, 0.3, 0.2] * 10), np.array([0.3, 0.4, 0.4, 0.4] * 10)
    results = {
        "popularity": result(0.05, per_query=np.zeros(40)),
        "item_knn": result(0.3, per_query=ahead - 0.05),
        "ease": result(0.35, per_query=ahead),
        "hybrid": result(0.2, per_query=hybrid),
    }
    (line,) = alarm_lines(results)
    assert line.startswith("hybrid: ease is ahead of it: ndcg@10 0.3500 against 0.2000 (difference between +0.1")
    noisy = result(0.35, per_query=hybrid + np.array([2.0, -1.9] * 20))
    lines = alarm_lines(results | {"ease": noisy, "item_knn": results["hybrid"]})
    assert [line for line in lines if line.startswith("hybrid")] == []
    assert alarm_lines({name: results[name] for name in ("popularity", "ease")}) == []


def test_alarms_name_who_they_are_about():
    poor, good = np.full(60, 0.1), np.full(60, 0.2)
    results = {
        "popularity": result(0.1, per_query=poor, alarms=["same list"]),
        "hybrid": result(0.1, per_query=poor, alarms=["alike"]),
        "ease": result(0.2, per_query=good),
    }
    lines = alarm_lines(results)
    assert lines[0] == "hybrid: alike"
    assert lines[1].startswith("hybrid: is not shown to beat popularity: ndcg@10 0.1000 against 0.1000")
    assert lines[2].startswith("hybrid: ease is ahead of it: ndcg@10 0.2000 against 0.1000")
    assert len(lines) == 3  # popularity should give everybody the same
    assert alarm_lines({"hybrid": results["hybrid"]}) == ["hybrid: alike"]
