/*-------------------------------------------------------------------------
 *
 * call_next.c
 *	  Which candidate a call is sent to next, and what its failure leads to.
 *
 * Candidates are looked at in their order, those of a failure domain that has
 * failed in this call after all others, and each is asked whether it takes the
 * call now (endpoint.h).  The first that does gets it.
 *
 * One that has no room now may have some soon.  A call waits there for as long
 * as the policy of rate_limit backs off, but at most half of the time that it
 * has, before it goes to another model; another provider of the same model is as
 * good, and is asked at once.  Where there is nothing else it waits until its
 * deadline: for the places and the minutes of the provider's row however long
 * that takes, as for a lock, and for a provider that asks for pauses at most
 * MAX_WAIT_MS in all.  One whose breaker is open is skipped; when nothing else is
 * left, of those that have room the one whose probe is nearest gets the call all
 * the same.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/memutils.h"

#include "call.h"

/* longest wait for a provider that asks for pauses, and of a probe */
#define MAX_WAIT_MS			60000

/* the same where another candidate is left */
#define MAX_WAIT_BESIDE_MS	10000

/*
 * The same for limits that are used up: providers tell when all of them will be
 * there again, and a part is there earlier.
 */
#define MAX_RESET_MS		5000

/* so often a waiting call looks for itself, give or take a fifth */
#define LOOK_US				LLMGW_LOOK_US

static LlmCandidate *
current_candidate(LlmCall *call)
{
	return &call->route.candidates[call->current];
}

/* The key of a candidate cannot be read: it has failed without an attempt. */
static bool
key_unreadable(LlmCall *call, LlmCandidate *c, const char *reason)
{
	LlmAttempt *a;

	c->spent = true;
	call->current = c - call->route.candidates;
	a = llmgw_call_add_attempt(call);
	a->error = LLMGW_AUTH;
	a->message = MemoryContextStrdup(call->context, reason);
	return !llmgw_config_policy(call->spec->config, LLMGW_AUTH,
								c->model->provider->name)->fallback;
}

/* A candidate that was waited for long enough, or in vain. */
static void
give_up_waiting(LlmCall *call, LlmCandidate *c)
{
	LlmAttempt *a;
	char	   *problem;

	llmgw_endpoint_abandon(&call->admission);
	problem = llmgw_call_refusal(call, c);
	c->spent = true;
	call->current = c - call->route.candidates;
	a = llmgw_call_add_attempt(call);
	a->error = LLMGW_RATE_LIMIT;
	a->message = MemoryContextStrdup(call->context, problem);
}

/* what an admission is asked for */
static void
describe_query(LlmCall *call, const LlmCandidate *c, LlmAdmitQuery *query)
{
	query->provider = c->model->provider;
	query->key = call->wire.api_key;
	query->who = call->spec->ask;
	query->rank = call->spec->priority->rank;
	query->tokens = 0;
	if (query->provider->limits.tokens > 0)
	{
		LlmUsage	expected;

		llmgw_estimate(c->model, call->characters, call->spec->max_tokens, &expected);
		query->tokens = expected.input + expected.output;
	}
	query->probe = call->spec->probe != NULL;
	query->ready = &call->ready;
}

/* No budget has room for a candidate: it is done with. */
static void
give_up_for_budget(LlmCall *call, LlmCandidate *c, const char *shortage)
{
	llmgw_endpoint_abandon(&call->admission);
	c->shortage = MemoryContextStrdup(call->context, shortage);
	c->spent = true;
	if (!llmgw_call_keeps_tier(call))
		return;
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		LlmCandidate *other = &call->route.candidates[i];

		if (other->dropped == NULL && !other->spent &&
			other->model->tier->rank > c->model->tier->rank)
		{
			other->shortage = psprintf("priority \"%s\" is not served by a worse tier for want of money",
									   call->spec->priority->name);
			other->short_of = c->short_of;
			other->spent = true;
		}
	}
}

/*
 * The call was admitted to a candidate: sends it, if the budgets have room.  Or
 * else the candidate is done with, and false.
 */
static bool
send_to(LlmCall *call, LlmCandidate *c, LlmInstant waited_since, bool *ended)
{
	const char *shortage = llmgw_call_reserve(call, c, &c->short_of);

	if (shortage != NULL)
	{
		give_up_for_budget(call, c, shortage);
		return false;
	}
	if (waited_since != 0)
		call->queued_us += llmgw_now() - waited_since;
	llmgw_timer_cancel(&call->timer);
	call->current = c - call->route.candidates;
	*ended = llmgw_call_send(call);
	return true;
}

/*
 * Until when it may wait at a candidate where it has waited since then, given
 * what else there is: another model needs time to answer, too.
 */
static LlmInstant
patience_ends(const LlmCall *call, const LlmCandidate *c, LlmInstant since, LlmInstant now,
			  bool alternatives)
{
	const LlmPolicy *policy;
	LlmInstant	end = LLMGW_NEVER;

	if (!alternatives)
	{
		if (call->spec->probe != NULL)
			end = llmgw_after_ms(since, MAX_WAIT_MS);
		else if (c->refusal.by_provider)
			end = now + INT64CONST(1000) * MAX_WAIT_MS - call->paused_us;
		return Min(end, call->deadline);
	}
	policy = llmgw_config_policy(call->spec->config, LLMGW_RATE_LIMIT,
								 c->model->provider->name);
	end = since + INT64CONST(1000) * Min(policy->backoff_ms, MAX_WAIT_BESIDE_MS);
	if (call->deadline != LLMGW_NEVER)
		end = Min(end, since + Max(call->deadline - since, 0) / 2);
	return end;
}

/* Whether it makes sense to wait on at a candidate that has no room now. */
static bool
may_wait(const LlmCall *call, const LlmCandidate *c, LlmInstant since, LlmInstant now,
		 bool alternatives)
{
	LlmInstant	end = patience_ends(call, c, since, now, alternatives);

	return now < end && (c->refusal.until == LLMGW_NEVER || c->refusal.until <= end);
}

/* Into the queue of a candidate, and sleep. */
static bool
wait_for(LlmCall *call, LlmCandidate *c, LlmInstant since, bool alternatives)
{
	LlmAdmitQuery query;
	LlmInstant	now = llmgw_now();
	LlmInstant	at;

	describe_query(call, c, &query);
	llmgw_endpoint_wait(&call->admission, &query);
	at = now + (LlmInstant) (LOOK_US * (0.8 + 0.4 * pg_prng_double(&pg_global_prng_state)));
	at = Min(at, c->refusal.until);
	at = Min(at, patience_ends(call, c, since, now, alternatives));
	call->paused_at = c->refusal.by_provider ? now : 0;
	call->state = LLMGW_CALL_QUEUED;
	llmgw_timer_set(&call->timer, Max(at, now + 1000));
	return false;
}

/* Whether a candidate can still take this call, as far as the call goes. */
static bool
is_left(const LlmCall *call, const LlmCandidate *c)
{
	if (c->dropped != NULL || c->spent)
		return false;

	/* only a larger window helps a prompt that was too long */
	return call->smallest_window == 0 || c->model->context_window > call->smallest_window;
}

/*
 * One look at all candidates: sends to the first that takes the call.  Otherwise
 * *later is the first that has no room now, *open the one with an open breaker
 * whose probe is nearest.  *ended: the call has ended.
 */
static bool
look_around(LlmCall *call, LlmCandidate **later, LlmCandidate **open, bool *ended)
{
	LlmInstant	waited_since = call->admission.queued_at;

	*later = NULL;
	*open = NULL;
	*ended = false;
	for (int pass = 0; pass < 2; pass++)
	{
		for (int i = 0; i < call->route.ncandidates; i++)
		{
			LlmCandidate *c = &call->route.candidates[i];
			LlmAdmitQuery query;
			char	   *reason = NULL;

			if (!is_left(call, c) || c->behind != (pass == 1))
				continue;

			/* it has patience with that one: only the same model will do */
			if (*later != NULL && strcmp((*later)->model->name, c->model->name) != 0)
			{
				LlmInstant	now = llmgw_now();

				if (may_wait(call, *later, waited_since ? waited_since : now, now, true))
					continue;
			}
			if (!llmgw_config_key(c->model->provider, &call->wire.api_key, &reason))
			{
				if (key_unreadable(call, c, reason))
				{
					*ended = llmgw_call_end_stopped(call);
					return true;
				}
				continue;
			}
			describe_query(call, c, &query);
			c->refused = llmgw_endpoint_admit(&call->admission, &query, &c->refusal);
			switch (c->refused)
			{
				case LLMGW_ADMITTED:
					if (send_to(call, c, waited_since, ended))
						return true;
					break;
				case LLMGW_ADMIT_OPEN:
					if (*open == NULL || c->refusal.until < (*open)->refusal.until)
						*open = c;
					break;
				case LLMGW_ADMIT_LATER:
					if (*later == NULL)
						*later = c;
					break;
				case LLMGW_ADMIT_STOPPED:
					break;
			}
		}
	}
	return false;
}

/* Whether another candidate than this one could take the call, as far as is known. */
static bool
has_alternatives(const LlmCall *call, const LlmCandidate *than)
{
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];
		LlmHealth	health;

		if (c == than || !is_left(call, c) || c->refused != LLMGW_ADMITTED)
			continue;

		/* this call may not have asked it yet */
		llmgw_endpoint_health(c->model->provider, &health);
		if (health.closed || health.due)
			return true;
	}
	return false;
}

/*
 * Nothing is left but candidates with an open breaker: the nearest to its probe
 * gets the call, and no other does.
 */
static bool
force(LlmCall *call, LlmCandidate *c, bool *ended)
{
	LlmAdmitQuery query;
	LlmAdmit	answer;
	char	   *reason = NULL;

	if (!llmgw_config_key(c->model->provider, &call->wire.api_key, &reason))
		return false;
	describe_query(call, c, &query);
	query.who = LLMGW_ASK_FORCE;
	answer = llmgw_endpoint_admit(&call->admission, &query, &c->refusal);

	/* nobody queues up for a provider that is down: it stays refused for that */
	if (answer == LLMGW_ADMIT_LATER)
		return false;
	c->refused = answer;
	if (answer != LLMGW_ADMITTED)
		return false;
	return send_to(call, c, 0, ended);
}

/* No attempt could be made: what is in the way is then the answer. */
static void
blame_refusals(LlmCall *call)
{
	if (call->nattempts > 0)
		return;
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		LlmCandidate *c = &call->route.candidates[i];
		LlmAttempt *a;

		/* an open breaker does not keep a call from one that is paid for */
		if (c->dropped != NULL || c->refused == LLMGW_ADMITTED || c->shortage != NULL)
			continue;
		call->current = i;
		a = llmgw_call_add_attempt(call);
		a->error = c->refused == LLMGW_ADMIT_LATER ? LLMGW_RATE_LIMIT : LLMGW_UNAVAILABLE;
		a->message = llmgw_call_refusal(call, c);
		c->spent = true;
	}
}

/*
 * The call's time is over while it waited, in a queue or after a failure.  A
 * request that cannot be waited for would be paid all the same.
 */
static bool
out_of_time(LlmCall *call)
{
	if (call->state == LLMGW_CALL_BACKOFF)
	{
		llmgw_call_fail(call, LLMGW_TIMEOUT,
						psprintf("the call was not done within its %d ms (timeout_ms)",
								 call->spec->timeout_ms));
		return true;
	}
	if (call->admission.queued_at != 0)
		call->queued_us += llmgw_now() - call->admission.queued_at;
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		LlmCandidate *c = &call->route.candidates[i];

		if (is_left(call, c) && c->refused == LLMGW_ADMIT_LATER)
		{
			give_up_waiting(call, c);
			break;
		}
	}
	llmgw_endpoint_abandon(&call->admission);
	return llmgw_call_end_failed(call);
}

bool
llmgw_call_next(LlmCall *call)
{
	LlmCandidate *later;
	LlmCandidate *open;
	const LlmModel *forced;
	LlmInstant	since = call->admission.queued_at;
	bool		ended;

	if (call->paused_at != 0)
		call->paused_us += llmgw_now() - call->paused_at;
	call->paused_at = 0;
	if ((call->state == LLMGW_CALL_QUEUED || call->state == LLMGW_CALL_BACKOFF) &&
		llmgw_now() >= call->deadline)
		return out_of_time(call);
	for (;;)
	{
		if (look_around(call, &later, &open, &ended))
			return ended;
		if (later != NULL)
		{
			LlmInstant	now = llmgw_now();
			bool		alternatives = has_alternatives(call, later);

			if (since == 0)
				since = now;
			if (may_wait(call, later, since, now, alternatives))
				return wait_for(call, later, since, alternatives);
			call->queued_us += now - since;
			since = 0;
			give_up_waiting(call, later);
			continue;
		}

		/* a probe goes past an open breaker only if it asks for that */
		forced = call->forced;
		if (open == NULL || call->spec->probe != NULL ||
			(forced != NULL && forced != open->model))
			break;
		call->forced = open->model;
		if (force(call, open, &ended))
			return ended;

		/* nothing was sent there: the next one is the nearest that can be */
		call->forced = forced;
		open->spent = true;
	}
	llmgw_endpoint_abandon(&call->admission);
	if (llmgw_call_rescued(call))
		return true;
	blame_refusals(call);
	return llmgw_call_end_failed(call);
}

/* What an attempt shows of its endpoint. */
static LlmBreakerOutcome
outcome_of(const LlmCall *call, const LlmAttempt *a, const LlmFailure *failure)
{
	const LlmPolicy *policy;

	if (failure->error == LLMGW_OK)
		return call->spec->probe != NULL ? LLMGW_OUTCOME_ALIVE : LLMGW_OUTCOME_SUCCESS;

	/* a key that may not list models may be good for calls: one finds out */
	if (failure->error == LLMGW_AUTH && call->plain && a->http_status == 403)
		return LLMGW_OUTCOME_ALIVE;
	if (failure->error == LLMGW_AUTH)
		return LLMGW_OUTCOME_AUTH;
	if (failure->error == LLMGW_QUOTA)
		return LLMGW_OUTCOME_QUOTA;

	/*
	 * The caller's impatience, or its encoding, is nobody's fault.  But where
	 * all callers have less time than first_byte_timeout, nobody else would
	 * find out that a provider has gone silent.
	 */
	if (failure->timed_out_whole && !failure->silent)
		return LLMGW_OUTCOME_NONE;
	policy = llmgw_config_policy(call->spec->config, failure->error,
								 a->model->provider->name);
	if (policy->trips_breaker && !failure->hopeless)
		return LLMGW_OUTCOME_FAILURE;
	return a->http_status > 0 ? LLMGW_OUTCOME_ALIVE : LLMGW_OUTCOME_NONE;
}

int64
llmgw_call_pause_ms(const LlmRateInfo *info)
{
	int64		reset = 0;

	if (info->retry_after_ms >= 0)
		return info->retry_after_ms;
	if (info->remaining_requests == 0)
		reset = Max(reset, info->reset_requests_ms);
	if (info->remaining_tokens == 0)
		reset = Max(reset, info->reset_tokens_ms);
	return Max(Min(reset, MAX_RESET_MS), 0);
}

void
llmgw_call_settle(LlmCall *call, const LlmFailure *failure)
{
	const LlmAttempt *a = &call->attempts[call->nattempts - 1];
	LlmSettlement s = {0};

	s.outcome = outcome_of(call, a, failure);
	s.by_caller = failure->timed_out_whole;
	s.error = failure->error;
	s.message = a->message;
	s.latency_us = a->latency_us;

	/* not told: what is known to have come and gone, nothing after an error */
	s.tokens = a->usage.input + a->usage.output;
	if (failure->error == LLMGW_OK)
		s.pause_ms = failure->retry_after_ms;
	else
		s.retry_after_ms = failure->retry_after_ms;
	llmgw_endpoint_settle(&call->admission, &s);
}

/* Whether the call goes on to others after this failure. */
static bool
goes_on(LlmCall *call, LlmErrorClass error, const LlmPolicy *policy)
{
	const LlmCandidate *c = current_candidate(call);

	/*
	 * The caller's fault, unless it is said by one that answers in another's
	 * place and may be pickier.
	 */
	if (error == LLMGW_INVALID_REQUEST && c != llmgw_route_first(&call->route))
		return true;
	if (error == LLMGW_CONTEXT_LENGTH)
		call->smallest_window = Max(call->smallest_window, Max(c->model->context_window, 1));
	return policy->fallback;
}

/* Candidates that share the fate of one that failed come after the others. */
static void
put_behind(LlmCall *call, const char *failure_domain)
{
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		LlmCandidate *c = &call->route.candidates[i];

		if (strcmp(c->model->provider->failure_domain, failure_domain) == 0)
			c->behind = true;
	}
}

/* Waits, then tries the same candidate again; false: that makes no sense. */
static bool
back_off(LlmCall *call, const LlmFailure *failure, const LlmPolicy *policy)
{
	LlmCandidate *c = current_candidate(call);
	LlmHealth	health;
	LlmInstant	at;
	double		ms;

	if (c->retries >= policy->max_retries ||
		failure->retry_after_ms > (has_alternatives(call, c) ? MAX_WAIT_BESIDE_MS : MAX_WAIT_MS))
		return false;

	/* that was one failure too many, if there is somebody else */
	llmgw_endpoint_health(c->model->provider, &health);
	if (health.known && !health.closed && has_alternatives(call, c))
		return false;

	/* so that many callers that failed together do not return together */
	ms = policy->backoff_ms * (double) (1 << Min(c->retries, 10));
	ms *= 0.8 + 0.4 * pg_prng_double(&pg_global_prng_state);
	ms = Max(ms, failure->retry_after_ms);
	at = llmgw_now() + (LlmInstant) (ms * 1000);
	if (at >= call->deadline)
		return false;
	c->retries++;
	call->state = LLMGW_CALL_BACKOFF;
	llmgw_timer_set(&call->timer, at);
	return true;
}

bool
llmgw_call_after_failure(LlmCall *call, const LlmFailure *failure)
{
	LlmCandidate *c = current_candidate(call);
	const LlmPolicy *policy = llmgw_config_policy(call->spec->config, failure->error,
												  c->model->provider->name);
	bool		next;

	if (failure->timed_out_whole || call->streamed > 0)
		return llmgw_call_end_stopped(call);

	/* the server told us what it does not want: ask without it */
	if (failure->reword)
		return llmgw_call_next(call);
	if (failure->hopeless || call->spec->probe != NULL)
		return llmgw_call_end_stopped(call);

	next = goes_on(call, failure->error, policy);
	if (back_off(call, failure, policy))
		return false;
	if (!next)
		return llmgw_call_end_stopped(call);

	/* a request that could not be waited for would be paid all the same */
	if (llmgw_now() >= call->deadline)
	{
		llmgw_call_fail(call, LLMGW_TIMEOUT,
						psprintf("the call was not done within its %d ms (timeout_ms)",
								 call->spec->timeout_ms));
		return true;
	}
	c->spent = true;
	if (policy->trips_breaker)
		put_behind(call, c->model->provider->failure_domain);
	return llmgw_call_next(call);
}
