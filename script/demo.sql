
-- The provider is a fake one that echoes what it is asked; the HTTP between is real.

-- 1. Set up: the extension, and a provider. Its key is a reference: the server reads it from its environment.

CREATE EXTENSION llm_gateway;
SELECT * FROM llm_add_provider('local', kind => 'openai', api_key => 'env:DEMO_API_KEY',
                               base_url => :'base_url', models => ARRAY['demo-large', 'demo-medium', 'demo-small']);

-- What models cost and how good they are is data (prices in USD per million tokens).

UPDATE llm_models SET tier = 'premium', quality = 90, input_price = 2.50, output_price = 10 WHERE name = 'demo-large';
UPDATE llm_models SET tier = 'standard', quality = 70, input_price = 1, output_price = 4 WHERE name = 'demo-medium';
UPDATE llm_models SET tier = 'economy', quality = 40, input_price = 0.40, output_price = 1.50 WHERE name = 'demo-small';

-- 2. Ask.

SELECT llm_complete('Why do databases keep a write-ahead log?');
SELECT provider, model, input_tokens, output_tokens, cost_usd, latency_ms, finish_reason
  FROM llm_complete_detail('Why do databases keep a write-ahead log?', 'high', max_tokens => 100);

-- 3. A table at once: one statement, many requests in flight.

CREATE TABLE tickets (id int PRIMARY KEY, body text);
INSERT INTO tickets VALUES (1, 'The invoice of May was charged twice.'),
                           (2, 'Exporting more than 10,000 rows ends in a time-out.'),
                           (3, 'Please add a dark mode. My eyes!');
WITH asked AS (
    SELECT array_agg(id ORDER BY id) AS ids, array_agg('Summarise in five words: ' || body ORDER BY id) AS prompts
      FROM tickets)
SELECT ids[idx] AS ticket, response, model, cost_usd
  FROM asked, llm_complete_batch(prompts, 'low', model => 'demo-small')
 ORDER BY idx;

-- 4. An outage: the first choice answers 503 to everything. Nobody notices, but the rows say what happened:
-- after three failures the provider's circuit breaker opens, and it is not asked any more.

INSERT INTO llm_providers(name, base_url, api_key, breaker_cooldown)
VALUES ('shaky', :'base_url', 'env:DEMO_API_KEY', '1 s');
INSERT INTO llm_models(provider, name, upstream_name) VALUES ('shaky', 'demo-first', 'status-503');
INSERT INTO llm_routing_rules(alias, model, rank) VALUES ('best', 'demo-first', 10), ('best', 'demo-large', 20);
UPDATE llm_error_policies SET backoff_ms = 100 WHERE error_class = 'overloaded';
SELECT response, provider, attempts, fallback
  FROM generate_series(1, 4) n, llm_complete_detail('Still there, number ' || n || '?', model => 'best');
SELECT provider, state, consecutive_failures, successes, failures FROM llm_provider_status;

-- It works again. The worker finds out, by asking for its list of models, which is free.

UPDATE llm_models SET upstream_name = NULL WHERE name = 'demo-first';
SELECT pg_sleep(2);
SELECT response, provider, attempts, fallback FROM llm_complete_detail('And now?', model => 'best');
SELECT from_state, to_state, reason, error_class FROM llm_breaker_events ORDER BY event_id;
DELETE FROM llm_models WHERE name = 'demo-first';
DELETE FROM llm_providers WHERE name = 'shaky';

-- 5. A budget of 1.2 cents a day, for calls of a team. As it runs low, they get cheaper models; when nothing is left
-- for calls of their priority, they are refused. (Answers have 400 tokens here, or it would last too long.)

UPDATE llm_models SET upstream_name = 'tokens-400';
INSERT INTO llm_budgets(name, limit_usd, period, tags) VALUES ('reports', 0.012, 'day', '{"team": "reports"}');
SET llm_gateway.tags = '{"team": "reports"}';
SELECT n, model, model_tier, cost_usd, notice, error_class
  FROM generate_series(1, 7) n, llm_complete_detail('Write report number ' || n, max_tokens => 400);
SELECT budget, limit_usd, spent_usd, remaining_usd, remaining_fraction, best_tier FROM llm_budget_status;

-- What the error says, and why no model is left. What is kept in reserve is there for critical calls.

\set ON_ERROR_STOP 0
SELECT llm_complete('Write one more', max_tokens => 400);
\set ON_ERROR_STOP 1
SELECT rank, model, model_tier, estimated_usd, chosen, reason FROM llm_route('Write one more', 'critical', max_tokens => 60);
SELECT model, model_tier, cost_usd, notice FROM llm_complete_detail('Write one more', 'critical', max_tokens => 60);

-- A budget is a row: it is raised for all sessions as soon as this commits.

UPDATE llm_budgets SET limit_usd = 0.1 WHERE name = 'reports';
SELECT model, model_tier, cost_usd FROM llm_complete_detail('Write one more', max_tokens => 400);
RESET llm_gateway.tags;
UPDATE llm_models SET upstream_name = NULL;

-- 6. The bill: everything above is in the books, what failed and what is rolled back included.

BEGIN;
SELECT llm_complete('This will be rolled back, and paid all the same.', model => 'demo-small', tags => '{"team": "search"}');
ROLLBACK;
SELECT request_id % 1000 AS request, model, status, attempts, input_tokens, output_tokens, cost_usd, tags
  FROM llm_requests ORDER BY request_id;
SELECT model, requests, failures, fallbacks, input_tokens, output_tokens, cost_usd FROM llm_spend_today;
SELECT budget, priority, from_tier, to_tier, requests, rejected, cost_usd FROM llm_downgrade_report;
SELECT saved_by, model, compared_with, requests, cost_usd, otherwise_usd, saved_usd FROM llm_savings_report;

-- 7. Routing is rows, and rows are transactional: seen by our own next call, by others after COMMIT.

BEGIN;
UPDATE llm_models SET enabled = false WHERE name = 'demo-large';
SELECT model FROM llm_complete_detail('Hello!');
ROLLBACK;
SELECT model FROM llm_complete_detail('Hello!');

-- 8. Errors say what was tried and what to do. (Both are wanted here.)

\set ON_ERROR_STOP 0
SELECT llm_complete('Hello!', 'demo-large');
BEGIN;
UPDATE llm_providers SET base_url = 'http://127.0.0.1:1/v1' WHERE name = 'local';
SELECT llm_complete('Is anybody there?');
ROLLBACK;
\set ON_ERROR_STOP 1

-- Rolled back, and all is well.

SELECT llm_complete('Is anybody there?');
