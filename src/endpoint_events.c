/*-------------------------------------------------------------------------
 *
 * endpoint_events.c
 *	  What a database's worker is told: changes of state, and whom to probe.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "endpoint_private.h"
#include "shmem.h"

/*
 * How long after its last use a slot whose breaker nobody probes is looked at:
 * its row may have gone, or never have been committed.  What an operator did is
 * kept for longer, since that row may be committed yet.
 */
#define CHECK_PARKED_US		INT64CONST(10000000)
#define CHECK_OPENED_US		INT64CONST(3600000000)

/* Locks a slot of this database; false, nothing held: it is not. */
static bool
lock_own(LlmEndpoint *slot)
{
	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (slot->database == MyDatabaseId)
		return true;
	LWLockRelease(&slot->lock);
	return false;
}

/* A slot that is given away loses its events: nshown goes with them. */
int
llmgw_endpoint_events(LlmBreakerEvent *events, int max)
{
	int			n = 0;

	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];

		if (!lock_own(slot))
			continue;
		slot->nshown = Min(slot->nevents, max - n);
		for (int e = 0; e < slot->nshown; e++)
			events[n++] = slot->events[(slot->first_event + e) % LLMGW_ENDPOINT_EVENTS];
		LWLockRelease(&slot->lock);
	}
	return n;
}

void
llmgw_endpoint_forget_events(void)
{
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];

		if (!lock_own(slot))
			continue;
		slot->first_event = (slot->first_event + slot->nshown) % LLMGW_ENDPOINT_EVENTS;
		slot->nevents -= slot->nshown;
		pg_atomic_fetch_sub_u64(&llmgw_endpoints->nevents, slot->nshown);
		slot->nshown = 0;
		LWLockRelease(&slot->lock);
	}
}

bool
llmgw_endpoint_has_events(void)
{
	return pg_atomic_read_u64(&llmgw_endpoints->nevents) > 0;
}

/*
 * Under the slot's lock: when it is to be probed; LLMGW_NEVER: not by the worker.
 * *check: it is not to be probed then, but may be nobody's any more.
 */
static LlmInstant
probe_time(const LlmEndpoint *slot, int64 idle_us, bool *check)
{
	const LlmBreaker *breaker = &slot->breaker;

	*check = false;
	if (breaker->state == LLMGW_BREAKER_CLOSED)
		return idle_us > 0 ? slot->last_used + idle_us : LLMGW_NEVER;

	/* see llmgw_breaker_may_probe_at() */
	if (breaker->reason != LLMGW_BREAKER_OUTAGE)
	{
		*check = true;
		return slot->last_used +
			(breaker->reason == LLMGW_BREAKER_OPERATOR ? CHECK_OPENED_US : CHECK_PARKED_US);
	}
	return breaker->state == LLMGW_BREAKER_HALF_OPEN ?
		Max(breaker->probe_at, breaker->probe_until) : breaker->probe_at;
}

static int
cmp_due(const void *a, const void *b)
{
	LlmInstant	x = ((const LlmProbeDue *) a)->at;
	LlmInstant	y = ((const LlmProbeDue *) b)->at;

	return x < y ? -1 : (x > y ? 1 : 0);
}

LlmProbeDue *
llmgw_endpoint_probes(int64 idle_us, int *n)
{
	int			allocated = 16;
	LlmProbeDue *due = palloc(sizeof(LlmProbeDue) * allocated);

	*n = 0;
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];
		LlmProbeDue *next;
		bool		check;

		if (*n == allocated)
		{
			allocated *= 2;
			due = repalloc(due, sizeof(LlmProbeDue) * allocated);
		}
		if (!lock_own(slot))
			continue;
		next = &due[*n];
		memset(next, 0, sizeof(*next));
		next->at = probe_time(slot, idle_us, &check);
		if (next->at != LLMGW_NEVER)
		{
			memcpy(next->provider, slot->provider, sizeof(next->provider));
			next->fingerprint = slot->fingerprint;
			next->check = check;
			next->steady = slot->breaker.state == LLMGW_BREAKER_CLOSED;
			(*n)++;
		}
		LWLockRelease(&slot->lock);
	}
	qsort(due, *n, sizeof(LlmProbeDue), cmp_due);
	return due;
}
