/*-------------------------------------------------------------------------
 *
 * budget_load.c
 *	  What budgets have spent, as the ledger has it.
 *
 * Read as configuration is (config_load.c): directly, so a caller needs no
 * privilege; under a fresh snapshot, so the transaction's isolation level does not
 * matter; and without predicate locks, as the scan asks for all row versions and
 * visibility is judged here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/int.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "budget.h"
#include "config_check.h"
#include "spool.h"

#define SPEND_TABLE		"_llm_budget_spend"

static Relation
open_table(const LlmConfig *config)
{
	Oid			relid = get_relname_relid(SPEND_TABLE, config->schema);
	Relation	rel;

	if (!OidIsValid(relid) ||
		getExtensionOfObject(RelationRelationId, relid) != config->extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" of extension \"llm_gateway\" is missing", SPEND_TABLE),
				 errhint("Run ALTER EXTENSION llm_gateway UPDATE, or drop and create the extension.")));
	rel = table_open(relid, AccessShareLock);
	llmgw_check_scannable(rel);
	return rel;
}

/*
 * What an extension has that this transaction has just made is of no former start
 * of the server: what those left behind is another one's, and the worker, which
 * cannot see this one, may have to wait for us.
 */
bool
llmgw_budget_is_settled(const LlmConfig *config, int wait_ms)
{
	Relation	rel;
	bool		just_made;

	if (llmgw_spool_drained(0))
		return true;
	rel = open_table(config);
	just_made = rel->rd_createSubid != InvalidSubTransactionId;
	table_close(rel, AccessShareLock);
	return just_made || llmgw_spool_drained(wait_ms);
}

/* Whether it is one of all rows by those two columns, in that order. */
static bool
index_fits(Relation index, const ScanKeyData *keys)
{
	Form_pg_index form = index->rd_index;

	return index->rd_rel->relam == BTREE_AM_OID && form->indisvalid &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
		form->indnkeyatts > 1 && form->indkey.values[0] == keys[0].sk_attno &&
		form->indkey.values[1] == keys[1].sk_attno;
}

/* InvalidOid: there is none. */
static Oid
find_index(Relation rel, const ScanKeyData *keys)
{
	List	   *indexes = RelationGetIndexList(rel);
	Oid			found = InvalidOid;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index_fits(index, keys))
			found = lfirst_oid(lc);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

static int64
read_spent(const LlmConfig *config, int64 id, TimestampTz period_start)
{
	Relation	rel = open_table(config);
	AttrNumber	spent_column = llmgw_typed_column(rel, "spent_nano", INT8OID);
	Snapshot	snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(RelationGetRelid(rel)));
	ScanKeyData keys[2];
	Oid			index;
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		spent = 0;

	ScanKeyInit(&keys[0], llmgw_typed_column(rel, "budget_id", INT8OID), BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(id));
	ScanKeyInit(&keys[1], llmgw_typed_column(rel, "period_start", TIMESTAMPTZOID), BTEqualStrategyNumber,
				F_TIMESTAMPTZ_EQ, TimestampTzGetDatum(period_start));
	index = find_index(rel, keys);
	scan = systable_beginscan(rel, index, OidIsValid(index), SnapshotAny, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value;

		if (!table_tuple_satisfies_snapshot(rel, scan->slot, snapshot))
			continue;
		value = heap_getattr(tuple, spent_column, RelationGetDescr(rel), &isnull);
		if (!isnull)
			spent = DatumGetInt64(value);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return Max(spent, 0);
}

LlmNano
llmgw_budget_load(const LlmConfig *config, const LlmBudget *budget, TimestampTz period_start)
{
	int64		spent = read_spent(config, budget->id, period_start);

	if (budget->opening_period == period_start && budget->opening > 0 &&
		pg_add_s64_overflow(spent, budget->opening, &spent))
		spent = PG_INT64_MAX;
	return spent;
}
