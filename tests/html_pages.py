"""What each page that the library writes must be."""

import html
import re

import html5lib

#: Bytes of a page.
LIMIT = 300_000


def check(path):
    """The text of a page that is valid HTML, small, and holds no script, no style of others and no duplicate id."""
    text = path.read_text()
    assert path.stat().st_size < LIMIT
    parser = html5lib.HTMLParser(strict=True, tree=html5lib.treebuilders.getTreeBuilder("etree"))
    parser.parse(text)
    assert "<script" not in text.lower() and "javascript:" not in re.sub(r">[^<]*<", "><", text)
    assert not re.search(r"<[^>]*\son\w+\s*=", text), "an element listens to events"
    assert not re.search(r"""(src|href)=["'](?!#)""", text), "something is loaded"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    return text


def told(text):
    """The words of a page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))
