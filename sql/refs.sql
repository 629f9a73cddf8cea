-- References between the configuration tables, and what was added to them.

INSERT INTO llm_providers(name, kind) VALUES ('a', 'mock'), ('a2', 'mock'), ('b', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('a', 'x'), ('a', 'y'), ('a2', 'x'), ('b', 'z');

-- What a user adds to a table holds for what the extension writes
CREATE FUNCTION shout(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN upper($1);
ALTER TABLE llm_models ADD COLUMN label text GENERATED ALWAYS AS (provider || ':' || name) STORED;
CREATE INDEX models_shout ON llm_models (shout(provider));
CREATE INDEX models_b ON llm_models (name) WHERE provider = 'renamed';
CREATE TABLE model_notes (provider text, model text,
    FOREIGN KEY (provider, model) REFERENCES llm_models ON UPDATE CASCADE ON DELETE CASCADE);
CREATE TABLE audit (id serial, what text);
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit(what) VALUES (concat_ws(' ', TG_WHEN, TG_OP, TG_TABLE_NAME, OLD.provider, NEW.provider));
    RETURN coalesce(NEW, OLD);
END $$;
CREATE TRIGGER audit_before BEFORE UPDATE OR DELETE ON llm_models FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TRIGGER audit_after AFTER UPDATE OR DELETE ON llm_models FOR EACH ROW EXECUTE FUNCTION audit();
INSERT INTO model_notes VALUES ('a', 'x'), ('b', 'z');

UPDATE llm_providers SET name = 'renamed' WHERE name = 'a';
SET enable_seqscan = off;
SELECT name, label FROM llm_models WHERE shout(provider) = 'RENAMED' ORDER BY 1;
SELECT name FROM llm_models WHERE provider = 'renamed' AND name = 'y';
RESET enable_seqscan;
DELETE FROM llm_providers WHERE name = 'b';
TABLE model_notes;
SELECT what FROM audit ORDER BY id;
DROP TRIGGER audit_before ON llm_models;
DROP TRIGGER audit_after ON llm_models;
DROP TABLE model_notes;
ALTER TABLE llm_models DROP COLUMN label;
DROP FUNCTION shout CASCADE;
DROP INDEX models_b;

-- also for tombstones and secrets
CREATE INDEX tombstones_extra ON _llm_tombstones (upper(table_name));
CREATE INDEX secrets_extra ON _llm_secrets (upper(name)) WHERE allowed_host IS NULL;
CREATE FUNCTION set_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit(what) VALUES (concat_ws(' ', TG_OP, TG_TABLE_NAME, OLD.name, NEW.name));
    RETURN NULL;
END $$;
CREATE TRIGGER set_audit AFTER INSERT OR UPDATE OR DELETE ON _llm_secrets FOR EACH ROW EXECUTE FUNCTION set_audit();
TRUNCATE audit;
SELECT llm_set_secret('k', 'sk-1');
SELECT llm_set_secret('k', 'sk-2', 'api.openai.com');
SELECT llm_drop_secret('k'), llm_drop_secret('none');
SELECT what FROM audit ORDER BY id;
DROP TRIGGER set_audit ON _llm_secrets;
BEGIN;
UPDATE llm_tiers SET notice = 'edited' WHERE name = 'economy';
SET LOCAL enable_seqscan = off;
SELECT key FROM _llm_tombstones WHERE upper(table_name) = 'LLM_TIERS';
ROLLBACK;
DROP INDEX tombstones_extra, secrets_extra;
DROP TABLE audit;
DROP FUNCTION audit, set_audit;

-- One statement that deletes a row and refers to it
WITH d AS (DELETE FROM llm_providers WHERE name = 'a2' RETURNING 1)
INSERT INTO llm_models(provider, name) SELECT 'a2', 'orphan' FROM d;
WITH u AS (UPDATE llm_providers SET name = 'a3' WHERE name = 'a2' RETURNING 1)
INSERT INTO llm_models(provider, name) SELECT 'a2', 'orphan' FROM u;
INSERT INTO llm_tiers(name) VALUES ('spare');
INSERT INTO llm_tasks(name) VALUES ('spare');
WITH d AS (DELETE FROM llm_tiers WHERE name = 'spare' RETURNING 1)
INSERT INTO llm_models(provider, name, tier) SELECT 'a2', 'orphan', 'spare' FROM d;
WITH d AS (DELETE FROM llm_tasks WHERE name = 'spare' RETURNING 1)
INSERT INTO llm_routing_rules(id, task, model) SELECT 777, 'spare', 'x' FROM d;
-- in the other order
WITH i AS (INSERT INTO llm_models(provider, name) VALUES ('a2', 'new') RETURNING 1)
DELETE FROM llm_providers USING i WHERE name = 'a2';
WITH i AS (UPDATE llm_models SET weight = 2 WHERE provider = 'a2' RETURNING 1)
UPDATE llm_providers SET name = 'a3' FROM i WHERE llm_providers.name = 'a2';
WITH i AS (INSERT INTO llm_models(provider, name, tier) VALUES ('a2', 'new', 'spare') RETURNING 1)
DELETE FROM llm_tiers USING i WHERE name = 'spare';
-- both new
WITH p AS (INSERT INTO llm_providers(name, kind) VALUES ('c', 'mock') RETURNING name)
INSERT INTO llm_models(provider, name) SELECT name, 'new' FROM p;
SELECT provider, name FROM llm_models ORDER BY 1, 2;
DELETE FROM llm_tiers WHERE name = 'spare';
DELETE FROM llm_tasks WHERE name = 'spare';

-- Only a superuser's restore is trusted
CREATE ROLE regress_refs;
GRANT INSERT ON llm_models TO regress_refs;
SET check_function_bodies = off;
INSERT INTO llm_models(provider, name) VALUES ('later', 'x');
SET ROLE regress_refs;
INSERT INTO llm_models(provider, name) VALUES ('never', 'x');
INSERT INTO llm_models(provider, name) VALUES ('c', 'newer');
RESET ROLE;
RESET check_function_bodies;
DELETE FROM llm_models WHERE provider = 'later';
REVOKE ALL ON llm_models FROM regress_refs;
DROP ROLE regress_refs;

-- What else has a provider's name
INSERT INTO llm_error_policies(error_class, provider) VALUES ('timeout', 'c'), ('timeout', 'nobody');
INSERT INTO llm_routing_rules(alias, model) VALUES ('r1', 'c/new'), ('r2', 'new'),
    -- a model of another provider, whatever its name looks like
    ('r3', 'c/elsewhere');
UPDATE llm_providers SET name = 'd' WHERE name = 'c';
SELECT error_class, provider FROM llm_error_policies WHERE provider <> '*' ORDER BY 2;
SELECT alias, model FROM llm_routing_rules ORDER BY 1;
DELETE FROM llm_providers WHERE name = 'd';
SELECT error_class, provider FROM llm_error_policies WHERE provider <> '*' ORDER BY 2;
SELECT alias, model FROM llm_routing_rules ORDER BY 1;
TRUNCATE llm_providers;
SELECT count(*) FROM llm_models;
SELECT provider, count(*) FROM llm_error_policies GROUP BY 1;
DELETE FROM llm_routing_rules;

-- What is replayed was looked after where it was written, and comes in an order of its own
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
SET session_replication_role = replica;
UPDATE llm_models SET provider = 'q' WHERE provider = 'p';
UPDATE llm_providers SET name = 'q' WHERE name = 'p';
RESET session_replication_role;
SELECT llm_complete('x', model => 'q/m');
SET session_replication_role = replica;
DELETE FROM llm_providers WHERE name = 'q';
SELECT provider, name FROM llm_models;
DELETE FROM llm_models;
RESET session_replication_role;

-- A column's type is not taken for granted
BEGIN;
ALTER TABLE llm_providers ALTER COLUMN failure_domain TYPE integer USING 1;
SAVEPOINT s;
INSERT INTO llm_providers(name, kind, failure_domain) VALUES ('a', 'mock', 7);
ROLLBACK TO s;
ALTER TABLE llm_tiers ALTER COLUMN notice TYPE integer USING 1;
SELECT llm_complete('x');
ROLLBACK;

BEGIN;
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', 1);
ALTER TABLE _llm_budget_spend ALTER COLUMN spent_nano TYPE numeric;
SELECT llm_complete('x');
ROLLBACK;

-- Nor is it that a column has a value
BEGIN;
ALTER TABLE llm_budgets ALTER COLUMN on_exhausted DROP NOT NULL;
INSERT INTO llm_budgets(name, on_exhausted) VALUES ('b', NULL);
SELECT llm_complete('x');
ROLLBACK;
BEGIN;
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
ALTER TABLE llm_models ALTER COLUMN tier DROP NOT NULL;
UPDATE llm_models SET tier = NULL;
SELECT llm_complete('x');
ROLLBACK;

-- Nor that a table is one
BEGIN;
ALTER TABLE llm_tiers RENAME TO own_tiers;
CREATE TABLE llm_tiers (LIKE own_tiers) PARTITION BY LIST (name);
ALTER EXTENSION llm_gateway ADD TABLE llm_tiers;
SELECT llm_complete('x');
ROLLBACK;
BEGIN;
ALTER TABLE llm_tiers RENAME TO own_tiers;
CREATE VIEW llm_tiers AS SELECT * FROM own_tiers;
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
ROLLBACK;
BEGIN;
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
ALTER TABLE llm_cache RENAME TO own_cache;
CREATE TABLE llm_cache (LIKE own_cache) PARTITION BY LIST (key);
ALTER EXTENSION llm_gateway ADD TABLE llm_cache;
SELECT llm_complete('x', cache => 'on');
ROLLBACK;
BEGIN;
INSERT INTO llm_providers(name, kind) VALUES ('p', 'mock');
INSERT INTO llm_models(provider, name) VALUES ('p', 'm');
INSERT INTO llm_budgets(name, limit_usd) VALUES ('b', 1);
ALTER TABLE _llm_budget_spend RENAME TO own_spend;
CREATE TABLE _llm_budget_spend (LIKE own_spend) PARTITION BY LIST (budget_id);
ALTER EXTENSION llm_gateway ADD TABLE _llm_budget_spend;
SELECT llm_complete('x');
ROLLBACK;

-- A replaced seed
BEGIN;
INSERT INTO llm_priorities(name, rank) VALUES ('critical', 5)
    ON CONFLICT (name) DO UPDATE SET rank = 6;
INSERT INTO llm_error_policies(error_class) VALUES ('timeout');
SELECT name, rank FROM llm_priorities WHERE name = 'critical';
ROLLBACK;
