"""Extraction: what is kept of a page, what is left out, and that no bytes make it fail."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.content import extract, survey
from resources.content.dom import blocks_of, read_document
from resources.content.metadata import read_date
from resources.crawler.pieces import pieces

if TYPE_CHECKING:
    from resources.content.extraction import Mode

URL = "https://shop.example/guides/tea"

ARTICLE = """<!doctype html><html lang="de-AT"><head><title>Tee &amp; Kaffee</title>
<meta name="description" content="Wie man Tee kocht">
<link rel="canonical" href="/guides/tea?utm_source=x">
<meta property="article:published_time" content="2024-03-01T10:00:00+01:00">
</head><body>
<nav><ul><li><a href="/">Start</a></li><li><a href="/shop">Laden</a></li></ul></nav>
<main><h1>Tee kochen</h1>
<p>Wer Tee kocht, braucht <b>heißes</b> Wasser und <a href="../herbs">Kräuter</a>, die Zeit zum Ziehen haben.</p>
<h2>Zeiten</h2>
<table><tr><th>Sorte</th><th>Minuten</th></tr><tr><td>Grün</td><td>2</td></tr></table>
<ol><li>Wasser kochen</li><li>Tee hinein<ul><li>lose</li></ul></li></ol>
<pre><code class="language-python">for x in tea:
    brew(x)</code></pre>
</main>
<footer><p>© Teehaus, alle Rechte vorbehalten</p></footer></body></html>"""


def test_an_article_keeps_its_structure_and_loses_what_surrounds_it() -> None:
    page = extract(ARTICLE, URL)
    assert page.title == "Tee & Kaffee"
    assert page.description == "Wie man Tee kocht"
    assert page.canonical_url == "https://shop.example/guides/tea"
    assert page.language == "de-AT"
    assert page.published is not None
    assert page.published == datetime(2024, 3, 1, 9, tzinfo=UTC)
    assert "Laden" not in page.text
    assert "Rechte" not in page.text
    assert page.markdown == (
        "# Tee kochen\n\n"
        "Wer Tee kocht, braucht **heißes** Wasser und [Kräuter](https://shop.example/herbs), "
        "die Zeit zum Ziehen haben.\n\n"
        "## Zeiten\n\n"
        "| Sorte | Minuten |\n| --- | --- |\n| Grün | 2 |\n\n"
        "1. Wasser kochen\n2. Tee hinein\n   - lose\n\n"
        "```python\nfor x in tea:\n    brew(x)\n```"
    )
    assert page.text.splitlines()[:2] == [
        "Tee kochen",
        "Wer Tee kocht, braucht heißes Wasser und Kräuter, die Zeit zum Ziehen haben.",
    ]
    assert "Grün\t2" in page.text


HOSTILE = {
    "empty": b"",
    "spaces": b" \n\t ",
    "nul": b"<p>be\0fore</p>\0",
    "not its charset": "<meta charset=utf-8><p>caf\xe9 au lait</p>".encode("latin-1"),
    "utf-16": "<p>hello there</p>".encode("utf-16"),
    "frameset": b"<html><frameset cols='50%,50%'><frame src=a><frame src=b></frameset></html>",
    "xml": b"<?xml version='1.0'?><feed><entry><title>One</title></entry></feed>",
    "broken tags": b"<div <p>a</b></i><table><tr><td>x<p>y</table></div></div></body><p>after",
    "deep divs": b"<div>" * 30_000 + b"bottom",
    "deep spans": b"<span>" * 30_000 + b"bottom",
    "deep lists": b"<ul><li>x" * 5_000,
    "deep tables": b"<table><tr><td>" * 3_000 + b"x",
    "many attributes": b"<p " + b"a%d=1 " * 5_000 + b">x</p>",
    "large": b"<p>some words that go on</p>" * 30_000,
    "one large text": b"x" * 3_000_000,
    "unclosed script": b"<p>text</p><script>var x = '<p>no</p>'",
    "scripts without end": b"<script>" * 50_000,
    "comments without end": b"<!--" * 100_000,
    "angle brackets": b"<" * 300_000,
    "bad json": b'<script type="application/ld+json">{"@type": [[[</script><p>text</p>',
    "deep json": b'<script type="application/ld+json">' + b"[" * 50_000 + b"</script><p>text</p>",
    "bad numbers": b"<ol start=99999999999><li>x</ol><table><tr><td colspan=99999999>a<td>b<tr><td>c<td>d</table>",
    "plaintext": b"<p>before</p><plaintext><p>in it",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("mode", ["mixture", "careful"])
def test_no_page_makes_it_fail(name: str, mode: Mode) -> None:
    page = extract(HOSTILE[name], URL, mode=mode)
    assert "\0" not in page.text + page.markdown
    (page.text + page.markdown + (page.title or "")).encode()
    assert (page.fallback_reason is not None) == (page.method == "fallback")
    assert page.word_count == len(page.text.split())
    survey(HOSTILE[name], URL)


def test_what_cannot_be_stored_is_cleaned_and_counted() -> None:
    page = extract(HOSTILE["nul"], URL)
    assert (page.text, page.cleaned) == ("before", 2)
    page = extract("<p>half \ud800 pair</p>", URL)
    assert (page.text, page.cleaned) == ("half \ufffd pair", 1)
    page = extract(b"<meta charset=utf-8><p>caf\xe9</p>", URL)
    assert (page.text, page.cleaned) == ("caf\ufffd", 1)


def test_what_is_too_deep_keeps_its_text() -> None:
    assert "bottom" in extract(b"<div>" * 400 + b"bottom", URL).text


def test_plain_text_stays_as_it_is() -> None:
    page = extract(b"Line <b>one</b>\n\n   two\n", URL, content_type="text/plain")
    assert page.method == "plain"
    assert page.text == "Line <b>one</b>\ntwo"
    assert page.markdown == "Line <b>one</b>\n\n   two"
    assert survey(b"x", URL, content_type="text/plain") == frozenset()


_TAG_NAMES = """
    div p ul li ol table tr td th pre code a b h2 dl dt dd details summary nav main article button select br script
"""
_TAGS = st.sampled_from(_TAG_NAMES.split())
_PIECES = st.one_of(
    st.text(max_size=12),
    _TAGS.map(lambda tag: f"<{tag}>"),
    _TAGS.map(lambda tag: f"</{tag}>"),
    st.sampled_from(
        ["<a href='/x?a=(1)'>", "<p class='menu'>", "<td colspan=3>", "<ol start=3>", "<!--", "-->", "&amp;", "|"]
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PIECES, max_size=40).map("".join))
def test_any_markup_gives_text_that_can_be_stored(html: str) -> None:
    page = extract(html, URL)
    (page.text + page.markdown).encode()
    assert "\0" not in page.text + page.markdown
    assert extract(html, URL) == page


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read(body: bytes) -> None:
    extract(body, URL).text.encode()


def test_links_are_absolute_and_only_those_that_lead_somewhere() -> None:
    html = (
        "<base href='/docs/'><main><p>See <a href='b'>this</a>, <a href='#x'>that</a>, "
        "<a href='javascript:x()'>those</a> and <a href='mailto:a@b.example'>us</a>.</p></main>"
    )
    assert extract(html, URL).markdown == (
        "See [this](https://shop.example/docs/b), that, those and [us](mailto:a@b.example)."
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-03-01", date(2024, 3, 1)),
        ("2024-03-01T10:00:00Z", datetime(2024, 3, 1, 10, tzinfo=UTC)),
        ("2024-03-01T10:00:00+0200", datetime(2024, 3, 1, 8, tzinfo=UTC)),
        ("20240301", date(2024, 3, 1)),
        ("March 1, 2024", date(2024, 3, 1)),
        ("Fri, 1 Mar 2024", date(2024, 3, 1)),
        ("2024-13-01", None),
        ("1887-01-01", None),
        ("2999-01-01", None),
        ("yesterday", None),
        ("", None),
        (5, None),
    ],
)
def test_dates_are_read_and_checked(value: object, expected: date | datetime | None) -> None:
    assert read_date(value, datetime(2026, 1, 1, tzinfo=UTC)) == expected


def test_a_heading_loses_the_link_to_itself() -> None:
    page = extract("<main><h2>Options<a class='headerlink' href='#o'>¶</a></h2><p>None of them.</p></main>", URL)
    assert page.text == "Options\nNone of them."
    assert page.markdown == "## Options\n\nNone of them."


@pytest.mark.parametrize(
    ("heading", "section", "kept"),
    [
        ("2.2.1. Source Code Encoding¶", "source-code-encoding", True),
        ("Editing and navigation", "editing-and-navigation", True),
        ("Related products", "related-products", False),
        ("Who we are", "cookie-consent", False),
    ],
)
def test_a_section_that_is_named_by_its_heading_is_no_furniture(heading: str, section: str, kept: bool) -> None:
    page = f"""<html><body><main><h1>Manual</h1><p>{"The manual says much about this. " * 10}</p>
        <p>{"And it says more about that. " * 10}</p>
        <section id="{section}"><span id="x"></span><h2>{heading}</h2>
        <p>{"Files are in UTF-8 unless they say otherwise. " * 8}</p></section>
        <table><tr><th>a</th><td>b</td></tr></table></main></body></html>"""
    assert ("Files are in UTF-8" in extract(page, URL).text) is kept


def test_json_ld_gives_the_date_and_the_kind() -> None:
    graph = '[{"@type":"WebPage"},{"@type":"NewsArticle","datePublished":"2020-02-03"}]'
    html = f'<script type="application/ld+json">{{"@graph":{graph}}}</script><p>x</p>'
    assert extract(html, URL).published == date(2020, 2, 3)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "('lxml', 'trafilatura', 'selectolax', 'aiohttp')"
    code = f"import sys, resources.content; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


_SENTENCE = "A sentence that stands for many others, with a comma and some words, as the text of a manual has them. "


def _manual(body: str, head: str = "") -> str:
    return (
        f"<html><head><title>Setting it up - Manual</title></head><body>{head}"
        f'<div class="body" role="main">{body}</div>'
        '<div class="footer">Copyright by those who wrote it. Made with a tool.</div></body></html>'
    )


@pytest.mark.parametrize("section", ["section", 'div class="sect1"'])
def test_the_largest_section_of_an_article_does_not_leave_out_the_others(section: str) -> None:
    end = section.split(maxsplit=1)[0]
    page = extract(
        _manual(
            f"<{section}><h1>Setting it up</h1><{section}><h2>Starting</h2><p>{_SENTENCE * 9}</p></{end}>"
            f"<{section}><h2>Encoding</h2><p>{_SENTENCE}It is UTF-8.</p><pre># coding: latin-1</pre></{end}>"
            f'<dl><dt>--jobs</dt><dd>How many.</dd></dl><aside class="footnote-list"><p>Except for one.</p></aside>'
            f"</{end}>"
        ),
        URL,
    )
    for fact in ("Starting", "Encoding", "It is UTF-8.", "# coding: latin-1", "--jobs\nHow many.", "Except for one."):
        assert fact in page.text
    assert "Copyright" not in page.text


def test_what_is_named_as_furniture_beside_the_largest_section_goes() -> None:
    page = extract(
        f"<html><body><div class='a'><div class='t'><p>{_SENTENCE * 9}</p></div><div class='t comments'><p>First!</p>"
        f"</div></div></body></html>",
        URL,
    )
    assert page.text == " ".join((_SENTENCE * 9).split())


def test_headings_that_lead_back_to_a_table_of_contents_stay() -> None:
    asked = "".join(
        f'<section><h2><a href="#id{n}">Why is it number {n}?</a></h2><p>{_SENTENCE * 2}</p></section>'
        for n in range(4)
    )
    page = extract(_manual(f"<section>{asked}</section>"), URL)
    assert [f"Why is it number {n}?" in page.text for n in range(4)] == [True] * 4


def test_a_page_that_is_a_list_of_links_keeps_them() -> None:
    links = "".join(f'<li><a href="{n}.html">module{n}: what it does</a></li>' for n in range(40))
    page = extract(
        _manual(f"<h1>The library</h1><p>{_SENTENCE * 2}</p><ul>{links}</ul>"),
        URL,
    )
    assert "module39: what it does" in page.text
    assert "Copyright" not in page.text


@pytest.mark.parametrize(("word", "kept"), [("Widget", True), ("Comments", False)])
def test_a_section_of_one_word_is_furniture_only_if_visitors_read_that_word(word: str, kept: bool) -> None:
    page = extract(
        _manual(
            f"<section><h2>Style</h2><pre>a = 1</pre><p>Short.</p><p>{_SENTENCE}</p></section>"
            f'<section id="{word.lower()}"><h2>{word}</h2>'
            '<dl><dt id="x.related">related()</dt><dd>What it is.</dd></dl></section>'
        ),
        URL,
    )
    assert ("related()\nWhat it is." in page.text) is kept


def test_what_stands_with_the_only_heading_above_the_main_element_is_kept() -> None:
    head = '<div id="header"><h1>Setting it up</h1><h2>Name</h2><p>set-up - prepare a server</p></div>'
    body = "<h2>Options</h2><dl>" + "<dt>--jobs</dt><dd>How many.</dd>" * 9 + "</dl>"
    assert extract(_manual(body, head), URL).text.startswith(
        "Setting it up\nName\nset-up - prepare a server\nOptions"
    )
    of_site = head.replace("Setting it up", "Manual")
    assert extract(_manual(body, of_site), URL).text.startswith("Options")


def test_sections_below_a_table_of_contents_stay() -> None:
    page = extract(
        _manual(
            '<div><h2>Table of contents</h2><ul><li><a href="#a">Emacs</a></li><li><a href="#b">Vim</a></li></ul>'
            '<div><h3 id="a">Emacs</h3><pre>(setq x 1)</pre></div></div><div><h2>More</h2><pre>y</pre></div>'
        ),
        URL,
    )
    assert "(setq x 1)" in page.text
    assert "Vim" not in page.text


def test_a_page_that_is_read_in_pieces_keeps_its_structure() -> None:
    rows = "".join(f"<tr><td>key{n}</td><td>value {n}</td></tr>" for n in range(600))
    calls = "".join(f"<dl><dt>call{n}()</dt><dd><p>It does <i>this</i>.</p></dd></dl>" for n in range(1_500))
    html = _manual(f"<section><h2>Calls</h2>{calls}<table>{rows}</table><h2>End</h2><p>The last.</p></section>")
    assert len(list(pieces(html))) > 1
    blocks = blocks_of(read_document(html).root)
    mains = {a for block in blocks for a in block.container.ancestors() if a.get("role") == "main"}
    assert len(mains) == 1
    page = extract(html, URL)
    assert [f"call{n}()\nIt does this." in page.text for n in range(1_500)].count(False) == 0
    assert [f"| key{n} | value {n} |" in page.markdown for n in range(600)].count(False) == 0
    assert page.text.endswith("The last.")


@pytest.mark.parametrize(
    "body",
    [
        "<h3>Dogs?</h3><div style='display:none'>Only small ones.</div>",
        "<h3>Dogs</h3><div hidden><p>Only small ones.</p></div>",
        "<div><button>Dogs?</button><div class='b' aria-hidden='true'>Only small ones.</div></div>",
        "<dl><dt>Dogs?</dt><dd style='display: none'>Only small ones.</dd></dl>",
        "<div class='q'>Dogs? +</div><div class='a' style='display:none'>Only small ones.</div>",
        "<details><summary>Dogs?</summary>Only small ones.</details>",
        "<div class='pane'>Dogs</div><div class='pane' hidden>Only small ones.</div>",
    ],
)
def test_what_a_click_unfolds_is_kept(body: str) -> None:
    text = extract(f"<body><main><h1>Questions</h1>{body}</main></body>", URL).text
    assert "Dogs" in text
    assert "Only small ones." in text


def test_what_is_hidden_and_answers_nothing_goes() -> None:
    body = "<h1>Questions</h1><p>Dogs are let in.</p><div hidden>Template</div><div class='modal' hidden>Win!</div>"
    assert extract(f"<body><main>{body}</main></body>", URL).text == "Questions\nDogs are let in."


@pytest.mark.parametrize("language", ["ja", "ar", "zh"])
def test_short_facts_beside_one_long_paragraph_are_kept(language: str) -> None:
    sentence, fact = {
        "ja": (
            "この灯台は明治十五年に建てられ、高さは三十二メートルで、毎年四月から十月まで一般に公開されています。",
            "大人500円",
        ),
        "ar": ("بنيت هذه المنارة عام 1882 ويبلغ ارتفاعها اثنين وثلاثين مترا وتفتح أبوابها للزوار. ", "خمسون درهما"),
        "zh": ("这座灯塔建于一八八二年、高三十二米、是该地区最古老的灯塔之一、至今仍由志愿者维护。", "成人五十元。"),
    }[language]
    page = extract(
        f"<html lang={language}><body><nav><a href='/'>Menu</a></nav><div dir='auto'><h1>!</h1><p>{sentence * 4}</p>"
        f"<dl><dt>x</dt><dd>{fact}</dd></dl></div></body></html>",
        URL,
    )
    assert fact in page.text
    assert "Menu" not in page.text


def test_a_contact_page_keeps_the_address_of_its_footer() -> None:
    foot = (
        "<footer><ul><li><a href='/'>Imprint</a></li></ul><address>8 Quay Street<br>0117 496 0001</address></footer>"
    )
    body = f"<main><h1>Write to us</h1><p>{_SENTENCE * 3}</p></main>{foot}"
    text = extract(f"<title>Contact | Harbour</title><body>{body}</body>", URL).text
    assert "8 Quay Street\n0117 496 0001" in text
    assert "Imprint" not in text
    assert "Quay" not in extract(f"<title>Kettles | Harbour</title><body>{body}</body>", URL).text


def test_an_articles_address_is_kept_where_it_is_one() -> None:
    page = extract(
        f"<body><article><p>{_SENTENCE * 4}</p><address>By Ada Byron</address><address>8 Quay St</address></article>",
        URL,
    )
    assert "8 Quay St" in page.text
    assert "Byron" not in page.text


def test_facts_that_only_scripts_declare_are_kept_once() -> None:
    product = """{"@type":"Product","name":"Gull","sku":"HK-17","offers":[{"@type":"Offer","price":1048.5,
    "priceCurrency":"GBP","availability":"https://schema.org/InStock"}]}"""
    script = f'<script type="application/ld+json">{product}</script>'
    page = extract(f"<head>{script}</head><body><main><h1>Gull</h1><p>A kettle.</p></main></body>", URL)
    assert page.text == "Gull\nA kettle.\nPrice: 1048.5 GBP\nAvailability: In stock\nSKU: HK-17"
    for shown in ("£1,048.50", "1.048,50 GBP"):
        page = extract(
            f"<head>{script}</head><body><main><h1>Gull</h1><p>{shown}, in stock, HK-17</p></main></body>", URL
        )
        assert page.text == f"Gull\n{shown}, in stock, HK-17"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (
            '<meta property="og:price:amount" content="48"><meta property="og:price:currency" content="GBP">',
            "",
        ),
        ("", '<meta itemprop="price" content="48"><meta itemprop="priceCurrency" content="GBP">'),
        ("", '<span itemprop="price" content="48"></span><data itemprop="priceCurrency" value="GBP"></data>'),
    ],
)
def test_a_price_that_stands_in_attributes_is_kept(head: str, body: str) -> None:
    page = extract(f"<head>{head}</head><body><main><h1>Gull & Co</h1><p>A kettle.</p>{body}</main></body>", URL)
    assert page.text == "Gull & Co\nA kettle.\nPrice: 48 GBP"
    assert page.markdown == "# Gull & Co\n\nA kettle.\n\nPrice: 48 GBP"


def test_the_products_of_a_list_declare_no_price_of_the_page() -> None:
    body = '<p>Gull <meta itemprop="price" content="48"></p><p>Tern <meta itemprop="price" content="52"></p>'
    assert extract(f"<body><main><h1>Kettles</h1>{body}</main></body>", URL).text == "Kettles\nGull\nTern"


def test_questions_and_addresses_that_are_only_declared_are_kept() -> None:
    faq = """{"@type":"FAQPage","mainEntity":[{"@type":"Question","name":"Dogs?",
    "acceptedAnswer":{"@type":"Answer","text":"<p>Only small ones.</p>"}}]}"""
    page = extract(f'<script type="application/ld+json">{faq}</script><body><h1>Questions</h1></body>', URL)
    assert page.text == "Questions\nDogs?\nOnly small ones."
    place = """{"@type":"LocalBusiness","telephone":"0117 496 0001","openingHours":["Mo-Fr 09:00-17:00"],
    "address":{"@type":"PostalAddress","streetAddress":"8 Quay Street","addressLocality":"Bristol"}}"""
    script = f'<script type="application/ld+json">{place}</script>'
    page = extract(f"<title>Contact</title>{script}<body><h1>Contact</h1><p>In 0117.</p></body>", URL)
    assert page.text.splitlines()[2:] == [
        "Address: 8 Quay Street, Bristol",
        "Telephone: 0117 496 0001",
        "Opening hours: Mo-Fr 09:00-17:00",
    ]
    assert extract(f"<title>Kettles</title>{script}<body><h1>Kettles</h1></body>", URL).text == "Kettles"


@pytest.mark.parametrize(
    "declared",
    ['{"@type":"Product","offers":[[1]],"brand":[]}', '{"@type":["Question",3],"name":{},"acceptedAnswer":[]}',
     '{"@type":"MusicEvent","location":[{}],"startDate":7}', '{"@type":"Product","offers":{"price":{"a":[]}}}'],
)  # fmt: skip
def test_declarations_that_make_no_sense_are_left_out(declared: str) -> None:
    html = f'<title>Contact</title><script type="application/ld+json">{declared}</script><body><p>Hello.</p></body>'
    assert extract(html, "https://a.example/").text.splitlines()[0] == "Hello."
    assert extract(html, "https://a.example/").method == "fast"


@pytest.mark.parametrize(
    ("html", "kept", "left_out"),
    [
        ("<body><noscript><h1>Hours</h1><p>Open from nine.</p></noscript></body>", "Open from nine.", "noscript"),
        ("<body><h1>Hours</h1><noscript>Enable JavaScript to see more of it.</noscript></body>", "Hours", "Enable"),
        ("<frameset cols='1,*'><frame src=a><noframes><p>Open from nine.</p></noframes></frameset>", "Open", "src"),
        (
            "<body><x-y><template shadowrootmode=open><p>Open from nine.</p></template></x-y></body>",
            "Open",
            "template",
        ),
        ("<body><h1>Hours</h1><template><p>Closed</p></template></body>", "Hours", "Closed"),
        ("<body><iframe title='x' srcdoc='&lt;p&gt;Open from nine.&lt;/p&gt;'></iframe></body>", "Open", "srcdoc"),
        (
            f"<body><form id='aspnetForm'><input name='__VIEWSTATE' value='a'><div><p>{_SENTENCE * 4}</p>"
            "<p>Open from nine.</p></div></form></body>",
            "Open from nine.",
            "VIEWSTATE",
        ),
    ],
)
def test_what_a_browser_shows_is_read(html: str, kept: str, left_out: str) -> None:
    text = extract(html, URL).text
    assert kept in text
    assert left_out not in text


def test_xhtml_is_read_as_xhtml() -> None:
    html = (
        '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/><script src="x"/></head>'
        "<body><h1>Hours</h1><p><![CDATA[From 9 < 17 & later.]]></p>"
        "<script>//<![CDATA[\nrun();\n//]]></script><p>Daily.</p>"
        "</body></html>"
    )
    assert extract(html, URL, content_type="application/xhtml+xml").text == "Hours\nFrom 9 < 17 & later.\nDaily."


@pytest.mark.parametrize(
    "piece",
    ["<template shadowrootmode ", "<iframe srcdoc=", "<noscript ", "<![CDATA[", "<div hidden>", "<script/", "<div/>"],
)
def test_many_of_what_never_ends_do_not_hold_it_up(piece: str) -> None:
    html = piece * (400_000 // len(piece)) + "<p>The end"
    assert extract(html, URL, content_type="application/xhtml+xml").fallback_reason != "RecursionError"
