/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  Starts a worker in each database that needs one.
 *
 * Calls cannot start workers themselves: a worker that dies with work left must
 * be started again when nobody calls, as after a restart of the server.  The
 * launcher is connected to no database, so that it is in nobody's way.
 *
 * It sleeps until it is woken: by a call that finds no worker
 * (llmgw_spool_want_worker), by a worker that has left, by the postmaster when
 * a worker that it started has ended, by who no longer needs a database without
 * a worker.  Then it looks at all slots, which are few, and does what their
 * state asks for.  What it remembers of a database is only how long to wait
 * before the next worker; all else is in shared memory, so it may be killed and
 * started again at any point.
 *
 * Locking: slots are looked at and changed under LLMGW_LOCK_SPOOL, exclusive.
 * Catalogs are read, and files removed, without it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "budget.h"
#include "compat.h"
#include "endpoint.h"
#include "launcher.h"
#include "shmem.h"
#include "spool.h"
#include "worker.h"

/* The launcher itself is started again after so many seconds. */
#define RESTART_SECONDS			5

/* A worker that failed is not started again at once. */
#define MIN_BACKOFF_MS			1000
#define MAX_BACKOFF_MS			60000

/* one that ran for so long did not fail because it cannot run */
#define RAN_LONG_MS				60000

/* how often to ask for a worker slot of the server when all are taken */
#define NO_SLOT_MS				2000

/* how often to look whether a database may be connected to again */
#define NOT_CONNECTABLE_MS		10000

/*
 * How often to look at what somebody else should have finished, and when to
 * take a worker for dead that the launcher before this one has started.
 */
#define PENDING_MS				10000

/* how often to look when nothing is to be expected */
#define IDLE_MS					300000

/* What the launcher remembers of a database, by the place of its slot. */
typedef struct Child
{
	Oid			database;		/* whose it is; invalid: nobody's */
	BackgroundWorkerHandle *handle; /* NULL: none of ours is alive */
	bool		attended;		/* there was a worker since the last look */
	int			backoff_ms;		/* 0: the last worker did not fail */
	TimestampTz retry_at;		/* start none before */
} Child;

typedef struct Database
{
	Oid			oid;
	bool		connectable;
} Database;

static Child *children = NULL;
static int	nchildren;

/* the spools that are there at the start have been looked at */
static bool spools_found = false;

static MemoryContext pass_context = NULL;

static void
clear_launcher(int code, Datum arg)
{
	int			pid;
	int			procno;

	if (llmgw_spool_get_launcher(&pid, &procno) && pid == MyProcPid)
		llmgw_spool_set_launcher(0, 0);
}

/*
 * Runs the function in a transaction.  An error is reported and forgotten: one
 * database's trouble must not keep the others without a worker.
 */
static bool
in_transaction(void (*fn) (void *arg), void *arg)
{
	volatile bool ok = true;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		fn(arg);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(pass_context);
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(pass_context);
	return ok;
}

/*
 * All databases, as a List of Database in the context of this pass.  One that
 * is half dropped cannot be connected to.  A sequential scan: indexes may be
 * out of reach for a process without a database, and it is a small table.
 */
static void
read_databases(void *arg)
{
	List	  **databases = arg;
	Relation	rel = table_open(DatabaseRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	*databases = NIL;
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;
		Database   *database;

		old = MemoryContextSwitchTo(pass_context);
		database = palloc(sizeof(Database));
		database->oid = form->oid;
		database->connectable = form->datallowconn && !database_is_invalid_form(form);
		*databases = lappend(*databases, database);
		MemoryContextSwitchTo(old);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

static const Database *
find_database(const List *databases, Oid oid)
{
	ListCell   *lc;

	foreach(lc, databases)
	{
		const Database *database = lfirst(lc);

		if (database->oid == oid)
			return database;
	}
	return NULL;
}

/* Only files and shared memory, but a transaction cleans up after an error. */
static void
drop_spool(void *arg)
{
	llmgw_endpoint_drop_database(*(Oid *) arg);
	llmgw_budget_drop(*(Oid *) arg);
	llmgw_spool_drop(*(Oid *) arg);
}

/* Whether the state says that no worker is there or on its way. */
static bool
is_vacant(uint32 state)
{
	return state == LLMGW_WORKER_NONE || state == LLMGW_WORKER_WANTED;
}

/*
 * What an earlier start of the server left behind.  Once the database has a
 * generation of this start, or a worker, others keep count.
 */
static void
find_spool(void *arg)
{
	Oid			oid = *(Oid *) arg;
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	uint64		bytes;
	int			n;
	LlmGeneration *generations;
	LlmSpoolShared *slot;

	/* after an orderly stop all is booked, which costs no worker to see */
	slot = llmgw_spool_slot(oid, false);
	generations = llmgw_spool_generations(oid, &n, &bytes);
	for (int i = 0; i < n; i++)
		if ((slot == NULL || pg_atomic_read_u64(&slot->id) == 0) &&
			llmgw_generation_finished(oid, generations[i]))
			llmgw_generation_remove(oid, generations[i]);
	(void) llmgw_spool_generations(oid, &n, &bytes);
	if (n == 0)
		return;
	slot = llmgw_spool_slot(oid, true);
	if (slot == NULL)
	{
		ereport(LOG,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the spool of the database with OID %u cannot be booked", oid),
				 errdetail("llm_gateway.max_databases are in use."),
				 errhint("Raise llm_gateway.max_databases in postgresql.conf and restart the server.")));
		return;
	}
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (slot->database == oid && pg_atomic_read_u64(&slot->id) == 0 &&
		is_vacant(pg_atomic_read_u32(&slot->worker_state)))
		pg_atomic_write_u64(&slot->old_bytes, Max(bytes, 1));
	LWLockRelease(lock);
}

/* The databases that have a spool directory, as a List of Oid of this pass. */
static void
read_spools(void *arg)
{
	List	  **spools = arg;
	int			n;
	Oid		   *oids = llmgw_spool_databases(&n);

	MemoryContextSwitchTo(pass_context);
	*spools = NIL;
	for (int i = 0; i < n; i++)
		*spools = lappend_oid(*spools, oids[i]);
}

/*
 * At the start: gives each database that has a spool a slot, and removes what
 * belongs to databases that have been dropped.  A spool can only be older than
 * what pg_database says when it is looked at first.
 */
static bool
find_spools(void)
{
	List	   *spools = NIL;
	List	   *databases = NIL;
	int			n;
	LlmSpoolShared *slots;
	ListCell   *lc;

	if (!in_transaction(read_spools, &spools))
		return false;

	/* a launcher before this one may have missed a drop */
	LWLockAcquire(llmgw_shmem_lock(LLMGW_LOCK_SPOOL), LW_SHARED);
	slots = llmgw_spool_slots(&n);
	for (int i = 0; i < n; i++)
		if (OidIsValid(slots[i].database))
			spools = list_append_unique_oid(spools, slots[i].database);
	LWLockRelease(llmgw_shmem_lock(LLMGW_LOCK_SPOOL));

	if (spools != NIL && !in_transaction(read_databases, &databases))
		return false;
	foreach(lc, spools)
	{
		Oid			oid = lfirst_oid(lc);

		(void) in_transaction(find_database(databases, oid) != NULL ? find_spool : drop_spool,
							  &oid);
	}
	return true;
}

/* Whether records wait, or requests whose end may have to be found out. */
static bool
has_work(LlmSpoolShared *slot)
{
	return pg_atomic_read_u64(&slot->written) != pg_atomic_read_u64(&slot->booked) ||
		pg_atomic_read_u64(&slot->requests_open) > 0 ||
		pg_atomic_read_u64(&slot->old_bytes) > 0;
}

/* Callers shall not wait for this database's ledger. */
static void
set_unavailable(LlmSpoolShared *slot, pg_atomic_uint32 *flag)
{
	pg_atomic_write_u32(flag, 1);
	pg_memory_barrier();
	ConditionVariableBroadcast(&slot->changed);
}

/*
 * Looks at one slot, under the lock, exclusive: whether it needs a worker now.
 * Lowers *wait_ms when it has to be looked at again before that.
 */
static bool
look_at(LlmSpoolShared *slot, Child *child, TimestampTz now, long *wait_ms)
{
	uint32		state = pg_atomic_read_u32(&slot->worker_state);
	bool		ended = false;

	if (child->database != slot->database)
	{
		if (child->handle != NULL)
			pfree(child->handle);
		memset(child, 0, sizeof(*child));
		child->database = slot->database;
	}
	if (!OidIsValid(slot->database))
		return false;

	if (child->handle != NULL)
	{
		pid_t		pid;

		if (GetBackgroundWorkerPid(child->handle, &pid) == BGWH_STOPPED)
		{
			pfree(child->handle);
			child->handle = NULL;
			ended = true;
		}
	}

	/*
	 * It could not be started, or ended before it knew what it was; or the
	 * launcher that started it was killed, and nothing came of it.
	 */
	if (state == LLMGW_WORKER_STARTING && slot->worker_pid == 0 && child->handle == NULL)
	{
		if (ended ||
			TimestampDifferenceExceeds(slot->worker_started, now, PENDING_MS))
		{
			child->attended = true;
			state = LLMGW_WORKER_NONE;
			pg_atomic_write_u32(&slot->worker_state, state);
			ConditionVariableBroadcast(&slot->changed);
		}
		else
			*wait_ms = Min(*wait_ms, PENDING_MS);
	}

	if (!is_vacant(state))
	{
		child->attended = true;
		return false;
	}

	/* the postmaster says when it has ended */
	if (child->handle != NULL)
		return false;

	if (child->attended)
	{
		child->attended = false;
		if (slot->worker_started == 0)
			child->backoff_ms = 0;
		else
		{
			bool		ran_long = TimestampDifferenceExceeds(slot->worker_started, now, RAN_LONG_MS);

			child->backoff_ms = child->backoff_ms == 0 || ran_long ? MIN_BACKOFF_MS :
				Min(child->backoff_ms * 2, MAX_BACKOFF_MS);
			slot->worker_started = 0;
			set_unavailable(slot, &slot->blocked);
		}
		child->retry_at = child->backoff_ms == 0 ? 0 :
			TimestampTzPlusMilliseconds(now, child->backoff_ms);
	}

	if (slot->inhibited_by != 0 ||
		(state == LLMGW_WORKER_NONE && !has_work(slot)))
		return false;
	if (child->retry_at > now)
	{
		*wait_ms = Min(*wait_ms, TimestampDifferenceMilliseconds(now, child->retry_at) + 1);
		return false;
	}
	return true;
}

/*
 * Starts a worker.  False when the server has no slot for it; then the state is
 * WANTED, so that calls need not ask again.
 */
static bool
start_worker(LlmSpoolShared *slot, Child *child)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	BackgroundWorker worker;
	bool		go;
	bool		registered;
	MemoryContext old;

	/* before the worker looks at it */
	LWLockAcquire(lock, LW_EXCLUSIVE);
	go = slot->database == child->database && slot->inhibited_by == 0 &&
		is_vacant(pg_atomic_read_u32(&slot->worker_state));
	if (go)
	{
		slot->worker_pid = 0;
		slot->worker_started = GetCurrentTimestamp();
		pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_STARTING);
	}
	LWLockRelease(lock);
	if (!go)
		return true;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "llm_gateway");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "llmgw_worker_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, LLMGW_WORKER_TYPE " for database %u", child->database);
	snprintf(worker.bgw_type, BGW_MAXLEN, LLMGW_WORKER_TYPE);
	worker.bgw_main_arg = ObjectIdGetDatum(child->database);
	worker.bgw_notify_pid = MyProcPid;

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &child->handle);
	MemoryContextSwitchTo(old);
	child->attended = registered;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (slot->database == child->database)
	{
		if (registered)
			pg_atomic_write_u32(&slot->no_worker, 0);
		else
		{
			slot->worker_started = 0;
			pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_WANTED);
			set_unavailable(slot, &slot->no_worker);
		}
	}
	LWLockRelease(lock);
	return registered;
}

/* Does what the slots ask for.  Returns when to look again. */
static long
look_at_all(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	TimestampTz now = GetCurrentTimestamp();
	long		wait_ms = IDLE_MS;
	List	   *needy = NIL;
	List	   *databases;
	ListCell   *lc;
	LlmSpoolShared *slots;
	int			n;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	slots = llmgw_spool_slots(&n);
	for (int i = 0; i < n; i++)
		if (look_at(&slots[i], &children[i], now, &wait_ms))
			needy = lappend_int(needy, i);
	LWLockRelease(lock);

	if (needy == NIL)
		return wait_ms;
	if (!in_transaction(read_databases, &databases))
		return Min(wait_ms, PENDING_MS);

	foreach(lc, needy)
	{
		LlmSpoolShared *slot = &slots[lfirst_int(lc)];
		Child	   *child = &children[lfirst_int(lc)];
		const Database *database = find_database(databases, child->database);
		int			delay = 0;

		if (database == NULL)
		{
			/* the slot is free, or the files are in the way */
			if (!in_transaction(drop_spool, &child->database))
				delay = NOT_CONNECTABLE_MS;
		}
		else if (!database->connectable)
		{
			set_unavailable(slot, &slot->blocked);
			delay = NOT_CONNECTABLE_MS;
		}
		else if (!start_worker(slot, child))
			delay = NO_SLOT_MS;
		if (delay > 0)
		{
			child->retry_at = TimestampTzPlusMilliseconds(now, delay);
			wait_ms = Min(wait_ms, delay);
		}
	}
	return wait_ms;
}

void
llmgw_launcher_main(Datum arg)
{
	uint32		wait_event;

	/*
	 * A cancel means nothing here.  It leaves with exit code 1: an operator
	 * who ends it gets another one, as does who ends autovacuum's.
	 */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, SIG_IGN);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	wait_event = llmgw_wait_event("LlmGatewayLauncher");
	pass_context = AllocSetContextCreate(TopMemoryContext, "llm_gateway launcher",
										 ALLOCSET_DEFAULT_SIZES);
	(void) llmgw_spool_slots(&nchildren);
	children = MemoryContextAllocZero(TopMemoryContext, sizeof(Child) * nchildren);

	on_shmem_exit(clear_launcher, 0);
	llmgw_spool_set_launcher(MyProcPid, llmgw_my_procno());

	for (;;)
	{
		long		wait_ms;

		if (ShutdownRequestPending)
			proc_exit(1);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (catchupInterruptPending)
			ProcessCatchupInterrupt();

		MemoryContextSwitchTo(pass_context);
		MemoryContextReset(pass_context);
		pgstat_report_activity(STATE_RUNNING, NULL);
		if (!spools_found)
			spools_found = find_spools();
		wait_ms = look_at_all();
		if (!spools_found)
			wait_ms = Min(wait_ms, PENDING_MS);
		pgstat_report_activity(STATE_IDLE, NULL);

		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 wait_ms, wait_event);
		ResetLatch(MyLatch);
	}
}

void
llmgw_launcher_init(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "llm_gateway");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "llmgw_launcher_main");
	snprintf(worker.bgw_name, BGW_MAXLEN, LLMGW_LAUNCHER_TYPE);
	snprintf(worker.bgw_type, BGW_MAXLEN, LLMGW_LAUNCHER_TYPE);
	RegisterBackgroundWorker(&worker);
}
