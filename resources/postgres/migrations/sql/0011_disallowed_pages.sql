-- A page that robots.txt forbids since it was read is taken away as one that asks not to be found is.

ALTER TABLE public.scraped_pages DROP CONSTRAINT scraped_pages_removed_reason_check;
ALTER TABLE public.scraped_pages ADD CONSTRAINT scraped_pages_removed_reason_check
    CHECK (removed_reason IN ('gone', 'moved', 'noindex', 'disallowed', 'unlinked'));
COMMENT ON COLUMN public.scraped_pages.removed_reason IS 'gone: 404 or 410; moved: a redirect; noindex: not wanted to be found; disallowed: forbidden by robots.txt; unlinked: nothing led to it any more.';

-- What becomes of pages that a job did not find, decided once, at its end.
--   gone: they answered 404 or 410. moved: they answered with a redirect to another page. noindex: their owner does not
--   want them to be found. disallowed: robots.txt forbids them by now; one that could not be read forbids fetching too,
--   but says nothing of the pages: its results have a message, and of its site nothing is removed. unlinked: whole
--   crawls of their site, p_after of them in a row, found no link to them and no sitemap entry. p_whole_sites: sites
--   that the job went through from their root, with nothing left to fetch.
--   Where more than half of the pages would go, and five or more, none does: that is more often a broken site than a
--   meant one, and somebody is told. p_accept_losses: somebody looked, and it is meant.
-- Returns the counts, which stand in scrape_jobs.removals from then on; a second call changes nothing.
CREATE OR REPLACE FUNCTION public.crawl_settle_pages(
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
    ELSE
        p_whole_sites := ARRAY(
            SELECT w.site FROM unnest(p_whole_sites) AS w (site)
            WHERE w.site <> ALL (ARRAY(
                SELECT DISTINCT split_part(r.url, '/', 3) FROM public.scrape_job_results AS r
                WHERE r.job_id = p_job AND r.skip_reason = 'robots_txt' AND r.error_message IS NOT NULL)));
        v_sites := p_whole_sites;
    END IF;

    -- What another job has seen since is there.
    SELECT coalesce(array_agg(g.id), '{}'), coalesce(array_agg(g.reason), '{}'),
           v_sites || coalesce(array_agg(DISTINCT g.domain), '{}') || v_domain
    INTO v_ended, v_reasons, v_sites
    FROM (
        SELECT p.id, p.domain,
               CASE WHEN r.skip_reason = 'redirect' THEN 'moved'
                    WHEN r.skip_reason = 'noindex' THEN 'noindex'
                    -- It leads to a page that is forbidden.
                    WHEN r.skip_reason = 'robots_txt' AND r.redirected_to IS NOT NULL THEN 'moved'
                    WHEN r.skip_reason = 'robots_txt' THEN 'disallowed'
                    ELSE 'gone' END
        FROM public.scrape_job_results AS r
        JOIN public.scraped_pages AS p ON p.customer_id = r.customer_id AND p.url = r.url
        WHERE r.job_id = p_job AND p.removed_at IS NULL AND p.last_seen_at < r.created_at
          AND (r.status = 'failed' AND r.http_status IN (404, 410)
               OR r.status = 'skipped' AND r.skip_reason IN ('redirect', 'noindex')
               OR r.status = 'skipped' AND r.skip_reason = 'robots_txt' AND r.error_message IS NULL)
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
        'noindex', count(*) FILTER (WHERE e.reason = 'noindex'),
        'disallowed', count(*) FILTER (WHERE e.reason = 'disallowed'), 'whole_sites', to_jsonb(p_whole_sites))
    INTO v_counts FROM unnest(v_reasons) AS e (reason);
    UPDATE public.scrape_jobs AS j SET removals = v_counts WHERE j.job_id = p_job;
    RETURN v_counts;
END
$$;
