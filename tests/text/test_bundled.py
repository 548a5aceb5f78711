import json
import threading
import unicodedata

import numpy as np
import pytest

from tfllmrec import assets
from tfllmrec.config import ENCODERS
from tfllmrec.errors import DataError, ModelError

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.bundled import BUNDLED, BertPreprocessor, _characters_of_use, hub_handles  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402


@pytest.fixture
def ids(tiny):
    return lambda *tokens: [tiny.vocabulary.index(token) for token in tokens]


def test_preprocessor_frames_pads_and_masks(tiny_hub, ids):
    layer = hub.KerasLayer(str(tiny_hub[0]))
    out = layer(tf.constant(["The RED cars", "Café", ""]))
    assert set(out) == set(INPUTS)
    np.testing.assert_array_equal(
        out["input_word_ids"],
        [
            ids("[CLS]", "the", "red", "car", "##s", "[SEP]"),
            ids("[CLS]", "cafe", "[SEP]", "[PAD]", "[PAD]", "[PAD]"),
            ids("[CLS]", "[SEP]", "[PAD]", "[PAD]", "[PAD]", "[PAD]"),
        ],
    )
    np.testing.assert_array_equal(out["input_mask"], [[1] * 6, [1] * 3 + [0] * 3, [1] * 2 + [0] * 4])
    assert not out["input_type_ids"].numpy().any()
    assert {value.dtype for value in out.values()} == {tf.int32}


def test_preprocessor_cuts_a_long_text_and_keeps_its_end(tiny_hub, ids):
    row = hub.KerasLayer(str(tiny_hub[0]))(tf.constant(["toy " * 30]))["input_word_ids"].numpy()[0]
    np.testing.assert_array_equal(row, ids("[CLS]", *["toy"] * 10, "[SEP]"))  # 12 in all, as it was saved


def test_preprocessor_packs_to_another_width(tiny_hub, ids):
    module = hub.load(str(tiny_hub[0]))
    out = module.bert_pack_inputs([module.tokenize(tf.constant(["red toy car", "red"]))], seq_length=4)
    np.testing.assert_array_equal(
        out["input_word_ids"], [ids("[CLS]", "red", "toy", "[SEP]"), ids("[CLS]", "red", "[SEP]", "[PAD]")]
    )
    wide = module.bert_pack_inputs([module.tokenize(tf.constant(["red"]))], seq_length=20)
    assert wide["input_word_ids"].shape == (1, 20) and wide["input_mask"].numpy().sum() == 3


def test_preprocessor_wants_the_special_tokens(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\nred\n")
    with pytest.raises(ModelError, match=r"\[SEP\] not in it"):
        BertPreprocessor(tmp_path / "vocab.txt", 8)


def test_encoder_answers_as_before_it_was_saved_and_trains(tiny, tiny_hub):
    layer = hub.KerasLayer(str(tiny_hub[1]), trainable=True)
    batch = dict.fromkeys(INPUTS, tf.constant([[2, 4, 3], [2, 5, 3]])) | {"input_mask": tf.ones([2, 3], tf.int32)}
    batch["input_type_ids"] = tf.zeros([2, 3], tf.int32)
    out = layer(batch, training=False)
    direct = BertEncoder(BertConfig(**tiny.sizes), tiny.state())(batch)
    for name in ("sequence_output", "pooled_output", "default"):
        np.testing.assert_allclose(out[name], direct[name], atol=1e-5)
    assert np.abs(layer(batch, training=True)["default"] - out["default"]).max() > 1e-3  # dropout
    assert len(layer.trainable_variables) == 5 + 2 * 16 and layer.losses == []
    assert "bert/layer_0/attention/query/kernel:0" in {v.name for v in layer.trainable_variables}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(batch)["sequence_output"] ** 3)
    assert all(gradient is not None for gradient in tape.gradient(loss, layer.trainable_variables))
    assert not hub.KerasLayer(str(tiny_hub[1])).trainable_variables


@pytest.fixture
def tiny_weights(tiny, tmp_path, monkeypatch):
    """``assets.weights`` that gives the tiny BERT, a cache of our own, and a count of the calls."""
    from safetensors.numpy import save_file

    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tiny.state(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(tiny.thin))
    (folder / "vocab.txt").write_text("\n".join(tiny.vocabulary), encoding="utf-8")
    calls = []
    monkeypatch.setattr(assets, "weights", lambda name: calls.append(name) or folder)
    monkeypatch.setenv("TFLLMREC_CACHE", str(tmp_path / "cache"))
    return calls


def test_every_bundled_encoder_has_weights_with_their_languages():
    languages = {asset.name: asset.languages for asset in assets.ASSETS if asset.kind == "weights"}
    assert languages.keys() == BUNDLED.keys() == set(ENCODERS)
    assert {name: len(set(known)) for name, known in languages.items()} == {"minilm": 1, "e5": 94, "use": 16}
    assert set(languages["minilm"]) < set(languages["use"]) < set(languages["e5"])


def test_it_is_said_why_e5_needs_a_file_of_use(monkeypatch):
    def absent(name):
        raise DataError(f"weights {name!r} could not be fetched")

    monkeypatch.setattr(assets, "weights", absent)
    with pytest.raises(
        DataError, match=r"e5 needs .* sp\.model of 'use', because .*\nweights 'use' could not be fetched"
    ):
        _characters_of_use()


def test_hub_folders_are_made_once_and_whole(tiny_weights, tmp_path):
    preprocessor, encoder = hub_handles()
    again = hub_handles()
    assert again == (preprocessor, encoder) and tiny_weights == ["minilm"] * 2  # one a folder, none the second time
    assert hub_handles(precision="bfloat16")[0] == preprocessor and hub_handles(precision="bfloat16")[1] != encoder
    assert hub.KerasLayer(str(encoder))(hub.KerasLayer(str(preprocessor))(tf.constant(["red"])))["default"].shape == (
        1,
        16,
    )
    assert not list((tmp_path / "cache" / "hub").glob(".*"))  # nothing half-made is left


def test_two_makers_at_once_both_succeed(tiny_weights, tmp_path):
    got = []
    threads = [threading.Thread(target=lambda: got.append(hub_handles())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 2 and got[0] == got[1] and not list((tmp_path / "cache" / "hub").glob(".*"))


def reference_tokens(text, vocabulary):
    """Uncased BERT tokenising as published (Devlin et al.), a character at a time."""

    def is_punctuation(c):
        return (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or unicodedata.category(c)[0] == "P"

    words = [""]
    for c in text.lower():
        if 0x4E00 <= ord(c) <= 0x9FFF:
            words += [c, ""]
            continue
        for part in unicodedata.normalize("NFD", c):
            if part.isspace():
                words.append("")
            elif is_punctuation(part):
                words += [part, ""]
            elif unicodedata.category(part) != "Mn":
                words[-1] += part
    out = []
    for word in filter(None, words):
        pieces, start = [], 0
        while start < len(word):
            candidates = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
            piece = next((c for c in candidates if c in vocabulary), None)
            if piece is None:
                pieces = ["[UNK]"]
                break
            pieces.append(piece)
            start += len(piece) - (2 if start else 0)
        out += pieces
    return out


@pytest.mark.slow
def test_minilm_tokens_are_those_of_the_published_tokenizer(minilm_weights):
    names = (minilm_weights / "vocab.txt").read_text(encoding="utf-8").split("\n")
    texts = [
        "Prada Candy By Prada Eau De Parfum Spray 1.7 Oz For Women",
        "Wrinkle-Reducing (anti-aging) crème; 50ml/1.7fl.oz!",
        "Les Misérables (1998), naïve Ünïcode & Ångström's O'Reilly",
        "東京 Tokyo 漢字 mixed, 한국어",
        "unaffable supercalifragilistic x9q-77 😀 emoji",
        "  tabs\tand\nlines   ",
        "$9.99 50% off #1 A+B=C <br> [x] {y} ~`^|",
        "“curly” – dash — ‘single’ ·",
        "SmolderEYES™ 3½ oz, 5 m² ＡＢＣ, İstanbul",
        "",
    ]
    out = hub.KerasLayer(str(hub_handles()[0]))(tf.constant(texts))["input_word_ids"].numpy()
    for text, row in zip(texts, out, strict=True):
        tokens = [names[i] for i in row if names[i] != "[PAD]"]
        assert tokens == ["[CLS]", *reference_tokens(text, set(names)), "[SEP]"]


def test_minilm_reads_emoji_chinese_and_what_nobody_sees(minilm_weights):
    names = (minilm_weights / "vocab.txt").read_text(encoding="utf-8").split("\n")
    expected = {
        "口红 lipstick 中国": "口 [UNK] lipstick 中 国",  # character by character; the vocabulary has few of them
        "🎧 Wireless 👩‍🚀 1️⃣ 🇩🇪 👍🏽": "[UNK] wireless [UNK] [UNK] [UNK] [UNK]",
        "Wireless👍": "[UNK]",  # why the item template sets emoji apart
        "　ＡＢＣ　カナ": "[UNK] カ ##ナ",
        "a\0b \x01c\x7f": "ab c",
        "soft\xad\u200bly": "softly",
    }
    out = hub.KerasLayer(str(hub_handles()[0]))(tf.constant([*expected, b"caf\xe9 bad \xff"]))["input_word_ids"].numpy()
    tokens = [" ".join(names[i] for i in row if names[i] not in ("[PAD]", "[CLS]", "[SEP]")) for row in out]
    assert tokens == [*expected.values(), "[UNK] bad [UNK]"]  # bytes that are no UTF-8


def test_minilm_gives_the_published_similarity(minilm_weights):
    preprocessor, encoder = map(str, hub_handles())
    texts = tf.constant(["A man is eating food.", "A man is eating a piece of bread."])
    a, b = hub.KerasLayer(encoder, trainable=True)(hub.KerasLayer(preprocessor)(texts))["default"].numpy()
    assert a @ b == pytest.approx(0.7553, abs=5e-5)  # the example on the model's page
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-5)
