import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.errors import ModelError  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.sentencepiece import SentencePiecePreprocessor, characters_of, unigram_model  # noqa: E402

FOLDER = Path(__file__).parent
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁red", "▁", "car", "c", "a", "r", "s", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -2.5, -2.5, -2.5, -1.0, 0.0]
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>")


@pytest.fixture(scope="module")
def preprocessor():
    return SentencePiecePreprocessor(unigram_model(PIECES, SCORES, SPECIALS, b""), (0, 2, 1), 6)


def tokens(preprocessor, *texts):
    return preprocessor.tokenize(tf.constant(texts)).merge_dims(-2, -1).to_list()


def test_the_likeliest_pieces_are_chosen(preprocessor):
    # "▁" + "car" is -5, "▁" + "c" + "a" + "r" is -9.5; a run of unknown characters is one piece.
    assert tokens(preprocessor, "red cars", "zz", "", "<mask>") == [[4, 5, 6, 10], [5, 3], [], [5, 3, 8, 10, 3]]


def test_texts_are_framed_cut_and_padded(preprocessor):
    found = {name: value.numpy() for name, value in preprocessor(tf.constant(["red car car", "", "red"])).items()}
    assert found["input_word_ids"].tolist() == [[0, 4, 5, 6, 5, 2], [0, 2, 1, 1, 1, 1], [0, 4, 2, 1, 1, 1]]
    assert found["input_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert not found["input_type_ids"].any()
    packed = preprocessor.bert_pack_inputs([preprocessor.tokenize(tf.constant(["red car"]))], tf.constant(8))
    assert packed["input_word_ids"].numpy().tolist() == [[0, 4, 5, 6, 2, 1, 1, 1]]


def test_broken_utf_8_is_unknown(preprocessor):
    assert tokens(preprocessor, b"red \xff") == [[4, 5, 3]]


def test_a_hub_layer_loads_it(preprocessor, tmp_path):
    tf.saved_model.save(preprocessor, str(tmp_path))
    texts = tf.constant(["red car", "cars"])
    for name, value in hub.KerasLayer(str(tmp_path))(texts).items():
        np.testing.assert_array_equal(value, preprocessor(texts)[name])


def test_the_characters_of_a_model_are_found():
    assert characters_of(unigram_model(PIECES, SCORES, SPECIALS, b"some bytes" * 30)) == b"some bytes" * 30
    with pytest.raises(ModelError, match="without"):
        characters_of(unigram_model(PIECES, SCORES, SPECIALS, b""))
    with pytest.raises(ModelError, match="found 5 bytes that are none"):
        characters_of(b"\x0a\xff\xff\x03a")


@pytest.mark.slow
def test_e5_tokenizes_as_the_library_of_hugging_face():
    """The ids in the file are those of ``tokenizers.Unigram`` with the vocabulary and normalisation of e5.

    Of the 1,200 films and queries in `multilingual/`, the file has the sha256 of all ids as JSON.
    """
    from tfllmrec.text.bundled import hub_handles

    stored = json.loads((FOLDER / "e5_tokens.json").read_text())
    expected = stored["texts"]
    layer = hub.load(str(hub_handles("e5")[0]))

    def ids_of(texts):
        return layer.tokenize(tf.constant(texts)).merge_dims(-2, -1).to_list()

    assert ids_of([each["text"] for each in expected]) == [each["ids"] for each in expected]
    films, queries = (
        [json.loads(line) for line in (FOLDER / "multilingual" / name).read_text(encoding="utf-8").splitlines()]
        for name in ("films.jsonl", "queries.jsonl")
    )
    languages = ("en", "zh", "de")
    texts = [
        f"{film[f'title_{each}']}: {', '.join(film[f'categories_{each}'])}" for film in films for each in languages
    ]
    texts += [query[f"query_{each}"] for query in queries for each in languages]
    assert len(texts) == 1200
    assert sha256(json.dumps(ids_of(texts)).encode()).hexdigest() == stored["multilingual_sha256"]
    ids = layer(tf.constant([expected[0]["text"]]))[INPUTS[0]].numpy()[0].tolist()
    assert ids == [0, *expected[0]["ids"], 2]
