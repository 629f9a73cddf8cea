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
DELETE FROM llm_providers;

--
-- llm_route: the decision, without a call
--
SELECT * FROM llm_route('hi');
INSERT INTO llm_providers(name, kind) VALUES ('route a', 'mock');
SELECT * FROM llm_route('hi');
INSERT INTO llm_providers(name, kind) VALUES ('route b', 'mock'), ('route c', 'mock');
INSERT INTO llm_models(provider, name, tier, quality, input_price, output_price, context_window) VALUES
    ('route a', 'small', 'economy', 10, NULL, NULL, NULL), ('route a', 'both', 'standard', 50, 1, 2, NULL),
    ('route b', 'both', 'standard', 50, 10, 20, NULL), ('route c', 'large', 'premium', 90, 0, 0, 1000);
-- what of a reason depends on the moment
CREATE FUNCTION pg_temp.still(reason text) RETURNS text LANGUAGE sql AS
    $$SELECT regexp_replace(regexp_replace(reason, '\d+:\d+:\d+', '(time)', 'g'), '(for|in) \d+ s', '\1 (n) s', 'g')$$;

-- no rule; what is estimated is what a call estimates
SELECT * FROM llm_route(repeat('word', 100), max_tokens => 50, system_prompt => 'Be brief.');
SELECT r.estimated_usd, r.estimated_usd = d.estimated_usd AS same
FROM llm_route('hi', model => 'route b/both', system_prompt => 'Be brief.') r,
    llm_complete_detail('hi', model => 'route b/both', system_prompt => 'Be brief.') d;
SELECT * FROM llm_route(NULL);
SELECT llm_route('');

-- a model, an alias, rules; what is dropped, and why
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'both');
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'route b/both');
SELECT * FROM llm_route('hi', model => 'gone');
INSERT INTO llm_routing_rules(id, alias, task, model, rank) VALUES
    (2001, 'fast', NULL, 'small', 10), (2002, 'fast', NULL, 'both', 20), (2003, NULL, 'coding', 'large', 10),
    (2004, NULL, NULL, 'route b/both', 10), (2005, NULL, NULL, 'both', 20);
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'fast');
SELECT rank, provider, model, task, task_source, chosen, reason FROM llm_route('hi', task => 'coding');
SELECT rank, provider, model, task, task_source, chosen, reason FROM llm_route('hi', task => 'math');
SELECT rank, provider, model, chosen, reason FROM llm_route(repeat('x', 6000), task => 'coding');
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'fast', min_tier => 'standard');
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'small', min_tier => 'premium');
SELECT * FROM llm_route('hi', min_tier => 'none');
SELECT * FROM llm_route('hi', 'none');
SELECT * FROM llm_route('hi', optimize => 'beauty');
SELECT * FROM llm_route('hi', params => '{"none": 1}');
SELECT * FROM llm_route('hi', tags => '[]');
SELECT * FROM llm_route('hi', max_tokens => 0);

UPDATE llm_providers SET enabled = false WHERE name = 'route b';
UPDATE llm_models SET enabled = false WHERE provider = 'route a' AND name = 'both';
SELECT rank, provider, model, chosen, reason FROM llm_route('hi');
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'fast');
UPDATE llm_providers SET enabled = true WHERE name = 'route b';
UPDATE llm_models SET enabled = true, capabilities = '{embedding}' WHERE provider = 'route a' AND name = 'both';
SELECT rank, provider, model, chosen, reason FROM llm_route('hi');
UPDATE llm_models SET capabilities = NULL WHERE provider = 'route a' AND name = 'both';

-- a key that cannot be read
UPDATE llm_providers SET kind = 'openai', base_url = 'https://127.0.0.1/v1', api_key = 'env:NO_SUCH_API_KEY'
WHERE name = 'route b';
SELECT rank, provider, model, chosen, reason FROM llm_route('hi');
SELECT provider FROM llm_complete_detail('hi');
UPDATE llm_error_policies SET fallback = false WHERE error_class = 'auth';
SELECT rank, provider, chosen FROM llm_route('hi');
SELECT error_class FROM llm_complete_detail('hi');
UPDATE llm_error_policies SET fallback = true WHERE error_class = 'auth';
UPDATE llm_providers SET kind = 'mock', base_url = NULL, api_key = NULL WHERE name = 'route b';

-- a rule that names no model
INSERT INTO llm_routing_rules(id, alias, model, rank) VALUES (2006, 'fast', 'gone', 5), (2007, 'none', 'gone', 5);
SET client_min_messages = notice;
SELECT rank, provider, model, chosen, reason FROM llm_route('hi', model => 'fast');
SET client_min_messages = warning;
SELECT * FROM llm_route('hi', model => 'none');
DELETE FROM llm_routing_rules WHERE model = 'gone';

-- rules for a role and for tags; who may ask
INSERT INTO llm_routing_rules(id, model, rank, role, tags) VALUES
    (2008, 'small', 1, 'regress_llm_route', NULL), (2009, 'large', 2, NULL, '{"team": "x"}');
SET ROLE regress_llm_other;
SELECT rank, provider, model, reason FROM llm_route('hi') WHERE chosen;
SELECT rank, provider, model, reason FROM llm_route('hi', tags => '{"team": "x"}') WHERE chosen;
SELECT * FROM llm_route('hi', 'critical');
RESET ROLE;
GRANT regress_llm_route TO regress_llm_other;
SET ROLE regress_llm_other;
SELECT rank, provider, model, reason FROM llm_route('hi', tags => '{"team": "x"}') WHERE chosen;
RESET ROLE;
SELECT llm_revoke('regress_llm_other');
SET ROLE regress_llm_other;
SELECT * FROM llm_route('hi');
RESET ROLE;
UPDATE llm_priorities SET required_role = NULL WHERE name = 'critical';
DELETE FROM llm_routing_rules WHERE id = 2008;

-- looking takes no turn, makes no call, and says what the next call does
UPDATE llm_providers SET weight = 3 WHERE name = 'route b';
CREATE TEMP TABLE before AS SELECT count(*) FROM llm_requests;
DO $$
DECLARE
    arguments text;
    seen text;
    got text;
    turns text := '';
BEGIN
    FOR i IN 1..8 LOOP
        FOREACH arguments IN ARRAY '{"","model => ''both''","model => ''fast''","task => ''coding''",
                "task => ''coding'', min_tier => ''premium''","model => ''route a/both''","tags => ''{\"team\": \"x\"}''"}'::text[] LOOP
            arguments := concat_ws(', ', '''hi''', nullif(arguments, ''));
            FOR j IN 1..3 LOOP
                EXECUTE format('SELECT provider || ''/'' || model FROM llm_route(%s) WHERE chosen', arguments) INTO STRICT seen;
            END LOOP;
            EXECUTE format('SELECT provider || ''/'' || model FROM llm_complete_detail(%s)', arguments) INTO got;
            IF seen IS DISTINCT FROM got THEN
                RAISE WARNING '%: % seen, % asked', arguments, seen, got;
            END IF;
            IF arguments ~ '''both' THEN
                turns := turns || substr(got, 7, 1);
            END IF;
        END LOOP;
    END LOOP;
    RAISE WARNING '% a, % b', length(replace(turns, 'b', '')), length(replace(turns, 'a', ''));
END $$;
SELECT (SELECT count(*) FROM llm_requests) - count AS calls FROM before;
UPDATE llm_providers SET weight = 1 WHERE name = 'route b';

-- what depends on the moment: opened by hand
SELECT llm_breaker_open('route b');
SELECT rank, provider, model, chosen, pg_temp.still(reason) AS reason FROM llm_route('hi');
SELECT provider FROM llm_complete_detail('hi');
SELECT chosen FROM llm_route('hi', model => 'route b/both');
SELECT error_class FROM llm_complete_detail('hi', model => 'route b/both');
SELECT llm_breaker_reset('route b');
SELECT rank, provider, chosen, reason FROM llm_route('hi');

-- parked; with another row, or key, it is asked again
UPDATE llm_providers SET options = '{"error": "auth"}' WHERE name = 'route b';
SELECT provider FROM llm_complete_detail('hi');
SELECT rank, provider, chosen, pg_temp.still(reason) AS reason FROM llm_route('hi');
UPDATE llm_providers SET options = NULL WHERE name = 'route b';
SELECT rank, provider, chosen, reason FROM llm_route('hi');
SELECT provider FROM llm_complete_detail('hi');

-- an outage; with nothing else left, the nearest to its probe is asked
UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'network';
UPDATE llm_providers SET options = '{"error": "network"}', breaker_failures = 1, probe = 'none',
    breaker_cooldown = CASE name WHEN 'route a' THEN interval '30 minutes' ELSE interval '1 hour' END
WHERE name IN ('route a', 'route b');
SELECT error_class FROM llm_complete_detail('hi', model => 'route b/both');
SELECT rank, provider, chosen, pg_temp.still(reason) AS reason FROM llm_route('hi');
SELECT chosen, pg_temp.still(reason) AS reason FROM llm_route('hi', model => 'route b/both');
SELECT error_class FROM llm_complete_detail('hi', model => 'route a/both');
UPDATE llm_providers SET options = NULL;
SELECT provider, chosen, pg_temp.still(reason) AS reason FROM llm_route('hi', model => 'both') ORDER BY provider;
SELECT provider FROM llm_complete_detail('hi', model => 'both');
SELECT llm_breaker_reset('route a'), llm_breaker_reset('route b');
UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'network';

-- no room: where waiting is in vain, another model is asked
UPDATE llm_providers SET requests_per_minute = 1 WHERE name = 'route b';
INSERT INTO llm_routing_rules(id, alias, model, rank) VALUES
    (2010, 'tight', 'route b/both', 10), (2011, 'tight', 'small', 20), (2012, 'tight', 'route a/both', 30);
SELECT provider FROM llm_complete_detail('hi', model => 'tight');
SELECT rank, provider, model, chosen, pg_temp.still(reason) AS reason FROM llm_route('hi', model => 'tight');
SELECT provider, model FROM llm_complete_detail('hi', model => 'tight');
-- what a prompt is expected to take of tokens_per_minute
UPDATE llm_providers SET requests_per_minute = NULL, tokens_per_minute = 300 WHERE name = 'route b';
SELECT provider FROM llm_complete_detail('hi', model => 'tight');
SELECT rank, provider, chosen, pg_temp.still(regexp_replace(reason, 'room for \d+', 'room for (n)')) AS reason
FROM llm_route('hi', model => 'tight', max_tokens => 290);
UPDATE llm_providers SET tokens_per_minute = NULL WHERE name = 'route b';
DELETE FROM llm_routing_rules;

DROP ROLE regress_llm_other, regress_llm_route;
DELETE FROM llm_providers;
