-- Vectors of several models in one column, and what each page has been embedded with. Frozen with revision 0007.

-- --- models ----------------------------------------------------------------------------------------------------

CREATE TABLE omniops_meta.embedding_models (
    model      text PRIMARY KEY CHECK (model <> '' AND octet_length(model) <= 200),
    provider   text NOT NULL,
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4000),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE omniops_meta.embedding_models IS 'Models that vectors were made with. A model keeps its width for good.';

-- --- vectors ---------------------------------------------------------------------------------------------------

-- One index cannot hold two models, and an index has one width: each model has an index of its own. The one of the
-- embedded model is made here, those of others by `omniops embed --prepare`.
DROP INDEX public.page_embeddings_nearest;
ALTER TABLE public.page_embeddings ALTER COLUMN embedding TYPE halfvec;
ALTER TABLE public.page_embeddings ADD COLUMN heading text NOT NULL DEFAULT '';
COMMENT ON COLUMN public.page_embeddings.heading IS 'The headings that the chunk stands under; the model reads them too.';
COMMENT ON COLUMN public.page_embeddings.embedding IS 'As wide as its model says in omniops_meta.embedding_models.';
COMMENT ON COLUMN public.page_embeddings.chunk_hash IS 'Of what the model reads, headings and text: what has not changed is not embedded again.';
CREATE INDEX page_embeddings_nearest ON public.page_embeddings USING hnsw ((embedding::halfvec(384)) halfvec_cosine_ops)
    WHERE model = 'all-MiniLM-L6-v2-int8';
DROP INDEX public.page_embeddings_customer;
CREATE INDEX page_embeddings_customer ON public.page_embeddings (customer_id, model);

-- --- what is missing -------------------------------------------------------------------------------------------

ALTER TABLE public.website_content ADD COLUMN embedded_models text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN public.website_content.embedded_models IS 'Models whose vectors are of the text as it is now.';
CREATE INDEX website_content_unembedded ON public.website_content (customer_id, page_id)
    WHERE NOT embedded_models @> ARRAY['all-MiniLM-L6-v2-int8'];
CREATE INDEX scraped_pages_removed ON public.scraped_pages (customer_id, id) WHERE removed_at IS NOT NULL;

-- --- full text -------------------------------------------------------------------------------------------------

CREATE TABLE omniops_meta.search_configurations (
    customer_id   uuid NOT NULL REFERENCES public.customers (id) ON DELETE CASCADE,
    configuration text NOT NULL,
    PRIMARY KEY (customer_id, configuration)
);
COMMENT ON TABLE omniops_meta.search_configurations IS 'Text-search configurations that a customer''s pages were indexed with: a question is read in each of them.';

-- Those that were indexed before. Row-level security is forced on the owner too, and is set again after the migration.
ALTER TABLE public.website_content NO FORCE ROW LEVEL SECURITY;
ALTER TABLE public.scraped_pages NO FORCE ROW LEVEL SECURITY;
INSERT INTO omniops_meta.search_configurations (customer_id, configuration)
SELECT DISTINCT w.customer_id, public.text_search_config(p.lang)::text
FROM public.website_content AS w JOIN public.scraped_pages AS p ON p.id = w.page_id
WHERE w.search IS NOT NULL;
ALTER TABLE public.website_content FORCE ROW LEVEL SECURITY;
ALTER TABLE public.scraped_pages FORCE ROW LEVEL SECURITY;
