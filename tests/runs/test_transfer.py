"""Runs that start from another one: the ring of conftest.py, walked in another shop under other ids."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from plain_runs import write_run

from tfllmrec.config import (
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    SplitConfig,
    TransferConfig,
    dump_config,
    settings_without_effect,
)
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.readers import dataset_from_frames
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.explain.board import _beside
from tfllmrec.runs.experiment import fit_experiment, free_folder, start_run
from tfllmrec.runs.run import Run
from tfllmrec.runs.scoreboard import measured_again
from tfllmrec.runs.transfer import begin_transfer, compared, read_source, text_distances
from tfllmrec.training.transfer import histories_among, together

pytestmark = pytest.mark.tf

ITEMS = 36


def shop_events(n_users, seed=5) -> pd.DataFrame:
    """Users who walk on the ring, with the ids of another shop: item k of the ring is s(35 - k)."""
    rng, rows = np.random.default_rng(seed), []
    for user, start in enumerate(rng.integers(0, ITEMS, n_users)):
        rows += [(f"v{user}", f"s{35 - (start + step) % ITEMS}", 100 * user + step) for step in range(6)]
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


@pytest.fixture(scope="module")
def shop(chain_files, tmp_path_factory):
    """(events, items): of the other shop; its items have the titles of the ring's."""
    folder = tmp_path_factory.mktemp("shop")
    titles = pd.read_csv(chain_files[1])["title"]
    items = pd.DataFrame({"item": [f"s{35 - k}" for k in range(ITEMS)], "title": titles[:ITEMS]})
    shop_events(24).to_csv(folder / "events.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    return folder / "events.csv", folder / "items.csv"


@pytest.fixture(scope="module")
def twin_shop(chain_files, tmp_path_factory):
    """(events, items): of a shop in which the ring's users have t(k) for each i(k), in any order; no text is known."""
    folder = tmp_path_factory.mktemp("twin")
    events = pd.read_csv(chain_files[0])[["user", "item"]].sample(frac=1, random_state=0)
    events["item"] = events["item"].str.replace("i", "t")
    events.assign(timestamp=range(100_000, 100_000 + len(events))).to_csv(folder / "events.csv", index=False)
    pd.DataFrame({"item": [f"t{k}" for k in range(ITEMS)], "title": "toy"}).to_csv(folder / "items.csv", index=False)
    return folder / "events.csv", folder / "items.csv"


def asked(chain_config, shop, source, **transfer):
    config = chain_config.model_copy(deep=True)
    config.data = DataConfig(name="shop", events=shop[0], items=shop[1])
    config.evaluation.baselines = ["popularity"]
    config.training.epochs = 1
    config.transfer = config.transfer.model_copy(update={"sources": [source.folder], **transfer})
    return config


@pytest.fixture(scope="module")
def zero_shot(chain_config, chain_run, shop, tmp_path_factory):
    """(run, what it told): without any training on the shop's events."""
    told: list[str] = []
    config = asked(chain_config, shop, chain_run[0], method="zero_shot", same_items="title")
    return fit_experiment(config, tmp_path_factory.mktemp("zero") / "run", tell=told.append), told


def hits(run, name="hybrid"):
    return run.metrics["results"][name]["recall@5"]


def test_what_was_learned_elsewhere_is_read_in_the_shop(zero_shot):
    run, _ = zero_shot
    assert hits(run) > 0.6 > 2 * hits(run, "popularity")


@pytest.mark.slow
def test_where_titles_name_other_items_nothing_is_known_of_the_shop(chain_config, chain_run, shop, tmp_path):
    items = pd.read_csv(shop[1])
    items["title"] = np.random.default_rng(1).permutation(items["title"])
    items.to_csv(tmp_path / "items.csv", index=False)
    files = shop[0], tmp_path / "items.csv"
    config = asked(chain_config, files, chain_run[0], method="zero_shot", same_items="title")
    assert hits(fit_experiment(config, tmp_path / "run", tell=lambda line: None)) < 0.35


def test_the_record_says_what_is_shared(zero_shot, chain_run):
    run, told = zero_shot
    record = run.transferred
    (source,) = record.sources
    assert (source.folder, source.name) == (chain_run[0].folder.resolve(), "chain")
    assert source.data_sha256 == chain_run[0].dataset.fingerprint
    assert record.overlaps[0]["items"] == ITEMS and record.overlaps[0]["users"] == 0
    assert any("chain and shop share 0 users" in line and "36 items (100.0%)" in line for line in told)
    assert record.alignment["items, before"]["a_distance"] < 0.5  # the same titles
    config = run.config
    assert config.transfer.method == "zero_shot" and config.ranking.epochs == 0 and not config.interests.learned
    assert config.model == chain_run[0].config.model


def test_the_run_stands_alone(zero_shot):
    """What is measured is what is stored: measured again, the figures are the same."""
    run = Run.open(zero_shot[0].folder)
    again = measured_again(run, {"hybrid": run.load_model()})
    assert again["results"]["hybrid"] == pytest.approx(run.metrics["results"]["hybrid"])


def test_shared_items_keep_their_ids_and_numbers_of_events(zero_shot, chain_run):
    model, source = zero_shot[0].load_model(), chain_run[0].load_model()
    at = source.item_ids.tolist().index("i7")
    here = model.item_ids.tolist().index("s28")
    assert model.train_counts[here] == source.train_counts[at] > 0
    np.testing.assert_array_equal(model.items.id_embedding[here], source.items.id_embedding[at])
    for ours, theirs in zip(model.history_encoder.weights, source.history_encoder.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
@pytest.mark.slow
def test_it_is_exported_but_takes_no_new_items(zero_shot, tmp_path):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    run = zero_shot[0]
    model = SavedModel.open(export(run.folder, tmp_path / "shop", tell=lambda line: None))
    queries = Queries.from_histories([[3, 4], [20]])
    np.testing.assert_allclose(model.score(queries), run.load_model().score(queries), rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="transfer again with the larger catalogue"):
        export(run.folder, tmp_path / "more", tmp_path / "new.csv", tell=lambda line: None)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_source_and_reads_its_events(chain_config, chain_run, shop, tmp_path):
    told: list[str] = []
    config = asked(chain_config, shop, chain_run[0], method="fine_tune", same_items="title")
    config.item_weights = config.item_weights.model_copy(
        update={"decay": 0.6, "l2": 10.0, "co_occurrence": 0.1, "text": 0.0, "popularity": 0.0, "next_item": 1.0}
    )
    run = fit_experiment(config, tmp_path / "run", tell=told.append)
    assert run.config.transfer.method == "fine_tune" and run.config.item_weights.source is not None
    assert any("item_weights.source" in line for line in run.record["chosen"])
    assert hits(run) > 0.5
    assert not (run.folder / "model" / "item_weights_statistics.npz").exists()  # it cannot be updated


def test_the_source_must_be_as_it_was(chain_config, chain_run, shop, tmp_path):
    config = asked(chain_config, shop, chain_run[0], same_items="title")
    with start_run(config, tmp_path / "run", base=tmp_path, tell=lambda line: None) as (run, begun):
        assert len(read_source(run, begun).histories) == 60
        record = json.loads((run.folder / "transfer.json").read_text())
        record["sources"][0]["data_sha256"] = "0"
        (run.folder / "transfer.json").write_text(json.dumps(record))
        with pytest.raises(ModelError, match=r"The data of .* changed after"):
            read_source(run, begun)


def test_ids_that_are_equal_by_chance_are_refused(chain_config, chain_run, shop, tmp_path):
    items = pd.read_csv(shop[1])
    items["item"] = [f"i{k}" for k in range(ITEMS)][::-1]
    items.to_csv(tmp_path / "items.csv", index=False)
    events = pd.read_csv(shop[0])
    events["item"] = events["item"].str.replace("s", "i")
    events.to_csv(tmp_path / "events.csv", index=False)
    config = asked(chain_config, (tmp_path / "events.csv", tmp_path / "items.csv"), chain_run[0])
    with (
        pytest.raises(ConfigError, match="equal by chance"),
        start_run(config, tmp_path / "run", base=tmp_path, tell=lambda line: None),
    ):
        pass
    told: list[str] = []
    config.transfer.same_items = "id"  # asked for
    with start_run(config, tmp_path / "run", base=tmp_path, tell=told.append):
        assert any("warning: transfer.same_items=id: most items" in line for line in told)
    config.transfer, config.data.items = config.transfer.model_copy(), None
    config.transfer.model_fields_set.discard("same_items")
    with start_run(config, tmp_path / "other", base=tmp_path, tell=told.append):
        assert "the 36 items that shop and chain share by id are taken as the same" in "\n".join(told)


def small_shop(**columns):
    events = pd.DataFrame({"user": "u", "item": ["s0", "s1", "s2"], "order": range(3)})
    items = pd.DataFrame({"item": ["s0", "s1", "s2"], **columns})
    return dataset_from_frames(events, items, config=DataConfig(name="shop"))


def test_texts_need_a_source_with_texts(chain_split, tmp_path):
    bare = write_run(tmp_path / "bare", chain_split)  # without text vectors
    shop, transfer = small_shop(title=["red", "toy", "cafe"]), TransferConfig(sources=[bare.folder], same_items="none")
    with pytest.raises(ConfigError, match="bare was fitted without texts"):
        begin_transfer(shop, ExperimentConfig(transfer=transfer), tmp_path, tmp_path, lambda line: None)


def test_what_a_method_does_not_read_is_named(chain_split, tmp_path, monkeypatch):
    source, told = write_run(tmp_path / "chain", chain_split, model=ModelConfig(propagation="lightgcn")), []
    monkeypatch.setattr(Run, "encoder_fingerprint", "abc")
    transfer = TransferConfig(sources=[source.folder], same_items="none", method="joint", distil=1.0)
    begin_transfer(small_shop(), ExperimentConfig(transfer=transfer), tmp_path, tmp_path, told.append)
    assert "warning: transfer.distil has no effect without transfer.method=distil" in told
    transfer.method = "zero_shot"
    begun = begin_transfer(small_shop(), ExperimentConfig(transfer=transfer), tmp_path, tmp_path, told.append)
    assert any("model.propagation has no effect" in line for line in settings_without_effect(begun.config))


def test_a_run_that_ends_early_leaves_its_folder_free_for_the_next_try(chain_config, chain_run, shop, tmp_path):
    out = tmp_path / "run"

    def plant(**files):
        (out / "text").mkdir(parents=True, exist_ok=True)
        (out / "text" / "weights").write_text("of the source")
        for name, text in {
            "source.json": "{}",
            **{name.replace("_", "."): text for name, text in files.items()},
        }.items():
            (out / name).write_text(text)

    config = asked(chain_config, shop, chain_run[0], same_items="title")
    plant(transfer_json="{}")  # it ended while it was begun
    with free_folder(out, "shop"):
        assert not (out / "text").exists()
    plant(transfer_json="{}", config_yaml=dump_config(config))  # its model cannot be made
    with free_folder(out, "shop"):
        assert not (out / "text").exists()
    joint = config.model_copy(update={"transfer": TransferConfig()})
    for files in ({"transfer_json": "{}"}, {}):  # a tower that was trained here
        plant(config_yaml=dump_config(joint), **files)
        with pytest.raises(ConfigError, match="is not empty"), free_folder(out, "shop"):
            pass
        assert (out / "text").exists()
        (out / "transfer.json").unlink(missing_ok=True)


def test_a_joint_run_has_both_catalogues_and_asks_for_the_target(chain_config, chain_run, shop, tmp_path):
    config = asked(chain_config, shop, chain_run[0], method="joint", same_items="title")
    with start_run(config, tmp_path / "run", base=tmp_path, tell=lambda line: None) as (run, begun):
        split, items = run.split, run.dataset.items
    assert run.dataset.name == "chain+shop" and begun.split.domain == "shop"
    assert begun.transfer.sources == [] and run.transferred.sources[0].name == "chain"
    assert set(items.domain) == {"chain|shop", "chain"} and (items.domain == "chain|shop").sum() == ITEMS
    assert {"s0", "chain:i36"} <= set(items.item_id)  # the target's ids stay as they are
    assert set(split.test_events.domain) == {"shop"} and len(split.test) == 24
    users = set(run.dataset.users.user_id)
    assert {"v0", "chain:u0"} <= users and len(users) == 24 + 60
    assert (split.train.domain == "chain").sum() == len(chain_run[0].dataset.events)


def test_a_map_is_a_joint_run_and_needs_shared_users(chain_config, chain_run, shop, twin_shop, tmp_path):
    config = asked(chain_config, twin_shop, chain_run[0], method="map", same_users=True, same_items="none")
    with start_run(config, tmp_path / "run", base=tmp_path, tell=lambda line: None) as (run, begun):
        assert begun.item_weights.map and begun.split.domain == "shop" and run.dataset.name == "chain+shop"
    for files, same_users in ((twin_shop, False), (shop, True)):
        config = asked(chain_config, files, chain_run[0], method="map", same_users=same_users, same_items="none")
        with (
            pytest.raises(ConfigError, match="users of both domains"),
            start_run(config, tmp_path / "other", base=tmp_path, tell=lambda line: None),
        ):
            pass


def known_elsewhere(chain_config, chain_run, twin_shop, out, method):
    """A run whose test users have no event in the shop; nothing is trained by gradient."""
    config = asked(chain_config, twin_shop, chain_run[0], method=method, same_users=True, same_items="none")
    config.split = SplitConfig(kind="cold_domain", domain="shop", validation_share=0.2, test_share=0.2)
    config.model.terms, config.ranking.epochs, config.interests.learned = ["behaviour"], 0, False
    config.item_weights = config.item_weights.model_copy(
        update={"decay": 0.6, "l2": 10.0, "co_occurrence": 0.1, "text": 0.0, "popularity": 0.0, "next_item": 1.0}
    )
    return fit_experiment(config, out, tell=lambda line: None)


@pytest.mark.long
@pytest.mark.slow
def test_users_who_are_known_from_the_source_alone_are_served_by_a_map(chain_config, chain_run, twin_shop, tmp_path):
    from tfllmrec.serving.export import export
    from tfllmrec.serving.saved_model import SavedModel

    run = known_elsewhere(chain_config, chain_run, twin_shop, tmp_path / "run", "map")
    assert hits(run) > 0.5 > 2 * hits(run, "popularity")
    served, queries = SavedModel.open(export(run.folder, tmp_path / "model", tell=lambda line: None)), run.split.test
    np.testing.assert_allclose(served.score(queries), run.load_model().score(queries), rtol=1e-4, atol=1e-4)
    history = [f"chain:i{k}" for k in (3, 4, 5, 6, 7)]
    for order in (history, history[::-1]):
        asked_for = served.recommend(histories=[order], k=5, categories=["domain=shop"])
        assert len(set(asked_for["item_id"]) & {f"t{k}" for k in range(2, 9)}) >= 3


@pytest.mark.long
@pytest.mark.slow
def test_a_joint_model_is_fitted_on_both_domains(chain_config, chain_run, twin_shop, tmp_path):
    run = known_elsewhere(chain_config, chain_run, twin_shop, tmp_path / "run", "joint")
    assert hits(run) > hits(run, "popularity") and run.config.transfer == TransferConfig()
    assert set(run.config.item_weights.domains) <= {"chain>shop"} and not run.config.item_weights.map
    assert any("item_weights.domains chain>shop" in line for line in run.record["chosen"])


@pytest.mark.long
@pytest.mark.slow
def test_a_fit_with_a_teacher_is_a_complete_run(chain_config, chain_run, shop, tmp_path):
    config = asked(chain_config, shop, chain_run[0], method="distil", same_items="title", distil=1.0)
    config.ranking.epochs, config.interests.learned = 0, False
    run = fit_experiment(config, tmp_path / "run", tell=lambda line: None)
    weight, _ = json.loads((run.folder / "checkpoints" / "made_from.json").read_text())["teacher"]
    assert (weight, run.config.transfer.method, run.config.transfer.distil) == (1.0, "distil", 1.0)
    assert run.config.model == chain_run[0].config.model and hits(run) > hits(run, "popularity")


def test_columns_that_one_side_lacks_are_named(chain_config, chain_run, shop, tmp_path):
    items = pd.read_csv(shop[1]).assign(brand=[f"b{k % 3}" for k in range(ITEMS)])
    items.to_csv(tmp_path / "items.csv", index=False)
    told: list[str] = []
    config = asked(chain_config, (shop[0], tmp_path / "items.csv"), chain_run[0], same_items="title")
    with start_run(config, tmp_path / "run", base=tmp_path, tell=told.append) as (run, _):
        assert run.transferred.unread == ["item.brand"]
    assert any("the source does not know item.brand" in line for line in told)


def test_histories_of_one_catalogue_as_items_of_another():
    histories = Ragged.from_rows([[0, 1, 2], [2], [1]], np.int64)
    found = histories_among(histories, np.array([2, -1, 0]), 3)
    assert [list(row) for row in found] == [[2, 0], [0], []]
    assert [list(row) for row in together([found, histories])] == [[2, 0], [0], [], [0, 1, 2], [2], [1]]


def test_two_runs_on_the_same_queries_are_compared(zero_shot, chain_run):
    run = zero_shot[0]
    found = compared(run, run)["ndcg@10"]
    assert found.here == found.alone > 0 and found.difference == 0 and "100% of the" in str(found)
    with pytest.raises(ModelError, match="found others"):
        compared(run, chain_run[0])
    other = Run.open(run.folder)
    targets = replace(other.split.test.targets, values=other.split.test.targets.values[::-1])
    vars(other)["split"] = replace(other.split, test=replace(other.split.test, targets=targets))
    with pytest.raises(ModelError, match="found others"):
        compared(run, other)  # the same users, other items


def test_the_texts_of_runs_with_one_encoder_are_compared(zero_shot, chain_run):
    found = text_distances({"ring": chain_run[0], "shop": zero_shot[0]})
    assert list(found) == ["item texts of ring and shop", "item texts of ring and shop, centred"]
    assert all(each.a_distance < 0.6 for each in found.values())


def test_the_projector_shows_the_domain_of_each_item():
    ids = [[f"{shop}{item}" for item in range(3)] for shop in "ab"]
    shops = {
        shop: dataset_from_frames(pd.DataFrame({"user": "u", "item": own, "order": range(3)}))
        for shop, own in zip(("books", "films"), ids, strict=True)
    }
    joined = join_datasets(shops)
    split = SimpleNamespace(train_counts=np.arange(6))
    run = SimpleNamespace(dataset=joined, split=split, config=SimpleNamespace(seed=1))
    kept = np.array([0, 3, 5])
    beside = _beside(run, {"head": np.ones(6, bool)}, kept, np.eye(3, dtype=np.float32))
    assert beside.domain.tolist() == joined.items.domain[kept].tolist() == ["books", "films", "films"]
    run.dataset = shops["books"]
    assert "domain" not in _beside(run, {"head": np.ones(3, bool)}, np.arange(3), np.eye(3, dtype=np.float32))
