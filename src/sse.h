/*-------------------------------------------------------------------------
 *
 * sse.h
 *	  Cuts a stream of bytes into events.
 *
 * Server-sent events (WHATWG HTML, section 9.2) and lines of JSON (NDJSON).
 * Input comes in pieces of any size, cut anywhere, also inside a character or
 * between CR and LF.  Every byte is looked at once.
 *
 * Some providers end a stream that failed with bare JSON.  To the standard its
 * lines are fields with strange names.  Here a line that begins with { or [
 * where an event may begin makes it and the lines up to an empty one, or to the
 * stream's end, an event's data.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SSE_H
#define LLMGW_SSE_H

#include "lib/stringinfo.h"

typedef enum LlmFraming
{
	LLMGW_FRAMING_SSE,
	LLMGW_FRAMING_NDJSON
} LlmFraming;

typedef struct LlmEventParser
{
	LlmFraming	framing;
	StringInfoData line;		/* bytes of an unfinished line */
	StringInfoData data;		/* "data" of the event under construction */
	char		event[64];		/* its "event" field; longer ones are cut */
	bool		has_data;
	bool		bare;			/* data is JSON that is no event's */
	bool		after_cr;		/* a LF now belongs to the CR before */
	bool		at_start;		/* a byte order mark may come */
} LlmEventParser;

/*
 * Receives one event: name ("message" where the stream names none) and its
 * data, NUL-terminated.  Both are valid only during the call.  Returns false to
 * stop: the rest of the piece is dropped.
 */
typedef bool (*LlmEventFn) (void *arg, const char *name, char *data, size_t len);

/* The parser's buffers are palloc'd in the current context. */
extern void llmgw_sse_init(LlmEventParser *parser, LlmFraming framing);

/* Feeds a piece; calls fn for each event that it completes. */
extern void llmgw_sse_feed(LlmEventParser *parser, const char *bytes,
						   size_t len, LlmEventFn fn, void *arg);

/*
 * The stream ended.  An SSE event without its empty line is incomplete and is
 * not delivered; bare JSON is, and a last NDJSON line without a newline.
 */
extern void llmgw_sse_finish(LlmEventParser *parser, LlmEventFn fn, void *arg);

#endif							/* LLMGW_SSE_H */
