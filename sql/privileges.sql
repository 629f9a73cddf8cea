-- Who may do what: roles without a grant, and with call, report and admin.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE ROLE regress_llm_none;
CREATE ROLE regress_llm_call;
CREATE ROLE regress_llm_report;
CREATE ROLE regress_llm_admin;
CREATE ROLE regress_llm_heir IN ROLE regress_llm_call;
CREATE ROLE regress_llm_vip;
CREATE ROLE "regress llm ""odd""";
SELECT llm_grant('regress_llm_call');
SELECT llm_grant('regress_llm_report', 'report');
SELECT llm_grant('regress_llm_admin', 'admin');
SELECT llm_grant('"regress llm ""odd"""', 'call');
SELECT count(*) FROM llm_add_provider('mock');
SELECT llm_set_secret('stored', 'regress-key-Vq8zR2mX4t');

-- ---------------------------------------------------------------------------
-- Everything that can be done, by everybody
-- ---------------------------------------------------------------------------

-- what happens to a statement of that role; nothing of it stays
CREATE FUNCTION pg_temp.as_role(role text, statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE format('SET LOCAL ROLE %I', role);
        EXECUTE statement;
        RAISE 'done' USING ERRCODE = 'ZZZZZ';
    EXCEPTION
        WHEN SQLSTATE 'ZZZZZ' THEN RETURN 'yes';
        WHEN OTHERS THEN RETURN SQLSTATE;
    END;
END $$;
CREATE TABLE pg_temp.statements (n serial, statement text);
INSERT INTO pg_temp.statements(statement) VALUES
    ($$SELECT llm_complete('hi')$$),
    ($$SELECT * FROM llm_complete_detail('hi')$$),
    ($$SELECT * FROM llm_complete_batch('{hi}')$$),
    ($$SELECT * FROM llm_add_provider('mock')$$),
    ($$SELECT llm_set_secret('x', 'x')$$),
    ($$SELECT llm_drop_secret('x')$$),
    ($$SELECT llm_grant('regress_llm_none')$$),
    ($$SELECT llm_revoke('regress_llm_call')$$);
INSERT INTO pg_temp.statements(statement)
SELECT format(form, t)
FROM unnest('{llm_providers,llm_models,llm_tiers,llm_priorities,llm_tasks,llm_routing_rules,llm_error_policies,llm_budgets,_llm_secrets,_llm_tombstones}'::text[])
     WITH ORDINALITY t(t, tn),
     unnest('{SELECT FROM %s,DELETE FROM %s WHERE false,LOCK TABLE %s IN ACCESS SHARE MODE,TRUNCATE %s,ALTER TABLE %s DISABLE TRIGGER ALL}'::text[])
     WITH ORDINALITY f(form, fn)
ORDER BY tn, fn;
INSERT INTO pg_temp.statements(statement) VALUES
    ($$INSERT INTO llm_providers(name, kind) VALUES ('x', 'mock')$$),
    ($$INSERT INTO llm_models(provider, name) VALUES ('mock', 'x')$$),
    ($$INSERT INTO llm_tiers(name) VALUES ('x')$$),
    ($$INSERT INTO llm_priorities(name) VALUES ('x')$$),
    ($$INSERT INTO llm_tasks(name) VALUES ('x')$$),
    ($$INSERT INTO llm_routing_rules(model) VALUES ('mock-economy')$$),
    ($$INSERT INTO llm_error_policies(error_class, provider) VALUES ('auth', 'x')$$),
    ($$INSERT INTO llm_budgets(name, limit_usd) VALUES ('x', 1)$$),
    ($$INSERT INTO _llm_secrets(name, value) VALUES ('x', 'x')$$),
    ($$INSERT INTO _llm_tombstones VALUES ('llm_tiers', '["premium"]')$$),
    ($$UPDATE llm_providers SET enabled = false$$),
    ($$UPDATE llm_models SET weight = 2$$),
    ($$UPDATE llm_tiers SET notice = ''$$),
    ($$UPDATE llm_priorities SET rank = 7$$),
    ($$UPDATE llm_tasks SET enabled = false$$),
    ($$UPDATE llm_routing_rules SET rank = 7$$),
    ($$UPDATE llm_error_policies SET max_retries = 2$$),
    ($$UPDATE llm_budgets SET task = 'chat'$$),
    ($$UPDATE llm_providers SET name = 'renamed'$$),
    ($$DELETE FROM llm_providers$$),
    ($$DELETE FROM llm_tiers WHERE name = 'none'$$),
    ($$DELETE FROM llm_tasks WHERE name = 'math'$$),
    ($$UPDATE _llm_secrets SET allowed_host = 'x'$$),
    ($$SELECT last_value FROM llm_routing_rules_id_seq$$),
    ($$SELECT nextval('llm_routing_rules_id_seq')$$),
    ($$SELECT setval('llm_routing_rules_id_seq', 1)$$),
    ($$SELECT last_value FROM _llm_budget_id_seq$$),
    ($$SELECT nextval('_llm_budget_id_seq')$$),
    ($$SELECT setval('_llm_budget_id_seq', 1)$$),
    ($$CREATE TRIGGER t BEFORE INSERT ON llm_tiers FOR EACH ROW EXECUTE FUNCTION _llm_config_row()$$),
    ($$SELECT _llm_secret_in('x')$$),
    ($$SELECT _llm_secret_out(value) FROM _llm_secrets$$),
    ($$CREATE TEMP TABLE t (s _llm_secret)$$),
    ($$SET llm_gateway.allowed_hosts = 'example.com'$$),
    ($$SET llm_gateway.secret_env_pattern = '*'$$),
    ($$SET llm_gateway.proxy = 'http://localhost:1'$$),
    ($$SET llm_gateway.ca_file = '/dev/null'$$),
    ($$SET llm_gateway.enabled = off$$),
    ($$SET llm_gateway.max_response_size = '1GB'$$),
    ($$SET llm_gateway.max_batch_concurrency = 1$$),
    ($$SET llm_gateway.on_error = 'null'$$),
    ($$SET llm_gateway.default_priority = 'high'$$),
    ($$SET llm_gateway.tags = '{}'$$),
    ($$SHOW llm_gateway.allowed_hosts$$),
    ($$SHOW llm_gateway.proxy$$),
    ($$DROP EXTENSION llm_gateway$$),
    ($$ALTER EXTENSION llm_gateway UPDATE$$);
SELECT statement,
       pg_temp.as_role('regress_llm_none', statement) AS none,
       pg_temp.as_role('regress_llm_call', statement) AS call,
       pg_temp.as_role('regress_llm_report', statement) AS report,
       pg_temp.as_role('regress_llm_admin', statement) AS admin
FROM pg_temp.statements ORDER BY n;
-- who inherits from a granted role, and a name that must be quoted
SELECT pg_temp.as_role('regress_llm_heir', 'SELECT llm_complete($$hi$$)') AS heir,
       pg_temp.as_role('regress llm "odd"', 'SELECT llm_complete($$hi$$)') AS odd;
-- the words of an error
SET ROLE regress_llm_none;
SELECT llm_complete('hi');
SELECT * FROM llm_providers;
RESET ROLE;

-- ---------------------------------------------------------------------------
-- Whose role counts
-- ---------------------------------------------------------------------------

UPDATE llm_priorities SET required_role = 'regress_llm_vip' WHERE name = 'critical';
CREATE FUNCTION regress_llm_wrapper(priority text) RETURNS text
LANGUAGE sql SECURITY DEFINER AS $$ SELECT public.llm_complete('hi', priority) $$;
-- a superuser is a member of every role
SELECT regress_llm_wrapper('critical');
-- a wrapper gives the right to call, and counts as whoever calls it
SET ROLE regress_llm_none;
SELECT regress_llm_wrapper('normal');
SELECT regress_llm_wrapper('critical');
RESET ROLE;
GRANT regress_llm_vip TO regress_llm_none;
SET ROLE regress_llm_none;
SELECT regress_llm_wrapper('critical');
RESET ROLE;
REVOKE regress_llm_vip FROM regress_llm_none;
-- the other way round: a wrapper of a member does not lend its membership
CREATE ROLE regress_llm_owner IN ROLE regress_llm_vip, regress_llm_call;
ALTER FUNCTION regress_llm_wrapper OWNER TO regress_llm_owner;
SET ROLE regress_llm_owner;
SELECT regress_llm_wrapper('critical');
SET ROLE regress_llm_heir;
SELECT regress_llm_wrapper('critical');
RESET ROLE;
-- rules for a role: those of whoever calls the wrapper
INSERT INTO llm_routing_rules(model, rank, role) VALUES ('mock-premium', 1, 'regress_llm_vip');
CREATE FUNCTION regress_llm_model() RETURNS text
LANGUAGE sql SECURITY DEFINER AS $$ SELECT model FROM public.llm_complete_detail('hi') $$;
ALTER FUNCTION regress_llm_model OWNER TO regress_llm_owner;
SET ROLE regress_llm_owner;
SELECT regress_llm_model();
SET ROLE regress_llm_heir;
SELECT regress_llm_model();
RESET ROLE;
DELETE FROM llm_routing_rules WHERE role IS NOT NULL;
UPDATE llm_priorities SET required_role = 'regress_llm_missing' WHERE name = 'critical';
SET ROLE regress_llm_call;
SELECT llm_complete('hi', 'critical');
RESET ROLE;
UPDATE llm_priorities SET required_role = NULL WHERE name = 'critical';

-- ---------------------------------------------------------------------------
-- Stored secrets
-- ---------------------------------------------------------------------------

-- row security lets nobody in, and the type shows asterisks to who bypasses it
CREATE ROLE regress_llm_bypass BYPASSRLS;
GRANT SELECT ON _llm_secrets TO regress_llm_report, regress_llm_bypass;
GRANT pg_read_all_data TO regress_llm_admin, regress_llm_bypass;
SET ROLE regress_llm_report;
SELECT count(*) FROM _llm_secrets;
SET ROLE regress_llm_admin;
SELECT count(*) FROM _llm_secrets;
SET row_security = off;
SELECT count(*) FROM _llm_secrets;
RESET row_security;
SET ROLE regress_llm_bypass;
SELECT name, value, value::text AS as_text, to_jsonb(value) AS as_json, format('%s', value) AS formatted,
       ARRAY[value] AS as_array, to_jsonb(s) ->> 'value' AS as_row
FROM _llm_secrets s;
COPY _llm_secrets(name, value) TO stdout;
COPY _llm_secrets(name, value) TO stdout (FORMAT binary);
SELECT name FROM _llm_secrets ORDER BY value;
CREATE TEMP TABLE t AS SELECT value FROM _llm_secrets;
-- records are compared byte by byte, whatever their columns show: no guess is the key, or nearer to it than another
SELECT count(*) FILTER (WHERE s *= g) AS equal
FROM (SELECT value FROM _llm_secrets) s, (SELECT 'regress-key-Vq8zR2mX4t'::_llm_secret) g;
RESET ROLE;
SELECT llm_set_secret(name, 'regress-key-Vq8zR2mX4t') FROM unnest('{a,b}'::text[]) name;
SET ROLE regress_llm_bypass;
SELECT a *= b AS equal
FROM (SELECT value FROM _llm_secrets WHERE name = 'a') a, (SELECT value FROM _llm_secrets WHERE name = 'b') b;
RESET ROLE;
SELECT value FROM _llm_secrets ORDER BY name COLLATE "C";
REVOKE SELECT ON _llm_secrets FROM regress_llm_report, regress_llm_bypass;
REVOKE pg_read_all_data FROM regress_llm_admin, regress_llm_bypass;
-- nothing about the values is in the statistics
ANALYZE _llm_secrets;
SELECT count(*) FROM pg_statistic s JOIN pg_attribute a ON a.attrelid = s.starelid AND a.attnum = s.staattnum
WHERE s.starelid = '_llm_secrets'::regclass AND a.attname = 'value';

-- ---------------------------------------------------------------------------
-- Where an administrator of the gateway may send calls
-- ---------------------------------------------------------------------------

INSERT INTO llm_providers(name, base_url) VALUES ('ours', 'https://api.example.com/v1');
SET ROLE regress_llm_admin;
-- to a preset's host
INSERT INTO llm_providers(name, base_url) VALUES ('o', 'https://api.openai.com/v1'), ('g', 'https://api.groq.com/openai/v1'), ('n', NULL);
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'https://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'https://api.openai.com:8443/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'https://api.openai.com.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'http://localhost:8000/v1');
UPDATE llm_providers SET base_url = 'https://api.example.com/v1' WHERE name = 'o';
UPDATE llm_providers SET base_url = 'https://elsewhere.example.com/v1' WHERE name = 'ours';
UPDATE llm_providers SET base_url = NULL WHERE name = 'ours';
SELECT * FROM llm_add_provider('x', kind => 'openai', base_url => 'https://api.example.com/v1');
COPY llm_providers(name, base_url) FROM stdin;
x	https://api.example.com/v1
\.
-- nor by way of a kind that has no use for it
INSERT INTO llm_providers(name, kind, base_url) VALUES ('x', 'mock', 'https://api.example.com/v1');
UPDATE llm_providers SET kind = 'openai' WHERE name = 'x';
DELETE FROM llm_providers WHERE name = 'x';
-- nor a probe
INSERT INTO llm_providers(name, probe) VALUES ('x', 'https://api.example.com/health');
UPDATE llm_providers SET probe = 'https://api.example.com/health' WHERE name = 'o';
UPDATE llm_providers SET probe = 'https://api.openai.com/health' WHERE name = 'o';
SET check_function_bodies = off;
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'https://api.example.com/v1');
INSERT INTO llm_providers(name, api_key) VALUES ('x', 'env:HOME');
RESET check_function_bodies;
-- what a superuser wrote may be switched off and on
RESET ROLE;
UPDATE llm_providers SET base_url = 'https://api.example.com/v1' WHERE name = 'ours';
SET ROLE regress_llm_admin;
UPDATE llm_providers SET enabled = false, weight = 2 WHERE name = 'ours';
UPDATE llm_providers SET enabled = true, base_url = 'https://api.example.com/v1' WHERE name = 'ours';
SELECT name, base_url, enabled FROM llm_providers ORDER BY name COLLATE "C";
-- a preset's key: to its own host only, however the two come together
SELECT * FROM llm_add_provider('openai', base_url => 'https://api.deepseek.com', models => '{m}');
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('x', 'https://api.deepseek.com', 'env:OPENAI_API_KEY');
INSERT INTO llm_providers(name, kind, api_key) VALUES ('x', 'anthropic', 'env:OPENAI_API_KEY');
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('x', 'https://api.openai.com/v1', 'env:OPENAI_API_KEY'), ('y', NULL, 'env:OPENAI_API_KEY');
UPDATE llm_providers SET base_url = 'https://api.deepseek.com' WHERE name = 'x';
UPDATE llm_providers SET kind = 'anthropic' WHERE name = 'y';
UPDATE llm_providers SET api_key = 'env:GROQ_API_KEY' WHERE name = 'y';
UPDATE llm_providers SET probe = 'https://api.deepseek.com/health' WHERE name = 'y';
UPDATE llm_providers SET kind = 'mock' WHERE name = 'y';
UPDATE llm_providers SET base_url = 'https://api.deepseek.com' WHERE name = 'y';
UPDATE llm_providers SET kind = 'openai' WHERE name = 'y';
DELETE FROM llm_providers WHERE name = 'y';
INSERT INTO llm_providers(name, probe) VALUES ('y', 'https://api.deepseek.com/health');
UPDATE llm_providers SET api_key = 'env:OPENAI_API_KEY' WHERE name = 'y';
COPY llm_providers(name, base_url, api_key) FROM stdin;
z	https://api.groq.com/openai/v1	env:DEEPSEEK_API_KEY
\.
-- another name may be any preset's; other columns and other paths of the host choose no host
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('z', 'https://api.deepseek.com', 'env:EU_OPENAI_API_KEY');
UPDATE llm_providers SET base_url = 'https://API.openai.com:443/v2', api_key = 'env:OPENAI_API_KEY', weight = 3 WHERE name = 'x';
-- what a superuser paired stays
RESET ROLE;
UPDATE llm_providers SET base_url = 'https://api.deepseek.com' WHERE name = 'x';
SET ROLE regress_llm_admin;
UPDATE llm_providers SET enabled = false, base_url = 'https://api.deepseek.com' WHERE name = 'x';
UPDATE llm_providers SET base_url = 'https://api.groq.com/openai/v1' WHERE name = 'x';
RESET ROLE;
DELETE FROM llm_providers WHERE name IN ('x', 'y', 'z');
-- that a host is listed does not say that every key may go there
SET llm_gateway.allowed_hosts = 'api.openai.com, api.deepseek.com, *.openai.azure.com, proxy.example.com';
SET ROLE regress_llm_admin;
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('x', 'https://api.deepseek.com', 'env:OPENAI_API_KEY');
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('x', 'https://proxy.example.com', 'env:OPENAI_API_KEY');
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('x', 'https://api.deepseek.com', 'env:AZURE_OPENAI_API_KEY');
INSERT INTO llm_providers(name, kind, base_url, api_key) VALUES ('x', 'azure', 'https://ours.openai.azure.com', 'env:AZURE_OPENAI_API_KEY');
DELETE FROM llm_providers WHERE name = 'x';
RESET ROLE;
RESET llm_gateway.allowed_hosts;
-- as soon as hosts are listed: to those
RESET ROLE;
SET llm_gateway.allowed_hosts = 'api.example.com';
SET ROLE regress_llm_admin;
INSERT INTO llm_providers(name, base_url) VALUES ('x', 'https://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('y', 'https://api.openai.com/v1');
RESET ROLE;
RESET llm_gateway.allowed_hosts;
DELETE FROM llm_providers WHERE kind <> 'mock';

-- ---------------------------------------------------------------------------
-- Granting
-- ---------------------------------------------------------------------------

SELECT llm_grant('regress_llm_none', 'everything');
SELECT llm_grant('regress_llm_missing', 'call');
SELECT llm_grant(0, 'call');
SELECT llm_grant(NULL, 'call');
SELECT llm_grant('regress_llm_none', NULL);
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)');
SELECT llm_revoke('regress_llm_none', NULL);
SELECT llm_revoke('regress_llm_none');
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)');
-- who is not the owner cannot grant, by the function or by hand
SET ROLE regress_llm_admin;
SELECT llm_grant('regress_llm_none');
SELECT llm_revoke('regress_llm_call');
RESET ROLE;
-- also not where the function itself was granted: it does what its caller could
GRANT EXECUTE ON FUNCTION llm_grant, llm_revoke TO regress_llm_none, regress_llm_admin;
SELECT pg_temp.as_role('regress_llm_none', $$SELECT llm_grant('regress_llm_none', 'admin')$$);
-- (PostgreSQL's word for a grant without grant option is a warning for each object)
SET client_min_messages = error;
SET ROLE regress_llm_admin;
SELECT llm_grant('regress_llm_none', 'call');
SELECT llm_revoke('regress_llm_call', 'call');
RESET ROLE;
SET client_min_messages = warning;
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)') AS none,
       pg_temp.as_role('regress_llm_call', 'SELECT llm_complete($$hi$$)') AS call;
REVOKE EXECUTE ON FUNCTION llm_grant, llm_revoke FROM regress_llm_none, regress_llm_admin;
-- what is taken back: that level; admin is all three
SELECT llm_grant('regress_llm_none', 'admin');
SELECT llm_revoke('regress_llm_none', 'report');
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)') AS call,
       pg_temp.as_role('regress_llm_none', 'TABLE llm_models') AS report,
       pg_temp.as_role('regress_llm_none', 'INSERT INTO llm_tiers(name) VALUES ($$x$$)') AS admin;
SELECT llm_revoke('regress_llm_none', 'admin');
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)') AS call,
       pg_temp.as_role('regress_llm_none', 'TABLE llm_models') AS report,
       pg_temp.as_role('regress_llm_none', 'INSERT INTO llm_tiers(name) VALUES ($$x$$)') AS admin;
-- undone with its transaction
BEGIN;
SELECT llm_grant('regress_llm_none');
ROLLBACK;
SELECT pg_temp.as_role('regress_llm_none', 'SELECT llm_complete($$hi$$)') AS call;
-- the right to use the schema comes with the first grant
BEGIN;
DROP FUNCTION regress_llm_wrapper, regress_llm_model;
DROP EXTENSION llm_gateway;
CREATE SCHEMA "regress Gateway";
CREATE EXTENSION llm_gateway SCHEMA "regress Gateway";
SELECT count(*) FROM "regress Gateway".llm_add_provider('mock');
SELECT "regress Gateway".llm_grant('regress_llm_none');
SET LOCAL ROLE regress_llm_none;
SELECT "regress Gateway".llm_complete('hi');
ROLLBACK;

-- ---------------------------------------------------------------------------
-- A search path full of traps.  They belong to a superuser here, so that only
-- names keep us from them, and each of them says when it is sprung.
-- ---------------------------------------------------------------------------

CREATE SCHEMA regress_llm_traps;
GRANT ALL ON SCHEMA regress_llm_traps TO PUBLIC;
CREATE FUNCTION regress_llm_traps.trap() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps.quote_literal(text) RETURNS text LANGUAGE sql AS 'SELECT regress_llm_traps.trap()';
CREATE FUNCTION regress_llm_traps.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT regress_llm_traps.trap()::timestamptz';
CREATE FUNCTION regress_llm_traps._llm_config_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps._llm_secret_out(text) RETURNS text LANGUAGE sql AS 'SELECT regress_llm_traps.trap()';
CREATE OPERATOR regress_llm_traps.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_llm_traps.trap);
CREATE OPERATOR regress_llm_traps.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_llm_traps.trap);
CREATE TYPE regress_llm_traps.text AS (trap int);
CREATE TYPE regress_llm_traps.jsonb AS (trap int);
CREATE TYPE regress_llm_traps.int4 AS (trap int);
CREATE TYPE regress_llm_traps.numeric AS (trap int);
CREATE TABLE regress_llm_traps.llm_providers AS SELECT 'trap'::pg_catalog.text AS name, 'openai'::pg_catalog.text AS kind,
    NULL::pg_catalog.text AS base_url, 'env:TRAP_API_KEY'::pg_catalog.text AS api_key, true AS enabled;
CREATE TABLE regress_llm_traps.llm_models AS SELECT 'trap'::pg_catalog.text AS provider, 'trap'::pg_catalog.text AS name;
CREATE TABLE regress_llm_traps.llm_routing_rules AS SELECT 1 AS id, 'trap'::pg_catalog.text AS model;
CREATE TABLE regress_llm_traps.llm_tiers AS SELECT 'trap'::pg_catalog.text AS name;
CREATE TABLE regress_llm_traps.llm_priorities AS SELECT 'normal'::pg_catalog.text AS name, 'regress_llm_vip'::pg_catalog.text AS required_role;
CREATE TABLE regress_llm_traps._llm_secrets AS SELECT 'stored'::pg_catalog.text AS name, 'trap'::pg_catalog.text AS value;
CREATE TABLE regress_llm_traps._llm_tombstones AS SELECT 'llm_tiers'::pg_catalog.text AS table_name;
GRANT ALL ON ALL TABLES IN SCHEMA regress_llm_traps TO PUBLIC;
SET ROLE regress_llm_admin;
CREATE TEMP TABLE llm_providers (name pg_catalog.text, trap int);
CREATE TEMP TABLE llm_models (provider pg_catalog.text, name pg_catalog.text);
CREATE TEMP TABLE llm_tasks (name pg_catalog.text);
CREATE TEMP TABLE llm_error_policies (error_class pg_catalog.text);
SET search_path = regress_llm_traps, pg_catalog, public;
-- the trap is one
SELECT 'a'::pg_catalog.text = 'a'::pg_catalog.text;
SELECT public.llm_complete('hi', model => 'mock-economy');
SELECT model FROM public.llm_complete_detail('hi');
SELECT response FROM public.llm_complete_batch('{a,b}');
SELECT public.llm_set_secret('stored', 'regress-key-2');
SELECT object, name, detail FROM public.llm_add_provider('mock', models => '{mock-economy,other}');
SELECT object, name FROM public.llm_add_provider('o', kind => 'openai', api_key => 'secret:stored', models => '{gpt-5}');
SELECT object, name FROM public.llm_add_provider('acme');
INSERT INTO public.llm_providers(name, kind) VALUES ('p', 'telepathy');
INSERT INTO public.llm_providers(name, kind, options) VALUES ('p', 'mock', '{"reply": "p"}');
INSERT INTO public.llm_models(provider, name, tier) VALUES ('p', 'm', 'trap');
INSERT INTO public.llm_models(provider, name) VALUES ('trap', 'm');
INSERT INTO public.llm_models(provider, name, input_price, capabilities) VALUES ('p', 'm', 1, '{chat}');
INSERT INTO public.llm_routing_rules(id, model, task) VALUES (911, 'trap', 'coding');
INSERT INTO public.llm_tasks(name, pattern) VALUES ('coding', '\mcode\M');
UPDATE public.llm_providers SET name = 'q' WHERE name OPERATOR(pg_catalog.=) 'p';
SELECT provider, input_price FROM public.llm_models WHERE name OPERATOR(pg_catalog.=) 'm';
SELECT public.llm_complete('hi', model => 'q/m');
DELETE FROM public.llm_providers WHERE name OPERATOR(pg_catalog.=) ANY ('{q,o}');
SELECT public.llm_drop_secret('stored');
RESET ROLE;
SELECT public.llm_revoke('regress_llm_call', 'call');
SELECT public.llm_grant('regress_llm_call', 'report');
SELECT public.llm_revoke('regress_llm_call', 'report');
DELETE FROM public.llm_tasks WHERE name OPERATOR(pg_catalog.=) 'chat';
TRUNCATE public.llm_routing_rules;
SELECT table_name, key::pg_catalog.text FROM public._llm_tombstones
WHERE table_name OPERATOR(pg_catalog.=) 'llm_tasks' ORDER BY key::pg_catalog.text COLLATE "C";
RESET search_path;
-- no trap has been written to
SELECT (SELECT count(*) FROM regress_llm_traps.llm_providers) AS providers,
       (SELECT count(*) FROM regress_llm_traps.llm_models) AS models,
       (SELECT count(*) FROM regress_llm_traps._llm_secrets) AS secrets,
       (SELECT count(*) FROM regress_llm_traps._llm_tombstones) AS tombstones;
-- nor does it matter when the extension is created
DROP TABLE pg_temp.llm_providers, pg_temp.llm_models, pg_temp.llm_tasks, pg_temp.llm_error_policies;
DROP FUNCTION regress_llm_wrapper, regress_llm_model;
DROP EXTENSION llm_gateway;
SET search_path = regress_llm_traps, pg_catalog, public;
CREATE EXTENSION llm_gateway SCHEMA public;
RESET search_path;
SELECT DISTINCT t.typnamespace::regnamespace, p.pronamespace::regnamespace
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_trigger g ON g.tgrelid = a.attrelid JOIN pg_proc p ON p.oid = g.tgfoid
WHERE a.attrelid IN ('llm_providers'::regclass, 'llm_models'::regclass, 'llm_tasks'::regclass) AND a.attnum > 0;
SELECT count(*) FROM llm_add_provider('mock');
SELECT llm_complete('hi');

-- As it was.
DROP TABLE pg_temp.statements;
DROP FUNCTION pg_temp.as_role;
DROP EXTENSION llm_gateway;
DROP SCHEMA regress_llm_traps CASCADE;
DROP ROLE regress_llm_none, regress_llm_call, regress_llm_report, regress_llm_admin, regress_llm_heir,
    regress_llm_vip, regress_llm_owner, regress_llm_bypass, "regress llm ""odd""";
RESET client_min_messages;
CREATE EXTENSION llm_gateway;
