"""Labels of items: a planted catalogue whose right labels are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.errors import ModelError
from tfllmrec.models import interests
from tfllmrec.models.interests import Interests, LabelForecast, fit_interests, lift

AREA, N = 30, 90  # items of each of three areas, and of all
COLD = [0, 1, N - 2, N - 1]
AREAS = [
    ("Glossy", "Nail Polish", "Beauty|Nails"),
    ("O'Flow", "garden hose", "Garden"),
    ("Warmly", "wool sock", "Wear"),
]


def planted():
    """People buy nail polish, garden hoses or wool socks, never two of them, of any colour and in any package.

    Half of each are of a brand of its own; every seventh title is "deluxe".
    """
    rng = np.random.default_rng(3)
    titles, categories = [], []
    for item in range(N):
        brand, what, category = AREAS[item // AREA]
        name = (f"{brand} " if item % 2 else "") + what + ("s" if item % 5 == 0 else "")
        colour = ["red", "blue", "green", "black"][item % 4]
        deluxe = ", deluxe" if item % 7 == 0 else ""
        titles.append(f"{name} with brush, {colour}{deluxe} (pack of 2), {10 + item % 3} ml")
        categories.append(category + ("|Rare" if item > N - 4 else ""))
    frame = pd.DataFrame({"item_id": [f"i{i}" for i in range(N)], "title": titles, "categories": categories})
    warm = np.setdiff1d(np.arange(N), COLD)
    histories = [rng.choice(warm[warm // AREA == user % 3], 6, replace=False) for user in range(120)]
    return frame, Queries.from_histories(histories)


@pytest.fixture(scope="module")
def fitted():
    items, people = planted()
    return fit_interests(items, ["title", "categories"], people), items


def labels_of(found, item):
    return {found.labels[c]: float(w) for c, w in zip(found.columns[item], found.weights[item], strict=True) if w}


def test_the_planted_labels_are_found_and_nothing_else(fitted):
    """Brands and categories; not colours, "deluxe", "with brush", "pack of 2", "10 ml"."""
    found, _ = fitted
    # "Beauty", "Nails" and "Nail Polish" name the same items, as "Garden" and "garden hose" do: the first name is left.
    named = dict(zip(found.labels, found.named, strict=True))
    assert named == dict.fromkeys(["Beauty", "Garden", "Wear"], True) | dict.fromkeys(
        ["Glossy", "O'Flow", "Warmly"], False
    )


def test_phrases_stand_for_themselves_and_swallow_their_words():
    """Neither "nail" nor "polish", which are never apart, nor "Glossy nail polish", of which two stand without it."""
    items, people = planted()
    found = fit_interests(items, ["title"], people)
    assert set(found.labels) == {"Nail Polish", "garden hose", "wool sock", "Glossy", "O'Flow", "Warmly"}


def test_a_word_that_is_always_part_of_longer_labels_is_none():
    """ "Nail" is in more items than either, yet nothing is just of nails."""
    items, people = planted()
    foam = items.title.str.replace("Nail Polish", "Nail Foam")
    items["title"] = items.title.where(items.index % 4 < 2, foam)
    labels = fit_interests(items, ["title"], people).labels
    assert {"Nail Polish", "Nail Foam"} < set(labels) and "Nail" not in labels


def test_three_words_that_are_never_apart_are_one_label():
    items, people = planted()
    items["title"] = items.title.str.replace("wool sock", "pair of socks").str.replace("Nail", "Vivid Nail")
    labels = fit_interests(items, ["title"], people).labels
    assert "Vivid Nail Polish" in labels and "garden hose" in labels
    items["title"] = items.title.str.replace("wool sock", "socks of wool").str.replace("hose", "of hose")
    assert "garden of hose" in fit_interests(items, ["title"], people).labels


def test_the_items_have_them_cold_ones_too(fitted):
    found, _ = fitted
    specificity = {"Beauty": np.log(N / AREA) ** 0.25, "Glossy": np.log(N / (AREA / 2)) ** 0.25}
    length = np.hypot(*specificity.values())
    assert labels_of(found, 1) == pytest.approx({name: value / length for name, value in specificity.items()})
    assert labels_of(found, 0) == pytest.approx({"Beauty": 1})
    assert set(labels_of(found, N - 1)) == {"Wear", "Warmly"}
    assert found.columns.shape == found.weights.shape == (N, interests.PER_ITEM)
    assert (found.columns[found.weights == 0] == len(found.labels)).all()


def test_new_items_behind_the_others_get_labels_from_their_text_alone(fitted):
    items, people = planted()
    titles = ["A glossy, quick NAIL POLISHES!", "nothing of all that"]
    new = pd.DataFrame({"item_id": ["new", "none"], "title": titles, "categories": ""})
    found = fit_interests(pd.concat([items, new], ignore_index=True), ["title", "categories"], people)
    # What is said of the same items as "Beauty" is that, without the name too.
    assert labels_of(found, N).keys() == {"Beauty", "Glossy"}
    assert labels_of(found, N + 1) == {}
    assert labels_of(found, 3).keys() == labels_of(fitted[0], 3).keys()


def test_what_people_do_not_choose_by_is_no_label():
    """The same texts, read by people who buy anything: only names are left."""
    items, _ = planted()
    rng = np.random.default_rng(5)
    people = Queries.from_histories([rng.choice(N, 6, replace=False) for _ in range(200)])
    assert set(fit_interests(items, ["title", "categories"], people).labels) == {"Beauty", "Garden", "Wear"}
    assert fit_interests(items, ["title"], people) is None


def test_too_rare_and_too_common_names_are_none():
    items, people = planted()
    items["categories"] = "Shop|" + items.categories
    labels = fit_interests(items, ["categories"], people).labels
    assert "Shop" not in labels and "Rare" not in labels and set(labels) == {"Beauty", "Garden", "Wear"}


@pytest.mark.parametrize("columns", [[], ["title"], ["categories"], ["title", "categories"]])
def test_without_words_there_is_nothing(columns):
    items, people = planted()
    assert fit_interests(items.assign(title="", categories=""), columns, people) is None
    numbers = items.assign(title="12 x 5 %", categories="")
    assert fit_interests(numbers, columns, people) is None


def test_the_first_author_is_a_name_illustrators_are_none_and_plurals_are_one_label():
    items, people = planted()
    items["authors"] = [("Ann Lee|Bo Roe" if i % 8 == 0 else "Ann Lees" if i % 8 == 1 else "") for i in range(N)]
    items["tags"] = [("Cosy|Bo Roe" if i % 16 == 0 else "Bo Roe" if i % 8 == 0 else "") for i in range(N)]
    found = fit_interests(items, ["authors"], people)
    assert found.labels.tolist() == ["Ann Lee"] and labels_of(found, 1).keys() == {"Ann Lee"}
    # Tags are no people: each of them is a label.
    assert set(fit_interests(items, ["tags"], people).labels) == {"Cosy", "Bo Roe"}


def test_a_subject_goes_before_the_people_of_the_same_items():
    items, people = planted()
    items["authors"] = ["Ann Lee" if i < AREA else "" for i in range(N)]
    assert set(fit_interests(items, ["authors", "title"], people).labels) == {
        "Nail Polish", "garden hose", "wool sock", "Glossy", "O'Flow", "Warmly"
    }  # fmt: skip
    items["authors"] = ["Ann Lee" if i % 2 else "" for i in range(N)]
    assert "Ann Lee" in fit_interests(items, ["authors", "title"], people).labels


def test_what_users_rejected_does_not_make_a_label():
    items, people = planted()
    assert len(fit_interests(items, ["title"], people).labels)
    rejected = Ragged(np.full(len(people.history.values), -1, np.float32), people.history.offsets)
    assert fit_interests(items, ["title"], replace(people, weights=rejected)) is None


def test_a_label_of_two_items_in_a_hundred_is_broad():
    columns = np.full((500, 1), 2)
    columns[:10], columns[10:19] = 0, 1
    found = Interests(np.array(["a", "b"], object), np.ones(2, bool), columns, np.ones((500, 1)))
    assert found.share.tolist() == [10 / 500, 9 / 500] and found.broad.tolist() == [True, False]


def test_labels_are_read_as_they_were_written(fitted, tmp_path):
    made, _ = fitted
    made.save(tmp_path / "labels.npz")
    read = Interests.load(tmp_path / "labels.npz", "delete it")
    for name, value in vars(made).items():
        assert np.array_equal(getattr(read, name), value) and type(getattr(read, name)) is type(value)
    replace(made, columns=made.columns[1:]).save(tmp_path / "labels.npz")
    with pytest.raises(ModelError, match=r"labels\.npz cannot be read \(the tables do not fit together.*delete it"):
        Interests.load(tmp_path / "labels.npz", "delete it")


# What is learned --------------------------------------------------------------------------------------------------


def forecast():
    rng = np.random.default_rng(0)
    tables = [rng.normal(size=(3, 2)).astype(np.float32) for _ in range(3)]
    labels, bias = np.array(["a", "b", "c"], object), np.float32([-1, -3, -2])
    return LabelForecast(labels, *tables, bias, np.float32([0.5, 0.25, 0.25]), 0.5, 0.6, 10.0)


def test_a_forecast_is_read_as_it_was_written(tmp_path):
    made = forecast()
    made.save(tmp_path / "f.npz")
    read = LabelForecast.load(tmp_path / "f.npz", "fit again")
    for name in ("labels", "slow", "fast", "out", "bias", "mixture", "sharpness", "fast_decay", "scale"):
        assert np.array_equal(getattr(read, name), getattr(made, name))
    replace(made, bias=made.bias[:2]).save(tmp_path / "f.npz")
    with pytest.raises(ModelError, match=r"f\.npz cannot be read \(the tables do not fit together.*fit again"):
        LabelForecast.load(tmp_path / "f.npz", "fit again")


def test_a_label_stays_the_same_when_its_commonest_spelling_changes():
    made = replace(forecast(), labels=np.array(["nail polish", "Garden Hoses", "c"], object))
    other = np.array(["C", "Nail Polish", "garden hose", "nail"], object)
    assert made.of_labels(other).bias.tolist() == [-2, -1, -3, -3]
    assert made.knows(other).tolist() == [True, True, True, False]


def test_a_new_label_is_known_to_the_forecast_as_the_least_likely():
    made = forecast()
    other = made.of_labels(np.array(["c", "new", "a"], object))
    assert other.labels.tolist() == ["c", "new", "a"] and other.bias.tolist() == [-2, -3, -1]
    for name in ("slow", "fast", "out"):
        table = getattr(made, name)
        assert np.array_equal(getattr(other, name), [table[2], [0, 0], table[0]])


def test_a_category_with_commas_is_one_label():
    items, people = planted()
    items["categories"] = items.categories.where(items.categories != "Wear", "Clothing, Shoes & Jewelry")
    labels = set(fit_interests(items, ["categories"], people).labels)
    assert "Clothing, Shoes & Jewelry" in labels and not {"Clothing", "Shoes & Jewelry"} & labels


def test_only_the_most_specific_labels_of_an_item_are_kept(monkeypatch):
    items, people = planted()
    monkeypatch.setattr(interests, "PER_ITEM", 1)
    found = fit_interests(items, ["title", "categories"], people)
    assert labels_of(found, 1) == {"Glossy": 1.0} and labels_of(found, 2) == {"Beauty": 1.0}


def test_order_and_ratings_of_the_data(fitted):
    items, people = planted()
    assert fitted[0].decay == interests.DECAY and fitted[0].spread == 0
    assert fit_interests(items, ["title"], people, ordered=False).decay == 1
    rated = Queries.from_histories([[1, 2], [3]], ratings=[[1, 5], [np.nan]])
    assert fit_interests(items, ["categories"], rated).spread == 2.0


def test_progress_counts_candidates():
    items, people = planted()
    counts = []
    fit_interests(items, ["title"], people, progress=lambda done, total: counts.append(done))
    assert len(counts) == 3 and counts == sorted(counts) and counts[-1] > 3


def test_lift_against_loops():
    rng = np.random.default_rng(1)
    had = (rng.random((30, 12)) < 0.3).astype(np.float32)
    items = (rng.random((12, 5)) < 0.4).astype(np.float32)
    share = had.sum(axis=0) / had.sum()
    for label, value in enumerate(lift(sp.csr_array(had), sp.csr_array(items))):
        pairs = expected = 0.0
        for person in had:
            for i in range(12):
                for j in range(i):
                    pairs += person[i] * person[j] * items[i, label] * items[j, label]
            n = person.sum()
            alike = sum(
                share[i] * share[j] * items[i, label] * items[j, label] for i in range(12) for j in range(12) if i != j
            )
            expected += n * (n - 1) / 2 * alike
        assert value == pytest.approx((pairs + 5) / (expected + 5), rel=1e-5)


def test_a_label_of_many_columns_is_counted_in_parts():
    rng = np.random.default_rng(2)
    had = sp.csr_array((rng.random((20, 9)) < 0.4).astype(np.float32))
    items = sp.csr_array((rng.random((9, 2300)) < 0.4).astype(np.float32))
    whole = lift(had, items)
    np.testing.assert_allclose(whole[[0, 999, 1000, 2299]], lift(had, items[:, [0, 999, 1000, 2299]]))


def test_people_are_left_out_evenly_where_there_are_too_many_events(monkeypatch):
    _, people = planted()
    monkeypatch.setattr(interests, "MAX_EVENTS", 240)
    assert interests._had(people.history, N).shape[0] == 40  # 720 events: every third person
