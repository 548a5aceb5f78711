"""Items as text: one string an item, by a template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, TAGS, TITLE
from tfllmrec.data.cleaning import as_text, strip_html
from tfllmrec.errors import ConfigError

# What the auto template is put together from, in this order; the first column of a line that is there is taken.
_AUTO = (
    ((TITLE,), "{%s}"),
    (("release_year",), "({%s})"),  # RecBole's MovieLens has it there, GroupLens' own has it in the title
    (("authors", "author", "artist", "brand"), "by {%s}"),
    ((CATEGORIES,), "({%s})"),
    ((TAGS,), "[{%s}]"),
    ((DESCRIPTION,), "{%s}"),
)
_FIELD = re.compile(r"\{([^{}]*)\}")
# A bracket with a field in it goes as a whole when none of its fields has a value.
_ELEMENT = re.compile(r"\([^()]*\{[^{}]*\}[^()]*\)|\[[^\[\]]*\{[^{}]*\}[^\[\]]*\]|\{[^{}]*\}")
_ARTICLE = re.compile(
    r"^(.+?), (The|A|An|Les|Le|La|L'|Il|Lo|El|Los|Las|Das|Der|Die|Den|Det|Ein|Eine|Un|Une)( \(.*)?$", re.S
)
_SPACES = re.compile(r"\s+")

Row = dict[str, str]


@dataclass(frozen=True)
class ItemTemplate:
    """How an item's columns become the string that the encoder reads.

    Braces name columns: ``"{title} ({categories}) {description}"``. Where a value is missing, the literal before its
    field goes with it, and so does a bracket that is left without any value: no ``()``, no dangling ``by``. HTML is
    taken out, white space made single, ``"Matrix, The (1999)"`` in the title becomes ``"The Matrix (1999)"``.

    Attributes:
      template: the template, resolved.
      max_characters: longer texts are cut at the last space before it. 2,000 is more than 512 tokens of English.
    """

    template: str
    max_characters: int = 2000

    def __post_init__(self) -> None:
        if "{" in _FIELD.sub("", self.template) or "}" in _FIELD.sub("", self.template):
            raise ConfigError(f"text.template {self.template!r}: a brace has no partner; expected such as '{{title}}'")
        if not self.columns:
            raise ConfigError(f"text.template {self.template!r} names no column; expected such as '{{title}}'")

    @classmethod
    def from_items(cls, items: pd.DataFrame, template: str | None = None, max_characters: int = 2000) -> ItemTemplate:
        """A template for this table; ``None`` makes one from the text columns that it has.

        Auto is title, release year in brackets, ``by`` author or brand, categories in brackets, tags in square ones,
        description.

        Raises:
          ConfigError: the template names a column that is not there, or there is no text column to make one from.
        """
        if template is None:
            parts = [next((form % c for c in names if c in items and _filled(items[c])), "") for names, form in _AUTO]
            template = " ".join(filter(None, parts))
            if not template:
                raise ConfigError(
                    "no text.template is set and the items table has no text to make one from: expected a column "
                    f"{TITLE!r}, {CATEGORIES!r} or {DESCRIPTION!r}, got {', '.join(items.columns)}. Name one in "
                    "text.template, such as '{name}', or map it under data.columns."
                )
        made = cls(template, max_characters)
        made._require(items)
        return made

    @property
    def columns(self) -> list[str]:
        """The columns that the template names, once each."""
        return list(dict.fromkeys(_FIELD.findall(self.template)))

    def texts(self, items: pd.DataFrame) -> list[str]:
        """One string for each row of ``items``, in its order; ``""`` where every field is missing.

        Raises:
          ConfigError: a column is not there.
        """
        self._require(items)
        render = _compile(self.template)
        values = {name: [_clean(name, value) for value in items[name]] for name in self.columns}
        rows = (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
        return [_cut(_SPACES.sub(" ", render(row)).strip(), self.max_characters) for row in rows]

    def _require(self, items: pd.DataFrame) -> None:
        for name in self.columns:
            if name not in items:
                near = difflib.get_close_matches(name, map(str, items.columns), n=1, cutoff=0.0)
                raise ConfigError(
                    f"text.template {self.template!r} names the column {name!r}, which the items table does not have. "
                    + (f"The nearest is {near[0]!r}; it has " if near else "It has ")
                    + f"{', '.join(map(str, items.columns)) or 'none'}."
                )


def _filled(column: pd.Series) -> bool:
    return any(as_text(value).strip() for value in column)


def _clean(name: str, value: object) -> str:
    text = _SPACES.sub(" ", strip_html(as_text(value))).strip()
    if name == TITLE and (match := _ARTICLE.match(text)):
        rest, article, tail = match.groups(default="")
        text = f"{article}{'' if article.endswith(chr(39)) else ' '}{rest}{tail}"
    return text


def _compile(template: str) -> Callable[[Row], str]:
    """A function of the values of one item; see :class:`ItemTemplate` for what goes with a missing value."""
    elements: list[tuple[str, Callable[[Row], str]]] = []
    end = 0
    for match in _ELEMENT.finditer(template):
        element = match.group()
        if element.startswith("{"):
            read = _field(element[1:-1])
        else:
            read = _bracket(element[0], _compile(element[1:-1]), element[-1])
        elements.append((template[end : match.start()], read))
        end = match.end()
    tail = template[end:]

    def render(row: Row) -> str:
        out = ""
        for i, (literal, read) in enumerate(elements):
            if value := read(row):
                out += (literal if out or i == 0 else "") + value
        return out + tail if out else ""

    return render


def _field(name: str) -> Callable[[Row], str]:
    return lambda row: row[name]


def _bracket(opening: str, inner: Callable[[Row], str], closing: str) -> Callable[[Row], str]:
    return lambda row: f"{opening}{text}{closing}" if (text := inner(row)) else ""


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, space, _ = text[: limit + 1].rpartition(" ")
    return head if space else text[:limit]
