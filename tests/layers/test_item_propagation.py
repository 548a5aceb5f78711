import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.layers.item_propagation import Edges, ItemPropagation
from tfllmrec.training.optimizer import adamw

pytestmark = pytest.mark.tf
N, D = 6, 4


def edges(*rows):
    heads, tails, weights = zip(*rows, strict=True)
    return Edges(np.array(heads, np.int32), np.array(tails, np.int32), np.array(weights, np.float32))


#: Item 5 has no neighbours, and item 4 none by the second relation.
RELATIONS = {"author": edges((0, 1, 1.0), (1, 2, 0.5), (3, 4, 1.0)), "sequel": edges((0, 2, 1.0), (0, 3, 0.25))}
VECTORS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
COUNTS = np.array([0, 1, 10, 100, 3, 0], np.float32)


def layer(relations=RELATIONS, strength=1.0):
    made = ItemPropagation(N, D, relations)
    made.strength.assign(strength)
    if len(relations) > 1:
        rng = np.random.default_rng(1)
        made.biases.assign(rng.normal(size=len(relations)))
        made.keys.assign(rng.normal(size=(len(relations), D)))
    return made


def adjacency(relation):
    matrix = np.zeros((N, N))
    for head, tail, weight in zip(*relation, strict=True):
        matrix[head, tail] = matrix[tail, head] = weight
    scale = np.sqrt(np.maximum(matrix.sum(axis=1), 1e-9))
    return matrix / scale[:, np.newaxis] / scale


def by_hand(own, hops, strength=1.0):
    """Whatever the hops are made of."""
    s = strength * 10 / (10 + COUNTS)
    mixed = own + s[:, np.newaxis] * np.mean(hops, axis=0)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def test_one_relation_is_lightgcn_by_hand():
    a = adjacency(RELATIONS["author"])
    expected = by_hand(VECTORS, [a @ VECTORS, a @ a @ VECTORS])
    found = layer({"author": RELATIONS["author"]})(VECTORS, COUNTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_attention_over_relations_by_hand():
    made, x, hops = layer(), VECTORS, []
    biases, keys = made.biases.numpy(), made.keys.numpy()
    for _ in range(2):
        parts = [adjacency(relation) @ x for relation in RELATIONS.values()]
        x = np.zeros((N, D))
        for item in range(N):
            there = [r for r, relation in enumerate(RELATIONS.values()) if item in (*relation.heads, *relation.tails)]
            likes = {r: np.exp(biases[r] + parts[r][item] @ keys[r]) for r in there}
            for r in there:
                x[item] += likes[r] / sum(likes.values()) * parts[r][item]
        hops.append(x)
    np.testing.assert_allclose(made(VECTORS, COUNTS), by_hand(VECTORS, hops), atol=1e-5)


@pytest.mark.parametrize("relations", [RELATIONS, {"author": RELATIONS["author"]}])
def test_training_starts_from_the_vectors_themselves(relations):
    made = ItemPropagation(N, D, relations)
    with tf.GradientTape() as tape:
        found = made(VECTORS, COUNTS)
        loss = tf.reduce_sum(found * tf.range(4.0))
    np.testing.assert_allclose(found, VECTORS, atol=1e-6)
    assert abs(float(tape.gradient(loss, made.strength))) > 0  # and neighbours can begin to count


def test_items_with_few_events_lean_on_their_neighbours_more():
    made = layer({"pairs": edges((0, 1, 1.0), (2, 3, 1.0))})
    alike = np.tile(VECTORS[:2], (3, 1))  # each item and its neighbour
    moved = np.linalg.norm(made(alike, np.array([0, 9, 5, 9, 0, 0], np.float32)) - alike, axis=1)
    assert moved[0] > 1.2 * moved[2] > 0 == pytest.approx(moved[4], abs=1e-6)


def test_a_vector_is_that_of_the_neighbours_where_an_item_has_none():
    vectors = VECTORS.copy()
    vectors[4] = 0
    pair = {"pairs": edges((3, 4, 1.0))}
    found = layer(pair)(vectors, COUNTS).numpy()
    np.testing.assert_allclose(found[4] / np.linalg.norm(found[4]), vectors[3], atol=1e-5)
    untrained = ItemPropagation(N, D, pair)
    with tf.GradientTape() as tape:
        one = untrained(vectors, COUNTS)[4, 0]
    assert not one.numpy().any() and abs(float(tape.gradient(one, untrained.strength))) < 10


def test_neighbours_that_are_not_read_are_as_if_there_were_none():
    made = layer()
    assert np.abs(made(VECTORS, COUNTS) - VECTORS)[:5].max(axis=1).min() > 0.01
    made.reads.assign(0.0)
    np.testing.assert_allclose(made(VECTORS, COUNTS), VECTORS, atol=1e-6)


def test_weights_of_relations_are_taken_over_by_name():
    source, goal = layer(), ItemPropagation(N, D, {"new": RELATIONS["author"], "sequel": RELATIONS["sequel"]})
    source.log_half_count.assign(3.0)
    source.reads.assign(0.0)
    goal.start_from(source)
    assert (float(goal.strength), float(goal.log_half_count), float(goal.reads)) == (1.0, 3.0, 0.0)
    np.testing.assert_array_equal(goal.keys, np.stack([np.zeros(D), source.keys[1]]))
    np.testing.assert_array_equal(goal.biases, [0, source.biases[1]])


def test_what_weighs_neighbours_does_not_decay():
    made = layer()
    weighing = [made.strength, made.log_half_count, made.biases, made.keys]
    before = [variable.numpy() for variable in weighing]
    optimizer = adamw(0.1, total_steps=10, warmup_share=0.0, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros_like(variable), variable) for variable in weighing])
    for variable, value in zip(weighing, before, strict=True):
        np.testing.assert_array_equal(variable, value)
