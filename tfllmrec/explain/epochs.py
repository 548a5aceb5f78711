"""What a run's epochs reached on validation, from its checkpoints and its TensorBoard logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from tfllmrec.board.tags import tag_of
from tfllmrec.durable import read_json
from tfllmrec.runs.run import REMEDY, Run


class _State(BaseModel, extra="allow"):
    """``checkpoints/state.json``. Only the keys that are read are checked."""

    best_epoch: int = -1
    values: list[float] = []


@dataclass(frozen=True)
class Epochs:
    """Figures on validation queries by epoch.

    Attributes:
      selection: the value that epochs are compared by; empty where nothing was trained.
      best: the epoch that was kept, from 0; ``None`` where nothing was trained.
      strata: ndcg@10 by epoch, under ``all``, ``head``, ``tail`` and ``cold``; empty where the logs are gone.
    """

    selection: Sequence[float] = ()
    best: int | None = None
    strata: Mapping[str, Sequence[float]] = field(default_factory=dict)


def epochs_of(run: Run, events: bool = True) -> Epochs:
    """The epochs of a run.

    Args:
      events: whether the logs are read, too, for the strata.

    Raises:
      ModelError: the state of the checkpoints is damaged.
    """
    path = run.folder / "checkpoints" / "state.json"
    if not path.is_file():
        return Epochs()
    state = read_json(path, _State, REMEDY)
    if not state.values:
        return Epochs()
    logged = logged_scalars(run.folder / "logs" / "validation") if events else {}
    labels = {"all": "ndcg@10", **{stratum: f"ndcg@10/{stratum}" for stratum in ("head", "tail", "cold")}}
    names = {name: tag_of(label) for name, label in labels.items()}
    strata = {
        name: [logged[label][epoch] for epoch in range(len(state.values))]
        for name, label in names.items()
        if set(range(len(state.values))) <= set(logged.get(label, {}))
    }
    return Epochs(state.values, state.best_epoch if state.best_epoch >= 0 else None, strata)


def logged_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The newest value of each scalar by its tag and step, from a folder of TensorBoard's event files."""
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
            if value.ndim == 0 and value.dtype.kind == "f":  # not the layout of Custom Scalars, which is bytes
                found.setdefault(tag, {})[event.step] = float(value)
    return found
