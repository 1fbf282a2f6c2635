DROP FUNCTION public.crawl_commit_batch;
DROP FUNCTION public.index_website_content;
DROP FUNCTION public.text_search_config;
DROP TABLE omniops_meta.crawl_workers, public.crawl_frontier, public.website_content, public.scraped_pages,
    public.scrape_job_stats, public.scrape_job_results CASCADE;
DROP FUNCTION public.scrape_job_active_seconds;
DROP TABLE public.scrape_jobs, public.customer_configs, public.customers CASCADE;
DROP FUNCTION public.scrape_jobs_after_update, public.scrape_jobs_before_update, public.scrape_job_may_move,
    public.scrape_job_results_truncated, public.scrape_job_results_counted, public.scrape_job_stats_apply;
