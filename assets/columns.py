"""What each column of a table holds, for its asset's schema.

The models say it where a column needs explaining; what its name says to whoever knows the field is written out here,
so that the schema in the UI has no gaps. A column of neither kind is a failing test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column

# By name, whatever the table; `table.column` where a table means something of its own.
_MEANINGS: Final[Mapping[str, str]] = {
    # keys
    "id": "Key of the row.",
    "customer_id": "Whose row it is: customers.id.",
    "conversation_id": "The conversation it belongs to.",
    "page_id": "The page it belongs to: scraped_pages.id.",
    "job_id": "The job it belongs to.",
    "scrape_jobs.job_id": "Key of the job, given by whoever asks for it or made.",
    "endpoint_id": "The endpoint it goes to: webhook_endpoints.id.",
    "subscription_id": "The subscription it is about; none for what is about the account.",
    "user_id": "The account: user_accounts.id.",
    "session_id": "The browser session.",
    "product_id": "The shop's own number of the product.",
    "flag_name": "The feature: feature_flags.name.",
    # times
    "created_at": "When the row was made.",
    "updated_at": "When the row was last changed.",
    "started_at": "When it began.",
    "completed_at": "When it ended; none while it has not.",
    "paused_at": "Since when the job is paused; none while it is not.",
    "ended_at": "When the conversation was ended; none while it is open.",
    "computed_at": "When the row was computed.",
    "delivered_at": "When it was delivered; none while it was not.",
    "expires_at": "From then on the cleanup may remove it.",
    "first_seen_at": "When the page was read first.",
    "last_seen_at": "When it was seen last.",
    "last_changed_at": "When the page's text changed last.",
    "removed_at": "When the page was found to be gone; none while it is there.",
    "opened_at": "When the alert was raised.",
    "closed_at": "When it was over; none while it is open.",
    "placed_at": "When the hold was placed.",
    "taken_at": "When the sizes were measured; one moment for all tables of a snapshot.",
    "current_period_end": "When the period that is paid for ends.",
    # people and customers
    "name": "The name.",
    "slug": "Short name, for urls and the command line.",
    "display_name": "How the person wants to be called.",
    "active": "False: may not sign in any more.",
    "role": "What the person may do.",
    "messages.role": "Who said it.",
    "placed_by": "The role or program that placed the hold.",
    "reason": "Which case, which letter.",
    "plan": "What was subscribed to.",
    "enabled": "False: switched off, and kept.",
    "settings": "Limits, schedule, globs and retention of the website.",
    # pages and content
    "domain": "Host of the website.",
    "url": "Normalised address.",
    "title": "The page's title.",
    "description": "What it is.",
    "scraped_pages.description": "The page's own description of itself.",
    "published_at": "When the page was published, as it says; midnight UTC where it gives a day alone.",
    "canonical_url": "The address that the page calls its own, where it is another.",
    "lang": "Language, as the page says.",
    "etag": "The server's tag of this version, for conditional requests.",
    "last_modified": "The server's time of this version, for conditional requests.",
    "content_hash": "Hash of the page's text.",
    "markdown": "Main text as markdown.",
    "text": "Main text as plain text.",
    "word_count": "Words of the text.",
    "content": "What was said.",
    "chunk_index": "Number of the chunk in the page, from 0.",
    "chunk_text": "The chunk's text.",
    "embedding": "The chunk's vector.",
    # crawling
    "job_type": "How the job goes about the site.",
    "status": "How far it is.",
    "config": "What was asked for, within which limits.",
    "metadata": "What whoever asked for the job says about it.",
    "finish_reason": "Why the job ended.",
    "error_message": "What went wrong, in words.",
    "run_id": "The Dagster run.",
    "paused_seconds": "Time that the job was paused, which counts for no rate.",
    "http_status": "Status code of the answer; none where there was none.",
    "skip_reason": "Why it was left out.",
    "depth": "How many links away from a start url.",
    "position": "Order in which it was found.",
    "done": "True: finished, with a result.",
    "tries": "How often it was fetched.",
    "redirected_to": "Where a redirect led.",
    "total_pages": "Pages of every status.",
    "successful_pages": "Pages that were kept.",
    "failed_pages": "Pages that could not be fetched or read.",
    "skipped_pages": "Pages that were left out, each for a reason.",
    "avg_processing_time_ms": "Mean of the pages that have a time, rounded.",
    "total_processing_time_ms": "Sum over the pages that have a time.",
    "timed_pages": "Pages that have a time.",
    "pages_per_second": "total_pages over the active seconds.",
    "jobs_completed": "Jobs that were completed on the day.",
    "jobs_failed": "Jobs that failed on the day.",
    "jobs_cancelled": "Jobs that were cancelled on the day.",
    "jobs_unfinished": "Jobs begun on the day that have not ended.",
    "p95_ms": "95th percentile of processing_time_ms.",
    "p99_ms": "99th percentile of processing_time_ms.",
    # queue, webhooks, alerts, billing
    "message_data": "The message itself.",
    "retry_count": "How often its handler failed.",
    "attempts": "How often delivery was tried.",
    "last_error": "What the last failed delivery said.",
    "event": "What happened.",
    "payload": "What is delivered.",
    "severity": "How urgent it is.",
    "message": "What is wrong, in a sentence.",
    "what_to_do": "What a person should do.",
    "details": "Figures that go with it.",
    "amount": "How much; none for events without money.",
    "total_amount": "Sum of the order.",
    "quantity": "How many.",
    "operation": "What was done to the cart.",
    "stage": "How far the conversation came.",
    "action": "What was asked for.",
    "policy": "Name of the retention policy.",
    "dry_run": "True: it only looked, and removed nothing.",
    # storage
    "table_name": "The table that was measured.",
    "table_bytes": "The rows, without long values and indexes.",
    "index_bytes": "All indexes.",
    "toast_bytes": "Long values that are kept beside the rows.",
    "dead_rows": "Old versions of rows that wait for vacuum, by the activity counters.",
}


def describe(column: Column[Any]) -> str | None:
    """What a column holds: the model's comment, else the meaning of its name; None if neither says it."""
    named = _MEANINGS.get(f"{column.table.name}.{column.name}") or _MEANINGS.get(column.name)
    return column.comment or named
