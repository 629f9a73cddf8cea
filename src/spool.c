/*-------------------------------------------------------------------------
 *
 * spool.c
 *	  The spools' shared state: slots, owners, the launcher's place.
 *
 * See spool.h for what protects what.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "shmem.h"
#include "spool_private.h"

/* a launcher that is missing for longer does not come back by itself */
#define LAUNCHER_PATIENCE_MS	10000

LlmSpoolRoot *llmgw_spool_root = NULL;

static Size
spool_size(void)
{
	return add_size(offsetof(LlmSpoolRoot, owners),
					add_size(mul_size(sizeof(LlmSpoolOwner), MaxBackends),
							 mul_size(sizeof(LlmSpoolShared), llmgw_max_databases)));
}

/* All but what others may be looking at: the spinlock and who waits. */
static void
clear_slot(LlmSpoolShared *slot)
{
	slot->database = InvalidOid;
	slot->salt = 0;
	slot->worker_pid = 0;
	slot->worker_procno = 0;
	slot->worker_started = 0;
	slot->inhibited_by = 0;
	slot->last_booked = 0;
	slot->last_error_at = 0;
	memset(slot->last_error, 0, sizeof(slot->last_error));
	pg_atomic_init_u64(&slot->id, 0);
	pg_atomic_init_u64(&slot->promised, 0);
	pg_atomic_init_u64(&slot->written, 0);
	pg_atomic_init_u64(&slot->allocated, 0);
	pg_atomic_init_u64(&slot->booked, 0);
	pg_atomic_init_u64(&slot->needed, 0);
	pg_atomic_init_u64(&slot->old_bytes, 0);
	pg_atomic_init_u32(&slot->drained, 0);
	pg_atomic_init_u32(&slot->worker_state, LLMGW_WORKER_NONE);
	pg_atomic_init_u32(&slot->worker_sleeps, 0);
	pg_atomic_init_u32(&slot->blocked, 0);

	/* in single-user mode there is none, and none will come */
	pg_atomic_init_u32(&slot->no_worker, IsPostmasterEnvironment ? 0 : 1);
	pg_atomic_init_u64(&slot->requests_booked, 0);
	pg_atomic_init_u64(&slot->requests_open, 0);
	pg_atomic_init_u64(&slot->records_discarded, 0);
}

static void
init_slot(LlmSpoolShared *slot)
{
	memset(slot, 0, sizeof(*slot));
	clear_slot(slot);
	SpinLockInit(&slot->mutex);
	ConditionVariableInit(&slot->changed);
}

static void
spool_init(void *part)
{
	LlmSpoolRoot *root = part;
	char	   *slots;

	root->launcher_pid = 0;
	root->launcher_procno = 0;
	pg_atomic_init_u64(&root->launcher_missed, 0);
	pg_atomic_init_u64(&root->next_incarnation, 1);
	root->nowners = MaxBackends;
	root->nslots = llmgw_max_databases;
	slots = (char *) MAXALIGN(&root->owners[root->nowners]);
	root->slots_at = slots - (char *) root;
	for (int i = 0; i < root->nowners; i++)
	{
		pg_atomic_init_u64(&root->owners[i].incarnation, 0);
		pg_atomic_init_u32(&root->owners[i].slot, 0);
		pg_atomic_init_u64(&root->owners[i].writing_from, LLMGW_NOT_WRITING);
	}
	for (int i = 0; i < root->nslots; i++)
		init_slot(&llmgw_root_slots(root)[i]);
}

static const LlmSharedPart spool_part =
{
	"llm_gateway spool", spool_size, spool_init, (void **) &llmgw_spool_root
};

void
llmgw_spool_init(void)
{
	llmgw_shmem_register(&spool_part);
}

LlmSpoolShared *
llmgw_spool_slots(int *n)
{
	*n = llmgw_spool_root->nslots;
	return llmgw_root_slots(llmgw_spool_root);
}

LlmSpoolShared *
llmgw_spool_slot(Oid database, bool create)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	int			n;
	LlmSpoolShared *slots = llmgw_spool_slots(&n);
	LlmSpoolShared *found = NULL;
	LlmSpoolShared *free_slot = NULL;

	LWLockAcquire(lock, create ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < n && found == NULL; i++)
	{
		if (slots[i].database == database)
			found = &slots[i];
		else if (free_slot == NULL && !OidIsValid(slots[i].database))
			free_slot = &slots[i];
	}
	if (found == NULL && create && free_slot != NULL)
	{
		free_slot->database = database;
		found = free_slot;
	}
	LWLockRelease(lock);
	return found;
}

/*
 * Nobody is connected to the database: no process has a pointer to the slot,
 * but for others that want to drop it, too.
 */
void
llmgw_spool_drop(Oid database)
{
	LlmSpoolShared *slot = llmgw_spool_slot(database, false);

	if (slot != NULL)
	{
		LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (slot->database == database)
			clear_slot(slot);
		LWLockRelease(lock);
		ConditionVariableBroadcast(&slot->changed);
	}
	llmgw_spool_remove_files(database);
}

/*
 * The fields are two words, but a torn pair wakes the wrong process at most.
 */
void
llmgw_spool_set_launcher(int pid, int procno)
{
	llmgw_spool_root->launcher_procno = procno;
	pg_write_barrier();
	llmgw_spool_root->launcher_pid = pid;
	pg_atomic_write_u64(&llmgw_spool_root->launcher_missed, 0);

	/* a new one has yet to find out */
	for (int i = 0; pid != 0 && i < llmgw_spool_root->nslots; i++)
		pg_atomic_write_u32(&llmgw_root_slots(llmgw_spool_root)[i].no_worker, 0);
}

bool
llmgw_spool_get_launcher(int *pid, int *procno)
{
	*pid = llmgw_spool_root->launcher_pid;
	*procno = llmgw_spool_root->launcher_procno;
	return *pid != 0;
}

void
llmgw_spool_wake_launcher(void)
{
	int			pid;
	int			procno;

	if (llmgw_spool_get_launcher(&pid, &procno))
		SetLatch(&llmgw_proc(procno)->procLatch);
}

uint64
llmgw_spool_oldest_write(LlmSpoolShared *spool)
{
	uint32		slot = spool - llmgw_root_slots(llmgw_spool_root);
	uint64		oldest = LLMGW_NOT_WRITING;

	pg_memory_barrier();
	for (int i = 0; i < llmgw_spool_root->nowners; i++)
	{
		LlmSpoolOwner *owner = &llmgw_spool_root->owners[i];
		uint64		from = pg_atomic_read_u64(&owner->writing_from);

		if (from < oldest && pg_atomic_read_u32(&owner->slot) == slot)
			oldest = from;
	}
	pg_memory_barrier();
	return oldest;
}

bool
llmgw_spool_owner_lives(LlmOwnerId owner)
{
	bool		lives = owner.procno >= 0 && owner.procno < llmgw_spool_root->nowners &&
	pg_atomic_read_u64(&llmgw_spool_root->owners[owner.procno].incarnation) == owner.incarnation;

	pg_memory_barrier();
	return lives;
}

/* Whether there is no launcher, and has been none for so long that none will come. */
static bool
is_launcher_missing(void)
{
	TimestampTz now;
	uint64		since = 0;

	if (llmgw_spool_root->launcher_pid != 0)
		return false;
	now = GetCurrentTimestamp();
	if (pg_atomic_compare_exchange_u64(&llmgw_spool_root->launcher_missed, &since, (uint64) now))
		return false;
	return TimestampDifferenceExceeds((TimestampTz) since, now, LAUNCHER_PATIENCE_MS);
}

void
llmgw_spool_want_worker(LlmSpoolShared *spool)
{
	uint32		state = pg_atomic_read_u32(&spool->worker_state);

	if (state != LLMGW_WORKER_NONE && state != LLMGW_WORKER_WANTED)
		return;
	if (state == LLMGW_WORKER_NONE &&
		pg_atomic_compare_exchange_u32(&spool->worker_state, &state, LLMGW_WORKER_WANTED))
		llmgw_spool_wake_launcher();

	/* the server had no slot for the launcher itself */
	if (pg_atomic_read_u32(&spool->no_worker) == 0 && is_launcher_missing())
	{
		pg_atomic_write_u32(&spool->no_worker, 1);
		ConditionVariableBroadcast(&spool->changed);
	}
}

void
llmgw_spool_set_drained(LlmSpoolShared *spool)
{
	if (pg_atomic_exchange_u32(&spool->drained, 1) == 0)
		ConditionVariableBroadcast(&spool->changed);
}

void
llmgw_spool_wake_worker(LlmSpoolShared *spool, bool waiting)
{
	/* the worker sets this before it looks at what was written a last time */
	pg_memory_barrier();
	if (pg_atomic_read_u32(&spool->worker_sleeps) >=
		(waiting ? LLMGW_WORKER_NAPS : LLMGW_WORKER_SLEEPS) &&
		pg_atomic_exchange_u32(&spool->worker_sleeps, LLMGW_WORKER_AWAKE) != LLMGW_WORKER_AWAKE)
	{
		int			procno = spool->worker_procno;

		if (pg_atomic_read_u32(&spool->worker_state) == LLMGW_WORKER_RUNNING)
			SetLatch(&llmgw_proc(procno)->procLatch);
	}
}
