-- Full text: what a customer's pages are found by is in one index, and dotted names are found by their parts.
-- Frozen with this revision.

-- The title's words stand in the row itself, where the vector of all words is fetched from beside it.
ALTER TABLE public.website_content ADD COLUMN title_search tsvector;
COMMENT ON COLUMN public.website_content.title_search IS 'The words of the title, as in `search`. Null: the text waits to be indexed as texts now are.';

-- The customer is a key of the index: a word that stands on everybody's pages costs those of one customer.
DROP INDEX public.website_content_search;
CREATE INDEX website_content_search ON public.website_content USING gin ((ARRAY[customer_id]), search) WITH (fastupdate = on);

-- New texts, which are not found yet, before those that are found as they were indexed before.
DROP INDEX public.website_content_unindexed;
CREATE INDEX website_content_unindexed ON public.website_content ((search IS NOT NULL), page_id)
    WHERE search IS NULL OR title_search IS NULL;

-- Index texts that wait for it, up to so many pages; returns how many it did. The title counts more than the text.
--   A dot before two letters and a slash are spaces: Postgres makes one word of os.path.join, config.yaml or
--   input/output, so that none of its parts is found. `search_words.py` reads questions so.
CREATE OR REPLACE FUNCTION public.index_website_content(max_pages integer) RETURNS bigint
LANGUAGE sql SET search_path = '' AS $$
    WITH waiting AS (
        SELECT w.page_id FROM public.website_content AS w WHERE w.search IS NULL OR w.title_search IS NULL
        ORDER BY (w.search IS NOT NULL), w.page_id LIMIT max_pages FOR UPDATE SKIP LOCKED
    ), indexed AS (
        UPDATE public.website_content AS w
        -- A tsvector may not exceed 1 MB; what follows the first 200,000 characters is not indexed.
        SET title_search = t.title,
            search = t.title || to_tsvector(t.configuration, regexp_replace(left(w.text, 200000), '\.(?=[[:alpha:]_]\w)|/', ' ', 'g'))
        FROM waiting, public.scraped_pages AS p, LATERAL (
            SELECT c.configuration, setweight(to_tsvector(
                c.configuration, regexp_replace(left(coalesce(p.title, ''), 1000), '\.(?=[[:alpha:]_]\w)|/', ' ', 'g')
            ), 'A') AS title
            FROM (SELECT public.text_search_config(p.lang) AS configuration) AS c
        ) AS t
        WHERE w.page_id = waiting.page_id AND p.id = w.page_id
        RETURNING w.customer_id, t.configuration::text AS configuration
    ), configurations AS (
        INSERT INTO omniops_meta.search_configurations (customer_id, configuration)
        SELECT DISTINCT i.customer_id, i.configuration FROM indexed AS i
        ORDER BY i.customer_id, i.configuration
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) FROM indexed
$$;

-- As in 0009, but nothing is fetched of pages that are not ranked. They are chosen by what stands in their rows: first
-- those with most of the words in the title, then the short ones. Of 200 that are there and of the website, the vector of
-- words is fetched and ranked.
CREATE OR REPLACE FUNCTION public.search_pages(p_query tsquery, p_domain text, p_limit integer)
RETURNS TABLE (page_id bigint, rank real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    v_customer uuid := public.current_customer_id();
    v_limit integer := least(greatest(p_limit, 0), 1000);
    v_any tsquery := p_query;
BEGIN
    IF v_customer IS NULL OR p_query IS NULL THEN
        RETURN;
    END IF;
    IF strpos(p_query::text, '!') = 0 THEN
        v_any := regexp_replace(p_query::text, ' (&|<->|<[0-9]+>) ', ' | ', 'g')::tsquery;
    END IF;
    RETURN QUERY
        WITH hits AS MATERIALIZED (
            SELECT w.page_id FROM public.website_content AS w
            WHERE ARRAY[w.customer_id] @> ARRAY[v_customer] AND w.search @@ p_query
            ORDER BY ts_rank(w.title_search, v_any) DESC NULLS LAST, w.word_count, w.page_id
        ), chosen AS MATERIALIZED (
            -- In the order of the hits, and only until there are enough.
            SELECT h.page_id FROM hits AS h
            WHERE (SELECT p.removed_at IS NULL AND (p_domain IS NULL OR p.domain = p_domain)
                   FROM public.scraped_pages AS p WHERE p.id = h.page_id AND p.customer_id = v_customer)
            LIMIT greatest(200, 2 * v_limit)
        )
        SELECT c.page_id, ts_rank(w.search, p_query, 1) AS rank
        FROM chosen AS c JOIN public.website_content AS w ON w.page_id = c.page_id
        ORDER BY 2 DESC, 1
        LIMIT v_limit;
END
$$;
