/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  A database's worker: writes its ledger, deletes what is too old, and
 *	  probes providers.
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
 * PROBES
 *
 * While a probe is under way, waiting is turning the loop (llmgw_probes_turn()),
 * which the latch ends as it ends any other wait; so booking goes on beside it.
 * The worker stays while one is to come soon, and wakes for it.  When it is to
 * leave, those under way are abandoned at once, and another worker is asked for.
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
#include "worker_private.h"

/* how often to look while requests are open or came lately */
#define NAP_MS					100

/* how long after the last record that is */
#define LINGER_MS				1000

/* how soon to look again for a record that is being written */
#define MIN_PENDING_MS			1
#define MAX_PENDING_MS			16

/* after SIGTERM, how often to look whether all requests have ended */
#define STOP_NAP_MS				10

/* how soon to try again what failed: a lock was taken, or something else */
#define MIN_RETRY_MS			100
#define MAX_LOCK_RETRY_MS		200
#define MAX_RETRY_MS			5000

/* how often to look for rows that are too old */
#define RETAIN_MS				60000

/* and for answers that are too many, at most */
#define TRIM_MS					1000

#define NEVER					LLMGW_NEVER

static LlmBook *book = NULL;

static uint32 wait_event;

char		llmgw_worker_database[NAMEDATALEN];
volatile sig_atomic_t llmgw_worker_stop_requested = false;

/* result of the action below */
static LlmBookStep step_result;
static bool retain_result;

static void
on_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	llmgw_worker_stop_requested = true;
	SetLatch(MyLatch);
	errno = save_errno;
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
		strlcpy(llmgw_worker_database, name, sizeof(llmgw_worker_database));
	CommitTransactionCommand();
}

/* What another process may ask for at any time, outside of a step. */
static void
interrupt_action(void)
{
	/* llmgw_worker_attempt(LLMGW_DEED_LEDGER, ) has looked for interrupts */
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

	SpinLockAcquire(&llmgw_worker_slot->changed.mutex);
	result = !proclist_is_empty(&llmgw_worker_slot->changed.wakeup);
	SpinLockRelease(&llmgw_worker_slot->changed.mutex);
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
		pg_atomic_write_u32(&llmgw_worker_slot->worker_sleeps, mode);
		pg_memory_barrier();
		if (pg_atomic_read_u64(&llmgw_worker_slot->written) != seen &&
			(mode == LLMGW_WORKER_SLEEPS || somebody_waits()))
			ms = 0;
		else if (mode == LLMGW_WORKER_SLEEPS && llmgw_probes_has_news())
			ms = 0;
	}
	if (ms > 0 && llmgw_probes_under_way())
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		llmgw_probes_turn(llmgw_after_ms(llmgw_now(), ms));
	}
	else if (ms > 0)
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, wait_event);
		ResetLatch(MyLatch);
	}
	pg_atomic_write_u32(&llmgw_worker_slot->worker_sleeps, LLMGW_WORKER_AWAKE);

	/* there was no statement that a cancel could have meant */
	QueryCancelPending = false;
	(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, interrupt_action);
}

/* Makes the spool durable now and then, whatever becomes of the ledger. */
static void
sync_if_due(LlmInstant now)
{
	static LlmInstant last_sync = 0;

	if (elapsed(last_sync, now, NAP_MS))
	{
		(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, sync_action);
		last_sync = now;
	}
}

/* Waits for all of the time, unless the worker has to leave. */
static void
wait_out(long ms)
{
	LlmInstant	now = llmgw_now();
	LlmInstant	end = llmgw_after_ms(now, ms);

	while (now < end && llmgw_worker_slot->inhibited_by == 0 && !llmgw_worker_stop_requested)
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
	if (pg_atomic_exchange_u32(&llmgw_worker_slot->blocked, 1) == 0)
		ConditionVariableBroadcast(&llmgw_worker_slot->changed);
}

static void
clear_blocked(void)
{
	pg_atomic_write_u32(&llmgw_worker_slot->blocked, 0);
	llmgw_worker_succeeded(LLMGW_DEED_LEDGER);
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
	LlmInstant	trim_at = 0;
	LlmInstant	stop_at = NEVER;
	uint64		looked = PG_UINT64_MAX;
	int			failures = 0;
	int			pending = 0;
	bool		reported = true;

	for (;;)
	{
		uint64		seen = pg_atomic_read_u64(&llmgw_worker_slot->written);
		uint64		booked = pg_atomic_read_u64(&llmgw_worker_slot->booked);
		LlmInstant	now = llmgw_now();
		LlmInstant	idle_at = NEVER;
		LlmInstant	wake_at;
		int			code;

		if (llmgw_worker_slot->inhibited_by != 0)
		{
			llmgw_probes_abandon();
			llmgw_worker_leave(book);
		}
		llmgw_probes_step(book);
		if (llmgw_worker_stop_requested && stop_at == NEVER)
			stop_at = llmgw_after_ms(now, LLMGW_STOP_MS);
		if (now >= stop_at)
			break;

		code = llmgw_worker_attempt(LLMGW_DEED_LEDGER, step_action);
		if (code != 0)
		{
			long		delay = retry_delay(code, ++failures);

			set_blocked();
			if (llmgw_worker_stop_requested)
				nap(STOP_NAP_MS, LLMGW_WORKER_AWAKE, 0);
			else
				wait_out(delay);
			continue;
		}
		failures = 0;
		if (pg_atomic_read_u32(&llmgw_worker_slot->blocked) != 0)
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
			(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, interrupt_action);
			continue;
		}
		if (step_result == LLMGW_BOOK_PENDING)
		{
			/* under load there is always one, soon to be written */
			if (pg_atomic_read_u64(&llmgw_worker_slot->booked) != booked)
				pending = 0;
			nap(Min(MIN_PENDING_MS << Min(pending, 10), MAX_PENDING_MS), LLMGW_WORKER_AWAKE, 0);
			pending++;
			continue;
		}
		pending = 0;

		if (llmgw_worker_stop_requested)
		{
			if (llmgw_book_open_requests(book) == 0 &&
				pg_atomic_read_u64(&llmgw_worker_slot->written) == seen)
				break;
			nap(STOP_NAP_MS, LLMGW_WORKER_AWAKE, 0);
			continue;
		}

		if (now >= retain_at || (now >= trim_at && llmgw_book_cache_full(book)))
		{
			if (llmgw_worker_attempt(LLMGW_DEED_LEDGER, retain_action) == 0 && retain_result)
			{
				/* there may be more, but records come first */
				(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, interrupt_action);
				continue;
			}
			retain_at = llmgw_after_ms(llmgw_now(), RETAIN_MS);
			trim_at = llmgw_after_ms(llmgw_now(), TRIM_MS);
		}

		if (!elapsed(last_record, now, LINGER_MS))
		{
			nap(NAP_MS, LLMGW_WORKER_NAPS, seen);
			continue;
		}

		if (!reported)
			(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, stat_action);
		reported = true;
		if (llmgw_worker_idle_timeout > 0)
			idle_at = llmgw_after_ms(last_record, llmgw_worker_idle_timeout);
		wake_at = llmgw_after_ms(now, RETAIN_MS);
		if (now >= idle_at && !llmgw_probes_wanted())
		{
			/* if it does not, something came */
			llmgw_worker_leave_idle(book);
			wake_at = llmgw_after_ms(now, NAP_MS);
		}
		else if (idle_at > now)
			wake_at = Min(wake_at, idle_at);
		wake_at = Min(wake_at, llmgw_probes_wake_at());
		if (llmgw_book_cache_full(book))
			wake_at = Min(wake_at, trim_at);
		nap(Max(ms_between(now, wake_at), 1),
			LLMGW_WORKER_SLEEPS, seen);
	}

	/* after SIGTERM */
	(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, sync_action);
	if (pg_atomic_read_u64(&llmgw_worker_slot->written) != pg_atomic_read_u64(&llmgw_worker_slot->booked) ||
		llmgw_book_open_requests(book) > 0)
		ereport(LOG,
				(errmsg("records of the ledger of database \"%s\" stay in the spool",
						llmgw_worker_database),
				 errdetail("The next worker writes them; they are below \"%s\" in the data directory.",
						   LLMGW_SPOOL_DIR)));
	llmgw_worker_leave(book);
}

void
llmgw_worker_main(Datum arg)
{
	Oid			database = DatumGetObjectId(arg);
	MemoryContext context;

	/* until it is connected, SIGTERM ends it wherever it waits */
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	on_shmem_exit(llmgw_worker_leave_slot, 0);
	if (!llmgw_worker_claim(database))
		proc_exit(0);
	if (llmgw_worker_slot->inhibited_by != 0)
		llmgw_worker_leave(NULL);

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pqsignal(SIGTERM, on_sigterm);
	llmgw_worker_force_settings();

	context = AllocSetContextCreate(TopMemoryContext, "llm_gateway worker",
									ALLOCSET_DEFAULT_SIZES);
	llmgw_worker_attempt_init(context);
	wait_event = llmgw_wait_event("LlmGatewayWorker");
	MemoryContextSwitchTo(context);

	llmgw_worker_begin();
	snprintf(llmgw_worker_database, sizeof(llmgw_worker_database), "%u", database);
	(void) llmgw_worker_attempt(LLMGW_DEED_LEDGER, name_action);
	book = llmgw_book_open(context, llmgw_worker_slot);
	work();
}
