"""The demonstration site as data: reads the fragments under ``pages/`` and renders every answer once.

A fragment begins with a comment that holds its front matter in TOML::

    <!--
    title = "Opening hours and holidays"
    description = "When the shop is open."
    updated = 2026-02-20
    -->
    <p>…</p>

``heading`` (the ``h1``) and ``label`` (the name in a breadcrumb) default to the title; ``lang`` to
``en``; ``translations`` names the same page in other languages; ``sku`` and ``price`` make a page a
product of the price list. No HTTP here: what is sent, and when, is in :mod:`.server`.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.robotparser import RobotFileParser

from omniops_pipelines.demo.price_list import price_list_pdf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PRICE_LIST = "/downloads/price-list-2026.pdf"

_HERE = Path(__file__).parent
_HTML = "text/html; charset=utf-8"


@dataclass(frozen=True)
class Page:
    """One page of content, before the layout is put around it."""

    path: str
    title: str
    description: str
    updated: date
    body: str
    lang: str = "en"
    heading: str = ""
    label: str = ""
    translations: Mapping[str, str] = field(default_factory=dict)
    sku: str = ""
    price: str = ""


@dataclass(frozen=True)
class Answer:
    """A response that is ready to send, with the validators that a conditional request is checked against."""

    status: int
    content_type: str
    body: bytes
    modified: datetime | None = None
    location: str | None = None
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the entity tag from the bytes, so that a tag can never be out of date."""
        digest = hashlib.blake2b(self.body, digest_size=12).hexdigest()
        object.__setattr__(self, "etag", f'"{digest}"')


@dataclass(frozen=True)
class RenderedSite:
    """Every answer of the site by path, and which path is expected to be what to a crawler."""

    answers: Mapping[str, Answer]
    not_found: Answer
    pages: frozenset[str]
    redirects: Mapping[str, str]
    missing: frozenset[str]
    disallowed: frozenset[str]
    documents: frozenset[str]

    def answer(self, path: str) -> Answer:
        """Return what is at ``path``, or the site's own error page."""
        return self.answers.get(path, self.not_found)


def load_pages() -> dict[str, Page]:
    """Read every fragment under ``pages/``, by the path at which it is served."""
    root = _HERE / "pages"
    pages = (_read_page(file, root) for file in sorted(root.rglob("*.html")))
    return {page.path: page for page in pages}


def render_site(base: str) -> RenderedSite:
    """Render the whole site for an address without a trailing slash, such as ``http://127.0.0.1:8080``."""
    settings = tomllib.loads(_text("site.toml"))
    pages = load_pages()
    robots = Template(_text("robots.txt")).substitute(base=base)
    disallowed = _disallowed(robots, pages)
    public = {path: page for path, page in pages.items() if path not in disallowed}

    layout = _Layout(base, settings["name"], pages)
    answers = {
        path: Answer(200, _HTML, layout.render(page).encode(), _midnight(page.updated))
        for path, page in pages.items()
    }
    newest = _midnight(max(page.updated for page in public.values()))
    answers["/robots.txt"] = Answer(200, "text/plain; charset=utf-8", robots.encode(), newest)
    answers["/sitemap.xml"] = Answer(200, "application/xml", _sitemap(base, public.values()).encode(), newest)
    answers[PRICE_LIST] = _price_list(settings["name"], public.values())
    for path, content_type in settings["assets"].items():
        answers[path] = Answer(200, content_type, (_HERE / path.lstrip("/")).read_bytes(), newest)
    for path, target in settings["redirects"].items():
        moved = f'<!doctype html><title>Moved</title><p>This page is now <a href="{target}">here</a>.</p>\n'
        # The target stays relative, as most servers send it: RFC 9110, 10.2.2 lets the client resolve it.
        answers[path] = Answer(301, _HTML, moved.encode(), location=target)

    return RenderedSite(
        answers=answers,
        not_found=Answer(404, _HTML, layout.render_not_found().encode()),
        pages=frozenset(public),
        redirects=dict(settings["redirects"]),
        missing=frozenset(settings["missing"]["paths"]),
        disallowed=disallowed,
        documents=frozenset({PRICE_LIST}),
    )


class _Layout:
    """The one layout around every page."""

    def __init__(self, base: str, site_name: str, pages: Mapping[str, Page]) -> None:
        self._base = base
        self._site_name = site_name
        self._pages = pages
        self._template = Template(_text("layout.html"))

    def render(self, page: Page) -> str:
        return self._fill(
            page.title,
            page.description,
            page.body,
            lang=page.lang,
            heading=page.heading or page.title,
            head_links="\n".join(self._head_links(page)),
            breadcrumb=self._breadcrumb(page),
        )

    def render_not_found(self) -> str:
        # No canonical link: one answer stands for every address at which nothing is.
        return self._fill(
            "Page not found",
            "There is no page at this address.",
            _text("not_found.html"),
            head_links='<meta name="robots" content="noindex">',
        )

    def _fill(
        self,
        title: str,
        description: str,
        body: str,
        *,
        head_links: str,
        lang: str = "en",
        heading: str = "",
        breadcrumb: str = "",
    ) -> str:
        return self._template.substitute(
            site_name=escape(self._site_name),
            title=escape(title),
            description=escape(description),
            heading=escape(heading or title),
            lang=lang,
            head_links=head_links,
            breadcrumb=breadcrumb,
            body=body.strip(),
        )

    def _head_links(self, page: Page) -> Iterable[str]:
        yield f'<link rel="canonical" href="{self._base}{page.path}">'
        if page.translations:
            # A page names itself among its translations, or search engines ignore the set.
            for lang, path in sorted({page.lang: page.path, **page.translations}.items()):
                yield f'<link rel="alternate" hreflang="{lang}" href="{self._base}{path}">'

    def _breadcrumb(self, page: Page) -> str:
        parts = page.path.strip("/").split("/")
        above = ["/", *("/" + "/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))]
        trail = [self._pages[path] for path in above if path in self._pages and path != page.path]
        if not trail:
            return ""
        items = [
            f'<li><a href="{up.path}">{escape("Home" if up.path == "/" else _label(up))}</a></li>' for up in trail
        ]
        items.append(f'<li aria-current="page">{escape(_label(page))}</li>')
        return f'<nav class="crumbs" aria-label="Breadcrumb"><ol>{"".join(items)}</ol></nav>'


def _label(page: Page) -> str:
    return page.label or page.heading or page.title


def _read_page(file: Path, root: Path) -> Page:
    text = file.read_text("utf-8")
    front, end, body = text.removeprefix("<!--\n").partition("\n-->\n")
    if not text.startswith("<!--\n") or not end:
        raise ValueError(f"{file}: a page begins with its front matter in a comment, and this one does not")
    name = file.relative_to(root).with_suffix("").as_posix()
    path = "/" + (name.removesuffix("index") if name.split("/")[-1] == "index" else name)
    try:
        return Page(path=path, body=body, **tomllib.loads(front))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"{file}: the front matter cannot be used: {error}") from error


def _text(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _disallowed(robots: str, paths: Iterable[str]) -> frozenset[str]:
    # Asked of robots.txt itself, so that the file and what tests expect cannot differ.
    rules = RobotFileParser()
    rules.parse(robots.splitlines())
    return frozenset(path for path in paths if not rules.can_fetch("*", path))


def _sitemap(base: str, pages: Iterable[Page]) -> str:
    urls = "\n".join(
        f"<url><loc>{escape(base + page.path)}</loc><lastmod>{page.updated.isoformat()}</lastmod></url>"
        for page in sorted(pages, key=lambda page: page.path)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        f"{urls}\n</urlset>\n"
    )


def _price_list(site_name: str, pages: Iterable[Page]) -> Answer:
    products = sorted((page for page in pages if page.sku), key=lambda page: page.sku)
    pdf = price_list_pdf(f"{site_name}: price list 2026", [(page.sku, page.title, page.price) for page in products])
    return Answer(200, "application/pdf", pdf, _midnight(max(page.updated for page in products)))
