"""The rules file that people write: its schema, and error messages that name the line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tfllmrec.config import Lines, parse_texts
from tfllmrec.errors import ConfigError
from tfllmrec.wording import nearest_hint, shown

#: Largest number of sponsored items; each is looked up at each request.
MOST_SPONSORED = 100
#: Largest age that a rule may require; ages are stored as bytes.
OLDEST = 150
_UNIX = re.compile(r"-?\d+(\.\d+)?")


def seconds_of(text: str) -> float:
    """Returns the seconds since 1970 of an ISO date (UTC if it has no time zone), or of a number of seconds.

    Raises:
      ValueError: The text is neither.
    """
    if _UNIX.fullmatch(text.strip()):
        return float(text)
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _seconds(text: Any) -> Any:
    try:
        return seconds_of(text)
    except (ValueError, TypeError):
        raise ValueError("expected an ISO date, such as 2026-12-01 or 2026-12-01T18:00") from None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Time = Annotated[float, BeforeValidator(_seconds)]
Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Condition(Section):
    """A condition on a field of an item. If several attributes are given, all must be fulfilled.

    Attributes:
      is_: The field has one of these values.
      is_not: The field has none of these values; true for an item without a value.
      above, below, at_least, at_most: Limits of numbers and times; false for an item without a value.
      missing: Whether the item must have no value (``True``) or must have one (``False``).
    """

    is_: Texts | None = Field(None, alias="is")
    is_not: Texts | None = Field(None, alias="not")
    above: str | None = None
    below: str | None = None
    at_least: str | None = None
    at_most: str | None = None
    missing: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _values_alone(cls, value: Any) -> Any:
        return {"is": value} if isinstance(value, str | list) else value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("expected a value, or one of is, not, above, below, at_least, at_most, missing")
        return self


class Selector(Section):
    """Selects the items of a rule: they must have one of the ids, one of the categories and fulfil all conditions.

    Attributes:
      items: Ids; ``None`` for all.
      categories: Names of categories; ``None`` for all.
      where: Conditions by the names of fields; ``None`` for none.
    """

    items: Texts | None = None
    categories: Texts | None = None
    where: dict[str, Condition] | None = Field(None, min_length=1)

    @property
    def is_empty(self) -> bool:
        return self.items is None and self.categories is None and self.where is None


class Selecting(Selector):
    """A selector with at least one criterion, because a rule for all items is probably a mistake."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.is_empty:
            raise ValueError("expected items, categories or where: which items the rule is about")
        return self


class Block(Selecting):
    """Items that are never shown."""


class MinimumAge(Selecting):
    """Items that are shown only to requests whose context has at least this ``age``."""

    age: int = Field(ge=1, le=OLDEST)


class Regions(Selecting):
    """Items that are shown only to requests whose context has a ``region`` in ``only``, or one not in ``except``."""

    only: Texts | None = None
    except_: Texts | None = Field(None, alias="except")

    @field_validator("only", "except_")
    @classmethod
    def _without_line_breaks(cls, names: list[str] | None) -> list[str] | None:
        return _one_line_each(names)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.only is None) == (self.except_ is None):
            raise ValueError("expected either only or except, with names of regions")
        return self


class Fresh(Selector):
    """Items that are shown from the time in ``field`` on, for ``days`` if given; items without a time are hidden."""

    field: str
    days: float | None = Field(None, gt=0)


class Placement(Section):
    """A sponsored item at a position of recommended lists.

    Attributes:
      item: The id of the item.
      place: The position, counted from 1.
      since: The time from which the placement applies; ``None`` for no limit.
      until: The time until which the placement applies, exclusive; ``None`` for no limit.
      context: The values that fields of a request's context must have.
    """

    item: str
    place: int = Field(ge=1, le=1000)
    since: Time | None = Field(None, alias="from")
    until: Time | None = None
    context: dict[str, str] = {}

    @field_validator("context")
    @classmethod
    def _without_line_breaks(cls, context: dict[str, str]) -> dict[str, str]:
        _one_line_each([*context, *context.values()])
        if any("=" in name or not name.strip() for name in context):
            raise ValueError("expected names of the context's fields, without '='")
        return context

    @model_validator(mode="after")
    def _has_a_duration(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("expected 'from' to be earlier than 'until'")
        return self


class Sponsored(Section):
    """Placements, and the largest share of a list that they may take."""

    share: float = Field(gt=0, le=1)
    places: list[Placement] = Field(min_length=1, max_length=MOST_SPONSORED)


class Review(Selector):
    """Items that are shown only after a person has approved them.

    Attributes:
      new: Whether only items are selected that were in no version when ``new`` was first applied.
    """

    new: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.is_empty and not self.new:
            raise ValueError("expected new: true, items, categories or where: which items are reviewed")
        return self


class Document(Section):
    """The content of a rules file.

    Attributes:
      stock: The path, relative to the rules file, of a table with the columns item_id and stock; or the counts by item
        id. Items with a count of 0 or less are not shown; items without a count are shown.
      price: The field of items that ``max_price`` in a request's context limits.
      prices: Present values of that field for all rules, like ``stock``: a table with the columns item_id and price, or
        the prices by item id. Other items keep the prices of the catalogue.
    """

    block: list[Block] = []
    stock: str | dict[str, float] | None = None
    price: str | None = None
    prices: str | dict[str, float] | None = None
    minimum_age: list[MinimumAge] = []
    regions: list[Regions] = []
    fresh: list[Fresh] = []
    sponsored: Sponsored | None = None
    review: list[Review] = []

    @field_validator("prices")
    @classmethod
    def _of_a_field(cls, prices: str | dict[str, float] | None, info: ValidationInfo) -> str | dict[str, float] | None:
        if prices is not None and info.data.get("price") is None:
            raise ValueError("expected the key 'price', too: the name of the field whose values 'prices' replaces")
        return prices


@dataclass(frozen=True)
class RulesFile:
    """A parsed rules file.

    Attributes:
      origin: The name of the file, for messages.
      text: The text of the file.
      document: The parsed content.
      lines: The line of each place in the document.
    """

    origin: str
    text: str
    document: Document
    lines: Lines

    def line(self, *place: str | int) -> int:
        """Returns the line of a place in the document, or of the closest enclosing place."""
        return next((self.lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.lines), 1)

    def error(self, place: Sequence[str | int], what: str) -> ConfigError:
        """Returns an error that names the line of a place."""
        return ConfigError(f"{self.origin}, line {self.line(*place)}: {what}")


def parse_rules(text: str, origin: str) -> RulesFile:
    """Parses a rules file.

    Args:
      text: The text of the file.
      origin: The name of the file, for messages.

    Raises:
      ConfigError: The text is not valid YAML, contains no rules, or has an unknown key or an invalid value; the message
        names the line.
    """
    raw, lines = parse_texts(text, origin)
    if not isinstance(raw, Mapping) or not raw:
        found = "an empty file" if raw is None else shown(raw)
        raise ConfigError(
            f"{origin}: expected rules such as block or stock, found {found}. To remove all rules, run "
            "'tfllmrec rules clear MODEL_FOLDER'."
        )
    try:
        return RulesFile(origin, text, Document.model_validate(raw), lines)
    except ValidationError as error:
        nothing = RulesFile(origin, text, Document(), lines)
        problems = [nothing.error(*_told(problem, lines)).args[0] for problem in error.errors(include_url=False)]
        raise ConfigError(*dict.fromkeys(problems)) from None


def _told(problem: Any, lines: Lines) -> tuple[tuple[str | int, ...], str]:
    """Returns the place of one of pydantic's errors, and a sentence that describes it."""
    place: tuple[str | int, ...] = ()
    for part in problem["loc"]:
        if (*place, part) in lines:  # other parts name branches of unions
            place = (*place, part)
    name = ".".join(map(str, place)) or str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        known = sorted((info.alias or key) for kind in _sections(Document) for key, info in kind.model_fields.items())
        return place, f"{name} is not a key of rules{nearest_hint(str(place[-1]), known)}."
    if problem["type"] == "missing":
        return place, f"{name}: expected the key {problem['loc'][-1]!r}, which is missing."
    said = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    said = said if said.startswith("expected") else f"expected {said[:1].lower()}{said[1:]}"
    return place, f"{name}: {said}; found {shown(problem['input'])}."


def _sections(kind: type[BaseModel]) -> list[type[Section]]:
    """Returns all section classes of a rules file, given one of them."""
    return [each for each in _subclasses(Section) if each.__module__ == kind.__module__]


def _subclasses(kind: type[Section]) -> list[type[Section]]:
    return [each for direct in kind.__subclasses__() for each in (direct, *_subclasses(direct))]


def _one_line_each(names: list[str] | None) -> list[str] | None:
    if names is not None and any(len(name.splitlines()) != 1 for name in names):
        raise ValueError("expected texts of one line")
    return names
