-- Many prompts at once: rows in order, equal prompts once, an outcome each.
SET client_min_messages = warning;
INSERT INTO llm_providers(name, kind) VALUES ('m', 'mock');
INSERT INTO llm_models(provider, name, input_price, output_price) VALUES ('m', 'm', 1, 1);
RESET client_min_messages;

SELECT idx, response FROM llm_complete_batch(ARRAY['a', 'b', 'c']);
SELECT idx, response, cached, cost_usd, attempts, input_tokens
FROM llm_complete_batch(ARRAY['a', 'b', 'a', NULL, 'a']);
SELECT idx, cached, attempts FROM llm_complete_batch(ARRAY['a', 'a'], cache => 'off');
SELECT idx, cached, attempts FROM llm_complete_batch(ARRAY['a', 'a'], cache => 'on');
SELECT idx, error_class, response FROM llm_complete_batch(ARRAY['never asked', NULL], cache => 'only');
SELECT count(DISTINCT request_id) FROM llm_complete_batch(ARRAY['a', 'a', 'b']);

-- an empty prompt is that row's error
SELECT idx, response, error_class, error_message FROM llm_complete_batch(ARRAY['a', '', 'b']);

SELECT count(*) FROM llm_complete_batch(NULL);
SELECT count(*) FROM llm_complete_batch('{}');
SELECT idx, response FROM llm_complete_batch(ARRAY[['a', 'b'], ['c', 'd']]);

-- more prompts than are in flight, in order
SELECT count(*), bool_and(response = 'mock reply to: ' || idx) AS in_order
FROM llm_complete_batch(ARRAY(SELECT g::text FROM generate_series(1, 2000) g), max_concurrency => 100);

-- one call of the batch is not another's: errors stay in their rows
SELECT llm_complete_batch(ARRAY['a'], max_concurrency => 0);
SELECT idx, response FROM llm_complete_batch(ARRAY['a'], max_concurrency => 5000);
SET llm_gateway.batch_concurrency = 2000;
SELECT idx, response FROM llm_complete_batch(ARRAY['a']);
RESET llm_gateway.batch_concurrency;
SELECT response FROM llm_complete_batch(ARRAY['a'], model => 'nope');

-- an argument of a call may itself make calls
SELECT llm_complete(llm_complete('hi'));
SELECT response FROM llm_complete_batch(ARRAY(SELECT llm_complete(g::text) FROM generate_series(1, 3) g));

-- cut answers are counted in one warning
SELECT idx, response, finish_reason
FROM llm_complete_batch(ARRAY['one two three four five', 'six seven eight nine ten'], max_tokens => 2);

DELETE FROM llm_providers;
