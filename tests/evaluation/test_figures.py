"""What the figures show, read from their axes and from the SVG."""

import re
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from tfllmrec.errors import ConfigError
from tfllmrec.evaluation import figures
from tfllmrec.evaluation.calibration import calibration_error
from tfllmrec.evaluation.metrics import gini

SVG = "{http://www.w3.org/2000/svg}"


def drawn():
    """One figure of each kind."""
    rng = np.random.default_rng(0)
    events, of_target = np.arange(200), np.arange(1000)
    recall = (of_target >= 500).astype(float)
    likely = rng.random(500)
    intervals = {"a": (0.2, 0.1, 0.3), "b": (-0.1, None, None)}
    return {
        "popularity": figures.recall_by_popularity(of_target, {"hybrid": recall, "text": 1 - recall}),
        "gate": figures.gate_by_popularity(events, 1 / (1 + events)),
        "lorenz": figures.lorenz_curve({"recommended": events, "even": np.ones(200, int)}),
        "probability": figures.calibration(likely, rng.random(500) < likely),
        "rating": figures.calibration(1 + 4 * likely, 1 + 4 * likely, "rating"),
        "training": figures.training_curves({"model": [0.1, 0.2]}, {"tail": [0.05, 0.1]}, {"popularity": 0.15}, 1),
        "strata": figures.strata_intervals({"all": intervals, "tail": intervals}),
        "differences": figures.difference_intervals({"ndcg@10": intervals}, "a run"),
        "information": figures.field_information({"user.age": (0.2, False), "_x": (0.1, True)}, "category"),
        "labels": figures.confusion_matrix(np.array([[8, 2], [0, 10]]), ["Drama", "other"]),
        "neighbourhood": figures.neighbourhood(
            "Alien", ["Aliens", "_x"], np.array([2.0, 1.0]), ["same author", "cites"]
        ),
    }


@pytest.fixture(scope="module")
def all_figures():
    return drawn()


def lines(figure, panel=0):
    """Horizontal and vertical values of each line."""
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in figure.axes[panel].lines]


def words(text):
    return [element.text for element in ElementTree.fromstring(text).iter("text")]


def test_axes_have_names(all_figures):
    for name, figure in all_figures.items():
        if name == "neighbourhood":  # has no axes
            continue
        assert figure.axes[-1].get_xlabel(), name
        assert name in ("strata", "differences", "information") or all(axes.get_ylabel() for axes in figure.axes), name


def test_recall_by_popularity_has_groups_of_equal_size(all_figures):
    (_, hybrid), (_, text) = lines(all_figures["popularity"])
    assert hybrid.tolist() == [0] * 5 + [1] * 5 and text.tolist() == [1] * 5 + [0] * 5
    ticks = [tick.get_text() for tick in all_figures["popularity"].axes[0].get_xticklabels()]
    assert (ticks[0], ticks[-1], len(ticks)) == ("0–99", "900–999", 10)


@pytest.mark.parametrize(
    ("events", "sizes"),
    [
        (np.arange(1000), [100] * 10),
        (np.arange(250), [125, 125]),  # a group has at least 100 of them
        (np.arange(150), [150]),
        (np.repeat([0, 1, 5], [500, 300, 200]), [500, 300, 200]),  # equal ones share a group
        (np.empty(0, int), []),
    ],
)
def test_groups_by_popularity(events, sizes):
    groups = figures.groups_by_popularity(events)
    assert [len(rows) for rows in groups.values()] == sizes
    assert sorted(np.concatenate([*groups.values(), np.empty(0, int)])) == list(range(len(events)))


def test_gate_is_the_mean_of_items_with_as_many_events():
    figure = figures.gate_by_popularity(np.array([0, 0, 3, 3, 3]), np.array([0.2, 0.4, 0.9, 0.9, 0.6]))
    x, y = lines(figure)[0]
    assert np.expm1(x).tolist() == pytest.approx([0, 3])
    assert y.tolist() == pytest.approx([(0.2 + 0.4) / 2, (0.9 + 0.9 + 0.6) / 3])


def test_gate_of_many_counts_keeps_both_ends():
    counts = np.arange(100_000)
    x, _ = lines(figures.gate_by_popularity(counts, np.zeros(len(counts))))[0]
    assert len(x) <= figures.POINTS + 1 and np.expm1(x[[0, -1]]).tolist() == pytest.approx([0, 99_999])


def test_lorenz_curve_ends_at_one_and_tells_gini(all_figures):
    _, (x, shown), (_, even) = lines(all_figures["lorenz"])
    assert (x[0], shown[0], x[-1], shown[-1]) == (0, 0, 1, 1)
    assert even == pytest.approx(x) and (shown <= x + 1e-9).all()
    # The area between the diagonal and the curve, doubled, is the Gini coefficient, up to the steps of the curve.
    area = 1 - 2 * np.sum((shown[1:] + shown[:-1]) / 2 * np.diff(x))
    assert area == pytest.approx(gini(np.arange(200)), abs=0.01)
    legend = [text.get_text() for text in all_figures["lorenz"].legends[0].get_texts()]
    assert legend == [f"recommended: Gini {gini(np.arange(200)):.2f}", "even: Gini 0.00"]


def test_calibration_tells_the_error():
    predicted = np.repeat([0.1, 0.6], 50)
    observed = np.concatenate([np.arange(50) < 10, np.arange(50) < 30])  # .2 and .6 happened
    figure = figures.calibration(predicted, observed)
    _, (x, y) = lines(figure)
    assert (x.tolist(), y.tolist()) == (pytest.approx([0.1, 0.6]), pytest.approx([0.2, 0.6]))
    error = calibration_error(predicted, observed)
    assert error == pytest.approx(0.05) and figure.axes[0].get_title("left") == (
        "calibration error 0.0500 in 100 predictions"
    )


@pytest.mark.parametrize(("what", "value"), [("probability", 0), ("rating", 4)])
def test_calibration_of_equal_values_has_room_around_them(what, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = figures.calibration(np.full(50, value), np.full(50, value), what).axes[0]
    assert axes.get_xlim()[0] <= value < axes.get_xlim()[1]


def test_training_curves_have_baselines_as_lines(all_figures):
    figure = all_figures["training"]
    (epochs, values), (_, baseline), *_ = lines(figure)
    assert (list(epochs), values.tolist(), baseline.tolist()) == ([1, 2], [0.1, 0.2], [0.15, 0.15])
    assert lines(figure, 1)[0][1].tolist() == [0.05, 0.1]
    assert figure.axes[1].get_xlabel() == "epoch (dotted: the best, 2)"


def test_bars_have_the_length_of_their_value(all_figures):
    for axes in all_figures["strata"].axes:
        assert [bar.get_width() for bar in axes.patches] == [0.2, -0.1]
    assert [line[0].tolist() for line in lines(all_figures["strata"])] == [[0.1, 0.3]]  # b has no interval


def test_bars_of_all_strata_fit_the_axis_that_they_share():
    rows = {"all": {"a": (0.1, 0.05, 0.15)}, "head": {"a": (0.5, 0.3, 0.9)}, "tail": {"a": (0.1, 0.0, 0.2)}}
    for axes in figures.strata_intervals(rows).axes:
        low, high = axes.get_xlim()
        assert low == 0 and 0.9 < high < 1.1


def test_differences_beyond_chance_are_filled():
    rows = {"better": (0.2, 0.1, 0.3), "worse": (-0.2, -0.3, -0.1), "alike": (0.1, -0.1, 0.3)}
    _, *drawn = figures.difference_intervals({"ndcg@10": rows}, "first").axes[0].lines
    assert [dot.get_markerfacecolor() == "white" for dot in drawn[1::2]] == [False, False, True]
    assert len({dot.get_color() for dot in drawn[1::2]}) == 3


def test_what_may_be_chance_is_in_brackets_as_well_as_grey(all_figures):
    axes = all_figures["information"].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.1] and axes.get_xlim()[0] == 0
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["user.age", "( _x)"]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


def test_confusion_matrix_tells_shares_of_rows(all_figures):
    assert [text.get_text() for text in all_figures["labels"].axes[0].texts] == ["80", "20", "100"]


def test_neighbours_are_joined_by_lines_as_wide_as_they_are_strong(all_figures):
    axes = all_figures["neighbourhood"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["Aliens", "same author", " _x", "cites", "Alien"]
    assert [line.get_linewidth() for line in axes.lines] == pytest.approx([0.8 + 2.4, 0.8 + 2.4 / 2])


def test_svg_is_small_plain_and_keeps_its_text(all_figures):
    for name, figure in all_figures.items():
        text = figures.svg(figure, name, f"about {name}")
        root = ElementTree.fromstring(text)
        assert root.get("aria-label") == f"about {name}" and root.get("role") == "img" and root.get("viewBox")
        assert root.get("width") is None  # the page decides
        tags = {element.tag for element in root.iter()}
        assert tags <= {"svg", "defs", "g", "path", "rect", "use", "clipPath", "text"}, tags
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids)) and all(each.startswith(f"{name}-") for each in ids)
        used = {element.get("href")[1:] for element in root.iter() if element.get("href")}
        used |= set(re.findall(r"url\(#([\w.-]+)\)", text))
        assert used == set(ids)
        assert len(text) < 35_000, (name, len(text))
    assert "training events of the item" in words(figures.svg(all_figures["gate"], "gate", ""))


def test_equal_figures_are_equal_bytes():
    for (name, one), other in zip(drawn().items(), drawn().values(), strict=True):
        assert figures.svg(one, name, "") == figures.svg(other, name, ""), name
        assert figures.png(one, dpi=40) == figures.png(other, dpi=40), name


def test_the_style_is_ours(all_figures):
    import matplotlib

    text = figures.svg(all_figures["gate"], "gate", "")
    with matplotlib.rc_context({"axes.edgecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert figures.svg(drawn()["gate"], "gate", "") == text
        assert matplotlib.rcParams["axes.edgecolor"] == "red"


def test_names_are_data():
    names = ["$x^$ \\frac{", "<b>", "_hidden", "\x00\u202e\uffff", "中文", "l" * 200]
    rows = dict.fromkeys(names, (0.1, 0.0, 0.2))
    said = words(figures.svg(figures.strata_intervals({"all": rows}), "a", "<>"))
    for shown in ["$x^$ \\frac{", "<b>", " _hidden", "\\x00\\u202e\\uffff", "中文", "l" * (figures.LETTERS - 1) + "…"]:
        assert shown in said
    said = words(figures.svg(figures.training_curves({name: [0.1] for name in names}), "b", ""))
    assert "$x^$ \\frac{" in said and " _hidden" in said


def test_a_png_is_one(all_figures):
    assert figures.png(all_figures["gate"]).startswith(b"\x89PNG")


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"Figures need matplotlib .*: pip install 'tfllmrec\[report\]'"):
        figures.gate_by_popularity(np.arange(3), np.ones(3))
