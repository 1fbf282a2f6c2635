-- Back to revision 0006.
DROP FUNCTION public.search_pages;
DROP FUNCTION public.search_query;
DROP TRIGGER scraped_pages_retitled ON public.scraped_pages;
DROP FUNCTION public.scraped_pages_retitled;
DROP TRIGGER website_content_changed ON public.website_content;
DROP FUNCTION public.website_content_changed;
DROP FUNCTION public.index_website_content;
DROP TABLE omniops_meta.search_configurations;
DROP INDEX public.scraped_pages_removed;
-- Indexes of further models hang on these columns, and go with them or with the change of type.
ALTER TABLE public.website_content DROP COLUMN embedded_models;
DO $$
DECLARE v_index regclass;
BEGIN
    FOR v_index IN
        SELECT x.indexrelid FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
        WHERE x.indrelid = 'public.page_embeddings'::regclass AND c.relname LIKE 'page\_embeddings\_nearest%'
    LOOP
        EXECUTE format('DROP INDEX %s', v_index);
    END LOOP;
END
$$;
DROP INDEX public.page_embeddings_customer;
ALTER TABLE public.page_embeddings NO FORCE ROW LEVEL SECURITY;
ALTER TABLE public.page_embeddings DISABLE ROW LEVEL SECURITY;
DELETE FROM public.page_embeddings WHERE vector_dims(embedding) <> 384;
ALTER TABLE public.page_embeddings ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.page_embeddings FORCE ROW LEVEL SECURITY;
ALTER TABLE public.page_embeddings DROP COLUMN heading;
ALTER TABLE public.page_embeddings ALTER COLUMN embedding TYPE halfvec(384);
COMMENT ON COLUMN public.page_embeddings.embedding IS NULL;
COMMENT ON COLUMN public.page_embeddings.chunk_hash IS 'Of the chunk''s text: what has not changed is not embedded again.';
CREATE INDEX page_embeddings_nearest ON public.page_embeddings USING hnsw (embedding halfvec_cosine_ops);
CREATE INDEX page_embeddings_customer ON public.page_embeddings (customer_id);
DROP TABLE omniops_meta.embedding_models;
