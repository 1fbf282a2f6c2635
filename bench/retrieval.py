"""How well does search find the page that answers, by the page's own words and by other ones?

    python -m bench.retrieval [--data DIR] [--vectors DIR] [--wrong] [--json FILE]

The data are the pages of the Python documentation as Debian's package `python3.11-doc` installs them below
/usr/share/doc/python3.11/html, or of another build of it in DIR: its library reference, tutorial and FAQ; for the
questions "blind" all its handbooks. They are extracted, cut, embedded by the embedded model and indexed as crawled
pages are, in an embedded Postgres of their own. `--vectors` keeps the vectors in a folder: the first run takes ten
minutes or more, another one some minutes, for extraction and indexing.

The questions (bench/retrieval_questions.json) were written for this and name the pages that answer each: some with
words of these pages, most in other words, as people ask. Weights and constants were chosen by the half "tuned", every
second question. The other half, "held out", was seen while settings were compared, so it is no blind test.

The questions "blind" were written when the settings stood, and committed before the first search for one of them: one
for each of 61 pages that were drawn by chance (random.Random(20261129), among those of at least 250 words: 28 of the
library reference, 8 of the C API, 6 howtos, 5 of the tutorial, 3 each of FAQ, usage, extending and reference, 1 each
of distributing and installing). Nothing may be tuned by them, or they are blind no more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import text

from resources.content import SiteBoilerplate, extract, hybrid_search, survey
from resources.content.chunks import hash_of
from resources.content.embed import as_vector, embed_missing
from resources.content.embeddings.minilm import MiniLM
from resources.postgres.connection import dispose_engines, engine_for
from resources.postgres.content import index_waiting_content
from resources.postgres.customers import ensure_customer
from resources.postgres.migrate import migrate
from resources.postgres.tenancy import tenant_connection
from resources.services import acquire
from resources.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from numpy.typing import NDArray
    from sqlalchemy import Engine

    from resources.content.embeddings import Keep

_DATA: Final = Path("/usr/share/doc/python3.11/html")
_PARTS: Final = ("library", "tutorial", "faq")
_ALL_PARTS: Final = (*_PARTS, "howto", "c-api", "using", "extending", "reference", "distributing", "installing")
_URL: Final = "https://docs.example/"
_QUESTIONS: Final = Path(__file__).with_name("retrieval_questions.json")
_KINDS: Final = ("keywords", "other words")
_HALVES: Final = ("tuned", "held out")
_SETS: Final = {"tuned": ("tuned",), "held out": ("held out",), "all": _HALVES, "blind": ("blind",)}
_ARMS: Final = ("full text", "vectors", "hybrid")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and the pages that answer it.

    Attributes:
        kind: with the page's words, or in other ones.
        half: `tuned` or `held out`, or `blind`.
        asked: as it is typed.
        answers: urls.
    """

    kind: str
    half: str
    asked: str
    answers: frozenset[str]


def questions() -> list[Question]:
    """All of them."""
    stored = json.loads(_QUESTIONS.read_text(encoding="utf-8"))
    return [
        Question(kind, half, asked, frozenset(f"{_URL}{page}.html" for page in pages))
        for halves, given in ((_HALVES, stored), (("blind",), stored["blind"]))
        for kind in _KINDS
        for number, (asked, pages) in enumerate(given[kind])
        for half in (halves[number % len(halves)],)
    ]


class KeptVectors(MiniLM):
    """The embedded model, with what it gave kept in a folder; nothing is kept without one."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self._folder = folder
        self._kept: dict[str, NDArray[np.float32]] = {}
        if folder is not None:
            for path in folder.glob("*.npz"):
                stored = np.load(path)
                self._kept.update(zip(stored["hashes"].tolist(), stored["vectors"].astype(np.float32), strict=True))

    def embed(
        self, texts: Sequence[str], *, stop: Callable[[], bool] | None = None, keep: Keep | None = None
    ) -> NDArray[np.float32]:
        """As the model does; what is kept is not computed again."""
        hashes = [hash_of(one) for one in texts]
        new = [number for number, one in enumerate(hashes) if one not in self._kept]
        if new:
            vectors = super().embed([texts[number] for number in new], stop=stop)
            self._kept.update((hashes[number], vector) for number, vector in zip(new, vectors, strict=True))
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = hash_of("".join(hashes[number] for number in new))
                np.savez_compressed(
                    self._folder / f"{name}.npz", hashes=[hashes[n] for n in new], vectors=vectors.astype(np.float16)
                )
        found = np.stack([self._kept[one] for one in hashes])
        if keep is not None:
            keep(range(len(found)), found)
        return found


def store(engine: Engine, data: Path, parts: Sequence[str]) -> tuple[UUID, int]:
    """The pages of some folders as a crawl leaves them; whose they are, and how many."""
    paths = sorted(path for part in parts for path in (data / part).glob("*.html"))
    if not paths:
        raise SystemExit(
            f"there is no Python documentation in {data}: install python3.11-doc (Debian), or name a folder that has "
            "library/, tutorial/, faq/ and the others with --data"
        )
    site = SiteBoilerplate()
    html = {path: path.read_bytes() for path in paths}
    for path in paths:
        site.learn(survey(html[path], _url(data, path)))
    repeated = site.known()
    with engine.begin() as connection:
        customer = ensure_customer(connection, "docs")
        for path in paths:
            page = extract(html[path], _url(data, path), boilerplate=repeated)
            page_id = connection.scalar(
                text("""INSERT INTO scraped_pages (customer_id, domain, url, title, description, lang, http_status)
                        VALUES (:customer, 'docs.example', :url, :title, :description, :lang, 200) RETURNING id"""),
                {"customer": customer, "url": _url(data, path), "title": page.title,
                 "description": page.description, "lang": page.language or "en"},
            )  # fmt: skip
            connection.execute(
                text("""INSERT INTO website_content (page_id, customer_id, markdown, text, word_count)
                        VALUES (:page, :customer, :markdown, :text, :words)"""),
                {"page": page_id, "customer": customer, "markdown": page.markdown, "text": page.text,
                 "words": page.word_count},
            )  # fmt: skip
    while index_waiting_content(engine, 200):
        pass
    return customer, len(paths)


def _url(data: Path, path: Path) -> str:
    return f"{_URL}{path.relative_to(data).as_posix()}"


@dataclass(frozen=True, slots=True)
class Found:
    """What the arms give for a question.

    Attributes:
        question: which.
        words: urls by full text, best first; the last resort (any of the words) where none has all of them.
        near: urls by vectors, nearest first, with the distances.
        hybrid: urls as search gives them.
    """

    question: Question
    words: tuple[str, ...]
    near: tuple[tuple[str, float], ...]
    hybrid: tuple[str, ...]

    def ranked(self, arm: str) -> tuple[str, ...]:
        """The urls of an arm."""
        if arm == "hybrid":
            return self.hybrid
        return self.words if arm == "full text" else tuple(url for url, _ in self.near)


_NEAREST: Final = text("""
    SELECT p.url, min(CAST(e.embedding AS halfvec(384)) <=> CAST(:vector AS halfvec(384))) AS distance
    FROM page_embeddings AS e JOIN scraped_pages AS p ON p.id = e.page_id GROUP BY p.url ORDER BY 2, 1 LIMIT 50""")


def ask(engine: Engine, customer: UUID, provider: MiniLM, asked: Sequence[Question]) -> list[Found]:
    """Each question, by the arms and by the whole search."""
    whole = hybrid_search.Search(engine, provider)
    text_alone = hybrid_search.Search(engine)
    found = []
    for question in asked:
        vector = as_vector(provider.embed([question.asked])[0].tolist())
        with tenant_connection(customer, engine=engine) as connection:
            # Each page by its nearest piece, one by one: what an index gives is bench/search.py's question.
            near = connection.execute(_NEAREST, {"vector": vector}).all()
        words = text_alone.search(question.asked, customer, 50)
        hybrid = whole.search(question.asked, customer, 50)
        found.append(
            Found(
                question,
                tuple(one.url for one in words),
                tuple((row.url, float(row.distance)) for row in near),
                tuple(one.url for one in hybrid),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares of the questions that have an answer at the first place, among the first five; mean reciprocal rank."""

    recall_at_1: float
    recall_at_5: float
    mrr: float

    def __str__(self) -> str:
        return f"{self.recall_at_1:6.3f} {self.recall_at_5:6.3f} {self.mrr:6.3f}"


def judge(ranked: Sequence[tuple[frozenset[str], Sequence[str]]]) -> Figures:
    """The figures of questions (their answers, what was found)."""
    ranks = [
        next((rank for rank, url in enumerate(urls, start=1) if url in answers), None) for answers, urls in ranked
    ]
    count = len(ranks)
    return Figures(
        sum(rank == 1 for rank in ranks) / count,
        sum(rank is not None and rank <= 5 for rank in ranks) / count,
        sum(1 / rank for rank in ranks if rank is not None) / count,
    )


def table(found: Sequence[Found]) -> dict[str, dict[str, dict[str, Figures]]]:
    """Figures by set of questions, kind and arm."""
    figures: dict[str, dict[str, dict[str, Figures]]] = defaultdict(lambda: defaultdict(dict))
    for name, halves in _SETS.items():
        for kind in _KINDS:
            some = [one for one in found if one.question.kind == kind and one.question.half in halves]
            for arm in _ARMS:
                figures[name][kind][arm] = judge([(one.question.answers, one.ranked(arm)) for one in some])
    return figures


def measure(data: Path, parts: Sequence[str], provider: MiniLM, asked: Sequence[Question]) -> list[Found]:
    """Store the pages of some folders in a database of their own, embed, ask."""
    with tempfile.TemporaryDirectory(prefix="omniops-bench-") as folder:
        settings = Settings(home=Path(folder), database_url=None, owner_database_url=None, redis_url=None)
        with acquire(settings) as endpoints:
            migrate(endpoints.owner_database_url, runtime_url=endpoints.database_url)
            engine = engine_for(endpoints.database_url)
            started = time.perf_counter()
            customer, pages = store(engine, data, parts)
            done = embed_missing(engine, provider)
            print(
                f"{pages} pages of {data}, {done.chunks:,} pieces, ready after {time.perf_counter() - started:.0f} s"
            )
            found = ask(engine, customer, provider, asked)
            dispose_engines()
    return found


def main() -> None:
    """Store, embed, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=_DATA, help="Folder of the documentation's pages.")
    parser.add_argument("--vectors", type=Path, help="Folder in which vectors are kept.")
    parser.add_argument("--wrong", action="store_true", help="Show the questions whose answer is not the first.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    provider = KeptVectors(arguments.vectors)
    asked = questions()
    found = [
        *measure(arguments.data, _PARTS, provider, [one for one in asked if one.half != "blind"]),
        *measure(arguments.data, _ALL_PARTS, provider, [one for one in asked if one.half == "blind"]),
    ]
    figures = table(found)
    for name, halves in _SETS.items():
        for kind in _KINDS:
            count = sum(q.kind == kind and q.half in halves for q in asked)
            print(
                f"\n{name}, {count} questions with {kind}" if kind == "keywords" else f"\n{name}, {count} in {kind}"
            )
            print(f"{'':12}   @1     @5    MRR")
            for arm in _ARMS:
                print(f"{arm:12} {figures[name][kind][arm]}")
    if arguments.wrong:
        _print_wrong(found)
    if arguments.json:
        _write(arguments.json, figures, found)


def _print_wrong(found: Sequence[Found]) -> None:
    for one in found:
        if not one.hybrid or one.hybrid[0] not in one.question.answers:
            print(f"\n{one.question.half}, {one.question.kind}: {one.question.asked}")
            for arm in _ARMS:
                shown = [url.removeprefix(_URL).removesuffix(".html") for url in one.ranked(arm)[:4]]
                print(f"  {arm:10} {', '.join(shown)}")


def _write(path: Path, figures: Any, found: Sequence[Found]) -> None:
    plain = {
        name: {kind: {arm: str(one).split() for arm, one in arms.items()} for kind, arms in kinds.items()}
        for name, kinds in figures.items()
    }
    rows = [
        {"kind": one.question.kind, "half": one.question.half, "asked": one.question.asked,
         "answers": sorted(one.question.answers), "words": one.words, "near": one.near, "hybrid": one.hybrid}
        for one in found
    ]  # fmt: skip
    path.write_text(json.dumps({"figures": plain, "questions": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
