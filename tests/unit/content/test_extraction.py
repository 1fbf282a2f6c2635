"""Extraction: what is kept of a page, what is left out, and that no bytes make it fail."""

from __future__ import annotations

from datetime import UTC, datetime

from resources.content import extract

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
