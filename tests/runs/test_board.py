"""What a fit writes for TensorBoard."""

import json
import shutil
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tfllmrec.board.server import is_written
from tfllmrec.explain.board import write_board
from tfllmrec.runs.run import Run

pytestmark = [pytest.mark.tf, pytest.mark.slow]


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def scalars(folder, tag):
    return {event.step: pytest.approx(make_ndarray(event.tensor_proto).item()) for event in events(folder).Tensors(tag)}


def plugins(folder):
    """The plugin of each tag."""
    found = events(folder)
    return {tag: found.summary_metadata[tag].plugin_data.plugin_name for tag in found.Tags()["tensors"]}


def test_the_board_of_a_run(board_run):
    assert is_written(board_run.folder)
    logs = board_run.folder / "logs"
    runs = {path.parent.relative_to(logs).as_posix() for path in logs.rglob("*tfevents*")}
    named = ["hybrid", *board_run.config.evaluation.baselines]
    assert runs >= {".", "validation", "items", "details", *(f"test/{name}" for name in named)}
    assert runs >= {f"baselines/{name}" for name in named[1:]}
    for name, of_test in board_run.results.items():  # a level line of the validation figures, and a point of the test's
        line = scalars(logs / "baselines" / name, "accuracy/ndcg@10") if name in named[1:] else None
        assert line is None or line == dict.fromkeys((0, 2), board_run.metrics["validation"][name]["ndcg@10"])
        assert scalars(logs / "test" / name, "accuracy/ndcg@10") == {2: of_test.metrics["ndcg@10"]}
    assert plugins(logs / "validation")["accuracy/ndcg@10"] == "scalars"
    assert plugins(logs / "lists")["recommendations/user 1"] == "text"
    assert plugins(logs / "histograms")["gates/dense terms against behaviour"] == "histograms"
    assert plugins(logs)["_hparams_/session_start_info"] == "hparams"
    tested = plugins(logs / "details")
    assert tested["clicks/all/pr_curves"] == "pr_curves" and tested["config"] == tested["card"] == "text"
    images = {tag for tag, plugin in tested.items() if plugin == "images"}
    assert images >= {"gate by popularity", "exposure", "calibration of the probability"}
    assert (logs / "items" / "projector_config.pbtxt").is_file()
    assert events(next(path.parent for path in logs.glob("profile/**/*tfevents*"))).Tags()["graph"]


def without_details(run, folder):
    """A copy of a run with curves alone, not yet written for TensorBoard."""
    copied = folder / "copied"
    shutil.copytree(run.folder, copied)
    shutil.rmtree(copied / "logs")
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("details: true", "details: false"))
    return Run(copied)


def test_twice_is_as_once(board_run, tmp_path):
    run = without_details(board_run, tmp_path)
    for _ in range(2):
        write_board(run)
        assert is_written(run.folder)
        assert len(events(run.folder / "logs" / "test" / "hybrid").Tensors("accuracy/ndcg@10")) == 1
    assert not (run.folder / "logs" / "items").exists()


def test_a_kill_before_the_end_leaves_it_to_be_written(board_run, tmp_path, monkeypatch):
    run = without_details(board_run, tmp_path)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tfllmrec.explain.board.write_settings", killed)
        with pytest.raises(KeyboardInterrupt):
            write_board(run)
    assert not is_written(run.folder)


def test_a_run_of_an_earlier_version_has_no_validation_figures(board_run, tmp_path):
    run = without_details(board_run, tmp_path)
    measured = json.loads((run.folder / "metrics.json").read_text())
    del measured["validation"]
    (run.folder / "metrics.json").write_text(json.dumps(measured))
    write_board(run)
    assert is_written(run.folder) and not (run.folder / "logs" / "baselines").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_what_a_package_is_missing_for_is_left_out(board_run, tmp_path, monkeypatch, package):
    copied = tmp_path / "copied"
    shutil.copytree(board_run.folder, copied)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    told = []
    write_board(Run(copied), told.append)
    found = plugins(copied / "logs" / "details")
    assert [line.partition(": ")[2].partition(":")[0] for line in told] == [
        "no images" if package == "matplotlib" else "no model card"
    ]
    assert ("card" in found) == (package == "matplotlib") and ("exposure" in found) == (package == "jinja2")
