-- What may be written to the configuration tables: the defaults, and each
-- rule's refusal with its message and hint.
\set VERBOSITY default
\set SHOW_CONTEXT errors
SET client_min_messages = notice;

-- ---------------------------------------------------------------------------
-- llm_providers
-- ---------------------------------------------------------------------------

-- every column but the key has a default
INSERT INTO llm_providers(name) VALUES ('p');
SELECT kind, base_url, api_key, failure_domain, enabled, weight, max_concurrency,
       requests_per_minute, tokens_per_minute
FROM llm_providers WHERE name = 'p';
SELECT connect_timeout, first_byte_timeout, idle_timeout, total_timeout,
       breaker_failures, breaker_window, breaker_cooldown, probe, options
FROM llm_providers WHERE name = 'p';

-- names
INSERT INTO llm_providers(name) VALUES (NULL);
INSERT INTO llm_providers(name) VALUES ('p');
INSERT INTO llm_providers(name) VALUES ('');
INSERT INTO llm_providers(name) VALUES ('a/b');
INSERT INTO llm_providers(name) VALUES ('*');
INSERT INTO llm_providers(name) VALUES (' p');
INSERT INTO llm_providers(name) VALUES ('p ');
INSERT INTO llm_providers(name) VALUES (E'p\nq');
INSERT INTO llm_providers(name) VALUES (repeat('p', 64));
UPDATE llm_providers SET name = 'a/b' WHERE name = 'p';
UPDATE llm_providers SET failure_domain = '' WHERE name = 'p';
BEGIN;
INSERT INTO llm_providers(name) VALUES (repeat('p', 63)), ('P'), ('with blank'), ('größer');
UPDATE llm_providers SET failure_domain = 'eu-west' WHERE name = 'P';
ROLLBACK;

-- kinds
INSERT INTO llm_providers(name, kind) VALUES ('q', 'telepathy');
INSERT INTO llm_providers(name, kind) VALUES ('q', 'OpenAI');
INSERT INTO llm_providers(name, kind) VALUES ('q', NULL);
-- one that may be a key is not repeated
INSERT INTO llm_providers(name, kind) VALUES ('q', 'sk-regress-Vq8zR2mX4t');

-- keys: references are accepted
BEGIN;
UPDATE llm_providers SET api_key = 'env:OPENAI_API_KEY' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'env:_X_API_KEY' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'file:openai.key' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'secret:not-stored-yet' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'secret:.x_Y-9' WHERE name = 'p';
SELECT api_key FROM llm_providers WHERE name = 'p';
ROLLBACK;

-- anything else may be a key, and is not repeated: neither the value, nor the row, nor the line
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'sk-regress-Vq8zR2mX4t');
UPDATE llm_providers SET api_key = 'sk-regress-Vq8zR2mX4t' WHERE name = 'p';
UPDATE llm_providers SET api_key = '' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'env:' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'env:9LIVES_API_KEY' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'env:sk-regress-Vq8zR2mX4t' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'ENV:OPENAI_API_KEY' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'file:../../etc/passwd' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'file:/etc/passwd' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'file:.hidden' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'secret:sk regress Vq8zR2mX4t' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'secret:' || repeat('x', 64) WHERE name = 'p';
UPDATE llm_providers SET api_key = 'vault:sk-regress-Vq8zR2mX4t' WHERE name = 'p';
COPY llm_providers(name, api_key) FROM stdin;
q	sk-regress-Vq8zR2mX4t
\.
DO $$ BEGIN INSERT INTO llm_providers(name, api_key) VALUES ('q', 'sk-regress-Vq8zR2mX4t'); END $$;
-- also not by what else is wrong with the row
INSERT INTO llm_providers(name, kind, base_url, api_key, weight, options)
VALUES (NULL, NULL, 'x', 'sk-regress-Vq8zR2mX4t', 'NaN', '[]');
INSERT INTO llm_providers(name, api_key, breaker_failures) VALUES ('p', 'sk-regress-Vq8zR2mX4t', NULL);

-- environment variables: only those that llm_gateway.secret_env_pattern names
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'env:PGPASSWORD');
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'env:openai_api_key');
SET llm_gateway.secret_env_pattern = 'LLM_*, *_TOKEN';
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'env:OPENAI_API_KEY');
BEGIN;
UPDATE llm_providers SET api_key = 'env:LLM_' WHERE name = 'p';
UPDATE llm_providers SET api_key = 'env:GITHUB_TOKEN' WHERE name = 'p';
ROLLBACK;
SET llm_gateway.secret_env_pattern = '';
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'env:OPENAI_API_KEY');
-- a dump that is restored elsewhere: a warning
BEGIN;
SET LOCAL check_function_bodies = off;
INSERT INTO llm_providers(name, api_key) VALUES ('q', 'env:OPENAI_API_KEY');
ROLLBACK;
RESET llm_gateway.secret_env_pattern;
SET llm_gateway.secret_env_pattern = 'A-B';

-- URLs: what is none, and what has more than a place
INSERT INTO llm_providers(name, base_url) VALUES ('q', '');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://user:sk-regress-Vq8zR2mX4t@api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://sk-regress-Vq8zR2mX4t@api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com/v1#sk-regress-Vq8zR2mX4t');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com/v1?key=sk-regress-Vq8zR2mX4t');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com/v1?');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com/v1#');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com/a b');
INSERT INTO llm_providers(name, base_url) VALUES ('q', E'https://api.example.com/\r\nX-Header: 1');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'ftp://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'file:///etc/passwd');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'gopher://127.0.0.1:6379/');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'https://api.example.com:99999/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('q', 'api.example.com/v1');
UPDATE llm_providers SET base_url = 'https://user:sk-regress-Vq8zR2mX4t@api.example.com/v1' WHERE name = 'p';
UPDATE llm_providers SET base_url = NULL, kind = 'openai' WHERE name = 'p';

-- Hosts.  A superuser is warned, so that a dump can be restored; others are refused.
CREATE ROLE regress_llm_constraints;
SELECT llm_grant('regress_llm_constraints', 'admin');
SET llm_gateway.allowed_hosts = '';
BEGIN;
INSERT INTO llm_providers(name, base_url) VALUES
    ('u1', 'https://api.example.com/v1'), ('u2', 'https://api.example.com:8443/v1'),
    ('u3', 'http://localhost:8000/v1'), ('u4', 'http://127.0.0.1/v1'), ('u5', 'http://127.9.9.9:1/v1'),
    ('u6', 'http://[::1]:8000/v1'), ('u7', 'http://llm.localhost/v1'), ('u8', 'HTTPS://API.EXAMPLE.COM/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v1', 'http://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v2', 'http://127.0.0.1.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v3', 'http://localhost.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v4', 'http://[2001:db8::1]:8000/v1');
SELECT count(*) FROM llm_providers WHERE name ~ '^[uv]';
ROLLBACK;

-- a list: entries with a scheme, a port, a wildcard
SET llm_gateway.allowed_hosts = 'api.example.com, https://eu.example.com:8443, *.example.org, http://10.1.2.3:8000, http://*.lan, [2001:db8::1]:8443';
BEGIN;
INSERT INTO llm_providers(name, base_url) VALUES
    ('u1', 'https://api.example.com/v1'), ('u2', 'https://api.example.com:8443/v1'),
    ('u3', 'https://API.Example.com/v1'), ('u4', 'https://eu.example.com:8443/v1'),
    ('u5', 'https://a.example.org'), ('u6', 'https://a.b.example.org:1234/x/y'),
    ('u7', 'http://10.1.2.3:8000/v1'), ('u8', 'http://gpu1.lan:11434'),
    ('u9', 'https://[2001:db8::1]:8443/v1');
-- in the list is not enough: scheme and port count
INSERT INTO llm_providers(name, base_url) VALUES ('v1', 'http://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v2', 'https://eu.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v3', 'https://10.1.2.3:8000/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v4', 'http://10.1.2.3:8001/v1');
-- a wildcard is for names below, not for the name, and not for what only ends alike
INSERT INTO llm_providers(name, base_url) VALUES ('v5', 'https://example.org/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v6', 'https://badexample.org/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v7', 'https://a.example.org.evil.com/v1');
-- probes are sent to the same hosts
INSERT INTO llm_providers(name, kind, probe) VALUES ('u10', 'mock', 'https://api.example.com/health');
INSERT INTO llm_providers(name, kind, probe) VALUES ('v10', 'mock', 'https://example.org/health');
-- with a list, neither this machine nor the kind's own endpoint is allowed by itself
INSERT INTO llm_providers(name, base_url) VALUES ('v8', 'http://localhost:8000/v1');
INSERT INTO llm_providers(name) VALUES ('v9');
INSERT INTO llm_providers(name, kind) VALUES ('m', 'mock');
ROLLBACK;
SET ROLE regress_llm_constraints;
BEGIN;
INSERT INTO llm_providers(name, base_url) VALUES
    ('u1', 'https://api.example.com/v1'), ('u5', 'https://a.example.org'),
    ('u7', 'http://10.1.2.3:8000/v1'), ('u8', 'http://gpu1.lan:11434');
ROLLBACK;
INSERT INTO llm_providers(name, base_url) VALUES ('v1', 'http://api.example.com/v1');
INSERT INTO llm_providers(name, base_url) VALUES ('v5', 'https://example.org/v1');
INSERT INTO llm_providers(name) VALUES ('v9');
INSERT INTO llm_providers(name, kind, probe) VALUES ('v10', 'mock', 'https://example.org/health');
-- who changes another column does not write the URL
UPDATE llm_providers SET weight = 2 WHERE name = 'p';
UPDATE llm_providers SET base_url = 'https://api.openai.com/v1' WHERE name = 'p';
RESET ROLE;
-- entries that are none
SET llm_gateway.allowed_hosts = 'https://api.example.com/v1';
SET llm_gateway.allowed_hosts = 'ftp://api.example.com';
SET llm_gateway.allowed_hosts = '*';
SET llm_gateway.allowed_hosts = 'api.*.com';
SET llm_gateway.allowed_hosts = 'api.example.com:0';
SET llm_gateway.allowed_hosts = 'user@api.example.com';
RESET llm_gateway.allowed_hosts;

-- weights and limits
UPDATE llm_providers SET weight = -1 WHERE name = 'p';
UPDATE llm_providers SET weight = 'NaN' WHERE name = 'p';
UPDATE llm_providers SET weight = 'Infinity' WHERE name = 'p';
UPDATE llm_providers SET weight = NULL WHERE name = 'p';
UPDATE llm_providers SET max_concurrency = 0 WHERE name = 'p';
UPDATE llm_providers SET requests_per_minute = -5 WHERE name = 'p';
UPDATE llm_providers SET tokens_per_minute = 0 WHERE name = 'p';
UPDATE llm_providers SET breaker_failures = 0 WHERE name = 'p';
UPDATE llm_providers SET weight = 0, max_concurrency = 1, requests_per_minute = 2147483647,
    tokens_per_minute = NULL, breaker_failures = 1 WHERE name = 'p';

-- times
UPDATE llm_providers SET connect_timeout = '-1 s' WHERE name = 'p';
UPDATE llm_providers SET first_byte_timeout = '1 month' WHERE name = 'p';
UPDATE llm_providers SET first_byte_timeout = '1 month -30 days' WHERE name = 'p';
UPDATE llm_providers SET idle_timeout = '25 hours' WHERE name = 'p';
UPDATE llm_providers SET total_timeout = '1 day 1 us' WHERE name = 'p';
UPDATE llm_providers SET breaker_window = '-1 day' WHERE name = 'p';
UPDATE llm_providers SET breaker_cooldown = '178000000 years' WHERE name = 'p';
UPDATE llm_providers SET total_timeout = NULL WHERE name = 'p';
UPDATE llm_providers SET connect_timeout = '0', first_byte_timeout = '1 day', idle_timeout = '24:00:00',
    total_timeout = '1 us', breaker_window = '1 day -1 hour', breaker_cooldown = '0' WHERE name = 'p';

-- probes
UPDATE llm_providers SET probe = 'ping' WHERE name = 'p';
UPDATE llm_providers SET probe = '' WHERE name = 'p';
UPDATE llm_providers SET probe = 'Models' WHERE name = 'p';
UPDATE llm_providers SET probe = NULL WHERE name = 'p';
UPDATE llm_providers SET probe = 'http://user:sk-regress-Vq8zR2mX4t@localhost/health' WHERE name = 'p';
BEGIN;
UPDATE llm_providers SET probe = 'models' WHERE name = 'p';
UPDATE llm_providers SET probe = 'completion' WHERE name = 'p';
UPDATE llm_providers SET probe = 'none' WHERE name = 'p';
UPDATE llm_providers SET probe = 'http://localhost:8000/health' WHERE name = 'p';
ROLLBACK;

-- options are those of the kind
UPDATE llm_providers SET options = '[]' WHERE name = 'p';
UPDATE llm_providers SET options = '"text"' WHERE name = 'p';
UPDATE llm_providers SET options = 'null' WHERE name = 'p';
UPDATE llm_providers SET options = '{"straem": false}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"api_key": "sk-regress-Vq8zR2mX4t"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"stream": "no"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"include_usage": 1}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"organization": 7}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"project": "a\nb"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"token_parameter": "tokens"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"extra": true}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"extra": {"model": "x"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"extra": {"max_tokens": 1}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": "X: y"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"Authorization": "Bearer sk-regress-Vq8zR2mX4t"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"x-API-key": "sk-regress-Vq8zR2mX4t"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"Cookie": "sk-regress-Vq8zR2mX4t"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"Proxy-Authorization": "sk-regress-Vq8zR2mX4t"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"Host": "evil"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"X-A": "a\r\nAuthorization: b"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"X A": "b"}}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"headers": {"X-A": 1}}' WHERE name = 'p';
UPDATE llm_providers SET options = (SELECT jsonb_build_object('headers', jsonb_object_agg('X-' || g, '')) FROM generate_series(1, 25) g) WHERE name = 'p';
UPDATE llm_providers SET options = '{"reply": "for the mock only"}' WHERE name = 'p';
UPDATE llm_providers SET options = '{"stream": false, "include_usage": true, "organization": "org", "project": null,
    "token_parameter": "max_tokens", "headers": {"X-Title": "regress"}, "extra": {"logprobs": true}}' WHERE name = 'p';
SELECT options FROM llm_providers WHERE name = 'p';
-- the kind decides, also when only the kind changes
UPDATE llm_providers SET kind = 'mock' WHERE name = 'p';
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"error": "boredom"}');
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"chunks": 0}');
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"latency_ms": 1.5}');
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"organization": "x"}');
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"error": "timeout", "chunks": 2, "latency_ms": 1}');

-- ---------------------------------------------------------------------------
-- llm_models
-- ---------------------------------------------------------------------------

INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
SELECT upstream_name, tier, quality, input_price, output_price, cached_input_price, cache_write_price, price_tiers
FROM llm_models;
SELECT context_window, max_output_tokens, capabilities, first_byte_timeout, total_timeout, weight, enabled
FROM llm_models;
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
INSERT INTO llm_models(provider, name) VALUES ('nobody', 'm');
INSERT INTO llm_models(provider, name) VALUES (NULL, 'm');
INSERT INTO llm_models(provider, name) VALUES ('p', NULL);
INSERT INTO llm_models(provider, name) VALUES ('p', '');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm ');
INSERT INTO llm_models(provider, name) VALUES ('p', repeat('m', 201));
INSERT INTO llm_models(provider, name) VALUES ('p', 'org/with/slashes:and-more.v1'), ('p', repeat('m', 200));
DELETE FROM llm_models WHERE name <> 'm';
UPDATE llm_models SET upstream_name = '';
UPDATE llm_models SET upstream_name = E'a\tb';
UPDATE llm_models SET tier = 'gold';
UPDATE llm_models SET tier = NULL;
UPDATE llm_models SET provider = 'nobody';
UPDATE llm_models SET quality = -1;
UPDATE llm_models SET quality = 100.5;
UPDATE llm_models SET quality = 'NaN';
UPDATE llm_models SET weight = '-Infinity';

-- prices
UPDATE llm_models SET input_price = -0.01;
UPDATE llm_models SET input_price = 'NaN';
UPDATE llm_models SET output_price = 'Infinity';
UPDATE llm_models SET output_price = 1000000.01;
UPDATE llm_models SET cached_input_price = -1;
UPDATE llm_models SET cache_write_price = '-Infinity';
UPDATE llm_models SET input_price = 0, output_price = 1000000, cached_input_price = 0.0000001, cache_write_price = 1e-20;
UPDATE llm_models SET price_tiers = '{}';
UPDATE llm_models SET price_tiers = '5';
UPDATE llm_models SET price_tiers = '[5]';
UPDATE llm_models SET price_tiers = '[[{"above_tokens": 1}]]';
UPDATE llm_models SET price_tiers = '[{"input": 1}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": -1, "input": 1}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "input": -1}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "input": "1"}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "input": null}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "input": {"x": 1}}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "inptu": 1}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1, "input": 1e99}]';
UPDATE llm_models SET price_tiers = '[{"above_tokens": 200000, "input": 2.5, "output": 15, "cached_input": 0, "cache_write": 1}, {"above_tokens": 400000, "input": 5}]';

-- windows, times, capabilities
UPDATE llm_models SET context_window = 0;
UPDATE llm_models SET max_output_tokens = -1;
UPDATE llm_models SET first_byte_timeout = '-1 s';
UPDATE llm_models SET total_timeout = '2 days';
UPDATE llm_models SET capabilities = '{chat,NULL}';
UPDATE llm_models SET capabilities = '{""}';
UPDATE llm_models SET capabilities = '{chat,telepathy}';
UPDATE llm_models SET capabilities = '{}';
UPDATE llm_models SET capabilities = '{chat,completion,streaming,system_prompt,temperature,reasoning,tools,json_object,json_schema,image,audio,embedding,prompt_cache}',
    context_window = 1, max_output_tokens = 1, first_byte_timeout = '0', total_timeout = '1 day', quality = 0, weight = 0;

-- ---------------------------------------------------------------------------
-- llm_tiers, llm_priorities, llm_tasks, llm_error_policies
-- ---------------------------------------------------------------------------

INSERT INTO llm_tiers(name) VALUES ('gold');
SELECT * FROM llm_tiers WHERE name = 'gold';
INSERT INTO llm_tiers(name) VALUES ('gold');
INSERT INTO llm_tiers(name) VALUES (NULL);
INSERT INTO llm_tiers(name) VALUES ('');
UPDATE llm_tiers SET rank = 0 WHERE name = 'gold';
UPDATE llm_tiers SET rank = NULL WHERE name = 'gold';

INSERT INTO llm_priorities(name) VALUES ('urgent');
SELECT * FROM llm_priorities WHERE name = 'urgent';
INSERT INTO llm_priorities(name) VALUES ('urgent');
INSERT INTO llm_priorities(name) VALUES (' ');
UPDATE llm_priorities SET rank = -1 WHERE name = 'urgent';
UPDATE llm_priorities SET premium_above = 1.5 WHERE name = 'urgent';
UPDATE llm_priorities SET standard_above = -0.1 WHERE name = 'urgent';
UPDATE llm_priorities SET economy_above = 'NaN' WHERE name = 'urgent';
UPDATE llm_priorities SET premium_above = 'Infinity' WHERE name = 'urgent';
UPDATE llm_priorities SET premium_above = 0.1 WHERE name = 'urgent';
UPDATE llm_priorities SET economy_above = 0.3 WHERE name = 'urgent';
UPDATE llm_priorities SET standard_above = 0.9 WHERE name = 'urgent';
UPDATE llm_priorities SET standard_above = NULL WHERE name = 'urgent';
UPDATE llm_priorities SET premium_above = 1, standard_above = 1, economy_above = 1 WHERE name = 'urgent';
UPDATE llm_priorities SET required_role = 'regress_llm_nobody' WHERE name = 'urgent';
UPDATE llm_priorities SET required_role = 'regress_llm_constraints' WHERE name = 'urgent';
UPDATE llm_priorities SET required_role = '' WHERE name = 'urgent';

INSERT INTO llm_tasks(name) VALUES ('poetry');
SELECT * FROM llm_tasks WHERE name = 'poetry';
INSERT INTO llm_tasks(name) VALUES ('poetry');
INSERT INTO llm_tasks(name) VALUES ('');
UPDATE llm_tasks SET keywords = '{rhyme,NULL}' WHERE name = 'poetry';
UPDATE llm_tasks SET keywords = '{rhyme,""}' WHERE name = 'poetry';
UPDATE llm_tasks SET optimize = 'beauty' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_ttl = '-1 s' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_ttl = '1 year' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_ttl = '3651 days' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similarity = 0 WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similarity = 1.01 WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similarity = 'NaN' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similar_ttl = '0' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similar_ttl = '1 month' WHERE name = 'poetry';
UPDATE llm_tasks SET cache_similarity = 1, cache_similar_ttl = '1 h' WHERE name = 'poetry';
UPDATE llm_tasks SET pattern = 'a(b' WHERE name = 'poetry';
UPDATE llm_tasks SET pattern = repeat('x', 1001) WHERE name = 'poetry';
UPDATE llm_tasks SET keywords = '{rhyme,"blank verse"}', optimize = 'quality', cache_ttl = '3650 days',
    pattern = '\m(sonnet|haiku)s?\M' WHERE name = 'poetry';

INSERT INTO llm_error_policies(error_class) VALUES ('auth');
SELECT * FROM llm_error_policies WHERE error_class = 'auth';
INSERT INTO llm_error_policies(error_class) VALUES ('auth');
INSERT INTO llm_error_policies(error_class, provider) VALUES ('auth', 'p');
INSERT INTO llm_error_policies(error_class, provider) VALUES ('auth', '');
INSERT INTO llm_error_policies(error_class) VALUES ('boredom');
INSERT INTO llm_error_policies(error_class) VALUES ('budget');
INSERT INTO llm_error_policies(error_class) VALUES ('ok');
INSERT INTO llm_error_policies(error_class) VALUES (NULL);
UPDATE llm_error_policies SET max_retries = -1 WHERE provider = 'p';
UPDATE llm_error_policies SET max_retries = 11 WHERE provider = 'p';
UPDATE llm_error_policies SET backoff_ms = -1 WHERE provider = 'p';
UPDATE llm_error_policies SET backoff_ms = 600001 WHERE provider = 'p';
UPDATE llm_error_policies SET fallback = NULL WHERE provider = 'p';
UPDATE llm_error_policies SET max_retries = 10, backoff_ms = 600000 WHERE provider = 'p';

-- ---------------------------------------------------------------------------
-- llm_routing_rules
-- ---------------------------------------------------------------------------

INSERT INTO llm_routing_rules(id, model) VALUES (901, 'm');
SELECT * FROM llm_routing_rules WHERE id = 901;
INSERT INTO llm_routing_rules(id, model) VALUES (901, 'm');
INSERT INTO llm_routing_rules(id, model) VALUES (902, NULL);
INSERT INTO llm_routing_rules(id, model) VALUES (902, '');
INSERT INTO llm_routing_rules(id, model, alias) VALUES (902, 'm', '');
INSERT INTO llm_routing_rules(id, model, task) VALUES (902, 'm', 'juggling');
INSERT INTO llm_routing_rules(id, model, tags) VALUES (902, 'm', '["team"]');
INSERT INTO llm_routing_rules(id, model, tags) VALUES (902, 'm', '"team"');
INSERT INTO llm_routing_rules(id, model, tags) VALUES (902, 'm', 'null');
UPDATE llm_routing_rules SET task = 'juggling' WHERE id = 901;
-- a slip rather than a mistake: the row may come before what it names
INSERT INTO llm_routing_rules(id, model) VALUES (902, 'nothing');
INSERT INTO llm_routing_rules(id, model) VALUES (903, 'p/nothing');
INSERT INTO llm_routing_rules(id, model, role) VALUES (904, 'm', 'regress_llm_nobody');
UPDATE llm_routing_rules SET model = 'p/nothing' WHERE id = 904;
-- said once, and not for a model that is there
UPDATE llm_routing_rules SET rank = 10 WHERE id = 902;
UPDATE llm_routing_rules SET model = 'p/m' WHERE id = 903;
INSERT INTO llm_routing_rules(id, model, alias, task, rank, role, tags)
VALUES (905, 'm', 'fast', 'poetry', -5, 'regress_llm_constraints', '{"team": "x"}');

-- ---------------------------------------------------------------------------
-- References between the tables
-- ---------------------------------------------------------------------------

-- in use: refused
UPDATE llm_models SET tier = 'gold';
DELETE FROM llm_tiers WHERE name = 'gold';
DELETE FROM llm_tasks WHERE name = 'poetry';
TRUNCATE llm_tiers;
TRUNCATE llm_tasks;
-- renamed: followed
UPDATE llm_tiers SET name = 'platinum' WHERE name = 'gold';
UPDATE llm_tasks SET name = 'verse' WHERE name = 'poetry';
UPDATE llm_providers SET name = 'renamed' WHERE name = 'p';
SELECT provider, name, tier FROM llm_models;
SELECT id, task FROM llm_routing_rules WHERE task IS NOT NULL;
-- to a name that is taken: refused, and nothing has moved
INSERT INTO llm_models(provider, name) VALUES ('m', 'm');
UPDATE llm_providers SET name = 'm' WHERE name = 'renamed';
UPDATE llm_tiers SET name = 'premium' WHERE name = 'platinum';
SELECT provider, name, tier FROM llm_models ORDER BY provider COLLATE "C";
-- not in use any more
UPDATE llm_models SET tier = 'standard';
UPDATE llm_routing_rules SET task = NULL;
DELETE FROM llm_tiers WHERE name = 'platinum';
DELETE FROM llm_tasks WHERE name = 'verse';
-- models go with their provider
BEGIN;
DELETE FROM llm_providers WHERE name = 'renamed';
SELECT provider, name FROM llm_models;
ROLLBACK;
BEGIN;
TRUNCATE llm_providers;
SELECT count(*) FROM llm_models;
ROLLBACK;
SELECT count(*) FROM llm_models;
-- both rows in one statement
WITH p AS (INSERT INTO llm_providers(name, kind) VALUES ('both', 'mock') RETURNING name)
INSERT INTO llm_models(provider, name) SELECT name, 'x' FROM p;
SELECT provider, name FROM llm_models WHERE provider = 'both';

-- ---------------------------------------------------------------------------
-- What programs see: SQLSTATE, table and column
-- ---------------------------------------------------------------------------

CREATE FUNCTION pg_temp.refused(statement text, OUT state text, OUT relation text, OUT col text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    state := 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, relation = TABLE_NAME, col = COLUMN_NAME;
END $$;
SELECT statement, r.*
FROM (VALUES
    (1, $$UPDATE llm_providers SET weight = -1$$),
    (2, $$UPDATE llm_providers SET api_key = 'x'$$),
    (3, $$UPDATE llm_providers SET api_key = 'env:HOME'$$),
    (4, $$UPDATE llm_providers SET kind = 'x'$$),
    (5, $$UPDATE llm_providers SET base_url = 'x://', kind = 'openai', options = NULL$$),
    (6, $$UPDATE llm_providers SET options = '{"x": 1}'$$),
    (7, $$UPDATE llm_providers SET probe = 'x'$$),
    (8, $$UPDATE llm_models SET input_price = 'NaN'$$),
    (9, $$UPDATE llm_models SET tier = 'x'$$),
    (10, $$DELETE FROM llm_tiers WHERE name = 'standard'$$),
    (11, $$UPDATE llm_tiers SET rank = 0$$),
    (12, $$UPDATE llm_priorities SET economy_above = 1$$),
    (13, $$UPDATE llm_tasks SET pattern = '('$$),
    (14, $$UPDATE llm_error_policies SET error_class = 'x'$$),
    (15, $$UPDATE llm_routing_rules SET tags = '1'$$),
    (16, $$UPDATE llm_routing_rules SET task = 'x'$$)) s(n, statement),
    pg_temp.refused(statement) r
ORDER BY n;

-- nothing above has been stored that should not have been
SELECT count(*) FROM llm_providers WHERE api_key IS NOT NULL;

-- As it was.
RESET client_min_messages;
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;
SELECT llm_revoke('regress_llm_constraints', 'admin');
DROP ROLE regress_llm_constraints;
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;
