-- What describes a page's text stays with the text; what pages say of their publication is kept; and a page that was away
-- and is back has two versions, with a gap between them.

ALTER TABLE public.scraped_pages ADD COLUMN published_at timestamptz;
COMMENT ON COLUMN public.scraped_pages.published_at IS 'As the page says; midnight UTC where it gives a day alone.';
COMMENT ON COLUMN public.scraped_pages.content_hash IS 'Of the normalised main text that is kept; of the page''s bytes where no text is.';
COMMENT ON COLUMN public.website_content.updated_at IS 'Since when the page says so, by our visits: it said something else before, or was away.';

ALTER TABLE omniops_meta.page_html ADD COLUMN source_hash text;
COMMENT ON COLUMN omniops_meta.page_html.source_hash IS 'The page''s when it was fetched: with another one by now the page has been read since, and this is not what it was read from.';

-- Put down what a page said until p_to; its last ten versions are kept.
CREATE FUNCTION public.put_down_page_version(
    p_page bigint, p_customer uuid, p_from timestamptz, p_to timestamptz, p_markdown text, p_text text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    INSERT INTO omniops_meta.page_versions (page_id, customer_id, valid_from, valid_to, markdown, text)
    VALUES (p_page, p_customer, p_from, greatest(p_from, p_to), p_markdown, p_text)
    ON CONFLICT (page_id, valid_to) DO NOTHING;
    DELETE FROM omniops_meta.page_versions AS v
    WHERE v.page_id = p_page
      AND v.valid_to < (SELECT k.valid_to FROM omniops_meta.page_versions AS k WHERE k.page_id = p_page
                        ORDER BY k.valid_to DESC OFFSET 9 LIMIT 1);
END
$$;

-- As in 0010, but for texts that begin anew: with the same updated_at a text is only written otherwise.
CREATE OR REPLACE FUNCTION public.keep_page_version() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF coalesce(current_setting('omniops.same_page', true), '') <> 'on' THEN
        PERFORM public.put_down_page_version(
            OLD.page_id, OLD.customer_id, OLD.updated_at, NEW.updated_at, OLD.markdown, OLD.text);
    END IF;
    RETURN NULL;
END
$$;
DROP TRIGGER website_content_versions ON public.website_content;
CREATE TRIGGER website_content_versions AFTER UPDATE OF text ON public.website_content
    FOR EACH ROW WHEN (OLD.text IS DISTINCT FROM NEW.text AND OLD.updated_at IS DISTINCT FROM NEW.updated_at)
    EXECUTE FUNCTION public.keep_page_version();

-- As in 0007, and: a page in another language is indexed by that one's rules.
CREATE OR REPLACE FUNCTION public.scraped_pages_retitled() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    UPDATE public.website_content AS w
    SET search = NULL,
        embedded_models = CASE WHEN NEW.title IS DISTINCT FROM OLD.title THEN '{}' ELSE w.embedded_models END
    WHERE w.page_id = NEW.id;
    RETURN NULL;
END
$$;
DROP TRIGGER scraped_pages_retitled ON public.scraped_pages;
CREATE TRIGGER scraped_pages_retitled AFTER UPDATE OF title, lang ON public.scraped_pages
    FOR EACH ROW WHEN (NEW.title IS DISTINCT FROM OLD.title OR NEW.lang IS DISTINCT FROM OLD.lang)
    EXECUTE FUNCTION public.scraped_pages_retitled();

-- As in 0005, and:
--   A page's hashes are those of the text that is kept of it. A cosmetic change leaves both, however many there are:
--   the next one is compared with the text that is kept.
--   website_content.updated_at is since when the page says what it says, without having been away.
DROP FUNCTION public.crawl_commit_batch;
CREATE FUNCTION public.crawl_commit_batch(
    p_worker bigint, p_lease_seconds double precision, p_own_links integer, p_mark_linked boolean,
    link_hash bigint[], link_url text[], link_depth integer[], link_skip text[],
    r_hash bigint[], r_url text[], r_depth integer[], r_adopted boolean[], r_status text[],
    r_http_status integer[], r_ms integer[], r_error text[], r_skip text[], r_content_hash text[],
    r_tries integer[], r_bytes bigint[], r_redirected_to text[], r_repairs integer[],
    seen_hash bigint[], seen_url text[], seen_etag text[], seen_last_modified text[],
    c_hash bigint[], c_url text[], c_domain text[], c_title text[], c_description text[], c_canonical_url text[], c_lang text[],
    c_published_at timestamptz[], c_http_status integer[], c_etag text[], c_last_modified text[], c_source_hash text[], c_content_hash text[],
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

    -- Pages that were away: what they said ended when they went, and what they say begins now.
    IF EXISTS (SELECT 1 FROM public.scraped_pages AS p
               WHERE p.customer_id = v_customer AND p.removed_at IS NOT NULL) THEN
        WITH back AS MATERIALIZED (
            SELECT p.id, p.removed_at
            FROM unnest(c_hash || seen_hash, c_url || seen_url) AS s (hash, url)
            JOIN unnest(acknowledged) AS a (hash) ON a.hash = s.hash
            JOIN public.scraped_pages AS p ON p.customer_id = v_customer AND p.url = s.url
            WHERE p.removed_at IS NOT NULL
            ORDER BY p.url FOR NO KEY UPDATE OF p
        ), ended AS MATERIALIZED (
            SELECT w.page_id, public.put_down_page_version(
                w.page_id, w.customer_id, w.updated_at, back.removed_at, w.markdown, w.text)
            FROM back JOIN public.website_content AS w ON w.page_id = back.id
        )
        UPDATE public.website_content AS w SET updated_at = greatest(w.updated_at, v_now)
        FROM ended WHERE w.page_id = ended.page_id;
    END IF;

    IF cardinality(c_hash) > 0 THEN
        WITH page AS (
            INSERT INTO public.scraped_pages AS p (
                customer_id, domain, url, title, description, canonical_url, lang, published_at, http_status, etag,
                last_modified, source_hash, content_hash, folded_hash, simhash, last_job_id, first_seen_at,
                last_seen_at, last_changed_at, next_check_at)
            SELECT v_customer, c.domain, c.url, c.title, c.description, c.canonical_url, c.lang, c.published_at,
                   c.http_status, c.etag, c.last_modified, c.source_hash, c.content_hash, c.folded_hash, c.simhash,
                   v_job, v_now, v_now, v_now, v_now + interval '1 day'
            FROM unnest(c_hash, c_url, c_domain, c_title, c_description, c_canonical_url, c_lang, c_published_at,
                        c_http_status, c_etag, c_last_modified, c_source_hash, c_content_hash, c_folded_hash, c_simhash)
                     AS c (hash, url, domain, title, description, canonical_url, lang, published_at, http_status, etag,
                           last_modified, source_hash, content_hash, folded_hash, simhash)
            JOIN unnest(acknowledged) AS a (hash) ON a.hash = c.hash
            ORDER BY c.url
            ON CONFLICT (customer_id, url) DO UPDATE SET
                title = EXCLUDED.title, description = EXCLUDED.description,
                canonical_url = EXCLUDED.canonical_url, lang = EXCLUDED.lang, http_status = EXCLUDED.http_status,
                last_seen_at = v_now, removed_at = NULL, removed_reason = NULL,
                missing_crawls = CASE WHEN p.removed_at IS NULL THEN p.missing_crawls ELSE 0 END,
                last_job_id = EXCLUDED.last_job_id,
                -- What describes the text stays with the text: where a change is cosmetic, and where this crawl keeps
                -- no texts. In the latter case the next one that does has to ask as if this one had not been.
                (published_at, etag, last_modified, source_hash, content_hash, folded_hash, simhash, last_changed_at,
                 check_interval, next_check_at) = (
                    SELECT CASE WHEN d.no_text THEN p.published_at ELSE EXCLUDED.published_at END,
                           CASE WHEN d.no_text THEN p.etag ELSE EXCLUDED.etag END,
                           CASE WHEN d.no_text THEN p.last_modified ELSE EXCLUDED.last_modified END,
                           CASE WHEN d.no_text THEN p.source_hash ELSE EXCLUDED.source_hash END,
                           CASE WHEN d.no_text OR d.cosmetic THEN p.content_hash ELSE EXCLUDED.content_hash END,
                           CASE WHEN d.no_text OR d.cosmetic THEN p.folded_hash ELSE EXCLUDED.folded_hash END,
                           CASE WHEN d.no_text OR d.cosmetic THEN p.simhash ELSE EXCLUDED.simhash END,
                           CASE WHEN d.changed THEN v_now ELSE p.last_changed_at END,
                           public.next_check_interval(p.check_interval, d.changed),
                           v_now + public.next_check_interval(p.check_interval, d.changed)
                    FROM (
                        SELECT n.no_text, n.changed,
                               NOT n.changed AND p.content_hash IS DISTINCT FROM EXCLUDED.content_hash
                               AND EXISTS (SELECT 1 FROM public.website_content AS k WHERE k.page_id = p.id) AS cosmetic
                        FROM (
                            SELECT p.folded_hash IS NOT NULL AND EXCLUDED.folded_hash IS NULL AS no_text,
                                   (p.folded_hash IS NULL OR EXCLUDED.folded_hash IS NOT NULL)
                                   AND public.page_has_changed(
                                       p.content_hash, EXCLUDED.content_hash, p.folded_hash, EXCLUDED.folded_hash)
                                   AS changed
                        ) AS n
                    ) AS d)
            RETURNING p.id, p.url, p.content_hash, p.last_changed_at, p.last_changed_at = v_now AS changed
        ), content AS (
            -- Full-text indexing costs more than all the rest of the commit; it follows in a transaction of its own.
            -- A text of which the page has not taken the hash over is not taken over either. One with the same hash may
            -- have another markdown.
            INSERT INTO public.website_content AS w (page_id, customer_id, text, markdown, word_count, updated_at)
            SELECT page.id, v_customer, c.text, c.markdown, c.word_count, page.last_changed_at
            FROM page JOIN unnest(c_url, c_content_hash, c_text, c_markdown, c_word_count)
                AS c (url, content_hash, text, markdown, word_count) ON c.url = page.url
            WHERE c.text IS NOT NULL AND page.content_hash IS NOT DISTINCT FROM c.content_hash
            ON CONFLICT (page_id) DO UPDATE SET
                text = EXCLUDED.text, markdown = EXCLUDED.markdown, word_count = EXCLUDED.word_count, search = NULL,
                updated_at = greatest(w.updated_at, EXCLUDED.updated_at)
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
