DROP INDEX public.crawl_frontier_unfollowed;
ALTER TABLE public.scrape_jobs DROP COLUMN discovery;
