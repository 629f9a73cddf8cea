/*-------------------------------------------------------------------------
 *
 * breaker.h
 *	  The circuit breaker of an endpoint: a state machine and nothing else.
 *
 *		CLOSED --- enough failures in a row within the window ---> OPEN
 *		OPEN ----- its time has come, somebody probes -----------> HALF_OPEN
 *		HALF_OPEN  the probe succeeded --------------------------> CLOSED
 *				   it failed, after a longer cool-down ----------> OPEN
 *				   nobody knows, at once ------------------------> OPEN
 *		any ------ the key is refused, or no credit is left -----> OPEN, parked
 *		any ------ an operator says so --------------------------> OPEN, CLOSED
 *
 * These functions compute: they take the moment as an argument, allocate, lock
 * and raise nothing.  So all their interleavings can be gone through
 * (t/model/).  Where breakers live, and the lock that each function needs
 * exclusively, is endpoint.h.
 *
 * PASSES
 *
 * Whoever may send something gets a pass, and brings it back with what became
 * of it.  A pass of an earlier epoch (the state has changed since) says nothing
 * about the present state, with one exception: a failure after which the key is
 * refused or no credit is left parks the endpoint whatever the epoch.  Of the
 * passes of a half-open breaker one is the probe; if its holder does not
 * bring it back in time, another one is given out and the old one is stale.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BREAKER_H
#define LLMGW_BREAKER_H

#include "errors.h"
#include "timing.h"

/* moments of failures that are remembered; more breaker_failures than that
 * must lie within the window as far as it is known from these */
#define LLMGW_BREAKER_MEMORY		64

/* cool-downs double with each opening in a row, at most to this (or to
 * breaker_cooldown, where that is longer) */
#define LLMGW_BREAKER_MAX_COOLDOWN	INT64CONST(600000000)

/* how long the endpoint is parked, in microseconds */
#define LLMGW_PARK_AUTH				INT64CONST(300000000)
#define LLMGW_PARK_QUOTA			INT64CONST(1800000000)

/*
 * How long after its time an open breaker waits for the worker's probe before a
 * call may probe all the same.
 */
#define LLMGW_PROBE_GRACE			INT64CONST(1000000)

typedef enum LlmBreakerState
{
	LLMGW_BREAKER_CLOSED,
	LLMGW_BREAKER_OPEN,
	LLMGW_BREAKER_HALF_OPEN
} LlmBreakerState;

/* Why it is not closed. */
typedef enum LlmBreakerReason
{
	LLMGW_BREAKER_OUTAGE,		/* failures */
	LLMGW_BREAKER_AUTH,			/* parked: the key is refused */
	LLMGW_BREAKER_QUOTA,		/* parked: no credit is left */
	LLMGW_BREAKER_OPERATOR		/* opened by hand: never probed */
} LlmBreakerReason;

/* From the provider's row as its caller sees it. */
typedef struct LlmBreakerSettings
{
	int			failures;		/* at least 1 */
	int64		window_us;		/* 0: no limit */
	int64		cooldown_us;
} LlmBreakerSettings;

/* Zeroed: closed, without a past.  The endpoint's lock protects all of it. */
typedef struct LlmBreaker
{
	LlmBreakerState state;
	LlmBreakerReason reason;	/* while not closed */
	uint32		epoch;			/* counts changes of state */
	int			nfailures;		/* in a row, since the last success */
	LlmInstant	failures[LLMGW_BREAKER_MEMORY]; /* when; a ring by nfailures */
	int			openings;		/* in a row, without a call that succeeded
								 * between them */
	LlmInstant	opened_at;		/* while not closed: since when */
	LlmInstant	probe_at;		/* OPEN: from when it may be probed; NEVER */
	uint32		probe;			/* HALF_OPEN: the number of the pass that is
								 * the probe */
	LlmInstant	probe_until;	/* when it counts as lost */
	uint64		parked_mark;	/* AUTH, QUOTA: of the row and the key that
								 * were parked */
} LlmBreaker;

typedef enum LlmBreakerAnswer
{
	LLMGW_BREAKER_PASS,			/* send */
	LLMGW_BREAKER_PROBE,		/* send; this one decides */
	LLMGW_BREAKER_REFUSED,		/* an outage: skip it, or force it */
	LLMGW_BREAKER_STOPPED		/* parked, or opened by an operator: not even
								 * by force */
} LlmBreakerAnswer;

typedef struct LlmBreakerPass
{
	uint32		epoch;
	uint32		probe;			/* 0: it is not the probe */
	bool		forced;			/* sent although the breaker was not closed */
} LlmBreakerPass;

/* Who asks for a pass. */
typedef enum LlmBreakerAsk
{
	LLMGW_ASK_CALL,				/* a call; probes only where nobody else does */
	LLMGW_ASK_CALL_MAY_PROBE,	/* a call, where there is nobody else */
	LLMGW_ASK_PROBE,			/* the worker, at its time */
	LLMGW_ASK_FORCE				/* a call that has no other candidate, and
								 * llm_probe() */
} LlmBreakerAsk;

/*
 * Whether something may be sent.  mark identifies the provider's row and key:
 * with another one than the parked, the breaker closes first.  A probe's pass is
 * good until now + probe_us.  *pass is set with PASS and PROBE.  Only with
 * peek false does it change anything.
 */
extern LlmBreakerAnswer llmgw_breaker_ask(LlmBreaker *breaker, LlmBreakerAsk who,
										  uint64 mark, int64 probe_us, LlmInstant now,
										  bool peek, LlmBreakerPass *pass);

/*
 * When somebody may probe it who asks like that, LLMGW_ASK_FORCE apart;
 * LLMGW_NEVER: it is closed, or that one may not.
 */
extern LlmInstant llmgw_breaker_may_probe_at(const LlmBreaker *breaker, LlmBreakerAsk who);

/* What became of what was sent. */
typedef enum LlmBreakerOutcome
{
	LLMGW_OUTCOME_SUCCESS,		/* a call was answered */
	LLMGW_OUTCOME_ALIVE,		/* a probe was answered, or a call with an
								 * error that is not the endpoint's fault: it
								 * does not count, but ends an outage */
	LLMGW_OUTCOME_FAILURE,		/* it counts
								 * (llm_error_policies.trips_breaker) */
	LLMGW_OUTCOME_AUTH,			/* parks it */
	LLMGW_OUTCOME_QUOTA,
	LLMGW_OUTCOME_NONE			/* cancelled, or not even sent: it says
								 * nothing */
} LlmBreakerOutcome;

/*
 * Takes back a pass.  retry_after_us: how long the provider asked to be left
 * alone, 0 if it did not; an open breaker waits for the later of that and its
 * cool-down.
 */
extern void llmgw_breaker_result(LlmBreaker *breaker, const LlmBreakerSettings *settings,
								 const LlmBreakerPass *pass, LlmBreakerOutcome outcome,
								 uint64 mark, int64 retry_after_us, LlmInstant now);

/* By hand.  The second forgets the past as well. */
extern void llmgw_breaker_open(LlmBreaker *breaker, LlmInstant now);
extern void llmgw_breaker_reset(LlmBreaker *breaker, LlmInstant now);

/* closed, open, half_open; outage, auth, quota, operator */
extern const char *llmgw_breaker_state_name(LlmBreakerState state);
extern const char *llmgw_breaker_reason_name(LlmBreakerReason reason);

#endif							/* LLMGW_BREAKER_H */
