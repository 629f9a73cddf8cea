/*-------------------------------------------------------------------------
 *
 * cache.c
 *	  Reads kept answers from llm_cache.
 *
 * The table is looked into directly, by its primary key, so that a caller needs
 * no privilege on it, and under a snapshot of the moment, so that the
 * transaction's isolation level does not matter: an answer that was kept a second
 * ago is there also in REPEATABLE READ.  The scan itself asks for all row versions,
 * and visibility is judged here: an MVCC scan in a SERIALIZABLE transaction
 * would take predicate locks, and a look into the cache must not make a
 * transaction fail.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "cache_private.h"
#include "compat.h"

#define TABLE_NAME		"llm_cache"

/* USD in nano-dollars */
#define NANO			INT64CONST(1000000000)

/* An entry that cannot be read as one of ours. */
LLMGW_NORETURN static void raise_alien(const char *column);

static void
raise_alien(const char *column)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("column \"%s\" of table \"%s\" is missing, or of another type",
					column, TABLE_NAME),
			 errhint("Run ALTER EXTENSION llm_gateway UPDATE.")));
}

Relation
llmgw_cache_open(const LlmConfig *config, bool wait)
{
	static uint64 generation = 0;
	static Oid	relid = InvalidOid;
	Relation	rel;

	if (generation != config->generation)
	{
		relid = get_relname_relid(TABLE_NAME, config->schema);
		if (OidIsValid(relid) &&
			getExtensionOfObject(RelationRelationId, relid) != config->extension)
			relid = InvalidOid;
		generation = config->generation;
	}
	if (!OidIsValid(relid))
		return NULL;
	if (wait)
		LockRelationOid(relid, AccessShareLock);
	else if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return NULL;
	rel = try_table_open(relid, NoLock);
	if (rel != NULL)
		llmgw_check_scannable(rel);
	return rel;
}

int
llmgw_cache_column(TupleDesc desc, const char *name, Oid type, Oid other_type, Oid *is)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || strcmp(NameStr(att->attname), name) != 0)
			continue;
		if (att->atttypid != type && att->atttypid != other_type)
			break;
		*is = att->atttypid;
		return i + 1;
	}
	raise_alien(name);
}

static Datum
column(TupleTableSlot *slot, const char *name, Oid type, Oid other_type, Oid *is, bool *isnull)
{
	int			number = llmgw_cache_column(slot->tts_tupleDescriptor, name, type, other_type, is);

	return slot_getattr(slot, number, isnull);
}

const char *
llmgw_cache_text(TupleTableSlot *slot, const char *name)
{
	Oid			type;
	bool		isnull;
	Datum		value = column(slot, name, TEXTOID, TEXTOID, &type, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static const char *
jsonb_column(TupleTableSlot *slot, const char *name)
{
	Oid			type;
	bool		isnull;
	Datum		value = column(slot, name, JSONBOID, JSONBOID, &type, &isnull);

	return isnull ? NULL : DatumGetCString(DirectFunctionCall1(jsonb_out, value));
}

static int64
int_column(TupleTableSlot *slot, const char *name)
{
	Oid			type;
	bool		isnull;
	Datum		value = column(slot, name, INT8OID, INT4OID, &type, &isnull);

	if (isnull)
		return 0;
	return type == INT8OID ? DatumGetInt64(value) : DatumGetInt32(value);
}

TimestampTz
llmgw_cache_time(TupleTableSlot *slot, const char *name)
{
	Oid			type;
	bool		isnull;
	Datum		value = column(slot, name, TIMESTAMPTZOID, TIMESTAMPTZOID, &type, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

static LlmNano
money_column(TupleTableSlot *slot, const char *name)
{
	Oid			type;
	bool		isnull;
	Datum		value = column(slot, name, NUMERICOID, NUMERICOID, &type, &isnull);

	if (isnull)
		return LLMGW_COST_UNKNOWN;
	value = DirectFunctionCall2(numeric_mul, value,
								NumericGetDatum(int64_to_numeric(NANO)));
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, value));
}

bool
llmgw_cache_read(TupleTableSlot *slot, LlmKept *kept)
{
	memset(kept, 0, sizeof(*kept));
	kept->expires_at = llmgw_cache_time(slot, "expires_at");
	if (kept->expires_at <= llmgw_wall_clock())
		return false;
	kept->created_at = llmgw_cache_time(slot, "created_at");
	kept->request_id = int_column(slot, "request_id");
	kept->response = llmgw_cache_text(slot, "response");
	if (kept->response == NULL)
		kept->response = "";
	kept->provider = llmgw_cache_text(slot, "provider");
	kept->model = llmgw_cache_text(slot, "model");
	kept->model_tier = llmgw_cache_text(slot, "model_tier");
	kept->finish_reason = llmgw_cache_text(slot, "finish_reason");
	kept->tool_calls = jsonb_column(slot, "tool_calls");
	kept->usage.known = true;
	kept->usage.input = int_column(slot, "input_tokens");
	kept->usage.cached_input = int_column(slot, "cached_input_tokens");
	kept->usage.output = int_column(slot, "output_tokens");
	kept->usage.reasoning = int_column(slot, "reasoning_tokens");
	kept->cost = money_column(slot, "cost_usd");
	return kept->provider != NULL && kept->model != NULL && kept->model_tier != NULL;
}

void
llmgw_cache_key_bytes(LlmKeyBytes *bytes, const LlmCacheKey *key)
{
	SET_VARSIZE(bytes->data, sizeof(bytes->data));
	memcpy(VARDATA(bytes->data), key->bytes, LLMGW_CACHE_KEY_LEN);
}

bool
llmgw_cache_get(const LlmConfig *config, const LlmCacheKey *key, bool wait, LlmKept *kept)
{
	Relation	rel = llmgw_cache_open(config, wait);
	LlmKeyBytes bytes;
	Snapshot	snapshot;
	SysScanDesc scan;
	ScanKeyData scan_key;
	Oid			index;
	Oid			type;
	int			number;
	bool		found = false;

	if (rel == NULL)
		return false;
	llmgw_cache_key_bytes(&bytes, key);

	/* the list of indexes settles which of them is the primary key's */
	list_free(RelationGetIndexList(rel));
	number = llmgw_cache_column(RelationGetDescr(rel), "key", BYTEAOID, BYTEAOID, &type);
	index = rel->rd_pkindex;
	if (!OidIsValid(index))
		raise_alien("key");

	/* REINDEX leaves the table open to who reads */
	if (!wait && !ConditionalLockRelationOid(index, AccessShareLock))
	{
		table_close(rel, AccessShareLock);
		return false;
	}

	/* registered, since a long answer is read from another table */
	snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(RelationGetRelid(rel)));
	ScanKeyInit(&scan_key, number, BTEqualStrategyNumber, F_BYTEAEQ, PointerGetDatum(bytes.data));
	scan = systable_beginscan(rel, index, true, SnapshotAny, 1, &scan_key);
	while (!found && HeapTupleIsValid(systable_getnext(scan)))
	{
		if (table_tuple_satisfies_snapshot(rel, scan->slot, snapshot))
			found = llmgw_cache_read(scan->slot, kept);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	if (!wait)
		UnlockRelationOid(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return found;
}
