/*-------------------------------------------------------------------------
 *
 * ledger_retain.h
 *	  Deletes rows of the ledger that are too old (llm_gateway.retention).
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

#endif							/* LLMGW_LEDGER_RETAIN_H */
