import random
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from stand_ins import training_data

from tfllmrec.config import ItemWeightSettings, ModelConfig, TrainingConfig
from tfllmrec.data.batches import Sequences
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.schema import RATING_KEY
from tfllmrec.errors import ConfigError, ModelError
from tfllmrec.evaluation.protocol import evaluate, selection_value
from tfllmrec.layers.term_gates import Factors, TermGates
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import solve_item_weights
from tfllmrec.text.centring import centred_unit
from tfllmrec.training import fit
from tfllmrec.training.fit import CLOSINGS, STRENGTHS, GateSettings, choose_gates, fit_hybrid, set_item_weights

pytestmark = pytest.mark.tf


@pytest.mark.parametrize("rank", [2, 6])
def test_item_weights_are_solved_as_the_config_says_and_without_what_is_held_out(rank):
    rng = np.random.default_rng(0)
    items = Ragged.from_rows([rng.permutation(6)[:4] for _ in range(20)], np.int64)
    held_out = Ragged(np.arange(80) % 8 == 7, items.offsets)  # the last event of every other history
    ratings = Ragged(np.full(80, np.nan, np.float32), items.offsets)
    sequences, text = Sequences(items, held_out, 6, {RATING_KEY: ratings}), rng.normal(size=(6, 3)).astype(np.float32)
    settings = ItemWeightSettings(decay=0.8, l2=1.0, co_occurrence=0.5, text=2.0, rank=rank, neighbours=5).settled()
    said = {}
    model = SimpleNamespace(
        n_items=6,
        item_weights=settings,
        text_vectors=centred_unit(text),
        mapped=lambda weights, histories: weights,
        set_item_weights=lambda weights: said.update(all=weights),
        set_holdout=lambda weights, counts: said.update(kept=weights, counts=counts),
    )
    set_item_weights(model, sequences)

    kept = Ragged.from_rows([row[: 4 - user % 2] for user, row in enumerate(items)], np.int64)
    for name, histories in (("all", items), ("kept", kept)):
        expected = solve_item_weights(histories, 6, settings, centred_unit(text))
        assert np.array_equal(said[name].neighbours, expected.neighbours)
        assert np.array_equal(said[name].weights, expected.weights)
    assert said["counts"].tolist() == np.bincount(kept.values, minlength=6).tolist()


def test_a_map_that_no_user_is_left_for_without_what_is_held_out_is_left_out():
    items = Ragged.from_rows([[0, 1, 2], [2, 1, 0]], np.int64)
    sequences = Sequences(items, Ragged(np.array([0, 0, 1, 0, 0, 1], bool), items.offsets), 3, {})
    said = {}

    def mapped(weights, histories):
        if len(histories.values) < 6:
            raise ModelError("no users of two domains")
        return "mapped"

    model = SimpleNamespace(
        n_items=3,
        item_weights=ItemWeightSettings(decay=0.8, text=0.0, kinds=False, neighbours=2, map=True).settled(),
        text_vectors=np.zeros((3, 2), np.float32),
        mapped=mapped,
        set_item_weights=lambda weights: said.update(all=weights),
        set_holdout=lambda weights, counts: said.update(kept=weights),
    )
    set_item_weights(model, sequences)
    assert said["all"] == "mapped" and said["kept"].weights.shape == (3, 2)


class Gates:
    """Four items, a gate of one half, no scales; the settings as in TermGates. Item 0 has many events, item 3 none."""

    trainable = True

    def __init__(self, strength=1.0, closing=1.0):
        self.dense_strength, self.closing = tf.Variable(strength), tf.Variable(closing)
        self.discount, self.cold_lift = tf.Variable(0.0), tf.Variable(0.0)


def gated(gates, terms):
    def item_factors():
        dense = gates.dense_strength * 0.5 * tf.ones(4)
        offset = gates.cold_lift * [0.0, 0, 0, 1] - gates.discount * [3.0, 0, 0, 0] * dense
        return Factors(dense, (1.0 - gates.closing * 0.5) * tf.ones(4), offset)

    return SimpleNamespace(gates=gates, item_factors=item_factors, score_terms=lambda queries: terms)


def random_terms(rows):
    return np.random.default_rng(1).normal(size=(2, rows, 4)).astype(np.float32)


def test_weighed_scores_are_those_of_the_gates_whatever_the_batches():
    gates, (dense, sparse) = Gates(), random_terms(700)
    queries = Queries.from_histories([[0]] * 700)
    weighed = fit._Weighed(gated(gates, (dense, sparse)), queries)
    for c, d, size in ((1.0, 1.0, 512), (0.25, 0.5, 512), (2.0, 0.0, 300)):
        gates.dense_strength.assign(c)
        gates.closing.assign(d)
        came = np.concatenate([weighed.score(batch) for batch in queries.batches(size)])
        np.testing.assert_allclose(came, c * 0.5 * dense + (1 - d * 0.5) * sparse, rtol=1e-5)


def test_the_quick_selection_value_is_that_of_a_full_evaluation():
    rng = np.random.default_rng(2)
    queries = Queries.from_histories([[i % 4] for i in range(700)], targets=[[(i + 1) % 4] for i in range(700)])
    strata = {"tail": np.array([False, True, False, True])}
    weighed = fit._Weighed(gated(Gates(), np.round(rng.normal(size=(2, 700, 4)), 1)), queries)  # with ties
    full = evaluate(weighed, queries, train_counts=np.ones(4, int), strata=strata, ks=[5, 10, 20], bootstrap=0)
    assert weighed.selection_value(strata) == pytest.approx(selection_value(full), abs=1e-12)
    assert weighed.selection_value({}) != pytest.approx(weighed.selection_value(strata), abs=1e-4)


class Surface:
    """Stands in for :class:`fit._Weighed`: the value of settings is how near they are to the ``best``."""

    def __init__(self, model, queries):
        self.model = model

    def selection_value(self, strata):
        came = GateSettings.of(self.model)
        TRIED.append(came)
        return -sum(
            abs(getattr(came, name) - getattr(BEST[0], name)) for name in ("dense_strength", "closing", "discount")
        )


def measured_as(result):
    """Training data on which every recommender is measured as ``result`` says."""
    return SimpleNamespace(
        sample=Queries.from_histories([[0]] * 3), strata={}, measure=lambda recommender, ks: result()
    )


TRIED: list[GateSettings] = []
BEST: list[GateSettings] = []


@pytest.mark.parametrize("best", [(0.0, 0.0), (0.25, 0.75), (2.0, 1.0)])
def test_strength_and_closing_are_chosen_on_a_planted_surface(best, monkeypatch):
    monkeypatch.setattr(fit, "_Weighed", Surface)
    BEST[:] = [GateSettings(*best)]
    for climb in (True, False):
        model = gated(Gates(0.5, 0.5), None)
        TRIED.clear()
        assert choose_gates(model, measured_as(lambda: "measured"), climb=climb) == "measured"
        assert GateSettings.of(model) == BEST[0]
        assert len(TRIED) == len(set(TRIED))
        undiscounted = [tried for tried in TRIED if not tried.discount]
        assert (len(undiscounted) == len(STRENGTHS) * len(CLOSINGS)) != climb
        assert (len(undiscounted) == len(TRIED)) == climb


@pytest.mark.parametrize(("low", "taken"), [(1e-4, True), (-1e-4, False)])
def test_a_discount_is_taken_only_where_its_gain_is_beyond_chance(low, taken, monkeypatch):
    monkeypatch.setattr(fit, "_Weighed", Surface)
    monkeypatch.setattr(fit, "selection_gain", lambda a, b, **_: (0.01, low, 0.02))
    BEST[:] = [GateSettings(0.75, 0.5, 0.4)]
    model = gated(Gates(), None)
    result = choose_gates(model, measured_as(lambda: GateSettings.of(model)))
    assert result == GateSettings.of(model)
    # The discount of 0.4 is there, to the last bit of float32, or there is none.
    assert result.discount == pytest.approx(0.4 if taken else 0.0)
    assert (result.dense_strength, result.closing) == (0.75, 0.5)


@pytest.mark.parametrize(("low", "moves"), [(1e-4, True), (-1e-4, False)])
def test_gates_that_are_kept_move_only_for_a_gain_beyond_chance(low, moves, monkeypatch):
    confidences = []

    def gain(a, b, confidence):
        confidences.append(confidence)
        return 0.01, low, 0.02

    monkeypatch.setattr(fit, "_Weighed", Surface)
    monkeypatch.setattr(fit, "selection_gain", gain)
    BEST[:] = [GateSettings(0.25, 0.5, 0.4)]
    model = gated(Gates(0.75, 0.25), None)
    model.gates.discount.assign(0.2)
    TRIED.clear()
    before = GateSettings.of(model)
    model.gates.dense_strength.assign(2.0)  # an earlier epoch has moved
    result = choose_gates(model, measured_as(lambda: GateSettings.of(model)), climb=True, keep=before)
    assert result == GateSettings.of(model)
    if moves:
        assert (result.dense_strength, result.closing) == (0.25, 0.5) and result.discount == pytest.approx(0.4)
    else:
        assert result == before
    # Each setting that was tried beside the present one makes a gain by chance more likely.
    assert confidences == [1 - 0.05 / (len(set(TRIED)) - 1)] and len(set(TRIED)) < 20


def test_gates_that_are_kept_and_cannot_be_better_are_compared_with_nothing(monkeypatch):
    monkeypatch.setattr(fit, "_Weighed", Surface)
    BEST[:] = [GateSettings(0.75, 0.25)]
    model = gated(Gates(0.75, 0.25), None)
    kept = GateSettings.of(model)
    assert choose_gates(model, measured_as(lambda: "measured"), keep=kept) == "measured"  # no gain is asked for
    assert GateSettings.of(model) == BEST[0]


@pytest.mark.parametrize("climb", [True, False])
def test_the_lift_of_cold_items_is_no_choice_of_the_gates(climb, monkeypatch):
    monkeypatch.setattr(fit, "_Weighed", Surface)
    BEST[:] = [GateSettings(0.25, 0.5)]
    model = gated(Gates(), None)
    model.gates.cold_lift.assign(1.5)
    choose_gates(model, measured_as(lambda: "measured"), climb=climb)
    assert GateSettings.of(model) == GateSettings(0.25, 0.5, cold_lift=1.5)


@pytest.mark.slow
def test_a_discount_finds_the_tail_that_a_popular_item_hides():
    """The popular item 0 beats each target by 1 in the dense term; its discount is 3 tau."""
    targets = 1 + np.arange(600) % 3
    dense = np.zeros((600, 4), np.float32)
    dense[np.arange(600), targets] = 1.0
    dense[:, 0] = 2.0
    queries = Queries.from_histories([[]] * 600, targets=[[t] for t in targets])
    strata = {"tail": np.array([False, True, True, True])}
    for sparse, taken in ((np.zeros_like(dense), True), (dense * [0, 9, 9, 9], False)):
        model = gated(Gates(), (dense, sparse.astype(np.float32)))
        choose_gates(model, training_data(Ragged.from_rows([range(4)], np.int64), 4, queries, strata=strata))
        assert (GateSettings.of(model).discount > 1 / 3) == taken  # nothing is to be gained in the second case


def cold_data(n_queries, readable=True, lead=0.9):
    """30 items, 20 to 29 without events. Each query asks for one of these, which reads like its only event's item."""
    n = 30
    targets = 20 + np.arange(n_queries) % 10
    users = [f"u{i}" for i in range(n_queries)]
    queries = Queries.from_histories([[t - 20] for t in targets], targets=[[t] for t in targets], user_ids=users)
    text = np.eye(10, dtype=np.float32)[np.r_[:10, np.arange(10, 20) % 10, :10]]
    text[10:20] = np.roll(np.eye(10, dtype=np.float32), 3, axis=0)
    if not readable:
        text[20:] *= -1  # further from the history's text than any other
    counts = np.where(np.arange(n) < 20, 5, 0)
    events = Ragged(np.repeat(np.arange(n), counts), np.array([0, counts.sum()]))
    strata = {"cold": counts == 0, "tail": np.ones(n, bool)}
    data = training_data(events, n, queries, text, strata, seed=3)
    # The items with events are ahead of the target by the lead, and the target is ahead of the other cold items.
    terms = np.where(np.arange(n) < 20, 0.1 + lead, 0.0) * np.ones((2, n_queries, 1))
    terms[:, np.arange(n_queries), targets] = 0.1
    return data, terms.astype(np.float32)


def lifted(n_queries=40, readable=True, text_is_there=True, lead=0.9, before=None):
    """The lift chosen with the product's own gates, all of them closed to the dense term, and the line on it.

    With ``before``, the lift that an update starts from.
    """
    data, terms = cold_data(n_queries, readable, lead)
    data = replace(data, text=data.text * text_is_there)
    text, split = data.text, data.split
    gates = TermGates(has_text=np.any(text != 0, axis=1), seed=1)
    gates(*terms[:, :1], tf.constant(split.train_counts, tf.float32))
    gates.dense_strength.assign(0.0)
    gates.closing.assign(0.0)
    gates.log_scales.assign([0.0, 0.0])
    factors = lambda: gates.factors(tf.constant(split.train_counts, tf.float32))  # noqa: E731
    rows = {user: row for row, user in enumerate(split.validation.user_ids)}
    model = SimpleNamespace(
        gates=gates, item_factors=factors, score_terms=lambda asked: terms[:, [rows[user] for user in asked.user_ids]]
    )
    if before is not None:
        gates.cold_lift.assign(before)
    said = fit.choose_cold_lift(model, data, keep=before is not None)
    return float(gates.cold_lift), said


def test_cold_items_are_lifted_until_they_rank_as_by_text_alone():
    assert lifted(lead=5.0)[0] == 6.0  # the smallest that is above the lead
    lift, said = lifted()
    assert lift == 1.0
    assert said.startswith("gates cold lift 1: recall@10/cold 1.0000 on 40 validation queries, text alone 1.0000; ")
    assert re.search(r"selection value 0\.\d{4} without it, 1\.0000 with it$", said)


def test_where_no_lift_is_enough_the_smallest_of_the_best_is_taken():
    lift, said = lifted(lead=50.0)
    assert lift == 0.0 and "recall@10/cold 0.0000" in said
    # The targets of half of the queries are within reach.
    lead = np.where(np.arange(40) % 2 == 0, 0.9, 50.0)[:, np.newaxis]
    lift, said = lifted(lead=lead)
    assert lift == 1.0 and "recall@10/cold 0.5000" in said


def test_cold_items_stay_where_text_alone_does_not_find_them():
    assert lifted(readable=False)[0] == 0.0


@pytest.mark.parametrize("changes", [{"n_queries": 19}, {"text_is_there": False}])
def test_without_cold_targets_or_texts_there_is_no_lift(changes):
    assert lifted(**changes) == (0.0, None)


@pytest.mark.parametrize(("n_queries", "lift"), [(19, 1.5), (20, 1.0)])
def test_a_lift_that_is_kept_is_chosen_again_where_there_are_cold_targets(n_queries, lift):
    assert lifted(n_queries, before=1.5)[0] == lift


# A fit as a whole -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(chain_split, chain_config):
    """(config, text): an epoch of the smallest model on the ring."""
    config = chain_config.model_copy(deep=True)
    config.training = TrainingConfig(epochs=1, batch_size=64)
    config.model = ModelConfig(embedding_dim=8, blocks=0, heads=2, history_length=6, dropout=0.1)
    config.item_weights = WEIGHTS
    text = np.random.default_rng(0).normal(size=(chain_split.dataset.n_items, 6)).astype(np.float32)
    return config, text


WEIGHTS = ItemWeightSettings(decay=0.8, l2=5.0, co_occurrence=0.1, text=1.0, next_item=1.0, popularity=0.0, rank="all")


@pytest.fixture(scope="module")
def interrupted(chain_split, small, tmp_path_factory):
    """A folder with a finished epoch of :func:`small`, and what the fit left of the global state set before it."""
    folder = tmp_path_factory.mktemp("interrupted")
    config, text = small
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    random.seed(5)
    np.random.seed(6)  # noqa: NPY002
    wanted = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    try:
        fitted = fit_hybrid(TrainingData(chain_split, text), config, folder)
        policy = tf.keras.mixed_precision.global_policy().name
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    came = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    return SimpleNamespace(folder=folder, fitted=fitted, policy=policy, random_state_kept=came == wanted)


@pytest.mark.slow
def test_a_fit_leaves_the_global_state_of_a_script_alone(interrupted):
    assert interrupted.policy == "mixed_bfloat16" and interrupted.random_state_kept


def test_a_fit_trains_in_the_scripts_policy_unless_the_config_says_otherwise(interrupted, chain_split, small):
    assert interrupted.fitted.model.history_encoder.compute_dtype == "bfloat16"
    assert interrupted.fitted.options.training.precision == "mixed_bfloat16"
    config, text = small
    config, data = config.model_copy(deep=True), TrainingData(chain_split, text)
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert fit.build_hybrid(data, config.model_copy()).history_encoder.compute_dtype == "float32"
        config.training.precision = "float32"
        fit._settle_precision(config)
        assert config.training.precision == "float32"
        tf.keras.mixed_precision.set_global_policy("mixed_float16")
        with pytest.raises(ConfigError, match="expected float32 or mixed_bfloat16, found mixed_float16"):
            fit_hybrid(data, small[0])
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def other_events(split, config, text):
    return replace(split, train=split.train[1:]), config, text


def other_setting(split, config, text):
    config.training.learning_rate = 0.5
    return split, config, text


def other_text(split, config, text):
    return split, config, text[::-1].copy()


def other_targets(split, config, text):
    rows = np.arange(len(split.validation))[::-1]
    return replace(split, validation=split.validation.take(rows)), config, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_events, "training events"),
        (other_setting, r"training\.learning_rate"),
        (other_text, "text vectors"),
        (other_targets, "validation queries"),
    ],
)
def test_checkpoints_of_another_fit_are_refused(change, named, interrupted, chain_split, small):
    config, text = small
    config = config.model_copy(deep=True)
    config.training.precision = "mixed_bfloat16"
    split, config, text = change(chain_split, config, text)
    with pytest.raises(ModelError, match=f"checkpoints belongs to a run with other {named}: name another folder"):
        fit_hybrid(TrainingData(split, text), config, interrupted.folder)


@pytest.mark.slow
def test_checkpoints_go_on_where_nothing_differs(interrupted, chain_split, small):
    config, text = small
    config, told = config.model_copy(deep=True), []
    config.training.precision = "mixed_bfloat16"
    fitted = fit_hybrid(TrainingData(chain_split, text), config, interrupted.folder, told.append)
    assert "resumed after epoch 1" in told
    for again, before in zip(fitted.model.get_weights(), interrupted.fitted.model.get_weights(), strict=True):
        np.testing.assert_array_equal(again, before)


def test_checkpoints_of_unknown_origin_are_refused(interrupted, chain_split, small, tmp_path):
    shutil.copytree(interrupted.folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "made_from.json").unlink()
    config, text = small
    with pytest.raises(ModelError, match=r"made_from\.json is missing, .*fit into another folder"):
        fit_hybrid(TrainingData(chain_split, text), config, tmp_path)


@pytest.mark.parametrize(
    ("made_from", "asked", "settled"),
    [("{}", None, False), ("{}", True, True), ('{"model.user_text": true}', None, None), (None, None, None)],
)
def test_a_fit_that_was_begun_without_texts_of_users_goes_on_without(
    made_from, asked, settled, chain_split, small, tmp_path, monkeypatch
):
    def choose(data, config, tell):
        assert config.model.user_text is settled
        raise InterruptedError

    monkeypatch.setattr(fit, "choose", choose)
    (tmp_path / "checkpoints").mkdir()
    if made_from is not None:
        (tmp_path / "checkpoints" / "made_from.json").write_text(made_from)
    config, text = small
    config = config.model_copy(update={"model": config.model.model_copy(update={"user_text": asked})})
    with pytest.raises(InterruptedError):
        fit_hybrid(TrainingData(chain_split, text), config, tmp_path)


def test_a_strength_of_zero_is_explained():
    assert GateSettings(0.5, 0.25, 0.3).line() == "gates dense strength 0.5, closing 0.25, popularity discount 0.3"
    assert GateSettings(0.0, 0.25).line().startswith("gates dense strength 0 (items are ranked by behaviour alone: ")


class FieldsOfAQuery:
    """A model whose lists are worth a number that depends on how fields are used."""

    def __init__(self, reading, alone):
        self.query_fusion = SimpleNamespace(
            reads=tf.Variable(1.0),
            alone=tf.Variable(0.0),
            texts=None,
            encoder=SimpleNamespace(keys=["user.age", "request.device"]),
        )
        self.reading, self.alone = reading, alone

    def worth(self, queries):
        fusion = self.query_fusion
        if queries == "nobody":
            return self.alone.get(float(fusion.alone), 0.0)
        return self.reading if float(fusion.reads) else 0.5


@pytest.mark.parametrize(
    ("reading", "alone", "beyond_chance", "reads", "strength"),
    [
        (0.6, {0.5: 0.2, 2.0: 0.3}, True, 1.0, 2.0),
        (0.6, {0.5: 0.2, 2.0: 0.3}, False, 1.0, 0.0),  # popularity alone
        (0.4, {0.5: 0.2}, True, 0.0, 0.0),  # better without fields
    ],
)
def test_fields_are_read_where_they_help(monkeypatch, reading, alone, beyond_chance, reads, strength):
    model = FieldsOfAQuery(reading, alone)
    data = SimpleNamespace(
        sample=SimpleNamespace(without_histories=lambda: "nobody"),
        measure=lambda model, queries=None, ks=(10,): SimpleNamespace(metrics={"ndcg@10": model.worth(queries)}),
    )
    monkeypatch.setattr(fit, "selection_value", lambda result: result.metrics["ndcg@10"])
    monkeypatch.setattr(fit, "selection_gain", lambda a, b, confidence: (0.1, 0.05 if beyond_chance else -0.05, 0.2))
    said, alone = fit.choose_field_use(model, data), fit.choose_strength_alone(model, data)
    assert float(model.query_fusion.reads) == reads and float(model.query_fusion.alone) == strength
    assert ("are read" if reads else "are not read") in said and "user.age, request.device" in said
    assert (alone is None) == (not reads) and (alone is None or f"strength {strength:g}" in alone)


@pytest.mark.parametrize(("reading", "reads"), [(0.6, 1.0), (0.5, 1.0), (0.4, 0.0)])
def test_fields_of_items_are_read_unless_validation_is_worse(monkeypatch, reading, reads):
    told = [SimpleNamespace(field=SimpleNamespace(key=key)) for key in ("item.brand", "item.image")]
    model = SimpleNamespace(items=SimpleNamespace(fields=told, reads=tf.Variable(1.0)))

    def measure(model, ks):
        value = reading if float(model.items.reads) else 0.5
        return SimpleNamespace(value=value, metrics={"ndcg@10": 1 - value})  # which says the opposite

    monkeypatch.setattr(fit, "selection_value", lambda result: result.value)
    said = fit.choose_item_field_use(model, SimpleNamespace(measure=measure))
    assert float(model.items.reads) == reads
    verdict = ("are read" if reads else "are not read") + (" (they make no difference)" if reading == 0.5 else "")
    figures = f"selection value {reading:.4f} with them, 0.5000 without them"
    assert said == f"fields of items (item.brand, item.image) {verdict}: {figures}, on validation"


def reads_texts(switch):
    return SimpleNamespace(reads_texts=["event.comment", "user.about"], reads_text=switch)


def reads_neighbours(switch):
    return SimpleNamespace(propagation=SimpleNamespace(reads=switch), config=ModelConfig(propagation="relations"))


@pytest.mark.parametrize(("reading", "reads"), [(0.6, 1.0), (0.5, 0.0), (0.4, 0.0)])
@pytest.mark.parametrize(
    ("choose", "reader", "what"),
    [
        (fit.choose_text_use, reads_texts, "texts of users (event.comment, user.about)"),
        (fit.choose_graph_use, reads_neighbours, "neighbours in the graph (model.propagation=relations)"),
    ],
)
def test_texts_of_users_and_neighbours_are_read_if_validation_is_better(
    monkeypatch, choose, reader, what, reading, reads
):
    switch = tf.Variable(1.0)

    def measure(model, ks):
        return SimpleNamespace(value=reading if float(switch) else 0.5)

    monkeypatch.setattr(fit, "selection_value", lambda result: result.value)
    said = choose(reader(switch), SimpleNamespace(measure=measure))
    assert float(switch) == reads
    verdict = ("are read" if reads else "are not read") + (" (they make no difference)" if reading == 0.5 else "")
    figures = f"selection value {reading:.4f} with them, 0.5000 without them"
    assert said == f"{what} {verdict}: {figures}, on validation"


def test_a_model_without_fields_has_nothing_to_choose():
    model = SimpleNamespace(query_fusion=None, items=SimpleNamespace(fields=[]), reads_texts=[], propagation=None)
    assert fit.choose_text_use(model, None) is None
    assert fit.choose_graph_use(model, None) is None
    assert fit.choose_item_field_use(model, None) is None
    assert fit.choose_field_use(model, None) is None and fit.choose_strength_alone(model, None) is None
