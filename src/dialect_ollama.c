/*-------------------------------------------------------------------------
 *
 * dialect_ollama.c
 *	  Ollama's own API (/api/chat, /api/embed): requests.
 *
 * Sources: Ollama's docs/api.md, the types in its api package, and what its
 * server's handlers and scheduler do with a request.
 *
 * A prompt that is longer than the model's context (num_ctx, by default a few
 * thousand tokens) loses its oldest messages without a word, unless "truncate"
 * is false: then it is an error.  That is what is sent, but where an option asks
 * for Ollama's own way; versions before October 2025 know "truncate" for
 * embeddings only and do not mind it elsewhere.  The remedy is num_ctx, an option
 * here, too.  "shift", which forbids the same for the answer's length, is not
 * sent: the server reloads the model for a request that differs in it.
 *
 * There is no tool_choice: for "none" no tools are sent, for a named tool only
 * that one, and "required" is left to the model.  Of the params, user and
 * verbosity have no counterpart.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect_request.h"
#include "json.h"

#define DEFAULT_BASE_URL	"http://localhost:11434"

/* There is no limit; this many are embedded in one go in reasonable time. */
#define MAX_INPUTS			256

#define MAX_NUM_CTX			(100 * 1000 * 1000)

enum
{
	OPTION_EXTRA,
	OPTION_HEADERS,
	OPTION_KEEP_ALIVE,
	OPTION_NUM_CTX,
	OPTION_STREAM,
	OPTION_TRUNCATE,
	NOPTIONS
};

static const LlmOption known_options[NOPTIONS] = {
	[OPTION_EXTRA] = {"extra", LLMGW_OPTION_EXTRA},
	[OPTION_HEADERS] = {"headers", LLMGW_OPTION_HEADERS},
	[OPTION_KEEP_ALIVE] = {"keep_alive", LLMGW_OPTION_TEXT},
	[OPTION_NUM_CTX] = {"num_ctx", LLMGW_OPTION_INT, 1, MAX_NUM_CTX},
	[OPTION_STREAM] = {"stream", LLMGW_OPTION_BOOL},
	[OPTION_TRUNCATE] = {"truncate", LLMGW_OPTION_BOOL}
};

/* What "extra" does not get to write, or gets to write within ours. */
static const char *const body_members[] = {
	"input", "messages", "model", "options", "stream", NULL
};
static const char *const option_members[] = {"num_predict", NULL};

/*
 * Requests
 */

/* The key of a server behind a proxy, or of ollama.com; a local one has none. */
static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request, const char *accept)
{
	if (request->body != NULL)
		llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", accept);
	if (call->api_key != NULL)
		llmgw_request_header(request, "Authorization", psprintf("Bearer %s", call->api_key));
	llmgw_request_option_headers(call, request);
	llmgw_request_user_agent(request);
}

static bool
get_option(const LlmWireCall *call, int option, JsonbValue *value)
{
	return call->options != NULL &&
		llmgw_json_get(&call->options->root, value, known_options[option].name, NULL);
}

/* All texts as one, and the images, whose type Ollama sees for itself. */
static void
put_content(StringInfo buf, const LlmMessage *m)
{
	StringInfoData text;
	int			nimages = 0;

	initStringInfo(&text);
	for (int i = 0; i < m->nparts; i++)
	{
		if (m->parts[i].type != LLMGW_PART_TEXT)
			nimages++;
		else
			appendStringInfoString(&text, m->parts[i].text);
	}
	llmgw_json_put_text(buf, "content", text.data);
	if (nimages == 0)
		return;
	llmgw_json_key(buf, "images");
	appendStringInfoChar(buf, '[');
	for (int i = 0, n = 0; i < m->nparts; i++)
	{
		/* what is no base64 is refused: Ollama fetches nothing */
		if (m->parts[i].type != LLMGW_PART_TEXT)
			appendStringInfo(buf, "%s\"%s\"", n++ > 0 ? "," : "", m->parts[i].text);
	}
	appendStringInfoChar(buf, ']');
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
	put_content(buf, m);
	if (m->ntool_uses > 0)
	{
		llmgw_json_key(buf, "tool_calls");
		appendStringInfoChar(buf, '[');
		for (int i = 0; i < m->ntool_uses; i++)
		{
			llmgw_request_begin_element(buf);
			llmgw_json_put_text(buf, "id", m->tool_uses[i].id);
			llmgw_json_key(buf, "function");
			appendStringInfoChar(buf, '{');
			llmgw_json_put_text(buf, "name", m->tool_uses[i].name);
			llmgw_json_key(buf, "arguments");
			appendStringInfo(buf, "%s}}", m->tool_uses[i].arguments);
		}
		appendStringInfoChar(buf, ']');
	}
	if (m->role == LLMGW_ROLE_TOOL)
	{
		/* older versions have no ids */
		llmgw_json_put_text(buf, "tool_name", m->tool_name);
		llmgw_json_put_text(buf, "tool_call_id", m->tool_call_id);
	}
	appendStringInfoChar(buf, '}');
}

static void
put_tools(StringInfo buf, const LlmWireCall *call)
{
	bool		named = call->tool_choice.mode == LLMGW_CHOICE_NAMED;

	llmgw_json_key(buf, "tools");
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < call->tools->n; i++)
	{
		const LlmTool *tool = &call->tools->tools[i];

		if (named && strcmp(tool->name, call->tool_choice.name) != 0)
			continue;
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "type", "function");
		llmgw_json_key(buf, "function");
		appendStringInfoChar(buf, '{');
		llmgw_json_put_text(buf, "name", tool->name);
		if (tool->description != NULL)
			llmgw_json_put_text(buf, "description", tool->description);
		llmgw_json_key(buf, "parameters");
		if (tool->parameters != NULL)
			(void) JsonbToCString(buf, &tool->parameters->root,
								  VARSIZE(tool->parameters));
		else
			appendStringInfoString(buf, "{\"type\":\"object\",\"properties\":{}}");
		appendStringInfoString(buf, "}}");
	}
	appendStringInfoChar(buf, ']');
}

/* Parameters of the model; params that go there have Ollama's names already. */
static void
put_options(StringInfo buf, const LlmWireCall *call)
{
	static const char *const numbers[] = {
		"frequency_penalty", "min_p", "presence_penalty", "seed", "top_k", "top_p"
	};
	LlmGroup	group;
	StringInfoData options;
	JsonbValue	v;

	llmgw_request_group(call, "options", &group);
	initStringInfo(&options);
	appendStringInfoChar(&options, '{');
	if (get_option(call, OPTION_NUM_CTX, &v) &&
		llmgw_group_is_ours(&group, "num_ctx"))
		llmgw_json_put_jsonb(&options, "num_ctx", &v);
	if (call->ninputs == 0)
	{
		if (call->max_tokens > 0)
			llmgw_json_put_int(&options, "num_predict", call->max_tokens);
		if (llmgw_group_is_ours(&group, "temperature"))
			llmgw_request_put_temperature(&options, call);
	}
	if (call->ninputs == 0 && call->params != NULL)
	{
		for (int i = 0; i < lengthof(numbers); i++)
		{
			if (llmgw_json_get(&call->params->root, &v, numbers[i], NULL) &&
				llmgw_group_is_ours(&group, numbers[i]))
				llmgw_json_put_jsonb(&options, numbers[i], &v);
		}
		if (llmgw_json_get(&call->params->root, &v, "stop", NULL) &&
			llmgw_group_is_ours(&group, "stop"))
			llmgw_request_put_list(&options, "stop", &v);
	}
	llmgw_group_put_extra(&options, &group, option_members);
	if (options.len > 1)
	{
		llmgw_json_key(buf, "options");
		appendBinaryStringInfo(buf, options.data, options.len);
		appendStringInfoChar(buf, '}');
	}
}

/*
 * Whether, or how much, the model thinks: false, or a level, which a model that
 * only knows yes and no takes for a yes.
 */
static void
put_think(StringInfo buf, const LlmWireCall *call)
{
	char	   *effort = call->params == NULL ? NULL :
	llmgw_json_get_text(&call->params->root, "reasoning_effort", NULL);

	if (effort == NULL || !llmgw_request_is_ours(call, "think"))
		return;
	if (strcmp(effort, "none") == 0)
		llmgw_json_put_bool(buf, "think", false);
	else
		llmgw_json_put_text(buf, "think", strcmp(effort, "minimal") == 0 ? "low" :
							strcmp(effort, "xhigh") == 0 ? "high" : effort);
}

/* What requests for answers and for embeddings have in common. */
static void
end_body(LlmHttpRequest *request, StringInfo buf, const LlmWireCall *call)
{
	LlmGroup	whole;
	JsonbValue	v;

	if (llmgw_request_is_ours(call, "truncate"))
		llmgw_json_put_bool(buf, "truncate", get_option(call, OPTION_TRUNCATE, &v) &&
							v.type == jbvBool && v.val.boolean);
	if (get_option(call, OPTION_KEEP_ALIVE, &v) &&
		llmgw_request_is_ours(call, "keep_alive"))
		llmgw_json_put_jsonb(buf, "keep_alive", &v);
	put_options(buf, call);
	llmgw_request_group(call, NULL, &whole);
	if (call->ninputs > 0)
		whole.extra[1] = NULL;	/* the provider's is for answers */
	llmgw_group_put_extra(buf, &whole, body_members);
	appendStringInfoChar(buf, '}');
	request->body = llmgw_json_to_utf8(buf, &request->body_len);
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();
	int			next;
	const char *lead = llmgw_messages_lead(call->messages, call->system_prompt, &next);

	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "model", call->model);
	llmgw_json_key(buf, "messages");
	appendStringInfoChar(buf, '[');
	if (lead != NULL)
	{
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "role", "system");
		llmgw_json_put_text(buf, "content", lead);
		appendStringInfoChar(buf, '}');
	}
	for (int i = next; i < call->messages->n; i++)
		put_message(buf, &call->messages->messages[i]);
	appendStringInfoChar(buf, ']');

	/* it streams unless told not to */
	llmgw_json_put_bool(buf, "stream", call->stream);
	if (call->tools != NULL && call->tools->n > 0 &&
		call->tool_choice.mode != LLMGW_CHOICE_NONE &&
		llmgw_request_is_ours(call, "tools"))
		put_tools(buf, call);
	if (call->schema != NULL && llmgw_request_is_ours(call, "format"))
	{
		llmgw_json_key(buf, "format");
		(void) JsonbToCString(buf, &call->schema->root, VARSIZE(call->schema));
	}
	put_think(buf, call);
	end_body(request, buf, call);

	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/api/chat");
	add_headers(call, request, call->stream ? "application/x-ndjson" :
				"application/json");
}

static void
build_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();

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
	end_body(request, buf, call);

	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/api/embed");
	add_headers(call, request, "application/json");
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = llmgw_request_url(call, DEFAULT_BASE_URL, "/api/tags");
	add_headers(call, request, "application/json");
}

/* keep_alive is a duration ("5m") or a number of seconds (-1: for ever). */
static char *
check_options(Jsonb *options)
{
	LlmOption	known[NOPTIONS];
	JsonbValue	v;

	memcpy(known, known_options, sizeof(known));
	if (options != NULL && JB_ROOT_IS_OBJECT(options) &&
		llmgw_json_get(&options->root, &v, "keep_alive", NULL) &&
		v.type == jbvNumeric)
	{
		known[OPTION_KEEP_ALIVE].type = LLMGW_OPTION_INT;
		known[OPTION_KEEP_ALIVE].min = -1;
		known[OPTION_KEEP_ALIVE].max = PG_INT32_MAX;
	}
	return llmgw_options_check(options, known, NOPTIONS);
}

/* Of a named tool's choice that only the others are not offered; see above. */
static LlmParams
lacks(const LlmWireCall *call)
{
	LlmParams	params = LLMGW_PARAM_BIT(LLMGW_PARAM_USER) |
	LLMGW_PARAM_BIT(LLMGW_PARAM_VERBOSITY);

	if (call->tool_choice.mode == LLMGW_CHOICE_REQUIRED ||
		call->tool_choice.mode == LLMGW_CHOICE_NAMED)
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_TOOL_CHOICE);
	return params;
}

const LlmDialect llmgw_dialect_ollama = {
	.kind = "ollama",
	.default_base_url = DEFAULT_BASE_URL,
	.framing = LLMGW_FRAMING_NDJSON,
	.fetches_images = false,
	.takes_schema = true,
	.max_inputs = MAX_INPUTS,
	.build_request = build_request,
	.parse_response = llmgw_ollama_parse_response,
	.parse_event = llmgw_ollama_parse_event,
	.read_error = llmgw_ollama_read_error,
	.read_limits = llmgw_read_limits,
	.build_embedding = build_embedding,
	.parse_embedding = llmgw_ollama_parse_embedding,
	.probe_request = probe_request,
	.check_options = check_options,
	.lacks = lacks
};
