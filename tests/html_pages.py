"""Checks of the HTML pages that the library writes."""

import html
import re
from html.parser import HTMLParser

#: The maximum size of a page in bytes.
LIMIT = 300_000


class Tags(HTMLParser):
    """Fails if a closed element is not the innermost open one, or if an ampersand does not begin an entity."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.open = []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), self.get_starttag_text()
        if tag not in ("meta", "link", "br", "img", "hr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert "svg" in self.open, f"<{tag}/> is no element of HTML"

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> at {self.getpos()}; open: {self.open}"
        self.open.pop()

    def handle_data(self, data):
        assert "&" not in data or "style" in self.open, f"an ampersand at {self.getpos()}: {data[:50]!r}"


def check(path):
    """Checks that a page is small, valid HTML without scripts, external resources or repeated ids; returns its text."""
    text = path.read_text()
    assert path.stat().st_size < LIMIT
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    assert "<script" not in text.lower() and "javascript:" not in re.sub(r">[^<]*<", "><", text)
    assert not re.search(r"<[^>]*\son\w+\s*=", text), "an element listens to events"
    assert not re.search(r"""(src|href)=["'](?!#)""", text), "something is loaded"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    return text


def told(text):
    """Returns the words of a page."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))
