-- Conversations on the mock provider: what llm_chat takes and refuses, and what a model must be able to
-- do.  What goes to real providers is t/021_chat.pl's.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
SELECT count(*) FROM llm_add_provider('mock');
INSERT INTO llm_models(provider, name, input_price, output_price) VALUES ('mock', 'm', 1, 2);
RESET client_min_messages;

SELECT response, provider, model, finish_reason, input_tokens, output_tokens, cost_usd, tool_calls
FROM llm_chat('[{"role": "user", "content": "hello"}]', model => 'm');
SELECT response FROM llm_chat('[{"role": "user", "content": "hello"}]', 'high', model => 'm');
SELECT count(*) FROM llm_chat(NULL);

-- the last message is answered, all of them are paid for
SELECT response, input_tokens FROM llm_chat('[
    {"role": "system", "content": "12345678"},
    {"role": "user", "content": [{"type": "text", "text": "1234"}, {"type": "text", "text": "5678"}]},
    {"role": "assistant", "content": "1234"},
    {"role": "user", "content": "5678"}]', model => 'm', system_prompt => '1234');

-- tools: called, and told the result
CREATE FUNCTION pg_temp.tools() RETURNS jsonb IMMUTABLE LANGUAGE sql AS $$
SELECT '[{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 7}}}}},
    {"type": "function", "function": {"name": "stop", "description": "Stops", "strict": false}}]'::jsonb $$;
SELECT response, tool_calls FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools());
SELECT response IS NULL AS no_text, finish_reason, c->'type' AS type, c->'function' AS function, c->>'id' LIKE 'call_%' AS id
FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools(), tool_choice => '"required"') r,
     jsonb_array_elements(r.tool_calls) c;
SELECT tool_calls->0->'function' AS function
FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools(),
              tool_choice => '{"type": "function", "function": {"name": "stop"}}');
SELECT response, tool_calls
FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools(), tool_choice => '"none"');
-- the preset's models can do what the mock provider can
SELECT m.model, t.*, i.response, i.error_class FROM unnest('{mock-premium,mock-standard,mock-economy}'::text[]) AS m(model),
    LATERAL (SELECT c.response IS NOT NULL AS tools, c.error_class AS tools_error FROM llm_chat('[{"role": "user", "content": "x"}]',
        model => m.model, tools => '[{"type": "function", "function": {"name": "f"}}]') c) t,
    LATERAL (SELECT response, error_class FROM llm_chat('[{"role": "user", "content": [{"type": "image_url",
        "image_url": {"url": "data:image/png;base64,AAAA"}}, {"type": "text", "text": "x"}]}]', model => m.model) c) i;
SELECT model, llm_complete_json('x', model => model, schema => '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
FROM unnest('{mock-premium,mock-standard,mock-economy}'::text[]) AS m(model);
UPDATE llm_providers SET options = '{"call_tools": true}' WHERE name = 'mock';
WITH first AS MATERIALIZED (
    SELECT tool_calls FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools())
)
SELECT response, finish_reason
FROM first, llm_chat(jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', 'Oslo'),
        jsonb_build_object('role', 'assistant', 'content', NULL, 'tool_calls', tool_calls),
        jsonb_build_object('role', 'tool', 'tool_call_id', tool_calls->0->'id', 'content', 'rain')),
    model => 'm', tools => pg_temp.tools());
UPDATE llm_providers SET options = '{"call_tools": true, "stream": false}' WHERE name = 'mock';
SELECT tool_calls->0->'function' AS function
FROM llm_chat('[{"role": "user", "content": "Oslo"}]', model => 'm', tools => pg_temp.tools());
UPDATE llm_providers SET options = NULL WHERE name = 'mock';

-- an answer in a schema
SELECT response::jsonb
FROM llm_chat('[{"role": "user", "content": "Oslo \"x\""}]', model => 'm', schema => '{"type": "object", "properties": {
    "city": {"type": "string"}, "size": {"enum": ["small", "large"]}, "parts": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/part"}},
    "one": {"anyOf": [{"const": 1}, {"type": "null"}]}, "known": {"type": ["boolean", "null"]}},
    "$defs": {"part": {"type": "object", "properties": {"n": {"type": "number", "maximum": 3}}}}}');

-- what a model says that it cannot do
UPDATE llm_models SET capabilities = '{chat}' WHERE name = 'm';
CREATE FUNCTION pg_temp.refused(messages jsonb, tools jsonb DEFAULT NULL, schema jsonb DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    d record;
BEGIN
    SELECT * INTO d FROM llm_chat(messages, model => 'm', tools => tools, schema => schema);
    RETURN coalesce(d.error_class || ': ' || d.error_message, d.response);
END $$;
SELECT pg_temp.refused('[{"role": "user", "content": "hello"}]');
SELECT pg_temp.refused('[{"role": "user", "content": "hello"}]', tools => pg_temp.tools());
SELECT pg_temp.refused('[{"role": "user", "content": "hello"}]', schema => '{"type": "object"}');
SELECT pg_temp.refused('[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]');
SELECT pg_temp.refused('[{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
                         {"role": "tool", "tool_call_id": "1", "content": "b"}]');
UPDATE llm_models SET capabilities = '{chat,tools,image,json_schema}' WHERE name = 'm';
SELECT pg_temp.refused('[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]',
                       pg_temp.tools(), '{}');
UPDATE llm_models SET capabilities = NULL WHERE name = 'm';

-- Mistakes: each names its place.  These are about messages:
CREATE FUNCTION pg_temp.problem(messages jsonb, tools jsonb DEFAULT NULL, tool_choice jsonb DEFAULT NULL, schema jsonb DEFAULT NULL) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    d record;
BEGIN
    SELECT * INTO d FROM llm_chat(messages, model => 'm', tools => tools, tool_choice => tool_choice, schema => schema);
    RETURN coalesce('taken: ' || d.response, d.error_class || ': ' || d.error_message);
EXCEPTION
    WHEN invalid_parameter_value THEN RETURN SQLERRM;
END $$;
SELECT pg_temp.problem(m) FROM (VALUES (1, '{}'::jsonb), (2, '"hello"'), (3, '1'), (4, 'null'), (5, '[]'), (6, '[[]]'), (7, '["hello"]'), (8, '[null]'),
    (9, '[{}]'),
    (10, '[{"role": null, "content": "x"}]'),
    (11, '[{"role": 1, "content": "x"}]'),
    (12, '[{"role": "function", "content": "x"}]'),
    (13, '[{"role": "User", "content": "x"}]'),
    (14, '[{"role": "user"}]'),
    (15, '[{"role": "user", "content": null}]'),
    (16, '[{"role": "user", "content": ""}]'),
    (17, '[{"role": "user", "content": 1}]'),
    (18, '[{"role": "user", "content": {"text": "x"}}]'),
    (19, '[{"role": "user", "content": []}]'),
    (20, '[{"role": "user", "content": "x", "temperature": 1}]'),
    (21, '[{"role": "user", "content": "x", "name": 1}]'),
    (22, '[{"role": "user", "content": "x", "tool_call_id": "a"}]'),
    (23, '[{"role": "system", "content": "x"}]'),
    (24, '[{"role": "assistant", "content": "x"}]'),
    (25, '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]'),
    (26, '[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "system", "content": "z"}]'),
    (27, '[{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "z"}]'),
    (28, '[{"role": "user", "content": "x"}, {"role": "assistant"}, {"role": "user", "content": "z"}]'),
    (29, '[{"role": "user", "content": "x"}, {"role": "user", "content": ["y"]}]')) v(n, m) ORDER BY n;
-- about parts of content
SELECT pg_temp.problem(jsonb_build_array(jsonb_build_object('role', coalesce(r, 'user'), 'content', jsonb_build_array(p)), '{"role": "user", "content": "x"}'::jsonb))
FROM (VALUES (1, NULL, '{}'::jsonb),
    (2, NULL, '{"type": "text"}'),
    (3, NULL, '{"type": "text", "text": 1}'),
    (4, NULL, '{"type": "text", "text": ""}'),
    (5, NULL, '{"type": "text", "text": "x", "cache_control": {}}'),
    (6, NULL, '{"type": "input_audio", "input_audio": {}}'),
    (7, 'system', '{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}'),
    (8, 'assistant', '{"type": "refusal", "refusal": "no"}'),
    (9, NULL, '{"type": "image_url"}'),
    (10, NULL, '{"type": "image_url", "image_url": "https://example.com/a.png"}'),
    (11, NULL, '{"type": "image_url", "image_url": {}}'),
    (12, NULL, '{"type": "image_url", "image_url": {"url": ""}}'),
    (13, NULL, '{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}'),
    (14, NULL, '{"type": "image_url", "image_url": {"url": "https://example.com/a b.png"}}'),
    (15, NULL, '{"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "medium"}}'),
    (16, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}'),
    (17, NULL, '{"type": "image_url", "image_url": {"url": "data:text/plain;base64,AAAA"}}'),
    (18, NULL, '{"type": "image_url", "image_url": {"url": "data:image/;base64,AAAA"}}'),
    (19, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png;x=y;base64,AAAA"}}'),
    (20, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}'),
    (21, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAA"}}'),
    (22, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA\nAAAA"}}'),
    (23, NULL, '{"type": "image_url", "image_url": {"url": "data:image/png;base64,A==="}}'),
    (24, NULL, '{"type": "image_url", "image_url": {"url": "DATA:Image/PNG;Base64,AA=="}}'),
    (25, NULL, '{"type": "image_url", "image_url": {"url": "HTTPS://example.com/a.png", "detail": "auto"}}')) v(n, r, p) ORDER BY n;
-- about tool calls and results; the last ones are right
SELECT pg_temp.problem('[{"role": "user", "content": "x"}]'::jsonb || m)
FROM (VALUES (1, '{"role": "user", "content": "x", "tool_calls": [{}]}'::jsonb),
    (2, '{"role": "assistant", "tool_calls": {}}'),
    (3, '{"role": "assistant", "tool_calls": [1]}'),
    (4, '{"role": "assistant", "tool_calls": [{}]}'),
    (5, '{"role": "assistant", "tool_calls": [{"id": "", "type": "function", "function": {}}]}'),
    (6, '{"role": "assistant", "tool_calls": [{"id": "a"}]}'),
    (7, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom"}]}'),
    (8, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}'),
    (9, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"arguments": "{}"}}]}'),
    (10, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}'),
    (11, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}]}'),
    (12, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "[]"}}]}'),
    (13, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"a\":"}}]}'),
    (14, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "x": 1}}]}'),
    (15, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}, {"id": "a", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}'),
    (16, '{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}'),
    (17, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "user", "content": "y"}]'),
    (18, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "content": "y"}]'),
    (19, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "a"}]'),
    (20, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "b", "content": "y"}]'),
    (21, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "a", "content": "y"}, {"role": "tool", "tool_call_id": "a", "content": "y"}]'),
    (22, '{"role": "tool", "tool_call_id": "a", "content": "y"}'),
    (23, '[{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}, {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "b", "content": "y"}]'),
    (24, '[{"role": "assistant", "content": "", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}], "refusal": null, "annotations": []}, {"role": "tool", "tool_call_id": "a", "name": "f", "content": ""}]'),
    (25, '[{"role": "assistant", "content": "c", "tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}, {"id": "b", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "b", "content": "y"}, {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "z"}]}]')) v(n, m) ORDER BY n;
-- about tools, tool_choice and schema
SELECT pg_temp.problem('[{"role": "user", "content": "x"}]', t)
FROM (VALUES (1, '[]'::jsonb), (2, '{}'), (3, '"f"'), (4, '[1]'), (5, '[{}]'),
    (6, '[{"type": "function"}]'),
    (7, '[{"type": "web_search"}]'),
    (8, '[{"type": "function", "name": "f"}]'),
    (9, '[{"type": "function", "function": {}}]'),
    (10, '[{"type": "function", "function": {"name": ""}}]'),
    (11, '[{"type": "function", "function": {"name": "get weather"}}]'),
    (12, jsonb_build_array(jsonb_build_object('type', 'function', 'function', jsonb_build_object('name', repeat('f', 65))))),
    (13, '[{"type": "function", "function": {"name": "f", "description": 1}}]'),
    (14, '[{"type": "function", "function": {"name": "f", "parameters": []}}]'),
    (15, '[{"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}]'),
    (16, '[{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]'),
    (17, '[{"type": "function", "function": {"name": "f", "strict": "yes"}}]'),
    (18, '[{"type": "function", "function": {"name": "f", "returns": {}}}]'),
    (19, '[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]'),
    (20, (SELECT jsonb_agg(jsonb_build_object('type', 'function', 'function', jsonb_build_object('name', 'f' || i))) FROM generate_series(1, 129) i)),
    (21, '[{"type": "function", "function": {"name": "f", "parameters": {}, "description": null}}]')) v(n, t) ORDER BY n;
SELECT pg_temp.problem('[{"role": "user", "content": "x"}]', CASE WHEN n > 1 THEN pg_temp.tools() END, c)
FROM (VALUES (1, '"auto"'::jsonb), (2, '"any"'), (3, '1'), (4, 'null'), (5, '[]'), (6, '{}'), (7, '{"type": "function"}'),
    (8, '{"function": {"name": "stop"}}'), (9, '{"type": "function", "function": {"name": "go"}}'),
    (10, '{"type": "function", "function": {"name": "stop", "x": 1}}'), (11, '{"type": "function", "function": "stop"}')) v(n, c) ORDER BY n;
SELECT pg_temp.problem('[{"role": "user", "content": "x"}]', schema => s) FROM (VALUES ('[]'::jsonb), ('true'), ('"object"')) v(s);
-- the errors themselves
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}, {"role": "user"}]', model => 'm');
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'm', tools => '[{"type": "function", "function": {"name": "f", "parameters": 1}}]');
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'm', tool_choice => '"auto"');
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'm', schema => '1');
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', 'm');
SELECT * FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'nothing');

-- nobody may call it before llm_grant
CREATE ROLE regress_llm_chat;
SET ROLE regress_llm_chat;
SELECT count(*) FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'm');
RESET ROLE;
SELECT llm_grant('regress_llm_chat');
SET ROLE regress_llm_chat;
SELECT response FROM llm_chat('[{"role": "user", "content": "x"}]', model => 'm');
RESET ROLE;
SELECT llm_revoke('regress_llm_chat');
SELECT has_function_privilege('regress_llm_chat', p.oid, 'EXECUTE') FROM pg_proc p WHERE proname = 'llm_chat';
REVOKE USAGE ON SCHEMA public FROM regress_llm_chat;
DROP ROLE regress_llm_chat;

-- llm_providers of kind azure: where it is, and its options
INSERT INTO llm_providers(name, kind) VALUES ('azure', 'azure');
INSERT INTO llm_providers(name, kind, base_url) VALUES ('azure', 'azure', 'https://name.openai.azure.com/?api-version=1');
INSERT INTO llm_providers(name, kind, base_url, options) VALUES ('azure', 'azure', 'https://name.openai.azure.com', '{"api_version": "v1"}');
UPDATE llm_providers SET options = '{"api_version": "2024-12-01-preview", "token_parameter": "max_tokens"}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"api_version": "2024-10-21&x=y"}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"api_version": "latest"}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"api_version": 1}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"token_parameter": "tokens"}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"organization": "o"}' WHERE name = 'azure';
UPDATE llm_providers SET options = '{"headers": {"api-key": "x"}}' WHERE name = 'azure';
DELETE FROM llm_routing_rules;
DELETE FROM llm_providers;

-- Who fetches images from addresses that a caller names: not a server of one's own, unless its row says
-- so. (No key can be read, so nothing is sent: auth is who would have been asked.)
INSERT INTO llm_providers(name, api_key) VALUES ('near', 'env:REGRESS_UNSET_API_KEY');
INSERT INTO llm_models(provider, name) VALUES ('near', 'near');
CREATE FUNCTION pg_temp.fetches(url text, kind text DEFAULT 'openai', options jsonb DEFAULT NULL, image text DEFAULT 'https://example.com/a.png')
RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    UPDATE llm_providers SET base_url = url, kind = fetches.kind, options = fetches.options WHERE name = 'near';
    RETURN error_class FROM llm_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content',
        jsonb_build_array(jsonb_build_object('type', 'image_url', 'image_url', jsonb_build_object('url', image))))), model => 'near');
END $$;
SET client_min_messages = error;
SELECT url, pg_temp.fetches(url) FROM unnest('{NULL,https://api.openai.com/v1,https://vllm.example.com,https://8.8.8.8/v1,https://[2606:4700::1111]/v1,
    https://172.32.0.1,https://192.169.0.1,https://11.0.0.1,https://100.128.0.1,https://10.example.com,https://localhost.example.com}'::text[]) AS u(url);
SELECT url, pg_temp.fetches(url) FROM unnest('{http://localhost:8000/v1,https://LOCALHOST,https://a.localhost,http://127.0.0.1:1,https://127.9.9.9,
    https://[::1],https://[::],https://[::ffff:10.0.0.1],https://[fd00::1],https://[fe80::1],https://0.0.0.0,https://10.0.0.5:8000/v1,https://172.16.0.1,
    https://172.31.255.255,https://192.168.1.1,https://100.64.0.1,https://169.254.1.1,https://2130706433,https://0x7f.1,https://vllm,https://vllm.local,
    https://vllm.internal,https://vllm.default.svc,https://vllm.default.svc.cluster.local,https://vllm.internal.}'::text[]) AS u(url);
SELECT kind, options, pg_temp.fetches('https://10.0.0.5', kind, options) AS here,
       pg_temp.fetches('https://example.com', kind, options) AS there,
       pg_temp.fetches('https://10.0.0.5', kind, options, 'data:image/png;base64,AAAA') AS data
FROM unnest('{openai,azure,anthropic}'::text[]) AS k(kind), unnest('{"{}","{\"image_urls\": true}","{\"image_urls\": false}",NULL}'::jsonb[]) AS o(options);
-- why, and what to do
UPDATE llm_providers SET base_url = 'http://localhost:8000/v1', kind = 'openai', options = NULL WHERE name = 'near';
SELECT error_message FROM llm_chat('[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/admin"}}]}]', model => 'near');
UPDATE llm_providers SET options = '{"image_urls": 1}' WHERE name = 'near';
UPDATE llm_providers SET kind = 'gemini', options = '{"image_urls": true}' WHERE name = 'near';
RESET client_min_messages;
DELETE FROM llm_providers WHERE name = 'near';
