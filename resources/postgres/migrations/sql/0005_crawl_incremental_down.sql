DROP FUNCTION public.crawl_settle_pages, public.crawl_commit_batch, public.next_check_interval, public.page_has_changed;
DROP TABLE omniops_meta.page_links;
ALTER TABLE public.scrape_jobs DROP COLUMN removals;
ALTER TABLE public.crawl_frontier DROP COLUMN found_by, DROP COLUMN lastmod;
ALTER TABLE public.scraped_pages
    DROP COLUMN source_hash, DROP COLUMN folded_hash, DROP COLUMN simhash, DROP COLUMN check_interval,
    DROP COLUMN next_check_at, DROP COLUMN missing_crawls, DROP COLUMN removed_reason;
ALTER TABLE public.scraped_pages RESET (fillfactor);
COMMENT ON COLUMN public.scraped_pages.content_hash IS NULL;

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
