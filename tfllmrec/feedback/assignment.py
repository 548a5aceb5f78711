"""Which arm of an experiment a user is in: decided by a hash of the user's id, so that nothing has to be stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from tfllmrec.errors import ConfigError

_BITS = 53  # a float64 has that many


@dataclass(frozen=True)
class Experiment:
    """An experiment whose arms are assigned by weighted rendezvous hashing.

    For each arm ``a`` the SHA-256 of (salt, name, arm, user id) gives a number ``u_a`` between 0 and 1. The user is in
    the arm with the smallest ``-log(u_a) / share_a``. These are exponential variables with the rates ``share_a``, and
    the smallest one is that of arm ``a`` with probability ``share_a / sum of all shares`` (Thaler and Ravishankar
    1998, "Using name-based mappings to increase hit rates"; Schindelhauer and Schomaker 2005 for the weights).

    It follows that

    - the same user always gets the same arm, on any machine;
    - experiments with different names or salts are independent of each other;
    - only the ratio of the shares counts. If one share grows and the other numbers stay, users move only into this arm,
      because only its value falls; the same holds for an arm that is added. If one share falls, users only leave it.
      To give an experiment more traffic, make an arm for all other users and lower its share.

    Attributes:
      name: of the experiment.
      arms: the share of each arm by its name, such as ``{"control": 0.5, "new": 0.5}``; the first one is the control.
      salt: changes all assignments, such as for a second run with fresh users.

    Raises:
      ConfigError: there are fewer than two arms, a share is not a positive number, or a name is empty.
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
        """The expected share of users in each arm; they add up to 1."""
        total = math.fsum(self.arms.values())
        return {arm: share / total for arm, share in self.arms.items()}

    def assign(self, user_id: str) -> str:
        """The arm of a user."""
        return str(self.assign_all([user_id])[0])

    def assign_all(self, user_ids: Iterable[str]) -> np.ndarray:
        """The arm of each user, object ``[n]``.

        Raises:
          ConfigError: an id is empty: without an id, the user would get another arm at each visit.
        """
        users = [str(user) for user in user_ids]
        if "" in users:
            raise ConfigError(f"Expected an id for each user, found an empty one at place {users.index('') + 1:,}.")
        names, shares = list(self.arms), np.array(list(self.arms.values()), dtype=np.float64)
        values = np.empty((len(users), len(names)))
        for place, arm in enumerate(names):
            # Lengths in front, so that no two experiments share what is hashed.
            words = [self.salt, self.name, arm]
            start = hashlib.sha256("".join(f"{len(word.encode())}:{word}" for word in words).encode())
            values[:, place] = [_uniform(start, user) for user in users]
        return np.array(names, dtype=object)[np.argmin(-np.log(values) / shares, axis=1)]


def _uniform(start: hashlib._Hash, user: str) -> float:
    """The middle of one of 2**53 equal parts of the interval from 0 to 1."""
    digest = start.copy()
    digest.update(user.encode(errors="surrogatepass"))
    return ((int.from_bytes(digest.digest()[:8]) >> (64 - _BITS)) + 0.5) / (1 << _BITS)
