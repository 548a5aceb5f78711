import io
import json

import numpy as np
import pytest
from rich.console import Console

from tfllmrec.errors import ModelError
from tfllmrec.evaluation.protocol import Result, averaged
from tfllmrec.evaluation.report import alarm_lines, as_json, as_markdown, scoreboard, scoreboard_of

COUNTS = {"queries": 2000, "targets": 1234, "targets/cold": 20}


def result(ndcg, cold=None, coverage=0.5, k=10, alarms=(), per_query=None, counts=COUNTS):
    values = {f"ndcg@{k}": ndcg, f"recall@{k}": 2 * ndcg, f"recall@{k}/cold": cold, f"coverage@{k}": coverage}
    interval = {f"ndcg@{k}": (ndcg - 0.01, ndcg + 0.01)}
    return Result(values, interval, dict(counts), {f"ndcg@{k}": per_query}, list(alarms))


def shown(table):
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue()


def test_markdown_puts_the_hybrid_first_and_the_best_in_bold():
    table = as_markdown({"popularity": result(0.1, cold=0.0), "hybrid": result(0.2, coverage=0.25)})
    assert table.splitlines() == [
        "| | ndcg@10 | recall@10 | recall@10/cold | coverage@10 |",
        "|---|---:|---:|---:|---:|",
        "| hybrid | **0.2000 ±0.010** | **0.4000** | - | 0.2500 |",
        "| popularity | 0.1000 ±0.010 | 0.2000 | 0.0000 | **0.5000** |",
        "| targets | 1,234 | 1,234 | 20 | |",
    ]


@pytest.mark.parametrize("cold", [0, 3, 19])
def test_a_column_of_fewer_than_20_targets_is_named_but_not_shown(cold):
    results = {"hybrid": result(0.2, cold=0.0, counts=COUNTS | {"targets/cold": cold})}
    table = as_markdown(results)
    assert table.splitlines()[0] == "| | ndcg@10 | recall@10 | coverage@10 |"
    assert "0.0000" not in table
    note = f"Not shown, fewer than 20 targets: recall@10/cold ({cold})"
    assert table.endswith(f"| targets | 1,234 | 1,234 | |\n\n{note}\n")
    terminal = " ".join(shown(scoreboard(results)).split())
    assert terminal.endswith(note) and terminal.count("/cold") == 1
    assert as_json(results)["hybrid"]["recall@10/cold"] == 0.0  # the file keeps every figure


def test_few_queries_leave_only_what_needs_no_targets():
    table = as_markdown({"hybrid": result(0.2, counts={"queries": 9, "targets": 9, "targets/cold": 0})})
    assert table.splitlines()[0] == "| | coverage@10 |"
    assert "ndcg@10 (9), recall@10 (9), recall@10/cold (0)" in table


def test_the_number_of_targets_stands_below_each_column_of_the_terminal():
    last = shown(scoreboard({"a": result(0.1)})).splitlines()[-1]
    assert last.split() == ["targets", "1,234", "1,234", "20"]


def test_quoted_rows_have_only_the_figures_that_were_published():
    table = as_markdown({"a": result(0.1)}, {"*BSARec*, id-only": {"ndcg@10": 0.061, "recall@10": 0.1002}})
    assert table.splitlines()[3:5] == ["| *BSARec*, id-only | 0.0610 | 0.1002 | | |", table.splitlines()[-1]]


def test_a_mean_over_seeds_shows_the_spread_of_the_seeds():
    seeds = [result(value, coverage=value, per_query=np.full(9, value)) for value in (0.1, 0.2, 0.6)]
    line = as_markdown({"hybrid": averaged(seeds, bootstrap=10)}).splitlines()[2]
    assert line == (
        "| hybrid | **0.3000 ±0.000** (0.1000 to 0.6000) | **0.6000** (0.2000 to 1.2000) | - "
        "| **0.3000** (0.1000 to 0.6000) |"
    )
    alike = averaged([result(0.1, per_query=np.full(9, 0.1))] * 2, bootstrap=10)  # a baseline without a seed
    assert " to " not in as_markdown({"ease": alike})


def test_the_record_of_a_run_shows_the_same_table():
    results = {"a": result(0.1), "hybrid": result(0.2)}
    record = {
        "data": {"name": "shop"},
        "split": {"kind": "random", "seed": 1, "train_events": 7, **COUNTS, "queries": 3},
        "results": as_json(results),
        "intervals": {name: r.intervals for name, r in results.items()},
    }
    table = shown(scoreboard_of(json.loads(json.dumps(record))))
    assert table == shown(scoreboard(results, "shop: 3 test queries, random split"))
    assert "recall@10" in table and "1,234" in table


def test_the_refit_model_is_second_and_never_in_bold():
    rows = as_markdown({"ease": result(0.2), "hybrid_refit": result(0.4), "hybrid": result(0.3)}).splitlines()[2:5]
    assert [row.split(" | ")[0] for row in rows] == ["| hybrid", "| hybrid_refit", "| ease"]
    assert "**0.3000 ±0.010**" in rows[0] and "0.4000 ±0.010 | 0.8000" in rows[1] and "**" not in rows[1]


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
    assert len(lines) == 3  # popularity should give every user the same list
    assert alarm_lines(results | {"hybrid_refit": result(0.9, per_query=9 * poor)}) == lines  # no baseline
    assert alarm_lines({"hybrid": results["hybrid"]}) == ["hybrid: alike"]


def test_a_baseline_behind_a_noisy_one_is_named_if_it_is_ahead_beyond_chance():
    hybrid = np.full(40, 0.2)
    results = {
        "hybrid": result(0.2, per_query=hybrid),
        "popularity": result(0.1, per_query=hybrid - 0.1),
        "ease": result(0.25, per_query=hybrid + np.array([2.0, -1.9] * 20)),  # the best, but by chance
        "text": result(0.21, per_query=hybrid + 0.01),
        "markov": result(0.2, per_query=hybrid, alarms=["alike"]),  # of no interest to the reader
    }
    (line,) = alarm_lines(results)
    assert line.startswith("hybrid: text is ahead of it: ndcg@10 0.2100 against 0.2000")
