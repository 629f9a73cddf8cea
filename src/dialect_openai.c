/*-------------------------------------------------------------------------
 *
 * dialect_openai.c
 *	  OpenAI's chat completions, as many others take them, too: requests.
 *
 * Source: OpenAI's API reference (chat completions), and what compatible
 * servers refuse.  Only what was asked for is sent, so that a server is not
 * bothered with members that it does not know.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/shortest_dec.h"

#include "dialect.h"
#include "json.h"

#define DEFAULT_BASE_URL	"https://api.openai.com/v1"

static const LlmOption known_options[] = {
	{"extra", LLMGW_OPTION_EXTRA},
	{"headers", LLMGW_OPTION_HEADERS},
	{"include_usage", LLMGW_OPTION_BOOL},
	{"organization", LLMGW_OPTION_TEXT},
	{"project", LLMGW_OPTION_TEXT},
	{"stream", LLMGW_OPTION_BOOL},
	{"token_parameter", LLMGW_OPTION_TEXT}
};

/*
 * Requests
 */

static char *
option_text(const LlmWireCall *call, const char *key)
{
	return call->options == NULL ? NULL :
		llmgw_json_get_text(&call->options->root, key, NULL);
}

/* The object of that name in params or options; NULL when there is none. */
static JsonbContainer *
member_object(Jsonb *doc, const char *key)
{
	JsonbValue	v;

	if (doc == NULL || !llmgw_json_get(&doc->root, &v, key, NULL) ||
		v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
		return NULL;
	return v.val.binary.data;
}

static char *
make_url(const LlmWireCall *call, const char *path)
{
	const char *base = call->base_url ? call->base_url : DEFAULT_BASE_URL;
	int			len = strlen(base);

	while (len > 0 && base[len - 1] == '/')
		len--;
	return psprintf("%.*s%s", len, base, path);
}

/* Adds a header unless there is one of that name, or no value. */
static void
add_header(LlmHttpRequest *request, const char *name, const char *value)
{
	size_t		len = strlen(name);

	if (value == NULL || request->nheaders == LLMGW_MAX_HEADERS)
		return;
	for (int i = 0; i < request->nheaders; i++)
	{
		if (pg_strncasecmp(request->headers[i], name, len) == 0 &&
			request->headers[i][len] == ':')
			return;
	}
	request->headers[request->nheaders++] = psprintf("%s: %s", name, value);
}

static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request)
{
	JsonbContainer *headers = member_object(call->options, "headers");
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *name;

	if (call->api_key != NULL)
		add_header(request, "Authorization", psprintf("Bearer %s", call->api_key));
	while (headers && llmgw_json_next_member(headers, &it, &name, &value))
		add_header(request, name, llmgw_json_value_text(&value));
	add_header(request, "OpenAI-Organization", option_text(call, "organization"));
	add_header(request, "OpenAI-Project", option_text(call, "project"));
	add_header(request, "User-Agent", "llm_gateway/" LLM_GATEWAY_VERSION);
}

/*
 * OpenAI's reasoning models refuse max_tokens; most compatible servers know
 * nothing else.
 */
LlmTokenParam
llmgw_openai_token_param(const LlmWireCall *call)
{
	static const char *const families[] = {"gpt-5", "o1", "o3", "o4"};
	const char *model = strrchr(call->model, '/');
	char	   *option = option_text(call, "token_parameter");
	LlmUrl		url;
	const char *reason;

	if (call->token_param != LLMGW_TOKENS_AUTO)
		return call->token_param;
	if (option != NULL)
		return strcmp(option, "max_tokens") == 0 ? LLMGW_TOKENS_MAX_TOKENS :
			LLMGW_TOKENS_MAX_COMPLETION_TOKENS;
	if (call->base_url == NULL ||
		(llmgw_http_split_url(call->base_url, &url, &reason) &&
		 strcmp(url.host, "api.openai.com") == 0))
		return LLMGW_TOKENS_MAX_COMPLETION_TOKENS;

	model = model ? model + 1 : call->model;
	for (int i = 0; i < lengthof(families); i++)
	{
		if (strncmp(model, families[i], strlen(families[i])) == 0)
			return LLMGW_TOKENS_MAX_COMPLETION_TOKENS;
	}
	return LLMGW_TOKENS_MAX_TOKENS;
}

/* A request's body, and the members that a user wrote over ours. */
typedef struct BodyWriter
{
	StringInfoData buf;
	JsonbContainer *extra[2];	/* the caller's, the provider's; may be NULL */
} BodyWriter;

/* Whether ours is to be written: each key must be in the body only once. */
static bool
is_ours(const BodyWriter *w, const char *key)
{
	JsonbValue	v;

	for (int i = 0; i < lengthof(w->extra); i++)
	{
		if (w->extra[i] && getKeyJsonValueFromContainer(w->extra[i], key,
														strlen(key), &v))
			return false;
	}
	return true;
}

static void
put_message(StringInfo buf, const char *role, const char *content)
{
	if (buf->data[buf->len - 1] != '[')
		appendStringInfoChar(buf, ',');
	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "role", role);
	llmgw_json_put_text(buf, "content", content);
	appendStringInfoChar(buf, '}');
}

static void
put_temperature(StringInfo buf, float4 temperature)
{
	char		digits[FLOAT_SHORTEST_DECIMAL_LEN];

	float_to_shortest_decimal_buf(temperature, digits);
	llmgw_json_key(buf, "temperature");
	appendStringInfoString(buf, digits);
}

static void
put_params(const LlmWireCall *call, BodyWriter *w)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	if (call->params == NULL)
		return;
	while (llmgw_json_next_member(&call->params->root, &it, &key, &value))
	{
		if (strcmp(key, "extra") != 0 && value.type != jbvNull &&
			is_ours(w, key))
			llmgw_json_put_jsonb(&w->buf, key, &value);
	}
}

static void
put_extra(BodyWriter *w)
{
	for (int i = 0; i < lengthof(w->extra); i++)
	{
		JsonbIterator *it = NULL;
		JsonbValue	value;
		JsonbValue	v;
		char	   *key;

		while (w->extra[i] &&
			   llmgw_json_next_member(w->extra[i], &it, &key, &value))
		{
			/* the caller's wins over the provider's */
			if (i == 0 || w->extra[0] == NULL ||
				!getKeyJsonValueFromContainer(w->extra[0], key, strlen(key), &v))
				llmgw_json_put_jsonb(&w->buf, key, &value);
		}
	}
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	BodyWriter	w;
	StringInfo	buf = &w.buf;

	request->url = make_url(call, "/chat/completions");
	add_header(request, "Content-Type", "application/json");
	add_header(request, "Accept", call->stream ? "text/event-stream" :
			   "application/json");
	add_headers(call, request);

	w.extra[0] = member_object(call->params, "extra");
	w.extra[1] = member_object(call->options, "extra");
	initStringInfo(buf);
	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "model", call->model);
	llmgw_json_key(buf, "messages");
	appendStringInfoChar(buf, '[');
	if (call->system_prompt != NULL)
		put_message(buf, "system", call->system_prompt);
	put_message(buf, "user", call->prompt);
	appendStringInfoChar(buf, ']');

	/* some servers stream unless told not to */
	llmgw_json_put_bool(buf, "stream", call->stream);
	if (call->stream &&
		(call->options == NULL ||
		 llmgw_json_get_bool(&call->options->root, true, "include_usage", NULL)))
	{
		llmgw_json_key(buf, "stream_options");
		appendStringInfoString(buf, "{\"include_usage\":true}");
	}
	if (call->max_tokens > 0)
		llmgw_json_put_int(buf, llmgw_openai_token_param(call) == LLMGW_TOKENS_MAX_TOKENS ?
						   "max_tokens" : "max_completion_tokens",
						   call->max_tokens);
	if (call->has_temperature && isfinite(call->temperature) &&
		is_ours(&w, "temperature"))
		put_temperature(buf, call->temperature);
	put_params(call, &w);
	put_extra(&w);
	appendStringInfoChar(buf, '}');

	request->body = llmgw_json_to_utf8(buf, &request->body_len);
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = make_url(call, "/models");
	add_header(request, "Accept", "application/json");
	add_headers(call, request);
}

static char *
check_options(Jsonb *options)
{
	static const char *const header_options[] = {"organization", "project"};
	char	   *problem = llmgw_options_check(options, known_options,
											  lengthof(known_options));
	char	   *value;

	if (problem != NULL || options == NULL)
		return problem;
	value = llmgw_json_get_text(&options->root, "token_parameter", NULL);
	if (value != NULL && strcmp(value, "max_tokens") != 0 &&
		strcmp(value, "max_completion_tokens") != 0)
		return pstrdup("options key \"token_parameter\" must be \"max_tokens\" or \"max_completion_tokens\"");
	for (int i = 0; i < lengthof(header_options); i++)
	{
		value = llmgw_json_get_text(&options->root, header_options[i], NULL);
		for (; value && *value; value++)
		{
			if ((unsigned char) *value < ' ' || (unsigned char) *value >= 0x7F)
				return psprintf("options key \"%s\" must be printable ASCII",
								header_options[i]);
		}
	}
	return NULL;
}

const LlmDialect llmgw_dialect_openai = {
	.kind = "openai",
	.default_base_url = DEFAULT_BASE_URL,
	.framing = LLMGW_FRAMING_SSE,
	.build_request = build_request,
	.parse_response = llmgw_openai_parse_response,
	.parse_event = llmgw_openai_parse_event,
	.read_error = llmgw_openai_read_error,
	.read_limits = llmgw_read_limits,
	.probe_request = probe_request,
	.check_options = check_options
};
