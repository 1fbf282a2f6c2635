-- Full text ranks a bounded number of pages. Frozen with this revision.

-- As in 0007, but a word that stands on thousands of a customer's pages does not cost thousands of ranks, each of which
-- fetches a page's vector from where long values are kept. Ranked are 400 pages: those with the words in the title first,
-- since the title weighs most, then the short ones, since the rank is by the length. Who has fewer hits sees no difference.
CREATE OR REPLACE FUNCTION public.search_pages(p_query tsquery, p_domain text, p_limit integer)
RETURNS TABLE (page_id bigint, rank real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    v_customer uuid := public.current_customer_id();
    v_limit integer := least(greatest(p_limit, 0), 1000);
    v_titles text[];
BEGIN
    IF v_customer IS NULL OR p_query IS NULL THEN
        RETURN;
    END IF;
    v_titles := ARRAY(SELECT '%' || o.word[1] || '%' FROM regexp_matches(p_query::text, '''([^'']+)''', 'g') AS o (word));
    RETURN QUERY
        SELECT c.page_id, ts_rank(c.search, p_query, 1) AS rank
        FROM (
            SELECT w.page_id, w.search
            FROM public.website_content AS w JOIN public.scraped_pages AS p ON p.id = w.page_id
            WHERE w.customer_id = v_customer AND w.search @@ p_query AND p.customer_id = v_customer
              AND p.removed_at IS NULL AND (p_domain IS NULL OR p.domain = p_domain)
            ORDER BY coalesce(lower(p.title) LIKE ANY (v_titles), false) DESC, w.word_count, w.page_id
            LIMIT greatest(400, 2 * v_limit)
        ) AS c
        ORDER BY 2 DESC, 1
        LIMIT v_limit;
END
$$;
