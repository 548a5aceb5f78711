import random
import shutil
from types import SimpleNamespace

import dictionary_translator
import numpy as np
import pytest
from safetensors.numpy import load_file

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.config import TextConfig, TuningConfig  # noqa: E402
from tfllmrec.data.pairs import item_pairs  # noqa: E402
from tfllmrec.data.queries import Ragged  # noqa: E402
from tfllmrec.durable import locked  # noqa: E402
from tfllmrec.errors import ConfigError, ModelError  # noqa: E402
from tfllmrec.runs.experiment import fit_experiment  # noqa: E402
from tfllmrec.runs.run import Run  # noqa: E402
from tfllmrec.serving.export import export  # noqa: E402
from tfllmrec.text.augment import Augmenter  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.template import ItemTemplate  # noqa: E402
from tfllmrec.text.tuning import tuning_of  # noqa: E402
from tfllmrec.training.text.tower import (  # noqa: E402
    ContrastiveTower,
    TowerRecord,
    is_trained,
    pair_batches,
    prepared_encoder,
    tune_tower,
)
from tfllmrec.training.text.tuned_tower import new_tuning  # noqa: E402

# Those in a row are read together, and share no word.
TEXTS = ["red car", "blue", "toys", "the cafe", "car toys", "cafe blue"]
HISTORIES = Ragged.from_rows([[0, 1], [2, 3], [4, 5]] * 4, np.int64)
PARTNER = np.array([1, 0, 3, 2, 5, 4])
PAIRS = item_pairs(HISTORIES, len(TEXTS))
WORDINGS = [[text] for text in TEXTS]
PLAIN = Augmenter(word_dropout=0.0)


@pytest.fixture
def encoder(thin_hub):
    return TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10)


@pytest.fixture(scope="module")
def still(thin_hub):
    """One that no test changes."""
    return TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10)


def vectors_of(encoder):
    """Without the pipeline that ``encode`` sets up for many texts."""
    return encoder.text_to_vector(tf.constant(TEXTS)).numpy()


def closeness(encoder):
    """How much closer partners are than others."""
    vectors = vectors_of(encoder)
    cosines = vectors @ vectors.T
    others = cosines[~np.eye(len(TEXTS), dtype=bool)].mean()
    return cosines[np.arange(len(TEXTS)), PARTNER].mean() - others


def tune(encoder, folder, mode, values, seen=None, **settings):
    """Tunes, and says on validation of epoch 0, 1, ... what ``values`` has; also gives the vectors at each of these.

    A value of ``None`` kills it. What is trained is put into ``seen`` each time.
    """
    config = TuningConfig(
        batch_size=6, itself=0.0, learning_rate=0.01, word_dropout=0.0, patience=99, epochs=len(values) - 1
    ).model_copy(update=settings)
    told, vectors, said = [], [], iter(values)

    def measure():
        if (value := next(said)) is None:
            raise KeyboardInterrupt
        vectors.append(vectors_of(encoder))
        if seen is not None:
            seen.append([variable.numpy() for variable in encoder.tuning.variables])
        return SimpleNamespace(metrics={"ndcg@10": value}, per_query={"ndcg@10": np.array([value])}, alarms=[])

    _, best = tune_tower(encoder, PAIRS, WORDINGS, TextConfig(mode=mode), config, 1, folder, measure, told.append)
    return best, told, vectors


def batch_of(encoder, **settings):
    config = TuningConfig(**{"batch_size": 6, "epochs": 1} | settings)
    return next(iter(pair_batches(PAIRS, WORDINGS, PLAIN, encoder, config, seed=3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "learning_rate", "gain"),
    [("lora", 0.01, 0.2), ("adalora", 0.05, 0.2), ("prefix", 0.3, 0.05), ("adapter", 0.01, 0.2)],
)
def test_what_is_read_together_comes_close_and_the_best_epoch_is_kept(encoder, tmp_path, mode, learning_rate, gain):
    before = closeness(encoder)
    values = [0.1] * 10 + [0.9, 0.5, 0.5]
    best, told, vectors = tune(encoder, tmp_path, mode, values, learning_rate=learning_rate)
    assert closeness(encoder) > before + gain
    assert best == 10
    np.testing.assert_allclose(vectors_of(encoder), vectors[10], atol=1e-6)
    assert np.abs(vectors[12] - vectors[10]).max() > 1e-3
    assert told[0].startswith(f"{mode}, ") and told[-1] == "best epoch 10"
    assert [line for line in told if "epoch 0" in line] == ["epoch 0: validation ndcg@10 0.1000"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "adalora", "prefix"])
def test_where_no_epoch_is_better_the_encoder_stays_as_it_came(encoder, thin_hub, tmp_path, mode):
    before = vectors_of(encoder)
    best, told, vectors = tune(encoder, tmp_path, mode, [0.5, 0.4, 0.5], learning_rate=0.1)
    assert best == 0 and told[-1].startswith("best epoch 0: ")
    assert np.abs(vectors[2] - before).max() > 1e-3  # it had been moved
    np.testing.assert_allclose(vectors_of(encoder), before, atol=1e-6)
    encoder.tuning.save(tmp_path / "tuned", encoder.base_fingerprint)  # of adalora, with no triplet left
    again = TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10, tuning=tmp_path / "tuned")
    np.testing.assert_allclose(vectors_of(again), before, atol=1e-6)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["adalora", "prefix"])
def test_a_killed_tuning_goes_on_as_if_it_had_not_been(thin_hub, tmp_path, mode):
    undisturbed, killed, resumed = (TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10) for _ in range(3))
    tune(undisturbed, tmp_path / "undisturbed", mode, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    with pytest.raises(KeyboardInterrupt):
        tune(killed, tmp_path / "killed", mode, [0.1, 0.2, 0.3, None, None, None])
    _, told, vectors = tune(resumed, tmp_path / "killed", mode, [0.4, 0.5, 0.6, None, None, None])
    assert told[1] == "resumed after epoch 2" and len(vectors) == 3
    assert np.abs(vectors_of(killed) - vectors_of(resumed)).max() > 1e-3
    for ours, theirs in zip(resumed.tuning.variables, undisturbed.tuning.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.long
@pytest.mark.slow
def test_adalora_with_accumulated_gradients_is_put_back_as_it_was_measured(thin_hub, tmp_path):
    """With an odd number of steps in an epoch: killed and resumed while the budget falls; the best epoch ends then."""
    undisturbed, killed, resumed = (TextEncoder(thin_hub[1], thin_hub[0], max_tokens=10) for _ in range(3))
    settings = {"accumulate": 2, "batch_size": 4, "targets": ["attention"], "epochs": 12, "patience": 2}
    assert len(list(pair_batches(PAIRS, WORDINGS, PLAIN, killed, TuningConfig(**settings | {"epochs": 1}), 1))) % 2

    def tuned(encoder, folder, values):
        seen = []
        best, told, _ = tune(encoder, tmp_path / folder, "adalora", values, seen, **settings)
        return best, told, seen

    best, _, measured = tuned(undisturbed, "undisturbed", [0.1, 0.2, 0.3, 0.5, 0.4, 0.4])
    assert best == 3
    for found, expected in zip(undisturbed.tuning.variables, measured[3], strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(KeyboardInterrupt):
        tuned(killed, "killed", [0.1, 0.2, 0.3, 0.5, None])
    best, told, seen = tuned(resumed, "killed", [0.4, 0.4])
    assert best == 3 and told[1] == "resumed after epoch 3"
    for epoch, (ours, theirs) in enumerate(zip(seen, measured[4:], strict=True)):
        for i, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=f"epoch {epoch + 4}, variable {i}")


@pytest.mark.long
@pytest.mark.slow
def test_paraphrases_are_asked_for_before_the_first_epoch_and_never_again(thin_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))
    asked, augmenters = dictionary_translator.asked, []
    asked.clear()

    def spied(pairs, wordings, augmenter, *rest):
        augmenters.append(augmenter)
        return pair_batches(pairs, wordings, augmenter, *rest)

    monkeypatch.setattr("tfllmrec.training.text.tower.pair_batches", spied)
    both = "dictionary_translator:to_german,dictionary_translator:to_english"
    settings = {"paraphrase": both, "paraphrase_similarity": -1.0}
    for folder in ("run", "again"):
        _, told, _ = tune(
            TextEncoder(thin_hub[1], thin_hub[0], 10), tmp_path / folder, "adapter", [0.1, 0.2], **settings
        )
        assert asked == [TEXTS]
        assert told[0].startswith(f"paraphrases by {both}: 4 of 6 texts kept; 2 empty or equal")
    expected = {"red car": "crimson automobile", "blue": "drunk", "car toys": "automobile toys",
                "cafe blue": "cafe drunk"}  # fmt: skip
    assert [augmenter.paraphrases for augmenter in augmenters] == [expected, expected]
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setitem(dictionary_translator.TO_ENGLISH, "blau", "azure")
    with pytest.raises(ModelError, match="belongs to a run with other paraphrases"):
        tune(TextEncoder(thin_hub[1], thin_hub[0], 10), tmp_path / "again", "adapter", [0.1, 0.2], **settings)


def test_the_loss_by_hand(still):
    tower = ContrastiveTower(tuning_of(still.text_to_vector.encoder, "full"), temperature=0.5)
    batch = batch_of(still, itself=0.5)
    texts = tower.vectors({name: batch[name] for name in INPUTS}).numpy()
    left, right = texts[batch["left"]], texts[batch["right"]]
    scores = left @ right.T / 0.5
    same_text = batch["left"].numpy()[:, np.newaxis] == batch["right"].numpy()
    masked = (batch["together"].numpy() | same_text) & ~np.eye(6, dtype=bool)
    assert masked.any()
    losses = []
    for table, hidden in ((scores, masked), (scores.T, masked.T)):
        for i in range(6):
            kept = [j for j in range(6) if j == i or not hidden[i, j]]
            losses.append(np.log(np.exp(table[i, kept]).sum()) - table[i, i])
    assert float(tower.compute_loss(batch)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_each_distinct_text_is_encoded_once(still):
    batch = batch_of(still, batch_size=24, itself=0.5)
    assert len(batch["input_word_ids"]) == 6  # of 48
    assert len({tuple(row) for row in batch["input_word_ids"].numpy()}) == 6
    assert batch["left"].shape == batch["right"].shape == (24,)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_texts_of_other_lengths_change_neither_vectors_nor_gradients(still, count):
    """Fewer texts than groups as well."""
    tuning = tuning_of(still.text_to_vector.encoder, "full")
    tower = ContrastiveTower(tuning, temperature=0.5)
    texts = ["a " * length for length in (7, 1, 4, 2, 6, 3)][:count]
    inputs = still.text_to_vector.tokens(tf.constant(texts))
    assert len(set(inputs["input_mask"].numpy().sum(axis=1))) == count
    found = {}
    for name, vectors_of in {"in groups": tower.vectors, "each": tuning.vectors}.items():
        with tf.GradientTape() as tape:
            tape.watch(tuning.watched)
            vectors = vectors_of(inputs)
            loss = tf.reduce_sum(vectors * tf.range(1.0, 1.0 + vectors.shape[-1]))
        found[name] = [vectors, *map(tf.convert_to_tensor, tape.gradient(loss, tuning.watched))]
    for in_groups, each in zip(found["in groups"], found["each"], strict=True):
        np.testing.assert_allclose(in_groups, each, rtol=1e-5, atol=1e-5)


def test_batches_follow_seed_and_epoch(still):
    config = TuningConfig(batch_size=3, epochs=2, itself=0.5)

    def drawn(seed, first_epoch=0):
        batches = pair_batches(PAIRS, WORDINGS, PLAIN, still, config, seed, first_epoch)
        return [batch["input_word_ids"].numpy().tolist() for batch in batches]

    first = drawn(1)
    assert first == drawn(1) != drawn(2)
    assert first[len(first) // 2 :] == drawn(1, first_epoch=1)


def test_steps_are_averaged_before_the_encoder_moves(still, thin_hub):
    """Two equal steps averaged are one step; the encoder stands still between. The last ones may be fewer."""
    batch = batch_of(still)
    tuning = tuning_of(hub.load(str(thin_hub[1])), "full")
    start = [variable.numpy() for variable in tuning.variables]

    def after(tower, steps):
        for _ in range(steps):
            tower.train_step(batch)
        return tower.vectors({name: batch[name] for name in INPUTS}).numpy()

    once, twice, rarely = (ContrastiveTower(tuning, 0.1, accumulate) for accumulate in (1, 2, 1000))
    for tower in (once, twice, rarely):
        tower.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    before, moved = after(once, 0), after(once, 1)
    assert np.abs(moved - before).max() > 1e-3
    for tower in (twice, rarely):
        for variable, value in zip(tuning.variables, start, strict=True):
            variable.assign(value)
        np.testing.assert_array_equal(after(tower, 1), before)
        tower.train_step(batch)
        tower.finish_update()
        np.testing.assert_allclose(after(tower, 0), moved, atol=1e-5)


def test_an_epoch_with_fewer_steps_than_are_averaged_still_trains(encoder, tmp_path):
    _, _, vectors = tune(encoder, tmp_path, "adapter", [0.1, 0.2], accumulate=1000)
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3


def test_adalora_counts_updates_by_their_averaged_gradients(encoder):
    config = TuningConfig(epochs=2, accumulate=2, rank=2, targets=["query"])
    tuning = new_tuning(encoder, "adalora", config, 5, 1)
    assert tuning.settings["steps"] == 6  # three in each epoch, the last one by a single step
    for values in tuning.variables[1::3]:
        values.assign(tf.ones_like(values))
    tuning.write()
    tower, (step, sensitivity, *_) = ContrastiveTower(tuning, 0.1, 2), tuning.state
    tower.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    batch, left = batch_of(encoder), tuning.variables[0].numpy()
    for done in range(1, 6):
        tower.train_step(batch)
        assert int(step) == done // 2
        if done == 1:
            gradient = tower.sums[0].numpy()  # of this batch; the second is the same
        if done == 2:
            np.testing.assert_allclose(sensitivity, 0.15 * np.abs(left * gradient), rtol=1e-4, atol=1e-7)


def test_the_model_computes_in_float32_whatever_the_policy_of_the_script(still):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = ContrastiveTower(tuning_of(still.text_to_vector.encoder, "top_layers", layers=1), 0.1)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert model.dtype_policy.name == "float32"  # with mixed_float16, compile would have the loss scaled


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_said(encoder, tmp_path):
    with pytest.raises(ModelError, match="lower tuning"):
        tune(encoder, tmp_path, "full", [0.0] * 5, learning_rate=1e30, accumulate=2)


# --- In a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower_run(chain_config, thin_hub, cache, tmp_path_factory):
    """(run, what it told): the ring, fitted with an encoder that is pretrained and tuned."""
    config = chain_config.model_copy(deep=True)
    config.text = TextConfig(
        encoder=str(thin_hub[1]), preprocessor=str(thin_hub[0]), max_tokens=12, mode="lora", pretrain_epochs=1
    )
    config.tuning = TuningConfig(epochs=2, batch_size=8, learning_rate=0.005)
    config.model.terms, config.model.blocks = ["meaning"], 0
    config.training.epochs, config.evaluation.baselines = 1, ["text"]
    told: list[str] = []
    return fit_experiment(config, tmp_path_factory.mktemp("tower") / "run", tell=told.append), told


def template_of(run):
    return ItemTemplate.from_items(run.dataset.items, run.config.text.template)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_reads_with_what_it_has_trained(tower_run, tmp_path):
    """And so it does from the folder alone, and exported."""
    run, told = tower_run
    assert any(line.startswith("pretraining: after") for line in told)
    assert any(line.startswith("text tower: lora") for line in told)
    texts, told = template_of(run).texts(run.dataset.items), []
    again = Run.open(run.folder).text_encoder(told.append)
    assert not told  # nothing is trained again
    np.testing.assert_allclose(again.encode(texts), run.text, atol=1e-5)
    folder = run.folder / "text"
    pretrained = TextEncoder(folder / "encoder", run.config.text.preprocessor, 12).encode(texts)
    untrained = TextEncoder.from_config(run.config.text).encode(texts)
    for before, after in ((untrained, pretrained), (pretrained, run.text)):
        assert np.abs(before - after).max() > 1e-3
    served = tf.saved_model.load(str(export(run.folder, tmp_path / "served")))
    np.testing.assert_allclose(served.text_to_vector(tf.constant(texts)), run.text, atol=1e-5)
    record = TowerRecord.load(folder)
    assert record.trained > 0 and record.seconds > 0
    assert (folder / "tuned.safetensors").stat().st_size < 20_000
    parts = [folder / "tuned.safetensors", *(folder / "encoder").rglob("*")]
    assert record.bytes == sum(path.stat().st_size for path in parts if path.is_file())


@pytest.mark.slow
def test_training_a_tower_leaves_the_random_state_of_a_script_alone(tower_run, tmp_path, monkeypatch):
    run, _ = tower_run
    shutil.copytree(run.folder / "text" / "encoder", tmp_path / "encoder")  # what is left to do is the tuning
    seen = []

    def state():
        return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def stopped(*_):
        seen.append(state())
        raise ArithmeticError

    monkeypatch.setattr("tfllmrec.training.text.tower.tune_tower", stopped)
    before = state()
    with pytest.raises(ArithmeticError):
        prepared_encoder(tmp_path, run.split, template_of(run), run.config, print)
    assert state() == before != seen[0]


@pytest.mark.slow
def test_a_complete_tower_keeps_nothing_to_go_on_with_but_its_curves(tower_run):
    folder = tower_run[0].folder / "text"
    assert {path.name for path in folder.iterdir()} == {"encoder", "tuned.safetensors", "tower.json", "logs"}
    assert {path.name for path in (folder / "logs").iterdir()} == {"pretraining", "validation"}
    assert list((folder / "logs" / "pretraining").rglob("*tfevents*"))


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_tuning_ends_where_an_undisturbed_one_does(tower_run, tmp_path):
    """Measured on validation as in any run; killed when the second epoch is measured."""
    run, undisturbed = tower_run
    assert TowerRecord.load(run.folder / "text").best_epoch == 2
    folder = tmp_path / "text"
    shutil.copytree(run.folder / "text" / "encoder", folder / "encoder")

    def prepared(tell, **settings):
        config = run.config.model_copy(deep=True)
        config.tuning = config.tuning.model_copy(update=settings)
        return prepared_encoder(folder, run.split, template_of(run), config, tell)

    def kill(line):
        if line.startswith("text tower: epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(kill)
    with pytest.raises(ModelError, match="checkpoints belongs to a run with other rank, alpha: "):
        prepared(print, rank=4, alpha=3.0)
    told = []
    prepared(told.append)
    assert "text tower: resumed after epoch 1" in told

    def figures(lines, *epochs):
        return [line for line in lines if line.startswith(tuple(f"text tower: epoch {epoch}: " for epoch in epochs))]

    assert figures(told, 0, 1, 2) == figures(undisturbed, 2)
    ours, theirs = (load_file(path / "tuned.safetensors") for path in (folder, run.folder / "text"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert TowerRecord.load(folder).best_epoch == 2 and not (folder / "checkpoints").exists()


def test_a_pretrained_encoder_keeps_its_prefixes(thin_hub, chain_config, tmp_path, monkeypatch):
    given = {}

    def pretrain(encoder, preprocessor, texts, out, **settings):
        given.update(settings, texts=texts)
        shutil.copytree(encoder, out)

    monkeypatch.setattr("tfllmrec.training.text.tower.pretrain", pretrain)
    # The name e5 stands for a tiny BERT.
    monkeypatch.setattr("tfllmrec.text.encoder.hub_handles", lambda name, precision: thin_hub)
    config = chain_config.model_copy(deep=True)
    config.text.encoder, config.text.preprocessor, config.text.pretrain_epochs = "e5", None, 1
    split, template = SimpleNamespace(items=None), SimpleNamespace(texts=lambda items: ["red toy"])
    prepared = prepared_encoder(tmp_path / "text", split, template, config, print)
    assert given["item_prefix"] == "passage: " and given["texts"] == ["red toy"]
    assert prepared.folders[0] == tmp_path / "text" / "encoder"
    assert prepared.text_to_vector.prefix == "passage: "
    assert prepared.for_queries.text_to_vector.prefix == "query: "


@pytest.mark.slow
def test_what_is_only_pretrained_is_shipped_whole(tower_run, tmp_path):
    run, _ = tower_run
    folder, told = tmp_path / "text", []
    shutil.copytree(run.folder / "text" / "encoder", folder / "encoder")
    (folder / "pretraining" / "checkpoints").mkdir(parents=True)  # as if it had just been trained
    config = run.config.model_copy(deep=True)
    config.text.mode = "frozen"
    encoder = prepared_encoder(folder, run.split, template_of(run), config, told.append)
    assert not told and encoder.tuning is None
    assert encoder.folders[0] == folder / "encoder"
    files = [path for path in (folder / "encoder").rglob("*") if path.is_file()]
    record = TowerRecord.load(folder)
    assert record.bytes == sum(path.stat().st_size for path in files) and record.best_epoch is None
    assert {path.name for path in folder.iterdir()} == {"encoder", "tower.json"}


@pytest.mark.slow
def test_a_second_process_does_not_train_the_tower_in_the_same_folder(tower_run, tmp_path):
    run, _ = tower_run
    config = run.config.model_copy(deep=True)
    with locked(tmp_path / "text"), pytest.raises(ConfigError, match="text is in use by process"):
        prepared_encoder(tmp_path / "text", run.split, template_of(run), config, print)
    shutil.copytree(run.folder / "text", tmp_path / "done")
    with locked(tmp_path / "done"):  # there is nothing to train
        assert prepared_encoder(tmp_path / "done", run.split, template_of(run), config, print).tuning is not None
        (tmp_path / "done" / "tuned.safetensors").unlink()
        with pytest.raises(ConfigError, match="done is in use by process"):
            prepared_encoder(tmp_path / "done", run.split, template_of(run), config, print)


@pytest.mark.parametrize("mode", ["frozen", "lora"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_tower_is_trained_when_it_has_all_its_parts(tmp_path, mode, pretrained):
    text = TextConfig(mode=mode, pretrain_epochs=int(pretrained))
    if mode == "frozen" and not pretrained:
        assert is_trained(tmp_path, text)  # nothing is asked for
        return
    parts = ["encoder"] * pretrained + ["tuned.safetensors"] * (mode == "lora")
    TowerRecord(1, 1, 1.0).save(tmp_path)
    for part in parts:
        assert not is_trained(tmp_path, text)
        (tmp_path / part).mkdir() if part == "encoder" else (tmp_path / part).touch()
    assert is_trained(tmp_path, text)
    (tmp_path / "tower.json").unlink()
    assert not is_trained(tmp_path, text)


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"trained": "1", "bytes": 1, "seconds": 1}', "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "tower.json").write_text(content)
    with pytest.raises(ModelError, match=r"tower\.json is damaged .*: copy .* back, or fit again"):
        TowerRecord.load(tmp_path)
