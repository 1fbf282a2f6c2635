-- Functions and triggers. Frozen with revision 0007.

-- A page whose text is another one has to be embedded again, whoever wrote it. Not on insert: a new row says so itself.
CREATE FUNCTION public.website_content_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    NEW.embedded_models := '{}';
    RETURN NEW;
END
$$;
CREATE TRIGGER website_content_changed BEFORE UPDATE OF text, markdown ON public.website_content
    FOR EACH ROW WHEN (NEW.text IS DISTINCT FROM OLD.text OR NEW.markdown IS DISTINCT FROM OLD.markdown)
    EXECUTE FUNCTION public.website_content_changed();

-- The model reads the title where a page has no headings, and the full-text vector holds it.
CREATE FUNCTION public.scraped_pages_retitled() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    UPDATE public.website_content AS w SET embedded_models = '{}', search = NULL WHERE w.page_id = NEW.id;
    RETURN NULL;
END
$$;
CREATE TRIGGER scraped_pages_retitled AFTER UPDATE OF title ON public.scraped_pages
    FOR EACH ROW WHEN (NEW.title IS DISTINCT FROM OLD.title)
    EXECUTE FUNCTION public.scraped_pages_retitled();

-- Index texts that wait for it, up to so many pages; returns how many it did. The title counts more than the text.
CREATE OR REPLACE FUNCTION public.index_website_content(max_pages integer) RETURNS bigint
LANGUAGE sql SET search_path = '' AS $$
    WITH waiting AS (
        SELECT w.page_id FROM public.website_content AS w WHERE w.search IS NULL
        ORDER BY w.page_id LIMIT max_pages FOR UPDATE SKIP LOCKED
    ), indexed AS (
        UPDATE public.website_content AS w
        -- A tsvector may not exceed 1 MB; what follows the first 200,000 characters is not indexed.
        SET search = setweight(to_tsvector(public.text_search_config(p.lang), left(coalesce(p.title, ''), 1000)), 'A')
            || to_tsvector(public.text_search_config(p.lang), left(w.text, 200000))
        FROM waiting, public.scraped_pages AS p
        WHERE w.page_id = waiting.page_id AND p.id = w.page_id
        RETURNING w.customer_id, public.text_search_config(p.lang)::text AS configuration
    ), configurations AS (
        INSERT INTO omniops_meta.search_configurations (customer_id, configuration)
        SELECT DISTINCT i.customer_id, i.configuration FROM indexed AS i
        ORDER BY i.customer_id, i.configuration
        ON CONFLICT DO NOTHING
    )
    SELECT count(*) FROM indexed
$$;

-- What a person typed, as it is looked for in the transaction's customer's pages: read in each configuration that they
-- were indexed with. With p_any one of the words is enough. Null where nothing is left of it (stop words alone).
CREATE FUNCTION public.search_query(p_query text, p_any boolean) RETURNS tsquery
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    v_configuration text;
    v_one tsquery;
    v_all tsquery;
BEGIN
    FOR v_configuration IN
        SELECT c.configuration FROM omniops_meta.search_configurations AS c
        WHERE c.customer_id = public.current_customer_id() ORDER BY c.configuration
    LOOP
        v_one := websearch_to_tsquery(v_configuration::regconfig, p_query);
        CONTINUE WHEN numnode(v_one) = 0;
        -- Words that shall not be there make no sense among words of which one is enough.
        IF p_any AND strpos(v_one::text, '!') = 0 THEN
            v_one := replace(replace(v_one::text, ' & ', ' | '), ' <-> ', ' | ')::tsquery;
        END IF;
        v_all := CASE WHEN v_all IS NULL OR v_all = v_one THEN v_one ELSE v_all || v_one END;
    END LOOP;
    RETURN v_all;
END
$$;

-- The pages of the transaction's customer that contain these words, best first.
--   With its owner's rights: a match of full text could tell about rows that it reads and does not give back, so
--   under row-level security Postgres reads all of a customer's pages before it matches, and never the full-text
--   index. The customer is the context's and no argument: nobody can ask for another's, and without a context there
--   is none.
CREATE FUNCTION public.search_pages(p_query tsquery, p_domain text, p_limit integer)
RETURNS TABLE (page_id bigint, rank real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    v_customer uuid := public.current_customer_id();
BEGIN
    IF v_customer IS NULL OR p_query IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT w.page_id, ts_rank(w.search, p_query, 1) AS rank
        FROM public.website_content AS w JOIN public.scraped_pages AS p ON p.id = w.page_id
        WHERE w.customer_id = v_customer AND w.search @@ p_query AND p.customer_id = v_customer
          AND p.removed_at IS NULL AND (p_domain IS NULL OR p.domain = p_domain)
        ORDER BY 2 DESC, 1
        LIMIT least(greatest(p_limit, 0), 1000);
END
$$;
