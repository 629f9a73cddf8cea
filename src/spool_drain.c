/*-------------------------------------------------------------------------
 *
 * spool_drain.c
 *	  Whether former starts of the server left anything to be booked.
 *
 * A former generation is gone when all of it is booked; or the worker that
 * booked the last of it left word, and the launcher has not come by yet to
 * remove it.  No new ones come up while the server runs: so once there are none,
 * that is all that needs to be known.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lwlock.h"

#include "compat.h"
#include "shmem.h"
#include "spool.h"
#include "timing.h"

/*
 * How long to sleep at most: not everything that another worker has to be asked
 * for is broadcast.
 */
#define LOOK_MS			100

/*
 * Looks at the files.  As in ledger_source.c: of those listed before the lock was
 * seen free, each that is not the spool's own is old.
 */
static bool
nothing_old(LlmSpoolShared *spool)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	uint64		own = 0;
	uint64		bytes;
	int			n;
	LlmGeneration *generations = llmgw_spool_generations(MyDatabaseId, &n, &bytes);
	bool		finished = true;

	if (n > 0)
	{
		/* who lists one of this start sees whose it is */
		LWLockAcquire(lock, LW_SHARED);
		LWLockRelease(lock);
		if (spool == NULL)
			spool = llmgw_spool_slot(MyDatabaseId, false);
		if (spool != NULL)
			own = pg_atomic_read_u64(&spool->id);
	}
	for (int i = 0; i < n && finished; i++)
		finished = generations[i].id == own ||
			llmgw_generation_finished(MyDatabaseId, generations[i]);
	pfree(generations);
	return finished;
}

/* The slot's flag, or what the files say. */
static bool
look(LlmSpoolShared *spool)
{
	if (spool != NULL && pg_atomic_read_u32(&spool->drained) != 0)
		return true;
	if (!nothing_old(spool))
		return false;
	if (spool != NULL)
		llmgw_spool_set_drained(spool);
	return true;
}

/*
 * A worker that is blocked may get on in a moment, as may one that has left for
 * somebody; a server without room for one will not soon have it.
 */
static bool
wait_until_drained(LlmSpoolShared *spool, int wait_ms)
{
	static uint32 wait_event = 0;
	LlmInstant	end = llmgw_now() + (LlmInstant) wait_ms * 1000;
	bool		drained;

	if (wait_event == 0)
		wait_event = llmgw_wait_event("LlmGatewayLedger");

	ConditionVariablePrepareToSleep(&spool->changed);
	while (!(drained = pg_atomic_read_u32(&spool->drained) != 0))
	{
		LlmInstant	left;

		if (pg_atomic_read_u32(&spool->no_worker) != 0 || spool->inhibited_by == MyProcPid)
			break;
		llmgw_spool_want_worker(spool);
		left = end - llmgw_now();
		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&spool->changed,
										   (long) Min((left + 999) / 1000, LOOK_MS), wait_event);
	}
	ConditionVariableCancelSleep();
	return drained;
}

bool
llmgw_spool_drained(int wait_ms)
{
	/* of this database, and there as long as it is */
	static LlmSpoolShared *spool = NULL;

	if (spool == NULL)
		spool = llmgw_spool_slot(MyDatabaseId, false);
	if (look(spool))
		return true;

	/* the launcher may not have come by yet, or found no slot for it */
	if (spool == NULL)
		spool = llmgw_spool_slot(MyDatabaseId, true);
	if (spool == NULL)
		return false;
	return wait_until_drained(spool, wait_ms);
}
