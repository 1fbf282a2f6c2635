-- What a crawl remembers of a page, so that the next one need not fetch, read or write what has not changed.

ALTER TABLE public.scraped_pages
    ADD COLUMN source_hash text,
    ADD COLUMN folded_hash text,
    ADD COLUMN simhash bigint,
    ADD COLUMN check_interval interval NOT NULL DEFAULT '1 day',
    ADD COLUMN next_check_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN missing_crawls integer NOT NULL DEFAULT 0 CHECK (missing_crawls >= 0),
    ADD COLUMN removed_reason text CHECK (removed_reason IN ('gone', 'moved', 'noindex', 'unlinked'));
COMMENT ON COLUMN public.scraped_pages.source_hash IS 'Of what the page showed before its main text was taken out: while it is the same, nothing is extracted or written.';
COMMENT ON COLUMN public.scraped_pages.content_hash IS 'Of the normalised main text.';
COMMENT ON COLUMN public.scraped_pages.folded_hash IS 'Of the main text without stamps and counters that say nothing (last updated on, views): while it is the same, a change is cosmetic.';
COMMENT ON COLUMN public.scraped_pages.simhash IS 'Of the main text: pages that say nearly the same differ in few bits.';
COMMENT ON COLUMN public.scraped_pages.check_interval IS 'Halved when the page changes, half as long again when it does not: one hour to thirty days.';
COMMENT ON COLUMN public.scraped_pages.next_check_at IS 'When it should be looked at again, where not all pages can be.';
COMMENT ON COLUMN public.scraped_pages.missing_crawls IS 'Whole crawls of its site in a row that found no link to it and no sitemap entry.';
COMMENT ON COLUMN public.scraped_pages.removed_reason IS 'gone: 404 or 410; moved: a redirect; noindex: not wanted to be found; unlinked: nothing led to it any more.';
-- None of these stands in an index, so that a visit to a page that has not changed can be a heap-only update.
ALTER TABLE public.scraped_pages SET (fillfactor = 80);

ALTER TABLE public.crawl_frontier
    ADD COLUMN found_by text NOT NULL DEFAULT 'link' CHECK (found_by IN ('seed', 'link', 'sitemap', 'known')),
    ADD COLUMN lastmod timestamptz;
COMMENT ON COLUMN public.crawl_frontier.found_by IS 'What led to it: a start url, a link, a sitemap, or only that it was there before (known).';
COMMENT ON COLUMN public.crawl_frontier.lastmod IS 'When it changed last, by its sitemap.';

ALTER TABLE public.scrape_jobs ADD COLUMN removals jsonb CHECK (jsonb_typeof(removals) = 'object');
COMMENT ON COLUMN public.scrape_jobs.removals IS 'What became of pages that the job did not find: counts, written once at its end.';

-- Links of a page as it was read last: a page that has not changed still leads to what it led to.
CREATE TABLE omniops_meta.page_links (
    page_id     bigint PRIMARY KEY,
    customer_id uuid NOT NULL,
    links       bytea NOT NULL,
    FOREIGN KEY (page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE omniops_meta.page_links IS 'Links on each page as it was read last: urls, one a line, compressed (zlib).';
-- It is compressed already.
ALTER TABLE omniops_meta.page_links ALTER COLUMN links SET STORAGE EXTERNAL;
