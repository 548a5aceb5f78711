"""Griffe extension: what docstrings in this repository have beside Google's style.

Roles, ``:func:`evaluate```, become links where the site has the name. Arguments that share a description,
``a, b: ...``, get an entry each. ``::`` before code is a colon.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`~?([^`]+)`")
BEFORE_CODE = re.compile(r"(?<=\w)::$", re.MULTILINE)
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)


class Roles(Extension):
    def on_instance(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            single = SHARED.sub(an_entry_each, BEFORE_CODE.sub(":", obj.docstring.value))
            obj.docstring.value = ROLE.sub(lambda role: link(obj, role[1]), single)


def an_entry_each(shared: re.Match[str]) -> str:
    """``a, b: text`` as two lines."""
    indent, names, text = shared.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


def link(obj: Object, name: str) -> str:
    """A reference to ``name`` as ``obj`` sees it; plain code where the site does not have it."""
    path = name if name.startswith("tfllmrec.") else path_of(obj, name)
    code = f"<code>{name}</code>"
    return code if path is None else f'<autoref optional identifier="{path}">{code}</autoref>'


def path_of(obj: Object, name: str) -> str | None:
    """The full path of a name from the object's class or module."""
    first = name.split(".")[0]
    scope: Any = obj
    while scope is not None:
        if first in getattr(scope, "members", {}) or first in getattr(scope, "imports", {}):
            imported = getattr(scope, "imports", {}).get(first)
            return imported + name[len(first) :] if imported else f"{scope.path}.{name}"
        scope = scope.parent
    return None
