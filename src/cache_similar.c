/*-------------------------------------------------------------------------
 *
 * cache_similar.c
 *	  Finds the kept answer whose prompt is the most similar one.
 *
 * The table is read as in cache.c, by the index on scope, newest first; vectors
 * are compared here.  The number of them is bounded, so a look takes some
 * milliseconds at most.  Vectors of other lengths are not comparable.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "cache_private.h"
#include "compat.h"

/* row versions that are looked at, dead ones included */
#define MAX_VERSIONS		(10 * LLMGW_CACHE_NEIGHBOURS)

/* -1 where there is none */
static double
cosine(const float4 *a, const float4 *b, int n)
{
	double		ab = 0;
	double		aa = 0;
	double		bb = 0;
	double		result;

	for (int i = 0; i < n; i++)
	{
		ab += (double) a[i] * b[i];
		aa += (double) a[i] * a[i];
		bb += (double) b[i] * b[i];
	}
	if (!(aa > 0 && bb > 0))
		return -1;
	result = ab / sqrt(aa * bb);
	return isfinite(result) ? result : -1;
}

/* A valid index that begins with that column; InvalidOid: there is none. */
static Oid
find_index(Relation rel, int column)
{
	List	   *indexes = RelationGetIndexList(rel);
	Oid			result = InvalidOid;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisvalid && index->rd_rel->relam == BTREE_AM_OID &&
			index->rd_index->indkey.values[0] == column &&
			RelationGetIndexPredicate(index) == NIL)
			result = RelationGetRelid(index);
		index_close(index, AccessShareLock);
		if (OidIsValid(result))
			break;
	}
	list_free(indexes);
	return result;
}

/* How similar the entry's prompt is. */
static double
similarity_of(TupleTableSlot *slot, int column, const LlmEmbedding *embedding)
{
	bool		isnull;
	Datum		value = slot_getattr(slot, column, &isnull);
	ArrayType  *array;
	double		result = -1;

	if (isnull)
		return -1;
	array = DatumGetArrayTypeP(value);
	if (ARR_NDIM(array) == 1 && ARR_DIMS(array)[0] == embedding->dimensions &&
		!ARR_HASNULL(array))
		result = cosine((const float4 *) ARR_DATA_PTR(array), embedding->vector,
						embedding->dimensions);
	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
	return result;
}

/*
 * Goes through the entries that the scan finds; the best one, copied, or NULL.  What
 * is stored outside of its row stays there: the snapshot keeps it.
 */
static HeapTuple
find_nearest(Relation rel, SysScanDesc scan, Snapshot snapshot,
			 const LlmEmbedding *embedding, const LlmNearness *near, double *similarity)
{
	Oid			type;
	int			column = llmgw_cache_column(RelationGetDescr(rel), "embedding",
											FLOAT4ARRAYOID, FLOAT4ARRAYOID, &type);
	TimestampTz now = llmgw_wall_clock();
	HeapTuple	best = NULL;
	int			compared = 0;

	for (int i = 0; i < MAX_VERSIONS && compared < LLMGW_CACHE_NEIGHBOURS; i++)
	{
		TupleTableSlot *slot;
		double		s;

		CHECK_FOR_INTERRUPTS();
		if (!HeapTupleIsValid(systable_getnext(scan)))
			break;
		slot = scan->slot;
		if (!table_tuple_satisfies_snapshot(rel, slot, snapshot))
			continue;
		compared++;
		if (llmgw_cache_time(slot, "expires_at") <= now ||
			llmgw_cache_time(slot, "created_at") < near->oldest)
			continue;
		s = similarity_of(slot, column, embedding);

		/* as precise as the limit is */
		if ((float4) s < near->similarity || (best != NULL && s <= *similarity))
			continue;
		if (!near->serves(near->arg, llmgw_cache_text(slot, "model_tier")))
			continue;
		if (best != NULL)
			heap_freetuple(best);
		best = ExecCopySlotHeapTuple(slot);
		*similarity = s;
	}
	return best;
}

bool
llmgw_cache_nearest(const LlmConfig *config, const LlmEmbedding *embedding,
					const LlmNearness *near, bool wait, LlmKept *kept)
{
	Relation	rel = llmgw_cache_open(config, wait);
	LlmKeyBytes bytes;
	Snapshot	snapshot;
	SysScanDesc scan;
	ScanKeyData scan_key;
	HeapTuple	best;
	Oid			type;
	Oid			index;
	int			number;
	double		similarity = 0;
	bool		found = false;

	if (rel == NULL)
		return false;
	number = llmgw_cache_column(RelationGetDescr(rel), "scope", BYTEAOID, BYTEAOID, &type);
	index = find_index(rel, number);
	if (!OidIsValid(index))
	{
		/* somebody dropped it: the whole table is not read for this */
		table_close(rel, AccessShareLock);
		return false;
	}
	llmgw_cache_key_bytes(&bytes, &embedding->scope);
	snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(RelationGetRelid(rel)));
	ScanKeyInit(&scan_key, number, BTEqualStrategyNumber, F_BYTEAEQ, PointerGetDatum(bytes.data));
	scan = systable_beginscan(rel, index, true, SnapshotAny, 1, &scan_key);
	best = find_nearest(rel, scan, snapshot, embedding, near, &similarity);
	systable_endscan(scan);
	if (best != NULL)
	{
		TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsHeapTuple);

		ExecStoreHeapTuple(best, slot, true);
		found = llmgw_cache_read(slot, kept);
		ExecDropSingleTupleTableSlot(slot);
		kept->similarity = similarity;
	}
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}
