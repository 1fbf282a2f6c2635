-- Columns and tables. Frozen with revision 0003. What each column holds: resources/postgres/models.py.

-- No default: what was crawled before says nothing about it.
ALTER TABLE public.scrape_job_results ADD COLUMN changed boolean;
COMMENT ON COLUMN public.scrape_job_results.changed IS 'True: the page was new or said something else than before. None: not read, or not known.';

ALTER TABLE public.daily_job_stats
    ADD COLUMN changed_pages BIGINT DEFAULT 0 NOT NULL CHECK (changed_pages >= 0),
    ADD COLUMN unchanged_pages BIGINT DEFAULT 0 NOT NULL CHECK (unchanged_pages >= 0),
    ADD COLUMN pages_per_second DOUBLE PRECISION CHECK (pages_per_second >= 0),
    ADD COLUMN pages_by_http_status JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(pages_by_http_status) = 'object');
COMMENT ON COLUMN public.daily_job_stats.active_seconds IS 'Of the jobs that ended on the day, pauses left out.';
COMMENT ON COLUMN public.daily_job_stats.changed_pages IS 'New, or with another text than before.';
COMMENT ON COLUMN public.daily_job_stats.unchanged_pages IS 'Read again with the same text, or said to be unmodified.';
COMMENT ON COLUMN public.daily_job_stats.pages_per_second IS 'total_pages over active_seconds; none where no job ended on the day.';
COMMENT ON COLUMN public.daily_job_stats.pages_by_http_status IS 'Number of pages by status code.';

ALTER TABLE public.daily_domain_stats
    ADD COLUMN jobs_completed BIGINT DEFAULT 0 NOT NULL CHECK (jobs_completed >= 0),
    ADD COLUMN jobs_failed BIGINT DEFAULT 0 NOT NULL CHECK (jobs_failed >= 0),
    ADD COLUMN jobs_cancelled BIGINT DEFAULT 0 NOT NULL CHECK (jobs_cancelled >= 0),
    ADD COLUMN jobs_unfinished BIGINT DEFAULT 0 NOT NULL CHECK (jobs_unfinished >= 0),
    ADD COLUMN active_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL CHECK (active_seconds >= 0),
    ADD COLUMN changed_pages BIGINT DEFAULT 0 NOT NULL CHECK (changed_pages >= 0),
    ADD COLUMN unchanged_pages BIGINT DEFAULT 0 NOT NULL CHECK (unchanged_pages >= 0),
    ADD COLUMN pages_per_second DOUBLE PRECISION CHECK (pages_per_second >= 0),
    ADD COLUMN pages_by_http_status JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(pages_by_http_status) = 'object');
COMMENT ON COLUMN public.daily_domain_stats.jobs IS 'Jobs that have pages of the day.';
COMMENT ON COLUMN public.daily_domain_stats.active_seconds IS 'Of the jobs that ended on the day, pauses left out.';
COMMENT ON COLUMN public.daily_domain_stats.changed_pages IS 'New, or with another text than before.';
COMMENT ON COLUMN public.daily_domain_stats.unchanged_pages IS 'Read again with the same text, or said to be unmodified.';
COMMENT ON COLUMN public.daily_domain_stats.pages_per_second IS 'total_pages over active_seconds; none where no job ended on the day.';
COMMENT ON COLUMN public.daily_domain_stats.pages_by_http_status IS 'Number of pages by status code.';

ALTER TABLE public.storage_snapshots
    ADD COLUMN bloat_bytes BIGINT CHECK (bloat_bytes >= 0);
COMMENT ON COLUMN public.storage_snapshots.bloat_bytes IS 'Estimate of what dead rows and empty space take; none where it cannot be told.';

ALTER TABLE public.alert_history
    ADD COLUMN what_to_do TEXT DEFAULT ''::text NOT NULL,
    ADD COLUMN run_id TEXT,
    ADD COLUMN occurrences BIGINT DEFAULT 1 NOT NULL CHECK (occurrences >= 1),
    ADD COLUMN last_seen_at timestamptz DEFAULT now() NOT NULL;
COMMENT ON COLUMN public.alert_history.run_id IS 'Of the Dagster run that it is about.';
COMMENT ON COLUMN public.alert_history.occurrences IS 'How often it was found while the episode was open.';

-- Deliveries of alerts to the platform's own webhooks. Kept beside, not in `public`: working state, no business data.
CREATE TABLE omniops_meta.alert_deliveries (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id        bigint NOT NULL REFERENCES public.alert_history (id) ON DELETE CASCADE,
    endpoint        text NOT NULL CHECK (endpoint <> ''),
    event           text NOT NULL CHECK (event IN ('opened', 'closed')),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    delivered_at    timestamptz,
    gave_up_at      timestamptz,
    last_error      text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (alert_id, endpoint, event)
);
COMMENT ON COLUMN omniops_meta.alert_deliveries.endpoint IS 'Hash of the url: such urls are secrets.';
-- Question: what is to be delivered now?
CREATE INDEX alert_deliveries_due ON omniops_meta.alert_deliveries (next_attempt_at)
    WHERE delivered_at IS NULL AND gave_up_at IS NULL;

-- How far something has come: one row for each process that goes on where it stopped.
CREATE TABLE omniops_meta.watermarks (
    name  text PRIMARY KEY CHECK (name <> ''),
    at    timestamptz NOT NULL DEFAULT now(),
    value jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(value) = 'object')
);
