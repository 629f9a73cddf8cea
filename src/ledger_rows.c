/*-------------------------------------------------------------------------
 *
 * ledger_rows.c
 *	  Rows on their way into a table of the ledger.
 *
 * They go through SPI, so that whatever a user has added to a table holds for
 * it: columns, indexes, constraints, triggers.  They are passed as a relation
 * of their own, as a trigger's transition table is, with our columns only: what
 * else the table has does not matter here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "ledger_tables.h"

#define NEW_ROWS		"new_rows"

/* what a step's rows may take before they go to a temporary file */
#define ROWS_KB			(32 * 1024)

/* rows that are refused go on being: the log has it so often */
#define LOG_AGAIN_MS	60000

struct LlmRows
{
	LlmTables  *tables;
	LlmLedgerTable table;
	TupleDesc	desc;
	Tuplestorestate *store;
	uint64		nrows;
	EphemeralNamedRelationData relation;	/* as SPI knows it */
	MemoryContext row_context;	/* of the values of one row */
	int			n;				/* values of this row so far */
	Datum		values[LLMGW_MAX_COLUMNS];
	bool		nulls[LLMGW_MAX_COLUMNS];
};

/* for each table, made on first use */
static LlmStatement inserts[LLMGW_NLEDGER_TABLES];
static TupleDesc descs[LLMGW_NLEDGER_TABLES];

static void
prepare_table(LlmLedgerTable which)
{
	const LlmTableInfo *table = &llmgw_table_info[which];
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	StringInfoData list;
	TupleDesc	desc;
	int			n = 0;

	while (table->columns[n].name != NULL)
		n++;
	desc = CreateTemplateTupleDesc(n);
	initStringInfo(&list);
	for (int i = 0; i < n; i++)
	{
		TupleDescInitEntry(desc, i + 1, table->columns[i].name, table->columns[i].type, -1, 0);
		appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", table->columns[i].name);
	}
	inserts[which].sql = psprintf("INSERT INTO @.%s AS t (%s) SELECT %s FROM %s %s",
								  table->name, list.data, list.data, NEW_ROWS, table->after);
	pfree(list.data);
	descs[which] = desc;
	MemoryContextSwitchTo(old);
}

LlmRows *
llmgw_rows_begin(LlmTables *tables, LlmLedgerTable table)
{
	LlmRows    *rows = palloc0(sizeof(LlmRows));

	if (descs[table] == NULL)
		prepare_table(table);
	rows->tables = tables;
	rows->table = table;
	rows->desc = descs[table];
	rows->store = tuplestore_begin_heap(false, false, ROWS_KB);
	rows->row_context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway row",
											  ALLOCSET_DEFAULT_SIZES);
	return rows;
}

static void
put(LlmRows *rows, Oid type, Datum value, bool isnull)
{
	Assert(rows->n < rows->desc->natts);
	Assert(!OidIsValid(type) || llmgw_table_info[rows->table].columns[rows->n].type == type);
	rows->values[rows->n] = value;
	rows->nulls[rows->n] = isnull;
	rows->n++;
}

void
llmgw_rows_null(LlmRows *rows)
{
	put(rows, InvalidOid, (Datum) 0, true);
}

void
llmgw_rows_bool(LlmRows *rows, bool value)
{
	put(rows, BOOLOID, BoolGetDatum(value), false);
}

void
llmgw_rows_int4(LlmRows *rows, int32 value)
{
	put(rows, INT4OID, Int32GetDatum(value), false);
}

void
llmgw_rows_int8(LlmRows *rows, int64 value)
{
	put(rows, INT8OID, Int64GetDatum(value), false);
}

void
llmgw_rows_oid(LlmRows *rows, Oid value)
{
	put(rows, OIDOID, ObjectIdGetDatum(value), false);
}

void
llmgw_rows_date(LlmRows *rows, int32 value)
{
	put(rows, DATEOID, Int32GetDatum(value), false);
}

void
llmgw_rows_time(LlmRows *rows, TimestampTz value)
{
	put(rows, TIMESTAMPTZOID, TimestampTzGetDatum(value), false);
}

/* text and bytea are made alike */
static void
put_bytes(LlmRows *rows, Oid type, const char *value, Size len)
{
	MemoryContext old = MemoryContextSwitchTo(rows->row_context);

	put(rows, type, PointerGetDatum(cstring_to_text_with_len(value, (int) len)), false);
	MemoryContextSwitchTo(old);
}

void
llmgw_rows_text_len(LlmRows *rows, const char *value, Size len)
{
	put_bytes(rows, TEXTOID, value, len);
}

void
llmgw_rows_text(LlmRows *rows, const char *value)
{
	if (value == NULL)
		llmgw_rows_null(rows);
	else
		put_bytes(rows, TEXTOID, value, strlen(value));
}

void
llmgw_rows_bytea(LlmRows *rows, const char *value, Size len)
{
	put_bytes(rows, BYTEAOID, value, len);
}

void
llmgw_rows_texts(LlmRows *rows, const char *const *values, int n)
{
	MemoryContext old = MemoryContextSwitchTo(rows->row_context);
	Datum	   *texts = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		texts[i] = CStringGetTextDatum(values[i]);
	put(rows, TEXTARRAYOID,
		PointerGetDatum(construct_array(texts, n, TEXTOID, -1, false, TYPALIGN_INT)), false);
	MemoryContextSwitchTo(old);
}

void
llmgw_rows_floats(LlmRows *rows, const float4 *values, int n)
{
	MemoryContext old = MemoryContextSwitchTo(rows->row_context);
	Datum	   *floats = palloc(sizeof(Datum) * Max(n, 1));

	for (int i = 0; i < n; i++)
		floats[i] = Float4GetDatum(values[i]);
	put(rows, FLOAT4ARRAYOID,
		PointerGetDatum(construct_array(floats, n, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT)),
		false);
	MemoryContextSwitchTo(old);
}

void
llmgw_rows_nano(LlmRows *rows, LlmNano value)
{
	MemoryContext old;

	if (value < 0)
	{
		llmgw_rows_null(rows);
		return;
	}
	old = MemoryContextSwitchTo(rows->row_context);
	put(rows, NUMERICOID, llmgw_nano_to_numeric(value), false);
	MemoryContextSwitchTo(old);
}

void
llmgw_rows_jsonb(LlmRows *rows, Datum value)
{
	put(rows, JSONBOID, value, false);
}

void
llmgw_rows_next(LlmRows *rows)
{
	Assert(rows->n == rows->desc->natts);
	tuplestore_putvalues(rows->store, rows->desc, rows->values, rows->nulls);
	rows->nrows++;
	rows->n = 0;
	MemoryContextReset(rows->row_context);
}

uint64
llmgw_rows_insert(LlmRows *rows)
{
	EphemeralNamedRelation relation = &rows->relation;
	uint64		inserted;
	int			rc;

	if (rows->nrows == 0)
		return 0;
	memset(relation, 0, sizeof(*relation));
	relation->md.name = NEW_ROWS;
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = rows->desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = rows->nrows;
	relation->reldata = rows->store;
	rc = SPI_register_relation(relation);
	if (rc != SPI_OK_REL_REGISTER)
		elog(ERROR, "SPI_register_relation failed: %s", SPI_result_code_string(rc));
	inserted = llmgw_tables_execute(rows->tables, &inserts[rows->table], NULL, NULL);
	SPI_unregister_relation(NEW_ROWS);
	tuplestore_end(rows->store);
	rows->store = NULL;
	return inserted;
}

/* Whether the same rows may be taken in a moment. */
static bool
may_pass(int code)
{
	int			category = ERRCODE_TO_CATEGORY(code);

	return code == ERRCODE_LOCK_NOT_AVAILABLE || category == ERRCODE_TRANSACTION_ROLLBACK ||
		category == ERRCODE_INSUFFICIENT_RESOURCES || category == ERRCODE_OPERATOR_INTERVENTION;
}

static void
log_refused(LlmRows *rows, const ErrorData *edata)
{
	static TimestampTz logged_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(logged_at, now, LOG_AGAIN_MS))
		return;
	logged_at = now;
	ereport(LOG,
			(errcode(edata->sqlerrcode),
			 errmsg("table \"%s\" of extension \"llm_gateway\" does not take rows: %s",
					llmgw_table_info[rows->table].name, edata->message),
			 errdetail("They are left out; the ledger goes on."),
			 errhint("Look for an index, a constraint or a trigger that was added to it."),
			 edata->context ? (errcontext("%s", edata->context)) : 0));
}

bool
llmgw_rows_try_insert(LlmRows *rows)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		(void) llmgw_rows_insert(rows);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		if (may_pass(geterrcode()))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		(void) SPI_unregister_relation(NEW_ROWS);
		if (rows->store != NULL)
			tuplestore_end(rows->store);
		rows->store = NULL;
		log_refused(rows, edata);
		FreeErrorData(edata);
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}
