-- Undo the revision of quotas. The earlier functions are made again after this.
DROP FUNCTION public.scrape_job_stats_apply;
ALTER TABLE public.scrape_job_stats DROP COLUMN total_bytes;
