-- Functions and triggers of the permanent tier. Frozen with revision 0002.

-- --- tenancy ---------------------------------------------------------------------------------------------------

-- The customer of the present transaction, by Supabase's convention; null without one. Policies wrap it in a
-- sub-select, so that it is read once for a query and not once for a row.
--   Its names were resolved when it was made (RETURN), so it needs no search_path of its own; with one it could not be
-- inlined, and each query would pay ten microseconds for calling it.
CREATE FUNCTION public.current_customer_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'customer_id', '')::uuid;

-- --- conversations ---------------------------------------------------------------------------------------------

CREATE FUNCTION public.conversations_before_insert() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.updated_at := coalesce(NEW.updated_at, NEW.created_at);
    RETURN NEW;
END
$$;
CREATE TRIGGER conversations_before_insert BEFORE INSERT ON public.conversations
    FOR EACH ROW EXECUTE FUNCTION public.conversations_before_insert();

-- --- legal holds -------------------------------------------------------------------------------------------------

-- A hold waits for the batch of a removal that is under way for its customer, and once it is committed no later batch
-- removes anything: each batch takes the customer's row FOR SHARE (an erasure FOR NO KEY UPDATE) and asks for holds
-- afterwards. Neither stands in the way of whoever writes rows of the customer (FOR KEY SHARE).
CREATE FUNCTION public.legal_holds_before_insert() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM 1 FROM public.customers AS c WHERE c.id = NEW.customer_id FOR NO KEY UPDATE;
    RETURN NEW;
END
$$;
CREATE TRIGGER legal_holds_before_insert BEFORE INSERT ON public.legal_holds
    FOR EACH ROW EXECUTE FUNCTION public.legal_holds_before_insert();

CREATE FUNCTION public.customer_is_held(customer uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT EXISTS (SELECT 1 FROM public.legal_holds AS h WHERE h.customer_id = customer AND h.released_at IS NULL)
$$;

-- --- retention: what has expired ---------------------------------------------------------------------------------
-- One predicate for each kind of row, read by the preview and by the removal alike, so that what a preview counts is
-- what a run deletes. Times are the database's. Nothing of a customer under a legal hold has expired.
--   These functions have no SET clause on purpose: with one, Postgres could not inline them, and each batch would
-- compute all that has expired to take some of it. Every name in them has its schema instead.

CREATE FUNCTION public.retention_cutoff(days integer) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    IF days IS NULL OR days < 1 OR days > 36500 THEN
        RAISE EXCEPTION 'retention of % days is refused: it must be between 1 and 36500', coalesce(days::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN now() - make_interval(days => days);
END
$$;

-- Finished jobs only: a job that is queued, running or paused is somebody's.
CREATE FUNCTION public.expired_scrape_jobs(days integer) RETURNS SETOF public.scrape_jobs
LANGUAGE sql STABLE AS $$
    SELECT j.* FROM public.scrape_jobs AS j
    WHERE j.status IN ('completed', 'failed', 'cancelled')
      AND coalesce(j.completed_at, j.created_at) < (SELECT public.retention_cutoff(days))
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = j.customer_id AND h.released_at IS NULL)
$$;

-- A message that somebody holds is not expired, however late it is.
CREATE FUNCTION public.expired_messages() RETURNS SETOF public.message_queue
LANGUAGE sql STABLE AS $$
    SELECT q.* FROM public.message_queue AS q
    WHERE q.expires_at < now()
      AND NOT (q.status = 'processing' AND coalesce(q.leased_until, '-infinity') > now())
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = q.customer_id AND h.released_at IS NULL)
$$;

-- Days that conversations are kept where a customer's configuration says so:
-- settings {"retention": {"conversations_days": 30}}. What is no whole number from 1 to 36500 counts as not set.
CREATE FUNCTION public.conversation_retention_overrides(
    OUT customer_id uuid, OUT domain text, OUT days integer) RETURNS SETOF record
LANGUAGE sql STABLE AS $$
    SELECT o.customer_id, o.domain, o.days FROM (
        SELECT c.customer_id, c.domain,
               CASE WHEN c.settings #>> '{retention,conversations_days}' ~ '^[1-9][0-9]{0,4}$'
                    THEN (c.settings #>> '{retention,conversations_days}')::integer END AS days
        FROM public.customer_configs AS c
    ) AS o WHERE o.days <= 36500
$$;

-- A conversation's age is its last activity's: its own record's, or its newest message's. It is kept as long as the
-- configuration of its domain says, else the longest that the customer's configurations say, else `days`.
CREATE FUNCTION public.expired_conversations(days integer) RETURNS SETOF public.conversations
LANGUAGE sql STABLE AS $$
    SELECT c.* FROM (
        SELECT u.id, now() - make_interval(days => max(o.days)) AS own_cutoff
        FROM public.customers AS u
        LEFT JOIN public.conversation_retention_overrides() AS o ON o.customer_id = u.id
        WHERE NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                          WHERE h.customer_id = u.id AND h.released_at IS NULL)
        GROUP BY u.id
    ) AS k
    JOIN public.conversations AS c ON c.customer_id = k.id
    LEFT JOIN public.conversation_retention_overrides() AS d ON d.customer_id = c.customer_id AND d.domain = c.domain
    CROSS JOIN LATERAL (
        SELECT coalesce(now() - make_interval(days => d.days), k.own_cutoff,
                        (SELECT public.retention_cutoff(expired_conversations.days))) AS cutoff
    ) AS t
    WHERE greatest(c.updated_at, c.ended_at) < t.cutoff
      AND NOT EXISTS (SELECT 1 FROM public.messages AS m WHERE m.conversation_id = c.id AND m.created_at >= t.cutoff)
$$;

CREATE FUNCTION public.expired_conversation_funnel(days integer) RETURNS SETOF public.conversation_funnel
LANGUAGE sql STABLE AS $$
    SELECT f.* FROM public.conversation_funnel AS f
    WHERE f.created_at < (SELECT public.retention_cutoff(days))
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = f.customer_id AND h.released_at IS NULL)
$$;

-- An alert that is still open is not history yet.
CREATE FUNCTION public.expired_alert_history(days integer) RETURNS SETOF public.alert_history
LANGUAGE sql STABLE AS $$
    SELECT a.* FROM public.alert_history AS a
    WHERE a.opened_at < (SELECT public.retention_cutoff(days)) AND a.closed_at IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = a.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_daily_job_stats(days integer) RETURNS SETOF public.daily_job_stats
LANGUAGE sql STABLE AS $$
    SELECT d.* FROM public.daily_job_stats AS d
    WHERE d.day < (SELECT (public.retention_cutoff(days) AT TIME ZONE 'UTC')::date)
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = d.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_daily_domain_stats(days integer) RETURNS SETOF public.daily_domain_stats
LANGUAGE sql STABLE AS $$
    SELECT d.* FROM public.daily_domain_stats AS d
    WHERE d.day < (SELECT (public.retention_cutoff(days) AT TIME ZONE 'UTC')::date)
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = d.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_storage_snapshots(days integer) RETURNS SETOF public.storage_snapshots
LANGUAGE sql STABLE AS $$
    SELECT s.* FROM public.storage_snapshots AS s WHERE s.taken_at < (SELECT public.retention_cutoff(days))
$$;

-- --- statistics --------------------------------------------------------------------------------------------------

-- The statistics of days (UTC), for the customers given or for all, from the rows that are there. Replaces what was
-- computed before, but never a frozen day's: rows that it was computed from have been removed since, so that what is
-- there is all that is known. Returns how many rows it wrote.
--   A page belongs to the day of its result, a job to the day of its end (or, unfinished, of its creation).
CREATE FUNCTION public.compute_daily_statistics(
    first_day date, last_day date, customers uuid[] DEFAULT NULL) RETURNS integer
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    v_started timestamptz := clock_timestamp();
    v_from timestamptz := first_day::timestamp AT TIME ZONE 'UTC';
    v_to timestamptz := (last_day + 1)::timestamp AT TIME ZONE 'UTC';
    v_jobs integer;
    v_domains integer;
BEGIN
    -- One reading of the day for both tables: by customer, and by customer and domain (`whole` tells which).
    WITH results AS (
        SELECT (r.created_at AT TIME ZONE 'UTC')::date AS day, r.customer_id, j.domain, r.job_id, r.status,
               r.processing_time_ms AS ms, r.tries, r.bytes, r.skip_reason, r.error_message
        FROM public.scrape_job_results AS r JOIN public.scrape_jobs AS j ON j.job_id = r.job_id
        WHERE r.created_at >= v_from AND r.created_at < v_to
          AND (customers IS NULL OR r.customer_id = ANY (customers))
    ), pages AS MATERIALIZED (
        SELECT r.day, r.customer_id, r.domain, grouping(r.domain) = 1 AS whole,
               count(DISTINCT r.job_id) AS jobs, count(*) AS total,
               count(*) FILTER (WHERE r.status = 'success') AS successful,
               count(*) FILTER (WHERE r.status = 'failed') AS failed,
               count(*) FILTER (WHERE r.status = 'skipped') AS skipped,
               coalesce(sum(greatest(r.tries - 1, 0)), 0) AS retries, coalesce(sum(r.bytes), 0) AS bytes,
               percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY r.ms) AS ms
        FROM results AS r GROUP BY GROUPING SETS ((r.day, r.customer_id), (r.day, r.customer_id, r.domain))
    ), reasons AS MATERIALIZED (
        SELECT n.day, n.customer_id, n.domain, n.whole, jsonb_object_agg(n.reason, n.pages) AS by_reason
        FROM (
            SELECT u.day, u.customer_id, u.domain, grouping(u.domain) = 1 AS whole, u.reason, count(*) AS pages
            FROM (
                SELECT r.day, r.customer_id, r.domain,
                       left(coalesce(r.skip_reason, split_part(r.error_message, ':', 1), 'unknown'), 80) AS reason
                FROM results AS r WHERE r.status <> 'success'
            ) AS u
            GROUP BY GROUPING SETS ((u.day, u.customer_id, u.reason), (u.day, u.customer_id, u.reason, u.domain))
        ) AS n GROUP BY 1, 2, 3, 4
    ), jobs AS (
        SELECT (coalesce(j.completed_at, j.created_at) AT TIME ZONE 'UTC')::date AS day, j.customer_id,
               count(*) FILTER (WHERE j.status = 'completed') AS completed,
               count(*) FILTER (WHERE j.status = 'failed') AS failed,
               count(*) FILTER (WHERE j.status = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE j.status IN ('queued', 'running', 'paused')) AS unfinished,
               coalesce(sum(public.scrape_job_active_seconds(j)), 0) AS active
        FROM public.scrape_jobs AS j
        WHERE coalesce(j.completed_at, j.created_at) >= v_from AND coalesce(j.completed_at, j.created_at) < v_to
          AND (customers IS NULL OR j.customer_id = ANY (customers))
        GROUP BY 1, 2
    ), by_customer AS (
        INSERT INTO public.daily_job_stats AS s (
            day, customer_id, jobs_completed, jobs_failed, jobs_cancelled, jobs_unfinished, total_pages,
            successful_pages, failed_pages, skipped_pages, retries, bytes, p50_ms, p95_ms, p99_ms, active_seconds,
            pages_by_reason, computed_at)
        SELECT coalesce(p.day, j.day) AS of_day, coalesce(p.customer_id, j.customer_id) AS of_customer,
               coalesce(j.completed, 0), coalesce(j.failed, 0), coalesce(j.cancelled, 0), coalesce(j.unfinished, 0),
               coalesce(p.total, 0), coalesce(p.successful, 0), coalesce(p.failed, 0), coalesce(p.skipped, 0),
               coalesce(p.retries, 0), coalesce(p.bytes, 0), p.ms[1], p.ms[2], p.ms[3], coalesce(j.active, 0),
               coalesce(n.by_reason, '{}'), v_started
        FROM (SELECT * FROM pages WHERE whole) AS p
        FULL JOIN jobs AS j ON j.day = p.day AND j.customer_id = p.customer_id
        LEFT JOIN reasons AS n ON n.whole AND n.day = p.day AND n.customer_id = p.customer_id
        ORDER BY of_day, of_customer
        ON CONFLICT (day, customer_id) DO UPDATE SET
            jobs_completed = EXCLUDED.jobs_completed, jobs_failed = EXCLUDED.jobs_failed,
            jobs_cancelled = EXCLUDED.jobs_cancelled, jobs_unfinished = EXCLUDED.jobs_unfinished,
            total_pages = EXCLUDED.total_pages, successful_pages = EXCLUDED.successful_pages,
            failed_pages = EXCLUDED.failed_pages, skipped_pages = EXCLUDED.skipped_pages,
            retries = EXCLUDED.retries, bytes = EXCLUDED.bytes, p50_ms = EXCLUDED.p50_ms, p95_ms = EXCLUDED.p95_ms,
            p99_ms = EXCLUDED.p99_ms, active_seconds = EXCLUDED.active_seconds,
            pages_by_reason = EXCLUDED.pages_by_reason, computed_at = EXCLUDED.computed_at
            WHERE s.frozen_at IS NULL
        RETURNING 1
    ), by_domain AS (
        INSERT INTO public.daily_domain_stats AS s (
            day, customer_id, domain, jobs, total_pages, successful_pages, failed_pages, skipped_pages, retries,
            bytes, p50_ms, p95_ms, p99_ms, pages_by_reason, computed_at)
        SELECT p.day, p.customer_id, p.domain, p.jobs, p.total, p.successful, p.failed, p.skipped, p.retries,
               p.bytes, p.ms[1], p.ms[2], p.ms[3], coalesce(n.by_reason, '{}'), v_started
        FROM pages AS p
        LEFT JOIN reasons AS n
            ON NOT n.whole AND n.day = p.day AND n.customer_id = p.customer_id AND n.domain = p.domain
        -- A frozen day stays whole: no domain is added to it either.
        WHERE NOT p.whole
          AND NOT EXISTS (SELECT 1 FROM public.daily_job_stats AS f
                          WHERE f.day = p.day AND f.customer_id = p.customer_id AND f.frozen_at IS NOT NULL)
        ORDER BY p.day, p.customer_id, p.domain
        ON CONFLICT (day, customer_id, domain) DO UPDATE SET
            jobs = EXCLUDED.jobs, total_pages = EXCLUDED.total_pages, successful_pages = EXCLUDED.successful_pages,
            failed_pages = EXCLUDED.failed_pages, skipped_pages = EXCLUDED.skipped_pages,
            retries = EXCLUDED.retries, bytes = EXCLUDED.bytes, p50_ms = EXCLUDED.p50_ms, p95_ms = EXCLUDED.p95_ms,
            p99_ms = EXCLUDED.p99_ms, pages_by_reason = EXCLUDED.pages_by_reason, computed_at = EXCLUDED.computed_at
            WHERE s.frozen_at IS NULL
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM by_customer), (SELECT count(*) FROM by_domain) INTO v_jobs, v_domains;
    -- What was computed before and has no rows any more (a job that was unfinished then).
    DELETE FROM public.daily_job_stats AS d
    WHERE d.day BETWEEN first_day AND last_day AND d.frozen_at IS NULL AND d.computed_at < v_started
      AND (customers IS NULL OR d.customer_id = ANY (customers));
    DELETE FROM public.daily_domain_stats AS d
    WHERE d.day BETWEEN first_day AND last_day AND d.frozen_at IS NULL AND d.computed_at < v_started
      AND (customers IS NULL OR d.customer_id = ANY (customers));
    RETURN v_jobs + v_domains;
END
$$;

-- Before rows of jobs are removed: their days' statistics, computed from all that is there and then left as they are.
-- A day is computed for all customers at its first removal, so that it is read once and not once for each batch.
CREATE FUNCTION public.freeze_daily_statistics(days date[], customers uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    v_day date;
BEGIN
    FOR v_day IN
        SELECT DISTINCT n.day FROM unnest(days, customers) AS n (day, customer_id)
        WHERE NOT EXISTS (SELECT 1 FROM public.daily_job_stats AS d
                          WHERE d.day = n.day AND d.customer_id = n.customer_id AND d.frozen_at IS NOT NULL)
        ORDER BY n.day
    LOOP
        PERFORM public.compute_daily_statistics(v_day, v_day);
        UPDATE public.daily_job_stats AS d SET frozen_at = now() WHERE d.day = v_day AND d.frozen_at IS NULL;
        UPDATE public.daily_domain_stats AS d SET frozen_at = now() WHERE d.day = v_day AND d.frozen_at IS NULL;
    END LOOP;
END
$$;

-- --- retention: removal ------------------------------------------------------------------------------------------
-- remove_… takes one batch of at most so many rows (of parents: so many more), so that whoever calls it can commit
-- between batches: a kill loses one batch at most, locks are short, and two runs at once share the work (SKIP LOCKED).
-- It returns what it removed by table and customer, and nothing when nothing is left; its time limits are the caller's.
-- cleanup_… does all of it in one call and one transaction.
--   A batch: find and lock; lock the customers against a new hold; ask again, with what has been committed meanwhile;
-- remove. Where a hold has come between, it looks for others.

CREATE FUNCTION public.remove_expired_messages(max_rows integer)
RETURNS TABLE (table_name text, customer_id uuid, removed bigint, bytes bigint, oldest timestamptz, unprocessed bigint)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_ids uuid[];
    v_customers uuid[];
BEGIN
    LOOP
        SELECT array_agg(l.id), array_agg(DISTINCT l.customer_id) INTO v_ids, v_customers FROM (
            SELECT q.id, q.customer_id
            FROM public.expired_messages() AS e JOIN public.message_queue AS q ON q.id = e.id
            LIMIT max_rows FOR UPDATE OF q SKIP LOCKED
        ) AS l;
        EXIT WHEN v_ids IS NULL;
        PERFORM 1 FROM public.customers AS c WHERE c.id = ANY (v_customers) ORDER BY c.id FOR SHARE;
        RETURN QUERY
        WITH gone AS (
            DELETE FROM public.message_queue AS q
            WHERE q.id IN (SELECT e.id FROM public.expired_messages() AS e WHERE e.id = ANY (v_ids))
            RETURNING q.customer_id, q.status, q.created_at, pg_column_size(ROW(q.*)) AS size
        )
        SELECT 'message_queue', g.customer_id, count(*), sum(g.size)::bigint, min(g.created_at),
               count(*) FILTER (WHERE g.status IN ('pending', 'processing'))
        FROM gone AS g GROUP BY g.customer_id;
        EXIT WHEN FOUND;
    END LOOP;
END
$$;

CREATE FUNCTION public.cleanup_expired_message_queue() RETURNS integer
LANGUAGE plpgsql SET search_path = '' SET lock_timeout = '5s' AS $$
DECLARE
    v_batch bigint;
    v_total bigint := 0;
BEGIN
    LOOP
        SELECT sum(r.removed) INTO v_batch FROM public.remove_expired_messages(10000) AS r;
        EXIT WHEN v_batch IS NULL;
        v_total := v_total + v_batch;
    END LOOP;
    RETURN v_total;
END
$$;

-- Jobs with their results, statistics and frontier, a job's own row last; the daily statistics of the days concerned
-- are computed first. A large job takes several batches.
CREATE FUNCTION public.remove_expired_scrape_jobs(days integer, max_rows integer)
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
    SELECT 'scrape_job_stats', s.customer_id, count(*), sum(pg_column_size(ROW(s.*)))::bigint,
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

CREATE FUNCTION public.cleanup_old_scrape_jobs(days integer DEFAULT 90) RETURNS integer
LANGUAGE plpgsql SET search_path = '' SET lock_timeout = '5s' AS $$
DECLARE
    v_batch bigint;
    v_total bigint := 0;
BEGIN
    LOOP
        SELECT coalesce(sum(r.removed) FILTER (WHERE r.table_name = 'scrape_jobs'), 0) INTO v_batch
        FROM public.remove_expired_scrape_jobs(days, 20000) AS r HAVING count(*) > 0;
        EXIT WHEN NOT FOUND;
        v_total := v_total + v_batch;
    END LOOP;
    RETURN v_total;
END
$$;

CREATE FUNCTION public.remove_expired_conversations(days integer, max_rows integer)
RETURNS TABLE (table_name text, customer_id uuid, removed bigint, bytes bigint, oldest timestamptz, unprocessed bigint)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_ids uuid[];
    v_customers uuid[];
    v_rows tid[];
BEGIN
    PERFORM public.retention_cutoff(days);
    LOOP
        SELECT array_agg(l.id), array_agg(DISTINCT l.customer_id) INTO v_ids, v_customers FROM (
            SELECT c.id, c.customer_id
            FROM public.expired_conversations(days) AS e JOIN public.conversations AS c ON c.id = e.id
            LIMIT least(max_rows, 1000) FOR UPDATE OF c SKIP LOCKED
        ) AS l;
        EXIT WHEN v_ids IS NULL;
        PERFORM 1 FROM public.customers AS c WHERE c.id = ANY (v_customers) ORDER BY c.id FOR SHARE;
        SELECT array_agg(e.id) INTO v_ids
        FROM public.expired_conversations(days) AS e WHERE e.id = ANY (v_ids);
        EXIT WHEN v_ids IS NOT NULL;
    END LOOP;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(d.id) INTO v_rows FROM (
        SELECT m.ctid AS id FROM public.messages AS m WHERE m.conversation_id = ANY (v_ids) LIMIT max_rows) AS d;
    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.messages AS m WHERE m.ctid = ANY (v_rows)
        RETURNING m.customer_id, m.created_at, pg_column_size(ROW(m.*)) AS size
    )
    SELECT 'messages', g.customer_id, count(*), sum(g.size)::bigint, min(g.created_at), 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
    IF coalesce(cardinality(v_rows), 0) >= max_rows THEN
        RETURN;
    END IF;

    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.conversation_metadata AS f WHERE f.conversation_id = ANY (v_ids)
        RETURNING f.customer_id, f.updated_at, pg_column_size(ROW(f.*)) AS size
    )
    SELECT 'conversation_metadata', g.customer_id, count(*), sum(g.size)::bigint, min(g.updated_at), 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
    RETURN QUERY
    WITH gone AS (
        DELETE FROM public.conversations AS c WHERE c.id = ANY (v_ids)
        RETURNING c.customer_id, greatest(c.updated_at, c.ended_at) AS at, pg_column_size(ROW(c.*)) AS size
    )
    SELECT 'conversations', g.customer_id, count(*), sum(g.size)::bigint, min(g.at), 0::bigint
    FROM gone AS g GROUP BY g.customer_id;
END
$$;

CREATE FUNCTION public.cleanup_old_conversations(days integer DEFAULT 90) RETURNS integer
LANGUAGE plpgsql SET search_path = '' SET lock_timeout = '5s' AS $$
DECLARE
    v_batch bigint;
    v_total bigint := 0;
BEGIN
    LOOP
        SELECT coalesce(sum(r.removed) FILTER (WHERE r.table_name = 'conversations'), 0) INTO v_batch
        FROM public.remove_expired_conversations(days, 10000) AS r HAVING count(*) > 0;
        EXIT WHEN NOT FOUND;
        v_total := v_total + v_batch;
    END LOOP;
    RETURN v_total;
END
$$;

CREATE FUNCTION public.remove_expired_analytics(days integer, max_rows integer)
RETURNS TABLE (table_name text, customer_id uuid, removed bigint, bytes bigint, oldest timestamptz, unprocessed bigint)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_kind record;
    v_rows tid[];
    v_customers uuid[];
BEGIN
    PERFORM public.retention_cutoff(days);
    FOR v_kind IN
        SELECT k.* FROM (VALUES
            ('conversation_funnel', 't.customer_id', 't.created_at', 'e.id = t.id'),
            ('alert_history', 't.customer_id', 't.opened_at', 'e.id = t.id'),
            ('storage_snapshots', 'NULL::uuid', 't.taken_at', 'e.id = t.id'),
            ('daily_job_stats', 't.customer_id', $a$t.day::timestamp AT TIME ZONE 'UTC'$a$,
             'e.day = t.day AND e.customer_id = t.customer_id'),
            ('daily_domain_stats', 't.customer_id', $a$t.day::timestamp AT TIME ZONE 'UTC'$a$,
             'e.day = t.day AND e.customer_id = t.customer_id AND e.domain = t.domain')
        ) AS k (relation, customer, at, same)
    LOOP
        LOOP
            EXECUTE format(
                'SELECT array_agg(l.id), array_agg(DISTINCT l.customer) FROM (
                     SELECT t.ctid AS id, %2$s AS customer
                     FROM public.%5$I($1) AS e JOIN public.%1$I AS t ON %4$s
                     LIMIT $2 FOR UPDATE OF t SKIP LOCKED) AS l',
                v_kind.relation, v_kind.customer, v_kind.at, v_kind.same, 'expired_' || v_kind.relation)
            INTO v_rows, v_customers USING days, max_rows;
            EXIT WHEN v_rows IS NULL;
            PERFORM 1 FROM public.customers AS c WHERE c.id = ANY (v_customers) ORDER BY c.id FOR SHARE;
            RETURN QUERY EXECUTE format(
                'WITH gone AS (
                     DELETE FROM public.%1$I AS t USING public.%5$I($1) AS e
                     WHERE t.ctid = ANY ($2) AND %4$s
                     RETURNING %2$s AS customer, %3$s AS at, pg_column_size(ROW(t.*)) AS size)
                 SELECT %6$L, g.customer, count(*), sum(g.size)::bigint, min(g.at), 0::bigint
                 FROM gone AS g GROUP BY g.customer',
                v_kind.relation, v_kind.customer, v_kind.at, v_kind.same, 'expired_' || v_kind.relation,
                v_kind.relation)
            USING days, v_rows;
            EXIT WHEN FOUND;
        END LOOP;
    END LOOP;
END
$$;

CREATE FUNCTION public.cleanup_old_analytics(days integer DEFAULT 365) RETURNS integer
LANGUAGE plpgsql SET search_path = '' SET lock_timeout = '5s' AS $$
DECLARE
    v_batch bigint;
    v_total bigint := 0;
BEGIN
    LOOP
        SELECT sum(r.removed) INTO v_batch FROM public.remove_expired_analytics(days, 10000) AS r;
        EXIT WHEN v_batch IS NULL;
        v_total := v_total + v_batch;
    END LOOP;
    RETURN v_total;
END
$$;

-- What removes is the service's alone. The service's own rights come with the other grants (access.py), which also
-- takes them from client roles where a platform grants new functions to those by default.
REVOKE EXECUTE ON FUNCTION
    public.retention_cutoff, public.customer_is_held, public.expired_scrape_jobs, public.expired_messages,
    public.conversation_retention_overrides, public.expired_conversations, public.expired_conversation_funnel,
    public.expired_alert_history, public.expired_daily_job_stats, public.expired_daily_domain_stats,
    public.expired_storage_snapshots, public.compute_daily_statistics, public.freeze_daily_statistics,
    public.remove_expired_messages, public.cleanup_expired_message_queue, public.remove_expired_scrape_jobs,
    public.cleanup_old_scrape_jobs, public.remove_expired_conversations, public.cleanup_old_conversations,
    public.remove_expired_analytics, public.cleanup_old_analytics
FROM PUBLIC;
