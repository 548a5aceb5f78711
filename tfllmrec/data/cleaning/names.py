"""Reads names, such as categories, tags and authors, from cells in any exported format, and writes clean cells.

A clean cell holds its names separated by :data:`SEPARATOR`, which no name contains. Texts for encoders and users show
``", "`` instead.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from tfllmrec.data.cleaning.item_text import strip_html
from tfllmrec.data.cleaning.values import MISSING, as_text, without_calls
from tfllmrec.data.files.column_names import plain_name

SEPARATOR = "|"
#: Words that stand for "no name" in exported files. MovieLens writes the last one.
NO_NAME = {*MISSING, "N/A", "(no genres listed)"}

# The control characters are separators of Hive.
_SEPARATORS = re.compile(r"[|;^\t\x01-\x03；、，،]|\s[•·]\s|(?:\n|^)\s*[-*•]\s|\n")
_PATH = re.compile(r"\s*(?:(?<![-=<>])>+|»|›|→|::)\s*")  # not the head of an arrow such as "->"
# A comma separates neither a company from its legal form, nor a name from its suffix, nor the digits of a number.
_COMMA = re.compile(
    r",(?!\s*(?:inc|llc|ltd|limited|co|corp|corporation|gmbh|s\.a|jr|sr|ph\.?d|m\.?d|esq)\b\.?\s*(?:[,|]|$))"
    r"(?!(?<=\d,)\d{3}\b)",
    re.I,
)
_SLASH = re.compile("/")
_ENUMERATION = re.compile(r"[^,]+(?:, [^,]+)*,? (?:&|and) [^,]+")  # "Arts, Crafts & Sewing"

# Fields of a record that hold its name, best first; compared without case and punctuation.
_NAME_FIELDS = (
    "name", "title", "label", "displayname", "fullname", "value", "text", "genre", "category", "tag", "author",
    "artist", "brand", "keyword", "topic", "term", "element", "item", "string", "s", "description", "key", "slug",
)  # fmt: skip
_GIVEN_NAME, _FAMILY_NAME = ("firstname", "givenname", "given", "first"), ("lastname", "familyname", "family", "last")
# Keys that wrap names but are not names themselves, as in XML, GraphQL, Spark, Avro and DynamoDB.
_WRAPPERS = {
    "genres", "categories", "tags", "names", "authors", "artists", "keywords", "topics", "items", "data", "list", "bag",
    "array", "values", "results", "elements", "nodes", "node", "edges", "children", "l", "m", "ss", "v", "f",
    "attributes", "buckets", "entries", "records", "itemlistelement",
}  # fmt: skip
_ID_FIELD = re.compile(r"(?:^|[_\W])(?i:id|uuid|guid|ur[il]|href|link|image|icon|type|code)$|[a-z]I[dD]$")
_ID_VALUE = re.compile(r"-?\d+(?:\.\d+)?|(?:https?:/)?/\S+/\S+|[0-9a-f]{24}|[0-9a-f]{8}-[0-9a-f-]{27}", re.I)
_LANGUAGE = re.compile(r"[a-z]{2}(?:[-_][a-z]{2})?", re.I)

_CALL = re.compile(
    r"(?:np\.)?(?:array|list|c|tuple|set|frozenset|deque|Counter|OrderedDict|dict_keys|dict_values|List|Set|Vector|"
    r"WrappedArray|ArrayBuffer|Index)\((.*?)(?:,\s*dtype=[^()]*)?\)",
    re.S,
)
_ORDERED_RECORD = re.compile(r"OrderedDict\(\[((?:\([^()]*\)(?:, )?)*)\]\)")
_PHP = re.compile(r"a:\d+:\{.*\}", re.S)
_PHP_STRING = re.compile(r's:\d+:"([^"]*)";')
_XML = re.compile(r"(?:<[\w:-]+[^<>]*>.*</[\w:-]+>|.*<br ?/?>.*)", re.S | re.I)
_XML_TAG = re.compile(r"<(?!/?(?:b|i|u|em|strong|span|font|small)\b)[^<>]*>")  # the excepted tags occur within a name
_PAIRS = {"[": "]", "{": "}", "(": ")", '"': '"', "'": "'"}
_CLOSING = set(_PAIRS.values())
_SIDE_BY_SIDE = re.compile(r"""["']\s+["']""")
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_KEY = re.compile(rf"""\s*(?:({_QUOTED})\s*(?:=>|=|:)|:?([^\[\]{{}},"'=:]+?)\s*=>?|:?([A-Za-z_]\w*)\s*:(?!//))""", re.S)
_FIELD = rf"""\s*\w+\s*=\s*(?:{_QUOTED}|[^(){{}}\[\],'"=]*)"""
_RECORD = re.compile(rf"\b[A-Za-z_]\w*\(({_FIELD}(?:,{_FIELD})*)\)")  # Row(id=16, name='Animation')
_TOKEN = re.compile(
    rf"""\s*(?:(?P<open>[\[{{])|(?P<close>[\]}}])|(?P<comma>,)|(?P<more>\.\.\.)"""
    rf"""|(?P<quoted>{_QUOTED})(?=\s*[,\]}}"'.])|(?P<bare>[^\[\]{{}},]+))""",
    re.S,
)
_CONSTANTS: dict[str, bool | None] = {
    "null": None,
    "None": None,
    "nan": None,
    "NaN": None,
    "NULL": None,
    "nil": None,
    "undefined": None,
}
_CONSTANTS |= {"true": True, "True": True, "false": False, "False": False}
_DEEPEST = 50


def category_names(cell: str) -> list[str]:
    """Returns the names in a clean cell of categories, tags or authors.

    >>> category_names("Arts, Music & Photography|Books")
    ['Arts, Music & Photography', 'Books']
    """
    return cell.split(SEPARATOR) if cell else []


def join_names(names: Iterable[str]) -> str:
    """Returns the clean cell of ``names``, without duplicates."""
    return SEPARATOR.join(dict.fromkeys(names))


def names_as_text(cell: str) -> str:
    """Formats a clean cell for encoders and users.

    >>> names_as_text("Action|Sci-Fi")
    'Action, Sci-Fi'
    """
    return cell.replace(SEPARATOR, ", ")


def names_in(value: Any, *, commas: bool = True, slashes: bool = False) -> list[str]:
    """Returns the distinct names in a value of any shape.

    >>> names_in([{"id": 16, "name": "Animation"}, {"id": 35, "name": "Comedy"}])
    ['Animation', 'Comedy']
    >>> names_in("Toys > Puzzles > Wood")
    ['Toys', 'Puzzles', 'Wood']
    >>> names_in(["Arts, Music & Photography"])
    ['Arts, Music & Photography']

    The value may be a nested list, a set, an array, a record (its name is read, never its id) or counts such as
    ``{"fantasy": 12}``; any of these written as JSON, as a Python, numpy, Ruby or Java literal or as a PostgreSQL
    array; or a string with ``|``, ``;``, line breaks, tabs, bullets or path arrows between the names.

    Args:
      value: The cell.
      commas: Whether commas separate names in a string that has no other separator.
      slashes: Whether slashes separate names in such a string.
    """
    return _names_and_loss(value, commas, slashes)[0]


def _names_and_loss(value: Any, commas: bool, slashes: bool) -> tuple[list[str], bool]:
    """Returns the names in ``value``, and whether it has records without a name or words for "no name"."""
    names: dict[str, None] = {}
    lost = False
    for leaf in _leaves(value):
        if leaf is None:
            lost = True
        elif leaf is value:
            text = strip_html(leaf).strip()
            lost = _says_nothing(text)
            names |= dict.fromkeys(_split(text, commas, slashes))
        else:
            found, no_name = _names_of_element(leaf)
            lost |= no_name
            names |= dict.fromkeys(found)
    return [name for name in names if name not in NO_NAME], lost


@lru_cache(maxsize=1 << 16)
def _names_of_element(text: str) -> tuple[list[str], bool]:
    """Returns the names in an element of a list, and whether it is a word for "no name".

    The results are cached, because catalogues repeat their names.
    """
    text = strip_html(text).strip()
    return _split_element(text), _says_nothing(text)


def _says_nothing(text: str) -> bool:
    return text in NO_NAME and text not in ("", "\\N")


def _split(text: str, commas: bool, slashes: bool) -> list[str]:
    """Splits a string at separators that are certain, or else at commas or slashes if these are separators."""
    if text in NO_NAME:
        return []
    parts = [name for part in _SEPARATORS.split(text) for path in _paths(part) for name in _split_element(path)]
    if len(parts) == 1 and commas and "," in text:
        parts = _COMMA.split(parts[0])
    elif len(parts) == 1 and slashes:
        parts = parts[0].split("/")
    return [part for part in map(str.strip, parts) if part]


def _split_element(text: str) -> list[str]:
    """Splits an element of a list, which may be a path; other punctuation in it belongs to a name."""
    parts = text.split(SEPARATOR)
    if "<" not in text:  # otherwise ">" closes a bracket
        parts = [name for part in parts for name in _PATH.split(part)]
    return [part for part in map(str.strip, parts) if part]


def _paths(text: str) -> list[str]:
    """Splits ``"A > B, A > C"`` into two paths; a comma inside a path belongs to a name."""
    paths = text.split(",")
    return paths if len(paths) > 1 and all(map(_PATH.search, paths)) else [text]


def _leaves(value: Any, bare_words: bool = True) -> list[str | None]:
    """Returns the strings in a value of any shape: lists are flattened, and separators within a string are kept.

    A record without a name yields ``None``.

    Args:
      value: The cell. A string that is not a literal is its own and only leaf.
      bare_words: Whether ``[a, b]`` without quotes is a list, too.
    """
    leaves: list[str | None] = []

    def collect(part: Any, depth: int) -> None:
        if isinstance(part, str):
            literal = _literal(part, bare_words)
            if literal is None:
                leaves.append(part)
                return
            part = literal
        if isinstance(part, np.ndarray):
            part = part.tolist()
        if isinstance(part, Mapping) and part:
            part = _of_mapping(part)
            if not part:
                leaves.append(None)
        if isinstance(part, (set, frozenset)):
            part = sorted(part, key=str)  # the order of a set differs from process to process
        if isinstance(part, (list, tuple, Mapping)) and depth < _DEEPEST:
            for inner in _without_number(part) if depth and len(part) == 2 else part:
                collect(inner, depth + 1)
        else:
            leaves.append(as_text(part))

    collect(value, 0)
    return leaves


def _of_mapping(record: Mapping) -> list:
    """Returns the names in a mapping.

    These are its name field; or the keys of counts and flags that are not 0; or one of several translations, if
    possible the English one; or the values that are not ids.
    """
    fields = {str(key): value for key, value in record.items() if not _is_null(value)}
    if not fields:
        return [""]
    if (name := _named(fields)) is not None:
        return [name]
    if all(map(_is_number, fields.values())):
        if any(map(_ID_FIELD.search, fields)):
            return []
        return [key for key, value in fields.items() if float(value)]
    if (translation := _translation(fields)) is not None:
        return [translation]
    names: list = []
    for key, value in fields.items():
        if isinstance(value, str):
            names += [] if _ID_FIELD.search(key) or _ID_VALUE.fullmatch(value) else [value]
        elif isinstance(value, (Mapping, list, tuple, np.ndarray)):
            # In a tree of names, the keys are names, too.
            names += [value] if plain_name(key) in _WRAPPERS else [key, value]
    return names


def _translation(record: Mapping[str, Any]) -> str | None:
    """Returns one of several translations by language, if possible the English one; ``None`` for another record."""
    if not all(map(_LANGUAGE.fullmatch, record)) or not all(isinstance(value, str) for value in record.values()):
        return None
    english = (text for key, text in record.items() if key[:2].lower() == "en")
    return next(english, next(iter(record.values()), None))


def translations(cells: pd.Series) -> pd.Series:
    """Returns one text of each cell with translations by language (``{"de": "Stuhl", "en": "Chair"}``), by its row.

    A cell with a single language counts only if another cell has several.
    """
    literals = cells[cells.str.startswith("{")].map(lambda cell: _literal(cell, bare_words=False))
    records = {
        row: {str(key): text for key, text in record.items() if not _is_null(text)}
        for row, record in literals.items()
        if isinstance(record, Mapping)
    }
    read = {row: text for row, record in records.items() if (text := _translation(record)) is not None}
    several = any(len(records[row]) > 1 for row in read)
    return pd.Series(read if several else {}, dtype="str")


def _named(record: Mapping) -> Any:
    """Returns the value of the field of ``record`` that holds its name, or ``None``."""
    plain = {plain_name(str(key)): value for key, value in record.items() if not _is_null(value)}
    given, family = (next((plain[f] for f in names if f in plain), None) for names in (_GIVEN_NAME, _FAMILY_NAME))
    if isinstance(family, str):
        return f"{given} {family}" if isinstance(given, str) else family
    has_id = any(_ID_FIELD.search(str(key)) for key in record)
    for field in _NAME_FIELDS:
        value = plain.get(field)
        if isinstance(value, str) and field == "key" and _ID_VALUE.fullmatch(value):
            continue
        if value is not None and (not _is_number(value) or (has_id and field in ("name", "title"))):
            return value
    for field, value in plain.items():
        if field.endswith(("name", "title", "label")) and isinstance(value, str):
            return value
    return None


def _without_number(pair: Any) -> Any:
    """Reduces a pair of name and count, or of id and name, to its name; returns other pairs unchanged.

    The entries of a map arrive as such pairs.
    """
    if not isinstance(pair, Mapping):
        first, second = pair
        if isinstance(first, str) != isinstance(second, str) and (_is_number(first) or _is_number(second)):
            return [first if isinstance(first, str) else second]
        both = isinstance(pair, tuple) and isinstance(first, str) and isinstance(second, str)
        if both and _ID_VALUE.fullmatch(first) and not _ID_VALUE.fullmatch(second):
            return [second]
    return pair


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"-?\d+(?:\.\d+)?", value))
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _is_null(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and value != value)


def _literal(text: str, bare_words: bool = True) -> Any:
    """Parses the list, mapping or set that is written in ``text``; returns ``None`` for plain text."""
    text = without_calls(text).strip()
    if _XML.fullmatch(text):
        return [part for part in map(str.strip, _XML_TAG.split(text)) if part]
    if not text or text[-1] not in _CLOSING:
        return None
    if _PHP.fullmatch(text):
        return _PHP_STRING.findall(text)
    if re.match(r'[\[{]+\\"', text):  # escaped once too often
        text = text.replace('\\"', '"')
    text = _ORDERED_RECORD.sub(_record_of_pairs, text)
    if text[0] in "[{(" or _RECORD.fullmatch(text):
        text = _RECORD.sub(r"{\1}", text)
    if text[-1] == ")" and (call := _CALL.fullmatch(text)) is not None:
        text = f"[{call.group(1).strip()}]"
    if len(text) < 2 or _PAIRS.get(text[0]) != text[-1]:
        return None
    parsers: list[Callable[[str], Any]] = [json.loads]
    if not _SIDE_BY_SIDE.search(text):  # Python would join two adjacent strings into one
        parsers.append(ast.literal_eval)
    for parse in parsers:
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, str):  # encoded twice
            return _literal(value, bare_words) if value[:1] in ("[", "{") else None
        return value if isinstance(value, (list, dict, tuple, set)) else None
    if text[0] in "\"'":  # "a", "b"
        return _bracketed(f"[{text}]", bare_words=False)
    return _bracketed(text, bare_words) if text[0] in "[{" else None


def _record_of_pairs(found: re.Match[str]) -> str:
    """Rewrites ``OrderedDict([('id', 16), ('name', 'Animation')])`` as a plain dict; keeps a match that is none."""
    try:
        return repr(dict(ast.literal_eval(f"[{found.group(1)}]")))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return found.group()


def _bracketed(text: str, bare_words: bool) -> Any:
    """Parses the lists and mappings of a literal that is neither JSON nor Python; returns ``None`` if it is malformed.

    Reads numpy's ``['a' 'b']``, PostgreSQL's ``{a,"b, c"}``, Java's ``[{id=16, name=Animation}]``, Ruby's
    ``{"id"=>16}``, JavaScript's ``{id: 16, name: 'Animation'}`` and ``['a', nan]``, in linear time.
    """
    root: list[Any] = []
    stack = [_Bracket("", root)]
    place, before = 0, "comma"
    while place < len(text):
        top = stack[-1]
        if top.opening == "{" and before in ("open", "comma") and (key := _KEY.match(text, place)):
            top.key = _unquoted(next(filter(None, key.groups())).strip())
            place = key.end()
        token = _TOKEN.match(text, place)
        if token is None or len(stack) > _DEEPEST:
            return None
        place, kind = token.end(), str(token.lastgroup)
        written = token.group(kind)
        if kind == "open":
            stack.append(_Bracket(written))
        elif kind == "close":
            if _PAIRS.get(top.opening) != written:
                return None
            stack.pop()
            stack[-1].add(top.value())
        elif kind == "quoted":
            top.add(_unquoted(written))
        elif kind == "bare" and before in ("open", "comma"):
            word = written.strip()
            if not (bare_words or word in _CONSTANTS or _is_number(word)):
                return None
            top.add(_CONSTANTS.get(word, word))
        elif kind == "bare" and written.strip():
            return None
        if kind == "comma" and top.key is not None:
            top.add("")
        before = kind
    return root[0] if len(stack) == 1 and len(root) == 1 else None


class _Bracket:
    """A list or mapping that is being parsed."""

    def __init__(self, opening: str, values: list[Any] | None = None) -> None:
        self.opening = opening
        self.values: list[Any] = [] if values is None else values
        self.keys: list[str | None] = []
        self.key: str | None = None

    def add(self, value: Any) -> None:
        self.values.append(value)
        self.keys.append(self.key)
        self.key = None

    def value(self) -> Any:
        if self.key is not None:
            self.add("")
        if self.keys and None not in self.keys:
            return dict(zip(self.keys, self.values, strict=True))
        # Braces without keys are a list of PostgreSQL; a colon in it belongs to an element.
        pairs = zip(self.keys, self.values, strict=True)
        values = [value if key is None else f"{key}: {value}" for key, value in pairs]
        # Two values in braces may be a record that Spark wrote without its keys, such as {16, Animation}: it becomes a
        # tuple, like a database row.
        return tuple(values) if self.opening == "{" and len(values) == 2 else values


def _unquoted(token: str) -> str:
    if token[:1] not in ("'", '"'):
        return token
    try:
        return str(ast.literal_eval(token))
    except (ValueError, SyntaxError):  # a line break, or an escape that Python does not have
        return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.S)


def structured_text(value: Any, separator: str) -> Any:
    """Converts a list or a record with a name, in any shape, to text; returns every other value unchanged.

    Unlike names, the parts are neither split nor deduplicated. Lists of numbers, and mappings without a name, which are
    attributes, are returned unchanged.
    """
    literal = _literal(value, bare_words=False) if isinstance(value, str) else value
    if isinstance(literal, np.ndarray):
        literal = literal.tolist()
    if isinstance(literal, (list, tuple, set, frozenset)):
        is_text = not ({*map(type, literal)} <= {int, float} or all(map(_is_number, literal)))
    else:
        is_text = isinstance(literal, Mapping) and _named(literal) is not None
    return separator.join(part for leaf in _leaves(literal) if (part := (leaf or "").strip())) if is_text else value


@dataclass(frozen=True, eq=False)
class NameColumn:
    """The result of reading a column of names.

    Attributes:
      cells: Str ``[R]``, the clean cells.
      nameless: Bool ``[R]``, whether records without a name, or words such as "null", were left out of the cell.
      commas: Bool ``[R]``, whether the cell is a string with commas and without a separator that is certain.
      split_at_commas: Whether these commas were taken to separate names.
      slashes: Bool ``[R]``, whether the cell is a string that was split at slashes.
    """

    cells: pd.Series
    nameless: np.ndarray
    commas: np.ndarray
    split_at_commas: bool
    slashes: np.ndarray


def read_name_column(values: pd.Series, known: Collection[str] = ()) -> NameColumn:
    """Reads a column of names; the column as a whole decides what commas and slashes in plain strings mean.

    ``"Arts, Music & Photography"`` may be one name or two, and so may ``"Drama, Romance"``. A comma separates names if
    the parts occur in other cells. It belongs to a name if whole cells recur and their parts do not, or if more cells
    of the column use another separator. Slashes separate names if most cells have one and the parts occur in other
    cells, as the parts of paths do.

    Args:
      values: Cells of any type.
      known: Names that are known from elsewhere, such as those of the items that a model was trained with.
    """
    objects = values.astype(object).tolist()
    counts = Counter(value for value in objects if isinstance(value, str))
    texts = {value: strip_html(value).strip() for value in counts if _literal(value) is None}
    plain: Counter[str] = Counter()
    for value, text in texts.items():
        if len(_split(text, commas=False, slashes=False)) == 1:
            plain[text] += counts[value]
    at_commas = at_slashes = False
    elsewhere = set(known)
    if any("," in text or "/" in text for text in plain):
        others = [value for value in objects if not isinstance(value, str) or texts.get(value) not in plain]
        found = [names for value in others if (names := names_in(value))]
        elsewhere.update(name for names in found for name in names)
        at_commas = _separates(",", plain, elsewhere, len(found))
        at_slashes = _separates("/", plain, elsewhere, len(found))

    def read(value: Any) -> tuple[str, bool]:
        whole = isinstance(value, str) and texts.get(value) in elsewhere
        names, lost = _names_and_loss(value, at_commas and not whole, at_slashes and not whole)
        return join_names(names), lost

    of_string = {value: read(value) for value in counts}
    cells, nameless = zip(*(of_string[v] if isinstance(v, str) else read(v) for v in objects), strict=True)
    with_comma, with_slash = (
        np.array([isinstance(v, str) and mark in texts.get(v, "") and texts[v] in plain for v in objects], bool)
        for mark in (",", "/")
    )
    return NameColumn(pd.Series(cells, dtype="str"), np.array(nameless), with_comma, at_commas, with_slash & at_slashes)


def _separates(separator: str, plain: Counter[str], known: Collection[str], others: int) -> bool:
    """Returns whether ``separator`` separates names in the ``plain`` cells.

    Args:
      separator: A comma or a slash.
      plain: The distinct cells without a separator that is certain, and how many there are of each.
      known: Names in other cells, and names known from elsewhere.
      others: How many other cells of the column have names.
    """
    pattern = _COMMA if separator == "," else _SLASH
    parts = {text: [part for part in map(str.strip, pattern.split(text)) if part] for text in plain}
    parted = [text for text in plain if len(parts[text]) > 1]
    rows = sum(plain[text] for text in parted)
    if not rows or others > rows or (separator == "/" and 2 * rows <= plain.total()):
        return False
    cells_with = Counter(part for text in plain for part in set(parts[text]))
    separates = belongs = 0
    for text in parted:
        met = sum(cells_with[part] > 1 or part in known for part in parts[text])
        if 2 * met > len(parts[text]):
            separates += 1
        elif plain[text] > 1 or text in known:
            belongs += 1
    if separates or belongs:
        return separates >= belongs
    return separator == "," and not all(map(_ENUMERATION.fullmatch, parted))
