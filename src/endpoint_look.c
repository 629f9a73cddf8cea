/*-------------------------------------------------------------------------
 *
 * endpoint_look.c
 *	  Whether a call would be admitted to an endpoint, without admitting it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "endpoint_private.h"

LlmAdmit
llmgw_endpoint_look(const LlmAdmitQuery *query, LlmRefusal *refusal)
{
	const LlmProvider *provider = query->provider;
	LlmBreakerAsk who = llmgw_endpoint_ask(provider, query->who);
	int64		probe_us = llmgw_endpoint_probe_us(provider);
	uint64		mark = llmgw_endpoint_mark(provider, query->key);
	LlmEndpoint *slot = llmgw_endpoint_lock(provider, false);
	LlmBreakerPass pass;
	LlmBreakerAnswer answer;
	LlmObstacle obstacle;
	LlmInstant	now;

	memset(refusal, 0, sizeof(*refusal));
	if (slot == NULL)
		return LLMGW_ADMITTED;
	now = llmgw_now();
	answer = llmgw_breaker_ask(&slot->breaker, who, mark, probe_us, now, true, &pass);
	refusal->until = slot->breaker.probe_at;
	refusal->reason = slot->breaker.reason;
	obstacle = LLMGW_OBSTACLE_NONE;
	if (answer == LLMGW_BREAKER_PASS || answer == LLMGW_BREAKER_PROBE)
	{
		obstacle = llmgw_limiter_obstacle(&slot->limiter, LLMGW_WAITERS, &provider->limits,
										  now + query->rank * LLMGW_RANK_US, query->tokens,
										  now, &refusal->until);
		refusal->by_provider = slot->limiter.limited_until > now;
	}
	LWLockRelease(&slot->lock);

	switch (answer)
	{
		case LLMGW_BREAKER_REFUSED:
			return LLMGW_ADMIT_OPEN;
		case LLMGW_BREAKER_STOPPED:
			return LLMGW_ADMIT_STOPPED;
		case LLMGW_BREAKER_PASS:
		case LLMGW_BREAKER_PROBE:
			break;
	}
	return obstacle == LLMGW_OBSTACLE_NONE ? LLMGW_ADMITTED : LLMGW_ADMIT_LATER;
}
