"""``tfllmrec transfer``, with a stand-in for the fit."""

import json
import sys
import types

import pytest
from plain_runs import write_run

from tfllmrec.config import SplitConfig
from tfllmrec.data.splits import make_split
from tfllmrec.runs.run import SourceRun, Transferred


@pytest.fixture
def fitted(chain_split, tmp_path, monkeypatch):
    """What the command asked for: (config, out) of each call; the run is a plain one."""
    calls = []

    def fit_experiment(config, out=None, *, base, check=None):
        run = write_run(tmp_path / "run", chain_split)
        if check is not None:
            check(run)
        calls.append((config, out))
        source = SourceRun(folder=tmp_path / "films", name="films", data_sha256="abc")
        overlap = {
            "domains": ["films", "chain"], "users": 0, "items": 9, "user_share": 0.0, "item_share": 0.25,
            "events": [0, 0],
        }  # fmt: skip
        far = {"items, before": {"a_distance": 1.5, "mmd": 0.25}, "users, before": None}
        Transferred(sources=[source], overlaps=[overlap], missing=["items.plot"], alignment=far).write(run.folder)
        return run

    made = types.ModuleType("tfllmrec.runs.experiment")
    made.fit_experiment = fit_experiment
    monkeypatch.setitem(sys.modules, "tfllmrec.runs.experiment", made)
    return calls


def test_options_are_settings_and_the_answer_says_what_is_shared(program, fitted, tmp_path, chain_split):
    alone = write_run(tmp_path / "alone", chain_split, share=0.9)
    answer = program(
        "transfer", "--source", tmp_path / "it's films", "--events", "e.csv", "--items", "i.csv",
        "--method", "zero_shot", "--same-items", "title", "--out", tmp_path / "out", "--compare", alone.folder,
        "--set", "seed=7",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    ((config, out),) = fitted
    asked = config.transfer
    assert asked.sources == [tmp_path / "it's films"] and (asked.method, asked.same_items) == ("zero_shot", "title")
    assert not asked.same_users and config.seed == 7 and out == tmp_path / "out"
    assert "films and chain share 0 users" in answer.out and "the target lacks items.plot" in answer.out
    assert "items, before alignment: A-distance 1.50 of 2, MMD 0.250" in answer.out
    assert "users, before" not in answer.out and "of a fit on the target alone (-0." in answer.out


def test_json_has_the_record_and_the_figures(program, fitted, tmp_path):
    answer = program("transfer", "--source", "films", "--events", "e.csv", "--same-users", "--json")
    told = json.loads(answer.out)
    assert told["transfer"]["sources"][0]["name"] == "films" and told["results"]["hybrid"] and told["compared"] == {}
    assert fitted[0][0].transfer.same_users and fitted[0][0].transfer.method == "auto"


def test_a_run_with_other_test_queries_is_refused_before_the_fit(program, fitted, tmp_path, chain_split):
    other = write_run(tmp_path / "other", make_split(chain_split.dataset, SplitConfig(kind="leave_random_out"), 1))
    answer = program("transfer", "--source", "films", "--events", "e.csv", "--compare", other.folder)
    assert answer.code == 4 and "expected ndcg@10 and recall@10 on the test queries of" in answer.err and not fitted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--source", "films"], "expected a CONFIG, or --events FILE"),
     (["--source", "films", "--items", "i.csv"], "Every method needs some events of this domain"),
     (["--events", "e.csv"], "--source"),
     (["--source", "films", "--events", "e.csv", "--method", "zero"], "zero_shot")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(program, fitted, arguments, message):
    answer = program("transfer", *arguments)
    assert answer.code == 2 and message in " ".join(answer.err.split()) and not fitted
