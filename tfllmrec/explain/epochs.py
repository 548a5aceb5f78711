"""Validation results of a run's epochs, from its checkpoints and its TensorBoard logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from tfllmrec.board.tags import tag_of
from tfllmrec.durable import read_json
from tfllmrec.evaluation.protocol import shown_length
from tfllmrec.runs.run import REMEDY, Run


class _State(BaseModel, extra="allow"):
    """The content of ``checkpoints/state.json``. Only the keys that are used are validated."""

    best_epoch: int = -1
    values: list[float] = []


@dataclass(frozen=True)
class Epochs:
    """Figures on validation queries by epoch.

    Attributes:
      selection: The value by which epochs are compared; empty if nothing was trained.
      best: The epoch that was kept, from 0; ``None`` if nothing was trained.
      strata: The metric ``label`` by epoch for ``all``, ``head``, ``tail`` and ``cold``; empty if the logs are missing.
      label: ndcg@10; or at the longest length that the logs have, if they lack 10.
    """

    selection: Sequence[float] = ()
    best: int | None = None
    strata: Mapping[str, Sequence[float]] = field(default_factory=dict)
    label: str = "ndcg@10"


def epochs_of(run: Run, events: bool = True) -> Epochs:
    """Reads the epochs of a run.

    Args:
      run: The run.
      events: Whether the logs are read, too, for the strata.

    Raises:
      ModelError: The state of the checkpoints is damaged.
    """
    path = run.folder / "checkpoints" / "state.json"
    if not path.is_file():
        return Epochs()
    state = read_json(path, _State, REMEDY)
    if not state.values:
        return Epochs()
    logged = logged_scalars(run.folder / "logs" / "validation") if events else {}
    of_all = tag_of("ndcg@")
    lengths = [int(tag.removeprefix(of_all)) for tag in logged if tag.startswith(of_all)]
    label = f"ndcg@{shown_length(lengths or [10])}"
    labels = {"all": label, **{stratum: f"{label}/{stratum}" for stratum in ("head", "tail", "cold")}}
    names = {name: tag_of(label) for name, label in labels.items()}
    strata = {
        name: [logged[label][epoch] for epoch in range(len(state.values))]
        for name, label in names.items()
        if set(range(len(state.values))) <= set(logged.get(label, {}))
    }
    return Epochs(state.values, state.best_epoch if state.best_epoch >= 0 else None, strata, label)


def logged_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Returns the newest value of each scalar by tag and step, from a folder of TensorBoard's event files."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in events.Tags()[TENSORS]:
        for event in events.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.ndim == 0 and value.dtype.kind == "f":  # skips the layout of Custom Scalars, which is bytes
                found.setdefault(tag, {})[event.step] = float(value)
    return found
