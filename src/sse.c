/*-------------------------------------------------------------------------
 *
 * sse.c
 *	  Cuts a stream of bytes into events.
 *
 * Server-sent events as in the WHATWG HTML standard, section 9.2.6
 * "Interpreting an event stream": a line ends with LF, CR or CRLF; an empty
 * line ends an event; "data" lines of one event are joined by LF.  "id" and
 * "retry" are about reconnecting, which nobody does here, and are ignored.  Bare
 * JSON is no event there, but here (see sse.h).
 *
 * A line that is whole within one piece is read where it lies; only the
 * unfinished last line of a piece is copied.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "sse.h"

static const char byte_order_mark[] = "\xEF\xBB\xBF";

void
llmgw_sse_init(LlmEventParser *parser, LlmFraming framing)
{
	memset(parser, 0, sizeof(*parser));
	parser->framing = framing;
	parser->at_start = true;
	initStringInfo(&parser->line);
	initStringInfo(&parser->data);
}

/* Hands over the event that was collected, and starts the next. */
static bool
dispatch(LlmEventParser *parser, LlmEventFn fn, void *arg)
{
	bool		go_on = true;

	if (parser->has_data)
		go_on = fn(arg, parser->event[0] ? parser->event : "message",
				   parser->data.data, parser->data.len);
	resetStringInfo(&parser->data);
	parser->event[0] = '\0';
	parser->has_data = false;
	parser->bare = false;
	return go_on;
}

static bool
begins_bare(const LlmEventParser *parser, const char *line, size_t len)
{
	if (parser->at_start && len >= 3 && memcmp(line, byte_order_mark, 3) == 0)
	{
		line += 3;
		len -= 3;
	}
	return !parser->has_data && len > 0 && (*line == '{' || *line == '[');
}

static void
sse_field(LlmEventParser *parser, const char *line, size_t len)
{
	const char *colon = memchr(line, ':', len);
	size_t		name_len = colon ? (size_t) (colon - line) : len;
	const char *value = colon ? colon + 1 : line + len;
	size_t		value_len = line + len - value;

	if (value_len > 0 && *value == ' ')
	{
		value++;
		value_len--;
	}

	if (name_len == 4 && memcmp(line, "data", 4) == 0)
	{
		if (parser->has_data)
			appendStringInfoChar(&parser->data, '\n');
		appendBinaryStringInfo(&parser->data, value, (int) value_len);
		parser->has_data = true;
	}
	else if (name_len == 5 && memcmp(line, "event", 5) == 0)
	{
		value_len = Min(value_len, sizeof(parser->event) - 1);
		memcpy(parser->event, value, value_len);
		parser->event[value_len] = '\0';
	}
}

/* A whole line, without its end. */
static bool
take_line(LlmEventParser *parser, const char *line, size_t len,
		  LlmEventFn fn, void *arg)
{
	if (parser->at_start)
	{
		parser->at_start = false;
		if (len >= 3 && memcmp(line, byte_order_mark, 3) == 0)
		{
			line += 3;
			len -= 3;
		}
	}

	if (parser->framing == LLMGW_FRAMING_NDJSON)
	{
		while (len > 0 && (line[len - 1] == '\r' || line[len - 1] == ' ' ||
						   line[len - 1] == '\t'))
			len--;
		if (len == 0)
			return true;
		appendBinaryStringInfo(&parser->data, line, (int) len);
		parser->has_data = true;
		return dispatch(parser, fn, arg);
	}

	if (len == 0)
		return dispatch(parser, fn, arg);
	if (parser->bare || begins_bare(parser, line, len))
	{
		if (parser->bare)
			appendStringInfoChar(&parser->data, '\n');
		appendBinaryStringInfo(&parser->data, line, (int) len);
		parser->has_data = parser->bare = true;
	}
	else if (*line != ':')		/* else a comment */
		sse_field(parser, line, len);
	return true;
}

void
llmgw_sse_feed(LlmEventParser *parser, const char *bytes, size_t len,
			   LlmEventFn fn, void *arg)
{
	const char *end = bytes + len;
	const char *lf = NULL;		/* the next of each, at or after bytes; end
								 * where there is none; NULL: not looked for */
	const char *cr = parser->framing == LLMGW_FRAMING_SSE ? NULL : end;

	if (len > 0 && parser->after_cr)
	{
		parser->after_cr = false;
		if (*bytes == '\n')
			bytes++;
	}

	while (bytes < end)
	{
		const char *line = bytes;
		const char *line_end;
		size_t		line_len;
		bool		go_on;

		if (lf == NULL || lf < bytes)
		{
			lf = memchr(bytes, '\n', end - bytes);
			lf = lf ? lf : end;
		}
		if (cr == NULL || cr < bytes)
		{
			cr = memchr(bytes, '\r', end - bytes);
			cr = cr ? cr : end;
		}
		line_end = Min(lf, cr);
		line_len = line_end - line;
		if (line_end == end)
		{
			appendBinaryStringInfo(&parser->line, line, (int) line_len);
			return;
		}

		/* the line ends with its CR: a LF may come with it or much later */
		bytes = line_end + 1;
		if (line_end == cr)
		{
			if (bytes == end)
				parser->after_cr = true;
			else if (*bytes == '\n')
				bytes++;
		}

		if (parser->line.len > 0)
		{
			appendBinaryStringInfo(&parser->line, line, (int) line_len);
			go_on = take_line(parser, parser->line.data, parser->line.len,
							  fn, arg);
			resetStringInfo(&parser->line);
		}
		else
			go_on = take_line(parser, line, line_len, fn, arg);
		if (!go_on)
			return;
	}
}

void
llmgw_sse_finish(LlmEventParser *parser, LlmEventFn fn, void *arg)
{
	if (parser->line.len > 0 &&
		(parser->framing == LLMGW_FRAMING_NDJSON || parser->bare ||
		 begins_bare(parser, parser->line.data, parser->line.len)))
		(void) take_line(parser, parser->line.data, parser->line.len, fn, arg);
	if (parser->bare)
		(void) dispatch(parser, fn, arg);
	resetStringInfo(&parser->line);
	resetStringInfo(&parser->data);
	parser->event[0] = '\0';
	parser->has_data = false;
	parser->after_cr = false;
}
