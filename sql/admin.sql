-- llm_add_provider, llm_set_secret, llm_drop_secret, and what becomes of the
-- rows that the extension comes with.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = notice;

-- ---------------------------------------------------------------------------
-- llm_add_provider: presets
-- ---------------------------------------------------------------------------

-- the first one brings rules
SELECT * FROM llm_add_provider('mock');
SELECT model, rank, task, alias, enabled FROM llm_routing_rules ORDER BY rank;
-- again: nothing is added, nothing is changed
CREATE TEMP TABLE before AS SELECT p.*, xmin::text AS tid FROM llm_providers p;
CREATE TEMP TABLE models_before AS SELECT m.*, xmin::text AS tid FROM llm_models m;
SELECT * FROM llm_add_provider('mock');
SELECT count(*) AS changed FROM (TABLE before EXCEPT SELECT p.*, xmin::text FROM llm_providers p) c;
SELECT count(*) AS changed FROM (TABLE models_before EXCEPT SELECT m.*, xmin::text FROM llm_models m) c;
SELECT count(*) FROM llm_routing_rules;
DROP TABLE before, models_before;

-- Presets with a key.  Their own references are to variables that the server's
-- environment may have, or not.
SET llm_gateway.secret_env_pattern = 'REGRESS_*';
\set VERBOSITY terse
SELECT * FROM llm_add_provider('openai');
\set VERBOSITY default
RESET llm_gateway.secret_env_pattern;
SELECT count(*) FROM llm_providers WHERE name = 'openai';
SELECT object, name, detail FROM llm_add_provider('openai', api_key => 'secret:regress');
SELECT object, name, detail FROM llm_add_provider('groq', api_key => 'secret:regress');
SELECT name, kind, base_url, api_key, enabled FROM llm_providers ORDER BY name COLLATE "C";
SELECT provider, name, capabilities FROM llm_models WHERE name IN ('gpt-5', 'gpt-4.1', 'openai/gpt-oss-20b', 'mock-economy')
ORDER BY provider COLLATE "C", name COLLATE "C";
-- there was no rule for embeddings, and rules for the others were there before
SELECT task, model, rank FROM llm_routing_rules ORDER BY task NULLS FIRST, rank;
-- what is there stays, also what a user has made of it; what is missing comes
SELECT llm_set_secret('regress', 'regress-key-Vq8zR2mX4t');
UPDATE llm_models SET input_price = 99, enabled = false WHERE name = 'gpt-5';
UPDATE llm_providers SET weight = 3, api_key = NULL WHERE name = 'openai';
DELETE FROM llm_models WHERE provider = 'openai' AND name IN ('o3', 'gpt-6.1-terra');
SELECT object, name, detail FROM llm_add_provider('openai');
SELECT name, input_price, enabled FROM llm_models WHERE name IN ('gpt-5', 'gpt-6.1-terra', 'o3') ORDER BY name COLLATE "C";
SELECT weight, api_key FROM llm_providers WHERE name = 'openai';
-- other arguments than before are said
SELECT object, name FROM llm_add_provider('openai', api_key => 'secret:other', base_url => 'https://api.example.com/v1', models => '{gpt-5}');
UPDATE llm_providers SET api_key = 'secret:regress' WHERE name = 'openai';
SELECT object, name FROM llm_add_provider('openai', api_key => 'secret:other', models => '{gpt-5}');
SELECT object, name FROM llm_add_provider('openai', kind => 'mock');
-- a rule of any kind that has the model: no notice about rules
INSERT INTO llm_routing_rules(alias, model) VALUES ('big', 'openai/gpt-6.1-terra');
SELECT object, name FROM llm_add_provider('openai') WHERE object = 'rule';
DELETE FROM llm_routing_rules;
-- no rules at all: they are added, for models that are there
DELETE FROM llm_models WHERE name IN ('gpt-6.1-terra', 'text-embedding-3-small');
SELECT * FROM llm_add_provider('openai', models => '{gpt-6-luna,gpt-6.1-sol}');
SELECT model, rank, task FROM llm_routing_rules ORDER BY task NULLS FIRST, rank;
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- only the named models of a preset; one that it does not know has no price
SELECT * FROM llm_add_provider('groq', api_key => 'secret:regress', models => '{llama-3.1-8b-instant,brand-new}');
SELECT name, tier, input_price FROM llm_models ORDER BY name COLLATE "C";
-- none of these has a rule in the preset
SELECT count(*) FROM llm_routing_rules;
SELECT * FROM llm_add_provider('mock', models => '{}');
DELETE FROM llm_providers;

-- the same preset twice under other names: name, and the kind
SELECT * FROM llm_add_provider('openai-eu', kind => 'openai', api_key => 'secret:regress', models => '{gpt-5,ft:mine}');
SELECT provider, name, tier, input_price FROM llm_models ORDER BY name COLLATE "C";
SELECT base_url, failure_domain FROM llm_providers;
SELECT * FROM llm_add_provider('groq-2', kind => 'openai', base_url => 'https://api.groq.com/openai/v1', models => '{openai/gpt-oss-20b}');
SELECT count(*) FROM llm_routing_rules;

-- any server that is compatible with OpenAI's
SELECT * FROM llm_add_provider('local', kind => 'openai', base_url => 'http://localhost:8000/v1', models => '{qwen3-8b,gpt-5}');
SELECT name, tier, input_price, output_price FROM llm_models WHERE provider = 'local' ORDER BY name COLLATE "C";
SELECT * FROM llm_add_provider('local', kind => 'openai', base_url => 'http://localhost:8000/v1', models => '{qwen3-8b,another}');
SELECT * FROM llm_add_provider('bare', kind => 'openai', base_url => 'http://localhost:9000/v1');
SELECT count(*) FROM llm_routing_rules;
DELETE FROM llm_providers;

-- ---------------------------------------------------------------------------
-- Every preset
-- ---------------------------------------------------------------------------

-- What each one adds where there is nothing else; called twice, it adds nothing.  (Messages of keys would be about
-- the server's environment.)
DELETE FROM llm_routing_rules;
SET client_min_messages = error;
CREATE TEMP TABLE added (preset text, round int, object text, name text, detail text);
DO $$
DECLARE
    preset text;
BEGIN
    FOREACH preset IN ARRAY '{openai,azure,anthropic,groq,gemini,ollama,openrouter,mistral,deepseek,together,vllm,llamacpp,mock}'::text[] LOOP
        FOR round IN 1 .. 2 LOOP
            INSERT INTO added
            SELECT preset, round, a.* FROM llm_add_provider(preset,
                base_url => CASE WHEN preset = 'azure' THEN 'https://regress.openai.azure.com' END,
                models => CASE preset WHEN 'azure' THEN '{gpt-4o,gpt-5-mini,gpt-4.1-nano,text-embedding-3-large,chat-deployment}'::text[]
                    WHEN 'ollama' THEN '{llama3.2,gpt-oss:20b,nomic-embed-text:v1.5}'
                    WHEN 'vllm' THEN '{Qwen/Qwen3-8B}'
                    WHEN 'llamacpp' THEN '{gemma-3-4b-it}' END) AS a;
        END LOOP;
        DELETE FROM llm_routing_rules;
    END LOOP;
END
$$;
SET client_min_messages = notice;
SELECT preset, count(*) FILTER (WHERE object = 'provider') AS providers, count(*) FILTER (WHERE object = 'model') AS models,
       count(*) FILTER (WHERE object = 'rule') AS rules
FROM added WHERE round = 1 GROUP BY preset ORDER BY preset COLLATE "C";
SELECT * FROM added WHERE round = 2;
SELECT preset, name, detail FROM added WHERE round = 1 AND object = 'rule' ORDER BY preset COLLATE "C", detail DESC, name COLLATE "C";
SELECT name, kind, base_url, api_key, failure_domain, options FROM llm_providers ORDER BY name COLLATE "C";
SELECT provider, name, tier, quality, input_price AS input, output_price AS output, cached_input_price AS cached,
       cache_write_price AS write, price_tiers IS NOT NULL AS tiers, context_window AS context, max_output_tokens AS max_output
FROM llm_models ORDER BY provider COLLATE "C", name COLLATE "C";
SELECT provider, name, price_tiers FROM llm_models WHERE price_tiers IS NOT NULL ORDER BY provider COLLATE "C", name COLLATE "C";
SELECT provider, array_to_string(capabilities, ' ') AS capabilities, count(*) AS models
FROM llm_models GROUP BY 1, 2 ORDER BY provider COLLATE "C", array_to_string(capabilities, ' ') COLLATE "C";
-- what cannot be right of any of them
SELECT provider, name FROM llm_models
WHERE cached_input_price > input_price OR cache_write_price < input_price OR output_price < input_price AND NOT capabilities @> '{embedding}'
   OR max_output_tokens > context_window
   OR EXISTS (SELECT FROM jsonb_to_recordset(price_tiers) AS t(above_tokens int, input numeric, output numeric, cached_input numeric, cache_write numeric)
              WHERE t.input <= input_price OR t.output <= output_price OR t.cached_input <= cached_input_price
                 OR (t.cache_write IS NULL) <> (cache_write_price IS NULL) OR t.above_tokens > context_window);
-- a rule's model is one that comes with the preset, and not another provider's
SELECT preset, a.name FROM added AS a
WHERE object = 'rule' AND NOT EXISTS (SELECT FROM llm_models AS m WHERE m.provider = preset AND a.name IN (m.name, preset || '/' || m.name))
   OR object = 'rule' AND EXISTS (SELECT FROM llm_models AS m WHERE m.provider <> preset AND a.name = m.provider || '/' || m.name);
-- names and prices that several presets have are the same
SELECT name, count(DISTINCT (input_price, output_price)) FROM llm_models WHERE name NOT LIKE '%/%' GROUP BY name
HAVING count(DISTINCT (input_price, output_price)) > 1;
DROP TABLE added;
DELETE FROM llm_providers;

-- a key that cannot be read is said of each that has one
\set VERBOSITY terse
SELECT count(*) FROM unnest('{anthropic,gemini,openrouter,mistral,deepseek,together}'::text[]) AS preset,
    LATERAL llm_add_provider(preset, api_key => 'secret:regress-' || preset, models => '{m}') WHERE object = 'provider';
\set VERBOSITY default
DELETE FROM llm_providers;

-- Azure has no host for everybody
SELECT * FROM llm_add_provider('azure');
SELECT * FROM llm_add_provider('azure-eu', kind => 'azure', models => '{gpt-4o}');
SELECT * FROM llm_add_provider('azure', api_key => 'secret:regress', base_url => 'https://regress.openai.azure.com');
SELECT * FROM llm_add_provider('azure', api_key => 'secret:regress', models => '{gpt-5,mine}');
SELECT * FROM llm_add_provider('azure', api_key => 'secret:regress');
SELECT * FROM llm_add_provider('azure-eu', kind => 'azure', api_key => 'secret:regress', base_url => 'https://regress-eu.openai.azure.com/', models => '{gpt-5,mine}');
SELECT object, name FROM llm_add_provider('azure-eu', kind => 'azure', models => '{o3}');
SELECT name, base_url, failure_domain FROM llm_providers ORDER BY name COLLATE "C";
SELECT provider, name, tier, input_price FROM llm_models ORDER BY provider COLLATE "C", name COLLATE "C";
DELETE FROM llm_providers;

-- servers of one's own: what they have is free, and has to be named
SELECT * FROM llm_add_provider('ollama');
SELECT * FROM llm_add_provider('vllm');
SELECT * FROM llm_add_provider('llamacpp');
SELECT * FROM llm_add_provider('ollama', models => '{llama3.2,mxbai-embed-large,all-minilm:l6-v2}');
SELECT * FROM llm_add_provider('ollama');
SELECT * FROM llm_add_provider('gpu', kind => 'ollama', base_url => 'http://127.0.0.1:11435', models => '{llama3.2,nomic-embed-text}');
SELECT name, base_url, api_key, failure_domain FROM llm_providers ORDER BY name COLLATE "C";
SELECT provider, name, tier, input_price, output_price, capabilities FROM llm_models ORDER BY provider COLLATE "C", name COLLATE "C";
SELECT model, rank, task FROM llm_routing_rules;
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- what a provider wants of each request, also where it is added by its kind
SELECT object FROM llm_add_provider('mistral-2', kind => 'openai', api_key => 'secret:regress', base_url => 'https://api.mistral.ai/v1', models => '{mistral-embed}');
SELECT name, failure_domain, options FROM llm_providers;
DELETE FROM llm_providers;

-- A second provider: the rules stay as they are, but for embeddings, which have none so far.
SELECT object, name FROM llm_add_provider('anthropic', api_key => 'secret:regress', models => '{claude-sonnet-5-5,claude-haiku-4-5}') WHERE object <> 'model';
SELECT object, name FROM llm_add_provider('gemini', api_key => 'secret:regress') WHERE object <> 'model';
SELECT object, name FROM llm_add_provider('openai', api_key => 'secret:regress') WHERE object <> 'model';
SELECT object, name FROM llm_add_provider('ollama', models => '{llama3.2}');
SELECT model, rank, task FROM llm_routing_rules ORDER BY task NULLS FIRST, rank;
-- embeddings first, then the others
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;
SELECT object, name FROM llm_add_provider('openai', api_key => 'secret:regress', models => '{text-embedding-3-large}');
SELECT object, name FROM llm_add_provider('openrouter', api_key => 'secret:regress') WHERE object = 'rule';
-- not where a rule for any task chooses a model for them, or nobody has the task
DELETE FROM llm_routing_rules;
INSERT INTO llm_routing_rules(model) VALUES ('openai/text-embedding-3-large');
SELECT object, name FROM llm_add_provider('gemini', api_key => 'secret:regress', models => '{gemini-embedding-001}');
DELETE FROM llm_routing_rules;
BEGIN;
DELETE FROM llm_tasks WHERE name = 'embedding';
SELECT object, name FROM llm_add_provider('gemini', api_key => 'secret:regress', models => '{gemini-embedding-001}');
ROLLBACK;
-- an alias is no rule for calls that name no model
INSERT INTO llm_routing_rules(model, alias, task) VALUES ('text-embedding-3-large', 'vectors', 'embedding');
SELECT object, name FROM llm_add_provider('gemini', api_key => 'secret:regress') WHERE object = 'rule';
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- Who is no superuser adds public services, not what may listen on this machine; what is there he adds models to.
CREATE ROLE regress_llm_presets;
SELECT llm_grant('regress_llm_presets', 'admin');
SELECT object, name FROM llm_add_provider('vllm', models => '{a}');
SET ROLE regress_llm_presets;
SET client_min_messages = error;
SELECT preset, object FROM unnest('{openai,anthropic,groq,gemini,openrouter,mistral,deepseek,together,mock}'::text[]) AS preset,
    LATERAL llm_add_provider(preset, models => '{}');
SET client_min_messages = notice;
SELECT * FROM llm_add_provider('ollama', models => '{llama3.2}');
SELECT * FROM llm_add_provider('llamacpp', models => '{m}');
SELECT * FROM llm_add_provider('azure', base_url => 'https://regress.openai.azure.com', models => '{m}');
SELECT object, name FROM llm_add_provider('vllm', models => '{b}');
RESET ROLE;
SELECT llm_revoke('regress_llm_presets', 'admin');
DROP ROLE regress_llm_presets;
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- the tier of the preset is gone: the cheapest there is
BEGIN;
DELETE FROM llm_tiers WHERE name = 'premium';
SELECT name, detail FROM llm_add_provider('mock') WHERE object = 'model';
ROLLBACK;

-- mistakes, which leave nothing behind
SELECT * FROM llm_add_provider('acme');
SELECT * FROM llm_add_provider(NULL);
SELECT * FROM llm_add_provider('q', kind => 'telepathy');
SELECT * FROM llm_add_provider('a/b', kind => 'mock');
SELECT * FROM llm_add_provider('mock', models => '{a,NULL}');
SELECT * FROM llm_add_provider('mock', models => '{a,""}');
SELECT * FROM llm_add_provider('q', kind => 'openai', base_url => 'https://user:sk-regress-Vq8zR2mX4t@api.example.com/v1');
SELECT * FROM llm_add_provider('openai', api_key => 'sk-regress-Vq8zR2mX4t');
SELECT * FROM llm_add_provider('acme', api_key => 'sk-regress-Vq8zR2mX4t', models => '{NULL}');
SELECT * FROM llm_add_provider('openai', api_key => 'env:PATH');
SELECT * FROM llm_add_provider('openai', 'sk-regress-Vq8zR2mX4t');
SELECT count(*) FROM llm_providers;
SELECT count(*) FROM llm_models;

-- a key that cannot be read: a warning with what to do
SELECT object, name FROM llm_add_provider('mock', api_key => 'secret:missing', models => '{m}');
SELECT object, name FROM llm_add_provider('f', kind => 'mock', api_key => 'file:missing', models => '{m}');
SELECT object, name FROM llm_add_provider('e', kind => 'mock', api_key => 'env:REGRESS_LLM_UNSET_API_KEY', models => '{m}');
SELECT object, name FROM llm_add_provider('s', kind => 'mock', api_key => 'secret:regress', models => '{m}');
-- in its transaction, with it undone
BEGIN;
DELETE FROM llm_providers;
DELETE FROM llm_routing_rules;
SELECT count(*) FROM llm_add_provider('mock');
SELECT llm_complete('hi');
ROLLBACK;
SELECT name FROM llm_providers ORDER BY name COLLATE "C";
DELETE FROM llm_providers;

-- ---------------------------------------------------------------------------
-- Stored secrets
-- ---------------------------------------------------------------------------

SELECT llm_drop_secret('regress');
SELECT llm_drop_secret('regress');
SELECT llm_drop_secret(NULL);
SELECT llm_drop_secret('no such name');

SELECT llm_set_secret('a', 'regress-key-Vq8zR2mX4t');
SELECT llm_set_secret('b', 'regress-key-Vq8zR2mX4t', 'api.example.com');
SELECT llm_set_secret('c', 'regress-key-Vq8zR2mX4t', allowed_host => 'API.Example.com:8443');
SELECT llm_set_secret('d', 'regress-key-Vq8zR2mX4t', allowed_host => '[2001:DB8::1]');
SELECT llm_set_secret('e', 'regress-key-Vq8zR2mX4t', allowed_host => '[2001:DB8::1]:8443');
SELECT llm_set_secret('_.-', 'x');
SELECT llm_set_secret(repeat('n', 63), repeat('k', 7000));
SELECT llm_set_secret('blank', 'two words');
-- a superuser may read them
SELECT left(name, 5) AS name, left(value::text, 30) AS value, allowed_host, created_at = updated_at AS new
FROM _llm_secrets ORDER BY name COLLATE "C";
-- set again: all of it is new but the day of creation
SELECT llm_set_secret('b', 'regress-key-2');
SELECT name, value, allowed_host, created_at < updated_at AS changed FROM _llm_secrets WHERE name = 'b';

-- names and values that cannot be; values are not repeated
SELECT llm_set_secret(NULL, 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret('a', NULL);
SELECT llm_set_secret('', 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret('a b', 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret('a/b', 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret('schlüssel', 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret(repeat('n', 64), 'sk-regress-Vq8zR2mX4t');
SELECT llm_set_secret('sk-regress Vq8zR2mX4t', 'a');
SELECT llm_set_secret('a', '');
SELECT llm_set_secret('a', '   ');
SELECT llm_set_secret('a', E'sk-regress-Vq8zR2mX4t\n');
SELECT llm_set_secret('a', E'sk-regress\tVq8zR2mX4t');
SELECT llm_set_secret('a', repeat('k', 7001));
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', '');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', 'https://api.example.com');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', 'api.example.com/v1');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', '*.example.com');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', 'user@api.example.com');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', 'api.example.com:99999');
SELECT llm_set_secret('a', 'sk-regress-Vq8zR2mX4t', 'api.example.com, other.example.com');
SELECT value, allowed_host FROM _llm_secrets WHERE name = 'a';

-- undone with its transaction, and seen within it
INSERT INTO llm_providers(name, kind, api_key) VALUES ('m', 'mock', 'secret:later');
INSERT INTO llm_models(provider, name) VALUES ('m', 'm');
\set VERBOSITY terse
SELECT llm_complete('hi');
BEGIN;
SELECT llm_set_secret('later', 'regress-key-Vq8zR2mX4t');
SELECT llm_complete('hi');
SAVEPOINT s;
SELECT llm_drop_secret('later');
SELECT error_class FROM llm_complete_detail('hi');
ROLLBACK TO s;
SELECT llm_complete('hi');
ROLLBACK;
SELECT llm_complete('hi');
SELECT count(*) FROM _llm_secrets WHERE name = 'later';
-- not in a transaction that reads
BEGIN READ ONLY;
SELECT llm_set_secret('later', 'regress-key-Vq8zR2mX4t');
ROLLBACK;
BEGIN READ ONLY;
SELECT llm_drop_secret('a');
ROLLBACK;
\set VERBOSITY default
-- all of them
DELETE FROM _llm_secrets;
TRUNCATE _llm_secrets;
DELETE FROM llm_providers;

-- ---------------------------------------------------------------------------
-- Rows that the extension came with: which of them a dump contains
-- ---------------------------------------------------------------------------

CREATE VIEW pg_temp.seeds AS
    SELECT 'llm_tiers' AS "table", jsonb_build_array(name) AS key, builtin FROM llm_tiers
    UNION ALL SELECT 'llm_priorities', jsonb_build_array(name), builtin FROM llm_priorities
    UNION ALL SELECT 'llm_tasks', jsonb_build_array(name), builtin FROM llm_tasks
    UNION ALL SELECT 'llm_error_policies', jsonb_build_array(error_class, provider), builtin FROM llm_error_policies;
-- as they come
SELECT name, rank, system_prompt_suffix, notice, builtin FROM llm_tiers ORDER BY rank;
SELECT name, rank, premium_above, standard_above, economy_above, may_use_reserve, required_role, builtin
FROM llm_priorities ORDER BY rank;
SELECT name, cardinality(keywords) > 5 AS keywords, pattern, optimize, high_stakes, cache_ttl, cache_shared, enabled, builtin
FROM llm_tasks ORDER BY name COLLATE "C";
SELECT * FROM llm_error_policies ORDER BY error_class COLLATE "C";
SELECT count(*) FROM _llm_tombstones;
-- edited, also without a change
UPDATE llm_tiers SET notice = 'Cheap.' WHERE name = 'economy';
UPDATE llm_error_policies SET max_retries = max_retries WHERE error_class = 'quota';
-- replaced by one of the same key
INSERT INTO llm_priorities(name, rank) VALUES ('low', 9);
INSERT INTO llm_priorities(name, rank) VALUES ('low', 10);
INSERT INTO llm_tasks(name, description) VALUES ('math', 'Sums') ON CONFLICT (name) DO UPDATE SET description = 'never';
-- renamed, deleted
UPDATE llm_tasks SET name = 'maths' WHERE name = 'lookup';
DELETE FROM llm_error_policies WHERE error_class = 'rate_limit';
DELETE FROM llm_priorities WHERE name = 'critical';
-- edited first, then deleted; deleted, then there again
UPDATE llm_tasks SET enabled = false WHERE name = 'chat';
DELETE FROM llm_tasks WHERE name = 'chat';
DELETE FROM llm_tasks WHERE name = 'creative';
INSERT INTO llm_tasks(name) VALUES ('creative');
-- added; nobody but the extension makes a builtin row
INSERT INTO llm_tasks(name, builtin) VALUES ('poetry', true);
UPDATE llm_tasks SET builtin = true WHERE name = 'math';
INSERT INTO llm_error_policies(error_class, provider, builtin) VALUES ('auth', 'p', true);
SELECT "table", key FROM pg_temp.seeds WHERE NOT builtin ORDER BY "table" COLLATE "C", key::text COLLATE "C";
SELECT table_name, key FROM _llm_tombstones ORDER BY table_name COLLATE "C", key::text COLLATE "C";
SELECT count(*) FROM pg_temp.seeds WHERE builtin;
SELECT name, rank, premium_above FROM llm_priorities WHERE name = 'low';
SELECT name, description FROM llm_tasks WHERE name = 'math';
-- undone, with its tombstone
BEGIN;
DELETE FROM llm_tiers WHERE name = 'premium';
SELECT count(*) FROM _llm_tombstones WHERE table_name = 'llm_tiers';
ROLLBACK;
SELECT count(*) FROM _llm_tombstones WHERE table_name = 'llm_tiers';
-- TRUNCATE deletes all
BEGIN;
TRUNCATE llm_error_policies;
SELECT count(*) FROM _llm_tombstones WHERE table_name = 'llm_error_policies';
ROLLBACK;
-- What a restore does: a tombstone deletes the seed, once and only the seed; the user's row stays, whichever comes first.
BEGIN;
INSERT INTO _llm_tombstones VALUES ('llm_tasks', '["analysis"]'), ('llm_tasks', '["analysis"]'), ('llm_tasks', '["poetry"]'),
    ('llm_error_policies', '["timeout", "*"]'), ('llm_error_policies', '["timeout"]'), ('llm_tasks', '{"a": 1}'), ('elsewhere', '[1]');
SELECT name FROM llm_tasks WHERE name IN ('analysis', 'poetry');
SELECT count(*) FROM llm_error_policies WHERE error_class = 'timeout';
INSERT INTO llm_tasks(name, description) VALUES ('analysis', 'mine'), ('coding', 'mine');
INSERT INTO _llm_tombstones VALUES ('llm_tasks', '["analysis"]'), ('llm_tasks', '["coding"]');
SELECT name, description, builtin FROM llm_tasks WHERE name IN ('analysis', 'coding') ORDER BY name COLLATE "C";
SELECT count(*) AS twice FROM (SELECT FROM _llm_tombstones GROUP BY table_name, key HAVING count(*) > 1) t;
ROLLBACK;

-- As it was.
DROP VIEW pg_temp.seeds;
RESET client_min_messages;
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;
