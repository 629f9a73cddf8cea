/*-------------------------------------------------------------------------
 *
 * dialect_answer.c
 *	  What reading answers and errors has in common among the dialects.
 *
 * Sources: error bodies recorded from OpenAI, Azure, Anthropic, Groq, Mistral,
 * vLLM, llama.cpp, Scaleway and Google.  Every shape that was seen is accepted
 * from everybody: a URL may lead to a proxy that answers in its own way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "mb/pg_wchar.h"

#include "dialect_answer.h"
#include "json.h"

#define MAX_EXCERPT			100 /* bytes of a body that is no JSON */
#define MAX_FINISH_REASON	60
#define MADE_CALL_ID		"call_"

/*
 * Errors
 */

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

bool
llmgw_read_error_body(JsonbContainer *root, bool any_shape, LlmErrorBody *e)
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

static const char *
skip_space(const char *bytes, const char *end)
{
	while (bytes < end && isspace((unsigned char) *bytes))
		bytes++;
	return bytes;
}

char *
llmgw_answer_excerpt(const LlmAnswer *answer, const char *bytes, size_t len)
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

char *
llmgw_answer_http_error(const LlmAnswer *answer, int http_status,
						const char *body, size_t len, LlmErrorBody *e)
{
	const char *end = body + len;
	const char *start = skip_space(body, end);
	char	   *reason;
	Jsonb	   *doc = start < end ? llmgw_json_parse(body, len, &reason) : NULL;
	char	   *shown;

	memset(e, 0, sizeof(*e));
	if (http_status < 400)
		return psprintf("HTTP %d: redirect not followed", http_status);
	if (doc != NULL && llmgw_read_error_body(&doc->root, true, e) &&
		e->words.message != NULL)
		return psprintf("HTTP %d: %s", http_status,
						llmgw_answer_clean(answer, e->words.message,
										   LLMGW_MAX_SHOWN));
	if (start == end)
		return psprintf("HTTP %d (empty body)", http_status);
	if (*start == '<')
		return psprintf("HTTP %d (HTML body)", http_status);
	shown = llmgw_answer_excerpt(answer, start, end - start);
	if (doc == NULL)
		e->words.message = shown;
	return psprintf("HTTP %d: %s", http_status, shown);
}

void
llmgw_answer_fail_inside(LlmAnswer *answer, const LlmErrorBody *e)
{
	const char *msg = e->words.message;

	if (msg == NULL)
		msg = e->words.code ? e->words.code : "without a message";
	msg = llmgw_answer_clean(answer, msg, LLMGW_MAX_SHOWN);
	llmgw_answer_fail(answer, llmgw_error_classify(e->status, &e->words),
					  e->status ? psprintf("error %d in the answer: %s", e->status, msg) :
					  psprintf("error in the answer: %s", msg));
}

/*
 * Answers
 */

Jsonb *
llmgw_answer_parse_body(LlmAnswer *answer, const char *body, size_t len)
{
	char	   *reason;
	Jsonb	   *doc = llmgw_json_parse(body, len, &reason);

	if (doc != NULL)
		return doc;
	answer->hopeless = reason == llmgw_json_unfit;
	llmgw_answer_fail(answer, LLMGW_MALFORMED,
					  len == 0 ? "the answer is empty" :
					  psprintf("the answer is %s: \"%s\"", reason,
							   llmgw_answer_excerpt(answer, body, len)));
	return NULL;
}

Jsonb *
llmgw_answer_parse_event(LlmAnswer *answer, const char *name, const char *data,
						 size_t len)
{
	char	   *reason;
	Jsonb	   *doc = llmgw_json_parse(data, len, &reason);
	JsonbValue	v;

	if (doc != NULL && JB_ROOT_IS_OBJECT(doc))
		return doc;

	/* Google wraps an error into an array */
	if (doc != NULL && llmgw_json_get(&doc->root, &v, "[0]", "error", NULL) &&
		llmgw_json_get(&doc->root, &v, "[0]", NULL))
		return JsonbValueToJsonb(&v);
	if (strcmp(name, "error") == 0)
	{
		llmgw_answer_fail(answer, LLMGW_SERVER_ERROR,
						  psprintf("error in the answer: %s",
								   llmgw_answer_excerpt(answer, data, len)));
		return NULL;
	}
	answer->hopeless = doc == NULL && reason == llmgw_json_unfit;
	llmgw_answer_fail(answer, LLMGW_MALFORMED,
					  psprintf("an event of the stream is %s",
							   doc ? "no JSON object" : reason));
	return NULL;
}

const char *
llmgw_trim_bytes(const char *bytes, size_t *len)
{
	const char *end = bytes + *len;

	bytes = skip_space(bytes, end);
	while (end > bytes && isspace((unsigned char) end[-1]))
		end--;
	*len = end - bytes;
	return bytes;
}

bool
llmgw_read_count(JsonbContainer *usage, int64 *count, const char *group,
				 const char *key)
{
	JsonbValue	v;
	bool		found;

	found = group ? llmgw_json_get(usage, &v, group, key, NULL) :
		llmgw_json_get(usage, &v, key, NULL);
	return !found || (llmgw_json_value_int(&v, count) &&
					  *count >= 0 && *count <= PG_INT32_MAX);
}

LlmToolCall *
llmgw_answer_new_tool_call(LlmAnswer *answer)
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

bool
llmgw_is_made_call_id(const char *id)
{
	size_t		prefix = strlen(MADE_CALL_ID);

	return strncmp(id, MADE_CALL_ID, prefix) == 0 && id[prefix] != '\0' &&
		strspn(id + prefix, "0123456789_") == strlen(id + prefix);
}

void
llmgw_answer_set_finish(LlmAnswer *answer, const char *reason)
{
	answer->finish_reason = MemoryContextStrdup(llmgw_answer_context(answer),
												llmgw_answer_clean(answer, reason,
																   MAX_FINISH_REASON));
}
