"""The words of texts in all scripts."""

import re
import unicodedata

#: Each ideograph counts as a word, with or without spaces around it, because BERT tokenizes each by itself.
IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents and vowel signs, which Python does not count as word characters, and joiners.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.category(c)[0] == "M") + "\u200c\u200d"
_LETTERS = rf"(?:[^\W{IDEOGRAPHS}][{_MARKS}]*)+"
#: A word. A compound with apostrophes or hyphens is one word; so is a run of letters of a script without spaces.
WORD = re.compile(rf"[{IDEOGRAPHS}]|{_LETTERS}(?:['’-]{_LETTERS})*")
