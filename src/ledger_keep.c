/*-------------------------------------------------------------------------
 *
 * ledger_keep.c
 *	  Answers that are kept: the rows of llm_cache, written and deleted.
 *
 * An answer is written in the transaction that books its request, so who finds the
 * request in the ledger finds the answer in the table.  A later answer replaces one
 * that has its key.  What the table refuses is not kept: the ledger goes on.
 *
 * How much there is, is counted once; from then on what is written is added, and
 * what is deleted taken off.  What was replaced, or deleted by a user, still
 * counts until it seems to be too much: then it is counted again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"

#include "guc.h"
#include "json.h"
#include "ledger_post.h"
#include "ledger_retain.h"
#include "timing.h"

/* rows deleted at once */
#define DELETE_ROWS		500

/* Where the oldest have to go, so many more go that there is room for a while. */
#define KEPT_PERCENT	95

static LlmStatement delete_expired = {
	"DELETE FROM @.llm_cache WHERE key = ANY (ARRAY("
	"SELECT key FROM @.llm_cache WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2))"
	" RETURNING size",
	2, {TIMESTAMPTZOID, INT8OID}
};
static LlmStatement delete_oldest = {
	"DELETE FROM @.llm_cache WHERE key = ANY (ARRAY("
	"SELECT key FROM (SELECT key, sum(size) OVER (ORDER BY created_at, key) - size AS before FROM ("
	"SELECT key, size, created_at FROM @.llm_cache ORDER BY created_at LIMIT $2) low) sums"
	" WHERE before < $1))"
	" RETURNING size",
	2, {INT8OID, INT8OID}
};
static LlmStatement count_bytes = {
	"SELECT least(coalesce(sum(size), 0), 9223372036854775807)::int8 FROM @.llm_cache", 0
};

/* One that is to be written. */
typedef struct Kept
{
	LlmKeep		keep;
	const LlmFacts *facts;
	Jsonb	   *tool_calls;
} Kept;

/* By key, then in the order of the requests' ends. */
static int
compare_kept(const void *a, const void *b)
{
	const Kept *x = a;
	const Kept *y = b;
	int			result = memcmp(x->keep.key, y->keep.key, LLMGW_HASH_LEN);

	return result != 0 ? result : (x->facts < y->facts ? -1 : x->facts > y->facts);
}

/* What does not read is not kept: the ledger goes on. */
static bool
read_keep(const LlmFacts *facts, Kept *kept)
{
	char	   *reason;

	if (!facts->booked || facts->keep == NULL || facts->nattempts == 0 ||
		facts->result.status != LLMGW_STATUS_OK ||
		!llmgw_keep_decode(facts->keep->data, facts->keep->len, &kept->keep) ||
		kept->keep.expires_at <= llmgw_wall_clock())
		return false;
	kept->facts = facts;
	kept->tool_calls = NULL;
	if (kept->keep.tool_calls != NULL)
		kept->tool_calls = llmgw_json_parse_text(kept->keep.tool_calls, &reason);
	return kept->keep.tool_calls == NULL || kept->tool_calls != NULL;
}

static int64
kept_size(const Kept *kept)
{
	return (int64) llmgw_keep_size(&kept->keep) + LLMGW_KEPT_ROW;
}

static void
put_kept(LlmRows *rows, const Kept *kept)
{
	const LlmFacts *facts = kept->facts;
	const LlmOutcome *outcome = &facts->attempts[facts->nattempts - 1].outcome;

	llmgw_rows_bytea(rows, kept->keep.key, LLMGW_HASH_LEN);
	llmgw_rows_text(rows, facts->request.role);
	llmgw_rows_oid(rows, facts->request.role_oid);
	llmgw_rows_text(rows, facts->request.task);
	llmgw_rows_text(rows, facts->provider);
	llmgw_rows_text(rows, facts->model);
	llmgw_rows_text(rows, facts->model_tier);
	llmgw_rows_text(rows, kept->keep.response);
	if (kept->tool_calls != NULL)
		llmgw_rows_jsonb(rows, JsonbPGetDatum(kept->tool_calls));
	else
		llmgw_rows_null(rows);
	llmgw_rows_text(rows, facts->result.finish_reason);
	llmgw_rows_int8(rows, outcome->usage.input);
	llmgw_rows_int8(rows, outcome->usage.cached_input);
	llmgw_rows_int8(rows, outcome->usage.cache_write);
	llmgw_rows_int8(rows, outcome->usage.output);
	llmgw_rows_int8(rows, outcome->usage.reasoning);
	llmgw_rows_nano(rows, outcome->cost);
	llmgw_rows_time(rows, kept->keep.created_at);
	llmgw_rows_time(rows, kept->keep.expires_at);
	llmgw_rows_int8(rows, kept_size(kept));
	llmgw_rows_int8(rows, facts->id);
	if (kept->keep.dimensions > 0)
	{
		llmgw_rows_bytea(rows, kept->keep.scope, LLMGW_HASH_LEN);
		llmgw_rows_floats(rows, kept->keep.embedding, kept->keep.dimensions);
	}
	else
	{
		llmgw_rows_null(rows);
		llmgw_rows_null(rows);
	}
	llmgw_rows_next(rows);
}

int64
llmgw_keep_write(LlmTables *tables, const LlmFacts *facts, int nfacts)
{
	Kept	   *all = NULL;
	LlmRows    *rows;
	int64		bytes = 0;
	int			n = 0;

	for (int i = 0; i < nfacts; i++)
	{
		if (facts[i].keep == NULL)
			continue;
		if (all == NULL)
			all = palloc(sizeof(Kept) * (nfacts - i));
		if (read_keep(&facts[i], &all[n]))
			n++;
	}
	if (n == 0)
		return 0;
	qsort(all, n, sizeof(Kept), compare_kept);
	rows = llmgw_rows_begin(tables, LLMGW_TABLE_CACHE);
	for (int i = 0; i < n; i++)
	{
		/* of several with a key the last, as one statement writes a row once */
		if (i + 1 < n && memcmp(all[i].keep.key, all[i + 1].keep.key, LLMGW_HASH_LEN) == 0)
			continue;
		put_kept(rows, &all[i]);
		bytes += kept_size(&all[i]);
	}
	return llmgw_rows_try_insert(rows) ? bytes : 0;
}

void
llmgw_kept_add(LlmKeptBytes *kept, int64 bytes)
{
	if (bytes == 0)
		return;
	kept->bytes = llmgw_sum(kept->bytes, bytes);
	kept->exact = false;
}

static int64
most_bytes(void)
{
	return (int64) llmgw_cache_size * 1024;
}

bool
llmgw_kept_too_many(const LlmKeptBytes *kept)
{
	return !kept->known || kept->bytes > most_bytes();
}

/* The first column of the result, added up. */
static int64
sum_result(uint64 n)
{
	int64		sum = 0;

	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		if (!isnull)
			sum = llmgw_sum(sum, DatumGetInt64(value));
	}
	return sum;
}

/* Deletes some; the rows.  Within a transaction. */
static uint64
delete_some(LlmTables *tables, LlmKeptBytes *kept)
{
	Datum		values[2];
	uint64		n;

	values[0] = TimestampTzGetDatum(llmgw_wall_clock());
	values[1] = Int64GetDatum(DELETE_ROWS);
	n = llmgw_tables_execute(tables, &delete_expired, values, NULL);
	kept->bytes -= sum_result(n);
	if (!kept->known || (!kept->exact && kept->bytes > most_bytes()))
	{
		kept->bytes = sum_result(llmgw_tables_execute(tables, &count_bytes, NULL, NULL));
		kept->known = kept->exact = true;
	}
	if (n == 0 && kept->bytes > most_bytes())
	{
		values[0] = Int64GetDatum(kept->bytes - most_bytes() / 100 * KEPT_PERCENT);
		n = llmgw_tables_execute(tables, &delete_oldest, values, NULL);
		kept->bytes -= sum_result(n);
	}
	return n;
}

bool
llmgw_retain_kept(LlmTables *tables, LlmKeptBytes *kept)
{
	MemoryContext caller = CurrentMemoryContext;
	LlmKeptBytes after = *kept;
	uint64		n = 0;

	if (kept->known && kept->bytes == 0)
		return false;
	if (llmgw_tables_begin_cache(tables))
		n = delete_some(tables, &after);
	else
	{
		after.bytes = 0;
		after.known = after.exact = true;
	}
	llmgw_tables_commit(tables);
	MemoryContextSwitchTo(caller);
	*kept = after;
	return n > 0;
}
