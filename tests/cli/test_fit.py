import json
from pathlib import Path

import pytest

from tfllmrec.errors import WriteError


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
    assert "nearest: 'training.epochs'" in answer.err


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
    allowed = "--set tuning.paraphrase=words:again"
    answer = program("fit", config, "--out", "runs/other", *allowed.split())
    assert answer.err.endswith(f"tfllmrec fit --resume runs/other {allowed}\n")


def test_a_full_disk_is_told_in_one_message(program, libraries, config, tmp_path):
    libraries.raises = WriteError("runs/mine cannot be written: No space left on device.", "Make room.")
    answer = program("fit", config, "--out", tmp_path / "run")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.endswith("error: runs/mine cannot be written: No space left on device.\nMake room.\n")
    assert "Traceback" not in answer.err and "bug" not in answer.err


@pytest.mark.parametrize(
    "given",
    [["--events", "other.csv"], ["--events", "e.csv", "--items", "other.csv"], ["--set", "data.encoding=latin-1"]],
)
@pytest.mark.parametrize("recorded", [True, False])
def test_resume_refuses_other_data(program, libraries, tmp_path, given, recorded):
    run = begun(tmp_path / "run")
    if recorded:
        (run / "source.json").write_text('{"events": "e.csv", "items": "i.csv"}')
    answer = program("fit", "--resume", run, *given)
    assert answer.code == 2 and "data." in answer.err and "Leave them out" in answer.err
    assert libraries.fitted == []


def test_resume_accepts_the_files_that_the_run_was_begun_with(program, libraries, tmp_path):
    run = begun(tmp_path / "run")
    (run / "source.json").write_text('{"events": "e.csv", "items": "i.csv"}')
    assert program("fit", "--resume", run, "--events", "e.csv", "--items", "i.csv").code == 0
    assert libraries.fitted[0][0].data.source == "data"


def test_a_damaged_source_of_a_run_is_named(program, libraries, tmp_path):
    run = begun(tmp_path / "run")
    (run / "source.json").write_text("[1]")
    answer = program("fit", "--resume", run, "--events", "e.csv")
    assert answer.code == 4 and "source.json is damaged" in answer.err


def test_resume_calls_a_function_only_if_it_is_named_again(program, libraries, tmp_path):
    run = begun(tmp_path / "run", "tuning: {paraphrase: 'words:again'}\n")
    assert program("fit", "--resume", run).code == 0
    assert program("fit", "--resume", run, "--set", "tuning.paraphrase=words:again").code == 0
    assert [asked.tuning.paraphrase for asked, *_ in libraries.fitted] == [None, "words:again"]
    assert program("fit", "--resume", run, "--set", "tuning.paraphrase=other:one").code == 2
    answer = program("fit", run / "config.yaml", "--out", tmp_path / "again")
    assert answer.code == 2 and "--set tuning.paraphrase=words:again" in answer.err
