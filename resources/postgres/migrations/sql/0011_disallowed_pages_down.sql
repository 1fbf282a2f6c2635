-- Row-level security is forced on the owner too, and is set again after the migration.
ALTER TABLE public.scraped_pages NO FORCE ROW LEVEL SECURITY;
UPDATE public.scraped_pages SET removed_reason = 'noindex' WHERE removed_reason = 'disallowed';
ALTER TABLE public.scraped_pages FORCE ROW LEVEL SECURITY;
ALTER TABLE public.scraped_pages DROP CONSTRAINT scraped_pages_removed_reason_check;
ALTER TABLE public.scraped_pages ADD CONSTRAINT scraped_pages_removed_reason_check
    CHECK (removed_reason IN ('gone', 'moved', 'noindex', 'unlinked'));
COMMENT ON COLUMN public.scraped_pages.removed_reason IS 'gone: 404 or 410; moved: a redirect; noindex: not wanted to be found; unlinked: nothing led to it any more.';
