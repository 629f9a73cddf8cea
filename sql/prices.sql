-- llm_import_prices and llm_estimate_cost.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- ---------------------------------------------------------------------------
-- llm_import_prices
-- ---------------------------------------------------------------------------

INSERT INTO llm_providers(name, kind, base_url) VALUES
    ('acme', 'mock', NULL),
    ('other', 'mock', NULL),
    ('openai-eu', 'openai', 'https://api.openai.com/v1'),
    ('local', 'openai', 'http://localhost:8000/v1');
INSERT INTO llm_models(provider, name, upstream_name) VALUES
    ('acme', 'plain', NULL),
    ('acme', 'org/slashed', NULL),
    ('acme', 'ours', 'theirs'),
    ('acme', 'embedder', NULL),
    ('acme', 'nobody-knows', NULL),
    ('other', 'plain', NULL),
    ('openai-eu', 'gpt-x', NULL),
    ('local', 'gpt-x', NULL);
CREATE VIEW regress_models AS
SELECT provider, name, input_price AS input, output_price AS output, cached_input_price AS cached,
       cache_write_price AS write, context_window AS window, max_output_tokens AS max_output, capabilities
FROM llm_models ORDER BY provider COLLATE "C", name COLLATE "C";
CREATE TABLE regress_prices (prices jsonb);
INSERT INTO regress_prices VALUES ($${
    "acme/plain": {
        "litellm_provider": "acme", "mode": "chat",
        "input_cost_per_token": 2.5e-07, "output_cost_per_token": 0.000002,
        "cache_read_input_token_cost": 2.5E-8, "cache_creation_input_token_cost": 3.125e-7,
        "max_input_tokens": 272000.0, "max_output_tokens": 128000, "max_tokens": 128000,
        "supports_function_calling": true, "supports_response_schema": true, "supports_vision": true,
        "supports_prompt_caching": true, "supports_web_search": true, "source": "https://acme.example/prices"
    },
    "acme/org/slashed": {
        "litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 0,
        "supports_reasoning": true, "supports_system_messages": false
    },
    "theirs": {"litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 3e-6, "max_tokens": 4096},
    "ours": {"litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 9e-6},
    "embedder": {
        "litellm_provider": "acme", "mode": "embedding", "input_cost_per_token": 2e-08, "output_cost_per_token": 0.0,
        "max_input_tokens": 8191, "max_output_tokens": 0
    },
    "gpt-x": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1.25e-6, "output_cost_per_token": 1e-5},
    "elsewhere/plain": {"litellm_provider": "elsewhere", "input_cost_per_token": 7e-6},
    "never-heard-of": {"litellm_provider": "acme", "input_cost_per_token": 7e-6}
}$$);
SELECT count(*) AS before FROM llm_models;
SELECT llm_import_prices(prices) FROM regress_prices;
SELECT * FROM regress_models;
SELECT count(*) AS after FROM llm_models;

-- again: nothing changes, no row is written
CREATE TEMP TABLE before AS SELECT m.*, xmin::text AS tid, ctid::text AS place FROM llm_models m;
SELECT llm_import_prices(prices) FROM regress_prices;
SELECT count(*) AS changed FROM (TABLE before EXCEPT SELECT m.*, xmin::text, ctid::text FROM llm_models m) c;
DROP TABLE before;
-- the next call knows
SELECT model, estimated_usd FROM llm_complete_detail('hi', model => 'acme/plain', max_tokens => 1000);

-- exact, however it is written
CREATE FUNCTION pg_temp.imported(price text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    changed int;
BEGIN
    changed = llm_import_prices(format('{"plain": {"litellm_provider": "acme", "input_cost_per_token": %s}}', price)::jsonb);
    RETURN format('%s %s', changed, input_price) FROM llm_models WHERE provider = 'acme' AND name = 'plain';
END $$;
SELECT price, pg_temp.imported(price) FROM unnest('{1e-07,0.0000001,3.3e-7,2.9999900000000002e-06,1.0000000000000000000000001e-12,1,0,0.0,-0.0,2.50e-7,0.00000025}'::text[]) price;

-- what an entry does not mention stays
UPDATE llm_models SET input_price = 1, output_price = 2, cached_input_price = 3, cache_write_price = 4,
    price_tiers = '[{"above_tokens": 5}]', context_window = 6, max_output_tokens = 7, capabilities = '{chat,tools}'
WHERE provider = 'acme' AND name = 'plain';
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme"}}');
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme", "mode": null, "input_cost_per_token": null, "max_tokens": null,
    "max_input_tokens": 0, "input_cost_per_token_above_200k_tokens": null, "supports_function_calling": null}}');
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme", "output_cost_per_token": 1e-3}}');
SELECT *, (SELECT price_tiers FROM llm_models m WHERE m.name = r.name AND m.provider = 'acme') FROM regress_models r
WHERE provider = 'acme' AND name = 'plain';

-- Size tiers: the whole array, in order; prices of other services, of longer
-- storage and of other media are not ours.
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme",
    "input_cost_per_token_above_272k_tokens": 5e-6, "output_cost_per_token_above_272k_tokens": 2.25e-05,
    "input_cost_per_token_above_128k_tokens": 3e-6, "cache_read_input_token_cost_above_272k_tokens": 5e-7,
    "cache_creation_input_token_cost_above_128k_tokens": 0,
    "input_cost_per_token_above_200k_tokens_priority": 1, "input_cost_per_token_flex": 1, "input_cost_per_token_batches": 1,
    "cache_creation_input_token_cost_above_1hr": 1, "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 1,
    "input_cost_per_token_above_k_tokens": 1, "input_cost_per_token_above_9999999k_tokens": 1,
    "input_cost_per_audio_token": 1, "output_cost_per_reasoning_token": 1}}') AS changed;
SELECT jsonb_pretty(price_tiers) FROM llm_models WHERE provider = 'acme' AND name = 'plain';
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme",
    "input_cost_per_token_above_272k_tokens": 5.0e-6, "output_cost_per_token_above_272k_tokens": 2.25e-05,
    "input_cost_per_token_above_128k_tokens": 3e-6, "cache_read_input_token_cost_above_272k_tokens": 5e-7,
    "cache_creation_input_token_cost_above_128k_tokens": 0}}') AS again;

-- Capabilities: yes adds, no takes away, silence keeps; unknown becomes known
-- only where the entry says something.
CREATE FUNCTION pg_temp.capabilities(was text[], entry jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    changed int;
BEGIN
    UPDATE llm_models SET capabilities = was WHERE provider = 'acme' AND name = 'plain';
    changed = llm_import_prices(jsonb_build_object('plain', '{"litellm_provider": "acme"}' || entry));
    RETURN changed || ' ' || coalesce(capabilities::text, 'NULL') FROM llm_models WHERE provider = 'acme' AND name = 'plain';
END $$;
SELECT was, entry, pg_temp.capabilities(was::text[], entry) AS now FROM (VALUES
    ('{image,chat,tools}', '{"supports_vision": true, "supports_function_calling": true, "mode": "chat"}'::jsonb),
    ('{image,chat,tools}', '{"supports_vision": false, "supports_prompt_caching": true, "supports_audio_input": false}'),
    ('{image}', '{"supports_vision": false}'),
    ('{}', '{"supports_native_streaming": true, "supports_sampling_params": true}'),
    ('{chat}', '{"mode": "embedding"}'),
    ('{chat}', '{"mode": "responses"}'),
    ('{chat}', '{"mode": "completion"}'),
    (NULL, '{}'),
    (NULL, '{"supports_vision": false}'),
    (NULL, '{"mode": "image_generation"}'),
    (NULL, '{"mode": "embedding"}'),
    (NULL, '{"mode": "chat"}'),
    (NULL, '{"mode": "chat", "supports_native_streaming": false, "supports_sampling_params": false}'),
    (NULL, '{"mode": "chat", "supports_reasoning": true, "supports_response_schema": true, "supports_audio_input": true}'),
    (NULL, '{"mode": "chat", "supports_reasoning": true, "supports_sampling_params": true}')) v(was, entry);

-- whose entry it is: the name of the provider, its address, its kind
INSERT INTO llm_models(provider, name) VALUES ('other', 'm');
CREATE FUNCTION pg_temp.from_whom(model text, prices jsonb) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE llm_models SET input_price = NULL;
    PERFORM llm_import_prices(prices);
    RETURN string_agg(provider || ' ' || input_price, ', ' ORDER BY provider COLLATE "C")
        FROM llm_models WHERE name = model AND input_price IS NOT NULL;
END $$;
SELECT pg_temp.from_whom('plain', '{"acme/plain": {"litellm_provider": "acme", "input_cost_per_token": 1e-6},
    "other/plain": {"litellm_provider": "other", "input_cost_per_token": 2e-6}}') AS both,
       pg_temp.from_whom('plain', '{"other/plain": {"litellm_provider": "other", "input_cost_per_token": 2e-6}}') AS one,
       pg_temp.from_whom('plain', '{"other/plain": {"litellm_provider": "third", "input_cost_per_token": 2e-6}}') AS none,
       pg_temp.from_whom('plain', '{"plain": {"litellm_provider": "other", "input_cost_per_token": 1e-6},
    "other/plain": {"litellm_provider": "other", "input_cost_per_token": 2e-6}}') AS prefixed,
       pg_temp.from_whom('m', '{"mock/m": {"litellm_provider": "mock", "input_cost_per_token": 3e-6}}') AS kind,
       pg_temp.from_whom('m', '{"mock/m": {"litellm_provider": "mock", "input_cost_per_token": 3e-6},
    "m": {"litellm_provider": "other", "input_cost_per_token": 4e-6}}') AS name,
       pg_temp.from_whom('gpt-x', '{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": 1e-6}}') AS address,
       pg_temp.from_whom('gpt-x', '{"local/gpt-x": {"litellm_provider": "local", "input_cost_per_token": 1e-6}}') AS local;

-- each preset as LiteLLM calls it, under its own name and under another
BEGIN;
SET LOCAL client_min_messages = error;
DELETE FROM llm_providers;
CREATE FUNCTION pg_temp.by_preset(preset text, theirs text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    changed int;
BEGIN
    PERFORM llm_add_provider(preset, base_url => CASE preset WHEN 'azure' THEN 'https://acme.openai.azure.com' END, models => '{m/x}');
    INSERT INTO llm_providers(name, kind, base_url, api_key)
    SELECT 'mine', kind, base_url, api_key FROM llm_providers WHERE name = preset;
    INSERT INTO llm_models(provider, name) VALUES ('mine', 'm/x');
    changed = llm_import_prices(jsonb_build_object(
        theirs || '/m/x', jsonb_build_object('litellm_provider', theirs, 'input_cost_per_token', 7e-6)));
    DELETE FROM llm_providers;
    RETURN changed;
END $$;
SELECT preset, theirs, pg_temp.by_preset(preset, theirs) AS changed
FROM (VALUES ('openai', 'openai'), ('azure', 'azure'), ('anthropic', 'anthropic'), ('groq', 'groq'), ('gemini', 'gemini'),
    ('ollama', 'ollama'), ('openrouter', 'openrouter'), ('mistral', 'mistral'), ('deepseek', 'deepseek'),
    ('together', 'together_ai'), ('together', 'together')) AS p(preset, theirs);
ROLLBACK;

-- malformed: skipped and named, the others count; a malformed one is none
SELECT llm_import_prices('{
    "sample_spec": {"litellm_provider": "one of ...", "max_tokens": "LEGACY parameter", "input_cost_per_token": 0},
    "plain": {"litellm_provider": "acme", "input_cost_per_token": -1e-6},
    "other/plain": {"litellm_provider": "other", "input_cost_per_token": 8e-6}}');
SELECT provider, input_price FROM llm_models WHERE name = 'plain' ORDER BY provider COLLATE "C";
SELECT llm_import_prices('{"a": 1}');
SELECT llm_import_prices('{"a": "x", "b": [], "c": null, "d": true, "e": {}, "f": {"litellm_provider": 1}}');
SELECT llm_import_prices('{
    "a": {"litellm_provider": "acme", "input_cost_per_token": "2.5e-07"},
    "b": {"litellm_provider": "acme", "output_cost_per_token_above_200k_tokens": -1},
    "c": {"litellm_provider": "acme", "cache_read_input_token_cost": 1.1},
    "d": {"litellm_provider": "acme", "input_cost_per_token": 1e300},
    "e": {"litellm_provider": "acme", "mode": 1}}');
SELECT llm_import_prices('{
    "a": {"litellm_provider": "acme", "max_tokens": 1.5},
    "b": {"litellm_provider": "acme", "max_tokens": -1},
    "c": {"litellm_provider": "acme", "max_output_tokens": 1e300},
    "d": {"litellm_provider": "acme", "supports_vision": "yes"},
    "e\u000a": {"litellm_provider": {}}}');
SELECT llm_import_prices(jsonb_build_object('many', '{"litellm_provider": "acme"}' ||
    (SELECT jsonb_object_agg(format('input_cost_per_token_above_%sk_tokens', n), 0) FROM generate_series(1, 17) n)));
-- no list
SELECT llm_import_prices('[]');
SELECT llm_import_prices('[{"plain": {}}]');
SELECT llm_import_prices('1');
SELECT llm_import_prices('null');
SELECT llm_import_prices(NULL);
SELECT llm_import_prices('{}');

-- undone by rollback
BEGIN;
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme", "input_cost_per_token": 0.001}}');
SELECT llm_estimate_cost('1234', 'acme/plain', 1) AS within;
ROLLBACK;
SELECT input_price FROM llm_models WHERE provider = 'acme' AND name = 'plain';

-- the models' own rights
CREATE ROLE regress_llm_pricer;
CREATE ROLE regress_llm_reader;
CREATE ROLE regress_llm_caller;
SELECT llm_grant('regress_llm_reader', 'report');
SELECT llm_grant('regress_llm_caller');
SET ROLE regress_llm_pricer;
SELECT llm_import_prices('{}');
SELECT llm_estimate_cost('hi', 'acme/plain');
RESET ROLE;
GRANT EXECUTE ON FUNCTION llm_import_prices TO regress_llm_pricer;
SET ROLE regress_llm_pricer;
SELECT llm_import_prices('{}');
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme", "input_cost_per_token": 5e-6}}');
RESET ROLE;
SELECT llm_grant('regress_llm_pricer', 'admin');
SET ROLE regress_llm_pricer;
SELECT llm_import_prices('{"plain": {"litellm_provider": "acme", "input_cost_per_token": 5e-6}}');
SELECT llm_estimate_cost('1234', 'acme/plain', 1) IS NOT NULL AS priced;
SET ROLE regress_llm_reader;
SELECT llm_estimate_cost('1234', 'acme/plain', 1) IS NOT NULL AS priced;
SELECT llm_import_prices('{}');
SET ROLE regress_llm_caller;
SELECT llm_estimate_cost('1234', 'acme/plain', 1) IS NOT NULL AS priced;
SELECT llm_import_prices('{}');
RESET ROLE;
SELECT llm_revoke('regress_llm_pricer', 'admin');
SELECT llm_revoke('regress_llm_reader', 'report');
SELECT llm_revoke('regress_llm_caller');
SELECT r AS role, has_function_privilege(r, 'llm_estimate_cost(text,text,integer)', 'EXECUTE') AS estimate,
       has_function_privilege(r, 'llm_import_prices(jsonb)', 'EXECUTE') AS import
FROM unnest('{regress_llm_pricer,regress_llm_reader,regress_llm_caller}'::text[]) r;
DROP OWNED BY regress_llm_pricer, regress_llm_reader, regress_llm_caller;
DROP ROLE regress_llm_pricer, regress_llm_reader, regress_llm_caller;

-- whatever search_path says
CREATE SCHEMA regress_llm_traps;
CREATE FUNCTION regress_llm_traps.trap(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps.trap(numeric, numeric) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps.trap(text[], text[]) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE FUNCTION regress_llm_traps.unnest(text[]) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trap'; END $$;
CREATE OPERATOR regress_llm_traps.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_llm_traps.trap);
CREATE OPERATOR regress_llm_traps.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_llm_traps.trap);
CREATE OPERATOR regress_llm_traps.= (LEFTARG = numeric, RIGHTARG = numeric, FUNCTION = regress_llm_traps.trap);
CREATE OPERATOR regress_llm_traps.@> (LEFTARG = text[], RIGHTARG = text[], FUNCTION = regress_llm_traps.trap);
CREATE OPERATOR regress_llm_traps.&& (LEFTARG = text[], RIGHTARG = text[], FUNCTION = regress_llm_traps.trap);
CREATE TYPE regress_llm_traps.text AS (trap int);
CREATE TYPE regress_llm_traps.numeric AS (trap int);
CREATE TYPE regress_llm_traps.jsonb AS (trap int);
CREATE TABLE regress_llm_traps.llm_models AS TABLE llm_models;
SELECT current_schema AS here \gset
SET search_path = regress_llm_traps, pg_catalog;
SELECT :"here".llm_import_prices('{"plain": {"litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 6e-6,
    "max_tokens": 12, "input_cost_per_token_above_1k_tokens": 1e-6, "supports_vision": false, "supports_audio_input": true}}');
SELECT :"here".llm_import_prices('{"plain": {"litellm_provider": "acme", "mode": "chat", "input_cost_per_token": 6e-6,
    "max_tokens": 12, "input_cost_per_token_above_1k_tokens": 1e-6, "supports_vision": false, "supports_audio_input": true}}');
SELECT :"here".llm_estimate_cost('1234', 'acme/plain', 1);
RESET search_path;
SET client_min_messages = warning;
DROP SCHEMA regress_llm_traps CASCADE;

-- as many models as a long list has
INSERT INTO llm_models(provider, name) SELECT 'acme', 'many-' || n FROM generate_series(1, 2000) n;
CREATE TABLE regress_many AS
SELECT jsonb_object_agg('acme/many-' || n, jsonb_build_object('litellm_provider', 'acme', 'mode', 'chat',
       'input_cost_per_token', n / 1000000000.0, 'max_input_tokens', n)) AS prices FROM generate_series(1, 3000) n;
SELECT llm_import_prices(prices) FROM regress_many;
SELECT llm_import_prices(prices) FROM regress_many;
SELECT count(*), sum(input_price), sum(context_window) FROM llm_models WHERE name LIKE 'many-%';
DELETE FROM llm_models WHERE name LIKE 'many-%';
DROP TABLE regress_many, regress_prices;
DROP VIEW regress_models;
DELETE FROM llm_providers;

-- ---------------------------------------------------------------------------
-- llm_estimate_cost
-- ---------------------------------------------------------------------------

-- answers of calls with few max_tokens are cut, with a warning
SET client_min_messages = error;
SELECT count(*) FROM llm_add_provider('mock');
DELETE FROM llm_routing_rules;
INSERT INTO llm_providers(name, kind) VALUES ('other', 'mock');
INSERT INTO llm_models(provider, name, input_price, output_price, max_output_tokens, price_tiers) VALUES
    ('other', 'mock-standard', 7, 9, NULL, NULL), ('other', 'short', 1, 1, 10, NULL),
    ('other', 'tiers', 1, 2, NULL, '[{"above_tokens": 1000, "input": 3, "output": 4}]'),
    ('other', 'half', 1, NULL, NULL, NULL), ('other', 'free', 0, 0, NULL, NULL), ('other', 'unpriced', NULL, NULL, NULL, NULL);
INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('fast', 'mock-premium', 20), ('fast', 'mock-economy', 10);
INSERT INTO llm_routing_rules(alias, model, tags) VALUES ('tagged', 'mock-economy', '{"team": "a"}');

-- what the call says; of providers that take turns, what the next one would say
UPDATE llm_models SET weight = 0 WHERE provider = 'other' AND name = 'mock-standard';
SELECT m AS model, t AS max_tokens, length(p) AS length, llm_estimate_cost(p, m, t) AS estimate,
       d.estimated_usd IS NOT DISTINCT FROM llm_estimate_cost(p, m, t) AS same
FROM unnest('{mock-standard,mock/mock-standard,other/mock-standard,fast,short,tiers,half,free,unpriced,NULL}'::text[]) WITH ORDINALITY m(m, i),
     (VALUES (1, 'hi', NULL::int), (2, 'hi', 1), (3, repeat('é', 5001), 5000)) v(j, p, t),
     LATERAL llm_complete_detail(p, model => m, max_tokens => t) d
ORDER BY i, j;
-- the heavier provider's price
UPDATE llm_models SET weight = 1 WHERE provider = 'other' AND name = 'mock-standard';
UPDATE llm_providers SET weight = 5 WHERE name = 'other';
SELECT llm_estimate_cost('hi', 'mock-standard') AS estimate, provider, estimated_usd FROM llm_complete_detail('hi', model => 'mock-standard');
-- the one that is kept; and when none is, the first one all the same
UPDATE llm_providers SET enabled = false WHERE name = 'other';
SELECT llm_estimate_cost('hi', 'mock-standard') AS estimate, provider, estimated_usd FROM llm_complete_detail('hi', model => 'mock-standard');
SELECT llm_estimate_cost('hi', 'other/mock-standard') AS estimate, error_class, estimated_usd
FROM llm_complete_detail('hi', model => 'other/mock-standard');
UPDATE llm_providers SET enabled = true, weight = 1 WHERE name = 'other';
UPDATE llm_models SET context_window = 10 WHERE name = 'short';
SELECT llm_estimate_cost(repeat('x', 1000), 'short');
-- rules for tags: as the session's
SELECT llm_estimate_cost('hi', 'tagged');
SET llm_gateway.tags = '{"team": "a"}';
SELECT llm_estimate_cost('hi', 'tagged') AS estimate, estimated_usd FROM llm_complete_detail('hi', model => 'tagged');
RESET llm_gateway.tags;
-- no call is made, so nothing that only forbids calls matters
SET llm_gateway.enabled = off;
SELECT llm_estimate_cost('hi', 'mock-economy');
RESET llm_gateway.enabled;
SELECT llm_estimate_cost('', 'mock-economy') AS nothing_to_read, llm_estimate_cost(NULL, 'mock-economy') AS null_prompt,
       llm_estimate_cost(NULL, 'missing', -1) AS null_first;
SELECT llm_estimate_cost('hi', model => 'mock-economy', max_tokens => NULL);
-- mistakes, with the words of llm_complete
SELECT llm_estimate_cost('hi', 'missing');
SELECT llm_complete('hi', model => 'missing');
SELECT llm_estimate_cost('hi', '');
SELECT llm_estimate_cost('hi', 'mock/gone');
SELECT llm_estimate_cost('hi', 'mock-economy', 0);
SELECT llm_estimate_cost('hi', 'mock-economy', -1);
-- nothing configured
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;
SELECT llm_estimate_cost('hi', NULL);
RESET client_min_messages;
