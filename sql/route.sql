-- Which model answers.
SET client_min_messages = warning;
DELETE FROM llm_routing_rules;

-- nothing configured
SELECT llm_complete('hi');
INSERT INTO llm_providers(name, kind) VALUES ('a', 'mock'), ('b', 'mock');
SELECT llm_complete('hi');

INSERT INTO llm_models(provider, name, quality, context_window) VALUES
    ('a', 'small', 10, NULL), ('a', 'both', 50, NULL), ('b', 'both', 50, NULL), ('b', 'org/large', 90, 1000);

-- no rule at all: by quality, then provider
SELECT provider, model FROM llm_complete_detail('hi');
UPDATE llm_models SET enabled = false WHERE name = 'org/large';
SELECT provider, model FROM llm_complete_detail('hi');
UPDATE llm_models SET enabled = true WHERE name = 'org/large';

-- a name: provider/model, or a model with slashes and all
SELECT provider, model FROM llm_complete_detail('hi', model => 'b/both');
SELECT provider, model FROM llm_complete_detail('hi', model => 'org/large');
SELECT provider, model FROM llm_complete_detail('hi', model => 'b/org/large');
SELECT provider, model FROM llm_complete_detail('hi', model => 'both');
UPDATE llm_providers SET weight = 5 WHERE name = 'b';
SELECT provider, model FROM llm_complete_detail('hi', model => 'both');
SELECT llm_complete('hi', model => 'c/both');

-- a named model is a pin: another provider of it may answer, another model never
UPDATE llm_providers SET enabled = false WHERE name = 'b';
SELECT provider, model, fallback FROM llm_complete_detail('hi', model => 'both');
SELECT llm_complete('hi', model => 'b/both');
SELECT error_class FROM llm_complete_detail('hi', model => 'org/large');
UPDATE llm_providers SET enabled = true WHERE name = 'b';

-- aliases: rules by rank, then id; an alias hides a model of the same name
INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('fast', 'small', 20), ('fast', 'both', 10);
SELECT provider, model FROM llm_complete_detail('hi', model => 'fast');
UPDATE llm_routing_rules SET rank = 5 WHERE model = 'small';
SELECT provider, model FROM llm_complete_detail('hi', model => 'fast');
UPDATE llm_routing_rules SET enabled = false WHERE alias = 'fast';
SELECT error_class FROM llm_complete_detail('hi', model => 'fast');
DELETE FROM llm_routing_rules;

-- tasks: their own rules, else those for any task
INSERT INTO llm_routing_rules(task, model) VALUES ('coding', 'org/large'), (NULL, 'small');
SELECT model FROM llm_complete_detail('hi');
SELECT model, task FROM llm_complete_detail('hi', task => 'coding');
SELECT model FROM llm_complete_detail('hi', task => 'math');
UPDATE llm_tasks SET enabled = false WHERE name = 'coding';
SELECT model, task FROM llm_complete_detail('hi', task => 'coding');
UPDATE llm_tasks SET enabled = true WHERE name = 'coding';
DELETE FROM llm_routing_rules;

-- a rule that names no model there is: said, and the next one answers
INSERT INTO llm_routing_rules(id, model, rank) VALUES (1001, 'gone', 10);
SELECT llm_complete('hi');
INSERT INTO llm_routing_rules(model, rank) VALUES ('small', 20);
SELECT model, fallback FROM llm_complete_detail('hi');
DELETE FROM llm_routing_rules;

-- rules for a role and for tags
CREATE ROLE regress_llm_route;
INSERT INTO llm_routing_rules(model, rank, role, tags) VALUES
    ('org/large', 10, 'regress_llm_route', NULL), ('both', 20, NULL, '{"team": "x"}'), ('small', 30, NULL, NULL);
GRANT regress_llm_route TO CURRENT_USER;
SELECT model FROM llm_complete_detail('hi');
CREATE ROLE regress_llm_other;
SELECT llm_grant('regress_llm_other');
SET ROLE regress_llm_other;
SELECT model FROM llm_complete_detail('hi');
SELECT model FROM llm_complete_detail('hi', tags => '{"team": "x", "more": 1}');
SELECT model FROM llm_complete_detail('hi', tags => '{"team": "y"}');
RESET ROLE;
DELETE FROM llm_routing_rules;

-- a prompt much longer than the window drops the candidate
SELECT model FROM llm_complete_detail(repeat('x', 4900), model => 'org/large');
SELECT llm_complete(repeat('x', 5100), model => 'org/large');
SELECT model FROM llm_complete_detail(repeat('x', 5100));

-- models that only make embeddings do not complete
UPDATE llm_models SET capabilities = '{embedding}' WHERE name = 'org/large';
SELECT model FROM llm_complete_detail('hi');
SELECT llm_complete('hi', model => 'org/large');

-- a priority may require a role
UPDATE llm_priorities SET required_role = 'regress_llm_route' WHERE name = 'critical';
SET ROLE regress_llm_other;
SELECT llm_complete('hi', 'critical');
SELECT llm_complete('hi', 'high') IS NOT NULL AS answered;
RESET ROLE;
UPDATE llm_priorities SET required_role = NULL WHERE name = 'critical';

SELECT llm_revoke('regress_llm_other');
DROP ROLE regress_llm_other, regress_llm_route;
DELETE FROM llm_providers;
