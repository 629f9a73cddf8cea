/*-------------------------------------------------------------------------
 *
 * endpoint_admit.c
 *	  May a call be sent, when, and what became of it.
 *
 * What a process holds and waits for is in its calls' LlmAdmissions, which are
 * in one of two lists of this file; what all processes know is in the
 * endpoint's slot, under its lock.
 *
 * WAKING
 *
 * Who makes room tells one waiter (limiter.h): under the slot's lock woken_at of
 * its place is set, afterwards the latch of its process.  That process looks at
 * the places of all that it waits for (notice_wakeups()) after it has reset its
 * latch, and marks those as ready that were told.  So nothing is lost, however
 * many are told at once, and a latch that somebody else has reset meanwhile
 * does no harm, since it looks before it waits as well.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/spin.h"

#include "compat.h"
#include "endpoint_private.h"
#include "spool.h"

/* a pass that probes is good for longer than the call may take */
#define PROBE_SLACK			INT64CONST(10000000)
#define PROBE_UNLIMITED		INT64CONST(120000000)

/* no provider keeps us waiting for longer than that without asking again */
#define LONGEST_PAUSE		INT64CONST(60000000)

/*
 * No provider keeps its breaker open for longer than that without being probed
 * again: some send nonsense, and it may be well long before.
 */
#define LONGEST_RETRY_AFTER	INT64CONST(3600000000)

/* Of this process: admissions with room, and those that want some. */
static dlist_head holders = DLIST_STATIC_INIT(holders);
static dlist_head waiting = DLIST_STATIC_INIT(waiting);

/* Marks as ready what was told that it may ask again. */
static bool
notice_wakeups(void)
{
	bool		any = false;
	dlist_iter	iter;

	dlist_foreach(iter, &waiting)
	{
		LlmAdmission *admission = dlist_container(LlmAdmission, node, iter.cur);

		if (admission->waiter == 0 || admission->ready->queued ||
			LLMGW_WAITERS[admission->waiter - 1].woken_at == 0)
			continue;
		llmgw_ready_mark(admission->ready);
		any |= admission->ready->queued;
	}
	return any;
}

/* For what is still there when all that should have given it back has gone. */
static void
give_back_all(int code, Datum arg)
{
	while (!dlist_is_empty(&waiting))
		llmgw_endpoint_abandon(dlist_head_element(LlmAdmission, node, &waiting));
	while (!dlist_is_empty(&holders))
		llmgw_endpoint_abandon(dlist_head_element(LlmAdmission, node, &holders));
}

static void
set_up_process(void)
{
	static bool done = false;

	if (done)
		return;
	on_shmem_exit(give_back_all, (Datum) 0);
	llmgw_loop_on_latch(notice_wakeups);
	done = true;
}

/* A free place in queues; LLMGW_NO_WAITER: there is none. */
static int
take_place(void)
{
	LlmWaiter  *waiters = LLMGW_WAITERS;
	int			place;

	SpinLockAcquire(&llmgw_endpoints->mutex);
	place = llmgw_endpoints->free_waiter;
	if (place != LLMGW_NO_WAITER)
		llmgw_endpoints->free_waiter = waiters[place].next;
	SpinLockRelease(&llmgw_endpoints->mutex);

	if (place != LLMGW_NO_WAITER)
	{
		waiters[place].procno = llmgw_my_procno();
		waiters[place].queued = false;
		waiters[place].woken_at = 0;
	}
	return place;
}

static void
free_place(int place)
{
	SpinLockAcquire(&llmgw_endpoints->mutex);
	LLMGW_WAITERS[place].next = llmgw_endpoints->free_waiter;
	llmgw_endpoints->free_waiter = place;
	SpinLockRelease(&llmgw_endpoints->mutex);
}

/* The process of a waiter that is to be told, under the slot's lock; -1: none. */
static int
process_of(int waiter)
{
	return waiter == LLMGW_NO_WAITER ? -1 : LLMGW_WAITERS[waiter].procno;
}

/* Afterwards, without the lock.  Of our own, the loop marks what is ready. */
static void
wake_process(int procno)
{
	if (procno == llmgw_my_procno())
		SetLatch(MyLatch);
	else if (procno >= 0)
		SetLatch(&llmgw_proc(procno)->procLatch);
}

/* The admission stands for nothing any more. */
static void
forget(LlmAdmission *admission)
{
	dlist_delete(&admission->node);
	if (admission->waiter != 0)
		free_place(admission->waiter - 1);
	memset(admission, 0, sizeof(*admission));
}

/* It holds room, with the pass and the hold that it has; slot NULL: of no limits. */
static void
hold(LlmAdmission *admission, const LlmAdmitQuery *query, LlmEndpoint *slot, uint64 mark)
{
	admission->provider = query->provider;
	admission->slot = slot;
	admission->held = true;
	admission->probes = query->probe || admission->pass.probe != 0;
	admission->mark = mark;
	admission->run = query->ready->list;
	dlist_push_tail(&holders, &admission->node);
}

/*
 * Whether another run of this process holds room there: it may be a cursor that
 * will not be read from before this call is over.
 */
static bool
held_by_other_run(const LlmEndpoint *slot, const dlist_head *run)
{
	dlist_iter	iter;

	dlist_foreach(iter, &holders)
	{
		LlmAdmission *admission = dlist_container(LlmAdmission, node, iter.cur);

		if (admission->slot == slot && admission->run != run)
			return true;
	}
	return false;
}

/* llmgw_limiter_take() for a call of this process. */
static bool
take_room(LlmAdmission *admission, const LlmAdmitQuery *query, LlmEndpoint *slot,
		  LlmInstant key, LlmInstant now, LlmInstant *until, int *wake)
{
	int			waiter = admission->waiter - 1;
	int			woken;

	if (llmgw_limiter_take(&slot->limiter, LLMGW_WAITERS, &query->provider->limits,
						   waiter, key, query->tokens, false, now,
						   &admission->hold, until, wake))
		return true;
	if (!held_by_other_run(slot, query->ready->list))
		return false;
	woken = *wake;
	if (llmgw_limiter_take(&slot->limiter, LLMGW_WAITERS, &query->provider->limits,
						   waiter, key, query->tokens, true, now,
						   &admission->hold, until, wake))
	{
		if (*wake == LLMGW_NO_WAITER && woken != waiter)
			*wake = woken;
		return true;
	}
	*wake = woken;
	return false;
}

uint64
llmgw_endpoint_mark(const LlmProvider *provider, const char *key)
{
	return hash_combine64(provider->row_mark, key == NULL ? 0 :
						  hash_bytes_extended((const unsigned char *) key, strlen(key), 0));
}

static LlmInstant
key_of(const LlmAdmitQuery *query, LlmInstant since)
{
	return since + query->rank * LLMGW_RANK_US;
}

int64
llmgw_endpoint_probe_us(const LlmProvider *provider)
{
	return (provider->total_ms > 0 ? provider->total_ms * INT64CONST(1000) : PROBE_UNLIMITED) +
		PROBE_SLACK;
}

LlmBreakerAsk
llmgw_endpoint_ask(const LlmProvider *provider, LlmBreakerAsk who)
{
	static LlmSpoolShared *spool = NULL;
	uint32		state;

	if (who != LLMGW_ASK_CALL)
		return who;
	if (provider->probe == LLMGW_PROBE_NONE)
		return LLMGW_ASK_CALL_MAY_PROBE;

	/* the slot stays where it is for as long as its database lasts */
	if (spool == NULL)
		spool = llmgw_spool_slot(MyDatabaseId, false);
	if (spool == NULL || pg_atomic_read_u32(&spool->blocked) != 0)
		return LLMGW_ASK_CALL_MAY_PROBE;
	state = pg_atomic_read_u32(&spool->worker_state);
	if (state == LLMGW_WORKER_NONE ||
		(state != LLMGW_WORKER_RUNNING && pg_atomic_read_u32(&spool->no_worker) != 0))
		return LLMGW_ASK_CALL_MAY_PROBE;
	return LLMGW_ASK_CALL;
}

LlmAdmit
llmgw_endpoint_admit(LlmAdmission *admission, const LlmAdmitQuery *query, LlmRefusal *refusal)
{
	const LlmProvider *provider = query->provider;
	LlmAdmission elsewhere = {0};
	LlmAdmission *here = admission;
	uint64		mark = llmgw_endpoint_mark(provider, query->key);
	LlmBreakerAsk who = llmgw_endpoint_ask(provider, query->who);
	int64		probe_us = llmgw_endpoint_probe_us(provider);
	LlmEndpoint *slot;
	LlmBreakerBefore before;
	LlmBreakerAnswer answer;
	LlmInstant	now;
	LlmInstant	key;
	LlmAdmit	result;
	int			wake = LLMGW_NO_WAITER;
	int			woken_process;
	bool		ask_again = false;
	bool		changed;
	uint64		successes;

	Assert(!admission->held);
	set_up_process();
	memset(refusal, 0, sizeof(*refusal));
	if (admission->provider != NULL && admission->provider != provider)
		here = &elsewhere;

	slot = llmgw_endpoint_lock(provider, true);
	if (slot == NULL)
	{
		llmgw_endpoint_abandon(admission);
		hold(admission, query, NULL, mark);
		return LLMGW_ADMITTED;
	}

	now = slot->last_used;
	key = key_of(query, admission->queued_at != 0 ? admission->queued_at : now);
	before = llmgw_endpoint_before(slot);

	/*
	 * The breaker is asked first without taking its pass, then for room, and
	 * then for the pass: neither a pass nor room is taken in vain.
	 */
	answer = llmgw_breaker_ask(&slot->breaker, who, mark, probe_us, now, true, &here->pass);
	if (answer == LLMGW_BREAKER_REFUSED || answer == LLMGW_BREAKER_STOPPED)
	{
		result = answer == LLMGW_BREAKER_REFUSED ? LLMGW_ADMIT_OPEN : LLMGW_ADMIT_STOPPED;
		refusal->until = slot->breaker.probe_at;
		refusal->reason = slot->breaker.reason;
		if (here->waiter != 0)
			llmgw_limiter_leave(&slot->limiter, LLMGW_WAITERS, here->waiter - 1, now, &wake);
	}
	else if (!take_room(here, query, slot, key, now, &refusal->until, &wake))
	{
		LlmInstant	ignored;
		LlmObstacle obstacle = llmgw_limiter_obstacle(&slot->limiter, LLMGW_WAITERS,
													  &provider->limits, key, query->tokens,
													  now, &ignored);

		result = LLMGW_ADMIT_LATER;
		refusal->by_provider = obstacle == LLMGW_OBSTACLE_PAUSE ||
			obstacle == LLMGW_OBSTACLE_EASING;

		/*
		 * who is under way may need less than expected, and give back the
		 * rest
		 */
		if (obstacle == LLMGW_OBSTACLE_TOKENS && slot->limiter.in_flight > 0)
			refusal->until = LLMGW_NEVER;

		/* a place that was lost, since nobody was here when it was our turn */
		if (here->waiter != 0 && !LLMGW_WAITERS[here->waiter - 1].queued)
		{
			int			self;

			llmgw_limiter_queue(&slot->limiter, LLMGW_WAITERS, here->waiter - 1,
								key, now, &self);
			ask_again = self != LLMGW_NO_WAITER;
		}
	}
	else
	{
		result = LLMGW_ADMITTED;
		answer = llmgw_breaker_ask(&slot->breaker, who, mark, probe_us, now, false,
								   &here->pass);
		Assert(answer == LLMGW_BREAKER_PASS || answer == LLMGW_BREAKER_PROBE);

		/* it was parked for another row or key, which failed */
		if (before.state != LLMGW_BREAKER_CLOSED && slot->breaker.state == LLMGW_BREAKER_CLOSED)
			pg_atomic_write_u64(&slot->failure_ppm, 0);
	}
	pg_atomic_write_u32(&slot->in_flight, slot->limiter.in_flight);
	changed = llmgw_endpoint_note_change(slot, &before, LLMGW_OK, NULL);
	successes = slot->successes;
	woken_process = process_of(wake);
	LWLockRelease(&slot->lock);

	if (result == LLMGW_ADMITTED)
	{
		LlmBreakerPass pass = here->pass;
		LlmLimiterHold room = here->hold;

		if (here != admission)
			llmgw_endpoint_abandon(admission);
		else if (admission->provider != NULL)
			forget(admission);
		admission->pass = pass;
		admission->hold = room;
		admission->successes = successes;
		hold(admission, query, slot, mark);
	}
	else if (result != LLMGW_ADMIT_LATER && here->provider != NULL)
		forget(here);
	wake_process(woken_process);
	if (ask_again)
		llmgw_ready_mark(query->ready);
	if (changed)
		llmgw_endpoint_wake_worker();
	return result;
}

void
llmgw_endpoint_wait(LlmAdmission *admission, const LlmAdmitQuery *query)
{
	LlmEndpoint *slot;
	LlmInstant	now;
	LlmInstant	since = admission->queued_at;
	int			self = LLMGW_NO_WAITER;

	Assert(!admission->held);
	if (admission->provider != query->provider)
		llmgw_endpoint_abandon(admission);

	slot = llmgw_endpoint_lock(query->provider, true);
	if (slot == NULL)
	{
		/* without a slot there are no limits */
		llmgw_ready_mark(query->ready);
		return;
	}

	now = slot->last_used;
	if (admission->provider == NULL)
	{
		admission->provider = query->provider;
		admission->queued_at = since != 0 ? since : now;
		dlist_push_tail(&waiting, &admission->node);
	}
	admission->slot = slot;
	admission->run = query->ready->list;
	admission->ready = query->ready;
	if (admission->waiter == 0)
		admission->waiter = take_place() + 1;
	if (admission->waiter != 0 && !LLMGW_WAITERS[admission->waiter - 1].queued)
		llmgw_limiter_queue(&slot->limiter, LLMGW_WAITERS, admission->waiter - 1,
							key_of(query, admission->queued_at), now, &self);
	LWLockRelease(&slot->lock);

	if (self != LLMGW_NO_WAITER)
		llmgw_ready_mark(query->ready);
}

/* For how long the provider is to be left alone, in microseconds. */
static int64
pause_of(const LlmSettlement *settlement)
{
	int64		ms = settlement->pause_ms;

	if (settlement->error == LLMGW_RATE_LIMIT || settlement->error == LLMGW_OVERLOADED ||
		settlement->error == LLMGW_SERVER_ERROR)
		ms = Max(ms, settlement->retry_after_ms);
	return Min(Max(ms, 0), LONGEST_PAUSE / 1000) * 1000;
}

void
llmgw_endpoint_settle(LlmAdmission *admission, const LlmSettlement *settlement)
{
	LlmEndpoint *slot = admission->slot;
	LlmSettlement s = *settlement;
	bool		changed = false;
	int			woken_process = -1;

	if (!admission->held)
		return;
	if (slot != NULL && llmgw_endpoint_relock(slot, admission->provider))
	{
		LlmInstant	now = llmgw_now();
		LlmBreakerBefore before = llmgw_endpoint_before(slot);
		int64		retry_after_us = Min(Max(s.retry_after_ms, 0),
										 LONGEST_RETRY_AFTER / 1000) * 1000;
		int64		pause = pause_of(&s);
		int			wake;

		slot->last_used = now;
		if (s.by_caller && slot->successes != admission->successes)
			s.outcome = LLMGW_OUTCOME_NONE;
		llmgw_breaker_result(&slot->breaker, &admission->provider->breaker, &admission->pass,
							 s.outcome, admission->mark, retry_after_us, now);
		llmgw_endpoint_learn(slot, &s, now);
		if (admission->probes && s.outcome != LLMGW_OUTCOME_NONE)
		{
			slot->last_probe_at = GetCurrentTimestamp();
			slot->last_probe_ok = s.outcome == LLMGW_OUTCOME_SUCCESS ||
				s.outcome == LLMGW_OUTCOME_ALIVE;
		}
		if (pause > 0)
			llmgw_limiter_pause(&slot->limiter, now + pause);
		llmgw_limiter_give(&slot->limiter, LLMGW_WAITERS, &admission->hold, s.tokens,
						   s.outcome == LLMGW_OUTCOME_SUCCESS, now, &wake);
		pg_atomic_write_u32(&slot->in_flight, slot->limiter.in_flight);
		changed = llmgw_endpoint_note_change(slot, &before, s.error, s.message);
		woken_process = process_of(wake);
		LWLockRelease(&slot->lock);
	}
	forget(admission);
	if (woken_process == llmgw_my_procno())
		(void) notice_wakeups();
	else
		wake_process(woken_process);
	if (changed)
		llmgw_endpoint_wake_worker();
}

/*
 * Of our own process nothing is marked here: what waits may be about to be
 * abandoned, too, with the list that it would be marked on.  If it is not, the
 * loop finds it.  Nor is the worker told: it looks at the breakers when their
 * time has come.
 */
void
llmgw_endpoint_abandon(LlmAdmission *admission)
{
	LlmEndpoint *slot = admission->slot;
	int			woken_process = -1;

	if (admission->provider == NULL)
		return;
	if (slot != NULL && (admission->held || admission->waiter != 0) &&
		llmgw_endpoint_relock(slot, admission->provider))
	{
		LlmInstant	now = llmgw_now();
		LlmBreakerBefore before = llmgw_endpoint_before(slot);
		int			wake;

		if (admission->held)
		{
			llmgw_breaker_result(&slot->breaker, &admission->provider->breaker,
								 &admission->pass, LLMGW_OUTCOME_NONE, admission->mark, 0, now);
			llmgw_limiter_give(&slot->limiter, LLMGW_WAITERS, &admission->hold, -1, false,
							   now, &wake);
		}
		else
			llmgw_limiter_leave(&slot->limiter, LLMGW_WAITERS, admission->waiter - 1, now, &wake);
		pg_atomic_write_u32(&slot->in_flight, slot->limiter.in_flight);
		(void) llmgw_endpoint_note_change(slot, &before, LLMGW_OK, NULL);
		woken_process = process_of(wake);
		LWLockRelease(&slot->lock);
	}
	forget(admission);
	wake_process(woken_process);
}
