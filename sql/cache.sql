-- Kept answers, on the mock provider: each mode, and what is part of the question.
SET client_min_messages = warning;
INSERT INTO llm_providers(name, kind) VALUES ('m', 'mock');
INSERT INTO llm_models(provider, name, tier, input_price, output_price) VALUES ('m', 'm', 'premium', 1, 1);
DELETE FROM llm_cache;
RESET client_min_messages;

SELECT response, cached, attempts FROM llm_complete_detail('kept?', cache => 'off');
SELECT response, cached, attempts FROM llm_complete_detail('kept?');
SELECT count(*) FROM llm_cache;

SELECT response, cached, cost_usd > 0 AS cost, attempts FROM llm_complete_detail('kept?', cache => 'on');
SELECT response, provider, model, model_tier, finish_reason, input_tokens, output_tokens, estimated_usd, cost_usd, attempts, ttft_ms, cached
FROM llm_complete_detail('kept?', cache => 'on');
SELECT role = current_user AS role, task, provider, model, model_tier, response, tool_calls, finish_reason, input_tokens > 0 AS input,
       cost_usd > 0 AS cost, expires_at - created_at AS ttl, size > 0 AS size
FROM llm_cache;
SELECT status, provider, model, model_tier, attempts, cost_usd, cost_source, input_tokens FROM llm_requests ORDER BY request_id DESC LIMIT 1;
SELECT model_tier, sum(requests) AS requests, sum(cached) AS cached FROM llm_daily_spend WHERE provider = 'm' AND model_tier = 'premium' GROUP BY 1;

-- made anew, and kept instead
SELECT cached FROM llm_complete_detail('kept?', cache => 'refresh');
SELECT count(*), count(*) FILTER (WHERE request_id = (SELECT max(request_id) FROM llm_requests)) AS newest FROM llm_cache;

-- never made
SELECT llm_complete('kept?', cache => 'only');
SELECT llm_complete('never asked', cache => 'only');
SELECT error_class, error_message, attempts FROM llm_complete_detail('never asked', cache => 'only');
SELECT * FROM llm_stream('kept?', cache => 'only');
SELECT response, cached FROM llm_chat('[{"role": "user", "content": "kept?"}]', cache => 'only');
SELECT llm_embed('kept?', cache => 'only');
SELECT idx, response, cached, error_class FROM llm_complete_batch(ARRAY['kept?', 'never asked', 'kept?'], cache => 'only');

-- the setting stands for the argument
SET llm_gateway.cache = 'on';
SELECT cached FROM llm_complete_detail('kept?');
RESET llm_gateway.cache;

-- what shapes the answer is part of the question
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', max_tokens => 9);
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', temperature => 0);
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', system_prompt => '');
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', params => '{"seed": 1}');
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', task => 'math');
SELECT error_class FROM llm_complete_detail('kept?', cache => 'only', model => 'm');
SELECT cached FROM llm_complete_detail('kept?', 'low', cache => 'only', tags => '{"a": 1}', timeout_ms => 1000, min_tier => 'premium');

-- in a savepoint that is rolled back, and in a snapshot that is older
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT count(*) FROM llm_tasks WHERE false;
SAVEPOINT a;
SELECT cached FROM llm_complete_detail('rolled back', cache => 'on');
ROLLBACK TO a;
SELECT cached FROM llm_complete_detail('rolled back', cache => 'on');
COMMIT;

-- a transaction that may only read can be served
BEGIN READ ONLY;
SELECT llm_complete('kept?', cache => 'on');
COMMIT;

DELETE FROM llm_cache;
SELECT cached FROM llm_complete_detail('kept?', cache => 'on');

DELETE FROM llm_providers;
DELETE FROM llm_cache;
