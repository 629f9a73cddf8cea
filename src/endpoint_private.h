/*-------------------------------------------------------------------------
 *
 * endpoint_private.h
 *	  What endpoint*.c share: the slot, the table of slots, places in queues.
 *
 * Locks: see endpoint.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ENDPOINT_PRIVATE_H
#define LLMGW_ENDPOINT_PRIVATE_H

#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/s_lock.h"

#include "endpoint.h"

/* events that wait for the worker, of one endpoint; beyond that they are counted */
#define LLMGW_ENDPOINT_EVENTS	16

/* places in queues, for each process that the server may have */
#define LLMGW_WAITERS_EACH		16

struct LlmEndpoint
{
	LWLock		lock;			/* for what is below, but atomics */

	/*
	 * Whose slot it is; InvalidOid: nobody's.  Changed under the table's lock
	 * and the slot's own, both exclusive: either is enough to read it.
	 */
	Oid			database;
	uint64		name_hash;		/* of the provider's whole name */
	uint64		fingerprint;
	char		provider[128];	/* its name, clipped at a character */

	/* for who looks for a slot to give away; of the monotonic clock */
	LlmInstant	last_used;

	LlmBreaker	breaker;
	LlmBreakerSettings settings;	/* as they were seen last; for the worker */
	LlmLimiter	limiter;

	/* changed under the lock, read without */
	pg_atomic_uint32 in_flight;
	pg_atomic_uint32 closed;	/* 1: the breaker is */
	pg_atomic_uint64 parked_mark;	/* the breaker's; 0: it is not parked */
	pg_atomic_uint64 due_at;	/* LlmInstant: from when any call may probe it */
	pg_atomic_uint64 latency_us;	/* decaying mean; 0: none yet */
	pg_atomic_uint64 failure_ppm;	/* decaying share of failures, in
									 * millionths */
	pg_atomic_uint64 settled_at;	/* LlmInstant: when both were last updated */

	uint64		successes;
	uint64		failures;
	LlmErrorClass last_error;
	TimestampTz last_error_at;
	char		last_message[160];
	TimestampTz last_probe_at;
	bool		last_probe_ok;

	/*
	 * A ring: nevents of them from first_event on; nshown were copied by the
	 * worker and are forgotten once it has committed.
	 */
	int			first_event;
	int			nevents;
	int			nshown;
	int			lost;			/* since the last that had room */
	LlmBreakerEvent events[LLMGW_ENDPOINT_EVENTS];
};

/* Events of a database that are in some slot, so that its worker need not look. */
typedef struct LlmEndpointShared
{
	pg_atomic_uint64 overflows;
	pg_atomic_uint64 nevents;	/* of all databases */
	pg_atomic_uint64 taken;		/* counts slots that got an owner, before it
								 * can be found there */

	/* protects free_waiter and the chain of free places by their next */
	slock_t		mutex;
	int			free_waiter;	/* LLMGW_NO_WAITER: none */
	int			nwaiters;
	Size		waiters_offset; /* from the start of this struct */

	int			nslots;
	LlmEndpoint slots[FLEXIBLE_ARRAY_MEMBER];
} LlmEndpointShared;

extern LlmEndpointShared *llmgw_endpoints;

#define LLMGW_WAITERS \
	((LlmWaiter *) ((char *) llmgw_endpoints + llmgw_endpoints->waiters_offset))

/* What a change of a breaker is told by. */
typedef struct LlmBreakerBefore
{
	LlmBreakerState state;
	LlmBreakerReason reason;
	int			nfailures;
} LlmBreakerBefore;

/* Under the slot's lock, before anything that may change the breaker. */
static inline LlmBreakerBefore
llmgw_endpoint_before(const LlmEndpoint *slot)
{
	return (LlmBreakerBefore)
	{
		slot->breaker.state, slot->breaker.reason, slot->breaker.nfailures
	};
}

/*
 * The provider's slot, its lock held exclusively; NULL: there is none, or with
 * create none to be had.  With create last_used is the present moment.
 */
extern LlmEndpoint *llmgw_endpoint_lock(const LlmProvider *provider, bool create);

/*
 * Locks a slot that was remembered; false, nothing held, when it is another
 * endpoint's by now.
 */
extern bool llmgw_endpoint_relock(LlmEndpoint *slot, const LlmProvider *provider);

/*
 * Under the slot's lock, after anything that may have changed the breaker: keeps
 * an event if its state or reason is another than before, and what is read
 * without the lock.  The caller wakes the worker afterwards (it must not
 * under the lock) when this returns true.
 */
extern bool llmgw_endpoint_note_change(LlmEndpoint *slot, const LlmBreakerBefore *before,
									   LlmErrorClass error, const char *message);

/* Asks for a worker and wakes it; not while aborting. */
extern void llmgw_endpoint_wake_worker(void);

/*
 * Under the slot's lock: what an attempt says of how the endpoint is doing.
 * endpoint_health.c.
 */
extern void llmgw_endpoint_learn(LlmEndpoint *slot, const LlmSettlement *settlement,
								 LlmInstant now);

/*
 * What a call is to the provider's breaker: whether it may probe, because no
 * worker will.  Takes a lock on first use: not under a slot's.
 */
extern LlmBreakerAsk llmgw_endpoint_ask(const LlmProvider *provider, LlmBreakerAsk who);

/*
 * Identifies the provider's row and key (NULL: none): what a parked endpoint is
 * parked for.
 */
extern uint64 llmgw_endpoint_mark(const LlmProvider *provider, const char *key);

/*
 * Whether a breaker that has this parked_mark is parked for another row or key
 * than there is now: the next call closes it.  Reads the key: not under a lock.
 */
extern bool llmgw_endpoint_outdated(const LlmProvider *provider, uint64 parked_mark);

/* How long a probe's pass is good: longer than a call to it may take. */
extern int64 llmgw_endpoint_probe_us(const LlmProvider *provider);

/* The moment as people read it. */
extern TimestampTz llmgw_endpoint_wall_time(LlmInstant at);

#endif							/* LLMGW_ENDPOINT_PRIVATE_H */
