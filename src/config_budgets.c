/*-------------------------------------------------------------------------
 *
 * config_budgets.c
 *	  Rows of llm_budgets: what may be written, their ids and openings.
 *
 * What a budget has spent is kept under its id and the start of the period, in the
 * ledger and in shared memory, and charged by the name of those two.  So an id is
 * given once and never again, to a budget that is new or counts other calls than
 * before.  Such a budget has an opening: what the ledger holds for its scope in
 * the running period.  It is in the row itself: only the ledger's worker writes
 * _llm_budget_spend, and no open transaction keeps it from doing so.
 *
 * A row that comes with an id is being restored, and keeps its opening too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "budget_period.h"
#include "config.h"
#include "config_check.h"
#include "config_rules.h"
#include "timing.h"

#define SEQUENCE		"_llm_budget_id_seq"
#define MAX_ARGS		8

#define PERIOD_HINT \
	"A month, week or day begins at midnight in the budget's timezone."

/* Columns that say which calls count, and when from. */
static const char *const scope_columns[] = {"role", "task", "provider", "model", "period", "timezone"};

/*
 * A query under construction, with its arguments.  It is run with the rights of who
 * owns what it reads, as the worker writes there: whoever inserts budgets need not
 * see the ledger, and what an owner attached to a table is for the owner to run.
 */
typedef struct OwnerQuery
{
	Oid			owner;
	StringInfoData sql;
	int			nargs;
	Oid			types[MAX_ARGS];
	Datum		values[MAX_ARGS];
} OwnerQuery;

static pg_tz *
find_zone(const char *name)
{
	pg_tz	   *zone = strlen(name) <= TZ_STRLEN_MAX ? pg_tzset(name) : NULL;

	return zone != NULL && pg_tz_acceptable(zone) ? zone : NULL;
}

static int64
row_id(const LlmRow *row, bool *isnull)
{
	return DatumGetInt64(llmgw_row_value(row, "id", INT8OID, isnull));
}

static void
check_reserve(const LlmRow *row)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, "reserve_fraction", NUMERICOID, &isnull);
	double		fraction;

	if (isnull)
		return;
	fraction = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));
	if (!(fraction >= 0 && fraction < 1))
		llmgw_reject(row, "reserve_fraction", "be at least 0 and below 1",
					 "It is the part of the limit that only priorities with may_use_reserve may use.");
}

void
llmgw_check_budget(LlmRow *row, const LlmRow *old)
{
	char	   *name = llmgw_row_text(row, "name");
	char	   *period = llmgw_row_text(row, "period");
	char	   *timezone = llmgw_row_text(row, "timezone");
	char	   *on_exhausted = llmgw_row_text(row, "on_exhausted");
	bool		isnull;
	int64		id = row_id(row, &isnull);

	row->what = psprintf("budget \"%s\"", name ? name : "");
	llmgw_check_name(row, "name", NAMEDATALEN - 1);
	if (!isnull && id < 1)
		llmgw_reject(row, "id", "be at least 1", "Leave it out: each budget is given a new one.");
	llmgw_check_numeric(row, "limit_usd", LLMGW_MAX_USD,
						"It is in USD for each period; use NULL to count without a limit.");
	if (period != NULL && llmgw_period_from_name(period) < 0)
		llmgw_reject(row, "period", "be hour, day, week or month", PERIOD_HINT);
	if (timezone != NULL && find_zone(timezone) == NULL)
		llmgw_reject(row, "timezone", "be a time zone",
					 "SELECT name FROM pg_timezone_names lists them; for instance Europe/Berlin.");
	check_reserve(row);
	if (on_exhausted != NULL && strcmp(on_exhausted, "reject") != 0 &&
		strcmp(on_exhausted, "cache_only") != 0)
		llmgw_reject(row, "on_exhausted", "be reject or cache_only",
					 "With cache_only calls are still answered where an answer is kept.");
	llmgw_check_name(row, "task", NAMEDATALEN - 1);
	llmgw_check_name(row, "provider", NAMEDATALEN - 1);
	(void) llmgw_row_object(row, "tags");
	llmgw_check_role(row, old, "role");
	llmgw_check_model_name(row, old,
						   "Until one does, the budget counts nothing: INSERT INTO llm_models(provider, name) ..., or llm_add_provider().");
	llmgw_check_numeric(row, "opening_usd", LLMGW_MAX_USD,
						"It is computed when the budget is made.");
}

static bool
same_text(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* Whether both count the same calls in the same periods. */
static bool
same_scope(const LlmRow *a, const LlmRow *b)
{
	Jsonb	   *x = llmgw_row_object(a, "tags");
	Jsonb	   *y = llmgw_row_object(b, "tags");

	for (int i = 0; i < lengthof(scope_columns); i++)
		if (!same_text(llmgw_row_text(a, scope_columns[i]), llmgw_row_text(b, scope_columns[i])))
			return false;
	return x == NULL || y == NULL ? x == y :
		compareJsonbContainers(&x->root, &y->root) == 0;
}

/* Nobody but the trigger changes what belongs to an id. */
static void
check_unchanged(const LlmRow *row, const LlmRow *old)
{
	static const char *const hint =
	"What was spent belongs to the budget's id.  To begin anew, delete the budget and insert it again.";
	bool		isnull;
	bool		was_null;
	Datum		value;
	Datum		before;

	value = llmgw_row_value(row, "id", INT8OID, &isnull);
	before = llmgw_row_value(old, "id", INT8OID, &was_null);
	if (isnull != was_null || (!isnull && DatumGetInt64(value) != DatumGetInt64(before)))
		llmgw_reject(row, "id", "not be changed", hint);

	value = llmgw_row_value(row, "opening_usd", NUMERICOID, &isnull);
	before = llmgw_row_value(old, "opening_usd", NUMERICOID, &was_null);
	if (isnull != was_null ||
		(!isnull && !DatumGetBool(DirectFunctionCall2(numeric_eq, value, before))))
		llmgw_reject(row, "opening_usd", "not be changed", hint);

	value = llmgw_row_value(row, "opening_period", TIMESTAMPTZOID, &isnull);
	before = llmgw_row_value(old, "opening_period", TIMESTAMPTZOID, &was_null);
	if (isnull != was_null ||
		(!isnull && DatumGetTimestampTz(value) != DatumGetTimestampTz(before)))
		llmgw_reject(row, "opening_period", "not be changed", hint);
}

/* A new budget's opening is not what somebody says. */
static void
check_no_opening(const LlmRow *row)
{
	static const char *const hint =
	"Leave it out: what calls have cost in the running period is taken from the ledger.";
	bool		isnull;
	Datum		value = llmgw_row_value(row, "opening_usd", NUMERICOID, &isnull);

	if (!isnull && !DatumGetBool(DirectFunctionCall2(numeric_eq, value,
													 NumericGetDatum(int64_to_numeric(0)))))
		llmgw_reject(row, "opening_usd", "not be given without an id", hint);
	(void) llmgw_row_value(row, "opening_period", TIMESTAMPTZOID, &isnull);
	if (!isnull)
		llmgw_reject(row, "opening_period", "not be given without an id", hint);
}

/*
 * A table or sequence of the extension, and who owns it, until the end of the
 * transaction.
 */
static Oid
find_member(const LlmRow *row, const char *name, Oid *owner)
{
	Relation	rel;
	Oid			extension = get_extension_oid("llm_gateway", true);
	Oid			relid = get_relname_relid(name, RelationGetNamespace(row->rel));
	char		kind;

	rel = OidIsValid(relid) ? try_relation_open(relid, AccessShareLock) : NULL;
	kind = rel ? rel->rd_rel->relkind : '\0';
	if (!OidIsValid(extension) || rel == NULL ||
		getExtensionOfObject(RelationRelationId, relid) != extension ||
		getExtensionOfObject(RelationRelationId, RelationGetRelid(row->rel)) != extension ||
		(kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE &&
		 kind != RELKIND_SEQUENCE))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" of extension \"llm_gateway\" is missing", name),
				 errhint("Run ALTER EXTENSION llm_gateway UPDATE, or drop and create the extension.")));
	*owner = rel->rd_rel->relowner;
	relation_close(rel, NoLock);
	return relid;
}

static void
begin_query(OwnerQuery *query, Oid owner, const char *sql)
{
	memset(query, 0, sizeof(*query));
	query->owner = owner;
	initStringInfo(&query->sql);
	appendStringInfoString(&query->sql, sql);
}

/* Adds a condition, whose $ becomes the argument's number. */
static void
add_condition(OwnerQuery *query, const char *condition, Oid type, Datum value)
{
	Assert(query->nargs < MAX_ARGS);
	query->types[query->nargs] = type;
	query->values[query->nargs++] = value;
	for (; *condition != '\0'; condition++)
	{
		appendStringInfoChar(&query->sql, *condition);
		if (*condition == '$')
			appendStringInfo(&query->sql, "%d", query->nargs);
	}
}

/*
 * Runs it under a snapshot of this moment in every isolation level; the first
 * column of its one row, in the caller's memory.
 */
static Datum
run(OwnerQuery *query, int16 len, bool byval, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext inner;
	Oid			user;
	int			security;
	int			rc;
	Datum		value = (Datum) 0;

	*isnull = true;
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(query->owner, security | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	rc = SPI_execute_with_args(query->sql.data, query->nargs, query->types,
							   query->values, NULL, true, 1);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed: %s", SPI_result_code_string(rc));
	if (SPI_processed > 0)
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
	if (!*isnull)
	{
		inner = MemoryContextSwitchTo(context);
		value = datumCopy(value, byval, len);
		MemoryContextSwitchTo(inner);
	}
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(user, security);
	return value;
}

static const char *
schema_of(const LlmRow *row)
{
	return quote_identifier(get_namespace_name(RelationGetNamespace(row->rel)));
}

/*
 * Requests of those whom a budget of that role is for, as their calls will be
 * judged: members, but not superusers for being that.  Who called is known by name
 * (a restored ledger has the OIDs of another cluster) and, where nobody has that
 * name any more, by OID.
 */
static void
add_role_condition(OwnerQuery *query, const char *role)
{
	Oid			group = get_role_oid(role, true);
	Relation	rel = table_open(AuthIdRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	ArrayBuildState *names = initArrayResult(TEXTOID, CurrentMemoryContext, false);
	ArrayBuildState *oids = initArrayResult(OIDOID, CurrentMemoryContext, false);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_authid member = (Form_pg_authid) GETSTRUCT(tuple);

		if (!OidIsValid(group) || !is_member_of_role_nosuper(member->oid, group))
			continue;
		names = accumArrayResult(names, CStringGetTextDatum(NameStr(member->rolname)), false,
								 TEXTOID, CurrentMemoryContext);
		oids = accumArrayResult(oids, ObjectIdGetDatum(member->oid), false,
								OIDOID, CurrentMemoryContext);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	add_condition(query, " AND (r.role OPERATOR(pg_catalog.=) ANY ($)", TEXTARRAYOID,
				  makeArrayResult(names, CurrentMemoryContext));
	add_condition(query, " OR (r.role_oid OPERATOR(pg_catalog.=) ANY ($)"
				  " AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles x"
				  " WHERE x.rolname OPERATOR(pg_catalog.=) r.role)))", OIDARRAYOID,
				  makeArrayResult(oids, CurrentMemoryContext));
}

/* What the ledger holds for the row's scope in that period. */
static Datum
compute_opening(const LlmRow *row, TimestampTz start, TimestampTz end)
{
	const char *schema = schema_of(row);
	char	   *role = llmgw_row_text(row, "role");
	char	   *task = llmgw_row_text(row, "task");
	char	   *provider = llmgw_row_text(row, "provider");
	char	   *model = llmgw_row_text(row, "model");
	Jsonb	   *tags = llmgw_row_object(row, "tags");
	Oid			owner;
	Oid			other;
	bool		qualified;
	bool		isnull;
	OwnerQuery	query;

	/* which every call has, also one that has none (scope.h) */
	if (tags != NULL && JB_ROOT_COUNT(tags) == 0)
		tags = NULL;
	(void) find_member(row, "llm_attempts", &owner);
	begin_query(&query, owner, "SELECT coalesce(pg_catalog.sum(a.cost_usd), 0)");
	appendStringInfo(&query.sql, " FROM %s.llm_attempts a", schema);
	if (role != NULL || task != NULL || tags != NULL)
	{
		(void) find_member(row, "llm_requests", &other);
		if (other != owner)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("llm_attempts and llm_requests have different owners"),
					 errdetail("What the calls of %s have cost is read from both.", row->what),
					 errhint("ALTER TABLE llm_attempts OWNER TO %s;",
							 quote_identifier(GetUserNameFromId(other, false)))));
		appendStringInfo(&query.sql, " JOIN %s.llm_requests r"
						 " ON r.request_id OPERATOR(pg_catalog.=) a.request_id", schema);
	}
	add_condition(&query, " WHERE a.started_at OPERATOR(pg_catalog.>=) $",
				  TIMESTAMPTZOID, TimestampTzGetDatum(start));
	add_condition(&query, " AND a.started_at OPERATOR(pg_catalog.<) $",
				  TIMESTAMPTZOID, TimestampTzGetDatum(end));
	if (role != NULL)
		add_role_condition(&query, role);
	if (task != NULL)
		add_condition(&query, " AND r.task OPERATOR(pg_catalog.=) $",
					  TEXTOID, CStringGetTextDatum(task));
	if (tags != NULL)
		add_condition(&query, " AND r.tags OPERATOR(pg_catalog.@>) $",
					  JSONBOID, JsonbPGetDatum(tags));
	if (provider != NULL)
		add_condition(&query, " AND a.provider OPERATOR(pg_catalog.=) $",
					  TEXTOID, CStringGetTextDatum(provider));
	if (model != NULL)
	{
		(void) llmgw_model_exists(row->rel, model, &qualified);
		add_condition(&query, qualified ?
					  " AND pg_catalog.concat(a.provider, '/', a.model) OPERATOR(pg_catalog.=) $" :
					  " AND a.model OPERATOR(pg_catalog.=) $",
					  TEXTOID, CStringGetTextDatum(model));
	}
	return run(&query, -1, false, &isnull);
}

/*
 * The sequence's last number is not given again after a crash either: it may be in
 * the ledger long before this transaction commits, or although it never does.
 */
static void
flush_sequence(Oid relid)
{
	Relation	rel = relation_open(relid, AccessShareLock);

	if (RelationNeedsWAL(rel))
	{
		Buffer		buffer = ReadBuffer(rel, 0);
		XLogRecPtr	written;

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		written = PageGetLSN(BufferGetPage(buffer));
		UnlockReleaseBuffer(buffer);
		XLogFlush(written);
	}
	relation_close(rel, AccessShareLock);
}

static int64
draw_id(const LlmRow *row)
{
	Oid			owner;
	Oid			sequence = find_member(row, SEQUENCE, &owner);
	int64		id = nextval_internal(sequence, false);

	flush_sequence(sequence);
	return id;
}

/* Where the sequence has not come to that number, $1. */
static void
add_sequence(OwnerQuery *query, const LlmRow *row, int64 id)
{
	appendStringInfo(&query->sql, " FROM %s." SEQUENCE " s", schema_of(row));
	add_condition(query, " WHERE NOT s.is_called OR s.last_value OPERATOR(pg_catalog.<) $",
				  INT8OID, Int64GetDatum(id));
}

/*
 * Makes sure that an id which was given is not drawn later.  The sequence must not
 * be set back by that, so nobody draws from it at that moment.
 */
static void
skip_id(const LlmRow *row, int64 id)
{
	Oid			owner;
	Oid			sequence = find_member(row, SEQUENCE, &owner);
	OwnerQuery	query;
	bool		isnull;

	begin_query(&query, owner, "SELECT true");
	add_sequence(&query, row, id);
	(void) run(&query, 1, true, &isnull);
	if (isnull)
		return;

	LockRelationOid(sequence, ShareRowExclusiveLock);
	begin_query(&query, owner, psprintf("SELECT pg_catalog.setval(%u::pg_catalog.regclass, $1)", sequence));
	add_sequence(&query, row, id);
	(void) run(&query, 8, true, &isnull);
	UnlockRelationOid(sequence, ShareRowExclusiveLock);
}

HeapTuple
llmgw_budget_change(const LlmRow *row, const LlmRow *old)
{
	char	   *period = llmgw_row_text(row, "period");
	char	   *timezone = llmgw_row_text(row, "timezone");
	int			columns[3];
	Datum		values[3];
	bool		nulls[3] = {0};
	TimestampTz start;
	TimestampTz end;
	bool		isnull;
	int64		id = row_id(row, &isnull);

	/*
	 * A restore, or a subscriber's copy of a change that another server's
	 * trigger has judged.
	 */
	if (!isnull && (old == NULL || SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA))
	{
		skip_id(row, id);
		return row->tuple;
	}

	if (old == NULL)
		check_no_opening(row);
	else
	{
		check_unchanged(row, old);
		if (same_scope(row, old))
			return row->tuple;
	}

	/* a NULL is for the column's constraint to refuse */
	columns[0] = llmgw_column_number(row->rel, "id");
	values[0] = Int64GetDatum(draw_id(row));
	if (period == NULL || timezone == NULL)
		return heap_modify_tuple_by_cols(row->tuple, RelationGetDescr(row->rel), 1,
										 columns, values, nulls);

	llmgw_period_of(llmgw_period_from_name(period), find_zone(timezone), llmgw_wall_clock(),
					&start, &end);
	columns[1] = llmgw_column_number(row->rel, "opening_usd");
	values[1] = compute_opening(row, start, end);
	columns[2] = llmgw_column_number(row->rel, "opening_period");
	values[2] = TimestampTzGetDatum(start);
	return heap_modify_tuple_by_cols(row->tuple, RelationGetDescr(row->rel), 3,
									 columns, values, nulls);
}
