/*-------------------------------------------------------------------------
 *
 * cache_vector.c
 *	  Similar prompts by an index of pgvector, where somebody has made one.
 *
 * pgvector is neither linked nor needed: an index of the method hnsw on llm_cache
 * is recognized by what it orders by, the operator <=> of its type, which is the
 * distance by cosine (pgvector's README, "Distances"), and by the number of
 * dimensions, the type modifier of its only column.  Who owns the table has made
 * it, so its operators and casts are trusted.
 *
 * What the index finds is compared again (cache_similar.c), so an index that is
 * about something else finds nothing, and nothing wrong.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/amapi.h"
#include "access/genam.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "cache_private.h"
#include "compat.h"

#define METHOD				"hnsw"
#define DISTANCE			"<=>"

/* since pgvector 0.8: goes on behind the first hnsw.ef_search entries */
#define ITERATIVE_SCAN		"hnsw.iterative_scan"

struct LlmVectorScan
{
	Relation	index;
	IndexScanDesc scan;
	TupleTableSlot *slot;
	int			guc_level;
};

/* What finds vectors in an index. */
typedef struct Finder
{
	int			dimensions;
	RegProcedure distance;
	Oid			cast;			/* from real[], its type modifier and whether
								 * it is explicit */
} Finder;

static bool
finds_vectors(Relation index, void *arg)
{
	Finder	   *finder = arg;
	Oid			type = index->rd_opcintype[0];
	Oid			operator;
	char	   *name;

	if (!index->rd_indam->amcanorderbyop ||
		IndexRelationGetNumberOfAttributes(index) != 1 ||
		TupleDescAttr(RelationGetDescr(index), 0)->atttypmod != finder->dimensions ||
		index->rd_rel->relam != get_am_oid(METHOD, true))
		return false;
	operator = get_opfamily_member(index->rd_opfamily[0], type, type, 1);
	name = OidIsValid(operator) ? get_opname(operator) : NULL;
	if (name == NULL || strcmp(name, DISTANCE) != 0)
		return false;
	finder->distance = get_opcode(operator);
	return find_coercion_pathway(type, FLOAT4ARRAYOID, COERCION_EXPLICIT,
								 &finder->cast) == COERCION_PATH_FUNC &&
		get_func_nargs(finder->cast) == 3;
}

LlmVectorScan *
llmgw_vector_begin(Relation rel, const LlmEmbedding *embedding, Snapshot snapshot)
{
	LlmVectorScan *vectors;
	Finder		finder = {embedding->dimensions};
	Relation	index;
	ArrayType  *array;
	Datum	   *elements;
	ScanKeyData order;
	double		length = 0;

	/* its scan would take a predicate lock */
	if (IsolationIsSerializable())
		return NULL;
	index = llmgw_cache_find_index(rel, finds_vectors, &finder);
	if (index == NULL)
		return NULL;

	/* as long as 1, which is the same by cosine and fits into every type */
	for (int i = 0; i < embedding->dimensions; i++)
		length += (double) embedding->vector[i] * embedding->vector[i];
	length = length > 0 ? sqrt(length) : 1;
	elements = palloc(sizeof(Datum) * embedding->dimensions);
	for (int i = 0; i < embedding->dimensions; i++)
		elements[i] = Float4GetDatum((float4) (embedding->vector[i] / length));
	array = construct_array(elements, embedding->dimensions, FLOAT4OID, sizeof(float4), true,
							TYPALIGN_INT);
	pfree(elements);
	ScanKeyEntryInitialize(&order, SK_ORDER_BY, 1, 1, index->rd_opcintype[0],
						   InvalidOid, finder.distance,
						   OidFunctionCall3(finder.cast, PointerGetDatum(array),
											Int32GetDatum(embedding->dimensions),
											BoolGetDatum(true)));

	vectors = palloc(sizeof(LlmVectorScan));
	vectors->index = index;
	vectors->slot = table_slot_create(rel, NULL);
	vectors->guc_level = NewGUCNestLevel();
	if (GetConfigOption(ITERATIVE_SCAN, true, false) != NULL)
		(void) set_config_option(ITERATIVE_SCAN, "strict_order", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	vectors->scan = llmgw_index_beginscan(rel, index, snapshot, 0, 1);
	index_rescan(vectors->scan, NULL, 0, &order, 1);
	return vectors;
}

TupleTableSlot *
llmgw_vector_next(LlmVectorScan *vectors)
{
	return index_getnext_slot(vectors->scan, ForwardScanDirection, vectors->slot) ?
		vectors->slot : NULL;
}

void
llmgw_vector_end(LlmVectorScan *vectors)
{
	index_endscan(vectors->scan);
	AtEOXact_GUC(false, vectors->guc_level);
	ExecDropSingleTupleTableSlot(vectors->slot);
	index_close(vectors->index, AccessShareLock);
	pfree(vectors);
}
