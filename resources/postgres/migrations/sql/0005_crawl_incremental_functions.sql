-- One batch of a crawl in one round trip and one transaction: the fence, the links found, the acknowledgements, the
-- results and the content. Either all of it is there or none.
--   Refuses a worker that was replaced (SQLSTATE OM001): whoever took over its urls will fetch them.
--   A result is written only for a url that this call acknowledges, so a url never has two.
--   p_mark_linked: the job began with urls that were known from earlier crawls; a link to one is put down.
--   r_adopted marks urls that were reached by a redirect and may not be in the frontier yet.
--   seen_…: pages that have not changed; they cost one narrow update. Validators are taken where there are new ones.
--   c_…: pages that were read. A change that is cosmetic (folded_hash is the same) writes no content.
-- Returns the links that were new and are now this worker's, the urls that were acknowledged, and whether other
-- workers are at the job (then this one should leave them something).
DROP FUNCTION public.crawl_commit_batch;
CREATE FUNCTION public.crawl_commit_batch(
    p_worker bigint, p_lease_seconds double precision, p_own_links integer, p_mark_linked boolean,
    link_hash bigint[], link_url text[], link_depth integer[], link_skip text[],
    r_hash bigint[], r_url text[], r_depth integer[], r_adopted boolean[], r_status text[],
    r_http_status integer[], r_ms integer[], r_error text[], r_skip text[], r_content_hash text[],
    r_tries integer[], r_bytes bigint[], r_redirected_to text[], r_repairs integer[],
    seen_hash bigint[], seen_url text[], seen_etag text[], seen_last_modified text[],
    c_hash bigint[], c_url text[], c_domain text[], c_title text[], c_description text[], c_canonical_url text[], c_lang text[],
    c_http_status integer[], c_etag text[], c_last_modified text[], c_source_hash text[], c_content_hash text[],
    c_folded_hash text[], c_simhash bigint[], c_text text[], c_markdown text[], c_word_count integer[],
    c_links bytea[],
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

    IF p_mark_linked AND cardinality(link_hash) > 0 THEN
        UPDATE public.crawl_frontier AS f SET found_by = 'link'
        WHERE f.job_id = v_job AND f.url_hash = ANY (link_hash) AND f.found_by = 'known';
    END IF;

    IF true = ANY (r_adopted) THEN
        INSERT INTO public.crawl_frontier AS f (job_id, url_hash, customer_id, url, depth, worker_id)
        SELECT v_job, r.hash, v_customer, r.url, r.depth, p_worker
        FROM unnest(r_hash, r_url, r_depth, r_adopted) AS r (hash, url, depth, adopted)
        WHERE r.adopted ORDER BY r.hash
        ON CONFLICT (job_id, url_hash) DO UPDATE
            SET worker_id = EXCLUDED.worker_id, skip_reason = NULL, found_by = EXCLUDED.found_by
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
                customer_id, domain, url, title, description, canonical_url, lang, http_status, etag, last_modified,
                source_hash, content_hash, folded_hash, simhash, last_job_id, first_seen_at, last_seen_at,
                last_changed_at, next_check_at)
            SELECT v_customer, c.domain, c.url, c.title, c.description, c.canonical_url, c.lang, c.http_status, c.etag,
                   c.last_modified, c.source_hash, c.content_hash, c.folded_hash, c.simhash, v_job, v_now, v_now,
                   v_now, v_now + interval '1 day'
            FROM unnest(c_hash, c_url, c_domain, c_title, c_description, c_canonical_url, c_lang, c_http_status,
                        c_etag, c_last_modified, c_source_hash, c_content_hash, c_folded_hash, c_simhash)
                     AS c (hash, url, domain, title, description, canonical_url, lang, http_status, etag,
                           last_modified, source_hash, content_hash, folded_hash, simhash)
            JOIN unnest(acknowledged) AS a (hash) ON a.hash = c.hash
            ORDER BY c.url
            ON CONFLICT (customer_id, url) DO UPDATE SET
                title = EXCLUDED.title, description = EXCLUDED.description,
                canonical_url = EXCLUDED.canonical_url, lang = EXCLUDED.lang, http_status = EXCLUDED.http_status,
                etag = EXCLUDED.etag, last_modified = EXCLUDED.last_modified, source_hash = EXCLUDED.source_hash,
                content_hash = EXCLUDED.content_hash, folded_hash = EXCLUDED.folded_hash, simhash = EXCLUDED.simhash,
                last_seen_at = v_now, removed_at = NULL, removed_reason = NULL,
                missing_crawls = CASE WHEN p.removed_at IS NULL THEN p.missing_crawls ELSE 0 END,
                last_job_id = EXCLUDED.last_job_id,
                last_changed_at = CASE WHEN public.page_has_changed(
                    p.content_hash, EXCLUDED.content_hash, p.folded_hash, EXCLUDED.folded_hash)
                    THEN v_now ELSE p.last_changed_at END,
                check_interval = public.next_check_interval(p.check_interval, public.page_has_changed(
                    p.content_hash, EXCLUDED.content_hash, p.folded_hash, EXCLUDED.folded_hash)),
                next_check_at = v_now + public.next_check_interval(p.check_interval, public.page_has_changed(
                    p.content_hash, EXCLUDED.content_hash, p.folded_hash, EXCLUDED.folded_hash))
            RETURNING p.id, p.url, p.content_hash, p.last_changed_at = v_now AS changed
        ), content AS (
            -- Full-text indexing costs more than all the rest of the commit; it follows in a transaction of its own.
            INSERT INTO public.website_content AS w (page_id, customer_id, text, markdown, word_count)
            SELECT page.id, v_customer, c.text, c.markdown, c.word_count
            FROM page JOIN unnest(c_url, c_text, c_markdown, c_word_count) AS c (url, text, markdown, word_count)
                ON c.url = page.url
            WHERE c.text IS NOT NULL
              AND (page.changed
                   OR NOT EXISTS (SELECT 1 FROM public.website_content AS k WHERE k.page_id = page.id)
                   -- As it was before this statement: a text that is the same may have another markdown.
                   OR EXISTS (SELECT 1 FROM public.scraped_pages AS o
                              WHERE o.id = page.id AND o.content_hash = page.content_hash))
            ON CONFLICT (page_id) DO UPDATE SET
                text = EXCLUDED.text, markdown = EXCLUDED.markdown, word_count = EXCLUDED.word_count, search = NULL,
                updated_at = clock_timestamp()
                WHERE w.text IS DISTINCT FROM EXCLUDED.text OR w.markdown IS DISTINCT FROM EXCLUDED.markdown
        ), links AS (
            INSERT INTO omniops_meta.page_links AS k (page_id, customer_id, links)
            SELECT page.id, v_customer, c.links
            FROM page JOIN unnest(c_url, c_links) AS c (url, links) ON c.url = page.url
            WHERE c.links IS NOT NULL
            ON CONFLICT (page_id) DO UPDATE SET links = EXCLUDED.links WHERE k.links IS DISTINCT FROM EXCLUDED.links
        )
        SELECT coalesce(array_agg(c.hash), '{}') INTO v_changed
        FROM page JOIN unnest(c_hash, c_url) AS c (hash, url) ON c.url = page.url WHERE page.changed;
    END IF;

    IF cardinality(seen_hash) > 0 THEN
        UPDATE public.scraped_pages AS p
        SET last_seen_at = v_now, last_job_id = v_job, removed_at = NULL, removed_reason = NULL,
            missing_crawls = CASE WHEN p.removed_at IS NULL THEN p.missing_crawls ELSE 0 END,
            etag = coalesce(s.etag, p.etag), last_modified = coalesce(s.last_modified, p.last_modified),
            check_interval = public.next_check_interval(p.check_interval, false),
            next_check_at = v_now + public.next_check_interval(p.check_interval, false)
        FROM unnest(seen_hash, seen_url, seen_etag, seen_last_modified) AS s (hash, url, etag, last_modified)
        JOIN unnest(acknowledged) AS a (hash) ON a.hash = s.hash
        WHERE p.customer_id = v_customer AND p.url = s.url;
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

-- A page whose text is another one has changed, unless only dates, times and counters in it have.
CREATE FUNCTION public.page_has_changed(old_hash text, new_hash text, old_folded text, new_folded text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT old_hash IS DISTINCT FROM new_hash AND (old_folded IS NULL OR old_folded IS DISTINCT FROM new_folded)
$$;

-- A page that has changed is looked at twice as often, one that has not a little less often: an hour to thirty days.
CREATE FUNCTION public.next_check_interval(present interval, changed boolean) RETURNS interval
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN changed THEN greatest(present / 2, interval '1 hour')
                ELSE least(present * 1.5, interval '30 days') END
$$;

-- What becomes of pages that a job did not find, decided once, at its end.
--   gone: they answered 404 or 410. moved: they answered with a redirect to another page. noindex: their owner does not
--   want them to be found. unlinked: whole crawls of their site, p_after of them in a row, found no link to them and no
--   sitemap entry. p_whole_sites: sites that the job went through from their root, with nothing left to fetch.
--   Where more than half of the pages would go, and five or more, none does: that is more often a broken site than a
--   meant one, and somebody is told. p_accept_losses: somebody looked, and it is meant.
-- Returns the counts, which stand in scrape_jobs.removals from then on; a second call changes nothing.
CREATE FUNCTION public.crawl_settle_pages(
    p_job text, p_whole_sites text[], p_after integer, p_accept_losses boolean DEFAULT false) RETURNS jsonb
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    v_customer uuid;
    v_domain text;
    v_settled jsonb;
    v_sites text[] := p_whole_sites;
    v_alive bigint;
    v_ended bigint[];
    v_reasons text[];
    v_unlinked bigint[] := '{}';
    v_held boolean;
    v_counts jsonb;
BEGIN
    SELECT j.customer_id, j.domain, j.removals INTO v_customer, v_domain, v_settled
    FROM public.scrape_jobs AS j WHERE j.job_id = p_job FOR NO KEY UPDATE;
    IF NOT FOUND OR (v_settled IS NOT NULL AND NOT (p_accept_losses AND (v_settled ->> 'held_back')::boolean)) THEN
        RETURN v_settled;
    END IF;
    IF v_settled IS NOT NULL THEN
        SELECT array_agg(e.site) INTO v_sites FROM jsonb_array_elements_text(v_settled -> 'whole_sites') AS e (site);
        v_sites := coalesce(v_sites, '{}');
        p_whole_sites := v_sites;
    END IF;

    -- What another job has seen since is there.
    SELECT coalesce(array_agg(g.id), '{}'), coalesce(array_agg(g.reason), '{}'),
           v_sites || coalesce(array_agg(DISTINCT g.domain), '{}') || v_domain
    INTO v_ended, v_reasons, v_sites
    FROM (
        SELECT p.id, p.domain, CASE r.skip_reason WHEN 'redirect' THEN 'moved' WHEN 'noindex' THEN 'noindex' ELSE 'gone' END
        FROM public.scrape_job_results AS r
        JOIN public.scraped_pages AS p ON p.customer_id = r.customer_id AND p.url = r.url
        WHERE r.job_id = p_job AND p.removed_at IS NULL AND p.last_seen_at < r.created_at
          AND (r.status = 'failed' AND r.http_status IN (404, 410)
               OR r.status = 'skipped' AND r.skip_reason IN ('redirect', 'noindex'))
    ) AS g (id, domain, reason);

    SELECT count(*) INTO v_alive FROM public.scraped_pages AS p
    WHERE p.customer_id = v_customer AND p.domain = ANY (v_sites) AND p.removed_at IS NULL;

    -- Beyond max_depth, and behind what was not followed, there may be pages that nobody has looked for.
    IF cardinality(p_whole_sites) > 0 AND NOT EXISTS (
        SELECT 1 FROM public.crawl_frontier AS f
        WHERE f.job_id = p_job AND f.skip_reason IN ('max_depth', 'excluded')) THEN
        IF v_settled IS NULL THEN
            UPDATE public.scraped_pages AS p
            SET missing_crawls = CASE WHEN s.missing THEN p.missing_crawls + 1 ELSE 0 END
            FROM (
                SELECT k.id, k.missing_crawls, f.url IS NULL AS missing
                FROM public.scraped_pages AS k
                LEFT JOIN public.crawl_frontier AS f ON f.job_id = p_job AND f.url = k.url AND f.found_by <> 'known'
                WHERE k.customer_id = v_customer AND k.domain = ANY (p_whole_sites) AND k.removed_at IS NULL
            ) AS s
            WHERE p.id = s.id AND (s.missing OR s.missing_crawls > 0);
        END IF;

        SELECT coalesce(array_agg(p.id), '{}') INTO v_unlinked
        FROM public.scraped_pages AS p
        WHERE p.customer_id = v_customer AND p.domain = ANY (p_whole_sites) AND p.removed_at IS NULL
          AND p.missing_crawls >= p_after AND p.id <> ALL (v_ended);
    END IF;

    v_held := NOT p_accept_losses AND cardinality(v_ended) + cardinality(v_unlinked) >= 5
        AND cardinality(v_ended) + cardinality(v_unlinked) > v_alive / 2.0;
    IF NOT v_held THEN
        UPDATE public.scraped_pages AS p
        SET removed_at = clock_timestamp(), removed_reason = e.reason
        FROM (SELECT * FROM unnest(v_ended, v_reasons) AS x (id, reason)
              UNION ALL SELECT u.id, 'unlinked' FROM unnest(v_unlinked) AS u (id)) AS e
        WHERE p.id = e.id;
    END IF;

    SELECT jsonb_build_object(
        'alive', v_alive, 'unlinked', cardinality(v_unlinked), 'held_back', v_held,
        'gone', count(*) FILTER (WHERE e.reason = 'gone'), 'moved', count(*) FILTER (WHERE e.reason = 'moved'),
        'noindex', count(*) FILTER (WHERE e.reason = 'noindex'), 'whole_sites', to_jsonb(p_whole_sites))
    INTO v_counts FROM unnest(v_reasons) AS e (reason);
    UPDATE public.scrape_jobs AS j SET removals = v_counts WHERE j.job_id = p_job;
    RETURN v_counts;
END
$$;
