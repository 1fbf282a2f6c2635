-- Undo revision 0004; messages stay.
DROP FUNCTION public.message_queue_redrive;
DROP FUNCTION public.message_queue_renew;
DROP FUNCTION public.message_queue_fail;
DROP FUNCTION public.message_queue_acknowledge;
DROP FUNCTION public.message_queue_claim_next;
DROP FUNCTION public.message_queue_claim;
DROP FUNCTION public.message_queue_reopen;
DROP FUNCTION public.message_queue_enqueue;
DROP INDEX public.message_queue_redrive;
DROP INDEX public.message_queue_open;
ALTER TABLE public.message_queue
    DROP CONSTRAINT message_queue_message_key_length,
    DROP CONSTRAINT message_queue_session_id_length,
    DROP COLUMN redrive_requested_at,
    DROP COLUMN is_open,
    RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
COMMENT ON COLUMN public.message_queue.completed_at IS NULL;
COMMENT ON COLUMN public.message_queue.retry_count IS NULL;
CREATE INDEX message_queue_open ON public.message_queue (customer_id, session_id, position) WHERE status IN ('pending', 'processing');
