/*-------------------------------------------------------------------------
 *
 * dialect_gemini.c
 *	  Google's Gemini API (generateContent): requests.
 *
 * Sources: Google's API reference (models.generateContent, batchEmbedContents),
 * google.ai.generativelanguage.v1beta's .proto files, its guides to function
 * calling, structured output, thinking and thought signatures, and what its own
 * SDK for Python and its command line client send.
 *
 * JSON schemas, of tools and of the answer, go as they are, in
 * parametersJsonSchema and responseJsonSchema: these take JSON Schema and leave
 * out what they do not support, whereas "parameters" and "responseSchema" take
 * OpenAPI's and refuse a request with, say, "$schema" or "additionalProperties".
 *
 * Not sent, since Gemini has nothing like them, are the params min_p, user and
 * verbosity.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/json.h"

#include "dialect_answer.h"
#include "dialect_request.h"
#include "json.h"

#define DEFAULT_BASE_URL	"https://generativelanguage.googleapis.com"

/* batchEmbedContents: "at most 100 requests can be in one batch" */
#define MAX_INPUTS			100

/* stopSequences: "up to 5" */
#define MAX_STOPS			5

/* A model of the newest generation, whichever that is: gemini-flash-latest. */
#define LATEST				1000

/*
 * Models from generation 3 on refuse a conversation in which the model calls a
 * function without the signature that came with the call.  For calls that came
 * from elsewhere, or whose signature was lost, Google's guide to thought
 * signatures gives this one, which is not checked.
 */
#define NO_SIGNATURE		"skip_thought_signature_validator"

static const LlmOption known_options[] = {
	{"extra", LLMGW_OPTION_EXTRA},
	{"headers", LLMGW_OPTION_HEADERS},
	{"stream", LLMGW_OPTION_BOOL}
};

/* What "extra" does not get to write, in either spelling that Google takes. */
static const char *const body_members[] = {
	"contents", "generationConfig", "generation_config", "model", NULL
};
static const char *const config_members[] = {
	"maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count",
	NULL
};

/*
 * How the API names the model: models/gemini-2.5-flash.  In a URL all but the
 * collection's name is escaped.
 */
static char *
model_name(const LlmWireCall *call, bool escaped)
{
	static const char *const collections[] = {"models/", "tunedModels/"};
	const char *collection = collections[0];
	const char *name = call->model;

	for (int i = 0; i < lengthof(collections); i++)
	{
		if (strncmp(call->model, collections[i], strlen(collections[i])) == 0)
		{
			collection = collections[i];
			name = call->model + strlen(collection);
		}
	}
	return psprintf("%s%s", collection, escaped ? llmgw_request_escape(name) : name);
}

/* 2 of gemini-2.5-flash; LATEST of gemini-pro-latest; 0: no Gemini model */
static int
generation(const LlmWireCall *call)
{
	const char *name = strrchr(call->model, '/');

	name = name ? name + 1 : call->model;
	if (strncmp(name, "gemini-", 7) != 0)
		return 0;
	name += 7;
	return *name >= '0' && *name <= '9' ?
		(int) Min(strtol(name, NULL, 10), LATEST) : LATEST;
}

/*
 * Google's SDKs take a base URL without the API's version; one that has it is
 * what the documentation's examples begin with.
 */
static char *
make_url(const LlmWireCall *call, const char *path)
{
	static const char *const versions[] = {"/v1", "/v1beta", "/v1alpha"};
	char	   *base = llmgw_request_url(call, DEFAULT_BASE_URL, "");
	const char *last = strrchr(base, '/');

	for (int i = 0; last && i < lengthof(versions); i++)
	{
		if (strcmp(last, versions[i]) == 0)
			return psprintf("%s%s", base, path);
	}
	return psprintf("%s/v1beta%s", base, path); /* v1 knows no tools */
}

/* The key goes into a header, never into the URL, which servers log. */
static void
add_headers(const LlmWireCall *call, LlmHttpRequest *request, const char *accept)
{
	if (request->body != NULL)
		llmgw_request_header(request, "Content-Type", "application/json");
	llmgw_request_header(request, "Accept", accept);
	llmgw_request_header(request, "x-goog-api-key", call->api_key);
	llmgw_request_option_headers(call, request);
	llmgw_request_user_agent(request);
}

/*
 * Contents
 */

/* A part of nothing but text; what it is, should it be no UTF-8. */
static void
put_text_part(StringInfo buf, const char *text, const char *what)
{
	llmgw_request_begin_element(buf);
	llmgw_json_key(buf, "text");
	llmgw_json_append_text(buf, text, what);
	appendStringInfoChar(buf, '}');
}

static void
put_part(StringInfo buf, const LlmPart *part)
{
	switch (part->type)
	{
		case LLMGW_PART_TEXT:
			/* an empty part is refused; a turn of nothing else gets one */
			if (part->text[0] != '\0')
				put_text_part(buf, part->text, "the prompt");
			return;
		case LLMGW_PART_IMAGE_DATA:
			llmgw_request_begin_element(buf);
			llmgw_json_key(buf, "inlineData");
			appendStringInfoChar(buf, '{');
			llmgw_json_put_text(buf, "mimeType", part->media_type);
			llmgw_json_put_text(buf, "data", part->text);
			break;
		case LLMGW_PART_IMAGE_URL:
			/* for files that were uploaded; other URLs are refused */
			llmgw_request_begin_element(buf);
			llmgw_json_key(buf, "fileData");
			appendStringInfoChar(buf, '{');
			llmgw_json_put_text(buf, "fileUri", part->text);
			break;
	}
	appendStringInfoString(buf, "}}");
}

/* An id that we made ourselves means nothing to Google. */
static void
put_call_id(StringInfo buf, const char *id)
{
	if (!llmgw_is_made_call_id(id))
		llmgw_json_put_text(buf, "id", id);
}

static void
put_tool_use(StringInfo buf, const LlmToolUse *use, const char *signature)
{
	llmgw_request_begin_element(buf);
	llmgw_json_key(buf, "functionCall");
	appendStringInfoChar(buf, '{');
	put_call_id(buf, use->id);
	llmgw_json_put_text(buf, "name", use->name);
	llmgw_json_key(buf, "args");
	appendStringInfoString(buf, use->arguments);
	appendStringInfoChar(buf, '}');
	if (signature != NULL)
		llmgw_json_put_text(buf, "thoughtSignature", signature);
	appendStringInfoChar(buf, '}');
}

/*
 * A result must be an object; one that has neither "output" nor "error" is the
 * function's output as a whole.
 */
static void
put_tool_result(StringInfo buf, const LlmMessage *m)
{
	StringInfoData text;
	char	   *reason;
	Jsonb	   *doc;

	initStringInfo(&text);
	for (int i = 0; i < m->nparts; i++)
		appendStringInfoString(&text, m->parts[i].text);
	doc = llmgw_json_parse_text(text.data, &reason);

	llmgw_request_begin_element(buf);
	llmgw_json_key(buf, "functionResponse");
	appendStringInfoChar(buf, '{');
	put_call_id(buf, m->tool_call_id);
	llmgw_json_put_text(buf, "name", m->tool_name);
	llmgw_json_key(buf, "response");
	if (doc != NULL && JB_ROOT_IS_OBJECT(doc))
		appendBinaryStringInfo(buf, text.data, text.len);
	else
	{
		appendStringInfoChar(buf, '{');
		llmgw_json_put_text(buf, "output", text.data);
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoString(buf, "}}");
}

static void
put_model_turn(StringInfo buf, const LlmWireCall *call, const LlmTurn *turn)
{
	bool		first = true;

	for (int i = 0; i < turn->n; i++)
	{
		const LlmMessage *m = turn->messages[i];

		for (int j = 0; j < m->nparts; j++)
			put_part(buf, &m->parts[j]);
		for (int j = 0; j < m->ntool_uses; j++)
		{
			const char *signature = m->tool_uses[j].signature;

			/* of calls in parallel only the first has one */
			if (signature == NULL && first && generation(call) >= 3)
				signature = NO_SIGNATURE;
			put_tool_use(buf, &m->tool_uses[j], signature);
			first = false;
		}
	}
}

/*
 * Results come in the order of their calls, which the turn before has: without
 * ids that is what tells apart two calls of one function.
 */
static void
put_user_turn(StringInfo buf, const LlmTurn *turn, const LlmTurn *before)
{
	bool	   *done = palloc0(turn->n * sizeof(bool));

	for (int i = 0; before && i < before->n; i++)
	{
		const LlmMessage *asked = before->messages[i];

		for (int j = 0; j < asked->ntool_uses; j++)
		{
			for (int k = 0; k < turn->n; k++)
			{
				const LlmMessage *m = turn->messages[k];

				if (m->role == LLMGW_ROLE_TOOL && !done[k] &&
					strcmp(m->tool_call_id, asked->tool_uses[j].id) == 0)
				{
					put_tool_result(buf, m);
					done[k] = true;
					break;
				}
			}
		}
	}
	for (int i = 0; i < turn->n; i++)
	{
		const LlmMessage *m = turn->messages[i];

		if (m->role == LLMGW_ROLE_TOOL && !done[i])
			put_tool_result(buf, m);
		for (int j = 0; m->role != LLMGW_ROLE_TOOL && j < m->nparts; j++)
			put_part(buf, &m->parts[j]);
	}
}

static void
put_contents(StringInfo buf, const LlmWireCall *call)
{
	int			nturns;
	LlmTurn    *turns = llmgw_messages_turns(call->messages, &nturns);

	llmgw_json_key(buf, "contents");
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < nturns; i++)
	{
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "role", turns[i].assistant ? "model" : "user");
		llmgw_json_key(buf, "parts");
		appendStringInfoChar(buf, '[');
		if (turns[i].assistant)
			put_model_turn(buf, call, &turns[i]);
		else
			put_user_turn(buf, &turns[i], i > 0 ? &turns[i - 1] : NULL);
		if (buf->data[buf->len - 1] == '[')
			put_text_part(buf, "", "");
		appendStringInfoString(buf, "]}");
	}
	appendStringInfoChar(buf, ']');
}

static void
put_system(StringInfo buf, const LlmWireCall *call)
{
	char	   *text = llmgw_messages_system(call->messages, call->system_prompt);

	if (text == NULL || !llmgw_request_is_ours(call, "systemInstruction"))
		return;
	llmgw_json_key(buf, "systemInstruction");
	appendStringInfoString(buf, "{\"parts\":[");
	put_text_part(buf, text, "the system prompt");
	appendStringInfoString(buf, "]}");
}

/*
 * Tools
 */

static void
put_tools(StringInfo buf, const LlmTools *tools)
{
	llmgw_json_key(buf, "tools");
	appendStringInfoString(buf, "[{\"functionDeclarations\":[");
	for (int i = 0; i < tools->n; i++)
	{
		const LlmTool *tool = &tools->tools[i];

		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "name", tool->name);
		if (tool->description != NULL)
			llmgw_json_put_text(buf, "description", tool->description);
		if (tool->parameters != NULL)
		{
			llmgw_json_key(buf, "parametersJsonSchema");
			(void) JsonbToCString(buf, &tool->parameters->root,
								  VARSIZE(tool->parameters));
		}
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoString(buf, "]}]");
}

static void
put_tool_choice(StringInfo buf, const LlmToolChoice *choice)
{
	static const char *const modes[] = {
		[LLMGW_CHOICE_AUTO] = "AUTO",
		[LLMGW_CHOICE_NONE] = "NONE",
		[LLMGW_CHOICE_REQUIRED] = "ANY",
		[LLMGW_CHOICE_NAMED] = "ANY"
	};

	llmgw_json_key(buf, "toolConfig");
	appendStringInfoString(buf, "{\"functionCallingConfig\":{");
	llmgw_json_put_text(buf, "mode", modes[choice->mode]);
	if (choice->mode == LLMGW_CHOICE_NAMED)
	{
		llmgw_json_key(buf, "allowedFunctionNames");
		appendStringInfoChar(buf, '[');
		escape_json(buf, choice->name);
		appendStringInfoChar(buf, ']');
	}
	appendStringInfoString(buf, "}}");
}

/*
 * Parameters
 */

/*
 * Models of generation 2.5 are given a budget, in tokens, later ones a level.
 * The budgets are those of Google's OpenAI-compatible endpoint.  A word that is
 * unknown here may be known to Google.
 */
static void
put_thinking(StringInfo buf, const LlmWireCall *call, const char *effort)
{
	static const struct
	{
		const char *effort;
		int			budget;
		const char *level;
	}			efforts[] = {
		{"none", 0, "minimal"},
		{"minimal", 1024, "minimal"},
		{"low", 1024, "low"},
		{"medium", 8192, "medium"},
		{"high", 24576, "high"},
		{"xhigh", 24576, "high"}
	};
	int			i = 0;

	while (i < lengthof(efforts) && strcmp(efforts[i].effort, effort) != 0)
		i++;
	llmgw_json_key(buf, "thinkingConfig");
	appendStringInfoChar(buf, '{');
	if (i < lengthof(efforts) && generation(call) == 2)
		llmgw_json_put_int(buf, "thinkingBudget", efforts[i].budget);
	else
		llmgw_json_put_text(buf, "thinkingLevel",
							i < lengthof(efforts) ? efforts[i].level : effort);
	appendStringInfoChar(buf, '}');
}

static void
put_params(StringInfo buf, const LlmWireCall *call, const LlmGroup *group)
{
	static const struct
	{
		const char *param;
		const char *key;
	}			numbers[] = {
		{"frequency_penalty", "frequencyPenalty"},
		{"presence_penalty", "presencePenalty"},
		{"seed", "seed"},
		{"top_k", "topK"},
		{"top_p", "topP"}
	};
	JsonbContainer *params = &call->params->root;
	JsonbValue	v;
	int64		top_k;
	char	   *effort;

	for (int i = 0; i < lengthof(numbers); i++)
	{
		if (!llmgw_json_get(params, &v, numbers[i].param, NULL) ||
			!llmgw_group_is_ours(group, numbers[i].key))
			continue;
		/* vLLM's way to say that all are considered */
		if (strcmp(numbers[i].param, "top_k") == 0 &&
			llmgw_json_value_int(&v, &top_k) && top_k <= 0)
			continue;
		llmgw_json_put_jsonb(buf, numbers[i].key, &v);
	}
	if (llmgw_json_get(params, &v, "stop", NULL) &&
		llmgw_group_is_ours(group, "stopSequences"))
		llmgw_request_put_list(buf, "stopSequences", &v);
	effort = llmgw_json_get_text(params, "reasoning_effort", NULL);
	if (effort != NULL && llmgw_group_is_ours(group, "thinkingConfig"))
		put_thinking(buf, call, effort);
}

static void
put_config(StringInfo buf, const LlmWireCall *call)
{
	LlmGroup	group;
	StringInfoData config;

	llmgw_request_group(call, "generationConfig", &group);
	initStringInfo(&config);
	appendStringInfoChar(&config, '{');
	if (call->max_tokens > 0)
		llmgw_json_put_int(&config, "maxOutputTokens", call->max_tokens);
	if (llmgw_group_is_ours(&group, "temperature"))
		llmgw_request_put_temperature(&config, call);
	if (call->params != NULL)
		put_params(&config, call, &group);
	if (call->schema != NULL)
	{
		if (llmgw_group_is_ours(&group, "responseMimeType"))
			llmgw_json_put_text(&config, "responseMimeType", "application/json");
		if (llmgw_group_is_ours(&group, "responseJsonSchema") &&
			llmgw_group_is_ours(&group, "responseSchema"))
		{
			llmgw_json_key(&config, "responseJsonSchema");
			(void) JsonbToCString(&config, &call->schema->root,
								  VARSIZE(call->schema));
		}
	}
	llmgw_group_put_extra(&config, &group, config_members);
	if (config.len > 1)
	{
		llmgw_json_key(buf, "generationConfig");
		appendBinaryStringInfo(buf, config.data, config.len);
		appendStringInfoChar(buf, '}');
	}
}

/*
 * The table's functions
 */

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	StringInfo	buf = makeStringInfo();
	LlmGroup	whole;

	appendStringInfoChar(buf, '{');
	put_system(buf, call);
	put_contents(buf, call);
	if (call->tools != NULL && call->tools->n > 0)
	{
		if (llmgw_request_is_ours(call, "tools"))
			put_tools(buf, call->tools);
		if (call->tool_choice.mode != LLMGW_CHOICE_UNSET &&
			llmgw_request_is_ours(call, "toolConfig"))
			put_tool_choice(buf, &call->tool_choice);
	}
	put_config(buf, call);
	llmgw_request_group(call, NULL, &whole);
	llmgw_group_put_extra(buf, &whole, body_members);
	appendStringInfoChar(buf, '}');

	request->url = make_url(call, psprintf(call->stream ?
										   "/%s:streamGenerateContent?alt=sse" :
										   "/%s:generateContent",
										   model_name(call, true)));
	request->body = llmgw_json_to_utf8(buf, &request->body_len);
	add_headers(call, request, call->stream ? "text/event-stream" :
				"application/json");
}

/*
 * What the caller adds goes to each input: that is where taskType and its like
 * belong.  What the provider's options add is for generateContent.
 */
static void
build_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	static const char *const input_members[] = {"model", "content", NULL};
	StringInfo	buf = makeStringInfo();
	char	   *name = model_name(call, false);
	LlmGroup	group;
	StringInfoData rest;

	llmgw_request_group(call, NULL, &group);
	group.extra[1] = NULL;
	initStringInfo(&rest);
	appendStringInfoChar(&rest, '{');
	if (call->dimensions > 0 && llmgw_group_is_ours(&group, "outputDimensionality"))
		llmgw_json_put_int(&rest, "outputDimensionality", call->dimensions);
	llmgw_group_put_extra(&rest, &group, input_members);

	appendStringInfoString(buf, "{\"requests\":[");
	for (int i = 0; i < call->ninputs; i++)
	{
		llmgw_request_begin_element(buf);
		llmgw_json_put_text(buf, "model", name);
		llmgw_json_key(buf, "content");
		appendStringInfoString(buf, "{\"parts\":[");
		put_text_part(buf, call->inputs[i], "the input");
		appendStringInfoString(buf, "]}");
		if (rest.len > 1)
			appendStringInfo(buf, ",%s", rest.data + 1);
		appendStringInfoChar(buf, '}');
	}
	appendStringInfoString(buf, "]}");

	request->url = make_url(call, psprintf("/%s:batchEmbedContents",
										   model_name(call, true)));
	request->body = llmgw_json_to_utf8(buf, &request->body_len);
	add_headers(call, request, "application/json");
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	request->url = make_url(call, "/models?pageSize=1");
	add_headers(call, request, "application/json");
}

static char *
check_options(Jsonb *options)
{
	return llmgw_options_check(options, known_options, lengthof(known_options));
}

static LlmParams
lacks(const LlmWireCall *call)
{
	return LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_USER) |
		LLMGW_PARAM_BIT(LLMGW_PARAM_VERBOSITY);
}

static const char *
cannot(Jsonb *params)
{
	return llmgw_params_stops(params) > MAX_STOPS ?
		psprintf("kind \"gemini\" takes at most %d \"stop\" texts", MAX_STOPS) : NULL;
}

const LlmDialect llmgw_dialect_gemini = {
	.kind = "gemini",
	.default_base_url = DEFAULT_BASE_URL,
	.framing = LLMGW_FRAMING_SSE,
	.ends_with_connection = true,
	.fetches_images = false,
	.takes_schema = true,
	.max_inputs = MAX_INPUTS,
	.build_request = build_request,
	.parse_response = llmgw_gemini_parse_response,
	.parse_event = llmgw_gemini_parse_event,
	.read_error = llmgw_gemini_read_error,
	.read_limits = llmgw_read_limits,
	.build_embedding = build_embedding,
	.parse_embedding = llmgw_gemini_parse_embedding,
	.probe_request = probe_request,
	.check_options = check_options,
	.lacks = lacks,
	.cannot = cannot
};
