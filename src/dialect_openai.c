/*-------------------------------------------------------------------------
 *
 * dialect_openai.c
 *	  OpenAI's chat completions and embeddings, as many others take them, too:
 *	  requests.
 *
 * Source: OpenAI's API reference (chat completions, embeddings, structured
 * outputs), and what compatible servers refuse.  Only what was asked for is
 * sent, and in its simplest form, so that a server is not bothered with members
 * that it does not know.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "dialect_request.h"
#include "json.h"

#define DEFAULT_BASE_URL	"https://api.openai.com/v1"

static const LlmOption known_options[] = {
	{"extra", LLMGW_OPTION_EXTRA},
	{"headers", LLMGW_OPTION_HEADERS},
	{"image_urls", LLMGW_OPTION_BOOL},
	{"include_usage", LLMGW_OPTION_BOOL},
	{"keep_connection", LLMGW_OPTION_BOOL},
	{"organization", LLMGW_OPTION_TEXT},
	{"project", LLMGW_OPTION_TEXT},
	{"short_call_ids", LLMGW_OPTION_BOOL},
	{"stream", LLMGW_OPTION_BOOL},
	{"token_parameter", LLMGW_OPTION_TEXT}
};

/*
 * Requests
 */

static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request)
{
	if (call->api_key != NULL)
		llmgw_request_header(request, "Authorization", psprintf("Bearer %s", call->api_key));
	llmgw_request_option_headers(call, request);
	llmgw_request_header(request, "OpenAI-Organization", llmgw_request_option(call, "organization"));
	llmgw_request_header(request, "OpenAI-Project", llmgw_request_option(call, "project"));
	llmgw_request_user_agent(request);
}

/* Whether that host is where the requests go. */
static bool
is_at(const LlmWireCall *call, const char *host)
{
	LlmUrl		url;
	const char *reason;

	return llmgw_http_split_url(call->base_url ? call->base_url : DEFAULT_BASE_URL,
								&url, &reason) &&
		strcmp(url.host, host) == 0;
}

bool
llmgw_openai_is_original(const LlmWireCall *call)
{
	return is_at(call, "api.openai.com");
}

/*
 * Whether it is one of OpenAI's reasoning models by its name: gpt-5 and up, o1
 * and up.  Azure writes 3.5 as 35, and a number before a b counts parameters.
 */
static bool
is_reasoning_name(const char *model)
{
	const char *slash = strrchr(model, '/');
	bool		gpt;
	char	   *end;
	unsigned long number;

	model = slash ? slash + 1 : model;
	gpt = strncmp(model, "gpt-", 4) == 0;
	if (!gpt && *model != 'o')
		return false;
	model += gpt ? 4 : 1;
	if (!isdigit((unsigned char) *model))
		return false;
	number = strtoul(model, &end, 10);
	return gpt ? number >= 5 && number != 35 && *end != 'b' && *end != 'B' :
		number >= 1 && !isalpha((unsigned char) *end);
}

/*
 * OpenAI's reasoning models refuse max_tokens; most compatible servers know
 * nothing else.
 */
LlmTokenParam
llmgw_openai_token_param(const LlmWireCall *call)
{
	char	   *option = llmgw_request_option(call, "token_parameter");

	if (call->token_param != LLMGW_TOKENS_AUTO)
		return call->token_param;
	if (option != NULL)
		return strcmp(option, "max_tokens") == 0 ? LLMGW_TOKENS_MAX_TOKENS :
			LLMGW_TOKENS_MAX_COMPLETION_TOKENS;
	if (llmgw_openai_is_original(call))
		return LLMGW_TOKENS_MAX_COMPLETION_TOKENS;
	return is_reasoning_name(call->model) ? LLMGW_TOKENS_MAX_COMPLETION_TOKENS :
		LLMGW_TOKENS_MAX_TOKENS;
}

static void
put_part(StringInfo buf, const LlmPart *part)
{
	llmgw_request_begin_element(buf);
	if (part->type == LLMGW_PART_TEXT)
	{
		llmgw_json_put_text(buf, "type", "text");
		llmgw_json_put_text(buf, "text", part->text);
	}
	else
	{
		llmgw_json_put_text(buf, "type", "image_url");
		llmgw_json_key(buf, "image_url");
		appendStringInfoChar(buf, '{');
		llmgw_json_put_text(buf, "url", part->type == LLMGW_PART_IMAGE_URL ?
							part->text :
							psprintf("data:%s;base64,%s", part->media_type, part->text));
		if (part->detail != NULL)
			llmgw_json_put_text(buf, "detail", part->detail);
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoChar(buf, '}');
}

/* A text alone is a string: some servers know no parts. */
static void
put_content(StringInfo buf, const LlmMessage *m)
{
	if (m->nparts == 0 && m->ntool_uses > 0)
	{
		llmgw_json_key(buf, "content");
		appendStringInfoString(buf, "null");
	}
	else if (m->nparts == 0)
		llmgw_json_put_text(buf, "content", "");
	else if (m->nparts == 1 && m->parts[0].type == LLMGW_PART_TEXT)
		llmgw_json_put_text(buf, "content", m->parts[0].text);
	else
	{
		llmgw_json_key(buf, "content");
		appendStringInfoChar(buf, '[');
		for (int i = 0; i < m->nparts; i++)
			put_part(buf, &m->parts[i]);
		appendStringInfoChar(buf, ']');
	}
}

static void
put_tool_use(StringInfo buf, const LlmToolUse *use)
{
	llmgw_request_begin_element(buf);
	llmgw_json_put_text(buf, "id", use->id);
	llmgw_json_put_text(buf, "type", "function");
	llmgw_json_key(buf, "function");
	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "name", use->name);
	llmgw_json_put_text(buf, "arguments", use->arguments);
	appendStringInfoString(buf, "}}");
}

static void
put_message(StringInfo buf, const LlmMessage *m)
{
	static const char *const roles[] = {
		[LLMGW_ROLE_SYSTEM] = "system",
		[LLMGW_ROLE_USER] = "user",
		[LLMGW_ROLE_ASSISTANT] = "assistant",
		[LLMGW_ROLE_TOOL] = "tool"
	};

	llmgw_request_begin_element(buf);
	llmgw_json_put_text(buf, "role", roles[m->role]);
	if (m->name != NULL && m->role != LLMGW_ROLE_TOOL)
		llmgw_json_put_text(buf, "name", m->name);
	if (m->role == LLMGW_ROLE_TOOL)
		llmgw_json_put_text(buf, "tool_call_id", m->tool_call_id);
	put_content(buf, m);
	if (m->ntool_uses > 0)
	{
		llmgw_json_key(buf, "tool_calls");
		appendStringInfoChar(buf, '[');
		for (int i = 0; i < m->ntool_uses; i++)
			put_tool_use(buf, &m->tool_uses[i]);
		appendStringInfoChar(buf, ']');
	}
	appendStringInfoChar(buf, '}');
}

static void
put_messages(StringInfo buf, const LlmWireCall *call)
{
	int			next;
	const char *lead = llmgw_messages_lead(call->messages, call->system_prompt, &next);

	llmgw_json_key(buf, "messages");
	appendStringInfoChar(buf, '[');
	if (lead != NULL)
	{
		LlmPart		part = {LLMGW_PART_TEXT, lead};
		LlmMessage	m = {.role = LLMGW_ROLE_SYSTEM,.nparts = 1,.parts = &part};

		put_message(buf, &m);
	}
	for (int i = next; i < call->messages->n; i++)
		put_message(buf, &call->messages->messages[i]);
	appendStringInfoChar(buf, ']');
}

static void
put_tools(StringInfo buf, const LlmTools *tools)
{
	llmgw_json_key(buf, "tools");
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < tools->n; i++)
	{
		const LlmTool *tool = &tools->tools[i];

		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "type", "function");
		llmgw_json_key(buf, "function");
		appendStringInfoChar(buf, '{');
		llmgw_json_put_text(buf, "name", tool->name);
		if (tool->description != NULL)
			llmgw_json_put_text(buf, "description", tool->description);
		if (tool->parameters != NULL)
			llmgw_request_put_document(buf, "parameters", tool->parameters);
		if (tool->strict)
			llmgw_json_put_bool(buf, "strict", true);
		appendStringInfoString(buf, "}}");
	}
	appendStringInfoChar(buf, ']');
}

static void
put_tool_choice(StringInfo buf, const LlmToolChoice *choice)
{
	switch (choice->mode)
	{
		case LLMGW_CHOICE_UNSET:
			break;
		case LLMGW_CHOICE_AUTO:
			llmgw_json_put_text(buf, "tool_choice", "auto");
			break;
		case LLMGW_CHOICE_NONE:
			llmgw_json_put_text(buf, "tool_choice", "none");
			break;
		case LLMGW_CHOICE_REQUIRED:
			llmgw_json_put_text(buf, "tool_choice", "required");
			break;
		case LLMGW_CHOICE_NAMED:
			llmgw_json_key(buf, "tool_choice");
			appendStringInfoString(buf, "{\"type\":\"function\",\"function\":{");
			llmgw_json_put_text(buf, "name", choice->name);
			appendStringInfoString(buf, "}}");
			break;
	}
}

static void
put_schema(StringInfo buf, Jsonb *schema)
{
	llmgw_json_key(buf, "response_format");
	appendStringInfoString(buf, "{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"answer\"");
	llmgw_json_put_bool(buf, "strict", llmgw_openai_schema_is_strict(schema));
	llmgw_request_put_document(buf, "schema", schema);
	appendStringInfoString(buf, "}}");
}

static void
put_params(StringInfo buf, const LlmWireCall *call)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	if (call->params == NULL)
		return;
	while (llmgw_json_next_member(&call->params->root, &it, &key, &value))
	{
		if (strcmp(key, "extra") != 0 && value.type != jbvNull &&
			llmgw_request_is_ours(call, key))
			llmgw_json_put_jsonb(buf, key, &value);
	}
}

void
llmgw_openai_put_chat(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();

	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "model", call->model);
	put_messages(buf, call);

	/* some servers stream unless told not to */
	llmgw_json_put_bool(buf, "stream", call->stream);
	if (call->stream && !call->no_usage &&
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
	llmgw_request_put_temperature(buf, call);
	put_params(buf, call);
	if (call->tools != NULL && llmgw_request_is_ours(call, "tools"))
		put_tools(buf, call->tools);
	if (call->tools != NULL && llmgw_request_is_ours(call, "tool_choice"))
		put_tool_choice(buf, &call->tool_choice);
	if (call->schema != NULL && llmgw_request_is_ours(call, "response_format"))
		put_schema(buf, call->schema);
	llmgw_request_end_body(request, buf, call);
}

void
llmgw_openai_put_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();
	char	   *user = call->params == NULL ? NULL :
	llmgw_json_get_text(&call->params->root, "user", NULL);

	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "model", call->model);
	llmgw_json_key(buf, "input");
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < call->ninputs; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		llmgw_json_append_text(buf, call->inputs[i], "the input");
	}
	appendStringInfoChar(buf, ']');
	if (call->dimensions > 0 && llmgw_request_is_ours(call, "dimensions"))
		llmgw_json_put_int(buf, "dimensions", call->dimensions);
	if (user != NULL && llmgw_request_is_ours(call, "user"))
		llmgw_json_put_text(buf, "user", user);
	llmgw_request_end_body(request, buf, call);
}

/*
 * Mistral: "Tool call id was ... but must be a-z, A-Z, 0-9, with a length of
 * 9", also where others run its models.  Most take any.
 */
static const LlmMessages *
fitting_messages(const LlmWireCall *call)
{
	static const LlmCallIds openai = {NULL, LLMGW_OPENAI_MAX_CALL_ID};
	static const LlmCallIds mistral = {
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 9, true
	};
	bool		brief = is_at(call, "api.mistral.ai");

	if (call->options != NULL)
		brief = llmgw_json_get_bool(&call->options->root, brief, "short_call_ids", NULL);
	return brief ? llmgw_messages_fit_ids(call->messages, &mistral) :
		is_at(call, "api.openai.com") ? llmgw_messages_fit_ids(call->messages, &openai) :
		call->messages;
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	LlmWireCall fitting = *call;

	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/chat/completions");
	llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", call->stream ? "text/event-stream" :
						 "application/json");
	add_headers(call, request);
	fitting.messages = fitting_messages(call);
	llmgw_openai_put_chat(&fitting, request);
}

static void
build_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/embeddings");
	llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", "application/json");
	add_headers(call, request);
	llmgw_openai_put_embedding(call, request);
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/models");
	llmgw_request_header(request, "Accept", "application/json");
	add_headers(call, request);
}

char *
llmgw_openai_check_token_param(Jsonb *options)
{
	char	   *value = llmgw_json_get_text(&options->root, "token_parameter", NULL);

	if (value == NULL || strcmp(value, "max_tokens") == 0 ||
		strcmp(value, "max_completion_tokens") == 0)
		return NULL;
	return pstrdup("options key \"token_parameter\" must be \"max_tokens\" or \"max_completion_tokens\"");
}

static char *
check_options(Jsonb *options)
{
	static const char *const header_options[] = {"organization", "project", NULL};
	char	   *problem = llmgw_options_check(options, known_options,
											  lengthof(known_options));

	if (problem != NULL || options == NULL)
		return problem;
	problem = llmgw_openai_check_token_param(options);
	return problem ? problem : llmgw_request_check_headers(options, header_options);
}

/* These are vLLM's; OpenAI knows them as little as other unknown words. */
static LlmParams
lacks(const LlmWireCall *call)
{
	return llmgw_openai_is_original(call) ?
		LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_K) | LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P) : 0;
}

const LlmDialect llmgw_dialect_openai = {
	.kind = "openai",
	.default_base_url = DEFAULT_BASE_URL,
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
