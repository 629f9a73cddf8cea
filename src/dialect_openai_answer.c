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

#include <ctype.h>

#include "mb/pg_wchar.h"

#include "dialect.h"
#include "json.h"

#define MAX_MESSAGE			500 /* bytes of a provider's text that we show */
#define MAX_EXCERPT			100 /* of a body that is no JSON */
#define MAX_REFUSAL			2000
#define MAX_TOOL_CALLS		128 /* OpenAI's own limit of tools */

/*
 * Error bodies
 */

/* What was found in an error body; its text is not cleaned yet. */
typedef struct ErrorBody
{
	LlmErrorWords words;
	int			status;			/* 0: it says none */
} ErrorBody;

/* A string or a number, as text. */
static char *
text_at(JsonbContainer *c, const char *key)
{
	JsonbValue	v;

	return llmgw_json_get(c, &v, key, NULL) ? llmgw_json_value_text(&v) : NULL;
}

static int
status_at(JsonbContainer *c, const char *key)
{
	char	   *text = text_at(c, key);
	int			status = text ? atoi(text) : 0;

	return status >= 400 && status <= 599 ? status : 0;
}

/*
 * FastAPI (vLLM, Mistral) puts a string or, for a request that does not fit
 * its model, an array of {loc, msg} into "detail".
 */
static char *
detail_text(JsonbContainer *c)
{
	JsonbValue	detail;
	JsonbValue	loc;
	char	   *msg;

	if (!llmgw_json_get(c, &detail, "detail", NULL))
		return NULL;
	if (detail.type != jbvBinary)
		return llmgw_json_value_text(&detail);
	c = detail.val.binary.data;
	msg = llmgw_json_get_text(c, "[0]", "msg", NULL);
	if (msg == NULL)
		msg = llmgw_json_get_text(c, "message", NULL);
	if (msg == NULL)
		msg = llmgw_json_get_text(c, "msg", NULL);
	if (msg != NULL && llmgw_json_get(c, &loc, "[0]", "loc", NULL) &&
		loc.type == jbvBinary)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		llmgw_json_append_value(&buf, &loc);
		msg = psprintf("%s: %s", buf.data, msg);
	}
	return msg;
}

/*
 * Reads an error from a document's root.  False when there is none, that is
 * neither "error" nor, if any_shape, a text in another known place.
 */
static bool
read_error_body(JsonbContainer *root, bool any_shape, ErrorBody *e)
{
	JsonbContainer *c = root;
	JsonbValue	error;
	JsonbValue	v;
	char	   *title = NULL;
	bool		has_error;

	memset(e, 0, sizeof(*e));

	/* Google's compatible endpoint wraps the object into an array */
	if (llmgw_json_get(root, &v, "[0]", NULL) && v.type == jbvBinary)
		c = root = v.val.binary.data;
	has_error = llmgw_json_get(root, &error, "error", NULL);
	if (has_error && error.type == jbvBinary)
		c = error.val.binary.data;
	else if (has_error)
	{
		/* false and "" say that there is no error */
		title = llmgw_json_value_text(&error);
		has_error = title ? *title != '\0' : error.val.boolean;
		title = has_error ? title : NULL;
	}
	if (!has_error && !any_shape)
		return false;

	e->words.code = text_at(c, "code");
	e->words.type = text_at(c, "type");
	if (e->words.type == NULL)
		e->words.type = text_at(c, "status");
	e->words.inner_code = llmgw_json_get_text(c, "innererror", "code", NULL);
	e->words.message = llmgw_json_get_text(c, "message", NULL);

	/* Mistral's message may itself be an object with "detail" */
	if (e->words.message == NULL && llmgw_json_get(c, &v, "message", NULL) &&
		v.type == jbvBinary)
		e->words.message = detail_text(v.val.binary.data);
	if (e->words.message == NULL)
		e->words.message = detail_text(c);

	/* "error" is a string: beside a message it is a kind of title */
	if (title != NULL)
		e->words.message = e->words.message ?
			psprintf("%s: %s", title, e->words.message) : title;

	e->status = status_at(c, "code");
	if (e->status == 0)
		e->status = status_at(c, "status");
	if (e->status == 0)
		e->status = status_at(root, "status");
	if (e->status == 0)
		e->status = status_at(root, "code");
	return has_error || e->words.message != NULL;
}

/* The beginning of bytes from the wire, as one clean line. */
static char *
excerpt(const LlmAnswer *answer, const char *bytes, size_t len)
{
	size_t		n = Min(len, MAX_EXCERPT * 4);
	char	   *str;

	if (GetDatabaseEncoding() == PG_UTF8)
		str = pnstrdup(bytes, pg_encoding_verifymbstr(PG_UTF8, bytes, (int) n));
	else
	{
		str = pnstrdup(bytes, n);
		for (char *c = str; *c; c++)
			*c = IS_HIGHBIT_SET(*c) ? '?' : *c;
	}
	str = llmgw_answer_clean(answer, str, MAX_EXCERPT);
	return *str ? str : psprintf("%zu bytes that are no text", len);
}

static const char *
skip_space(const char *bytes, const char *end)
{
	while (bytes < end && isspace((unsigned char) *bytes))
		bytes++;
	return bytes;
}

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

void
llmgw_openai_read_error(const LlmWireCall *call, int http_status,
						const char *body, size_t len, LlmAnswer *answer)
{
	const char *end = body + len;
	const char *start = skip_space(body, end);
	char	   *reason;
	Jsonb	   *doc = start < end ? llmgw_json_parse(body, len, &reason) : NULL;
	LlmErrorClass class;
	ErrorBody	e;
	char	   *message;

	memset(&e, 0, sizeof(e));
	if (http_status < 400)
		message = psprintf("HTTP %d: redirect not followed", http_status);
	else if (doc != NULL && read_error_body(&doc->root, true, &e) &&
			 e.words.message != NULL)
		message = psprintf("HTTP %d: %s", http_status,
						   llmgw_answer_clean(answer, e.words.message, MAX_MESSAGE));
	else if (start == end)
		message = psprintf("HTTP %d (empty body)", http_status);
	else if (*start == '<')
		message = psprintf("HTTP %d (HTML body)", http_status);
	else
	{
		char	   *text = excerpt(answer, start, end - start);

		message = psprintf("HTTP %d: %s", http_status, text);
		if (doc == NULL)
			e.words.message = text;
	}
	class = llmgw_error_classify(http_status, &e.words);
	if (http_status == 400 || http_status == 422)
		answer->wants_token_param = wanted_token_param(call, e.words.message);
	llmgw_answer_fail(answer, class, message);
}

/* An error that came with status 200.  False when there is none. */
static bool
read_embedded_error(JsonbContainer *root, bool any_shape, LlmAnswer *answer)
{
	char	   *object = llmgw_json_get_text(root, "object", NULL);
	ErrorBody	e;
	const char *msg;

	/* vLLM once sent {"object": "error", "message": ...} */
	if (object != NULL && strcmp(object, "error") == 0)
		any_shape = true;
	if (!read_error_body(root, any_shape, &e))
		return false;
	msg = e.words.message;
	if (msg == NULL)
		msg = e.words.code ? e.words.code : "without a message";
	msg = llmgw_answer_clean(answer, msg, MAX_MESSAGE);
	llmgw_answer_fail(answer, llmgw_error_classify(e.status, &e.words),
					  e.status ? psprintf("error %d in the answer: %s", e.status, msg) :
					  psprintf("error in the answer: %s", msg));
	return true;
}

/*
 * Answers
 */

/*
 * A count of tokens; one that is not there stays as it is.  False when it is no
 * such number: then nothing is known of the usage, and the answer, which is
 * whole all the same, is priced by an estimate.
 */
static bool
read_count(JsonbContainer *usage, int64 *count, const char *group,
		   const char *key)
{
	JsonbValue	v;
	bool		found;

	found = group ? llmgw_json_get(usage, &v, group, key, NULL) :
		llmgw_json_get(usage, &v, key, NULL);
	return !found || (llmgw_json_value_int(&v, count) &&
					  *count >= 0 && *count <= PG_INT32_MAX);
}

/*
 * Counts as of now: where several chunks have them, the last is the whole.
 * prompt_tokens includes the cached ones and completion_tokens the reasoning
 * (OpenAI).  A server that counts reasoning apart (xAI) shows it in its total.
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
	if (!read_count(c, &u.input, NULL, "prompt_tokens") ||
		!read_count(c, &u.output, NULL, "completion_tokens") ||
		!read_count(c, &total, NULL, "total_tokens") ||
		!read_count(c, &u.cached_input, "prompt_tokens_details", "cached_tokens") ||
		!read_count(c, &u.cache_write, "prompt_tokens_details", "cache_write_tokens") ||
		!read_count(c, &u.reasoning, "completion_tokens_details", "reasoning_tokens") ||
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

static LlmToolCall *
new_tool_call(LlmAnswer *answer)
{
	MemoryContext old = MemoryContextSwitchTo(llmgw_answer_context(answer));
	int			n = answer->ntool_calls + 1;
	LlmToolCall *tool;

	answer->tool_calls = answer->tool_calls ?
		repalloc(answer->tool_calls, n * sizeof(LlmToolCall)) :
		palloc(sizeof(LlmToolCall));
	answer->ntool_calls = n;
	tool = &answer->tool_calls[n - 1];
	memset(tool, 0, sizeof(*tool));
	initStringInfo(&tool->arguments);
	MemoryContextSwitchTo(old);
	return tool;
}

/*
 * The call that a piece belongs to.  Pieces of a stream are numbered by
 * "index"; servers that leave it out begin a call with its id.
 */
static LlmToolCall *
find_tool_call(JsonbContainer *piece, int position, bool streamed,
			   const char *id, LlmAnswer *answer)
{
	int64		index = position;
	JsonbValue	v;

	if (streamed && llmgw_json_get(piece, &v, "index", NULL))
	{
		if (!llmgw_json_value_int(&v, &index))
			index = -1;
	}
	else if (streamed)
		index = answer->ntool_calls - (id == NULL && answer->ntool_calls > 0);
	if (index < 0 || index >= MAX_TOOL_CALLS)
		return NULL;
	while (answer->ntool_calls <= index)
		(void) new_tool_call(answer);
	return &answer->tool_calls[index];
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
		tool = find_tool_call(piece, i, streamed, id, answer);
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
 * Reasons to finish that say that the answer is not what was asked for: Azure's
 * filter (and OpenAI's), Zhipu's, DeepSeek's, OpenRouter's.
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
	{"error", LLMGW_SERVER_ERROR, "the provider failed in the middle of the answer"},
};

/* The end of an answer turns a refusal into an error. */
static void
end_choice(LlmAnswer *answer)
{
	answer->complete = true;
	if (answer->refusal != NULL)
		llmgw_answer_fail(answer, LLMGW_CONTENT_POLICY,
						  llmgw_answer_clean(answer, answer->refusal, MAX_MESSAGE));
	else if (answer->finish_reason != NULL)
	{
		for (int i = 0; i < lengthof(failed_ends); i++)
			if (strcmp(answer->finish_reason, failed_ends[i].reason) == 0)
				llmgw_answer_fail(answer, failed_ends[i].error,
								  failed_ends[i].message);
	}
}

static void
read_choice(JsonbContainer *choice, bool streamed, LlmAnswer *answer)
{
	char	   *reason = llmgw_json_get_text(choice, "finish_reason", NULL);
	JsonbValue	v;

	answer->has_content = true;
	if (llmgw_json_get(choice, &v, streamed ? "delta" : "message", NULL))
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

	if (reason != NULL && *reason != '\0')
		answer->finish_reason = MemoryContextStrdup(llmgw_answer_context(answer),
													llmgw_answer_clean(answer, reason, 60));
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
	char	   *reason;
	Jsonb	   *doc = llmgw_json_parse(body, len, &reason);

	answer->ended = true;
	if (doc == NULL)
	{
		answer->hopeless = reason == llmgw_json_unfit;
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  len == 0 ? "the answer is empty" :
						  psprintf("the answer is %s: \"%s\"", reason, excerpt(answer, body, len)));
		return;
	}
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
	const char *end = data + len;
	bool		is_error = strcmp(name, "error") == 0;
	char	   *reason;
	Jsonb	   *doc;

	data = skip_space(data, end);
	while (end > data && isspace((unsigned char) end[-1]))
		end--;
	len = end - data;
	if (len == 0)
		return;
	if (len == 6 && memcmp(data, "[DONE]", 6) == 0)
	{
		/*
		 * Without a reason to finish it proves little: gateways send it too
		 * when what they relay was cut.  The usage, which comes last, then
		 * does.
		 */
		answer->ended = true;
		if (!answer->has_content)
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the stream ended without an answer");
		else if (answer->finish_reason == NULL && !answer->usage.known)
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  "the stream ended without a reason to finish");
		else
			end_choice(answer);
		return;
	}

	doc = llmgw_json_parse(data, len, &reason);
	if (doc == NULL || !JB_ROOT_IS_OBJECT(doc))
	{
		if (is_error)
			llmgw_answer_fail(answer, LLMGW_SERVER_ERROR,
							  psprintf("error in the answer: %s", excerpt(answer, data, len)));
		else
		{
			answer->hopeless = doc == NULL && reason == llmgw_json_unfit;
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  psprintf("an event of the stream is %s", doc ?
									   "no JSON object" : reason));
		}
		return;
	}

	/* the usage first: an error must not lose what was already spent */
	read_usage(&doc->root, answer);
	if (read_embedded_error(&doc->root, is_error, answer))
		return;

	/* other servers' own events (a ping, the usage alone) have no choices */
	if (!read_choices(&doc->root, true, answer) &&
		strcmp(name, "message") == 0 && !answer->usage.known)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "an event of the stream has no choices");
}
