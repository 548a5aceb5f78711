from types import SimpleNamespace

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

from tfllmrec.config import TextConfig, TuningConfig  # noqa: E402
from tfllmrec.data.pairs import item_pairs  # noqa: E402
from tfllmrec.data.queries import Ragged  # noqa: E402
from tfllmrec.errors import ModelError  # noqa: E402
from tfllmrec.serving.export import export  # noqa: E402
from tfllmrec.text.augment import Augmenter  # noqa: E402
from tfllmrec.text.bundled import INPUTS, save_preprocessor  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.template import ItemTemplate  # noqa: E402
from tfllmrec.text.tuning import tuning_of  # noqa: E402
from tfllmrec.training.run import Run, fit_experiment  # noqa: E402
from tfllmrec.training.text_tower import ContrastiveTower, TowerRecord, pair_batches, prepared_encoder, tune_tower  # noqa: E402

# Those in a row are read together, and share no word.
TEXTS = ["red car", "blue", "toys", "the cafe", "car toys", "cafe blue"]
HISTORIES = Ragged.from_rows([[0, 1], [2, 3], [4, 5]] * 4, np.int64)
PARTNER = np.array([1, 0, 3, 2, 5, 4])
PAIRS = item_pairs(HISTORIES, len(TEXTS))
WORDINGS = [[text] for text in TEXTS]
PLAIN = Augmenter(word_dropout=0.0)


@pytest.fixture
def encoder(tiny_hub):
    preprocessor, folder = tiny_hub
    return TextEncoder(folder, preprocessor, max_tokens=10)


def closeness(encoder):
    """How much closer partners are than others."""
    vectors = encoder.encode(TEXTS)
    cosines = vectors @ vectors.T
    others = cosines[~np.eye(len(TEXTS), dtype=bool)].mean()
    return cosines[np.arange(len(TEXTS)), PARTNER].mean() - others


def result_of(value):
    metrics = {"ndcg@10": value}
    return SimpleNamespace(metrics=metrics, per_query={"ndcg@10": np.array([value])}, alarms=[])


def measured(encoder):
    return lambda: result_of(float(closeness(encoder)))


def tune(encoder, folder, mode="full", **settings):
    config = TuningConfig(
        **{"epochs": 4, "batch_size": 6, "itself": 0.0, "learning_rate": 0.01, "word_dropout": 0.0, "patience": 9}
        | settings
    )
    told = []
    text = TextConfig(mode=mode)
    tuning = tune_tower(encoder, PAIRS, WORDINGS, text, config, 1, folder, measured(encoder), told.append)
    return tuning, told


def batch_of(encoder, **settings):
    config = TuningConfig(**{"batch_size": 6, "epochs": 1} | settings)
    return next(iter(pair_batches(PAIRS, WORDINGS, PLAIN, encoder, config, seed=3)))


@pytest.mark.parametrize("mode", ["lora", "adapter"])
def test_what_is_read_together_comes_close(encoder, tmp_path, mode):
    before = closeness(encoder)
    _, told = tune(encoder, tmp_path, mode, epochs=12)
    assert closeness(encoder) > before + 0.2
    assert told[0].startswith(f"text tower: {mode}, ") and told[-1].startswith("text tower: best epoch")


def test_the_loss_by_hand(encoder):
    tower = ContrastiveTower(tuning_of(encoder.text_to_vector.encoder, "full"), temperature=0.5)
    batch = batch_of(encoder, itself=0.5)
    texts = tower({name: batch[name] for name in INPUTS}).numpy()
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


def test_each_distinct_text_is_encoded_once(encoder):
    batch = batch_of(encoder, batch_size=24, itself=0.5)
    assert len(batch["input_word_ids"]) == 6  # of 48
    assert len({tuple(row) for row in batch["input_word_ids"].numpy()}) == 6
    assert batch["left"].shape == batch["right"].shape == (24,)


def test_batches_follow_seed_and_epoch(encoder):
    config = TuningConfig(batch_size=3, epochs=2, itself=0.5)

    def drawn(seed, first_epoch=0):
        batches = pair_batches(PAIRS, WORDINGS, PLAIN, encoder, config, seed, first_epoch)
        return [batch["input_word_ids"].numpy().tolist() for batch in batches]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1)[len(drawn(1)) // 2 :] == drawn(1, first_epoch=1)


def test_steps_are_averaged_before_the_encoder_moves(encoder, tiny_hub):
    """Two equal steps averaged are one step; the encoder stands still between."""
    batch = batch_of(encoder)
    once, twice = (TextEncoder(tiny_hub[1], tiny_hub[0], max_tokens=10) for _ in range(2))
    towers = [
        ContrastiveTower(tuning_of(e.text_to_vector.encoder, "full"), 0.1, accumulate=n)
        for e, n in ((once, 1), (twice, 2))
    ]
    for tower in towers:
        tower.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    start = twice.encode(TEXTS)
    step = tf.data.Dataset.from_tensors(batch)
    towers[0].fit(step, verbose=0)
    towers[1].fit(step, verbose=0)
    assert np.array_equal(twice.encode(TEXTS), start)
    towers[1].fit(step, verbose=0)
    assert np.abs(twice.encode(TEXTS) - start).max() > 1e-3
    np.testing.assert_allclose(twice.encode(TEXTS), once.encode(TEXTS), atol=1e-5)


def test_a_killed_tuning_ends_where_an_undisturbed_one_does(tiny_hub, tmp_path):
    preprocessor, folder = tiny_hub
    whole, halves = (TextEncoder(folder, preprocessor, max_tokens=10) for _ in range(2))
    tune(whole, tmp_path / "whole", "lora")

    class Killed(Exception):
        pass

    calls = iter(range(9))

    def kill_in_the_third_epoch():
        if next(calls) == 2:
            raise Killed
        return measured(halves)()

    config = TuningConfig(epochs=4, batch_size=6, itself=0.0, learning_rate=0.01, word_dropout=0.0, patience=9)
    arguments = (PAIRS, WORDINGS, TextConfig(mode="lora"), config, 1, tmp_path / "halves")
    with pytest.raises(Killed):
        tune_tower(halves, *arguments, kill_in_the_third_epoch, print)
    fresh = TextEncoder(folder, preprocessor, max_tokens=10)
    tune_tower(fresh, *arguments, measured(fresh), print)
    np.testing.assert_allclose(fresh.encode(TEXTS), whole.encode(TEXTS), atol=1e-6)
    assert np.abs(fresh.encode(TEXTS) - TextEncoder(folder, preprocessor, max_tokens=10).encode(TEXTS)).max() > 0.01


def test_it_ends_at_the_best_epoch(encoder, tmp_path):
    values = iter([0.5, 0.9, 0.1, 0.2])
    vectors = []

    def measure():
        vectors.append(encoder.encode(TEXTS))
        return result_of(next(values))

    config = TuningConfig(epochs=4, batch_size=6, itself=0.0, learning_rate=0.01, patience=9)
    tune_tower(encoder, PAIRS, WORDINGS, TextConfig(mode="lora"), config, 1, tmp_path, measure, print)
    np.testing.assert_allclose(encoder.encode(TEXTS), vectors[1], atol=1e-6)
    assert np.abs(vectors[3] - vectors[1]).max() > 1e-3


def test_a_loss_that_is_not_a_number_is_said(encoder, tmp_path):
    with pytest.raises(ModelError, match="lower tuning"):
        tune(encoder, tmp_path, learning_rate=1e30)


@pytest.fixture
def masking(chain_config, tiny, tmp_path):
    """An experiment on the ring whose preprocessor knows [MASK]."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*tiny.vocabulary[:-1], "[MASK]"]) + "\n", encoding="utf-8")
    save_preprocessor(vocabulary, tmp_path / "preprocessor", 12)
    config = chain_config.model_copy(deep=True)
    config.text = config.text.model_copy(update={"preprocessor": str(tmp_path / "preprocessor"), "pretrain_epochs": 1})
    config.tuning = TuningConfig(epochs=1, batch_size=8)
    config.training.epochs, config.evaluation.baselines = 1, ["text"]
    return config


def test_a_run_reads_with_what_it_has_trained(masking, cache, tmp_path):
    """Through the whole of fit, and from the folder alone afterwards."""
    masking.text.mode = "lora"
    told = []
    run = fit_experiment(masking, tmp_path / "run", tell=told.append)
    assert any(line.startswith("pretraining: after") for line in told)
    assert any(line.startswith("text tower: lora") for line in told)
    texts = ItemTemplate.from_items(run.dataset.items, run.config.text.template).texts(run.dataset.items)
    told.clear()
    again = Run.open(tmp_path / "run").text_encoder(told.append)
    assert not told  # nothing is trained again
    np.testing.assert_allclose(again.encode(texts), run.text, atol=1e-5)
    folder = run.folder / "text"
    pretrained = TextEncoder(folder / "encoder", masking.text.preprocessor, 12).encode(texts)
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


def test_what_is_only_pretrained_is_shipped_whole(masking, chain_split, tmp_path):
    template = ItemTemplate.from_items(chain_split.dataset.items)
    told = []
    encoder = prepared_encoder(tmp_path / "text", chain_split, template, masking, told.append)
    assert told[-1].startswith("pretraining: after")
    told.clear()
    again = prepared_encoder(tmp_path / "text", chain_split, template, masking, told.append)
    assert not told and again.fingerprint == encoder.fingerprint
    files = [path for path in (tmp_path / "text" / "encoder").rglob("*") if path.is_file()]
    assert TowerRecord.load(tmp_path / "text").bytes == sum(path.stat().st_size for path in files)
