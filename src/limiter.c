/*-------------------------------------------------------------------------
 *
 * limiter.c
 *	  How much an endpoint takes at a time, and who is next.
 *
 * See limiter.h.  Nothing here allocates, locks, raises or looks at a clock, so
 * that all its interleavings can be gone through (t/model/limiter_model.c).
 *
 * WHY NO WAKE-UP IS LOST
 *
 * woken_at of the head says that it was told to ask and has not asked since.
 * Whatever makes room by an event (a call's end, tokens given back, another
 * waiter's going) tells the head unless it has been told; whoever becomes head
 * is told, or takes the place of one who found no room.  Room that comes with
 * time (a pause's end, a second that leaves the minute) is found by the head
 * itself, which knows the moment, and by others when they look after the queue.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "limiter.h"

#define SECOND	INT64CONST(1000000)

/* easing ends there: so many at a time are no slow start any more */
#define EASED	1024

void
llmgw_limiter_init(LlmLimiter *limiter)
{
	limiter->head = LLMGW_NO_WAITER;
	limiter->tail = LLMGW_NO_WAITER;
}

/*
 * When the oldest seconds have left the minute and what remains of one number
 * is at most `most`; 0: it is now.
 */
static LlmInstant
room_at(const LlmLimiter *limiter, bool tokens, int64 most, LlmInstant now)
{
	int64		second = now / SECOND;
	int64		sum = 0;

	for (int i = 0; i < LLMGW_LIMITER_SECONDS; i++)
		if (limiter->seconds[i].second + LLMGW_LIMITER_SECONDS > second)
			sum += tokens ? limiter->seconds[i].tokens : limiter->seconds[i].requests;
	if (sum <= most)
		return 0;

	for (int i = 1; i <= LLMGW_LIMITER_SECONDS; i++)
	{
		int			oldest = (second + i) % LLMGW_LIMITER_SECONDS;
		int64		leaves = limiter->seconds[oldest].second + LLMGW_LIMITER_SECONDS;

		if (leaves <= second)
			continue;
		sum -= tokens ? limiter->seconds[oldest].tokens : limiter->seconds[oldest].requests;
		if (sum <= most)
			return leaves * SECOND;
	}
	return LLMGW_NEVER;			/* not reached: an empty minute has room */
}

static bool
concurrency_used_up(const LlmLimiter *limiter, const LlmLimits *limits)
{
	return limits->concurrency > 0 && limiter->in_flight >= limits->concurrency;
}

static bool
easing_used_up(const LlmLimiter *limiter, LlmInstant now)
{
	return limiter->easing > 0 && limiter->eased >= limiter->easing &&
		now < limiter->limited_until + LLMGW_EASING_US;
}

/* What the limits say, whoever else waits. */
static LlmObstacle
limit_reached(const LlmLimiter *limiter, const LlmLimits *limits, int64 tokens, bool alone,
			  LlmInstant now, LlmInstant *until)
{
	LlmObstacle obstacle = LLMGW_OBSTACLE_NONE;
	LlmInstant	at;

	*until = LLMGW_NEVER;
	if (!alone && concurrency_used_up(limiter, limits))
		return LLMGW_OBSTACLE_CONCURRENCY;

	*until = 0;
	if (limiter->limited_until > now)
	{
		obstacle = LLMGW_OBSTACLE_PAUSE;
		*until = limiter->limited_until;
	}
	else if (!alone && easing_used_up(limiter, now))
	{
		*until = LLMGW_NEVER;
		return LLMGW_OBSTACLE_EASING;
	}

	if (limits->requests > 0)
	{
		at = room_at(limiter, false, limits->requests - 1, now);
		if (at > *until)
		{
			obstacle = LLMGW_OBSTACLE_REQUESTS;
			*until = at;
		}
	}
	if (limits->tokens > 0)
	{
		at = room_at(limiter, true, Max(limits->tokens - tokens, 0), now);
		if (at > *until)
		{
			obstacle = LLMGW_OBSTACLE_TOKENS;
			*until = at;
		}
	}
	return obstacle;
}

/* Whether it was told to ask, as the head, and has not asked in time. */
static bool
lost_place(const LlmWaiter *waiter, LlmInstant now)
{
	return waiter->woken_at != 0 && now - waiter->woken_at >= LLMGW_HEAD_US;
}

static void
take_out(LlmLimiter *limiter, LlmWaiter *waiters, int waiter)
{
	LlmWaiter  *w = &waiters[waiter];

	if (w->prev == LLMGW_NO_WAITER)
		limiter->head = w->next;
	else
		waiters[w->prev].next = w->next;
	if (w->next == LLMGW_NO_WAITER)
		limiter->tail = w->prev;
	else
		waiters[w->next].prev = w->prev;
	limiter->nwaiters--;
	w->queued = false;
	w->woken_at = 0;
}

/* Tells the head to ask, unless it has been told. */
static void
wake_head(LlmLimiter *limiter, LlmWaiter *waiters, LlmInstant now, int *wake)
{
	while (limiter->head != LLMGW_NO_WAITER && lost_place(&waiters[limiter->head], now))
		take_out(limiter, waiters, limiter->head);
	if (limiter->head != LLMGW_NO_WAITER && waiters[limiter->head].woken_at == 0)
	{
		waiters[limiter->head].woken_at = now;
		*wake = limiter->head;
	}
}

/* Whether somebody else has to be served first. */
static bool
is_behind(const LlmLimiter *limiter, const LlmWaiter *waiters, int waiter, LlmInstant key)
{
	return limiter->head != LLMGW_NO_WAITER && limiter->head != waiter &&
		waiters[limiter->head].key <= key;
}

/*
 * Until when a head that could take room may be expected to ask; in the past: it
 * is busy elsewhere.
 */
static LlmInstant
expected_until(const LlmWaiter *head)
{
	return head->woken_at != 0 ? head->woken_at + LLMGW_HEAD_US :
		head->asked_at + LLMGW_LOOK_US;
}

bool
llmgw_limiter_take(LlmLimiter *limiter, LlmWaiter *waiters, const LlmLimits *limits,
				   int waiter, LlmInstant key, int64 tokens, bool alone,
				   LlmInstant now, LlmLimiterHold *hold, LlmInstant *until, int *wake)
{
	int64		second = now / SECOND;
	int			i = second % LLMGW_LIMITER_SECONDS;
	LlmInstant	ignored;

	*wake = LLMGW_NO_WAITER;
	if (waiter != LLMGW_NO_WAITER)
	{
		waiters[waiter].asked_at = now;
		waiters[waiter].woken_at = 0;
	}
	if (limit_reached(limiter, limits, tokens, alone, now, until) != LLMGW_OBSTACLE_NONE)
		return false;

	if (is_behind(limiter, waiters, waiter, key) &&
		!(alone && (concurrency_used_up(limiter, limits) || easing_used_up(limiter, now))))
	{
		if (expected_until(&waiters[limiter->head]) <= now)
			wake_head(limiter, waiters, now, wake);
		if (is_behind(limiter, waiters, waiter, key))
		{
			*until = expected_until(&waiters[limiter->head]);
			return false;
		}
	}

	if (waiter != LLMGW_NO_WAITER && waiters[waiter].queued)
		take_out(limiter, waiters, waiter);
	if (*wake == waiter)
		*wake = LLMGW_NO_WAITER;
	limiter->in_flight++;
	limiter->eased++;
	if (limiter->seconds[i].second < second)
	{
		limiter->seconds[i].second = second;
		limiter->seconds[i].requests = 0;
		limiter->seconds[i].tokens = 0;
	}
	limiter->seconds[i].requests++;
	limiter->seconds[i].tokens += tokens;
	hold->second = limiter->seconds[i].second;
	hold->tokens = tokens;
	hold->pauses = limiter->pauses;

	/* what is left is for the next; how many tokens it wants, it knows itself */
	if (limiter->head != LLMGW_NO_WAITER &&
		limit_reached(limiter, limits, 0, false, now, &ignored) == LLMGW_OBSTACLE_NONE)
		wake_head(limiter, waiters, now, wake);
	return true;
}

LlmObstacle
llmgw_limiter_obstacle(const LlmLimiter *limiter, const LlmWaiter *waiters,
					   const LlmLimits *limits, LlmInstant key, int64 tokens,
					   LlmInstant now, LlmInstant *until)
{
	LlmObstacle obstacle = limit_reached(limiter, limits, tokens, false, now, until);
	int			head = limiter->head;

	if (obstacle != LLMGW_OBSTACLE_NONE)
		return obstacle;

	/* only the head can have lost its place: the next has not been woken */
	if (head != LLMGW_NO_WAITER && lost_place(&waiters[head], now))
		head = waiters[head].next;
	if (head == LLMGW_NO_WAITER || waiters[head].key > key)
		return LLMGW_OBSTACLE_NONE;
	*until = Max(expected_until(&waiters[head]), now);
	return LLMGW_OBSTACLE_QUEUE;
}

void
llmgw_limiter_give(LlmLimiter *limiter, LlmWaiter *waiters, const LlmLimiterHold *hold,
				   int64 tokens, bool success, LlmInstant now, int *wake)
{
	int			i = hold->second % LLMGW_LIMITER_SECONDS;

	*wake = LLMGW_NO_WAITER;
	limiter->in_flight--;
	if (hold->pauses == limiter->pauses)
	{
		limiter->eased--;
		if (success && limiter->easing > 0)
			limiter->easing = limiter->easing < EASED ? limiter->easing * 2 : 0;
	}
	if (tokens >= 0 && limiter->seconds[i].second == hold->second)
		limiter->seconds[i].tokens += tokens - hold->tokens;
	wake_head(limiter, waiters, now, wake);
}

void
llmgw_limiter_pause(LlmLimiter *limiter, LlmInstant until)
{
	if (until <= limiter->limited_until)
		return;
	limiter->limited_until = until;
	limiter->pauses++;
	limiter->easing = 1;
	limiter->eased = 0;
}

void
llmgw_limiter_lift(LlmLimiter *limiter)
{
	limiter->limited_until = 0;
	limiter->easing = 0;
	limiter->eased = 0;
}

void
llmgw_limiter_queue(LlmLimiter *limiter, LlmWaiter *waiters, int waiter,
					LlmInstant key, LlmInstant now, int *wake)
{
	LlmWaiter  *w = &waiters[waiter];
	int			before = limiter->tail;

	*wake = LLMGW_NO_WAITER;
	if (limiter->head != LLMGW_NO_WAITER && waiters[limiter->head].key > key)
		before = LLMGW_NO_WAITER;	/* the first of all */
	while (before != LLMGW_NO_WAITER && waiters[before].key > key)
		before = waiters[before].prev;

	w->queued = true;
	w->key = key;
	w->asked_at = now;
	w->woken_at = 0;
	w->prev = before;
	w->next = before == LLMGW_NO_WAITER ? limiter->head : waiters[before].next;
	if (w->next == LLMGW_NO_WAITER)
		limiter->tail = waiter;
	else
	{
		waiters[w->next].prev = waiter;
		waiters[w->next].woken_at = 0;	/* if it was the head, it is no more */
	}
	limiter->nwaiters++;
	if (before == LLMGW_NO_WAITER)
	{
		limiter->head = waiter;
		wake_head(limiter, waiters, now, wake);
	}
	else
		waiters[before].next = waiter;
}

void
llmgw_limiter_leave(LlmLimiter *limiter, LlmWaiter *waiters, int waiter,
					LlmInstant now, int *wake)
{
	bool		was_head = limiter->head == waiter;

	*wake = LLMGW_NO_WAITER;
	if (!waiters[waiter].queued)
		return;
	take_out(limiter, waiters, waiter);
	if (was_head)
		wake_head(limiter, waiters, now, wake);
}
