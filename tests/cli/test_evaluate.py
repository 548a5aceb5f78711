import json

import pytest


def test_json_is_the_only_thing_on_stdout(program, libraries, saved_model):
    answer = program("evaluate", saved_model, "--json")
    assert json.loads(answer.out)["results"] == {"hybrid": {"ndcg@10": 0.5}}
    assert "chatter of a library" in answer.err
    assert libraries.measured == [(saved_model, False)]


def test_table_and_alarms(program, libraries, saved_model):
    out = program("evaluate", saved_model).out
    assert out.startswith("made: 3 test queries") and out.endswith("\nalarm: hybrid: looks odd\n")


@pytest.mark.parametrize("refit", [True, False])
def test_a_run_and_refitting(program, libraries, tmp_path, refit):
    (tmp_path / "config.yaml").touch()
    assert program("evaluate", tmp_path, *(["--refit-baselines"] if refit else [])).code == 0
    assert libraries.measured == [(tmp_path, refit)]


def test_neither_run_nor_model_exits_4(program, libraries, tmp_path):
    answer = program("evaluate", tmp_path / "none")
    assert answer.code == 4
    assert "none does not exist" in answer.err
    assert libraries.measured == []
