/*-------------------------------------------------------------------------
 *
 * call_end.c
 *	  How a call ends: with an answer, or with an error that says what was
 *	  tried.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

#include "call.h"

/*
 * What those hear that have waited for this call's answer: where it is in the spool;
 * or, 0, that the next of them makes the call, since this one was not made, or its
 * caller had no more time.  Where it was made and there is no answer for them, each
 * makes its own: one after the other they would wait for the sum of all failures.
 */
static uint64
landing(const LlmCall *call, bool kept)
{
	if (kept)
		return call->entry.end;

	/* of a kept answer all is booked that was ever written of it */
	if (call->kept != NULL)
		return 1;
	return call->nnoted > 0 && llmgw_now() < call->deadline ? 1 : 0;
}

/* What every end has in common. */
static bool
end(LlmCall *call, LlmErrorClass error, int sqlstate, const char *message)
{
	bool		landed;

	llmgw_timer_cancel(&call->timer);
	llmgw_ready_clear(&call->ready);
	llmgw_endpoint_abandon(&call->admission);
	llmgw_budget_release(&call->hold);
	call->state = LLMGW_CALL_DONE;
	call->error = error;
	call->sqlstate = sqlstate;
	call->message = message ? MemoryContextStrdup(call->context, message) : NULL;
	if (call->started != 0)
		call->latency_us = llmgw_now() - call->started;

	for (int i = 0; i < call->nattempts; i++)
	{
		if (call->attempts[i].cost == LLMGW_COST_UNKNOWN || call->cost == LLMGW_COST_UNKNOWN)
			call->cost = LLMGW_COST_UNKNOWN;
		else
			call->cost += call->attempts[i].cost;
	}
	if (call->nattempts > 0)
		call->model = call->attempts[call->nattempts - 1].model;
	landed = llmgw_call_keep(call);
	llmgw_call_record_end(call);
	llmgw_flight_end(&call->flight, landing(call, landed));
	return true;
}

void
llmgw_call_fail(LlmCall *call, LlmErrorClass error, const char *message)
{
	end(call, error, llmgw_error_class_sqlstate(error), message);
}

/* The call ends with the last attempt's error, whatever went before. */
bool
llmgw_call_end_stopped(LlmCall *call)
{
	const LlmAttempt *a = &call->attempts[call->nattempts - 1];

	return end(call, a->error, llmgw_error_class_sqlstate(a->error),
			   psprintf("model \"%s\" of provider \"%s\": %s", a->model->name,
						a->model->provider->name, a->message));
}

/* The candidate that tells best how the budgets keep the call from all; NULL: none. */
static const LlmCandidate *
denied_candidate(const LlmCall *call)
{
	const LlmCandidate *denied = NULL;

	/* what decided is the last one that could have been sent to */
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		if (denied == NULL ? c->shortage != NULL || (c->denied_by != NULL && !c->unfit) :
			c->shortage != NULL && (denied->shortage == NULL || !llmgw_call_keeps_tier(call)))
			denied = c;
	}
	return denied;
}

LlmErrorClass
llmgw_call_no_candidate(const LlmCall *call, const char **message)
{
	const LlmCandidate *denied = denied_candidate(call);

	*message = "no model can answer this call";
	if (call->route.unknown_model)
		*message = psprintf("model \"%s\" does not exist", call->spec->model);
	else if (denied != NULL)
	{
		const LlmTierBudget *binding = call->tier.binding;

		*message = denied->shortage ? denied->shortage : denied->dropped;
		if (call->tier.level < LLMGW_LEVEL_EXHAUSTED)
			*message = psprintf("no model that could answer is within the budgets: %s", *message);
		return binding != NULL && binding->unknown != NULL ? LLMGW_UNAVAILABLE : LLMGW_BUDGET;
	}
	else if (call->route.below_tier)
	{
		*message = psprintf("no model of tier \"%s\" or better can answer this call",
							call->spec->min_tier->name);
		return LLMGW_BUDGET;
	}
	else if (call->spec->config->nproviders == 0)
		*message = "no provider is configured";
	else if (call->spec->config->nmodels == 0)
		*message = "no model is configured";
	return LLMGW_NO_CANDIDATE;
}

/*
 * No candidate is left.  When every attempt ended alike, that is the error;
 * otherwise only that all failed can be said.
 */
bool
llmgw_call_end_failed(LlmCall *call)
{
	LlmErrorClass error;
	int			sqlstate;
	int			sent;
	const char *said;
	const LlmAttempt *last;

	if (call->nattempts == 0)
	{
		const char *message;

		error = llmgw_call_no_candidate(call, &message);
		return end(call, error, llmgw_error_class_sqlstate(error), message);
	}

	error = call->attempts[0].error;
	sqlstate = llmgw_error_class_sqlstate(error);
	for (int i = 1; i < call->nattempts; i++)
	{
		if (call->attempts[i].error != error)
			error = LLMGW_ALL_FAILED;
		if (llmgw_error_class_sqlstate(call->attempts[i].error) != sqlstate)
			sqlstate = ERRCODE_LLM_ALL_FAILED;
	}
	if (call->nattempts == 1)
		return llmgw_call_end_stopped(call);
	sent = llmgw_call_attempts(call);
	for (last = &call->attempts[call->nattempts - 1]; sent > 0 && !last->sent;)
		last--;
	if (sent == 0)
		said = psprintf("none of %d models could be asked, the last one: ",
						call->nattempts);
	else if (sent == 1)
		said = "the only attempt failed: ";
	else
		said = psprintf("all %d attempts failed, the last one: ", sent);
	return end(call, error, sqlstate,
			   psprintf("%smodel \"%s\" of provider \"%s\": %s", said,
						last->model->name, last->model->provider->name, last->message));
}

bool
llmgw_call_end_unrecorded(LlmCall *call, const char *reason)
{
	call->hint = "See llm_worker_status for what keeps the ledger from being written; llm_gateway.ledger_buffer sets how much may wait.";
	return end(call, LLMGW_UNAVAILABLE, ERRCODE_DISK_FULL, reason);
}

bool
llmgw_call_end_answered(LlmCall *call)
{
	const LlmAttempt *a = &call->attempts[call->nattempts - 1];
	const char *key = call->wire.api_key;
	LlmAnswer  *answer = &call->answer;

	/* a provider that sends the key back must not show it to the caller */
	llmgw_mask_key(answer->text.data, answer->text.len, key);
	if (answer->finish_reason != NULL)
	{
		char	   *reason = pstrdup(answer->finish_reason);

		llmgw_mask_key(reason, strlen(reason), key);
		answer->finish_reason = reason;
	}
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		LlmToolCall *tool = &answer->tool_calls[i];

		llmgw_mask_key(tool->arguments.data, tool->arguments.len, key);
		if (tool->id != NULL)
			llmgw_mask_key(tool->id, strlen(tool->id), key);
		if (tool->name != NULL)
			llmgw_mask_key(tool->name, strlen(tool->name), key);
		if (tool->signature != NULL)
			llmgw_mask_key(tool->signature, strlen(tool->signature), key);
	}

	call->response = answer->text.data;
	call->finish_reason = answer->finish_reason;
	call->usage = a->usage;
	call->tool_calls = llmgw_answer_tool_calls(answer);
	if (call->first_content != 0)
		call->ttft_us = call->first_content - call->started;
	else if (call->transfer->first_byte != 0)
		call->ttft_us = call->transfer->first_byte - call->started;
	call->fallback = llmgw_call_first(call) != &call->route.candidates[call->current];
	if (call->spec->schema != NULL &&
		(call->tool_calls == NULL || call->spec->operation == LLMGW_OP_JSON))
		llmgw_call_check_schema(call);
	if (call->mismatch != NULL)
		return end(call, LLMGW_SCHEMA, llmgw_error_class_sqlstate(LLMGW_SCHEMA),
				   psprintf("model \"%s\" of provider \"%s\": %s", a->model->name,
							a->model->provider->name,
							llmgw_call_was_cut(call) ?
							llmgw_call_cut_message(call, &call->hint) :
							psprintf("the answer does not satisfy the schema: %s",
									 call->mismatch)));
	return end(call, LLMGW_OK, 0, NULL);
}

bool
llmgw_call_end_cached(LlmCall *call)
{
	return end(call, LLMGW_OK, 0, NULL);
}

bool
llmgw_call_was_cut(const LlmCall *call)
{
	return call->finish_reason != NULL && strcmp(call->finish_reason, "length") == 0;
}

char *
llmgw_call_cut_message(const LlmCall *call, const char **hint)
{
	const LlmModel *model = call->attempts[call->nattempts - 1].model;

	if (call->lowered)
	{
		*hint = "Wait until the budget begins anew, or raise it (llm_budgets.limit_usd).";
		return psprintf("the answer was cut at %d tokens, which is what a strict budget still held",
						call->output_cap);
	}
	if (call->spec->max_tokens > 0 &&
		(model->max_output_tokens == 0 || call->spec->max_tokens <= model->max_output_tokens))
	{
		*hint = "Raise max_tokens.";
		return psprintf("the answer was cut by the call's max_tokens of %d",
						call->spec->max_tokens);
	}
	*hint = "Ask for a shorter answer, or use a model with a larger limit.";
	return psprintf("the answer was cut by the output limit of model \"%s\" of provider \"%s\"",
					model->name, model->provider->name);
}

int
llmgw_call_attempts(const LlmCall *call)
{
	int			n = 0;

	for (int i = 0; i < call->nattempts; i++)
		n += call->attempts[i].sent ? 1 : 0;
	return n;
}

void
llmgw_call_append_attempts(const LlmCall *call, StringInfo buf)
{
	for (int i = 0; i < call->nattempts; i++)
	{
		const LlmAttempt *a = &call->attempts[i];
		bool		answered = a->error == LLMGW_OK;

		if (answered && call->mismatch == NULL)
			continue;
		appendStringInfo(buf, "%s%s/%s: %s", buf->len ? "\n" : "",
						 a->model->provider->name, a->model->name,
						 llmgw_error_class_name(answered ? LLMGW_SCHEMA : a->error));
		if (a->sent)
			appendStringInfo(buf, " after " INT64_FORMAT " ms", a->latency_us / 1000);
		else
			appendStringInfoString(buf, ", not tried");
		appendStringInfo(buf, ": %s", answered ? call->mismatch : a->message);
	}
}

char *
llmgw_call_refusal(const LlmCall *call, const LlmCandidate *candidate)
{
	LlmUsage	expected;
	char	   *problem;

	llmgw_estimate(candidate->model, call->characters, call->spec->max_tokens, &expected);
	problem = llmgw_endpoint_problem(candidate->model->provider, call->spec->priority->rank,
									 expected.input + expected.output);

	/* it may have ended since */
	if (problem == NULL)
		problem = pstrdup(candidate->refused == LLMGW_ADMIT_LATER ?
						  "its limits left no room" : "its breaker was open");
	return problem;
}

/* Whether some attempt, or the lack of a key, already stands for a candidate. */
static bool
was_tried(const LlmCall *call, const LlmCandidate *c)
{
	for (int i = 0; i < call->nattempts; i++)
		if (call->attempts[i].model == c->model)
			return true;
	return false;
}

char *
llmgw_call_detail(const LlmCall *call)
{
	StringInfoData buf;

	initStringInfo(&buf);
	llmgw_call_append_attempts(call, &buf);
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		const char *why = c->dropped ? c->dropped : c->shortage;

		if (why != NULL || (c->refused != LLMGW_ADMITTED && !was_tried(call, c)))
			appendStringInfo(&buf, "%s%s/%s: not tried: %s", buf.len ? "\n" : "",
							 c->model->provider->name, c->model->name,
							 why ? why : llmgw_call_refusal(call, c));
	}
	if (call->route.unresolved != NULL)
		appendStringInfo(&buf, "%s%s", buf.len ? "\n" : "", call->route.unresolved);
	return buf.len > 0 ? buf.data : NULL;
}

const char *
llmgw_call_hint(const LlmCall *call)
{
	const LlmCandidate *denied = denied_candidate(call);

	if ((call->error == LLMGW_BUDGET || call->error == LLMGW_UNAVAILABLE) && denied != NULL)
	{
		if (denied->hint != NULL)
			return denied->hint;
		return "Wait until the budget begins anew, raise it (llm_budgets.limit_usd), ask for a shorter answer (max_tokens), or use a priority that may use its reserve.";
	}
	if (call->error == LLMGW_UNAVAILABLE && call->hint == NULL && call->nattempts > 0)
		return psprintf("Try again later, add another provider of the model, or put right what DETAIL says and SELECT llm_breaker_reset(%s);",
						quote_literal_cstr(call->attempts[call->nattempts - 1].model->provider->name));
	if (call->error == LLMGW_BUDGET && call->route.below_tier)
		return "Give a lower min_tier, or add a better model to the rules.";
	if (call->error == LLMGW_NO_CANDIDATE)
	{
		if (call->spec->cache == LLMGW_CACHE_ONLY)
			return "With another value of cache the call is made.";
		if (call->spec->config->nproviders == 0)
			return "Add one, for example: SELECT * FROM llm_add_provider('openai');";
		if (call->spec->config->nmodels == 0)
			return "Add one: INSERT INTO llm_models(provider, name) VALUES (...);";
		for (int i = 0; i < call->route.ncandidates; i++)
			if (call->route.candidates[i].hint != NULL)
				return call->route.candidates[i].hint;
	}
	return call->hint ? call->hint : llmgw_error_class_hint(call->error);
}
