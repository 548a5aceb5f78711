"""``tfllmrec events`` through the program, without stand-ins."""

import json

import pyarrow.parquet
import pytest

from tfllmrec.feedback.event_log import EventLog, Exposure


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.csv").write_text(
        "user,movie,time,event\nu1,1,2020-01-01 10:00,view\nu2,2,2020-01-02,buy\nu3,,2020,view\n"
    )
    (tmp_path / "b.jsonl").write_text('{"user_id": "u1", "item_id": "3", "event_id": "x", "rating": 4}\n')
    return tmp_path


def test_append_describe_export_and_read(program, files):
    log = files / "log"
    answer = program("events", "append", log, files / "a.csv", files / "b.jsonl")
    assert (answer.code, answer.out) == (0, "a.csv: 2 accepted, 1 refused, 2 late\nb.jsonl: 1 accepted\n")
    assert "refused: a.csv:4: no item_id" in answer.err
    document = json.loads(program("events", "append", log, files / "b.jsonl", files / "a.csv", "--json").out)
    assert [file["duplicates"] for file in document["files"]] == [1, 2]
    assert document["files"][1]["reasons"] == ["a.csv:4: no item_id: found kind, timestamp_s, user_id"]

    figures = json.loads(program("events", "describe", log, "--json").out)
    assert (figures["events"], figures["users"], figures["items"], figures["lists"]) == (3, 2, 3, 0)
    assert figures["kinds"] == {"": 1, "buy": 1, "view": 1}
    table = program("events", "describe", log).out
    assert "2020-01-01 10:00:00" in table and "(none) 1" in table

    told = json.loads(program("events", "export", log, files / "e.parquet", "--json").out)
    assert told["rows"] == 3
    with EventLog(log) as opened:
        opened.append([{"user_id": "u9", "item_id": "9", "timestamp_s": 1.6e9}])
        opened.write([], [Exposure("r", 1.7e9, "u9", "m", 1, "recommend", "9", 0)])
    answer = program("events", "export", log, files / "new.parquet", "--since", told["next"])
    assert answer.out.startswith(f"{files / 'new.parquet'}: 1 rows; the next export: --since ")
    assert pyarrow.parquet.read_table(files / "new.parquet")["user_id"].to_pylist() == ["u9"]
    assert program("events", "export", log, files / "x.csv", "--exposures").code == 0
    assert (files / "x.csv").read_text().splitlines()[1] == "r,1700000000.0,u9,m,1,recommend,9,0,1.0"
    searches = program("events", "export", log, files / "y.csv", "--exposures", "--policy", "search")
    assert searches.code == 3 and "its policies are 'recommend'" in " ".join(searches.err.split())
    refused = program("events", "export", log, files / "y.csv", "--exposures", "--reward", "buy")
    assert refused.code == 3 and "no events of kind 'buy' with a request_id" in " ".join(refused.err.split())

    described = json.loads(program("data", "describe", "--events", log, "--json").out)
    assert (described["events"], described["users"]) == (4, 3)


def test_columns_are_mapped(program, files):
    (files / "odd.csv").write_text("who,what,at\na,b,1600000000\n")
    log = files / "log"
    assert program("events", "append", log, files / "odd.csv").code == 3
    names = ("user_id=who", "item_id=what", "timestamp_s=at")
    options = [word for name in names for word in ("--set", f"data.columns.{name}")]
    assert program("events", "append", log, files / "odd.csv", *options).out == "odd.csv: 1 accepted, 1 late\n"


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["append", "log", "none.csv"], 3, "none.csv does not exist"),
        (["append", "log", "a.csv", "--set", "seed=1"], 2, "expected a setting of the section data"),
        (["describe", "nowhere"], 3, "nowhere is not an event log"),
        (["export", "nowhere", "x.csv"], 3, "nowhere is not an event log"),
        (["export", "log", "x.xlsx"], 2, "expected a name that ends in .csv"),
    ],
)
def test_what_is_wrong_is_said(program, files, monkeypatch, words, code, what):
    monkeypatch.chdir(files)
    answer = program("events", *words)
    assert answer.code == code and what in " ".join(answer.err.split())
