import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.losses.retrieval import CatalogueRetrieval, SampledRetrieval, mean_loss

pytestmark = pytest.mark.tf
RNG = np.random.default_rng(0)
R, N, D = 6, 9, 4
QUERIES, ITEMS = RNG.normal(size=(R, D)).astype(np.float32), RNG.normal(size=(N, D)).astype(np.float32)
TARGETS = np.array([0, 3, 3, 8, 1, 5])
SHARES = (np.arange(N) + 1) / sum(range(N + 1))


def cross_entropy(logits, targets):
    """Mean of log sum exp minus the target's own, in plain numpy."""
    return float(np.mean([np.log(np.exp(row).sum()) - row[t] for row, t in zip(logits, targets, strict=True)]))


def of_logits(task, logits, targets=TARGETS):
    return mean_loss(task.per_example_of_logits(logits, tf.constant(targets)))


def test_catalogue_is_the_exact_softmax():
    loss = CatalogueRetrieval()(tf.constant(QUERIES), tf.constant(ITEMS), tf.constant(TARGETS)).numpy()
    assert loss == pytest.approx(cross_entropy(QUERIES @ ITEMS.T, TARGETS), rel=1e-5)
    same = of_logits(CatalogueRetrieval(), tf.constant(QUERIES @ ITEMS.T)).numpy()
    assert same == pytest.approx(loss, rel=1e-6)


def test_gradients_are_those_of_tensorflows_own_softmax():
    queries, items, targets = tf.Variable(QUERIES), tf.Variable(ITEMS), tf.constant(TARGETS)
    mask = np.ones(N, bool)
    mask[[2, 7]] = False
    task = CatalogueRetrieval(candidate_mask=tf.constant(mask))

    def logits():
        return tf.matmul(queries, items, transpose_b=True)

    def gradients(loss):
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, [queries, items])

    expected = gradients(
        lambda: tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits() + np.where(mask, 0, -1e9).astype("f4"))
        )
    )
    for loss in (lambda: task(queries, items, targets), lambda: of_logits(task, logits())):
        for mine, right in zip(gradients(loss), expected, strict=True):
            np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


def test_a_hopeless_target_still_has_a_gradient():
    logits = tf.Variable([[0.0, 500.0]])
    with tf.GradientTape() as tape:
        loss = of_logits(CatalogueRetrieval(), logits, [0])
    assert np.isfinite(loss) and loss > 60
    np.testing.assert_allclose(tape.gradient(loss, logits), [[-1.0, 1.0]])


def test_masked_candidates_are_no_negatives():
    mask = np.ones(N, bool)
    mask[[2, 7]] = False  # nobody's target
    task = CatalogueRetrieval(candidate_mask=tf.constant(mask))
    loss = task(tf.constant(QUERIES), tf.constant(ITEMS), tf.constant(TARGETS)).numpy()
    assert loss == pytest.approx(cross_entropy((QUERIES @ ITEMS.T)[:, mask], np.cumsum(mask)[TARGETS] - 1), rel=1e-5)


def test_metrics_of_the_loss_are_updated_and_options_without_effect_are_refused():
    mean = tf.keras.metrics.Mean()
    loss = CatalogueRetrieval(loss_metrics=[mean])(tf.constant(QUERIES), tf.constant(ITEMS), tf.constant(TARGETS))
    assert mean.result().numpy() == pytest.approx(loss.numpy(), rel=1e-5)
    with pytest.raises(TypeError, match="temperature"):
        CatalogueRetrieval(temperature=0.1)


@pytest.mark.parametrize("kind", ["catalogue", "sampled"])
def test_a_batch_is_the_weighted_mean_of_its_examples(kind):
    if kind == "catalogue":
        task, arguments = CatalogueRetrieval(), (tf.constant(QUERIES), tf.constant(ITEMS), tf.constant(TARGETS))
    else:
        task = SampledRetrieval(tf.constant(SHARES), 5, 1.0, seed=1)
        ids = tf.concat([tf.cast(TARGETS, tf.int32), task.draw()], axis=0)
        arguments = tf.constant(QUERIES), tf.gather(ITEMS, ids), ids
    losses = task.per_example(*arguments).numpy()
    assert losses.shape == (R,) and losses.dtype == np.float32 and len(set(losses)) == R
    assert task(*arguments).numpy() == pytest.approx(losses.mean(), rel=1e-6)
    weights = np.array([1, 0, 0.5, 2, 0, 0], np.float32)
    assert task(*arguments, sample_weight=weights).numpy() == pytest.approx(
        (losses[0] + losses[2] / 2 + 2 * losses[3]) / 3.5, rel=1e-6
    )
    assert task(*arguments, sample_weight=np.zeros(R)).numpy() == 0
    # A user whose events weigh nothing leaves no trace in the gradient.
    queries = tf.Variable(QUERIES)
    with tf.GradientTape() as tape:
        loss = task(queries, *arguments[1:], sample_weight=weights)
    gradient = tf.convert_to_tensor(tape.gradient(loss, queries)).numpy()
    assert np.array_equal(np.any(gradient != 0, axis=1), weights > 0)


def test_no_query_costs_nothing():
    assert CatalogueRetrieval()(tf.zeros((0, D)), tf.constant(ITEMS), tf.zeros((0,), tf.int32)).numpy() == 0
    assert asked(SampledRetrieval(SHARES, 4, 1.0, seed=1), QUERIES[:0], TARGETS[:0]) == 0


def asked(task, queries=QUERIES, targets=TARGETS):
    """The loss of one step."""
    ids = tf.concat([tf.cast(targets, tf.int32), task.draw()], axis=0)
    return task(tf.constant(queries), tf.gather(ITEMS, ids), ids).numpy()


def sampled(n_negatives, log_q, seed=1, shares=SHARES):
    task = SampledRetrieval(tf.constant(shares), n_negatives, log_q, seed)
    return task, asked(task)


def drawn(n_negatives, seed, step):
    """The same draw, by inverting the cumulative shares one number at a time."""
    uniform = tf.random.stateless_uniform((n_negatives,), [seed, step], dtype=tf.float64).numpy()
    return [next(i for i in range(N) if u < SHARES[: i + 1].sum()) for u in uniform]


@pytest.mark.parametrize("log_q", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_negatives", [0, 5, 40])
def test_sampled_against_the_formula(log_q, n_negatives):
    _, loss = sampled(n_negatives, log_q)
    candidates = np.array([*TARGETS, *drawn(n_negatives, 1, 1)])
    expected = []
    for row, target in enumerate(TARGETS):
        logits = ITEMS[candidates] @ QUERIES[row] - log_q * np.log(SHARES[candidates])
        others = logits[candidates != target]
        expected.append(np.log(np.exp(logits[row]) + np.exp(others).sum()) - logits[row])
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)


def test_each_step_draws_anew_and_again_the_same():
    tasks = [SampledRetrieval(tf.constant(SHARES), 5, 1.0, seed) for seed in (1, 1, 2)]
    losses = [[asked(task) for _ in range(2)] for task in tasks]
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][0] != losses[0][1]
    assert tasks[0].steps.numpy() == 2


def test_the_step_count_is_saved(tmp_path):
    task, _ = sampled(5, 1.0)
    path = tf.train.Checkpoint(task=task).write(str(tmp_path / "task"))
    following = asked(task)
    resumed = SampledRetrieval(tf.constant(SHARES), 5, 1.0, seed=1)
    tf.train.Checkpoint(task=resumed).read(path)
    assert asked(resumed) == following


def test_a_large_sample_with_full_correction_is_the_softmax():
    """Sampled logits minus log q, up to the log of the number drawn, estimate the sum over the whole catalogue."""
    query, target = QUERIES[:1], np.array([4])
    n_negatives = 200_000
    task = SampledRetrieval(tf.constant(SHARES), n_negatives, 1.0, seed=1)
    loss = asked(task, query, target)
    logits = (query @ ITEMS.T)[0]
    others = np.exp(np.delete(logits, 4)).sum() * n_negatives
    own = logits[4] - np.log(SHARES[4])
    assert loss == pytest.approx(np.log(np.exp(own) + others) - own, rel=1e-3)
    # Without correction popular items count as often as they are drawn.
    biased = SampledRetrieval(tf.constant(SHARES), n_negatives, 0.0, seed=1)
    others = np.delete(SHARES * np.exp(logits), 4).sum() * n_negatives
    assert asked(biased, query, target) == pytest.approx(np.log(np.exp(logits[4]) + others) - logits[4], rel=1e-3)


def test_an_even_draw_is_that_of_the_step_and_knows_no_shares():
    task = SampledRetrieval(tf.constant(SHARES), 4500, 1.0, seed=1)
    task.draw()
    first = task.draw_evenly().numpy()
    assert np.array_equal(first, task.draw_evenly())
    assert np.all(np.abs(np.bincount(first, minlength=N) - 500) < 4 * 500**0.5)
    task.draw()
    assert not np.array_equal(first, task.draw_evenly())


def test_sampled_negatives_train_in_a_graph_without_autograph():
    task, candidates = SampledRetrieval(tf.constant(SHARES), 5, 1.0, seed=1), tf.constant([0, 1, 0, 2, 3, 3, 1])
    asked, found = tf.random.stateless_normal((2, 4), [1, 2]), tf.random.stateless_normal((7, 4), [3, 4])
    traced = tf.function(task, autograph=False, reduce_retracing=True)
    np.testing.assert_allclose(traced(asked, found, candidates), task(asked, found, candidates), rtol=1e-5)
