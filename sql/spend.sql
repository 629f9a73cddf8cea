-- How budgets stand, and reports of what they and routing did, on rows of the ledger written by hand.  The queries at
-- the end are those of docs/spend.md, read from there.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET datestyle = 'ISO';
SET timezone = 'UTC';
-- none of the rows of other tests
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;
CREATE ROLE regress_spend_app;
CREATE ROLE regress_spend_member IN ROLE regress_spend_app;
CREATE ROLE regress_spend_other;
CREATE ROLE regress_spend_report;
CREATE ROLE regress_spend_none;
SELECT llm_grant('regress_spend_app'), llm_grant('regress_spend_member'), llm_grant('regress_spend_other'),
    llm_grant('regress_spend_report', 'report');

CREATE FUNCTION pg_temp.as_role(role text, query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    EXECUTE format('SET LOCAL ROLE %I', role);
    BEGIN
        EXECUTE query INTO result;
    EXCEPTION WHEN insufficient_privilege THEN result := sqlerrm;
    END;
    RESET ROLE;
    RETURN result;
END $$;

-- the columns and what explains them
SELECT string_agg(attname, ', ' ORDER BY attnum) AS columns FROM pg_attribute
WHERE attrelid = 'llm_budget_status'::regclass AND attnum > 0;
SELECT c.relname, a.attname AS unexplained FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relname ~ '^llm_(budget_status|budget_forecast|downgrade_report|savings_report)$' AND col_description(c.oid, a.attnum) IS NULL;
SELECT c.relname FROM pg_class c
WHERE c.relname ~ '^llm_(budget_status|budget_forecast|downgrade_report|savings_report)$' AND NOT 'security_invoker=true' = ANY (c.reloptions);

-- ---------------------------------------------------------------------------
-- A day: what was paid today, before there was a budget
-- ---------------------------------------------------------------------------

-- none where there is none
SELECT * FROM llm_budget_status;
SELECT * FROM llm_budget_forecast;

INSERT INTO llm_providers(name) VALUES ('openai');
INSERT INTO llm_models(provider, name, tier, quality, input_price, output_price, cached_input_price, capabilities) VALUES
    ('openai', 'gpt-5', 'premium', 90, 1.25, 10, 0.125, NULL),
    ('openai', 'gpt-5-pro', 'premium', 95, NULL, NULL, NULL, NULL),
    ('openai', 'text-embedding-3-large', 'premium', 99, 0.13, 0, NULL, '{embedding}'),
    ('openai', 'gpt-5-mini', 'standard', 50, 0.25, 2, NULL, NULL),
    ('openai', 'gpt-5-nano', 'economy', 10, 0.05, 0.40, NULL, NULL);
INSERT INTO llm_routing_rules(alias, model) VALUES ('fast', 'gpt-5-nano');

CREATE PROCEDURE pg_temp.request(id bigint, at timestamptz, model text, tier text, status text, cost numeric, input bigint, output bigint,
    hash text DEFAULT NULL, downgraded_by text DEFAULT NULL, downgraded_from text DEFAULT NULL, requested text DEFAULT NULL,
    budgets text[] DEFAULT NULL, operation text DEFAULT 'complete', estimate numeric DEFAULT NULL, cached_input bigint DEFAULT 0,
    role text DEFAULT 'regress_spend_app', priority text DEFAULT 'normal') LANGUAGE sql AS $$
    INSERT INTO llm_requests(request_id, created_at, operation, role, role_oid, task, priority, model_tier, requested_model, provider, model,
        status, attempts, fallback, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
        estimated_usd, cost_usd, cost_source, budgets, prompt_hash, downgraded_by, downgraded_from)
    VALUES (id, at, operation, role, role::regrole, 'chat', priority, tier, requested, 'openai', model, status, (input > 0)::int, false,
        input, cached_input, 0, output, 0, estimate, cost, CASE WHEN cost > 0 THEN 'usage' ELSE 'none' END, budgets, decode(md5(hash), 'hex'),
        downgraded_by, downgraded_from);
    INSERT INTO llm_attempts
    SELECT id, 1, 'openai', model, at, 10, 200, CASE WHEN status = 'error' THEN 'malformed' END, NULL, input, cached_input, 0, output, cost, 'usage'
    WHERE input > 0 $$;

-- $0.10 of the role, $0.05 of another, and one that ended in an error: it is paid all the same
CALL pg_temp.request(1, now(), 'gpt-5', 'premium', 'ok', 0.10, 4000, 2000);
CALL pg_temp.request(2, now(), 'gpt-5-mini', 'standard', 'ok', 0.05, 20000, 10000, role => 'regress_spend_other');
CALL pg_temp.request(3, now(), 'gpt-5-mini', 'standard', 'error', 0.01, 4000, 2000);

-- ---------------------------------------------------------------------------
-- How budgets stand
-- ---------------------------------------------------------------------------

INSERT INTO llm_budgets(name, limit_usd) VALUES ('everything', 1);
INSERT INTO llm_budgets(name, limit_usd, period, timezone, role, strict, on_exhausted)
VALUES ('app', 0.20, 'day', 'Europe/Oslo', 'regress_spend_app', true, 'cache_only');
INSERT INTO llm_budgets(name, limit_usd, period, role, tags) VALUES ('others', 3, 'week', 'regress_spend_other', '{"team": "a"}');
INSERT INTO llm_budgets(name, limit_usd, model) VALUES ('medium', 0.05, 'openai/gpt-5-mini');
INSERT INTO llm_budgets(name, limit_usd, period, task) VALUES ('counts', NULL, 'month', 'chat');
INSERT INTO llm_budgets(name, limit_usd, task) VALUES ('nothing', 0, 'coding');
SELECT budget, limit_usd, spent_usd, reserved_usd, remaining_usd, remaining_fraction, period, timezone, scope, best_tier, strict, on_exhausted, notice
FROM llm_budget_status ORDER BY budget;
SELECT budget, period_start = date_trunc(period, as_of, timezone) AS start,
    resets_at = (date_trunc(period, as_of AT TIME ZONE timezone) + ('1 ' || period)::interval) AT TIME ZONE timezone AS "end",
    as_of BETWEEN period_start AND resets_at AS now
FROM llm_budget_status ORDER BY budget;

-- what is left for whom
SET llm_gateway.default_priority = 'critical';
SELECT budget, best_tier FROM llm_budget_status ORDER BY budget;
SET llm_gateway.default_priority = 'low';
SELECT budget, best_tier FROM llm_budget_status ORDER BY budget;
RESET llm_gateway.default_priority;

-- a limit is configuration: seen at once, and undone by a rollback; what is spent stays
BEGIN;
UPDATE llm_budgets SET limit_usd = 0.04 WHERE name = 'everything';
SELECT limit_usd, spent_usd, remaining_usd, remaining_fraction, best_tier FROM llm_budget_status WHERE budget = 'everything';
UPDATE llm_budgets SET limit_usd = 3 WHERE name = 'everything';
SELECT limit_usd, spent_usd, remaining_usd, remaining_fraction, best_tier FROM llm_budget_status WHERE budget = 'everything';
DELETE FROM llm_budgets WHERE name = 'everything';
SELECT count(*) FROM llm_budget_status WHERE budget = 'everything';
ROLLBACK;
SELECT limit_usd, spent_usd, remaining_usd, remaining_fraction, best_tier FROM llm_budget_status WHERE budget = 'everything';

-- who sees which: those that may be charged for one's calls, with report all; without a grant nothing
SELECT r AS role, pg_temp.as_role('regress_spend_' || r, 'SELECT string_agg(budget, '', '' ORDER BY budget) FROM llm_budget_status') AS status,
    pg_temp.as_role('regress_spend_' || r, 'SELECT count(*) FROM llm_budget_forecast') AS forecast,
    pg_temp.as_role('regress_spend_' || r, 'SELECT count(*) FROM llm_savings_report') AS savings,
    pg_temp.as_role('regress_spend_' || r, 'SELECT count(*) FROM llm_downgrade_report') AS downgrades,
    pg_temp.as_role('regress_spend_' || r, 'SELECT string_agg(budget, '', '' ORDER BY budget) FROM _llm_budget_status()') AS function
FROM unnest('{app,member,other,report,none}'::text[]) r;
SELECT llm_revoke('regress_spend_other');
SELECT pg_temp.as_role('regress_spend_other', 'SELECT count(*) FROM llm_budget_status');

-- ---------------------------------------------------------------------------
-- The forecast
-- ---------------------------------------------------------------------------

-- $0.24 in the last 24 hours are $0.01 an hour; of what is older only the spent knows, and of another model nobody
CALL pg_temp.request(11, now() - interval '1 minute', 'gpt-5-mini', 'standard', 'ok', 0.24, 100000, 100000, budgets => '{everything,medium}');
CALL pg_temp.request(12, now() - interval '25 hours', 'gpt-5-mini', 'standard', 'ok', 5, 100000, 100000, budgets => '{everything,medium}');
CALL pg_temp.request(13, now() - interval '1 minute', 'gpt-5-nano', 'economy', 'ok', 0.12, 100000, 100000, budgets => '{everything,medium}');
-- recent in an hour are 15 minutes
INSERT INTO llm_budgets(name, limit_usd, period) VALUES ('hourly', 1000, 'hour');
CALL pg_temp.request(14, now() - interval '10 minutes', 'gpt-5-nano', 'economy', 'ok', 0.5, 100, 100, budgets => '{hourly}');
CALL pg_temp.request(15, now() - interval '20 minutes', 'gpt-5-nano', 'economy', 'ok', 7, 100, 100, budgets => '{hourly}');
SELECT budget, limit_usd, recent_usd_per_hour FROM llm_budget_forecast ORDER BY budget;
-- the rest follows from it
SELECT f.budget, abs(f.elapsed_fraction - extract(epoch FROM now() - f.period_start) / extract(epoch FROM f.resets_at - f.period_start)) < 0.01 AS elapsed,
    abs(f.usd_per_hour * extract(epoch FROM s.as_of - s.period_start) / 3600 - f.spent_usd) < 0.01 AS rate,
    f.projected_usd >= f.spent_usd AS projected,
    abs(f.recent_projected_usd - f.spent_usd - f.recent_usd_per_hour * extract(epoch FROM f.resets_at - s.as_of) / 3600) < 0.01 AS recent
FROM llm_budget_forecast f JOIN llm_budget_status s USING (budget) WHERE f.budget <> 'hourly' ORDER BY f.budget;
-- used up; would be in a while; will not be, whatever the limit; and without one
UPDATE llm_budgets SET limit_usd = 0.10 WHERE name = 'everything';
SELECT exhausted_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' AS now FROM llm_budget_forecast WHERE budget = 'everything';
UPDATE llm_budgets SET limit_usd = (SELECT spent_usd + recent_usd_per_hour * extract(epoch FROM resets_at - now()) / 3600 / 2
    FROM llm_budget_forecast WHERE budget = 'everything') WHERE name = 'everything';
SELECT abs(extract(epoch FROM exhausted_at - (now() + (resets_at - now()) / 2))) < 60 AS half_way FROM llm_budget_forecast WHERE budget = 'everything';
SELECT budget, exhausted_at FROM llm_budget_forecast WHERE budget IN ('others', 'counts') ORDER BY budget;

-- ---------------------------------------------------------------------------
-- Downgrades and savings
-- ---------------------------------------------------------------------------

TRUNCATE llm_requests, llm_attempts;
-- a premium answer; what the rules chose; what a budget left; a model that the caller named; an alias; a vector
CALL pg_temp.request(21, '2025-03-03 09:10+00', 'gpt-5', 'premium', 'ok', 0.02125, 1000, 2000, 'prompt 1', budgets => '{company}');
CALL pg_temp.request(22, '2025-03-03 09:20+00', 'gpt-5-mini', 'standard', 'ok', 0.00425, 1000, 2000, 'prompt 2', budgets => '{company}');
CALL pg_temp.request(23, '2025-03-03 09:30+00', 'gpt-5-mini', 'standard', 'ok', 0.00475, 3000, 2000, 'prompt 3', 'support', 'premium', cached_input => 1000, budgets => '{company,support}');
CALL pg_temp.request(24, '2025-03-03 09:50+00', 'gpt-5-nano', 'economy', 'ok', 0.00085, 1000, 2000, 'prompt 4', 'support', 'premium', priority => 'low', budgets => '{company,support}');
CALL pg_temp.request(25, '2025-03-03 10:10+00', 'gpt-5-nano', 'economy', 'ok', 0.00085, 1000, 2000, 'prompt 5', requested => 'gpt-5-nano', budgets => '{company}');
CALL pg_temp.request(26, '2025-03-03 10:20+00', 'gpt-5-nano', 'economy', 'ok', 0.00085, 1000, 2000, 'prompt 6', requested => 'fast', budgets => '{company}');
CALL pg_temp.request(27, '2025-03-03 10:30+00', 'text-embedding-3-large', 'premium', 'ok', 0.00013, 1000, 0, 'prompt 7', operation => 'embed');
-- paid for without an answer; not even sent
CALL pg_temp.request(28, '2025-03-03 10:40+00', 'gpt-5-mini', 'standard', 'error', 0.00425, 1000, 2000, 'prompt 8', 'support', 'premium', budgets => '{company,support}');
CALL pg_temp.request(29, '2025-03-03 10:50+00', NULL, NULL, 'rejected', 0, 0, 0, 'prompt 9', 'support', 'premium');
-- kept answers: of a prompt that was paid for twice, of one that nobody paid for, and without an estimate
CALL pg_temp.request(30, '2025-03-04 08:00+00', 'gpt-5-mini', 'standard', 'ok', 0.00445, 1000, 2100, 'prompt 2');
CALL pg_temp.request(31, '2025-03-04 09:00+00', 'gpt-5-mini', 'standard', 'cached', 0, 0, 0, 'prompt 2', estimate => 0.5);
CALL pg_temp.request(32, '2025-03-04 09:10+00', 'gpt-5-mini', 'standard', 'cached', 0, 0, 0, 'prompt 2', 'support', 'premium', estimate => 0.5);
CALL pg_temp.request(33, '2025-03-04 09:20+00', 'gpt-5-nano', 'economy', 'cached', 0, 0, 0, 'prompt a', estimate => 0.002);
CALL pg_temp.request(34, '2025-03-04 09:30+00', NULL, NULL, 'cached', 0, 0, 0, 'prompt b', estimate => 0);
SELECT * FROM llm_downgrade_report;
SELECT * FROM llm_savings_report;
-- without prices of the best tier, the next one is compared with
UPDATE llm_models SET enabled = false WHERE name = 'gpt-5';
SELECT saved_by, model, compared_with, requests, cost_usd, otherwise_usd, saved_usd FROM llm_savings_report WHERE saved_by <> 'cache';
UPDATE llm_models SET enabled = true WHERE name = 'gpt-5';
-- one's own
SELECT llm_grant('regress_spend_other');
SELECT pg_temp.as_role('regress_spend_app', 'SELECT sum(requests) FROM llm_downgrade_report') AS app,
    pg_temp.as_role('regress_spend_other', 'SELECT sum(requests) FROM llm_downgrade_report') AS other,
    pg_temp.as_role('regress_spend_report', 'SELECT sum(requests) FROM llm_downgrade_report') AS report;

-- ---------------------------------------------------------------------------
-- The queries of docs/spend.md.  (\140 is what begins and ends a block there.)
-- ---------------------------------------------------------------------------

\set queries `awk '/^## /{on = /What was saved/} substr($0, 1, 3) == "\140\140\140"{code = on && /sql$/; next} code' "$PG_ABS_SRCDIR/docs/spend.md"`
\set ECHO queries
:queries
\set ECHO all

-- As it was.
DROP EXTENSION llm_gateway;
DROP ROLE regress_spend_app, regress_spend_member, regress_spend_other, regress_spend_report, regress_spend_none;
RESET timezone;
RESET datestyle;
RESET client_min_messages;
CREATE EXTENSION llm_gateway;
