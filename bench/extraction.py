"""Main content: how much of it is right, and what a page costs, beside what one would take instead.

    python -m bench.extraction --data PATH [--pages N] [--rounds N] [--only NAME,NAME] [--json FILE]

The data are the pages and texts of https://github.com/scrapinghub/article-extraction-benchmark: PATH is a clone of it
(with a work tree, or bare), or OMNIOPS_ARTICLE_BENCHMARK names one. Without it only the own pages are measured. The
figure is that benchmark's: precision and recall of shingles of four words, each page weighing the same, F1 of the two
means.

These pages were at hand while the rules and their numbers were chosen: the figures say how well the rules fit them,
which is more than they promise for pages that nobody has seen. Two halves, by a page's id, are given to show how much
chance there is in a figure; neither was held out.

`omniops` is the configured default, a mixture: the fast choice, and the careful one where the fast one is unsure. How
many pages went which way is printed, beside what each of the two gives alone.

The own pages are those of tests/content_pages: facts that must stay, boilerplate that must go.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.content import SiteBoilerplate, extract, survey

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN = Path(__file__).parents[1] / "tests" / "content_pages"
_URL = "https://page.example/"
_TOKENS = re.compile(r"\w+").findall
_HALVES = ("half a", "half b", "all")


def _trafilatura(html: str) -> str:
    from trafilatura import extract as trafilatura

    return trafilatura(html, fast=True, include_comments=False) or ""


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(html, main_content=True, alt_texts=False, links=False))


def _readability(html: str) -> str:
    from lxml.html import fromstring
    from readability import Document

    return str(fromstring(Document(html).summary()).text_content())


def _html2text(html: str) -> str:
    from html2text import HTML2Text

    converter = HTML2Text()
    converter.ignore_links = converter.ignore_images = True
    return str(converter.handle(html))


_CONTENDERS: dict[str, Callable[[str], str]] = {
    "omniops": lambda html: extract(html, _URL).text,
    "omniops-fast": lambda html: extract(html, _URL, mode="fast").text,
    "omniops-careful": lambda html: extract(html, _URL, mode="careful").text,
    "trafilatura": _trafilatura,
    "resiliparse": _resiliparse,
    "readability-lxml": _readability,
    "html2text": _html2text,
}


# ------------------------------------------------------------------------------------------ data


def _read(data: Path, name: str) -> bytes:
    if (data / name).exists():
        return (data / name).read_bytes()
    return subprocess.run(["git", "-C", str(data), "show", f"HEAD:{name}"], capture_output=True, check=True).stdout


def load(data: Path, limit: int | None = None) -> dict[str, tuple[str, str]]:
    """Give html and true text of each page, by its id."""
    truth = json.loads(_read(data, "ground-truth.json"))
    return {
        key: (gzip.decompress(_read(data, f"html/{key}.html.gz")).decode("utf-8", "replace"), value["articleBody"])
        for key, value in list(truth.items())[:limit]
    }


def half_of(key: str) -> str:
    """Give the half that a page belongs to, by its id, which is a hash."""
    return _HALVES[int(key[:8], 16) % 2]


# ------------------------------------------------------------------------------------------ scores


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    tokens = _TOKENS(text)
    return Counter(tuple(tokens[i : i + 4]) for i in range(max(1, len(tokens) - 3)) if tokens)


def score(true: str, found: str) -> tuple[float, float]:
    """Give precision and recall of one page."""
    wanted, got = _shingles(true), _shingles(found)
    if not wanted or not got:
        same = 1.0 if not wanted and not got else 0.0
        return same, same
    right = sum((wanted & got).values())
    return right / got.total(), right / wanted.total()


def _mean(scores: list[tuple[float, float]]) -> dict[str, float]:
    precision = statistics.fmean(p for p, _ in scores)
    recall = statistics.fmean(r for _, r in scores)
    return {"f1": 2 * precision * recall / (precision + recall or 1), "precision": precision, "recall": recall}


def articles(pages: dict[str, tuple[str, str]], names: list[str], rounds: int) -> dict[str, Any]:
    """Let the contenders take turns over the pages; CPU seconds are the least of the rounds."""
    results: dict[str, Any] = {}
    for name in names:
        _CONTENDERS[name](next(iter(pages.values()))[0])  # loads what it needs
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            work = _CONTENDERS[name]
            texts: dict[str, str] = {}
            started = time.process_time()
            for key, (html, _) in pages.items():
                texts[key] = work(html)
            seconds[name].append(time.process_time() - started)
            scores = {key: score(true, texts[key]) for key, (_, true) in pages.items()}
            for half in _HALVES:
                of_half = [value for key, value in scores.items() if half in ("all", half_of(key))]
                if of_half:
                    results.setdefault(name, {})[half] = _mean(of_half)
    for name in names:
        results[name]["pages_per_cpu_second"] = len(pages) / min(seconds[name])
    return results


def own_pages() -> dict[str, Any]:
    """Count facts lost and boilerplate kept on the own pages: knowing the site, and not."""
    expected = json.loads((_OWN / "expected.json").read_text())
    html = {name: (_OWN / f"{name}.html").read_bytes() for name in expected}
    sites: dict[str, SiteBoilerplate] = {}
    for name, page in expected.items():
        sites.setdefault(name.split("/")[0], SiteBoilerplate()).learn(survey(html[name], page["url"]))
    counts: dict[str, Any] = {"pages": len(expected)}
    ways: dict[str, Callable[[str], str]] = {
        "omniops, site known": lambda name: (
            extract(html[name], expected[name]["url"], boilerplate=sites[name.split("/")[0]].known()).text
        ),
        "omniops, site unknown": lambda name: extract(html[name], expected[name]["url"]).text,
        **{
            other: lambda name, work=_CONTENDERS[other]: work(html[name].decode())  # type: ignore[misc]
            for other in ("trafilatura", "resiliparse", "readability-lxml", "html2text")
        },
    }
    for way, work in ways.items():
        lost = leaked = facts = pieces = 0
        for name, page in expected.items():
            text = " ".join(work(name).split())
            facts += len(page["facts"])
            pieces += len(page["boilerplate"])
            lost += sum(" ".join(fact.split()) not in text for fact in page["facts"])
            leaked += sum(" ".join(piece.split()) in text for piece in page["boilerplate"])
        counts[way] = {"facts lost": lost, "facts": facts, "leaks": leaked, "boilerplate": pieces}
    return counts


# ------------------------------------------------------------------------------------------ command


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.extraction", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("OMNIOPS_ARTICLE_BENCHMARK"))
    parser.add_argument("--pages", type=int, help="only so many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="contenders, separated by commas", default=",".join(_CONTENDERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"own": own_pages()}
    print(f"own pages that are not articles: {report['own'].pop('pages')}")
    for way, count in report["own"].items():
        leaks = 100 * count["leaks"] / count["boilerplate"]
        print(f"  {way:24} facts lost {count['facts lost']:3} of {count['facts']}, leaks {leaks:5.1f} %")
    if options.data is None or not Path(options.data).exists():
        print("articles: skipped, no data (--data, a clone of scrapinghub/article-extraction-benchmark)")
    else:
        pages = load(Path(options.data), options.pages)
        report["articles"] = articles(pages, options.only.split(","), options.rounds)
        print(f"articles: {len(pages)} pages of scrapinghub/article-extraction-benchmark")
        print(f"  {'':18}{'F1':>7}{'prec.':>7}{'recall':>7}{'half a':>7}{'half b':>7}{'pages/CPU-s':>13}")
        for name, result in report["articles"].items():
            whole = result["all"]
            halves = "".join(f"{result[half]['f1']:7.3f}" if half in result else "      -" for half in _HALVES[:2])
            print(
                f"  {name:18}{whole['f1']:7.3f}{whole['precision']:7.3f}{whole['recall']:7.3f}{halves}"
                f"{result['pages_per_cpu_second']:13.0f}"
            )
        methods = Counter(extract(html, _URL).method for html, _ in pages.values())
        report["methods"] = dict(methods)
        ways = ", ".join(f"{way} {n} ({100 * n / len(pages):.1f} %)" for way, n in methods.most_common())
        print(f"  pages of the mixture by who chose: {ways}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
