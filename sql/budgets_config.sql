-- llm_budgets: what may be written, which ids budgets have, what they begin with.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_budget_admin;
CREATE ROLE regress_budget_team;
CREATE ROLE regress_budget_member IN ROLE regress_budget_team;
CREATE ROLE regress_budget_super SUPERUSER;
SELECT llm_grant('regress_budget_admin', 'admin');
SELECT count(*) FROM llm_add_provider('mock');
SELECT llm_grant('regress_budget_team');
-- of other tests
DELETE FROM llm_requests;
DELETE FROM llm_attempts;

-- ---------------------------------------------------------------------------
-- Every column but the name has a default
-- ---------------------------------------------------------------------------
INSERT INTO llm_budgets(name, limit_usd) VALUES ('all', 100);
INSERT INTO llm_budgets(name) VALUES ('counted');
SELECT name, limit_usd, period, timezone, reserve_fraction, strict, on_exhausted, role, task, provider, model, tags
FROM llm_budgets ORDER BY id;
SELECT opening_usd, opening_period = date_trunc('month', now(), 'UTC') FROM llm_budgets;

-- by who is granted admin, and nobody who is not
SET ROLE regress_budget_admin;
INSERT INTO llm_budgets(name, limit_usd) VALUES ('by admin', 1);
UPDATE llm_budgets SET task = 'chat' WHERE name = 'by admin';
DELETE FROM llm_budgets WHERE name = 'by admin';
SELECT nextval('_llm_budget_id_seq');
RESET ROLE;
SET ROLE regress_budget_team;
SELECT * FROM llm_budgets;
INSERT INTO llm_budgets(name, limit_usd) VALUES ('by team', 1);
RESET ROLE;

-- ---------------------------------------------------------------------------
-- What is refused, and how
-- ---------------------------------------------------------------------------
\set VERBOSITY terse
INSERT INTO llm_budgets(limit_usd) VALUES (1);
INSERT INTO llm_budgets(name) VALUES ('all');
INSERT INTO llm_budgets(name, period) VALUES ('b', NULL);
INSERT INTO llm_budgets(name, timezone) VALUES ('b', NULL);
INSERT INTO llm_budgets(name, strict) VALUES ('b', NULL);
\set VERBOSITY default
INSERT INTO llm_budgets(name) VALUES ('');
INSERT INTO llm_budgets(name) VALUES (repeat('b', 64));
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', -0.01);
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', 'NaN');
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', 'Infinity');
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', 9000000001);
INSERT INTO llm_budgets(name, period) VALUES ('b', 'year');
INSERT INTO llm_budgets(name, period) VALUES ('b', 'Month');
INSERT INTO llm_budgets(name, timezone) VALUES ('b', 'Mars/Olympus');
INSERT INTO llm_budgets(name, timezone) VALUES ('b', '');
INSERT INTO llm_budgets(name, timezone) VALUES ('b', repeat('x', 300));
INSERT INTO llm_budgets(name, reserve_fraction) VALUES ('b', 1);
INSERT INTO llm_budgets(name, reserve_fraction) VALUES ('b', -0.1);
INSERT INTO llm_budgets(name, reserve_fraction) VALUES ('b', 'NaN');
INSERT INTO llm_budgets(name, on_exhausted) VALUES ('b', 'ask');
INSERT INTO llm_budgets(name, task) VALUES ('b', 'none such');
INSERT INTO llm_budgets(name, provider) VALUES ('b', 'none such');
INSERT INTO llm_budgets(name, provider) VALUES ('b', '');
INSERT INTO llm_budgets(name, tags) VALUES ('b', '["team"]');
INSERT INTO llm_budgets(name, model) VALUES ('b', '');
INSERT INTO llm_budgets(id, name) VALUES (0, 'b');
INSERT INTO llm_budgets(name, opening_usd) VALUES ('b', 1);
INSERT INTO llm_budgets(name, opening_period) VALUES ('b', '2026-01-01');
UPDATE llm_budgets SET limit_usd = -1 WHERE name = 'all';

-- warned of: it may come later
BEGIN;
INSERT INTO llm_budgets(name, role) VALUES ('w1', 'regress_budget_nobody');
INSERT INTO llm_budgets(name, model) VALUES ('w2', 'none such');
ROLLBACK;

-- accepted
BEGIN;
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b1', 0), ('b2', 9000000000), ('b3', 0.000000000001);
INSERT INTO llm_budgets(name, timezone) VALUES ('z1', 'Europe/Berlin'), ('z2', 'utc'), ('z3', 'XYZ+05:30'), ('z4', '<-03>3');
INSERT INTO llm_budgets(name, period, on_exhausted, reserve_fraction, strict)
VALUES ('p1', 'hour', 'cache_only', 0, true), ('p2', 'day', 'reject', 0.999, false), ('p3', 'week', 'reject', 0.5, false);
INSERT INTO llm_budgets(name, role, task, provider, model, tags)
VALUES ('s', 'regress_budget_team', 'chat', 'mock', 'mock/mock-premium', '{"team": "x"}');
SELECT name, opening_period = date_trunc(period, now(), timezone) FROM llm_budgets WHERE name LIKE 'p%' OR name = 'z1' ORDER BY id;
ROLLBACK;

-- ---------------------------------------------------------------------------
-- Ids
-- ---------------------------------------------------------------------------
CREATE TABLE pg_temp.ids AS SELECT name, id FROM llm_budgets;
CREATE FUNCTION pg_temp.ids() RETURNS TABLE (name text, same_id boolean) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT b.name, b.id = i.id FROM llm_budgets b LEFT JOIN pg_temp.ids i USING (name) ORDER BY b.id;
    DELETE FROM pg_temp.ids;
    INSERT INTO pg_temp.ids SELECT b.name, b.id FROM llm_budgets b;
END $$;

-- kept by what changes nothing of what is counted
UPDATE llm_budgets SET limit_usd = 50, reserve_fraction = 0.1, strict = true, on_exhausted = 'cache_only' WHERE name = 'all';
UPDATE llm_budgets SET role = NULL, period = 'month', id = id WHERE name = 'all';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET name = 'everything' WHERE name = 'all';
SELECT i.id = b.id FROM llm_budgets b, pg_temp.ids i WHERE b.name = 'everything' AND i.name = 'all';
SELECT * FROM pg_temp.ids();

-- another one for each change of what is counted
UPDATE llm_budgets SET role = 'regress_budget_team' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET task = 'chat' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET provider = 'mock' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET model = 'mock-premium' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET tags = '{"a": 1, "b": 2}' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET tags = '{"b": 2, "a": 1.0}' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET period = 'day' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();
UPDATE llm_budgets SET timezone = 'Asia/Tokyo' WHERE name = 'counted';
SELECT * FROM pg_temp.ids();

-- and never by hand
UPDATE llm_budgets SET id = 0 WHERE name = 'counted';
UPDATE llm_budgets SET id = 1000000 WHERE name = 'counted';
UPDATE llm_budgets SET id = DEFAULT WHERE name = 'counted';
UPDATE llm_budgets SET opening_usd = 5 WHERE name = 'counted';
UPDATE llm_budgets SET opening_period = NULL WHERE name = 'counted';

-- not given again after a rollback, a delete, or a failed insert
SELECT max(id) AS last FROM llm_budgets \gset
BEGIN;
INSERT INTO llm_budgets(name) VALUES ('rolled back') RETURNING id - :last;
ROLLBACK;
INSERT INTO llm_budgets(name, limit_usd) VALUES ('counted', 1);
INSERT INTO llm_budgets(name) VALUES ('deleted') RETURNING id - :last;
DELETE FROM llm_budgets WHERE name = 'deleted';
INSERT INTO llm_budgets(name) VALUES ('next') RETURNING id - :last;

-- a restored row keeps its id and opening, and later ids are above it
INSERT INTO llm_budgets(id, name, opening_usd, opening_period)
SELECT max(id) + 10, 'restored', 1.5, '2026-01-01' FROM llm_budgets RETURNING id - :last, opening_usd;
INSERT INTO llm_budgets(name) VALUES ('after') RETURNING id - :last;
INSERT INTO llm_budgets(id, name) SELECT max(id) - 5, 'restored later' FROM llm_budgets RETURNING id - :last, opening_usd;
INSERT INTO llm_budgets(name) VALUES ('after both') RETURNING id - :last;
\set VERBOSITY terse
INSERT INTO llm_budgets(id, name) SELECT id, 'the same id' FROM llm_budgets WHERE name = 'restored';
\set VERBOSITY default

-- an upsert
INSERT INTO llm_budgets(name, limit_usd) VALUES ('restored', 3)
ON CONFLICT (name) DO UPDATE SET limit_usd = excluded.limit_usd RETURNING id - :last, limit_usd, opening_usd;

-- a replica takes over what the primary's trigger has decided
SET session_replication_role = replica;
UPDATE llm_budgets SET id = id + 100, task = 'chat', opening_usd = 7 WHERE name = 'restored' RETURNING id - :last, opening_usd;
RESET session_replication_role;
INSERT INTO llm_budgets(name) VALUES ('after replay') RETURNING id - :last;
DELETE FROM llm_budgets;

-- ---------------------------------------------------------------------------
-- References
-- ---------------------------------------------------------------------------
INSERT INTO llm_providers(name, kind) VALUES ('a', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('a', 'm');
INSERT INTO llm_tasks(name) VALUES ('t');
INSERT INTO llm_budgets(name, task) VALUES ('task', 't');
INSERT INTO llm_budgets(name, provider) VALUES ('provider', 'a');
INSERT INTO llm_budgets(name, model) VALUES ('model', 'a/m'), ('name', 'm');
SELECT count(*) FROM pg_temp.ids();
UPDATE llm_providers SET name = 'b' WHERE name = 'a';
UPDATE llm_tasks SET name = 'u' WHERE name = 't';
SELECT name, task, provider, model FROM llm_budgets ORDER BY id;
SELECT * FROM pg_temp.ids();
DELETE FROM llm_providers WHERE name = 'b';
DELETE FROM llm_tasks WHERE name = 'u';
TRUNCATE llm_tasks;
DELETE FROM llm_budgets WHERE name IN ('task', 'provider');
DELETE FROM llm_providers WHERE name = 'b';
DELETE FROM llm_tasks WHERE name = 'u';
SELECT name, task, provider, model FROM llm_budgets ORDER BY id;
-- roles are no rows of these tables: another name is another scope
INSERT INTO llm_budgets(name, role) VALUES ('role', 'regress_budget_member');
ALTER ROLE regress_budget_member RENAME TO regress_budget_renamed;
SELECT role FROM llm_budgets WHERE name = 'role';
ALTER ROLE regress_budget_renamed RENAME TO regress_budget_member;
TRUNCATE llm_budgets;

-- ---------------------------------------------------------------------------
-- What has been spent already
-- ---------------------------------------------------------------------------
CREATE FUNCTION pg_temp.spent(request bigint, attempt int, who text, at timestamptz, provider text, model text, cost numeric,
                              task text DEFAULT NULL, tags jsonb DEFAULT NULL, who_oid oid DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO llm_requests(request_id, created_at, operation, role, role_oid, task, tags, status, attempts, fallback, cost_source)
    VALUES (request, at, 'complete', who, coalesce(who_oid, to_regrole(who)::oid, 0), task, tags, 'ok', 1, false, 'usage')
    ON CONFLICT DO NOTHING;
    INSERT INTO llm_attempts(request_id, attempt, provider, model, started_at, cost_usd, cost_source)
    VALUES (request, attempt, provider, model, at, cost, 'usage');
$$;
-- sums of powers of two: which ones were counted can be read off
SELECT pg_temp.spent(1, 1, 'regress_budget_team', date_trunc('month', now(), 'UTC'), 'mock', 'mock-premium', 1),
       pg_temp.spent(1, 2, 'regress_budget_team', date_trunc('month', now(), 'UTC'), 'other', 'mock-premium', 2),
       pg_temp.spent(2, 1, 'regress_budget_member', now(), 'mock', 'mock-economy', 4, 'chat', '{"team": "x", "n": 1}'),
       pg_temp.spent(3, 1, 'regress_budget_super', now(), 'mock', 'mock-premium', 8, 'math', '{"team": "y"}'),
       pg_temp.spent(4, 1, 'regress_budget_gone', now(), 'mock', 'mock/mock-premium', 16),
       pg_temp.spent(5, 1, 'regress_budget_team', date_trunc('month', now(), 'UTC') - interval '1 us', 'mock', 'mock-premium', 32),
       pg_temp.spent(6, 1, 'regress_budget_team', now(), 'mock', 'mock-premium', NULL),
       -- one that has another name by now; and a name's former owner, as after a restore
       pg_temp.spent(7, 1, 'regress_budget_old_name', now(), 'mock', 'other', 64, who_oid => 'regress_budget_member'::regrole),
       pg_temp.spent(8, 1, 'regress_budget_member', now(), 'mock', 'other', 128, who_oid => 1),
       pg_temp.spent(9, 1, 'regress_budget_admin', now(), 'mock', 'other', 256, who_oid => 'regress_budget_member'::regrole);
-- who has "admin" sees the ledger anyhow; who has only the table does not, and it counts all the same
REVOKE SELECT ON llm_requests, llm_attempts FROM regress_budget_admin;
SET ROLE regress_budget_admin;
INSERT INTO llm_budgets(name, role, task, provider, model, tags) VALUES
    ('all', NULL, NULL, NULL, NULL, NULL),
    ('team', 'regress_budget_team', NULL, NULL, NULL, NULL),
    ('member', 'regress_budget_member', NULL, NULL, NULL, NULL),
    ('super', 'regress_budget_super', NULL, NULL, NULL, NULL),
    ('task', NULL, 'chat', NULL, NULL, NULL),
    ('tags', NULL, NULL, NULL, NULL, '{"team": "x"}'),
    ('no tags', NULL, NULL, NULL, NULL, '{}'),
    ('provider', NULL, NULL, 'mock', NULL, NULL),
    ('model', NULL, NULL, NULL, 'mock-premium', NULL),
    ('model at provider', NULL, NULL, NULL, 'mock/mock-premium', NULL),
    ('model of provider', NULL, NULL, 'mock', 'mock-premium', NULL),
    ('several', 'regress_budget_team', 'chat', 'mock', NULL, '{"n": 1.0}');
SELECT name, opening_usd FROM llm_budgets ORDER BY id;
RESET ROLE;
-- computed anew with a new scope, kept with the old one
SELECT pg_temp.spent(10, 1, 'regress_budget_team', now(), 'mock', 'mock-premium', 512);
UPDATE llm_budgets SET limit_usd = 1000 WHERE name = 'team' RETURNING opening_usd;
UPDATE llm_budgets SET task = 'math' WHERE name = 'all' RETURNING opening_usd;
UPDATE llm_budgets SET task = NULL WHERE name = 'all' RETURNING opening_usd;
UPDATE llm_budgets SET role = 'regress_budget_nobody' WHERE name = 'all' RETURNING opening_usd;
-- by zone: in a period that began at another time
UPDATE llm_budgets SET timezone = 'XYZ-14', role = NULL WHERE name = 'all'
RETURNING opening_period = date_trunc('month', now(), 'XYZ-14'),
          opening_usd = (SELECT sum(cost_usd) FROM llm_attempts WHERE started_at >= opening_period);

-- The ledger is read as its owner: what that one has attached to it (here the planner meets it) is
-- not run with more rights than that one has
CREATE ROLE regress_budget_ledger;
CREATE FUNCTION regress_budget_trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN IF current_user <> 'regress_budget_ledger' THEN RAISE 'run by another'; END IF; RETURN $1; END $$;
ALTER TABLE llm_requests OWNER TO regress_budget_ledger;
INSERT INTO llm_budgets(name, task) VALUES ('two owners', 'chat');
ALTER TABLE llm_attempts OWNER TO regress_budget_ledger;
CREATE INDEX regress_budget_index ON llm_attempts ((attempt + regress_budget_trap(1)));
SELECT count(*) FROM llm_attempts;
SET ROLE regress_budget_admin;
INSERT INTO llm_budgets(name, task) VALUES ('one owner', 'chat') RETURNING opening_usd;
RESET ROLE;
DROP INDEX regress_budget_index;
DROP FUNCTION regress_budget_trap;
DO $$ BEGIN EXECUTE format('ALTER TABLE llm_attempts OWNER TO %I', current_user); EXECUTE format('ALTER TABLE llm_requests OWNER TO %I', current_user); END $$;
DROP ROLE regress_budget_ledger;
DELETE FROM llm_requests;
DELETE FROM llm_attempts;
DELETE FROM llm_budgets;

-- ---------------------------------------------------------------------------
-- Tasks and priorities, as budgets need them
-- ---------------------------------------------------------------------------
UPDATE llm_tasks SET cache_ttl = '0' WHERE name = 'chat';
UPDATE llm_tasks SET optimize = 'none' WHERE name = 'chat';
UPDATE llm_priorities SET economy_above = 0.5 WHERE name = 'normal';
UPDATE llm_priorities SET standard_above = 0.9 WHERE name = 'normal';
UPDATE llm_priorities SET premium_above = 1.1 WHERE name = 'normal';

DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;
SELECT llm_revoke('regress_budget_admin', 'admin'), llm_revoke('regress_budget_team');
REVOKE ALL ON SCHEMA public FROM regress_budget_admin, regress_budget_team;
DROP ROLE regress_budget_member, regress_budget_team, regress_budget_admin, regress_budget_super;
