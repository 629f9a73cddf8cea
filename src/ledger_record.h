/*-------------------------------------------------------------------------
 *
 * ledger_record.h
 *	  What the records of the spool say.
 *
 * FORMAT of the payloads (the frame is in spool.h).  Fields in the order of the
 * structs below.  Integers in the machine's byte order, unaligned: enums and
 * booleans 1 byte, counts 4 bytes, times, amounts and ids 8 bytes.  A text is its
 * length in 4 bytes (-1: NULL) and its bytes, in the encoding of the database.
 * The budgets of an attempt are their number, in 1 byte, and each's fields.
 *
 *	NOTE		LlmNote
 *	END			LlmEnd
 *	PROMPT		the text's bytes
 *	RESPONSE	the text's bytes
 *	KEEP		LlmKeep
 *
 * A request is at most one PROMPT, NOTEs with attempt 1, 2, ..., at most one
 * RESPONSE and one KEEP, one END.  A request of which nothing was sent may have an END only,
 * with its LlmRequestInfo and whose answer it was; in all others it comes with each NOTE.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_RECORD_H
#define LLMGW_LEDGER_RECORD_H

#include "lib/stringinfo.h"

#include "ledger.h"
#include "spool.h"

/* An attempt is about to be sent. */
typedef struct LlmNote
{
	LlmOwnerId	owner;
	LlmRequestInfo request;
	LlmAttemptInfo attempt;
	bool		has_previous;
	LlmOutcome	previous;		/* of attempt - 1 */
} LlmNote;

/* The request has ended. */
typedef struct LlmEnd
{
	bool		has_request;	/* nothing was noted before */
	LlmRequestInfo request;
	bool		has_last;		/* an attempt was under way */
	LlmOutcome	last;			/* of the last attempt noted */
	LlmResult	result;
} LlmEnd;

/* No END that follows a NOTE has a larger payload. */
#define LLMGW_MAX_END			1024

/* Append the payload to the buffer. */
extern void llmgw_note_encode(StringInfo buf, const LlmNote *note);
extern void llmgw_end_encode(StringInfo buf, const LlmEnd *end);
extern void llmgw_keep_encode(StringInfo buf, const LlmKeep *keep);

/*
 * Read a payload; texts are palloc'd.  False when it is none: they trust no
 * byte of it.
 */
extern bool llmgw_note_decode(const char *data, uint32 len, LlmNote *note);
extern bool llmgw_end_decode(const char *data, uint32 len, LlmEnd *end);
extern bool llmgw_keep_decode(const char *data, uint32 len, LlmKeep *keep);

/* The bytes of its texts and its embedding. */
extern Size llmgw_keep_size(const LlmKeep *keep);

#endif							/* LLMGW_LEDGER_RECORD_H */
