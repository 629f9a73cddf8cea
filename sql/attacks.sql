-- What a gateway administrator and a role that bypasses row security try with keys.
SET client_min_messages = error;
CREATE ROLE regress_llm_attacker;
SELECT llm_grant('regress_llm_attacker', 'admin');
INSERT INTO llm_providers(name, base_url) VALUES ('local', 'http://127.0.0.1:9/v1');
INSERT INTO llm_providers(name, kind, api_key) VALUES ('pretend', 'mock', 'env:REGRESS_API_KEY');
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('openai', 'https://api.openai.com/v1', 'env:REGRESS_API_KEY');
SELECT llm_set_secret('bound', 'sk-regress-bound-1', allowed_host => 'api.example.com');
RESET client_min_messages;

SET ROLE regress_llm_attacker;
-- a key for a host that a superuser allowed without one
UPDATE llm_providers SET api_key = 'env:OTHER_API_KEY' WHERE name = 'local';
UPDATE llm_providers SET api_key = 'secret:bound' WHERE name = 'local';
INSERT INTO llm_providers(name, base_url, api_key) VALUES ('local', 'http://127.0.0.1:9/v1', 'secret:bound')
ON CONFLICT (name) DO UPDATE SET api_key = excluded.api_key;
-- another host for a key
UPDATE llm_providers SET base_url = 'https://attacker.example/v1' WHERE name = 'openai';
UPDATE llm_providers SET kind = 'openai', base_url = 'https://attacker.example/v1' WHERE name = 'pretend';
UPDATE llm_providers SET probe = 'https://attacker.example/' WHERE name = 'openai';
UPDATE llm_providers SET options = '{"headers": {"Host": "attacker.example"}}' WHERE name = 'openai';
-- whoever listens on this machine where a kind has its default endpoint
INSERT INTO llm_providers(name, kind, api_key) VALUES ('here', 'ollama', 'env:OTHER_API_KEY');
-- what does not choose a host is an administrator's to change
UPDATE llm_providers SET weight = 2 WHERE name = 'local';
UPDATE llm_providers SET api_key = NULL WHERE name = 'local';
UPDATE llm_providers SET api_key = 'env:OTHER_API_KEY' WHERE name = 'openai';
RESET ROLE;

-- secrets, by hand
SET client_min_messages = error;
ALTER ROLE regress_llm_attacker BYPASSRLS;
GRANT pg_read_all_data, pg_write_all_data TO regress_llm_attacker;
RESET client_min_messages;
SET ROLE regress_llm_attacker;
SELECT name, value, allowed_host FROM _llm_secrets;
UPDATE _llm_secrets SET allowed_host = 'attacker.example' WHERE name = 'bound';
INSERT INTO _llm_secrets(name, value) SELECT 'copy', value FROM _llm_secrets;
DELETE FROM _llm_secrets;
-- by the functions, which an administrator has
SELECT llm_set_secret('mine', 'sk-regress-mine-1');
SELECT llm_drop_secret('mine');
RESET ROLE;

-- a key in the place of a name is not repeated
SELECT * FROM llm_add_provider('sk-regress-0123456789-0123456789');
SELECT * FROM llm_add_provider('x', 'sk-regress-0123456789-0123456789');

SET client_min_messages = error;
SELECT llm_revoke('regress_llm_attacker', 'admin');
DROP OWNED BY regress_llm_attacker;
DROP ROLE regress_llm_attacker;
DELETE FROM llm_providers;
SELECT llm_drop_secret('bound');
