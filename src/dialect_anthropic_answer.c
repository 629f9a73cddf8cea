/*-------------------------------------------------------------------------
 *
 * dialect_anthropic_answer.c
 *	  Anthropic's Messages API: answers and errors.
 *
 * Source: Anthropic's API reference (messages, streaming, errors), the guide on
 * stop reasons, and recorded answers.  What the API may add by its versioning
 * policy (types of events, blocks and deltas) is skipped; what would be needed
 * to tell whether an answer is whole is not guessed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect_answer.h"
#include "json.h"

/*
 * Errors
 */

static bool
starts_with(const char *message, const char *prefix)
{
	return message != NULL && pg_strncasecmp(message, prefix, strlen(prefix)) == 0;
}

/*
 * Errors that have the type of an ordinary bad request, and are none: a spend
 * limit ("You have reached your specified API usage limits", or "... workspace
 * API usage limits"), and an answer that was filtered.
 */
static void
name_error(LlmErrorBody *e)
{
	if (e->words.inner_code != NULL)
		return;
	if (starts_with(e->words.message, "You have reached your specified ") &&
		strstr(e->words.message, "usage limits") != NULL)
		e->words.inner_code = "billing_error";
	else if (starts_with(e->words.message, "Output blocked by content filtering policy"))
		e->words.inner_code = "content_filter";
}

void
llmgw_anthropic_read_error(const LlmWireCall *call, int http_status,
						   const char *body, size_t len, LlmAnswer *answer)
{
	LlmErrorBody e;
	char	   *message = llmgw_answer_http_error(answer, http_status, body, len, &e);
	LlmErrorClass class;

	name_error(&e);
	class = llmgw_error_classify(http_status, &e.words);

	/* its own verdict, not a gateway's on the way: asking again takes as long */
	if (http_status == 504 && e.words.type && strcmp(e.words.type, "timeout_error") == 0)
		class = LLMGW_TIMEOUT;
	llmgw_answer_fail(answer, class, message);
}

/* An error that came with status 200.  False when there is none. */
static bool
read_embedded_error(JsonbContainer *root, bool is_error, LlmAnswer *answer)
{
	LlmErrorBody e;

	/* whatever is in an event that is named so */
	if (!llmgw_read_error_body(root, is_error, &e) && !is_error)
		return false;
	name_error(&e);
	llmgw_answer_fail_inside(answer, &e);
	return true;
}

/*
 * Usage
 */

/*
 * Counts so far.  input_tokens has neither what was read from the cache nor
 * what was written to it; ours has both.  In a stream the beginning has the
 * input, and the end the output and, newly, all again; servers that imitate
 * the API send zeros in one of the two places.  All is known once the model has
 * stopped: before, the output is only what there was then.
 */
static void
read_usage(JsonbContainer *root, LlmAnswer *answer)
{
	LlmUsage	u = answer->usage;
	int64		plain = u.input - u.cached_input - u.cache_write;
	int64		output = -1;
	JsonbValue	v;
	JsonbContainer *c;

	if (!llmgw_json_get(root, &v, "usage", NULL) || v.type != jbvBinary ||
		!JsonContainerIsObject(v.val.binary.data))
		return;
	c = v.val.binary.data;
	if (!llmgw_read_count(c, &plain, NULL, "input_tokens") ||
		!llmgw_read_count(c, &u.cached_input, NULL, "cache_read_input_tokens") ||
		!llmgw_read_count(c, &u.cache_write, NULL, "cache_creation_input_tokens") ||
		!llmgw_read_count(c, &output, NULL, "output_tokens") ||
		!llmgw_read_count(c, &u.reasoning, "output_tokens_details", "thinking_tokens") ||
		plain + u.cached_input + u.cache_write > PG_INT32_MAX)
	{
		memset(&answer->usage, 0, sizeof(LlmUsage));
		return;
	}
	if (plain + u.cached_input + u.cache_write > 0)
		u.input = plain + u.cached_input + u.cache_write;
	else
	{
		u.cached_input = answer->usage.cached_input;
		u.cache_write = answer->usage.cache_write;
	}
	if (output >= 0)
		u.output = output;
	u.reasoning = Min(u.reasoning, u.output);
	u.known = (u.known || output >= 0) && u.input > 0 && answer->finish_reason != NULL;
	answer->usage = u;
}

/*
 * Content
 */

/* What is no text must not be left out: the rest would pass for the whole. */
static void
append_text(JsonbContainer *c, LlmAnswer *answer)
{
	JsonbValue	v;

	if (llmgw_json_get(c, &v, "text", NULL) && v.type == jbvString)
		appendBinaryStringInfo(&answer->text, v.val.string.val, v.val.string.len);
	else
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a text block of the answer has no text");
}

static LlmToolCall *
find_tool_call(int64 block, LlmAnswer *answer)
{
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		if (answer->tool_calls[i].block == block)
			return &answer->tool_calls[i];
	}
	return NULL;
}

static LlmToolCall *
new_tool_call(int64 block, LlmAnswer *answer)
{
	LlmToolCall *tool = NULL;

	if (answer->ntool_calls >= LLMGW_MAX_TOOL_CALLS)
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("the answer has more than %d tool calls", LLMGW_MAX_TOOL_CALLS));
	else if (block < 0 || find_tool_call(block, answer) != NULL)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a tool call's \"index\" is missing or used twice");
	else
	{
		tool = llmgw_answer_new_tool_call(answer);
		tool->block = block;
	}
	return tool;
}

/*
 * A block of content, or the beginning of one.  Of the tools that run at the
 * provider, only the pieces of their input concern us, which must not be taken
 * for those of another call: a call without a name keeps their place.
 */
static void
read_block(JsonbContainer *c, int64 block, bool streamed, LlmAnswer *answer)
{
	MemoryContext context = llmgw_answer_context(answer);
	char	   *type = llmgw_json_get_text(c, "type", NULL);
	char	   *id;
	char	   *name;
	LlmToolCall *tool;
	JsonbValue	v;

	if (type == NULL)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a block of the answer has no type");
	else if (strcmp(type, "text") == 0)
		append_text(c, answer);
	else if (strcmp(type, "tool_use") == 0)
	{
		id = llmgw_json_get_text(c, "id", NULL);
		name = llmgw_json_get_text(c, "name", NULL);
		if (name == NULL || *name == '\0')
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "a tool call of the answer has no name");
			return;
		}
		tool = new_tool_call(block, answer);
		if (tool == NULL)
			return;
		tool->id = id && *id ? MemoryContextStrdup(context, id) : NULL;
		tool->name = MemoryContextStrdup(context, name);

		/* a stream begins with {}, and some servers send all of it there */
		if (llmgw_json_get(c, &v, "input", NULL) &&
			(!streamed || v.type != jbvBinary || JsonContainerSize(v.val.binary.data) > 0))
			llmgw_json_append_value(&tool->arguments, &v);
	}
	else if (streamed && strstr(type, "tool_use") != NULL)
		(void) new_tool_call(block, answer);
}

static void
read_delta(JsonbContainer *c, int64 block, LlmAnswer *answer)
{
	char	   *type = llmgw_json_get_text(c, "type", NULL);
	LlmToolCall *tool;
	JsonbValue	v;

	if (type == NULL)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a piece of the answer has no type");
	else if (strcmp(type, "text_delta") == 0)
		append_text(c, answer);
	else if (strcmp(type, "input_json_delta") == 0)
	{
		tool = find_tool_call(block, answer);
		if (tool == NULL || !llmgw_json_get(c, &v, "partial_json", NULL) ||
			v.type != jbvString)
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  "a piece of a tool's input belongs to no tool call");
		else
			appendBinaryStringInfo(&tool->arguments, v.val.string.val,
								   v.val.string.len);
	}
	/* others: thoughts, their signatures, citations */
}

/*
 * Ends
 */

static const struct
{
	const char *stop_reason;
	const char *finish_reason;
}			stop_reasons[] =

{
	{"end_turn", "stop"},
	{"stop_sequence", "stop"},
	{"max_tokens", "length"},
	{"model_context_window_exceeded", "length"},
	{"tool_use", "tool_calls"},
	{"refusal", "content_filter"}
};

/*
 * Why the model stopped; false when it is not said.  A refusal has status 200,
 * and explains itself only in newer versions.  A paused turn waits to be sent
 * back and continued, which happens only with tools that run at the provider:
 * what there is of it is no answer.
 */
static bool
read_stop_reason(JsonbContainer *message, LlmAnswer *answer)
{
	char	   *reason = llmgw_json_get_text(message, "stop_reason", NULL);
	const char *finish = reason;
	char	   *why;

	if (reason == NULL || *reason == '\0')
		return false;
	for (int i = 0; i < lengthof(stop_reasons); i++)
	{
		if (strcmp(reason, stop_reasons[i].stop_reason) == 0)
			finish = stop_reasons[i].finish_reason;
	}
	llmgw_answer_set_finish(answer, finish);

	if (strcmp(reason, "refusal") == 0)
	{
		why = llmgw_json_get_text(message, "stop_details", "explanation", NULL);
		llmgw_answer_fail(answer, LLMGW_CONTENT_POLICY, why && *why ?
						  llmgw_answer_clean(answer, why, LLMGW_MAX_SHOWN) :
						  "the model refused to answer");
	}
	else if (strcmp(reason, "pause_turn") == 0)
		llmgw_answer_fail(answer, LLMGW_INVALID_REQUEST,
						  "the model paused to be asked to continue, which the gateway does not do: let it use fewer of the provider's own tools");
	return true;
}

/* The JSON text of the answer that a tool's input wraps; NULL: it is not there. */
static char *
unwrap(Jsonb *input)
{
	StringInfoData buf;
	JsonbValue	v;

	if (getKeyJsonValueFromContainer(&input->root, "value", strlen("value"), &v) == NULL)
		return NULL;
	initStringInfo(&buf);
	llmgw_json_append_value(&buf, &v);
	return buf.data;
}

/*
 * Makes the input of the answer's tool the text.  Where the caller's tools are
 * called, too, the answer came too early and is dropped.  When the message was
 * cut by a limit, a part of the input is part of the answer.
 */
static void
take_answer(const LlmWireCall *call, LlmAnswer *answer)
{
	bool		wrapped = false;
	const char *name = llmgw_anthropic_answer_tool(call, &wrapped);
	bool		cut = strcmp(answer->finish_reason, "length") == 0;
	const char *input = NULL;
	const char *value = NULL;
	int			nanswers = 0;
	int			n = 0;
	char	   *reason;
	Jsonb	   *doc;

	for (int i = 0; name && i < answer->ntool_calls; i++)
	{
		LlmToolCall *tool = &answer->tool_calls[i];

		if (strcmp(tool->name, name) != 0)
			answer->tool_calls[n++] = *tool;
		else if (nanswers++ == 0)
			input = tool->arguments.len > 0 || cut ? tool->arguments.data : "{}";
	}
	if (nanswers == 0)
		return;
	answer->ntool_calls = n;
	if (n > 0)
		return;
	if (nanswers > 1)
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the model gave more than one answer");
		return;
	}
	doc = llmgw_json_parse_text(input, &reason);
	if (doc != NULL && JB_ROOT_IS_OBJECT(doc))
		value = wrapped ? unwrap(doc) : input;
	else if (cut)
		value = input;
	if (value == NULL)
	{
		answer->hopeless = doc == NULL && reason == llmgw_json_unfit;
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the model's answer is not the object that was asked for");
		return;
	}
	resetStringInfo(&answer->text);
	appendStringInfoString(&answer->text, value);
	if (strcmp(answer->finish_reason, "tool_calls") == 0)
		llmgw_answer_set_finish(answer, "stop");
}

/* The message is over, and said why. */
static void
end_message(const LlmWireCall *call, LlmAnswer *answer)
{
	int			n = 0;

	answer->complete = true;
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		/* without a name it is the provider's own */
		if (answer->tool_calls[i].name != NULL)
			answer->tool_calls[n++] = answer->tool_calls[i];
	}
	answer->ntool_calls = n;
	if (n == 0 && strcmp(answer->finish_reason, "tool_calls") == 0)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer lacks the tool call that it announces");
	take_answer(call, answer);
}

void
llmgw_anthropic_parse_response(const LlmWireCall *call, const char *body,
							   size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc = llmgw_answer_parse_body(answer, body, len);
	char	   *type;
	JsonbValue	v;
	JsonbContainer *blocks;
	bool		stopped;

	answer->ended = true;
	if (doc == NULL)
		return;
	type = llmgw_json_get_text(&doc->root, "type", NULL);
	if (read_embedded_error(&doc->root, type && strcmp(type, "error") == 0, answer))
		return;

	/* first, as a refusal must not be told for what is amiss besides */
	stopped = read_stop_reason(&doc->root, answer);
	read_usage(&doc->root, answer);
	if (!llmgw_json_get(&doc->root, &v, "content", NULL) || v.type != jbvBinary ||
		!JsonContainerIsArray(v.val.binary.data))
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no content");
		return;
	}
	answer->has_content = true;
	blocks = v.val.binary.data;
	for (uint32 i = 0; i < JsonContainerSize(blocks); i++)
	{
		JsonbValue *block = getIthJsonbValueFromContainer(blocks, i);

		if (block->type == jbvBinary && JsonContainerIsObject(block->val.binary.data))
			read_block(block->val.binary.data, i, false, answer);
		else
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "a block of the answer is no object");
	}
	if (!stopped)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no stop_reason");
	else
		end_message(call, answer);
}

/* The object of that name; else the answer has failed. */
static JsonbContainer *
get_object(JsonbContainer *root, const char *key, LlmAnswer *answer)
{
	JsonbValue	v;

	if (llmgw_json_get(root, &v, key, NULL) && v.type == jbvBinary &&
		JsonContainerIsObject(v.val.binary.data))
		return v.val.binary.data;
	llmgw_answer_fail(answer, LLMGW_MALFORMED,
					  psprintf("an event of the stream has no %s", key));
	return NULL;
}

void
llmgw_anthropic_parse_event(const LlmWireCall *call, const char *name,
							const char *data, size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc;
	JsonbContainer *root;
	JsonbContainer *c;
	const char *type;
	int64		block = -1;

	data = llmgw_trim_bytes(data, &len);

	/* relays that serve OpenAI's format, too, may end every stream with it */
	if (len == 0 || strcmp(name, "ping") == 0 ||
		(len == 6 && memcmp(data, "[DONE]", 6) == 0))
		return;
	doc = llmgw_answer_parse_event(answer, name, data, len);
	if (doc == NULL)
		return;
	root = &doc->root;
	type = llmgw_json_get_text(root, "type", NULL);
	if (type == NULL)
		type = name;
	if (read_embedded_error(root, strcmp(type, "error") == 0 || strcmp(name, "error") == 0,
							answer))
		return;
	(void) llmgw_json_get_int(root, &block, "index", NULL);

	if (strcmp(type, "message_start") == 0)
	{
		answer->has_content = true;
		if ((c = get_object(root, "message", answer)) != NULL)
			read_usage(c, answer);
	}
	else if (strcmp(type, "content_block_start") == 0)
	{
		answer->has_content = true;
		if ((c = get_object(root, "content_block", answer)) != NULL)
			read_block(c, block, true, answer);
	}
	else if (strcmp(type, "content_block_delta") == 0)
	{
		if ((c = get_object(root, "delta", answer)) != NULL)
			read_delta(c, block, answer);
	}
	else if (strcmp(type, "message_delta") == 0)
	{
		if ((c = get_object(root, "delta", answer)) != NULL)
			(void) read_stop_reason(c, answer);
		read_usage(root, answer);
	}
	else if (strcmp(type, "message_stop") == 0)
	{
		answer->ended = true;
		if (!answer->has_content)
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the stream ended without an answer");
		else if (answer->finish_reason == NULL)
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  "the stream ended without a reason to finish");
		else
			end_message(call, answer);
	}
	else if (strcmp(type, "message") == 0)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "an event of the stream has no type");
}
