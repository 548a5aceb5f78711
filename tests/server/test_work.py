import numpy as np
import pytest

from tfllmrec.client.status import Code, RequestError
from tfllmrec.layers.interest_forecast import CANDIDATES
from tfllmrec.models.interests import PER_ITEM
from tfllmrec.server import work
from tfllmrec.server.batching import Joining
from tfllmrec.server.tensors import STRING, Signature, TensorSpec

INT, FLOAT = np.dtype(np.int32), np.dtype(np.float32)
MATRIX = TensorSpec(STRING, (None, None))
SPECS = dict.fromkeys(("history", "exclude", "allow", "categories", "context", "event_fields", "items"), MATRIX)
SPECS |= {"text": TensorSpec(STRING, (None,)), "item_id": TensorSpec(STRING, (None,))}
SPECS |= {"ratings": TensorSpec(FLOAT, (None, None)), "k": TensorSpec(INT, (None,))}
SPECS |= dict.fromkeys(("pinned", "skip", "label_weights"), MATRIX)
SPECS |= dict.fromkeys(("category_cap", "reasons"), TensorSpec(INT, (None,)))
RULES = ("diversity", "category_cap", "tail_share", "reasons")
SPECS |= dict.fromkeys(("diversity", "tail_share"), TensorSpec(FLOAT, (None,)))
TOKENS = ("input_word_ids", "input_mask", "input_type_ids")
SPECS |= dict.fromkeys(TOKENS, TensorSpec(INT, (None, None)))
SIGNATURES = {
    "recommend": ("history ratings exclude k", {"item_ids": MATRIX}),
    "recommend_full": (
        "history ratings event_fields context exclude allow categories k diversity pinned category_cap tail_share skip "
        "label_weights reasons",
        {"item_ids": MATRIX},
    ),
    "search": ("text history exclude k", {"item_ids": MATRIX}),
    "search_tokens": ("input_word_ids input_mask input_type_ids history exclude k", {"item_ids": MATRIX}),
    "similar": ("item_id k", {"item_ids": MATRIX}),
    "encode": ("text", {"vectors": TensorSpec(FLOAT, (None, 384))}),
    "explain": ("history ratings items", {"meaning": TensorSpec(FLOAT, (None, None))}),
    "interests": ("history ratings k", {"labels": MATRIX}),
    "score": ("history ratings", {"scores": TensorSpec(FLOAT, (None, None))}),
}
CATALOGUE = 12_000


def joining(name, ours=True, ranked=0):
    inputs, outputs = SIGNATURES[name]
    return Joining(Signature({i: SPECS[i] for i in inputs.split()}, outputs), ours, CATALOGUE, ranked)


def asked(name, rows=1, k=10, **columns):
    """Inputs without memory; ``columns`` of those that are not one wide."""
    made = {}
    for key in SIGNATURES[name][0].split():
        shape = (rows, columns.get(key, 1))[: len(SPECS[key].shape)]
        made[key] = np.broadcast_to(
            np.asarray(b"" if SPECS[key].dtype == STRING else k * (key not in RULES), SPECS[key].dtype), shape
        )
    return made


def refusal(name, inputs, ours=True, max_rows=10_000):
    with pytest.raises(RequestError) as refused:
        joining(name, ours).work(inputs, max_rows)
    assert refused.value.code is Code.INVALID_ARGUMENT
    return refused.value.message


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("score", asked("score", 5_000_000, history=0, ratings=0), "has 5000000 rows; expected 10000 at most"),
        ("encode", asked("encode", 100_000), "has 100000 rows; expected 10000 at most"),
        ("recommend", asked("recommend", 100_000), "has 100000 rows; expected 10000 at most"),
        ("search_tokens", asked("search_tokens", 8000, **dict.fromkeys(TOKENS, 512)),
         "expected 268435456 at most: send fewer rows or columns"),
        ("explain", asked("explain", items=1_000_000), "A row of the request takes"),
        ("explain", asked("explain", 200, history=1000, ratings=1000, items=1000), "The request takes"),
        ("encode", asked("encode", 9000), "The request takes 1179648000 cells"),
        ("score", asked("score", 400), "The answer would have 4800000 values in one output: 400 rows of 12000"),
        ("recommend", asked("recommend", 400, k=10**9), "The answer would have 4800000 values"),
        ("recommend_full", asked("recommend_full", categories=2000), "A row of the request takes 24"),
        ("recommend_full", asked("recommend_full", context=1_000_000), "A row of the request takes 32"),
        ("recommend_full", asked("recommend_full", history=50_000, event_fields=50_000), "A row of the request takes"),
        ("recommend", asked("recommend", exclude=5_000_000), "A row of the request takes 400"),
    ],
)  # fmt: skip
def test_a_request_that_asks_for_too_much_is_told_the_limit(name, inputs, said):
    assert said in refusal(name, inputs)


@pytest.mark.parametrize(
    "inputs",
    [
        asked("recommend", 10_000, history=50, ratings=50),
        asked("recommend_full", 5000, history=40, event_fields=40, context=20),
        asked("recommend_full", 64, history=1000, categories=20, allow=1000),
        asked("score", 300, history=200),
        asked("encode", 2000),
        asked("search", 500),
        asked("explain", history=1000, items=1000),
        asked("search_tokens", 64, **dict.fromkeys(TOKENS, 512)),
        asked("similar", 5000, k=100),
    ],
)
def test_large_requests_of_use_are_allowed(inputs):
    name = next(name for name, (keys, _) in SIGNATURES.items() if set(keys.split()) == inputs.keys())
    made = joining(name).work(inputs, 10_000)
    assert 1 <= made.call_rows <= work.CALL_ROWS
    assert made.call_rows * made.row_cells <= work.CALL_CELLS


def test_rules_are_more_work_and_a_plain_list_is_not():
    def cells(columns=(), **rules):
        return joining("recommend_full").work(asked("recommend_full", **dict(columns)) | rules, 10).row_cells

    plain = cells()
    assert cells(diversity=np.float32([0]), category_cap=np.int32([0])) == plain
    assert cells(diversity=np.float32([0.5])) - plain == work._DIVERSE
    assert cells(category_cap=np.int32([3])) - plain == work._RULED
    assert cells(tail_share=np.float32([0.1]), category_cap=np.int32([3])) - plain == work._RULED
    assert cells(reasons=np.int32([0])) == plain
    assert cells(reasons=np.int32([500])) - cells(reasons=np.int32([0])) == 100 * (work._CANDIDATE + 5)
    # Clients send a column of padding; the items of the catalogue are looked at twice where any are pinned.
    pinned = work._RULED + 4 * (work._ID + work._PINNED + 4) + CATALOGUE * 2
    assert cells({"pinned": 5}.items()) - plain == pinned
    assert "A row of the request takes" in refusal("recommend_full", asked("recommend_full", pinned=20_000))
    assert cells({"label_weights": 4}.items()) - plain == 3 * work._ID + 3 * CATALOGUE
    assert "A row of the request takes" in refusal("recommend_full", asked("recommend_full", label_weights=2000))
    # Whoever sends no padding weighs as many labels as there are columns.
    assert cells(label_weights=np.array([[b"Sci-Fi=1"]], object)) - plain == CATALOGUE
    assert work._weighed(np.array([[b"", b"a=1"], [b"b=1", b""]], object)) == 2
    assert work._weighed(np.array([[b"", b"a=1"], [b"", b""]], object)) == 1
    assert cells(label_weights=np.zeros((1, 0), object)) == plain - work._ID


def test_labels_of_candidates_are_work():
    labels = {"label_weights": 4}
    some, none = (
        [joining("recommend_full", ranked=n).work(asked("recommend_full", **one), 10).row_cells for n in (0, 100)]
        for one in (labels, {})
    )
    assert (some[1] - some[0]) - (none[1] - none[0]) == 12 * 100 * 3
    interests, listed = (joining(name).work(asked(name), 10).row_cells for name in ("interests", "recommend"))
    assert interests - (listed - work._ID) == 12 * 200
    assert (work._LABELS, work._RECOMMENDED) == (PER_ITEM, CANDIDATES)


def test_ranking_within_recommend_is_as_much_work_as_of_as_many_candidates():
    inputs = asked("recommend", history=40)
    plain, ranked = (joining("recommend", ranked=n).work(inputs, 10).row_cells for n in (0, 100))
    candidates = [joining("explain").work(asked("explain", history=40, items=n), 10).row_cells for n in (1, 101)]
    assert ranked - plain == candidates[1] - candidates[0] - work._ID * 100
    assert joining("recommend", ranked=10**9).work(inputs, 10).row_cells - plain == (work._CANDIDATE + 40) * CATALOGUE


def test_of_other_models_only_the_rows_are_limited():
    inputs = asked("explain", items=1_000_000)
    assert joining("explain", ours=False).work(inputs, 1) == work.Work(1)
    assert joining("explain", ours=False).work(inputs, 1).call_rows == 1
    assert "has 2 rows; expected 1 at most" in refusal("encode", asked("encode", 2), ours=False, max_rows=1)
    x = {"x": np.zeros((500, 2))}
    for shape, rows in (((None, 2), 500), (None, 500), ((500, 2), 1)):
        assert work.work_of(Signature({"x": TensorSpec(FLOAT, shape)}, {}), x, None).rows == rows
    assert work.work_of(Signature({"x": TensorSpec(FLOAT, ())}, {}), {"x": np.zeros(())}, None).rows == 1


def test_inputs_that_do_not_fit_together_are_named():
    uneven = asked("recommend", 2) | {"k": np.ones(1, np.int32)}
    assert refusal("recommend", uneven).startswith("k has 1 rows, history 2: expected one row for each query")
    similar = {"item_id": np.array([b"a", b"b"], object), "k": np.ones(3, np.int32)}
    assert refusal("similar", similar).startswith("k has 3 rows, item_id 2")
    assert refusal("recommend", asked("recommend", history=3, ratings=4)).startswith("ratings has 4 columns, history 3")
    wide = asked("recommend_full", history=3, event_fields=4)
    assert refusal("recommend_full", wide).startswith(
        "event_fields has 4 columns, history 3: expected at most one text"
    )
    assert joining("recommend", ours=False).work(uneven, 2).rows == 2


TEXTS = work.TextFields(["event.note", "event.wish", "request.wish", "user.about"], newest=3)


def cells_with_texts(texts=TEXTS, **inputs):
    inputs_, outputs = SIGNATURES["recommend_full"]
    signature = Signature({i: SPECS[i] for i in inputs_.split()}, outputs)
    made = {name: np.array(rows, object) if isinstance(rows, list) else rows for name, rows in inputs.items()}
    return work.work_of(signature, made, CATALOGUE, texts=texts).row_cells


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        ({"event_fields": [[b"kind=x", b""], [b"kind=y", b""]]}, 0),
        ({"event_fields": [[b"note=a b", b"kind=x\n note =c"], [b"note=d", b""]]}, 2),  # in the row that has most
        ({"event_fields": [[b"note=a\nwish=b", b""]]}, 2),
        ({"event_fields": [[b"note=a"] * 9]}, 2 * 3),  # only those of the newest events are encoded
        ({"context": [[b"about=a", b"hour=3"]]}, 1),
        ({"context": [[b"about=a", b"about=b", b"about=c", b"wish=d"]]}, 2),  # of each field the last one counts
        ({"event_fields": np.broadcast_to(np.array(b"note=a", object), (2, 4))}, 4),  # one value stands for all
        ({"event_fields": np.broadcast_to(np.zeros((), object), (2, 10**6))}, 0),  # declared, without values
        ({"event_fields": np.empty((2, 0), object), "context": np.empty((0, 3), object)}, 0),
    ],
)
def test_texts_among_the_fields_count_as_texts(inputs, texts):
    plain = cells_with_texts(work.TextFields(), **inputs)
    assert cells_with_texts(**inputs) - plain == texts * work._TEXT


@pytest.mark.parametrize(
    ("inputs", "vectors"),
    [
        ({"history": [[b"i"]], "context": [[b""]]}, 2 * 2 + 2),  # an event, and the empty column that the model adds
        ({"history": np.broadcast_to(np.array(b"i", object), (1, 1_900_000)), "context": [[b""]]}, 2 * 3 + 2),
        ({"history": [[b"i"]]}, 0),  # of signatures without fields
        ({"context": [[b""]]}, 2 * 1 + 2),
    ],
)
def test_vectors_of_texts_are_work_with_and_without_texts(inputs, vectors):
    fields, newest = TEXTS.fields, TEXTS.newest
    wide, narrow = (cells_with_texts(work.TextFields(fields, newest, width), **inputs) for width in (100, 0))
    assert wide - narrow == work._NUMBER * 100 * vectors


def test_a_row_of_too_wide_vectors_is_refused():
    history = np.broadcast_to(np.array(b"i", object), (1, 1_900_000))
    inputs = {"history": history, "context": [[b""]]}
    few, many = (work.TextFields(["event.note"], 1000, width) for width in (100, 1000))
    assert cells_with_texts(few, **inputs) < work.CALL_CELLS < cells_with_texts(many, **inputs)


def test_a_row_of_too_many_texts_is_refused():
    few, many = (work.TextFields(["event.note"], newest) for newest in (50, 200))
    inputs = {"history": [[b"i"] * 200], "event_fields": [[b"note=a"] * 200]}
    assert cells_with_texts(few, **inputs) < work.CALL_CELLS < cells_with_texts(many, **inputs)
