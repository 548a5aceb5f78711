"""The served contract, asked as TF Serving would: strings in, strings out."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as SavedModelProto

from tfllmrec.config import ItemWeightSettings, ModelConfig, RankingConfig
from tfllmrec.data.domains import domain_filters
from tfllmrec.data.queries import Queries
from tfllmrec.data.schema import RATING_KEY, Field, Schema
from tfllmrec.evaluation.metrics import masked, top_items
from tfllmrec.layers import item_index
from tfllmrec.layers.interest_forecast import LabelHead
from tfllmrec.layers.label_match import LabelMatch
from tfllmrec.models.folding import FoldedHybrid
from tfllmrec.models.hybrid import Catalogue, Hybrid
from tfllmrec.models.interests import Interests, LabelForecast
from tfllmrec.models.item_weights import PrunedWeights
from tfllmrec.models.ranking import RankingModel, RatingScale, Reranked
from tfllmrec.serving.rules.compiled import NO_RULES, digest_of_ids, packed
from tfllmrec.serving.signatures import ServingModel
from tfllmrec.text.centring import search_weights
from tfllmrec.text.preprocessor import INPUTS
from tfllmrec.training.interests import listed, profile_of, recommended_items

pytestmark = pytest.mark.tf
ALL = [f"i{i}" for i in range(40)]
NAN = float("nan")
#: Of the inputs that are not strings.
TYPES = {"ratings": tf.float32, "k": tf.int32, "diversity": tf.float32, "category_cap": tf.int32, "reasons": tf.int32}
TYPES |= {"tail_share": tf.float32} | dict.fromkeys(INPUTS, tf.int32)


@pytest.fixture(scope="module")
def served(chain_version):
    """Calls a signature; answers are numpy, ids are str."""
    loaded = tf.saved_model.load(str(chain_version))

    def call(signature, **inputs):
        given = {name: tf.constant(value, TYPES.get(name, tf.string)) for name, value in inputs.items()}
        if signature in ("explain", "rank", "score"):  # over gRPC these have defaults
            given = dict.fromkeys(("event_fields", "context"), tf.fill((1, 0), "")) | given
        out = loaded.signatures[signature](**given)
        answer = {name: value.numpy() for name, value in out.items()}
        return SimpleNamespace(
            **{name: np.char.decode(v.astype(bytes)) if v.dtype == object else v for name, v in answer.items()}
        )

    return call


def ask(served, history=(), exclude=("",), k=5, ratings=()):
    return served("recommend", history=[[*history, ""]], ratings=[list(ratings)], exclude=[list(exclude)], k=[k])


@pytest.fixture(scope="module")
def model(chain_run):
    return chain_run[0].load_model(refit=True)


@pytest.fixture(scope="module")
def reranked(model, chain_run):
    """The order that was measured: the ring's ranking model has a click head."""
    run = chain_run[0]
    ranking = run.load_ranking(model)
    assert ranking.reorders and run.config.ranking.candidates == 20
    return Reranked(model, ranking, 20)


def expected(recommender, run, history, k, ratings=None):
    """Top k by the Keras model's own scores, history masked."""
    index = {item: i for i, item in enumerate(run.dataset.items.item_id)}
    rows = [index[item] for item in history]
    queries = Queries.from_histories([rows], None if ratings is None else [ratings], exclude=[rows])
    scores = recommender.score(queries)[0]
    scores[rows] = -np.inf
    best = np.argsort(-scores, kind="stable")[:k]
    return run.dataset.items.item_id.to_numpy()[best].tolist(), scores[best]


@pytest.mark.parametrize(
    ("history", "ratings"),
    [(["i3", "i4"], None), (["i3", "i4"], [5, 1]), (["i3", "i4"], [1, NAN]), (["i38"], None), ([], None),
     ([f"i{i}" for i in range(15)], None), ([f"i{i}" for i in range(15)], [1 + i % 5 for i in range(15)])],
)  # fmt: skip
@pytest.mark.parametrize("k", [7, 30])
def test_recommends_what_the_keras_models_do(served, model, reranked, chain_run, history, ratings, k):
    """In the order of the ranking model, with the scores of the hybrid; or in its order, without that stage."""
    out = ask(served, history, k=k, ratings=ratings or [])
    ids, scores = expected(model, chain_run[0], history, k, ratings)
    left = 40 - len(history)
    assert out.item_ids[0, :left].tolist() == expected(reranked, chain_run[0], history, k, ratings)[0][:left]
    np.testing.assert_allclose(out.scores[0, :left], scores[:left], atol=1e-5, rtol=1e-5)
    assert out.unknown.tolist() == [0]
    nothing = {name: [[""]] for name in ("event_fields", "context", "exclude", "allow", "categories", "pinned")}
    nothing["label_weights"] = [[""]]
    asked = {"history": [[*history, ""]], "ratings": [ratings or []], "k": [k], **nothing}
    off = {"diversity": [0], "category_cap": [0], "tail_share": [0], "reasons": [0]}
    plain = served("recommend_full", **asked, **off, skip=[["ranking"]])
    assert plain.item_ids[0, :left].tolist() == ids[:left]
    np.testing.assert_allclose(plain.scores, out.scores, atol=1e-6)


def test_the_default_is_recommend(served):
    inputs = {"history": [["i3"]], "ratings": [[]], "exclude": [[""]], "k": [4]}
    assert served("serving_default", **inputs).item_ids.tolist() == served("recommend", **inputs).item_ids.tolist()


def test_every_item_is_scored_as_by_the_keras_model(served, model):
    queries = Queries.from_histories([[3, 4], [], [7, 8, 9]], ratings=[[5, 1], [], [NAN, 2, 4]])
    # Indices follow the catalogue's order, which is that of the items file.
    scores = served(
        "score",
        history=[["i3", "i4", ""], ["", "", ""], ["i7", "i8", "i9"]],
        ratings=[[5, 1, NAN], [NAN] * 3, [NAN, 2, 4]],
    ).scores
    np.testing.assert_allclose(scores, model.score(queries), atol=1e-5, rtol=1e-5)


def test_unknown_ids_count_as_absent_and_are_counted(served):
    plain = ask(served, ["i3", "i4"], ratings=[5, 1])
    odd = ask(served, ["nope", "i3", "", "i4", "ghost"], ratings=[1, 5, 3, 1, 2])
    assert odd.unknown.tolist() == [2]
    assert odd.item_ids.tolist() == plain.item_ids.tolist()
    np.testing.assert_allclose(odd.scores, plain.scores, atol=1e-5)
    nothing = ask(served, ["nope"])
    assert nothing.unknown.tolist() == [1] and nothing.item_ids.tolist() == ask(served).item_ids.tolist()


def test_what_is_excluded_never_comes_back(served):
    few = ask(served, ["i0"], exclude=[i for i in ALL if i not in ("i0", "i7", "i9")], k=5)
    assert sorted(few.item_ids[0, :2]) == ["i7", "i9"]
    assert few.item_ids[0, 2:].tolist() == [""] * 3 and few.scores[0, 2:].tolist() == [0.0] * 3
    none = ask(served, ["i0"], exclude=[*ALL, *ALL, "nope"], k=3)
    assert none.item_ids[0].tolist() == [""] * 3
    # An exclusion is not an opinion: the others keep their scores.
    whole, without = (
        dict(zip(out.item_ids[0, :37], out.scores[0, :37], strict=True))
        for out in (ask(served, ["i3"], k=40), ask(served, ["i3"], exclude=["i4", "i5"], k=40))
    )
    assert {"i4", "i5"} <= set(whole) and not {"i4", "i5"} & set(without)
    shared = sorted(set(whole) & set(without))
    assert [without[i] for i in shared] == pytest.approx([whole[i] for i in shared], abs=1e-5)


def test_k_for_each_row_and_beyond_the_catalogue(served):
    out = served("recommend", history=[["i1"], ["i2"], ["i3"]], ratings=[[]] * 3, exclude=[[""]] * 3, k=[2, 0, 60])
    assert out.item_ids.shape == out.scores.shape == (3, 40)  # no room for more than there is
    assert ask(served, ["i1"], k=2_000_000_000).item_ids.shape == (1, 40)
    assert (out.item_ids != "").sum(axis=1).tolist() == [2, 0, 39]
    assert set(out.item_ids[2, :39]) == set(ALL) - {"i3"}
    assert (np.diff(out.scores[2, :39]) <= 0).all()
    shared = served("recommend", history=[["i1"], ["i2"]], ratings=[[]] * 2, exclude=[[""]] * 2, k=[3])
    assert (shared.item_ids != "").sum(axis=1).tolist() == [3, 3]
    assert ask(served, ["i1"], k=-4).item_ids.shape == (1, 0)


def test_a_batch_is_its_rows(served):
    histories = [["i3", "i4", ""], ["", "", ""], ["i7", "nope", "i9"]]
    marks = [[5, 1], [NAN, NAN], [1, 2]]
    together = served("recommend", history=histories, ratings=marks, exclude=[["i5"]] * 3, k=[6] * 3)
    for row, (history, ratings) in enumerate(zip([["i3", "i4"], [], histories[2]], marks, strict=True)):
        alone = ask(served, history, exclude=["i5"], k=6, ratings=ratings)
        assert alone.item_ids[0].tolist() == together.item_ids[row].tolist()
        np.testing.assert_allclose(alone.scores[0], together.scores[row], atol=1e-5)
    nobody = np.zeros((0, 2), str)
    empty = served("recommend", history=nobody, ratings=np.zeros((0, 0)), exclude=nobody, k=[])
    assert empty.item_ids.shape[0] == empty.unknown.shape[0] == 0


def test_marks_may_be_missing_at_the_end_or_altogether(served):
    short, padded = ask(served, ["i3", "i4"], ratings=[4]), ask(served, ["i3", "i4"], ratings=[4, NAN])
    too_many = ask(served, ["i3", "i4"], ratings=[4, NAN, 1, 1, 1])
    for out in (padded, too_many):
        np.testing.assert_allclose(out.scores, short.scores, atol=1e-6)
    assert np.abs(ask(served, ["i3", "i4"], ratings=[1, 5]).scores - short.scores).max() > 1e-5


def search(served, text, history=(), exclude=(), k=3):
    return served("search", text=[text], history=[[*history, ""]], exclude=[[*exclude, ""]], k=[k])


def test_search_finds_an_items_own_text(served, chain_run):
    run, _ = chain_run
    for row in (0, 17, 39):  # the last has no event
        out = search(served, run.dataset.items.title[row])
        assert out.item_ids[0, 0] == f"i{row}"
        assert out.scores[0, 0] == pytest.approx(1, abs=1e-5)
    found = search(served, run.dataset.items.title[17], k=40)
    cosines = dict(zip(run.dataset.items.item_id, run.text @ run.text[17], strict=True))
    np.testing.assert_allclose(found.scores[0], [cosines[i] for i in found.item_ids[0]], atol=1e-5)
    assert search(served, "blue ra", exclude=["i17", "i0"], k=40).item_ids[0].tolist().count("") == 2


def test_search_leans_towards_the_person(served, model, chain_run):
    plain, personal = search(served, "red toy", k=40), search(served, "red toy", ["i3", "nope", "i4"], k=40)
    assert personal.unknown.tolist() == [1] and plain.unknown.tolist() == [0]
    liked = model.score(Queries.from_histories([[3, 4]]))[0]
    text = chain_run[0].text
    spread = (text @ text.T).std()  # of the cosines that tell items apart
    nudge = 0.5 * spread * (liked - liked.mean()) / liked.std()
    base = dict(zip(plain.item_ids[0], plain.scores[0], strict=True))
    for item, score in zip(personal.item_ids[0], personal.scores[0], strict=True):
        assert score == pytest.approx(base[item] + nudge[int(item[1:])], abs=1e-4)


@pytest.fixture(scope="module")
def tokens(tiny_hub):
    """What a client's own tokeniser makes of texts: lists, padded to 20."""
    pack = tf.saved_model.load(str(tiny_hub[0]))

    def of(texts, width=20):
        made = pack.bert_pack_inputs([pack.tokenize(tf.constant(texts))], seq_length=tf.constant(width))
        return {name: made[name].numpy().tolist() for name in INPUTS}

    return of


def test_search_tokens_finds_what_search_does(served, tokens):
    texts = ["red toy", "", "the blue car (cafe)"]
    rest = {"history": [["i3", "nope"], ["", ""], ["", "i4"]], "exclude": [["i7"]] * 3, "k": [40, 3, 5]}
    by_text, by_tokens = served("search", text=texts, **rest), served("search_tokens", **tokens(texts), **rest)
    assert by_tokens.item_ids.tolist() == by_text.item_ids.tolist()
    np.testing.assert_allclose(by_tokens.scores, by_text.scores, atol=1e-6)
    assert by_tokens.unknown.tolist() == by_text.unknown.tolist() == [1, 0, 0]


def test_token_ids_may_be_padded_beyond_the_encoders_positions_and_empty(served, tokens):
    rest = {"history": [[""]], "exclude": [[""]], "k": [40]}
    wide = tokens(["red toy"], 100)  # the tiny BERT has 40 positions
    np.testing.assert_allclose(
        served("search_tokens", **wide, **rest).scores, search(served, "red toy", k=40).scores, atol=1e-6
    )
    nothing = {name: [[0] * 5] for name in INPUTS}
    assert not served("search_tokens", **nothing, **rest).scores.any()
    with pytest.raises(tf.errors.InvalidArgumentError):
        served("search_tokens", **{name: [[1] * 41] for name in INPUTS}, **rest)


def test_encode_gives_vectors_in_the_space_of_the_items(served, chain_run):
    run, _ = chain_run
    vectors = served("encode", text=[*run.dataset.items.title, ""]).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:-1], run.text, atol=1e-5)
    assert not vectors[-1].any()
    assert served("encode", text=[]).vectors.shape == (0, 16)


def test_similar(served, model, chain_run):
    out = served("similar", item_id=["i8", "nope"], k=[5, 5])
    vectors, text = model.item_vectors().numpy(), np.asarray(chain_run[0].text)
    scores = (vectors @ vectors[8] + text @ text[8]) / 2
    scores[8] = -np.inf
    assert out.item_ids[0].tolist() == [f"i{i}" for i in np.argsort(-scores, kind="stable")[:5]]
    np.testing.assert_allclose(out.scores[0], np.sort(scores)[::-1][:5], atol=1e-5)
    assert out.item_ids[1].tolist() == [""] * 5
    assert out.unknown.tolist() == [0, 1]


def test_explain_gives_the_terms_of_the_score(served):
    history, ratings = [["i3", "nope", "i4"]], [[5, 1, 1]]
    scores = served("score", history=history, ratings=ratings).scores[0]
    out = served("explain", history=history, ratings=ratings, items=[["i5", "i39", "i20", "ghost", ""]])
    total = (out.meaning + out.feedback + out.behaviour)[0]
    np.testing.assert_allclose(total, [scores[5], scores[39], scores[20], 0, 0], atol=1e-4)
    assert set(out.because[0, :3]) <= {"i3", "i4"}
    assert out.because[0, 3:].tolist() == ["", ""]
    assert out.unknown.tolist() == [1]


# Filters --------------------------------------------------------------------------------------------------------------

KINDS = [["Comedy"], ["Drama", "Sci-Fi"], ["Comedy", "Drama"], []]


def small_texts():
    """Text vectors of 40 items: float32 ``[40, 5]`` of length 1."""
    text = np.random.default_rng(5).normal(size=(40, 5)).astype(np.float32)
    return text / np.linalg.norm(text, axis=1, keepdims=True)


def small_model(
    categories=None, alike=False, ranking=None, labels=None, schema=None, text=None, text_widths=None, **further
):
    """What is exported; random weights, or (``alike``) such that all scores are about the same.

    The text of item i is what ``search`` reads in ``str(i)``; ``small_texts`` by default. ``further`` arguments are
    those of the exported model.
    """
    rng = np.random.default_rng(6)
    text = small_texts() if text is None else text
    config = ModelConfig(embedding_dim=8, blocks=1, heads=2, dropout=0.1, history_length=4)
    weights = ItemWeightSettings(decay=0.5, neighbours=6)
    hybrid = Hybrid(Catalogue(np.array(ALL, object), text), np.arange(40) % 9, config, weights)
    hybrid.gates.output_map.kernel.assign(rng.normal(0, 0.05, (8, 1)))
    hybrid.gates.dense_strength.assign(1e-7 if alike else 0.7)
    hybrid.gates.discount.assign(0.3)
    hybrid.gates.cold_lift.assign(0.0 if alike else 1.0)
    neighbours = np.array([rng.permutation(40)[:6] for _ in range(40)], np.int32)
    weights = rng.normal(0, 0 if alike else 1, (40, 6))
    hybrid.set_item_weights(PrunedWeights(neighbours, weights.astype(np.float32)))
    histories = Queries.from_histories([[1, 2, 3], list(range(9)), []])
    reads = lambda asked: tf.gather(text, tf.strings.to_number(asked, tf.int32))  # noqa: E731
    order = None if ranking is None else ranking(hybrid)
    titles = [item.upper() for item in ALL]
    return ServingModel(
        hybrid,
        np.array(ALL, object),
        text,
        reads,
        histories,
        categories,
        labels,
        order,
        titles=titles,
        schema=schema,
        text_widths=text_widths,
        **further,
    )


def small(categories=None, alike=False):
    """Calls what is exported, as it is."""
    served = small_model(categories, alike)

    def call(signature, **inputs):
        given = {name: tf.constant(value, TYPES.get(name, tf.string)) for name, value in inputs.items()}
        out = getattr(served, signature)(**given)
        ids = [[item.decode() for item in row] for row in out["item_ids"].numpy()]
        return list(zip(ids, out["scores"].numpy(), strict=True))

    return call


@pytest.fixture(scope="module")
def filtered():
    return small(["|".join(KINDS[i % 4]) for i in range(40)])


ASKED = {
    "recommend": {"history": [["i3", "i9", ""]], "ratings": [[5.0, 1.0]], "exclude": [["i12"]]},
    "search": {"text": ["7"], "history": [["i3", "i9", ""]], "exclude": [["i12"]]},
    "similar": {"item_id": ["i8"]},
}


@pytest.mark.parametrize("signature", ASKED)
@pytest.mark.parametrize(
    ("allow", "categories"),
    [([], []), (["i1", "i2", "i30", "i3", "i12", "i8"], []), ([], ["Comedy"]), ([], ["", "Sci-Fi", "Drama"]),
     (["i5", "i6", "i7", "nope", ""], ["Sci-Fi"]), (["nope"], []), ([], ["nope"]), (["i1"], ["Comedy", "nope"])],
)  # fmt: skip
def test_a_filter_leaves_the_whole_list_without_what_does_not_pass(filtered, signature, allow, categories):
    (whole,) = filtered(signature, **ASKED[signature], k=[40])
    passes = [
        (item, score)
        for item, score in zip(*whole, strict=True)
        if item
        and (item in allow or not any(allow))
        and (set(categories) & set(KINDS[int(item[1:]) % 4]) or not any(categories))
    ]
    (found,) = filtered(f"{signature}_full", **ASKED[signature], allow=[allow], categories=[categories], k=[40])
    assert found[0] == [item for item, _ in passes] + [""] * (40 - len(passes))
    np.testing.assert_allclose(found[1], [score for _, score in passes] + [0] * (40 - len(passes)), atol=1e-5)


def test_a_request_may_ask_for_items_of_one_domain():
    """Of joined data; an item needs one of the domains and one of the categories; only these count towards a cap."""
    kinds = ["|".join(KINDS[i % 4]) for i in range(40)]
    domains = domain_filters(
        pd.DataFrame({"domain": ["books|films" if i == 4 else ("books", "films")[i % 2] for i in range(40)]}),
        Schema([Field("domain", "event", "category", vocabulary=("books", "films"))]),
    )
    assert domains[4] == ["domain=books", "domain=films"]
    served = small_model(kinds, domains=domains)
    asked = {**ASKED["recommend"], "k": [40], "category_cap": [0]}

    def found(**more):
        return [item.decode() for item in answer(served.recommend_full, **asked | more)["item_ids"][0] if item]

    everything = found()
    films = [item for item in everything if int(item[1:]) % 2 or item == "i4"]
    assert 15 < len(films) < len(everything) and found(categories=[["domain=films"]]) == films
    assert found(categories=[["domain=films", "domain=books"]]) == everything
    assert found(categories=[["domain=films", "domain=music"]]) == films
    of_kind = found(categories=[[KINDS[1][0]]])
    assert found(categories=[["domain=films", KINDS[1][0]]]) == [item for item in films if item in of_kind]
    assert found(categories=[["films"]]) == []  # that would be a category
    assert len(found(categories=[["domain=films"]], category_cap=[2], k=[9])) > 4  # items without a category go on


def test_an_event_is_in_the_domain_of_its_item():
    def reading(hybrid):
        hybrid.reads = (*hybrid.reads, "event.domain")

    domains = [["domain=books"], ["domain=films"], ["domain=books", "domain=films"]] + [["domain=books"]] * 37
    schema = Schema((Field("domain", "event", "category", ("books", "films")),))
    served = small_model(ranking=reading, schema=schema, domains=domains)
    history, marks = tf.constant([["i0", "i1", "i2", "nope", "i1"]]), tf.fill((1, 5), NAN)
    books, films, none = schema["event.domain"].encode(["books", "films", ""]).tolist()
    query, *_ = served._query(history, marks)
    assert query["event.domain"].numpy()[0, :4].tolist() == [books, films, none, films]
    given = tf.constant([["", "", "domain=films", "", "domain=books"]])  # what a request says counts
    query, *_ = served._query(history, marks, given, tf.constant([[""]]))
    assert query["event.domain"].numpy()[0, :4].tolist() == [books, films, films, books]


@pytest.fixture(scope="module")
def with_fields():
    """What is exported, of a shop that knows ratings, kinds of events and the user's age."""
    fields = (Field("kind", "event", "category", ("view",)), Field("rating", "event", "number"))
    return small_model(schema=Schema((*fields, Field("device", "request", "id"), Field("age", "user", "number"))))


def answer(function, **inputs):
    out = function(**{name: tf.constant(value, TYPES.get(name, tf.string)) for name, value in inputs.items()})
    return {name: value.numpy().tolist() for name, value in out.items()}


@pytest.mark.parametrize("signature", ASKED)
def test_a_full_signature_answers_as_the_short_one_and_says_the_titles(with_fields, signature):
    short = answer(getattr(with_fields, signature), **ASKED[signature], k=[5])
    full = answer(getattr(with_fields, f"{signature}_full"), **ASKED[signature], k=[5])
    if signature == "search":  # which takes no ratings
        marks = ASKED["recommend"]["ratings"]
        assert answer(with_fields.search_full, **ASKED["search"], ratings=marks, k=[5])["scores"] != full["scores"]
    assert full.pop("titles") == [[item.decode().upper().encode() for item in short["item_ids"][0]]]
    assert full.pop("unread", [0]) == [0]
    assert full.pop("reasons", [[b""] * 5]) == [[b""] * 5]
    assert full == short


def test_inputs_of_a_full_signature_may_be_left_out_and_stand_for_every_row(with_fields):
    assert len(answer(with_fields.recommend_full)["item_ids"][0]) == 10
    two = answer(with_fields.recommend_full, history=[["i3", ""], ["i9", "i4"]], exclude=[["i12"]])
    for row, history in enumerate((["i3"], ["i9", "i4"])):
        alone = answer(with_fields.recommend_full, history=[history], exclude=[["i12"]])
        assert alone["item_ids"][0] == two["item_ids"][row] and b"i12" not in two["item_ids"][row]
    nobody = answer(with_fields.recommend_full, history=np.zeros((0, 2), str))
    assert nobody["item_ids"] == [] and nobody["unread"] == []
    with pytest.raises(tf.errors.InvalidArgumentError):
        with_fields.recommend_full(history=tf.constant([["i3"], ["i4"]]), k=tf.constant([1, 2, 3]))


def test_ratings_may_be_fields_of_events(with_fields):
    history = [["nope", "i3", "i9"]]
    plain = answer(with_fields.recommend_full, history=history, ratings=[[1, 5, 1]])
    said = answer(with_fields.recommend_full, history=history, event_fields=[["", "rating=5\nkind=view", "rating=1"]])
    assert said == plain
    # The input counts where both say something.
    both = answer(
        with_fields.recommend_full, history=history, ratings=[[1, 5, NAN]], event_fields=[["", "rating=1", "rating=1"]]
    )
    assert both == plain
    assert answer(with_fields.recommend_full, history=history)["scores"] != plain["scores"]


def test_entries_that_cannot_be_read_are_counted(with_fields):
    out = answer(
        with_fields.recommend_full,
        history=[["i3", "i9"], ["i3", ""]],
        context=[["age=30", "colour=red", ""], ["device=x", "", "shoe"]],
        event_fields=[["rating=good", "kind=view\nseconds=3"], ["", ""]],
        skip=[["ranking", ""], ["retrieval", "diversity"]],
    )
    assert out["unread"] == [3, 1 + 2]
    assert out["unknown"] == [0, 0]
    foreign = {"exclude": [["i4", "no1"]], "allow": [["no1", "i5"]], "categories": [["", "nope"]]}
    assert answer(with_fields.search_full, text=["1"], **foreign)["unread"] == [3]
    out_of = answer(with_fields.recommend_full, **foreign, pinned=[["no1", "no2"]])
    assert (out_of["unread"], out_of["unknown"]) == ([5], [0])
    plain = answer(with_fields.recommend_full, history=[["i3", "i9"]])
    assert out["scores"][0] == pytest.approx(plain["scores"][0], rel=1e-5)


def test_the_full_signatures_have_defaults_that_grpc_fills_in(chain_version):
    from tensorflow.core.protobuf import saved_model_pb2

    graph = saved_model_pb2.SavedModel.FromString((chain_version / "saved_model.pb").read_bytes()).meta_graphs[0]
    defaults = {name: set(signature.defaults) for name, signature in graph.signature_def.items() if signature.defaults}
    of_search = {"history", "ratings", "event_fields", "context", "exclude", "allow", "categories", "k"}
    assert defaults == {
        "recommend_full": of_search
        | {"diversity", "pinned", "category_cap", "tail_share", "skip", "label_weights", "reasons"},
        "search_full": of_search,
        "similar_full": {"allow", "categories", "k"},
        **{name: {"event_fields", "context"} for name in ("explain", "rank", "score")},
    }
    k = graph.signature_def["recommend_full"].defaults["k"]
    assert tf.make_ndarray(k).tolist() == [10]
    assert not any(name.endswith("_filtered") for name in graph.signature_def)


def test_each_row_has_its_own_filters(filtered):
    rows = [([""], ["Comedy"]), (["i7", "i8"], [""]), ([""], [""]), (["i7", "i8", "i9"], ["Drama", "Comedy"])]
    inputs = {"history": [["i3"]], "ratings": [[]], "exclude": [[""]], "k": [6]}
    alone = [filtered("recommend_full", **inputs, allow=[a], categories=[c])[0] for a, c in rows]
    batch = {name: value * 4 for name, value in inputs.items()}
    padded = {"allow": [(a + [""] * 3)[:3] for a, _ in rows], "categories": [[*c, ""][:2] for _, c in rows]}
    for (items, scores), expected in zip(filtered("recommend_full", **batch, **padded), alone, strict=True):
        assert items == expected[0]
        np.testing.assert_allclose(scores, expected[1], atol=1e-5)


def test_nothing_is_similar_to_an_unknown_item_whatever_passes(filtered):
    rows = filtered(
        "similar_full", item_id=["nope", "i8", ""], allow=[["i1"]] * 3, categories=[["Drama", "Sci-Fi"]] * 3, k=[2]
    )
    assert [items for items, _ in rows] == [["", ""], ["i1", ""], ["", ""]]


def test_a_category_with_commas_is_one_name():
    arts = "Arts, Music & Photography"
    served = small([arts if i % 4 == 0 else f"Books|{arts}" if i == 5 else "Arts" if i == 7 else "" for i in range(40)])
    inputs = {"history": [["i3"]], "ratings": [[5.0]], "exclude": [[""]], "allow": [[""]], "k": [20]}
    found = served("recommend_full", **inputs, categories=[[arts]])[0][0]
    assert sorted(item for item in found if item) == sorted([*(f"i{i}" for i in range(0, 40, 4)), "i5"])
    assert [item for item in served("recommend_full", **inputs, categories=[["Arts"]])[0][0] if item] == ["i7"]


def test_a_catalogue_without_categories_has_none_to_ask_for():
    bare = small()
    asked = ASKED["recommend"] | {"allow": [[""]], "k": [3]}
    assert "" not in bare("recommend_full", **asked, categories=[[""]])[0][0]
    assert bare("recommend_full", **asked, categories=[["Comedy"]])[0][0] == [""] * 3


def test_several_encoders_are_searched_by_what_tells_items_apart():
    narrow = small_texts()[:, :3] * 0.05 + 1  # all nearly the same vector
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (small_texts(), narrow)]
    text = np.hstack(parts).astype(np.float32) / 2**0.5
    served = small_model(text=text, text_widths=[5, 3])
    out = served.search(tf.constant(["7"]), tf.constant([[""]]), tf.constant([[""]]), tf.constant([40]))
    factors, centre, _ = search_weights(text, [5, 3])
    scores = text @ (text[7] * factors) - text[7] @ centre
    assert [item.decode() for item in out["item_ids"].numpy()[0]] == [ALL[i] for i in np.argsort(-scores)]
    assert out["item_ids"][0, 0] == b"i7" and abs(scores.mean()) < 1e-4
    np.testing.assert_allclose(out["scores"][0], np.sort(scores)[::-1], atol=1e-4)
    np.testing.assert_allclose(served.encode(tf.constant(["7"]))["vectors"][0], text[7], atol=1e-6)


@pytest.mark.slow
@pytest.mark.long
def test_a_large_catalogue_is_searched_in_cells(filtered, monkeypatch):
    monkeypatch.setattr(item_index, "EXACT_ITEMS", 10)
    cells = small(["|".join(KINDS[i % 4]) for i in range(40)])
    for signature, inputs in ASKED.items():
        # So many that all cells are looked into.
        for (items, scores), exact in zip(
            cells(signature, **inputs, k=[40]), filtered(signature, **inputs, k=[40]), strict=True
        ):
            assert items == exact[0]
            np.testing.assert_allclose(scores, exact[1], atol=1e-5)
        few = {"allow": [["i30", "i31", "i8"]], "categories": [["Comedy"]], "k": [2]}
        assert cells(f"{signature}_full", **inputs, **few)[0][0] == filtered(f"{signature}_full", **inputs, **few)[0][0]


def test_histories_are_encoded_only_where_an_index_is_made_for_them(monkeypatch):
    encoded, queries = [], FoldedHybrid.queries

    def counted(self, item_vectors, query):
        encoded.append(len(query["history"]))
        return queries(self, item_vectors, query)

    monkeypatch.setattr(FoldedHybrid, "queries", counted)
    small_model()
    assert encoded == []
    monkeypatch.setattr(item_index, "EXACT_ITEMS", 39)
    small_model()
    assert encoded == [3]


def test_signatures_share_what_they_have_in_common(chain_version):
    """Each would otherwise hold the operations of the network, which takes long to trace and to load."""
    saved = SavedModelProto.FromString((chain_version / "saved_model.pb").read_bytes())
    functions = [function.signature.name for function in saved.meta_graphs[0].graph_def.library.function]
    for name in ("last_query_vectors", "explain_items"):
        assert sum(f"_{name}_" in function for function in functions) == 1, name


def test_rounding_is_no_preference():
    """A model to which all items are the same moves no search, though their scores differ in the seventh digit."""
    (plain,), (personal,) = (
        small(alike=True)("search", text=["7"], history=[[item]], exclude=[[""]], k=[40]) for item in ("", "i3")
    )
    assert personal[0] == plain[0]
    np.testing.assert_allclose(personal[1], plain[1], atol=1e-6)


# Candidates of any source -----------------------------------------------------------------------------------------


def rank(served, items, history=("i3", "i4"), ratings=(5, 1)):
    return served("rank", history=[list(history)], ratings=[list(ratings)], items=[list(items)])


def test_ranks_as_the_keras_model_does(served, model, chain_run):
    run, _ = chain_run
    keras = run.load_ranking(model)
    histories, marks = [["i3", "i4", "nope"], ["", "", ""], ["i9", "i7", "i38"]], [[5, 1, 3], [NAN] * 3, [NAN, 2, 4]]
    items = [["i5", "i39", "i4"], ["i1", "", "ghost"], ["i8", "i8", "i0"]]
    out = served("rank", history=histories, ratings=marks, items=items)
    n = run.dataset.n_items
    queries = Queries.from_histories([[3, 4], [], [9, 7, 38]], ratings=[[5, 1], [], [NAN, 2, 4]])
    query = {key: tf.constant(values) for key, values in model.query_inputs(queries).items()}
    probability, rating = keras.rank(keras.item_vectors, query, tf.constant([[5, 39, 4], [1, n, n], [8, 8, 0]]))
    np.testing.assert_allclose(out.click_probability, probability, atol=1e-5)
    np.testing.assert_allclose(out.rating, rating, atol=1e-5)
    assert out.unknown.tolist() == [1, 0, 0]
    assert out.click_probability[1].tolist() == [1, 0, 0] and out.rating[1, 1:].tolist() == [0, 0]
    assert (out.rating[0] >= 1).all() and (out.rating[0] <= 5).all()
    np.testing.assert_allclose(out.click_probability.sum(axis=1), 1, atol=1e-5)


def test_padding_and_the_place_of_a_candidate_do_not_matter(served):
    plain = rank(served, ["i5", "i6", "i30"])
    odd = rank(served, ["", "i30", "nope", "i5", "i6", ""], ["", "i3", "i4", ""], [NAN, 5, 1, 2])
    for name in ("click_probability", "rating"):
        one, other = vars(plain)[name][0], vars(odd)[name][0]
        np.testing.assert_allclose(other[[3, 4, 1]], one, atol=1e-5)
        assert other[[0, 2, 5]].tolist() == [0, 0, 0]
    assert odd.unknown.tolist() == [0]  # that of the history
    nothing = rank(served, ["nope", ""])
    assert not nothing.click_probability.any() and not nothing.rating.any()
    assert rank(served, []).click_probability.shape == (1, 0)
    nobody = np.zeros((0, 2), str)
    assert served("rank", history=nobody, ratings=np.zeros((0, 0)), items=nobody).rating.shape == (0, 2)


SCALE = RatingScale.of(np.arange(40), np.arange(40, dtype=np.float32) % 5, 40)
LABELS = Interests(np.array(["red", "toy"]), np.zeros(2, bool), np.arange(80).reshape(40, 2) % 3, np.ones((40, 2)))


def label_match():
    return LabelMatch(profile_of(LABELS), LabelHead(*np.random.default_rng(5).normal(size=(3, 2, 4)), np.zeros(2)))


def test_without_a_ranking_model_there_is_no_signature_and_without_ratings_no_rating():
    assert small_model().rank is None
    given = dict(zip(("history", "items"), map(tf.constant, ([["i3", "x"]], [["i5", "", "i7"]])), strict=True))
    answers = []
    for scale, labels in ((None, None), (SCALE, None), (SCALE, label_match())):
        ranking = []

        def untidy(hybrid, scale=scale, labels=labels, ranking=ranking):
            ranking.append(RankingModel(hybrid, RankingConfig(), scale, labels=labels))
            large = [20.0, 20, 50, 3, *([] if labels is None else [1, 1])]
            ranking[0].network.scale.assign(large)  # as training does: the terms are large
            ranking[0].network.log_weight.assign(np.log(0.05))
            generator = np.random.default_rng(0)
            for variable in ranking[0].network.trainable_variables:
                variable.assign(variable + 0.2 * generator.normal(size=variable.shape))
            return ranking[0]

        served = small_model(ranking=untidy)  # its functions need it to live
        answers.append(served.rank(ratings=tf.constant([[4.0]]), **given))
        expected = ranking[0].rank(
            ranking[0].item_vectors,
            {"history": tf.constant([[3]]), RATING_KEY: tf.constant([[4.0]])},
            tf.constant([[5, 40, 7]]),
        )
        np.testing.assert_allclose(answers[-1]["click_probability"], expected[0], atol=1e-4)
        assert 0.001 < answers[-1]["click_probability"][0, 0] < 0.999
        if scale is not None:
            np.testing.assert_allclose(answers[-1]["rating"], expected[1], atol=1e-4)
    assert set(answers[0]) == {"click_probability", "unknown"}
    assert set(answers[1]) == set(answers[2]) == {"click_probability", "unknown", "rating"}
    assert np.abs(answers[1]["click_probability"] - answers[2]["click_probability"]).max() > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("exact_items", [40, 10])
def test_no_call_makes_later_ones_copy_a_variable(exact_items, monkeypatch):
    monkeypatch.setattr(item_index, "EXACT_ITEMS", exact_items)
    ranking = []  # its functions need it to live

    def ranks(hybrid):
        ranking.append(RankingModel(hybrid, RankingConfig(), SCALE, labels=label_match()))
        return ranking[0]

    served = small_model(["|".join(KINDS[i % 4]) for i in range(40)], ranking=ranks, labels=LABELS)
    functions = served.signatures()
    assert {"recommend_full", "search", "similar", "explain", "score", "interests", "rank"} <= set(functions)
    for name, function in functions.items():
        graph = function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        assert "ReadVariableOp" in {node.op for node in nodes} or name == "encode"
        # These switch a variable, for as long as it lives, to being copied by whoever takes its value.
        assert not [node.name for node in nodes if node.op.startswith(("ResourceGather", "ResourceScatter"))], name


# Stages and rules -----------------------------------------------------------------------------------------------------


def ordering(hybrid, candidates=8, strengths=(1.0, 1.0)):
    """A ranking model that was not trained, and orders as it pleases."""
    made = RankingModel(hybrid, RankingConfig(candidates=candidates), SCALE)
    generator = np.random.default_rng(0)
    for variable in made.network.trainable_variables:
        variable.assign(variable + generator.normal(size=variable.shape))
    made.network.strengths.assign(strengths)
    return made


@pytest.fixture(scope="module")
def staged():
    """What is exported, of a shop with categories whose ranking model puts the best eight into another order."""
    alive = []  # the functions need the ranking model to live

    def ranking(hybrid):
        alive.append(ordering(hybrid))
        return alive[0]

    made = small_model(["|".join(KINDS[i % 4]) for i in range(40)], ranking=ranking, tail=np.arange(40) % 3 == 0)
    made.alive = alive
    return made


HISTORIES = [["i3", "i9"], ["i4", ""], ["", ""]]


@pytest.mark.slow
def test_recommend_ranks_its_best_items_unless_a_request_skips_that(staged):
    assert staged.ranked == 8
    asked = {"history": HISTORIES, "k": [12] * 3}
    short = answer(staged.recommend, history=HISTORIES, ratings=[[]] * 3, exclude=[[]] * 3, k=[12])
    full, plain = answer(staged.recommend_full, **asked), answer(staged.recommend_full, **asked, skip=[["ranking"]])
    assert full["item_ids"] == short["item_ids"] and full["unread"] == [0] * 3
    np.testing.assert_allclose(full["scores"], plain["scores"], rtol=1e-6)
    for row in range(3):
        best, ranked = plain["item_ids"][row], full["item_ids"][row]
        told = answer(staged.rank, history=HISTORIES[row : row + 1], ratings=[[]], items=[best[:8]])
        order = np.argsort(-np.array(told["click_probability"][0]), kind="stable")
        assert ranked == [best[i] for i in order] + best[8:]
        assert (ranked != best) == (row < 2)  # of nobody, nothing was learnt
    # What is served is what is measured.
    (ranking,) = staged.alive
    queries = Queries.from_histories([[3, 9], [4], []], exclude=[[3, 9], [4], []])
    measured = masked(Reranked(ranking.hybrid, ranking, 8).score(queries), queries)
    assert [[int(item[1:]) for item in row] for row in full["item_ids"]] == top_items(measured, 12).tolist()
    # Each row is as if alone; a short list has the best of the same eight.
    for k in range(1, 8):
        few = answer(staged.recommend_full, history=HISTORIES, k=[k])
        assert few["item_ids"] == [row[:k] for row in full["item_ids"]]
    mixed = answer(staged.recommend_full, history=HISTORIES, k=[3, 5, 0], skip=[["", "ranking"], ["", ""], ["", ""]])
    assert mixed["item_ids"][0] == plain["item_ids"][0][:3] + [b""] * 2
    assert mixed["item_ids"][1] == full["item_ids"][1][:5] and mixed["item_ids"][2] == [b""] * 5
    few = answer(staged.recommend_full, history=HISTORIES[:1], allow=[["i5", "i6", "i7"]], k=[5])
    assert set(few["item_ids"][0][:3]) == {b"i5", b"i6", b"i7"} and few["item_ids"][0][3:] == [b""] * 2
    nobody = np.zeros((0, 2), str)
    assert answer(staged.recommend, history=nobody, ratings=np.zeros((0, 0)), exclude=nobody, k=[])["item_ids"] == []


def test_items_of_the_history_come_back_if_a_request_skips_their_exclusion(staged):
    asked = {"history": HISTORIES, "k": [100] * 3, "exclude": [["i5"]] * 3}
    plain = answer(staged.recommend_full, **asked)
    again = answer(staged.recommend_full, **asked, skip=[["exclusion"], [""], ["exclusion"]])
    assert set(again["item_ids"][0]) - set(plain["item_ids"][0]) == {b"i3", b"i9"}
    assert again["item_ids"][1:] == plain["item_ids"][1:] and again["unread"] == [0] * 3
    assert b"i5" not in again["item_ids"][0]


def test_rules_apply_to_the_order_of_the_ranking_model(staged):
    asked = {"history": HISTORIES[:1], "k": [40]}
    ranked = [item for item in answer(staged.recommend_full, **asked)["item_ids"][0] if item]
    found = answer(staged.recommend_full, **asked, category_cap=[2], pinned=[["i30", "i9", "i31"]])["item_ids"][0]
    expected, counts = [b"i30", b"i31"], {"Comedy": 1, "Drama": 1}  # i9 is of the history; i31 has no category
    for item in ranked:
        kinds = KINDS[int(item[1:]) % 4]
        if item not in expected and all(counts.get(kind, 0) < 2 for kind in kinds):
            expected.append(item)
            counts |= {kind: counts.get(kind, 0) + 1 for kind in kinds}
    assert [item for item in found if item] == expected and len(expected) < 20  # ten have no category
    shared = answer(staged.recommend_full, **asked, tail_share=[0.5])["item_ids"][0][:10]
    assert [sum(int(item[1:]) % 3 == 0 for item in shared[:n]) >= n // 2 for n in range(1, 11)] == [True] * 10
    first_head = next(item for item in ranked if int(item[1:]) % 3)
    assert (
        first_head in shared and answer(staged.recommend_full, **asked, tail_share=[0])["item_ids"][0][0] == ranked[0]
    )
    # With a filter, a pinned item needs to pass, too.
    filtered = answer(staged.recommend_full, **asked, categories=[["Sci-Fi"]], pinned=[["i30", "i33"]])["item_ids"][0]
    assert filtered[0] == b"i33" and b"i30" not in filtered


@pytest.mark.slow
def test_without_a_click_head_recommend_is_the_same_graph():
    def nodes(ranking, signature):
        alive = []

        def made(hybrid):
            alive.append(ordering(hybrid, strengths=ranking))
            return alive[0]

        served = small_model(ranking=None if ranking is None else made)
        assert served.ranked == (8 if ranking == (1.0, 1.0) else 0)
        graph = getattr(served, signature).get_concrete_function().graph.as_graph_def()
        inner = sorted([node.op for node in function.node_def] for function in graph.library.function)
        return [node.op for node in graph.node], inner

    for signature in ("recommend", "recommend_full"):
        without = nodes(None, signature)
        assert nodes((0.0, 1.0), signature) == without
    assert len(nodes((1.0, 1.0), "recommend")[0]) > len(nodes(None, "recommend")[0])


# Labels ---------------------------------------------------------------------------------------------------------------


def labelled(**further):
    """What is exported, of a shop whose items are red (0, 3, 6, ...) or a toy (1, 4, 7, ...)."""
    columns = (np.arange(40) % 3)[:, np.newaxis]
    names = np.array(["red", "toy"], object)
    labels = Interests(names, np.ones(2, bool), columns, (columns < 2).astype(np.float32))
    return small_model(labels=labels, **further)


@pytest.mark.slow
@pytest.mark.parametrize("exact_items", [40, 10])
def test_items_rise_and_fall_with_the_labels_that_a_request_weighs(exact_items, monkeypatch):
    monkeypatch.setattr(item_index, "EXACT_ITEMS", exact_items)
    served = labelled()
    asked = {"history": HISTORIES, "k": [40] * 3}
    plain = answer(served.recommend_full, **asked)
    weights = [["red=1", "toy=-0.5"], ["red=-1", ""], ["toy=0.25", "red=0"]]
    moved = answer(served.recommend_full, **asked, label_weights=weights)
    every = np.array(answer(served.score, history=HISTORIES, ratings=[[]] * 3)["scores"])
    factors = [{0: 1, 1: -0.5}, {0: -1}, {1: 0.25}]
    for row in range(3):
        before, after = (dict(zip(out["item_ids"][row], out["scores"][row], strict=True)) for out in (plain, moved))
        assert before.keys() == after.keys()
        for item in filter(None, before):
            added = 2 * every[row].std() * factors[row].get(int(item[1:]) % 3, 0)
            assert after[item] - before[item] == pytest.approx(added, abs=1e-4)
        listed = [score for item, score in zip(moved["item_ids"][row], moved["scores"][row], strict=True) if item]
        assert listed == sorted(listed, reverse=True)
    nothing = answer(served.recommend_full, **asked, label_weights=[["red=0", "nope=1"], ["", ""], ["toy", "toy=0"]])
    assert nothing["item_ids"] == plain["item_ids"] and nothing["scores"] == plain["scores"]
    assert nothing["unread"] == [1, 0, 1] and moved["unread"] == plain["unread"] == [0] * 3


@pytest.mark.slow
def test_labels_move_items_within_the_order_of_the_ranking_model():
    alive = []

    def ranking(hybrid):
        alive.append(ordering(hybrid, strengths=(0.001, 1.0)))
        alive[0].network.log_weight.assign(np.log(0.05))
        return alive[0]

    served = labelled(ranking=ranking)
    # As many as are ranked: labels do not choose among them.
    few = ["i5", "i6", "i7", "i10", "i12", "i13", "i15", "i17"]
    asked = {"history": HISTORIES[:1], "k": [8]}
    weights = [["red=-0.3", "toy=0.3"]]
    moved = answer(served.recommend_full, **asked, allow=[few], label_weights=weights)["item_ids"][0]
    told = answer(served.rank, history=HISTORIES[:1], ratings=[[]], items=[few])["click_probability"][0]
    logits, kinds = np.log(told), np.array([int(item[1:]) % 3 for item in few])
    added = 2 * logits.std() * np.array([-0.3, 0.3, 0.0])[kinds]
    assert [item.decode() for item in moved] == [few[i] for i in np.argsort(-(logits + added), kind="stable")]
    plain = answer(served.recommend_full, **asked, allow=[few])["item_ids"][0]
    assert [item.decode() for item in plain] == [few[i] for i in np.argsort(-logits, kind="stable")] and plain != moved
    short = answer(served.recommend, **asked, ratings=[[]], exclude=[[]])["item_ids"]
    assert answer(served.recommend_full, **asked, label_weights=[["red=0"]])["item_ids"] == short


def learned_labels(mixture=(0.2, 0.5, 0.3)):
    rng = np.random.default_rng(2)
    tables = [rng.normal(size=(2, 3)).astype(np.float32) for _ in range(3)]
    names = np.array(["toy", "red"], object)  # in an order of its own
    return LabelForecast(names, *tables, np.float32([0.5, -0.5]), np.float32(mixture), 0.7, 0.6, 10.0)


def made_with_graph():
    """Ten items in a model of twelve: 0, 1 and 2 are of one author, and 0 cites 3."""
    from tfllmrec.data.graph import ItemGraph, Relation, shared_values

    cites = Relation("cites", "link", np.array([0], np.int32), np.array([3], np.int32), np.array([0.5], np.float32))
    graph = ItemGraph(10, (shared_values("author", ["x", "x", "x"] + [""] * 7, 5), cites))
    return labelled(graph=graph)


@pytest.fixture(scope="module")
def with_graph():
    return made_with_graph()


def test_related_lists_neighbours_and_what_joins_them(with_graph):
    out = answer(with_graph.related, item_id=["i0", "i3", "i9", "i39", "nobody"], k=[2, 3, 1, 2, 3])
    assert "related" in with_graph.signatures()
    assert [[item.decode() for item in row] for row in out["item_ids"]] == [
        ["i1", "i2", ""], ["i0", "", ""], ["", "", ""], ["", "", ""], ["", "", ""],
    ]  # fmt: skip
    assert [[word.decode() for word in row] for row in out["reasons"]][:2] == [
        ["same author", "same author", ""], ["cites", "", ""],
    ]  # fmt: skip
    np.testing.assert_allclose(out["scores"][:2], [[1, 1, 0], [0.5, 0, 0]])
    assert list(out["unknown"]) == [0, 0, 0, 0, 1]


def test_related_is_no_wider_than_the_catalogue_whatever_is_asked(with_graph):
    out = with_graph.related(tf.constant(["i0", "i3"]), tf.constant([2**31 - 1, -5]))
    assert out["item_ids"].shape == out["reasons"].shape == (2, with_graph.n_items)
    assert out["item_ids"].numpy()[:, :2].tolist() == [[b"i1", b"i2"], [b"", b""]]


def test_related_obeys_business_rules(tmp_path):
    served, file = made_with_graph(), tmp_path / "rules.bin"
    file.write_bytes(NO_RULES)
    served.business_rules.file = tf.saved_model.Asset(str(file))
    asked = tf.constant(["i0", "i3"]), tf.constant([2, 2])
    assert served.related(*asked)["item_ids"].numpy().tolist() == [[b"i1", b"i2"], [b"i0", b""]]
    ids = [item.decode() for item in served.item_ids.numpy()[:-1]]
    file.write_bytes(packed(digest_of_ids(ids), bytes(32), {"hidden": np.isin(ids, ["i1", "i0"])}))
    out = served.related(*asked)
    assert out["item_ids"].numpy().tolist() == [[b"i2", b"i3"], [b"", b""]]
    assert out["reasons"].numpy().tolist() == [[b"same author", b"cites"], [b"", b""]]


def test_related_of_no_rows_is_empty(with_graph):
    out = with_graph.related(tf.constant([], tf.string), tf.constant([], tf.int32))
    assert out["item_ids"].shape == (0, 0)


def test_without_a_graph_there_is_no_related():
    assert "related" not in labelled().signatures()


def test_the_labels_of_items_are_stored_once():
    served = labelled()
    assert served.label_weights.columns is served.forecast.profile.columns


def test_learned_interests_are_served_as_they_were_measured():
    made = learned_labels()
    served = labelled(forecast=made)
    columns = (np.arange(40) % 3)[:, np.newaxis]
    found = Interests(np.array(["red", "toy"], object), np.ones(2, bool), columns, (columns < 2).astype(np.float32))
    history = Queries.from_histories([[3, 9], [4], []])
    out = answer(served.interests, history=HISTORIES, ratings=[[]] * 3, k=[2] * 3)
    scores = np.array(answer(served.score, history=HISTORIES, ratings=[[]] * 3)["scores"])

    class Scores:
        n_items = 40

        def score(self, queries):
            return scores[: len(queries)].astype(np.float32)

    items, best = recommended_items(Scores(), history)
    lists = listed(found, made, history, items, best, 2)
    names = ["red", "toy", ""]
    assert [[label.decode() for label in row] for row in out["labels"]] == [[names[c] for c in row] for row in lists]
    assert np.sum(out["weights"], axis=1) == pytest.approx([1, 1, 0])
    assert out["levels"] == [[b"broad"] * 2] * 2 + [[b""] * 2] and out["trends"][2] == [b""] * 2
    # Only red items are in the first history, only a toy in the second.
    assert [dict(zip(out["labels"][row], out["because"][row], strict=True)) for row in range(2)] == [
        {b"red": b"i9", b"toy": b""}, {b"red": b"", b"toy": b"i4"}
    ]  # fmt: skip
    assert [dict(zip(out["labels"][row], out["trends"][row], strict=True)) for row in range(2)] == [
        {b"red": b"steady", b"toy": b""}, {b"red": b"", b"toy": b"steady"}
    ]  # fmt: skip
    plain = labelled()  # its functions need it to live
    counted = answer(plain.interests, history=HISTORIES, ratings=[[]] * 3, k=[2] * 3)
    assert counted["labels"] == [[b"red", b""], [b"toy", b""], [b"", b""]]
    # A batch is its rows.
    alone = answer(served.interests, history=[["i4", "nope"]], ratings=[[]], k=[2])
    assert alone["labels"] == out["labels"][1:2] and alone["unknown"] == [1]
    assert alone["weights"][0] == pytest.approx(out["weights"][1], rel=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_learned_interests_take_only_operations_of_tensorflow(tmp_path):
    served = labelled(forecast=learned_labels())
    tf.saved_model.save(served, str(tmp_path / "1"), signatures={"interests": served.interests})
    ours = in_a_fresh_process(OPS_SCRIPT, tmp_path / "1")[str(tmp_path / "1")]
    assert ours["foreign"] == [] and ours["core"] > 20
    loaded = tf.saved_model.load(str(tmp_path / "1")).signatures["interests"]
    asked = {"history": [["i3", "i9"]], "ratings": [[5.0, 1.0]], "k": [2]}
    before = answer(served.interests, **asked)
    after = answer(loaded, **asked)
    assert before["labels"] == after["labels"] and before["weights"] == after["weights"]


@pytest.mark.long
@pytest.mark.slow
def test_where_use_again_is_the_task_the_history_may_come_back():
    again, once = small_model(repeats=True), small_model()
    asked = {"history": [["i3", "i9"]], "exclude": [["i12", "i9"]], "k": [40]}
    for signature in ("recommend", "recommend_full"):
        further = {"ratings": [[]]} if signature == "recommend" else {"pinned": [["i3"]]}
        items = answer(getattr(again, signature), **asked, **further)["item_ids"][0]
        assert b"i3" in items and not {b"i12", b"i9"} & set(items)
        assert b"i3" not in answer(getattr(once, signature), **asked, **further)["item_ids"][0]
    assert items[0] == b"i3"  # it may be pinned, too
    found = [answer(served.similar, item_id=["i3"], k=[5])["item_ids"] for served in (again, once)]
    assert found[0] == found[1] and b"i3" not in found[0][0]


# What stock TF Serving can load ---------------------------------------------------------------------------------------

OPS_SCRIPT = """
import json, sys
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

found = {}
for folder in sys.argv[1:]:
    model = saved_model_pb2.SavedModel()
    with open(folder + "/saved_model.pb", "rb") as file:
        model.ParseFromString(file.read())
    found[folder] = set()
    for graph in (meta.graph_def for meta in model.meta_graphs):
        found[folder] |= {node.op for node in graph.node}
        found[folder] |= {node.op for function in graph.library.function for node in function.node_def}
        found[folder] -= {function.signature.name for function in graph.library.function}
core = {op for ops in found.values() for op in ops if op_def_registry.get(op)}
import tensorflow_text
text = {op for ops in found.values() for op in ops if op_def_registry.get(op)} - core
# Core by name, yet they call into the Python process that wrote them.
python = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
print(json.dumps({
    folder: {"foreign": sorted(ops - core - text | ops & python), "text": sorted(ops & text), "core": len(ops & core)}
    for folder, ops in found.items()
}))
"""


def in_a_fresh_process(script, *arguments):
    """Runs a script that sees TensorFlow, TF Text and nothing of this project."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")}
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_only_operations_of_tensorflow_and_tf_text(chain_version, tmp_path):
    class Foreign(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
        def __call__(self, x):
            return tf.numpy_function(lambda value: value + 1, [x], tf.float32)

    tf.saved_model.save(Foreign(), str(tmp_path / "foreign"))
    told = in_a_fresh_process(OPS_SCRIPT, chain_version, tmp_path / "foreign")
    ours = told[str(chain_version)]
    assert ours["foreign"] == []
    assert ours["text"]  # the tokenizer is inside
    assert ours["core"] > 50
    assert told[str(tmp_path / "foreign")]["foreign"] in (["PyFunc"], ["EagerPyFunc"], ["PyFuncStateless"])


@pytest.mark.long
@pytest.mark.slow
def test_only_operations_of_tensorflow_and_tf_text_where_the_tokenizer_is_sentencepiece(chinese_version):
    ours = in_a_fresh_process(OPS_SCRIPT, chinese_version)[str(chinese_version)]
    assert ours["foreign"] == []
    assert "SentencepieceTokenizeOp" in ours["text"]


SERVE_SCRIPT = """
import json, sys
import tensorflow as tf
import tensorflow_text

signatures = tf.saved_model.load(sys.argv[1]).signatures
types = {"ratings": tf.float32, "k": tf.int32}
answers = []
for name, inputs in json.loads(sys.argv[2]):
    out = signatures[name](**{key: tf.constant(value, types.get(key, tf.string)) for key, value in inputs.items()})
    answers.append({
        key: [[v.decode() if isinstance(v, bytes) else float(v) for v in row] for row in value.numpy().tolist()]
        for key, value in out.items() if value.shape.rank == 2
    })
rooms = {name.split(".")[0] for name in sys.modules}
assert not rooms & {"tfllmrec", "tensorflow_hub", "tensorflow_recommenders"}, rooms
print(json.dumps(answers))
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_fresh_process_answers_the_same(chain_version, served):
    nothing = {"event_fields": [[""]], "context": [[""]]}
    requests = [
        ("recommend", {"history": [["i3", "i4", "nope"]], "ratings": [[5.0, 1.0]], "exclude": [["i6"]], "k": [5]}),
        ("search", {"text": ["red toy"], "history": [[""]], "exclude": [[""]], "k": [5]}),
        ("similar", {"item_id": ["i8"], "k": [5]}),
        ("explain", {"history": [["i3", "i4"]], "ratings": [[5.0, 1.0]], "items": [["i5", "i6"]], **nothing}),
        ("rank", {"history": [["i3", "i4"]], "ratings": [[5.0, 1.0]], "items": [["i5", "i6", "nope"]], **nothing}),
    ]
    told = in_a_fresh_process(SERVE_SCRIPT, chain_version, json.dumps(requests))
    for answer, (name, inputs) in zip(told, requests, strict=True):
        here = vars(served(name, **inputs))
        for key, value in answer.items():
            if isinstance(value[0][0], str):
                assert value == here[key].tolist()
            else:
                np.testing.assert_allclose(value, here[key], atol=1e-5, rtol=1e-5)
