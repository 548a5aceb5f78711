"""Templates that turn each item into one string."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from tfllmrec.columns import CATEGORIES, DESCRIPTION, ITEM, NAME_COLUMNS, TAGS, TITLE
from tfllmrec.data.cleaning.item_text import strip_html
from tfllmrec.data.cleaning.names import names_as_text
from tfllmrec.data.cleaning.values import as_text
from tfllmrec.errors import ConfigError
from tfllmrec.wording import nearest

# The parts of the automatic template, in this order; each part uses the first of its columns that has values.
_AUTO = (
    ((TITLE,), "{%s}"),
    (("release_year",), "({%s})"),  # a column in RecBole's MovieLens; GroupLens' own version has it in the title
    (("authors", "author", "artist", "brand"), "by {%s}"),
    ((CATEGORIES,), "({%s})"),
    ((TAGS,), "[{%s}]"),
    ((DESCRIPTION,), "{%s}"),
)
_FIELD = re.compile(r"\{([^{}]*)\}")
# A bracket with fields is dropped as a whole if none of its fields has a value.
_ELEMENT = re.compile(r"\([^()]*\{[^{}]*\}[^()]*\)|\[[^\[\]]*\{[^{}]*\}[^\[\]]*\]|\{[^{}]*\}")
_ARTICLE = re.compile(
    r"^(.+?), (The|A|An|Les|Le|La|L'|Il|Lo|El|Los|Las|Das|Der|Die|Den|Det|Ein|Eine|Un|Une)( \(.*)?$", re.S
)
_SPACES = re.compile(r"\s+")
# Invisible: controls (except white space), soft hyphens, direction marks, byte order marks, broken characters.
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufffd]")
# A BERT treats a word with an emoji attached as unknown; a zero-width space separates words.
_APART = re.compile("([\u2600-\u27bf\U0001f000-\U0001faff][\u2600-\u27bf\u200d\ufe0f\U0001f000-\U0001faff]*)|\u200b")
_LONGEST_WORD = 100
_SEPARATORS = " \t,;:.|/-–—"

Row = dict[str, str]


@dataclass(frozen=True)
class ItemTemplate:
    """A template that turns an item's columns into the string that the encoder reads.

    Braces name columns: ``"{title} ({categories}) {description}"``. If a value is missing, the literal before its field
    is dropped, too, and so is a bracket without any value: no ``()``, no dangling ``by``. HTML and invisible characters
    (control characters, soft hyphens, byte order marks, broken UTF-8) are removed, emoji are surrounded by spaces, and
    white space is collapsed; ``"Matrix, The (1999)"`` in the title becomes ``"The Matrix (1999)"``, and commas separate
    the names in categories, tags and authors. All of this takes linear time.

    Attributes:
      template: The template, with all fields.
      max_characters: Longer texts are cut at the last space before this position, if one is near. 2,000 characters are
        more than 512 tokens of English.
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
        """Creates a template for this table; ``None`` builds one from the text columns that it has.

        The automatic template is: title, release year in parentheses, ``by`` author, artist or brand, categories in
        parentheses, tags in square brackets, description.

        Raises:
          ConfigError: The template names a missing column, or there is no catalogue or no text column to build one
            from.
        """
        if template is None:
            parts = [next((form % c for c in names if c in items and _filled(items[c])), "") for names, form in _AUTO]
            template = " ".join(filter(None, parts))
            if not template and list(items.columns) == [ITEM]:
                raise ConfigError("there is no catalogue: name it with --items FILE, or as data.items.")
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
        """The columns that the template names, without duplicates."""
        return list(dict.fromkeys(_FIELD.findall(self.template)))

    def texts(self, items: pd.DataFrame) -> list[str]:
        """Returns one string for each row of ``items``, in its order; ``""`` if every field is missing.

        Raises:
          ConfigError: A column is missing.
        """
        return [text for (text,) in self._rendered([self], items)]

    def variants(self) -> list[ItemTemplate]:
        """Returns other templates of the same columns, which describe an item in other words.

        Each part but the first is left out in turn (a part is a field or a bracket, with the words before it), then
        all of them, and finally the first part is moved behind the others: ``"{title} by {brand} ({tags})"`` gives
        ``"{title} ({tags})"``, ``"{title} by {brand}"``, ``"{title}"`` and ``"by {brand} ({tags}) {title}"``.
        A template of one part has no variants.
        """
        parts, tail = _parts(self.template)
        if len(parts) < 2:
            return []
        left_out = [parts[:i] + parts[i + 1 :] for i in range(1, len(parts))]
        literal, element = parts[0]
        # The former first part needs a space before it; the new first part needs no separators before it.
        turned = [(parts[1][0].lstrip(_SEPARATORS), parts[1][1]), *parts[2:], (f" {literal}", element)]
        made = ["".join(f"{before}{part}" for before, part in v) + tail for v in (*left_out, parts[:1], turned)]
        return [ItemTemplate(text, self.max_characters) for text in dict.fromkeys(made) if _balanced(text)]

    def wordings(self, items: pd.DataFrame) -> list[list[str]]:
        """Returns the text of each row of ``items``, followed by the texts of the :meth:`variants`, without duplicates.

        Empty wordings are left out; a row without any value has ``""`` as its only wording.

        Raises:
          ConfigError: A column is missing.
        """
        rendered = self._rendered([self, *self.variants()], items)
        return [list(dict.fromkeys(filter(None, row))) or [""] for row in rendered]

    def _rendered(self, templates: Sequence[ItemTemplate], items: pd.DataFrame) -> Iterator[list[str]]:
        """Yields the texts of each row of ``items`` by ``templates``, whose columns must be among this template's."""
        self._require(items)
        renders = [_compile(template.template) for template in templates]
        values = {name: [_clean(name, value) for value in items[name]] for name in self.columns}
        for row in zip(*values.values(), strict=True):
            named = dict(zip(values, row, strict=True))
            yield [_cut(_SPACES.sub(" ", render(named)).strip(), self.max_characters) for render in renders]

    def _require(self, items: pd.DataFrame) -> None:
        for name in self.columns:
            if name not in items:
                near = nearest(name, map(str, items.columns), cutoff=0.0)
                raise ConfigError(
                    f"text.template {self.template!r} names the column {name!r}, which the items table does not have. "
                    + (f"The nearest is {near[0]!r}; it has " if near else "It has ")
                    + f"{', '.join(map(str, items.columns)) or 'none'}."
                )


def _filled(column: pd.Series) -> bool:
    return any(as_text(value).strip() for value in column)


def _clean(name: str, value: object) -> str:
    text = as_text(value)
    if name in NAME_COLUMNS:
        text = names_as_text(text)
    text = _APART.sub(r" \1 ", _UNSEEN.sub("", strip_html(text)))
    text = _SPACES.sub(" ", text).strip()
    if name == TITLE and (match := _ARTICLE.match(text)):
        rest, article, tail = match.groups(default="")
        text = f"{article}{'' if article.endswith(chr(39)) else ' '}{rest}{tail}"
    return text


def _compile(template: str) -> Callable[[Row], str]:
    """Returns a function that renders the values of one item; :class:`ItemTemplate` describes missing values."""
    parts, tail = _parts(template)
    elements = [
        (
            literal,
            _field(element[1:-1])
            if element.startswith("{")
            else _bracket(element[0], _compile(element[1:-1]), element[-1]),
        )
        for literal, element in parts
    ]

    def render(row: Row) -> str:
        out = ""
        for i, (literal, read) in enumerate(elements):
            if value := read(row):
                out += (literal if out or i == 0 else "") + value
        return out + tail if out else ""

    return render


def _parts(template: str) -> tuple[list[tuple[str, str]], str]:
    """Returns each field or bracket with the literal before it, and the text after the last one."""
    parts, end = [], 0
    for match in _ELEMENT.finditer(template):
        parts.append((template[end : match.start()], match.group()))
        end = match.end()
    return parts, template[end:]


def _balanced(template: str) -> bool:
    literal = _FIELD.sub("", template)
    return all(literal.count(opening) == literal.count(closing) for opening, closing in ("()", "[]"))


def _field(name: str) -> Callable[[Row], str]:
    return lambda row: row[name]


def _bracket(opening: str, inner: Callable[[Row], str], closing: str) -> Callable[[Row], str]:
    return lambda row: f"{opening}{text}{closing}" if (text := inner(row)) else ""


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, space, word = text[: limit + 1].rpartition(" ")
    # Chinese has few spaces, so the last one may be far back.
    return head if space and len(word) <= _LONGEST_WORD else text[:limit]
