/*-------------------------------------------------------------------------
 *
 * dialect_params.c
 *	  Parameters that a request can do without: which a call has, and which an
 *	  error refuses.
 *
 * Sources: refusals recorded from OpenAI, Anthropic, Google, xAI, Groq, DeepSeek,
 * Mistral, vLLM, llama.cpp and Ollama.  Each has words of its own, and a URL may
 * lead to a gateway that passes on another's, so that all are looked for
 * everywhere.  A message may quote anything; believing one by mistake costs one
 * more request without a parameter, and is forgotten unless that is answered.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "dialect_answer.h"
#include "dialect_request.h"
#include "json.h"

/* How much of a message is searched: it may quote a prompt of megabytes. */
#define MAX_SEARCHED	4096

#define MAX_WORDS		8

/*
 * By which words errors call a parameter, folded as by fold(): in any spelling of
 * a name, and, where no name is found at all, in general terms.
 */
static const struct
{
	const char *name;
	const char *words[MAX_WORDS + 1];
	const char *terms[MAX_WORDS + 1];
}			params[LLMGW_NPARAMS] = {

	[LLMGW_PARAM_TEMPERATURE] = {"temperature", {"temperature"}},
	[LLMGW_PARAM_TOP_P] = {"top_p", {"top p", "topp"}},
	[LLMGW_PARAM_TOP_K] = {"top_k", {"top k", "topk"}},
	[LLMGW_PARAM_MIN_P] = {"min_p", {"min p", "minp"}},
	[LLMGW_PARAM_SEED] = {"seed", {"seed"}},
	[LLMGW_PARAM_PRESENCE_PENALTY] = {"presence_penalty",
	{"presence penalty", "presencepenalty"}, {"penalty"}},
	[LLMGW_PARAM_FREQUENCY_PENALTY] = {"frequency_penalty",
	{"frequency penalty", "frequencypenalty"}, {"penalty"}},
	[LLMGW_PARAM_REASONING_EFFORT] = {"reasoning_effort",
		{"reasoning effort", "reasoningeffort", "reasoning.effort", "thinking config",
		"thinkingconfig", "thinking level", "thinking budget", "'think'"},
	{"thinking", "reasoning"}},
	[LLMGW_PARAM_VERBOSITY] = {"verbosity", {"verbosity"}},

	/* a word that is in many a message: only where it is clearly a name */
	[LLMGW_PARAM_USER] = {"user",
	{"'user'", "supplied: user", "parameter: user", "metadata", "user id"}},
	[LLMGW_PARAM_TOOLS] = {"tools", {"tools"}, {"tool use", "tool calling", "function calling"}},
	[LLMGW_PARAM_TOOL_CHOICE] = {"tool_choice",
	{"tool choice", "toolchoice", "tool config", "toolconfig"}},
	[LLMGW_PARAM_JSON_SCHEMA] = {"json_schema",
		{"response format", "responseformat", "json schema", "responsejsonschema",
		"response mime type", "responsemimetype", "'format'"},
	{"json mode", "structured output", "structured outputs"}}
};

/* By which words it says that there is no such thing, as against its value. */
static const char *const unsupported[] = {
	"not supported", "unsupported", "does not support", "do not support",
	"is deprecated", "not enabled", "unavailable", "not configurable",
	"unrecognized request argument", "unrecognized parameter", "unknown parameter",
	"unknown name", "unknown field", "cannot find field", "unexpected keyword",
	"not permitted", "extra forbidden", NULL
};

/* What comes before a list of what there is. */
static const char *const listings[] = {
	"supported values", "supported parameters", "supported arguments",
	"supported models", "allowed values", "allowed parameters", "expected one of",
	"must be one of", "please use", NULL
};

const char *
llmgw_param_name(LlmParam param)
{
	return params[param].name;
}

/*
 * What a call has
 */

/* A member of params that is not null. */
static bool
has_param(const LlmWireCall *call, const char *name)
{
	JsonbValue	v;

	return call->params != NULL &&
		llmgw_json_get(&call->params->root, &v, name, NULL) && v.type != jbvNull;
}

LlmParams
llmgw_params_given(const LlmWireCall *call)
{
	LlmParams	given = 0;

	if (call->inputs != NULL)
		return has_param(call, "user") && llmgw_request_is_ours(call, "user") ?
			LLMGW_PARAM_BIT(LLMGW_PARAM_USER) : 0;

	if (call->has_temperature && isfinite(call->temperature) &&
		llmgw_request_is_ours(call, "temperature"))
		given |= LLMGW_PARAM_BIT(LLMGW_PARAM_TEMPERATURE);
	for (int i = LLMGW_PARAM_TOP_P; i <= LLMGW_PARAM_USER; i++)
		if (has_param(call, params[i].name) && llmgw_request_is_ours(call, params[i].name))
			given |= LLMGW_PARAM_BIT(i);

	if (call->tools != NULL && call->tool_choice.mode == LLMGW_CHOICE_NONE)
	{
		/* a conversation with calls in it may need them all the same */
		if (!call->messages->has_tools && llmgw_request_is_ours(call, "tools"))
			given |= LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS);
	}
	else if (call->tools != NULL && call->tool_choice.mode != LLMGW_CHOICE_UNSET &&
			 llmgw_request_is_ours(call, "tool_choice"))
		given |= LLMGW_PARAM_BIT(LLMGW_PARAM_TOOL_CHOICE);
	if (call->schema != NULL && llmgw_request_is_ours(call, "response_format"))
		given |= LLMGW_PARAM_BIT(LLMGW_PARAM_JSON_SCHEMA);
	return given;
}

bool
llmgw_param_is_idle(Jsonb *doc, LlmParam param)
{
	int64		top_k;

	/* vLLM's ways to say that all are considered */
	return param == LLMGW_PARAM_TOP_K && doc != NULL &&
		llmgw_json_get_int(&doc->root, &top_k, "top_k", NULL) && top_k <= 0;
}

void
llmgw_params_leave_out(LlmWireCall *call, LlmParams left_out)
{
	if (left_out & LLMGW_PARAM_BIT(LLMGW_PARAM_TEMPERATURE))
		call->has_temperature = false;
	for (int i = LLMGW_PARAM_TOP_P; i <= LLMGW_PARAM_USER; i++)
	{
		if (left_out & LLMGW_PARAM_BIT(i))
			call->params = DatumGetJsonbP(DirectFunctionCall2(jsonb_delete,
															  JsonbPGetDatum(call->params),
															  CStringGetTextDatum(params[i].name)));
	}
	if (left_out & LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS))
		call->tools = NULL;
	if (left_out & (LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS) |
					LLMGW_PARAM_BIT(LLMGW_PARAM_TOOL_CHOICE)))
		call->tool_choice.mode = LLMGW_CHOICE_UNSET;
}

int
llmgw_params_stops(Jsonb *doc)
{
	JsonbValue	v;

	if (doc == NULL || !llmgw_json_get(&doc->root, &v, "stop", NULL) || v.type == jbvNull)
		return 0;
	return v.type == jbvBinary ? JsonContainerSize(v.val.binary.data) : 1;
}

char *
llmgw_params_stop(Jsonb *doc, int i)
{
	JsonbValue	v;

	if (!llmgw_json_get(&doc->root, &v, "stop", NULL))
		return NULL;
	return llmgw_json_value_text(v.type == jbvBinary ?
								 getIthJsonbValueFromContainer(v.val.binary.data, i) : &v);
}

/*
 * What an error refuses
 */

/* Lower case, blanks for underscores, one kind of quotes. */
static char *
fold(const char *text)
{
	size_t		len = strnlen(text, MAX_SEARCHED);
	char	   *result = palloc(len + 1);

	for (size_t i = 0; i < len; i++)
		result[i] = text[i] == '_' ? ' ' :
		text[i] == '"' || text[i] == '`' ? '\'' :
		pg_ascii_tolower((unsigned char) text[i]);

	result[len] = '\0';
	return result;
}

static bool
is_word_character(char c)
{
	return IS_HIGHBIT_SET(c) || isalnum((unsigned char) c);
}

/* Where a word is, and not only as a part of another one; NULL: nowhere. */
static const char *
find_word(const char *text, const char *word)
{
	size_t		len = strlen(word);

	for (const char *p = text; (p = strstr(p, word)) != NULL; p++)
	{
		if ((p == text ||!is_word_character(p[-1])) &&!is_word_character(p[len]))
			return p;
	}
	return NULL;
}

static const char *
find_any(const char *text, const char *const *words)
{
	const char *first = NULL;

	for (; *words; words++)
	{
		const char *p = find_word(text, *words);

		if (p != NULL && (first == NULL || p < first))
			first = p;
	}
	return first;
}

/* The parameters that a folded text names, and which of them comes last. */
static LlmParams
named_in(const char *text, LlmParams *last)
{
	for (int pass = 0; pass < 2; pass++)
	{
		LlmParams	found = 0;
		const char *furthest = NULL;

		for (int i = 0; i < LLMGW_NPARAMS; i++)
		{
			const char *p = find_any(text, pass == 0 ? params[i].words : params[i].terms);

			if (p == NULL)
				continue;
			found |= LLMGW_PARAM_BIT(i);
			if (furthest == NULL || p > furthest)
			{
				furthest = p;
				*last = LLMGW_PARAM_BIT(i);
			}
		}
		if (found != 0)
			return found;
	}
	return 0;
}

/* The error's own field for the name (OpenAI), folded, in quotes; NULL: it has none. */
static char *
param_field(Jsonb *doc)
{
	char	   *param;

	param = llmgw_json_get_text(&doc->root, "error", "param", NULL);
	if (param == NULL)
		param = llmgw_json_get_text(&doc->root, "param", NULL);
	if (param == NULL || *param == '\0')
		return NULL;
	param = fold(param);

	/* of response_format.json_schema.schema what is ours */
	if (strncmp(param, "reasoning.", strlen("reasoning.")) != 0)
		param[strcspn(param, ".[")] = '\0';
	return psprintf("'%s'", param);
}

void
llmgw_params_read_refusal(int http_status, const char *body, size_t len,
						  LlmAnswer *answer)
{
	Jsonb	   *doc;
	char	   *reason;
	LlmErrorBody e;
	char	   *text;
	char	   *param = NULL;
	const char *listing;
	LlmParams	last = 0;

	if (answer->error != LLMGW_INVALID_REQUEST || (http_status != 400 && http_status != 422))
		return;

	/* a server in Rust may say in plain text what it cannot read (DeepSeek) */
	doc = len > 0 ? llmgw_json_parse(body, len, &reason) : NULL;
	if (doc == NULL)
		text = fold(pnstrdup(body, len));

	else if (llmgw_read_error_body(&doc->root, true, &e) && e.words.message != NULL)
	{
		text = fold(e.words.message);

		param = param_field(doc);
	}
	else
		return;

	if (strstr(text, "only the default") != NULL)
		answer->how_refused = LLMGW_REFUSED_EVER;
	else if (strstr(text, "unsupported value") != NULL ||
			 strstr(text, "cannot both be specified") != NULL)
		answer->how_refused = LLMGW_REFUSED_HERE;
	else if (find_any(text, unsupported) != NULL)
		answer->how_refused = LLMGW_REFUSED_EVER;
	else
		answer->how_refused = LLMGW_REFUSED_VALUE;

	/* what there is instead is not what is refused */
	listing = find_any(text, listings);
	if (listing != NULL)
		text[		listing - text] = '\0';

	answer->refused = named_in(param ? param : text, &last);

	/* a list of formats is of all that there are */
	if (listing != NULL && answer->how_refused == LLMGW_REFUSED_VALUE &&
		answer->refused == LLMGW_PARAM_BIT(LLMGW_PARAM_JSON_SCHEMA))
		answer->how_refused = LLMGW_REFUSED_EVER;

	/* of two that do not go together one may stay */
	if (strstr(text, "cannot both be specified") != NULL)
		answer->refused = last;
}
