"""An exported model obeys rules that are applied while it is loaded: every signature, over REST, and without Python."""

import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.client.client import Client
from tfllmrec.errors import ConfigError
from tfllmrec.serving.export import export
from tfllmrec.serving.rules.folder import apply_rules, clear_rules
from tfllmrec.serving.saved_model import SavedModel

pytestmark = [pytest.mark.tf, pytest.mark.slow]
N = 40
HISTORY = ["i3", "i4"]


def silent(line):
    """Takes what an apply tells."""


@pytest.fixture(scope="module")
def shop(chain_version, tmp_path_factory):
    """A copy of the exported ring."""
    folder = tmp_path_factory.mktemp("models") / "chain"
    shutil.copytree(chain_version.parent, folder)
    return folder


@pytest.fixture
def apply(shop, tmp_path):
    """``apply(TEXT)`` replaces the rules; afterwards there are none."""

    def replace(text):
        (tmp_path / "rules.yaml").write_text(text)
        return apply_rules(shop, tmp_path / "rules.yaml", silent)

    yield replace
    clear_rules(shop)


@pytest.fixture(scope="module")
def model(shop):
    """Loaded once, before any rules."""
    return SavedModel.open(shop)


def listed(model, signature):
    """The ids of a whole list."""
    texts = {"history": [HISTORY], "exclude": [[]], "context": [["age=20"]], "text": ["red"], "item_id": ["i8"]}
    wanted = {}
    for name, spec in model._signatures[signature].structured_input_signature[1].items():
        if name == "k":
            wanted[name] = tf.constant([N])
        elif name.startswith("input_"):
            wanted[name] = tf.constant([[2, 4, 3]]) if name == "input_word_ids" else tf.constant([[1, 1, 1]])
        elif name in texts:
            wanted[name] = tf.constant(texts[name], spec.dtype)
        elif spec.shape.rank == 1:
            wanted[name] = tf.zeros(1, spec.dtype)
        else:
            wanted[name] = tf.fill((1, 0), tf.constant("" if spec.dtype == tf.string else 0, spec.dtype))
    return [item.decode() for item in model._signatures[signature](**wanted)["item_ids"].numpy()[0] if item]


LISTING = ["recommend", "recommend_full", "search", "search_full", "search_tokens", "similar", "similar_full"]


@pytest.mark.parametrize("signature", LISTING)
def test_every_signature_that_lists_items_obeys(model, apply, signature):
    everything = listed(model, signature)
    assert len(everything) >= N - 2
    apply(f"block:\n  - items: [{', '.join(everything[:5])}]\nminimum_age:\n  - {{age: 18, items: {everything[6]}}}")
    found = listed(model, signature)
    missing = set(everything[:5]) | (set() if signature in ("recommend_full", "search_full") else {everything[6]})
    assert sorted(found) == sorted(set(everything) - missing)
    if not signature.startswith("recommend"):  # the ranking model orders other candidates now
        assert found == [item for item in everything if item not in missing]
    apply("block:\n  - items: nobody")
    assert listed(model, signature) == everything


def test_a_hidden_candidate_counts_as_absent(model, apply):
    before = {one.item_id: one.click_probability for one in model.rank(HISTORY, ["i5", "i9", "i20"])}
    apply("block:\n  - items: i9")
    after = {one.item_id: one.click_probability for one in model.rank(HISTORY, ["i5", "i9", "i20"])}
    assert before["i9"] > 0 == after["i9"] and after["i5"] > 0
    assert sum(after.values()) == pytest.approx(1, abs=1e-3)


def test_a_pinned_item_obeys_and_a_sponsored_one_is_marked(model, apply):
    apply("block:\n  - items: i20\nsponsored:\n  share: 0.5\n  places:\n    - {item: i30, place: 2}")
    timeless = [{"now": 0}]  # the fit has switched on deterministic operations, which the clock is not
    found = model.recommend(histories=[HISTORY], k=6, pinned=["i20", "i21"], context=timeless)
    assert found.item_id.tolist()[:2] == ["i21", "i30"] and "i20" not in found.item_id.tolist() and len(found) == 6
    assert found.reason.tolist()[1] == "sponsored"
    used = model.recommend(histories=[[*HISTORY, "i30"]], k=6, context=timeless)
    excluded = model.recommend(histories=[HISTORY], k=6, exclude=["i30"], context=timeless)
    assert "i30" not in used.item_id.tolist() and "i30" not in excluded.item_id.tolist()


def test_context_is_unread_until_a_rule_reads_it(model, apply):
    apply("minimum_age:\n  - {age: 18, items: i5}")
    inputs = {"history": tf.constant([HISTORY]), "context": tf.constant([["age=20", "region=DE", "now=5", "hue=red"]])}
    call = model._signatures["recommend_full"]
    given = {
        name: tf.fill((1, 0), tf.constant("" if spec.dtype == tf.string else 0, spec.dtype)) if spec.shape.rank == 2
        else tf.zeros(1, spec.dtype)
        for name, spec in call.structured_input_signature[1].items()
    }  # fmt: skip
    assert call(**(given | inputs))["unread"].numpy().tolist() == [3]
    search = model.search(["red"], context=[{"age": 20, "region": "DE"}])
    assert search.attrs["unread"] == [1]


def test_a_damaged_file_shows_nothing(model, apply, shop):
    apply("block:\n  - items: i5")
    path = shop / "1" / "assets" / "rules.bin"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(tf.errors.OpError):
        model.recommend(histories=[HISTORY], k=6)


def test_a_session_of_the_loader_that_tf_serving_has_reads_new_rules(shop, apply):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(shop / "1")).signature_def["recommend"]
        values = {"history": [HISTORY], "ratings": [[]], "exclude": [[]], "k": [N]}
        feed = {signature.inputs[name].name: np.asarray(value, object if name in ("history", "exclude") else None)
                for name, value in values.items()}  # fmt: skip
        feed[signature.inputs["exclude"].name] = np.empty((1, 0), object)

        def ask():
            return [item.decode() for item in session.run(signature.outputs["item_ids"].name, feed)[0] if item]

        everything = ask()
        apply(f"block:\n  - items: [{', '.join(everything[:7])}]")
        assert sorted(ask()) == sorted(everything[7:])


def test_a_server_answers_by_new_rules_without_a_restart(shop, apply, serving):
    with serving(shop.parent) as server, Client(f"http://127.0.0.1:{server.rest_port}", "chain") as client:
        everything = [item.item_id for item in client.recommend(HISTORY, k=N)]
        done, lengths, wrong = threading.Event(), set(), []

        def ask():
            while not done.is_set():
                try:
                    lengths.add(len(client.recommend(HISTORY, k=N)))
                except Exception as error:
                    wrong.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for hidden in (2, 7, 2, 7):
                apply(f"block:\n  - items: [{', '.join(everything[:hidden])}]")
                assert sorted(item.item_id for item in client.recommend(HISTORY, k=N)) == sorted(everything[hidden:])
        finally:
            done.set()
            asking.join()
        assert wrong == [] and lengths <= {len(everything) - hidden for hidden in (0, 2, 7)}


@pytest.mark.long
def test_an_export_takes_the_rules_over(chain_run, shop, apply):
    apply("block:\n  - items: [i5, i6]")
    told = []
    version = export(chain_run[0].folder, shop, tell=told.append)
    assert "rules: rules.yaml hides 2 items, and 0 from some requests" in told
    found = SavedModel.open(version).recommend(histories=[HISTORY], k=N).item_id.tolist()
    assert not {"i5", "i6"} & set(found) and len(found) == N - 4
    apply("block:\n  - items: i7")
    (shop / "rules.json").write_text((shop / "rules.json").read_text().replace("items: i7", "where: {brand: x}"))
    with pytest.raises(ConfigError, match="the items have no field 'brand'"):
        export(chain_run[0].folder, shop, tell=silent)
    assert sorted(path.name for path in shop.iterdir()) == ["1", "2", "rules.json"]
    shutil.rmtree(version)
