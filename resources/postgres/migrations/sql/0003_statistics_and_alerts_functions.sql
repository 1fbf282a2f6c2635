-- Functions and triggers. Frozen with revision 0003.

-- --- crawling --------------------------------------------------------------------------------------------------

-- As before, and each result says whether its page changed.
CREATE OR REPLACE FUNCTION public.crawl_commit_batch(
    p_worker bigint, p_lease_seconds double precision, p_own_links integer,
    link_hash bigint[], link_url text[], link_depth integer[], link_skip text[],
    r_hash bigint[], r_url text[], r_depth integer[], r_adopted boolean[], r_status text[],
    r_http_status integer[], r_ms integer[], r_error text[], r_skip text[], r_content_hash text[],
    r_tries integer[], r_bytes bigint[], r_redirected_to text[], r_repairs integer[],
    c_hash bigint[], c_url text[], c_domain text[], c_title text[], c_description text[], c_canonical_url text[], c_lang text[],
    c_http_status integer[], c_etag text[], c_last_modified text[], c_content_hash text[],
    c_text text[], c_word_count integer[], gone_hash bigint[], gone_url text[],
    OUT owned bigint[], OUT acknowledged bigint[], OUT shared boolean)
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    v_job text;
    v_customer uuid;
    v_now timestamptz := clock_timestamp();
    v_changed bigint[] := '{}';
BEGIN
    UPDATE omniops_meta.crawl_workers AS w
    SET leased_until = clock_timestamp() + make_interval(secs => p_lease_seconds),
        pages_left = greatest(0, w.pages_left - cardinality(r_hash))
    WHERE w.worker_id = p_worker
    RETURNING w.job_id, w.customer_id INTO v_job, v_customer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'worker % was replaced: its lease ran out and another worker took over its urls', p_worker
            USING ERRCODE = 'OM001';
    END IF;

    shared := EXISTS (SELECT 1 FROM omniops_meta.crawl_workers AS w WHERE w.job_id = v_job AND w.worker_id <> p_worker);

    -- A link already known beyond max_depth is reopened when a shorter way to it is found.
    WITH inserted AS (
        INSERT INTO public.crawl_frontier AS f (job_id, url_hash, customer_id, url, depth, worker_id, skip_reason)
        SELECT v_job, l.hash, v_customer, l.url, l.depth,
               CASE WHEN l.skip IS NULL AND row_number() OVER (ORDER BY l.depth, l.ordinal) <= p_own_links
                    THEN p_worker END,
               l.skip
        FROM unnest(link_hash, link_url, link_depth, link_skip) WITH ORDINALITY
                 AS l (hash, url, depth, skip, ordinal)
        ORDER BY l.hash
        ON CONFLICT (job_id, url_hash) DO UPDATE
            SET depth = EXCLUDED.depth, skip_reason = NULL, worker_id = EXCLUDED.worker_id
            WHERE f.skip_reason = 'max_depth' AND EXCLUDED.skip_reason IS NULL
        RETURNING f.url_hash, f.worker_id
    )
    SELECT coalesce(array_agg(i.url_hash) FILTER (WHERE i.worker_id = p_worker), '{}') INTO owned
    FROM inserted AS i;

    IF true = ANY (r_adopted) THEN
        INSERT INTO public.crawl_frontier AS f (job_id, url_hash, customer_id, url, depth, worker_id)
        SELECT v_job, r.hash, v_customer, r.url, r.depth, p_worker
        FROM unnest(r_hash, r_url, r_depth, r_adopted) AS r (hash, url, depth, adopted)
        WHERE r.adopted ORDER BY r.hash
        ON CONFLICT (job_id, url_hash) DO UPDATE SET worker_id = EXCLUDED.worker_id, skip_reason = NULL
            WHERE f.worker_id IS NULL;
    END IF;

    WITH finished AS (
        UPDATE public.crawl_frontier AS f SET done = true
        WHERE f.job_id = v_job AND f.url_hash = ANY (r_hash) AND f.worker_id = p_worker AND NOT f.done
        RETURNING f.url_hash
    )
    SELECT coalesce(array_agg(d.url_hash), '{}') INTO acknowledged FROM finished AS d;

    IF cardinality(c_hash) > 0 THEN
        WITH page AS (
            INSERT INTO public.scraped_pages AS p (
                customer_id, domain, url, title, description, canonical_url, lang, http_status, etag,
                last_modified, content_hash, last_job_id, first_seen_at, last_seen_at, last_changed_at)
            SELECT v_customer, c.domain, c.url, c.title, c.description, c.canonical_url, c.lang,
                   c.http_status, c.etag, c.last_modified, c.content_hash, v_job, v_now, v_now, v_now
            FROM unnest(c_hash, c_url, c_domain, c_title, c_description, c_canonical_url, c_lang, c_http_status,
                        c_etag, c_last_modified, c_content_hash)
                     AS c (hash, url, domain, title, description, canonical_url, lang, http_status, etag,
                           last_modified, content_hash)
            JOIN unnest(acknowledged) AS a (hash) ON a.hash = c.hash
            ORDER BY c.url
            ON CONFLICT (customer_id, url) DO UPDATE SET
                title = EXCLUDED.title, description = EXCLUDED.description,
                canonical_url = EXCLUDED.canonical_url, lang = EXCLUDED.lang, http_status = EXCLUDED.http_status,
                etag = EXCLUDED.etag, last_modified = EXCLUDED.last_modified,
                content_hash = EXCLUDED.content_hash, last_seen_at = v_now,
                last_changed_at = CASE WHEN p.content_hash IS DISTINCT FROM EXCLUDED.content_hash
                    THEN v_now ELSE p.last_changed_at END,
                removed_at = NULL, last_job_id = EXCLUDED.last_job_id
            RETURNING p.id, p.url, p.last_changed_at = v_now AS changed
        ), content AS (
            -- Full-text indexing costs more than all the rest of the commit; it follows in a transaction of its own.
            INSERT INTO public.website_content AS w (page_id, customer_id, text, word_count)
            SELECT page.id, v_customer, c.text, c.word_count
            FROM page JOIN unnest(c_url, c_text, c_word_count) AS c (url, text, word_count) ON c.url = page.url
            WHERE c.text IS NOT NULL
            ON CONFLICT (page_id) DO UPDATE SET
                text = EXCLUDED.text, word_count = EXCLUDED.word_count, search = NULL,
                updated_at = clock_timestamp()
                WHERE w.text IS DISTINCT FROM EXCLUDED.text
        )
        SELECT coalesce(array_agg(c.hash), '{}') INTO v_changed
        FROM page JOIN unnest(c_hash, c_url) AS c (hash, url) ON c.url = page.url WHERE page.changed;
    END IF;

    IF cardinality(gone_hash) > 0 THEN
        UPDATE public.scraped_pages AS p SET removed_at = clock_timestamp(), last_job_id = v_job
        FROM unnest(gone_hash, gone_url) AS g (hash, url)
        JOIN unnest(acknowledged) AS a (hash) ON a.hash = g.hash
        WHERE p.customer_id = v_customer AND p.url = g.url AND p.removed_at IS NULL;
    END IF;

    -- Last, so that the lock on the job's statistics is short.
    INSERT INTO public.scrape_job_results (
        job_id, customer_id, url, status, http_status, processing_time_ms, error_message, skip_reason,
        content_hash, depth, tries, bytes, redirected_to, repairs, changed)
    SELECT v_job, v_customer, r.url, r.status, r.http_status, r.ms, r.error, r.skip, r.content_hash, r.depth,
           r.tries, r.bytes, r.redirected_to, r.repairs,
           CASE WHEN r.status = 'success' THEN g.hash IS NOT NULL END
    FROM unnest(r_hash, r_url, r_depth, r_status, r_http_status, r_ms, r_error, r_skip, r_content_hash, r_tries,
                r_bytes, r_redirected_to, r_repairs)
             AS r (hash, url, depth, status, http_status, ms, error, skip, content_hash, tries, bytes,
                   redirected_to, repairs)
    JOIN unnest(acknowledged) AS a (hash) ON a.hash = r.hash
    LEFT JOIN unnest(v_changed) AS g (hash) ON g.hash = r.hash
    ON CONFLICT (job_id, url) DO NOTHING;
END
$$;


-- Only the service may allow private and loopback addresses: a tenant that writes its own jobs and configurations could
-- reach the platform's inside by it.
CREATE FUNCTION public.refuse_private_addresses() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    v_path text[] := TG_ARGV[0]::text[];
BEGIN
    IF current_user IN ('authenticated', 'anon')
       AND coalesce(to_jsonb(NEW) #> v_path, 'false'::jsonb) NOT IN ('false'::jsonb, 'null'::jsonb)
       AND (TG_OP = 'INSERT' OR to_jsonb(OLD) #> v_path IS DISTINCT FROM to_jsonb(NEW) #> v_path) THEN
        RAISE EXCEPTION 'allow_private is refused for role %: only the service may allow private addresses', current_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER scrape_jobs_refuse_private BEFORE INSERT OR UPDATE OF config ON public.scrape_jobs
    FOR EACH ROW EXECUTE FUNCTION public.refuse_private_addresses('{config,allow_private}');
CREATE TRIGGER customer_configs_refuse_private BEFORE INSERT OR UPDATE OF settings ON public.customer_configs
    FOR EACH ROW EXECUTE FUNCTION public.refuse_private_addresses('{settings,crawl,allow_private}');

-- --- retention: what has expired, at this moment or another -----------------------------------------------------
-- The same predicates with one more argument, so that a forecast asks the very question that a removal will ask.
-- Removals leave it out: they go by the database's clock.

DROP FUNCTION public.retention_cutoff;
DROP FUNCTION public.expired_scrape_jobs;
DROP FUNCTION public.expired_messages;
DROP FUNCTION public.expired_conversations;
DROP FUNCTION public.expired_conversation_funnel;
DROP FUNCTION public.expired_alert_history;
DROP FUNCTION public.expired_daily_job_stats;
DROP FUNCTION public.expired_daily_domain_stats;
DROP FUNCTION public.expired_storage_snapshots;
DROP FUNCTION public.compute_daily_statistics;

CREATE FUNCTION public.retention_cutoff(days integer, at timestamptz DEFAULT now()) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    IF days IS NULL OR days < 1 OR days > 36500 THEN
        RAISE EXCEPTION 'retention of % days is refused: it must be between 1 and 36500', coalesce(days::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN at - make_interval(days => days);
END
$$;

-- Finished jobs only: a job that is queued, running or paused is somebody's.
CREATE FUNCTION public.expired_scrape_jobs(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.scrape_jobs
LANGUAGE sql STABLE AS $$
    SELECT j.* FROM public.scrape_jobs AS j
    WHERE j.status IN ('completed', 'failed', 'cancelled')
      AND coalesce(j.completed_at, j.created_at) < (SELECT public.retention_cutoff(days, at))
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = j.customer_id AND h.released_at IS NULL)
$$;

-- A message that somebody holds is not expired, however late it is.
CREATE FUNCTION public.expired_messages(at timestamptz DEFAULT now()) RETURNS SETOF public.message_queue
LANGUAGE sql STABLE AS $$
    SELECT q.* FROM public.message_queue AS q
    WHERE q.expires_at < at
      AND NOT (q.status = 'processing' AND coalesce(q.leased_until, '-infinity') > at)
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = q.customer_id AND h.released_at IS NULL)
$$;

-- A conversation's age is its last activity's: its own record's, or its newest message's. It is kept as long as the
-- configuration of its domain says, else the longest that the customer's configurations say, else `days`.
CREATE FUNCTION public.expired_conversations(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.conversations
LANGUAGE sql STABLE AS $$
    SELECT c.* FROM (
        SELECT u.id, at - make_interval(days => max(o.days)) AS own_cutoff
        FROM public.customers AS u
        LEFT JOIN public.conversation_retention_overrides() AS o ON o.customer_id = u.id
        WHERE NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                          WHERE h.customer_id = u.id AND h.released_at IS NULL)
        GROUP BY u.id
    ) AS k
    JOIN public.conversations AS c ON c.customer_id = k.id
    LEFT JOIN public.conversation_retention_overrides() AS d ON d.customer_id = c.customer_id AND d.domain = c.domain
    CROSS JOIN LATERAL (
        SELECT coalesce(at - make_interval(days => d.days), k.own_cutoff,
                        (SELECT public.retention_cutoff(expired_conversations.days, at))) AS cutoff
    ) AS t
    WHERE greatest(c.updated_at, c.ended_at) < t.cutoff
      AND NOT EXISTS (SELECT 1 FROM public.messages AS m WHERE m.conversation_id = c.id AND m.created_at >= t.cutoff)
$$;

CREATE FUNCTION public.expired_conversation_funnel(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.conversation_funnel
LANGUAGE sql STABLE AS $$
    SELECT f.* FROM public.conversation_funnel AS f
    WHERE f.created_at < (SELECT public.retention_cutoff(days, at))
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = f.customer_id AND h.released_at IS NULL)
$$;

-- An alert that is still open is not history yet.
CREATE FUNCTION public.expired_alert_history(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.alert_history
LANGUAGE sql STABLE AS $$
    SELECT a.* FROM public.alert_history AS a
    WHERE a.opened_at < (SELECT public.retention_cutoff(days, at)) AND a.closed_at IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = a.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_daily_job_stats(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.daily_job_stats
LANGUAGE sql STABLE AS $$
    SELECT d.* FROM public.daily_job_stats AS d
    WHERE d.day < (SELECT (public.retention_cutoff(days, at) AT TIME ZONE 'UTC')::date)
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = d.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_daily_domain_stats(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.daily_domain_stats
LANGUAGE sql STABLE AS $$
    SELECT d.* FROM public.daily_domain_stats AS d
    WHERE d.day < (SELECT (public.retention_cutoff(days, at) AT TIME ZONE 'UTC')::date)
      AND NOT EXISTS (SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = d.customer_id AND h.released_at IS NULL)
$$;

CREATE FUNCTION public.expired_storage_snapshots(days integer, at timestamptz DEFAULT now()) RETURNS SETOF public.storage_snapshots
LANGUAGE sql STABLE AS $$
    SELECT s.* FROM public.storage_snapshots AS s WHERE s.taken_at < (SELECT public.retention_cutoff(days, at))
$$;

-- --- statistics --------------------------------------------------------------------------------------------------

-- The statistics of days (UTC), for the customers given or for all, from the rows that are there; in one statement, so
-- that a year costs what its rows cost. Returns, by day, how many rows it wrote for customers and for domains, how
-- many pages they count, and for how many customers it kept what was there.
--   A page belongs to the day of its result, a job to the day of its end (or, unfinished, of its creation).
--   What is there is kept, for a customer and day, where it is all that is known: after rows were removed by retention
-- (frozen), or where fewer pages or ended jobs are left than were counted. Somebody has removed rows then, and the day
-- is frozen too. Of two computations at once, that which started later wins.
CREATE FUNCTION public.compute_daily_statistics(
    first_day date, last_day date, customer_ids uuid[] DEFAULT NULL)
RETURNS TABLE (day date, customers bigint, domains bigint, pages bigint, kept bigint)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    v_started timestamptz := clock_timestamp();
    v_from timestamptz := first_day::timestamp AT TIME ZONE 'UTC';
    v_to timestamptz := (last_day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    RETURN QUERY
    -- One reading of the rows for both tables: by customer, and by customer and domain (`whole` tells which).
    WITH results AS MATERIALIZED (
        SELECT (r.created_at AT TIME ZONE 'UTC')::date AS day, r.customer_id, j.domain, r.job_id, r.status,
               r.http_status, r.processing_time_ms AS ms, r.tries, r.bytes, r.changed,
               CASE WHEN r.status <> 'success' THEN
                   left(coalesce(nullif(r.skip_reason, ''), nullif(split_part(r.error_message, ':', 1), ''), 'unknown'),
                        80) END AS reason
        FROM public.scrape_job_results AS r JOIN public.scrape_jobs AS j ON j.job_id = r.job_id
        WHERE r.created_at >= v_from AND r.created_at < v_to
          AND (customer_ids IS NULL OR r.customer_id = ANY (customer_ids))
    ), pages AS MATERIALIZED (
        SELECT r.day, r.customer_id, r.domain, grouping(r.domain) = 1 AS whole,
               count(DISTINCT r.job_id) AS jobs, count(*) AS total,
               count(*) FILTER (WHERE r.status = 'success') AS successful,
               count(*) FILTER (WHERE r.status = 'failed') AS failed,
               count(*) FILTER (WHERE r.status = 'skipped') AS skipped,
               count(*) FILTER (WHERE r.changed) AS changed,
               count(*) FILTER (WHERE NOT r.changed OR r.reason = 'not_modified') AS unchanged,
               coalesce(sum(greatest(r.tries - 1, 0)), 0) AS retries,
               -- One absurd size shall not cost a whole year's statistics.
               least(coalesce(sum(r.bytes), 0), 9223372036854775807)::bigint AS bytes,
               percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY r.ms) AS ms
        FROM results AS r GROUP BY GROUPING SETS ((r.day, r.customer_id), (r.day, r.customer_id, r.domain))
    ), reasons AS MATERIALIZED (
        SELECT n.day, n.customer_id, n.domain, n.whole, jsonb_object_agg(n.reason, n.pages) AS pages
        FROM (
            SELECT r.day, r.customer_id, r.domain, grouping(r.domain) = 1 AS whole, r.reason, count(*) AS pages
            FROM results AS r WHERE r.reason IS NOT NULL
            GROUP BY GROUPING SETS ((r.day, r.customer_id, r.reason), (r.day, r.customer_id, r.reason, r.domain))
        ) AS n GROUP BY 1, 2, 3, 4
    ), codes AS MATERIALIZED (
        SELECT n.day, n.customer_id, n.domain, n.whole, jsonb_object_agg(n.http_status, n.pages) AS pages
        FROM (
            SELECT r.day, r.customer_id, r.domain, grouping(r.domain) = 1 AS whole, r.http_status, count(*) AS pages
            FROM results AS r WHERE r.http_status IS NOT NULL
            GROUP BY GROUPING SETS (
                (r.day, r.customer_id, r.http_status), (r.day, r.customer_id, r.http_status, r.domain))
        ) AS n GROUP BY 1, 2, 3, 4
    ), jobs AS MATERIALIZED (
        SELECT j.day, j.customer_id, j.domain, grouping(j.domain) = 1 AS whole,
               count(*) FILTER (WHERE j.status = 'completed') AS completed,
               count(*) FILTER (WHERE j.status = 'failed') AS failed,
               count(*) FILTER (WHERE j.status = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE j.status IN ('queued', 'running', 'paused')) AS unfinished,
               count(*) FILTER (WHERE j.status IN ('completed', 'failed', 'cancelled')) AS ended,
               coalesce(sum(j.active) FILTER (WHERE j.status IN ('completed', 'failed', 'cancelled')), 0) AS active
        FROM (
            SELECT (coalesce(j.completed_at, j.created_at) AT TIME ZONE 'UTC')::date AS day, j.customer_id, j.domain,
                   j.status,
                   -- Without its end the active time is not known; until now would be another figure each time.
                   CASE WHEN j.completed_at IS NOT NULL THEN public.scrape_job_active_seconds(j) END AS active
            FROM public.scrape_jobs AS j
            WHERE coalesce(j.completed_at, j.created_at) >= v_from AND coalesce(j.completed_at, j.created_at) < v_to
              AND (customer_ids IS NULL OR j.customer_id = ANY (customer_ids))
        ) AS j
        GROUP BY GROUPING SETS ((j.day, j.customer_id), (j.day, j.customer_id, j.domain))
    ), keep AS MATERIALIZED (
        SELECT s.day, s.customer_id
        FROM public.daily_job_stats AS s
        LEFT JOIN pages AS p ON p.whole AND p.day = s.day AND p.customer_id = s.customer_id
        LEFT JOIN jobs AS j ON j.whole AND j.day = s.day AND j.customer_id = s.customer_id
        WHERE s.day BETWEEN first_day AND last_day
          AND (customer_ids IS NULL OR s.customer_id = ANY (customer_ids))
          AND (s.frozen_at IS NOT NULL OR s.total_pages > coalesce(p.total, 0)
               OR s.jobs_completed + s.jobs_failed + s.jobs_cancelled > coalesce(j.ended, 0))
        UNION
        SELECT s.day, s.customer_id
        FROM public.daily_domain_stats AS s
        LEFT JOIN pages AS p
            ON NOT p.whole AND p.day = s.day AND p.customer_id = s.customer_id AND p.domain = s.domain
        LEFT JOIN jobs AS j
            ON NOT j.whole AND j.day = s.day AND j.customer_id = s.customer_id AND j.domain = s.domain
        WHERE s.day BETWEEN first_day AND last_day
          AND (customer_ids IS NULL OR s.customer_id = ANY (customer_ids))
          AND (s.frozen_at IS NOT NULL OR s.total_pages > coalesce(p.total, 0)
               OR s.jobs_completed + s.jobs_failed + s.jobs_cancelled > coalesce(j.ended, 0))
    ), freeze_customers AS (
        UPDATE public.daily_job_stats AS s SET frozen_at = v_started FROM keep AS k
        WHERE s.day = k.day AND s.customer_id = k.customer_id AND s.frozen_at IS NULL AND s.computed_at <= v_started
    ), freeze_domains AS (
        UPDATE public.daily_domain_stats AS s SET frozen_at = v_started FROM keep AS k
        WHERE s.day = k.day AND s.customer_id = k.customer_id AND s.frozen_at IS NULL AND s.computed_at <= v_started
    ), facts AS MATERIALIZED (
        SELECT coalesce(p.day, j.day) AS day, coalesce(p.customer_id, j.customer_id) AS customer_id,
               coalesce(p.domain, j.domain) AS domain, coalesce(p.whole, j.whole) AS whole,
               coalesce(j.completed, 0) AS jobs_completed, coalesce(j.failed, 0) AS jobs_failed,
               coalesce(j.cancelled, 0) AS jobs_cancelled, coalesce(j.unfinished, 0) AS jobs_unfinished,
               coalesce(j.active, 0) AS active, coalesce(p.jobs, 0) AS jobs, coalesce(p.total, 0) AS total,
               coalesce(p.successful, 0) AS successful, coalesce(p.failed, 0) AS failed,
               coalesce(p.skipped, 0) AS skipped, coalesce(p.changed, 0) AS changed,
               coalesce(p.unchanged, 0) AS unchanged, coalesce(p.retries, 0) AS retries,
               coalesce(p.bytes, 0) AS bytes, p.ms, coalesce(r.pages, '{}') AS by_reason,
               coalesce(c.pages, '{}') AS by_code
        FROM pages AS p
        FULL JOIN jobs AS j ON j.day = p.day AND j.customer_id = p.customer_id AND j.whole = p.whole
            -- Null where it is the whole; an equality that a hash can be made of.
            AND coalesce(j.domain, '') = coalesce(p.domain, '')
        LEFT JOIN reasons AS r ON r.day = p.day AND r.customer_id = p.customer_id AND r.whole = p.whole
            AND coalesce(r.domain, '') = coalesce(p.domain, '')
        LEFT JOIN codes AS c ON c.day = p.day AND c.customer_id = p.customer_id AND c.whole = p.whole
            AND coalesce(c.domain, '') = coalesce(p.domain, '')
    ), fresh AS MATERIALIZED (
        SELECT f.* FROM facts AS f
        WHERE NOT EXISTS (SELECT 1 FROM keep AS k WHERE k.day = f.day AND k.customer_id = f.customer_id)
    ), by_customer AS (
        INSERT INTO public.daily_job_stats AS s (
            day, customer_id, jobs_completed, jobs_failed, jobs_cancelled, jobs_unfinished, total_pages,
            successful_pages, failed_pages, skipped_pages, changed_pages, unchanged_pages, retries, bytes,
            p50_ms, p95_ms, p99_ms, active_seconds, pages_per_second, pages_by_reason, pages_by_http_status,
            computed_at)
        SELECT f.day, f.customer_id, f.jobs_completed, f.jobs_failed, f.jobs_cancelled, f.jobs_unfinished, f.total,
               f.successful, f.failed, f.skipped, f.changed, f.unchanged, f.retries, f.bytes,
               f.ms[1], f.ms[2], f.ms[3], f.active, f.total / nullif(f.active, 0), f.by_reason, f.by_code, v_started
        FROM fresh AS f WHERE f.whole ORDER BY f.day, f.customer_id
        ON CONFLICT (day, customer_id) DO UPDATE SET
            jobs_completed = EXCLUDED.jobs_completed, jobs_failed = EXCLUDED.jobs_failed,
            jobs_cancelled = EXCLUDED.jobs_cancelled, jobs_unfinished = EXCLUDED.jobs_unfinished,
            total_pages = EXCLUDED.total_pages, successful_pages = EXCLUDED.successful_pages,
            failed_pages = EXCLUDED.failed_pages, skipped_pages = EXCLUDED.skipped_pages,
            changed_pages = EXCLUDED.changed_pages, unchanged_pages = EXCLUDED.unchanged_pages,
            retries = EXCLUDED.retries, bytes = EXCLUDED.bytes, p50_ms = EXCLUDED.p50_ms, p95_ms = EXCLUDED.p95_ms,
            p99_ms = EXCLUDED.p99_ms, active_seconds = EXCLUDED.active_seconds,
            pages_per_second = EXCLUDED.pages_per_second, pages_by_reason = EXCLUDED.pages_by_reason,
            pages_by_http_status = EXCLUDED.pages_by_http_status, computed_at = EXCLUDED.computed_at
            WHERE s.frozen_at IS NULL AND s.computed_at <= EXCLUDED.computed_at
        RETURNING s.day, s.total_pages
    ), by_domain AS (
        INSERT INTO public.daily_domain_stats AS s (
            day, customer_id, domain, jobs, jobs_completed, jobs_failed, jobs_cancelled, jobs_unfinished, total_pages,
            successful_pages, failed_pages, skipped_pages, changed_pages, unchanged_pages, retries, bytes,
            p50_ms, p95_ms, p99_ms, active_seconds, pages_per_second, pages_by_reason, pages_by_http_status,
            computed_at)
        SELECT f.day, f.customer_id, f.domain, f.jobs, f.jobs_completed, f.jobs_failed, f.jobs_cancelled,
               f.jobs_unfinished, f.total, f.successful, f.failed, f.skipped, f.changed, f.unchanged, f.retries,
               f.bytes, f.ms[1], f.ms[2], f.ms[3], f.active, f.total / nullif(f.active, 0), f.by_reason, f.by_code,
               v_started
        FROM fresh AS f WHERE NOT f.whole ORDER BY f.day, f.customer_id, f.domain
        ON CONFLICT (day, customer_id, domain) DO UPDATE SET
            jobs = EXCLUDED.jobs, jobs_completed = EXCLUDED.jobs_completed, jobs_failed = EXCLUDED.jobs_failed,
            jobs_cancelled = EXCLUDED.jobs_cancelled, jobs_unfinished = EXCLUDED.jobs_unfinished,
            total_pages = EXCLUDED.total_pages, successful_pages = EXCLUDED.successful_pages,
            failed_pages = EXCLUDED.failed_pages, skipped_pages = EXCLUDED.skipped_pages,
            changed_pages = EXCLUDED.changed_pages, unchanged_pages = EXCLUDED.unchanged_pages,
            retries = EXCLUDED.retries, bytes = EXCLUDED.bytes, p50_ms = EXCLUDED.p50_ms, p95_ms = EXCLUDED.p95_ms,
            p99_ms = EXCLUDED.p99_ms, active_seconds = EXCLUDED.active_seconds,
            pages_per_second = EXCLUDED.pages_per_second, pages_by_reason = EXCLUDED.pages_by_reason,
            pages_by_http_status = EXCLUDED.pages_by_http_status, computed_at = EXCLUDED.computed_at
            WHERE s.frozen_at IS NULL AND s.computed_at <= EXCLUDED.computed_at
        RETURNING s.day
    )
    SELECT u.day, sum(u.customers)::bigint, sum(u.domains)::bigint, sum(u.pages)::bigint, sum(u.kept)::bigint
    FROM (
        SELECT c.day, 1 AS customers, 0 AS domains, c.total_pages AS pages, 0 AS kept FROM by_customer AS c
        UNION ALL SELECT d.day, 0, 1, 0, 0 FROM by_domain AS d
        UNION ALL SELECT k.day, 0, 0, 0, 1 FROM keep AS k
    ) AS u GROUP BY u.day ORDER BY u.day;

    -- What was computed before and has no rows any more: a job that was unfinished then. All else was kept above.
    DELETE FROM public.daily_domain_stats AS d
    WHERE d.day BETWEEN first_day AND last_day AND d.frozen_at IS NULL AND d.computed_at < v_started
      AND d.total_pages = 0 AND (customer_ids IS NULL OR d.customer_id = ANY (customer_ids));
    DELETE FROM public.daily_job_stats AS d
    WHERE d.day BETWEEN first_day AND last_day AND d.frozen_at IS NULL AND d.computed_at < v_started
      AND d.total_pages = 0 AND (customer_ids IS NULL OR d.customer_id = ANY (customer_ids));
END
$$;

-- Days whose rows changed after their statistics were computed (a job that went on after midnight, one that ended, a
-- row that came late), or that were never computed, among the jobs that changed since the moment given; and when the
-- first of those jobs changed. Whoever goes on from there misses nothing.
--   A row may become visible some time after the moment that it bears, so both are looked at with ten minutes to spare;
-- to compute a day once more changes nothing.
CREATE FUNCTION public.outdated_statistics_days(first_day date, last_day date, since timestamptz)
RETURNS TABLE (day date, touched_at timestamptz)
LANGUAGE sql STABLE SET search_path = '' AS $$
    WITH touched AS MATERIALIZED (
        SELECT j.job_id, j.customer_id, greatest(s.updated_at, j.created_at, j.completed_at) AS at,
               (j.created_at AT TIME ZONE 'UTC')::date AS created, (j.completed_at AT TIME ZONE 'UTC')::date AS ended
        FROM public.scrape_jobs AS j LEFT JOIN public.scrape_job_stats AS s ON s.job_id = j.job_id
        WHERE greatest(s.updated_at, j.created_at, j.completed_at) >= since - interval '10 minutes'
    ), concerned AS (
        SELECT DISTINCT (r.created_at AT TIME ZONE 'UTC')::date AS day, t.customer_id, t.at
        FROM touched AS t JOIN public.scrape_job_results AS r ON r.job_id = t.job_id
        UNION SELECT t.created, t.customer_id, t.at FROM touched AS t
        UNION SELECT t.ended, t.customer_id, t.at FROM touched AS t WHERE t.ended IS NOT NULL
    )
    SELECT c.day, min(c.at) FROM concerned AS c
    LEFT JOIN public.daily_job_stats AS d ON d.day = c.day AND d.customer_id = c.customer_id
    WHERE c.day BETWEEN first_day AND last_day
      AND d.frozen_at IS NULL AND (d.computed_at IS NULL OR c.at >= d.computed_at - interval '10 minutes')
    GROUP BY c.day ORDER BY c.day
$$;

REVOKE EXECUTE ON FUNCTION
    public.retention_cutoff, public.expired_scrape_jobs, public.expired_messages, public.expired_conversations,
    public.expired_conversation_funnel, public.expired_alert_history, public.expired_daily_job_stats,
    public.expired_daily_domain_stats, public.expired_storage_snapshots, public.compute_daily_statistics,
    public.outdated_statistics_days
FROM PUBLIC;
