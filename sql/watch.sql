-- Watching providers: llm_provider_status, llm_probe, llm_breaker_open and _reset, llm_breaker_events.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
-- the worker may have to start first
SET llm_gateway.ledger_sync_timeout = '60s';

-- what there is
SELECT attrelid::regclass AS relation, attname, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid = ANY ('{llm_provider_status,llm_breaker_events}'::regclass[]) AND attnum > 0
ORDER BY attrelid::regclass::text, attnum;
SELECT extconfig @> ARRAY['llm_breaker_events'::regclass::oid] AS dumped FROM pg_extension WHERE extname = 'llm_gateway';
SELECT c.relname, a.attname
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum >= 0
WHERE c.relname ~ '^llm_(provider_status|breaker_events)$' AND col_description(c.oid, a.attnum) IS NULL;

-- no provider
SELECT * FROM llm_provider_status;
SELECT * FROM llm_probe('watch');
SELECT llm_breaker_open('watch');

-- by names that no other test uses: what is known of a provider outlives its row
INSERT INTO llm_providers(name, kind, probe) VALUES ('watch', 'mock', 'models'), ('watch other', 'mock', 'none');
INSERT INTO llm_models(provider, name, input_price, output_price, capabilities) VALUES
    ('watch', 'unpriced', NULL, NULL, NULL), ('watch', 'dear', 10, 20, NULL), ('watch', 'cheap', 1, 2, '{chat}'),
    ('watch', 'vectors', 0, 0, '{embedding}');
INSERT INTO llm_models(provider, name, input_price, output_price, enabled) VALUES ('watch', 'free but disabled', 0, 0, false);
-- a row for each, closed before the first call
SELECT provider, state, consecutive_failures, opened_at, next_probe_at, in_flight, latency_ms, successes, failures, rate_limited_until
FROM llm_provider_status;
SELECT provider, reason, waiting, last_error, last_error_at, last_probe_at, last_probe_ok FROM llm_provider_status;
-- as this transaction sees them
BEGIN;
DELETE FROM llm_providers WHERE name = 'watch other';
SELECT count(*) FROM llm_provider_status;
ROLLBACK;
SELECT count(*) FROM llm_provider_status;

-- names
SELECT * FROM llm_probe('wach');
SELECT * FROM llm_probe(NULL);
SELECT llm_breaker_open('wach');
SELECT llm_breaker_open(NULL);
SELECT llm_breaker_reset('wach');
SELECT llm_breaker_reset(NULL);

-- probes
TRUNCATE llm_requests, llm_attempts, llm_daily_spend;
SELECT provider, ok, latency_ms >= 0 AS took, error_class, message FROM llm_probe('watch');
-- by hand, the one that the worker never asks is asked for its models
SELECT provider, ok, error_class, message FROM llm_probe('watch other');
-- a tiny completion of the cheapest model; where there is none, models
UPDATE llm_providers SET probe = 'completion';
SELECT provider, ok, error_class, message FROM llm_probe('watch');
SELECT provider, ok, error_class, message FROM llm_probe('watch other');
-- a failure is a row, not an error
UPDATE llm_providers SET options = '{"error": "server_error"}', probe = 'models' WHERE name = 'watch other';
SELECT provider, ok, error_class, message FROM llm_probe('watch other');
SELECT llm_breaker_reset('watch other');
-- nor is one that cannot be made
UPDATE llm_providers SET probe = 'http://127.0.0.1:9/health', options = NULL WHERE name = 'watch other';
SET llm_gateway.allowed_hosts = 'api.example.com';
SELECT provider, ok, latency_ms, error_class, message FROM llm_probe('watch other');
RESET llm_gateway.allowed_hosts;
-- all of it is in the ledger, once, and free but for completions
SELECT operation, role = current_user AS me, task, priority, requested_model, provider, model, status, error_class, attempts,
    input_tokens, output_tokens, cost_usd, cost_source
FROM llm_requests ORDER BY request_id;
SELECT sum(requests) AS requests, sum(failures) AS failures, sum(unpriced) AS unpriced, sum(cost_usd) = (SELECT sum(cost_usd) FROM llm_requests) AS cost
FROM llm_daily_spend;
-- switched off
SET llm_gateway.enabled = off;
SELECT * FROM llm_probe('watch');
RESET llm_gateway.enabled;

-- who may
CREATE ROLE regress_watch_call;
CREATE ROLE regress_watch_report;
CREATE ROLE regress_watch_admin;
SELECT llm_grant('regress_watch_call'), llm_grant('regress_watch_report', 'report'), llm_grant('regress_watch_admin', 'admin');
CREATE FUNCTION pg_temp.as_role(role text, query text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE format('SET LOCAL ROLE %I', role);
        EXECUTE query;
        RAISE 'done' USING ERRCODE = 'ZZZZZ';
    EXCEPTION
        WHEN SQLSTATE 'ZZZZZ' THEN RETURN 'yes';
        WHEN OTHERS THEN RETURN SQLSTATE;
    END;
END $$;
SELECT query, pg_temp.as_role('regress_watch_call', query) AS call, pg_temp.as_role('regress_watch_report', query) AS report,
    pg_temp.as_role('regress_watch_admin', query) AS admin
FROM unnest('{SELECT FROM llm_provider_status,SELECT FROM _llm_provider_status(),SELECT FROM llm_breaker_events,
        SELECT llm_probe(''watch''),SELECT llm_breaker_open(''watch''),SELECT llm_breaker_reset(''watch''),
        DELETE FROM llm_breaker_events,INSERT INTO llm_breaker_events DEFAULT VALUES,TRUNCATE llm_breaker_events}'::text[]) query;

-- As it was.
SELECT llm_breaker_reset('watch');
DELETE FROM llm_providers;
DROP EXTENSION llm_gateway;
DROP ROLE regress_watch_call, regress_watch_report, regress_watch_admin;
RESET llm_gateway.ledger_sync_timeout;
RESET client_min_messages;
CREATE EXTENSION llm_gateway;
