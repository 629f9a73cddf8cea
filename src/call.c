/*-------------------------------------------------------------------------
 *
 * call.c
 *	  One call: routed, tried, retried, failed over, ended.
 *
 * See call.h.  Memory: the call's context holds the call, its route and its
 * past attempts; each attempt has a context below it, deleted when the attempt
 * has failed and kept when it gave the answer, which then needs no copy.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "call.h"
#include "secret.h"
#include "shmem.h"

/*
 * After the provider's last event the connection is given this long to end in
 * order, so that it can be used again.
 */
#define GRACE_MS			50

/*
 * A caller's deadline is held against a provider that has had the request for
 * this part of first_byte_timeout without sending anything: long enough that a
 * caller in haste, who can be anybody, opens no breaker for others.
 */
#define SILENT_SHARE		4

static void
on_timer(LlmTimer *timer, LlmInstant now)
{
	LlmCall    *call = (LlmCall *) ((char *) timer - offsetof(LlmCall, timer));

	llmgw_ready_mark(&call->ready);
}

/* The context goes: the loop must forget us. */
static void
on_reset(void *arg)
{
	LlmCall    *call = arg;

	llmgw_timer_cancel(&call->timer);
	llmgw_ready_clear(&call->ready);
	llmgw_endpoint_abandon(&call->admission);
	llmgw_budget_release(&call->hold);
	llmgw_flight_leave(&call->flight);
	llmgw_call_record_abort(call);
}

LlmCall *
llmgw_call_create(MemoryContext parent, const LlmSpec *spec, const char *prompt)
{
	MemoryContext context = AllocSetContextCreate(parent, "llm_gateway call",
												  ALLOCSET_DEFAULT_SIZES);
	LlmCall    *call = MemoryContextAllocZero(context, sizeof(LlmCall));

	call->context = context;

	/* the configuration first: it is then there when on_reset() needs it */
	llmgw_config_pin(spec->config, context);
	call->reset.func = on_reset;
	call->reset.arg = call;
	MemoryContextRegisterResetCallback(context, &call->reset);

	call->spec = spec;
	call->prompt = prompt;
	call->request_id = llmgw_next_request_id();
	call->state = LLMGW_CALL_NEW;
	call->timer.fn = on_timer;
	call->ready.owner = call;
	call->ttft_us = -1;
	call->estimate = LLMGW_COST_UNKNOWN;
	return call;
}

void
llmgw_call_free(LlmCall *call)
{
	MemoryContextDelete(call->context);
}

LlmAttempt *
llmgw_call_add_attempt(LlmCall *call)
{
	LlmAttempt *a;

	if (call->nattempts == call->attempts_size)
	{
		call->attempts_size = Max(4, call->attempts_size * 2);
		if (call->attempts == NULL)
			call->attempts = MemoryContextAlloc(call->context,
												sizeof(LlmAttempt) * call->attempts_size);
		else
			call->attempts = repalloc(call->attempts,
									  sizeof(LlmAttempt) * call->attempts_size);
	}
	a = &call->attempts[call->nattempts++];
	memset(a, 0, sizeof(*a));
	a->model = call->route.candidates[call->current].model;
	return a;
}

/* Forgets the attempt under way: off the wire, its memory freed. */
static void
drop_attempt(LlmCall *call)
{
	MemoryContext attempt = call->attempt_context;

	MemoryContextSwitchTo(call->context);
	call->attempt_context = NULL;
	call->transfer = NULL;
	MemoryContextDelete(attempt);
}

/*
 * What the provider says of its limits.  Its error bodies are believed only where
 * waiting is what helps: other messages may quote anything.
 */
static void
read_limits(const LlmTransfer *t, const LlmDialect *dialect, LlmErrorClass error,
			LlmRateInfo *info)
{
	bool		wait = t->http_status >= 300 &&
	(error == LLMGW_RATE_LIMIT || error == LLMGW_OVERLOADED ||
	 error == LLMGW_SERVER_ERROR);

	memset(info, -1, sizeof(*info));
	if (wait)
		dialect->read_limits(t->headers, t->data, t->len, (int64) time(NULL), info);
	else if (error == LLMGW_OK && t->headers != NULL &&
			 strcasestr(t->headers, "ratelimit-") != NULL)
		dialect->read_limits(t->headers, NULL, 0, (int64) time(NULL), info);
}

/* An answer that the provider has counted; a tiny one of a probe shows nothing. */
static void
learn_usage(const LlmCall *call, const LlmAttempt *a)
{
	bool		cut = call->wire.max_tokens > 0 && call->answer.finish_reason != NULL &&
	strcmp(call->answer.finish_reason, "length") == 0;

	if (a->usage.known && call->spec->probe == NULL)
		llmgw_estimate_learn(a->model, llmgw_call_characters(call, a->model), &a->usage,
							 call->inputs == NULL && !cut);
}

/*
 * Whether the caller's deadline ended a wait that was long enough to be held
 * against the provider.  An answer that is not streamed may take long.  That we
 * were late to look at the deadline makes the wait no longer.
 */
static bool
kept_silent(const LlmCall *call)
{
	const LlmTransfer *t = call->transfer;

	return call->wire.stream && t->requested_at != 0 && t->first_byte == 0 &&
		t->first_byte_by != LLMGW_NEVER &&
		t->ended_by - t->requested_at >= (t->first_byte_by - t->started) / SILENT_SHARE;
}

/* The attempt's transfer has ended, or its answer is complete. */
static bool
judge_attempt(LlmCall *call)
{
	LlmTransfer *t = call->transfer;
	const LlmDialect *dialect =
	call->route.candidates[call->current].model->provider->dialect;
	LlmAttempt *a;
	const char *message;
	LlmRateInfo info;
	LlmFailure	failure = {0};

	failure.error = llmgw_judge(call, &message);
	a = llmgw_call_add_attempt(call);
	a->sent = true;
	a->error = failure.error;
	a->http_status = t->http_status;
	a->latency_us = llmgw_now() - call->attempt_started;
	a->cost = llmgw_judge_cost(call, failure.error, &a->usage, &a->source);
	llmgw_http_stop(t);
	llmgw_timer_cancel(&call->timer);
	llmgw_call_pay(call, a->cost);
	read_limits(t, dialect, failure.error, &info);
	failure.retry_after_ms = llmgw_call_pause_ms(&info);

	if (failure.error == LLMGW_OK)
	{
		llmgw_call_learn(call);
		learn_usage(call, a);
		llmgw_call_judged(call, a);
		llmgw_call_settle(call, &failure);
		return llmgw_call_end_answered(call);
	}

	/* what is needed of the attempt before its memory goes */
	if (message != NULL)
	{
		char	   *copy = MemoryContextStrdup(call->context, message);

		llmgw_mask_key(copy, strlen(copy), call->wire.api_key);
		a->message = copy;
	}
	llmgw_call_judged(call, a);
	failure.timed_out_whole = call->deadline_binds && t->outcome == LLMGW_HTTP_TIMEOUT_TOTAL;
	failure.silent = failure.timed_out_whole && kept_silent(call);
	failure.hopeless = call->answer.hopeless || t->outcome == LLMGW_HTTP_TOO_LARGE;
	if (failure.hopeless)
		call->hint = call->answer.hopeless ?
			(call->answer.finish_reason != NULL &&
			 strcmp(call->answer.finish_reason, "length") == 0 ? "Raise max_tokens." :
			 GetDatabaseEncoding() == PG_UTF8 ?
			 "Text cannot hold the character \\u0000: ask again, or for an answer without it." :
			 "Use a database with encoding UTF8.") :
			"Ask for a shorter answer, or have a superuser raise llm_gateway.max_response_size.";
	failure.reword = llmgw_call_reword(call);
	llmgw_call_settle(call, &failure);

	drop_attempt(call);
	call->fresh = false;
	return llmgw_call_after_failure(call, &failure);
}

/*
 * Whether the last attempt may have left a connection to this provider behind
 * that is not worth another one: kept by libcurl, but half closed, or out of
 * step.
 */
static bool
connection_suspect(const LlmCall *call, const LlmProvider *provider)
{
	const LlmAttempt *last = call->nattempts > 0 ?
	&call->attempts[call->nattempts - 1] : NULL;

	return last != NULL && last->model->provider == provider &&
		(last->error == LLMGW_NETWORK || last->error == LLMGW_MALFORMED ||
		 last->error == LLMGW_TIMEOUT);
}

/*
 * Lets the dialect build the request.  False when the prompt cannot be sent: it
 * is no text in the database's encoding, or too large as JSON.  That is an
 * outcome of this call, and must not end a batch with paid answers in it.  What
 * runs here only computes: there is nothing to clean up but memory.
 */
static bool
build_request(LlmCall *call, const LlmDialect *dialect, LlmHttpRequest *request)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = true;

	PG_TRY();
	{
		if (call->plain)
			llmgw_probe_request(call, request);
		else if (call->inputs != NULL)
			dialect->build_embedding(&call->wire, request);
		else
			dialect->build_request(&call->wire, request);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(call->context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION &&
			ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
		MemoryContextSwitchTo(context);
		call->message = MemoryContextStrdup(call->context,
											psprintf("the %s cannot be sent: %s",
													 call->inputs ? "input" : "prompt",
													 error->message));
		ok = false;
	}
	PG_END_TRY();
	return ok;
}

bool
llmgw_call_send(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	const LlmModel *model = call->route.candidates[call->current].model;
	const LlmProvider *p = model->provider;
	LlmHttpRequest *request;
	LlmCandidate *c = &call->route.candidates[call->current];
	LlmInstant	now = llmgw_now();
	int64		left_ms = call->deadline == LLMGW_NEVER ? 0 :
	Max((call->deadline - now + 999) / 1000, 1);

	call->attempt_context = AllocSetContextCreate(call->context,
												  "llm_gateway attempt",
												  ALLOCSET_DEFAULT_SIZES);
	call->scratch = AllocSetContextCreate(call->attempt_context,
										  "llm_gateway parsing",
										  ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(call->attempt_context);

	call->wire.base_url = p->base_url;
	call->wire.options = p->options;
	call->wire.model = model->upstream_name;
	call->wire.token_param = model->token_param;
	call->wire.no_usage = model->no_usage;
	call->wire.stream = p->stream && call->inputs == NULL;
	llmgw_call_put_messages(call, c, c->advised ? spec->advice : spec->system_prompt);
	call->wire.tools = spec->tools;
	call->wire.tool_choice = spec->tool_choice;
	call->wire.schema = c->advised ? NULL : spec->schema;
	call->wire.max_tokens = call->output_cap > 0 ? call->output_cap : spec->max_tokens;
	call->wire.max_output_tokens = model->max_output_tokens;

	/* more than a model can give is refused, not ignored */
	if (model->max_output_tokens > 0)
		call->wire.max_tokens = Min(call->wire.max_tokens, model->max_output_tokens);
	call->wire.has_temperature = spec->has_temperature;
	call->wire.temperature = spec->temperature;
	call->wire.params = spec->params;
	call->wire.ninputs = call->ninputs;
	call->wire.inputs = call->inputs;
	call->wire.dimensions = spec->dimensions;
	llmgw_call_degrade(call);

	request = palloc0(sizeof(LlmHttpRequest));
	if (!build_request(call, p->dialect, request))
	{
		LlmAttempt *a = llmgw_call_add_attempt(call);

		a->error = LLMGW_INVALID_REQUEST;
		a->message = call->message;
		return llmgw_call_end_stopped(call);
	}
	request->connect_ms = p->connect_ms;
	request->first_byte_ms = model->first_byte_ms >= 0 ? model->first_byte_ms : p->first_byte_ms;
	request->idle_ms = p->idle_ms;
	request->total_ms = model->total_ms >= 0 ? model->total_ms : p->total_ms;
	call->deadline_binds = left_ms > 0 &&
		(request->total_ms == 0 || left_ms <= request->total_ms);
	if (call->deadline_binds)
		request->total_ms = (int) Min(left_ms, INT_MAX);
	request->fresh = call->fresh || !p->keep_connection || connection_suspect(call, p);
	request->last = !p->keep_connection;
	request->max_response = (int64) llmgw_max_response_size * 1024;
	request->ca_file = llmgw_ca_file && llmgw_ca_file[0] ? llmgw_ca_file : NULL;
	request->proxy = llmgw_proxy && llmgw_proxy[0] ? llmgw_proxy : NULL;

	llmgw_answer_init(&call->answer, call->wire.api_key);
	llmgw_sse_init(&call->parser, p->dialect->framing);
	call->streaming = false;
	call->timer.at = 0;
	call->first_content = 0;
	call->attempt_started = now;
	call->state = LLMGW_CALL_SENDING;
	if (!call->attempt_noted)
	{
		char	   *reason = llmgw_call_note_attempt(call);

		if (reason != NULL)
			return llmgw_call_end_unrecorded(call, reason);
	}
	call->transfer = llmgw_http_start(call->attempt_context, request,
									  call->ready.list, call);
	llmgw_call_watch_attempt(call);
	if (call->transfer->outcome != LLMGW_HTTP_RUNNING)
		llmgw_ready_mark(&call->ready);
	return false;
}

static void
describe_messages(LlmCall *call, LlmRouteQuery *query)
{
	const LlmSpec *spec = call->spec;

	if (call->messages == NULL)
		call->messages = llmgw_messages_from_prompt(call->prompt);
	call->characters = call->messages->characters + spec->extra_characters +
		(spec->system_prompt ? pg_mbstrlen(spec->system_prompt) : 0);
	query->characters = call->characters;
	query->needs_tools = call->messages->has_tools ||
		(spec->tools != NULL && spec->tool_choice.mode != LLMGW_CHOICE_NONE);
	query->params = spec->params;
	query->needs_schema = spec->schema != NULL;
	query->may_advise = spec->advice != NULL;
	query->needs_images = call->messages->has_images;
	query->needs_image_urls = call->messages->has_image_urls;
}

/* Each input has the model's window for itself. */
static void
describe_inputs(LlmCall *call, LlmRouteQuery *query)
{
	query->needs_embedding = true;
	for (int i = 0; i < call->ninputs; i++)
	{
		int64		characters = pg_mbstrlen(call->inputs[i]);

		call->characters += characters;
		query->longest_input = Max(query->longest_input, characters);
	}
	query->characters = call->characters;
}

void
llmgw_spec_query(const LlmSpec *spec, LlmRouteQuery *query)
{
	query->model = spec->model;
	query->task = spec->task;
	query->min_tier = spec->min_tier;
	query->role = spec->role;
	query->tags = spec->tags;
	query->max_tokens = spec->max_tokens;
	query->only_model = spec->only_model;
	query->optimize = spec->optimize;
}

void
llmgw_call_route(LlmCall *call, bool peek)
{
	const LlmSpec *spec = call->spec;
	LlmRouteQuery query = {0};
	const LlmCandidate *first;

	llmgw_spec_query(spec, &query);
	query.peek = peek;
	if (call->inputs != NULL)
		describe_inputs(call, &query);
	else
		describe_messages(call, &query);
	llmgw_call_budgets(call);
	if (call->tier.nbudgets > 0)
		query.budgets = &call->tier;
	llmgw_route(spec->config, &query, &call->route);
	if (call->preferred != NULL)
		llmgw_route_prefer(&call->route, call->preferred);
	first = llmgw_route_first(&call->route);
	if (first != NULL)
		call->estimate = first->estimate;
}

bool
llmgw_call_start(LlmCall *call, dlist_head *ready_list)
{
	const LlmSpec *spec = call->spec;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	bool		done;

	Assert(call->state == LLMGW_CALL_NEW);
	call->ready.list = ready_list;
	call->started = llmgw_now();
	if (call->deadline == 0)
		call->deadline = llmgw_after_ms(call->started, spec->timeout_ms);

	if (spec->probe != NULL)
	{
		const char *reason = llmgw_probe_route(call);

		llmgw_call_describe(call);
		if (reason != NULL)
			llmgw_call_fail(call, LLMGW_NO_CANDIDATE, reason);
		done = reason != NULL || llmgw_call_next(call);
	}
	else
	{
		llmgw_call_describe(call);

		/* a place that is settled takes no turn */
		llmgw_call_route(call, call->preferred != NULL);
		done = llmgw_call_begin(call);
	}
	MemoryContextSwitchTo(old);
	return done;
}

/*
 * Whether nothing that may still come can change the attempt's outcome.  After
 * a refusal the stream goes on to say what it cost.
 */
static bool
decided(const LlmAnswer *answer)
{
	return answer->ended || (answer->error != LLMGW_OK && !answer->hopeless &&
							 answer->error != LLMGW_CONTENT_POLICY);
}

static bool
on_event(void *arg, const char *name, char *data, size_t len)
{
	LlmCall    *call = arg;
	const LlmDialect *dialect =
	call->route.candidates[call->current].model->provider->dialect;

	MemoryContext old = MemoryContextSwitchTo(call->scratch);

	dialect->parse_event(&call->wire, name, data, len, &call->answer);
	MemoryContextSwitchTo(old);
	MemoryContextReset(call->scratch);
	return !decided(&call->answer);
}

/* Something happened on the attempt's transfer, or its grace is over. */
static bool
advance_sending(LlmCall *call)
{
	LlmTransfer *t = call->transfer;

	if (t->len > 0 && !call->streaming && call->inputs == NULL && !call->plain)
		call->streaming = llmgw_judge_is_stream(t, call->parser.framing);
	if (t->len > 0 && call->streaming)
	{
		if (!decided(&call->answer))
			llmgw_sse_feed(&call->parser, t->data, t->len, on_event, call);
		if (call->first_content == 0 &&
			(call->answer.text.len > 0 || call->answer.ntool_calls > 0))
			call->first_content = t->last_byte;
		llmgw_http_consume(t);
	}
	if (t->outcome == LLMGW_HTTP_STALE && !call->fresh)
	{
		/* nothing was sent: the same attempt, on a connection of its own */
		drop_attempt(call);
		call->fresh = true;
		return llmgw_call_send(call);
	}
	if (t->outcome != LLMGW_HTTP_RUNNING)
	{
		if (call->streaming && !decided(&call->answer))
			llmgw_sse_finish(&call->parser, on_event, call);
		return judge_attempt(call);
	}
	if (decided(&call->answer) && !call->answer.ended)
		return judge_attempt(call);
	if (call->answer.ended)
	{
		if (call->timer.at == 0)
			llmgw_timer_set(&call->timer, llmgw_after_ms(llmgw_now(), GRACE_MS));
		else if (!call->timer.armed)
			return judge_attempt(call);
	}
	return false;
}

bool
llmgw_call_advance(LlmCall *call)
{
	MemoryContext old = MemoryContextSwitchTo(call->context);
	bool		done = false;

	switch (call->state)
	{
		case LLMGW_CALL_SENDING:
			MemoryContextSwitchTo(call->attempt_context);
			done = advance_sending(call);
			break;
		case LLMGW_CALL_BACKOFF:
			if (call->timer.armed)
				break;
			done = llmgw_call_next(call);
			break;
		case LLMGW_CALL_QUEUED:
			done = llmgw_call_next(call);
			break;
		case LLMGW_CALL_FOLLOWING:
			done = llmgw_call_follow(call);
			break;
		case LLMGW_CALL_NEW:
		case LLMGW_CALL_DONE:
			Assert(false);
			break;
	}
	MemoryContextSwitchTo(old);
	return done;
}
