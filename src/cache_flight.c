/*-------------------------------------------------------------------------
 *
 * cache_flight.c
 *	  Flights: calls under way that others wait for (cache.h).
 *
 * A place is of nobody (FREE), of a leader whose call is under way (LED), or
 * holds where in the spool a leader's answer is (LANDED).  A leader that has no
 * answer, or goes away, leaves its place FREE as it is, with its key and its turn:
 * the first of its followers that looks takes it, unless somebody else has begun
 * another flight there, which has another turn.  A landed one is kept until the
 * worker has booked the answer, or should have: before that, who looks into
 * llm_cache finds nothing and would make the call again.
 *
 * WAKING
 *
 * A place knows its followers as a set of processes.  Who changes it counts that in
 * `changes` and sets their latches; each process looks at the places that it
 * follows whenever its latch was set (notice_changes()).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

#include "cache.h"
#include "compat.h"
#include "guc.h"
#include "limiter.h"
#include "shmem.h"
#include "spool.h"

#define NFLIGHTS		256

/* while the worker books an answer, so often it is looked for */
#define BOOKING_US		INT64CONST(2000)

typedef enum FlightPhase
{
	FLIGHT_FREE,
	FLIGHT_LED,
	FLIGHT_LANDED
} FlightPhase;

/* All under LLMGW_LOCK_FLIGHTS, but for changes, which anybody may read. */
typedef struct FlightPlace
{
	FlightPhase phase;
	Oid			database;
	Oid			extension;
	LlmCacheKey key;
	uint64		turn;			/* of what the place is used for */
	pg_atomic_uint64 changes;
	int			leader_procno;	/* of LED */
	int			leader_pid;
	int			leader_rank;	/* of its call's priority */
	uint64		offset;			/* of LANDED: the answer is in the spool
								 * before it */
	LlmInstant	landed_at;
} FlightPlace;

typedef struct FlightShared
{
	int			nprocs;			/* processes in a set */
	int			set_size;		/* bytes of a set */
	int			next;			/* where a free place is looked for first;
								 * under the lock */
	FlightPlace places[NFLIGHTS];
	char		followers[FLEXIBLE_ARRAY_MEMBER];	/* a set for each place */
} FlightShared;

static FlightShared *shared = NULL;

/* of this process */
static dlist_head flights = DLIST_STATIC_INIT(flights);

static int
set_size(void)
{
	return (MaxBackends + 7) / 8;
}

static Size
flight_size(void)
{
	return add_size(offsetof(FlightShared, followers), mul_size(set_size(), NFLIGHTS));
}

static void
flight_init(void *part)
{
	FlightShared *s = part;

	memset(s, 0, flight_size());
	s->nprocs = MaxBackends;
	s->set_size = set_size();
	for (int i = 0; i < NFLIGHTS; i++)
		pg_atomic_init_u64(&s->places[i].changes, 0);
}

static const LlmSharedPart flight_part =
{
	"llm_gateway flights", flight_size, flight_init, (void **) &shared
};

void
llmgw_cache_init(void)
{
	llmgw_shmem_register(&flight_part);
}

static char *
followers_of(const FlightPlace *place)
{
	return shared->followers + (Size) (place - shared->places) * shared->set_size;
}

/* Marks the calls of this process whose flights have changed. */
static bool
notice_changes(void)
{
	bool		any = false;
	dlist_iter	iter;

	dlist_foreach(iter, &flights)
	{
		LlmFlight  *flight = dlist_container(LlmFlight, node, iter.cur);

		if (flight->leads || flight->ready->queued ||
			pg_atomic_read_u64(&shared->places[flight->place - 1].changes) == flight->seen)
			continue;
		llmgw_ready_mark(flight->ready);
		any |= flight->ready->queued;
	}
	return any;
}

/* For what is still there when all that should have given it up has gone. */
static void
leave_all(int code, Datum arg)
{
	while (!dlist_is_empty(&flights))
		llmgw_flight_leave(dlist_head_element(LlmFlight, node, &flights));
}

static void
set_up_process(void)
{
	static bool done = false;

	if (done)
		return;
	on_shmem_exit(leave_all, (Datum) 0);
	llmgw_loop_on_latch(notice_changes);
	done = true;
}

/* Tells the followers; under the lock, exclusive. */
static void
tell(FlightPlace *place)
{
	char	   *followers = followers_of(place);

	pg_atomic_fetch_add_u64(&place->changes, 1);
	for (int i = 0; i < shared->set_size; i++)
	{
		for (int bit = 0; followers[i] != 0 && bit < 8; bit++)
			if (followers[i] & (1 << bit))
				SetLatch(&llmgw_proc(i * 8 + bit)->procLatch);
		followers[i] = 0;
	}
}

/* Whether the answer of a landed flight may yet come into llm_cache. */
static bool
is_being_booked(uint64 offset, LlmInstant landed_at)
{
	LlmSpoolShared *spool = llmgw_spool_open();

	return pg_atomic_read_u64(&spool->booked) < offset &&
		pg_atomic_read_u32(&spool->blocked) == 0 &&
		pg_atomic_read_u32(&spool->no_worker) == 0 &&
		llmgw_now() < landed_at + INT64CONST(1000) * llmgw_ledger_sync_timeout;
}

/* Whether nobody needs the place; of another database only by time. */
static bool
is_to_be_had(const FlightPlace *place)
{
	if (place->phase != FLIGHT_LANDED)
		return place->phase == FLIGHT_FREE;
	if (place->database == MyDatabaseId)
		return !is_being_booked(place->offset, place->landed_at);
	return llmgw_now() >= place->landed_at + INT64CONST(1000) * llmgw_ledger_sync_timeout;
}

static bool
leader_lives(const FlightPlace *place)
{
	return llmgw_proc(place->leader_procno)->pid == place->leader_pid;
}

/*
 * Whether a call of that priority may wait for a leader that lives.  One that waits
 * for a lock does not drive its call, and may wait for this very process, which the
 * deadlock detector cannot see.  A guess from outside its locks: who is wrong makes a
 * call too many, or looks again soon.
 */
static bool
is_worth_following(const FlightPlace *place, int rank)
{
	volatile PGPROC *leader = llmgw_proc(place->leader_procno);

	return place->leader_rank <= rank && leader->waitStatus != PROC_WAIT_STATUS_WAITING;
}

/* The place is this process's, under the lock, exclusive. */
static LlmFlightState
lead(LlmFlight *flight, FlightPlace *place)
{
	place->phase = FLIGHT_LED;
	place->leader_procno = llmgw_my_procno();
	place->leader_pid = MyProcPid;
	place->leader_rank = flight->rank;
	flight->leads = true;
	return LLMGW_FLIGHT_LEAD;
}

static LlmFlightState
follow(LlmFlight *flight, FlightPlace *place)
{
	int			procno = llmgw_my_procno();

	/* a process without a place in the set looks from time to time */
	if (procno < shared->nprocs)
		followers_of(place)[procno / 8] |= 1 << (procno % 8);
	flight->seen = pg_atomic_read_u64(&place->changes);
	return LLMGW_FLIGHT_FOLLOW;
}

/* Another flight, under the lock, exclusive: who has followed the last one hears of it. */
static void
begin(FlightPlace *place, const LlmConfig *config, const LlmCacheKey *key)
{
	place->database = MyDatabaseId;
	place->extension = config->extension;
	place->key = *key;
	place->turn++;
	shared->next = (place - shared->places + 1) % NFLIGHTS;
	tell(place);
}

LlmFlightState
llmgw_flight_join(LlmFlight *flight, const LlmConfig *config, const LlmCacheKey *key,
				  int rank, LlmReady *ready)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_FLIGHTS);
	FlightPlace *place = NULL;
	FlightPlace *to_be_had = NULL;
	LlmFlightState state = LLMGW_FLIGHT_NONE;

	Assert(flight->place == 0);
	set_up_process();
	(void) llmgw_spool_open();
	memset(flight, 0, sizeof(*flight));
	flight->rank = rank;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < NFLIGHTS && place == NULL; i++)
	{
		FlightPlace *p = &shared->places[(shared->next + i) % NFLIGHTS];

		if (p->database == MyDatabaseId && p->extension == config->extension &&
			memcmp(&p->key, key, sizeof(LlmCacheKey)) == 0 &&
			(p->phase != FLIGHT_LED || !leader_lives(p) || is_worth_following(p, rank)))
			place = p;
		else if (to_be_had == NULL && is_to_be_had(p))
			to_be_had = p;
	}
	if (place == NULL && to_be_had != NULL)
	{
		place = to_be_had;
		begin(place, config, key);
		state = lead(flight, place);
	}
	else if (place != NULL && place->phase == FLIGHT_LANDED && is_to_be_had(place))
	{
		begin(place, config, key);
		state = lead(flight, place);
	}
	else if (place != NULL && (place->phase == FLIGHT_FREE ||
							   (place->phase == FLIGHT_LED && !leader_lives(place))))
		state = lead(flight, place);
	else if (place != NULL && place->phase == FLIGHT_LED && place->leader_pid == MyProcPid)
		place = NULL;
	else if (place != NULL)
		state = follow(flight, place);
	if (place != NULL)
	{
		flight->place = place - shared->places + 1;
		flight->turn = place->turn;
		flight->ready = ready;
		dlist_push_tail(&flights, &flight->node);
	}
	LWLockRelease(lock);
	return state;
}

static void
forget(LlmFlight *flight)
{
	dlist_delete(&flight->node);
	flight->place = 0;
	flight->leads = false;
}

LlmFlightState
llmgw_flight_look(LlmFlight *flight, int64 *again_us)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_FLIGHTS);
	FlightPlace *place = &shared->places[flight->place - 1];
	LlmFlightState state;

	Assert(flight->place != 0 && !flight->leads);
	*again_us = LLMGW_LOOK_US;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (place->turn != flight->turn ||
		(place->phase == FLIGHT_LED && leader_lives(place) &&
		 !is_worth_following(place, flight->rank)))
		state = LLMGW_FLIGHT_NONE;
	else if (place->phase == FLIGHT_FREE ||
			 (place->phase == FLIGHT_LED && !leader_lives(place)))
		state = lead(flight, place);
	else if (place->phase == FLIGHT_LANDED &&
			 !is_being_booked(place->offset, place->landed_at))
		state = LLMGW_FLIGHT_LANDED;
	else
	{
		if (place->phase == FLIGHT_LANDED)
			*again_us = BOOKING_US;
		state = follow(flight, place);
	}
	LWLockRelease(lock);
	if (state == LLMGW_FLIGHT_NONE || state == LLMGW_FLIGHT_LANDED)
		forget(flight);
	return state;
}

void
llmgw_flight_end(LlmFlight *flight, uint64 offset)
{
	LWLock	   *lock;
	FlightPlace *place;

	if (flight->place == 0)
		return;
	if (flight->leads)
	{
		lock = llmgw_shmem_lock(LLMGW_LOCK_FLIGHTS);
		place = &shared->places[flight->place - 1];
		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (place->turn == flight->turn && place->phase == FLIGHT_LED &&
			place->leader_pid == MyProcPid)
		{
			place->phase = offset != 0 ? FLIGHT_LANDED : FLIGHT_FREE;
			place->offset = offset;
			place->landed_at = llmgw_now();
			tell(place);
		}
		LWLockRelease(lock);
	}
	forget(flight);
}

void
llmgw_flight_leave(LlmFlight *flight)
{
	llmgw_flight_end(flight, 0);
}
