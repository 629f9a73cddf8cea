/*-------------------------------------------------------------------------
 *
 * ledger_tables.c
 *	  The ledger's tables, as the worker writes them.
 *
 * DROP EXTENSION locks the extension's object before anything else, so holding
 * that lock, in the weakest mode, orders the two without a deadlock.  Tables
 * are found by the extension's OID: a table that happens to have the name of
 * one of ours is not written to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "ledger_tables.h"

const LlmTableInfo llmgw_table_info[LLMGW_NLEDGER_TABLES] =
{
	[LLMGW_TABLE_POSITION] = {"_llm_spool_position", "",
		{
			{"spool_id", INT8OID}, {"read_offset", INT8OID}, {"oldest_open", INT8OID},
			{"done", BOOLOID}, {"updated_at", TIMESTAMPTZOID},
		}
	},
	[LLMGW_TABLE_REQUESTS] = {"llm_requests", "ON CONFLICT (request_id) DO NOTHING RETURNING request_id",
		{
			{"request_id", INT8OID}, {"created_at", TIMESTAMPTZOID}, {"operation", TEXTOID},
			{"role", TEXTOID}, {"role_oid", OIDOID}, {"application_name", TEXTOID},
			{"query_id", INT8OID}, {"task", TEXTOID}, {"task_source", TEXTOID},
			{"priority", TEXTOID}, {"model_tier", TEXTOID}, {"optimize", TEXTOID},
			{"requested_model", TEXTOID}, {"provider", TEXTOID}, {"model", TEXTOID},
			{"status", TEXTOID}, {"error_class", TEXTOID}, {"finish_reason", TEXTOID},
			{"attempts", INT4OID}, {"fallback", BOOLOID}, {"input_tokens", INT8OID},
			{"cached_input_tokens", INT8OID}, {"cache_write_tokens", INT8OID},
			{"output_tokens", INT8OID}, {"reasoning_tokens", INT8OID},
			{"estimated_usd", NUMERICOID}, {"cost_usd", NUMERICOID}, {"cost_source", TEXTOID},
			{"latency_ms", INT4OID}, {"ttft_ms", INT4OID}, {"queue_ms", INT4OID},
			{"budgets", TEXTARRAYOID}, {"tags", JSONBOID}, {"prompt_hash", BYTEAOID}, {"prompt", TEXTOID},
			{"response", TEXTOID}, {"passed_over", TEXTOID}, {"passed_over_class", TEXTOID},
			{"downgraded_by", TEXTOID}, {"downgraded_from", TEXTOID},
		}
	},
	[LLMGW_TABLE_ATTEMPTS] = {"llm_attempts", "ON CONFLICT (request_id, attempt) DO NOTHING",
		{
			{"request_id", INT8OID}, {"attempt", INT4OID}, {"provider", TEXTOID},
			{"model", TEXTOID}, {"started_at", TIMESTAMPTZOID}, {"latency_ms", INT4OID},
			{"http_status", INT4OID}, {"error_class", TEXTOID}, {"message", TEXTOID},
			{"input_tokens", INT8OID}, {"cached_input_tokens", INT8OID},
			{"cache_write_tokens", INT8OID}, {"output_tokens", INT8OID},
			{"cost_usd", NUMERICOID}, {"cost_source", TEXTOID},
		}
	},
	[LLMGW_TABLE_SPEND] = {"llm_daily_spend",
		"ON CONFLICT (day, provider, model, task, model_tier, priority, role) DO UPDATE SET"
		" requests = t.requests + excluded.requests,"
		" failures = t.failures + excluded.failures,"
		" cached = t.cached + excluded.cached,"
		" fallbacks = t.fallbacks + excluded.fallbacks,"
		" unpriced = t.unpriced + excluded.unpriced,"
		" input_tokens = t.input_tokens + excluded.input_tokens,"
		" output_tokens = t.output_tokens + excluded.output_tokens,"
		" estimated_usd = t.estimated_usd + excluded.estimated_usd,"
		" cost_usd = t.cost_usd + excluded.cost_usd RETURNING ctid",
		{
			{"day", DATEOID}, {"provider", TEXTOID}, {"model", TEXTOID}, {"task", TEXTOID},
			{"model_tier", TEXTOID}, {"priority", TEXTOID}, {"role", TEXTOID},
			{"requests", INT8OID}, {"failures", INT8OID}, {"cached", INT8OID},
			{"fallbacks", INT8OID}, {"unpriced", INT8OID}, {"input_tokens", INT8OID},
			{"output_tokens", INT8OID}, {"estimated_usd", NUMERICOID}, {"cost_usd", NUMERICOID},
		}
	},
	[LLMGW_TABLE_BUDGETS] = {"_llm_budget_spend",
		"ON CONFLICT (budget_id, period_start) DO UPDATE SET spent_nano ="
		" CASE WHEN t.spent_nano > 9223372036854775807 - excluded.spent_nano"
		" THEN 9223372036854775807 ELSE t.spent_nano + excluded.spent_nano END RETURNING ctid",
		{
			{"budget_id", INT8OID}, {"period_start", TIMESTAMPTZOID}, {"spent_nano", INT8OID},
		}
	},
	[LLMGW_TABLE_CARRIED] = {"_llm_spool_carried",
		"ON CONFLICT (spool_id, request_id) DO UPDATE SET"
		" read_offset = excluded.read_offset, records = excluded.records",
		{
			{"spool_id", INT8OID}, {"request_id", INT8OID}, {"read_offset", INT8OID},
			{"records", BYTEAOID},
		}
	},
	[LLMGW_TABLE_CACHE] = {"llm_cache",
		"ON CONFLICT (key) DO UPDATE SET"
		" role = excluded.role, role_oid = excluded.role_oid, task = excluded.task,"
		" provider = excluded.provider, model = excluded.model, model_tier = excluded.model_tier,"
		" response = excluded.response, tool_calls = excluded.tool_calls,"
		" finish_reason = excluded.finish_reason, input_tokens = excluded.input_tokens,"
		" cached_input_tokens = excluded.cached_input_tokens,"
		" cache_write_tokens = excluded.cache_write_tokens,"
		" output_tokens = excluded.output_tokens, reasoning_tokens = excluded.reasoning_tokens,"
		" cost_usd = excluded.cost_usd, created_at = excluded.created_at,"
		" expires_at = excluded.expires_at, size = excluded.size, request_id = excluded.request_id,"
		" scope = excluded.scope, embedding = excluded.embedding",
		{
			{"key", BYTEAOID}, {"role", TEXTOID}, {"role_oid", OIDOID}, {"task", TEXTOID},
			{"provider", TEXTOID}, {"model", TEXTOID}, {"model_tier", TEXTOID},
			{"response", TEXTOID}, {"tool_calls", JSONBOID}, {"finish_reason", TEXTOID},
			{"input_tokens", INT8OID}, {"cached_input_tokens", INT8OID},
			{"cache_write_tokens", INT8OID}, {"output_tokens", INT8OID},
			{"reasoning_tokens", INT8OID}, {"cost_usd", NUMERICOID},
			{"created_at", TIMESTAMPTZOID}, {"expires_at", TIMESTAMPTZOID}, {"size", INT8OID},
			{"request_id", INT8OID}, {"scope", BYTEAOID}, {"embedding", FLOAT4ARRAYOID},
		}
	},
	[LLMGW_TABLE_EVENTS] = {"llm_breaker_events", "",
		{
			{"event_id", INT8OID}, {"at", TIMESTAMPTZOID}, {"provider", TEXTOID},
			{"from_state", TEXTOID}, {"to_state", TEXTOID}, {"reason", TEXTOID},
			{"error_class", TEXTOID}, {"message", TEXTOID},
			{"consecutive_failures", INT4OID}, {"next_probe_at", TIMESTAMPTZOID},
		}
	},
};

typedef struct Extension
{
	Oid			oid;
	Oid			schema;
	Oid			owner;
} Extension;

struct LlmTables
{
	MemoryContext context;
	Extension	extension;
	char	   *schema;			/* quoted */
	uint64		epoch;			/* of the statements */
	Oid			relations[LLMGW_NLEDGER_TABLES];
	Oid			owners[LLMGW_NLEDGER_TABLES];
	Oid			saved_user;
	int			saved_security;
	int			saved_settings;
};

/* Another extension or another schema, another epoch; unique in the process. */
static uint64 last_epoch = 0;

LlmTables *
llmgw_tables_create(MemoryContext context)
{
	LlmTables  *tables = MemoryContextAllocZero(context, sizeof(LlmTables));

	tables->context = context;
	return tables;
}

Oid
llmgw_tables_extension(const LlmTables *tables)
{
	return tables->extension.oid;
}

uint64
llmgw_tables_epoch(const LlmTables *tables)
{
	return tables->epoch;
}

/* As it is committed now; all zeros: not installed. */
static void
find_extension(Extension *extension)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(extension, 0, sizeof(*extension));
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("llm_gateway"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_extension form = (Form_pg_extension) GETSTRUCT(tuple);

		extension->oid = form->oid;
		extension->schema = form->extnamespace;
		extension->owner = form->extowner;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
}

Oid
llmgw_tables_extension_owner(void)
{
	Extension	now;

	find_extension(&now);
	return OidIsValid(now.oid) ? now.owner : InvalidOid;
}

bool
llmgw_tables_appeared(const LlmTables *tables)
{
	Extension	now;

	find_extension(&now);
	return OidIsValid(now.oid) && now.oid != tables->extension.oid;
}

/* The extension is another than last time, or has another schema. */
static void
forget_statements(LlmTables *tables, const Extension *extension, const char *schema)
{
	tables->extension = *extension;
	tables->epoch = ++last_epoch;
	memset(tables->relations, 0, sizeof(tables->relations));
	if (tables->schema != NULL)
		pfree(tables->schema);
	tables->schema = MemoryContextStrdup(tables->context, schema);
}

static Oid
find_table(const LlmTables *tables, const char *name)
{
	Oid			relid = get_relname_relid(name, tables->extension.schema);

	if (!OidIsValid(relid) ||
		getExtensionOfObject(RelationRelationId, relid) != tables->extension.oid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" of extension \"llm_gateway\" is missing", name),
				 errhint("Run ALTER EXTENSION llm_gateway UPDATE, or drop and create the extension.")));
	return relid;
}

/* Our columns are there, and of our types; what else there is, is the user's. */
static void
check_columns(Relation rel, const LlmTableInfo *table)
{
	TupleDesc	desc = RelationGetDescr(rel);
	int			at = 0;

	for (const LlmColumn *column = table->columns; column->name != NULL; column++)
	{
		Form_pg_attribute att = NULL;

		/* as a rule they are in our order */
		for (int i = 0; i < desc->natts && att == NULL; i++, at++)
		{
			att = TupleDescAttr(desc, at % desc->natts);
			if (att->attisdropped || strcmp(NameStr(att->attname), column->name) != 0)
				att = NULL;
		}
		if (att == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" is missing", column->name, table->name),
					 errhint("Add it, of type %s; what it would hold waits in the spool.",
							 format_type_be(column->type))));
		if (att->atttypid != column->type)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" must be of type %s, not %s",
							column->name, table->name, format_type_be(column->type),
							format_type_be(att->atttypid)),
					 errhint("Change it back with ALTER TABLE; what it would hold waits in the spool.")));
	}
}

/* Locks a table for writing, and checks it. */
static void
lock_table(LlmTables *tables, LlmLedgerTable which)
{
	const LlmTableInfo *table = &llmgw_table_info[which];
	Oid			relid = tables->relations[which];
	Relation	rel = NULL;

	if (OidIsValid(relid))
		rel = try_relation_open(relid, RowExclusiveLock);
	if (rel == NULL || strcmp(RelationGetRelationName(rel), table->name) != 0)
	{
		if (rel != NULL)
			relation_close(rel, RowExclusiveLock);
		tables->relations[which] = InvalidOid;
		relid = find_table(tables, table->name);
		rel = relation_open(relid, RowExclusiveLock);
	}
	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", table->name)));
	check_columns(rel, table);
	tables->owners[which] = rel->rd_rel->relowner;
	relation_close(rel, NoLock);
	tables->relations[which] = relid;
}

static void
become(const LlmTables *tables, Oid user)
{
	SetUserIdAndSecContext(user, tables->saved_security |
						   SECURITY_RESTRICTED_OPERATION | SECURITY_LOCAL_USERID_CHANGE);
}

/*
 * A deferred trigger cannot be fired in a security-restricted operation.  So
 * all are fired with the statement, as the owner of its table.
 */
static void
defer_nothing(void)
{
	ConstraintsSetStmt *statement = makeNode(ConstraintsSetStmt);

	statement->constraints = NIL;
	statement->deferred = false;
	AfterTriggerSetState(statement);
}

/* For the tables from the first one on, without the last. */
static bool
begin(LlmTables *tables, LlmLedgerTable first, LlmLedgerTable last)
{
	Oid			extension;
	Extension	locked;
	char	   *schema;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();

	/* whatever the database's defaults are */
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;

	/*
	 * as a rule it is the one that it was; that of a dropped one locks
	 * nothing
	 */
	extension = tables->extension.oid;
	for (;;)
	{
		if (OidIsValid(extension))
			LockDatabaseObject(ExtensionRelationId, extension, 0, AccessShareLock);
		find_extension(&locked);
		if (!OidIsValid(locked.oid))
		{
			memset(&tables->extension, 0, sizeof(tables->extension));
			return false;
		}
		if (locked.oid == extension)
			break;
		extension = locked.oid;
	}

	schema = get_namespace_name(locked.schema);
	if (schema == NULL)
		elog(ERROR, "cache lookup failed for schema %u", locked.schema);
	schema = (char *) quote_identifier(schema);
	if (memcmp(&locked, &tables->extension, sizeof(locked)) != 0 ||
		strcmp(schema, tables->schema) != 0)
		forget_statements(tables, &locked, schema);

	/* what triggers set ends with the transaction */
	tables->saved_settings = NewGUCNestLevel();
	GetUserIdAndSecContext(&tables->saved_user, &tables->saved_security);
	become(tables, locked.owner);
	for (int i = first; i < last; i++)
		lock_table(tables, (LlmLedgerTable) i);
	defer_nothing();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	return true;
}

bool
llmgw_tables_begin(LlmTables *tables)
{
	return begin(tables, LLMGW_TABLE_POSITION, LLMGW_TABLE_EVENTS);
}

bool
llmgw_tables_begin_cache(LlmTables *tables)
{
	return begin(tables, LLMGW_TABLE_CACHE, LLMGW_TABLE_CACHE + 1);
}

bool
llmgw_tables_begin_events(LlmTables *tables)
{
	return begin(tables, LLMGW_TABLE_EVENTS, LLMGW_NLEDGER_TABLES);
}

void
llmgw_tables_commit(LlmTables *tables)
{
	bool		installed = OidIsValid(tables->extension.oid);

	if (installed)
	{
		SPI_finish();
		PopActiveSnapshot();
	}
	if (installed)
		AtEOXact_GUC(false, tables->saved_settings);
	CommitTransactionCommand();
	if (installed)
		SetUserIdAndSecContext(tables->saved_user, tables->saved_security);
}

/* The statement with the schema's name in it. */
static char *
with_schema(const LlmTables *tables, const char *sql)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (; *sql != '\0'; sql++)
	{
		if (*sql == '@')
			appendStringInfoString(&buf, tables->schema);
		else
			appendStringInfoChar(&buf, *sql);
	}
	return buf.data;
}

static LlmLedgerTable
table_of(const char *sql)
{
	const char *first = strstr(sql, "@.");

	for (int i = 0; i < LLMGW_NLEDGER_TABLES; i++)
	{
		const char *name = llmgw_table_info[i].name;

		if (first != NULL && strncmp(first + 2, name, strlen(name)) == 0)
			return (LlmLedgerTable) i;
	}
	elog(ERROR, "statement names no table of the ledger: %s", sql);
}

static void
prepare(LlmTables *tables, LlmStatement *statement)
{
	char	   *sql;

	if (statement->plan != NULL && statement->epoch == tables->epoch)
		return;
	if (statement->plan != NULL)
		SPI_freeplan(statement->plan);
	statement->plan = NULL;
	statement->table = table_of(statement->sql);
	sql = with_schema(tables, statement->sql);
	statement->plan = SPI_prepare(sql, statement->nargs, statement->argtypes);
	if (statement->plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s: %s", SPI_result_code_string(SPI_result), sql);
	if (SPI_keepplan(statement->plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	statement->epoch = tables->epoch;
}

uint64
llmgw_tables_execute(LlmTables *tables, LlmStatement *statement, Datum *values,
					 const char *nulls)
{
	Oid			user;
	int			security;
	int			rc;

	prepare(tables, statement);
	GetUserIdAndSecContext(&user, &security);
	become(tables, tables->owners[statement->table]);
	rc = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	SetUserIdAndSecContext(user, security);
	if (rc < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(rc));
	return SPI_processed;
}
