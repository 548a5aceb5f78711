import math

import pytest

from tfllmrec.cli.output import print_json, print_list, working


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
