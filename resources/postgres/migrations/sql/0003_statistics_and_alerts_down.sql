-- Undo revision 0003. The functions of earlier revisions that it replaced are made again after this.
DROP FUNCTION public.outdated_statistics_days, public.compute_daily_statistics;
DROP FUNCTION public.expired_storage_snapshots, public.expired_daily_domain_stats, public.expired_daily_job_stats,
    public.expired_alert_history, public.expired_conversation_funnel, public.expired_conversations,
    public.expired_messages, public.expired_scrape_jobs, public.retention_cutoff;
DROP TRIGGER scrape_jobs_refuse_private ON public.scrape_jobs;
DROP TRIGGER customer_configs_refuse_private ON public.customer_configs;
DROP FUNCTION public.refuse_private_addresses, public.crawl_commit_batch;
DROP TABLE omniops_meta.alert_deliveries, omniops_meta.watermarks;
ALTER TABLE public.alert_history
    DROP COLUMN what_to_do, DROP COLUMN run_id, DROP COLUMN occurrences, DROP COLUMN last_seen_at;
ALTER TABLE public.storage_snapshots DROP COLUMN bloat_bytes;
ALTER TABLE public.daily_domain_stats
    DROP COLUMN jobs_completed, DROP COLUMN jobs_failed, DROP COLUMN jobs_cancelled, DROP COLUMN jobs_unfinished,
    DROP COLUMN active_seconds, DROP COLUMN changed_pages, DROP COLUMN unchanged_pages, DROP COLUMN pages_per_second,
    DROP COLUMN pages_by_http_status;
ALTER TABLE public.daily_job_stats
    DROP COLUMN changed_pages, DROP COLUMN unchanged_pages, DROP COLUMN pages_per_second,
    DROP COLUMN pages_by_http_status;
COMMENT ON COLUMN public.daily_job_stats.active_seconds IS NULL;
COMMENT ON COLUMN public.daily_domain_stats.jobs IS NULL;
ALTER TABLE public.scrape_job_results DROP COLUMN changed;
