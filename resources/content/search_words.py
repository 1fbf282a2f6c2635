"""What a person typed, taken apart: words, words that shall not be there, and names.

- A word with a dash before it shall not be there, if it has three letters at least and stands before or after all
  of the others: `-shipping refund`, `jaguar -car`. What looks like an option of a command is a word like any other:
  `python -m pip install`, `find . -name x`, `ls -l`, `--verbose`. Of a phrase, a dash says so wherever it stands:
  `-"free of charge"`.
- A dot before two letters, or a slash, parts words, as it does where pages are indexed (`index_website_content`), and
  these words have to stand together, unless they do so nowhere: `os.path.join` finds itself, `path.join` and
  `path join` find it too, and `Class.method` finds the page that says `method` below `Class`.
- A name is what nobody types by accident: something with an underscore, a dot or a slash, a digit or a capital inside
  (`start_new_thread`, `os.path`, `KX-4417`, `assertEqual`), or a phrase in quotes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PART: Final = re.compile(r'(?P<dash>-?)"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+)')
_EXCLUDED: Final = re.compile(r"-([^\W\d_][\w'-]{2,})")
_PARTING: Final = re.compile(r"(?<=\w)(?:\.(?=[^\W\d]\w)|/(?=\w))")
_PARTED: Final = re.compile(r"\.(?=[^\W\d]\w)|/")
_JOINED: Final = re.compile(r"(?<=\w)_(?=\w)")
_NAME: Final = re.compile(r"\w[_./]+\w|\d.*[^\W\d]|[^\W\d].*\d|[^\W\d_].*[A-Z].*[a-z]|[a-z].*[A-Z]")


@dataclass(frozen=True, slots=True)
class SearchWords:
    """A question, in the syntax of Postgres' `websearch_to_tsquery`.

    Attributes:
        wanted: words and "phrases" that a page shall have; empty: none was typed.
        excluded: -words and -"phrases" that it shall not have; empty: none.
        names: those of `wanted` that are names; empty: none is, or all are.
        meaning: what is wanted, as it was typed: what a model reads.
    """

    wanted: str
    excluded: str
    names: str
    meaning: str

    @property
    def query(self) -> str:
        """All of it."""
        return f"{self.wanted} {self.excluded}".strip()

    @property
    def apart(self) -> str | None:
        """All of it, with the parts of names wherever they stand; None: no name has parts."""
        apart = _JOINED.sub(" ", self.wanted)
        return None if apart == self.wanted else f"{apart} {self.excluded}".strip()

    @property
    def named(self) -> str | None:
        """The names, and what shall not be there; None: there are no names, or nothing else is wanted."""
        return f"{self.names} {self.excluded}".strip() if self.names else None

    @property
    def count(self) -> int:
        """How many words are wanted; parts of names count."""
        return len(re.findall(r'[^\s_"]+', self.wanted))


def read_words(query: str) -> SearchWords:
    """Take a question apart; see above."""
    parts = list(_PART.finditer(query))
    plain = [number for number, part in enumerate(parts) if not _may_exclude(part)]
    first, last = (plain[0], plain[-1]) if plain else (0, -1)
    wanted, excluded, names, meaning = [], [], [], []
    for number, part in enumerate(parts):
        if part["phrase"] is not None:
            phrase = f'"{_joined(part["phrase"])}"'
            if part["dash"]:
                excluded.append(f"-{phrase}")
                continue
            name = True
        elif _may_exclude(part) and not first < number < last:
            excluded.append(f"-{_joined(part['word'][1:])}")
            continue
        else:
            word = part["word"].lstrip("-")
            phrase = _joined(word)
            name = _NAME.search(word) is not None
        if not re.search(r"\w", phrase):
            continue
        wanted.append(phrase)
        meaning.append(part.group())
        if name:
            names.append(phrase)
    return SearchWords(
        " ".join(wanted),
        " ".join(excluded),
        " ".join(names) if len(names) < len(wanted) else "",
        " ".join(meaning) if excluded else query,
    )


def _may_exclude(part: re.Match[str]) -> bool:
    if part["phrase"] is not None:
        return bool(part["dash"])
    return _EXCLUDED.fullmatch(part["word"]) is not None


def _joined(text: str) -> str:
    """Words that a dot or slash parts, with underscores: Postgres' parser takes what they join for a phrase."""
    return _PARTED.sub(" ", _PARTING.sub("_", text)).strip()
