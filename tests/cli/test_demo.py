from pathlib import Path

import pytest

from tfllmrec import assets
from tfllmrec.cli.demo import demo_config
from tfllmrec.config import contradictions, dump_config, load_config
from tfllmrec.data import read_dataset

ROOT = Path(__file__).parents[2]


@pytest.fixture
def movielens(tmp_path, monkeypatch):
    """A registered data set with the users and items that the fake model knows."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "events.csv").write_text("user,item,rating\nu1,a,5\nu1,b,1\nu2,e,3\n")
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{i},Title {i}\n" for i in "abcde"))
    monkeypatch.setattr(assets, "data_set", lambda name: {"movielens-100k": folder}[name])
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def finished(libraries, movielens, tmp_path):
    """What a complete demo leaves in the run folder."""
    config = demo_config()
    read_dataset(config.data).save(tmp_path / "runs" / "movielens-100k" / "data")
    (tmp_path / "runs" / "movielens-100k" / "config.yaml").write_text(dump_config(config))
    return tmp_path / "runs" / "movielens-100k"


def test_the_whole_way(program, libraries, movielens):
    answer = program("demo")
    assert answer.code == 0, answer.err
    ((config, out, _, resume),) = libraries.fitted
    assert (config.data.source, out, resume) == ("movielens-100k", Path("runs/movielens-100k"), False)
    assert libraries.exported == [(Path("runs/movielens-100k"), Path("saved_models/movielens"))]
    assert "made: 3 test queries" in answer.out
    assert "User u1: 2 events, the last ones (with ratings): Title a (5); Title b (1)" in answer.out
    assert "because" in answer.out
    assert "Search: " in answer.out
    assert "Similar to Title a" in answer.out  # all were met once, the first wins
    assert [call[0] for call in libraries.models[0].calls] == [
        "recommend", "recommend", "recommend", "search", "similar",
    ]  # fmt: skip
    assert "tfllmrec board runs/movielens-100k" in answer.out


def test_a_second_time_goes_on_with_the_run_and_keeps_the_export(program, libraries, finished):
    libraries.exported.append((finished, Path("elsewhere")))
    Path("saved_models/movielens/1").mkdir(parents=True)
    assert program("demo").code == 0
    assert libraries.fitted[0][3] is True
    assert len(libraries.exported) == 1  # no second one


def test_an_export_of_another_run_is_not_taken(program, libraries, finished):
    libraries.exported.append((Path("another"), Path("elsewhere")))
    Path("saved_models/movielens/1").mkdir(parents=True)
    assert program("demo").code == 0
    assert len(libraries.exported) == 2


def test_a_run_with_other_settings_is_refused(program, libraries, finished):
    config = demo_config()
    config.training.learning_rate = 1.0
    (finished / "config.yaml").write_text(dump_config(config))
    answer = program("demo")
    assert answer.code == 2
    assert "training.learning_rate" in answer.err
    assert "--run" in answer.err
    assert libraries.fitted == []


def test_a_run_on_other_data_is_refused(program, libraries, finished, movielens):
    (movielens / "events.csv").write_text("user,item,rating\nu1,a,5\nu1,b,2\nu2,e,3\n")
    answer = program("demo")
    assert answer.code == 2
    assert "its data is another" in answer.err


def test_ctrl_c(program, libraries, movielens):
    libraries.raises = KeyboardInterrupt()
    answer = program("demo")
    assert answer.code == 130
    assert "run the same command again to continue" in answer.err


def test_the_published_config_is_the_demo():
    published = load_config(ROOT / "configs" / "movielens-100k.yaml").config
    assert contradictions(demo_config(), published) == []
    assert published.data == demo_config().data
