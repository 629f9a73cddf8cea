/*-------------------------------------------------------------------------
 *
 * ledger_source.h
 *	  What the worker reads: the generations of a spool, one after another.
 *
 * What is known of a generation is only a copy of what its position's row and
 * its records say.  When the two may have parted, because somebody else has
 * booked, it is stale: thrown away and read again.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_SOURCE_H
#define LLMGW_LEDGER_SOURCE_H

#include "ledger_book.h"
#include "ledger_post.h"

typedef struct LlmSource
{
	MemoryContext context;
	LlmSpoolShared *spool;
	LlmTables  *tables;

	/* generations of former starts of the server, ascending */
	bool		listed;
	LlmGeneration *old;
	int			nold;
	int			next_old;		/* those before it are done */

	/* the generation that is being read, and all that is known of it */
	MemoryContext reading;		/* NULL: none */
	bool		stale;			/* must be read again */
	bool		live;
	LlmGeneration gen;
	Oid			extension;		/* whose position this is; InvalidOid: none */
	LlmPosition position;		/* as it is stored */
	uint64		begun;			/* ENDs before it were booked when it was read */
	LlmSpoolReader *reader;
	uint64		skipped;		/* bytes of it that hold no record, as logged */
	LlmOpenRequests *open;
	dlist_head	ended;			/* requests that are not booked yet */
	int			nended;
	Size		ended_bytes;
} LlmSource;

extern void llmgw_source_init(LlmSource *source, MemoryContext context,
							  LlmSpoolShared *spool, LlmTables *tables);

/* Sees to it that there is something to read; false: there is nothing yet. */
extern bool llmgw_source_next(LlmSource *source);

/*
 * Reads up to a step's worth of requests that ended.  LLMGW_BOOK_IDLE: there
 * are no more records.
 */
extern LlmBookStep llmgw_source_read(LlmSource *source);

/* Ends an open request that nobody else will; of some, all that are open. */
extern void llmgw_source_end(LlmSource *source, LlmOpenRequest *request);
extern void llmgw_source_end_all(LlmSource *source);

/* The requests that ended are booked: forgets them. */
extern void llmgw_source_booked(LlmSource *source);

/* The old generation is done, and its position says so: removes it. */
extern void llmgw_source_finish(LlmSource *source);

extern void llmgw_source_close(LlmSource *source);

#endif							/* LLMGW_LEDGER_SOURCE_H */
