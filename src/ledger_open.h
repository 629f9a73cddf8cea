/*-------------------------------------------------------------------------
 *
 * ledger_open.h
 *	  The requests of a generation that have begun and are not yet booked.
 *
 * The worker keeps their records as they are, and reads them only when the
 * request is booked.  Where the reader has to begin after a restart is known
 * from the oldest record that is kept nowhere else (see ledger_position.c).
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_OPEN_H
#define LLMGW_LEDGER_OPEN_H

#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "spool.h"
#include "timing.h"

/* A record's payload, as it was read. */
typedef struct LlmRaw
{
	struct LlmRaw *next;
	LlmRecordType type;
	uint32		len;
	char		data[FLEXIBLE_ARRAY_MEMBER];
} LlmRaw;

typedef struct LlmOpenRequest
{
	int64		id;
	dlist_node	node;			/* of one of the lists below, or of its booker */
	LlmRaw	   *records;		/* in order, without END */
	LlmRaw	   *last;
	Size		bytes;			/* of their payloads */

	/* of its first record that only the spool has; if it is on by_offset */
	uint64		first;
	/* its records before this offset are in _llm_spool_carried; 0: none are */
	uint64		carried_until;

	LlmRaw	   *end;			/* NULL: not ended, or nobody knows how */

	/* for who asks whether its owner lives */
	LlmInstant	seen;			/* when a record without an owner was read */
	bool		owner_known;
	LlmOwnerId	owner;
	uint64		gone_at;		/* all that a dead owner wrote is before it;
								 * 0: it lives */
	bool		end_written;	/* by this worker, in the owner's place */
	bool		complained;
} LlmOpenRequest;

typedef struct LlmOpenRequests
{
	MemoryContext context;
	struct openhash_hash *hash;
	dlist_head	by_offset;		/* in order of first */
	dlist_head	carried;		/* those of which the spool is not needed */
} LlmOpenRequests;

/* Lives in the given context, and everything in it. */
extern LlmOpenRequests *llmgw_open_create(MemoryContext context);

extern int	llmgw_open_count(const LlmOpenRequests *open);

extern LlmOpenRequest *llmgw_open_find(LlmOpenRequests *open, int64 id);

/* Adds a record to its request, if need be a new one. */
extern LlmOpenRequest *llmgw_open_add(LlmOpenRequests *open, const LlmSpoolRecord *record);

/*
 * The request of an END, taken out: it is the caller's, to free.  One of which
 * nothing is known has no records.
 */
extern LlmOpenRequest *llmgw_open_end(LlmOpenRequests *open, const LlmSpoolRecord *record);

/* Takes a request out: it is the caller's. */
extern void llmgw_open_remove(LlmOpenRequests *open, LlmOpenRequest *request);

extern void llmgw_open_free(LlmOpenRequest *request);

/* The first byte of the spool that is needed for what is open; else otherwise. */
extern uint64 llmgw_open_oldest(const LlmOpenRequests *open, uint64 otherwise);

/* The records of a request in one piece, and back; false: that is none. */
extern void llmgw_open_pack(const LlmOpenRequest *request, StringInfo buf);
extern bool llmgw_open_unpack(LlmOpenRequests *open, int64 id, uint64 carried_until,
							  const char *data, Size len);

/* Its records before the offset need not be in the spool any more. */
extern void llmgw_open_carried(LlmOpenRequests *open, LlmOpenRequest *request,
							   uint64 until);

#endif							/* LLMGW_LEDGER_OPEN_H */
