import re

import numpy as np
import pytest

from tfllmrec.errors import DataError, ModelError

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tf

import tfllmrec.training.text.distil as distillation  # noqa: E402
from tfllmrec.text.encoder import TextEncoder  # noqa: E402
from tfllmrec.text.store import VectorStore  # noqa: E402
from tfllmrec.text.student import HashedNgrams, NgramSizes, few_layers  # noqa: E402
from tfllmrec.training.text.distil import MatchTeacher, agreement, distil, short_queries  # noqa: E402

SMALL = NgramSizes(buckets=512, width=16, hidden=16)
WORDS = ["red", "blue", "car", "toy", "the", "cafe", "abc", "fox", "dog", "hat"]


@pytest.fixture(scope="module")
def teacher(tiny_hub):
    preprocessor, encoder = tiny_hub
    return TextEncoder(encoder, preprocessor, max_tokens=12)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return ["", *(" ".join(rng.choice(WORDS, 3)) for _ in range(60))]


def unit(*shape, seed=0):
    v = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_the_loss_is_the_one_of_the_formula():
    truth, got, items = unit(3, 4, seed=1), unit(3, 4, seed=2), unit(5, 4, seed=3)
    expected = []
    for t, s in zip(truth, got, strict=True):
        p, q = (np.exp(items @ v / 0.1) / np.exp(items @ v / 0.1).sum() for v in (t, s))
        expected.append(1 - t @ s + 2.0 * 0.1 * sum(p * np.log(p / q)))
    loss = MatchTeacher(items, weight=2.0, temperature=0.1)
    np.testing.assert_allclose(loss.call(truth, got), expected, rtol=1e-4)
    np.testing.assert_allclose(loss.call(truth, truth), 0, atol=1e-6)
    np.testing.assert_allclose(MatchTeacher(items, 0.0).call(truth, got), 1 - (truth * got).sum(axis=1), rtol=1e-5)


def test_the_student_computes_in_float32_whatever_the_policy_of_the_script():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = distillation._Tower(tf.Module())
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert model.dtype_policy.name == "float32"  # with mixed_float16, compile would have the loss scaled


def test_agreement_by_hand():
    items = np.eye(12, dtype=np.float32)
    # The teacher's list is 0 to 9. The student's: the first two swapped, and the last one replaced.
    expected = np.array([[12 - i for i in range(12)]], np.float32)
    got = expected.copy()
    got[0, [0, 1]] = got[0, [1, 0]]
    got[0, 9], got[0, 10] = 0, 3.5
    found = agreement(got, expected, items)
    best = sum((10 - i) / np.log2(i + 2) for i in range(10))
    lost = (10 - 9) / np.log2(2) - (10 - 9) / np.log2(3) + 1 / np.log2(11)
    assert found.texts == 1 and found.top == pytest.approx(9 / 10)
    assert found.ndcg == pytest.approx((best - lost) / best)
    assert found.cosine == pytest.approx((got * expected).sum())
    same = agreement(expected, expected, items[:4])  # fewer items than 10
    assert (same.top, same.ndcg) == (1, pytest.approx(1))


def test_agreement_in_chunks_is_that_of_all(monkeypatch):
    got, expected, items = unit(7, 4, seed=1), unit(7, 4, seed=2), unit(30, 4, seed=3)
    whole = agreement(got, expected, items)
    monkeypatch.setattr("tfllmrec.training.text.distil._CHUNK", 3)
    assert agreement(got, expected, items) == pytest.approx(whole)


def test_queries_are_cut_from_their_item():
    texts = ["Prada Candy, by Prada: Eau-de-Parfum (1.7 Oz)", "", "x", "Prada Candy, by Prada: Eau-de-Parfum (1.7 Oz)"]
    queries = short_queries(texts, ["Candy", " ", "x", "Candy"], per_item=20, seed=1)
    assert queries[0] == ("title", "Candy", 0)
    assert len({query for _, query, _ in queries}) == len(queries)
    assert all(query in texts[row] and query.strip() for _, query, row in queries)
    assert {row for _, _, row in queries} <= {0, 2, 3}
    assert all(" " not in query for kind, query, _ in queries if kind == "word")
    lengths = {len(re.findall(r"[\w-]+", query)) for kind, query, _ in queries if kind == "phrase"}
    assert lengths <= {2, 3, 4, 5} and len(lengths) > 1
    assert any(query.startswith("Eau-de-Parfum") for _, query, _ in queries)
    assert queries == short_queries(texts, ["Candy", " ", "x", "Candy"], per_item=20, seed=1)
    assert queries != short_queries(texts, ["Candy", " ", "x", "Candy"], per_item=20, seed=2)


def test_queries_in_other_scripts_are_whole_words_and_phrases():
    kinds = {query: kind for kind, query, _ in short_queries(["绿茶茶包", "हरी चाय"], per_item=100)}
    assert kinds["绿"] == kinds["हरी"] == "word"
    assert kinds["绿茶"] == kinds["हरी चाय"] == "phrase"


def before_training(tower, teacher, texts, done):
    """The agreement of an untrained tower on the item texts that ``done`` was not trained on."""
    held_out = [texts[row] for row in done.held_out]
    return agreement(tower(tf.constant(held_out)).numpy(), teacher.encode(held_out), teacher.encode(texts))


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_does(teacher, texts):
    settings = {"epochs": 20, "batch_size": 32, "learning_rate": 0.02, "per_item": 2}
    done = distil(teacher, HashedNgrams(16, SMALL), texts, texts, **settings)
    before, after = before_training(HashedNgrams(16, SMALL), teacher, texts, done), done.report["item"]
    assert after.cosine > before.cosine + 0.3
    assert after.top > before.top + 0.15 and after.ndcg > before.ndcg + 0.15
    assert list(done.report)[-1] == "all" and set(done.report) <= {"item", "word", "phrase", "all"}
    assert sum(a.texts for kind, a in done.report.items() if kind != "all") == done.report["all"].texts
    assert len(done.held_out) == 6 and 0 not in done.held_out  # a tenth of 60; the empty text is none of them
    assert done.student.teacher == teacher.fingerprint


def test_held_out_items_are_neither_trained_on_nor_among_those_of_the_loss(teacher, texts, monkeypatch):
    trained, anchors = [], []
    batches, loss = distillation._batches, distillation.MatchTeacher
    monkeypatch.setattr(distillation, "_batches", lambda words, *rest: trained.extend(words) or batches(words, *rest))
    monkeypatch.setattr(distillation, "MatchTeacher", lambda items, *rest: anchors.extend(items) or loss(items, *rest))
    # Every text is that of two items, of which the second has a title of its own.
    texts = 2 * list(dict.fromkeys(texts))
    titles = [*texts[: len(texts) // 2], *(f"{text} again" for text in texts[len(texts) // 2 :])]
    done = distil(teacher, HashedNgrams(16, SMALL), texts, titles, held_out=0.2, candidates=30, epochs=1, batch_size=64)
    held_out = {texts[row] for row in done.held_out}
    assert len(held_out) == round(0.2 * (len(texts) // 2 - 1)) and not held_out & set(trained)
    assert not {f"{text} again" for text in held_out} & set(trained)
    assert len(done.held_out) == 2 * len(held_out) and done.report["item"].texts == len(held_out)
    assert set(trained) > set(texts) - held_out - {""} and "" not in trained
    assert len(anchors) == 30 and (teacher.encode(sorted(held_out)) @ np.array(anchors).T).max() < 1 - 1e-5


@pytest.mark.slow
def test_a_few_layers_learn_too(teacher, texts):
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "per_item": 2}
    done = distil(teacher, few_layers(teacher, 1), texts, **settings)
    assert done.report["item"].cosine > before_training(few_layers(teacher, 1), teacher, texts, done).cosine + 0.02


@pytest.mark.slow
def test_the_same_seed_makes_the_same_student_and_asks_its_teacher_once(teacher, texts, tmp_path, monkeypatch):
    def made():
        settings = {"epochs": 2, "batch_size": 16, "held_out": 0.0, "store": VectorStore(tmp_path)}
        done = distil(teacher, HashedNgrams(16, SMALL), texts, **settings)
        assert done.report == {} and not len(done.held_out)
        return done.student.fingerprint

    first = made()
    monkeypatch.setattr(teacher, "encode", lambda *_: pytest.fail("encoded again"))
    assert made() == first


def test_what_cannot_be_distilled(teacher, texts):
    with pytest.raises(DataError, match="at least two distinct item texts to distil from, got 1"):
        distil(teacher, HashedNgrams(16, SMALL), ["", "red", " ", "red"])
    with pytest.raises(ModelError, match="teacher's width 16, got one of 8"):
        distil(teacher, HashedNgrams(8, SMALL), texts)
    with pytest.raises(ModelError, match=r"not a number.*lower learning_rate"):
        tower = HashedNgrams(16, SMALL)
        tower.inner.assign(np.nan * tower.inner)
        distil(teacher, tower, texts, epochs=1)
