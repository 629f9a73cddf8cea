/*-------------------------------------------------------------------------
 *
 * endpoint.h
 *	  What all sessions know of an endpoint at this moment: its breaker, its
 *	  limits, how it has been doing.
 *
 * An endpoint is what a provider's row names: kind, URL and key reference, in
 * one database.  It has a slot in shared memory (llm_gateway.max_providers), found
 * by database, provider's name and the fingerprint of those three; so a row that
 * was edited, or is being edited in an open transaction, has a slot of its own,
 * with a fresh start.  Slots are taken on first use and, when there is no free
 * one, from endpoints that are closed and have not been used for the longest
 * time.  Where that gives none, the endpoint has no breaker and no limits
 * (llm_worker_status says so), and everything here lets it pass.
 *
 * WHO MAY CALL IT
 *
 * The pipeline (call.c) asks for admission before each attempt and settles it
 * afterwards; route.c and balance.h look at health; the worker probes; the
 * functions for operators open, reset and show.  breaker.h and limiter.h are
 * called from endpoint.c only.
 *
 * LOCKS
 *
 * The slots' table (which endpoint has which slot) is under
 * LLMGW_LOCK_ENDPOINTS: shared to look, exclusive to take or give away a
 * slot.  Each slot has an LWLock of its own for all that is in it, with places
 * in queues; taken exclusively for some hundred nanoseconds, never two
 * at a time, nothing waits or raises under it.  Order: table, slot, free places.
 * A process that remembers its slot takes only the slot's lock, and finds there
 * whether it is still its endpoint's.
 *
 * NOTHING STAYS BEHIND
 *
 * What is taken is in the caller's LlmAdmission, on the call's memory context:
 * its reset callback calls llmgw_endpoint_abandon(), which neither raises
 * nor allocates and may run while aborting or exiting.  A process killed outright
 * makes the server start over, with empty shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ENDPOINT_H
#define LLMGW_ENDPOINT_H

#include "datatype/timestamp.h"

#include "breaker.h"
#include "config.h"
#include "limiter.h"
#include "loop.h"

/* a slot; private to endpoint_*.c (endpoint_private.h) */
typedef struct LlmEndpoint LlmEndpoint;

extern void llmgw_endpoint_init(void);

/*
 * How a call stands with an endpoint.  Zeroed: not at all.  Part of the call, not
 * to be moved while `waiter` is taken.
 */
typedef struct LlmAdmission
{
	const LlmProvider *provider;	/* of what is held or waited for; NULL:
									 * nothing */
	LlmEndpoint *slot;			/* NULL: it has none */
	bool		held;			/* room is taken, a pass given */
	bool		probes;			/* it finds out how the endpoint is */
	LlmBreakerPass pass;
	LlmLimiterHold hold;
	uint64		mark;			/* of the provider's row and key */
	uint64		successes;		/* of the endpoint when it was admitted */
	dlist_head *run;			/* the ready list of the call's run: other
								 * runs of this process do not wait for it */
	int			waiter;			/* place in the queue, plus one; 0: none */
	LlmInstant	queued_at;		/* since when it waits; 0: it does not */
	dlist_node	node;			/* among this process's waiters, or holders */
	LlmReady   *ready;			/* of the call that waits, marked to ask again */
} LlmAdmission;

/* What a call asks for. */
typedef struct LlmAdmitQuery
{
	const LlmProvider *provider;
	const char *key;			/* the provider's key; NULL: none */
	LlmBreakerAsk who;			/* CALL; CALL_MAY_PROBE is found out here */
	bool		probe;			/* all that it wants is to find out */
	int			rank;			/* of its priority, from 1 */
	int64		tokens;			/* expected, input and output */
	LlmReady   *ready;			/* the call's, with its run's list */
} LlmAdmitQuery;

typedef enum LlmAdmit
{
	LLMGW_ADMITTED,
	LLMGW_ADMIT_OPEN,			/* its breaker is open: skip it or, where
								 * nothing else is left, ask with FORCE */
	LLMGW_ADMIT_STOPPED,		/* parked, or opened by an operator */
	LLMGW_ADMIT_LATER			/* no room now: wait (llmgw_endpoint_wait()),
								 * or go elsewhere */
} LlmAdmit;

typedef struct LlmRefusal
{
	LlmInstant	until;			/* when that may end; LLMGW_NEVER: not by time */
	LlmBreakerReason reason;	/* of OPEN and STOPPED */
	bool		by_provider;	/* LATER: not one of our limits, but the
								 * provider asked for a pause, which lasts or
								 * has just ended */
} LlmRefusal;

/*
 * Asks to send.  On LLMGW_ADMITTED the admission holds what must be settled or
 * abandoned.  If it was waiting at this endpoint, it keeps its place with LATER
 * and loses it otherwise; if at another one, it loses that only when admitted.
 */
extern LlmAdmit llmgw_endpoint_admit(LlmAdmission *admission, const LlmAdmitQuery *query,
									 LlmRefusal *refusal);

/*
 * Queues up after LLMGW_ADMIT_LATER: query->ready is marked when it is worth while
 * to ask again, at the latest after LLMGW_LOOK_US where the caller sets a timer
 * for that.  When there is no place left in any queue, does nothing: the timer
 * is then all there is.  A place at another endpoint is given up, but not since
 * when the call has waited.
 */
extern void llmgw_endpoint_wait(LlmAdmission *admission, const LlmAdmitQuery *query);

/* What became of an attempt. */
typedef struct LlmSettlement
{
	LlmBreakerOutcome outcome;
	bool		by_caller;		/* the failure is a wait that the caller has
								 * ended: it is none where others had answers
								 * meanwhile */
	LlmErrorClass error;		/* for those who read it; LLMGW_OK */
	const char *message;		/* of a failure; may be NULL */
	int64		latency_us;
	int64		tokens;			/* used; -1: not known */
	int64		retry_after_ms; /* the provider wants a pause; 0: it said
								 * nothing */
	int64		pause_ms;		/* its limits are used up for so long
								 * (x-ratelimit-*: none remaining); 0: no */
} LlmSettlement;

/* Gives back what is held, with what was learned.  Wakes the worker for events. */
extern void llmgw_endpoint_settle(LlmAdmission *admission, const LlmSettlement *settlement);

/* Gives back what is held, or waited for, without a word.  Never fails. */
extern void llmgw_endpoint_abandon(LlmAdmission *admission);

/*
 * How an endpoint is doing, for balancing: read without a lock, each number for
 * itself.
 */
typedef struct LlmHealth
{
	bool		known;			/* it has a slot */
	bool		closed;			/* or will be with the next call */
	bool		due;			/* it is not, and waits for a call to find out
								 * how it is */
	int			in_flight;
	int64		latency_us;		/* decaying mean of what succeeded; 0: none
								 * yet */
	double		failures;		/* decaying share of attempts that failed,
								 * 0..1 */
} LlmHealth;

extern void llmgw_endpoint_health(const LlmProvider *provider, LlmHealth *health);

/*
 * Why a candidate would not be sent to at this moment, in words for llm_route and
 * DETAIL, palloc'd; NULL: it would.  Changes nothing.
 */
extern char *llmgw_endpoint_problem(const LlmProvider *provider, int rank, int64 tokens);

/* endpoint_look.c */

/*
 * What llmgw_endpoint_admit() would answer at this moment.  Changes nothing; the
 * query's ready is not looked at.
 */
extern LlmAdmit llmgw_endpoint_look(const LlmAdmitQuery *query, LlmRefusal *refusal);

/* endpoint_status.c: for operators */

typedef struct LlmEndpointStatus
{
	LlmBreakerState state;
	LlmBreakerReason reason;
	int			consecutive_failures;
	TimestampTz opened_at;		/* 0: it is closed */
	TimestampTz next_probe_at;	/* 0: none is to come */
	int			in_flight;
	int			waiting;
	int64		latency_us;		/* 0: none yet */
	uint64		successes;		/* since the slot was taken */
	uint64		failures;
	TimestampTz rate_limited_until; /* 0: it is not */
	LlmErrorClass last_error;	/* LLMGW_OK: none yet */
	char		last_message[160];
	TimestampTz last_error_at;
	TimestampTz last_probe_at;	/* 0: none yet */
	bool		last_probe_ok;
} LlmEndpointStatus;

/* False when the endpoint has no slot (yet). */
extern bool llmgw_endpoint_status(const LlmProvider *provider, LlmEndpointStatus *status);

/*
 * By hand, at once, whatever becomes of the transaction.  A reset also ends a
 * pause that the provider asked for.  They take a slot where
 * there is none yet; false: there is none to be had.
 */
extern bool llmgw_endpoint_open(const LlmProvider *provider);
extern bool llmgw_endpoint_reset(const LlmProvider *provider);

/* how often an endpoint found no free slot, since the server started */
extern uint64 llmgw_endpoint_overflows(void);

/* endpoint_events.c: for the worker of a database */

/* A change of state, as it will be in llm_breaker_events. */
typedef struct LlmBreakerEvent
{
	TimestampTz at;
	char		provider[128];	/* clipped at a character */
	LlmBreakerState from_state;
	LlmBreakerState to_state;
	LlmBreakerReason reason;	/* of what is, or was, not closed */
	LlmErrorClass error;		/* that did it; LLMGW_OK: none */
	int			consecutive_failures;
	TimestampTz next_probe_at;	/* 0: none */
	int			lost;			/* events before this one that had no room */
	char		message[160];
} LlmBreakerEvent;

/*
 * Copies up to max events of this database, oldest first for each endpoint, and
 * forgets nothing: llmgw_endpoint_forget_events() does, once they are committed.
 */
extern int	llmgw_endpoint_events(LlmBreakerEvent *events, int max);
extern void llmgw_endpoint_forget_events(void);

/* whether there are any, without a lock */
extern bool llmgw_endpoint_has_events(void);

/*
 * An endpoint of this database that is to be probed, or will be.  Copied: the
 * provider's row is looked up by name and compared by fingerprint.
 */
typedef struct LlmProbeDue
{
	char		provider[128];
	uint64		fingerprint;
	LlmInstant	at;				/* from when */
	bool		steady;			/* not broken: only idle for idle_us */
	bool		check;			/* not to be probed: only whether a row stands
								 * for it is to be found out */
} LlmProbeDue;

/*
 * The endpoints of this database with a breaker that will want a probe, or that
 * nobody probes and nobody has used for a while, and, with idle_us > 0, those that
 * nobody has used for that long, palloc'd; by time.
 */
extern LlmProbeDue *llmgw_endpoint_probes(int64 idle_us, int *n);

/*
 * Forgets an endpoint that no row stands for any more, unless it is in use: its
 * breaker would be probed for ever, or keep its slot for ever.
 */
extern void llmgw_endpoint_drop(const char *provider, uint64 fingerprint);

/* all of a database that is dropped */
extern void llmgw_endpoint_drop_database(Oid database);

#endif							/* LLMGW_ENDPOINT_H */
