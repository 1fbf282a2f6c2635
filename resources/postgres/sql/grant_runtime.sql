-- What the role that runs the program may do. The role's name arrives in the setting omniops.runtime_role.
-- Applied after each migration, and safe to repeat.
DO $$
DECLARE
    role_name text := current_setting('omniops.runtime_role');
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA public, omniops_meta TO %I', role_name);
    -- Dagster makes and alters its own tables.
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA dagster TO %I', role_name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO %I', role_name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON omniops_meta.crawl_workers TO %I', role_name);
    EXECUTE format('GRANT SELECT ON omniops_meta.alembic_version TO %I', role_name);
    -- Only its trigger writes the statistics of a job.
    EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON public.scrape_job_stats FROM %I', role_name);
END
$$;
