-- Quotas: bytes of a job beside its pages, and the one way out of `completed`, a raised quota. Frozen with its revision.
ALTER TABLE public.scrape_job_stats
    ADD COLUMN total_bytes numeric(30, 0) NOT NULL DEFAULT 0 CHECK (total_bytes >= 0);
COMMENT ON COLUMN public.scrape_job_stats.total_bytes IS 'On the wire, all pages of the job: what max_bytes counts.';

DROP FUNCTION public.scrape_job_stats_apply;
CREATE FUNCTION public.scrape_job_stats_apply(
    jobs text[], customers uuid[], totals bigint[], successes bigint[], failures bigint[], skips bigint[],
    timed bigint[], milliseconds bigint[], sizes numeric[]) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    INSERT INTO public.scrape_job_stats (job_id, customer_id)
    SELECT d.job_id, d.customer_id FROM unnest(jobs, customers, totals) AS d (job_id, customer_id, total)
    WHERE d.total > 0 ORDER BY d.job_id
    ON CONFLICT (job_id) DO NOTHING;
    IF cardinality(jobs) > 1 THEN
        -- Two statements that touch the same jobs lock them in the same order.
        PERFORM 1 FROM public.scrape_job_stats AS s WHERE s.job_id = ANY (jobs) ORDER BY s.job_id FOR UPDATE;
    END IF;
    UPDATE public.scrape_job_stats AS s SET
        total_pages = s.total_pages + d.total,
        successful_pages = s.successful_pages + d.successful,
        failed_pages = s.failed_pages + d.failed,
        skipped_pages = s.skipped_pages + d.skipped,
        timed_pages = s.timed_pages + d.timed,
        total_processing_time_ms = s.total_processing_time_ms + d.ms,
        total_bytes = s.total_bytes + d.bytes,
        avg_processing_time_ms = CASE WHEN s.timed_pages + d.timed > 0
            THEN round((s.total_processing_time_ms + d.ms)::numeric / (s.timed_pages + d.timed)) END,
        pages_per_second = (s.total_pages + d.total)
            / nullif(public.scrape_job_active_seconds(j), 0),
        updated_at = clock_timestamp()
    FROM unnest(jobs, totals, successes, failures, skips, timed, milliseconds, sizes)
             AS d (job_id, total, successful, failed, skipped, timed, ms, bytes)
    JOIN public.scrape_jobs AS j ON j.job_id = d.job_id
    WHERE s.job_id = d.job_id;
END
$$;
-- Only the trigger below, with its owner's rights, may call it.
REVOKE EXECUTE ON FUNCTION public.scrape_job_stats_apply FROM PUBLIC;

CREATE OR REPLACE FUNCTION public.scrape_job_results_counted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms),
            array_agg(d.bytes))
        FROM (
            SELECT n.job_id, n.customer_id, count(*) AS total,
                   count(*) FILTER (WHERE n.status = 'success') AS successful,
                   count(*) FILTER (WHERE n.status = 'failed') AS failed,
                   count(*) FILTER (WHERE n.status = 'skipped') AS skipped,
                   count(n.processing_time_ms) AS timed,
                   coalesce(sum(n.processing_time_ms), 0) AS ms,
                   coalesce(sum(n.bytes), 0) AS bytes
            FROM new_rows AS n GROUP BY n.job_id, n.customer_id ORDER BY n.job_id
        ) AS d HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms),
            array_agg(d.bytes))
        FROM (
            SELECT o.job_id, o.customer_id, -count(*) AS total,
                   -count(*) FILTER (WHERE o.status = 'success') AS successful,
                   -count(*) FILTER (WHERE o.status = 'failed') AS failed,
                   -count(*) FILTER (WHERE o.status = 'skipped') AS skipped,
                   -count(o.processing_time_ms) AS timed,
                   -coalesce(sum(o.processing_time_ms), 0) AS ms,
                   -coalesce(sum(o.bytes), 0) AS bytes
            FROM old_rows AS o GROUP BY o.job_id, o.customer_id ORDER BY o.job_id
        ) AS d HAVING count(*) > 0;
    ELSE
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms),
            array_agg(d.bytes))
        FROM (
            SELECT c.job_id, c.customer_id, sum(c.n)::bigint AS total,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'success'), 0)::bigint AS successful,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'failed'), 0)::bigint AS failed,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'skipped'), 0)::bigint AS skipped,
                   coalesce(sum(c.n) FILTER (WHERE c.ms IS NOT NULL), 0)::bigint AS timed,
                   coalesce(sum(c.n * c.ms), 0)::bigint AS ms,
                   coalesce(sum(c.n::numeric * c.bytes), 0) AS bytes
            FROM (SELECT n.job_id, n.customer_id, n.status, n.processing_time_ms AS ms, n.bytes, 1 AS n
                  FROM new_rows AS n
                  UNION ALL
                  SELECT o.job_id, o.customer_id, o.status, o.processing_time_ms, o.bytes, -1 FROM old_rows AS o) AS c
            GROUP BY c.job_id, c.customer_id ORDER BY c.job_id
        ) AS d HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;

UPDATE public.scrape_job_stats AS s SET total_bytes = r.bytes
FROM (SELECT job_id, coalesce(sum(bytes), 0) AS bytes FROM public.scrape_job_results GROUP BY job_id) AS r
WHERE r.job_id = s.job_id AND r.bytes > 0;

-- A job that a quota ended goes on when that quota is raised, in the same statement that makes it `running`.
-- resources/postgres/job_status.py says the same for Python, and a test compares the two.
CREATE FUNCTION public.scrape_job_may_reopen(finish_reason text, before jsonb, after jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = '' AS $$
    SELECT coalesce(
        finish_reason IN ('max_pages', 'max_bytes', 'max_seconds')
        AND jsonb_typeof(before -> finish_reason) = 'number' AND jsonb_typeof(after -> finish_reason) = 'number'
        AND (after -> finish_reason) > (before -> finish_reason), false)
$$;

CREATE OR REPLACE FUNCTION public.scrape_jobs_before_update() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF NEW.status = OLD.status THEN
        RETURN NEW;
    END IF;
    IF NOT public.scrape_job_may_move(OLD.status, NEW.status)
       AND NOT (OLD.status = 'completed' AND NEW.status = 'running'
                AND public.scrape_job_may_reopen(OLD.finish_reason, OLD.config, NEW.config)) THEN
        RAISE EXCEPTION 'job % is %: it cannot become %', OLD.job_id, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'scrape_jobs_status_moves_forward';
    END IF;
    IF NEW.status = 'running' THEN
        NEW.started_at := coalesce(NEW.started_at, clock_timestamp());
    END IF;
    IF OLD.status IN ('paused', 'completed') AND NEW.status = 'running' THEN
        NEW.paused_seconds := OLD.paused_seconds
            + extract(epoch FROM clock_timestamp() - coalesce(OLD.paused_at, OLD.completed_at, clock_timestamp()));
        NEW.paused_at := NULL;
        NEW.completed_at := NULL;
        NEW.finish_reason := NULL;
        NEW.error_message := NULL;
    END IF;
    IF NEW.status = 'paused' THEN
        NEW.paused_at := clock_timestamp();
    END IF;
    IF NEW.status IN ('completed', 'failed', 'cancelled') THEN
        NEW.completed_at := coalesce(NEW.completed_at, clock_timestamp());
        IF OLD.status = 'paused' THEN
            NEW.paused_seconds := OLD.paused_seconds + extract(epoch FROM NEW.completed_at - OLD.paused_at);
            NEW.paused_at := NULL;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

-- As in revision 0002, but for the size of statistics: they are counted down as results go, and the columns whose width
-- depends on that are left out, so that a preview, before, says what a removal, after, has found.
CREATE OR REPLACE FUNCTION public.remove_expired_scrape_jobs(days integer, max_rows integer)
RETURNS TABLE (table_name text, customer_id uuid, removed bigint, bytes bigint, oldest timestamptz, unprocessed bigint)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_jobs text[];
    v_customers uuid[];
    v_rows tid[];
    v_days date[];
    v_of uuid[];
    v_left integer := max_rows;
BEGIN
    PERFORM public.retention_cutoff(days);
    LOOP
        -- Jobs until their results fill the batch, at least one; those that have none count as one row.
        SELECT array_agg(l.job_id), array_agg(DISTINCT l.customer_id) INTO v_jobs, v_customers FROM (
            SELECT f.job_id, f.customer_id, sum(1 + coalesce(s.total_pages, 0)) OVER (ORDER BY f.at, f.job_id) AS upto,
                   1 + coalesce(s.total_pages, 0) AS own
            FROM (
                SELECT j.job_id, j.customer_id, coalesce(j.completed_at, j.created_at) AS at
                FROM public.expired_scrape_jobs(days) AS e JOIN public.scrape_jobs AS j ON j.job_id = e.job_id
                ORDER BY coalesce(e.completed_at, e.created_at)
                LIMIT 200 FOR UPDATE OF j SKIP LOCKED
            ) AS f LEFT JOIN public.scrape_job_stats AS s ON s.job_id = f.job_id
        ) AS l WHERE l.upto <= max_rows OR l.upto = l.own;
        EXIT WHEN v_jobs IS NULL;
        PERFORM 1 FROM public.customers AS c WHERE c.id = ANY (v_customers) ORDER BY c.id FOR SHARE;
        SELECT array_agg(e.job_id) INTO v_jobs
        FROM public.expired_scrape_jobs(days) AS e WHERE e.job_id = ANY (v_jobs);
        EXIT WHEN v_jobs IS NOT NULL;
    END LOOP;
    IF v_jobs IS NULL THEN
        RETURN;
    END IF;

    WITH doomed AS MATERIALIZED (
        SELECT r.ctid AS id, r.customer_id, (r.created_at AT TIME ZONE 'UTC')::date AS day
        FROM public.scrape_job_results AS r WHERE r.job_id = ANY (v_jobs) LIMIT max_rows
    ), concerned AS (
        SELECT d.day, d.customer_id FROM doomed AS d
        UNION
        SELECT (coalesce(j.completed_at, j.created_at) AT TIME ZONE 'UTC')::date, j.customer_id
        FROM public.scrape_jobs AS j WHERE j.job_id = ANY (v_jobs)
    )
    SELECT (SELECT array_agg(d.id) FROM doomed AS d), array_agg(n.day), array_agg(n.customer_id)
    INTO v_rows, v_days, v_of FROM concerned AS n;
    PERFORM public.freeze_daily_statistics(v_days, v_of);

    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.scrape_job_results AS r WHERE r.ctid = ANY (v_rows)
        RETURNING r.customer_id, r.created_at, pg_column_size(ROW(r.*)) AS size
    )
    SELECT 'scrape_job_results', g.customer_id, count(*), sum(g.size)::bigint, min(g.created_at), 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
    v_left := max_rows - coalesce(cardinality(v_rows), 0);
    IF v_left <= 0 THEN
        RETURN;
    END IF;

    SELECT array_agg(d.id) INTO v_rows
    FROM (SELECT f.ctid AS id FROM public.crawl_frontier AS f WHERE f.job_id = ANY (v_jobs) LIMIT v_left) AS d;
    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.crawl_frontier AS f WHERE f.ctid = ANY (v_rows)
        RETURNING f.customer_id, pg_column_size(ROW(f.*)) AS size
    )
    SELECT 'crawl_frontier', g.customer_id, count(*), sum(g.size)::bigint, NULL::timestamptz, 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
    v_left := v_left - coalesce(cardinality(v_rows), 0);
    IF v_left <= 0 THEN
        RETURN;
    END IF;

    -- The jobs are empty now. Nobody may delete their statistics but the key's cascade.
    RETURN QUERY
    SELECT 'scrape_job_stats', s.customer_id, count(*),
           sum(pg_column_size(ROW(s.job_id, s.customer_id, s.total_pages, s.successful_pages, s.failed_pages,
                                  s.skipped_pages, s.updated_at, s.timed_pages, s.total_processing_time_ms)))::bigint,
           NULL::timestamptz, 0::bigint
    FROM public.scrape_job_stats AS s WHERE s.job_id = ANY (v_jobs) GROUP BY s.customer_id;
    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.scrape_jobs AS j WHERE j.job_id = ANY (v_jobs)
        RETURNING j.customer_id, coalesce(j.completed_at, j.created_at) AS at, pg_column_size(ROW(j.*)) AS size
    )
    SELECT 'scrape_jobs', g.customer_id, count(*), sum(g.size)::bigint, min(g.at), 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
END
$$;
