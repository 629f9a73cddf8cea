/*-------------------------------------------------------------------------
 *
 * dialect.c
 *	  The dialects there are, and what they have in common.
 *
 * Common are the parameters of a call and the way a user's JSON is checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "utils/builtins.h"

#include "dialect.h"
#include "json.h"

static const LlmDialect *const dialects[] = {
	&llmgw_dialect_openai,
	&llmgw_dialect_azure,
	&llmgw_dialect_anthropic,
	&llmgw_dialect_gemini,
	&llmgw_dialect_ollama,
	&llmgw_dialect_mock
};

/* Keys of params; their names are OpenAI's, and vLLM's for top_k and min_p. */
static const LlmOption params[] = {
	{"extra", LLMGW_OPTION_CALLER_EXTRA},
	{"frequency_penalty", LLMGW_OPTION_NUMBER},
	{"min_p", LLMGW_OPTION_NUMBER},
	{"presence_penalty", LLMGW_OPTION_NUMBER},
	{"reasoning_effort", LLMGW_OPTION_TEXT},
	{"seed", LLMGW_OPTION_INT, PG_INT64_MIN, PG_INT64_MAX},
	{"stop", LLMGW_OPTION_STOP},
	{"top_k", LLMGW_OPTION_INT, -1, PG_INT32_MAX},
	{"top_p", LLMGW_OPTION_NUMBER},
	{"user", LLMGW_OPTION_TEXT},
	{"verbosity", LLMGW_OPTION_TEXT}
};

#define MAX_STOPS			16
#define MAX_USER_HEADERS	24	/* the rest of LLMGW_MAX_HEADERS is ours */

const LlmDialect *
llmgw_dialect_find(const char *kind)
{
	for (int i = 0; i < lengthof(dialects); i++)
	{
		if (strcmp(dialects[i]->kind, kind) == 0)
			return dialects[i];
	}
	return NULL;
}

const char *
llmgw_dialect_kinds(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(dialects); i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", dialects[i]->kind);
	return buf.data;
}

void
llmgw_answer_init(LlmAnswer *answer, const char *api_key)
{
	memset(answer, 0, sizeof(*answer));
	answer->api_key = api_key;
	initStringInfo(&answer->text);
}

void
llmgw_answer_fail(LlmAnswer *answer, LlmErrorClass class, const char *message)
{
	if (answer->error != LLMGW_OK)
		return;
	answer->error = class;
	answer->message = MemoryContextStrdup(llmgw_answer_context(answer), message);
}

char *
llmgw_answer_clean(const LlmAnswer *answer, const char *text, size_t max_bytes)
{
	char	   *copy = pstrdup(text);

	/* before the text is cut: half a key is a leak too */
	llmgw_mask_key(copy, strlen(copy), answer->api_key);
	return llmgw_clean_text(copy, max_bytes);
}

/*
 * Whether a call's arguments are the text of a JSON object; they become one that
 * the database takes for jsonb, too.
 */
static bool
read_arguments(LlmToolCall *tool, bool *unfit)
{
	char	   *reason;
	char	   *plain;
	Jsonb	   *doc = llmgw_json_parse_text(tool->arguments.data, &reason);

	*unfit = doc == NULL && reason == llmgw_json_unfit;
	if (doc == NULL || !JB_ROOT_IS_OBJECT(doc))
		return false;
	plain = llmgw_json_plain(tool->arguments.data);
	if (plain != tool->arguments.data)
	{
		resetStringInfo(&tool->arguments);
		appendStringInfoString(&tool->arguments, plain);
	}
	return true;
}

/* Whether it is the id of one of the calls before, or of another than the i-th. */
static bool
is_taken(const LlmAnswer *answer, const char *id, int i, bool before)
{
	for (int j = 0; j < (before ? i : answer->ntool_calls); j++)
		if (j != i && strcmp(answer->tool_calls[j].id, id) == 0)
			return true;
	return false;
}

/*
 * A result names its call by the id, so two calls of one answer need two: the
 * later of two that are alike gets a number.
 */
static void
part_ids(LlmAnswer *answer)
{
	for (int i = 1; i < answer->ntool_calls; i++)
	{
		LlmToolCall *tool = &answer->tool_calls[i];
		char	   *id = tool->id;

		if (!is_taken(answer, id, i, true))
			continue;
		for (int n = 2; is_taken(answer, id, i, false); n++)
			id = psprintf("%s_%d", tool->id, n);
		tool->id = MemoryContextStrdup(llmgw_answer_context(answer), id);
	}
}

/* Calls that nothing was said of: the provider does not number from 0. */
static void
drop_gaps(LlmAnswer *answer)
{
	int			n = 0;

	for (int i = 0; i < answer->ntool_calls; i++)
	{
		LlmToolCall *tool = &answer->tool_calls[i];

		if (tool->id != NULL || tool->name != NULL || tool->arguments.len > 0)
			answer->tool_calls[n++] = *tool;
	}
	if (n > 0)
		answer->ntool_calls = n;
}

void
llmgw_answer_end_tools(LlmAnswer *answer, const char *prefix)
{
	const char *reason = answer->finish_reason;
	bool		cut = reason != NULL && strcmp(reason, "length") == 0;

	if (answer->ntool_calls == 0 || answer->error != LLMGW_OK)
		return;
	drop_gaps(answer);
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		LlmToolCall *tool = &answer->tool_calls[i];
		bool		unfit;

		if (tool->name == NULL || *tool->name == '\0')
		{
			llmgw_answer_fail(answer, LLMGW_MALFORMED, "a tool call has no name");
			return;
		}

		/* what takes no arguments is often called with none */
		if (strspn(tool->arguments.data, " \t\r\n") == tool->arguments.len && !cut)
		{
			resetStringInfo(&tool->arguments);
			appendStringInfoString(&tool->arguments, "{}");
		}
		if (!read_arguments(tool, &unfit))
		{
			/* it would be cut again, or still not fit */
			answer->hopeless = cut || unfit;
			llmgw_answer_fail(answer, LLMGW_MALFORMED,
							  psprintf("the arguments of the call of tool \"%s\" %s",
									   llmgw_answer_clean(answer, tool->name, 64),
									   unfit ? "have a character that the database's encoding cannot hold" :
									   cut ? "were cut by a token limit" : "are not a JSON object"));
			return;
		}
		if (tool->id == NULL || *tool->id == '\0')
			tool->id = MemoryContextStrdup(llmgw_answer_context(answer),
										   psprintf("%s_%d", prefix, i + 1));
	}
	part_ids(answer);

	/* OpenAI says "stop" of a call that it was told to make */
	if (reason == NULL || strcmp(reason, "stop") == 0 ||
		strcmp(reason, "function_call") == 0)
		answer->finish_reason = "tool_calls";
}

Jsonb *
llmgw_answer_tool_calls(const LlmAnswer *answer)
{
	StringInfoData buf;

	if (answer->ntool_calls == 0)
		return NULL;
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '[');
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		const LlmToolCall *tool = &answer->tool_calls[i];

		appendStringInfoString(&buf, i > 0 ? ",{" : "{");
		if (tool->id != NULL)
			llmgw_json_put_text(&buf, "id", tool->id);
		llmgw_json_put_text(&buf, "type", "function");
		llmgw_json_key(&buf, "function");
		appendStringInfoChar(&buf, '{');
		llmgw_json_put_text(&buf, "name", tool->name ? tool->name : "");
		llmgw_json_put_text(&buf, "arguments", tool->arguments.data);
		appendStringInfoChar(&buf, '}');
		if (tool->signature != NULL)
		{
			/* the shape of Google's OpenAI-compatible endpoint */
			llmgw_json_key(&buf, "extra_content");
			appendStringInfoString(&buf, "{\"google\":{");
			llmgw_json_put_text(&buf, "thought_signature", tool->signature);
			appendStringInfoString(&buf, "}}");
		}
		appendStringInfoChar(&buf, '}');
	}
	appendStringInfoChar(&buf, ']');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(buf.data)));
}

/*
 * Checking what users write
 */

/* A member of the request's body, or of an object in it. */
typedef struct LlmBodyMember
{
	const char *group;			/* NULL: of the body itself */
	const char *key;
} LlmBodyMember;

/*
 * What "extra" may not give: what decides whether we understand the answer, and
 * how many tokens it may have.  Gemini takes either spelling.
 */
static const LlmBodyMember reserved[] = {
	{NULL, "model"}, {NULL, "messages"}, {NULL, "stream"},
	{NULL, "stream_options"}, {NULL, "n"}, {NULL, "max_tokens"},
	{NULL, "max_completion_tokens"}, {NULL, "max_output_tokens"},
	{NULL, "contents"}, {NULL, "generation_config"}, {NULL, "models"},
	{NULL, "route"}, {NULL, "best_of"},
	{"generationConfig", "maxOutputTokens"},
	{"generationConfig", "max_output_tokens"},
	{"generationConfig", "candidateCount"},
	{"generationConfig", "candidate_count"},
	{"options", "num_predict"}
};

/*
 * What a caller's may not give besides: what a token costs depends on it, or it
 * costs by itself, and neither a budget nor the ledger would know.  A
 * provider's row has its prices beside it, so its options may.
 */
static const LlmBodyMember priced[] = {
	{NULL, "service_tier"}, {NULL, "serviceTier"},
	{NULL, "speed"}, {NULL, "inference_geo"},	/* Anthropic */
	{NULL, "provider"}, {NULL, "plugins"},	/* OpenRouter */
	{NULL, "web_search_options"}, {NULL, "search_parameters"},
	{NULL, "modalities"}, {NULL, "audio"},
	{"generationConfig", "responseModalities"},
	{"generationConfig", "response_modalities"},
	{"cache_control", "ttl"}
};

/* Servers in Go take their keys in any case. */
static bool
is_member(const LlmBodyMember *members, int n, const char *group, const char *key)
{
	for (int i = 0; i < n; i++)
	{
		if ((group == NULL) == (members[i].group == NULL) &&
			(group == NULL || pg_strcasecmp(group, members[i].group) == 0) &&
			pg_strcasecmp(key, members[i].key) == 0)
			return true;
	}
	return false;
}

/* Whether a tool is one that the caller runs: the provider's own have a price. */
static bool
is_callers_tool(const JsonbValue *tool)
{
	JsonbContainer *c = tool->type == jbvBinary ? tool->val.binary.data : NULL;
	JsonbIterator *it = NULL;
	JsonbValue	v;
	char	   *key;
	char	   *type;

	if (c == NULL || !JsonContainerIsObject(c))
		return false;
	type = llmgw_json_get_text(c, "type", NULL);
	if (type != NULL)
		return strcmp(type, "function") == 0 || strcmp(type, "custom") == 0;
	if (llmgw_json_get(c, &v, "input_schema", NULL))	/* Anthropic */
		return true;
	while (llmgw_json_next_member(c, &it, &key, &v))
		if (strcmp(key, "functionDeclarations") != 0 && strcmp(key, "function_declarations") != 0)
			return false;
	return true;
}

static const char *
extra_problem(const JsonbValue *value, bool callers)
{
	static const char priced_hint[] = ", on which the price depends; llm_providers.options can";
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;
	JsonbContainer *group;
	JsonbIterator *it = NULL;
	JsonbValue	v;
	char	   *key;

	if (c == NULL || !JsonContainerIsObject(c))
		return "must be an object";
	while (llmgw_json_next_member(c, &it, &key, &v))
	{
		JsonbIterator *inner = NULL;
		JsonbValue	inner_value;
		char	   *inner_key;

		if (is_member(reserved, lengthof(reserved), NULL, key))
			return psprintf("may not set \"%s\"", key);
		if (callers && is_member(priced, lengthof(priced), NULL, key))
			return psprintf("may not set \"%s\"%s", key, priced_hint);
		if (v.type != jbvBinary)
			continue;
		group = v.val.binary.data;
		if (callers && pg_strcasecmp(key, "tools") == 0 && JsonContainerIsArray(group))
		{
			for (uint32 i = 0; i < JsonContainerSize(group); i++)
				if (!is_callers_tool(getIthJsonbValueFromContainer(group, i)))
					return psprintf("may not set tools that the provider runs%s", priced_hint);
		}
		while (llmgw_json_next_member(group, &inner, &inner_key, &inner_value))
		{
			if (is_member(reserved, lengthof(reserved), key, inner_key))
				return psprintf("may not set \"%s\" of \"%s\"", inner_key, key);
			if (callers && is_member(priced, lengthof(priced), key, inner_key))
				return psprintf("may not set \"%s\" of \"%s\"%s", inner_key, key, priced_hint);
		}
	}
	return NULL;
}

/* RFC 9110, section 5.6.2: the characters of a header's name */
static bool
is_header_name(const char *name)
{
	if (*name == '\0')
		return false;
	for (; *name; name++)
	{
		if (IS_HIGHBIT_SET(*name) ||
			(!isalnum((unsigned char) *name) &&
			 strchr("!#$%&'*+-.^_`|~", *name) == NULL))
			return false;
	}
	return true;
}

/*
 * Headers that carry keys (an option is no place for them: it is shown and
 * dumped), that steer the connection, or that the dialects set themselves.
 */
static bool
is_reserved_header(const char *name)
{
	static const char *const reserved[] = {
		"authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie",
		"host", "content-length", "content-type", "content-encoding",
		"transfer-encoding", "accept", "accept-encoding", "connection",
		"expect", "te", "trailer", "upgrade"
	};

	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (pg_strcasecmp(name, reserved[i]) == 0)
			return true;
	}
	return pg_strncasecmp(name, "proxy-", 6) == 0;
}

/* Whether that is why a header is reserved. */
static bool
carries_key(const char *name)
{
	size_t		len = strlen(name);

	return pg_strcasecmp(name, "authorization") == 0 ||
		(len > 4 && pg_strcasecmp(name + len - 4, "-key") == 0);
}

static const char *
headers_problem(const JsonbValue *value)
{
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;
	JsonbIterator *it = NULL;
	JsonbValue	v;
	char	   *name;

	if (c == NULL || !JsonContainerIsObject(c))
		return "must be an object";
	if (JsonContainerSize(c) > MAX_USER_HEADERS)
		return psprintf("may have at most %d headers", MAX_USER_HEADERS);
	while (llmgw_json_next_member(c, &it, &name, &v))
	{
		if (!is_header_name(name))
			return psprintf("has a header with an invalid name");
		if (is_reserved_header(name))
			return psprintf("may not set \"%s\"%s", name, carries_key(name) ?
							": keys are what llm_providers.api_key refers to" : "");
		if (v.type != jbvString)
			return psprintf("must have a string for \"%s\"", name);
		for (int i = 0; i < v.val.string.len; i++)
		{
			unsigned char ch = v.val.string.val[i];

			if (ch < ' ' || ch >= 0x7F)
				return psprintf("has a value for \"%s\" that is not printable ASCII",
								name);
		}
	}
	return NULL;
}

static bool
is_stop(const JsonbValue *value)
{
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;

	if (value->type == jbvString)
		return true;
	if (c == NULL || !JsonContainerIsArray(c) ||
		JsonContainerSize(c) > MAX_STOPS)
		return false;
	for (uint32 i = 0; i < JsonContainerSize(c); i++)
	{
		if (getIthJsonbValueFromContainer(c, i)->type != jbvString)
			return false;
	}
	return true;
}

/* A phrase that follows the key's name; NULL when the value is fine. */
static const char *
option_problem(const LlmOption *option, const JsonbValue *value)
{
	int64		i;

	if (value->type == jbvNull)
		return NULL;
	switch (option->type)
	{
		case LLMGW_OPTION_BOOL:
			return value->type == jbvBool ? NULL : "must be true or false";
		case LLMGW_OPTION_INT:
			if (!llmgw_json_value_int(value, &i) ||
				strchr(llmgw_json_value_text(value), '.') != NULL)
				return "must be an integer";
			if (i < option->min || i > option->max)
				return psprintf("must be from " INT64_FORMAT " to " INT64_FORMAT,
								option->min, option->max);
			return NULL;
		case LLMGW_OPTION_NUMBER:
			return value->type == jbvNumeric ? NULL : "must be a number";
		case LLMGW_OPTION_TEXT:
			return value->type == jbvString ? NULL : "must be a string";
		case LLMGW_OPTION_STOP:
			return is_stop(value) ? NULL :
				psprintf("must be a string or an array of up to %d strings",
						 MAX_STOPS);
		case LLMGW_OPTION_EXTRA:
			return extra_problem(value, false);
		case LLMGW_OPTION_CALLER_EXTRA:
			return extra_problem(value, true);
		case LLMGW_OPTION_HEADERS:
			return headers_problem(value);
	}
	return NULL;
}

static const LlmOption *
find_option(const LlmOption *known, int n, const char *key)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(known[i].name, key) == 0)
			return &known[i];
	}
	return NULL;
}

static char *
option_names(const LlmOption *known, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", known[i].name);
	return buf.data;
}

char *
llmgw_options_check(Jsonb *options, const LlmOption *known, int n)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	if (options == NULL)
		return NULL;
	if (!JB_ROOT_IS_OBJECT(options))
		return pstrdup("options must be a JSON object");
	while (llmgw_json_next_member(&options->root, &it, &key, &value))
	{
		const LlmOption *option = find_option(known, n, key);
		const char *problem;

		if (option == NULL)
			return psprintf("unknown key \"%s\" in options; known are: %s",
							key, option_names(known, n));
		problem = option_problem(option, &value);
		if (problem != NULL)
			return psprintf("options key \"%s\" %s", key, problem);
	}
	return NULL;
}

bool
llmgw_param_known(const char *key, const JsonbValue *value, const char **problem)
{
	const LlmOption *param = find_option(params, lengthof(params), key);

	*problem = NULL;
	if (param == NULL)
		return false;
	*problem = option_problem(param, value);
	return true;
}

const char *
llmgw_param_names(void)
{
	return option_names(params, lengthof(params));
}
