import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse
from stand_ins import two_domains

from tfllmrec.config import (
    DataConfig,
    ExperimentConfig,
    ItemWeightSettings,
    SplitConfig,
    dump_config,
    parse_config,
)
from tfllmrec.data import dataset_from_frames, make_split
from tfllmrec.data.domains import join_datasets
from tfllmrec.data.queries import Queries
from tfllmrec.errors import ConfigError
from tfllmrec.evaluation.protocol import Result
from tfllmrec.models.fitting import TrainingData
from tfllmrec.models.item_weights import NotPositiveDefinite, PrunedWeights, rank_of
from tfllmrec.training import item_weight_search as search
from tfllmrec.training.fit import choose


def text_of(split):
    return np.random.default_rng(0).normal(size=(split.dataset.n_items, 5)).astype(np.float32)


def data_of(split):
    return TrainingData(split, text_of(split))


def test_all_set_means_nothing_is_searched(chain_split):
    config = ItemWeightSettings(decay=0.7, l2=5.0, co_occurrence=0.0, text=2.0, popularity=0.1, rank=9)
    settings, said = search.choose_item_weights(data_of(chain_split), config, [])
    assert settings == config.model_copy(update={"next_item": 1.0, "itself": 0.0, "graph": 0.0, "source": 0.0})
    assert said == []


@pytest.mark.parametrize("name", ["decay", "l2", "co_occurrence", "text", "next_item", "popularity", "rank"])
def test_what_the_config_fixes_is_not_moved(chain_split, name):
    tried, value = [], 7 if name == "rank" else 0.77
    config = ItemWeightSettings(**{name: value})
    settings, said = search.choose_item_weights(data_of(chain_split), config, [], tried.append)
    assert getattr(settings, name) == value
    shown = f"{name.replace('_', ' ' if name == 'next_item' else '-')} {value}"
    assert len(tried) > 1 and all(shown in line for line in tried) and shown in said[0]


def test_the_search_never_ends_below_its_start(chain_split, monkeypatch):
    values, tried = [], []
    real = search.selection_value
    monkeypatch.setattr(search, "selection_value", lambda result: values.append(real(result)) or values[-1])
    settings, said = search.choose_item_weights(data_of(chain_split), ItemWeightSettings(), [], tried.append)
    assert len({line.partition(": ")[2] for line in tried}) == len(tried) == len(values)  # nothing twice
    assert f"best of {len(values)} on validation (selection value {max(values):.4f})" in said[0]
    start = search.starting_item_weights(data_of(chain_split))
    assert settings != start and max(values) > values[0]
    assert search.item_weights_value(data_of(chain_split), settings) == max(values)


def test_the_search_climbs_one_setting_at_a_time(chain_split, monkeypatch):
    """A planted surface: the best is on the grid."""
    best = {"decay": 0.9, "l2": 900.0, "co_occurrence": 0.1 / 3, "text": 150.0, "popularity": 0.0, "rank": 20}

    class Flat:
        def __init__(self, weights, decay, *_):
            self.settings = weights

    def solve(statistics, settings, text, graph):
        assert settings.neighbours == 7
        return settings

    def value(data, weights):
        found = weights.settings.model_copy(update={"rank": rank_of(weights.settings.rank, 40)})
        return -sum(abs(np.log((1 + getattr(found, name)) / (1 + at))) for name, at in best.items())

    monkeypatch.setattr(search, "_Weights", Flat)
    monkeypatch.setattr(search, "solve", solve)
    monkeypatch.setattr(TrainingData, "measure", value)
    monkeypatch.setattr(search, "selection_value", lambda result: result)
    config = ItemWeightSettings(neighbours=7)
    settings, _ = search.choose_item_weights(data_of(chain_split), config, [])
    assert {name: getattr(settings, name) for name in best} == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize(
    ("rank", "n_items", "lower", "higher"),
    [
        (384, 12_000, 192, 768),
        (1536, 12_000, 768, "all"),
        ("all", 12_000, 6_000, None),
        (384, 40, 20, None),  # all that there is
        (25, 1_000, 12, 50),
        (24, 1_000, None, 48),
        (768, 100_000, 384, 1536),
        (1536, 100_000, 768, None),
        ("all", 100_000, 768, None),
    ],
)
def test_ranks_are_halved_and_doubled_up_to_all(rank, n_items, lower, higher):
    assert search.ranks_from(rank, n_items) == (lower, higher)


def test_higher_ranks_and_exact_weights_are_tried_less_often():
    assert [search.most_tries(rank, 10_000) for rank in (None, 96, 768, "all")] == [100, 100, 50, 25]
    assert [search.most_tries(rank, 100) for rank in (None, "all")] == [25_000_000] * 2


def test_no_text_means_no_text_view(chain_split):
    tried = []
    none = np.zeros((chain_split.dataset.n_items, 1), np.float32)
    settings, _ = search.choose_item_weights(TrainingData(chain_split, none), ItemWeightSettings(), [], tried.append)
    assert settings.text == 0 and all("text 0" in line for line in tried)


def test_data_without_an_order_does_not_fade(chain_split):
    split = replace(chain_split, dataset=replace(chain_split.dataset, ordered=False))
    settings, _ = search.choose_item_weights(data_of(split), ItemWeightSettings(), [])
    assert (settings.decay, settings.next_item, settings.co_occurrence) == (1.0, 0.0, 1.0)


def test_the_search_stops_when_its_work_is_used_up(chain_split, monkeypatch):
    monkeypatch.setattr(search, "EXACT_SEARCH_WORK", 3 * 40**3)
    tried = []
    _, said = search.choose_item_weights(data_of(chain_split), ItemWeightSettings(rank="all"), [], tried.append)
    assert len(tried) == 3 and "best of 3 on validation" in said[0]
    start = r"item-item weights, try {}: decay 0\.6, .*; selection value 0\.\d{{4}}"
    assert all(re.fullmatch(start.format(i), line) for i, line in enumerate(tried, start=1))


def test_a_large_catalogue_takes_the_starting_point(chain_split, monkeypatch):
    monkeypatch.setattr(search, "EXACT_SEARCH_WORK", 1.9 * 40**3)
    monkeypatch.setattr(search, "solve", None)
    settings, said = search.choose_item_weights(data_of(chain_split), ItemWeightSettings(l2=7.0), [])
    assert settings.l2 == 7.0 and settings.text == 50.0  # short histories
    assert said[0].startswith("item_weights decay ") and "not searched: 40 items" in said[0]


@pytest.mark.parametrize("repeats", [False, True])
def test_the_weight_of_an_item_for_itself_is_searched_where_users_come_back(chain_split, repeats):
    split = replace(chain_split, dataset=replace(chain_split.dataset, repeats=repeats))
    config = ItemWeightSettings(decay=0.7, l2=5.0, co_occurrence=0.0, text=2.0, popularity=0.1)
    tried = []
    settings, _ = search.choose_item_weights(data_of(split), config, [], tried.append)
    assert (settings.itself > 0) == repeats == ("itself 9" in " ".join(tried))
    assert search.choose_item_weights(data_of(split), config.model_copy(update={"itself": 0.5}), [])[0].itself == 0.5


def test_the_search_goes_on_where_there_are_no_weights(chain_split, monkeypatch):
    known = search.item_weights_value

    def value(data, settings):
        if settings.l2 < 100:
            raise NotPositiveDefinite("no weights")
        return known(data, settings)

    monkeypatch.setattr(search, "item_weights_value", value)
    settings, said = search.choose_item_weights(data_of(chain_split), ItemWeightSettings(), [])
    assert settings.l2 >= 100 and "best of" in said[0]


def habits(follow_the_day):
    """Each user has two apps, one for work days and one for weekends, unless the day says nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(80):
        apps = rng.choice(30, 2, replace=False)
        for _ in range(20):
            day = int(rng.integers(2))
            rows.append((f"u{user}", f"a{apps[day if follow_the_day else rng.integers(2)]}", ["work", "end"][day], "x"))
    frame = pd.DataFrame(rows, columns=["user", "item", "weekday", "city"])
    dataset = dataset_from_frames(frame, config=DataConfig(repeats="all"))
    return TrainingData(make_split(dataset, SplitConfig(kind="random"), 0), np.zeros((dataset.n_items, 1)))


def test_events_of_the_same_context_count_more_where_that_helps(monkeypatch):
    told, confidences, gain = [], [], search.selection_gain
    monkeypatch.setattr(
        search,
        "selection_gain",
        lambda *results, confidence: confidences.append(confidence) or gain(*results, confidence=confidence),
    )
    settings = ItemWeightSettings(decay=1.0, l2=10.0, next_item=0.0, text=0.0, itself=3.0)
    chosen, (line,) = search.choose_context(data := habits(True), settings, told.append)
    assert chosen.context.keys() == {"weekday"} and chosen.context["weekday"] in search.CONTEXT_STRENGTHS
    assert "context: weekday" in line and "on validation" in line and "weekday" in told[0]
    value = search.item_weights_value
    assert value(data, chosen) > value(data, settings) + 0.1
    none, (line,) = search.choose_context(habits(False), settings, told.append)
    assert none.context == {} and "does not help" in line
    assert set(confidences) == {1 - 0.05 / (2 * 3)}  # two fields with three strengths each
    given = settings.model_copy(update={"context": {}})
    assert search.choose_context(data, given, told.append) == (given, [])


def measured_by(strengths):
    """Figures of 400 users in the place of those of solved weights: ndcg@10 by the strength of the graph."""

    def measured(data, settings):
        values = np.random.default_rng(0).random(400) + strengths.get(settings.graph or 0.0, 0.0)
        return Result({"ndcg@10": float(values.mean())}, {}, {}, {"ndcg@10": values}, [])

    return measured


@pytest.mark.parametrize(
    ("gains", "chosen"), [({10.0: 0.1, 30.0: 0.3}, 30.0), ({10.0: -0.1, 30.0: -0.1, 100.0: 0.0}, 0.0)]
)
def test_the_graph_counts_only_if_it_gains_more_than_chance(monkeypatch, gains, chosen):
    monkeypatch.setattr(search, "item_weights_result", measured_by(gains))
    graph = SimpleNamespace(relations=[SimpleNamespace(kind="text")])
    data, told = SimpleNamespace(graph=graph, source_histories=None, n_items=9), []
    start = ItemWeightSettings(graph=0.0, l2=7.0)
    settings, (line,) = search.choose_view("graph", data, ItemWeightSettings(), start, [], told.append)
    assert settings == start.model_copy(update={"graph": chosen}) and len(told) == len(search.GRAPH_STRENGTHS)
    assert line.startswith(f"item_weights.graph {chosen:g}") and ("left out" in line) == (chosen == 0)


def test_the_graph_is_tried_within_the_budget_of_the_search_and_nothing_is_solved_twice(chain_split, monkeypatch):
    own = sparse.csr_array(np.eye(40, dtype=np.float32))
    monkeypatch.setattr(TrainingData, "graph_view", own)
    solved, real = [], search.solve
    monkeypatch.setattr(search, "solve", lambda _, settings, *more: solved.append(settings) or real(_, settings, *more))

    def choose_all(tries):
        monkeypatch.setattr(search, "EXACT_SEARCH_WORK", tries * 40**3)
        solved.clear()
        data, given, tried = (
            replace(data_of(chain_split), graph=SimpleNamespace(relations=[SimpleNamespace(kind="text")])),
            ItemWeightSettings(rank="all"),
            [],
        )
        settings, _ = search.choose_item_weights(data, given, tried, print)
        searched = len(solved)
        chosen, (line,) = search.choose_view("graph", data, given, settings, tried, print)
        assert len(tried) == len(solved)
        # Another fit on the same data, as in a search of settings: nothing is solved again, and all is chosen alike.
        tried = []
        assert search.choose_item_weights(data, given, tried)[0] == settings
        assert search.choose_view("graph", data, given, settings, tried, print) == (chosen, [line])
        assert len(tried) == len(solved)
        return searched, [each.graph for each in solved[searched:]], line

    assert choose_all(8)[:2] == (5, [10.0, 30.0, 100.0])
    assert choose_all(4)[:2] == (0, [0.0, 10.0, 30.0, 100.0])  # not searched
    assert choose_all(2)[:2] == (0, [0.0, 10.0])
    searched, strengths, line = choose_all(1)
    assert (searched, strengths) == (0, []) and line.startswith("item_weights.graph 0 (not tried: 40 items; ")


def test_without_a_graph_that_models_read_or_with_a_strength_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(search, "item_weights_result", None)
    settings = ItemWeightSettings(l2=7.0)
    graph, use = (SimpleNamespace(relations=[SimpleNamespace(kind=kind)]) for kind in ("text", "use"))
    for graph_of_data, given in ((None, None), (graph, 5.0), (use, None), (SimpleNamespace(relations=[]), None)):
        data = SimpleNamespace(graph=graph_of_data, source_histories=None)
        assert search.choose_view("graph", data, ItemWeightSettings(graph=given), settings, [], print) == (settings, [])


def walks(n_users, seed, n_items=12, wrong=False):
    """Users who walk round a ring of items, or (``wrong``) who jump: what comes next says nothing of the ring."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n_items, n_users)
    steps = rng.integers(1, n_items, (n_users, 4)).cumsum(axis=1) if wrong else np.arange(1, 5)[np.newaxis]
    return [
        [start, *((start + step) % n_items)]
        for start, step in zip(starts, np.broadcast_to(steps, (n_users, 4)), strict=True)
    ]


def few_walkers(histories, settings=None):
    """Forty users of the ring, of whom only few events are trained on, beside others' histories from elsewhere."""
    rows = [
        (f"u{user}", f"i{item:02}", place)
        for user, walk in enumerate(walks(40, 1))
        for place, item in enumerate(walk[:3])
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "order"])
    split = make_split(dataset_from_frames(frame, config=DataConfig(name="few")), SplitConfig(), seed=1)
    source = Queries.from_histories([np.asarray(walk, np.int64) for walk in histories]).history
    return TrainingData(split, np.zeros((split.dataset.n_items, 1), np.float32), source_histories=source)


@pytest.mark.parametrize("wrong", [False, True])
def test_events_of_sources_count_where_they_help(wrong):
    """One training event a user says nothing of what comes next; a source that walks the same ring says it all."""
    data, told = few_walkers(walks(300, 2, wrong=wrong)), []
    assert data.split.dataset.n_items == 12
    settings = ItemWeightSettings(l2=5.0, text=0.0, source=0.0).settled()
    chosen, (line,) = search.choose_view("source", data, ItemWeightSettings(), settings, [], told.append)
    assert (chosen.source > 0) == (not wrong), line
    assert ("are left out" in line) == wrong and len(told) == len(search.SOURCE_STRENGTHS)
    value = search.item_weights_value(data, chosen)
    assert wrong or value > 2 * search.item_weights_value(data, settings)


def test_a_given_strength_of_sources_is_taken():
    data = few_walkers(walks(5, 2))
    given = ItemWeightSettings(source=0.5)
    assert search.choose_view("source", data, given, given, [], print) == (given, [])
    assert search.choose_view("source", few_walkers([]), ItemWeightSettings(), given, [], print) == (given, [])


def two_shops(first="books", then="films"):
    """160 users who have three books of a kind, 0 to 3, and then three films of the same kind."""
    rng, rows = np.random.default_rng(3), {first: [], then: []}
    for user in range(160):
        for of_shop in rows.values():
            chosen = 5 * (user % 4) + rng.permutation(5)[:3]
            of_shop += [(f"u{user}", f"{item:02}", place) for place, item in enumerate(chosen)]
    frames = {shop: pd.DataFrame(of_shop, columns=["user", "item", "order"]) for shop, of_shop in rows.items()}
    joined = join_datasets({shop: dataset_from_frames(frame) for shop, frame in frames.items()})
    split = make_split(joined, SplitConfig(domain="films"), seed=1)
    return TrainingData(split, np.zeros((40, 1), np.float32))


@pytest.mark.parametrize(("off", "taken"), [(0, [1.0, 2.0, 4.0]), (1, [0.0, 0.25])])
def test_events_of_another_domain_count_less_where_they_do_harm(monkeypatch, off, taken):
    """Films of a kind point to each other; books point to films of their kind, or (``off`` 1) more to other films."""
    data, told = two_shops(), []
    kind = np.arange(40) // 5 % 4
    weights = (kind[:, np.newaxis] == kind).astype(np.float32)
    weights[:20] = 3 * ((kind[:20, np.newaxis] + off) % 4 == kind)
    whole = PrunedWeights(np.tile(np.arange(40, dtype=np.int32), (40, 1)), weights)
    monkeypatch.setattr(search, "_solved", lambda data, settings: whole)
    chosen, (line,) = search.choose_domains(
        data, ItemWeightSettings().settled().model_copy(update={"domains": None}), told.append
    )
    assert chosen.domains.get("books>films", 1.0) in taken, line
    assert "ndcg@10/tail" in line and len(told) == len(search.DOMAIN_FACTORS)
    given = ItemWeightSettings(domains={"books>films": 0.5})
    assert search.choose_domains(data, given, print) == (given, [])
    assert search.choose_domains(few_walkers([]), ItemWeightSettings(), print) == (ItemWeightSettings(), [])


def test_a_domain_that_no_history_contains_has_no_factor():
    data, told = two_shops("films", "books"), []
    settings = ItemWeightSettings(l2=5.0, text=0.0).settled().model_copy(update={"domains": None})
    chosen, said = search.choose_domains(data, settings, told.append)
    assert chosen.domains == {} and not said + told


def test_factors_of_too_many_pairs_of_domains_stay_at_1(monkeypatch):
    monkeypatch.setattr(search, "MOST_PAIRS_OF_DOMAINS", 0)
    settings, told = ItemWeightSettings().settled().model_copy(update={"domains": None}), []
    chosen, (line,) = search.choose_domains(two_shops(), settings, told.append)
    assert chosen.domains == {} and not told and line.endswith("at most 0 pairs of domains to try, found 1")


def test_a_map_between_domains_is_measured_as_it_is_served():
    data = two_domains()
    settings = ItemWeightSettings(decay=0.1, l2=10, co_occurrence=0, text=0, next_item=1, popularity=0, map=True)
    assert search.item_weights_result(data, settings).metrics["recall@10"] > 0.9
    without = settings.model_copy(update={"domains": {"books>films": 0.0}})
    assert search.item_weights_result(data, without).metrics["recall@10"] < 0.5


def test_factors_of_unknown_domains_are_refused_before_the_search():
    config = ExperimentConfig(item_weights=ItemWeightSettings(domains={"books>film": 0.5}))
    with pytest.raises(ConfigError, match="of the domains books, films, found film"):
        choose(two_shops(), config, print)


def viewers(noise, n_users=240):
    """Users who view and buy items of two topics, and then buy two more of the topic of their views.

    With ``noise`` the last ones are of the topic of their purchases, of which there are fewer.
    """
    rng, rows = np.random.default_rng(5), []
    for user in range(n_users):
        viewed, bought = ([f"{12 * topic + i:02}" for i in rng.permutation(12)] for topic in rng.permutation(4)[:2])
        past = rng.permutation([(item, "view") for item in viewed[:7]] + [(item, "purchase") for item in bought[:2]])
        last = (bought if noise else viewed)[-2:]
        rows += [
            (f"u{user:03}", item, place, kind)
            for place, (item, kind) in enumerate([*past, *((item, "purchase") for item in last)])
        ]
    frame = pd.DataFrame(rows, columns=["user", "item", "order", "kind"])
    split = make_split(dataset_from_frames(frame), SplitConfig(), seed=1)
    return TrainingData(split, np.zeros((split.dataset.n_items, 1), np.float32))


@pytest.mark.parametrize(("noise", "taken"), [(True, [0.0]), (False, [1.0, 2.0])])
def test_views_count_nothing_in_histories_only_where_they_are_noise(noise, taken):
    data, told = viewers(noise), []
    settings = ItemWeightSettings(decay=1.0, co_occurrence=1.0, text=0.0, next_item=0.0).settled()
    settings.kinds = None
    chosen, (line,) = search.choose_kinds(data, settings, told.append)
    assert chosen.factors_of_kinds.get("view", 1.0) in taken, line
    assert line.startswith(f"item_weights.kinds view {chosen.factors_of_kinds.get('view', 1.0):g}: ")
    assert len(told) == len(search.KIND_FACTORS) and (data.split.test.weights.values > 0).all()
    gain = search.item_weights_value(data, chosen) - search.item_weights_value(data, settings)
    assert gain > 0.05 if noise else gain >= 0
    config = parse_config(yaml.safe_load(dump_config(ExperimentConfig(item_weights=chosen))))
    assert config.item_weights == chosen and config.item_weights.kinds


def test_given_factors_of_kinds_are_taken_and_without_kinds_nothing_is_tried():
    for given in (True, False, {"view": 0.5}):
        settings = ItemWeightSettings(kinds=given)
        assert search.choose_kinds(viewers(True, 20), settings, print) == (settings, [])
    assert search.choose_kinds(few_walkers([]), ItemWeightSettings(), print) == (ItemWeightSettings(), [])
    config = ExperimentConfig(item_weights=ItemWeightSettings(kinds={"View": 0.5, "vieww": 0.5}))
    with pytest.raises(ConfigError, match=r"item_weights.kinds: expected kinds of events \(.*view.*\), found 'vieww'"):
        choose(viewers(True, 20), config, print)
