/*-------------------------------------------------------------------------
 *
 * functions_status.c
 *	  The rows of llm_worker_status: the launcher, and this database's worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "endpoint.h"
#include "shmem.h"
#include "spool.h"

PG_FUNCTION_INFO_V1(llmgw_sql_worker_status);

/* the columns */
enum
{
	WORKER,
	DATABASE,
	PID,
	STATE,
	STARTED_AT,
	PENDING_BYTES,
	OPEN_REQUESTS,
	BOOKED,
	DISCARDED,
	LAST_BOOKED,
	LAST_ERROR,
	LAST_ERROR_AT,
	REMARK,
	NCOLUMNS
};

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	values[column] = CStringGetTextDatum(text);
	nulls[column] = false;
}

static void
set_number(Datum *values, bool *nulls, int column, uint64 number)
{
	values[column] = Int64GetDatum((int64) number);
	nulls[column] = false;
}

/* 0: never */
static void
set_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	values[column] = TimestampTzGetDatum(time);
	nulls[column] = time == 0;
}

static void
launcher_row(Datum *values, bool *nulls)
{
	int			pid;
	int			procno;
	bool		running = llmgw_spool_get_launcher(&pid, &procno);
	uint64		overflows = llmgw_endpoint_overflows();

	set_text(values, nulls, WORKER, "launcher");
	set_text(values, nulls, STATE, running ? "running" : "not running");
	values[PID] = Int32GetDatum(pid);
	nulls[PID] = !running;
	if (overflows > 0)
		set_text(values, nulls, REMARK,
				 psprintf(UINT64_FORMAT " times a provider found no free slot (llm_gateway.max_providers): it has no circuit breaker and no limits",
						  overflows));
}

/* How the worker stands, in words. */
static const char *
state_word(LlmWorkerState state, bool blocked, bool no_worker, int inhibited_by)
{
	if (state == LLMGW_WORKER_RUNNING)
		return blocked ? "blocked" : "running";
	if (inhibited_by != 0)
		return psprintf("left for process %d", inhibited_by);
	if (state == LLMGW_WORKER_STARTING)
		return "starting";
	if (no_worker)
		return "no worker slot";
	return state == LLMGW_WORKER_WANTED ? "wanted" : "none";
}

static void
worker_row(Datum *values, bool *nulls)
{
	LlmSpoolShared *slot = llmgw_spool_slot(MyDatabaseId, false);
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	LlmWorkerState state;
	int			pid;
	int			inhibited_by;
	TimestampTz started;
	TimestampTz last_booked;
	TimestampTz last_error_at;
	char		last_error[sizeof(slot->last_error)];
	uint64		booked;
	uint64		written;

	set_text(values, nulls, WORKER, "ledger");
	values[DATABASE] = DirectFunctionCall1(current_database, (Datum) 0);
	nulls[DATABASE] = false;

	/* no call since the server started */
	if (slot == NULL)
	{
		set_text(values, nulls, STATE, "none");
		for (int i = PENDING_BYTES; i <= DISCARDED; i++)
			set_number(values, nulls, i, 0);
		return;
	}

	LWLockAcquire(lock, LW_SHARED);
	state = pg_atomic_read_u32(&slot->worker_state);
	pid = slot->worker_pid;
	started = slot->worker_started;
	inhibited_by = slot->inhibited_by;
	LWLockRelease(lock);

	SpinLockAcquire(&slot->mutex);
	last_booked = slot->last_booked;
	last_error_at = slot->last_error_at;
	memcpy(last_error, slot->last_error, sizeof(last_error));
	SpinLockRelease(&slot->mutex);

	/* in this order: the difference is never negative */
	booked = pg_atomic_read_u64(&slot->booked);
	pg_read_barrier();
	written = pg_atomic_read_u64(&slot->written);

	set_text(values, nulls, STATE,
			 state_word(state, pg_atomic_read_u32(&slot->blocked) != 0,
						pg_atomic_read_u32(&slot->no_worker) != 0, inhibited_by));
	if (state == LLMGW_WORKER_RUNNING)
	{
		values[PID] = Int32GetDatum(pid);
		nulls[PID] = false;
		set_time(values, nulls, STARTED_AT, started);
	}
	set_number(values, nulls, PENDING_BYTES,
			   written - booked + pg_atomic_read_u64(&slot->old_bytes));
	set_number(values, nulls, OPEN_REQUESTS, pg_atomic_read_u64(&slot->requests_open));
	set_number(values, nulls, BOOKED, pg_atomic_read_u64(&slot->requests_booked));
	set_number(values, nulls, DISCARDED, pg_atomic_read_u64(&slot->records_discarded));
	set_time(values, nulls, LAST_BOOKED, last_booked);
	if (last_error_at != 0)
	{
		set_text(values, nulls, LAST_ERROR, last_error);
		set_time(values, nulls, LAST_ERROR_AT, last_error_at);
	}
}

Datum
llmgw_sql_worker_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	static void (*const rows[]) (Datum *values, bool *nulls) =
	{
		launcher_row, worker_row
	};

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < lengthof(rows); i++)
	{
		Datum		values[NCOLUMNS] = {0};
		bool		nulls[NCOLUMNS];

		memset(nulls, true, sizeof(nulls));
		rows[i] (values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
