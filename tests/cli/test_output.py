import math

import pytest

from tfllmrec.cli.output import print_json, print_list, print_metrics, working


def test_json_refuses_nan():
    with pytest.raises(ValueError):
        print_json({"score": math.nan})


def test_what_a_library_prints_goes_to_stderr(capsys):
    with working():
        print("chatter")
    assert capsys.readouterr() == ("", "chatter\n")


def test_list_leaves_out_columns_that_say_nothing(capsys, item):
    print_list([item("7", "7", 0.25), item("8", "8", 0.125)])
    out = capsys.readouterr().out
    assert "0.2500" in out
    assert "title" not in out
    assert "reason" not in out


def test_titles_are_text_not_markup(capsys, item):
    print_list([item("7", "[b]REC[/b]", 0.25, "[red]")])
    out = capsys.readouterr().out
    assert "[b]REC[/b]" in out
    assert "[red]" in out


def test_an_empty_list_says_so_on_stderr(capsys):
    print_list([])
    assert capsys.readouterr() == ("", "nothing is left to recommend\n")


def test_the_widest_scoreboard_fits_80_characters(capsys):
    names = ("ndcg@10", "recall@10", "recall@10/head", "recall@10/tail", "recall@10/cold", "coverage@10")
    figures = dict.fromkeys(names, 0.1234)
    recommenders = ("hybrid", "popularity", "two_tower")
    print_metrics(
        {
            "data": {"name": "movielens-100k"},
            "split": {
                "kind": "leave_last_out",
                "queries": 99_943,
                "targets": 99_943,
                **{f"targets/{stratum}": 10_000 for stratum in ("head", "tail", "cold")},
            },
            "results": dict.fromkeys(recommenders, figures),
            "intervals": {name: {"ndcg@10": [0.11, 0.14]} for name in recommenders},
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum("0.1234 ±0.015" in line for line in lines) == 3
    assert lines[-1].split() == ["targets", "99,943", "99,943", "10,000", "10,000", "10,000"]
    assert max(map(len, lines)) <= 80
