import json

import pytest


def test_json_is_the_only_thing_on_stdout(program, libraries, saved_model):
    answer = program("evaluate", saved_model, "--json")
    assert json.loads(answer.out)["results"] == {"hybrid": {"ndcg@10": 0.5}}
    assert "chatter of a library" in answer.err
    assert libraries.measured == [(saved_model / "10", False)]


def test_table_and_alarms(program, libraries, saved_model):
    assert program("evaluate", saved_model).out == "scoreboard of made\nalarm: hybrid: looks odd\n"


@pytest.mark.parametrize("refit", [True, False])
def test_a_run_and_refitting(program, libraries, tmp_path, refit):
    (tmp_path / "config.yaml").touch()
    assert program("evaluate", tmp_path, *(["--refit-baselines"] if refit else [])).code == 0
    assert libraries.measured == [(tmp_path, refit)]


def test_neither_run_nor_model_exits_4(program, libraries, tmp_path):
    assert program("evaluate", tmp_path / "none").code == 4
