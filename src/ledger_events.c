/*-------------------------------------------------------------------------
 *
 * ledger_events.c
 *	  What circuit breakers did: rows of llm_breaker_events, and who is told.
 *
 * The changes themselves are in shared memory (endpoint.h), where they wait for
 * the worker.  Ids come from where request ids do: they rise, never repeat, also
 * not after a restore, and leave no sequence to be dumped.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "utils/datetime.h"
#include "utils/json.h"

#include "ledger_events.h"
#include "shmem.h"

/* The error's message and, where changes before this one had no room, that. */
static const char *
message_of(const LlmBreakerEvent *event)
{
	if (event->lost > 0)
		return psprintf("%s%s%d earlier changes were not recorded", event->message,
						event->message[0] != '\0' ? "; " : "", event->lost);
	return event->message[0] != '\0' ? event->message : NULL;
}

static void
add_row(LlmRows *rows, const LlmBreakerEvent *event)
{
	llmgw_rows_int8(rows, llmgw_next_request_id());
	llmgw_rows_time(rows, event->at);
	llmgw_rows_text(rows, event->provider);
	llmgw_rows_text(rows, llmgw_breaker_state_name(event->from_state));
	llmgw_rows_text(rows, llmgw_breaker_state_name(event->to_state));
	llmgw_rows_text(rows, llmgw_breaker_reason_name(event->reason));
	llmgw_rows_text(rows, event->error == LLMGW_OK ? NULL :
					llmgw_error_class_name(event->error));
	llmgw_rows_text(rows, message_of(event));
	llmgw_rows_int4(rows, event->consecutive_failures);
	if (event->next_probe_at != 0)
		llmgw_rows_time(rows, event->next_probe_at);
	else
		llmgw_rows_null(rows);
	llmgw_rows_next(rows);
}

static void
notify(const LlmBreakerEvent *event)
{
	StringInfoData buf;
	char		at[MAXDATELEN + 1];

	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"event\": \"breaker\", \"provider\": ");
	escape_json(&buf, event->provider);
	JsonEncodeDateTime(at, TimestampTzGetDatum(event->at), TIMESTAMPTZOID, NULL);
	appendStringInfo(&buf, ", \"from\": \"%s\", \"to\": \"%s\", \"reason\": \"%s\", \"at\": \"%s\"}",
					 llmgw_breaker_state_name(event->from_state),
					 llmgw_breaker_state_name(event->to_state),
					 llmgw_breaker_reason_name(event->reason), at);
	Async_Notify(LLMGW_CHANNEL, buf.data);
	pfree(buf.data);
}

void
llmgw_events_write(LlmTables *tables, const LlmBreakerEvent *events, int n)
{
	if (llmgw_tables_begin_events(tables))
	{
		LlmRows    *rows = llmgw_rows_begin(tables, LLMGW_TABLE_EVENTS);

		for (int i = 0; i < n; i++)
			add_row(rows, &events[i]);
		(void) llmgw_rows_insert(rows);
		for (int i = 0; i < n; i++)
			notify(&events[i]);
	}
	llmgw_tables_commit(tables);
}
