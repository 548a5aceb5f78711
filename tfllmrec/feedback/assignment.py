"""Assigns users to the arms of an experiment by a hash of the user id, so that nothing has to be stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tfllmrec.errors import ConfigError

_BITS = 53  # the precision of a float64


@dataclass(frozen=True)
class Experiment:
    """An experiment whose arms are assigned by weighted rendezvous hashing.

    For each arm ``a``, the SHA-256 of (salt, name, arm, user id) gives a number ``u_a`` between 0 and 1. The user is in
    the arm with the smallest ``-log(u_a) / share_a``. These are exponential variables with the rates ``share_a``, and
    arm ``a`` has the smallest one with probability ``share_a / sum of all shares`` (Thaler and Ravishankar 1998, "Using
    name-based mappings to increase hit rates"; Schindelhauer and Schomaker 2005 for the weights).

    It follows that

    - the same user always gets the same arm, on any machine;
    - experiments with different names or salts are independent of each other;
    - only the ratio of the shares matters. If one share grows and the others stay, or an arm is added, users move only
      into this arm, because only its value falls. If one share falls, users only leave its arm. To give an experiment
      more traffic, define an arm for all other users and lower its share.

    Attributes:
      name: The name of the experiment.
      arms: The share of each arm by name, such as ``{"control": 0.5, "new": 0.5}``; the first one is the control.
      salt: Changes all assignments, for example for a second run with a fresh assignment of users.

    Raises:
      ConfigError: There are fewer than two arms, a share is not a positive number, or a name is empty.
    """

    name: str
    arms: Mapping[str, float]
    salt: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("Expected a name for the experiment, found an empty one.")
        if len(self.arms) < 2 or "" in self.arms:
            raise ConfigError(
                f"Expected two or more arms with names, found {', '.join(map(repr, self.arms)) or 'none'}."
            )
        for arm, share in self.arms.items():
            if not (math.isfinite(share) and share > 0):
                raise ConfigError(f"Expected a share above 0 for the arm {arm!r}, found {share}.")

    @property
    def shares(self) -> dict[str, float]:
        """The expected share of users in each arm; the shares sum to 1."""
        total = math.fsum(self.arms.values())
        return {arm: share / total for arm, share in self.arms.items()}

    def assign(self, user_id: str) -> str:
        """Returns the arm of a user."""
        return str(self.assign_all([user_id])[0])

    def assign_all(self, user_ids: Iterable[str]) -> np.ndarray:
        """Returns the arm of each user, object ``[n]``.

        Raises:
          ConfigError: An id is empty. Users without an id cannot keep their arm from visit to visit.
        """
        users = [str(user) for user in user_ids]
        if "" in users:
            raise ConfigError(f"Expected an id for each user, found an empty one at place {users.index('') + 1:,}.")
        names, shares = list(self.arms), np.array(list(self.arms.values()), dtype=np.float64)
        values = np.empty((len(users), len(names)))
        for place, arm in enumerate(names):
            # Each word is preceded by its length, so that different experiments never hash the same text.
            words = [self.salt, self.name, arm]
            start = hashlib.sha256("".join(f"{len(word.encode())}:{word}" for word in words).encode())
            values[:, place] = [_uniform(start, user) for user in users]
        return np.array(names, dtype=object)[np.argmin(-np.log(values) / shares, axis=1)]


def _uniform(start: hashlib._Hash, user: str) -> float:
    """Returns the middle of one of 2**53 equal parts of the interval from 0 to 1."""
    digest = start.copy()
    digest.update(user.encode(errors="surrogatepass"))
    return ((int.from_bytes(digest.digest()[:8]) >> (64 - _BITS)) + 0.5) / (1 << _BITS)
