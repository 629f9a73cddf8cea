/*-------------------------------------------------------------------------
 *
 * call_degrade.c
 *	  What a request leaves out because its candidate cannot take it.
 *
 * What shapes an answer without changing what is asked (temperature, seed, ...)
 * is wanted, not required: a model that cannot take it is asked without it, and
 * the caller is told its name.  Who cannot take what is known from the
 * dialect, from llm_models.capabilities, from what the model's server refused
 * before, and from what it refuses now: then it is asked again, at once.  Such
 * a request is an attempt like every other.
 *
 * What is required (a tool that may be called, "stop", images, a schema that words
 * cannot replace) is never left out: route.c drops a candidate that lacks it, and
 * a server's refusal is an error of the caller's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call.h"

/* how often one candidate is asked again in other words */
#define MAX_CHANGES			4

#define SCHEMA_BIT			LLMGW_PARAM_BIT(LLMGW_PARAM_JSON_SCHEMA)
#define TOOL_BITS \
	(LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS) | LLMGW_PARAM_BIT(LLMGW_PARAM_TOOL_CHOICE))

void
llmgw_call_degrade(LlmCall *call)
{
	const LlmCandidate *c = &call->route.candidates[call->current];
	const LlmDialect *dialect = c->model->provider->dialect;
	LlmWireCall *wire = &call->wire;
	LlmWording *w = &call->wording;
	LlmParams	refused;
	LlmParams	lacks;

	if (w->model != c->model)
	{
		memset(w, 0, sizeof(*w));
		w->model = c->model;
	}
	if (w->token_param != LLMGW_TOKENS_AUTO)
		wire->token_param = w->token_param;
	wire->no_usage |= w->no_usage;

	w->given = llmgw_params_given(wire);
	if (call->spec->advice == NULL)
		w->given &= ~SCHEMA_BIT;
	lacks = (dialect->lacks ? dialect->lacks(wire) : 0) & w->given;
	refused = (c->lacks | c->model->refused | w->refused) & w->given;
	w->left_out = lacks | refused;
	if (c->advised)
		w->left_out |= SCHEMA_BIT;

	if (refused & SCHEMA_BIT)
	{
		wire->schema = NULL;
		llmgw_call_put_messages(call, c, call->spec->advice);
	}

	/* a dialect that has no choice of tools does what it can about it */
	llmgw_params_leave_out(wire, refused | (lacks & ~TOOL_BITS));
}

bool
llmgw_call_reword(LlmCall *call)
{
	const LlmAnswer *answer = &call->answer;
	LlmWording *w = &call->wording;
	LlmParams	refused = answer->refused;

	/* what cannot be waited for would be paid all the same */
	if (w->changes == MAX_CHANGES || llmgw_now() >= call->deadline)
		return false;
	if (answer->wants_token_param != LLMGW_TOKENS_AUTO &&
		w->token_param == LLMGW_TOKENS_AUTO)
	{
		w->token_param = answer->wants_token_param;
		w->changes++;
		return true;
	}

	if (answer->wants_no_usage && !w->no_usage)
	{
		w->no_usage = true;
		w->changes++;
		return true;
	}

	/* tools that the caller did not give are how the schema was put */
	if (call->wire.schema != NULL && call->spec->tools == NULL && (refused & TOOL_BITS))
		refused |= SCHEMA_BIT;

	refused &= w->given & ~w->left_out;
	if (refused == 0)
		return false;

	/*
	 * That a value is wrong is for the caller to know; but not where another
	 * model took it, and the caller's schema is sound JSON Schema.
	 */
	if (answer->how_refused == LLMGW_REFUSED_VALUE && refused != SCHEMA_BIT &&
		&call->route.candidates[call->current] == llmgw_route_first(&call->route))
		return false;

	w->refused |= refused;
	if (answer->how_refused == LLMGW_REFUSED_EVER)
		w->learned |= refused;
	w->changes++;
	return true;
}

void
llmgw_call_learn(LlmCall *call)
{
	LlmWording *w = &call->wording;
	LlmModel   *model = unconstify(LlmModel *, w->model);

	if (w->token_param != LLMGW_TOKENS_AUTO)
		model->token_param = w->token_param;
	model->no_usage |= w->no_usage;
	model->refused |= w->learned;

	call->degraded = w->left_out;
	for (int i = 0; i < LLMGW_NPARAMS; i++)
		if (llmgw_param_is_idle(call->spec->params, (LlmParam) i))
			call->degraded &= ~LLMGW_PARAM_BIT(i);
}
