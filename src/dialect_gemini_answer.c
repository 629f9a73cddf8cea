/*-------------------------------------------------------------------------
 *
 * dialect_gemini_answer.c
 *	  Google's Gemini API (generateContent): answers and errors.
 *
 * Sources: Google's API reference (GenerateContentResponse, UsageMetadata,
 * FinishReason, batchEmbedContents), its guide to errors, google.rpc's error
 * details, what its own SDK for Python and its command line client make of
 * them, and recorded error bodies.
 *
 * A stream ends with its connection; nothing marks its end.  The candidate's
 * finishReason says that the answer is whole, but it does not end the stream:
 * chunks with the usage, or with sources, may come after it, and older models
 * said STOP in every chunk.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect_answer.h"
#include "dialect_vectors.h"
#include "json.h"

/*
 * Errors
 */

/* What Google's structured error details say. */
typedef struct ErrorDetails
{
	char	   *reason;			/* ErrorInfo's, e.g. API_KEY_INVALID */
	bool		daily;			/* a limit per day or longer is exhausted */
	bool		has_quota;		/* says which limit */
	bool		has_delay;		/* says when to come back */
} ErrorDetails;

static bool
starts_with(const char *str, const char *prefix)
{
	return str != NULL && pg_strncasecmp(str, prefix, strlen(prefix)) == 0;
}

/* "GenerateRequestsPerDayPerProjectPerModel-FreeTier" */
static void
read_limit_name(const char *name, ErrorDetails *d)
{
	if (name == NULL)
		return;
	d->has_quota = true;
	if (strstr(name, "PerDay") != NULL || strstr(name, "Daily") != NULL ||
		strstr(name, "PerMonth") != NULL)
		d->daily = true;
}

static JsonbContainer *
get_array(JsonbContainer *c, const char *key)
{
	JsonbValue	v;

	return llmgw_json_get(c, &v, key, NULL) && v.type == jbvBinary &&
		JsonContainerIsArray(v.val.binary.data) ? v.val.binary.data : NULL;
}

/* An array's element, if it is an object. */
static JsonbContainer *
get_object(JsonbContainer *array, uint32 i)
{
	JsonbValue *v = getIthJsonbValueFromContainer(array, i);

	return v->type == jbvBinary && JsonContainerIsObject(v->val.binary.data) ?
		v->val.binary.data : NULL;
}

static void
read_details(JsonbContainer *root, ErrorDetails *d)
{
	JsonbContainer *details;
	JsonbValue	error;

	memset(d, 0, sizeof(*d));
	if (!(llmgw_json_get(root, &error, "error", NULL) ||
		  llmgw_json_get(root, &error, "[0]", "error", NULL)) ||
		error.type != jbvBinary ||
		(details = get_array(error.val.binary.data, "details")) == NULL)
		return;
	for (uint32 i = 0; i < JsonContainerSize(details); i++)
	{
		JsonbContainer *c = get_object(details, i);
		JsonbContainer *violations;
		JsonbValue	v;

		if (c == NULL)
			continue;
		if (d->reason == NULL)
			d->reason = llmgw_json_get_text(c, "reason", NULL);
		read_limit_name(llmgw_json_get_text(c, "metadata", "quota_limit", NULL), d);
		if (llmgw_json_get(c, &v, "retryDelay", NULL))
			d->has_delay = true;
		violations = get_array(c, "violations");
		for (uint32 j = 0; violations && j < JsonContainerSize(violations); j++)
		{
			JsonbContainer *violation = get_object(violations, j);

			if (violation != NULL)
				read_limit_name(llmgw_json_get_text(violation, "quotaId", NULL), d);
		}
	}
}

/* "limit: 0", as against "limit: 0.5" and "limit: 05": not for this account */
static bool
has_zero_limit(const char *message)
{
	const char *p = message ? strstr(message, "limit: 0") : NULL;

	if (p == NULL)
		return false;
	p += strlen("limit: 0");
	return !(*p >= '0' && *p <= '9') && !(*p == '.' && p[1] >= '0' && p[1] <= '9');
}

/*
 * Whether RESOURCE_EXHAUSTED is more than a limit per minute.  "You exceeded
 * your current quota, please check your plan and billing details" is said of
 * both; with a limit per minute its name and a delay come along.
 */
static bool
is_quota(const LlmErrorBody *e, const ErrorDetails *d)
{
	const char *message = e->words.message;

	return d->daily || has_zero_limit(message) ||
		(d->reason != NULL && (strcmp(d->reason, "QUOTA_EXHAUSTED") == 0 ||
							   strcmp(d->reason, "BILLING_DISABLED") == 0)) ||
		starts_with(message, "Your prepayment credits are depleted") ||
		starts_with(message, "Your project has exceeded its monthly spending cap") ||
		starts_with(message, "Your billing account has exceeded its monthly spending cap") ||
		(starts_with(message, "You exceeded your current quota") &&
		 !d->has_quota && !d->has_delay);
}

/* A key, or what it is allowed, refused with the status of a bad request. */
static bool
is_auth(const LlmErrorBody *e, const ErrorDetails *d)
{
	return (d->reason != NULL && starts_with(d->reason, "API_KEY_")) ||
		starts_with(e->words.message, "API key not valid") ||
		starts_with(e->words.message, "API key expired") ||
		starts_with(e->words.message, "User location is not supported") ||
		starts_with(e->words.message, "Gemini API free tier is not available in your country");
}

/* HTTP status 0: it came with status 200, and the body may say which it is. */
static LlmErrorClass
classify(int http_status, const LlmErrorBody *e, const ErrorDetails *d)
{
	const char *status = e->words.type ? e->words.type : "";

	if (http_status == 0)
		http_status = e->status;
	if (http_status == 429 ||
		(http_status == 0 && strcmp(status, "RESOURCE_EXHAUSTED") == 0))
		return is_quota(e, d) ? LLMGW_QUOTA : LLMGW_RATE_LIMIT;
	if (http_status == 400 && is_auth(e, d))
		return LLMGW_AUTH;
	if (http_status == 403 && d->reason != NULL && strcmp(d->reason, "BILLING_DISABLED") == 0)
		return LLMGW_QUOTA;
	if (strcmp(status, "DEADLINE_EXCEEDED") == 0)
		return LLMGW_TIMEOUT;	/* Google's own limit, not a proxy's */
	if (strcmp(status, "CANCELLED") == 0)
		return LLMGW_SERVER_ERROR;
	if (http_status == 0 &&
		(strcmp(status, "INVALID_ARGUMENT") == 0 ||
		 strcmp(status, "FAILED_PRECONDITION") == 0))
		http_status = 400;
	if (http_status == 0 && strcmp(status, "NOT_FOUND") == 0)
		http_status = 404;
	return llmgw_error_classify(http_status, &e->words);
}

void
llmgw_gemini_read_error(const LlmWireCall *call, int http_status,
						const char *body, size_t len, LlmAnswer *answer)
{
	LlmErrorBody e;
	ErrorDetails d = {0};
	char	   *message = llmgw_answer_http_error(answer, http_status, body, len, &e);
	char	   *reason;
	Jsonb	   *doc = len > 0 ? llmgw_json_parse(body, len, &reason) : NULL;

	if (doc != NULL)
		read_details(&doc->root, &d);
	llmgw_answer_fail(answer, classify(http_status, &e, &d), message);
}

/* An error that came with status 200.  False when there is none. */
static bool
read_embedded_error(JsonbContainer *root, bool any_shape, LlmAnswer *answer)
{
	bool		first = answer->error == LLMGW_OK;
	LlmErrorBody e;
	ErrorDetails d;

	if (!llmgw_read_error_body(root, any_shape, &e))
		return false;
	read_details(root, &d);
	llmgw_answer_fail_inside(answer, &e);
	if (first)
		answer->error = classify(0, &e, &d);
	return true;
}

/*
 * Usage
 */

/*
 * Counts as of now: the last ones are the whole.  A count of zero is left out.
 * The prompt includes what was cached; thoughts are counted apart from the
 * candidates, unless the total says otherwise.  Before the end, all is known
 * only if the output is counted, too: a stream that is cut has cost that much
 * already.
 */
static void
read_usage(JsonbContainer *root, bool at_end, LlmAnswer *answer)
{
	LlmUsage	u = {0};
	int64		tools = 0;
	int64		candidates = -1;
	int64		total = -1;
	JsonbValue	v;
	JsonbContainer *c;

	if (!llmgw_json_get(root, &v, "usageMetadata", NULL) ||
		v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
		return;
	c = v.val.binary.data;
	if (!llmgw_read_count(c, &u.input, NULL, "promptTokenCount") ||
		!llmgw_read_count(c, &tools, NULL, "toolUsePromptTokenCount") ||
		!llmgw_read_count(c, &u.cached_input, NULL, "cachedContentTokenCount") ||
		!llmgw_read_count(c, &candidates, NULL, "candidatesTokenCount") ||
		!llmgw_read_count(c, &u.reasoning, NULL, "thoughtsTokenCount") ||
		!llmgw_read_count(c, &total, NULL, "totalTokenCount"))
	{
		answer->usage.known = false;
		return;
	}
	u.input += tools;
	u.output = Max(candidates, 0);
	if (total < 0 || u.reasoning > u.output || total != u.input + u.output)
		u.output += u.reasoning;
	if (u.input + u.output == 0 || u.input > PG_INT32_MAX || u.output > PG_INT32_MAX)
		return;
	u.known = candidates >= 0 || at_end;
	if (!u.known && answer->usage.known)
		return;
	u.cached_input = Min(u.cached_input, u.input);
	u.reasoning = Min(u.reasoning, u.output);
	answer->usage = u;
}

/*
 * Answers
 */

static void
append_call(JsonbContainer *part, JsonbContainer *function, LlmAnswer *answer)
{
	MemoryContext context = llmgw_answer_context(answer);
	char	   *id = llmgw_json_get_text(function, "id", NULL);
	char	   *name = llmgw_json_get_text(function, "name", NULL);
	char	   *signature = llmgw_json_get_text(part, "thoughtSignature", NULL);
	LlmToolCall *tool;
	JsonbValue	args;
	bool		has_args = llmgw_json_get(function, &args, "args", NULL);

	if (name == NULL || *name == '\0')
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a function call of the answer has no name");
		return;
	}
	if (has_args && (args.type != jbvBinary ||
					 !JsonContainerIsObject(args.val.binary.data)))
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "a function call's args are no object");
		return;
	}
	if (answer->ntool_calls >= LLMGW_MAX_TOOL_CALLS)
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("the answer has more than %d function calls",
								   LLMGW_MAX_TOOL_CALLS));
		return;
	}
	tool = llmgw_answer_new_tool_call(answer);
	tool->name = MemoryContextStrdup(context, name);
	if (id != NULL && *id != '\0')
		tool->id = MemoryContextStrdup(context, id);
	if (signature != NULL && *signature != '\0')
		tool->signature = MemoryContextStrdup(context, signature);
	if (has_args)
		llmgw_json_append_value(&tool->arguments, &args);
	else
		appendStringInfoString(&tool->arguments, "{}");
}

/*
 * Text and function calls; thoughts, which are text, too, are no part of the
 * answer.  What else there may be (images, code that was run) was not asked for.
 */
static void
append_parts(JsonbContainer *parts, LlmAnswer *answer)
{
	for (uint32 i = 0; i < JsonContainerSize(parts); i++)
	{
		JsonbContainer *part = get_object(parts, i);
		JsonbValue	v;

		if (part == NULL)
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "a part of the answer is no object");
			continue;
		}
		if (llmgw_json_get_bool(part, false, "thought", NULL))
			continue;
		if (llmgw_json_get(part, &v, "text", NULL))
		{
			if (v.type == jbvString)
				appendBinaryStringInfo(&answer->text, v.val.string.val, v.val.string.len);
			else
				llmgw_answer_fail(answer, LLMGW_MALFORMED, "a part's text is no string");
		}
		if (llmgw_json_get(part, &v, "functionCall", NULL))
		{
			if (v.type == jbvBinary && JsonContainerIsObject(v.val.binary.data))
				append_call(part, v.val.binary.data, answer);
			else
				llmgw_answer_fail(answer, LLMGW_MALFORMED, "a function call is no object");
		}
	}
}

/*
 * Why the model stopped.  There are two good reasons; whatever else Google says,
 * now or in the future, is one for which the answer is not what was asked for.
 */
static void
end_candidate(JsonbContainer *candidate, const char *reason, LlmAnswer *answer)
{
	static const struct
	{
		const char *reason;
		LlmErrorClass error;
	}			failures[] = {
		{"SAFETY", LLMGW_CONTENT_POLICY},
		{"RECITATION", LLMGW_CONTENT_POLICY},
		{"BLOCKLIST", LLMGW_CONTENT_POLICY},
		{"PROHIBITED_CONTENT", LLMGW_CONTENT_POLICY},
		{"SPII", LLMGW_CONTENT_POLICY},
		{"IMAGE_SAFETY", LLMGW_CONTENT_POLICY},
		{"IMAGE_PROHIBITED_CONTENT", LLMGW_CONTENT_POLICY},
		{"IMAGE_RECITATION", LLMGW_CONTENT_POLICY},
		{"LANGUAGE", LLMGW_INVALID_REQUEST},	/* not one that it speaks */
		{"MISSING_THOUGHT_SIGNATURE", LLMGW_INVALID_REQUEST},
		{"OTHER", LLMGW_SERVER_ERROR}
	};
	LlmErrorClass error = LLMGW_MALFORMED;
	char	   *message;

	answer->complete = true;
	if (strcmp(reason, "STOP") == 0)
	{
		answer->finish_reason = answer->ntool_calls > 0 ? "tool_calls" : "stop";
		return;
	}
	if (strcmp(reason, "MAX_TOKENS") == 0)
	{
		answer->finish_reason = "length";
		return;
	}
	for (int i = 0; i < lengthof(failures); i++)
	{
		if (strcmp(reason, failures[i].reason) == 0)
			error = failures[i].error;
	}
	if (error == LLMGW_CONTENT_POLICY)
		answer->finish_reason = "content_filter";
	else
		llmgw_answer_set_finish(answer, reason);
	reason = llmgw_answer_clean(answer, reason, 60);
	message = llmgw_json_get_text(candidate, "finishMessage", NULL);
	if (message != NULL && *message != '\0')
		message = psprintf("finishReason %s: %s", reason,
						   llmgw_answer_clean(answer, message, LLMGW_MAX_SHOWN));
	else if (error == LLMGW_CONTENT_POLICY)
		message = psprintf("the provider stopped the answer for its content (finishReason %s)",
						   reason);
	else
		message = psprintf("the model did not end its answer well (finishReason %s)", reason);
	llmgw_answer_fail(answer, error, message);
}

static void
read_candidate(JsonbContainer *candidate, LlmAnswer *answer)
{
	char	   *reason = llmgw_json_get_text(candidate, "finishReason", NULL);
	JsonbValue	v;

	answer->has_content = true;

	/* one that was stopped early may have no content, or one without parts */
	if (llmgw_json_get(candidate, &v, "content", "parts", NULL))
	{
		if (v.type == jbvBinary && JsonContainerIsArray(v.val.binary.data))
			append_parts(v.val.binary.data, answer);
		else
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer's parts are no array");
	}
	if (reason != NULL && *reason != '\0' &&
		strcmp(reason, "FINISH_REASON_UNSPECIFIED") != 0)
		end_candidate(candidate, reason, answer);
}

/* The prompt itself was refused: there are no candidates. */
static bool
read_feedback(JsonbContainer *root, LlmAnswer *answer)
{
	char	   *reason = llmgw_json_get_text(root, "promptFeedback", "blockReason", NULL);

	if (reason == NULL || *reason == '\0' ||
		strcmp(reason, "BLOCK_REASON_UNSPECIFIED") == 0)
		return false;
	answer->finish_reason = "content_filter";
	llmgw_answer_fail(answer, LLMGW_CONTENT_POLICY,
					  psprintf("the provider refuses the prompt for its content (blockReason %s)",
							   llmgw_answer_clean(answer, reason, 60)));
	return true;
}

/*
 * A response, or a piece of a streamed one: they look the same.  False when it
 * is neither: it has nothing that either may have.
 */
static bool
read_chunk(JsonbContainer *root, bool is_error, LlmAnswer *answer)
{
	JsonbContainer *candidates = get_array(root, "candidates");
	bool		blocked;
	JsonbValue	v;

	if (read_embedded_error(root, is_error, answer))
		return true;
	blocked = read_feedback(root, answer);
	for (uint32 i = 0; candidates && i < JsonContainerSize(candidates); i++)
	{
		JsonbContainer *candidate = get_object(candidates, i);
		int64		index = i;

		if (candidate == NULL)
			continue;
		(void) llmgw_json_get_int(candidate, &index, "index", NULL);
		if (index == 0)
		{
			read_candidate(candidate, answer);
			break;
		}
	}
	read_usage(root, blocked || answer->complete, answer);
	return blocked || candidates != NULL ||
		llmgw_json_get(root, &v, "usageMetadata", NULL) ||
		llmgw_json_get(root, &v, "promptFeedback", NULL);
}

/*
 * One object; or, from a proxy that drops "alt=sse" from the URL, an array of
 * the pieces.
 */
void
llmgw_gemini_parse_response(const LlmWireCall *call, const char *body,
							size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc = llmgw_answer_parse_body(answer, body, len);

	answer->ended = true;
	if (doc == NULL)
		return;
	if (JB_ROOT_IS_ARRAY(doc) && !JB_ROOT_IS_SCALAR(doc))
	{
		for (uint32 i = 0; i < JsonContainerSize(&doc->root); i++)
		{
			JsonbContainer *chunk = get_object(&doc->root, i);

			if (chunk != NULL)
				(void) read_chunk(chunk, false, answer);
		}
	}
	else if (JB_ROOT_IS_OBJECT(doc))
		(void) read_chunk(&doc->root, false, answer);

	if (!answer->has_content)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no candidates");
	else if (!answer->complete)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "the answer has no finishReason");
}

void
llmgw_gemini_parse_event(const LlmWireCall *call, const char *name,
						 const char *data, size_t len, LlmAnswer *answer)
{
	Jsonb	   *doc;

	data = llmgw_trim_bytes(data, &len);
	if (len == 0 || (len == 6 && memcmp(data, "[DONE]", 6) == 0))
		return;					/* some proxies end streams as OpenAI does */
	doc = llmgw_answer_parse_event(answer, name, data, len);
	if (doc != NULL &&
		!read_chunk(&doc->root, strcmp(name, "error") == 0, answer) &&
		strcmp(name, "message") == 0)
		llmgw_answer_fail(answer, LLMGW_MALFORMED, "an event of the stream has no candidates");
}

/*
 * Embeddings are in the order of the inputs, without numbers.  Only newer models
 * say what they counted.
 */
void
llmgw_gemini_parse_embedding(const LlmWireCall *call, const char *body,
							 size_t len, LlmAnswer *answer)
{
	LlmVectors	vectors;
	Jsonb	   *doc = llmgw_vectors_parse(&vectors, body, len, answer);
	JsonbContainer *embeddings;

	if (doc == NULL || read_embedded_error(&doc->root, false, answer))
		return;
	embeddings = get_array(&doc->root, "embeddings");
	for (uint32 i = 0; embeddings && i < JsonContainerSize(embeddings); i++)
	{
		JsonbContainer *embedding = get_object(embeddings, i);
		JsonbValue	v = {.type = jbvNull};

		if (embedding != NULL)
			(void) llmgw_json_get(embedding, &v, "values", NULL);
		llmgw_vectors_put(&vectors, call, i, &v, answer);
	}
	read_usage(&doc->root, true, answer);
	llmgw_vectors_end(&vectors, call, answer);
}
