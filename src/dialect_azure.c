/*-------------------------------------------------------------------------
 *
 * dialect_azure.c
 *	  Azure OpenAI: OpenAI's bodies behind other URLs and another header.
 *
 * Source: Azure OpenAI's REST API reference (data plane), and recorded answers.
 * There are two styles.  The classic one has the deployment in the path and a
 * dated api-version in the query; "v1" has neither, and the deployment is the
 * body's model, as OpenAI's own.
 *
 * What Azure's content filter adds is read by dialect_openai_answer.c: it stops
 * an answer with a finish_reason, a prompt with an error of status 400, and says
 * what it thought of a prompt in an event without choices.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "dialect_request.h"
#include "json.h"

#define DEFAULT_API_VERSION		"2024-10-21"	/* the newest stable one */

static const LlmOption known_options[] = {
	{"api_version", LLMGW_OPTION_TEXT},
	{"extra", LLMGW_OPTION_EXTRA},
	{"headers", LLMGW_OPTION_HEADERS},
	{"image_urls", LLMGW_OPTION_BOOL},
	{"include_usage", LLMGW_OPTION_BOOL},
	{"stream", LLMGW_OPTION_BOOL},
	{"token_parameter", LLMGW_OPTION_TEXT}
};

/* Takes an ending off a URL of *len bytes, and the slashes before it. */
static bool
cut_suffix(const char *base, int *len, const char *suffix)
{
	int			suffix_len = strlen(suffix);
	bool		found = *len > suffix_len &&
	pg_strncasecmp(base + *len - suffix_len, suffix, suffix_len) == 0;

	if (found)
		*len -= suffix_len;
	while (*len > 0 && base[*len - 1] == '/')
		(*len)--;
	return found;
}

/*
 * The URL of an operation ("chat/completions"), of a deployment or, without
 * one, of the resource.  A base URL is the resource's; what documentation and
 * SDKs write behind it is taken, too.
 */
static char *
make_url(const LlmWireCall *call, const char *deployment, const char *operation)
{
	const char *base = call->base_url ? call->base_url : "";
	const char *version = llmgw_request_option(call, "api_version");
	int			len = strlen(base);
	bool		v1;

	(void) cut_suffix(base, &len, "");
	v1 = cut_suffix(base, &len, "/openai/v1");
	if (!v1)
		(void) cut_suffix(base, &len, "/openai");
	if (version != NULL)
		v1 = strcmp(version, "v1") == 0;

	if (v1)
		return psprintf("%.*s/openai/v1/%s", len, base, operation);
	if (version == NULL)
		version = DEFAULT_API_VERSION;
	if (deployment == NULL)
		return psprintf("%.*s/openai/%s?api-version=%s", len, base, operation, version);
	return psprintf("%.*s/openai/deployments/%s/%s?api-version=%s", len, base,
					llmgw_request_escape(deployment), operation, version);
}

static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request)
{
	if (call->api_key != NULL)
		llmgw_request_header(request, "api-key", call->api_key);
	llmgw_request_option_headers(call, request);
	llmgw_request_user_agent(request);
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	static const LlmCallIds ids = {NULL, LLMGW_OPENAI_MAX_CALL_ID};
	LlmWireCall fitting = *call;

	request->url = make_url(call, call->model, "chat/completions");
	llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", call->stream ? "text/event-stream" :
						 "application/json");
	add_headers(call, request);
	fitting.messages = llmgw_messages_fit_ids(call->messages, &ids);
	llmgw_openai_put_chat(&fitting, request);
}

static void
build_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = make_url(call, call->model, "embeddings");
	llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", "application/json");
	add_headers(call, request);
	llmgw_openai_put_embedding(call, request);
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = make_url(call, NULL, "models");
	llmgw_request_header(request, "Accept", "application/json");
	add_headers(call, request);
}

/* "v1", or a date that may end in "-preview" */
static bool
is_api_version(const char *version)
{
	static const char pattern[] = "dddd-dd-dd";

	if (strcmp(version, "v1") == 0)
		return true;
	for (const char *p = pattern; *p; p++, version++)
		if (*p == 'd' ? !isdigit((unsigned char) *version) : *version != *p)
			return false;
	return *version == '\0' || strcmp(version, "-preview") == 0;
}

static char *
check_options(Jsonb *options)
{
	char	   *problem = llmgw_options_check(options, known_options,
											  lengthof(known_options));
	char	   *version;

	if (problem != NULL || options == NULL)
		return problem;
	version = llmgw_json_get_text(&options->root, "api_version", NULL);
	if (version != NULL && !is_api_version(version))
		return pstrdup("options key \"api_version\" must be \"v1\" or a date such as \"" DEFAULT_API_VERSION "\"");
	return llmgw_openai_check_token_param(options);
}

static LlmParams
lacks(const LlmWireCall *call)
{
	return LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_K) | LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P);
}

const LlmDialect llmgw_dialect_azure = {
	.kind = "azure",
	.default_base_url = NULL,
	.framing = LLMGW_FRAMING_SSE,
	.fetches_images = true,
	.takes_schema = true,
	.max_inputs = LLMGW_OPENAI_MAX_INPUTS,
	.build_request = build_request,
	.parse_response = llmgw_openai_parse_response,
	.parse_event = llmgw_openai_parse_event,
	.read_error = llmgw_openai_read_error,
	.read_limits = llmgw_read_limits,
	.build_embedding = build_embedding,
	.parse_embedding = llmgw_openai_parse_embedding,
	.probe_request = probe_request,
	.check_options = check_options,
	.lacks = lacks
};
