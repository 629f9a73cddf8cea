/*-------------------------------------------------------------------------
 *
 * dialect_mock.c
 *	  A provider inside this process, for a first run and for tests.
 *
 * It makes the bytes that OpenAI would send and has them replayed by http.c,
 * so that framing, parsing, time-outs, errors and cancel are the same code as
 * for a real provider.  It is deterministic and keeps no state: the answer
 * depends on the call and llm_providers.options only.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/json.h"

#include "dialect_mock.h"
#include "json.h"

#define CHARACTERS_PER_TOKEN	4
#define DEFAULT_CHUNKS			16
#define DEFAULT_DIMENSIONS		16
#define MAX_INPUTS				2048
#define MAX_DELAY_MS			(24 * 60 * 60 * 1000)

static const LlmOption known_options[] = {
	{"cached_tokens", LLMGW_OPTION_INT, 0, PG_INT32_MAX},
	{"call_tools", LLMGW_OPTION_BOOL},
	{"chunk_ms", LLMGW_OPTION_INT, 0, MAX_DELAY_MS},
	{"chunks", LLMGW_OPTION_INT, 1, 10000},
	{"error", LLMGW_OPTION_TEXT},
	{"error_message", LLMGW_OPTION_TEXT},
	{"finish_reason", LLMGW_OPTION_TEXT},
	{"input_tokens", LLMGW_OPTION_INT, 0, PG_INT32_MAX},
	{"latency_ms", LLMGW_OPTION_INT, 0, MAX_DELAY_MS},
	{"output_tokens", LLMGW_OPTION_INT, 0, PG_INT32_MAX},
	{"reasoning_tokens", LLMGW_OPTION_INT, 0, PG_INT32_MAX},
	{"reply", LLMGW_OPTION_TEXT},
	{"stream", LLMGW_OPTION_BOOL}
};

/* What a provider sends for an error of each class. */
static const struct
{
	int			http_status;
	const char *type;
	const char *code;
	const char *message;
}			errors[LLMGW_NATTEMPT_CLASSES] = {

	[LLMGW_RATE_LIMIT] = {429, "requests", "rate_limit_exceeded",
	"Rate limit reached for requests."},
	[LLMGW_AUTH] = {401, "invalid_request_error", "invalid_api_key",
	"Incorrect API key provided."},
	[LLMGW_SERVER_ERROR] = {500, "server_error", NULL,
	"The server had an error while processing your request."},
	[LLMGW_OVERLOADED] = {503, "server_error", "server_is_overloaded",
	"The engine is currently overloaded, please try again later."},
	[LLMGW_QUOTA] = {429, "insufficient_quota", "insufficient_quota",
	"You exceeded your current quota, please check your plan and billing details."},
	[LLMGW_NOT_FOUND] = {404, "invalid_request_error", "model_not_found",
	"The model does not exist or you do not have access to it."},
	[LLMGW_CONTEXT_LENGTH] = {400, "invalid_request_error", "context_length_exceeded",
	"This model's maximum context length is 8192 tokens."},
	[LLMGW_CONTENT_POLICY] = {400, "invalid_request_error", "content_policy_violation",
	"Your request was rejected as a result of our safety system."},
	[LLMGW_INVALID_REQUEST] = {400, "invalid_request_error", NULL,
	"Invalid value in the request."}
};

/* The reply that is being made. */
typedef struct Mock
{
	const LlmWireCall *call;
	LlmErrorClass error;		/* LLMGW_OK: none */
	char	   *reply;
	const LlmTool *tool;		/* called instead of a reply; NULL: none */
	char	   *arguments;
	const char *finish_reason;
	int64		input_tokens;
	int64		output_tokens;
	LlmReplay  *replay;
	int			max_steps;
} Mock;

static char *
text_option(const LlmWireCall *call, const char *key)
{
	return call->options == NULL ? NULL :
		llmgw_json_get_text(&call->options->root, key, NULL);
}

static int64
int_option(const LlmWireCall *call, const char *key, int64 dflt)
{
	int64		value;

	if (call->options == NULL ||
		!llmgw_json_get_int(&call->options->root, &value, key, NULL))
		return dflt;
	return value;
}

static LlmErrorClass
error_option(const LlmWireCall *call)
{
	char	   *name = text_option(call, "error");
	LlmErrorClass error = name ? llmgw_error_class_from_name(name) : LLMGW_OK;

	return error < LLMGW_NATTEMPT_CLASSES ? error : LLMGW_OK;
}

static int64
count_tokens(int64 characters)
{
	return (characters + CHARACTERS_PER_TOKEN - 1) / CHARACTERS_PER_TOKEN;
}

/* Ends the reply before the first of the texts that the call stops at. */
static void
stop_reply(Mock *m)
{
	Jsonb	   *params = m->call->params;

	for (int i = 0; i < llmgw_params_stops(params); i++)
	{
		char	   *stop = llmgw_params_stop(params, i);
		char	   *found = *stop ? strstr(m->reply, stop) : NULL;

		if (found != NULL)
			*found = '\0';
	}
}

/* What to say, and what it counts. */
static void
make_reply(Mock *m)
{
	const LlmWireCall *call = m->call;
	int64		characters = llmgw_mock_message_characters(call);
	int64		limit = (int64) call->max_tokens * CHARACTERS_PER_TOKEN;
	char	   *end;

	m->tool = llmgw_mock_tool(call);
	if (m->tool != NULL)
		m->arguments = m->tool->parameters == NULL ? "{}" :
			llmgw_mock_sample(m->tool->parameters, llmgw_mock_subject(call));
	m->reply = m->tool ? "" : text_option(call, "reply");
	if (m->reply == NULL)
		m->reply = call->schema ?
			llmgw_mock_sample(call->schema, llmgw_mock_subject(call)) :
			psprintf("mock reply to: %s", llmgw_mock_subject(call));
	stop_reply(m);
	m->finish_reason = m->tool ? "tool_calls" : "stop";
	if (call->max_tokens > 0)
	{
		for (end = m->reply; *end && limit > 0; limit--)
			end += llmgw_mock_character_bytes(end);
		if (*end != '\0')
		{
			*end = '\0';
			m->finish_reason = "length";
		}
	}
	if (text_option(call, "finish_reason") != NULL)
		m->finish_reason = text_option(call, "finish_reason");

	if (call->system_prompt != NULL)
		characters += llmgw_mock_characters(call->system_prompt);
	m->input_tokens = int_option(call, "input_tokens", count_tokens(characters));
	m->output_tokens = int_option(call, "output_tokens",
								  count_tokens(llmgw_mock_characters(m->tool ?
																	 m->arguments : m->reply)));
}

static void
add_step(Mock *m, int delay_ms, StringInfo bytes)
{
	LlmReplay  *replay = m->replay;
	LlmReplayStep *step;

	if (replay->nsteps == m->max_steps)
	{
		m->max_steps = m->max_steps * 2;
		replay->steps = repalloc(replay->steps,
								 m->max_steps * sizeof(LlmReplayStep));
	}
	step = &replay->steps[replay->nsteps++];
	step->delay_ms = delay_ms;
	step->bytes = llmgw_json_to_utf8(bytes, &step->len);
}

/* the first byte has its own delay */
static int
next_delay(const Mock *m)
{
	return (int) int_option(m->call, m->replay->nsteps == 0 ?
							"latency_ms" : "chunk_ms", 0);
}

static void
begin_document(const Mock *m, StringInfo buf, const char *object)
{
	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "id", "chatcmpl-mock");
	llmgw_json_put_text(buf, "object", object);
	llmgw_json_put_int(buf, "created", 0);
	llmgw_json_put_text(buf, "model", m->call->model);
}

static void
put_usage(const Mock *m, StringInfo buf)
{
	llmgw_json_key(buf, "usage");
	appendStringInfoChar(buf, '{');
	llmgw_json_put_int(buf, "prompt_tokens", m->input_tokens);
	llmgw_json_put_int(buf, "completion_tokens", m->output_tokens);
	llmgw_json_put_int(buf, "total_tokens", m->input_tokens + m->output_tokens);
	llmgw_json_key(buf, "prompt_tokens_details");
	appendStringInfoChar(buf, '{');
	llmgw_json_put_int(buf, "cached_tokens",
					   int_option(m->call, "cached_tokens", 0));
	appendStringInfoChar(buf, '}');
	llmgw_json_key(buf, "completion_tokens_details");
	appendStringInfoChar(buf, '{');
	llmgw_json_put_int(buf, "reasoning_tokens",
					   int_option(m->call, "reasoning_tokens", 0));
	appendStringInfoString(buf, "}}");
}

/* The one choice, up to where its content begins. */
static void
begin_choice(StringInfo buf, const char *content_key)
{
	llmgw_json_key(buf, "choices");
	appendStringInfoString(buf, "[{");
	llmgw_json_put_int(buf, "index", 0);
	llmgw_json_key(buf, content_key);
	appendStringInfoChar(buf, '{');
}

static void
end_choice(StringInfo buf, const char *finish_reason)
{
	appendStringInfoChar(buf, '}');
	llmgw_json_key(buf, "finish_reason");
	if (finish_reason != NULL)
		escape_json(buf, finish_reason);
	else
		appendStringInfoString(buf, "null");
	appendStringInfoString(buf, "}]");
}

static void
put_tool_call(const Mock *m, StringInfo buf)
{
	llmgw_json_key(buf, "tool_calls");
	appendStringInfoString(buf, "[{");
	llmgw_json_put_int(buf, "index", 0);
	llmgw_json_put_text(buf, "type", "function");
	llmgw_json_key(buf, "function");
	appendStringInfoChar(buf, '{');
	llmgw_json_put_text(buf, "name", m->tool->name);
	llmgw_json_put_text(buf, "arguments", m->arguments);
	appendStringInfoString(buf, "}}]");
}

/*
 * One event with a piece of the reply, or, with content NULL, the last one.  A
 * tool call is a single piece.
 */
static void
add_event(Mock *m, const char *content)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "data: ");
	begin_document(m, &buf, "chat.completion.chunk");
	begin_choice(&buf, "delta");
	if (m->replay->nsteps == 0)
		llmgw_json_put_text(&buf, "role", "assistant");
	if (content != NULL && m->tool != NULL)
		put_tool_call(m, &buf);
	else if (content != NULL)
		llmgw_json_put_text(&buf, "content", content);
	end_choice(&buf, content ? NULL : m->finish_reason);
	appendStringInfoString(&buf, "}\n\n");
	if (content == NULL)
	{
		appendStringInfoString(&buf, "data: ");
		begin_document(m, &buf, "chat.completion.chunk");
		llmgw_json_key(&buf, "choices");
		appendStringInfoString(&buf, "[]");
		put_usage(m, &buf);
		appendStringInfoString(&buf, "}\n\ndata: [DONE]\n\n");
	}
	add_step(m, m->replay->nsteps == 0 || content ? next_delay(m) : 0, &buf);
}

/* The end of a word and of the blanks after it. */
static const char *
word_end(const char *p)
{
	while (*p && *p != ' ')
		p += llmgw_mock_character_bytes(p);
	while (*p == ' ')
		p++;
	return p;
}

/*
 * Cuts the reply: into as many pieces of equal size as asked for, else one a
 * word, and what is left in the last.
 */
static void
make_stream(Mock *m)
{
	int64		chunks = int_option(m->call, "chunks", 0);
	int64		characters = llmgw_mock_characters(m->reply);
	int64		pieces = chunks > 0 ? Min(chunks, characters) : DEFAULT_CHUNKS;
	const char *p = m->reply;

	if (m->tool != NULL)
		add_event(m, "");
	for (int64 i = 0; i < pieces && *p; i++)
	{
		const char *end = p;

		if (m->error == LLMGW_NETWORK && i > 0 && i >= pieces / 2)
			return;
		if (i == pieces - 1)
			end += strlen(end);
		else if (chunks == 0)
			end = word_end(end);
		else
		{
			for (int64 n = characters * (i + 1) / pieces -
				 characters * i / pieces; n > 0; n--)
				end += llmgw_mock_character_bytes(end);
		}
		add_event(m, pnstrdup(p, end - p));
		p = end;
		if (m->error == LLMGW_MALFORMED)
			break;
	}
	if (m->error == LLMGW_MALFORMED)
	{
		StringInfoData buf;

		initStringInfo(&buf);
		appendStringInfoString(&buf, "data: {\"choices\":[{\"delta\":\n\n");
		add_step(m, next_delay(m), &buf);
	}
	else if (m->error != LLMGW_NETWORK)
		add_event(m, NULL);
}

static void
make_document(Mock *m)
{
	StringInfoData buf;

	initStringInfo(&buf);
	begin_document(m, &buf, "chat.completion");
	begin_choice(&buf, "message");
	llmgw_json_put_text(&buf, "role", "assistant");
	if (m->tool != NULL)
		put_tool_call(m, &buf);
	else
		llmgw_json_put_text(&buf, "content", m->reply);
	end_choice(&buf, m->finish_reason);

	/* broken JSON, or half an answer: either ends here */
	if (m->error == LLMGW_OK)
	{
		put_usage(m, &buf);
		appendStringInfoChar(&buf, '}');
	}
	add_step(m, next_delay(m), &buf);
}

static void
make_error(Mock *m)
{
	char	   *message = text_option(m->call, "error_message");
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"error\":{");
	llmgw_json_put_text(&buf, "message", message ? message :
						errors[m->error].message);
	llmgw_json_put_text(&buf, "type", errors[m->error].type);
	if (errors[m->error].code != NULL)
		llmgw_json_put_text(&buf, "code", errors[m->error].code);
	appendStringInfoString(&buf, "}}");
	m->replay->http_status = errors[m->error].http_status;
	m->replay->content_type = "application/json";
	add_step(m, next_delay(m), &buf);
}

/* Everything but a whole, good answer; false when that is to be made. */
static bool
begin_replay(Mock *m, const LlmWireCall *call, LlmHttpRequest *request)
{
	memset(m, 0, sizeof(*m));
	m->call = call;
	m->error = error_option(call);
	m->max_steps = DEFAULT_CHUNKS + 2;
	m->replay = palloc0(sizeof(LlmReplay));
	m->replay->steps = palloc0(m->max_steps * sizeof(LlmReplayStep));
	m->replay->http_status = 200;
	m->replay->content_type = call->stream ? "text/event-stream" :
		"application/json";
	m->replay->end = LLMGW_REPLAY_DONE;
	request->url = "mock:";
	request->replay = m->replay;

	if (m->error == LLMGW_TIMEOUT)
		m->replay->end = LLMGW_REPLAY_STALL;
	else if (errors[m->error].http_status != 0)
		make_error(m);
	else
	{
		if (m->error == LLMGW_NETWORK)
			m->replay->end = LLMGW_REPLAY_CUT;
		return false;
	}
	return true;
}

static void
build_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	Mock		m;

	if (begin_replay(&m, call, request))
		return;
	make_reply(&m);
	if (call->stream)
		make_stream(&m);
	else
		make_document(&m);
}

static void
build_embedding(const LlmWireCall *call, LlmHttpRequest *request)
{
	int			dimensions = call->dimensions > 0 ? call->dimensions : DEFAULT_DIMENSIONS;
	Mock		m;
	StringInfoData buf;

	if (begin_replay(&m, call, request))
		return;
	m.replay->content_type = "application/json";
	initStringInfo(&buf);
	begin_document(&m, &buf, "list");
	llmgw_json_key(&buf, "data");
	appendStringInfoChar(&buf, '[');
	for (int i = 0; i < call->ninputs; i++)
	{
		appendStringInfoString(&buf, i > 0 ? ",{" : "{");
		llmgw_json_put_int(&buf, "index", i);
		llmgw_json_key(&buf, "embedding");
		llmgw_mock_put_vector(&buf, call->inputs[i], dimensions);
		appendStringInfoChar(&buf, '}');
		m.input_tokens += count_tokens(llmgw_mock_characters(call->inputs[i]));
	}
	appendStringInfoChar(&buf, ']');
	if (m.error == LLMGW_OK)
	{
		m.input_tokens = int_option(call, "input_tokens", m.input_tokens);
		put_usage(&m, &buf);
		appendStringInfoChar(&buf, '}');
	}
	add_step(&m, next_delay(&m), &buf);
}

static void
probe_request(const LlmWireCall *call, LlmHttpRequest *request)
{
	Mock		m;
	StringInfoData buf;

	if (begin_replay(&m, call, request))
		return;
	m.replay->content_type = "application/json";
	initStringInfo(&buf);
	appendStringInfoString(&buf, m.error == LLMGW_OK ?
						   "{\"object\":\"list\",\"data\":[]}" : "{\"object\":");
	add_step(&m, next_delay(&m), &buf);
}

static char *
check_options(Jsonb *options)
{
	char	   *problem = llmgw_options_check(options, known_options,
											  lengthof(known_options));
	StringInfoData names;
	char	   *name;
	LlmErrorClass error;

	if (problem != NULL || options == NULL)
		return problem;
	name = llmgw_json_get_text(&options->root, "error", NULL);
	if (name == NULL)
		return NULL;
	error = llmgw_error_class_from_name(name);
	if (error != LLMGW_OK && error < LLMGW_NATTEMPT_CLASSES)
		return NULL;

	initStringInfo(&names);
	for (int i = LLMGW_OK + 1; i < LLMGW_NATTEMPT_CLASSES; i++)
		appendStringInfo(&names, "%s%s", i > LLMGW_OK + 1 ? ", " : "",
						 llmgw_error_class_name((LlmErrorClass) i));
	return psprintf("options key \"error\" must be one of: %s", names.data);
}

const LlmDialect llmgw_dialect_mock = {
	.kind = "mock",
	.default_base_url = NULL,
	.framing = LLMGW_FRAMING_SSE,
	.fetches_images = true,
	.takes_schema = true,
	.max_inputs = MAX_INPUTS,
	.build_request = build_request,
	.parse_response = llmgw_openai_parse_response,
	.parse_event = llmgw_openai_parse_event,
	.read_error = llmgw_openai_read_error,
	.read_limits = llmgw_read_limits,
	.build_embedding = build_embedding,
	.parse_embedding = llmgw_openai_parse_embedding,
	.probe_request = probe_request,
	.check_options = check_options
};
