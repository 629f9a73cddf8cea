/*-------------------------------------------------------------------------
 *
 * cache_similar.c
 *	  Finds the kept answer whose prompt is the most similar one.
 *
 * The table is read as in cache.c: by the index on scope, newest first, or nearest
 * first by an index of pgvector.  Vectors are compared here.  The number of them is
 * bounded, so a look takes some milliseconds at most.  Vectors of other lengths are
 * not comparable.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/relation.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
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

/* Locked; NULL: somebody has locked it, or dropped it. */
static Relation
try_index(Oid index)
{
	Relation	result;

	if (!ConditionalLockRelationOid(index, AccessShareLock))
		return NULL;
	result = try_relation_open(index, NoLock);
	if (result == NULL)
		UnlockRelationOid(index, AccessShareLock);
	return result;
}

Relation
llmgw_cache_find_index(Relation rel, bool (*fits) (Relation index, void *arg), void *arg)
{
	List	   *indexes = RelationGetIndexList(rel);
	Relation	found = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = try_index(lfirst_oid(cell));

		if (index == NULL)
			continue;
		if (index->rd_index->indisvalid && fits(index, arg))
		{
			found = index;
			break;
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	return found;
}

static bool
begins_with(Relation index, void *column)
{
	return index->rd_rel->relam == BTREE_AM_OID &&
		index->rd_index->indkey.values[0] == *(int *) column &&
		RelationGetIndexPredicate(index) == NIL;
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

/* Entries, one after the other; one of the scans is NULL. */
typedef struct Entries
{
	Relation	rel;
	Snapshot	snapshot;
	SysScanDesc newest;			/* of the scope, dead versions included */
	int			versions;		/* that were looked at */
	LlmVectorScan *nearest;		/* of whatever scope */
	Datum		scope;
	int			scope_column;
} Entries;

/* NULL: no more.  *ours: whether it is of the scope. */
static TupleTableSlot *
next_entry(Entries *entries, bool *ours)
{
	TupleTableSlot *slot = NULL;

	*ours = true;
	if (entries->nearest != NULL)
	{
		slot = llmgw_vector_next(entries->nearest);
		if (slot != NULL)
		{
			bool		isnull;
			Datum		scope = slot_getattr(slot, entries->scope_column, &isnull);

			*ours = !isnull && DatumGetBool(DirectFunctionCall2(byteaeq, scope, entries->scope));
		}
		return slot;
	}
	while (entries->versions++ < MAX_VERSIONS && HeapTupleIsValid(systable_getnext(entries->newest)))
	{
		CHECK_FOR_INTERRUPTS();
		if (table_tuple_satisfies_snapshot(entries->rel, entries->newest->slot, entries->snapshot))
			return entries->newest->slot;
	}
	return NULL;
}

/*
 * Goes through the entries; the best one, copied, or NULL.  What is stored outside of
 * its row stays there: the snapshot keeps it.
 */
static HeapTuple
find_nearest(Entries *entries, const LlmEmbedding *embedding, const LlmNearness *near,
			 double *similarity)
{
	Oid			type;
	int			column = llmgw_cache_column(RelationGetDescr(entries->rel), "embedding",
											FLOAT4ARRAYOID, FLOAT4ARRAYOID, &type);
	TimestampTz now = llmgw_wall_clock();
	HeapTuple	best = NULL;
	TupleTableSlot *slot;
	bool		ours;

	for (int i = 0; i < LLMGW_CACHE_NEIGHBOURS && (slot = next_entry(entries, &ours)) != NULL; i++)
	{
		double		s = similarity_of(slot, column, embedding);

		CHECK_FOR_INTERRUPTS();

		/* as precise as the limit is */
		if ((float4) s < near->similarity)
		{
			if (entries->nearest != NULL)
				break;
			continue;
		}
		if (!ours || (best != NULL && s <= *similarity) ||
			llmgw_cache_time(slot, "expires_at") <= now ||
			llmgw_cache_time(slot, "created_at") < near->oldest ||
			!near->serves(near->arg, llmgw_cache_text(slot, "model_tier")))
			continue;
		if (best != NULL)
			heap_freetuple(best);
		best = ExecCopySlotHeapTuple(slot);
		*similarity = s;
		if (entries->nearest != NULL)
			break;
	}
	return best;
}

/* The same, with the scans begun and ended. */
static HeapTuple
look_for_nearest(Relation rel, Snapshot snapshot, const LlmEmbedding *embedding,
				 const LlmNearness *near, double *similarity)
{
	Entries		entries = {.rel = rel,.snapshot = snapshot};
	LlmKeyBytes scope;
	HeapTuple	best;
	Relation	index = NULL;
	Oid			type;

	llmgw_cache_key_bytes(&scope, &embedding->scope);
	entries.scope = PointerGetDatum(scope.data);
	entries.scope_column = llmgw_cache_column(RelationGetDescr(rel), "scope", BYTEAOID, BYTEAOID,
											  &type);
	entries.nearest = llmgw_vector_begin(rel, embedding, snapshot);
	if (entries.nearest == NULL)
	{
		ScanKeyData key;

		index = llmgw_cache_find_index(rel, begins_with, &entries.scope_column);

		/* the whole table is not read for this */
		if (index == NULL)
			return NULL;
		ScanKeyInit(&key, entries.scope_column, BTEqualStrategyNumber, F_BYTEAEQ, entries.scope);
		entries.newest = systable_beginscan(rel, RelationGetRelid(index), true, SnapshotAny, 1, &key);
	}
	best = find_nearest(&entries, embedding, near, similarity);
	if (entries.nearest != NULL)
		llmgw_vector_end(entries.nearest);
	else
	{
		systable_endscan(entries.newest);
		index_close(index, AccessShareLock);
	}
	return best;
}

bool
llmgw_cache_nearest(const LlmConfig *config, const LlmEmbedding *embedding,
					const LlmNearness *near, bool wait, LlmKept *kept)
{
	Relation	rel = llmgw_cache_open(config, wait);
	Snapshot	snapshot;
	HeapTuple	best;
	double		similarity = 0;
	bool		found = false;

	if (rel == NULL)
		return false;
	snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(RelationGetRelid(rel)));
	best = look_for_nearest(rel, snapshot, embedding, near, &similarity);
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
