"""Draws figures from plain arrays, for reports (SVG), TensorBoard (PNG) and notebooks.

Each function returns a matplotlib ``Figure`` and needs the extra ``report``. All figures share one style: a palette
that colour-blind readers can tell apart (Okabe and Ito 2008, "Color universal design"), series that also differ in
marker and line, dark text on white, and text of 12 pixels on a screen 390 pixels wide.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

import numpy as np

from tfllmrec.errors import not_installed
from tfllmrec.evaluation.calibration import calibration_curve, calibration_error
from tfllmrec.evaluation.metrics import gini
from tfllmrec.wording import clipped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

#: A value, and the low and high end of its interval; ``None`` if it has no interval.
Interval = tuple[float, float | None, float | None]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
TEXT, MUTED, GRID = "#1a1a1a", "#595959", "#e3e3e3"
#: Size in inches. An SVG of this width has 403 pixels, so that its text keeps its size on a narrow screen.
WIDTH, HEIGHT = 4.2, 2.9
#: Maximum number of groups of targets; minimum number of targets in each, on average; maximum number of points of a
#: curve.
GROUPS, GROUP_TARGETS, POINTS = 10, 100, 100
#: Maximum number of letters of a name in a figure.
LETTERS = 28

_STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # included in matplotlib, so that a figure is the same everywhere
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.borderaxespad": 0.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "text.parse_math": False,  # names and labels are data: a dollar sign does not start a formula
    "svg.fonttype": "none",
    "svg.hashsalt": "tfllmrec",
}


def _figure(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw in the common style, regardless of the user's own."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return styled


@contextmanager
def _style() -> Iterator[None]:
    try:
        import matplotlib.style
    except ImportError as error:
        raise not_installed("Figures need matplotlib", error, "report") from error
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # A browser has the letters of every script; matplotlib's own font only measures them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@_figure
def recall_by_popularity(events: np.ndarray, recall: Mapping[str, np.ndarray], label: str = "recall@10") -> Figure:
    """Draws a metric for rare to popular targets, in up to ten groups of about equally many targets.

    Targets with equally many events share a group, and each group has at least 100 of them on average.

    Args:
      events: Int ``[B]``, the training events of each query's target.
      recall: Recommender -> float ``[B]``, NaN for a query without a value; the model comes first.
      label: The label of the metric.
    """
    groups = groups_by_popularity(events)
    fig, (axes,) = _axes()
    for at, (name, values) in enumerate(recall.items()):
        means = [_mean(values[rows]) for rows in groups.values()]
        axes.plot(range(len(groups)), means, label=_legend(name), **_series(at))
    axes.set_xticks(range(len(groups)), list(groups), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("training events of the target")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    _legend_above(fig)
    return fig


def groups_by_popularity(events: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of each group of :func:`recall_by_popularity` by its range of events, such as ``4–9``."""
    n = max(min(GROUPS, len(events) // GROUP_TARGETS), 1)
    ends = np.unique(np.quantile(events, np.arange(1, n) / n)) if len(events) else np.empty(0)
    group = np.searchsorted(ends, events, side="left")
    found = [np.flatnonzero(group == g) for g in np.unique(group)]
    return {_range(int(events[rows].min()), int(events[rows].max())): rows for rows in found}


@_figure
def gate_by_popularity(events: np.ndarray, gate: np.ndarray) -> Figure:
    """Draws the mean gate ``a_i`` of items by their number of training events.

    Near 1, the score of an item relies on meaning and feedback; near 0, on item-item weights.

    Args:
      events: Int ``[N]``, training events of each item.
      gate: Float ``[N]``, ``a_i`` in 0 to 1.
    """
    counts, of_item, size = np.unique(events, return_inverse=True, return_counts=True)
    mean = np.bincount(of_item, gate) / size
    kept = np.unique(np.searchsorted(np.log1p(counts), np.linspace(0, np.log1p(counts[-1]), POINTS)[:-1]))
    kept = np.union1d(kept, len(counts) - 1)
    x, y = np.log1p(counts[kept]), mean[kept]
    fig, (axes,) = _axes()
    axes.fill_between(x, y, 1, color="#f6dcc8", linewidth=0)
    axes.fill_between(x, 0, y, color="#cfe3f1", linewidth=0)
    axes.plot(x, y, color=COLOURS[0])
    if len(x) == 1:
        axes.plot(x, y, "o", color=COLOURS[0])
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.97, 0.06, "meaning, feedback", transform=axes.transAxes, ha="right", bbox=box)
    axes.text(0.97, 0.9, "behaviour", transform=axes.transAxes, ha="right", bbox=box)
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 100_000) if tick <= max(counts[-1], 1)]
    axes.set_xticks(np.log1p(ticks), [f"{tick:,}" for tick in ticks])
    axes.set_ylim(0, 1)
    axes.set_xlabel("training events of the item")
    axes.set_ylabel("gate a_i")
    return fig


@_figure
def lorenz_curve(exposure: Mapping[str, np.ndarray]) -> Figure:
    """Draws how unevenly places are given to items: the share of all places that the least shown items have.

    The legend has the Gini coefficient of each curve: 0 if all items are shown equally often, near 1 if only one is.

    Args:
      exposure: Name -> int ``[N]``, how often each item was in a list.
    """
    fig, (axes,) = _axes(height=3.3)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
    for at, (name, counts) in enumerate(exposure.items()):
        shares = np.concatenate([[0.0], np.cumsum(np.sort(counts)) / max(counts.sum(), 1)])
        places = np.unique(np.linspace(0, len(counts), POINTS).astype(int))
        style = _series(at) | {"marker": None}
        label = f"{_legend(name)}: Gini {gini(counts):.2f}"
        axes.plot(places / len(counts), shares[places], label=label, **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("share of items, least shown first")
    axes.set_ylabel("share of places")
    _legend_above(fig, columns=1)
    return fig


@_figure
def calibration(predicted: np.ndarray, observed: np.ndarray, what: str = "probability") -> Figure:
    """Draws observed against predicted values, in bins of equally many predictions, with the calibration error.

    The axes of probabilities are stretched near 0 (square root), where most probabilities of a list are.

    Args:
      predicted: Float ``[n]``, probabilities or ratings.
      observed: Float ``[n]``, 0 or 1, or ratings.
      what: What is predicted: ``probability`` or ``rating``.
    """
    foretold, happened, _ = calibration_curve(predicted, observed)
    fig, (axes,) = _axes(height=3.3)
    low, high = min([*foretold, *happened]), max([*foretold, *happened])
    margin = 0.05 * (high - low) or 0.05  # the ends of an axis must differ
    ends = [low - margin, high + margin]
    if what == "probability":
        ends[0] = 0.0
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_yscale("function", functions=(_root, np.square))
        ticks = [t for t in (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1) if t <= ends[1]]
        ticks = [t for t in ticks if t == 0 or np.sqrt(t) > 0.1 * np.sqrt(ends[1])]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    axes.plot(foretold, happened, "o", color=COLOURS[0], clip_on=False)
    axes.set_title(f"calibration error {calibration_error(predicted, observed):.4f} in {len(predicted):,} predictions")
    axes.set_xlabel(f"predicted {what}")
    axes.set_ylabel("observed frequency" if what == "probability" else "observed rating")
    return fig


@_figure
def training_curves(
    selection: Mapping[str, Sequence[float]],
    strata: Mapping[str, Sequence[float]] | None = None,
    baselines: Mapping[str, float] | None = None,
    best_epoch: int | None = None,
    label: str = "ndcg@10",
) -> Figure:
    """Draws metrics on validation queries by epoch.

    Args:
      selection: Name of a model -> value of each epoch by which epochs are compared.
      strata: Stratum -> metric of each epoch; drawn in a second panel.
      baselines: Baseline -> value by which its settings were chosen; drawn as horizontal lines.
      best_epoch: The epoch to mark, counted from 0.
      label: The metric of ``strata``.
    """
    from matplotlib.ticker import MaxNLocator

    fig, panels = _axes(2 if strata else 1, height=2.6)
    for at, (name, values) in enumerate(selection.items()):
        panels[0].plot(range(1, len(values) + 1), values, label=_legend(name), **_series(at))
    last = max([2, *map(len, selection.values())])
    for at, (name, value) in enumerate((baselines or {}).items(), start=len(selection)):
        style = _series(at) | {"marker": None, "linewidth": 1.1}
        panels[0].plot([1, last], [value, value], label=_legend(name), **style)
    panels[0].set_ylabel("selection value")
    for at, (name, values) in enumerate((strata or {}).items()):
        panels[1].plot(range(1, len(values) + 1), values, label=_legend(name), **_series(at))
        panels[1].set_ylabel(label)
    for axes in panels:
        if best_epoch is not None:
            axes.axvline(best_epoch + 1, color=MUTED, linewidth=0.8, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    panels[-1].set_xlabel("epoch" if best_epoch is None else f"epoch (dotted: the best, {best_epoch + 1})")
    return fig


@_figure
def strata_intervals(figures: Mapping[str, Mapping[str, Interval]], label: str = "recall@10") -> Figure:
    """Draws bars with intervals: a panel for each stratum, with a bar for each recommender.

    Args:
      figures: Stratum, such as ``all (943 targets)`` -> recommender -> the metric with its 95 % interval.
      label: The label of the metric.
    """
    sizes = [len(each) for each in figures.values()]
    fig, panels = _axes(len(figures), ratios=sizes, height=0.3 + 0.19 * max(sizes), shared=True)
    for axes, (stratum, rows) in zip(panels, figures.items(), strict=True):
        for at, (value, low, high) in enumerate(rows.values()):
            axes.barh(at, value, height=0.7, color="#8fbfdf" if at == 0 else "#d0d0d0")
            if low is not None and high is not None:
                axes.plot([low, high], [at, at], color=TEXT, linewidth=1.1)
        axes.set_yticks(range(len(rows)), [_legend(name) for name in rows])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_title(stratum)
        axes.tick_params(axis="y", length=0)
    panels[-1].set_xlim(left=0)  # after all are drawn, because they share the axis
    panels[-1].set_xlabel(f"{label}, with its 95 % interval")
    return fig


@_figure
def difference_intervals(differences: Mapping[str, Mapping[str, Interval]], to: str, coverage: float = 0.95) -> Figure:
    """Draws differences to one result, with their paired intervals: a panel for each metric.

    Args:
      differences: Label of the metric -> name -> the difference and its interval.
      to: The name of the result that all others are compared with.
      coverage: The confidence level of the intervals.
    """
    sizes = [len(each) for each in differences.values()]
    fig, panels = _axes(len(differences), ratios=sizes, height=0.5 + 0.19 * max(sizes))
    for axes, (label, rows) in zip(panels, differences.items(), strict=True):
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for at, (value, low, high) in enumerate(rows.values()):
            sure = low is not None and high is not None and not low <= 0 <= high
            colour = TEXT if not sure else COLOURS[0] if value > 0 else COLOURS[1]
            axes.plot([value if low is None else low, value if high is None else high], [at, at], color=colour)
            axes.plot(value, at, "o", color=colour, markerfacecolor=colour if sure else "white")
        axes.set_yticks(range(len(rows)), [_legend(name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_title(_legend(label))
        axes.tick_params(axis="y", length=0)
    panels[-1].set_xlabel(f"difference to {_legend(to)}, with its {100 * coverage:.4g} % interval")
    return fig


@_figure
def rate_by_time(times: Sequence[Any], values: np.ndarray, low: np.ndarray, high: np.ndarray, since: Any) -> Figure:
    """Draws an hourly rate with its interval, and marks the start of the period that is compared with the time before.

    Args:
      times: Datetimes, ascending.
      values: Float ``[H]``, the rates.
      low, high: Float ``[H]``, the ends of their intervals.
      since: The start of the period, a datetime.
    """
    import matplotlib.dates

    fig, (axes,) = _axes()
    axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(times, values, color=COLOURS[0])
    axes.axvline(since, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("click-through rate")
    locator = matplotlib.dates.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))
    return fig


@_figure
def two_distributions(labels: Sequence[str], before: np.ndarray, after: np.ndarray, name: str) -> Figure:
    """Draws the shares of bins in a reference and in the period that is compared with it.

    Args:
      labels: The labels of the bins.
      before: Float ``[B]``, the shares in the reference.
      after: Float ``[B]``, the shares in the period.
      name: The name of the field.
    """
    fig, (axes,) = _axes(height=0.9 + 0.24 * len(labels))
    at = np.arange(len(labels))
    for place, (label, values) in enumerate((("reference", before), ("now", after))):
        axes.barh(at + 0.4 * place - 0.2, values, 0.38, color=(MUTED, COLOURS[0])[place], label=label)
    axes.set_yticks(at, [_legend(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share")
    axes.set_ylabel(_legend(name))
    _legend_above(fig)
    return fig


@_figure
def field_information(information: Mapping[str, tuple[float, bool]], target: str) -> Figure:
    """Draws how much each field tells about a target: a bar for each field, grey and its name in brackets by chance.

    Args:
      information: Key of the field -> its information, from 0 to 1, and whether it may be chance.
      target: The name of the target.
    """
    fig, (axes,) = _axes(height=0.6 + 0.24 * len(information))
    for at, (share, by_chance) in enumerate(information.values()):
        axes.barh(at, share, height=0.7, color="#d0d0d0" if by_chance else "#8fbfdf")
    names = [f"({_legend(key)})" if by_chance else _legend(key) for key, (_, by_chance) in information.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"tells of {target} (0: nothing, 1: all)")
    return fig


@_figure
def confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draws which labels are listed first, by the labels of the held-out items.

    Args:
      counts: Int ``[C, C]``; a row for each label of the held-out item, a column for each label that was listed first.
      labels: The labels of the C rows and columns.
    """
    size = max(WIDTH, 1.6 + 0.24 * len(labels))
    fig, (axes,) = _axes(width=WIDTH, height=size * 0.95)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    for row, column in zip(*np.nonzero(share >= 0.005), strict=True):
        colour = "white" if share[row, column] > 0.55 else TEXT
        text = f"{100 * share[row, column]:.0f}"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=7)
    names = [_legend(label, 16) for label in labels]
    middles = np.arange(len(labels)) + 0.5
    axes.set_xticks(middles, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xlabel("listed first of these labels (% of the row)")
    axes.set_ylabel("label of the held-out item")
    return fig


@_figure
def neighbourhood(item: str, neighbours: Sequence[str], weights: np.ndarray, joined_by: Sequence[str]) -> Figure:
    """Draws the neighbours of an item in a graph, strongest first, each with the relations that join it to the item.

    Args:
      item: The title of the item.
      neighbours: The titles of the neighbours, at least one.
      weights: Float ``[K]``, above 0; a stronger edge has a wider line.
      joined_by: The relations of each neighbour, in words.
    """
    fig, (axes,) = _axes(height=0.3 + 0.42 * len(neighbours))
    middle = (len(neighbours) - 1) / 2
    for place, (name, weight, words) in enumerate(zip(neighbours, weights, joined_by, strict=True)):
        width = 0.8 + 2.4 * float(weight / np.max(weights))
        axes.plot([0, 0.6], [middle, place], color=COLOURS[0], linewidth=width)
        axes.text(0.65, place, _legend(name), va="bottom")
        axes.text(0.65, place, _legend(words, 36), va="top", color=MUTED)
    axes.text(-0.05, middle, _legend(item, 14), va="center", ha="right")
    axes.set_xlim(-0.9, 2.9)
    axes.set_ylim(len(neighbours) - 0.4, -0.6)
    axes.set_axis_off()
    return fig


# Output formats -------------------------------------------------------------------------------------------------------


def svg(figure: Figure, name: str, says: str) -> str:
    """Converts a figure to an ``<svg>`` element for a page: text stays text, and equal figures give equal bytes.

    Args:
      figure: A figure from a function of this module.
      name: The prefix of the ids in the element; each figure of a page needs a different one.
      says: What the figure shows, for readers who cannot see it.
    """
    written = io.BytesIO()
    with _style():
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(written.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    named = {found for element in root.iter() for value in element.attrib.values() for found in _NAMED.findall(value)}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        if element.tag != "text":
            element.text = None
        element.tail = None
        kept = {key.removeprefix(f"{{{_XLINK}}}"): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in kept.items():
            if key == "id" and value in named:
                element.set(key, f"{name}-{value}")
            elif key in _GEOMETRY and not value.startswith("rotate(-0 "):
                element.set(key, _DIGITS.sub(r"\1", value))
            elif key in ("href", "clip-path"):
                element.set(key, value.replace("#", f"#{name}-"))
            elif key in ("style", "viewBox"):
                element.set(key, value)
    for key in ("width", "height"):  # the page sets the size
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": says}
    return ElementTree.tostring(root, encoding="unicode")


_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NAMED = re.compile(r"^(?:url\()?#([\w.-]+)")
#: Attributes with coordinates, for which two decimal places are enough.
_GEOMETRY, _DIGITS = ("d", "x", "y", "width", "height", "transform"), re.compile(r"(\.\d\d)\d+")


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Converts a figure to a PNG file."""
    written = io.BytesIO()
    with _style():
        figure.savefig(written, format="png", dpi=dpi, metadata={"Software": None})
    return written.getvalue()


def _axes(
    panels: int = 1,
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    ratios: Sequence[int] | None = None,
    shared: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Creates a figure with panels below each other, each ``height`` inches high; ``shared`` shares the x axis."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height * panels), layout="constrained")
    grid = {"height_ratios": ratios} if ratios else None
    return fig, list(fig.subplots(panels, 1, squeeze=False, sharex=shared, gridspec_kw=grid)[:, 0])


def _series(at: int) -> dict[str, Any]:
    """Returns the style of the series ``at``; the first one, the model's, is drawn above all others."""
    kinds = len(COLOURS)
    return {
        "color": COLOURS[at % kinds],
        "marker": MARKERS[at % kinds],
        "linestyle": LINES[at % kinds],
        "zorder": 3 if at == 0 else 2,
    }


def _legend_above(fig: Figure, columns: int = 2) -> None:
    fig.legend(loc="outside upper left", ncols=columns)


def _legend(name: str, letters: int = LETTERS) -> str:
    """Returns a name, clipped; matplotlib would leave out one that begins with an underscore, so a space is added."""
    name = clipped(name, letters)
    return f" {name}" if name.startswith("_") else name


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))
