"""What a fit writes for TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.tf


def events(folder):
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def plugins(folder):
    """The plugin of each tag."""
    found = events(folder)
    return {tag: found.summary_metadata[tag].plugin_data.plugin_name for tag in found.Tags()["tensors"]}


def test_the_board_of_a_run(board_run):
    logs = board_run.folder / "logs"
    runs = {path.parent.relative_to(logs).as_posix() for path in logs.rglob("*tfevents*")}
    named = ["hybrid", *board_run.config.evaluation.baselines]
    assert runs >= {".", "validation", "items", *(f"test/{name}" for name in named)}
    assert runs >= {f"baselines/{name}" for name in named[1:]}
    assert any("profile" in name for name in runs)
    of = plugins(logs / "validation")
    assert of["accuracy/ndcg@10"] == "scalars" and of["recommendations/user 1"] == "text"
    assert of["gates/text and feedback against behaviour"] == "histograms"
    assert plugins(logs)["_hparams_/session_start_info"] == "hparams"
    tested = plugins(logs / "test" / "hybrid")
    assert tested["clicks/all/pr_curves"] == "pr_curves" and tested["config"] == "text"
    assert (logs / "items" / "projector_config.pbtxt").is_file()
    assert events(next(path.parent for path in logs.glob("profile/**/*tfevents*"))).Tags()["graph"]
