"""Items that came after training."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from item_pairs import as_dense

from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import Field, Schema
from tfllmrec.errors import DataError, ModelError
from tfllmrec.models.hybrid import Hybrid
from tfllmrec.runs.run import Run
from tfllmrec.serving.export import export
from tfllmrec.serving.measure import measure
from tfllmrec.serving.new_items import Counts, read_new_items
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]

N = 40  # items of the ring: i0 to i35, and i36 to i39 that nobody had


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def titles(chain_run):
    items = chain_run[0].dataset.items
    return dict(zip(items.item_id, items.title, strict=True))


@pytest.fixture(scope="module")
def grown(chain_run, titles, tmp_path_factory):
    """(version, what was told, hybrid): a twin of a cold item, an item of its own, a known one changed, and others."""
    folder = tmp_path_factory.mktemp("grown")
    rows = [
        {"sku": "twin", "title": titles["i37"], "colour": "none"},
        {"sku": "own", "title": "the red toy"},
        {"sku": "i5", "title": "cafe toy"},
        {"sku": "i6", "title": titles["i6"]},
        {"sku": "i7", "title": ""},
        {"sku": "own", "title": "again"},
        {"sku": "wordless", "title": ""},
    ]
    (folder / "new.jsonl").write_text(lines(rows))
    told: list[str] = []
    hybrids, extend = [], Hybrid.extend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hybrid, "extend", lambda *args: hybrids.append(extend(*args)) or hybrids[0])
        version = export(chain_run[0].folder, folder / "chain", folder / "new.jsonl", tell=told.append)
    return SavedModel.open(version), told, hybrids[0]


def test_the_manifest_counts_and_the_items_follow_the_old_ones(grown, chain_run, titles):
    model, told, _ = grown
    assert model.manifest["items"] == N + 2
    assert model.manifest["metrics"] is None  # nobody has measured this catalogue
    assert model.manifest["new_items"] == {
        "file": "new.jsonl", "added": 2, "replaced": 1, "unchanged": 2, "dropped": 2,
    }  # fmt: skip
    assert model.item_ids.tolist() == [*chain_run[0].dataset.items.item_id, "own", "twin"]
    assert [model.title(i) for i in ("twin", "own", "i5")] == [titles["i37"], "the red toy", "cafe toy"]
    assert model.title("i7") == titles["i7"]
    said = "\n".join(told)
    assert "item_id <- sku" in said and "the item_id occurs again" in said and "'wordless'" in said
    assert "solving again, for 42 items" in said
    new = pd.read_parquet(model.folder / "assets.extra" / "items.parquet").tail(2)
    assert new[["train_events", "stratum"]].to_numpy().tolist() == [[0, "cold"], [0, "cold"]]


def test_a_new_item_scores_as_a_cold_one_with_its_text(grown):
    """In every term, wherever it stands: neither has events, and both have the same text."""
    model = grown[0]
    twin = model.item_ids.tolist().index("twin")
    queries = Queries.from_histories([[3, 4], [20], [36, 7], [38], [], [5]])
    scores = model.score(queries)
    np.testing.assert_allclose(scores[:, twin], scores[:, 37], rtol=1e-4, atol=1e-4)
    assert np.ptp(scores[:-2], axis=1).min() > 0.1  # they do not agree because all do
    histories = Queries.from_histories([[37], [twin]])
    of_cold, of_twin = model.score(histories)
    others = np.arange(N + 2) != twin
    others[37] = False
    np.testing.assert_allclose(of_cold[others], of_twin[others], rtol=1e-4, atol=1e-4)
    explained = model._call(
        "explain",
        history=np.array([["i3", "i4"]], object),
        ratings=np.zeros((1, 0), np.float32),
        items=np.array([["twin", "i37"]], object),
    )
    for term in ("meaning", "feedback", "behaviour"):
        assert explained[term][0, 0] == pytest.approx(explained[term][0, 1], abs=1e-4)


def test_new_items_are_found(grown):
    model = grown[0]
    assert model.search(["the red toy"], k=1).item_id[0] == "own"
    assert model.search(["cafe toy"], k=1).item_id[0] == "i5"  # whose text was replaced
    assert model.similar(["i37"], k=1).item_id[0] == "twin"
    found = set(model.recommend(histories=[["i3", "i4"]], k=N + 2).item_id)
    assert {"twin", "own"} <= found and not {"i3", "i4"} & found
    assert all(model.known(["twin", "own"]))


def test_new_items_are_ranked_as_cold_ones_with_their_text(grown):
    ranked = grown[0].rank(["i3", "i4"], ["twin", "i37", "own", "i5"], ratings=[5, 1])
    told = {line.item_id: line for line in ranked}
    assert set(told) == {"twin", "i37", "own", "i5"} and all(line.click_probability > 0 for line in ranked)
    assert told["twin"].click_probability == pytest.approx(told["i37"].click_probability, rel=1e-3)
    assert told["twin"].rating == pytest.approx(told["i37"].rating, abs=1e-3)


def test_the_weights_are_those_of_a_fit_with_the_larger_catalogue(grown, chain_run):
    """W is solved over all items, from training and validation events and the texts of the larger catalogue."""
    from tfllmrec.models.item_weights import ItemWeightStatistics, solve
    from tfllmrec.text.centring import centred_unit

    model, run = grown[0], chain_run[0]
    settings = run.config.item_weights
    vectors = model.encode([model.title(i) for i in model.item_ids])
    statistics = ItemWeightStatistics.of(run.split.train_queries(validation=True).choices, N + 2, settings)
    weights = as_dense(solve(statistics, settings, centred_unit(vectors, run.text)))
    explained = model._call(
        "explain",
        history=np.array([["i3"]], object),
        ratings=np.zeros((1, 0), np.float32),
        items=np.array([model.item_ids]),
    )
    gates = run.load_model().gates
    counts = np.pad(run.split.train_counts, (0, 2)).astype(np.float32)
    gates.has_text = np.ones(N + 2, np.float32)
    sparse = gates.factors(counts)[1].numpy()
    np.testing.assert_allclose(explained["behaviour"][0], weights[3] * sparse, rtol=1e-3, atol=1e-4)


def test_old_items_keep_what_was_learnt(grown, chain_run):
    """The dense vectors of old items do not move, save that of the one whose text did."""
    old, new = chain_run[0].load_model().item_vectors().numpy(), grown[2].item_vectors().numpy()
    moved = np.abs(old - new[:N]).max(axis=1) > 1e-6
    assert np.flatnonzero(moved).tolist() == [5]
    np.testing.assert_allclose(new[N + 1], new[37], atol=1e-6)
    assert grown[2].train_counts.numpy().tolist() == [*chain_run[0].split.train_counts, 0, 0]


def test_figures_are_those_of_the_items_that_people_had(grown, chain_run):
    measured, recorded = measure(grown[0].folder), chain_run[0].metrics
    assert measured["data"] == recorded["data"] and measured["split"] == recorded["split"]
    figures = measured["results"]["hybrid"]
    assert figures["ndcg@10"] == pytest.approx(recorded["results"]["hybrid"]["ndcg@10"], abs=0.1)


@pytest.mark.long
def test_nothing_new_is_the_run_itself(chain_run, chain_version, titles, tmp_path):
    """A catalogue as it was trained on, in another format."""
    with gzip.open(tmp_path / "same.csv.gz", "wt") as out:
        out.write("item_id,title\n" + "".join(f"{i},{title}\n" for i, title in titles.items()))
    told: list[str] = []
    model = SavedModel.open(export(chain_run[0].folder, tmp_path / "same", tmp_path / "same.csv.gz", tell=told.append))
    assert model.manifest["new_items"] == {
        "file": "same.csv.gz", "added": 0, "replaced": 0, "unchanged": N, "dropped": 0,
    }  # fmt: skip
    assert not any("solving" in line for line in told)
    queries = Queries.from_histories([[3, 4], [20]])
    np.testing.assert_array_equal(model.score(queries), SavedModel.open(chain_version).score(queries))


class Letters:
    """Reads a text as how often each of four letters is in it; knows what it was asked."""

    fingerprint, dim = "letters", 4

    def __init__(self):
        self.asked = []

    def encode(self, texts, progress=None):
        self.asked += texts
        return np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32)


@pytest.fixture
def shop(chain_config, monkeypatch, tmp_path):
    """A run whose texts are title and description, as read from a file with names of its own."""
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))
    config = chain_config.model_copy(deep=True)
    config.text.template = "{title}: {description}"
    items = {"item_id": ["1", "2"], "title": ["a", "b"], "description": ["c", "d"], "colour": ["red", ""]}
    return SimpleNamespace(
        folder="shop",
        config=config,
        split=SimpleNamespace(items=pd.DataFrame(items, dtype="str"), schema=Schema()),
        text=np.eye(2, 4, dtype=np.float32),
        record={"source": {"events": "e.csv", "columns": {"title": "nom", "user_id": "who"}, "max_bad_rows": 0.5}},
    )


def test_what_a_file_leaves_empty_stays(shop, tmp_path):
    (tmp_path / "new.csv").write_text("article_id,nom,description,size\n2.0,,abba,9\n1.0,a,,\n3.0,<b>cc</b>,,\n")
    encoder = Letters()
    grown = read_new_items(shop, tmp_path / "new.csv", encoder, [], lambda line: None)
    assert grown.items.to_dict("list") == {
        "item_id": ["1", "2", "3"], "title": ["a", "b", "cc"], "description": ["c", "abba", ""],
        "colour": ["red", "", ""],
    }  # fmt: skip
    # Only what changed is read: item 1 keeps the vector of its run, whatever the encoder would say.
    assert sorted(encoder.asked) == ["b: abba", "cc"]
    assert grown.text.tolist() == [[1, 0, 0, 0], [2, 3, 0, 0], [0, 0, 2, 0]]
    assert grown.counts == Counts("new.csv", added=1, replaced=1, unchanged=1, dropped=0)
    (tmp_path / "more.csv").write_text("item_id,nom\n3,cc\n")
    grown = read_new_items(shop, tmp_path / "more.csv", encoder, [], lambda line: None)
    assert grown.items.item_id.tolist() == ["1", "2", "3"]
    assert grown.counts == Counts("more.csv", added=1, replaced=0, unchanged=0, dropped=0)
    assert shop.split.items.description.tolist() == ["c", "d"]  # the run's own table stays as it is


LOOK = Field("look", "item", "vector", width=2)


def test_new_items_bring_their_fields_and_need_no_text_then(shop, tmp_path):
    known = shop.split.items.assign(look=["0.1, 0.2", ""])
    shop.split = SimpleNamespace(items=known, schema=Schema((LOOK, Field("colour", "item", "id"))))
    (tmp_path / "new.jsonl").write_text(
        lines(
            [
                {"item_id": 1, "nom": "a", "look": [0.5, 0.5]},  # another look, the same text
                {"item_id": 3, "look": [1.5, 2.5]},
                {"item_id": 4, "look": [1.5]},  # no such vector
                {"item_id": 5, "nom": "d", "colour": "red"},
            ]
        )
    )
    encoder = Letters()
    grown = read_new_items(shop, tmp_path / "new.jsonl", encoder, [LOOK], lambda line: None)
    assert grown.items.item_id.tolist() == ["1", "2", "3", "5"]
    assert grown.items.look.tolist() == ["0.5, 0.5", "", "1.5, 2.5", ""]
    assert grown.counts == Counts("new.jsonl", added=2, replaced=1, unchanged=0, dropped=1)
    assert encoder.asked == ["d"] and not grown.text[2].any()
    unread = read_new_items(shop, tmp_path / "new.jsonl", encoder, [], lambda line: None)
    assert unread.counts == Counts("new.jsonl", added=1, replaced=0, unchanged=1, dropped=2)


def test_new_prices_are_taken_although_only_rules_read_them(shop, tmp_path):
    price = Field("price", "item", "number")
    known = shop.split.items.assign(price=["1", "2"])
    shop.split = SimpleNamespace(items=known, schema=Schema((price, LOOK)))
    (tmp_path / "prices.csv").write_text("item_id,price\n1,1\n2,9\n")
    encoder = Letters()
    grown = read_new_items(shop, tmp_path / "prices.csv", encoder, [], lambda line: None)
    assert grown.items.price.tolist() == ["1", "9"] and not grown.is_reread and encoder.asked == []
    assert grown.counts == Counts("prices.csv", added=0, replaced=1, unchanged=1, dropped=0)
    assert read_new_items(shop, tmp_path / "prices.csv", encoder, [price], lambda line: None).is_reread


def test_a_new_item_of_joined_data_gets_a_domain(shop, tmp_path):
    shop.split.items["domain"] = ["toys", "books"]
    shop.split.schema = Schema([*shop.split.schema, Field("domain", "event", "category", vocabulary=("toys", "books"))])
    shop.config.split.domain = "books"
    (tmp_path / "new.csv").write_text("item_id,nom,domain\n3,a,toys\n4,b,\ntoys:5,b,\n1,c,\n")
    told = []
    grown = read_new_items(shop, tmp_path / "new.csv", Letters(), [], told.append)
    assert grown.items.domain.tolist() == ["toys", "books", "toys", "books", "toys"]
    assert any("2 without a domain" in line for line in told)


def test_a_run_without_text_takes_new_items_by_their_fields(shop, tmp_path):
    items = pd.DataFrame({"item_id": ["1", "2"], "look": ["0.1, 0.2", ""]}, dtype="str")
    shop.split, shop.text = SimpleNamespace(items=items, schema=Schema((LOOK,))), np.zeros((2, 1), np.float32)
    (tmp_path / "new.jsonl").write_text(lines([{"item_id": 3, "look": [1.5, 2.5]}, {"item_id": 4, "title": "d"}]))
    grown = read_new_items(shop, tmp_path / "new.jsonl", None, [LOOK], lambda line: None)
    assert grown.counts == Counts("new.jsonl", added=1, replaced=0, unchanged=0, dropped=1)
    assert grown.items.item_id.tolist() == ["1", "2", "3"] and grown.text.shape == (3, 1)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("new.csv", "", r"new.csv is empty"),
        ("new.csv", "item_id,nom\n", "has a header but no rows"),
        ("new.csv", "label,nom\n1,a\n", r"new.csv: no column for item_id. .*found 'label', 'nom'"),
        ("new.csv", "item_id,price\n1,2\n", r"new.csv: expected at least one of the columns title, description"),
        ("new.csv", "item_id,nom\n3,\n", "no row that can be used"),
        ("new.csv", "item_id,nom\n,a\n,b\n3,c\n", r"new.csv:2, .*2 of 3 rows of new.csv cannot be read"),
        ("new.jsonl", '{"item_id": 3, "nom": "a"}\n{"item_id\n{{\n', "2 of 3 rows of new.jsonl cannot be read"),
        ("gone.csv", None, "gone.csv does not exist"),
    ],
)
def test_bad_files_are_refused(shop, tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_new_items(shop, tmp_path / name, Letters(), [], lambda line: None)


def test_a_bad_row_is_counted_and_the_others_are_taken(shop, tmp_path):
    (tmp_path / "new.csv").write_text("item_id,nom\n3,c\n,a\n4,d\n")
    counts = read_new_items(shop, tmp_path / "new.csv", Letters(), [], lambda line: None).counts
    assert counts == Counts("new.csv", added=2, replaced=0, unchanged=0, dropped=1)


def test_a_bad_file_leaves_nothing_behind(chain_run, monkeypatch, tmp_path):
    monkeypatch.setattr(Run, "text_encoder", lambda *args: Letters())
    with pytest.raises(DataError, match="does not exist"):
        export(chain_run[0].folder, tmp_path / "made", tmp_path / "new.csv")
    assert not (tmp_path / "made").exists()


def test_without_text_nothing_is_known_of_new_items(bare_run, tmp_path):
    (tmp_path / "new.csv").write_text("item_id,title\nnew,a\n")
    with pytest.raises(ModelError, match="was trained without texts and fields"):
        export(bare_run[0].folder, tmp_path / "made", tmp_path / "new.csv")
    assert not (tmp_path / "made").exists()
