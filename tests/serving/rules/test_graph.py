"""Rules in the graph, against slow versions in Python that read the rules file by themselves."""

import gzip
import threading

import numpy as np
import pytest
import tensorflow as tf
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_versions import DAY, NOW, made_catalogue

from tfllmrec.layers.item_cells import partition
from tfllmrec.layers.item_index import ItemIndex
from tfllmrec.serving.rules.compiled import NO_RULES
from tfllmrec.serving.rules.compiler import Decisions, compile_rules
from tfllmrec.serving.rules.document import parse_rules
from tfllmrec.serving.rules.graph import BusinessRules

pytestmark = pytest.mark.tf
N, D = 30, 4
VECTORS = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)
CATALOGUE = made_catalogue(N)
IDS = CATALOGUE.ids


class Served:
    """Lists over the catalogue, and the file of rules that they obey."""

    def __init__(self, folder, cells=None):
        self.path = folder / "rules.bin"
        self.path.write_bytes(NO_RULES)
        index = ItemIndex(VECTORS, cells)
        rules = BusinessRules(IDS)
        rules.file = tf.saved_model.Asset(str(self.path))

        def lists(query, exclude, context, k):
            ruled = rules(tf.shape(query)[0], context)
            request = {"query": query, "exclude": exclude, "banned": ruled.banned}
            items, scores = index.top_k(k=k, **request)
            return *rules.placed(items, scores, k, ruled, index, request), rules.without_banned(exclude, ruled)

        strings = tf.TensorSpec([None, None], tf.string)
        items = tf.TensorSpec([None, None], tf.int32)
        signature = [tf.TensorSpec([None, D]), items, strings, tf.TensorSpec([None], tf.int32)]
        self.lists = tf.function(lists, input_signature=signature, autograph=False)
        self.alive = index, rules

    def apply(self, document, **decisions):
        """Replaces the rules by a document, a dict; ``None``: by none."""
        content = NO_RULES
        if document is not None:
            content = compile_rules(
                parse_rules(yaml.safe_dump(document), "rules.yaml"), Decisions(**decisions), bytes(32), CATALOGUE
            ).content
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.path)

    def ask(self, queries, k, contexts=None, exclude=None):
        """A list of (id, score, whether it is sponsored) for each query."""
        rows = len(queries)
        contexts = [[]] * rows if contexts is None else contexts
        width = max(map(len, contexts))
        entries = np.full((rows, width), "", object)
        for row, context in enumerate(contexts):
            entries[row, : len(context)] = context
        exclude = np.full((rows, 1), N) if exclude is None else np.asarray(exclude)
        found = self.lists(
            tf.constant(np.asarray(queries, np.float32)), tf.constant(exclude, tf.int32),
            tf.constant(entries, tf.string), tf.constant(np.broadcast_to(k, rows), tf.int32),
        )  # fmt: skip
        lists = []
        for items, scores, sponsored in zip(*(each.numpy() for each in found[:3]), strict=True):
            there = items < N
            assert not there[int(there.sum()) :].any() and not scores[~there].any() and not sponsored[~there].any()
            listed = zip(items[there], scores[there], sponsored[there], strict=True)
            lists.append([(IDS[item], score, ad) for item, score, ad in listed])
        return lists


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def partitioned(tmp_path_factory):
    """The same through a partition of which the nearest cells are read first."""
    return Served(tmp_path_factory.mktemp("cells"), partition(VECTORS, VECTORS, 0))


# The slow versions ----------------------------------------------------------------------------------------------------


def fulfils(item, selector):
    """Whether an item is one of a rule's."""
    names, fields = CATALOGUE.items.categories[item], CATALOGUE.fields.loc[item]
    if "items" in selector and IDS[item] not in selector["items"]:
        return False
    if "categories" in selector and not set(names) & set(selector["categories"]):
        return False
    for name, condition in selector.get("where", {}).items():
        value = fields[name]
        if name == "brand":
            if value not in condition:
                return False
        elif not value > condition["above"]:
            return False
    return True


def may_be_shown(item, rules, context, stock=None, approved=()):
    """Whether the rules let an item through to a request, by what they say."""
    fields = CATALOGUE.fields.loc[item]
    now = float(context.get("now", NOW))
    if any(fulfils(item, rule) for rule in rules.get("block", [])):
        return False
    if rules.get("stock", {}).get(IDS[item], 1) <= 0:
        return False
    if "price" in rules and "max_price" in context and not fields.price <= float(context["max_price"]):
        return False
    for rule in rules.get("minimum_age", []):
        if fulfils(item, rule) and int(context.get("age", 0)) < rule["age"]:
            return False
    for rule in rules.get("regions", []):
        region = context.get("region", "").upper()
        permitted = region in rule["only"] if "only" in rule else region not in ["", *rule["except"]]
        if fulfils(item, rule) and not permitted:
            return False
    for rule in rules.get("fresh", []):
        if fulfils(item, rule) and not fields.released <= now < fields.released + DAY * rule.get("days", np.inf):
            return False
    return not (any(fulfils(item, rule) for rule in rules.get("review", [])) and IDS[item] not in approved)


def by_hand(query, k, rules, context, exclude=(), approved=()):
    """One list: the items that may be shown in order of their scores, and sponsored ones at their places."""
    scores = VECTORS.astype(float) @ query
    may = [i for i in range(N) if may_be_shown(i, rules, context, approved=approved) and i not in exclude]
    ordered = sorted(may, key=lambda i: -scores[i])[:k]
    now, placements = float(context.get("now", NOW)), []
    sponsored = rules.get("sponsored", {"places": [], "share": 0})
    for one in sorted(sponsored["places"], key=lambda one: one["place"]):
        item = IDS.index(one["item"]) if one["item"] in IDS else None
        active = one.get("from", 0) <= now < one.get("until", np.inf)
        active &= all(context.get(name) == value for name, value in one.get("context", {}).items())
        if active and item in may and one["place"] <= len(ordered) and item not in [i for i, _ in placements]:
            placements.append((item, one["place"]))
    at = {}
    for item, place in placements:
        at.setdefault(place, item)
    at = dict(list(at.items())[: int(sponsored["share"] * len(ordered) + 1e-9)])
    others = [item for item in ordered if item not in at.values()]
    found = []
    while len(found) < k and (others or len(found) + 1 in at):
        found.append((at[len(found) + 1], True) if len(found) + 1 in at else (others.pop(0), False))
    return [(IDS[item], scores[item], ad) for item, ad in found]


# Random catalogues, rules and requests --------------------------------------------------------------------------------

ITEM = st.sampled_from(IDS)
SELECTOR = st.fixed_dictionaries(
    {},
    optional={
        "items": st.lists(ITEM, min_size=1, max_size=12, unique=True),
        "categories": st.lists(st.sampled_from(["wine", "toys", "news"]), min_size=1, max_size=2, unique=True),
        "where": st.one_of(
            st.builds(lambda b: {"brand": b}, st.lists(st.sampled_from(["Acme", "Best"]), min_size=1, unique=True)),
            st.builds(lambda p: {"price": {"above": p}}, st.integers(1, 20)),
        ),
    },
).filter(bool)
REGION = st.lists(st.sampled_from(["DE", "AT", "US"]), min_size=1, max_size=2, unique=True)


def with_selector(**keys):
    return st.builds(lambda selector, more: selector | more, SELECTOR, st.fixed_dictionaries(keys))


TIME = st.integers(-3, 4).map(lambda days: NOW + DAY * days)
ASKED = st.fixed_dictionaries({}, optional={"device": st.just("phone"), "age": st.just("20")})
PLACEMENT = st.fixed_dictionaries(
    {"item": st.one_of(ITEM, st.just("gone")), "place": st.integers(1, 12)},
    optional={"from": TIME, "until": TIME, "context": ASKED},
).filter(lambda one: one.get("from", -np.inf) < one.get("until", np.inf))
RULES = st.fixed_dictionaries(
    {},
    optional={
        "block": st.lists(SELECTOR, min_size=1, max_size=3),
        "stock": st.dictionaries(ITEM, st.integers(-1, 2), max_size=8),
        "price": st.just("price"),
        "minimum_age": st.lists(with_selector(age=st.integers(1, 30)), min_size=1, max_size=2),
        "regions": st.lists(
            st.one_of(with_selector(only=REGION), with_selector(**{"except": REGION})), min_size=1, max_size=3
        ),
        "fresh": st.lists(
            st.one_of(with_selector(field=st.just("released")), st.fixed_dictionaries(
                {"field": st.just("released")}, optional={"days": st.integers(1, 50)},
            )), min_size=1, max_size=2,
        ),
        "sponsored": st.fixed_dictionaries(
            {"share": st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0]), "places": st.lists(PLACEMENT, min_size=1, max_size=6)}
        ),
        "review": st.lists(SELECTOR, min_size=1, max_size=2),
    },
).filter(bool)  # fmt: skip
CONTEXT = st.fixed_dictionaries(
    {"now": st.just(str(int(NOW)))},
    optional={
        "max_price": st.integers(1, 25).map(str),
        "age": st.integers(1, 30).map(str),
        "region": st.sampled_from(["DE", "at", "us", "FR"]),
        "device": st.sampled_from(["phone", "tv"]),
    },
)
REQUEST = st.tuples(
    st.integers(0, 1000), CONTEXT, st.lists(st.integers(0, N - 1), min_size=2, max_size=2), st.integers(0, 34)
)


def check(served, rules, requests, approved):
    served.apply(rules, stock=rules.get("stock", {}), approved=approved)
    queries = [np.random.default_rng(seed).normal(size=D) for seed, *_ in requests]
    contexts = [[f"{name}={value}" for name, value in context.items()] for _, context, *_ in requests]
    k = [most for *_, most in requests]
    found = served.ask(queries, k, contexts, [exclude for _, _, exclude, _ in requests])
    for listed, query, (_, context, exclude, most) in zip(found, queries, requests, strict=True):
        for item, _, _ in listed:
            assert may_be_shown(IDS.index(item), rules, context, approved=approved)
            assert IDS.index(item) not in exclude
        expected = by_hand(query, most, rules, context, exclude, approved)
        assert [(item, ad) for item, _, ad in listed] == [(item, ad) for item, _, ad in expected]
        np.testing.assert_allclose([s for _, s, _ in listed], [s for _, s, _ in expected], rtol=1e-3, atol=1e-4)


@settings(max_examples=60)
@given(rules=RULES, requests=st.lists(REQUEST, min_size=1, max_size=4), approved=st.lists(ITEM, max_size=5))
def test_no_rule_is_ever_violated_and_lists_are_those_of_the_slow_version(served, rules, requests, approved):
    check(served, rules, requests, approved)


@settings(max_examples=20)
@given(rules=RULES, requests=st.lists(REQUEST, min_size=1, max_size=2), approved=st.lists(ITEM, max_size=5))
def test_nor_by_a_partition(partitioned, rules, requests, approved):
    check(partitioned, rules, requests, approved)


# Planted cases --------------------------------------------------------------------------------------------------------

QUERY = [1.0, 0.5, -0.2, 0.1]


def ids(served, context=(), k=N):
    (listed,) = served.ask([QUERY], k, [[f"now={int(NOW)}", *context]])
    return [item for item, *_ in listed]


def test_without_rules_everything_is_listed_and_a_rule_switched_off_changes_nothing_more(served):
    served.apply(None)
    everything = ids(served)
    assert len(everything) == N
    served.apply({"block": [{"items": everything[:3]}]})
    assert ids(served) == everything[3:]
    assert ids(served, k=5) == everything[3:8]  # filled up
    served.apply(None)
    assert ids(served) == everything


def test_a_request_that_does_not_say_its_age_or_region_gets_no_restricted_item(served):
    served.apply({"minimum_age": [{"age": 18, "items": ["i1"]}], "regions": [{"except": ["US"], "items": ["i2"]}]})
    expected = {
        (): set(), ("age=18",): {"i1"}, ("age=17",): set(), ("age=old",): set(), ("region=",): set(),
        ("user.age=40", "region=DE"): {"i1", "i2"}, ("region= us ",): set(), ("age",): set(),
    }  # fmt: skip
    assert {context: {"i1", "i2"} & set(ids(served, context)) for context in expected} == expected


def test_a_limit_that_is_no_number_shows_nothing_and_an_empty_one_is_none(served):
    served.apply({"price": "price"})
    assert ids(served, ["max_price=cheap"]) == [] and len(ids(served, ["max_price="])) == N
    cheap = ids(served, ["max_price=99", "max_price= 5.0"])  # the last one counts
    assert cheap and all(CATALOGUE.fields.price[IDS.index(item)] <= 5 for item in cheap)


@pytest.mark.parametrize(
    ("rules", "read"),
    [
        (None, set()),
        ({"block": [{"items": ["i3"]}]}, set()),
        ({"price": "price"}, {"max_price"}),
        ({"minimum_age": [{"age": 18, "items": ["i1"]}]}, {"age"}),
        ({"regions": [{"only": ["US"], "items": ["i2"]}]}, {"region"}),
        ({"fresh": [{"field": "released", "days": 30}]}, {"now"}),
        (
            {"sponsored": {"share": 1, "places": [{"item": "i4", "place": 1, "context": {"scene": "home"}}]}},
            {"now", "scene"},
        ),
    ],
)
def test_a_rule_in_force_tells_which_entries_it_reads(served, rules, read):
    served.apply(rules)
    names = ["max_price", "age", "user.region", "now", "request.scene", "hue"]
    context = tf.constant([[f"{name}=1" for name in names], [""] * 6])
    found = served.alive[1](tf.constant(2), context).read.numpy()
    assert {name.split(".")[-1] for name, there in zip(names, found[0], strict=True) if there} == read
    assert not found[1].any()


def test_time_passes(served):
    served.apply({"fresh": [{"field": "released", "days": 30}]})
    released = CATALOGUE.fields.released
    for days in (-90, 0, 25, 200):
        now = NOW + DAY * days
        (listed,) = served.ask([QUERY], N, [[f"now={int(now)}"]])
        expected = {IDS[i] for i in range(N) if released[i] <= now < released[i] + 30 * DAY}
        assert {item for item, *_ in listed} == expected
    (listed,) = served.ask([QUERY], N, [[]])  # by the clock; the planted dates are long past, or in the future
    now = tf.timestamp().numpy()
    assert {item for item, *_ in listed} == {IDS[i] for i in range(N) if released[i] <= now < released[i] + 30 * DAY}


def test_a_sponsored_item_is_marked_and_no_other_rule_gives_way_to_it(served):
    served.apply(None)
    last = ids(served)[-2:]
    places = [{"item": last[0], "place": 2}, {"item": last[1], "place": 4, "context": {"device": "phone"}}]
    served.apply({"sponsored": {"share": 0.2, "places": places}})
    (listed,) = served.ask([QUERY], 5, [["device=phone"]])
    assert [(item, ad) for item, _, ad in listed if ad] == [(last[0], True)]  # a fifth of five is one
    (listed,) = served.ask([QUERY], 10, [["request.device=phone"]])
    assert [place for place, (*_, ad) in enumerate(listed, 1) if ad] == [2, 4] and len(listed) == 10
    served.apply({"sponsored": {"share": 1, "places": places}, "block": [{"items": last[:1]}]})
    (listed,) = served.ask([QUERY], 10, [["device=phone"]])
    assert [item for item, _, ad in listed if ad] == [last[1]] and last[0] not in [item for item, *_ in listed]


def test_banned_items_among_given_ones_count_as_absent(served):
    served.apply({"block": [{"items": ["i3"]}]})
    inputs = tf.constant([QUERY]), tf.constant([[3, 5, N]]), tf.fill((1, 0), ""), tf.constant([1])
    assert served.lists(*inputs)[3].numpy().tolist() == [[N, 5, N]]
    served.apply(None)
    assert served.lists(*inputs)[3].numpy().tolist() == [[3, 5, N]]


def test_a_batch_without_rows(served):
    served.apply({"block": [{"items": ["i3"]}], "sponsored": {"share": 1, "places": [{"item": "i4", "place": 1}]}})
    nobody = tf.zeros((0, D)), tf.zeros((0, 1), tf.int32), tf.fill((0, 0), ""), tf.zeros(0, tf.int32)
    assert served.lists(*nobody)[0].shape[0] == 0


def test_a_damaged_or_foreign_file_is_an_error_and_no_list(served):
    served.apply({"block": [{"items": ["i3"]}]})
    whole = served.path.read_bytes()
    content = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    foreign = bytearray(content)
    foreign[10] ^= 1  # the catalogue's digest
    cut = [b"", NO_RULES[:-1], whole[:200], whole[: len(whole) // 2], bytes(flipped)]
    others = [bytes(foreign), content[:-1], content + b"\0", content[:20]]
    for damaged in (*cut, *map(gzip.compress, others)):
        served.path.write_bytes(damaged)
        with pytest.raises(tf.errors.OpError):
            ids(served)
    served.path.unlink()
    with pytest.raises(tf.errors.OpError):
        ids(served)
    served.path.write_bytes(whole)
    assert len(ids(served)) == N - 1


def test_requests_during_reloads_see_the_old_rules_or_the_new_ones(served):
    served.apply(None)
    everything = ids(served)
    documents = [{"block": [{"items": everything[:half]}]} for half in (5, 20)]
    served.apply(documents[0])
    done, wrong = threading.Event(), []

    def ask():
        while not done.is_set():
            try:
                found = ids(served)
            except Exception as error:
                wrong.append(error)
                return
            if found not in (everything[5:], everything[20:]):
                wrong.append(found)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for turn in range(200):
        served.apply(documents[turn % 2])
    done.set()
    for thread in asking:
        thread.join()
    assert wrong == []
