"""The tags of figures in TensorBoard, and the layout of its Custom Scalars.

TensorBoard groups tags by the part before the first slash and sorts the groups, so ``accuracy`` comes first. It shows
figures at only one length of lists; the others are in ``metrics.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tensorboard.plugins.custom_scalar import layout_pb2, summary

#: The group of ranking metrics over all targets.
ACCURACY = "accuracy"
#: The group of properties of the lists: coverage, Gini, novelty, of all items or of a stratum.
LISTS = "lists"
TRAINING = "training"
#: The value by which epochs are compared, see :func:`tfllmrec.evaluation.protocol.selection_value`.
SELECTION = f"{ACCURACY}/selection"
_OF_LISTS = ("coverage", "gini", "novelty")


def tag_of(label: str) -> str:
    """Returns the tag of a figure: ``ndcg@10`` is ``accuracy/ndcg@10``, ``ndcg@10/tail`` is ``tail/ndcg@10``.

    Figures of lists are in one group: ``coverage@10/tail`` is ``lists/coverage@10 tail``.
    """
    name, _, stratum = label.partition("/")
    if name.partition("@")[0] in _OF_LISTS:
        return f"{LISTS}/{name}{' ' * bool(stratum)}{stratum}"
    return f"{stratum or ACCURACY}/{name}"


def shown(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Returns the figures that TensorBoard shows, by tag: those at 10, or at the largest k if 10 was not measured."""
    lengths = {int(found) for label in metrics if (found := _length(label))}
    k = 10 if 10 in lengths else max(lengths, default=0)
    return {
        tag_of(label): value for label, value in metrics.items() if value is not None and _length(label) in (str(k), "")
    }


def _length(label: str) -> str:
    """Returns the length of lists at which a figure is measured; ``""`` if it has none."""
    return label.partition("@")[2].partition("/")[0]


def layout(tags: Iterable[str]) -> bytes:
    """Returns the Custom Scalars layout for these tags, in order of importance, as a serialized summary.

    A chart draws one line for each run, so baselines, validation and test appear in the same chart.
    """
    tags = list(tags)
    strata = [group for group in dict.fromkeys(tag.partition("/")[0] for tag in tags) if group not in _GROUPS]
    charts = [
        ("How good", [("What epochs are compared by", [SELECTION]), *_each(tags, ACCURACY, but=SELECTION)]),
        *((f"How good: {stratum} items", _each(tags, stratum)) for stratum in strata),
        ("Training", _each(tags, TRAINING)),
        ("Lists", _each(tags, LISTS)),
    ]
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=map(_exact, of)))
                for name, of in parts
            ],
        )
        for title, parts in charts
        if parts
    ]
    return summary.pb(layout_pb2.Layout(category=categories)).SerializeToString()


#: Characters with a meaning in regular expressions.
_SIGNS = r".^$*+?()[]{}|\/"
_GROUPS = (ACCURACY, LISTS, TRAINING)


def _each(tags: Iterable[str], group: str, but: str = "") -> list[tuple[str, list[str]]]:
    return [(tag.partition("/")[2], [tag]) for tag in tags if tag.partition("/")[0] == group and tag != but]


def _exact(tag: str) -> str:
    """Returns a regular expression for the tag in JavaScript's syntax."""
    escaped = "".join(f"\\{sign}" if sign in _SIGNS else sign for sign in tag)
    return f"^{escaped}$"
