/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *	  Lets go of a database that a statement needs for itself.
 *
 * DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, and CREATE DATABASE
 * for its template, fail while anybody is connected to the database.  A worker
 * is nobody's session: before such a statement it is asked to leave, and none is
 * started until the statement has ended.  Who may not run the statement stops
 * nothing.  If the worker does not leave in time, or others are connected, the
 * statement fails with the server's own error.
 *
 * Nothing is lost: the records wait in the spool, calls do not wait for the
 * ledger meanwhile, and the launcher starts a worker afterwards where there is
 * work left.
 *
 * DROP EXTENSION and the like need nothing of this: a worker holds no lock
 * between its transactions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "budget.h"
#include "compat.h"
#include "endpoint.h"
#include "lifecycle.h"
#include "shmem.h"
#include "spool.h"
#include "timing.h"

/* how long a worker has to leave */
#define LEAVE_MS		5000

/* how often to look whether it has, in case somebody else let it come back */
#define POLL_MS			100

static ProcessUtility_hook_type prev_ProcessUtility = NULL;

/* the slot, and its database, that this process keeps free; NULL: none */
static LlmSpoolShared *kept = NULL;
static Oid	kept_database;

/* The caller's right to create databases. */
static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		result = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static bool
is_template(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	bool		result = false;

	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return result;
}

static DefElem *
find_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *option = lfirst_node(DefElem, lc);

		if (strcmp(option->defname, name) == 0)
			return option;
	}
	return NULL;
}

/*
 * The database that the statement needs for itself and that the caller may do
 * that to; otherwise invalid.  Whatever else is wrong with the statement is left
 * to the server to say.
 */
static Oid
needed_database(Node *statement, bool top_level)
{
	Oid			database = InvalidOid;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			if (IsInTransactionBlock(top_level))
				break;
			database = get_database_oid(castNode(DropdbStmt, statement)->dbname, true);
			if (database == MyDatabaseId ||
				!OidIsValid(database) || !llmgw_owns_database(database, GetUserId()))
				return InvalidOid;
			break;

		case T_AlterDatabaseStmt:
			if (IsInTransactionBlock(top_level) ||
				find_option(castNode(AlterDatabaseStmt, statement)->options, "tablespace") == NULL)
				break;
			database = get_database_oid(castNode(AlterDatabaseStmt, statement)->dbname, true);
			if (database == MyDatabaseId ||
				!OidIsValid(database) || !llmgw_owns_database(database, GetUserId()))
				return InvalidOid;
			break;

		case T_RenameStmt:

			/* the only one that may be part of a transaction */
			if (castNode(RenameStmt, statement)->renameType != OBJECT_DATABASE)
				break;
			database = get_database_oid(castNode(RenameStmt, statement)->subname, true);
			if (database == MyDatabaseId ||
				!OidIsValid(database) || !llmgw_owns_database(database, GetUserId()) ||
				!may_create_databases())
				return InvalidOid;
			break;

		case T_CreatedbStmt:
			{
				DefElem    *template;

				if (IsInTransactionBlock(top_level) || !may_create_databases())
					break;
				template = find_option(castNode(CreatedbStmt, statement)->options, "template");
				database = get_database_oid(template != NULL && template->arg != NULL ?
											defGetString(template) : "template1", true);
				if (!OidIsValid(database) ||
					!(is_template(database) || llmgw_owns_database(database, GetUserId())))
					return InvalidOid;
				break;
			}

		default:
			break;
	}
	return database;
}

/* Workers may come back. */
static void
release_database(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	if (kept == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (kept->database == kept_database && kept->inhibited_by == MyProcPid)
		kept->inhibited_by = 0;
	LWLockRelease(lock);
	kept = NULL;
	llmgw_spool_wake_launcher();
}

/* FATAL does not pass through PG_FINALLY. */
static void
release_at_exit(int code, Datum arg)
{
	release_database();
}

/*
 * Asks the worker to leave, and waits until it has.  While two processes keep
 * the same database free, the later one has its name in the slot: it is the one
 * that is still to find out that nobody is connected.  When it has ended, one
 * that still waits here puts its own name there.
 */
static void
free_database(LlmSpoolShared *slot, Oid database)
{
	static uint32 wait_event = 0;
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	LlmInstant	end = llmgw_after_ms(llmgw_now(), LEAVE_MS);
	bool		first = true;

	if (wait_event == 0)
		wait_event = llmgw_wait_event("LlmGatewayWorkerExit");
	kept_database = database;
	kept = slot;

	ConditionVariablePrepareToSleep(&slot->changed);
	for (;;)
	{
		long		left = (long) ((end - llmgw_now() + 999) / 1000);
		uint32		state;
		int			procno = -1;

		LWLockAcquire(lock, LW_EXCLUSIVE);
		if (slot->database != database)
		{
			LWLockRelease(lock);
			break;
		}
		if (first || slot->inhibited_by == 0)
			slot->inhibited_by = MyProcPid;
		state = pg_atomic_read_u32(&slot->worker_state);
		if (slot->worker_pid != 0)
			procno = slot->worker_procno;
		LWLockRelease(lock);

		/* callers wait no longer for the ledger */
		if (first)
			ConditionVariableBroadcast(&slot->changed);
		first = false;

		/* the launcher starts none while it is kept free */
		if (state == LLMGW_WORKER_NONE || state == LLMGW_WORKER_WANTED || left <= 0)
			break;
		if (procno >= 0)
			SetLatch(&llmgw_proc(procno)->procLatch);
		(void) ConditionVariableTimedSleep(&slot->changed, Min(left, POLL_MS), wait_event);
	}
	ConditionVariableCancelSleep();
}

/*
 * The spool of a database that is gone.  An error must not undo DROP DATABASE,
 * whose files are gone, too: then the launcher does it when it starts again.
 */
static void
drop_spool(Oid database)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	/* not if another one had that name when the statement came to it */
	CommandCounterIncrement();
	if (SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database)))
		return;

	llmgw_endpoint_drop_database(database);
	llmgw_budget_drop(database);
	HOLD_INTERRUPTS();
	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		llmgw_spool_drop(database);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		HOLD_INTERRUPTS();		/* the error has released them */
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(WARNING,
				(errcode(edata->sqlerrcode),
				 errmsg("could not remove the spool of the dropped database: %s", edata->message)));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	RESUME_INTERRUPTS();
}

#define UTILITY_PARAMETERS \
	PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, \
	ProcessUtilityContext context, ParamListInfo params, \
	QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc

#define UTILITY_ARGUMENTS \
	pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc

static void
run_statement(UTILITY_PARAMETERS)
{
	if (prev_ProcessUtility)
		prev_ProcessUtility(UTILITY_ARGUMENTS);
	else
		standard_ProcessUtility(UTILITY_ARGUMENTS);
}

/* Runs it while no worker is there. */
static void
run_alone(LlmSpoolShared *slot, Oid database, UTILITY_PARAMETERS)
{
	static bool at_exit = false;

	if (!at_exit)
	{
		before_shmem_exit(release_at_exit, 0);
		at_exit = true;
	}
	PG_TRY();
	{
		free_database(slot, database);
		run_statement(UTILITY_ARGUMENTS);
		if (IsA(pstmt->utilityStmt, DropdbStmt))
			drop_spool(database);
	}
	PG_FINALLY();
	{
		release_database();
	}
	PG_END_TRY();
}

static void
process_utility(UTILITY_PARAMETERS)
{
	Oid			database = InvalidOid;
	LlmSpoolShared *slot = NULL;

	if (kept == NULL)
		database = needed_database(pstmt->utilityStmt, context == PROCESS_UTILITY_TOPLEVEL);
	if (OidIsValid(database))
		slot = llmgw_spool_slot(database, false);

	if (slot != NULL)
		run_alone(slot, database, UTILITY_ARGUMENTS);
	else
	{
		run_statement(UTILITY_ARGUMENTS);

		/* no calls since the server started, but perhaps an older spool */
		if (OidIsValid(database) && IsA(pstmt->utilityStmt, DropdbStmt))
			drop_spool(database);
	}
}

void
llmgw_lifecycle_init(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
