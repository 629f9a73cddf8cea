-- The ledger's tables, views and row security, on rows written by hand; at the
-- end, what a call writes.  The queries are those of docs/spend.md, read from
-- there.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SET datestyle = 'ISO';
-- none of the rows of other tests
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;

-- ---------------------------------------------------------------------------
-- A month
-- ---------------------------------------------------------------------------

CREATE TEMP TABLE asked (request_id bigint, created_at timestamptz, role text, application_name text, task text, task_source text,
    priority text, provider text, model text, status text, error_class text, fallback boolean, estimated_usd numeric, latency_ms int,
    tags jsonb, prompt_hash bytea);
CREATE TEMP TABLE tiers (model text, model_tier text);
INSERT INTO tiers VALUES ('gpt-5', 'premium'), ('gpt-5-mini', 'standard'), ('llama-3.3-70b-versatile', 'standard'), ('qwen3-8b', 'economy');

INSERT INTO asked VALUES
    (101, '2025-03-03 09:00+00', 'shop', 'web', 'chat', 'default', 'normal', 'openai', 'gpt-5-mini', 'ok', NULL, false, 0.000712, 1840, '{"team": "support"}', '\x6f1c0a52b7d94e8893a1c25e7f40d811'),
    (102, '2025-03-03 09:05+00', 'shop', 'web', 'analysis', 'argument', 'high', 'openai', 'gpt-5', 'ok', NULL, false, 0.008060, 9120, '{"team": "search"}', '\x0b9e6d417c2f4a35b8e05d9c13a7f662'),
    -- the first attempt on one day, the second on the next
    (103, '2025-03-03 23:59:58+00', 'batch', 'nightly', 'analysis', 'argument', 'low', 'groq', 'llama-3.3-70b-versatile', 'ok', NULL, true, 0.002512, 33400, '{"team": "search"}', '\xa1d3f06b58c9427ebd12e4807f956c30'),
    -- paid for twice, and no answer
    (104, '2025-03-04 10:00+00', 'batch', 'import', 'analysis', 'argument', 'low', 'openai', 'gpt-5-mini', 'error', 'malformed', false, 0.001012, 21000, '{"team": "search"}', '\x5cc84be20f6d4d7b9a3e7116d08f2ba4'),
    (105, '2025-03-04 10:30+00', 'shop', 'web', 'coding', 'argument', 'normal', 'openai', 'gpt-5', 'cancelled', NULL, false, 0.004310, 6200, '{"team": "support"}', '\x93b50d7ae61f4c08a7d4206fb91c358e'),
    (106, '2025-03-04 11:00+00', 'batch', 'import', 'analysis', 'argument', 'low', 'groq', 'llama-3.3-70b-versatile', 'unknown', NULL, false, 0.001382, NULL, '{"team": "search"}', '\xe2470c96d3b84f51860ba9f7c15d2e73'),
    (107, '2025-03-04 11:01+00', 'batch', 'import', 'analysis', 'argument', 'low', NULL, NULL, 'rejected', 'no_candidate', false, NULL, 0, '{"team": "search"}', '\xe2470c96d3b84f51860ba9f7c15d2e73'),
    (108, '2025-03-05 08:00+00', 'shop', 'web', 'chat', 'default', 'normal', 'openai', 'gpt-5-mini', 'cached', NULL, false, 0.000712, 1, '{"team": "support"}', '\x6f1c0a52b7d94e8893a1c25e7f40d811'),
    (109, '2025-03-05 09:00+00', 'notebook', 'psql', 'coding', 'argument', 'normal', 'local', 'qwen3-8b', 'ok', NULL, false, NULL, 4100, NULL, '\x48fa9c0e71d24b66b05c83ade92f170d'),
    (110, '2025-03-05 09:10+00', 'notebook', 'psql', 'coding', 'argument', 'normal', 'local', 'qwen3-8b', 'ok', NULL, false, NULL, 3700, NULL, '\x7d20e5b31af84c9f82d66b04c59e01fa'),
    -- the same question again and again
    (111, '2025-03-06 07:00+00', 'shop', 'web', 'analysis', 'argument', 'normal', 'openai', 'gpt-5', 'ok', NULL, false, 0.006310, 8000, '{"team": "support"}', '\xc70e18d45a9b4f2391f5db60a2e84c37'),
    (112, '2025-03-06 07:10+00', 'shop', 'web', 'analysis', 'argument', 'normal', 'openai', 'gpt-5', 'ok', NULL, false, 0.006310, 8100, '{"team": "support"}', '\xc70e18d45a9b4f2391f5db60a2e84c37'),
    (113, '2025-03-06 07:20+00', 'shop', 'web', 'analysis', 'argument', 'normal', 'openai', 'gpt-5', 'ok', NULL, false, 0.006310, 7900, '{"team": "support"}', '\xc70e18d45a9b4f2391f5db60a2e84c37'),
    -- again at the same provider: no fallback
    (114, '2025-03-06 12:00+00', 'shop', 'web', 'chat', 'default', 'normal', 'openai', 'gpt-5-mini', 'ok', NULL, false, 0.000712, 3900, '{"team": "support"}', '\x1e95b7c2604d4da8bf3071c6e8a25d9b'),
    -- nobody answers
    (115, '2025-03-06 12:30+00', 'batch', 'nightly', 'analysis', 'argument', 'low', 'groq', 'llama-3.3-70b-versatile', 'error', 'all_failed', false, 0.002512, 2300, '{"team": "search"}', '\x80d6f3a95bc14e7c9d2ba607e15f483c'),
    -- a month later in UTC, not yet so in New York
    (116, '2025-03-31 22:30-04', 'batch', 'nightly', 'analysis', 'argument', 'low', 'openai', 'gpt-5-mini', 'ok', NULL, false, 0.000900, 2000, '{"team": "search"}', '\xb3716ec0d59f482a90e8c4d5072fa61b');

-- 429 and 5xx cost nothing; what has no known end costs by estimate
INSERT INTO llm_attempts VALUES
    (101, 1, 'openai', 'gpt-5-mini', '2025-03-03 09:00+00', 1839, 200, NULL, NULL, 800, 0, 0, 214, 0.000628, 'usage'),
    (102, 1, 'openai', 'gpt-5', '2025-03-03 09:05+00', 9118, 200, NULL, NULL, 4400, 1024, 0, 655, 0.010898, 'usage'),
    (103, 1, 'openai', 'gpt-5-mini', '2025-03-03 23:59:58+00', 30000, NULL, 'timeout', 'no data for 30 s', 8000, 0, 0, 0, 0.002, 'estimate'),
    (103, 2, 'groq', 'llama-3.3-70b-versatile', '2025-03-04 00:00:28+00', 3390, 200, NULL, NULL, 8112, 0, 0, 402, 0.00510366, 'usage'),
    (104, 1, 'openai', 'gpt-5-mini', '2025-03-04 10:00+00', 9800, 200, 'malformed', 'the answer ended before it was complete, after 5120 bytes', 2000, 0, 0, 450, 0.0014, 'estimate'),
    (104, 2, 'openai', 'gpt-5-mini', '2025-03-04 10:00:10+00', 11100, 200, 'malformed', 'the answer ended before it was complete, after 4096 bytes', 2000, 0, 0, 390, 0.00128, 'estimate'),
    (105, 1, 'openai', 'gpt-5', '2025-03-04 10:30+00', 6190, 200, NULL, NULL, 1400, 0, 0, 310, 0.00485, 'estimate'),
    (106, 1, 'groq', 'llama-3.3-70b-versatile', '2025-03-04 11:00+00', NULL, NULL, NULL, NULL, 2000, 0, 0, 256, 0.00138224, 'estimate'),
    (109, 1, 'local', 'qwen3-8b', '2025-03-05 09:00+00', 4090, 200, NULL, NULL, 900, 0, 0, 700, NULL, 'none'),
    (110, 1, 'local', 'qwen3-8b', '2025-03-05 09:10+00', 3690, 200, NULL, NULL, 650, 0, 0, 512, NULL, 'none'),
    (111, 1, 'openai', 'gpt-5', '2025-03-06 07:00+00', 7990, 200, NULL, NULL, 3000, 0, 0, 520, 0.00895, 'usage'),
    (112, 1, 'openai', 'gpt-5', '2025-03-06 07:10+00', 8090, 200, NULL, NULL, 3000, 2048, 0, 498, 0.006426, 'usage'),
    (113, 1, 'openai', 'gpt-5', '2025-03-06 07:20+00', 7890, 200, NULL, NULL, 3000, 2048, 0, 533, 0.006776, 'usage'),
    (114, 1, 'openai', 'gpt-5-mini', '2025-03-06 12:00+00', 120, 429, 'rate_limit', 'HTTP 429: Rate limit reached', 0, 0, 0, 0, 0, 'none'),
    (114, 2, 'openai', 'gpt-5-mini', '2025-03-06 12:00:02+00', 1770, 200, NULL, NULL, 810, 0, 0, 230, 0.0006625, 'usage'),
    (115, 1, 'openai', 'gpt-5-mini', '2025-03-06 12:30+00', 900, 500, 'server_error', 'HTTP 500: The server had an error', 0, 0, 0, 0, 0, 'none'),
    (115, 2, 'openai', 'gpt-5-mini', '2025-03-06 12:30:01+00', 700, 500, 'server_error', 'HTTP 500: The server had an error', 0, 0, 0, 0, 0, 'none'),
    (115, 3, 'groq', 'llama-3.3-70b-versatile', '2025-03-06 12:30:02+00', 300, 503, 'overloaded', 'HTTP 503: over capacity', 0, 0, 0, 0, 0, 'none'),
    (116, 1, 'openai', 'gpt-5-mini', '2025-03-31 22:30-04', 1990, 200, NULL, NULL, 1600, 0, 0, 280, 0.00096, 'usage');

-- the first days of this month and of the last
INSERT INTO asked
SELECT 201 + n, (date_trunc('month', now() AT TIME ZONE 'UTC') - n * interval '1 month') AT TIME ZONE 'UTC', 'shop', 'web', 'chat', 'default',
    'normal', 'openai', 'gpt-5-mini', 'ok', NULL, false, 0.5, 1000, '{"team": "support"}', NULL
FROM generate_series(0, 1) n;
INSERT INTO llm_attempts
SELECT request_id, 1, provider, model, created_at, 990, 200, NULL, NULL, 1000000, 0, 0, 100000, 0.45 + (request_id - 201) * 0.02, 'usage'
FROM asked WHERE request_id > 200;

-- what the worker does, in SQL: a request is the sum of its attempts ...
INSERT INTO llm_requests
SELECT request_id, r.created_at, 'complete', role, 4200000000, application_name, NULL, task, task_source, priority, model_tier, 'quality',
    NULL, r.provider, r.model, status, r.error_class, CASE status WHEN 'ok' THEN 'stop' END, count(attempt), fallback,
    coalesce(sum(input_tokens), 0), coalesce(sum(cached_input_tokens), 0), coalesce(sum(cache_write_tokens), 0),
    coalesce(sum(output_tokens), 0), 0, estimated_usd,
    CASE WHEN bool_or(attempt IS NOT NULL AND cost_usd IS NULL) THEN NULL ELSE coalesce(sum(cost_usd), 0) END,
    coalesce(min(cost_source) FILTER (WHERE cost_usd > 0), 'none'), r.latency_ms, NULL, NULL, NULL, tags, prompt_hash, NULL, NULL
FROM asked r LEFT JOIN llm_attempts a USING (request_id) LEFT JOIN tiers t ON t.model = r.model
GROUP BY request_id, r.created_at, role, application_name, task, task_source, priority, model_tier, r.provider, r.model, status,
    r.error_class, fallback, estimated_usd, r.latency_ms, tags, prompt_hash;
-- ... and a day the sum of both
INSERT INTO llm_daily_spend
SELECT day, provider, model, task, model_tier, priority, role, sum(requests), sum(failures), sum(cached), sum(fallbacks), sum(unpriced),
    sum(input_tokens), sum(output_tokens), sum(estimated_usd), sum(cost_usd)
FROM (SELECT (created_at AT TIME ZONE 'UTC')::date AS day, coalesce(provider, '') AS provider, coalesce(model, '') AS model, task,
          coalesce(model_tier, '') AS model_tier, priority, role, 1 AS requests, (status IN ('error', 'unknown'))::int AS failures,
          (status = 'cached')::int AS cached, fallback::int AS fallbacks, 0 AS unpriced, 0 AS input_tokens, 0 AS output_tokens,
          coalesce(estimated_usd, 0) AS estimated_usd, 0 AS cost_usd
      FROM llm_requests
      UNION ALL
      SELECT (started_at AT TIME ZONE 'UTC')::date, a.provider, a.model, task, t.model_tier, priority, role, 0, 0, 0, 0,
          (a.cost_usd IS NULL)::int, a.input_tokens, a.output_tokens, 0, coalesce(a.cost_usd, 0)
      FROM llm_attempts a JOIN llm_requests USING (request_id) JOIN tiers t ON t.model = a.model) b
GROUP BY 1, 2, 3, 4, 5, 6, 7;
DROP TABLE asked, tiers;

-- ---------------------------------------------------------------------------
-- The queries of docs/spend.md.  (\140 is what begins and ends a block there.)
-- ---------------------------------------------------------------------------

\set queries `awk '/^## /{on = /ten queries/} substr($0, 1, 3) == "\140\140\140"{code = on && /sql$/; next} code' "$PG_ABS_SRCDIR/docs/spend.md"`
\set proof `awk '/^## /{on = /add up/} substr($0, 1, 3) == "\140\140\140"{code = on && /sql$/; next} code' "$PG_ABS_SRCDIR/docs/spend.md"`
\set ECHO queries
:queries
:proof
\set ECHO all
-- in another time zone the same
SET timezone = 'America/New_York';
SELECT provider, model, sum(cost_usd) AS usd FROM llm_daily_spend WHERE day >= '2025-04-01' AND day < '2025-05-01' GROUP BY 1, 2;
SELECT day, requests FROM llm_routing_report WHERE day BETWEEN '2025-03-31' AND '2025-04-30';
RESET timezone;
-- books that do not agree
BEGIN;
UPDATE llm_daily_spend SET cost_usd = cost_usd + 0.000000001 WHERE day = '2025-03-06' AND model = 'gpt-5';
UPDATE llm_daily_spend SET output_tokens = 0 WHERE day = '2025-03-05' AND provider = 'local';
DELETE FROM llm_attempts WHERE request_id = 101;
UPDATE llm_requests SET cost_usd = 0 WHERE request_id = 109;
DELETE FROM llm_daily_spend WHERE day = '2025-03-03' AND provider = 'openai' AND model = 'gpt-5';
:proof
ROLLBACK;

-- ---------------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------------

SELECT * FROM llm_fallback_report;
SELECT day, task, task_source, model, requests, failures, fallbacks, cost_usd FROM llm_routing_report WHERE day < '2025-04-01';
SELECT day, task, model, requests, avg_latency_ms, p95_latency_ms FROM llm_routing_report WHERE day = '2025-03-06';
BEGIN;
-- free: no ratio
INSERT INTO llm_requests(request_id, created_at, operation, role, role_oid, provider, model, status, attempts, fallback, estimated_usd, cost_usd, cost_source)
VALUES (301, '2025-03-07 12:00+00', 'complete', 'shop', 0, 'mock', 'free', 'ok', 1, false, 0, 0, 'usage');
SELECT * FROM llm_estimate_accuracy WHERE model = 'free';
-- today, among yesterday and tomorrow
DELETE FROM llm_daily_spend;
INSERT INTO llm_daily_spend
SELECT (now() AT TIME ZONE 'UTC')::date + n, provider, model, task, tier, 'normal', role, 10, 1, 2, 3, 4, 1000, 100, 0.01, usd
FROM generate_series(-1, 1) n,
    (VALUES ('openai', 'gpt-5', 'chat', 'premium', 'shop', 0.02), ('openai', 'gpt-5', 'coding', 'premium', 'batch', 0.30),
            ('groq', 'llama-3.3-70b-versatile', 'chat', 'standard', 'shop', 0.001), ('', '', 'chat', '', 'shop', 0)) v (provider, model, task, tier, role, usd);
SELECT * FROM llm_spend_today;
SET LOCAL timezone = 'Pacific/Kiritimati';
SELECT count(*), sum(requests) AS requests FROM llm_spend_today;
SET LOCAL timezone = 'Pacific/Pago_Pago';
SELECT count(*), sum(requests) AS requests FROM llm_spend_today;
ROLLBACK;
-- nothing
BEGIN;
TRUNCATE llm_requests, llm_attempts, llm_daily_spend;
SELECT (SELECT count(*) FROM llm_spend_today) AS spend, (SELECT count(*) FROM llm_fallback_report) AS fallback,
    (SELECT count(*) FROM llm_routing_report) AS routing, (SELECT count(*) FROM llm_estimate_accuracy) AS accuracy;
:proof
ROLLBACK;
SELECT attname, format_type(atttypid, atttypmod) AS type FROM pg_attribute WHERE attrelid = 'llm_worker_status'::regclass AND attnum > 0 ORDER BY attnum;

-- every object and column says what it is; nobody has anything; each has a key
SELECT c.relname, a.attname
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relname ~ '^(llm_(requests|attempts|daily_spend|spend_today|fallback_report|routing_report|estimate_accuracy|worker_status|cache)|_llm_(spool_(position|carried)|budget_spend))$'
    AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL
         OR EXISTS (SELECT FROM aclexplode(c.relacl) WHERE grantee <> c.relowner) OR (c.relkind = 'r' AND c.relreplident <> 'd'));
SELECT relname, relrowsecurity AS row_security, EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary) AS has_key,
    array_position(extconfig, c.oid) IS NOT NULL AS dumped, extcondition[array_position(extconfig, c.oid)] AS filter
FROM pg_class c, pg_extension WHERE extname = 'llm_gateway'
    AND c.oid IN ('llm_requests'::regclass, 'llm_attempts'::regclass, 'llm_daily_spend'::regclass, '_llm_spool_position'::regclass,
        '_llm_spool_carried'::regclass, '_llm_budget_spend'::regclass, 'llm_cache'::regclass)
ORDER BY relname COLLATE "C";
SELECT relname, reloptions FROM pg_class WHERE relkind = 'v' AND relname ~ '^llm_' AND relnamespace = 'public'::regnamespace ORDER BY relname COLLATE "C";

-- ---------------------------------------------------------------------------
-- Who sees what
-- ---------------------------------------------------------------------------

CREATE ROLE regress_ledger_none;
CREATE ROLE regress_ledger_app;
CREATE ROLE "regress ledger ""Odd""";
CREATE ROLE regress_ledger_report;
CREATE ROLE regress_ledger_admin;
CREATE ROLE regress_ledger_heir IN ROLE regress_ledger_report;
CREATE ROLE regress_ledger_member IN ROLE regress_ledger_app;
SELECT llm_grant('regress_ledger_app'), llm_grant('"regress ledger ""Odd"""'), llm_grant('regress_ledger_report', 'report'),
    llm_grant('regress_ledger_admin', 'admin');
INSERT INTO llm_requests(request_id, created_at, operation, role, role_oid, provider, model, status, attempts, fallback, estimated_usd, cost_usd, cost_source)
SELECT id, now(), 'complete', role, to_regrole(quote_ident(role)), 'p', 'm', 'ok', 2, true, 0.001, 0.002, 'usage'
FROM (VALUES (401, 'regress_ledger_app'), (402, 'regress_ledger_app'), (403, 'regress ledger "Odd"'), (404, 'regress_ledger_report')) v (id, role);
INSERT INTO llm_attempts(request_id, attempt, provider, model, started_at, error_class, cost_usd, cost_source)
SELECT id, n, CASE n WHEN 1 THEN 'q' ELSE 'p' END, 'm', now(), CASE n WHEN 1 THEN 'timeout' END, 0.001, 'usage'
FROM generate_series(401, 404) id, generate_series(1, 2) n
ORDER BY id, n;
-- of a request that has been deleted: nobody's
INSERT INTO llm_attempts(request_id, attempt, provider, model, started_at, cost_source) VALUES (405, 1, 'p', 'm', now(), 'none');
INSERT INTO llm_daily_spend(day, provider, model, task, model_tier, priority, role, requests)
SELECT '2025-05-01', 'p', 'm', task, '', '', role, 1
FROM unnest('{a,b}'::text[]) task, (VALUES ('regress_ledger_app'), ('regress ledger "Odd"'), ('regress_ledger_report')) v (role);

-- what a role gets of a query, or the error; nothing of it stays
CREATE FUNCTION pg_temp.as_role(role text, query text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
    BEGIN
        EXECUTE format('SET LOCAL ROLE %I', role);
        EXECUTE query INTO result;
        RAISE 'done' USING ERRCODE = 'ZZZZZ';
    EXCEPTION
        WHEN SQLSTATE 'ZZZZZ' THEN RETURN coalesce(result, 'done');
        WHEN OTHERS THEN RETURN SQLSTATE;
    END;
END $$;
SELECT relation,
       pg_temp.as_role('regress_ledger_none', query) AS none,
       pg_temp.as_role('regress_ledger_app', query) AS call,
       pg_temp.as_role('regress ledger "Odd"', query) AS odd,
       pg_temp.as_role('regress_ledger_member', query) AS member,
       pg_temp.as_role('regress_ledger_report', query) AS report,
       pg_temp.as_role('regress_ledger_heir', query) AS heir,
       pg_temp.as_role('regress_ledger_admin', query) AS admin
FROM (VALUES (1, 'llm_requests', 'count(*)'), (2, 'llm_attempts', 'count(*)'), (3, 'llm_daily_spend', 'count(*)'),
             (4, 'llm_spend_today', 'count(*) >= 0'), (5, 'llm_fallback_report', 'sum(requests)'), (6, 'llm_routing_report', 'sum(requests)'),
             (7, 'llm_estimate_accuracy', 'count(*) >= 0'), (8, 'llm_worker_status', 'count(*) >= 0'),
             (9, '_llm_worker_status()', 'count(*) >= 0'), (10, '_llm_reports_all()', 'count(*)'), (11, '_llm_spool_position', 'count(*)'),
             (12, '_llm_spool_carried', 'count(*)'), (13, '_llm_budget_spend', 'count(*)'), (14, 'llm_cache', 'count(*)'))
    v (n, relation, result), LATERAL format('SELECT %s FROM %s', result, relation) query
ORDER BY n;
-- nobody writes
SELECT count(*) AS tries, array_agg(DISTINCT pg_temp.as_role(role, statement)) AS outcome
FROM unnest('{regress_ledger_none,regress_ledger_app,regress_ledger_report,regress_ledger_admin}'::text[]) role,
     unnest('{llm_requests,llm_attempts,llm_daily_spend,_llm_spool_position,_llm_spool_carried,_llm_budget_spend}'::text[]) t,
     unnest('{INSERT INTO %s DEFAULT VALUES,DELETE FROM %s,TRUNCATE %s,LOCK TABLE %s IN EXCLUSIVE MODE,ALTER TABLE %s DISABLE ROW LEVEL SECURITY,
        CREATE POLICY p ON %s USING (true),"CREATE TRIGGER t BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION _llm_config_row()",DROP TABLE %s,
        CREATE INDEX ON %s ((1))}'::text[]) form, format(form, t) statement;
SELECT pg_temp.as_role(role, statement)
FROM unnest('{regress_ledger_app,regress_ledger_admin}'::text[]) role,
     unnest('{UPDATE llm_requests SET cost_usd = 0,UPDATE llm_attempts SET cost_usd = 0,UPDATE llm_daily_spend SET cost_usd = 0,
        SELECT FROM llm_requests FOR UPDATE}'::text[]) statement;
-- not even where DELETE was given by hand: no policy lets one
GRANT DELETE ON llm_requests TO regress_ledger_report;
SET ROLE regress_ledger_report;
DELETE FROM llm_requests;
RESET ROLE;
REVOKE DELETE ON llm_requests FROM regress_ledger_report;
-- the words of an error
SET ROLE regress_ledger_none;
SELECT * FROM llm_requests;
SELECT * FROM llm_daily_spend;
RESET ROLE;
SET ROLE regress_ledger_app;
SELECT * FROM llm_worker_status;
-- who would have all rows or none
SET row_security = off;
SELECT count(*) FROM llm_requests;
RESET row_security;
RESET ROLE;

-- a new role with an old one's name, and an old one's number with a new name
BEGIN;
UPDATE llm_requests SET role_oid = 4200000000 WHERE request_id = 401;
UPDATE llm_requests SET role = 'regress_ledger_before' WHERE request_id = 402;
SELECT pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM llm_requests') AS requests,
       pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM llm_attempts') AS attempts,
       pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM llm_daily_spend') AS days;
-- what docs/spend.md says to do after a restore
UPDATE llm_requests SET role_oid = to_regrole(quote_ident(role))
WHERE to_regrole(quote_ident(role)) IS NOT NULL;
SELECT pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM llm_requests') AS app,
       pg_temp.as_role('regress ledger "Odd"', 'SELECT count(*) FROM llm_requests') AS odd;
ROLLBACK;
-- a function of no cost sees no other rows before row security does
CREATE FUNCTION regress_ledger_spy(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
BEGIN RAISE WARNING 'spy: %', $1; RETURN true; END $$;
SET ROLE regress_ledger_app;
SELECT count(*) FROM llm_requests WHERE regress_ledger_spy(role);
SELECT count(*) FROM llm_attempts WHERE regress_ledger_spy(request_id::text);
SELECT count(*) FROM llm_daily_spend WHERE regress_ledger_spy(role);
SELECT count(*) FROM llm_routing_report WHERE regress_ledger_spy(model);
RESET ROLE;
-- another's view lends no rows; another's SECURITY DEFINER function does
GRANT CREATE ON SCHEMA public TO regress_ledger_report;
SET ROLE regress_ledger_report;
CREATE VIEW regress_ledger_view AS SELECT * FROM llm_requests;
CREATE FUNCTION regress_ledger_total() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM llm_requests';
GRANT SELECT ON regress_ledger_view TO PUBLIC;
RESET ROLE;
SELECT pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM regress_ledger_view') AS view,
       pg_temp.as_role('regress_ledger_app', 'SELECT regress_ledger_total()') AS function,
       (SELECT count(*) FROM llm_requests) AS total;
DROP VIEW regress_ledger_view;
DROP FUNCTION regress_ledger_total, regress_ledger_spy;
REVOKE CREATE ON SCHEMA public FROM regress_ledger_report;
-- bypassing row security, and reading everything, are not the same
CREATE ROLE regress_ledger_bypass BYPASSRLS IN ROLE regress_ledger_app;
GRANT pg_read_all_data TO regress_ledger_none;
SELECT pg_temp.as_role('regress_ledger_bypass', 'SELECT count(*) FROM llm_attempts') AS bypass,
       pg_temp.as_role('regress_ledger_none', 'SELECT count(*) FROM llm_attempts') AS read_all_data;
REVOKE pg_read_all_data FROM regress_ledger_none;
-- whether all rows are to be seen is asked once
CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (VERBOSE) ' || query; END $$;
SET ROLE regress_ledger_app;
SELECT bool_or(line ~ 'InitPlan') AS once, bool_or(line ~ 'Filter:.*has_function_privilege') AS by_row FROM pg_temp.plan('SELECT * FROM llm_requests') line;
SELECT bool_or(line ~ 'InitPlan') AS once, bool_or(line ~ 'Filter:.*has_function_privilege') AS by_row FROM pg_temp.plan('SELECT * FROM llm_attempts') line;
SELECT bool_or(line ~ 'InitPlan') AS once, bool_or(line ~ 'Filter:.*has_function_privilege') AS by_row FROM pg_temp.plan('SELECT * FROM llm_daily_spend') line;
RESET ROLE;
-- other objects of the same names, first in the search path
CREATE SCHEMA regress_ledger_traps;
GRANT USAGE ON SCHEMA regress_ledger_traps TO PUBLIC;
CREATE FUNCTION regress_ledger_traps.yes(text, name) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION regress_ledger_traps.yes(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION regress_ledger_traps.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR regress_ledger_traps.= (LEFTARG = text, RIGHTARG = name, FUNCTION = regress_ledger_traps.yes);
CREATE OPERATOR regress_ledger_traps.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = regress_ledger_traps.yes);
CREATE OPERATOR regress_ledger_traps.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_ledger_traps.yes);
CREATE FUNCTION regress_ledger_traps.has_function_privilege(regprocedure, text) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION regress_ledger_traps.to_regrole(text) RETURNS regrole LANGUAGE sql AS 'SELECT NULL::regrole';
CREATE FUNCTION regress_ledger_traps.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '2025-05-01'::timestamptz $$;
CREATE FUNCTION regress_ledger_traps._llm_reports_all() RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE TABLE regress_ledger_traps.llm_requests AS SELECT generate_series(1, 500)::bigint AS request_id;
GRANT SELECT ON regress_ledger_traps.llm_requests TO PUBLIC;
SET search_path = regress_ledger_traps, pg_catalog, public;
SET ROLE regress_ledger_app;
SELECT (SELECT count(*) FROM public.llm_requests) AS requests, (SELECT count(*) FROM public.llm_attempts) AS attempts,
    (SELECT count(*) FROM public.llm_daily_spend) AS days, (SELECT count(*) FROM public.llm_spend_today) AS today,
    (SELECT sum(requests) FROM public.llm_fallback_report) AS fallback, (SELECT sum(requests) FROM public.llm_routing_report) AS routing;
RESET ROLE;
-- nor does it matter when the extension is created
BEGIN;
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway SCHEMA public;
SELECT public.llm_grant('regress_ledger_app');
INSERT INTO public.llm_requests(request_id, created_at, operation, role, role_oid, status, attempts, fallback, cost_source)
VALUES (1, pg_catalog.now(), 'chat', 'x', 1, 'ok', 1, false, 'none');
INSERT INTO public.llm_attempts(request_id, attempt, provider, model, started_at, cost_source) VALUES (1, 1, 'p', 'm', pg_catalog.now(), 'none');
INSERT INTO public.llm_daily_spend(day, provider, model, task, model_tier, priority, role) VALUES ('2025-05-01', '', '', '', '', '', 'x');
SET LOCAL ROLE regress_ledger_app;
SELECT (SELECT count(*) FROM public.llm_requests) AS requests, (SELECT count(*) FROM public.llm_attempts) AS attempts,
    (SELECT count(*) FROM public.llm_daily_spend) AS days, (SELECT count(*) FROM public.llm_spend_today) AS today;
ROLLBACK;
RESET search_path;
DROP SCHEMA regress_ledger_traps CASCADE;
-- in a schema with an odd name, and when that is renamed
BEGIN;
DROP EXTENSION llm_gateway;
CREATE SCHEMA "regress Ledger";
CREATE EXTENSION llm_gateway SCHEMA "regress Ledger";
SELECT "regress Ledger".llm_grant('regress_ledger_app'), "regress Ledger".llm_grant('regress_ledger_report', 'report');
INSERT INTO "regress Ledger".llm_daily_spend(day, provider, model, task, model_tier, priority, role)
VALUES ('2025-05-01', '', '', '', '', '', 'regress_ledger_app'), ('2025-05-01', '', '', '', '', '', 'x');
SELECT pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM "regress Ledger".llm_daily_spend') AS call,
       pg_temp.as_role('regress_ledger_report', 'SELECT count(*) FROM "regress Ledger".llm_daily_spend') AS report;
ALTER SCHEMA "regress Ledger" RENAME TO "regress ledger 2";
SELECT pg_temp.as_role('regress_ledger_app', 'SELECT count(*) FROM "regress ledger 2".llm_daily_spend') AS call,
       pg_temp.as_role('regress_ledger_report', 'SELECT count(*) FROM "regress ledger 2".llm_daily_spend') AS report,
       pg_temp.as_role('regress_ledger_report', 'SELECT count(*) >= 0 FROM "regress ledger 2".llm_worker_status') AS worker;
ROLLBACK;

-- ---------------------------------------------------------------------------
-- What is taken back: two words give the right to read the ledger, and the
-- last one that is revoked takes it away
-- ---------------------------------------------------------------------------

CREATE FUNCTION pg_temp.rights(role text) RETURNS TABLE (calls text, requests text, spend text, worker text, config text) LANGUAGE sql AS $$
    SELECT pg_temp.as_role(role, 'SELECT llm_complete(NULL)'), pg_temp.as_role(role, 'SELECT count(*) FROM llm_requests'),
           pg_temp.as_role(role, 'SELECT count(*) >= 0 FROM llm_spend_today'), pg_temp.as_role(role, 'SELECT count(*) >= 0 FROM llm_worker_status'),
           pg_temp.as_role(role, 'SELECT count(*) FROM llm_providers') $$;
BEGIN;
SELECT llm_grant('regress_ledger_app', 'report');
SELECT * FROM pg_temp.rights('regress_ledger_app');
SELECT llm_revoke('regress_ledger_app', 'call');
SELECT * FROM pg_temp.rights('regress_ledger_app');
SELECT llm_grant('regress_ledger_app', 'call'), llm_revoke('regress_ledger_app', 'report');
SELECT * FROM pg_temp.rights('regress_ledger_app');
SELECT llm_revoke('regress_ledger_app', 'call');
SELECT * FROM pg_temp.rights('regress_ledger_app');
-- of an administrator
SELECT llm_revoke('regress_ledger_admin', 'report');
SELECT * FROM pg_temp.rights('regress_ledger_admin');
SELECT llm_grant('regress_ledger_admin', 'report'), llm_revoke('regress_ledger_admin', 'call');
SELECT * FROM pg_temp.rights('regress_ledger_admin');
SELECT llm_grant('regress_ledger_admin', 'call'), llm_revoke('regress_ledger_admin', 'admin');
SELECT * FROM pg_temp.rights('regress_ledger_admin');
-- what another role gives is not this one's
SELECT llm_grant('regress_ledger_heir', 'call'), llm_revoke('regress_ledger_heir', 'call');
SELECT * FROM pg_temp.rights('regress_ledger_heir');
REVOKE regress_ledger_report FROM regress_ledger_heir;
SELECT * FROM pg_temp.rights('regress_ledger_heir');
ROLLBACK;
-- twice given is once taken back, and nothing is left
SELECT llm_grant('regress_ledger_app'), llm_grant('regress_ledger_app');
SELECT llm_revoke('regress_ledger_app', 'admin'), llm_revoke('"regress ledger ""Odd"""', 'admin'),
    llm_revoke('regress_ledger_report', 'admin'), llm_revoke('regress_ledger_admin', 'admin');
SELECT count(*) AS left_over FROM pg_class, aclexplode(relacl) a WHERE a.grantee::regrole::text ~ 'regress.ledger'
UNION ALL SELECT count(*) FROM pg_proc, aclexplode(proacl) a WHERE a.grantee::regrole::text ~ 'regress.ledger';

-- ---------------------------------------------------------------------------
-- A call
-- ---------------------------------------------------------------------------

TRUNCATE llm_requests, llm_attempts, llm_daily_spend;
-- the worker may have to start first
SET llm_gateway.ledger_sync_timeout = '60s';
SELECT count(*) FROM llm_add_provider('mock');
SELECT llm_complete('hello', 'high', model => 'mock-standard', max_tokens => 100, tags => '{"team": "search"}');
SELECT operation, role = current_user AND role_oid = current_user::regrole AS me, application_name, task, priority, requested_model, provider,
    model, model_tier, status, error_class, finish_reason
FROM llm_requests;
SELECT attempts, fallback, input_tokens, cached_input_tokens, output_tokens, estimated_usd, cost_usd, cost_source, tags,
    length(prompt_hash) AS hash, prompt, response
FROM llm_requests;
SELECT attempt, provider, model, error_class, message, input_tokens, output_tokens, cost_usd, cost_source FROM llm_attempts;
SELECT day = (created_at AT TIME ZONE 'UTC')::date AS day, s.provider, s.model, s.task, s.model_tier, s.priority, s.role = r.role AS role,
    requests, failures, cached, fallbacks, unpriced, s.input_tokens, s.output_tokens, s.estimated_usd, s.cost_usd
FROM llm_daily_spend s, llm_requests r;
:proof

-- As it was.
DROP EXTENSION llm_gateway;
DROP ROLE regress_ledger_none, regress_ledger_app, "regress ledger ""Odd""", regress_ledger_report, regress_ledger_admin,
    regress_ledger_heir, regress_ledger_member, regress_ledger_bypass;
RESET llm_gateway.ledger_sync_timeout;
RESET datestyle;
RESET client_min_messages;
CREATE EXTENSION llm_gateway;
