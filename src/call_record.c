/*-------------------------------------------------------------------------
 *
 * call_record.c
 *	  What a call tells the ledger (ledger.h), and when.
 *
 * An attempt is noted before it is sent.  Its outcome goes with the next note,
 * or with the end.  A call that goes away unfinished (cancel, an error elsewhere
 * in the statement, exit of the process) ends in reset callbacks of its memory
 * contexts: first the attempt's, which still sees the transfer, then the call's.
 * Those neither raise nor allocate.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "call.h"
#include "estimate.h"

/* Fills in what the ledger wants to know of the request itself. */
static void
describe(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	LlmRequestInfo *r = &call->request;

	r->created_at = llmgw_wall_clock();
	r->extension = spec->config->extension;
	r->creator = spec->config->creator;
	r->operation = spec->operation;
	r->role_oid = spec->role;
	r->query_id = spec->query_id;
	r->role = spec->role_name;
	r->application_name = spec->application_name;
	r->task = spec->task;
	r->task_source = spec->task_source;
	r->priority = spec->priority->name;
	r->optimize = llmgw_optimize_name(spec->optimize);
	r->requested_model = spec->model;
	r->tags = spec->tags_text;
	r->estimate = LLMGW_COST_UNKNOWN;
	if (call->prompt[0] != '\0')
	{
		r->has_hash = true;
		llmgw_ledger_hash(call->prompt, strlen(call->prompt), r->prompt_hash);
	}
}

void
llmgw_call_describe(LlmCall *call)
{
	if (call->request.created_at == 0)
		describe(call);
}

/*
 * The attempt's memory goes before it was judged: nobody waits for it any
 * more.  What it may have cost is known only now.
 */
static void
on_attempt_reset(void *arg)
{
	LlmCall    *call = arg;

	if (!call->attempt_noted || call->transfer == NULL)
		return;
	call->attempt_noted = false;
	memset(&call->outcome, 0, sizeof(call->outcome));
	call->outcome.cancelled = true;
	call->outcome.http_status = call->transfer->http_status;
	call->outcome.latency_us = llmgw_now() - call->attempt_started;
	call->outcome.cost = llmgw_judge_cost(call, LLMGW_NETWORK, &call->outcome.usage,
										  &call->outcome.source);
	call->has_outcome = true;
	llmgw_budget_settle(&call->hold, Max(call->outcome.cost, 0));
}

void
llmgw_call_watch_attempt(LlmCall *call)
{
	call->attempt_reset.func = on_attempt_reset;
	call->attempt_reset.arg = call;
	MemoryContextRegisterResetCallback(call->attempt_context, &call->attempt_reset);
}

char *
llmgw_call_note_attempt(LlmCall *call)
{
	const LlmCandidate *c = &call->route.candidates[call->current];
	LlmAttemptInfo a = {0};
	LlmUsage	expected;
	char	   *reason;

	call->request.estimate = call->estimate;
	llmgw_call_say_downgraded(call, c, c->model->tier);
	a.number = call->nnoted + 1;

	/* an attempt begins in the periods that it is charged to */
	if (call->ncharged > 0)
		a.started_at = call->charged_at;
	else
		a.started_at = a.number == 1 ? call->request.created_at : llmgw_wall_clock();
	a.queued_us = call->queued_us - call->noted_queued_us;
	call->noted_queued_us = call->queued_us;
	a.provider = c->model->provider->name;
	a.model = c->model->name;
	a.model_tier = c->model->tier->name;
	llmgw_estimate(c->model, llmgw_call_characters(call, c->model), call->spec->max_tokens,
				   &expected);
	llmgw_call_cap(call, &expected);
	a.expected_input = expected.input;
	a.expected_output = expected.output;
	a.expected_cost = llmgw_cost(c->model, &expected);
	a.ncharged = call->ncharged;
	a.charged = call->charged;

	reason = llmgw_ledger_note(&call->entry, call->request_id, &call->request, &a,
							   call->has_outcome ? &call->outcome : NULL,
							   llmgw_log_content ? call->prompt : NULL);
	if (reason == NULL)
	{
		call->nnoted++;
		call->attempt_noted = true;
		call->has_outcome = false;
	}
	return reason;
}

void
llmgw_call_judged(LlmCall *call, const LlmAttempt *attempt)
{
	LlmOutcome *o = &call->outcome;

	memset(o, 0, sizeof(*o));
	o->error = attempt->error;
	o->http_status = attempt->http_status;
	o->latency_us = attempt->latency_us;
	o->usage = attempt->usage;
	o->cost = attempt->cost;
	o->source = attempt->source;
	o->message = attempt->message;
	call->has_outcome = true;
	call->attempt_noted = false;
}

/* An attempt that was noted, but could not even be started, cost nothing. */
static const LlmOutcome *
last_outcome(LlmCall *call)
{
	if (call->attempt_noted)
	{
		memset(&call->outcome, 0, sizeof(call->outcome));
		call->outcome.cancelled = true;
		call->has_outcome = true;
	}
	return call->has_outcome ? &call->outcome : NULL;
}

/* The first candidate, if nothing was sent to it. */
static void
say_passed_over(const LlmCall *call, LlmResult *r)
{
	const LlmCandidate *first = llmgw_call_first(call);

	/* a kept answer takes nobody's place */
	if (first == NULL || (call->kept != NULL && first->denied_by != NULL))
		return;
	for (int i = 0; i < call->nattempts; i++)
	{
		if (call->attempts[i].model != first->model)
			continue;
		if (call->attempts[i].sent)
			return;
		r->passed_over_class = call->attempts[i].error;
	}
	if (first->shortage != NULL || first->denied_by != NULL)
		r->passed_over_class = LLMGW_BUDGET;
	if (r->passed_over_class == LLMGW_OK && first->refused != LLMGW_ADMITTED)
		r->passed_over_class = first->refused == LLMGW_ADMIT_LATER ? LLMGW_RATE_LIMIT :
			LLMGW_UNAVAILABLE;
	if (r->passed_over_class != LLMGW_OK)
		r->passed_over = first->model->provider->name;
}

/* The answer is another request's. */
static void
say_whose(const LlmCall *call, LlmResult *r)
{
	const LlmModel *model = call->model;

	r->status = LLMGW_STATUS_CACHED;
	r->provider = call->kept ? call->kept->provider : model->provider->name;
	r->model = call->kept ? call->kept->model : model->name;
	r->model_tier = call->kept ? call->kept->model_tier : model->tier->name;
}

static LlmStatus
status_of(const LlmCall *call)
{
	if (call->error == LLMGW_OK)
		return LLMGW_STATUS_OK;
	return call->nnoted == 0 && (call->error == LLMGW_BUDGET ||
								 call->error == LLMGW_NO_CANDIDATE ||
								 call->error == LLMGW_UNAVAILABLE) ?
		LLMGW_STATUS_REJECTED : LLMGW_STATUS_ERROR;
}

void
llmgw_call_record_end(LlmCall *call)
{
	LlmResult	r = {0};

	llmgw_call_describe(call);
	call->request.estimate = call->estimate;
	if (call->nnoted == 0)
	{
		/* a kept answer took the place of what would have been asked */
		const LlmCandidate *asked = call->kept ? llmgw_route_first(&call->route) : NULL;

		llmgw_call_say_downgraded(call, asked, asked ? asked->model->tier : NULL);
	}
	r.error = call->error;
	if (call->kept != NULL)
		say_whose(call, &r);
	else
		r.status = status_of(call);
	r.finish_reason = call->finish_reason;
	r.attempts = call->nnoted;
	r.fallback = call->fallback;
	r.latency_us = call->latency_us;
	r.ttft_us = call->ttft_us;
	r.queue_us = call->queued_us;
	say_passed_over(call, &r);
	if (call->response != NULL && llmgw_log_content && call->inputs == NULL)
		llmgw_ledger_response(&call->entry, call->request_id, call->response);
	llmgw_ledger_end(&call->entry, call->request_id, &call->request,
					 last_outcome(call), &r);
}

uint64
llmgw_call_record_shared(const LlmCall *call, int64 request_id)
{
	LlmLedgerEntry entry = {0};
	LlmRequestInfo request = call->request;
	LlmResult	r = {0};

	request.estimate = 0;
	r.error = call->error;
	if (call->error == LLMGW_OK)
		say_whose(call, &r);
	else
		r.status = status_of(call);
	r.finish_reason = call->finish_reason;
	r.latency_us = call->latency_us;
	r.ttft_us = -1;
	r.queue_us = call->queued_us;
	llmgw_ledger_end(&entry, request_id, &request, NULL, &r);
	return entry.end;
}

void
llmgw_call_record_abort(LlmCall *call)
{
	LlmResult	r = {0};

	if (!call->entry.noted || call->entry.ended)
		return;
	r.status = LLMGW_STATUS_CANCELLED;
	r.attempts = call->nnoted;
	r.latency_us = llmgw_now() - call->started;
	r.ttft_us = -1;
	r.queue_us = call->queued_us;
	llmgw_ledger_end(&call->entry, call->request_id, NULL, last_outcome(call), &r);
}
