/*-------------------------------------------------------------------------
 *
 * ledger_retain.c
 *	  Deletes rows of the ledger that are too old (llm_gateway.retention).
 *
 * Request ids rise with time, so the oldest rows are at the low end of the
 * primary key: a few of those are looked at, and deleted if they are old.
 * llm_daily_spend keeps what they add up to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "ledger_retain.h"

#define RETAIN_ROWS		500

static LlmStatement find_old = {
	"SELECT request_id FROM ("
	"SELECT request_id, created_at FROM @.llm_requests WHERE request_id > $1"
	" ORDER BY request_id LIMIT $2) low"
	" WHERE created_at < $3 ORDER BY request_id",
	3, {INT8OID, INT8OID, TIMESTAMPTZOID}
};
static LlmStatement delete_attempts = {
	"DELETE FROM @.llm_attempts WHERE request_id = ANY ($1)", 1, {INT8ARRAYOID}
};
static LlmStatement delete_requests = {
	"DELETE FROM @.llm_requests WHERE request_id = ANY ($1)", 1, {INT8ARRAYOID}
};

static LlmStatement delete_events = {
	"DELETE FROM @.llm_breaker_events WHERE event_id = ANY (ARRAY("
	"SELECT event_id FROM ("
	"SELECT event_id, at FROM @.llm_breaker_events ORDER BY event_id LIMIT $1) low"
	" WHERE at < $2))",
	2, {INT8OID, TIMESTAMPTZOID}
};

/* Rows from before that are too old. */
static TimestampTz
oldest_kept(void)
{
	return GetCurrentTransactionStartTimestamp() - llmgw_retention * USECS_PER_MINUTE;
}

static void
delete_some(LlmTables *tables, const Datum *ids, int n)
{
	Datum		list = PointerGetDatum(construct_array((Datum *) ids, n, INT8OID, sizeof(int64),
													   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));

	llmgw_tables_execute(tables, &delete_attempts, &list, NULL);
	llmgw_tables_execute(tables, &delete_requests, &list, NULL);
}

bool
llmgw_retain(LlmTables *tables, int64 *above)
{
	MemoryContext caller = CurrentMemoryContext;
	int64		highest = *above;
	uint64		n = 0;

	if (llmgw_retention == 0)
		return false;
	if (llmgw_tables_begin(tables))
	{
		Datum		values[3];
		Datum	   *ids;

		values[0] = Int64GetDatum(*above);
		values[1] = Int64GetDatum(RETAIN_ROWS);
		values[2] = TimestampTzGetDatum(oldest_kept());
		n = llmgw_tables_execute(tables, &find_old, values, NULL);
		ids = palloc(sizeof(Datum) * RETAIN_ROWS);
		for (uint64 i = 0; i < n; i++)
		{
			bool		isnull;

			ids[i] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		}
		if (n > 0)
		{
			highest = DatumGetInt64(ids[n - 1]);
			delete_some(tables, ids, (int) n);
		}
	}
	llmgw_tables_commit(tables);
	MemoryContextSwitchTo(caller);

	/*
	 * Dead entries stay at the low end of the index until a vacuum: the next
	 * look begins behind them.  Once there is nothing left, the next begins
	 * at the low end again, for rows that were booked late.
	 */
	*above = n > 0 ? highest : PG_INT64_MIN;
	return n > 0;
}

bool
llmgw_retain_events(LlmTables *tables)
{
	MemoryContext caller = CurrentMemoryContext;
	uint64		n = 0;

	if (llmgw_retention == 0)
		return false;
	if (llmgw_tables_begin_events(tables))
	{
		Datum		values[2];

		values[0] = Int64GetDatum(RETAIN_ROWS);
		values[1] = TimestampTzGetDatum(oldest_kept());
		n = llmgw_tables_execute(tables, &delete_events, values, NULL);
	}
	llmgw_tables_commit(tables);
	MemoryContextSwitchTo(caller);
	return n > 0;
}
