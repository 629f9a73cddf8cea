/*-------------------------------------------------------------------------
 *
 * endpoint_status.c
 *	  What operators see of an endpoint, and how they open and reset its breaker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "endpoint_private.h"

bool
llmgw_endpoint_status(const LlmProvider *provider, LlmEndpointStatus *status)
{
	LlmEndpoint *slot = llmgw_endpoint_lock(provider, false);
	LlmBreaker	breaker;
	LlmInstant	limited_until;

	if (slot == NULL)
		return false;
	memset(status, 0, sizeof(*status));
	breaker = slot->breaker;
	status->in_flight = slot->limiter.in_flight;
	status->waiting = slot->limiter.nwaiters;
	status->latency_us = pg_atomic_read_u64(&slot->latency_us);
	status->successes = slot->successes;
	status->failures = slot->failures;
	status->last_error = slot->last_error;
	memcpy(status->last_message, slot->last_message, sizeof(status->last_message));
	status->last_error_at = slot->last_error_at;
	status->last_probe_at = slot->last_probe_at;
	status->last_probe_ok = slot->last_probe_ok;
	limited_until = slot->limiter.limited_until;
	LWLockRelease(&slot->lock);

	if (llmgw_endpoint_outdated(provider, breaker.parked_mark))
		llmgw_breaker_reset(&breaker, llmgw_now());
	status->state = breaker.state;
	status->reason = breaker.reason;
	status->consecutive_failures = breaker.nfailures;
	status->opened_at = llmgw_endpoint_wall_time(breaker.opened_at);
	if (breaker.state == LLMGW_BREAKER_OPEN)
		status->next_probe_at = llmgw_endpoint_wall_time(breaker.probe_at);
	if (limited_until > llmgw_now())
		status->rate_limited_until = llmgw_endpoint_wall_time(limited_until);
	return true;
}

/* What both hands do: fn to the breaker, and whatever follows from it. */
static bool
by_hand(const LlmProvider *provider, bool lift, void (*fn) (LlmBreaker *breaker, LlmInstant now))
{
	LlmEndpoint *slot = llmgw_endpoint_lock(provider, true);
	LlmBreakerBefore before;
	bool		changed;

	if (slot == NULL)
		return false;
	before = llmgw_endpoint_before(slot);
	fn(&slot->breaker, llmgw_now());
	if (lift)
	{
		llmgw_limiter_lift(&slot->limiter);
		pg_atomic_write_u64(&slot->failure_ppm, 0);
	}
	changed = llmgw_endpoint_note_change(slot, &before, LLMGW_OK, NULL);
	LWLockRelease(&slot->lock);
	if (changed)
		llmgw_endpoint_wake_worker();
	return true;
}

bool
llmgw_endpoint_open(const LlmProvider *provider)
{
	return by_hand(provider, false, llmgw_breaker_open);
}

bool
llmgw_endpoint_reset(const LlmProvider *provider)
{
	return by_hand(provider, true, llmgw_breaker_reset);
}
