-- What a page said before, what its site repeats on every page, and the HTML that it was read from.

CREATE TABLE omniops_meta.page_versions (
    page_id     bigint NOT NULL,
    customer_id uuid NOT NULL,
    valid_from  timestamptz NOT NULL,
    valid_to    timestamptz NOT NULL CHECK (valid_to >= valid_from),
    markdown    text,
    text        text NOT NULL,
    PRIMARY KEY (page_id, valid_to),
    FOREIGN KEY (page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE omniops_meta.page_versions IS 'What pages said before they changed: the last ten versions of each.';

CREATE TABLE omniops_meta.page_html (
    page_id      bigint PRIMARY KEY,
    customer_id  uuid NOT NULL,
    url          text NOT NULL,
    body         bytea NOT NULL,
    content_type text,
    charset      text,
    fetched_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    FOREIGN KEY (page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
-- zlib has compressed it already.
ALTER TABLE omniops_meta.page_html ALTER COLUMN body SET STORAGE EXTERNAL;
COMMENT ON TABLE omniops_meta.page_html IS 'Pages as they were fetched, for those customers who have them kept: zlib, until expires_at.';
-- Question: what has expired? And: all of a customer's, in the order of their pages.
CREATE INDEX page_html_expiry ON omniops_meta.page_html (expires_at);
CREATE INDEX page_html_customer ON omniops_meta.page_html (customer_id, page_id);

CREATE TABLE omniops_meta.site_blocks (
    customer_id uuid NOT NULL REFERENCES public.customers (id) ON DELETE CASCADE,
    domain      text NOT NULL CHECK (domain <> ''),
    pages       integer NOT NULL CHECK (pages > 0),
    blocks      bigint[] NOT NULL,
    learned_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (customer_id, domain)
);
COMMENT ON TABLE omniops_meta.site_blocks IS 'Hashes of the blocks that stand on most pages of a site: its navigation, banners and footers.';
