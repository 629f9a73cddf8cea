/*-------------------------------------------------------------------------
 *
 * dialect_ollama_answer.c
 *	  Ollama's own API (/api/chat, /api/embed): answers and errors.
 *
 * Sources: Ollama's docs/api.md, the types in its api package, and how its
 * server's handlers answer, stream and fail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect_answer.h"
#include "dialect_vectors.h"
#include "json.h"

/*
 * Errors
 *
 * An error is a string: {"error": "model 'x' not found"}, also as a line of a
 * stream that began well.
 */

static bool
is_context_length(const char *message)
{
	return message != NULL &&
		(strstr(message, "exceeds the context length") != NULL ||
		 strstr(message, "exceeds maximum context length") != NULL ||
		 strstr(message, "is longer than the context length") != NULL);
}

static LlmErrorClass
classify(int http_status, const LlmErrorBody *e)
{
	const char *message = e->words.message;

	/* some versions fail with 500 */
	if ((http_status == 0 || http_status == 400 || http_status == 500) &&
		is_context_length(message))
		return LLMGW_CONTEXT_LENGTH;

	/* ollama.com: "you have reached your weekly usage limit, upgrade ..." */
	if (http_status == 429 && message != NULL &&
		(strstr(message, "weekly usage limit") != NULL ||
		 strstr(message, "monthly usage limit") != NULL))
		return LLMGW_QUOTA;
	if (http_status == 0 && message != NULL && strstr(message, "server busy") != NULL)
		return LLMGW_OVERLOADED;
	return llmgw_error_classify(http_status, &e->words);
}

void
llmgw_ollama_read_error(const LlmWireCall *call, int http_status,
						const char *body, size_t len, LlmAnswer *answer)
{
	LlmErrorBody e;
	char	   *message = llmgw_answer_http_error(answer, http_status, body, len, &e);

	llmgw_answer_fail(answer, classify(http_status, &e), message);
}

/* An error that came with status 200.  False when there is none. */
static bool
read_embedded_error(JsonbContainer *root, LlmAnswer *answer)
{
	bool		first = answer->error == LLMGW_OK;
	LlmErrorBody e;

	if (!llmgw_read_error_body(root, false, &e))
		return false;
	llmgw_answer_fail_inside(answer, &e);
	if (first)
		answer->error = classify(e.status, &e);
	return true;
}

/*
 * Answers
 */

/*
 * Counts come with the end.  One that is zero is left out, and so, by older
 * versions, is the prompt's when all of it was in the cache: then that one is
 * estimated.
 */
static void
read_usage(JsonbContainer *root, LlmAnswer *answer)
{
	LlmUsage	u = {.input = -1,.output = -1};

	if (!llmgw_read_count(root, &u.input, NULL, "prompt_eval_count") ||
		!llmgw_read_count(root, &u.output, NULL, "eval_count"))
		return;
	if (u.input <= 0)
	{
		answer->output_alone = Max(u.output, 0);
		return;
	}
	if (u.output < 0)
	{
		if (answer->text.len > 0 || answer->ntool_calls > 0)
			return;
		u.output = 0;
	}
	u.known = true;
	answer->usage = u;
}

static void
append_calls(JsonbContainer *calls, LlmAnswer *answer)
{
	MemoryContext context = llmgw_answer_context(answer);

	for (uint32 i = 0; i < JsonContainerSize(calls); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(calls, i);
		char	   *id;
		char	   *name;
		LlmToolCall *tool;
		JsonbValue	args;

		name = v->type != jbvBinary ? NULL :
			llmgw_json_get_text(v->val.binary.data, "function", "name", NULL);
		if (name == NULL || *name == '\0')
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "a tool call of the answer has no name");
			return;
		}
		if (answer->ntool_calls >= LLMGW_MAX_TOOL_CALLS)
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  psprintf("the answer has more than %d tool calls",
									   LLMGW_MAX_TOOL_CALLS));
			return;
		}
		id = llmgw_json_get_text(v->val.binary.data, "id", NULL);
		tool = llmgw_answer_new_tool_call(answer);
		tool->name = MemoryContextStrdup(context, name);
		if (id != NULL && *id != '\0')
			tool->id = MemoryContextStrdup(context, id);

		/* an object; imitators send its text, as OpenAI does */
		if (!llmgw_json_get(v->val.binary.data, &args, "function", "arguments", NULL))
			appendStringInfoString(&tool->arguments, "{}");
		else if (args.type == jbvString)
			appendBinaryStringInfo(&tool->arguments, args.val.string.val,
								   args.val.string.len);
		else
			llmgw_json_append_value(&tool->arguments, &args);
	}
}

/* Content and calls; "thinking", beside them, is no part of the answer. */
static void
read_message(JsonbContainer *message, LlmAnswer *answer)
{
	JsonbValue	v;

	answer->has_content = true;
	if (llmgw_json_get(message, &v, "content", NULL))
	{
		if (v.type == jbvString)
			appendBinaryStringInfo(&answer->text, v.val.string.val, v.val.string.len);
		else
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's content is no string");
	}
	if (llmgw_json_get(message, &v, "tool_calls", NULL))
	{
		if (v.type == jbvBinary && JsonContainerIsArray(v.val.binary.data))
			append_calls(v.val.binary.data, answer);
		else
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's tool_calls are no array");
	}
}

/* The last line. */
static void
read_end(JsonbContainer *root, LlmAnswer *answer)
{
	char	   *reason = llmgw_json_get_text(root, "done_reason", NULL);

	answer->complete = answer->ended = true;
	read_usage(root, answer);
	if (reason == NULL || *reason == '\0')
	{
		/* older versions do not say why */
		if (answer->ntool_calls > 0)
			answer->finish_reason = "tool_calls";
	}
	else if (strcmp(reason, "load") == 0 || strcmp(reason, "unload") == 0)
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("the server %sed the model instead of answering", reason));
	else if (strcmp(reason, "content_filter") == 0)
		llmgw_answer_fail(answer, LLMGW_CONTENT_POLICY, /* from behind
														 * ollama.com */
						  "the provider's content filter stopped the answer");
	else if (strcmp(reason, "stop") == 0 && answer->ntool_calls > 0)
		answer->finish_reason = "tool_calls";
	else
		llmgw_answer_set_finish(answer, reason);
}

/* A whole answer, or a line of a streamed one: they look the same. */
static void
read_line(JsonbContainer *root, LlmAnswer *answer)
{
	JsonbValue	v;

	if (read_embedded_error(root, answer))
		return;
	if (llmgw_json_get(root, &v, "message", NULL) && v.type == jbvBinary &&
		JsonContainerIsObject(v.val.binary.data))
		read_message(v.val.binary.data, answer);
	else
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no message");
	if (llmgw_json_get_bool(root, false, "done", NULL))
		read_end(root, answer);
}

void
llmgw_ollama_parse_response(const LlmWireCall *call, const char *body,
							size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc = llmgw_answer_parse_body(answer, body, len);

	answer->ended = true;
	if (doc == NULL)
		return;
	read_line(&doc->root, answer);
	if (!answer->complete)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer is not done");
}

void
llmgw_ollama_parse_event(const LlmWireCall *call, const char *name,
						 const char *data, size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc = llmgw_answer_parse_event(answer, name, data, len);

	if (doc != NULL)
		read_line(&doc->root, answer);
}

void
llmgw_ollama_parse_embedding(const LlmWireCall *call, const char *body,
							 size_t len, LlmAnswer *answer)
{
	LlmVectors	vectors;
	Jsonb	   *doc = llmgw_vectors_parse(&vectors, body, len, answer);
	JsonbContainer *embeddings = NULL;
	LlmUsage	u = {.input = -1};
	JsonbValue	v;

	if (doc == NULL || read_embedded_error(&doc->root, answer))
		return;
	if (llmgw_json_get(&doc->root, &v, "embeddings", NULL) &&
		v.type == jbvBinary && JsonContainerIsArray(v.val.binary.data))
		embeddings = v.val.binary.data;
	for (uint32 i = 0; embeddings && i < JsonContainerSize(embeddings); i++)
		llmgw_vectors_put(&vectors, call, i,
						  getIthJsonbValueFromContainer(embeddings, i), answer);
	if (llmgw_read_count(&doc->root, &u.input, NULL, "prompt_eval_count") && u.input > 0)
	{
		u.known = true;
		answer->usage = u;
	}
	llmgw_vectors_end(&vectors, call, answer);
}
