-- One prompt, one answer, on the mock provider: nothing here needs a network.
\set VERBOSITY default
SET client_min_messages = warning;
SELECT object, name FROM llm_add_provider('mock');
RESET client_min_messages;

SELECT llm_complete('hello');
SELECT llm_complete('hello', 'high');
SELECT llm_complete(prompt => 'hello', model => 'mock-premium');
SELECT llm_complete('hello', model => 'mock/mock-economy');

-- NULL asks nothing
SELECT llm_complete(NULL) IS NULL AS is_null;
SELECT count(*) FROM llm_complete_detail(NULL);

-- everything about a call; costs are exact
SELECT response, provider, model, model_tier, task, priority, finish_reason
FROM llm_complete_detail('hello', model => 'mock-standard');
SELECT input_tokens, cached_input_tokens, output_tokens, reasoning_tokens,
       estimated_usd, cost_usd, attempts, fallback, cached, degraded, notice,
       tool_calls, error_class, error_message
FROM llm_complete_detail('hello', model => 'mock-standard', max_tokens => 100);
SELECT latency_ms >= 0 AS latency, ttft_ms >= 0 AS ttft, request_id > 0 AS id
FROM llm_complete_detail('hello');
SELECT bool_and(request_id > before) AS rising
FROM (SELECT request_id, lag(request_id, 1, 0::bigint) OVER (ORDER BY idx) AS before
      FROM llm_complete_batch(ARRAY['a', 'b', 'c'], max_concurrency => 1)) b;

-- a model without a price costs NULL, a free one 0
INSERT INTO llm_models(provider, name) VALUES ('mock', 'unpriced');
INSERT INTO llm_models(provider, name, input_price, output_price) VALUES ('mock', 'free', 0, 0);
SELECT model, cost_usd FROM llm_complete_detail('hello', model => 'unpriced');
SELECT model, cost_usd FROM llm_complete_detail('hello', model => 'free');

-- cached input and sizes of prompts have prices of their own
UPDATE llm_models SET price_tiers = '[{"above_tokens": 1000, "input": 10, "output": 30}]' WHERE name = 'mock-standard';
UPDATE llm_providers SET options = '{"input_tokens": 1000, "cached_tokens": 400, "output_tokens": 10}';
SELECT cost_usd, 600 * 1 / 1e6 + 400 * 0.1 / 1e6 + 10 * 3 / 1e6 AS expected
FROM llm_complete_detail('hello', model => 'mock-standard');
UPDATE llm_providers SET options = '{"input_tokens": 1001, "cached_tokens": 400, "output_tokens": 10}';
SELECT cost_usd, 601 * 10 / 1e6 + 400 * 0.1 / 1e6 + 10 * 30 / 1e6 AS expected
FROM llm_complete_detail('hello', model => 'mock-standard');
UPDATE llm_providers SET options = NULL;

-- min_tier: an error rather than a worse answer
SELECT model FROM llm_complete_detail('hello', min_tier => 'premium');
SELECT llm_complete('hello', model => 'mock-economy', min_tier => 'standard');
SELECT error_class, error_message FROM llm_complete_detail('hello', model => 'mock-economy', min_tier => 'standard');

-- cut by a token limit: said, with whose
SELECT llm_complete('one two three four five six seven eight', max_tokens => 3);
SELECT finish_reason, output_tokens
FROM llm_complete_detail('one two three four five six seven eight', max_tokens => 3);

-- bad arguments name the value and the remedy; nothing is sent
SELECT llm_complete('');
SELECT llm_complete('hi', 'gpt-4o');
SELECT llm_complete('hi', model => 'gpt-4o');
SELECT llm_complete('hi', task => 'juggling');
SELECT llm_complete('hi', min_tier => 'gold');
SELECT llm_complete('hi', optimize => 'luck');
SELECT llm_complete('hi', cache => 'maybe');
SELECT llm_complete('hi', max_tokens => 0);
SELECT llm_complete('hi', temperature => 3);
SELECT llm_complete('hi', temperature => 'NaN');
SELECT llm_complete('hi', timeout_ms => -1);
SELECT llm_complete('hi', tags => '[1]');
SELECT llm_complete('hi', params => '[1]');
SELECT llm_complete('hi', params => '{"topp": 0.5}');
SELECT llm_complete('hi', params => '{"temperature": 0.5}');
SELECT response FROM llm_chat('[{"role": "user", "content": "hi"}]', params => '{"tools": []}');
SELECT llm_complete('hi', params => '{"top_p": "much"}');
SELECT llm_complete('hi', params => '{"extra": {"messages": []}}');
SET llm_gateway.default_priority = 'urgent';
SELECT llm_complete('hi');
RESET llm_gateway.default_priority;
BEGIN;
UPDATE llm_models SET enabled = false;
SELECT error_class, error_message FROM llm_complete_detail('hi');
ROLLBACK;
BEGIN;
DELETE FROM llm_priorities;
SELECT llm_complete('hi');
ROLLBACK;
SET llm_gateway.tags = '[]';
SELECT llm_complete('hi');

-- the setting's tags and the argument's, together
INSERT INTO llm_routing_rules(alias, model, tags) VALUES ('tagged', 'mock-premium', '{"team": "a", "app": "b"}');
SET llm_gateway.tags = '{"team": "a"}';
SELECT error_class FROM llm_complete_detail('hi', model => 'tagged');
SELECT model FROM llm_complete_detail('hi', model => 'tagged', tags => '{"app": "b"}');
SELECT error_class FROM llm_complete_detail('hi', model => 'tagged', tags => '{"app": "b", "team": "c"}');
RESET llm_gateway.tags;

-- good ones are accepted
SELECT llm_complete('hi', 'critical', optimize => 'cost', min_tier => 'economy', task => 'chat',
                    system_prompt => 'Be brief.', temperature => 0.5, timeout_ms => 5000,
                    params => '{"top_p": 0.9, "stop": ["x"], "seed": 7, "extra": {"logprobs": true}}',
                    cache => 'off', tags => '{"team": "a"}');

-- nothing is cached yet, so "only" never makes a call
SELECT llm_complete('hi', cache => 'only');
SELECT error_class, error_message, attempts FROM llm_complete_detail('hi', cache => 'only');

-- planning makes no call, and a call comes after the cheap condition
EXPLAIN (COSTS OFF) SELECT llm_complete('hello');
EXPLAIN (COSTS OFF) SELECT * FROM (VALUES (7, 'x'), (8, 'y')) t(id, body)
WHERE llm_complete(body) = 'yes' AND id = 7;

-- switched off
SET llm_gateway.enabled = off;
SELECT llm_complete('hello');
RESET llm_gateway.enabled;

DELETE FROM llm_providers;
DELETE FROM llm_routing_rules;
