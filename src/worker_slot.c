/*-------------------------------------------------------------------------
 *
 * worker_slot.c
 *	  A worker takes its database's slot, and leaves it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "shmem.h"
#include "worker_private.h"

LlmSpoolShared *llmgw_worker_slot = NULL;
static Oid	slot_database;

/* Part one of being the worker. */
bool
llmgw_worker_claim(Oid database)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	LlmSpoolShared *found = llmgw_spool_slot(database, false);

	if (found == NULL)
		return false;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (found->database == database && found->worker_pid == 0 &&
		pg_atomic_read_u32(&found->worker_state) == LLMGW_WORKER_STARTING)
	{
		found->worker_pid = MyProcPid;
		found->worker_procno = llmgw_my_procno();
		slot_database = database;
		llmgw_worker_slot = found;
	}
	LWLockRelease(lock);
	return llmgw_worker_slot != NULL;
}

void
llmgw_worker_leave_slot(int code, Datum arg)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	bool		wanted;

	/* of an error that nobody could handle */
	LWLockReleaseAll();
	if (llmgw_worker_slot == NULL)
		return;

	/* no call may come that asks for the next worker */
	wanted = llmgw_probes_wanted();
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (llmgw_worker_slot->database == slot_database &&
		llmgw_worker_slot->worker_pid == MyProcPid)
	{
		llmgw_worker_slot->worker_pid = 0;
		pg_atomic_write_u32(&llmgw_worker_slot->worker_state,
							wanted ? LLMGW_WORKER_WANTED : LLMGW_WORKER_NONE);
		ConditionVariableBroadcast(&llmgw_worker_slot->changed);
	}
	LWLockRelease(lock);
	llmgw_worker_slot = NULL;
	llmgw_spool_wake_launcher();
}

void
llmgw_worker_leave(LlmBook *book)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (llmgw_worker_slot->database == slot_database &&
		llmgw_worker_slot->worker_pid == MyProcPid)
		llmgw_worker_slot->worker_started = 0;
	LWLockRelease(lock);
	if (book != NULL)
		llmgw_book_leave(book);
	proc_exit(0);
}

/*
 * A writer that saw this worker running has its record counted in `written`
 * before; one that comes later sees NONE and asks for another worker.  The same
 * holds for what breakers do.
 */
void
llmgw_worker_leave_idle(LlmBook *book)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	bool		idle;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&llmgw_worker_slot->worker_state, LLMGW_WORKER_NONE);
	pg_memory_barrier();
	idle = pg_atomic_read_u64(&llmgw_worker_slot->written) ==
		pg_atomic_read_u64(&llmgw_worker_slot->booked) && !llmgw_probes_has_news();
	if (idle)
		llmgw_worker_slot->worker_started = 0;
	else
		pg_atomic_write_u32(&llmgw_worker_slot->worker_state, LLMGW_WORKER_RUNNING);
	LWLockRelease(lock);
	if (idle)
	{
		llmgw_book_leave(book);
		proc_exit(0);
	}
}

/* Part two. */
void
llmgw_worker_begin(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	llmgw_worker_slot->worker_started = GetCurrentTimestamp();
	pg_atomic_write_u32(&llmgw_worker_slot->worker_sleeps, LLMGW_WORKER_AWAKE);
	pg_atomic_write_u32(&llmgw_worker_slot->worker_state, LLMGW_WORKER_RUNNING);
	ConditionVariableBroadcast(&llmgw_worker_slot->changed);
	LWLockRelease(lock);
}
