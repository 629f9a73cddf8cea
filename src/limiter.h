/*-------------------------------------------------------------------------
 *
 * limiter.h
 *	  How much an endpoint takes at a time, and who is next.
 *
 * Four limits: calls under way (max_concurrency), requests and tokens in any
 * 60 seconds (requests_per_minute, tokens_per_minute), and what the provider
 * itself asked for (Retry-After, x-ratelimit-*).
 *
 * Like the breaker (breaker.h) this computes only, under the lock of its
 * endpoint, with the moment as an argument: it neither waits, allocates, locks
 * nor raises.  Waiters are numbers of places in an array that the
 * caller brings along (endpoint.h has it in shared memory); whom to wake is a
 * result.
 *
 * THE QUEUE
 *
 * Waiters are ordered by when they came and how important they are: one rank
 * counts as much as LLMGW_RANK_US of waiting, so that the more important
 * are served first and nobody starves.  Only the head may be served, and a
 * newcomer that is behind nobody.  Whoever makes a difference to the head (room,
 * another head) wakes it; so one waiter looks at a time, and when a limit lifts
 * they go one after another, each waking the next.
 *
 * A head whose process is busy elsewhere (a cursor that nobody fetches from)
 * must not hold up the others: woken and not seen within LLMGW_HEAD_US it loses
 * its place, and takes it again when it asks.  For that, waiters look after the
 * queue from time to time without having been woken (LLMGW_LOOK_US), and wake
 * a head that does not do the same.
 *
 * After the provider has asked for a pause, one call goes first; with each
 * success twice as many may be under way, until the limit is as before, or
 * LLMGW_EASING_US have gone by.  Calls that were sent before the pause have no
 * part in that.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LIMITER_H
#define LLMGW_LIMITER_H

#include "timing.h"

#define LLMGW_RANK_US		INT64CONST(10000000)
#define LLMGW_HEAD_US		INT64CONST(50000)
#define LLMGW_LOOK_US		INT64CONST(250000)
#define LLMGW_EASING_US		INT64CONST(60000000)

/* From the provider's row as its caller sees it; 0: no limit. */
typedef struct LlmLimits
{
	int			concurrency;
	int			requests;		/* a minute */
	int64		tokens;			/* a minute */
} LlmLimits;

/*
 * One more than the seconds of a minute: the oldest counts as a whole.  (The
 * model check has shorter minutes.)
 */
#ifndef LLMGW_LIMITER_SECONDS
#define LLMGW_LIMITER_SECONDS	61
#endif

#define LLMGW_NO_WAITER		(-1)

/* A place in the queue.  The lock of the endpoint that it waits for protects it. */
typedef struct LlmWaiter
{
	int			prev;			/* LLMGW_NO_WAITER: it is the head */
	int			next;
	int			procno;			/* whose latch to set; for endpoint.c */
	bool		queued;
	LlmInstant	key;			/* when it came, plus its rank */
	LlmInstant	asked_at;		/* when it last did */
	LlmInstant	woken_at;		/* as the head, since it last asked; 0: not */
} LlmWaiter;

/* Zeroed, then llmgw_limiter_init(). */
typedef struct LlmLimiter
{
	int			in_flight;
	int			head;
	int			tail;
	int			nwaiters;
	LlmInstant	limited_until;	/* the provider wants a pause; 0: none */
	uint32		pauses;			/* how many there were */
	int			easing;			/* after a pause: how many may be under way of
								 * those that were taken since; 0: no such
								 * limit */
	int			eased;			/* how many are */
	struct
	{
		int64		second;		/* of the clock */
		int64		tokens;
		int			requests;
	}			seconds[LLMGW_LIMITER_SECONDS];
} LlmLimiter;

/* What was taken, to be given back. */
typedef struct LlmLimiterHold
{
	int64		second;
	int64		tokens;
	uint32		pauses;			/* that there had been */
} LlmLimiterHold;

/* What stands in the way of a call. */
typedef enum LlmObstacle
{
	LLMGW_OBSTACLE_NONE,
	LLMGW_OBSTACLE_CONCURRENCY,
	LLMGW_OBSTACLE_PAUSE,
	LLMGW_OBSTACLE_EASING,
	LLMGW_OBSTACLE_REQUESTS,
	LLMGW_OBSTACLE_TOKENS,
	LLMGW_OBSTACLE_QUEUE		/* there is room, but others are before it */
} LlmObstacle;

extern void llmgw_limiter_init(LlmLimiter *limiter);

/*
 * Takes room for a call with so many tokens.  waiter: the caller's place, then it
 * leaves the queue; LLMGW_NO_WAITER: it has none.  key is where it stands, or
 * would stand.  alone: the limit of calls under way does not hold for it, nor
 * does it stand behind those who wait for that limit.  A call with more tokens
 * than the whole limit is taken when the minute is empty.
 *
 * False when it has to wait: *until is then when it is worth while to ask
 * again, LLMGW_NEVER when only the end of another call helps.  Of what it does
 * not take it changes nothing but the head: one that has lost its place is no
 * longer queued.
 *
 * *wake: a waiter that is to be woken now, or LLMGW_NO_WAITER.
 */
extern bool llmgw_limiter_take(LlmLimiter *limiter, LlmWaiter *waiters, const LlmLimits *limits,
							   int waiter, LlmInstant key, int64 tokens, bool alone,
							   LlmInstant now, LlmLimiterHold *hold,
							   LlmInstant *until, int *wake);

/*
 * What stands in the way of a call that has not waited, and until when; with
 * several, what lasts longest.  Changes nothing.
 */
extern LlmObstacle llmgw_limiter_obstacle(const LlmLimiter *limiter, const LlmWaiter *waiters,
										  const LlmLimits *limits, LlmInstant key, int64 tokens,
										  LlmInstant now, LlmInstant *until);

/* Gives it back; tokens is what was used in the end, -1: as much as taken. */
extern void llmgw_limiter_give(LlmLimiter *limiter, LlmWaiter *waiters,
							   const LlmLimiterHold *hold, int64 tokens,
							   bool success, LlmInstant now, int *wake);

/*
 * The provider wants a pause; the later one counts.  Those who wait need not be
 * told: they find out when they ask.
 */
extern void llmgw_limiter_pause(LlmLimiter *limiter, LlmInstant until);

/* Ends the pause, as if the provider had never asked for one. */
extern void llmgw_limiter_lift(LlmLimiter *limiter);

/*
 * Into the queue, and out of it.  Who comes in as the head is told to ask again:
 * since it last did, there may have been room and nobody to wake.  Leaving
 * twice, or after having lost the place, is nothing.
 */
extern void llmgw_limiter_queue(LlmLimiter *limiter, LlmWaiter *waiters, int waiter,
								LlmInstant key, LlmInstant now, int *wake);
extern void llmgw_limiter_leave(LlmLimiter *limiter, LlmWaiter *waiters, int waiter,
								LlmInstant now, int *wake);

#endif							/* LLMGW_LIMITER_H */
