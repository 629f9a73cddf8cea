-- Each class of failure: SQLSTATE, DETAIL, HINT, and what happens next.
\set VERBOSITY verbose
\set SHOW_CONTEXT never
SET client_min_messages = warning;
UPDATE llm_error_policies SET backoff_ms = 1;
-- breakers and parking have tests of their own: :forget closes what is parked
\set forget 'UPDATE llm_providers SET weight = weight;'
INSERT INTO llm_providers(name, kind, options, breaker_failures)
SELECT c, 'mock', jsonb_build_object('error', c), 1000000
FROM unnest('{rate_limit,auth,server_error,overloaded,malformed,network,quota,not_found,context_length,content_policy,invalid_request}'::text[]) c;
INSERT INTO llm_models(provider, name, context_window)
SELECT name, 'bad-' || name, 1000 FROM llm_providers;
INSERT INTO llm_providers(name, kind, options) VALUES ('good', 'mock', '{"reply": "fine"}');
INSERT INTO llm_models(provider, name, context_window) VALUES ('good', 'good', 2000);
RESET client_min_messages;

-- what each class becomes; retries as llm_error_policies says
SELECT m.name, d.error_class, d.attempts, d.response, d.cost_usd
FROM llm_models m, llm_complete_detail('hi', model => m.name) d
ORDER BY m.name COLLATE "C";

\set VERBOSITY terse
DO $$
DECLARE
    m text;
    state text;
BEGIN
    FOR m IN SELECT name FROM llm_models WHERE name LIKE 'bad-%' ORDER BY name COLLATE "C" LOOP
        BEGIN
            UPDATE llm_providers SET weight = weight;
            PERFORM llm_complete('hi', model => m);
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE;
            RAISE NOTICE '%: %', m, state;
        END;
    END LOOP;
END $$;

-- detail and hint, whatever time it took
\set VERBOSITY default
:forget
DO $$
DECLARE
    detail text;
    hint text;
BEGIN
    PERFORM llm_complete('hi', model => 'bad-quota');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
    RAISE EXCEPTION USING MESSAGE = SQLERRM, DETAIL = regexp_replace(detail, 'after \d+ ms', 'after N ms'), HINT = hint;
END $$;

-- a second candidate: which classes go on to it, and which stop
INSERT INTO llm_routing_rules(alias, model, rank)
SELECT 'via-' || name, 'bad-' || name, 10 FROM llm_providers WHERE name <> 'good'
UNION ALL SELECT 'via-' || name, 'good', 20 FROM llm_providers WHERE name <> 'good';
:forget
SELECT a, d.error_class, d.model, d.fallback, d.attempts, d.response
FROM (SELECT DISTINCT alias AS a FROM llm_routing_rules) r, llm_complete_detail('hi', model => a) d
ORDER BY a COLLATE "C";

-- a prompt that was too long goes only to a larger window
UPDATE llm_models SET context_window = 1000 WHERE name = 'good';
SELECT error_class, attempts FROM llm_complete_detail('hi', model => 'via-context_length');
UPDATE llm_models SET context_window = NULL WHERE name = 'good';
SELECT error_class, attempts FROM llm_complete_detail('hi', model => 'via-context_length');
UPDATE llm_models SET context_window = 2000 WHERE name = 'good';

-- an invalid request stops the call at the first candidate, not at a fallback
INSERT INTO llm_routing_rules(alias, model, rank) VALUES
    ('late-invalid', 'bad-server_error', 10),
    ('late-invalid', 'bad-invalid_request', 20),
    ('late-invalid', 'good', 30);
SELECT response, attempts FROM llm_complete_detail('hi', model => 'late-invalid');

-- failures that differ are LG004, and DETAIL has a line for each
INSERT INTO llm_routing_rules(alias, model, rank) VALUES
    ('mixed', 'bad-quota', 10), ('mixed', 'bad-auth', 20);
:forget
SELECT error_class FROM llm_complete_detail('hi', model => 'mixed');
:forget
\set VERBOSITY terse
SELECT llm_complete('hi', model => 'mixed');
\set VERBOSITY default

-- policies are rows: for all, or for one provider
UPDATE llm_error_policies SET max_retries = 3 WHERE error_class = 'server_error';
SELECT attempts FROM llm_complete_detail('hi', model => 'bad-server_error');
INSERT INTO llm_error_policies(error_class, provider, max_retries, backoff_ms, fallback)
VALUES ('server_error', 'server_error', 0, 0, false);
SELECT attempts, error_class FROM llm_complete_detail('hi', model => 'via-server_error');
DELETE FROM llm_error_policies WHERE provider = 'server_error';

-- a provider's failure as NULL, a mistake of one's own still an error
:forget
SET llm_gateway.on_error = 'null';
\set VERBOSITY terse
SELECT llm_complete('hi', model => 'bad-quota') IS NULL AS is_null;
SELECT llm_complete('hi', model => 'no-such-model');
SELECT llm_complete('hi', cache => 'only');
\set VERBOSITY default
RESET llm_gateway.on_error;

-- time-outs, on the same code as the network's
INSERT INTO llm_providers(name, kind, first_byte_timeout, options)
VALUES ('slow', 'mock', '20 ms', '{"latency_ms": 60000}');
INSERT INTO llm_models(provider, name) VALUES ('slow', 'slow');
UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'timeout';
SELECT error_class, error_message, attempts FROM llm_complete_detail('hi', model => 'slow');
UPDATE llm_providers SET first_byte_timeout = '0', total_timeout = '30 ms' WHERE name = 'slow';
SELECT error_class, error_message FROM llm_complete_detail('hi', model => 'slow');
UPDATE llm_providers SET idle_timeout = '20 ms', options = '{"chunks": 2, "chunk_ms": 60000}' WHERE name = 'slow';
SELECT error_class, error_message ~ 'idle_timeout' AS idle FROM llm_complete_detail('hi', model => 'slow');
SELECT error_class, error_message FROM llm_complete_detail('hi', model => 'slow', timeout_ms => 10);
SET statement_timeout = '50 ms';
UPDATE llm_providers SET total_timeout = '0', idle_timeout = '0' WHERE name = 'slow';
SELECT llm_complete('hi', model => 'slow');
RESET statement_timeout;
SELECT llm_complete('hi', model => 'good');

-- a key that cannot be read is a failed candidate that was not tried
UPDATE llm_providers SET api_key = 'secret:nowhere' WHERE name = 'quota';
SELECT llm_complete('hi', model => 'bad-quota');
SELECT response, fallback, attempts FROM llm_complete_detail('hi', model => 'via-quota');
SELECT attempts, error_class FROM llm_complete_detail('hi', model => 'bad-quota');

DELETE FROM llm_providers;
DELETE FROM llm_routing_rules;
UPDATE llm_error_policies SET max_retries = 1 WHERE error_class IN ('timeout', 'server_error');
