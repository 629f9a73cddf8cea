/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  A database's worker: writes its ledger, and deletes what is too old.
 *
 * The work itself is ledger_book.h's, in short transactions; here is when to
 * do it.  The worker is to be there when it is needed and in nobody's way
 * otherwise: it holds nothing between its transactions, leaves when the
 * database is wanted without it or has been idle, and may be killed at any
 * point.  Whatever it leaves undone, the launcher starts another one for.
 *
 * WAITING
 *
 * While requests are open, or records came a moment ago, it looks every 100 ms:
 * it makes the spool durable, finds out about requests whose process died, and
 * books what callers do not wait for (llm_gateway.ledger_sync = off) in large
 * portions.  Callers that wait wake it.  Otherwise it sleeps until somebody
 * writes.  worker_sleeps tells the writers: it is set first, then the worker
 * looks a last time at what was written; they write first, and look at
 * worker_sleeps then; so one of the two sees the other.
 *
 * ERRORS
 *
 * No error ends it.  The step is tried again, callers do not wait meanwhile
 * (blocked), and llm_worker_status and the server's log say why.
 *
 * SIGNALS
 *
 * On SIGTERM it goes on until all requests have ended and are booked, but not
 * for long: the sessions that the same shutdown ends write their last records
 * in that time.  So SIGTERM sets a flag, rather than ending a transaction in its
 * middle.  SIGINT ends a step, as any other error does; lock_timeout needs it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/proclist.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"
#include "storage/spin.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "ledger_book.h"
#include "shmem.h"
#include "spool.h"
#include "timing.h"
#include "worker.h"

/* how often to look while requests are open or came lately */
#define NAP_MS					100

/* how long after the last record that is */
#define LINGER_MS				1000

/* how soon to look again for a record that is being written */
#define MIN_PENDING_MS			1
#define MAX_PENDING_MS			16

/* how long to go on after SIGTERM, and how often to look meanwhile */
#define STOP_MS					500
#define STOP_NAP_MS				10

/* how soon to try again what failed: a lock was taken, or something else */
#define MIN_RETRY_MS			100
#define MAX_LOCK_RETRY_MS		200
#define MAX_RETRY_MS			5000

/*
 * How long one step may take, normally milliseconds: then it has an error, so
 * that what hangs in it (a user's trigger, say) shows.  How soon it has to end
 * when the worker is to leave.
 */
#define MAX_STEP_MS				10000
#define CHECK_STEP_MS			100

/* an error that goes on is logged so often */
#define LOG_AGAIN_MS			60000

/* how often to look for rows that are too old */
#define RETAIN_MS				60000

#define NEVER					LLMGW_NEVER

static LlmSpoolShared *slot = NULL;
static Oid	slot_database;
static LlmBook *book = NULL;

static MemoryContext worker_context = NULL;

/* never empty, so that an error can be looked at when there is no memory */
static MemoryContext error_context = NULL;
static char database_name[NAMEDATALEN];
static uint32 wait_event;
static TimeoutId step_timeout;

static volatile sig_atomic_t stop_requested = false;

/* when the step under way began; for check_step() */
static volatile LlmInstant step_started;

/* the last error that was logged, and whether that was since a step succeeded */
static int	logged_code = 0;
static TimestampTz logged_at = 0;
static bool logged = false;

/* result of the action below */
static LlmBookStep step_result;
static bool retain_result;

static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	stop_requested = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * From a timer, so in a signal handler: cancels a step that takes too long,
 * which may be in somebody's trigger.
 */
static void
check_step(void)
{
	LlmInstant	took = (llmgw_now() - step_started) / 1000;

	if (took >= MAX_STEP_MS ||
		((stop_requested || slot->inhibited_by != 0) && took >= STOP_MS))
	{
		InterruptPending = true;
		QueryCancelPending = true;
		SetLatch(MyLatch);
	}
}

/* Intervals are measured on the clock that nobody sets back. */
static bool
elapsed(LlmInstant from, LlmInstant to, int64 ms)
{
	return to - from >= ms * 1000;
}

static long
ms_between(LlmInstant from, LlmInstant to)
{
	return to <= from ? 0 : (long) Min((to - from + 999) / 1000, INT_MAX);
}

/*
 * Part one of being a slot's worker.  False when somebody else is, or none is
 * wanted any more.
 */
static bool
claim_slot(Oid database)
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
		slot = found;
	}
	LWLockRelease(lock);
	return slot != NULL;
}

/*
 * Registered before the process connects, so that it runs when it has left the
 * database.
 */
static void
leave_slot(int code, Datum arg)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	/* of an error that nobody could handle */
	LWLockReleaseAll();
	if (slot == NULL)
		return;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (slot->database == slot_database && slot->worker_pid == MyProcPid)
	{
		slot->worker_pid = 0;
		pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_NONE);
		ConditionVariableBroadcast(&slot->changed);
	}
	LWLockRelease(lock);
	slot = NULL;
	llmgw_spool_wake_launcher();
}

/* Not a failure: the next worker need not wait. */
static void
leave_on_purpose(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (slot->database == slot_database && slot->worker_pid == MyProcPid)
		slot->worker_started = 0;
	LWLockRelease(lock);
	if (book != NULL)
		llmgw_book_leave(book);
	proc_exit(0);
}

/*
 * Leaves if there is still nothing to do.  A writer that saw this worker running
 * has its record counted in `written` before; one that comes later sees NONE
 * and asks for another worker.
 */
static void
leave_idle(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	bool		idle;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_NONE);
	pg_memory_barrier();
	idle = pg_atomic_read_u64(&slot->written) == pg_atomic_read_u64(&slot->booked);
	if (idle)
		slot->worker_started = 0;
	else
		pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_RUNNING);
	LWLockRelease(lock);
	if (idle)
	{
		llmgw_book_leave(book);
		proc_exit(0);
	}
}

/* Part two: from now on writers wake this process. */
static void
begin_work(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	slot->worker_started = GetCurrentTimestamp();
	pg_atomic_write_u32(&slot->worker_sleeps, LLMGW_WORKER_AWAKE);
	pg_atomic_write_u32(&slot->worker_state, LLMGW_WORKER_RUNNING);
	ConditionVariableBroadcast(&slot->changed);
	LWLockRelease(lock);
}

/*
 * Logs an error, but not each time that it comes back, and leaves it for
 * llm_worker_status.
 */
static void
report_error(const ErrorData *edata)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *message = edata->message ? edata->message : "missing error text";
	char		clipped[sizeof(slot->last_error)];
	int			len;

	len = Min(pg_mbcliplen(message, strlen(message), sizeof(clipped) - 1), strlen(message));
	memcpy(clipped, message, len);
	memset(clipped + len, 0, sizeof(clipped) - len);

	SpinLockAcquire(&slot->mutex);
	memcpy(slot->last_error, clipped, sizeof(clipped));
	slot->last_error_at = now;
	SpinLockRelease(&slot->mutex);

	if (logged_code == edata->sqlerrcode &&
		!TimestampDifferenceExceeds(logged_at, now, LOG_AGAIN_MS))
		return;
	logged_code = edata->sqlerrcode;
	logged_at = now;
	logged = true;
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("llm_gateway cannot write the ledger of database \"%s\" for now: %s",
					database_name, message),
			 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0,
			 edata->context ? (errcontext("%s", edata->context)) : 0));
}

/*
 * Does something that may fail.  0, or its SQLSTATE; then no transaction is open
 * and nothing is held.
 */
static int
attempt(void (*action) (void))
{
	ErrorData  *edata;
	volatile int code = 0;

	PG_TRY();
	{
		CHECK_FOR_INTERRUPTS();
		step_started = llmgw_now();
		enable_timeout_every(step_timeout,
							 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CHECK_STEP_MS),
							 CHECK_STEP_MS);
		action();
		disable_timeout(step_timeout, false);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		disable_timeout(step_timeout, false);

		/* first of all, so that there is memory for the rest */
		AbortOutOfAnyTransaction();

		/* the same where there was no transaction */
		LWLockReleaseAll();
		ConditionVariableCancelSleep();
		pgstat_report_wait_end();
		AtEOXact_Files(false);

		MemoryContextSwitchTo(error_context);
		edata = CopyErrorData();
		FlushErrorState();
		code = edata->sqlerrcode;
		report_error(edata);
		MemoryContextReset(error_context);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(worker_context);
	return code;
}

static void
step_action(void)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "writing the ledger");
	step_result = llmgw_book_step(book);
	pgstat_report_stat(false);
}

static void
retain_action(void)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, "deleting old rows of the ledger");
	retain_result = llmgw_book_retain(book);
	pgstat_report_stat(false);
}

static void
sync_action(void)
{
	llmgw_book_sync(book);
}

static void
stat_action(void)
{
	pgstat_report_stat(true);
}

static void
name_action(void)
{
	char	   *name;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	name = get_database_name(MyDatabaseId);
	if (name != NULL)
		strlcpy(database_name, name, sizeof(database_name));
	CommitTransactionCommand();
}

/* What another process may ask for at any time, outside of a step. */
static void
interrupt_action(void)
{
	/* attempt() has looked for interrupts */
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
}

/*
 * Whether anybody waits for the slot to change.  Callers prepare to sleep before
 * they look whether the worker has to be woken.
 */
static bool
somebody_waits(void)
{
	bool		result;

	SpinLockAcquire(&slot->changed.mutex);
	result = !proclist_is_empty(&slot->changed.wakeup);
	SpinLockRelease(&slot->changed.mutex);
	return result;
}

/*
 * Waits until the time is over or the latch is set; but not when records came
 * behind the offset up to which they have been looked at, and their writers,
 * who saw this process awake, rely on it: those that wait when it naps, all of
 * them when it sleeps.
 */
static void
nap(long ms, LlmWorkerSleep mode, uint64 seen)
{
	if (mode != LLMGW_WORKER_AWAKE)
	{
		pg_atomic_write_u32(&slot->worker_sleeps, mode);
		pg_memory_barrier();
		if (pg_atomic_read_u64(&slot->written) != seen &&
			(mode == LLMGW_WORKER_SLEEPS || somebody_waits()))
			ms = 0;
	}
	if (ms > 0)
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, wait_event);
		ResetLatch(MyLatch);
	}
	pg_atomic_write_u32(&slot->worker_sleeps, LLMGW_WORKER_AWAKE);

	/* there was no statement that a cancel could have meant */
	QueryCancelPending = false;
	(void) attempt(interrupt_action);
}

/* Makes the spool durable now and then, whatever becomes of the ledger. */
static void
sync_if_due(LlmInstant now)
{
	static LlmInstant last_sync = 0;

	if (elapsed(last_sync, now, NAP_MS))
	{
		(void) attempt(sync_action);
		last_sync = now;
	}
}

/* Waits for all of the time, unless the worker has to leave. */
static void
wait_out(long ms)
{
	LlmInstant	now = llmgw_now();
	LlmInstant	end = llmgw_after_ms(now, ms);

	while (now < end && slot->inhibited_by == 0 && !stop_requested)
	{
		sync_if_due(now);
		nap(Min(Max(ms_between(now, end), 1), NAP_MS),
			LLMGW_WORKER_AWAKE, 0);
		now = llmgw_now();
	}
}

/* The step failed: callers go on without it. */
static void
set_blocked(void)
{
	if (pg_atomic_exchange_u32(&slot->blocked, 1) == 0)
		ConditionVariableBroadcast(&slot->changed);
}

static void
clear_blocked(void)
{
	pg_atomic_write_u32(&slot->blocked, 0);
	if (logged)
		ereport(LOG,
				(errmsg("llm_gateway writes the ledger of database \"%s\" again",
						database_name)));
	logged = false;
}

/* How long to wait after the n-th failure in a row. */
static long
retry_delay(int code, int n)
{
	long		most = MAX_RETRY_MS;

	if (code == ERRCODE_LOCK_NOT_AVAILABLE || code == ERRCODE_QUERY_CANCELED ||
		code == ERRCODE_T_R_DEADLOCK_DETECTED)
		most = MAX_LOCK_RETRY_MS;
	return Min((long) MIN_RETRY_MS << Min(n - 1, 10), most);
}

/*
 * The worker's life: steps, and between them, when there is nothing to book,
 * retention, and waiting.
 */
static void
work(void)
{
	LlmInstant	last_record = llmgw_now();
	LlmInstant	retain_at = 0;
	LlmInstant	stop_at = NEVER;
	uint64		looked = PG_UINT64_MAX;
	int			failures = 0;
	int			pending = 0;
	bool		reported = true;

	for (;;)
	{
		uint64		seen = pg_atomic_read_u64(&slot->written);
		uint64		booked = pg_atomic_read_u64(&slot->booked);
		LlmInstant	now = llmgw_now();
		LlmInstant	idle_at = NEVER;
		LlmInstant	wake_at;
		int			code;

		if (slot->inhibited_by != 0)
			leave_on_purpose();
		if (stop_requested && stop_at == NEVER)
			stop_at = llmgw_after_ms(now, STOP_MS);
		if (now >= stop_at)
			break;

		code = attempt(step_action);
		if (code != 0)
		{
			long		delay = retry_delay(code, ++failures);

			set_blocked();
			if (stop_requested)
				nap(STOP_NAP_MS, LLMGW_WORKER_AWAKE, 0);
			else
				wait_out(delay);
			continue;
		}
		failures = 0;
		if (pg_atomic_read_u32(&slot->blocked) != 0)
			clear_blocked();

		now = llmgw_now();
		if (seen != looked || llmgw_book_open_requests(book) > 0)
		{
			looked = seen;
			last_record = now;
			reported = false;
		}

		sync_if_due(now);
		if (step_result == LLMGW_BOOK_MORE)
		{
			(void) attempt(interrupt_action);
			continue;
		}
		if (step_result == LLMGW_BOOK_PENDING)
		{
			/* under load there is always one, soon to be written */
			if (pg_atomic_read_u64(&slot->booked) != booked)
				pending = 0;
			nap(Min(MIN_PENDING_MS << Min(pending, 10), MAX_PENDING_MS), LLMGW_WORKER_AWAKE, 0);
			pending++;
			continue;
		}
		pending = 0;

		if (stop_requested)
		{
			if (llmgw_book_open_requests(book) == 0 &&
				pg_atomic_read_u64(&slot->written) == seen)
				break;
			nap(STOP_NAP_MS, LLMGW_WORKER_AWAKE, 0);
			continue;
		}

		if (llmgw_retention > 0 && now >= retain_at)
		{
			if (attempt(retain_action) == 0 && retain_result)
			{
				/* there may be more, but records come first */
				(void) attempt(interrupt_action);
				continue;
			}
			retain_at = llmgw_after_ms(llmgw_now(), RETAIN_MS);
		}

		if (!elapsed(last_record, now, LINGER_MS))
		{
			nap(NAP_MS, LLMGW_WORKER_NAPS, seen);
			continue;
		}

		if (!reported)
			(void) attempt(stat_action);
		reported = true;
		if (llmgw_worker_idle_timeout > 0)
			idle_at = llmgw_after_ms(last_record, llmgw_worker_idle_timeout);
		wake_at = llmgw_after_ms(now, RETAIN_MS);
		if (now >= idle_at)
		{
			/* if it does not, something came */
			leave_idle();
			wake_at = llmgw_after_ms(now, NAP_MS);
		}
		else
			wake_at = Min(wake_at, idle_at);
		nap(Max(ms_between(now, wake_at), 1),
			LLMGW_WORKER_SLEEPS, seen);
	}

	/* after SIGTERM */
	(void) attempt(sync_action);
	if (pg_atomic_read_u64(&slot->written) != pg_atomic_read_u64(&slot->booked) ||
		llmgw_book_open_requests(book) > 0)
		ereport(LOG,
				(errmsg("records of the ledger of database \"%s\" stay in the spool",
						database_name),
				 errdetail("The next worker writes them; they are below \"%s\" in the data directory.",
						   LLMGW_SPOOL_DIR)));
	leave_on_purpose();
}

void
llmgw_worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);

	/* until it is connected, SIGTERM ends it wherever it waits */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	on_shmem_exit(leave_slot, 0);
	if (!claim_slot(database))
		proc_exit(0);
	if (slot->inhibited_by != 0)
		leave_on_purpose();

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pqsignal(SIGTERM, on_sigterm);
	llmgw_worker_force_settings();

	worker_context = AllocSetContextCreate(TopMemoryContext, "llm_gateway worker",
										   ALLOCSET_DEFAULT_SIZES);
	error_context = AllocSetContextCreate(TopMemoryContext, "llm_gateway worker error",
										  16 * 1024, 16 * 1024, 64 * 1024);
	wait_event = llmgw_wait_event("LlmGatewayWorker");
	step_timeout = RegisterTimeout(USER_TIMEOUT, check_step);
	MemoryContextSwitchTo(worker_context);

	begin_work();
	snprintf(database_name, sizeof(database_name), "%u", database);
	(void) attempt(name_action);
	book = llmgw_book_open(worker_context, slot);
	work();
}
