-- Vectors were paid for: those of a page that is not embedded whole yet wait here for its other ones.

CREATE TABLE omniops_meta.waiting_vectors (
    page_id     bigint NOT NULL,
    customer_id uuid NOT NULL,
    model       text NOT NULL,
    chunk_hash  text NOT NULL,
    embedding   halfvec NOT NULL,
    PRIMARY KEY (page_id, model, chunk_hash),
    FOREIGN KEY (page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE omniops_meta.waiting_vectors IS 'Vectors of pages that a model has not embedded whole yet; no search sees them.';
