"""Traps: urls without end. Told by their form, by how many there are of one form, and by what their pages brought.

What belongs here: judging a url that is about to be followed. What does not: globs, depth and whose site it is
(`link_rules`).

A large honest site must come through whole: 50,000 urls of one form are a catalogue. So nothing is refused for
being many alone, but for what catalogues are not: dates beyond all use, filters multiplied with filters, the same
text again and again. And a budget grows with what its pages have led to: the days of a newspaper's archive each bring
articles, the days of an empty calendar bring other days.

Budgets are one worker's, in memory (bounded), and begin again when a job is resumed: a trap may then cost a budget
for each. `max_pages` and `max_depth` hold whatever happens here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

__all__ = ["TrapGuard", "repeats_itself", "shape_of", "without_session"]

CALENDAR_BUDGET: Final = 500
"""Dated urls of one calendar outside of the horizon: forty years of months."""
UNSURE_BUDGET: Final = 1_500
"""The same where only the numbers look like dates: /category/2024/5 can be the fifth page of a category."""
CALENDAR_HORIZON_DAYS: Final = 400
"""So far from today, days are taken as they come."""
CALENDAR_FROM: Final = 1990
CALENDAR_TO: Final = 2099
"""Other numbers are no years, unless their names say so."""
YEARS_AHEAD: Final = 2
"""What says by its names that it is a date later than that, or before 1990, is not followed at all."""
FACET_BUDGET: Final = 300
"""Combinations of filters and orders under one path."""
PARAMETER_SETS: Final = 100
"""Different sets of parameter names under one path; old shops that have all pages there have twenty."""
SESSION_VARIANTS: Final = 3
"""Urls that differ by what may be a session id alone."""
DUPLICATES_FROM: Final = 1_000
DUPLICATES_SHARE: Final = 0.95
"""So many pages of one form were read, and so many of them said exactly what another one had said."""
MAX_OF_SHAPE: Final = 250_000
SHAPE_SHARE: Final = 0.9
"""A form may have so many urls, or any number as long as it is not nearly all of the site."""
EARNED: Final = 10
"""How much a budget grows for a page that led to a new url of another form."""
_MAX_KEYS: Final = 20_000
"""Forms that are counted at once. When there are more, those with few urls are forgotten first."""
_MAX_FOLDERS: Final = 5_000
_MAX_HASHES: Final = 64
_MAX_SEGMENTS: Final = 40

# ------------------------------------------------------------------------------------------ sessions

# Names that servers give their own session ids: the url without it is the page.
_SESSION_NAMES: Final = (
    r"jsessionid|phpsessid|aspsessionid[a-z]*|asp\.net_sessionid|sessionid|session_id|sessid|cfid|cftoken|"
    r"zenid|oscsid|osc?sid|xtc?sid|mscssid|viewstate_session"
)
_SESSION: Final = re.compile(
    rf";(?:{_SESSION_NAMES})=[^/?;]*|/\([sfx]\([a-z0-9()]{{10,}}\)\)|[?&;](?:{_SESSION_NAMES})=[^&;]*", re.IGNORECASE
)
_MAY_HAVE_SESSION: Final = re.compile(r"sess|sid=|cfid=|cftoken=|zenid=|/\([sfx]\(", re.IGNORECASE).search
# Names that may be one: their values tell.
_DOUBTFUL: Final = re.compile(
    r"[?&](?:sid|s|session|sess|token|nonce|rnd|rand|random|cb|nocache|ts|timestamp|_)="
    r"([^&]*)",
    re.IGNORECASE,
).search
_RANDOM: Final = re.compile(r"(?=[^&]*\d)(?:[0-9a-fA-F]{16,}|[A-Za-z0-9_\-]{20,}|0\.\d{6,}|\d{10,})").fullmatch


def without_session(url: str) -> str:
    """Give a normal url without the session ids that servers put in: `;jsessionid=`, `PHPSESSID=`, `/(S(…))/`.

    Only names that mean nothing else are taken out: with or without them it is the same page.
    """
    if _MAY_HAVE_SESSION(url) is None:
        return url
    start = url.find("/", url.find("://") + 3)
    rest = _SESSION.sub(lambda match: "?" if match[0][0] == "?" else "", url[start:])
    rest = rest.replace("?&", "?")
    return url[:start] + rest.removesuffix("?")


# ------------------------------------------------------------------------------------------ form

_HEX: Final = r"[0-9a-f]{16,}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_HEXADECIMAL: Final = re.compile(_HEX, re.IGNORECASE).sub
_DIGITS: Final = re.compile(r"[0-9]+").sub
_LONG: Final = re.compile(r"[0-9A-Fa-f\-]{16}").search


def _names(query: str) -> str:
    return "&".join(sorted({part.partition("=")[0] for part in query.split("&")}))


def shape_of(url: str) -> str:
    """Give the form of a normal url: numbers as `#`, long hexadecimal as `*`, parameters by their names alone."""
    head, mark, query = url.partition("?")
    start = head.find("/", head.find("://") + 3)
    path = head[start:]
    if _LONG(path):
        path = _HEXADECIMAL("*", path)
    shape = head[:start] + _DIGITS("#", path)
    return f"{shape}?{_names(query)}" if mark else shape


def _folder_of(shape: str) -> str:
    """The form of a url's folder: what pages of a trap that all say the same have in common."""
    head, mark, names = shape.partition("?")
    return head[: head.rindex("/") + 1] + mark + names


def repeats_itself(url: str) -> bool:
    """Say whether a normal url's path goes round in a circle: `/a/b/a/b/a/b`.

    Relative links without a base, and servers that take any path for the same page, make them without end.
    """
    start = url.find("/", url.find("://") + 3)
    segments = url[start + 1 :].partition("?")[0].split("/")
    if not segments[-1]:
        segments.pop()
    count = len(segments)
    if count < 3:
        return False
    if count > _MAX_SEGMENTS:
        return True
    different = len(set(segments))
    if different > count - 2:
        return False
    for period in range(1, min(8, count // 3) + 1):
        run = 0
        for index in range(period, count):
            run = run + 1 if segments[index] == segments[index - period] else 0
            if run < 2 * period:
                continue
            # Numbers say the same by chance: /2/2/2 is a path by digits.
            if run >= 4 * period or not all(s.isdigit() for s in segments[index - period + 1 : index + 1]):
                return True
    return count >= 10 and different <= count // 2 and not all(s.isdigit() for s in segments)


# ------------------------------------------------------------------------------------------ dates

_MAY_BE_DATED: Final = re.compile(r"\d{4}").search
_PATH_DATE: Final = re.compile(
    r"(?:^|[/_=\-.])(\d{4})[/_\-.]?(1[0-2]|0?[1-9])(?:[/_\-.]?(0?[1-9]|[12]\d|3[01]))?"
    r"(?:/(?:day|week|month|year|list|agenda|events?|calendar|index)?)?(?:\.[a-z]{3,5})?/?$",
    re.IGNORECASE,
).search
_COMPACT: Final = re.compile(r"\d{5,}").search
_QUERY_DATE: Final = re.compile(
    r"(?:^|&)([^&=]*)=[^&=\d]*(\d{4})(-?)(1[0-2]|0?[1-9])(?:-?(0?[1-9]|[12]\d|3[01]))?(?:(?:T|%20|\+)[^&]*)?(?=&|$)",
    re.IGNORECASE,
).search
_YEAR: Final = re.compile(r"(?:^|&)(?:[^&=]*(?:year|yr|jahr|annee)[^&=]*|y)=(\d{4,})(?=&|$)", re.IGNORECASE).search
_MONTH: Final = re.compile(
    r"(?:^|&)(?:[^&=]*(?:month|mon|monat|mois|mes)[^&=]*|m)=(1[0-2]|0?[1-9])(?=&|$)", re.IGNORECASE
).search
_DATE_NAME: Final = re.compile(
    r"date|day|month|year|week|time|from|until|start|end|cal|datum|tag", re.IGNORECASE
).search
_CALENDAR_WORD: Final = re.compile(
    r"calendar|kalender|calendrier|events?\b|agenda|schedule|termine|veranstaltung", re.IGNORECASE
).search
_YEAR_PATH: Final = re.compile(r"/(\d{4})(?:/(?:week|w|kw)?-?\d{1,2})?/?$", re.IGNORECASE).search


@dataclass(frozen=True, slots=True)
class CalendarDate:
    """The date of a url; `sure` if its names say that it is one, and not just numbers that look like it."""

    year: int
    month: int = 1
    day: int = 1
    sure: bool = False

    def days_from(self, today: date) -> int:
        """Days between the two, either way."""
        return abs((self.year - today.year) * 365 + (self.month - today.month) * 30 + self.day - today.day)


def date_of(url: str) -> CalendarDate | None:
    """Give the date that a url ends in, or has in its query, as calendars' pages have; None for another url.

    A date in front of something else (`/2024/05/12/a-title`) is an article's.
    """
    start = url.find("/", url.find("://") + 3)
    if _MAY_BE_DATED(url, start) is None:
        return None
    path, _, query = url[start:].partition("?")
    calendar = _CALENDAR_WORD(url, start) is not None
    if query:
        year, month = _YEAR(query), _MONTH(query)
        if year is not None and (month is not None or calendar):
            return _date(year[1], month[1] if month else None, None, sure=True)
        if (match := _QUERY_DATE(query)) is not None:
            named = calendar or _DATE_NAME(match[1]) is not None
            if match[3] or named:
                return _date(match[2], match[4], match[5], sure=named)
    match = _PATH_DATE(path)
    if match is not None and (calendar or _COMPACT(match[0]) is None):
        # /event/2040/3 may be the third picture of an event.
        return _date(*match.groups(), sure=calendar and len(match[2]) == 2)
    if calendar and (match := _YEAR_PATH(path)) is not None:
        return _date(match[1], None, None, sure=False)
    return None


def _date(year: str, month: str | None, day: str | None, *, sure: bool) -> CalendarDate | None:
    # Calendars count on for ever, beyond what Python calls a date; other numbers are no years.
    number = int(year[:9])
    if not sure and not CALENDAR_FROM <= number <= CALENDAR_TO:
        return None
    return CalendarDate(number, int(month or 1), int(day or 1), sure)


# ------------------------------------------------------------------------------------------ facets

_PAGING: Final = frozenset(
    ("page", "p", "pg", "paged", "start", "offset", "cursor", "after", "before", "id", "lang", "locale", "hl")
)
_FACETS: Final = re.compile(
    r"sort|sort_?(?:by|order|dir)|order|order_?by|dir|direction|filters?(?:[_.\[].*|by)?|facets?(?:[_.\[].*)?|refine.*|fq|"
    r"q\[.*|per_?page|page_?size|items?_?per_?page|colou?rs?|brands?|sizes?|price.*|(?:min|max)(?:_.*|price)?|ratings?|"
    r"materials?|gender|availability|in_?stock|on_?sale|discount|pa_.*|attr.*|f[._\[].*"
).fullmatch


def facets_of(query: str) -> tuple[int, tuple[str, ...]]:
    """Give how many parameters of a query filter or order a list, and the names of all that choose something."""
    names: list[str] = []
    facets = 0
    for part in query.split("&"):
        name, _, value = part.partition("=")
        name = name.lower()
        if not name or name in _PAGING:
            continue
        multiple = name in names or "[" in name or "%5b" in name
        names.append(name)
        if multiple or _FACETS(name) or "%2C" in value or "," in value or "%7C" in value:
            facets += 1
    return facets, tuple(sorted(set(names)))


# ------------------------------------------------------------------------------------------ budgets


@dataclass(slots=True)
class _Budget:
    used: int = 0
    earned: int = 0


class _Read:
    """What the pages of one form said."""

    __slots__ = ("duplicates", "hashes", "pages")

    def __init__(self) -> None:
        self.pages = 0
        self.duplicates = 0
        self.hashes: dict[str, None] = {}

    def add(self, content: str) -> None:
        self.pages += 1
        if content in self.hashes:
            self.duplicates += 1
            return
        if len(self.hashes) >= _MAX_HASHES:
            del self.hashes[next(iter(self.hashes))]
        self.hashes[content] = None

    @property
    def says_the_same(self) -> bool:
        return self.pages >= DUPLICATES_FROM and self.duplicates >= DUPLICATES_SHARE * self.pages


class TrapGuard:
    """Judges urls, and learns from the pages that were read.

    Args:
        today: what dates are measured from; the day of its making if None.
    """

    def __init__(self, today: date | None = None) -> None:
        self._today = today or datetime.now(UTC).date()
        # Keys are hashes: a form can be as long as a url, and there are some ten thousand of them.
        self._budgets: dict[int, _Budget] = {}
        self._shapes: dict[int, int] = {}
        self._folders: dict[int, _Read] = {}
        self._urls = 0

    def judge(self, url: str) -> str | None:
        """Say why a url is not to be followed; None if it may be. To be asked once for each url.

        Args:
            url: normal, without session ids.

        Returns:
            `repeating_path`, `session_id`, `calendar`, `facets`, `url_pattern`, or None.
        """
        if repeats_itself(url):
            return "repeating_path"
        head, _, query = url.partition("?")
        if query and (match := _DOUBTFUL(url, len(head))) is not None and _RANDOM(match[1]):
            start, end = match.span(1)
            if not self._spend("session", url[:start] + url[end:], SESSION_VARIANTS):
                return "session_id"
        if (day := date_of(url)) is not None and not self._in_time(url, day):
            return "calendar"
        if query and not self._is_one_of_few(head, query):
            return "facets"
        return None if self._fits(url) else "url_pattern"

    def read(self, url: str, content_hash: str, *, led_on: bool) -> None:
        """Learn from a page.

        Args:
            url: of the page.
            content_hash: equal for equal texts.
            led_on: it held a new link, of another form than its own, that is followed.
        """
        folder = hash(_folder_of(shape_of(url)))
        read = self._folders.get(folder)
        if read is None:
            if len(self._folders) >= _MAX_FOLDERS:
                self._folders = {key: kept for key, kept in self._folders.items() if kept.pages >= 50}
                if len(self._folders) >= _MAX_FOLDERS:
                    self._folders.clear()
            read = self._folders[folder] = _Read()
        read.add(content_hash)
        if led_on:
            for key in _budgets_of(url):
                if (budget := self._budgets.get(key)) is not None:
                    budget.earned += EARNED

    def leads_on(self, page: str, link: str) -> bool:
        """Say whether a link is of another kind than its page: what a page of a trap does not hold."""
        return page.partition("?")[0] != link.partition("?")[0] and date_of(link) is None

    def _spend(self, kind: str, what: str, budget: int) -> bool:
        key = hash((kind, what))
        kept = self._budgets.get(key)
        if kept is None:
            if len(self._budgets) >= _MAX_KEYS:
                self._budgets = {k: b for k, b in self._budgets.items() if b.used >= 10}
                if len(self._budgets) >= _MAX_KEYS:
                    self._budgets.clear()
            kept = self._budgets[key] = _Budget()
        if kept.used >= budget + kept.earned:
            return False
        kept.used += 1
        return True

    def _in_time(self, url: str, day: CalendarDate) -> bool:
        if day.sure and not CALENDAR_FROM <= day.year <= self._today.year + YEARS_AHEAD:
            return False
        if day.days_from(self._today) <= CALENDAR_HORIZON_DAYS:
            return True
        return self._spend("calendar", _without_numbers(url), CALENDAR_BUDGET if day.sure else UNSURE_BUDGET)

    def _is_one_of_few(self, head: str, query: str) -> bool:
        facets, names = facets_of(query)
        if facets and not self._spend("facets", head, FACET_BUDGET):
            return False
        if len(names) < 2:
            return True
        combination = f"{head}?{'&'.join(names)}"
        if hash(("set", combination)) in self._budgets:
            return True
        return self._spend("names", head, PARAMETER_SETS) and self._spend("set", combination, 1)

    def _fits(self, url: str) -> bool:
        shape = shape_of(url)
        if self._folders:
            read = self._folders.get(hash(_folder_of(shape)))
            if read is not None and read.says_the_same:
                return False
        key = hash(shape)
        count = self._shapes.get(key)
        if count is None:
            if len(self._shapes) >= _MAX_KEYS:
                self._shapes = {k: kept for k, kept in self._shapes.items() if kept >= 100}
                if len(self._shapes) >= _MAX_KEYS:
                    self._shapes.clear()
            count = 0
        if count >= MAX_OF_SHAPE and count >= SHAPE_SHARE * self._urls:
            return False
        self._urls += 1
        self._shapes[key] = count + 1
        return True


def _without_numbers(url: str) -> str:
    """A calendar is its url without numbers: days, months and weeks of it are counted together."""
    return _DIGITS("", url)


def _budgets_of(url: str) -> list[int]:
    """The budgets that a page of this url can earn for."""
    keys = []
    if date_of(url) is not None:
        keys.append(hash(("calendar", _without_numbers(url))))
    head, _, query = url.partition("?")
    if query:
        keys += [hash(("facets", head)), hash(("names", head))]
    return keys
