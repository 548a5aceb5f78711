"""Labels of versions, and what a killed process leaves of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tfllmrec import durable
from tfllmrec.errors import ModelError
from tfllmrec.serving.promotion import (
    MODELS_CONFIG,
    PROMOTIONS,
    adopt,
    chosen_version,
    promote,
    read_promotions,
    rollback,
    set_canary,
)

ROOT = Path(__file__).parents[2]


def versions(folder, *numbers):
    for number in numbers:
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "saved_model.pb").touch()
    return folder


def labels(state):
    return state.stable, state.canary, state.served


def test_the_way_of_three_versions(tmp_path):
    model = versions(tmp_path / "shop", 1)
    assert labels(set_canary(model, 1)) == (1, None, [1])  # the first one is stable at once
    versions(model, 2)
    assert labels(set_canary(model, 2)) == (1, 2, [1, 2])
    assert labels(promote(model)) == (2, None, [1, 2])
    versions(model, 3)
    assert labels(set_canary(model, 3)) == (2, 3, [1, 2, 3])
    assert labels(rollback(model)) == (2, None, [1, 2])  # first the canary is withdrawn
    # Version 1 is loaded, so version 2 goes at once: requests without a label get the highest number.
    assert labels(rollback(model)) == (1, None, [1])
    with pytest.raises(ModelError, match="nothing to roll back"):
        rollback(model)
    steps = [(step.action, step.version, step.stable_before) for step in read_promotions(model).history]
    assert steps == [
        ("promote", 1, None),
        ("canary", 2, 1),
        ("promote", 2, 1),
        ("canary", 3, 2),
        ("withdraw", 3, 2),
        ("rollback", 1, 2),
    ]


def test_a_folder_stands_for_its_stable_version_or_without_one_for_its_newest(tmp_path, caplog):
    model = versions(tmp_path / "shop", 1, 2)
    (model / "3").mkdir()  # an export that is not complete
    assert chosen_version(model) == model / "2" and not caplog.records
    set_canary(model, 1)
    set_canary(model, 2)
    promote(model)
    assert chosen_version(model) == model / "2" and not caplog.records
    rollback(model)
    with caplog.at_level("INFO"):
        assert chosen_version(model) == model / "1"
    assert caplog.messages == [f"{model}: version 1 is used, because it is stable; the newest is version 2"]
    (model / "1").rename(tmp_path / "1")
    with pytest.raises(ModelError, match="shop has no version 1: copy its folder back"):
        chosen_version(model)
    assert chosen_version(tmp_path / "1") is None and chosen_version(tmp_path / "nowhere") is None


def test_a_rollback_serves_the_version_before_alone_where_it_is_loaded(tmp_path):
    model = versions(tmp_path / "shop", 1, 2)
    set_canary(model, 1)
    set_canary(model, 2)
    promote(model)
    state = rollback(model)
    assert labels(state) == (1, None, [1]) and state.before == []
    versions(model, 3)
    set_canary(model, 3)
    assert promote(model).before == [1]  # version 2, which was rolled back, is not among them


def test_each_rollback_finds_its_version_loaded(tmp_path):
    model = versions(tmp_path / "shop", 1, 2, 3)
    for number in (1, 2, 3):
        set_canary(model, number)
        if number > 1:
            promote(model)
    assert labels(rollback(model)) == (2, None, [1, 2])
    assert labels(rollback(model)) == (1, None, [1])
    set_canary(model, 2)
    assert labels(promote(model)) == (2, None, [1, 2])
    # A version before whose folder is gone is not asked for; where it is copied back, the label moves first.
    set_canary(model, 3)
    assert labels(promote(model)) == (3, None, [2, 3])
    state = read_promotions(model).model_copy(update={"served": [3]})
    (model / PROMOTIONS).write_text(state.model_dump_json())
    (model / "2").rename(model / "away")
    assert labels(adopt(model)) == (3, None, [3])
    (model / "away").rename(model / "2")
    assert labels(rollback(model)) == (2, None, [1, 2, 3])
    assert labels(adopt(model)) == (2, None, [1, 2])


def test_a_folder_that_was_moved_names_its_new_path(tmp_path):
    model = versions(tmp_path / "shop", 1)
    assert set_canary(model, 1).base_path == ""
    moved = model.rename(tmp_path / "books")
    adopt(moved)
    assert f'base_path: "{moved}"' in (moved / MODELS_CONFIG).read_text()
    assert adopt(moved, "/models/books").base_path == adopt(moved).base_path == "/models/books"
    assert 'base_path: "/models/books"' in (moved / MODELS_CONFIG).read_text()


def test_exports_are_not_served_before_they_have_a_label(tmp_path):
    assert adopt(tmp_path / "nothing").stable is None
    model = versions(tmp_path / "shop", 3, 10)
    assert labels(adopt(model)) == (10, None, [10])
    versions(model, 11)
    assert labels(adopt(model)) == (10, None, [10])


def test_what_cannot_be_promoted_is_refused(tmp_path):
    model = versions(tmp_path / "shop", 1)
    with pytest.raises(ModelError, match="expected a canary to promote"):
        promote(model)
    with pytest.raises(ModelError, match="has no version 7"):
        set_canary(model, 7)
    set_canary(model, 1)
    with pytest.raises(ModelError, match="version 1 is stable already"):
        set_canary(model, 1)
    versions(model, 2)
    set_canary(model, 2)
    (model / "2" / "saved_model.pb").unlink()
    (model / "2").rmdir()
    with pytest.raises(ModelError, match="has no version 2"):
        promote(model)
    (model / PROMOTIONS).write_text("{")
    with pytest.raises(ModelError, match=r"promotions\.json is damaged"):
        rollback(model)


def test_another_canary_is_withdrawn(tmp_path):
    model = versions(tmp_path / "shop", 1, 2, 3, 4)
    set_canary(model, 1)
    set_canary(model, 2)
    assert labels(set_canary(model, 3)) == (1, 3, [1, 3])
    assert labels(promote(model, version=4)) == (4, None, [1, 4])
    steps = [(step.action, step.version) for step in read_promotions(model).history[2:]]
    assert steps == [("withdraw", 2), ("canary", 3), ("withdraw", 3), ("canary", 4), ("promote", 4)]


@pytest.mark.parametrize("label", [set_canary, lambda model, version, **more: promote(model, version=version, **more)])
def test_a_version_is_not_promoted_over_one_that_it_was_not_compared_with(tmp_path, label):
    model = versions(tmp_path / "shop", 1, 2, 3)
    nothing = read_promotions(model)
    judged = promote(model, version=1)
    assert labels(judged) == (1, None, [1])
    after = promote(model, version=2)
    with pytest.raises(ModelError, match="stable: 1, canary: none then, stable: 2, canary: none now"):
        label(model, 3, judged=judged)
    with pytest.raises(ModelError, match="stable: none, canary: none then, stable: 2"):
        label(model, 3, judged=nothing)
    assert read_promotions(model) == after
    assert 3 in label(model, 3, judged=after).served


def test_a_rollback_waits_for_rules_that_are_applied(tmp_path, monkeypatch):
    model = versions(tmp_path / "shop", 1, 2)
    promote(model, version=1)
    set_canary(model, 2)
    applying = durable.locked(model)
    applying.__enter__()
    monkeypatch.setattr(durable.time, "sleep", lambda seconds: applying.__exit__(None, None, None))
    assert labels(rollback(model)) == (1, None, [1])


def test_tf_serving_reads_the_same_labels(tmp_path):
    pytest.importorskip("tensorflow_serving")
    from tfllmrec.server.models_config import read_sources

    model = versions(tmp_path / "shop", 1, 2)
    set_canary(model, 1, base_path="/models/shop")
    set_canary(model, 2)
    (served,) = read_sources(model / MODELS_CONFIG)
    assert str(served.base) == "/models/shop" and served.name == "shop"
    (followed,) = read_sources(model)
    assert followed.base == model
    for source in (served, followed):
        assert (source.policy, source.versions, source.labels) == ("specific", (1, 2), {"stable": 1, "canary": 2})
    assert [source.labels for source in read_sources(tmp_path)] == [{"stable": 1, "canary": 2}]


STEPS = """
    import os, signal, sys
    from pathlib import Path
    from tfllmrec.serving import promotion
    calls, real, at = 0, Path.replace, int(sys.argv[2])
    def replace(self, target):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, target)
        if calls + 1 == -at:
            os.kill(os.getpid(), signal.SIGKILL)
    Path.replace = replace
    getattr(promotion, sys.argv[3])(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("action", ["promote", "rollback"])
@pytest.mark.parametrize(("at", "done"), [(1, False), (-2, True), (2, True)])
def test_a_kill_leaves_the_old_state_or_the_new_one(tmp_path, action, at, done):
    """``at``: before the first or second rename; negative: after it."""
    model = versions(tmp_path / "shop", 1, 2, 3)
    set_canary(model, 1)
    set_canary(model, 2)
    promote(model)
    if action == "promote":
        set_canary(model, 3)
    before = read_promotions(model)
    command = [sys.executable, "-c", textwrap.dedent(STEPS), str(model), str(at), action]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    after = read_promotions(model)
    new = {"promote": (3, None, [2, 3]), "rollback": (1, None, [1])}[action]
    assert labels(after) == (new if done else labels(before))
    # The next command renews what TF Serving reads.
    state = adopt(model)
    assert state == after and (model / MODELS_CONFIG).read_text() == state.models_config(model)
    assert json.loads((model / PROMOTIONS).read_text())["stable"] == after.stable
