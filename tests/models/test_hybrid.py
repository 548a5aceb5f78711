import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfllmrec.config import ModelConfig
from tfllmrec.data.batches import Sequences, hold_out, training_batches
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.layers.neighbour_scores import LONGEST
from tfllmrec.models.hybrid import Catalogue, Hybrid, Negatives, Teacher
from tfllmrec.models.item_weights import (
    ItemWeightSettings,
    PrunedWeights,
    score_history,
    solve_item_weights,
)
from tfllmrec.text.centring import centred_unit
from tfllmrec.training.fit import set_seeds

pytestmark = pytest.mark.tf
RING = 20
FRESH = np.arange(20, 28)  # read like items 8 to 15; met once each, in an event that is held out
TWIN, ALONE = 28, 29  # never met: the first reads like item 5, the second like nothing else
N = 30
READS_LIKE = np.array([*range(RING), *range(8, 16), 5, ALONE])
SIZES = {"embedding_dim": 16, "blocks": 1, "heads": 2, "dropout": 0.1, "history_length": 6}
NAN = float("nan")


def ring(n_users=80, seed=0):
    """Everybody walks on from i to i + 1; some end on what reads like the next one; marks say nothing about it."""
    rng = np.random.default_rng(seed)
    walks = [(rng.integers(RING) + np.arange(rng.integers(3, 9))) % RING for _ in range(n_users)]
    ends = [[READS_LIKE[item] - 2, READS_LIKE[item] - 1, item] for item in FRESH]
    items = Ragged.from_rows([*walks, *ends], np.int64)
    ratings = Ragged(rng.integers(1, 6, len(items.values)).astype(np.float32), items.offsets)
    held_out = hold_out(items, 0.2, seed)
    held_out = Ragged(held_out.values | (items.values >= RING), items.offsets)
    return Sequences(items, held_out, N, {RATING_KEY: ratings})


def texts():
    vectors = np.random.default_rng(1).normal(size=(N, 12)).astype(np.float32)[READS_LIKE]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


SEQUENCES, TEXT = ring(), texts()
COUNTS = np.bincount(SEQUENCES.items.values, minlength=N)
SETTINGS = ItemWeightSettings(decay=0.5, l2=1.0, co_occurrence=0.0, text=0.1, neighbours=12)


def solved(histories):
    return solve_item_weights(histories, N, SETTINGS, centred_unit(TEXT))


def hybrid(negatives=None, seed=42, **changes):
    model = Hybrid(
        Catalogue(np.arange(N).astype(str).astype(object), TEXT),
        COUNTS,
        ModelConfig(**(SIZES | changes)),
        SETTINGS,
        negatives,
        seed,
    )
    kept = SEQUENCES.choices(held_out=False)
    model.set_item_weights(solved(SEQUENCES.items))
    model.set_holdout(solved(kept), np.bincount(kept.values, minlength=N))
    return model


def test_factors_of_domains_that_no_item_has_are_refused():
    items = Catalogue(np.arange(N).astype(str).astype(object), TEXT, domains=np.array(["books", "films"] * N)[:N])
    weights = SETTINGS.model_copy(update={"domains": {"books>film": 0.5}})
    with pytest.raises(ConfigError, match="of the domains books, films, found film"):
        Hybrid(items, COUNTS, ModelConfig(**SIZES), weights)


def test_a_map_between_the_domains_of_a_catalogue_without_domains_is_refused():
    items = Catalogue(np.arange(N).astype(str).astype(object), TEXT)
    model = Hybrid(items, COUNTS, ModelConfig(**SIZES), SETTINGS.model_copy(update={"map": True}))
    with pytest.raises(ConfigError, match="expected joined data of several domains"):
        model.mapped(solved(SEQUENCES.items), SEQUENCES.items)


def ask(*histories, ratings=None):
    return Queries.from_histories(histories, ratings)


def tensors(*histories, ratings=None, length=9):
    inputs = ask(*histories, ratings=ratings).inputs(N, Hybrid.reads, length)
    return {key: tf.constant(values) for key, values in inputs.items()}


WALKS = [[(start + step) % RING for step in range(3)] for start in range(RING)]
NEXT = np.array([(walk[-1] + 1) % RING for walk in WALKS])


def first(scores, histories):
    """The best item that is not in the history."""
    scores = np.array(scores)
    for row, history in zip(scores, histories, strict=True):
        row[history] = -np.inf
    return scores.argmax(axis=1)


@pytest.fixture(scope="module")
def trained():
    """(model, Keras history, scores at the end of each epoch): all terms, the ring, by plain compile and fit."""
    set_seeds(1)
    model = hybrid()
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    scores = []
    watch = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: scores.append(model.score(ask([1, 2]))))
    stop = tf.keras.callbacks.EarlyStopping("retrieval_loss", patience=100)
    batches = training_batches(SEQUENCES, 16, 6, seed=1, epochs=25)
    history = model.fit(batches, epochs=25, steps_per_epoch=len(batches) // 25, callbacks=[watch, stop], verbose=0)
    return model, history.history, scores


def test_it_is_a_keras_model_with_the_tfrs_task(trained):
    model, history, _ = trained
    assert isinstance(model, tfrs.Model) and isinstance(model, tf.keras.Model)
    assert isinstance(model.retrieval, tfrs.tasks.Retrieval)
    assert set(history) >= {"loss", "retrieval_loss", "gate_loss"}
    assert all(len(values) == 25 and np.isfinite(values).all() for values in history.values())
    assert history["retrieval_loss"][-1] < 0.5 * history["retrieval_loss"][0]
    assert history["gate_loss"][-1] < history["gate_loss"][0]


def test_each_side_finds_the_planted_successor(trained):
    model, _, _ = trained
    query = tensors(*WALKS)
    items = model.item_vectors()
    dense = tf.matmul(tf.add_n(model.last_query_vectors(items, query)), items, transpose_b=True)
    for scores in (dense, model.behaviour(query["history"]), model.score(ask(*WALKS))):
        assert np.array_equal(READS_LIKE[first(scores, WALKS)], NEXT)


def test_a_cold_item_is_recommended_for_its_text(trained):
    model, _, _ = trained
    query = tensors([2, 3, 4])
    items = model.item_vectors()
    dense = tf.matmul(tf.add_n(model.last_query_vectors(items, query)), items, transpose_b=True)
    for scores, places in ((dense, 2), (model.score(ask([2, 3, 4])), 3)):
        scores = np.array(scores)[0]
        scores[[2, 3, 4]] = -np.inf
        order = np.argsort(-scores).tolist()
        assert {5, TWIN} <= set(order[:places]), order
        assert order.index(ALONE) > order.index(TWIN)


def test_scores_during_fit_are_those_after_it(trained):
    model, _, scores = trained
    assert len(scores) == 25
    np.testing.assert_allclose(scores[-1], model.score(ask([1, 2])), atol=1e-5)
    assert np.abs(scores[-1] - scores[0]).max() > 0.1


def test_terms_sum_to_the_score(trained):
    model, _, _ = trained
    histories, marks = [[1, 2, 3], [4], list(range(9))], [[5, NAN, 1], [3], [5.0, 1, 2] * 3]
    query = tensors(*histories, ratings=marks)
    items = tf.constant(np.tile(np.arange(N, dtype=np.int32), (3, 1)))
    vectors = model.item_vectors()
    explained = {k: v.numpy() for k, v in model.explain_items(vectors, query, items).items()}
    total = explained["meaning"] + explained["feedback"] + explained["behaviour"]
    np.testing.assert_allclose(total, model.score_items(vectors, query), atol=1e-4)
    assert all(np.abs(explained[term]).max() > 1e-3 for term in ("meaning", "feedback", "behaviour"))
    because = explained["because"]
    lengths = np.array([[3], [1], [9]])
    assert ((because >= 0) & (because < lengths)).all()
    assert (explained["feedback"][1] == 0).sum() == 0  # one mark has been heard, and centres to nothing but the norm


def test_the_event_behind_a_recommendation(trained):
    model, _, _ = trained
    query = tensors([10, 3, 4])
    explained = model.explain_items(model.item_vectors(), query, tf.constant([[5, 11, N]]))
    position = dict(zip(("5", "11", "unknown"), explained["because"].numpy()[0], strict=True))
    behaviour = explained["behaviour"].numpy()[0]
    dense = (explained["meaning"] + explained["feedback"]).numpy()[0]
    by_event = model.behaviour.by_event(query["history"], tf.constant([[5, 11]])).numpy()[0, :3]
    vectors = model.item_vectors().numpy()
    for i, item in enumerate((5, 11)):
        closest = np.argmax(vectors[[10, 3, 4]] @ vectors[item])
        expected = np.argmax(by_event[:, i]) if behaviour[i] >= dense[i] else closest
        assert position[str(item)] == expected
    assert position["unknown"] == -1 and behaviour[2] == dense[2] == 0


def test_the_event_behind_a_recommendation_is_among_the_newest(trained):
    """Those that explanations look at; terms are of the whole history, as the score is."""
    model, _, _ = trained
    recent = [10, 3, 4] * (LONGEST // 3) + [10] * (LONGEST % 3)
    marks = [1.0, 5, 2] * (LONGEST // 3) + [4.0] * (LONGEST % 3)
    query = tensors([5, 11] * 50 + recent, recent, ratings=[[3.0, 3] * 50 + marks, marks], length=LONGEST + 100)
    items = tf.constant([[5, 11, N]] * 2)
    explained = {k: v.numpy() for k, v in model.explain_items(model.item_vectors(), query, items).items()}
    assert (explained["because"][0, :2] >= 100).all() and explained["because"][0, 2] == -1
    np.testing.assert_array_equal(explained["because"][0, :2], explained["because"][1, :2] + 100)
    total = explained["meaning"] + explained["feedback"] + explained["behaviour"]
    scores = model.score_items(model.item_vectors(), query).numpy()
    np.testing.assert_allclose(total[:, :2], scores[:, [5, 11]], atol=1e-4)


def test_nothing_stands_behind_an_empty_history(trained):
    model, _, _ = trained
    query = tensors([])
    explained = model.explain_items(model.item_vectors(), query, tf.constant([[0, 5]]))
    assert explained["because"].numpy().tolist() == [[-1, -1]]
    assert not any(explained[term].numpy().any() for term in ("meaning", "feedback", "behaviour"))


def test_an_empty_history_gets_what_is_popular(trained):
    scores = trained[0].score(ask([], [1]))
    np.testing.assert_allclose(scores[0], np.log1p(COUNTS), rtol=1e-5)
    assert np.abs(scores[1] - scores[0]).max() > 0.1


def test_padding_changes_nothing(trained):
    model, _, _ = trained
    vectors = model.item_vectors()
    short = model.score_items(vectors, tensors([1, 2, 3], ratings=[[1, 5, 2]], length=3)).numpy()
    np.testing.assert_allclose(
        model.score_items(vectors, tensors([1, 2, 3], ratings=[[1, 5, 2]], length=30)), short, atol=1e-5
    )


def test_after_the_newest_event_alone_it_is_as_after_all_events(trained):
    model, _, _ = trained
    vectors, query = model.item_vectors(), tensors([1, 2, 3], [4], [], ratings=[[1, 5, 2], [3], []], length=6)
    every = model.query_vectors(vectors, query)
    last = tf.constant([2, 0, 0])
    for whole, alone, newest in zip(
        every, model.query_vectors(vectors, query, last=last), model.last_query_vectors(vectors, query), strict=True
    ):
        assert alone.shape == (3, 1, whole.shape[2])
        np.testing.assert_allclose(alone, np.take_along_axis(whole.numpy(), last.numpy()[:, None, None], 1), atol=1e-5)
        np.testing.assert_allclose(newest[:2], alone[:2, 0], atol=1e-5)
        assert not newest[2].numpy().any()


def test_the_encoder_sees_its_window_and_behaviour_all(trained):
    model, _, _ = trained
    vectors = model.item_vectors()
    long = tensors([9, 8, 7, 1, 2, 3, 4, 5, 6], ratings=[[5, 1, 5, 3, 1, 2, 4, 4, 2]])
    last_six = tensors([1, 2, 3, 4, 5, 6], ratings=[[3, 1, 2, 4, 4, 2]])
    for whole, window in zip(
        model.last_query_vectors(vectors, long), model.last_query_vectors(vectors, last_six), strict=True
    ):
        np.testing.assert_allclose(whole, window, atol=1e-4)
    assert np.abs(model.behaviour(long["history"]) - model.behaviour(last_six["history"])).max() > 1e-3


def test_a_batch_is_its_rows(trained, monkeypatch):
    model, _, _ = trained
    queries = ask(*WALKS, [], [5], ratings=[*[[1, 5, 2]] * RING, [], [4]])
    alone = np.concatenate([model.score(query) for query in queries.batches(1)])
    assert alone.dtype == np.float32
    np.testing.assert_allclose(model.score(queries), alone, atol=1e-5)
    monkeypatch.setattr("tfllmrec.models.hybrid.SCORE_BATCH", 3)
    np.testing.assert_allclose(model.score(queries), alone, atol=1e-5)


def test_feedback_points_at_what_was_liked():
    """Of a liked and a disliked event, the liked one stands behind what feedback speaks for."""
    model = hybrid(terms=["feedback"])
    candidates = tf.tile(tf.range(N)[tf.newaxis], (2, 1))
    query = tensors([1, 2], [1, 2], ratings=[[5, 1], [1, 5]])
    explained = model.explain_items(model.item_vectors(), query, candidates)
    because, positive = explained["because"].numpy(), explained["feedback"].numpy() > 0
    assert positive.any(axis=1).all()
    assert set(because[0][positive[0]]) == {0} and set(because[1][positive[1]]) == {1}


# Terms that are switched off ------------------------------------------------------------------------------------------


def scores_of(model, ratings):
    return model.score(ask([1, 2, 3], ratings=[ratings]))


def without_behaviour(model):
    before = scores_of(model, [5, 1, NAN])
    model.set_item_weights(PrunedWeights(np.zeros((N, 12), np.int32), np.ones((N, 12), np.float32)))
    return np.array_equal(scores_of(model, [5, 1, NAN]), before)


@pytest.mark.parametrize(
    "terms",
    [["meaning"], ["feedback"], ["behaviour"], ["meaning", "behaviour"], ["meaning", "feedback"],
     ["feedback", "behaviour"], ["meaning", "feedback", "behaviour"]],
    ids="+".join,
)  # fmt: skip
def test_a_term_that_is_off_leaves_no_trace(terms):
    model = hybrid(terms=terms)
    query = tensors([1, 2, 3], ratings=[[5, 1, NAN]], length=3)
    items = tf.range(N)[tf.newaxis]
    explained = model.explain_items(model.item_vectors(), query, items)
    for term in ("meaning", "feedback", "behaviour"):
        assert bool(np.any(explained[term])) == (term in terms), term
    total = tf.add_n([explained[term] for term in ("meaning", "feedback", "behaviour")])
    np.testing.assert_allclose(total, scores_of(model, [5, 1, NAN]), atol=1e-4)

    rated, unrated = scores_of(model, [5, 1, NAN]), scores_of(model, [NAN] * 3)
    assert np.array_equal(rated, unrated) == ("feedback" not in terms)
    if terms == ["feedback"]:
        assert not unrated.any()
    if terms == ["behaviour"]:
        expected = score_history(ask([1, 2, 3]).history, solved(SEQUENCES.items), 0.5)
        np.testing.assert_allclose(rated, expected, atol=1e-5)
    assert without_behaviour(model) == ("behaviour" not in terms)


def test_strength_and_closing_0_rank_by_behaviour_alone():
    model = hybrid()
    model.gates.dense_strength.assign(0.0)
    model.gates.closing.assign(0.0)
    behaviour = score_history(ask([1, 2, 3]).history, solved(SEQUENCES.items), 0.5)
    np.testing.assert_allclose(scores_of(model, [NAN] * 3), 50 * behaviour, rtol=1e-4, atol=1e-4)


def test_what_was_disliked_pushes_away():
    model = hybrid(terms=["feedback"])
    first_liked, second_liked = model.score(ask([1, 2], [1, 2], ratings=[[5, 1], [1, 5]]))
    assert first_liked[1] > first_liked[2]
    assert second_liked[2] > second_liked[1]


def test_no_rating_is_no_feedback():
    """Where nobody rates, the model is the one without that term, whatever its gate says."""
    with_feedback, without = hybrid(), hybrid(terms=["meaning", "behaviour"])
    with_feedback.feedback.gate.bias.assign([9.0])
    np.testing.assert_allclose(scores_of(with_feedback, [NAN] * 3), scores_of(without, [NAN] * 3), atol=1e-5)


# Training -------------------------------------------------------------------------------------------------------------


def one_batch():
    return next(iter(training_batches(SEQUENCES, 200, 6, seed=1, epochs=1)))


def loss_of(model, batch, **kwargs):
    return float(model.compute_loss(batch, **kwargs))


def test_training_knows_the_counts_without_held_out_events():
    model, batch = hybrid(), one_batch()
    none = PrunedWeights(np.zeros((N, 12), np.int32), np.zeros((N, 12), np.float32))
    model.set_holdout(none, np.zeros(N))  # as if every event were held out: ids are unknown then
    loss, scores = loss_of(model, batch), scores_of(model, [5, 1, 2])
    model.items.id_embedding.assign_add(tf.random.stateless_normal((N, 16), [1, 2]))
    assert loss_of(model, batch) == loss
    assert np.abs(scores_of(model, [5, 1, 2]) - scores).max() > 0.1  # while scores use all events


def test_held_out_targets_are_for_the_gates_alone():
    model, batch = hybrid(), one_batch()
    gates = {v.ref() for v in model.gates.trainable_variables}
    held = batch["held_out"]
    only_held = batch | {"targets": tf.where(held, batch["targets"], N)}
    only_learnt = batch | {"targets": tf.where(held, N, batch["targets"])}

    def touched(inputs):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = zip(model.trainable_variables, gradients, strict=True)
        return {v.ref() for v, g in pairs if g is not None and np.any(tf.convert_to_tensor(g))}

    assert touched(only_held) <= gates and touched(only_held)
    assert touched(only_learnt) and not touched(only_learnt) & gates


def test_the_gates_are_fitted_where_w_has_not_seen_the_target():
    model, batch = hybrid(), one_batch()
    loss = loss_of(model, batch)
    model.set_item_weights(PrunedWeights(np.zeros((N, 12), np.int32), np.ones((N, 12), np.float32)))
    assert loss_of(model, batch) == loss
    kept = SEQUENCES.choices(held_out=False)
    weights = solved(kept)
    model.set_holdout(PrunedWeights(weights.neighbours, 0 * weights.weights), np.bincount(kept.values, minlength=N))
    assert loss_of(model, batch) != loss


def test_gates_are_fitted_on_items_that_are_new_to_the_person():
    model = hybrid()
    row = {
        "history": [[1, 2, 3, N]], RATING_KEY: [[NAN] * 4], "targets": [[N, N, 4, N]],
        "held_out": [[False, False, True, False]],
    }  # fmt: skip
    batch = {name: tf.constant(value) for name, value in row.items()}
    towards = {item: PrunedWeights(np.full((N, 1), item, np.int32), np.ones((N, 1), np.float32)) for item in (1, 4, 7)}
    losses = {}
    for item, weights in towards.items():
        model.set_holdout(PrunedWeights(*(np.repeat(x, 12, 1) for x in (weights.neighbours, weights.weights))), COUNTS)
        losses[item] = loss_of(model, batch)
    none = PrunedWeights(np.zeros((N, 12), np.int32), np.zeros((N, 12), np.float32))
    model.set_holdout(none, COUNTS)
    assert loss_of(model, batch) == pytest.approx(losses[1])  # an item of the history is no negative,
    assert losses[4] < losses[1] < losses[7]  # the target and others count


def test_cold_items_are_no_negatives():
    model, batch = hybrid(terms=["meaning"]), one_batch()
    loss = loss_of(model, batch)
    text = model.items.blocks["text"].numpy()
    text[[TWIN, ALONE]] *= -1
    model.items.blocks["text"].assign(text)
    assert loss_of(model, batch) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "text", "message"),
    [
        (["a", "b", "c"], np.ones((2, 4)), r"a row of text for each of 3 item ids, \[3, Dt\], found shape \[2, 4\]"),
        (["a", "b"], np.ones(2), r"found shape \[2\]"),
        (["a", "b", "b"], np.ones((3, 4)), "expected each item id once, found 'b' 2 times"),
    ],
)
def test_a_catalogue_is_checked(ids, text, message):
    with pytest.raises(ModelError, match=message):
        Catalogue(np.array(ids, object), text)


def test_counts_of_another_catalogue_are_refused():
    with pytest.raises(ModelError, match="for each of 2 items, found 3"):
        Hybrid(Catalogue(np.array(["a", "b"], object), np.ones((2, 4))), np.ones(3, int), ModelConfig())


def some_batch():
    return next(iter(training_batches(SEQUENCES, 4, 6, seed=1, epochs=1)))


def test_a_step_with_sampled_negatives_looks_at_these_alone(monkeypatch):
    """The first 4 histories, and 3 drawn items: far from all 30."""
    model = hybrid(Negatives(3))
    looked_at = []
    of_items, gates = model.items.call, model.gates.call
    monkeypatch.setattr(
        model.items, "call", lambda at, *args, **kw: looked_at.append(len(at)) or of_items(at, *args, **kw)
    )
    monkeypatch.setattr(
        model.gates, "call", lambda dense, *args, **kw: looked_at.append(dense.shape[1]) or gates(dense, *args, **kw)
    )
    batch = some_batch()
    assert tf.reduce_any(batch["held_out"])
    model.compute_loss(batch, training=True)
    assert len(looked_at) == 3 and max(looked_at) < N


def test_a_step_with_sampled_negatives_against_the_whole_catalogue():
    """The losses at the drawn items, out of vectors and gated scores of all items."""
    model = hybrid(Negatives(9))
    model.gates.log_scales.assign([0.0, 0.0])
    batch = some_batch()
    history, targets, held_out = (batch[name] for name in ("history", "targets", "held_out"))
    model.compute_loss(batch)
    even = model.retrieval.draw_evenly().numpy()
    model.retrieval.steps.assign(0)
    by_share = model.retrieval.draw()

    items = model.item_vectors(model.counts_without_holdout)
    queries = tf.add_n(model.query_vectors(items, batch))
    learnt = (targets < N) & ~held_out
    ids = tf.concat([targets[learnt], by_share], axis=0)
    expected = model.retrieval(queries[learnt], tf.gather(items, ids), ids)
    assert float(model.retrieval_loss.result()) == pytest.approx(float(expected), rel=1e-5)

    losses = []
    for row, at in np.argwhere(held_out & (targets < N)):
        known = history.numpy()[row : row + 1, : at + 1]
        dense = tf.linalg.matvec(items, queries[row, at])[tf.newaxis]
        gated = model.gates(
            dense, model.behaviour_without_holdout(tf.constant(known)), model.counts_without_holdout, training=True
        )
        gated, target = gated.numpy()[0], int(targets[row, at])
        others = [item for item in even if item != target and item not in known]
        total = np.exp(gated[target]) + np.exp(gated[others]).sum() * N / 9
        losses.append(np.log(total) - gated[target])
    assert losses and float(model.gate_loss.result()) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("terms", [["meaning", "behaviour"], ["feedback", "behaviour"], ["meaning"]])
def test_every_trained_variable_has_a_gradient(terms):
    model = hybrid(terms=terms)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(some_batch(), training=True)
    variables = model.trainable_variables
    found = [x is not None for x in tape.gradient(loss, variables)]
    assert [v.name for v, there in zip(variables, found, strict=True) if not there] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "negatives", "terms"),
    [
        ("float32", 30, ["meaning", "feedback", "behaviour"]),
        ("mixed_bfloat16", 0, ["meaning", "feedback", "behaviour"]),
        ("mixed_bfloat16", 30, ["meaning"]),
    ],
)
def test_each_precision_and_kind_of_negatives_learns(policy, negatives, terms):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        model = hybrid(Negatives(negatives), terms=terms)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert model.retrieval.n_negatives == 30 if negatives else not hasattr(model.retrieval, "n_negatives")
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01), run_eagerly=True)
    batch = tf.data.Dataset.from_tensors(one_batch()).repeat(4)
    losses = [model.fit(batch, verbose=0).history["retrieval_loss"][0] for _ in range(2)]
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    scores = scores_of(model, [5, 1, 2])
    assert scores.dtype == np.float32 and np.isfinite(scores).all()
    assert model.items.id_embedding.dtype == tf.float32


def test_the_same_seed_gives_the_same_model():
    scores = [scores_of(hybrid(seed=seed), [5, 1, 2]) for seed in (1, 1, 2)]
    assert np.array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])


# From another model ---------------------------------------------------------------------------------------------------


def test_a_model_starts_from_one_of_fewer_items():
    small = hybrid()
    for at, variable in enumerate(small._learned_variables):
        if variable.dtype == tf.float32:
            variable.assign(variable + 0.01 * (at + 1))
    new = np.random.default_rng(3).normal(size=(2, 12)).astype(np.float32)
    text, ids = np.concatenate([TEXT, new]), np.array([*map(str, range(N)), "new", "newer"], object)
    counts = np.pad(COUNTS, (0, 2), constant_values=4)
    large = Hybrid(Catalogue(ids, text), counts, ModelConfig(**SIZES), SETTINGS, None, 7)
    large.start_from(small, np.array([*range(N), -1, -1]))
    learned = large.items.id_embedding.numpy()
    np.testing.assert_array_equal(learned[:N], small.items.id_embedding.numpy())
    assert not learned[N:].any()
    np.testing.assert_allclose(large.text_vectors, centred_unit(text), atol=1e-6)  # the catalogue stays its own
    assert large.gates.has_text.numpy().tolist() == [1.0] * (N + 2)
    for ours, theirs in zip(large._of_no_catalogue, small._of_no_catalogue, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_a_model_does_not_start_from_one_with_other_layers():
    with pytest.raises(ModelError, match="same layers to start from"):
        hybrid(embedding_dim=32).start_from(hybrid(), np.arange(N))


@pytest.mark.parametrize("negatives", [None, Negatives(9)])
def test_a_teachers_dense_scores_are_soft_targets_beside_the_next_items(negatives):
    model, teacher, batch = hybrid(negatives), hybrid(seed=7), some_batch()
    weights = len(model.weights)
    model.compute_loss(batch)
    without = float(model.retrieval_loss.result())
    model.teacher = Teacher(teacher, teacher.item_vectors(), 0.5)
    model.retrieval_loss.reset_state()
    if negatives:
        model.retrieval.steps.assign(0)
    model.compute_loss(batch)
    found = float(model.retrieval_loss.result()) - without
    assert len(model.weights) == weights and model.teacher not in model.submodules  # it is no part of the model
    learnt = (batch["targets"] < N) & ~batch["held_out"]
    logits = []
    for each, items in ((teacher, teacher.item_vectors()), (model, model.item_vectors(model.counts_without_holdout))):
        asked = tf.add_n(each.query_vectors(items, batch))[learnt].numpy()
        logits.append(asked @ items.numpy().T)
    if negatives:  # the items of the batch and those that were drawn
        model.retrieval.steps.assign(0)
        history, targets = batch["history"].numpy(), batch["targets"][learnt].numpy()
        read = np.where(history < N, history, 0).ravel()
        some = np.unique(np.concatenate([read, targets, model.retrieval.draw().numpy()]))
        logits = [each[:, some] for each in logits]
    soft, ours = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in logits)
    assert found == pytest.approx(-0.5 * np.mean(np.sum(np.exp(soft) * ours, axis=1)), rel=1e-4)
