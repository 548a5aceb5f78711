"""Applies rules to all versions in a model's folder, while they are served; later versions get the same rules.

``rules.json``, in the same folder as the versions, contains the rules file as it was written, the tables of stock and
prices, and the decisions of reviews. It is written before the compiled files of the versions. If an apply is killed in
between, some versions keep their previous rules, in complete files; the next apply updates them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tfllmrec.columns import ITEM
from tfllmrec.durable import locked, read_json, replacing, write_text
from tfllmrec.errors import ConfigError, DataError, ModelError
from tfllmrec.feedback.tables import numbers, read_feedback, require_columns, texts
from tfllmrec.progress import Tell, show_progress
from tfllmrec.serving.layout import ASSETS, EXTRA, ITEM_FIELDS, version_folders
from tfllmrec.serving.promotion import read_promotions
from tfllmrec.serving.rules.compiled import NO_RULES, RULES, rules_digest
from tfllmrec.serving.rules.compiler import Compiled, Decisions, RuledCatalogue, compile_rules
from tfllmrec.serving.rules.document import RulesFile, parse_rules
from tfllmrec.wording import nearest_hint

STORED = "rules.json"
#: Columns of the tables of stock and prices.
STOCK, PRICE = "stock", "price"
#: Largest size of a rules file in bytes.
MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class StoredRules:
    """The content of ``rules.json``.

    Attributes:
      name: The name of the rules file; ``""`` if there are no rules.
      text: The text of the rules file.
      stock: The stock counts by item id, from the table or the rules file.
      prices: The present prices by item id, from the table or the rules file.
      approved: Ids that a person has approved.
      rejected: Ids that a person has rejected.
      seen: Ids that were in a version when a rule for the review of ``new`` items was first applied.
    """

    name: str = ""
    text: str = ""
    stock: dict[str, float] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    approved: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    @property
    def written(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.written.encode("utf-8", "surrogatepass")).digest()

    def read(self) -> RulesFile:
        return parse_rules(self.text, self.name)

    def compiled(self, catalogue: RuledCatalogue) -> Compiled | None:
        """Compiles the rules for a catalogue; returns ``None`` if there are no rules."""
        if not self.name:
            return None
        decisions = Decisions(self.stock, self.prices, self.approved, self.rejected, self.seen)
        return compile_rules(self.read(), decisions, self.digest, catalogue)


@dataclass(frozen=True)
class Applied:
    """The result of applying rules.

    Attributes:
      rules: The name of the rules file; ``""`` if there are no rules.
      versions: The compiled rules of each version to which they apply, by number; ``None`` without rules.
      older: The numbers of versions that do not support rules, because they were exported by an earlier release.
      unfit: The reasons why the rules do not fit some versions, by number. These versions are not in use and keep their
        previous rules.
    """

    rules: str
    versions: Mapping[int, Compiled | None]
    older: Sequence[int]
    unfit: Mapping[int, str]

    @property
    def newest(self) -> Compiled | None:
        return self.versions[max(self.versions)]

    def as_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; ``counts`` are those of the newest version."""
        versions = [
            {"version": number, "hidden": done.hidden, "restricted": done.restricted, "waiting": len(done.waiting)}
            if done is not None
            else {"version": number, "hidden": 0, "restricted": 0, "waiting": 0}
            for number, done in self.versions.items()
        ]
        counts = [] if self.newest is None else [asdict(count) for count in self.newest.counts]
        return {
            "rules": self.rules,
            "versions": versions,
            "without_rules": list(self.older),
            "unfit": [{"version": number, "reason": reason} for number, reason in self.unfit.items()],
            "counts": counts,
        }


def read_stored(folder: Path) -> StoredRules:
    """Returns the stored rules of a model's folder; empty ones if no rules were applied.

    Raises:
      ModelError: The file is damaged.
    """
    path = folder / STORED
    return read_json(path, StoredRules, "apply the rules again, after removing it") if path.exists() else StoredRules()


def apply_rules(folder: Path, rules: Path, tell: Tell, *, dry_run: bool = False) -> Applied:
    """Replaces the rules of every version of a model by those of a rules file; decisions of reviews are kept.

    A version that the rules do not fit, such as an old one without a field, keeps its previous rules. If it is the
    newest version or in use (:mod:`tfllmrec.serving.promotion`), an error is raised instead.

    Servers need no restart: the new rules apply from the next request on.

    Args:
      folder: The folder of the versions, such as ``saved_models/shop``.
      rules: The rules file, YAML or JSON.
      tell: Called with a line for each finding in the tables of stock and prices.
      dry_run: Whether to check and count only, without writing anything.

    Raises:
      ConfigError: The file cannot be read, the rules do not fit the newest version or one in use (the message names the
        version and the line), or another process applies rules.
      DataError: The table of stock or prices cannot be read.
      ModelError: The folder has no version that supports rules, or one is damaged.
      WriteError: The folder cannot be written; each version has either its previous rules or the new ones.
    """
    text = _text_of(rules)
    read = parse_rules(text, str(rules))
    stock = _by_item(read, "stock", read.document.stock, STOCK, rules.parent, tell)
    prices = _by_item(read, "prices", read.document.prices, PRICE, rules.parent, tell)
    _check_folder(folder)

    def changed(stored: StoredRules) -> StoredRules:
        seen = stored.seen
        if not seen and any(rule.new for rule in read.document.review):
            seen = sorted(_ids(folder))
        return replace(stored, name=str(rules.name), text=text, stock=stock, prices=prices, seen=seen)

    if dry_run:
        return _compiled(folder, changed(read_stored(folder)))
    return _change(folder, changed)


def clear_rules(folder: Path) -> Applied:
    """Removes all rules from a model's versions; decisions of reviews are kept.

    Raises:
      ConfigError, ModelError, WriteError: See :func:`apply_rules`.
    """
    _check_folder(folder)
    return _change(folder, lambda stored: replace(stored, name="", text="", stock={}, prices={}))


def review_items(folder: Path, approve: Sequence[str] = (), reject: Sequence[str] = ()) -> Applied:
    """Approves and rejects items, and applies the rules again; an earlier decision on an item is replaced.

    Args:
      folder: The folder of the versions.
      approve: Ids of items to approve.
      reject: Ids of items to reject.

    Raises:
      DataError: No version has such an item, or an item is both approved and rejected.
      ConfigError, ModelError, WriteError: See :func:`apply_rules`.
    """
    _check_folder(folder)
    if not approve and not reject:
        return _compiled(folder, read_stored(folder))
    if both := set(approve) & set(reject):
        raise DataError(f"Expected each item approved or rejected, found {sorted(both)[0]!r} in both.")
    known = _ids(folder)
    for item in (*approve, *reject):
        if item not in known:
            raise DataError(f"No version in {folder} has the item {item!r}{nearest_hint(item, known)}.")

    def changed(stored: StoredRules) -> StoredRules:
        approved = (set(stored.approved) | set(approve)) - set(reject)
        rejected = (set(stored.rejected) | set(reject)) - set(approve)
        return replace(stored, approved=sorted(approved), rejected=sorted(rejected))

    return _change(folder, changed)


def show_rules(folder: Path) -> tuple[StoredRules, Applied, list[int]]:
    """Returns the rules of a folder, their effect, and the versions with other rules.

    Versions have other rules if an apply was interrupted.

    Raises:
      ConfigError: The rules do not fit the newest version or one in use.
      ModelError: The folder has no version that supports rules, or a file is damaged.
    """
    _check_folder(folder)
    stored = read_stored(folder)
    expected = stored.digest if stored.name else None
    applied = _compiled(folder, stored)
    others = [
        number
        for number, version in _versions(folder).items()
        if number not in applied.unfit and rules_digest(version / ASSETS / RULES) != expected
    ]
    return stored, applied, others


def take_over(folder: Path, version: Path, tell: Tell) -> StoredRules:
    """Compiles the rules of a model's folder into a version, and returns them.

    Args:
      folder: The folder of the versions.
      version: The folder of the version, which may be unpublished.
      tell: Called with a line that summarises the rules.

    Raises:
      ConfigError: A rule does not fit the version's catalogue; for example, a field no longer exists.
      ModelError: The stored rules are damaged.
      WriteError: The version cannot be written.
    """
    stored = read_stored(folder)
    try:
        done = stored.compiled(RuledCatalogue.of(version))
    except ConfigError as error:
        raise ConfigError(
            *error.args,
            f"The version must obey the rules that were applied to {folder}: apply rules that fit, or 'tfllmrec rules "
            f"clear {folder}'.",
        ) from None
    _write(version, done)
    if done is not None:
        waiting = f", {len(done.waiting):,} of which wait for a review" if done.waiting else ""
        tell(f"rules: {stored.name} hides {done.hidden:,} items{waiting}, and {done.restricted:,} from some requests")
    return stored


def take_over_again(folder: Path, version: Path, before: StoredRules, tell: Tell) -> None:
    """Calls :func:`take_over` after the version was published, if the rules have changed since ``before`` was read.

    While another process applies rules, it waits: that process may compile newer rules into the version.

    Raises:
      ConfigError, ModelError, WriteError: See :func:`take_over`.
    """
    with locked(folder, math.inf):  # a process that dies gives up the lock
        if read_stored(folder) != before:
            take_over(folder, version, tell)


def _change(folder: Path, changed: Callable[[StoredRules], StoredRules]) -> Applied:
    """Stores changed rules and applies them."""
    with locked(folder):
        stored = changed(read_stored(folder))
        # All errors in the rules are found before anything is written.
        applied = _compiled(folder, stored)
        done = dict(applied.versions)
        write_text(folder / STORED, stored.written)
        # The versions are listed again after the rules are stored: an export that publishes a version later reads them.
        versions = {number: version for number, version in _versions(folder).items() if number not in applied.unfit}
        with show_progress("Applying rules", "versions") as progress:
            for count, (number, version) in enumerate(versions.items(), 1):
                if number not in done:
                    done[number] = _compiled_for(number, version, stored)
                _write(version, done[number])
                progress(count, len(versions))
    return Applied(stored.name, done, _older(folder), applied.unfit)


def _write(version: Path, rules: Compiled | None) -> None:
    with replacing(version / ASSETS / RULES) as fresh:
        fresh.write_bytes(NO_RULES if rules is None else rules.content)


def _compiled(folder: Path, stored: StoredRules) -> Applied:
    done, unfit, versions = {}, {}, _versions(folder)
    in_use = {max(versions), *read_promotions(folder).served}
    for number, version in versions.items():
        try:
            done[number] = _compiled_for(number, version, stored)
        except ConfigError as error:
            if number in in_use:
                raise
            unfit[number] = str(error)
    return Applied(stored.name, done, _older(folder), unfit)


def _compiled_for(number: int, version: Path, stored: StoredRules) -> Compiled | None:
    catalogue = RuledCatalogue.of(version)
    try:
        return stored.compiled(catalogue)
    except ConfigError as error:
        raise ConfigError(f"version {number}: {error.args[0]}", *error.args[1:]) from None


def _versions(folder: Path) -> dict[int, Path]:
    """Returns the versions that support rules, even if their file of rules is missing (it is written again)."""
    return {n: path for n, path in version_folders(folder).items() if (path / EXTRA / ITEM_FIELDS).is_file()}


def _older(folder: Path) -> list[int]:
    obey = _versions(folder)
    return [n for n, path in version_folders(folder).items() if n not in obey and (path / "saved_model.pb").is_file()]


def _ids(folder: Path) -> set[str]:
    """Returns the ids of the items of all versions."""
    return {item for version in _versions(folder).values() for item in RuledCatalogue.of(version).ids}


def _check_folder(folder: Path) -> None:
    if (folder / "saved_model.pb").is_file():
        raise ModelError(
            f"{folder} is a version: expected the folder of the model, {folder.parent}. All its versions obey the same "
            "rules."
        )
    versions = _versions(folder) if folder.is_dir() else {}
    older = _older(folder) if folder.is_dir() else []
    if not versions and not older:
        raise ModelError(
            f"{folder} has no version of a model: expected a folder such as saved_models/shop. Write one with "
            f"'tfllmrec export RUN {folder}'."
        )
    if older and max(older) > max(versions, default=-1):
        raise ModelError(
            f"{folder / str(max(older))} has no table of fields for rules, because an earlier version of tfllmrec "
            "exported it: it obeys none. Export the run again."
        )


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode()
    except FileNotFoundError:
        there = sorted(p.as_posix() for p in path.parent.glob("*.*"))
        raise ConfigError(f"{path} does not exist{nearest_hint(path.as_posix(), there)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{path}: expected at most {MOST_BYTES:,} bytes of rules, and it has more. Put long lists of items into a "
            "table and name it in stock, with counts of 0."
        )
    return text


def _by_item(
    read: RulesFile, key: str, given: str | Mapping[str, float] | None, column: str, folder: Path, tell: Tell
) -> dict[str, float]:
    """Returns the numbers by item id that a key of the rules file gives, or that the table has which it names.

    Args:
      read: The rules file.
      key: The key, for messages.
      given: Its value.
      column: The column of the table.
      folder: The folder that the table's path refers to.
      tell: Called with a line for each finding in the table.
    """
    if not isinstance(given, str):
        return dict(given or {})
    path = folder / given
    try:
        frame, findings = read_feedback(path)
        require_columns(frame, [ITEM, column], path.name)
        found = dict(zip(texts(frame, ITEM), numbers(frame, column, path.name).tolist(), strict=True))
    except DataError as error:
        raise DataError(f"{read.origin}, line {read.line(key)}: {error.args[0]}", *error.args[1:]) from error
    for finding in findings:
        tell(f"{path.name}: {finding}")
    if len(found) < len(frame):
        raise DataError(f"{path.name}: expected each item once, found {len(frame):,} rows of {len(found):,} items.")
    return found
