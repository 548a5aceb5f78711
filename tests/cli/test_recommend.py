import json

import pandas as pd
import pytest
from pyarrow import parquet

from tfllmrec.cli.recommend import _note_unread
from tfllmrec.client.answers import Answer, to_frame


def test_a_known_user(program, libraries, saved_model):
    answer = program("recommend", saved_model, "--user", "u1", "--k", "2", "--json")
    assert libraries.models[0].calls == [("recommend", None, 2, [["a", "b"]], [[5.0, 1.0]], [])]
    document = json.loads(answer.out)
    assert (document["user"], document["history"]) == ("u1", ["a", "b"])
    assert document["items"][0] == {"rank": 1, "item_id": "c", "title": "Title c", "score": 1.0, "reason": "because"}
    assert "chatter of a library" in answer.err


def test_somebody_never_seen(program, libraries, saved_model):
    answer = program("recommend", saved_model, "--history", "e, zz", "--exclude", "a", "--json")
    assert libraries.models[0].calls == [("recommend", None, 10, [["e", "zz"]], None, ["a"])]
    document = json.loads(answer.out)
    assert (document["user"], document["unknown"]) == (None, ["zz"])
    assert [i["item_id"] for i in document["items"]] == ["b", "c", "d"]


def test_rules_of_a_list_for_one_user_and_for_a_file(program, libraries, saved_model, tmp_path):
    rules = ["--diversity", "0.4", "--pin", "d,zz", "--category-cap", "2", "--tail-share", "0.3", "--skip", "ranking"]
    rules += ["--more", "label, a", "--less", "label b", "--more", "label c"]
    answer = program("recommend", saved_model, "--user", "u1", *rules, "--json")
    assert json.loads(answer.out)["unknown"] == ["zz"]
    (tmp_path / "users.csv").write_text("u1\n")
    file = ("--users", tmp_path / "users.csv", "--out", tmp_path / "o.csv")
    assert json.loads(program("recommend", saved_model, *file, *rules, "--json").out)["unknown"] == ["zz"]
    program("recommend", saved_model, "--user", "u1")
    asked = {"diversity": 0.4, "pinned": ["d", "zz"], "category_cap": 2, "tail_share": 0.3, "skip": ["ranking"]}
    asked |= {"label_weights": {"label, a": 1, "label c": 1, "label b": -1}}
    none = {"diversity": 0, "pinned": [], "category_cap": 0, "tail_share": 0, "skip": [], "label_weights": {}}
    assert [model.rules for model in libraries.models] == [asked, asked, none]
    for wrong, said in (
        ("--diversity 2", "expected at most 1"),
        ("--tail-share -1", "expected at least 0"),
        ("--category-cap -1", "expected at least 0"),
        ("--k 0", "'--k' / '-k': expected at least 1"),
        ("--k few", "'--k' / '-k': expected a whole number"),
        ("--skip retrieval", "--skip retrieval: expected exclusion, ranking."),
    ):
        answer = program("recommend", saved_model, "--user", "u1", *wrong.split())
        assert answer.code == 2 and said in " ".join(answer.err.replace("│", "").split())


def test_labels_that_the_model_does_not_have_are_named(program, libraries, saved_model, tmp_path):
    weights = ["--more", "label a", "--more", "nope", "--less", "neither"]
    said = "the model does not have these labels ('tfllmrec interests' shows some): nope, neither"
    assert said in program("recommend", saved_model, "--user", "u1", *weights).err
    (tmp_path / "users.csv").write_text("u1\nu2\n")
    err = program(
        "recommend", saved_model, "--users", tmp_path / "users.csv", "--out", tmp_path / "o.csv", *weights
    ).err
    assert err.count(said) == 1
    assert "fewer than 10 rows, because no further candidate passes: 2 users\n" in err
    assert "these labels" not in program("recommend", saved_model, "--user", "u1", *weights[:2]).err
    answer = program("recommend", saved_model, "--user", "u1", "--more", "x", "--less", "x")
    assert answer.code == 2 and "--more and --less x: expected one of them" in " ".join(answer.err.split())


def test_labels_are_not_blamed_for_what_else_was_not_read(capsys):
    class Model:
        def recommend(self, histories, k, label_weights):
            return to_frame([Answer([], unread=int("nope" in label_weights)) for _ in histories])

    for labels, said in (({"label a": 1.0}, ""), ({"label a": 1.0, "nope": -1.0}, "shows some): nope\n")):
        found = to_frame([Answer([], unread=2)])  # such as two entries of the context
        _note_unread(Model(), found, {"label_weights": labels})
        err = capsys.readouterr().err
        assert err.endswith(said) and bool(err) == bool(said)


CONTEXT_FIELDS = [{"name": "hour", "owner": owner, "kind": "number"} for owner in ("request", "user")]
CONTEXT_FIELDS += [{"name": name, "owner": "user", "kind": "text"} for name in ("about", "age")]


def test_fields_of_the_request_and_the_user(program, libraries, saved_model, tmp_path):
    about = "about = gritty space opera"
    assert program("recommend", saved_model, "--history", "", "--context", about).code == 0
    assert libraries.models[0].fields == {"context": [{"about": " gritty space opera"}], "event_fields": [None]}
    answer = program("recommend", saved_model, "--user", "u1", "--context", "about=a=b", "--context", "age=4")
    assert "no such field" not in answer.err
    assert libraries.models[1].fields["context"] == [{"age": "4", "about": "a=b"}]  # the rest is in the data
    err = program("recommend", saved_model, "--history", "a", "--context", "abuot=x", "--context", "age=4").err
    assert "the model has no such field of requests and users: abuot (it has none)\n" in err and "age" not in err
    libraries.manifest = {"schema": CONTEXT_FIELDS}
    program("recommend", saved_model, "--user", "u1", "--context", "about=x", "--context", "user.age=4")
    assert libraries.models[-1].fields["context"] == [{"age": "30", "user.about": "x", "user.age": "4"}]
    for twice in (["about=x", "user.about=y"], ["hour=3", "user.hour=4"], ["nope=1", "nope=2"]):
        given = [part for entry in twice for part in ("--context", entry)]
        answer = program("recommend", saved_model, "--history", "", *given)
        name = twice[0].partition("=")[0]
        said = f"--context {twice[1].partition('=')[0]}: expected each field once, found {name} as well"
        assert answer.code == 2 and said in " ".join(answer.err.replace("│", "").split())
    file = ["--users", tmp_path / "users.csv", "--out", tmp_path / "o.csv"]
    for given, said in (
        (["--user", "u1", "--context", "about"], "--context about: expected NAME=VALUE"),
        (["--user", "u1", "--context", "=about"], "--context =about: expected NAME=VALUE"),
        ([*file, "--context", "a=b"], "--context goes with --user ID or --history ID,ID"),
    ):
        answer = program("recommend", saved_model, *given)
        assert answer.code == 2 and said in " ".join(answer.err.replace("│", "").split())


def test_what_has_no_effect_is_said(program, libraries, saved_model, monkeypatch):
    libraries.manifest = {"schema": CONTEXT_FIELDS, "reads": ["user.age"]}
    context = ["--context", "about=x", "--context", "age=4", "--category-cap", "2"]
    err = program("recommend", saved_model, "--history", "", *context).err
    assert "the model ranks without these fields; only business rules may read them: user.about\n" in err
    assert "category" not in err
    libraries.manifest = {"schema": CONTEXT_FIELDS, "reads": ["request.hour"]}
    err = program("recommend", saved_model, "--history", "", "--context", "about=x").err
    assert "this model reads no text of users: user.about\n" in err and "ranks without" not in err
    monkeypatch.setattr(type(libraries.models[0]), "categories", frozenset())
    err = program("recommend", saved_model, "--history", "", "--category-cap", "2").err
    assert "no item has a category, so --category-cap has no effect\n" in err


def test_an_empty_history_is_somebody_too(program, libraries, saved_model):
    assert program("recommend", saved_model, "--history", "").code == 0
    assert libraries.models[0].calls[0][3] == [[]]


@pytest.mark.parametrize("command", ["recommend --history a", "search text", "similar a"])
def test_a_list_that_filters_or_caps_leave_short_is_told(program, saved_model, libraries, command):
    name, *asked = command.split()
    said = "4 of 8: no further candidate passes" if name != "search" else "5 of 8: no further candidate passes"
    answer = program(name, saved_model, *asked, "--k", "8")
    assert answer.err.endswith(f"{said}\n")
    assert "no further" not in program(name, saved_model, *asked, "--k", "4").err
    assert "no further" not in program(name, saved_model, *asked, "--k", "8", "--json").err


def test_table(program, libraries, saved_model):
    out = program("recommend", saved_model, "--user", "u1").out
    assert "Title c" in out
    assert "because" in out


def test_unknown_user_exits_3(program, libraries, saved_model):
    answer = program("recommend", saved_model, "--user", "u9")
    assert (answer.code, answer.out) == (3, "")
    assert "Near: u1" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--user u1 --history a",
        "--users people.txt",
        "--user u1 --out x.jsonl",
        "--users people.txt --out x.xlsx",
        "--users people.txt --out x",
    ],
)
def test_arguments_that_do_not_go_together(program, libraries, saved_model, arguments):
    assert program("recommend", saved_model, *arguments.split()).code == 2
    assert libraries.models == []


ROWS = [
    {"user_id": "u2", "rank": 1, "item_id": "a", "title": "Title a", "score": 1.0, "reason": "because"},
    {"user_id": "u2", "rank": 2, "item_id": "b", "title": "Title b", "score": 0.5, "reason": "because"},
    {"user_id": "u1", "rank": 1, "item_id": "c", "title": "Title c", "score": 1.0, "reason": "because"},
    {"user_id": "u1", "rank": 2, "item_id": "e", "title": "Title e", "score": 0.5, "reason": "because"},
]
READ = {
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".parquet": lambda path: parquet.read_table(path).to_pylist(),
    ".csv": lambda path: pd.read_csv(path).to_dict("records"),
    ".tsv": lambda path: pd.read_csv(path, sep="\t").to_dict("records"),
}


@pytest.mark.parametrize("batch", [1, 1000])
@pytest.mark.parametrize("suffix", READ)
def test_a_file_of_users(program, libraries, saved_model, tmp_path, monkeypatch, suffix, batch):
    monkeypatch.setattr("tfllmrec.cli.recommend.BATCH", batch)
    (tmp_path / "people.txt").write_text("u2\nu9\nu1\n")
    out = tmp_path / f"answers{suffix}"
    answer = program(
        "recommend", saved_model, "--users", tmp_path / "people.txt", "--out", out, "--k", 2, "--exclude", "d", "--json"
    )
    assert READ[suffix](out) == ROWS
    assert json.loads(answer.out) == {
        "file": str(out),
        "users": 2,
        "rows": 4,
        "without_data": ["u9"],
        "unknown": [],
    }
    assert "1 users: u9" in answer.err and "recommending: 2 users in " in answer.err
    asked = [["u2"], ["u1"]] if batch == 1 else [["u2", "u1"]]
    assert libraries.models[0].calls == [("recommend", users, 2, None, None, ["d"]) for users in asked]


def test_nobody_with_data_exits_3_and_writes_nothing(program, libraries, saved_model, tmp_path):
    (tmp_path / "people.txt").write_text("u8\nu9\n")
    answer = program("recommend", saved_model, "--users", tmp_path / "people.txt", "--out", tmp_path / "x.jsonl")
    assert answer.code == 3
    assert "none of the 2 users" in answer.err
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("suffix", READ)
def test_a_failure_half_way_leaves_the_old_file(program, libraries, saved_model, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("tfllmrec.cli.recommend.BATCH", 1)
    (tmp_path / "people.txt").write_text("u1\nu-fails\n")
    out = tmp_path / f"x{suffix}"
    out.write_text("old")
    assert program("recommend", saved_model, "--users", tmp_path / "people.txt", "--out", out).code == 1
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "people.txt", out.name]
    assert [call[1] for call in libraries.models[0].calls] == [["u1"], ["u-fails"]]


def test_an_output_folder_that_is_not_there_exits_2(program, libraries, saved_model, tmp_path):
    (tmp_path / "people.txt").write_text("u1\n")
    out = tmp_path / "none" / "x.jsonl"
    assert program("recommend", saved_model, "--users", tmp_path / "people.txt", "--out", out).code == 2


def test_unknown_users_are_not_compared_with_all_known_ones(program, libraries, saved_model, tmp_path):
    # Looking for near ids compares the unknown one with every known one, which is for one --user alone.
    (tmp_path / "people.txt").write_text("\n".join(["u1", *(f"x{n}" for n in range(50))]))
    asked = ["--users", tmp_path / "people.txt", "--out", tmp_path / "x.jsonl"]
    answer = program("recommend", saved_model, *asked)
    assert answer.code == 0 and "50 users: x0, x1" in answer.err and "and 30 more (--json lists all)" in answer.err
    assert libraries.models[0].searched == []
    (tmp_path / "people.txt").write_text("\n".join(f"x{n}" for n in range(50)))
    refused = program("recommend", saved_model, *asked)
    assert refused.code == 3 and "none of the 50 users" in refused.err and ": x0, x1" in refused.err
    assert "and 30 more. " in refused.err and "--json" not in refused.err  # an error lists nothing more
    assert libraries.models[1].searched == []


def test_a_file_of_users_is_read_like_any_table(program, libraries, saved_model, tmp_path):
    (tmp_path / "people.csv").write_text("Kunde;age\nu2;3\nu1;4\nu2;5\n")
    asked = ["--users", tmp_path / "people.csv", "--out", tmp_path / "x.jsonl"]
    refused = program("recommend", saved_model, *asked)
    assert refused.code == 3 and "Map it: --set data.columns.user_id=" in refused.err
    answer = program("recommend", saved_model, *asked, "--set", "data.columns.user_id=Kunde", "--json")
    assert json.loads(answer.out)["users"] == 2
    assert "users: people.csv (user_id <- Kunde; not used: age)" in answer.err
    assert "users: 1 dropped: the user_id occurs again" in answer.err


@pytest.mark.parametrize(
    "arguments", ["--user u1 --set data.encoding=latin-1", "--users p.txt --out x.jsonl --set seed=1"]
)
def test_settings_that_would_do_nothing(program, libraries, saved_model, arguments):
    answer = program("recommend", saved_model, *arguments.split())
    assert answer.code == 2 and "--set goes with --users FILE" in " ".join(answer.err.split())


def test_filters(program, libraries, saved_model):
    given = ["--allow", "b, zz", "--category", "Drama", "--category", "comedy"]
    answer = program("recommend", saved_model, "--history", "a", *given)
    assert answer.code == 0
    assert "zz" in answer.err and "no item has the category 'comedy'; near: Comedy" in answer.err
    program("recommend", saved_model, "--history", "a", "--allow", "")
    program("recommend", saved_model, "--history", "a")
    assert [model.filters for model in libraries.models] == [
        [(["b", "zz"], ["Drama", "comedy"])], [([], [])], [(None, [])],
    ]  # fmt: skip


def test_filters_for_a_file_of_users(program, libraries, saved_model, tmp_path):
    (tmp_path / "people.txt").write_text("u2\nu1\n")
    asked = ["--users", tmp_path / "people.txt", "--out", tmp_path / "answers.jsonl"]
    assert program("recommend", saved_model, *asked, "--allow", "a,b", "--category", "Drama").code == 0
    assert libraries.models[0].filters == [(["a", "b"], ["Drama"])]
