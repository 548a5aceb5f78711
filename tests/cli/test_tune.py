import json
import sys

import pytest

ALLOWED = ["--set", "tuning.paraphrase=words:again"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "made.yaml"
    path.parent.mkdir()
    path.write_text("data: {source: raw}\nmodel: {dropout: 0.2}\n")
    return path


def test_the_usual_settings_but_for_those_that_are_set(program, libraries, config, tmp_path):
    answer = program("tune", config, "--set", "model.blocks=1", "--out", tmp_path / "search")
    assert answer.code == 0
    ((asked, out, base, space, trials),) = libraries.tuned
    assert (asked.data.source, asked.model.blocks, out, base) == ("raw", 1, tmp_path / "search", config.parent)
    assert trials == 20
    keys = [line.partition("=")[0] for line in space]
    assert "training.learning_rate" in keys and not {"model.dropout", "model.blocks"} & set(keys)


def test_what_to_search(program, libraries, config):
    over = (
        "--over",
        "model.dropout=0.1..0.5",
        "--over",
        "training.learning_rate=1e-4..1e-2:log",
        "--over",
        "model.blocks=1,2",
    )
    assert program("tune", config, *over, "--trials", 3).code == 0
    ((_, out, _, space, trials),) = libraries.tuned
    assert space == ["model.dropout=0.1..0.5", "training.learning_rate=0.0001..0.01:log", "model.blocks=1, 2"]
    assert (out, trials) == (None, 3)


def test_files_alone(program, libraries):
    assert program("tune", "--events", "e.csv", "--items", "i.csv").code == 0
    assert str(libraries.tuned[0][0].data.events) == "e.csv"


def test_prints_the_best_trials_and_what_matters(program, libraries, config, tmp_path):
    answer = program("tune", config, "--out", tmp_path / "search")
    rows = [line.split() for line in answer.out.splitlines()]
    assert [row for row in rows if row and row[0].isdigit() and len(row) == 7] == [
        ["3", "0.2346", "0.2000", "0.4000", "-", "0.3", "3"],
        ["1", "0.1235", "0.2000", "0.4000", "-", "0.123", "2"],
    ]
    assert answer.out.endswith("3 trials: 2 complete, 1 pruned\nwhat matters: dropout 75%, blocks 25%\n")
    assert "chatter of a library" in answer.err
    folder = tmp_path / "search"
    assert f"tfllmrec fit {folder / 'best.yaml'} --out {folder}-best\n" in answer.err
    assert f"tfllmrec board {folder}" in answer.err


def test_json_is_the_only_thing_on_stdout(program, libraries, config):
    answer = program("tune", config, "--json")
    assert json.loads(answer.out) == {"best": 3}
    assert "runs/tune/best.yaml" in answer.err


def test_resume(program, libraries, tmp_path):
    assert program("tune", "--resume", tmp_path).code == 0
    assert program("tune", "--resume", tmp_path, "--trials", 40, "--json").code == 0
    assert libraries.tuned == [(tmp_path, None, None), (tmp_path, 40, None)]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--items", "i.csv"],
        ["--set", "seed=1"],
        ["CONFIG", "--events", "e.csv"],
        ["CONFIG", "--trials", "0"],
        ["CONFIG", "--resume", "s"],
        ["--resume", "s", "--set", "seed=1"],
        ["--resume", "s", "--over", "model.blocks=1,2"],
        ["--resume", "s", "--out", "t"],
    ],
)
def test_arguments_that_do_not_go_together(program, libraries, config, arguments):
    answer = program("tune", *[config if a == "CONFIG" else a for a in arguments])
    assert (answer.code, answer.out) == (2, "")
    assert libraries.tuned == []


def test_a_bad_space_exits_2_before_anything_is_read(program, libraries, config):
    answer = program("tune", config, "--over", "model.dropuot=0.1..0.5")
    assert answer.code == 2
    assert "--over: model.dropuot is not a setting (nearest: 'model.dropout')" in answer.err
    assert libraries.tuned == []


def test_without_optuna_it_says_what_to_install(program, libraries, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = program("tune", config)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: 'tfllmrec tune' needs optuna")
    assert answer.err.endswith("pip install 'tfllmrec[tune]'\n")
    assert libraries.tuned == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CONFIG", "--out", "s"], "before the first trial; the same command starts again\n"),
        (["CONFIG"], "continue with: tfllmrec tune --resume <that search folder>\n"),
        (["--resume", "begun"], "continue with: tfllmrec tune --resume begun\n"),
        (["CONFIG", *ALLOWED], f"continue with: tfllmrec tune --resume <that search folder> {' '.join(ALLOWED)}\n"),
        (["--resume", "begun", *ALLOWED], f"continue with: tfllmrec tune --resume begun {' '.join(ALLOWED)}\n"),
    ],
)
def test_ctrl_c_says_how_to_go_on(program, libraries, config, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "search.json").touch()
    libraries.raises = KeyboardInterrupt()
    answer = program("tune", *[config if a == "CONFIG" else a for a in arguments])
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.endswith(said)


def test_resume_passes_the_function_that_may_be_called(program, libraries, tmp_path):
    assert program("tune", "--resume", tmp_path, "--set", "tuning.paraphrase=words:again").code == 0
    assert libraries.tuned == [(tmp_path, None, "words:again")]
    both = ["--set", "tuning.paraphrase=words:again", "--set", "seed=1"]
    assert program("tune", "--resume", tmp_path, *both).code == 2
