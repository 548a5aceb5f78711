"""A run whose events have comments and whose users describe themselves."""

import numpy as np
import pandas as pd
import pytest
from conftest import chain_events, chain_items

from tfllmrec.config import DataConfig

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def run(chain_config, cache, tmp_path_factory):
    from tfllmrec.runs.experiment import fit_experiment

    folder = tmp_path_factory.mktemp("comments")
    events, items = chain_events(), chain_items()
    title = dict(zip(items["item"], items["title"], strict=True))
    following = events.groupby("user")["item"].shift(-1)
    events["comment"] = [f"the {title[item]} toy" if isinstance(item, str) else "" for item in following]
    users = pd.DataFrame({"user": sorted(set(events["user"]))})
    users["about"] = [f"the red car {user}" for user in users["user"]]
    files = {name: folder / f"{name}.csv" for name in ("events", "items", "users")}
    for table, path in zip((events, items, users), files.values(), strict=True):
        table.to_csv(path, index=False)
    config = chain_config.model_copy(deep=True)
    config.data = DataConfig(name="chain", **files, fields={name: {"kind": "text"} for name in ("comment", "about")})
    config.training.epochs, config.evaluation.baselines = 2, ["popularity_by_segment"]
    told = []
    return fit_experiment(config, folder / "run", tell=told.append), told


def test_texts_are_read_if_they_help(run):
    run, told = run
    assert run.config.model.user_text is True
    chosen = run.record["chosen"]
    assert any(line.startswith("model.user_text true: event.comment, user.about, ") for line in chosen)
    assert any(line.startswith("texts of users (event.comment, user.about) are ") for line in chosen)
    warning = "warning: user.about: a text of a user has no time, so it may have been written after the test event."
    assert any(line.startswith(warning) for line in told)
    assert {"event.comment", "user.about"} <= set(run.load_model().reads)


def test_the_loaded_model_and_the_export_read_them(run, tmp_path):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    run, _ = run
    model, served = run.load_model(refit=True), SavedModel.open(export(run.folder, tmp_path / "shop"))
    np.testing.assert_allclose(served.score(run.split.test), model.score(run.split.test), rtol=1e-4, atol=1e-4)
    queries = run.split.test
    fields = {key: values for key, values in queries.fields.items() if key != "event.comment"}
    silent = type(queries)(queries.user_ids, queries.history, queries.exclude, queries.targets, fields)
    moved = np.abs(model.score(silent) - model.score(queries)).max() > 1e-4
    assert moved == bool(model.reads_texts)
    user = queries.user_ids[0]
    one = served.recommend([user], k=5, skip=["ranking"])
    own = model.recommend([user], k=5, dataset=run.dataset)
    assert one["item_id"].tolist() == own["item_id"].tolist()
