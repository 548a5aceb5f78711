"""What a fit writes for TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tfllmrec.explain.board import is_written

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
    assert is_written(board_run)
    logs = board_run.folder / "logs"
    runs = {path.parent.relative_to(logs).as_posix() for path in logs.rglob("*tfevents*")}
    named = ["hybrid", *board_run.config.evaluation.baselines]
    assert runs >= {".", "validation", "items", "details", *(f"test/{name}" for name in named)}
    assert runs >= {f"baselines/{name}" for name in named[1:]}
    for name, of_test in board_run.results.items():  # a level line of the validation figures, and a point of the test's
        line = scalars(logs / "baselines" / name, "accuracy/ndcg@10") if name != "hybrid" else None
        assert line is None or line == dict.fromkeys((0, 2), board_run.metrics["validation"][name]["ndcg@10"])
        assert scalars(logs / "test" / name, "accuracy/ndcg@10") == {2: of_test.metrics["ndcg@10"]}
    assert any("profile" in name for name in runs)
    of = plugins(logs / "validation")
    assert of["accuracy/ndcg@10"] == "scalars" and of["recommendations/user 1"] == "text"
    assert of["gates/text and feedback against behaviour"] == "histograms"
    assert plugins(logs)["_hparams_/session_start_info"] == "hparams"
    tested = plugins(logs / "details")
    assert tested["clicks/all/pr_curves"] == "pr_curves" and tested["config"] == tested["card"] == "text"
    images = {tag for tag, plugin in tested.items() if plugin == "images"}
    assert images >= {"recall by popularity", "gate by popularity", "exposure", "calibration of the probability"}
    assert (logs / "items" / "projector_config.pbtxt").is_file()
    assert events(next(path.parent for path in logs.glob("profile/**/*tfevents*"))).Tags()["graph"]
