"""Divides the requests that name no version between the stable version and a canary."""

from __future__ import annotations

from typing import NamedTuple

from tfllmrec.feedback.assignment import Experiment
from tfllmrec.server.lists import entries_of, user_of
from tfllmrec.server.tensors import Tensors

STABLE, CANARY = "stable", "canary"


class Arm(NamedTuple):
    """The arm of a request: ``stable`` or ``canary`` of the experiment ``MODEL/VERSION``, named after the canary."""

    experiment: str
    name: str


def arm_of(model: str, canary: int, share: float, inputs: Tensors, request_id: str) -> Arm | None:
    """Returns the arm of a request.

    All requests of a user are in the same arm, on any server with the same share. A request without a user is assigned
    by its id.

    Args:
      model: The name of the model.
      canary: The number of the canary.
      share: The share of users who get the canary, above 0 and below 1.
      inputs: The inputs of the request, unchecked.
      request_id: The id of the request.

    Returns:
      The arm; ``None`` for a request of several users, who may be in different arms.
    """
    context = inputs.get("context")
    rows = len(context) if context is not None and context.ndim else 1
    users = map(user_of, entries_of(context, rows))
    user = next(users, None)
    if any(other != user for other in users):  # ends at the second user
        return None
    experiment = Experiment(f"{model}/{canary}", {STABLE: 1 - share, CANARY: share})
    return Arm(experiment.name, experiment.assign(user or request_id))
