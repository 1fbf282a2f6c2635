-- Tables that a crawl needs. Frozen with revision 0001: a later change is a later revision.

CREATE TABLE public.customers (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name       text NOT NULL CHECK (name <> ''),
    slug       text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE public.customers IS 'Tenants: the companies whose websites are read.';

CREATE TABLE public.customer_configs (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id uuid NOT NULL REFERENCES public.customers (id) ON DELETE CASCADE,
    domain      text NOT NULL CHECK (domain <> ''),
    settings    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object'),
    credentials bytea,
    enabled     boolean NOT NULL DEFAULT true,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (customer_id, domain)
);
COMMENT ON TABLE public.customer_configs IS 'How each website of a customer is crawled: limits, schedule, globs, retention.';
COMMENT ON COLUMN public.customer_configs.credentials IS 'Encrypted before it arrives here; never plain text.';

CREATE TABLE public.scrape_jobs (
    job_id         text PRIMARY KEY CHECK (job_id <> '' AND octet_length(job_id) <= 200),
    customer_id    uuid NOT NULL REFERENCES public.customers (id) ON DELETE CASCADE,
    domain         text NOT NULL CHECK (domain <> ''),
    job_type       text NOT NULL CHECK (job_type IN ('full_crawl', 'incremental', 'sitemap', 'single_page')),
    status         text NOT NULL DEFAULT 'queued'
                   CHECK (status IN ('queued', 'running', 'paused', 'completed', 'failed', 'cancelled')),
    config         jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    metadata       jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at     timestamptz NOT NULL DEFAULT now(),
    started_at     timestamptz,
    completed_at   timestamptz,
    paused_at      timestamptz,
    paused_seconds double precision NOT NULL DEFAULT 0 CHECK (paused_seconds >= 0),
    finish_reason  text,
    error_message  text,
    run_id         text,
    -- Children carry customer_id too; this key lets their foreign keys prove that it is their job's.
    UNIQUE (job_id, customer_id)
);
COMMENT ON TABLE public.scrape_jobs IS 'Audit trail: one row for each crawl, from its creation to its end.';
-- Question: what did this customer have crawled lately?
CREATE INDEX scrape_jobs_customer_created ON public.scrape_jobs (customer_id, created_at DESC);
-- Question: which jobs are waiting or under way? (Finished jobs are most of the table and stay out.)
CREATE INDEX scrape_jobs_unfinished ON public.scrape_jobs (status, created_at)
    WHERE status IN ('queued', 'running', 'paused');

CREATE TABLE public.scrape_job_results (
    job_id             text NOT NULL,
    customer_id        uuid NOT NULL,
    url                text NOT NULL CHECK (url <> '' AND octet_length(url) <= 2048),
    status             text NOT NULL CHECK (status IN ('success', 'failed', 'skipped')),
    http_status        smallint CHECK (http_status BETWEEN 100 AND 999),
    processing_time_ms integer CHECK (processing_time_ms >= 0),
    error_message      text,
    skip_reason        text,
    content_hash       text,
    depth              smallint CHECK (depth >= 0),
    tries              smallint CHECK (tries >= 0),
    bytes              bigint CHECK (bytes >= 0),
    redirected_to      text,
    repairs            integer NOT NULL DEFAULT 0 CHECK (repairs >= 0),
    created_at         timestamptz NOT NULL DEFAULT now(),
    -- Question: all results of a job, page by page (keyset on url); and: one row for each url of a job.
    PRIMARY KEY (job_id, url),
    FOREIGN KEY (job_id, customer_id) REFERENCES public.scrape_jobs (job_id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE public.scrape_job_results IS 'Audit trail: one row for each url of a job, with its outcome.';
COMMENT ON COLUMN public.scrape_job_results.processing_time_ms IS 'From the first byte sent to the page being read, the last try only.';
COMMENT ON COLUMN public.scrape_job_results.bytes IS 'Body as it came over the wire, before decompression.';
COMMENT ON COLUMN public.scrape_job_results.repairs IS 'Malformed links, undecodable bytes, NULs and half surrogate pairs that were cleaned.';

CREATE TABLE public.scrape_job_stats (
    job_id                   text PRIMARY KEY,
    customer_id              uuid NOT NULL,
    total_pages              bigint NOT NULL DEFAULT 0 CHECK (total_pages >= 0),
    successful_pages         bigint NOT NULL DEFAULT 0 CHECK (successful_pages >= 0),
    failed_pages             bigint NOT NULL DEFAULT 0 CHECK (failed_pages >= 0),
    skipped_pages            bigint NOT NULL DEFAULT 0 CHECK (skipped_pages >= 0),
    avg_processing_time_ms   integer CHECK (avg_processing_time_ms >= 0),
    pages_per_second         numeric(12, 3) CHECK (pages_per_second >= 0),
    updated_at               timestamptz NOT NULL DEFAULT now(),
    timed_pages              bigint NOT NULL DEFAULT 0 CHECK (timed_pages >= 0),
    total_processing_time_ms bigint NOT NULL DEFAULT 0 CHECK (total_processing_time_ms >= 0),
    CHECK (total_pages = successful_pages + failed_pages + skipped_pages),
    FOREIGN KEY (job_id, customer_id) REFERENCES public.scrape_jobs (job_id, customer_id) ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON TABLE public.scrape_job_stats IS 'Counters of a job, kept by a trigger on scrape_job_results; nothing else writes it.';

CREATE TABLE public.scraped_pages (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id     uuid NOT NULL REFERENCES public.customers (id) ON DELETE CASCADE,
    domain          text NOT NULL CHECK (domain <> ''),
    url             text NOT NULL CHECK (url <> '' AND octet_length(url) <= 2048),
    title           text,
    description     text,
    canonical_url   text,
    lang            text,
    http_status     smallint CHECK (http_status BETWEEN 100 AND 999),
    etag            text,
    last_modified   text,
    content_hash    text,
    first_seen_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at    timestamptz NOT NULL DEFAULT now(),
    last_changed_at timestamptz NOT NULL DEFAULT now(),
    removed_at      timestamptz,
    last_job_id     text,
    UNIQUE (customer_id, url),
    UNIQUE (id, customer_id)
);
COMMENT ON TABLE public.scraped_pages IS 'Content: every page that was read, one row for each url of a customer.';
COMMENT ON COLUMN public.scraped_pages.last_job_id IS 'The job that saw it last; jobs are removed after 90 days, so this is no foreign key.';

CREATE TABLE public.website_content (
    page_id     bigint PRIMARY KEY,
    customer_id uuid NOT NULL,
    markdown    text,
    text        text NOT NULL DEFAULT '',
    word_count  integer NOT NULL DEFAULT 0 CHECK (word_count >= 0),
    search      tsvector,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE public.website_content IS 'Content: what a page says, and its full-text index.';
COMMENT ON COLUMN public.website_content.search IS 'Null until the text is indexed, some moments after it was stored.';
-- Compressing a vector costs a tenth of making it, and every search would pay for the opposite.
ALTER TABLE public.website_content ALTER COLUMN search SET STORAGE EXTERNAL;
-- Question: which texts wait to be indexed?
CREATE INDEX website_content_unindexed ON public.website_content (page_id) WHERE search IS NULL;
-- Question: which pages contain these words? fastupdate gathers entries outside the commit that adds a page.
CREATE INDEX website_content_search ON public.website_content USING gin (search) WITH (fastupdate = on);

CREATE TABLE public.crawl_frontier (
    job_id      text NOT NULL,
    url_hash    bigint NOT NULL,
    customer_id uuid NOT NULL,
    url         text NOT NULL CHECK (url <> '' AND octet_length(url) <= 2048),
    depth       integer NOT NULL CHECK (depth >= 0),
    position    bigint GENERATED ALWAYS AS IDENTITY,
    worker_id   bigint,
    done        boolean NOT NULL DEFAULT false,
    skip_reason text,
    PRIMARY KEY (job_id, url_hash),
    FOREIGN KEY (job_id, customer_id) REFERENCES public.scrape_jobs (job_id, customer_id) ON DELETE CASCADE
) WITH (fillfactor = 70);
COMMENT ON TABLE public.crawl_frontier IS 'Urls that a job knows: waiting, leased by a worker, done, or not to be followed.';
COMMENT ON COLUMN public.crawl_frontier.url_hash IS 'BLAKE2b-64 of the url: a key of eight bytes, also what workers remember.';
COMMENT ON COLUMN public.crawl_frontier.worker_id IS 'The worker that holds or has finished it; its lease is one row of omniops_meta.crawl_workers.';
-- Question: what is to be fetched next, breadth first? `done` stands in no index, so that an acknowledgement
-- can be a heap-only update; a finished url keeps its worker and is therefore not in here.
CREATE INDEX crawl_frontier_claimable ON public.crawl_frontier (job_id, depth, position)
    WHERE worker_id IS NULL AND skip_reason IS NULL;

-- One row for each live worker: lease, heartbeat and fencing token in one (a commit renews it, a takeover
-- deletes it, and a worker without a row is refused). Not a business table, so not in `public`.
CREATE TABLE omniops_meta.crawl_workers (
    worker_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       text NOT NULL,
    customer_id  uuid NOT NULL,
    machine      text NOT NULL,
    pid          integer NOT NULL,
    pid_started  double precision NOT NULL,
    run_id       text,
    pages_left   bigint NOT NULL DEFAULT 0 CHECK (pages_left >= 0),
    busy         boolean NOT NULL DEFAULT true,
    started_at   timestamptz NOT NULL DEFAULT now(),
    leased_until timestamptz NOT NULL,
    FOREIGN KEY (job_id, customer_id) REFERENCES public.scrape_jobs (job_id, customer_id) ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON COLUMN omniops_meta.crawl_workers.pages_left IS 'Part of max_pages reserved by this worker and not yet used.';
COMMENT ON COLUMN omniops_meta.crawl_workers.busy IS 'False while it waits for others to find it something: when all do, the job is finished.';
COMMENT ON COLUMN omniops_meta.crawl_workers.machine IS 'Boot and process namespace: where its pid means something.';
-- Question: who works on this job?
CREATE INDEX crawl_workers_job ON omniops_meta.crawl_workers (job_id);
