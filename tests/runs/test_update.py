"""A run from an earlier one and newer tables."""

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from tfllmrec.columns import ITEM, USER
from tfllmrec.config import DataConfig, ExperimentConfig
from tfllmrec.data.files.tables import read_table
from tfllmrec.data.queries import Queries
from tfllmrec.data.readers import read_dataset
from tfllmrec.durable import write_text
from tfllmrec.errors import ConfigError, DataError
from tfllmrec.feedback.event_log import EventLog
from tfllmrec.models.item_weights import ItemWeightStatistics, PrunedWeights, solve_item_weights
from tfllmrec.runs.experiment import free_folder, log_place, note_log_place, start_run
from tfllmrec.runs.run import PLAN, UPDATE, Run, Update
from tfllmrec.runs.update import NothingNew, _begun, _data_section, _log_since, _with_columns_there, update_run
from tfllmrec.runs.warm_start import _changes, _next_items, warm_start

pytestmark = pytest.mark.tf


def quietly(line):
    pass


def test_whose_training_events_changed():
    before = Queries.from_histories([[0, 1], [2], [3, 4], [5]], user_ids=["a", "b", "c", "gone"])
    now = Queries.from_histories([[0, 1], [2, 6, 0], [9], [4, 3]], user_ids=["a", "b", "new", "c"])
    new_events, changed, gone = _changes(before, now, 10)
    assert new_events.tolist() == [False, False, False, True, True, True, False, False]
    assert changed.tolist() == [False, True, True, True]  # of c, the order
    assert gone.tolist() == [False, True, True, True]


def test_events_on_known_pairs_are_new_where_repeats_count():
    before = Queries.from_histories([[0, 1, 0], [2]], user_ids=["a", "b"])
    now = Queries.from_histories([[0, 1, 0, 0, 1], [2]], user_ids=["a", "b"])
    new_events, changed, gone = _changes(before, now, 10)
    assert new_events.tolist() == [False, False, False, True, True, False]
    assert changed.tolist() == gone.tolist() == [True, False]


def test_queries_that_the_parents_ranking_model_did_not_learn_from():
    before = Queries.from_histories([[0], [1], [2]], targets=[[1], [2], []], user_ids=["a", "b", "c"])
    now = Queries.from_histories([[0], [1, 2], [2], [5]], targets=[[1], [3], [7], [2]], user_ids=["a", "b", "c", "d"])
    assert (~_next_items(now).isin(_next_items(before))).tolist() == [False, True, True, True]


@pytest.fixture
def rated_log(tmp_path, monkeypatch):
    """A log whose ratings are called stars, and a stand-in for a run of it."""
    with EventLog(tmp_path / "log") as log:
        log.append([{"user_id": "u", "item_id": f"i{n}", "timestamp_s": 1.7e9 + n, "stars": n} for n in range(1, 4)])
    columns = {"user_id": "user_id", "rating": "stars"}
    of_other_files = {"item_id": "sku", "title": "caption"}
    source, config = {"columns": columns | of_other_files}, ExperimentConfig()
    run = types.SimpleNamespace(folder=tmp_path, record={"source": source}, config=config)
    run.dataset = read_dataset(config.data.model_copy(update={"events": tmp_path / "log", "columns": columns}))
    monkeypatch.setattr(Run, "open", lambda folder: run)
    note_log_place(tmp_path, log_place(tmp_path / "log"))
    return run


def test_an_event_may_lack_the_columns_that_the_runs_events_have(rated_log, monkeypatch):
    """And an update without a catalogue keeps the mapping of its columns for the next one."""
    read = []
    monkeypatch.setattr("tfllmrec.runs.update._is_known", lambda dataset, known: read.append(dataset) or True)
    log, items = rated_log.folder / "log", rated_log.folder / "items.csv"
    items.write_text("sku,caption\nnew,New\n")

    def update(event, items=None):
        with EventLog(log) as opened:
            opened.append([{"user_id": "u", "timestamp_s": 1.7e9 + 9, **event}])
        with pytest.raises(NothingNew):
            update_run("run", log, items, tell=quietly)
        rated_log.dataset = read[-1]
        rated_log.record["source"] = _data_section(rated_log, log, items, None).model_dump(exclude_defaults=True)
        note_log_place(rated_log.folder, log_place(log))
        return read[-1].events.set_index("item_id")["rating"]

    assert np.isnan(update({"item_id": "click"})["click"])
    assert update({"item_id": "new", "stars": 4}, items)["new"] == 4
    assert read[-1].items.set_index("item_id")["title"]["new"] == "New"
    of_file = _with_columns_there(_data_section(rated_log, log.with_name("e.csv"), None, None), 0)
    assert of_file.columns == {"user_id": "user_id", "rating": "stars", "item_id": "sku"}


def test_a_fit_of_a_runs_data_keeps_the_mapping_of_its_columns(tmp_path):
    walks = "".join(f"u{user},i{item},{item}\n" for user in range(4) for item in range(5))
    (tmp_path / "events.csv").write_text(f"who,sku,time\n{walks}")
    config = ExperimentConfig(data=DataConfig(name="shop", events=tmp_path / "events.csv"))
    config.data.columns = {"user_id": "who", "item_id": "sku"}
    base = tmp_path / "search" / "base"
    with start_run(config, base, base=tmp_path, tell=quietly) as (_, of_run):
        (base / "run.json").touch()
        (base.parent / PLAN).touch()
    of_search = of_run.model_copy(update={"data": of_run.data.model_copy(update={"source": "base/data"})})
    for number, (same, folder) in enumerate([(of_run, base), (of_search, base.parent)]):
        with start_run(same, tmp_path / str(number), base=folder, tell=quietly) as (run, _):
            assert (run.folder / "parent.json").is_file()
            assert json.loads((run.folder / "source.json").read_text())["columns"] == config.data.columns


def test_an_update_of_the_working_folder_is_made_beside_it(rated_log, monkeypatch):
    folder = rated_log.folder
    with EventLog(folder / "log") as log:
        log.append([{"user_id": "u", "item_id": "new", "timestamp_s": 1.7e9 + 9}])
    monkeypatch.chdir(folder)
    rated_log.folder = Path()
    asked = []

    def stopped(*args):
        asked.extend(args)
        raise KeyboardInterrupt

    monkeypatch.setattr("tfllmrec.runs.update.free_folder", stopped)
    with pytest.raises(KeyboardInterrupt):
        update_run(".", "log", tell=quietly)
    assert asked == [None, folder.name, folder.parent]


@pytest.mark.parametrize("min_user_events", [1, 2])
def test_a_log_without_new_events_is_not_read(rated_log, monkeypatch, min_user_events):
    rated_log.config.data.min_user_events = min_user_events
    monkeypatch.delattr("tfllmrec.runs.update.read_dataset")
    with pytest.raises(NothingNew, match=r"nothing was updated\.$"):
        update_run("run", rated_log.folder / "log", tell=quietly)
    with pytest.raises(NothingNew, match=r"tfllmrec export .* saved_models/NAME --items new\.csv"):
        update_run("run", rated_log.folder / "log", "new.csv", tell=quietly)


def test_a_log_is_read_from_where_the_parent_stopped(tmp_path):
    run = types.SimpleNamespace(folder=tmp_path, config=ExperimentConfig())
    with EventLog(tmp_path / "log") as log:
        log.append([{"user_id": "u", "item_id": f"i{n}", "timestamp_s": 1.7e9 + n} for n in range(3)])
        assert _log_since(run, tmp_path / "log") == 0  # the run has read no log
        note_log_place(tmp_path, log_place(tmp_path / "log"))
        log.append([{"user_id": "u", "item_id": "late", "timestamp_s": 1.6e9}])
    since = _log_since(run, tmp_path / "log")
    table = read_table(tmp_path / "log", "events", run.config.data, log_since=since)
    assert since == 3 and table.frame["item_id"].tolist() == ["late"]
    assert _log_since(run, tmp_path / "june.csv") == 0
    run.config.data.min_user_events = 2  # events of users who had too few were dropped
    assert _log_since(run, tmp_path / "log") == 0


def test_another_log_is_read_from_its_beginning(tmp_path):
    run = types.SimpleNamespace(folder=tmp_path, config=ExperimentConfig())
    for name in ("one", "other"):
        with EventLog(tmp_path / name) as log:
            log.append([{"user_id": name, "item_id": f"i{n}", "timestamp_s": 1.7e9 + n} for n in range(3)])
    note_log_place(tmp_path, log_place(tmp_path / "one"))
    assert _log_since(run, tmp_path / "one") == 3 and _log_since(run, tmp_path / "other") == 0


def test_an_update_that_was_begun_keeps_its_settings(tmp_path, monkeypatch):
    settings = ExperimentConfig()
    parent = types.SimpleNamespace(folder=tmp_path / "run", record={"source": {}}, config=settings)
    begun = types.SimpleNamespace(
        complete=True, folder=tmp_path / "out", update=types.SimpleNamespace(overrides=["update.epochs=5"])
    )
    monkeypatch.setattr(Run, "open", lambda folder: parent)
    monkeypatch.setattr("tfllmrec.runs.update._begun", lambda *args: begun)
    told = []

    def update(*overrides):
        return update_run("run", "june.csv", out=tmp_path / "out", overrides=overrides, tell=told.append)

    assert update() is begun and update("update.epochs=5") is begun
    assert "is already complete: nothing was read" in told[0]
    with pytest.raises(ConfigError, match=r"was started with --set update\.epochs=5: expected the same settings"):
        update("update.epochs=6")


@pytest.mark.parametrize(
    ("written", "goes_on"),
    [
        ("text/weights", False),
        ("logs/validation/events", False),
        ("checkpoints/made_from.json", True),  # it was killed while its first checkpoint was written
        ("model/weights", True),  # without dense terms, there are no checkpoints
    ],
)
def test_an_update_goes_on_if_its_training_began_and_is_started_again_otherwise(tmp_path, written, goes_on):
    out, parent = tmp_path / "out", types.SimpleNamespace(folder=tmp_path / "run")
    write_text(out / "source.json", "{}")
    record = Update(parent=str(parent.folder.resolve()), new_events=1, new_items=0, new_users=0)
    write_text(out / UPDATE, record.model_dump_json())
    write_text(out / written, "")
    if goes_on:
        assert _begun(out, parent, {}).folder == out
    else:
        assert _begun(out, parent, {}) is None
        with free_folder(out, "shop"):
            assert [path.name for path in out.iterdir()] == [".lock"]


@pytest.mark.parametrize("kept", range(5))
def test_a_kill_while_a_folder_is_emptied_leaves_it_free(tmp_path, monkeypatch, kept):
    for name in ("source.json", UPDATE, "trained.npy", "query_encoder/layers/record.json", "text/weights"):
        write_text(tmp_path / name, "{}")
    removed, real = [], {name: getattr(at, name) for at, name in ((Path, "unlink"), (shutil, "rmtree"))}

    def remove(name, path, *args, **options):
        if path.parent == tmp_path and path.name != ".lock":
            if len(removed) == kept:
                raise KeyboardInterrupt
            removed.append(path)
        real[name](path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **options: remove("unlink", path, **options))
        patch.setattr(shutil, "rmtree", lambda path, *args, **options: remove("rmtree", path, *args, **options))
        with pytest.raises(KeyboardInterrupt), free_folder(tmp_path, "shop"):
            pass
    with free_folder(tmp_path, "shop"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.slow
def test_an_update_is_a_whole_run_that_names_its_parent(chain_run, updated):
    parent = chain_run[0]
    assert updated.record["parent"] == {"folder": "run", "data_sha256": parent.dataset.fingerprint}
    assert updated.update.new_items == 3 and updated.update.new_users == 5
    assert updated.update.new_events == len(updated.dataset.events) - len(parent.dataset.events)
    # Places are stable; new ones follow.
    assert updated.dataset.items[ITEM][: parent.dataset.n_items].equals(parent.dataset.items[ITEM])
    assert updated.dataset.users[USER][: parent.dataset.n_users].equals(parent.dataset.users[USER])
    assert updated.split.schema.as_dict() == parent.split.schema.as_dict()
    said = [finding.what for finding in updated.dataset.report.findings]
    assert any(what.startswith("late") for what in said) and any("again" in what for what in said)
    assert set(updated.metrics["results"]) == {"hybrid", "hybrid_refit"}
    assert updated.config.training == parent.config.training
    model = updated.load_model()
    assert np.isfinite(model.score(updated.split.test)).all()
    np.testing.assert_allclose(updated.text[: parent.dataset.n_items], parent.text, atol=1e-6)
    assert updated.text[parent.dataset.n_items :].any(axis=1).all()


@pytest.mark.slow
def test_nothing_is_held_out_that_the_parent_was_trained_on(chain_run, updated):
    parent = chain_run[0]
    trained = set(zip(parent.split.train[USER], parent.split.train[ITEM], strict=True))
    newer = {(user, item) for user, item in zip(updated.split.train[USER], updated.split.train[ITEM], strict=True)}
    assert trained - newer <= set(zip(updated.dataset.events[USER], updated.dataset.events[ITEM], strict=True)) - newer
    old_times = parent.split.train.set_index([USER, ITEM])["timestamp_s"]
    for part in (updated.split.validation_events, updated.split.test_events):
        for user, item, time in zip(part[USER], part[ITEM], part["timestamp_s"], strict=True):
            assert (user, item) not in old_times.index or old_times[user, item] != time


@pytest.mark.slow
def test_item_weights_are_those_of_all_events(chain_run, updated):
    model, settings = updated.load_model(), updated.config.item_weights
    histories = updated.split.train_queries().choices
    expected = solve_item_weights(histories, model.n_items, settings, updated.training_data.unit_text)
    kept = PrunedWeights(model.behaviour.neighbours.numpy()[:-1], model.behaviour.weights_.numpy()[:-1])
    found = _dense(kept, model.n_items)
    assert np.abs(found - _dense(expected, model.n_items)).max() < 1e-5
    # Without the new events they are others: the sums of the parent alone would not do.
    old = chain_run[0].split.train_queries().choices
    stale = solve_item_weights(old, model.n_items, settings, updated.training_data.unit_text)
    assert np.abs(found - _dense(stale, model.n_items)).max() > 1e-3
    sums = updated.training_data
    warm_start(updated, sums, updated.config, quietly)
    whole = ItemWeightStatistics.of(histories, model.n_items, settings)
    of_update = sums.item_weight_statistics(settings)
    assert of_update.co_occurrence.sum() == whole.co_occurrence.sum()
    assert abs(of_update.known - whole.known).max() < 1e-4 and abs(of_update.target - whole.target).max() < 1e-4


def _dense(weights, n_items):
    table = np.zeros((n_items, n_items), np.float32)
    np.put_along_axis(table, weights.neighbours, weights.weights, axis=1)
    return table


@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_update_goes_on_to_the_same_result(chain_run, updated, newer_tables, tmp_path):
    tables, out = newer_tables, tmp_path / "again"

    class Stop(BaseException):
        pass

    def stop_at(start):
        def tell(line):
            if line.startswith(start):
                raise Stop

        return tell

    for start in ("item-item weights: solving", "epoch 1", "chosen: gates"):
        with pytest.raises(Stop):
            update_run(chain_run[0].folder, *tables, out=out, tell=stop_at(start))
        assert not Run(out).complete
    with pytest.raises(ConfigError, match="is not empty"):
        update_run(chain_run[0].folder, tables[0], out=out, tell=quietly)  # other files
    done = update_run(chain_run[0].folder, *tables, out=out, tell=quietly)
    assert done.metrics["results"] == updated.metrics["results"]
    assert update_run(chain_run[0].folder, *tables, out=out, tell=quietly).folder == done.folder  # complete


def test_what_cannot_be_updated_is_refused(chain_run, chain_files, tmp_path):
    folder = chain_run[0].folder
    with pytest.raises(NothingNew, match="the run already knows every event in the files"):
        update_run(folder, chain_files[0], out=tmp_path / "same", tell=quietly)
    assert not (tmp_path / "same").exists()
    with pytest.raises(ConfigError, match="found model, which the run in"):
        update_run(folder, chain_files[0], overrides=["model.embedding_dim=64"], tell=quietly)
    with pytest.raises(DataError, match=r"newer\.csv"):
        update_run(folder, tmp_path / "newer.csv", out=tmp_path / "none", tell=quietly)
