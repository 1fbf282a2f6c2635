-- The message queue's table: what claims need beside revision 0002.

-- Generated, so that it cannot contradict the status, and in the place of the status in the index of open messages:
-- a claim changes the status and leaves this as it is, so it can be a heap-only update.
ALTER TABLE public.message_queue
    ADD COLUMN is_open boolean GENERATED ALWAYS AS (status IN ('pending', 'processing')) STORED,
    ADD COLUMN redrive_requested_at timestamptz,
    -- A key of the unique index may have 2,704 bytes at most, and nobody's needs that many.
    ADD CONSTRAINT message_queue_session_id_length CHECK (octet_length(session_id) <= 512),
    ADD CONSTRAINT message_queue_message_key_length CHECK (octet_length(message_key) <= 512),
    -- Room for the version that a claim writes, in the same page.
    SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
COMMENT ON COLUMN public.message_queue.is_open IS 'Neither completed nor failed.';
COMMENT ON COLUMN public.message_queue.redrive_requested_at IS 'Failed, and to be opened again as soon as nobody handles its session.';
COMMENT ON COLUMN public.message_queue.completed_at IS 'When it was completed, or given up.';
COMMENT ON COLUMN public.message_queue.retry_count IS 'Tries that failed, or whose lease ran out.';

DROP INDEX public.message_queue_open;
CREATE INDEX message_queue_open ON public.message_queue (customer_id, session_id, position) WHERE is_open;
CREATE INDEX message_queue_redrive ON public.message_queue (customer_id, session_id) WHERE redrive_requested_at IS NOT NULL;
