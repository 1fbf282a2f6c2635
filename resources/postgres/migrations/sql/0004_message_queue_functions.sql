-- The message queue's operations. Frozen with revision 0004.
--
-- All of them run with their caller's rights, so that row-level security binds. Times are the database's, and the
-- moment's (clock_timestamp), because an acknowledgement may stand at the end of a handler's long transaction.
--   Two advisory locks for each session, both to the end of the transaction: number 1 is held by whoever writes, so
-- that positions are committed in their order; number 2 by whoever decides which message is next. What has expired is
-- passed over by everybody, whether or not a cleanup has been there.
--   enable_seqscan: a queue grows and shrinks faster than its statistics are taken, and a plan made while it was empty
-- would read all of it.

-- Write messages of one session, in the order given, all or none. A key that is there already is `known` with the same
-- body (type and value), and a `conflict` with another one; `held` has expired, but may not be replaced because of a
-- legal hold. Where there is a conflict or a held one, only those are returned, and nothing is written.
CREATE FUNCTION public.message_queue_enqueue(customer uuid, session text, conversation uuid, messages jsonb)
RETURNS TABLE (key text, id uuid, place bigint, outcome text)
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
    v_now timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(customer::text || '/' || session, 1));
    v_now := clock_timestamp();
    IF EXISTS (
        -- Each key by itself (OFFSET 0 keeps it so): a join would read all that the session ever had.
        SELECT 1 FROM jsonb_array_elements(messages) AS m (body)
        CROSS JOIN LATERAL (
            SELECT 1 FROM public.message_queue AS q
            WHERE q.customer_id = customer AND q.session_id = session AND q.message_key = m.body ->> 'key'
            OFFSET 0
        ) AS found
    ) THEN
        RETURN QUERY
            SELECT q.message_key, q.id, q.position, CASE WHEN g.gone THEN 'held' ELSE 'conflict' END
            FROM jsonb_array_elements(messages) AS m (body)
            CROSS JOIN LATERAL (
                SELECT q.* FROM public.message_queue AS q
                WHERE q.customer_id = customer AND q.session_id = session AND q.message_key = m.body ->> 'key'
                OFFSET 0
            ) AS q
            CROSS JOIN LATERAL (
                SELECT q.expires_at <= v_now
                       AND NOT (q.status = 'processing' AND coalesce(q.leased_until, '-infinity') > v_now) AS gone
            ) AS g
            WHERE CASE WHEN g.gone THEN EXISTS (
                      SELECT 1 FROM public.legal_holds AS h
                      WHERE h.customer_id = q.customer_id AND h.released_at IS NULL)
                  ELSE q.message_data - 'timestamp' <> m.body - 'timestamp' END;
        IF FOUND THEN
            RETURN;
        END IF;
        -- What has expired is as good as gone: its key is free.
        DELETE FROM public.message_queue AS q
        WHERE q.id = ANY (ARRAY(
                SELECT f.id FROM jsonb_array_elements(messages) AS m (body)
                CROSS JOIN LATERAL (
                    SELECT q.id FROM public.message_queue AS q
                    WHERE q.customer_id = customer AND q.session_id = session AND q.message_key = m.body ->> 'key'
                    OFFSET 0
                ) AS f))
          AND q.expires_at <= v_now AND NOT (q.status = 'processing' AND coalesce(q.leased_until, '-infinity') > v_now);
        RETURN QUERY
            SELECT q.message_key, q.id, q.position, 'known'
            FROM jsonb_array_elements(messages) AS m (body)
            CROSS JOIN LATERAL (
                SELECT q.* FROM public.message_queue AS q
                WHERE q.customer_id = customer AND q.session_id = session AND q.message_key = m.body ->> 'key'
                OFFSET 0
            ) AS q;
    END IF;
    RETURN QUERY
        INSERT INTO public.message_queue AS q (customer_id, session_id, conversation_id, message_key, message_data)
        SELECT customer, session, conversation, m.body ->> 'key', m.body
        FROM jsonb_array_elements(messages) WITH ORDINALITY AS m (body, ordinal) ORDER BY m.ordinal
        ON CONFLICT ON CONSTRAINT message_queue_customer_id_session_id_message_key_key DO NOTHING
        RETURNING q.message_key, q.id, q.position, 'new';
END
$$;

-- Open the session's failed messages again that somebody asked to be tried again, at their old places; not while a
-- message of the session is leased, because two could then be handled at once. Whoever calls it holds lock 2.
CREATE FUNCTION public.message_queue_reopen(customer uuid, session text) RETURNS integer
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_head record;
    v_opened integer;
BEGIN
    SELECT q.status, q.leased_until INTO v_head FROM public.message_queue AS q
    WHERE q.customer_id = customer AND q.session_id = session AND q.is_open
      AND (q.expires_at > v_now OR (q.status = 'processing' AND q.leased_until > v_now))
    ORDER BY q.position LIMIT 1;
    IF v_head.status = 'processing' AND v_head.leased_until > v_now THEN
        RETURN 0;
    END IF;
    UPDATE public.message_queue AS q
    SET status = 'pending', redrive_requested_at = NULL, retry_count = 0, available_at = v_now, completed_at = NULL,
        leased_until = NULL, lease_token = NULL
    WHERE q.customer_id = customer AND q.session_id = session AND q.redrive_requested_at IS NOT NULL
      AND q.status = 'failed';
    GET DIAGNOSTICS v_opened = ROW_COUNT;
    RETURN v_opened;
END
$$;

-- Take the session's next message, or say why there is none: `claimed`, `empty`, `leased` (somebody has it, until),
-- `waiting` (a failed try's backoff, until). A lease that ran out counts as a try, and messages that have had all of
-- theirs are given up on the way (`dead`, by key). Claiming again with the same token gives the same message, so a
-- claim whose answer was lost can be repeated.
--   after_place: all messages up to there are closed; whoever has just acknowledged one knows that, and need not walk
-- over the index entries of what is done, which an old snapshot elsewhere would keep alive.
--   Without a customer it does nothing: so an acknowledgement that was refused claims nothing in the same statement.
CREATE FUNCTION public.message_queue_claim(
    customer uuid, session text, token uuid, lease interval, max_tries integer, after_place bigint DEFAULT NULL,
    OUT outcome text, OUT until timestamptz, OUT id uuid, OUT place bigint, OUT conversation_id uuid, OUT body jsonb,
    OUT retry_count integer, OUT created_at timestamptz, OUT expires_at timestamptz, OUT key text,
    OUT error_message text, OUT dead text[])
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
    v_now timestamptz;
    v_after bigint := coalesce(after_place, -1);
    v_head public.message_queue;
    v_missed integer := 0;
    v_seen uuid;
    v_tries integer;
BEGIN
    IF customer IS NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(customer::text || '/' || session, 2));
    LOOP
        v_now := clock_timestamp();
        SELECT q.id INTO v_seen FROM public.message_queue AS q
        WHERE q.customer_id = customer AND q.session_id = session AND q.is_open AND q.position > v_after
          AND (q.expires_at > v_now OR (q.status = 'processing' AND q.leased_until > v_now))
        ORDER BY q.position LIMIT 1;
        v_head := NULL;
        IF v_seen IS NOT NULL THEN
            -- Skipped where it is locked: nobody waits for a handler's transaction, and nobody passes it over.
            SELECT q.* INTO v_head FROM public.message_queue AS q WHERE q.id = v_seen AND q.is_open
            FOR NO KEY UPDATE SKIP LOCKED;
            IF NOT FOUND THEN
                v_missed := v_missed + 1;
                IF v_missed < 3 THEN
                    CONTINUE;
                END IF;
                SELECT 'leased', coalesce(q.leased_until, v_now), q.id, q.position, q.message_key
                INTO outcome, until, id, place, key
                FROM public.message_queue AS q WHERE q.id = v_seen;
                IF NOT FOUND THEN
                    CONTINUE;
                END IF;
                RETURN;
            END IF;
        END IF;
        IF v_head.status = 'processing' AND v_head.leased_until > v_now AND v_head.lease_token <> token THEN
            outcome := 'leased';
            until := v_head.leased_until;
            EXIT;
        END IF;
        IF (v_head.status = 'processing' AND v_head.leased_until > v_now) IS NOT TRUE AND EXISTS (
            SELECT 1 FROM public.message_queue AS q
            WHERE q.customer_id = customer AND q.session_id = session AND q.redrive_requested_at IS NOT NULL
        ) THEN
            IF public.message_queue_reopen(customer, session) > 0 THEN
                v_after := -1;
                CONTINUE;
            END IF;
        END IF;
        IF v_seen IS NULL THEN
            outcome := 'empty';
            RETURN;
        END IF;
        IF v_head.status = 'processing' AND v_head.leased_until > v_now THEN
            outcome := 'claimed';
            EXIT;
        END IF;
        -- A lease that ran out is a try that was begun and never ended.
        v_tries := v_head.retry_count + (v_head.status = 'processing')::integer;
        IF v_tries >= max_tries THEN
            UPDATE public.message_queue AS q
            SET status = 'failed', retry_count = v_tries, completed_at = v_now, leased_until = NULL,
                error_message = CASE WHEN v_head.status = 'processing'
                    THEN format('given up after %s tries: the last handler''s lease ran out at %s%s', v_tries,
                                v_head.leased_until, ', before that: ' || v_head.error_message)
                    ELSE coalesce(v_head.error_message, format('given up after %s tries', v_tries)) END
            WHERE q.id = v_head.id;
            dead := dead || v_head.message_key;
            CONTINUE;
        END IF;
        IF v_head.status = 'pending' AND v_head.available_at > v_now THEN
            outcome := 'waiting';
            until := v_head.available_at;
            EXIT;
        END IF;
        UPDATE public.message_queue AS q
        SET status = 'processing', retry_count = v_tries, lease_token = token, leased_until = v_now + lease
        WHERE q.id = v_head.id
        RETURNING q.* INTO v_head;
        outcome := 'claimed';
        EXIT;
    END LOOP;
    until := coalesce(until, v_head.leased_until);
    id := v_head.id;
    place := v_head.position;
    conversation_id := v_head.conversation_id;
    body := v_head.message_data;
    retry_count := v_head.retry_count;
    created_at := v_head.created_at;
    expires_at := v_head.expires_at;
    key := v_head.message_key;
    error_message := v_head.error_message;
END
$$;

-- Take the next message of any session of the customer after a given one, in the order of the sessions' names: who
-- remembers where it was goes round and round, and gives each session its turn. Where `of_session` is given, its next
-- message comes first (after_place as above). `claimed`; `end` (nothing up to the last session); `more` (nothing in
-- max_visits sessions). `cursor` is where to go on, `soonest` when one of the sessions passed over comes free.
CREATE FUNCTION public.message_queue_claim_next(
    customer uuid, after_session text, token uuid, lease interval, max_tries integer, of_session text DEFAULT NULL,
    after_place bigint DEFAULT NULL, max_visits integer DEFAULT 100, OUT outcome text, OUT until timestamptz, OUT id uuid, OUT place bigint, OUT conversation_id uuid, OUT body jsonb,
    OUT retry_count integer, OUT created_at timestamptz, OUT expires_at timestamptz, OUT key text,
    OUT error_message text, OUT dead text[], OUT session text, OUT cursor text, OUT soonest timestamptz)
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
    v_now timestamptz;
    v_head record;
    v_claim record;
BEGIN
    IF customer IS NULL THEN
        RETURN;
    END IF;
    cursor := after_session;
    FOR v_visit IN 0..max_visits LOOP
        IF v_visit = 0 THEN
            CONTINUE WHEN of_session IS NULL;
            session := of_session;
        ELSE
            SELECT q.session_id, q.status, q.leased_until, q.available_at, q.expires_at INTO v_head
            FROM public.message_queue AS q
            WHERE q.customer_id = customer AND q.is_open AND q.session_id > cursor
            ORDER BY q.session_id, q.position LIMIT 1;
            IF NOT FOUND THEN
                outcome := 'end';
                session := NULL;
                RETURN;
            END IF;
            cursor := v_head.session_id;
            session := cursor;
            v_now := clock_timestamp();
            IF v_head.status = 'processing' AND v_head.leased_until > v_now THEN
                soonest := least(soonest, v_head.leased_until);
                CONTINUE;
            ELSIF v_head.status = 'pending' AND v_head.available_at > v_now AND v_head.expires_at > v_now THEN
                soonest := least(soonest, v_head.available_at);
                CONTINUE;
            END IF;
        END IF;
        -- Never waits, so the many locks of one transaction cannot stand in each other's way.
        IF pg_try_advisory_xact_lock(hashtextextended(customer::text || '/' || session, 2)) THEN
            SELECT c.* INTO v_claim
            FROM public.message_queue_claim(
                customer, session, token, lease, max_tries, CASE WHEN v_visit = 0 THEN after_place END) AS c;
            dead := dead || v_claim.dead;
            IF v_claim.outcome = 'claimed' THEN
                outcome := 'claimed';
                until := v_claim.until;
                id := v_claim.id;
                place := v_claim.place;
                conversation_id := v_claim.conversation_id;
                body := v_claim.body;
                retry_count := v_claim.retry_count;
                created_at := v_claim.created_at;
                expires_at := v_claim.expires_at;
                key := v_claim.key;
                error_message := v_claim.error_message;
                RETURN;
            END IF;
            soonest := least(soonest, v_claim.until);
        END IF;
    END LOOP;
    session := NULL;
    outcome := 'more';
END
$$;

-- The message is handled. False, and nothing is changed, if its lease was lost: it ran out, or somebody else has the
-- message. Acknowledging again with the same token is true again. `reopened`: failed messages of the session stand
-- before it now (asked for while it was handled).
CREATE FUNCTION public.message_queue_acknowledge(
    customer uuid, message uuid, token uuid, OUT acknowledged boolean, OUT reopened boolean)
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
    v_session text;
BEGIN
    reopened := false;
    UPDATE public.message_queue AS q
    SET status = 'completed', completed_at = clock_timestamp(), leased_until = NULL, error_message = NULL
    WHERE q.id = message AND q.customer_id = customer AND q.status = 'processing' AND q.lease_token = token
      AND q.leased_until > clock_timestamp()
    RETURNING q.session_id INTO v_session;
    acknowledged := FOUND;
    IF acknowledged THEN
        IF EXISTS (SELECT 1 FROM public.message_queue AS q WHERE q.customer_id = customer
                   AND q.session_id = v_session AND q.redrive_requested_at IS NOT NULL) THEN
            PERFORM pg_advisory_xact_lock(hashtextextended(customer::text || '/' || v_session, 2));
            reopened := public.message_queue_reopen(customer, v_session) > 0;
        END IF;
    ELSE
        acknowledged := EXISTS (SELECT 1 FROM public.message_queue AS q WHERE q.id = message
                                AND q.customer_id = customer AND q.status = 'completed' AND q.lease_token = token);
    END IF;
END
$$;

-- A try did not succeed: `retry` (again after the delay), `dead` (it has had its tries), `lost` (the lease was lost,
-- nothing is changed). Not counted: given back, as when a program is told to end. Can be repeated like an
-- acknowledgement.
CREATE FUNCTION public.message_queue_fail(
    customer uuid, message uuid, token uuid, error text, delay interval, max_tries integer, counted boolean,
    OUT outcome text, OUT retry_count integer, OUT available_at timestamptz)
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
    v_session text;
    v_status text;
BEGIN
    UPDATE public.message_queue AS q
    SET status = CASE WHEN counted AND q.retry_count + 1 >= max_tries THEN 'failed' ELSE 'pending' END,
        completed_at = CASE WHEN counted AND q.retry_count + 1 >= max_tries THEN clock_timestamp() END,
        retry_count = q.retry_count + counted::integer, available_at = clock_timestamp() + delay,
        leased_until = NULL, error_message = coalesce(error, q.error_message)
    WHERE q.id = message AND q.customer_id = customer AND q.status = 'processing' AND q.lease_token = token
      AND q.leased_until > clock_timestamp()
    RETURNING q.session_id, q.status, q.retry_count, q.available_at
    INTO v_session, v_status, retry_count, available_at;
    IF FOUND THEN
        IF EXISTS (SELECT 1 FROM public.message_queue AS q WHERE q.customer_id = customer
                   AND q.session_id = v_session AND q.redrive_requested_at IS NOT NULL) THEN
            PERFORM pg_advisory_xact_lock(hashtextextended(customer::text || '/' || v_session, 2));
            PERFORM public.message_queue_reopen(customer, v_session);
        END IF;
    ELSE
        SELECT q.status, q.retry_count, q.available_at INTO v_status, retry_count, available_at
        FROM public.message_queue AS q
        WHERE q.id = message AND q.customer_id = customer AND q.status IN ('pending', 'failed')
          AND q.lease_token = token;
    END IF;
    outcome := CASE v_status WHEN 'failed' THEN 'dead' WHEN 'pending' THEN 'retry' ELSE 'lost' END;
END
$$;

-- Prolong leases. Returns the messages that are still their handler's.
CREATE FUNCTION public.message_queue_renew(customer uuid, messages uuid[], tokens uuid[], lease interval)
RETURNS SETOF uuid
LANGUAGE sql SET search_path = '' SET enable_seqscan = off AS $$
    UPDATE public.message_queue AS q SET leased_until = clock_timestamp() + lease
    FROM unnest(messages, tokens) AS m (id, token)
    WHERE q.id = m.id AND q.customer_id = customer AND q.status = 'processing' AND q.lease_token = m.token
      AND q.leased_until > clock_timestamp()
    RETURNING q.id
$$;

-- Let failed messages be tried again, from the first try on and for another 24 hours, at their old places in their
-- sessions. A session of which a message is leased at the moment opens them when that one is done.
CREATE FUNCTION public.message_queue_redrive(messages uuid[])
RETURNS TABLE (id uuid, customer_id uuid, session_id text, status text)
LANGUAGE plpgsql SET search_path = '' SET enable_seqscan = off SET lock_timeout = '10s' AS $$
#variable_conflict use_column
DECLARE
    v_session record;
BEGIN
    FOR v_session IN
        SELECT DISTINCT q.customer_id, q.session_id,
               hashtextextended(q.customer_id::text || '/' || q.session_id, 2) AS number
        FROM public.message_queue AS q WHERE q.id = ANY (messages) AND q.status = 'failed'
        -- One order for all: two redrives at once cannot wait for each other.
        ORDER BY number
    LOOP
        PERFORM pg_advisory_xact_lock(v_session.number);
        UPDATE public.message_queue AS q
        SET redrive_requested_at = clock_timestamp(),
            expires_at = greatest(q.expires_at, clock_timestamp() + interval '24 hours')
        WHERE q.id = ANY (messages) AND q.customer_id = v_session.customer_id AND q.session_id = v_session.session_id
          AND q.status = 'failed';
        PERFORM public.message_queue_reopen(v_session.customer_id, v_session.session_id);
    END LOOP;
    RETURN QUERY
        SELECT q.id, q.customer_id, q.session_id, q.status FROM public.message_queue AS q
        WHERE q.id = ANY (messages) AND (q.is_open OR q.redrive_requested_at IS NOT NULL)
        ORDER BY q.customer_id, q.session_id, q.position;
END
$$;

REVOKE EXECUTE ON FUNCTION
    public.message_queue_enqueue, public.message_queue_reopen, public.message_queue_claim,
    public.message_queue_claim_next, public.message_queue_acknowledge, public.message_queue_fail,
    public.message_queue_renew, public.message_queue_redrive
FROM PUBLIC;
