-- Configuration behaves like the catalogs: seen at once by its own
-- transaction, undone by ROLLBACK and by ROLLBACK TO.
SET client_min_messages = warning;
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"reply": "one"}');
INSERT INTO llm_models(provider, name) VALUES ('m', 'm');

-- every column but the key has a default
SELECT kind, enabled, weight, connect_timeout, first_byte_timeout, idle_timeout, total_timeout,
       breaker_failures, breaker_window, breaker_cooldown
FROM llm_providers;
SELECT tier, quality, weight, enabled, capabilities, input_price, context_window FROM llm_models;

SELECT llm_complete('hi');
BEGIN;
UPDATE llm_providers SET options = '{"reply": "two"}';
SELECT llm_complete('hi');
SAVEPOINT s;
UPDATE llm_providers SET options = '{"reply": "three"}';
SELECT llm_complete('hi');
ROLLBACK TO s;
SELECT llm_complete('hi');
DELETE FROM llm_models;
SELECT error_class FROM llm_complete_detail('hi');
ROLLBACK;
SELECT llm_complete('hi');

BEGIN;
TRUNCATE llm_models;
SELECT error_message FROM llm_complete_detail('hi');
ROLLBACK;
SELECT llm_complete('hi');

-- an error undoes too
BEGIN;
UPDATE llm_providers SET options = '{"reply": "two"}';
SELECT llm_complete('hi');
SELECT 1/0;
ROLLBACK;
SELECT llm_complete('hi');

-- in every isolation level, and in a read-only transaction
BEGIN ISOLATION LEVEL SERIALIZABLE;
UPDATE llm_providers SET options = '{"reply": "two"}';
SELECT llm_complete('hi');
ROLLBACK;
BEGIN READ ONLY;
SELECT llm_complete('hi');
COMMIT;

-- dropped and created again in one session
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;
SELECT llm_complete('hi');
INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"reply": "new"}');
INSERT INTO llm_models(provider, name) VALUES ('m', 'm');
SELECT llm_complete('hi');
DELETE FROM llm_providers;

-- in a schema of its own, found without the search path
DROP EXTENSION llm_gateway;
CREATE SCHEMA "Odd schema";
CREATE EXTENSION llm_gateway SCHEMA "Odd schema";
SELECT count(*) FROM "Odd schema".llm_add_provider('mock');
SELECT "Odd schema".llm_complete('hi');
DROP EXTENSION llm_gateway;
SELECT 1 AS still_here;
DROP SCHEMA "Odd schema";
CREATE EXTENSION llm_gateway;
