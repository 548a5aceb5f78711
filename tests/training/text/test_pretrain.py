import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from tfllmrec.data.queries import Ragged
from tfllmrec.errors import DataError, ModelError
from tfllmrec.text.bert import BertConfig, BertEncoder
from tfllmrec.text.bundled import save_encoder, save_preprocessor
from tfllmrec.text.e5 import QuantizedRows, quantized_rows
from tfllmrec.text.encoder import TextEncoder, tokenise
from tfllmrec.text.pretrain import Vocabulary
from tfllmrec.text.read_back import read_back
from tfllmrec.text.sentencepiece import SentencePiecePreprocessor, unigram_model
from tfllmrec.training.text.pretrain import masked_batches, pretrain, split_texts, vocabulary_of

pytestmark = pytest.mark.tf

WORDS = [f"{kind}{i}" for i in range(16) for kind in "xy"]
VOCABULARY = Vocabulary(5 + len(WORDS), mask=4, pad=0, special=(0, 2, 3, 4, 1))
SETTINGS = {"epochs": 6, "batch_size": 16, "max_tokens": 12, "learning_rate": 0.02, "seed": 1}


def planted_texts(n):
    """An x and the y of the same number, four times, and any word: what is hidden is told by its neighbours."""
    rng = np.random.default_rng(0)
    return [f"x{i} y{i} " * 4 + str(rng.choice(WORDS)) for i in rng.integers(0, 16, n)]


@pytest.fixture(scope="module")
def modules(tiny, tmp_path_factory):
    """(encoder, preprocessor): a random BERT of 37 tokens and one layer, 16 wide."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n", encoding="utf-8"
    )
    save_preprocessor(folder / "vocab.txt", folder / "preprocessor", 12)
    state = {name: value * (1 if "LayerNorm" in name else 0.3) for name, value in tiny.state().items()}
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][: VOCABULARY.size]
    save_encoder(BertEncoder(BertConfig(**tiny.thin | {"vocab_size": VOCABULARY.size}), state), folder / "encoder")
    return folder / "encoder", folder / "preprocessor"


#: Pieces that no text has, of which e5 has nearly a quarter of a million.
ABSENT = 3000


@pytest.fixture(scope="module")
def e5_modules(tiny, tmp_path_factory):
    """(encoder, preprocessor): a random BERT like e5: SentencePiece, a word table in 4 bits; one layer, 32 wide."""
    folder = tmp_path_factory.mktemp("e5")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in ("passage:", *WORDS))]
    pieces += [*(f"▁absent{i}" for i in range(ABSENT)), "<mask>"]
    model = unigram_model(pieces, [0.0] * 4 + [-1.0] * (len(pieces) - 4), ("<s>", "</s>", "<pad>", "<unk>"), b"")
    tf.saved_model.save(SentencePiecePreprocessor(model, (0, 2, 1), 14), str(folder / "preprocessor"))
    rng = np.random.default_rng(2)
    size = len(pieces) + 5  # as in e5, the table has more rows than there are pieces
    numbers = rng.integers(0, 256, (size, 16)).astype(np.uint8)
    words = QuantizedRows(numbers, rng.uniform(0.02, 0.04, (size, 1)).astype(np.float16))
    config = BertConfig(**tiny.thin | {"vocab_size": size, "hidden_size": 32})
    state = {name: value * (1 if "LayerNorm" in name else 0.3) for name, value in tiny.state(width=32).items()}
    save_encoder(BertEncoder(config, state, words=words), folder / "encoder")
    return folder / "encoder", folder / "preprocessor"


class Kill(tf.keras.callbacks.Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed(modules, tmp_path_factory):
    """(result, what it told, folder with its logs)."""
    folder, told = tmp_path_factory.mktemp("undisturbed"), []
    result = pretrain(*modules, planted_texts(400), folder / "out", **SETTINGS, folder=folder / "run", tell=told.append)
    return result, told, folder


def values(folder):
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name}


@pytest.mark.slow
def test_learns_what_neighbours_tell(undisturbed, modules):
    result, told, folder = undisturbed
    assert result.before.accuracy < 0.2 and result.before.perplexity > 15
    # By chance 1 / 32; at best 8 / 9 and a little, as any word cannot be known.
    assert result.after.accuracy > 0.5 and result.after.perplexity < 10
    assert told[0].endswith("held out")
    assert [line.split(":")[0] for line in told[1:]] == [
        "before",
        *(f"epoch {i}" for i in range(1, 7)),
        "after, best of 6 epochs",
    ]
    assert list((folder / "run" / "logs").rglob("*tfevents*"))
    trained, untrained = (TextEncoder(path, modules[1], 12) for path in (result.encoder, modules[0]))
    assert np.abs(trained.encode(["x3 y3"]) - untrained.encode(["x3 y3"])).max() > 0.01
    assert trained.fingerprint != untrained.fingerprint


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_was_killed_ends_where_an_undisturbed_one_does(undisturbed, modules, tmp_path):
    texts, told = planted_texts(400), []
    again = {**SETTINGS, "folder": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        pretrain(*modules, texts, tmp_path / "out", **again, callbacks=[Kill(epoch=1)])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="belongs to a run with other texts, learning_rate"):
        pretrain(*modules, texts[1:], tmp_path / "out", **again | {"learning_rate": 0.1}, tell=told.append)
    assert not any(line.startswith("before") for line in told)  # said before anything is measured
    result = pretrain(*modules, texts, tmp_path / "out", **again, tell=told.append)
    assert "resumed after epoch 1" in told
    assert (result.before, result.after) == (undisturbed[0].before, undisturbed[0].after)
    expected, came = values(undisturbed[0].encoder), values(result.encoder)
    assert expected.keys() == came.keys()
    assert all(np.array_equal(expected[name], came[name]) for name in expected)


def test_errors_come_before_work(modules, tmp_path, tiny_hub):
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="already exists"):
        pretrain(*modules, ["x1 y1"], tmp_path / "there")
    with pytest.raises(ModelError, match=r"none of \[MASK\]"):
        pretrain(tiny_hub[1], tiny_hub[0], ["red toy"], tmp_path / "out", max_tokens=12)


@pytest.mark.slow
def test_ten_texts_do_and_a_loss_that_is_no_number_is_an_error(modules, tmp_path):
    told = []
    with pytest.raises(ModelError, match="not a number in epoch 1"):
        texts = [*planted_texts(10), "", "   ", "nothing known"]
        pretrain(*modules, texts, tmp_path / "nan", max_tokens=12, learning_rate=float("nan"), tell=told.append)
    assert told[0] == "9 texts to train on, 1 held out" and told[1].startswith("before: accuracy ")
    assert not (tmp_path / "nan").exists()


def test_tokens_are_those_of_the_preprocessor(modules):
    text_to_vector = TextEncoder(*modules, 12).text_to_vector
    tokens = tokenise(text_to_vector, ["x0 y0", "", "y1 zzz", "x0 " * 20])
    assert [row.tolist() for row in tokens] == [[2, 5, 6, 3], [2, 3], [2, 8, 1, 3], [2, *[5] * 10, 3]]
    assert len(tokenise(text_to_vector, [])) == 0


def rows(*texts):
    return Ragged.from_rows([[2, *text, 3] for text in texts], np.int32)


def test_a_text_is_never_both_trained_on_and_held_out():
    texts = [f"t{i % 40}" for i in range(100)] + ["", "?"]
    tokens = rows(*([5 + i % 40] for i in range(100)), [], [1, 1])
    for seed in range(5):
        trained, held_out = split_texts(texts, tokens, VOCABULARY, seed)
        ids = [{int(row[1]) for row in part} for part in (trained, held_out)]
        assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 40
        assert len(held_out) == 2 == round(0.05 * 40)  # once each, however often they are there
        assert len(trained) == 100 - sum(3 if i - 5 < 20 else 2 for i in ids[1])
    assert list(split_texts(["a", "b"], rows([5], [6]), VOCABULARY, 0)[1][0]) in ([2, 5, 3], [2, 6, 3])


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [([], rows()), (["", "?"], rows([], [1])), (["a", "a", ""], rows([5], [5], []))],
    ids=["none", "no tokens", "one alone"],
)
def test_too_few_texts_are_an_error(texts, tokens):
    with pytest.raises(DataError, match=f"two different texts.*got {len(set(texts) & {'a'})} among {len(texts)}"):
        split_texts(texts, tokens, VOCABULARY, 0)


def test_batches_hold_like_lengths_and_follow_from_seed_and_epoch():
    tokens = rows(*([5 + i] * (1 + i % 8) for i in range(32)))

    def epoch(seed, first):
        return [
            (inputs["input_word_ids"].tolist(), inputs["input_mask"].sum(axis=1).tolist(), labels.tolist())
            for inputs, labels in masked_batches(
                tokens, VOCABULARY, 4, seed, itertools.count(first)
            ).as_numpy_iterator()
        ]

    batches = masked_batches(tokens, VOCABULARY, 4, 1, itertools.count())
    assert batches.cardinality() == 8
    first, second = ([x["input_word_ids"].tolist() for x, _ in batches.as_numpy_iterator()] for _ in range(2))
    came = epoch(1, 0)
    assert [ids for ids, _, _ in came] == first and [ids for ids, _, _ in epoch(1, 1)] == second
    assert first != second and epoch(2, 0) != came
    assert [len(set(lengths)) for _, lengths, _ in came] == [1] * 8  # 32 texts of 8 lengths, no padding at all
    assert sorted(len(ids[0]) for ids, _, _ in came) == [n + 2 for n in range(1, 9)]
    assert {label for _, _, labels in came for label in labels} == set(range(5, 37))


@pytest.mark.slow
def test_settings_of_a_run_are_written_down(undisturbed):
    there = json.loads((undisturbed[2] / "run" / "pretraining.json").read_text())
    assert {name: there[name] for name in ("epochs", "seed", "dropout")} == {"epochs": 6, "seed": 1, "dropout": False}


def test_what_is_guessed_of_an_encoder_like_e5(e5_modules):
    encoder = TextEncoder(*e5_modules, 14, item_prefix="passage: ")
    tokens = tokenise(encoder.text_to_vector, ["x0 y2", "", "nothing y2"])
    vocabulary = vocabulary_of(encoder, tokens)
    passage, x0, y2, mask = 4, 5, 10, 4 + 1 + len(WORDS) + ABSENT
    assert [row.tolist() for row in tokens] == [[0, passage, x0, y2, 2], [0, 2], [0, passage, 3, y2, 2]]
    assert (vocabulary.size, vocabulary.mask, vocabulary.pad) == (mask + 1, mask, 1)
    # Neither the prefix, which would be known at once, nor what no text has.
    assert vocabulary.usual == [x0, y2] and set(vocabulary.special) == {1, 0, 2, mask, 3, passage}


@pytest.mark.slow
@pytest.mark.long
def test_an_encoder_like_e5_learns_what_neighbours_tell(e5_modules, tmp_path):
    encoder, preprocessor = e5_modules
    given = {**SETTINGS, "max_tokens": 14, "item_prefix": "passage: "}
    result = pretrain(encoder, preprocessor, planted_texts(400), tmp_path / "out", **given)
    # As many answers as the texts have words, not as there are pieces.
    assert result.before.accuracy < 0.2 and 15 < result.before.perplexity < 60
    assert result.after.accuracy > 0.5 and result.after.perplexity < 10
    trained, untrained = (
        TextEncoder(path, preprocessor, 14, item_prefix="passage: ") for path in (tmp_path / "out", encoder)
    )
    assert np.abs(trained.encode(["x3 y3"]) - untrained.encode(["x3 y3"])).max() > 0.01
    tables = [quantized_rows(each.text_to_vector.encoder) for each in (trained, untrained)]
    np.testing.assert_array_equal(*(table.numbers for table in tables))
    np.testing.assert_array_equal(*(table.scales for table in tables))
    # What is written is as large as what came; in float32, the table alone would take 4 bytes a number.
    sizes = [sum(p.stat().st_size for p in path.rglob("variables*")) for path in (tmp_path / "out", encoder)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1) and sizes[0] < 4 * 32 * ABSENT
    copy = read_back(trained.text_to_vector.encoder, "take another")
    tokens = trained.text_to_vector.tokens(tf.constant(["x3 y3"]))
    np.testing.assert_allclose(
        copy(tokens)["sequence_output"], trained.text_to_vector.encoder(tokens)["sequence_output"], atol=1e-5
    )
