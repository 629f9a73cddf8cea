/*-------------------------------------------------------------------------
 *
 * cache_private.h
 *	  How cache.c, cache_similar.c and cache_vector.c look into llm_cache.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CACHE_PRIVATE_H
#define LLMGW_CACHE_PRIVATE_H

#include "access/genam.h"
#include "executor/tuptable.h"
#include "utils/relcache.h"

#include "cache.h"

/* a key as bytea */
typedef union LlmKeyBytes
{
	char		data[VARHDRSZ + LLMGW_CACHE_KEY_LEN];
	bytea		align;
} LlmKeyBytes;

extern void llmgw_cache_key_bytes(LlmKeyBytes *bytes, const LlmCacheKey *key);

/*
 * The table, locked; NULL: somebody has locked it, and it was not to be waited for,
 * or it is not there.
 */
extern Relation llmgw_cache_open(const LlmConfig *config, bool wait);

/*
 * A column's number, where it is of one of the types, and of which.  Raises 55000
 * where it is not.
 */
extern int	llmgw_cache_column(TupleDesc desc, const char *name, Oid type, Oid other_type,
							   Oid *is);

/* 0: NULL */
extern TimestampTz llmgw_cache_time(TupleTableSlot *slot, const char *name);

/* palloc'd; NULL: NULL */
extern const char *llmgw_cache_text(TupleTableSlot *slot, const char *name);

/*
 * cache_similar.c: the first valid index of the table that fits, locked.  NULL: there is
 * none, or somebody has locked it (REINDEX).
 */
extern Relation llmgw_cache_find_index(Relation rel, bool (*fits) (Relation index, void *arg),
									   void *arg);

/*
 * cache_vector.c: what an index of pgvector finds, nearest first.  NULL: there is
 * none for vectors of that many dimensions, or this transaction is serializable.  The
 * slot is the scan's, until the next one.  Raises errors of reading an index; what
 * is open is then closed with the transaction.
 */
typedef struct LlmVectorScan LlmVectorScan;

extern LlmVectorScan *llmgw_vector_begin(Relation rel, const LlmEmbedding *embedding,
										 Snapshot snapshot);
extern TupleTableSlot *llmgw_vector_next(LlmVectorScan *vectors);
extern void llmgw_vector_end(LlmVectorScan *vectors);

/* Whether it may still be served; then it is read into kept. */
extern bool llmgw_cache_read(TupleTableSlot *slot, LlmKept *kept);

#endif							/* LLMGW_CACHE_PRIVATE_H */
