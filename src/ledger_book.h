/*-------------------------------------------------------------------------
 *
 * ledger_book.h
 *	  Books the spool's records: for the database's worker.
 *
 * A book is one worker's view of one database's spool: readers of its
 * generations, and the requests that have begun and not yet ended.  Each step
 * is one short transaction that writes llm_requests, llm_attempts,
 * llm_daily_spend, _llm_budget_spend, llm_cache and the position from which the next step goes on
 * (_llm_spool_position): exactly once, whenever the worker or the server dies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_BOOK_H
#define LLMGW_LEDGER_BOOK_H

#include "endpoint.h"
#include "spool.h"

typedef struct LlmBook LlmBook;

/* In its own context below the given one; reads no table yet. */
extern LlmBook *llmgw_book_open(MemoryContext context, LlmSpoolShared *spool);
extern void llmgw_book_close(LlmBook *book);

typedef enum LlmBookStep
{
	LLMGW_BOOK_IDLE,			/* all that is there is booked */
	LLMGW_BOOK_MORE,			/* there is more to do now */
	LLMGW_BOOK_PENDING			/* a record is being written: try again soon */
} LlmBookStep;

/*
 * Reads what is there, up to some limit, and books it in a transaction of its
 * own.  Raises what the transaction raises (55P03 where a lock was not to be had
 * within lock_timeout); then nothing was booked, and the next step begins at the
 * same place.  The caller aborts the transaction.  Must be called outside one.
 */
extern LlmBookStep llmgw_book_step(LlmBook *book);

/* requests that have begun and not ended */
extern int	llmgw_book_open_requests(const LlmBook *book);

/* Makes what was written so far durable, if it matters. */
extern void llmgw_book_sync(LlmBook *book);

/*
 * The worker leaves.  If all that was written is booked, it leaves word of that,
 * so that the next start of the server needs no worker to find out.
 */
extern void llmgw_book_leave(LlmBook *book);

/*
 * Writes what circuit breakers did to llm_breaker_events, and tells those who
 * listen, in a transaction of its own.  Raises as llmgw_book_step().
 */
extern void llmgw_book_events(LlmBook *book, const LlmBreakerEvent *events, int n);

/*
 * Deletes some rows that are older than llm_gateway.retention, and some kept
 * answers that have expired or are too many, in transactions of its own.  False
 * when there were none.  Raises as llmgw_book_step().
 */
extern bool llmgw_book_retain(LlmBook *book);

/* Whether kept answers may be too many. */
extern bool llmgw_book_cache_full(const LlmBook *book);

#endif							/* LLMGW_LEDGER_BOOK_H */
