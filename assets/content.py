"""Assets of the group `content`: what the customers' websites say. Written by the job `crawl`."""

from __future__ import annotations

from assets.row_counts import TableAsset

CONTENT_TABLES = (
    TableAsset(
        "scraped_pages",
        "Every page that was read, one row for each url of a customer, with when it was first seen and last changed.",
        "SELECT count(*) FROM scraped_pages WHERE customer_id = :customer_id AND removed_at IS NULL",
        "the customer",
    ),
    TableAsset(
        "website_content",
        "What each page says, as plain text with its full-text index.",
        "SELECT count(*) FROM website_content WHERE customer_id = :customer_id",
        "the customer",
    ),
)
