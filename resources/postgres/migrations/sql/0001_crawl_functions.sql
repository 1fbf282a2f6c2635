-- Functions and triggers of the crawl. Frozen with revision 0001.

-- A job's status moves only forward. resources/postgres/job_status.py holds the same table for Python, and a
-- test compares the two.
CREATE FUNCTION public.scrape_job_may_move(from_status text, to_status text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = '' AS $$
    SELECT (from_status, to_status) IN (
        ('queued', 'running'), ('queued', 'failed'), ('queued', 'cancelled'),
        ('running', 'paused'), ('running', 'completed'), ('running', 'failed'), ('running', 'cancelled'),
        ('paused', 'running'), ('paused', 'failed'), ('paused', 'cancelled')
    )
$$;

-- Seconds that a job was really at work: from its start to its end (or now), pauses left out.
CREATE FUNCTION public.scrape_job_active_seconds(job public.scrape_jobs) RETURNS double precision
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT greatest(0, extract(epoch FROM
               coalesce(job.completed_at, job.paused_at, clock_timestamp()) - job.started_at)
           - job.paused_seconds)
$$;

CREATE FUNCTION public.scrape_jobs_before_update() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF NEW.status = OLD.status THEN
        RETURN NEW;
    END IF;
    IF NOT public.scrape_job_may_move(OLD.status, NEW.status) THEN
        RAISE EXCEPTION 'job % is %: it cannot become %', OLD.job_id, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'scrape_jobs_status_moves_forward';
    END IF;
    IF NEW.status = 'running' THEN
        NEW.started_at := coalesce(NEW.started_at, clock_timestamp());
    END IF;
    IF OLD.status = 'paused' AND NEW.status = 'running' THEN
        NEW.paused_seconds := OLD.paused_seconds + extract(epoch FROM clock_timestamp() - OLD.paused_at);
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
CREATE TRIGGER scrape_jobs_before_update BEFORE UPDATE OF status ON public.scrape_jobs
    FOR EACH ROW EXECUTE FUNCTION public.scrape_jobs_before_update();

-- Statistics: differences only, from the transition tables, so that the millionth result costs what the first
-- did. SECURITY DEFINER because no role may write scrape_job_stats itself.
CREATE FUNCTION public.scrape_job_stats_apply(
    jobs text[], customers uuid[], totals bigint[], successes bigint[], failures bigint[], skips bigint[],
    timed bigint[], milliseconds bigint[]) RETURNS void
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
        avg_processing_time_ms = CASE WHEN s.timed_pages + d.timed > 0
            THEN round((s.total_processing_time_ms + d.ms)::numeric / (s.timed_pages + d.timed)) END,
        pages_per_second = (s.total_pages + d.total)
            / nullif(public.scrape_job_active_seconds(j), 0),
        updated_at = clock_timestamp()
    FROM unnest(jobs, totals, successes, failures, skips, timed, milliseconds)
             AS d (job_id, total, successful, failed, skipped, timed, ms)
    JOIN public.scrape_jobs AS j ON j.job_id = d.job_id
    WHERE s.job_id = d.job_id;
END
$$;

-- Only the trigger below, with its owner's rights, may call it.
REVOKE EXECUTE ON FUNCTION public.scrape_job_stats_apply FROM PUBLIC;

CREATE FUNCTION public.scrape_job_results_counted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms))
        FROM (
            SELECT n.job_id, n.customer_id, count(*) AS total,
                   count(*) FILTER (WHERE n.status = 'success') AS successful,
                   count(*) FILTER (WHERE n.status = 'failed') AS failed,
                   count(*) FILTER (WHERE n.status = 'skipped') AS skipped,
                   count(n.processing_time_ms) AS timed,
                   coalesce(sum(n.processing_time_ms), 0) AS ms
            FROM new_rows AS n GROUP BY n.job_id, n.customer_id ORDER BY n.job_id
        ) AS d HAVING count(*) > 0;
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms))
        FROM (
            SELECT o.job_id, o.customer_id, -count(*) AS total,
                   -count(*) FILTER (WHERE o.status = 'success') AS successful,
                   -count(*) FILTER (WHERE o.status = 'failed') AS failed,
                   -count(*) FILTER (WHERE o.status = 'skipped') AS skipped,
                   -count(o.processing_time_ms) AS timed,
                   -coalesce(sum(o.processing_time_ms), 0) AS ms
            FROM old_rows AS o GROUP BY o.job_id, o.customer_id ORDER BY o.job_id
        ) AS d HAVING count(*) > 0;
    ELSE
        PERFORM public.scrape_job_stats_apply(
            array_agg(d.job_id), array_agg(d.customer_id), array_agg(d.total), array_agg(d.successful),
            array_agg(d.failed), array_agg(d.skipped), array_agg(d.timed), array_agg(d.ms))
        FROM (
            SELECT c.job_id, c.customer_id, sum(c.n)::bigint AS total,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'success'), 0)::bigint AS successful,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'failed'), 0)::bigint AS failed,
                   coalesce(sum(c.n) FILTER (WHERE c.status = 'skipped'), 0)::bigint AS skipped,
                   coalesce(sum(c.n) FILTER (WHERE c.ms IS NOT NULL), 0)::bigint AS timed,
                   coalesce(sum(c.n * c.ms), 0)::bigint AS ms
            FROM (SELECT n.job_id, n.customer_id, n.status, n.processing_time_ms AS ms, 1 AS n
                  FROM new_rows AS n
                  UNION ALL
                  SELECT o.job_id, o.customer_id, o.status, o.processing_time_ms, -1 FROM old_rows AS o) AS c
            GROUP BY c.job_id, c.customer_id ORDER BY c.job_id
        ) AS d HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER scrape_job_results_inserted AFTER INSERT ON public.scrape_job_results
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION public.scrape_job_results_counted();
CREATE TRIGGER scrape_job_results_updated AFTER UPDATE ON public.scrape_job_results
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION public.scrape_job_results_counted();
CREATE TRIGGER scrape_job_results_deleted AFTER DELETE ON public.scrape_job_results
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION public.scrape_job_results_counted();

CREATE FUNCTION public.scrape_job_results_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    DELETE FROM public.scrape_job_stats;
    RETURN NULL;
END
$$;
CREATE TRIGGER scrape_job_results_truncated AFTER TRUNCATE ON public.scrape_job_results
    FOR EACH STATEMENT EXECUTE FUNCTION public.scrape_job_results_truncated();

-- pages_per_second is over the job's active time, so it settles when that time does.
CREATE FUNCTION public.scrape_jobs_after_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    UPDATE public.scrape_job_stats AS s SET
        pages_per_second = s.total_pages / nullif(public.scrape_job_active_seconds(NEW), 0),
        updated_at = clock_timestamp()
    WHERE s.job_id = NEW.job_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER scrape_jobs_after_update AFTER UPDATE OF status ON public.scrape_jobs
    FOR EACH ROW WHEN (NEW.status IS DISTINCT FROM OLD.status)
    EXECUTE FUNCTION public.scrape_jobs_after_update();

-- Full-text configuration for a page's language (BCP 47); `simple` where Postgres ships no stemmer for it.
CREATE FUNCTION public.text_search_config(lang text) RETURNS regconfig
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = 'pg_catalog' AS $$
    SELECT CASE lower(split_part(split_part(lang, '-', 1), '_', 1))
        WHEN 'ar' THEN 'arabic'::regconfig WHEN 'da' THEN 'danish'::regconfig
        WHEN 'de' THEN 'german'::regconfig WHEN 'el' THEN 'greek'::regconfig
        WHEN 'en' THEN 'english'::regconfig WHEN 'es' THEN 'spanish'::regconfig
        WHEN 'fi' THEN 'finnish'::regconfig WHEN 'fr' THEN 'french'::regconfig
        WHEN 'hu' THEN 'hungarian'::regconfig WHEN 'it' THEN 'italian'::regconfig
        WHEN 'nl' THEN 'dutch'::regconfig WHEN 'nb' THEN 'norwegian'::regconfig
        WHEN 'no' THEN 'norwegian'::regconfig WHEN 'pt' THEN 'portuguese'::regconfig
        WHEN 'ro' THEN 'romanian'::regconfig WHEN 'ru' THEN 'russian'::regconfig
        WHEN 'sv' THEN 'swedish'::regconfig WHEN 'tr' THEN 'turkish'::regconfig
        ELSE 'simple'::regconfig END
$$;

-- Index texts that wait for it, up to so many pages; returns how many it did. Whoever stored them need not be there:
-- what a killed crawl left is indexed by the next one.
CREATE FUNCTION public.index_website_content(max_pages integer) RETURNS bigint
LANGUAGE sql SET search_path = '' AS $$
    WITH waiting AS (
        SELECT w.page_id FROM public.website_content AS w WHERE w.search IS NULL
        ORDER BY w.page_id LIMIT max_pages FOR UPDATE SKIP LOCKED
    ), indexed AS (
        UPDATE public.website_content AS w
        -- A tsvector may not exceed 1 MB; what follows the first 200,000 characters is not indexed.
        SET search = to_tsvector(public.text_search_config(p.lang), left(w.text, 200000))
        FROM waiting, public.scraped_pages AS p
        WHERE w.page_id = waiting.page_id AND p.id = w.page_id
        RETURNING 1
    )
    SELECT count(*) FROM indexed
$$;

-- One batch of a crawl in one round trip and one transaction: the fence, the links found, the
-- acknowledgements, the results and the content. Either all of it is there or none.
--   Refuses a worker that was replaced (SQLSTATE OM001): whoever took over its urls will fetch them.
--   A result is written only for a url that this call acknowledges, so a url never has two.
--   p_adopted marks urls that were reached by a redirect and may not be in the frontier yet.
-- Returns the links that were new and are now this worker's, the urls that were acknowledged, and whether other
-- workers are at the job (then this one should leave them something).
CREATE FUNCTION public.crawl_commit_batch(
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
                last_modified, content_hash, last_job_id)
            SELECT v_customer, c.domain, c.url, c.title, c.description, c.canonical_url, c.lang,
                   c.http_status, c.etag, c.last_modified, c.content_hash, v_job
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
                content_hash = EXCLUDED.content_hash, last_seen_at = clock_timestamp(),
                last_changed_at = CASE WHEN p.content_hash IS DISTINCT FROM EXCLUDED.content_hash
                    THEN clock_timestamp() ELSE p.last_changed_at END,
                removed_at = NULL, last_job_id = EXCLUDED.last_job_id
            RETURNING p.id, p.url
        )
        -- Full-text indexing costs more than all the rest of the commit; it follows in a transaction of its own.
        INSERT INTO public.website_content AS w (page_id, customer_id, text, word_count)
        SELECT page.id, v_customer, c.text, c.word_count
        FROM page JOIN unnest(c_url, c_text, c_word_count) AS c (url, text, word_count) ON c.url = page.url
        WHERE c.text IS NOT NULL
        ON CONFLICT (page_id) DO UPDATE SET
            text = EXCLUDED.text, word_count = EXCLUDED.word_count, search = NULL,
            updated_at = clock_timestamp()
            WHERE w.text IS DISTINCT FROM EXCLUDED.text;
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
        content_hash, depth, tries, bytes, redirected_to, repairs)
    SELECT v_job, v_customer, r.url, r.status, r.http_status, r.ms, r.error, r.skip, r.content_hash, r.depth,
           r.tries, r.bytes, r.redirected_to, r.repairs
    FROM unnest(r_hash, r_url, r_depth, r_status, r_http_status, r_ms, r_error, r_skip, r_content_hash, r_tries,
                r_bytes, r_redirected_to, r_repairs)
             AS r (hash, url, depth, status, http_status, ms, error, skip, content_hash, tries, bytes,
                   redirected_to, repairs)
    JOIN unnest(acknowledged) AS a (hash) ON a.hash = r.hash
    ON CONFLICT (job_id, url) DO NOTHING;
END
$$;
