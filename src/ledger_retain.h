/*-------------------------------------------------------------------------
 *
 * ledger_retain.h
 *	  Deletes rows of the ledger that are too old (llm_gateway.retention), and
 *	  kept answers that have expired or are too many (llm_gateway.cache_size).
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_RETAIN_H
#define LLMGW_LEDGER_RETAIN_H

#include "ledger_tables.h"

/*
 * Deletes some, in a transaction of its own.  False: there are none.  *above is
 * where to begin, PG_INT64_MIN the first time.
 */
extern bool llmgw_retain(LlmTables *tables, int64 *above);

/* The same for llm_breaker_events, of which there are few. */
extern bool llmgw_retain_events(LlmTables *tables);

/* What the worker knows of llm_cache.  All zeros: nothing yet. */
typedef struct LlmKeptBytes
{
	bool		known;
	bool		exact;			/* else it is that at most */
	int64		bytes;
} LlmKeptBytes;

/* So many were written. */
extern void llmgw_kept_add(LlmKeptBytes *kept, int64 bytes);

/* Whether there may be more than there should be. */
extern bool llmgw_kept_too_many(const LlmKeptBytes *kept);

/*
 * Deletes some kept answers, in a transaction of its own: those that have expired
 * and, where they are too many, the oldest.  False: there are none.
 */
extern bool llmgw_retain_kept(LlmTables *tables, LlmKeptBytes *kept);

#endif							/* LLMGW_LEDGER_RETAIN_H */
