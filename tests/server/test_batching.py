import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfllmrec.client.status import Code, RequestError
from tfllmrec.server.batching import Batcher, Joining, split
from tfllmrec.server.tensors import STRING, Signature, TensorSpec
from tfllmrec.server.work import CALL_CELLS

INT, FLOAT = np.dtype(np.int32), np.dtype(np.float32)
RECOMMEND = Signature(
    {
        "history": TensorSpec(STRING, (None, None)),
        "ratings": TensorSpec(FLOAT, (None, None)),
        "k": TensorSpec(INT, (None,)),
    },
    {"ids": TensorSpec(STRING, (None, None)), "mean": TensorSpec(FLOAT, (None,))},
)
OURS = Joining(RECOMMEND, ours=True)
PLAIN = Joining(Signature({"x": TensorSpec(FLOAT, (None, 2))}, {"y": TensorSpec(FLOAT, (None,))}), ours=False)


def request(*rows, k=3):
    """Rows of (ids, ratings), padded as a client would."""
    width = max(len(ids) for ids, _ in rows)
    marks = max(len(ratings) for _, ratings in rows)
    history = np.full((len(rows), width), b"", object)
    ratings = np.full((len(rows), marks), np.nan, np.float32)
    for row, (ids, values) in enumerate(rows):
        history[row, : len(ids)] = ids
        ratings[row, : len(values)] = values
    return {"history": history, "ratings": ratings, "k": np.full(len(rows), k, np.int32)}


def recommend(inputs):
    """The first k ids in reverse, and the mean rating: padding is ignored, and the answer is as wide as k."""
    width = int(inputs["k"].max())
    ids = np.full((len(inputs["k"]), width), b"", object)
    for row, (history, k) in enumerate(zip(inputs["history"], inputs["k"], strict=True)):
        some = [item for item in history if item][::-1][:k]
        ids[row, : len(some)] = some
    marks = inputs["ratings"]
    known = (~np.isnan(marks)).sum(axis=1)
    return {"ids": ids, "mean": np.nansum(marks, axis=1) / np.maximum(known, 1)}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].shape == other[name].shape
        np.testing.assert_array_equal(one[name], other[name])


ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=40), st.lists(st.integers(1, 5).map(float), max_size=4)
    ),
    min_size=1,
    max_size=3,
)


@given(st.lists(st.tuples(ROWS, st.integers(1, 4)), min_size=1, max_size=6))
def test_whatever_is_joined_is_answered_as_if_alone(asked):
    requests = [request(*rows, k=k) for rows, k in asked]
    groups = {}
    for one in requests:
        groups.setdefault(OURS.key(one), []).append(one)
    for group in groups.values():
        joined = recommend(OURS.join(group))
        for one, answer in zip(group, split(joined, [len(one["k"]) for one in group]), strict=True):
            same(answer, recommend(one))


def test_rows_are_filled_up_with_nothing():
    joined = OURS.join([request(([b"a"], [])), request(([b"b", b"c"], [5.0, 1.0]))])
    assert joined["history"].tolist() == [[b"a", b""], [b"b", b"c"]]
    np.testing.assert_array_equal(joined["ratings"], np.array([[np.nan, np.nan], [5, 1]], np.float32))
    assert joined["history"].dtype == STRING and joined["ratings"].dtype == FLOAT
    filters = [
        {"allow": np.array([row], object), "categories": np.array([row[:1]], object)} for row in ([b"a", b"b"], [b"c"])
    ]
    assert OURS.key(filters[0]) == OURS.key(filters[1])
    assert OURS.join(filters)["allow"].tolist() == [[b"a", b"b"], [b"c", b""]]


def test_what_may_be_joined():
    short, shorter = request(([b"a"] * 12, [])), request(([b"a"], [1.0]))
    assert OURS.key(short) == OURS.key(shorter)
    assert OURS.key(short) != OURS.key(request(([b"a"] * 500, [])))  # nobody computes another's 500
    assert OURS.key(short) != OURS.key(request(([b"a"], []), k=4))  # the answer is as wide as the largest k
    assert OURS.key({**short, "k": np.zeros(2, np.int32)}) is None  # one k for several rows, or the other way
    assert OURS.key({name: value[:0] for name, value in short.items()}) is None
    # Of others only what has the same shape, and only where the answer's width is fixed.
    assert PLAIN.key({"x": np.zeros((1, 2))}) == PLAIN.key({"x": np.zeros((5, 2))}) is not None
    assert Joining(RECOMMEND, ours=False).key(short) is None
    for shape in ((), (3, 2), None):
        assert Joining(Signature({"x": TensorSpec(FLOAT, shape)}, {}), True).key({"x": np.zeros((3, 2))}) is None
        assert Joining(Signature({}, {"y": TensorSpec(FLOAT, shape)}), True).key({"x": np.zeros((3, 2))}) is None
    wide = Joining(Signature({"x": TensorSpec(FLOAT, (None, None))}, {"y": TensorSpec(FLOAT, (None,))}), ours=False)
    assert wide.key({"x": np.zeros((1, 2))}) != wide.key({"x": np.zeros((1, 3))})


def test_tokens_may_differ_where_k_is_the_same():
    tokens = TensorSpec(INT, (None, None))
    search = Joining(
        Signature({"input_word_ids": tokens, "k": TensorSpec(INT, (None,))}, {"ids": TensorSpec(STRING, (None, None))}),
        ours=True,
    )

    def key(*ids, k=5):
        return search.key({"input_word_ids": np.array([ids], np.int32), "k": np.array([k], np.int32)})

    assert key(101, 7, 102) == key(101, 2000, 102)
    assert key(101, 7, 102) != key(101, 7, 102, k=6)
    assert key(101, 7, 102) != key(101, 102)


class Model:
    """Doubles; may be held up, and keeps the sizes of the batches that it got."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, inputs):
        self.batches.append(len(inputs["x"]))
        assert self.go.wait(10)
        if np.isnan(inputs["x"]).any():
            raise RequestError(Code.INVALID_ARGUMENT, "a NaN")
        return {"y": 2 * inputs["x"][:, 0]}


def ask(batcher, model, *values):
    return batcher("m", model, PLAIN, {"x": np.array([[value, 0] for value in values], np.float32)})


def run(test, **settings):
    async def main():
        batcher = Batcher(**{"workers": 1, "max_rows": 8, "wait_s": 0.0, "max_waiting": 100, **settings})
        try:
            return await asyncio.wait_for(test(batcher), 10)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def ticks(count=5):
    for _ in range(count):
        await asyncio.sleep(0.005)


def test_requests_join_while_the_worker_is_busy():
    model, sizes = Model(), []

    async def test(batcher):
        model.go.clear()
        first = asyncio.ensure_future(ask(batcher, model, 0))
        await ticks()
        rest = [asyncio.ensure_future(ask(batcher, model, *range(i, i + 2))) for i in range(1, 6)]
        await ticks()
        assert batcher.waiting == 5
        model.go.set()
        answers = await asyncio.gather(first, *rest)
        assert [answer["y"].tolist() for answer in answers] == [[0]] + [[2.0 * i, 2.0 * i + 2] for i in range(1, 6)]
        assert batcher.waiting == 0

    run(test, on_batch=sizes.append)
    # 4 of two rows are 8, which is all that may be joined; the fifth goes by itself.
    assert (model.batches, sizes) == ([1, 8, 2], [1, 4, 1])


def test_a_batch_has_no_more_rows_than_allowed_but_a_request_may():
    model = Model()

    async def test(batcher):
        model.go.clear()
        asked = [asyncio.ensure_future(ask(batcher, model, *range(rows))) for rows in (1, 3, 3, 3, 20)]
        await ticks()
        model.go.set()
        assert [len(answer["y"]) for answer in await asyncio.gather(*asked)] == [1, 3, 3, 3, 20]

    run(test)
    assert model.batches == [1, 6, 3, 20]


def test_a_batch_takes_no_more_cells_than_a_call_may():
    """Each row is as wide as the widest, so the widest of both counts for all."""
    model = Model()

    async def test(batcher):
        def ask(rows, cells):
            return batcher("m", model, PLAIN, {"x": np.zeros((rows, 2), np.float32)}, CALL_CELLS // cells)

        model.go.clear()
        asked = [asyncio.ensure_future(ask(*one)) for one in ((1, 9), (1, 9), (2, 9), (1, 3), (1, 3), (2, 3))]
        await ticks()
        model.go.set()
        await asyncio.gather(*asked)

    run(test)
    assert model.batches == [1, 3, 2, 2]


def test_an_idle_worker_waits_for_company_no_longer_than_told():
    model = Model()

    async def test(batcher):
        start = time.perf_counter()
        await asyncio.gather(*[ask(batcher, model, i) for i in range(3)])
        waited = time.perf_counter() - start
        await asyncio.gather(*[ask(batcher, model, i) for i in range(8)])  # full: need not wait
        return waited, time.perf_counter() - start - waited

    waited, full = run(test, wait_s=1.0)
    assert model.batches == [3, 8]
    assert waited >= 1.0 > full
    model.batches.clear()
    run(test)
    assert model.batches[0] == 1  # by default nobody waits for company that may not come


def test_signatures_and_models_are_not_mixed():
    model = Model()

    async def test(batcher):
        x = {"x": np.ones((1, 2), np.float32)}
        await asyncio.gather(
            batcher("a", model, PLAIN, x), batcher("b", model, PLAIN, x), batcher("a", model, PLAIN, x)
        )

    run(test, wait_s=0.05)
    assert sorted(model.batches) == [1, 2]


def test_a_full_queue_refuses_as_tf_serving_does():
    model = Model()

    async def test(batcher):
        model.go.clear()
        waiting = [asyncio.ensure_future(ask(batcher, model, 0))]
        await ticks()
        waiting += [asyncio.ensure_future(ask(batcher, model, i)) for i in range(2)]
        await ticks()
        with pytest.raises(RequestError, match=r"batch scheduling queue .* is full: 2 requests are waiting") as refused:
            await ask(batcher, model, 3)
        assert (refused.value.code, refused.value.http_status) == (Code.UNAVAILABLE, 503)
        model.go.set()
        await asyncio.gather(*waiting)
        await ask(batcher, model, 3)

    run(test, max_waiting=2)


def test_only_who_is_at_fault_is_told_so():
    model = Model()

    async def test(batcher):
        return await asyncio.gather(*[ask(batcher, model, v) for v in (1, np.nan, 3)], return_exceptions=True)

    one, bad, three = run(test, wait_s=0.05)
    assert one["y"].tolist() == [2] and three["y"].tolist() == [6]
    assert isinstance(bad, RequestError) and bad.message == "a NaN"
    assert model.batches == [3, 1, 1, 1]


def test_a_model_that_answers_by_other_rows_than_it_says_is_asked_one_by_one():
    async def test(batcher):
        total = lambda inputs: {"y": inputs["x"].sum(keepdims=True)[0]}  # noqa: E731
        return await asyncio.gather(*[ask(batcher, total, value) for value in (1, 2)])

    assert [answer["y"].tolist() for answer in run(test, wait_s=0.05)] == [[1], [2]]


def test_nobody_computes_for_a_client_that_is_gone():
    model = Model()

    async def test(batcher):
        model.go.clear()
        first = asyncio.ensure_future(ask(batcher, model, 0))
        await ticks()
        gone, stays = (asyncio.ensure_future(ask(batcher, model, i)) for i in (1, 2))
        await ticks()
        gone.cancel()
        first.cancel()  # runs already: its answer is thrown away
        await ticks()
        assert batcher.waiting == 1
        model.go.set()
        assert (await stays)["y"].tolist() == [4]
        assert batcher.waiting == 0

    run(test)
    assert model.batches == [1, 1]


def test_what_nobody_waits_for_is_not_kept_either():
    """Or clients that come and go while all workers are busy would fill the memory."""
    model = Model()
    kept = []

    async def test(batcher):
        model.go.clear()
        first = asyncio.ensure_future(ask(batcher, model, 0))
        await ticks()
        for joinable in (True, False):
            other = Model()
            kept.append(weakref.ref(other))
            rows = np.ones((int(joinable), 2), np.float32)  # of no rows nothing can be joined
            asked = asyncio.ensure_future(batcher("other", other, PLAIN, {"x": rows}))
            await ticks()
            assert batcher.waiting == 1
            asked.cancel()
            await asyncio.wait([asked])  # and not for its exception, which would keep its frames
            assert asked.cancelled()
            del asked, other
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
        stays = asyncio.ensure_future(ask(batcher, model, 3))
        await ticks()
        model.go.set()
        assert [answer["y"].tolist() for answer in await asyncio.gather(first, stays)] == [[0], [6]]

    run(test, wait_s=0.01)


def test_two_workers_work_at_once():
    both = threading.Barrier(2, timeout=5)

    def call(inputs):
        both.wait()
        return {"y": inputs["x"][:, 0]}

    async def test(batcher):
        x = {"x": np.ones((1, 2), np.float32)}
        await asyncio.gather(batcher("a", call, PLAIN, x), batcher("b", call, PLAIN, x))

    run(test, workers=2)


def test_what_is_left_out_has_a_row_for_each_row_of_the_others():
    defaults = {"ratings": np.zeros((1, 0), np.float32), "k": np.full(1, 10, np.int32)}
    signature = Signature(RECOMMEND.inputs, RECOMMEND.outputs, defaults)
    ours, plain = Joining(signature, ours=True), Joining(signature, ours=False)
    three = {"history": np.full((3, 2), b"a", object)}
    filled = ours.checked(three)
    assert filled["k"].tolist() == [10] * 3 and filled["ratings"].shape == (3, 0)
    assert ours.key(filled) == ours.key(filled | {"k": np.full(3, 10, np.int32)}) is not None
    assert ours.work(filled, 3).rows == 3
    assert plain.checked(three)["k"].tolist() == [10]  # as TF Serving does it
    one = ours.checked(three | {"k": np.full(1, 4, np.int32)})
    with pytest.raises(RequestError, match="k has 1 rows, history 3"):
        ours.work(one, 3)  # what is sent is not repeated
    assert len(ours.checked({"history": np.empty((0, 2), object)})["k"]) == 0
