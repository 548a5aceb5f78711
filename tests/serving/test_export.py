import errno
import gc
import json
import os
import re
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small_disks import small_files

from tfllmrec import durable
from tfllmrec.client.status import RequestError
from tfllmrec.data.domains import domain_filters
from tfllmrec.durable import writing_folder
from tfllmrec.errors import ModelError, WriteError
from tfllmrec.layers import item_index
from tfllmrec.runs.run import Run
from tfllmrec.server.servable import Servable
from tfllmrec.serving import export as exporting
from tfllmrec.serving.export import export
from tfllmrec.serving.layout import EXTRA, LARGEST_VERSION, WARM_UP, version_folders
from tfllmrec.serving.promotion import adopt
from tfllmrec.serving.saved_model import SavedModel

pytestmark = pytest.mark.tf
NAMED = SimpleNamespace(about={"form": "exact", "recall": 1.0})


def test_a_version_carries_its_manifest_and_items(chain_run, chain_version):
    run, _ = chain_run
    assert chain_version.name == "1" and sorted(version_folders(chain_version.parent)) == [1]
    assert [path.name for path in chain_version.parent.iterdir()] == ["1"]
    manifest = json.loads((chain_version / "assets.extra" / "tfllmrec.json").read_text())
    assert manifest["name"] == "chain" and manifest["items"] == 40
    assert manifest["data_sha256"] == run.dataset.fingerprint and manifest["graph_sha256"] is None
    assert manifest["metrics"] == run.metrics
    assert Path(manifest["run"]) == run.folder.resolve()
    assert manifest["config"] == run.config.model_dump(mode="json")
    assert "tensorflow" in manifest["versions"] and manifest["new_items"] is None
    assert manifest["indexes"] == dict.fromkeys(("recommend", "search"), NAMED.about)
    assert manifest["ranked"] == run.config.ranking.candidates == 20  # its click head is kept
    items = pd.read_parquet(chain_version / "assets.extra" / "items.parquet")
    assert items.item_id.tolist() == run.dataset.items.item_id.tolist()
    assert items.title.tolist() == run.dataset.items.title.tolist()
    strata = run.split.strata(run.config.evaluation.head_share)
    assert items.train_events.tolist() == run.split.train_counts.tolist()
    assert (items.stratum == "head").tolist() == strata["head"].tolist()
    assert (items.stratum == "cold").tolist() == strata["cold"].tolist() == (items.train_events == 0).tolist()
    assert set(items.stratum) == {"head", "tail", "cold"}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # what giving up a searcher raises
def test_a_version_with_scann_is_loaded_where_scann_is(chain_run, chain_version, tmp_path, monkeypatch):
    pytest.importorskip("scann", reason="pip install tfllmrec[scann]")
    monkeypatch.setattr(item_index, "SCANN_ITEMS", 16)
    version = export(chain_run[0].folder, tmp_path / "chain", index="scann")
    saved, exact = SavedModel.open(version), SavedModel.open(chain_version)
    assert {name: index["form"] for name, index in saved.manifest["indexes"].items()} == {
        "recommend": "scann", "search": "scann",
    }  # fmt: skip
    history = chain_run[0].dataset.items.item_id[3:5].tolist()
    # Of so many none is missing.
    found, wanted = (model.recommend(histories=[history], k=38) for model in (saved, exact))
    assert found.item_id.tolist() == wanted.item_id.tolist()
    assert found.score.tolist() == pytest.approx(wanted.score.tolist(), abs=1e-5)
    asked = {"history": np.array([[history[0].encode()]], object), "ratings": np.zeros((1, 0), np.float32)}
    asked |= {"exclude": np.array([[b""]], object), "k": np.array([38], np.int32)}
    served = Servable(version)  # answers its warm-up requests first
    first = served.call("recommend", asked)["item_ids"].tolist()
    gone = weakref.ref(served)
    del served
    gc.collect()
    assert gone() is None
    (version / EXTRA / WARM_UP).unlink()  # once is enough
    assert Servable(version).call("recommend", asked)["item_ids"].tolist() == first

    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    for load, error in ((SavedModel.open, ModelError), (Servable, RequestError)):
        with pytest.raises(error, match=r"pip install -e '\.\[scann\]'"):
            load(version)
    with pytest.raises(ModelError, match=r"pip install -e '\.\[scann\]'"):
        export(chain_run[0].folder, tmp_path / "chain", index="scann")
    assert sorted(version_folders(tmp_path / "chain")) == [1]


@pytest.fixture
def quickly(monkeypatch):
    """Export without the model: what is written where is the point here."""
    seen = []

    def save(serving, folder, signatures):
        folder = Path(folder)
        (folder / "saved_model.pb").touch()
        seen.append(sorted(path.name for path in folder.parent.iterdir()))

    monkeypatch.setattr(
        exporting,
        "ServingModel",
        lambda *args: SimpleNamespace(
            signatures=dict,
            best=NAMED,
            alike=NAMED,
            reads=(),
            reads_texts=(),
            history_length=0,
            width_of_texts=0,
            ranked=0,
            some_labels=(),
        ),
    )
    monkeypatch.setattr(exporting.tf.saved_model, "save", save)
    return seen


def test_versions_count_up_and_half_ones_have_no_number(bare_run, quickly, tmp_path):
    target = tmp_path / "models" / "made"
    assert export(bare_run[0].folder, target) == target / "1"
    assert export(str(bare_run[0].folder), str(target)) == target / "2"
    (target / "41").mkdir()
    (target / "not-a-version").mkdir()
    assert export(bare_run[0].folder, target) == target / "42"
    assert sorted(version_folders(target)) == [1, 2, 41, 42]
    # While one is written, only whole ones have a number.
    for names, done in zip(quickly, [[], ["1"], ["1", "2", "41", "not-a-version"]], strict=True):
        assert names[1:] == done and re.fullmatch(r"\.writing-\w+", names[0])
    assert not list(target.glob(".*"))
    assert (target / "2" / "assets.extra" / "tfllmrec.json").is_file()


@pytest.mark.parametrize("repeats", ["last", "all"])
def test_an_export_knows_the_tail_and_whether_items_are_used_again(bare_run, quickly, tmp_path, monkeypatch, repeats):
    run, _ = bare_run
    given, config = [], run.config
    monkeypatch.setattr(Run, "dataset", replace(run.dataset, repeats=repeats == "all"))
    config.evaluation.head_share = 0.3
    monkeypatch.setattr(Run, "config", config)
    stub = exporting.ServingModel
    monkeypatch.setattr(exporting, "ServingModel", lambda *args: given.append(args) or stub(*args))
    export(run.folder, tmp_path / "made")
    *_, tail, used_again, _, _, _, _ = given[0]
    np.testing.assert_array_equal(tail, run.split.strata(0.3)["tail"])
    assert used_again == (repeats == "all")
    grown = pd.concat([run.split.items, run.split.items.head(2)])  # the last two are new
    listed = exporting._listed(grown, domain_filters(grown, run.split.schema), run.split, 0.3).iloc[-2:]
    assert listed[["train_events", "stratum"]].values.tolist() == [[0, "cold"]] * 2


def test_no_version_has_a_number_that_servers_ignore(bare_run, quickly, tmp_path):
    target = tmp_path / "made"
    (target / str(LARGEST_VERSION + 1)).mkdir(parents=True)
    assert export(bare_run[0].folder, target) == target / "1"
    (target / str(LARGEST_VERSION)).mkdir()
    with pytest.raises(ModelError, match=f"{LARGEST_VERSION} is the largest version that servers load"):
        export(bare_run[0].folder, target)
    assert not list(target.glob(".*"))


def test_the_number_of_a_promoted_version_is_not_used_again(bare_run, quickly, tmp_path):
    target = tmp_path / "made"
    assert export(bare_run[0].folder, target) == target / "1"
    adopt(target)
    shutil.rmtree(target / "1")
    assert export(bare_run[0].folder, target) == target / "2"  # or it would be stable without a comparison


def test_what_a_killed_export_left_goes_and_what_another_one_writes_stays(bare_run, quickly, tmp_path):
    left = tmp_path / f".writing-{'0f' * 16}"
    (left / "variables").mkdir(parents=True)
    (left / "variables" / "variables.data-00000-of-00001").write_bytes(b"half")
    with writing_folder(tmp_path / "made"):
        left.rename(tmp_path / "made" / left.name)
        export(bare_run[0].folder, tmp_path / "made")
        (names,) = quickly
        assert left.name not in names and len(names) == 2  # the other one's, and its own
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["1"]


def test_another_exporter_may_take_the_number(bare_run, quickly, tmp_path, monkeypatch):
    real = Path.rename

    def taken_first(self, to):
        if to.name == "1":
            (to / "taken").mkdir(parents=True)
        return real(self, to)

    monkeypatch.setattr(Path, "rename", taken_first)
    assert export(bare_run[0].folder, tmp_path / "made") == tmp_path / "made" / "2"


def disk_full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["to_parquet", "write_text", "sync", "rename"])
def test_a_full_disk_leaves_nothing(bare_run, quickly, tmp_path, monkeypatch, step):
    target = tmp_path / "made"
    owner = {"to_parquet": pd.DataFrame, "sync": durable}.get(step, Path)
    monkeypatch.setattr(owner, step, disk_full)
    with pytest.raises(
        WriteError, match=r"(?s)made\S* cannot be written: No space left on device .*Nothing was changed"
    ):
        export(bare_run[0].folder, target)
    assert not target.exists()
    # What was there before stays, and nothing else comes.
    (target / "1").mkdir(parents=True)
    with pytest.raises(WriteError, match="No space left"):
        export(bare_run[0].folder, target)
    assert [path.name for path in target.iterdir()] == ["1"]


def test_tensorflow_has_errors_of_its_own_for_a_full_disk(bare_run, quickly, tmp_path, monkeypatch):
    """In the middle of writing: some of the version is there."""

    def save(serving, folder, signatures):
        (Path(folder) / "variables").mkdir(parents=True)
        (Path(folder) / "variables" / "variables.data-00000-of-00001").write_bytes(b"half")
        raise exporting.tf.errors.ResourceExhaustedError(None, None, "variables; No space left on device")

    monkeypatch.setattr(exporting.tf.saved_model, "save", save)
    with pytest.raises(WriteError, match=r"(?s)made cannot be written: No space left on device .*Nothing was changed"):
        export(bare_run[0].folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@pytest.mark.long
def test_files_that_may_not_grow(bare_run, tmp_path):
    """The real writers, stopped half-way by the system: the graph is larger than the largest file."""
    refused = pytest.raises(WriteError, match=r"(?s)made cannot be written: File too large .*Nothing was changed")
    with small_files(), refused:
        export(bare_run[0].folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_only_complete_runs(tmp_path):
    with pytest.raises(ModelError, match="not a run folder"):
        export(tmp_path, tmp_path / "made")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ModelError, match="was not finished"):
        export(tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_item_order_is_that_of_the_scores(chain_run, chain_version):
    items = pd.read_parquet(chain_version / "assets.extra" / "items.parquet")
    assert np.array_equal(items.item_id.to_numpy(object), chain_run[0].dataset.items.item_id.to_numpy(object))
