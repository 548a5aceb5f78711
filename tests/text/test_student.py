import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from tfllmrec.errors import ModelError

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_text")
pytestmark = pytest.mark.tf

from tfllmrec.text.bert import BertConfig, BertEncoder  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.static_tower import static_tower  # noqa: E402
from tfllmrec.text.student import HashedNgrams, NgramSizes, Student, few_layers  # noqa: E402

SMALL = NgramSizes(buckets=64, width=8, hidden=12, max_words=6)


@pytest.fixture(scope="module")
def ngrams():
    tower = HashedNgrams(16, SMALL, seed=3)
    for name in ("words", "ngrams", "attention", "bias"):  # as training leaves them: not small, not zero
        variable = getattr(tower, name)
        variable.assign(np.random.default_rng(0).normal(0, 0.5, variable.shape))
    return tower


@pytest.fixture(scope="module")
def teacher(tiny_hub):
    preprocessor, encoder = tiny_hub
    return TextEncoder(encoder, preprocessor, max_tokens=10)


def by_hand(tower, words):
    """The docstring's formula, a word and an n-gram at a time."""

    def row(table, feature):
        return table.numpy()[int(tf.strings.to_hash_bucket_fast([feature], SMALL.buckets)[0])]

    vectors = []
    for word in words:
        framed = f"<{word}>"
        grams = [framed[i : i + n] for n in (3, 4, 5) for i in range(len(framed) - n + 1)]
        vectors.append(row(tower.words, word) + np.mean([row(tower.ngrams, gram) for gram in grams], axis=0))
    vectors += [row(tower.words, f"{a} {b}") for a, b in pairwise(words)]
    strength = np.exp([float(v @ tower.attention.numpy()[:, 0]) for v in vectors])
    pooled = strength @ np.array(vectors) / strength.sum()
    inner = pooled @ tower.inner.numpy() + tower.bias.numpy()
    hidden = tf.nn.gelu(inner).numpy()
    out = pooled @ tower.straight.numpy() + hidden @ tower.outer.numpy()
    return out / np.linalg.norm(out)


def test_the_vector_is_the_one_of_the_formula(ngrams):
    texts = {"red car": ["red", "car"], "a": ["a"], "toy red toy  car": ["toy", "red", "toy", "car"]}
    vectors = ngrams(tf.constant(list(texts))).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [by_hand(ngrams, words) for words in texts.values()], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Café's 2nd “Ünïque” GUIDE-book", ["the", "cafe", "s", "2nd", "unique", "guide"]),  # six at most
        ("STRASSE straße ﬁne", ["strasse", "strasse", "fine"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("हिन्दी", ["हिनदी"]),
        ("toy😀", ["toy", "😀"]),
        (" \t\n", []),
        ("?!, --", []),
        ("", []),
    ],
)
def test_words(ngrams, text, words):
    assert [word.decode() for word in ngrams.split(tf.constant([text]))[0].numpy()] == words


def test_texts_without_a_word_are_zero_and_leave_the_others_alone(ngrams):
    vectors = ngrams(tf.constant(["", "red car", " \t", "...", "toy", ""])).numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1, 0, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(vectors[[1, 4]], ngrams(tf.constant(["red car", "toy"])), atol=1e-6)
    assert ngrams(tf.constant([], tf.string)).shape == (0, 16)


def test_bytes_that_are_no_text_and_endless_words_do_no_harm(ngrams):
    vectors = ngrams(tf.constant([b"\xff\xfe red", b"x" * 100_000, b"x" * 40])).numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_order_counts_and_a_misspelt_word_is_near(ngrams):
    wide = HashedNgrams(64, NgramSizes(buckets=4096, width=32, hidden=12))
    wide.words.assign(tf.zeros_like(wide.words))  # n-grams alone
    right, wrong, other = wide(tf.constant(["moisturizer", "moisturiser", "lipstick"])).numpy()
    assert right @ wrong > right @ other + 0.2
    a, b = ngrams(tf.constant(["red car", "car red"])).numpy()
    assert np.abs(a - b).max() > 1e-3


def test_the_seed_makes_the_weights():
    texts = tf.constant(["red"])
    first, same, other = (HashedNgrams(16, SMALL, seed)(texts).numpy() for seed in (1, 1, 2))
    assert (first == same).all() and np.abs(first - other).max() > 1e-3


def test_all_layers_of_the_teacher_are_the_teacher(teacher):
    texts = tf.constant(["red car", "the blue toys", ""])
    np.testing.assert_allclose(few_layers(teacher, 2)(texts), teacher.text_to_vector(texts), atol=1e-5)


def test_few_layers_are_those_of_the_teacher(tiny, teacher):
    one = few_layers(teacher, 1)
    assert one.encoder.config.num_hidden_layers == len(one.encoder.layers) == 1
    state = tiny.state()
    kept = {name.replace("layer.1", "layer.0"): value for name, value in state.items() if "layer.0" not in name}
    bert = BertEncoder(BertConfig(**tiny.sizes | {"num_hidden_layers": 1}), kept)
    tokens = teacher.text_to_vector.tokens(tf.constant(["red car", "the blue toys"]))
    np.testing.assert_allclose(one.vectors(tokens), bert(tokens)["default"], atol=1e-5)
    assert len(one.trainable_variables) == 2 + 16  # the embedding's norm, and one layer; no embeddings


def test_few_layers_read_queries_as_the_teacher_does(tiny_hub):
    teacher = TextEncoder(tiny_hub[1], tiny_hub[0], max_tokens=10, item_prefix="the ", query_prefix="red ")
    texts = tf.constant(["car", "blue toys", ""])
    np.testing.assert_allclose(few_layers(teacher, 2)(texts), teacher.for_queries.text_to_vector(texts), atol=1e-5)


def test_few_layers_say_what_they_cannot_do(teacher, monkeypatch):
    with pytest.raises(ModelError, match="1 to 2 layers, as the teacher has, got 3"):
        few_layers(teacher, 3)
    monkeypatch.setattr(teacher.text_to_vector, "encoder", tf.Module())
    with pytest.raises(ModelError, match=r"tfllmrec's own format.*text.query_encoder=hashed_ngrams"):
        few_layers(teacher, 1)


@pytest.mark.parametrize("kind", ["ngrams", "layers", "static"])
def test_a_student_is_the_same_when_loaded_and_in_another_graph(kind, ngrams, teacher, tmp_path):
    towers = {
        "ngrams": lambda: ngrams,
        "layers": lambda: few_layers(teacher, 1),
        "static": lambda: static_tower(teacher, ["red cars"], 100, 8),
    }
    student = Student(towers[kind](), teacher.fingerprint)
    student.save(tmp_path / "student")
    moved = shutil.move(tmp_path / "student", tmp_path / "moved")
    loaded = Student.load(moved)
    assert loaded.teacher == teacher.fingerprint and loaded.dim == 16
    assert loaded.fingerprint == student.fingerprint
    texts = ["blue toys", "", "the red car"]
    np.testing.assert_allclose(loaded.encode(texts), student.encode(texts), atol=1e-6)

    class Search(tf.Module):
        def __init__(self):
            super().__init__()
            self.text_to_vector = loaded.text_to_vector

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def search(self, text):
            return {"vectors": self.text_to_vector(text)}

    model = Search()
    tf.saved_model.save(model, str(tmp_path / "served"), {"search": model.search})
    shutil.rmtree(moved)
    search = tf.saved_model.load(str(tmp_path / "served")).signatures["search"]
    np.testing.assert_allclose(search(text=tf.constant(texts))["vectors"], student.encode(texts), atol=1e-6)


def test_the_fingerprint_tells_weights_and_teachers_apart():
    def made(seed=0, teacher="a"):
        return Student(HashedNgrams(16, SMALL, seed), teacher).fingerprint

    assert made() == made() and len({made(), made(seed=1), made(teacher="b")}) == 3


def test_encode_keeps_the_order(ngrams):
    student = Student(ngrams, "a", batch_size=2)
    texts, calls = ["the red toy car", "a", "", "blue toys", "car"], []
    vectors = student.encode(texts, lambda done, total: calls.append((done, total)))
    np.testing.assert_allclose(vectors, ngrams(tf.constant(texts)), atol=1e-6)
    assert calls == [(2, 5), (4, 5), (5, 5)] and student.encode([]).shape == (0, 16)


def test_what_has_no_utf8_form_is_encoded(ngrams):
    broken, same = Student(ngrams, "ab").encode(["red \ud83d car", "red ? car"])
    np.testing.assert_array_equal(broken, same)


def test_a_folder_is_never_overwritten_nor_half_there(ngrams, tmp_path, monkeypatch):
    student = Student(ngrams, "a")
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        student.save(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").mkdir()
    with pytest.raises(ModelError, match="taken exists"):
        student.save(tmp_path / "taken")


def test_what_is_no_student_is_refused(ngrams, tmp_path):
    with pytest.raises(ModelError, match="nowhere contains no student"):
        Student.load(tmp_path / "nowhere")
    Student(ngrams, "a").save(tmp_path / "s")
    (tmp_path / "s" / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="Distil it again"):
        Student.load(tmp_path / "s")
