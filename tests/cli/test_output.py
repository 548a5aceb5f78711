import json
import math
import re
from pathlib import Path

import pytest

from tfllmrec.cli import output
from tfllmrec.cli.output import note, print_json, print_list, print_metrics, say, working


def test_json_refuses_nan():
    with pytest.raises(ValueError):
        print_json({"score": math.nan})


def test_what_a_library_prints_goes_to_stderr(capsys):
    with working():
        print("chatter")
    assert capsys.readouterr() == ("", "chatter\n")


def test_list_leaves_out_columns_that_say_nothing(capsys, found):
    print_list(found(("7", "7", 0.25), ("8", "8", 0.125)))
    out = capsys.readouterr().out
    assert "0.2500" in out
    assert "title" not in out
    assert "reason" not in out


def test_a_short_list_is_told(capsys, found):
    print_list(found(("7", "7", 0.25), ("8", "8", 0.125)), 3)
    assert capsys.readouterr().err == "2 of 3: no further candidate passes\n"
    print_list(found(("7", "7", 0.25), ("8", "8", 0.125)), 2)
    assert capsys.readouterr().err == ""


def test_titles_are_text_not_markup(capsys, found):
    print_list(found(("7", "[b]REC[/b]", 0.25, "[red]")))
    out = capsys.readouterr().out
    assert "[b]REC[/b]" in out
    assert "[red]" in out


def test_an_empty_list_says_so_on_stderr(capsys, found):
    print_list(found())
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


ODD = "evil\x1b[2J\u202e\r\n\u200b"
SHOWN = r"evil\x1b[2J\u202e\r\n\u200b"


def test_invisible_characters_are_shown_in_tables_and_lines(capsys, found):
    print_list(found((f"id{ODD}", f"title{ODD}", 0.25, f"because{ODD}")))
    say(ODD)
    note(ODD)
    printed = capsys.readouterr()
    assert printed.out.count(SHOWN) == 4 and printed.err == f"{SHOWN}\n"
    assert not set(ODD) - set("evil[2J\n") & set(printed.out + printed.err)


def test_invisible_characters_of_a_data_set_s_name_and_of_alarms_are_shown(capsys):
    print_metrics(
        {
            "data": {"name": ODD},
            "split": {"kind": "random", "queries": 1},
            "results": {"hybrid": {"ndcg@10": 0.5}},
            "intervals": {"hybrid": {}},
            "alarms": [ODD],
        }
    )
    assert capsys.readouterr().out.count(SHOWN) == 2


def test_json_has_its_own_escapes(capsys):
    print_json({"title": ODD})
    assert json.loads(capsys.readouterr().out) == {"title": ODD}


# The line that begins with "def tell" is in a script of doctor, which another process runs.
PRINTING = re.compile(
    r"^(?!def tell).*(?<![\w.])print\(|\.print\((?!table\)|scoreboard_of\()|\.rule\((?!\")|rich\.text"
    r"|sys\.(stdout|stderr)\.write",
    re.MULTILINE,
)


def test_no_command_prints_by_another_way():
    """Text of files goes through say, note and cell alone, which show its invisible characters."""
    commands = (Path(output.__file__).parent).glob("*.py")
    others = {path.name: path.read_text() for path in commands if path.name != "output.py"}
    assert [name for name, text in others.items() if PRINTING.search(text) and name != "app.py"] == []


@pytest.mark.parametrize(
    ("line", "prints"),
    [
        ("    print(text)", True),
        ("    console().print(text)", True),
        ("    console().print(f'{table}')", True),
        ("    out_console.rule(title)", True),
        ("    sys.stdout.write(text)", True),
        ("from rich.text import Text", True),
        ("    console().print(table)", False),
        ("    console().print(scoreboard_of(metrics))", False),
        ('    out_console.rule("1. Data", align="left")', False),
        ("    _print(found)", False),
        ("def tell(**what): print(json.dumps(what), flush=True)", False),
    ],
)
def test_other_ways_to_print_are_found(line, prints):
    assert bool(PRINTING.search(f"{line}\n")) == prints
