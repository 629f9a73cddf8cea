/*-------------------------------------------------------------------------
 *
 * dialect_anthropic.c
 *	  Anthropic's Messages API: requests.
 *
 * Source: Anthropic's API reference (messages, models, versioning, beta
 * headers) and the guides on tool use; other facts have theirs beside them.
 * Parameters that the API does not know (seed, the penalties, min_p, ...) are
 * left out.
 *
 * An answer in a schema is asked for as the input of a tool that stands for it.
 * Tools take any schema, also on the servers that imitate this API, where
 * Anthropic's own output_config.format takes a subset and only on some models.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "dialect_request.h"
#include "json.h"

#define DEFAULT_BASE_URL	"https://api.anthropic.com"
#define DEFAULT_VERSION		"2023-06-01"

/*
 * The API wants max_tokens in every request.  Where neither the caller nor the
 * provider's options say it: enough for what is usually asked from SQL, and no
 * more than the model's own limit, where that is known.
 */
#define DEFAULT_MAX_TOKENS	8192

static const LlmOption known_options[] = {
	{"beta", LLMGW_OPTION_TEXT},
	{"extra", LLMGW_OPTION_EXTRA},
	{"force_tool", LLMGW_OPTION_BOOL},
	{"headers", LLMGW_OPTION_HEADERS},
	{"image_urls", LLMGW_OPTION_BOOL},
	{"max_tokens", LLMGW_OPTION_INT, 1, PG_INT32_MAX},
	{"stream", LLMGW_OPTION_BOOL},
	{"version", LLMGW_OPTION_TEXT}
};

/* Anthropic's SDKs take the URL without /v1, many servers are given with it. */
static char *
make_url(const LlmWireCall *call, const char *path)
{
	char	   *url = llmgw_request_url(call, DEFAULT_BASE_URL, "");
	size_t		len = strlen(url);

	if (len >= 3 && strcmp(url + len - 3, "/v1") == 0)
		url[len - 3] = '\0';
	return psprintf("%s/v1%s", url, path);
}

static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request)
{
	char	   *version = llmgw_request_option(call, "version");

	llmgw_request_header(request, "x-api-key", call->api_key);
	llmgw_request_option_headers(call, request);
	llmgw_request_header(request, "anthropic-version",
						 version ? version : DEFAULT_VERSION);
	llmgw_request_header(request, "anthropic-beta", llmgw_request_option(call, "beta"));
	llmgw_request_user_agent(request);
}

/*
 * Messages
 */

/*
 * Begins a content block in a message of that role: in the one that is open, or
 * in a new one.
 */
static void
begin_block(StringInfo buf, const char **open, const char *role, const char *type)
{
	if (*open != NULL && strcmp(*open, role) != 0)
	{
		appendStringInfoString(buf, "]}");
		*open = NULL;
	}
	if (*open == NULL)
	{
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "role", role);
		llmgw_json_key(buf, "content");
		appendStringInfoChar(buf, '[');
		*open = role;
	}
	llmgw_request_begin_element(buf);
	llmgw_json_put_text(buf, "type", type);
}

/* An empty text is refused: "text content blocks must be non-empty". */
static bool
is_empty(const LlmPart *part)
{
	return part->type == LLMGW_PART_TEXT && part->text[0] == '\0';
}

static void
put_parts(StringInfo buf, const char **open, const char *role,
		  const LlmMessage *message)
{
	for (int i = 0; i < message->nparts; i++)
	{
		const LlmPart *part = &message->parts[i];

		if (is_empty(part))
			continue;
		begin_block(buf, open, role, part->type == LLMGW_PART_TEXT ? "text" : "image");
		switch (part->type)
		{
			case LLMGW_PART_TEXT:
				llmgw_json_key(buf, "text");
				llmgw_json_append_text(buf, part->text, "the prompt");
				break;
			case LLMGW_PART_IMAGE_URL:
				llmgw_json_key(buf, "source");
				appendStringInfoChar(buf, '{');
				llmgw_json_put_text(buf, "type", "url");
				llmgw_json_put_text(buf, "url", part->text);
				appendStringInfoChar(buf, '}');
				break;
			case LLMGW_PART_IMAGE_DATA:
				llmgw_json_key(buf, "source");
				appendStringInfoChar(buf, '{');
				llmgw_json_put_text(buf, "type", "base64");
				llmgw_json_put_text(buf, "media_type", part->media_type);
				llmgw_json_put_text(buf, "data", part->text);
				appendStringInfoChar(buf, '}');
				break;
		}
		appendStringInfoChar(buf, '}');
	}
}

static void
put_tool_uses(StringInfo buf, const char **open, const LlmMessage *message)
{
	for (int i = 0; i < message->ntool_uses; i++)
	{
		const LlmToolUse *use = &message->tool_uses[i];

		begin_block(buf, open, "assistant", "tool_use");
		llmgw_json_put_text(buf, "id", use->id);
		llmgw_json_put_text(buf, "name", use->name);
		llmgw_json_key(buf, "input");
		appendStringInfoString(buf, use->arguments);
		appendStringInfoChar(buf, '}');
	}
}

static void
put_tool_result(StringInfo buf, const char **open, const LlmMessage *message)
{
	bool		has_content = false;

	begin_block(buf, open, "user", "tool_result");
	llmgw_json_put_text(buf, "tool_use_id", message->tool_call_id);
	for (int i = 0; i < message->nparts; i++)
	{
		if (is_empty(&message->parts[i]))
			continue;
		if (!has_content)
		{
			llmgw_json_key(buf, "content");
			appendStringInfoChar(buf, '[');
			has_content = true;
		}
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "type", "text");
		llmgw_json_put_text(buf, "text", message->parts[i].text);
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoString(buf, has_content ? "]}" : "}");
}

/* A turn of which nothing is left is left out, and those around it are one. */
static void
put_messages(StringInfo buf, const LlmWireCall *call)
{
	static const LlmCallIds ids = {
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", 64
	};
	int			nturns;
	LlmTurn    *turns = llmgw_messages_turns(llmgw_messages_fit_ids(call->messages, &ids),
											 &nturns);
	const char *open = NULL;

	llmgw_json_key(buf, "messages");
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < nturns; i++)
	{
		const char *role = turns[i].assistant ? "assistant" : "user";

		for (int j = 0; j < turns[i].n; j++)
		{
			const LlmMessage *message = turns[i].messages[j];

			if (message->role == LLMGW_ROLE_TOOL)
			{
				put_tool_result(buf, &open, message);
				continue;
			}
			put_parts(buf, &open, role, message);
			put_tool_uses(buf, &open, message);
		}
	}
	appendStringInfoString(buf, open ? "]}]" : "]");
}

/*
 * Tools, and the one that stands for an answer in a schema
 */

/*
 * Whether a tool's input_schema may be this: it must be an object's, and "does
 * not support oneOf, allOf, or anyOf at the top level".
 */
static bool
is_input_schema(Jsonb *schema)
{
	static const char *const refused[] = {"anyOf", "oneOf", "allOf"};
	char	   *type = llmgw_json_get_text(&schema->root, "type", NULL);
	JsonbValue	v;

	if (type == NULL || strcmp(type, "object") != 0)
		return false;
	for (int i = 0; i < lengthof(refused); i++)
	{
		if (llmgw_json_get(&schema->root, &v, refused[i], NULL))
			return false;
	}
	return true;
}

static bool
has_tool(const LlmTools *tools, const char *name)
{
	for (int i = 0; tools && i < tools->n; i++)
	{
		if (strcmp(tools->tools[i].name, name) == 0)
			return true;
	}
	return false;
}

const char *
llmgw_anthropic_answer_tool(const LlmWireCall *call, bool *wrapped)
{
	const char *name = "answer";

	/* not where another tool has to be called */
	if (call->schema == NULL || !llmgw_request_is_ours(call, "tools") ||
		call->tool_choice.mode == LLMGW_CHOICE_REQUIRED ||
		call->tool_choice.mode == LLMGW_CHOICE_NAMED)
		return NULL;
	*wrapped = !is_input_schema(call->schema);
	for (int i = 2; has_tool(call->tools, name); i++)
		name = psprintf("answer_%d", i);
	return name;
}

/*
 * Whether the call can be told to use a tool.  Not with thinking that was asked
 * for ("Thinking may not be enabled when tool_choice forces tool use"), and not
 * by Claude Opus 5.5, Fable and Mythos ("tool_choice: type "tool" and "any" are
 * not supported for this model").  Of a Claude that is not known to take it we
 * ask it in words, which no model refuses.
 */
static bool
can_force_tool(const LlmWireCall *call)
{
	static const char *const families[] = {"opus-", "sonnet-", "haiku-"};
	const char *name = strstr(call->model, "claude-");
	JsonbValue	v;

	if (call->options && llmgw_json_get(&call->options->root, &v, "force_tool", NULL) &&
		v.type == jbvBool)
		return v.val.boolean;
	if (llmgw_request_extra(call, "thinking", &v) && v.type == jbvBinary)
	{
		char	   *type = llmgw_json_get_text(v.val.binary.data, "type", NULL);

		if (type == NULL || strcmp(type, "disabled") != 0)
			return false;
	}
	if (name == NULL)
		return true;
	name += strlen("claude-");
	if (isdigit((unsigned char) *name)) /* claude-3-5-sonnet-20241022 */
		return true;
	for (int i = 0; i < lengthof(families); i++)
	{
		size_t		len = strlen(families[i]);
		char	   *end;
		long		major;
		long		minor;

		if (strncmp(name, families[i], len) != 0)
			continue;
		major = strtol(name + len, &end, 10);
		minor = *end == '-' ? strtol(end + 1, NULL, 10) : 0;
		if (minor >= 1000)		/* claude-opus-4-20250514 */
			minor = 0;
		return end > name + len && (major < 5 || (major == 5 && minor == 0));
	}
	return false;
}

static void
put_tool(StringInfo buf, const LlmTool *tool)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	llmgw_request_begin_element(buf);
	llmgw_json_put_text(buf, "name", tool->name);
	if (tool->description != NULL)
		llmgw_json_put_text(buf, "description", tool->description);
	llmgw_json_key(buf, "input_schema");
	appendStringInfoChar(buf, '{');

	/* OpenAI takes {} where a tool has no parameters; here it needs a type */
	if (tool->parameters == NULL ||
		!llmgw_json_get(&tool->parameters->root, &value, "type", NULL))
		llmgw_json_put_text(buf, "type", "object");
	while (tool->parameters &&
		   llmgw_json_next_member(&tool->parameters->root, &it, &key, &value))
	{
		if (value.type != jbvNull)
			llmgw_json_put_jsonb(buf, key, &value);
	}
	appendStringInfoString(buf, "}}");
}

/* What a schema refers to by "#/$defs/name" must stay where it was. */
static void
put_answer_tool(StringInfo buf, const char *name, Jsonb *schema, bool wrapped)
{
	static const char *const definitions[] = {"$defs", "definitions"};
	JsonbValue	v;

	llmgw_request_begin_element(buf);
	llmgw_json_put_text(buf, "name", name);
	llmgw_json_put_text(buf, "description",
						"Gives the reply: call this once, with the whole reply as the input.");
	if (!wrapped)
		llmgw_request_put_document(buf, "input_schema", schema);
	else
	{
		llmgw_json_key(buf, "input_schema");
		appendStringInfoString(buf, "{\"type\":\"object\",\"properties\":{");
		llmgw_request_put_document(buf, "value", schema);
		appendStringInfoString(buf, "},\"required\":[\"value\"]");
		for (int i = 0; i < lengthof(definitions); i++)
		{
			if (llmgw_json_get(&schema->root, &v, definitions[i], NULL))
				llmgw_json_put_jsonb(buf, definitions[i], &v);
		}
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoChar(buf, '}');
}

/*
 * Beside the answer's tool the model may choose one of the caller's, unless it
 * may use none; and it shall call one only, as no answer can be given before
 * the results are known.
 */
static void
put_tools(StringInfo buf, const LlmWireCall *call, const char *answer_tool,
		  bool wrapped, bool force)
{
	const LlmTools *tools = call->tools;
	LlmToolChoiceMode mode = call->tool_choice.mode;

	if (answer_tool != NULL && mode == LLMGW_CHOICE_NONE)
		tools = NULL;
	if ((answer_tool == NULL && (tools == NULL || tools->n == 0)) ||
		!llmgw_request_is_ours(call, "tools"))
		return;
	llmgw_json_key(buf, "tools");
	appendStringInfoChar(buf, '[');
	for (int i = 0; tools && i < tools->n; i++)
		put_tool(buf, &tools->tools[i]);
	if (answer_tool != NULL)
		put_answer_tool(buf, answer_tool, call->schema, wrapped);
	appendStringInfoChar(buf, ']');

	if ((answer_tool == NULL && mode == LLMGW_CHOICE_UNSET) ||
		!llmgw_request_is_ours(call, "tool_choice"))
		return;
	llmgw_json_key(buf, "tool_choice");
	appendStringInfoChar(buf, '{');
	if (answer_tool != NULL)
	{
		bool		alone = tools == NULL || tools->n == 0;

		llmgw_json_put_text(buf, "type", !force ? "auto" : alone ? "tool" : "any");
		if (force && alone)
			llmgw_json_put_text(buf, "name", answer_tool);
		llmgw_json_put_bool(buf, "disable_parallel_tool_use", true);
	}
	else
	{
		llmgw_json_put_text(buf, "type",
							mode == LLMGW_CHOICE_NONE ? "none" :
							mode == LLMGW_CHOICE_REQUIRED ? "any" :
							mode == LLMGW_CHOICE_NAMED ? "tool" : "auto");
		if (mode == LLMGW_CHOICE_NAMED)
			llmgw_json_put_text(buf, "name", call->tool_choice.name);
	}
	appendStringInfoChar(buf, '}');
}

/*
 * The rest
 */

static void
put_system(StringInfo buf, const LlmWireCall *call, const char *answer_tool,
		   bool force)
{
	char	   *system = llmgw_messages_system(call->messages, call->system_prompt);

	if (answer_tool != NULL && !force)
		system = psprintf("%s%sGive your final reply by calling the tool \"%s\" once, and not as text.",
						  system ? system : "", system && *system ? "\n\n" : "",
						  answer_tool);
	if (system != NULL && *system != '\0' && llmgw_request_is_ours(call, "system"))
		llmgw_json_put_text(buf, "system", system);
}

static int
max_tokens(const LlmWireCall *call)
{
	int64		option = 0;

	if (call->max_tokens > 0)
		return call->max_tokens;
	if (call->options != NULL)
		(void) llmgw_json_get_int(&call->options->root, &option, "max_tokens", NULL);
	if (option <= 0)
		option = DEFAULT_MAX_TOKENS;
	return call->max_output_tokens > 0 ?
		Min((int) option, call->max_output_tokens) : (int) option;
}

/* Those of the parameters that the API knows, by its names. */
static void
put_params(StringInfo buf, const LlmWireCall *call)
{
	JsonbContainer *params = call->params ? &call->params->root : NULL;
	JsonbValue	v;
	int64		top_k;

	if (params == NULL)
		return;
	if (llmgw_json_get(params, &v, "top_p", NULL) &&
		llmgw_request_is_ours(call, "top_p"))
		llmgw_json_put_jsonb(buf, "top_p", &v);

	/* -1 and 0 are vLLM's words for all of them */
	if (llmgw_json_get_int(params, &top_k, "top_k", NULL) && top_k > 0 &&
		llmgw_request_is_ours(call, "top_k"))
		llmgw_json_put_int(buf, "top_k", top_k);
	if (llmgw_json_get(params, &v, "stop", NULL) &&
		llmgw_request_is_ours(call, "stop_sequences"))
		llmgw_request_put_list(buf, "stop_sequences", &v);
	if (llmgw_json_get(params, &v, "user", NULL) &&
		llmgw_request_is_ours(call, "metadata"))
	{
		llmgw_json_key(buf, "metadata");
		appendStringInfoChar(buf, '{');
		llmgw_json_put_jsonb(buf, "user_id", &v);
		appendStringInfoChar(buf, '}');
	}
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();
	bool		wrapped = false;
	const char *answer_tool = llmgw_anthropic_answer_tool(call, &wrapped);
	bool		force = answer_tool != NULL && can_force_tool(call);

	request->url = make_url(call, "/messages");
	llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", call->stream ? "text/event-stream" :
						 "application/json");
	add_headers(call, request);

	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "model", call->model);
	llmgw_json_put_int(buf, "max_tokens", max_tokens(call));
	put_system(buf, call, answer_tool, force);
	put_messages(buf, call);
	put_tools(buf, call, answer_tool, wrapped, force);
	llmgw_json_put_bool(buf, "stream", call->stream);
	llmgw_request_put_temperature(buf, call);
	put_params(buf, call);
	llmgw_request_end_body(request, buf, call);
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = make_url(call, "/models");
	llmgw_request_header(request, "Accept", "application/json");
	add_headers(call, request);
}

static char *
check_options(Jsonb *options)
{
	static const char *const header_options[] = {"beta", "version", NULL};
	char	   *problem = llmgw_options_check(options, known_options,
											  lengthof(known_options));

	return problem != NULL || options == NULL ? problem :
		llmgw_request_check_headers(options, header_options);
}

static LlmParams
lacks(const LlmWireCall *call)
{
	return LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_SEED) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_PRESENCE_PENALTY) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_FREQUENCY_PENALTY) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_REASONING_EFFORT) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_VERBOSITY);
}

/* "each stop sequence must contain non-whitespace" */
static const char *
cannot(Jsonb *params)
{
	for (int i = 0; i < llmgw_params_stops(params); i++)
	{
		char	   *stop = llmgw_params_stop(params, i);

		if (stop[strspn(stop, " \t\n\r\f\v")] == '\0')
			return "kind \"anthropic\" takes no \"stop\" of white space only";
	}
	return NULL;
}

const LlmDialect llmgw_dialect_anthropic = {
	.kind = "anthropic",
	.default_base_url = DEFAULT_BASE_URL,
	.framing = LLMGW_FRAMING_SSE,
	.fetches_images = true,
	.takes_schema = true,
	.build_request = build_request,
	.parse_response = llmgw_anthropic_parse_response,
	.parse_event = llmgw_anthropic_parse_event,
	.read_error = llmgw_anthropic_read_error,
	.read_limits = llmgw_read_limits,
	.probe_request = probe_request,
	.check_options = check_options,
	.lacks = lacks,
	.cannot = cannot
};
