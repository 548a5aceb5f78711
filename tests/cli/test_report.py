import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfllmrec.errors import DataError

DIFFERENCES = {"ndcg@10": {"popularity": {"difference": -0.2, "low": -0.3, "high": -0.1}}}


@pytest.fixture
def written(monkeypatch):
    """What the command had written; the library is replaced."""
    calls = []

    def write_report(runs, out=None):
        print("chatter of a library")
        if "bad" in runs[0].name:
            raise DataError("other data")
        calls.append(("report", runs, out))
        path = out or runs[0] / "report.html"
        return SimpleNamespace(path=path, headline="It is \x1b good.", differences=lambda: DIFFERENCES)

    def write_card(run, out=None):
        calls.append(("card", run, out))
        return out or run / "CARD.md"

    for name, content in (("report", {"write_report": write_report}), ("card", {"write_card": write_card})):
        module = types.ModuleType(f"tfllmrec.explain.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_of_one_run_page_and_card(program, written):
    answer = program("report", "runs/a")
    assert written == [("report", [Path("runs/a")], None), ("card", Path("runs/a"), None)]
    assert answer.out == "It is \\x1b good.\n"
    assert answer.err.endswith("report: runs/a/report.html\ncard: runs/a/CARD.md\n")


def test_of_several_runs_there_is_no_card(program, written):
    assert program("report", "runs/a", "runs/b").code == 0
    assert written == [("report", [Path("runs/a"), Path("runs/b")], None)]


@pytest.mark.parametrize(("out", "made"), [("x.html", "report"), ("X.MD", "card")])
def test_the_suffix_says_which(program, written, out, made):
    assert program("report", "runs/a", "--out", out).code == 0
    assert [(kind, path) for kind, _, path in written] == [(made, Path(out))]


def test_json(program, written):
    answer = program("report", "runs/a", "--json")
    assert json.loads(answer.out) == {
        "report": "runs/a/report.html",
        "headline": "It is \x1b good.",
        "differences": DIFFERENCES,
        "card": "runs/a/CARD.md",
    }
    assert "chatter of a library" in answer.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report"], "Missing argument"),
        (["report", "runs/a", "--out", "folder"], "expected FILE.html or FILE.md, found folder"),
        (["report", "runs/a", "runs/b", "--out", "x.md"], "a model card has one run, found 2"),
    ],
)
def test_usage_errors_exit_2(program, written, arguments, said):
    answer = program(*arguments)
    assert (answer.code, answer.out) == (2, "") and said in " ".join(answer.err.replace("│", " ").split())
    assert written == []


def test_errors_have_their_exit_codes(program, written):
    answer = program("report", "runs/bad", "runs/b")
    assert (answer.code, answer.out) == (3, "") and answer.err.endswith("error: other data\n")
