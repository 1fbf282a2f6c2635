"""Customers with pages, as a crawl leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from resources.postgres.content import index_waiting_content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.databases import Database


def add_customer(database: Database, slug: str) -> UUID:
    """A customer without pages."""
    with database.engine.begin() as connection:
        found = connection.scalar(
            text("INSERT INTO customers (name, slug) VALUES (:slug, :slug) RETURNING id"), {"slug": slug}
        )
    return UUID(str(found))


def add_pages(
    database: Database,
    customer: UUID,
    pages: Mapping[str, str],
    *,
    domain: str = "shop.example",
    lang: str = "en",
    index: bool = True,
) -> None:
    """Pages by path: markdown, whose first heading is the title. A page that is there already gets the new text."""
    with database.engine.begin() as connection:
        for path, markdown in pages.items():
            title = next((line.lstrip("# ") for line in markdown.splitlines() if line.startswith("#")), None)
            page_id = connection.scalar(
                text("""INSERT INTO scraped_pages (customer_id, domain, url, title, lang, http_status)
                        VALUES (:customer, :domain, :url, :title, :lang, 200)
                        ON CONFLICT (customer_id, url) DO UPDATE SET title = EXCLUDED.title, removed_at = NULL
                        RETURNING id"""),
                {
                    "customer": customer,
                    "domain": domain,
                    "url": f"https://{domain}{path}",
                    "title": title,
                    "lang": lang,
                },
            )
            connection.execute(
                text("""INSERT INTO website_content (page_id, customer_id, markdown, text, word_count)
                        VALUES (:page, :customer, :markdown, :text, :words)
                        ON CONFLICT (page_id) DO UPDATE SET markdown = EXCLUDED.markdown, text = EXCLUDED.text,
                            search = NULL"""),
                {
                    "page": page_id,
                    "customer": customer,
                    "markdown": markdown,
                    "text": markdown.replace("#", ""),
                    "words": len(markdown.split()),
                },
            )
    if index:
        while index_waiting_content(database.engine, 500):
            pass


SHOP = {
    "/returns": "# Returns\n\nSend the goods back within 30 days and we give you the money back.\n\n"
    "## Refunds\n\nThe amount arrives on your card after a week.",
    "/shipping": "# Shipping\n\nParcels leave our warehouse every working day at noon.",
    "/opening-hours": "# Opening hours\n\nThe workshop is open from Tuesday to Saturday, nine to six.",
    "/batteries": "# Batteries\n\nModel KX-4417 needs a charger with 36 volts.",
}
