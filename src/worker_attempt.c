/*-------------------------------------------------------------------------
 *
 * worker_attempt.c
 *	  Runs what may fail, so that no error ends the worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/memutils.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "worker_private.h"

/*
 * How long one step may take, normally milliseconds: then it has an error, so
 * that what hangs in it (a user's trigger, say) shows.  How soon it has to end
 * when the worker is to leave.
 */
#define MAX_STEP_MS				10000
#define CHECK_STEP_MS			100

/* an error that goes on is logged so often */
#define LOG_AGAIN_MS			60000

static MemoryContext work_memory = NULL;

/* never empty, so that an error can be looked at when there is no memory */
static MemoryContext error_memory = NULL;
static TimeoutId step_timeout;

/* when the step under way began; for check_step() */
static volatile LlmInstant step_started;

/* the last error that was logged, and whether that was since it last worked */
static struct
{
	const char *failed;			/* with the database's name and the message */
	const char *succeeded;
	int			code;
	TimestampTz at;
	bool		stands;
}			reports[LLMGW_NDEEDS] =

{
	[LLMGW_DEED_LEDGER] = {
		"llm_gateway cannot write the ledger of database \"%s\" for now: %s",
		"llm_gateway writes the ledger of database \"%s\" again"
	},
	[LLMGW_DEED_EVENTS] = {
		"llm_gateway cannot write the breaker events of database \"%s\" for now: %s",
		"llm_gateway writes the breaker events of database \"%s\" again"
	},
	[LLMGW_DEED_PROBES] = {
		"llm_gateway cannot probe the providers of database \"%s\" for now: %s",
		"llm_gateway probes the providers of database \"%s\" again"
	},
};

/*
 * From a timer, so in a signal handler: cancels a step that takes too long,
 * which may be in somebody's trigger.
 */
static void
check_step(void)
{
	LlmInstant	took = (llmgw_now() - step_started) / 1000;

	if (took >= MAX_STEP_MS ||
		((llmgw_worker_stop_requested || llmgw_worker_slot->inhibited_by != 0) && took >= LLMGW_STOP_MS))
	{
		InterruptPending = true;
		QueryCancelPending = true;
		SetLatch(MyLatch);
	}
}

static void
report_error(LlmDeed deed, const ErrorData *edata)
{
	TimestampTz now = GetCurrentTimestamp();
	const char *message = edata->message ? edata->message : "missing error text";
	char		clipped[sizeof(llmgw_worker_slot->last_error)];
	int			len;

	len = Min(pg_mbcliplen(message, strlen(message), sizeof(clipped) - 1), strlen(message));
	memcpy(clipped, message, len);
	memset(clipped + len, 0, sizeof(clipped) - len);

	SpinLockAcquire(&llmgw_worker_slot->mutex);
	memcpy(llmgw_worker_slot->last_error, clipped, sizeof(clipped));
	llmgw_worker_slot->last_error_at = now;
	SpinLockRelease(&llmgw_worker_slot->mutex);

	if (reports[deed].code == edata->sqlerrcode &&
		!TimestampDifferenceExceeds(reports[deed].at, now, LOG_AGAIN_MS))
		return;
	reports[deed].code = edata->sqlerrcode;
	reports[deed].at = now;
	reports[deed].stands = true;
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg(reports[deed].failed, llmgw_worker_database, message),
			 edata->detail ? errdetail_internal("%s", edata->detail) : 0,
			 edata->hint ? errhint("%s", edata->hint) : 0,
			 edata->context ? (errcontext("%s", edata->context)) : 0));
}

int
llmgw_worker_attempt(LlmDeed deed, void (*action) (void))
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

		MemoryContextSwitchTo(error_memory);
		edata = CopyErrorData();
		FlushErrorState();
		code = edata->sqlerrcode;
		report_error(deed, edata);
		MemoryContextReset(error_memory);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(work_memory);
	return code;
}

void
llmgw_worker_succeeded(LlmDeed deed)
{
	if (reports[deed].stands)
		ereport(LOG, (errmsg(reports[deed].succeeded, llmgw_worker_database)));
	reports[deed].stands = false;
}

void
llmgw_worker_attempt_init(MemoryContext context)
{
	work_memory = context;
	error_memory = AllocSetContextCreate(TopMemoryContext, "llm_gateway worker error",
										 16 * 1024, 16 * 1024, 64 * 1024);
	step_timeout = RegisterTimeout(USER_TIMEOUT, check_step);
}
