-- What a job discovers beside its pages: sitemaps read, and urls that were met and not fetched.

ALTER TABLE public.scrape_jobs
    ADD COLUMN discovery jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(discovery) = 'object');
COMMENT ON COLUMN public.scrape_jobs.discovery IS 'sitemaps: who reads them, or what became of them; not_followed: urls left out that have no row in the frontier, by reason.';

-- Question: how many urls were met and not followed, by reason? Urls that are followed stand outside.
CREATE INDEX crawl_frontier_unfollowed ON public.crawl_frontier (job_id, skip_reason) WHERE skip_reason IS NOT NULL;
