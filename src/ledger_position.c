/*-------------------------------------------------------------------------
 *
 * ledger_position.c
 *	  How far a generation of the spool is booked.
 *
 * The position is written in the transaction that books what is before it, so
 * after a crash it says what is booked, and nothing else needs to.  The reader
 * then begins at the oldest record of a request that was open.
 *
 * A request that is open for very long would keep all segments since its
 * beginning.  Its records are then carried over into a table, in the same
 * transaction as the position that leaves them behind, and deleted in the one
 * that books it.  (To append them to the spool again would not do: the
 * request's END may be written at the same moment, and be found before them.)
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "ledger_post.h"

/*
 * Rows of old generations that are kept: an older copy of the data directory
 * may still have their files.
 */
#define KEPT_POSITIONS	1000

static LlmStatement read_position = {
	"SELECT read_offset, oldest_open, done, ctid FROM @._llm_spool_position"
	" WHERE spool_id = $1",
	1, {INT8OID}
};
static LlmStatement insert_position = {
	"INSERT INTO @._llm_spool_position (spool_id, read_offset, oldest_open, done, updated_at)"
	" VALUES ($1, $2, $3, $4, now()) RETURNING ctid",
	4, {INT8OID, INT8OID, INT8OID, BOOLOID}
};
static LlmStatement update_position = {
	"UPDATE @._llm_spool_position"
	" SET read_offset = $2, oldest_open = $3, done = $4, updated_at = now()"
	" WHERE spool_id = $1 AND read_offset = $5 AND NOT done RETURNING ctid",
	5, {INT8OID, INT8OID, INT8OID, BOOLOID, INT8OID}
};
static LlmStatement update_position_at = {
	"UPDATE @._llm_spool_position"
	" SET read_offset = $2, oldest_open = $3, done = $4, updated_at = now()"
	" WHERE ctid = $6 AND spool_id = $1 AND read_offset = $5 AND NOT done RETURNING ctid",
	6, {INT8OID, INT8OID, INT8OID, BOOLOID, INT8OID, TIDOID}
};
static LlmStatement clean_positions = {
	"DELETE FROM @._llm_spool_position WHERE done AND spool_id < (SELECT spool_id"
	" FROM @._llm_spool_position WHERE done ORDER BY spool_id DESC LIMIT 1 OFFSET $1 - 1)",
	1, {INT8OID}
};
static LlmStatement clean_carried = {
	"DELETE FROM @._llm_spool_carried c WHERE NOT EXISTS ("
	"SELECT FROM @._llm_spool_position p WHERE p.spool_id = c.spool_id AND NOT p.done)",
	0
};
static LlmStatement read_carried = {
	"SELECT request_id, read_offset, records FROM @._llm_spool_carried WHERE spool_id = $1",
	1, {INT8OID}
};
static LlmStatement delete_carried = {
	"DELETE FROM @._llm_spool_carried WHERE spool_id = $1 AND request_id = ANY ($2)",
	2, {INT8OID, INT8ARRAYOID}
};

static Datum
result_value(int row, int column)
{
	bool		isnull;
	Datum		value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									  column, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null value in a table of the ledger");
	return value;
}

void
llmgw_position_read(LlmTables *tables, uint64 spool_id, LlmPosition *position)
{
	Datum		id = Int64GetDatum((int64) spool_id);

	memset(position, 0, sizeof(*position));
	if (llmgw_tables_execute(tables, &read_position, &id, NULL) == 0)
		return;
	position->stored = true;
	position->read_offset = (uint64) DatumGetInt64(result_value(0, 1));
	position->oldest_open = (uint64) DatumGetInt64(result_value(0, 2));
	position->done = DatumGetBool(result_value(0, 3));
	position->tid = *(ItemPointer) DatumGetPointer(result_value(0, 4));
}

/*
 * As long as somebody's snapshot is older, all versions of the row stay, and a
 * search by its key would look at each of them.  That takes longer with every
 * step, so the row is taken from where it was put last.
 */
void
llmgw_position_write(LlmTables *tables, uint64 spool_id, const LlmPosition *old,
					 LlmPosition *new)
{
	ItemPointerData tid = old->tid;
	Datum		values[6] = {
		Int64GetDatum((int64) spool_id),
		Int64GetDatum((int64) new->read_offset),
		Int64GetDatum((int64) new->oldest_open),
		BoolGetDatum(new->done),
		Int64GetDatum((int64) old->read_offset),
		PointerGetDatum(&tid)
	};

	if (!old->stored)
		llmgw_tables_execute(tables, &insert_position, values, NULL);
	else if (llmgw_tables_execute(tables, &update_position_at, values, NULL) != 1 &&
			 llmgw_tables_execute(tables, &update_position, values, NULL) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the position of the ledger in the spool was changed by somebody else")));
	new->tid = *(ItemPointer) DatumGetPointer(result_value(0, 1));
}

void
llmgw_position_clean(LlmTables *tables)
{
	Datum		kept = Int64GetDatum(KEPT_POSITIONS);

	llmgw_tables_execute(tables, &clean_positions, &kept, NULL);
	llmgw_tables_execute(tables, &clean_carried, NULL, NULL);
}

void
llmgw_carried_read(LlmTables *tables, uint64 spool_id, LlmOpenRequests *open)
{
	Datum		id = Int64GetDatum((int64) spool_id);
	uint64		n = llmgw_tables_execute(tables, &read_carried, &id, NULL);

	for (uint64 i = 0; i < n; i++)
	{
		int64		request_id = DatumGetInt64(result_value(i, 1));
		uint64		until = (uint64) DatumGetInt64(result_value(i, 2));
		bytea	   *records = DatumGetByteaPP(result_value(i, 3));

		if (!llmgw_open_unpack(open, request_id, until, VARDATA_ANY(records),
							   VARSIZE_ANY_EXHDR(records)))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("the records of request " INT64_FORMAT " in table \"%s\" are damaged",
							request_id, "_llm_spool_carried"),
					 errhint("Delete the row to go on without the request.")));
	}
}

void
llmgw_carried_write(LlmTables *tables, uint64 spool_id, uint64 read_offset,
					LlmOpenRequest *const *requests, int n)
{
	LlmRows    *rows = llmgw_rows_begin(tables, LLMGW_TABLE_CARRIED);
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
	{
		resetStringInfo(&buf);
		llmgw_open_pack(requests[i], &buf);
		llmgw_rows_int8(rows, (int64) spool_id);
		llmgw_rows_int8(rows, requests[i]->id);
		llmgw_rows_int8(rows, (int64) read_offset);
		llmgw_rows_bytea(rows, buf.data, buf.len);
		llmgw_rows_next(rows);
	}
	llmgw_rows_insert(rows);
}

void
llmgw_carried_delete(LlmTables *tables, uint64 spool_id, const int64 *ids, int n)
{
	Datum	   *datums = palloc(sizeof(Datum) * n);
	Datum		values[2];

	for (int i = 0; i < n; i++)
		datums[i] = Int64GetDatum(ids[i]);
	values[0] = Int64GetDatum((int64) spool_id);
	values[1] = PointerGetDatum(construct_array(datums, n, INT8OID, sizeof(int64),
												FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	llmgw_tables_execute(tables, &delete_carried, values, NULL);
}
