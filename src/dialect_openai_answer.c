/*-------------------------------------------------------------------------
 *
 * dialect_openai_answer.c
 *	  OpenAI's chat completions, as many others send them, too: answers and
 *	  errors.
 *
 * Sources: OpenAI's API reference (chat completions, streaming, error codes),
 * and recorded answers of OpenAI, Azure, Groq, Mistral, vLLM, llama.cpp,
 * Scaleway and Google's compatible endpoint.  Where they differ, every shape
 * that was seen is accepted; what would be needed to tell whether an answer is
 * whole is not guessed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect_answer.h"
#include "dialect_vectors.h"
#include "json.h"

#define MAX_REFUSAL			2000

/*
 * Error bodies
 */

/*
 * Whether the server asks for the other name of the output limit.  Of the two
 * names, the one that a refusal mentions first is the one it refuses:
 * "Unsupported parameter: 'max_tokens' ... Use 'max_completion_tokens' instead".
 */
static LlmTokenParam
wanted_token_param(const LlmWireCall *call, const char *message)
{
	const char *old_name = message ? strstr(message, "max_tokens") : NULL;
	const char *new_name = message ? strstr(message, "max_completion_tokens") : NULL;
	LlmTokenParam sent = llmgw_openai_token_param(call);

	if (call->max_tokens <= 0 || !llmgw_error_unsupported(message))
		return LLMGW_TOKENS_AUTO;
	if (old_name && (new_name == NULL || old_name < new_name))
		return sent == LLMGW_TOKENS_MAX_TOKENS ?
			LLMGW_TOKENS_MAX_COMPLETION_TOKENS : LLMGW_TOKENS_AUTO;
	if (new_name)
		return sent == LLMGW_TOKENS_MAX_COMPLETION_TOKENS ?
			LLMGW_TOKENS_MAX_TOKENS : LLMGW_TOKENS_AUTO;
	return LLMGW_TOKENS_AUTO;
}

/* Whether the server does not know the words that ask for a stream's usage. */
static bool
refuses_usage(const LlmWireCall *call, const char *message)
{
	return call->stream && !call->no_usage && message != NULL &&
		(strstr(message, "stream_options") != NULL || strstr(message, "include_usage") != NULL) &&
		llmgw_error_unsupported(message);
}

void
llmgw_openai_read_error(const LlmWireCall *call, int http_status,
						const char *body, size_t len, LlmAnswer *answer)
{
	LlmErrorBody e;
	char	   *message = llmgw_answer_http_error(answer, http_status, body, len, &e);

	if (http_status == 400 || http_status == 422)
	{
		answer->wants_token_param = wanted_token_param(call, e.words.message);
		answer->wants_no_usage = refuses_usage(call, e.words.message);
	}
	llmgw_answer_fail(answer, llmgw_error_classify(http_status, &e.words), message);
}

/* An error that came with status 200.  False when there is none. */
static bool
read_embedded_error(JsonbContainer *root, bool any_shape, LlmAnswer *answer)
{
	char	   *object = llmgw_json_get_text(root, "object", NULL);
	LlmErrorBody e;

	/* vLLM once sent {"object": "error", "message": ...} */
	if (object != NULL && strcmp(object, "error") == 0)
		any_shape = true;
	if (!llmgw_read_error_body(root, any_shape, &e))
		return false;
	llmgw_answer_fail_inside(answer, &e);
	return true;
}

/*
 * Answers
 */

/*
 * Counts as of now: where several chunks have them, the last is the whole.
 * prompt_tokens includes the cached ones and completion_tokens the reasoning
 * (OpenAI).  A server that counts reasoning apart (xAI) shows it in its total.
 * DeepSeek has a word of its own for the cached ones.
 */
static void
read_usage(JsonbContainer *root, LlmAnswer *answer)
{
	LlmUsage	u = {.input = -1,.output = -1};
	int64		total = -1;
	JsonbValue	v;
	JsonbContainer *c;

	if (!llmgw_json_get(root, &v, "usage", NULL) || v.type != jbvBinary ||
		!JsonContainerIsObject(v.val.binary.data))
		return;
	c = v.val.binary.data;
	if (!llmgw_read_count(c, &u.input, NULL, "prompt_tokens") ||
		!llmgw_read_count(c, &u.output, NULL, "completion_tokens") ||
		!llmgw_read_count(c, &total, NULL, "total_tokens") ||
		!llmgw_read_count(c, &u.cached_input, NULL, "prompt_cache_hit_tokens") ||
		!llmgw_read_count(c, &u.cached_input, "prompt_tokens_details", "cached_tokens") ||
		!llmgw_read_count(c, &u.cache_write, "prompt_tokens_details", "cache_write_tokens") ||
		!llmgw_read_count(c, &u.reasoning, "completion_tokens_details", "reasoning_tokens") ||
		u.input < 0 || u.output < 0)
		return;

	if (u.reasoning > 0 && total == u.input + u.output + u.reasoning)
		u.output += u.reasoning;
	u.cached_input = Min(u.cached_input, u.input);
	u.cache_write = Min(u.cache_write, u.input - u.cached_input);
	u.reasoning = Min(u.reasoning, u.output);
	u.known = true;
	answer->usage = u;
}

/* An embedding has no output: all tokens are those of the input. */
static void
read_embedding_usage(JsonbContainer *root, LlmAnswer *answer)
{
	LlmUsage	u = {.input = -1};
	JsonbValue	v;

	if (!llmgw_json_get(root, &v, "usage", NULL) || v.type != jbvBinary ||
		!JsonContainerIsObject(v.val.binary.data) ||
		!llmgw_read_count(v.val.binary.data, &u.input, NULL, "total_tokens") ||
		!llmgw_read_count(v.val.binary.data, &u.input, NULL, "prompt_tokens") ||
		u.input < 0)
		return;
	u.known = true;
	answer->usage = u;
}

/*
 * A string, or an array of parts of which those with text count.  What is
 * neither must not be left out: the rest would pass for the whole answer.
 */
static void
append_content(JsonbContainer *message, LlmAnswer *answer)
{
	static const char *const problem = "the answer's content is neither text nor parts";
	JsonbValue	v;
	JsonbContainer *parts;

	if (!llmgw_json_get(message, &v, "content", NULL))
		return;
	if (v.type == jbvString)
	{
		appendBinaryStringInfo(&answer->text, v.val.string.val, v.val.string.len);
		return;
	}
	if (v.type != jbvBinary || !JsonContainerIsArray(v.val.binary.data))
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, problem);
		return;
	}
	parts = v.val.binary.data;
	for (uint32 i = 0; i < JsonContainerSize(parts); i++)
	{
		JsonbValue *part = getIthJsonbValueFromContainer(parts, i);

		if (part->type != jbvBinary || !JsonContainerIsObject(part->val.binary.data))
			llmgw_answer_fail(answer, LLMGW_MALFORMED, problem);
		else if (!llmgw_json_get(part->val.binary.data, &v, "text", NULL))
			continue;			/* an image, a thought, ... */
		else if (v.type == jbvString)
			appendBinaryStringInfo(&answer->text, v.val.string.val,
								   v.val.string.len);
		else
			llmgw_answer_fail(answer, LLMGW_MALFORMED, problem);
	}
}

static void
append_refusal(JsonbContainer *message, LlmAnswer *answer)
{
	char	   *text = llmgw_json_get_text(message, "refusal", NULL);
	const char *before = answer->refusal ? answer->refusal : "";

	if (text == NULL || *text == '\0' || strlen(before) >= MAX_REFUSAL)
		return;
	answer->refusal = MemoryContextStrdup(llmgw_answer_context(answer),
										  psprintf("%s%s", before, text));
}

/*
 * The call that a piece belongs to.  Pieces of a stream are numbered by
 * "index"; servers that leave it out begin a call with its id or its name.  Some
 * give the same index to all calls, each of which then has an id and a name.
 */
static LlmToolCall *
find_tool_call(JsonbContainer *piece, int position, bool streamed,
			   const char *id, const char *name, LlmAnswer *answer)
{
	bool		has_id = id != NULL && *id != '\0';
	bool		has_name = name != NULL && *name != '\0';
	int64		index = position;
	LlmToolCall *tool;
	JsonbValue	v;

	if (streamed && llmgw_json_get(piece, &v, "index", NULL))
	{
		if (!llmgw_json_value_int(&v, &index))
			index = -1;
	}
	else if (streamed)
		index = answer->ntool_calls - (!has_id && !has_name && answer->ntool_calls > 0);
	if (index < 0 || index >= LLMGW_MAX_TOOL_CALLS)
		return NULL;
	while (answer->ntool_calls <= index)
		(void) llmgw_answer_new_tool_call(answer);
	tool = &answer->tool_calls[index];
	if (streamed && has_id && has_name && tool->id != NULL && tool->name != NULL &&
		strcmp(tool->id, id) != 0)
		return answer->ntool_calls < LLMGW_MAX_TOOL_CALLS ?
			llmgw_answer_new_tool_call(answer) : NULL;
	return tool;
}

static void
append_tool_calls(JsonbContainer *message, bool streamed, LlmAnswer *answer)
{
	MemoryContext context = llmgw_answer_context(answer);
	JsonbValue	v;
	JsonbContainer *pieces;

	if (!llmgw_json_get(message, &v, "tool_calls", NULL) ||
		v.type != jbvBinary || !JsonContainerIsArray(v.val.binary.data))
		return;
	pieces = v.val.binary.data;
	for (uint32 i = 0; i < JsonContainerSize(pieces); i++)
	{
		JsonbValue *element = getIthJsonbValueFromContainer(pieces, i);
		JsonbContainer *piece;
		LlmToolCall *tool;
		char	   *id;
		char	   *name;

		if (element->type != jbvBinary)
			continue;
		piece = element->val.binary.data;
		id = llmgw_json_get_text(piece, "id", NULL);
		name = llmgw_json_get_text(piece, "function", "name", NULL);
		tool = find_tool_call(piece, i, streamed, id, name, answer);
		if (tool == NULL)
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "tool_calls: \"index\" is out of range");
			return;
		}
		if (id && *id && tool->id == NULL)
			tool->id = MemoryContextStrdup(context, id);
		if (name && *name && tool->name == NULL)
			tool->name = MemoryContextStrdup(context, name);
		if (!llmgw_json_get(piece, &v, "function", "arguments", NULL))
			continue;
		if (v.type == jbvString)
			appendBinaryStringInfo(&tool->arguments, v.val.string.val,
								   v.val.string.len);
		else					/* some send the object itself */
			llmgw_json_append_value(&tool->arguments, &v);
	}
}

/*
 * Other words for OpenAI's reasons to finish: Mistral's, Zhipu's, Together's,
 * text-generation-inference's, and Anthropic's through a relay.
 */
static const struct
{
	const char *word;
	const char *reason;
}			synonyms[] =

{
	{"model_length", "length"},
	{"model_context_window_exceeded", "length"},
	{"max_tokens", "length"},
	{"eos", "stop"},
	{"eos_token", "stop"},
	{"stop_sequence", "stop"},
	{"end_turn", "stop"},
	{"tool_use", "tool_calls"},
};

/*
 * Reasons to finish that say that the answer is not what was asked for: Azure's
 * filter (and OpenAI's), Zhipu's, DeepSeek's, OpenRouter's, vLLM's.
 */
static const struct
{
	const char *reason;
	LlmErrorClass error;
	const char *message;
}			failed_ends[] =

{
	{"content_filter", LLMGW_CONTENT_POLICY, "the provider's content filter stopped the answer"},
	{"sensitive", LLMGW_CONTENT_POLICY, "the provider's content filter stopped the answer"},
	{"insufficient_system_resource", LLMGW_OVERLOADED, "the provider ran out of resources in the middle of the answer"},
	{"network_error", LLMGW_SERVER_ERROR, "the provider failed in the middle of the answer"},
	{"abort", LLMGW_SERVER_ERROR, "the provider gave up in the middle of the answer"},
	{"error", LLMGW_SERVER_ERROR, "the provider failed in the middle of the answer"},
};

/* The end of an answer turns a refusal into an error. */
static void
end_choice(LlmAnswer *answer)
{
	answer->complete = true;
	if (answer->refusal != NULL)
		llmgw_answer_fail(answer, LLMGW_CONTENT_POLICY,
						  llmgw_answer_clean(answer, answer->refusal, LLMGW_MAX_SHOWN));
	else if (answer->finish_reason != NULL)
	{
		for (int i = 0; i < lengthof(failed_ends); i++)
			if (strcmp(answer->finish_reason, failed_ends[i].reason) == 0)
				llmgw_answer_fail(answer, failed_ends[i].error,
								  failed_ends[i].message);
	}
}

/*
 * A server that does not stream by itself may send the whole message as the only
 * event; others repeat it at the end of the pieces, or send with each event what
 * they have so far: it is whole where there is a reason to finish.
 */
static void
read_choice(JsonbContainer *choice, bool streamed, LlmAnswer *answer)
{
	const char *reason = llmgw_json_get_text(choice, "finish_reason", NULL);
	JsonbValue	v;

	answer->has_content = true;
	if (llmgw_json_get(choice, &v, streamed ? "delta" : "message", NULL) ||
		(streamed && reason != NULL && *reason != '\0' &&
		 answer->text.len == 0 && answer->ntool_calls == 0 &&
		 llmgw_json_get(choice, &v, "message", NULL)))
	{
		if (v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's choice has no message");
			return;
		}
		append_content(v.val.binary.data, answer);
		append_refusal(v.val.binary.data, answer);
		append_tool_calls(v.val.binary.data, streamed, answer);
	}
	else if (!streamed)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's choice has no message");

	for (int i = 0; reason != NULL && i < lengthof(synonyms); i++)
		if (strcmp(reason, synonyms[i].word) == 0)
			reason = synonyms[i].reason;
	if (reason != NULL && *reason != '\0')
		llmgw_answer_set_finish(answer, reason);
	if (!streamed || (reason != NULL && *reason != '\0'))
		end_choice(answer);
}

/*
 * Reads the choice with index 0; others were not asked for.  False when there
 * is no array of choices at all.
 */
static bool
read_choices(JsonbContainer *root, bool streamed, LlmAnswer *answer)
{
	JsonbValue	v;
	JsonbContainer *choices;

	if (!llmgw_json_get(root, &v, "choices", NULL) || v.type != jbvBinary ||
		!JsonContainerIsArray(v.val.binary.data))
		return false;
	choices = v.val.binary.data;
	for (uint32 i = 0; i < JsonContainerSize(choices); i++)
	{
		JsonbValue *choice = getIthJsonbValueFromContainer(choices, i);
		int64		index = i;

		if (choice->type != jbvBinary)
			continue;
		(void) llmgw_json_get_int(choice->val.binary.data, &index, "index", NULL);
		if (index == 0)
		{
			read_choice(choice->val.binary.data, streamed, answer);
			break;
		}
	}
	return true;
}

void
llmgw_openai_parse_response(const LlmWireCall *call, const char *body,
							size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc = llmgw_answer_parse_body(answer, body, len);

	answer->ended = true;
	if (doc == NULL)
		return;
	read_usage(&doc->root, answer);
	if (read_embedded_error(&doc->root, false, answer))
		return;
	if (!read_choices(&doc->root, false, answer))
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no choices");
	else if (!answer->has_content)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's choices are empty");
}

void
llmgw_openai_parse_event(const LlmWireCall *call, const char *name,
						 const char *data, size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc;
	JsonbValue	v;

	data = llmgw_trim_bytes(data, &len);
	if (len == 0)
		return;
	if (len == 6 && memcmp(data, "[DONE]", 6) == 0)
	{
		/*
		 * Without a reason to finish it proves little: gateways send it too
		 * when what they relay was cut.  The usage does, if it came in an
		 * event of its own, at the end; some servers send it with every one.
		 */
		answer->ended = true;
		if (!answer->has_content)
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the stream ended without an answer");
		else if (answer->finish_reason == NULL && !answer->usage_apart)
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  "the stream ended without a reason to finish");
		else
			end_choice(answer);
		return;
	}

	doc = llmgw_answer_parse_event(answer, name, data, len);
	if (doc == NULL)
		return;

	/* the usage first: an error must not lose what was already spent */
	read_usage(&doc->root, answer);
	answer->usage_apart |= answer->usage.known &&
		!llmgw_json_get(&doc->root, &v, "choices", "[0]", NULL);
	if (read_embedded_error(&doc->root, strcmp(name, "error") == 0, answer))
		return;

	/* other servers' own events (a ping, the usage alone) have no choices */
	if (!read_choices(&doc->root, true, answer) &&
		strcmp(name, "message") == 0 && !answer->usage.known)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "an event of the stream has no choices");
}

/*
 * Embeddings come in any order, numbered by "index"; where a server leaves the
 * numbers out, in that of the inputs.
 */
void
llmgw_openai_parse_embedding(const LlmWireCall *call, const char *body,
							 size_t len, LlmAnswer *answer)
{
	LlmVectors	vectors;
	Jsonb	   *doc = llmgw_vectors_parse(&vectors, body, len, answer);
	JsonbContainer *data;
	JsonbValue	v;

	if (doc == NULL)
		return;
	read_embedding_usage(&doc->root, answer);
	if (read_embedded_error(&doc->root, false, answer))
		return;
	if (!llmgw_json_get(&doc->root, &v, "data", NULL) || v.type != jbvBinary ||
		!JsonContainerIsArray(v.val.binary.data))
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no embeddings");
		return;
	}
	data = v.val.binary.data;
	for (uint32 i = 0; i < JsonContainerSize(data) && answer->error == LLMGW_OK; i++)
	{
		JsonbValue *item = getIthJsonbValueFromContainer(data, i);
		int64		index = i;

		if (item->type != jbvBinary ||
			!llmgw_json_get(item->val.binary.data, &v, "embedding", NULL))
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "an element of \"data\" has no embedding");
			return;
		}
		(void) llmgw_json_get_int(item->val.binary.data, &index, "index", NULL);
		llmgw_vectors_put(&vectors, call, index, &v, answer);
	}
	llmgw_vectors_end(&vectors, call, answer);
}
