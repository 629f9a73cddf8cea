
-- The model is real, and one of the smallest that can talk (SmolLM2, 135 million parameters): much of what it says is
-- wrong. Everything between your SQL and it is as with any provider.

-- 1. Set up: the extension, and llama.cpp's server. The preset makes it free; the model's name is the one that the server was given.

CREATE EXTENSION llm_gateway;
SELECT * FROM llm_add_provider('llamacpp', base_url => :'base_url', models => ARRAY['smollm2']);

-- 2. Ask.

\set helper 'You are a helpful assistant.'
SELECT llm_complete('What is the capital of France?', system_prompt => :'helper', temperature => 0);
SELECT response, input_tokens, output_tokens, finish_reason, ttft_ms, latency_ms
  FROM llm_complete_detail('What is a database? Answer in one sentence.', system_prompt => :'helper', temperature => 0);

-- 3. A stream: each row has what has come since the last one.

\set FETCH_COUNT 1
SELECT to_char(clock_timestamp(), 'SS.MS') AS second,
       llm_stream('Write one sentence about the sea.', system_prompt => :'helper', temperature => 0) AS words;
\unset FETCH_COUNT

-- 4. JSON: llama.cpp makes a grammar of the schema, and the model cannot write anything else. (What it fills in is its own.)

SELECT llm_complete_json('Ann, who is 34, lives in Oslo. Give her name, age and city.', system_prompt => :'helper',
                         schema => '{"type": "object", "required": ["name", "age", "city"], "properties":
                                     {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}}',
                         temperature => 0, max_tokens => 100);

-- 5. Vectors. This model is not made for them: they are averages over a text's words, and tell texts apart only roughly.

SELECT array_length(llm_embed('A cat sat on the mat.', model => 'smollm2'), 1) AS dimensions;
CREATE FUNCTION cosine(a real[], b real[]) RETURNS numeric LANGUAGE sql IMMUTABLE
RETURN (SELECT (sum(x::float8 * y) / sqrt(sum(x::float8 ^ 2) * sum(y::float8 ^ 2)))::numeric(5, 3) FROM unnest(a, b) AS v(x, y));
WITH texts AS (SELECT ARRAY['A cat sat on the mat.', 'A kitten is lying on the rug.', 'Income tax is due in April.'] AS t),
     vectors AS (SELECT idx, embedding, t[idx] AS text FROM texts, llm_embed_batch(t, model => 'smollm2'))
SELECT other.text, cosine(cat.embedding, other.embedding) AS "similar to: A cat sat on the mat."
  FROM vectors AS cat, vectors AS other WHERE cat.idx = 1 AND other.idx > 1 ORDER BY 2 DESC;

-- 6. An error, in llama.cpp's own words. (It is wanted here.)

\set ON_ERROR_STOP 0
SELECT llm_complete(repeat('word ', 5000));
\set ON_ERROR_STOP 1

-- 7. The books: the tokens are those that llama.cpp counted.

SELECT request_id % 1000 AS request, operation, status, error_class, input_tokens, cached_input_tokens AS of_them_cached,
       output_tokens, cost_usd, latency_ms
  FROM llm_requests ORDER BY request_id;
SELECT model, requests, failures, input_tokens, output_tokens, cost_usd FROM llm_spend_today;
