-- The rest of the 31 tables, and the indexes that retention and tenancy need on the first ones.
-- Frozen with revision 0002. What each column holds and which question each index answers: resources/postgres/models.py.

CREATE TABLE public.feature_flags (
    name TEXT NOT NULL CHECK (name ~ '^[a-z][a-z0-9_]*$'),
    description TEXT DEFAULT ''::text NOT NULL,
    enabled BOOLEAN DEFAULT false NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (name)
);
COMMENT ON TABLE public.feature_flags IS 'Features that can be switched, platform-wide.';
COMMENT ON COLUMN public.feature_flags.enabled IS 'For everybody.';

CREATE TABLE public.gdpr_audit_log (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('export', 'erasure_preview', 'erasure', 'hold', 'release')),
    actor TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('started', 'completed', 'refused', 'failed')),
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    created_at timestamptz DEFAULT now() NOT NULL,
    completed_at timestamptz,
    PRIMARY KEY (id)
);
COMMENT ON TABLE public.gdpr_audit_log IS 'Proof of exports and erasures. Kept for good.';
COMMENT ON COLUMN public.gdpr_audit_log.customer_id IS 'Whom it was about. No foreign key: the entry proves an erasure after the customer is gone.';
COMMENT ON COLUMN public.gdpr_audit_log.actor IS 'The role or program that asked; no personal data.';
COMMENT ON COLUMN public.gdpr_audit_log.details IS 'Counts by table; no personal data.';
CREATE INDEX gdpr_audit_log_customer ON public.gdpr_audit_log (customer_id, created_at);

CREATE TABLE public.retention_runs (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    policy TEXT NOT NULL CHECK (policy <> ''),
    dry_run BOOLEAN NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('running', 'completed', 'failed')),
    started_at timestamptz DEFAULT now() NOT NULL,
    completed_at timestamptz,
    cutoff timestamptz,
    rows_removed BIGINT DEFAULT 0 NOT NULL CHECK (rows_removed >= 0),
    expired_unprocessed BIGINT DEFAULT 0 NOT NULL CHECK (expired_unprocessed >= 0),
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    error_message TEXT,
    run_id TEXT,
    PRIMARY KEY (id)
);
COMMENT ON TABLE public.retention_runs IS 'What retention did, one row for each policy and run.';
COMMENT ON COLUMN public.retention_runs.cutoff IS 'What is older goes.';
COMMENT ON COLUMN public.retention_runs.rows_removed IS 'Or, in a dry run, rows that would be.';
COMMENT ON COLUMN public.retention_runs.expired_unprocessed IS 'Queued messages that expired before anybody handled them.';
COMMENT ON COLUMN public.retention_runs.details IS 'By table and customer: rows, bytes, oldest.';
COMMENT ON COLUMN public.retention_runs.run_id IS 'Of the Dagster run.';
CREATE INDEX retention_runs_policy_started ON public.retention_runs (policy, started_at);
CREATE INDEX retention_runs_started ON public.retention_runs (started_at);

CREATE TABLE public.storage_snapshots (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    taken_at timestamptz DEFAULT now() NOT NULL,
    table_name TEXT NOT NULL CHECK (table_name <> ''),
    row_estimate BIGINT DEFAULT 0 NOT NULL CHECK (row_estimate >= 0),
    table_bytes BIGINT DEFAULT 0 NOT NULL CHECK (table_bytes >= 0),
    index_bytes BIGINT DEFAULT 0 NOT NULL CHECK (index_bytes >= 0),
    toast_bytes BIGINT DEFAULT 0 NOT NULL CHECK (toast_bytes >= 0),
    dead_rows BIGINT DEFAULT 0 NOT NULL CHECK (dead_rows >= 0),
    PRIMARY KEY (id)
);
COMMENT ON TABLE public.storage_snapshots IS 'Sizes of the platform''s tables, over time.';
COMMENT ON COLUMN public.storage_snapshots.row_estimate IS 'By the planner''s statistics.';
CREATE INDEX storage_snapshots_table_taken ON public.storage_snapshots (table_name, taken_at);
CREATE INDEX storage_snapshots_taken ON public.storage_snapshots (taken_at);

CREATE TABLE public.alert_history (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID,
    alert TEXT NOT NULL CHECK (alert <> ''),
    episode TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    message TEXT NOT NULL,
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    opened_at timestamptz DEFAULT now() NOT NULL,
    closed_at timestamptz,
    PRIMARY KEY (id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.alert_history IS 'Alerts, one row for each episode.';
COMMENT ON COLUMN public.alert_history.customer_id IS 'None: the platform''s own.';
COMMENT ON COLUMN public.alert_history.alert IS 'Which alert, for example storage_over_budget.';
COMMENT ON COLUMN public.alert_history.episode IS 'What it is about; one open alert for each.';
CREATE INDEX alert_history_customer ON public.alert_history (customer_id) WHERE customer_id IS NOT NULL;
CREATE UNIQUE INDEX alert_history_open ON public.alert_history (alert, episode) WHERE closed_at IS NULL;
CREATE INDEX alert_history_opened ON public.alert_history (opened_at);

CREATE TABLE public.cart_operations (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID NOT NULL,
    session_id TEXT NOT NULL CHECK (session_id <> ''),
    operation TEXT NOT NULL CHECK (operation IN ('add', 'remove', 'update', 'clear', 'checkout')),
    product_id TEXT,
    quantity INTEGER CHECK (quantity >= 0),
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.cart_operations IS 'What the assistant did to carts.';
CREATE INDEX cart_operations_session ON public.cart_operations (customer_id, session_id, id);

CREATE TABLE public.conversation_funnel (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID NOT NULL,
    conversation_id UUID,
    stage TEXT NOT NULL CHECK (stage IN ('opened', 'asked', 'answered', 'clicked', 'converted', 'escalated')),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.conversation_funnel IS 'How far conversations came, one row a step.';
COMMENT ON COLUMN public.conversation_funnel.conversation_id IS 'Conversations are removed earlier, so no foreign key.';
CREATE INDEX conversation_funnel_customer_created ON public.conversation_funnel (customer_id, created_at);

CREATE TABLE public.conversations (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    session_id TEXT NOT NULL CHECK (session_id <> ''),
    domain TEXT,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz NOT NULL,
    ended_at timestamptz,
    PRIMARY KEY (id),
    UNIQUE (id, customer_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.conversations IS 'Conversations of visitors with the assistant.';
COMMENT ON COLUMN public.conversations.updated_at IS 'Last activity. A trigger fills it from created_at where it is not given.';
CREATE INDEX conversations_customer_updated ON public.conversations (customer_id, updated_at);
CREATE INDEX conversations_session ON public.conversations (customer_id, session_id);

CREATE TABLE public.daily_domain_stats (
    day DATE NOT NULL,
    customer_id UUID NOT NULL,
    domain TEXT NOT NULL CHECK (domain <> ''),
    jobs BIGINT DEFAULT 0 NOT NULL CHECK (jobs >= 0),
    total_pages BIGINT DEFAULT 0 NOT NULL CHECK (total_pages >= 0),
    successful_pages BIGINT DEFAULT 0 NOT NULL CHECK (successful_pages >= 0),
    failed_pages BIGINT DEFAULT 0 NOT NULL CHECK (failed_pages >= 0),
    skipped_pages BIGINT DEFAULT 0 NOT NULL CHECK (skipped_pages >= 0),
    retries BIGINT DEFAULT 0 NOT NULL CHECK (retries >= 0),
    bytes BIGINT DEFAULT 0 NOT NULL CHECK (bytes >= 0),
    p50_ms INTEGER CHECK (p50_ms >= 0),
    p95_ms INTEGER CHECK (p95_ms >= 0),
    p99_ms INTEGER CHECK (p99_ms >= 0),
    pages_by_reason JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(pages_by_reason) = 'object'),
    computed_at timestamptz DEFAULT now() NOT NULL,
    frozen_at timestamptz,
    PRIMARY KEY (day, customer_id, domain),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.daily_domain_stats IS 'Crawling by day, customer and domain. Outlives the rows that it was computed from.';
COMMENT ON COLUMN public.daily_domain_stats.day IS 'UTC.';
COMMENT ON COLUMN public.daily_domain_stats.retries IS 'Tries after the first.';
COMMENT ON COLUMN public.daily_domain_stats.bytes IS 'On the wire.';
COMMENT ON COLUMN public.daily_domain_stats.p50_ms IS 'Median of processing_time_ms.';
COMMENT ON COLUMN public.daily_domain_stats.pages_by_reason IS 'Number of pages by skip reason or error.';
COMMENT ON COLUMN public.daily_domain_stats.frozen_at IS 'Since then rows that it was computed from have been removed: it stays as it is.';
CREATE INDEX daily_domain_stats_customer ON public.daily_domain_stats (customer_id, day);

CREATE TABLE public.daily_job_stats (
    day DATE NOT NULL,
    customer_id UUID NOT NULL,
    jobs_completed BIGINT DEFAULT 0 NOT NULL CHECK (jobs_completed >= 0),
    jobs_failed BIGINT DEFAULT 0 NOT NULL CHECK (jobs_failed >= 0),
    jobs_cancelled BIGINT DEFAULT 0 NOT NULL CHECK (jobs_cancelled >= 0),
    jobs_unfinished BIGINT DEFAULT 0 NOT NULL CHECK (jobs_unfinished >= 0),
    total_pages BIGINT DEFAULT 0 NOT NULL CHECK (total_pages >= 0),
    successful_pages BIGINT DEFAULT 0 NOT NULL CHECK (successful_pages >= 0),
    failed_pages BIGINT DEFAULT 0 NOT NULL CHECK (failed_pages >= 0),
    skipped_pages BIGINT DEFAULT 0 NOT NULL CHECK (skipped_pages >= 0),
    retries BIGINT DEFAULT 0 NOT NULL CHECK (retries >= 0),
    bytes BIGINT DEFAULT 0 NOT NULL CHECK (bytes >= 0),
    p50_ms INTEGER CHECK (p50_ms >= 0),
    p95_ms INTEGER CHECK (p95_ms >= 0),
    p99_ms INTEGER CHECK (p99_ms >= 0),
    active_seconds DOUBLE PRECISION DEFAULT 0 NOT NULL CHECK (active_seconds >= 0),
    pages_by_reason JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(pages_by_reason) = 'object'),
    computed_at timestamptz DEFAULT now() NOT NULL,
    frozen_at timestamptz,
    PRIMARY KEY (day, customer_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.daily_job_stats IS 'Crawling by day and customer. Outlives the rows that it was computed from.';
COMMENT ON COLUMN public.daily_job_stats.day IS 'UTC.';
COMMENT ON COLUMN public.daily_job_stats.retries IS 'Tries after the first.';
COMMENT ON COLUMN public.daily_job_stats.bytes IS 'On the wire.';
COMMENT ON COLUMN public.daily_job_stats.p50_ms IS 'Median of processing_time_ms.';
COMMENT ON COLUMN public.daily_job_stats.pages_by_reason IS 'Number of pages by skip reason or error.';
COMMENT ON COLUMN public.daily_job_stats.frozen_at IS 'Since then rows that it was computed from have been removed: it stays as it is.';
CREATE INDEX daily_job_stats_customer ON public.daily_job_stats (customer_id, day);

CREATE TABLE public.feature_flag_rollouts (
    flag_name TEXT NOT NULL,
    customer_id UUID NOT NULL,
    percentage SMALLINT DEFAULT 100 NOT NULL CHECK (percentage BETWEEN 0 AND 100),
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (flag_name, customer_id),
    FOREIGN KEY(flag_name) REFERENCES public.feature_flags (name) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.feature_flag_rollouts IS 'Which customers have a feature.';
COMMENT ON COLUMN public.feature_flag_rollouts.percentage IS 'Of the customer''s visitors.';
CREATE INDEX feature_flag_rollouts_customer ON public.feature_flag_rollouts (customer_id);

CREATE TABLE public.legal_holds (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    reason TEXT NOT NULL CHECK (reason <> ''),
    placed_by TEXT NOT NULL,
    placed_at timestamptz DEFAULT now() NOT NULL,
    released_at timestamptz,
    PRIMARY KEY (id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id)
);
COMMENT ON TABLE public.legal_holds IS 'While one is in force, nothing of its customer is removed.';
COMMENT ON COLUMN public.legal_holds.released_at IS 'None: in force.';
CREATE INDEX legal_holds_customer ON public.legal_holds (customer_id);
CREATE INDEX legal_holds_in_force ON public.legal_holds (customer_id) WHERE released_at IS NULL;

CREATE TABLE public.message_queue (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    position BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID NOT NULL,
    session_id TEXT NOT NULL CHECK (session_id <> ''),
    conversation_id UUID,
    message_key TEXT NOT NULL CHECK (message_key <> ''),
    message_data JSONB NOT NULL,
    status TEXT DEFAULT 'pending' NOT NULL CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
    retry_count INTEGER DEFAULT 0 NOT NULL CHECK (retry_count >= 0),
    expires_at timestamptz DEFAULT now() + interval '24 hours' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    available_at timestamptz DEFAULT now() NOT NULL,
    leased_until timestamptz,
    lease_token UUID,
    completed_at timestamptz,
    error_message TEXT,
    PRIMARY KEY (id),
    UNIQUE (customer_id, session_id, message_key),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.message_queue IS 'Chat messages on their way, for 24 hours.';
COMMENT ON COLUMN public.message_queue.position IS 'Order of arrival.';
COMMENT ON COLUMN public.message_queue.conversation_id IS 'The message may be older than its conversation''s row, so no key.';
COMMENT ON COLUMN public.message_queue.message_key IS 'The sender''s; the same key is one message.';
COMMENT ON COLUMN public.message_queue.available_at IS 'Not before then: backoff after a failure.';
COMMENT ON COLUMN public.message_queue.leased_until IS 'A handler has it until then.';
COMMENT ON COLUMN public.message_queue.lease_token IS 'Fences a handler whose lease ran out.';
CREATE INDEX message_queue_expires ON public.message_queue (expires_at);
CREATE INDEX message_queue_open ON public.message_queue (customer_id, session_id, position) WHERE status IN ('pending', 'processing');

CREATE TABLE public.orders (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    external_id TEXT NOT NULL,
    conversation_id UUID,
    status TEXT NOT NULL CHECK (status IN ('pending', 'paid', 'fulfilled', 'cancelled', 'refunded')),
    total_amount NUMERIC(12, 2) NOT NULL CHECK (total_amount >= 0),
    currency TEXT NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (customer_id, external_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.orders IS 'Orders in customers'' shops that the assistant helped with.';
COMMENT ON COLUMN public.orders.external_id IS 'The shop''s own number.';
COMMENT ON COLUMN public.orders.conversation_id IS 'The conversation that led to it; those are removed earlier, so no key.';
COMMENT ON COLUMN public.orders.currency IS 'ISO 4217.';

CREATE INDEX scrape_job_results_created ON public.scrape_job_results USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);
-- A job is one customer's: without knowing it the planner takes the policy's condition for a filter that leaves one row of
-- a hundred, and reads and sorts a whole job where a tenant asks for one page of it.
CREATE STATISTICS public.scrape_job_results_job_customer (dependencies) ON job_id, customer_id FROM public.scrape_job_results;
CREATE INDEX scrape_jobs_finished ON public.scrape_jobs (coalesce(completed_at, created_at)) WHERE status IN ('completed', 'failed', 'cancelled');
CREATE TABLE public.subscriptions (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    plan TEXT NOT NULL CHECK (plan <> ''),
    status TEXT NOT NULL CHECK (status IN ('trialing', 'active', 'past_due', 'cancelled')),
    external_id TEXT,
    current_period_end timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (id, customer_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE,
    UNIQUE (external_id)
);
COMMENT ON TABLE public.subscriptions IS 'What customers have subscribed to.';
COMMENT ON COLUMN public.subscriptions.external_id IS 'At the payment provider.';
CREATE INDEX subscriptions_customer ON public.subscriptions (customer_id);

CREATE TABLE public.user_accounts (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    email TEXT NOT NULL CHECK (email <> '' AND email = lower(email)),
    display_name TEXT,
    active BOOLEAN DEFAULT true NOT NULL,
    last_seen_at timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (customer_id, email),
    UNIQUE (id, customer_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.user_accounts IS 'People of a customer who may sign in.';
COMMENT ON COLUMN public.user_accounts.email IS 'Lower case.';

CREATE TABLE public.webhook_endpoints (
    id UUID DEFAULT gen_random_uuid() NOT NULL,
    customer_id UUID NOT NULL,
    url TEXT NOT NULL CHECK (url ~ '^https?://'),
    secret BYTEA,
    enabled BOOLEAN DEFAULT true NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (customer_id, url),
    UNIQUE (id, customer_id),
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.webhook_endpoints IS 'Where a customer wants to hear of events.';
COMMENT ON COLUMN public.webhook_endpoints.secret IS 'Encrypted before it arrives here; never plain text.';

CREATE TABLE public.billing_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    customer_id UUID NOT NULL,
    subscription_id UUID,
    event TEXT NOT NULL CHECK (event <> ''),
    amount NUMERIC(12, 2),
    currency TEXT CHECK (currency ~ '^[A-Z]{3}$'),
    details JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(details) = 'object'),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(subscription_id, customer_id) REFERENCES public.subscriptions (id, customer_id) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.billing_events IS 'What was billed, and what came of it.';
COMMENT ON COLUMN public.billing_events.currency IS 'ISO 4217.';
COMMENT ON COLUMN public.billing_events.details IS 'Never card numbers.';
CREATE INDEX billing_events_customer ON public.billing_events (customer_id, id);
CREATE INDEX billing_events_subscription ON public.billing_events (subscription_id);

CREATE TABLE public.conversation_metadata (
    conversation_id UUID NOT NULL,
    customer_id UUID NOT NULL,
    accuracy DOUBLE PRECISION CHECK (accuracy BETWEEN 0 AND 1),
    sources_used JSONB DEFAULT '[]'::jsonb NOT NULL CHECK (jsonb_typeof(sources_used) = 'array'),
    figures JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(figures) = 'object'),
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (conversation_id),
    FOREIGN KEY(conversation_id, customer_id) REFERENCES public.conversations (id, customer_id) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.conversation_metadata IS 'How good a conversation''s answers were, and which pages they used.';
COMMENT ON COLUMN public.conversation_metadata.accuracy IS 'Of the answers, 0 to 1.';
COMMENT ON COLUMN public.conversation_metadata.sources_used IS 'The pages that the answers used.';
COMMENT ON COLUMN public.conversation_metadata.figures IS 'Other figures of the answers: latency, tokens, ratings.';
CREATE INDEX conversation_metadata_customer ON public.conversation_metadata (customer_id);

CREATE TABLE public.customer_members (
    customer_id UUID NOT NULL,
    user_id UUID NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('owner', 'admin', 'editor', 'viewer')),
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (customer_id, user_id),
    FOREIGN KEY(user_id, customer_id) REFERENCES public.user_accounts (id, customer_id) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.customer_members IS 'Which account may do what for its customer.';
CREATE INDEX customer_members_user ON public.customer_members (user_id);

CREATE TABLE public.messages (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    conversation_id UUID NOT NULL,
    customer_id UUID NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'system', 'tool')),
    content TEXT NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(conversation_id, customer_id) REFERENCES public.conversations (id, customer_id) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.messages IS 'What was said, in order of id.';
CREATE INDEX messages_conversation ON public.messages (conversation_id, id);
CREATE INDEX messages_customer ON public.messages (customer_id, id);

CREATE TABLE public.page_embeddings (
    page_id BIGINT NOT NULL,
    customer_id UUID NOT NULL,
    model TEXT NOT NULL CHECK (model <> ''),
    chunk_index INTEGER NOT NULL CHECK (chunk_index >= 0),
    chunk_text TEXT NOT NULL,
    chunk_hash TEXT NOT NULL,
    embedding halfvec(384) NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (page_id, model, chunk_index),
    FOREIGN KEY(page_id, customer_id) REFERENCES public.scraped_pages (id, customer_id) ON DELETE CASCADE
);
COMMENT ON TABLE public.page_embeddings IS 'Content: a page''s chunks and their vectors.';
COMMENT ON COLUMN public.page_embeddings.model IS 'Model id: vectors of two models are never compared.';
COMMENT ON COLUMN public.page_embeddings.chunk_hash IS 'Of the chunk''s text: what has not changed is not embedded again.';
CREATE INDEX page_embeddings_customer ON public.page_embeddings (customer_id);
CREATE INDEX page_embeddings_nearest ON public.page_embeddings USING hnsw (embedding halfvec_cosine_ops);

CREATE TABLE public.webhook_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    endpoint_id UUID NOT NULL,
    customer_id UUID NOT NULL,
    event TEXT NOT NULL,
    payload JSONB DEFAULT '{}'::jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
    status TEXT DEFAULT 'pending' NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts INTEGER DEFAULT 0 NOT NULL CHECK (attempts >= 0),
    last_error TEXT,
    created_at timestamptz DEFAULT now() NOT NULL,
    delivered_at timestamptz,
    PRIMARY KEY (id),
    FOREIGN KEY(endpoint_id, customer_id) REFERENCES public.webhook_endpoints (id, customer_id) ON DELETE CASCADE,
    FOREIGN KEY(customer_id) REFERENCES public.customers (id) ON DELETE CASCADE
);
COMMENT ON TABLE public.webhook_events IS 'Deliveries to webhooks.';
CREATE INDEX webhook_events_customer_created ON public.webhook_events (customer_id, created_at);
CREATE INDEX webhook_events_endpoint ON public.webhook_events (endpoint_id, id);
CREATE INDEX webhook_events_pending ON public.webhook_events (id) WHERE status = 'pending';

CREATE INDEX website_content_customer ON public.website_content (customer_id);
