import json
from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "made.yaml"
    path.parent.mkdir()
    path.write_text("data: {source: raw}\ntraining: {epochs: 3}\n")
    return path


def test_config_with_overrides(program, libraries, config, tmp_path):
    answer = program("fit", config, "--set", "training.epochs=5", "--set", "seed=7", "--out", tmp_path / "run")
    assert answer.code == 0
    ((asked, out, base, resume),) = libraries.fitted
    assert (asked.training.epochs, asked.seed, asked.data.source) == (5, 7, "raw")
    assert (out, base, resume) == (tmp_path / "run", config.parent, False)


def test_prints_the_scoreboard_to_stdout_and_the_rest_to_stderr(program, libraries, config, tmp_path):
    answer = program("fit", config, "--out", tmp_path / "run")
    assert answer.out.startswith("made: 3 test queries") and answer.out.endswith("\nalarm: hybrid: looks odd\n")
    assert "chatter of a library" in answer.err
    assert f"tfllmrec export {tmp_path / 'run'} saved_models/run" in answer.err


def test_json_is_the_only_thing_on_stdout(program, libraries, config, tmp_path):
    answer = program("fit", config, "--out", tmp_path / "run", "--json")
    assert json.loads(answer.out)["results"] == {"hybrid": {"ndcg@10": 0.5}}
    assert "saved_models/run" in answer.err


def test_files_alone(program, libraries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = program("fit", "--events", "e.csv", "--items", "i.csv", "--set", "data.columns.user_id=who")
    assert answer.code == 0
    ((asked, out, base, _),) = libraries.fitted
    assert (asked.data.events, asked.data.items, asked.data.users) == (Path("e.csv"), Path("i.csv"), None)
    assert asked.data.columns == {"user_id": "who"}
    assert (out, base) == (None, Path())


@pytest.mark.parametrize("arguments", [[], ["--items", "i.csv"], ["CONFIG", "--events", "e.csv"]])
def test_arguments_that_do_not_go_together(program, libraries, config, arguments):
    assert program("fit", *[config if a == "CONFIG" else a for a in arguments]).code == 2
    assert libraries.fitted == []


def test_a_wrong_config_exits_2_and_names_the_key(program, libraries, config):
    answer = program("fit", config, "--set", "training.epoch=5")
    assert answer.code == 2
    assert "training.epoch" in answer.err
    assert "nearest: training.epochs" in answer.err


def begun(folder, text="training: {epochs: 3}\ndata: {source: data}\n"):
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    return folder


def test_resume_takes_the_config_of_the_run(program, libraries, tmp_path):
    run = begun(tmp_path / "run")
    assert program("fit", "--resume", run).code == 0
    ((asked, out, base, resume),) = libraries.fitted
    assert (asked.training.epochs, out, base, resume) == (3, run, run, True)


def test_resume_beside_a_config_that_agrees(program, libraries, config, tmp_path):
    assert program("fit", config, "--resume", begun(tmp_path / "run")).code == 0
    assert libraries.fitted[0][0].data.source == "data"  # the run's own copy


@pytest.mark.parametrize("change", ["training.epochs=4", "seed=1"])
def test_resume_refuses_other_settings(program, libraries, config, tmp_path, change):
    answer = program("fit", config, "--set", change, "--resume", begun(tmp_path / "run"))
    assert answer.code == 2
    assert change.partition("=")[0] in answer.err
    assert libraries.fitted == []


def test_resume_with_a_setting_alone_compares_it(program, libraries, tmp_path):
    run = begun(tmp_path / "run")
    assert program("fit", "--resume", run, "--set", "training.epochs=4").code == 2
    assert program("fit", "--resume", run, "--set", "training.epochs=3").code == 0


def test_a_setting_alone_is_no_experiment(program, libraries):
    assert program("fit", "--set", "seed=1").code == 2
    assert libraries.fitted == []


def test_resume_of_nothing(program, libraries, tmp_path):
    answer = program("fit", "--resume", tmp_path / "none")
    assert answer.code == 2
    assert "nothing to resume" in answer.err


def test_resume_elsewhere_is_refused(program, libraries, tmp_path):
    assert program("fit", "--resume", begun(tmp_path / "run"), "--out", tmp_path / "other").code == 2


@pytest.mark.parametrize("named", [True, False])
def test_ctrl_c_says_how_to_go_on(program, libraries, config, tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    libraries.raises = KeyboardInterrupt()
    answer = program("fit", config, *(["--out", "runs/mine"] if named else []))
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.endswith(f"tfllmrec fit --resume {'runs/mine' if named else '<that run folder>'}\n")
