/*-------------------------------------------------------------------------
 *
 * sse.c (fuzz)
 *	  Any bytes as a stream of events or of lines of JSON, in any pieces: the
 *	  events are those that the plainest reading of the standard finds, and of
 *	  the exception that sse.h makes.
 *
 * The input's first byte chooses the framing and after how many events the
 * reader has enough, the second the pieces.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "backend.h"
#include "sse.h"

/* events, written one after the other */
typedef struct Log
{
	StringInfoData text;
	int			left;			/* events until it is enough; never 0: no end */
} Log;

void
appendStringInfoChar(StringInfo str, char ch)
{
	appendBinaryStringInfo(str, &ch, 1);
}

static bool
on_event(void *arg, const char *name, char *data, size_t len)
{
	Log		   *log = arg;

	CLAIM(log->left != 0);
	CLAIM(data[len] == '\0');
	CLAIM(strlen(name) < sizeof(((LlmEventParser *) NULL)->event));
	appendBinaryStringInfo(&log->text, name, strlen(name) + 1);
	appendBinaryStringInfo(&log->text, (char *) &len, sizeof(len));
	appendBinaryStringInfo(&log->text, data, len);
	return --log->left != 0;
}

/*
 * The plainest reading: a line at a time, of the whole stream.
 */
static void
read_plainly(LlmFraming framing, const uint8_t *bytes, size_t size, Log *log)
{
	StringInfoData data;
	char		event[64] = "";
	bool		has_data = false;
	bool		bare = false;	/* data is JSON that is no event's */
	size_t		i = 0;

	initStringInfo(&data);
	if (size >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0)
		i = 3;
	while (i < size)
	{
		char	   *line = (char *) bytes + i;
		size_t		len = 0;
		size_t		name = 0;
		size_t		value;
		bool		whole;

		while (i < size && bytes[i] != '\n' &&
			   !(framing == LLMGW_FRAMING_SSE && bytes[i] == '\r'))
			i++, len++;
		whole = i < size;
		i += i + 1 < size && bytes[i] == '\r' && bytes[i + 1] == '\n' ? 2 : 1;

		if (framing == LLMGW_FRAMING_NDJSON)
		{
			char	   *copy;
			bool		go_on = true;

			while (len > 0 && strchr("\r \t", line[len - 1]) && line[len - 1] != '\0')
				len--;
			copy = pnstrdup(line, len);
			if (len > 0)
				go_on = on_event(log, "message", copy, len);
			if (!go_on)
				return;
			continue;
		}
		bare = bare || (len > 0 && !has_data && (*line == '{' || *line == '['));
		if (bare && len > 0)
		{
			if (has_data)
				appendBinaryStringInfo(&data, "\n", 1);
			appendBinaryStringInfo(&data, line, len);
			has_data = true;
			continue;
		}
		if (!whole)
			break;
		if (len == 0)
		{
			if (has_data && !on_event(log, *event ? event : "message", data.data, data.len))
				return;
			resetStringInfo(&data);
			*event = '\0';
			has_data = false;
			bare = false;
			continue;
		}
		while (name < len && line[name] != ':')
			name++;
		value = Min(name + 1, len);
		if (value < len && line[value] == ' ')
			value++;
		if (name == 4 && memcmp(line, "data", 4) == 0)
		{
			if (has_data)
				appendBinaryStringInfo(&data, "\n", 1);
			appendBinaryStringInfo(&data, line + value, len - value);
			has_data = true;
		}
		else if (name == 5 && memcmp(line, "event", 5) == 0)
		{
			len = Min(len - value, sizeof(event) - 1);
			memcpy(event, line + value, len);
			event[len] = '\0';
		}
	}
	if (bare && has_data)
		(void) on_event(log, *event ? event : "message", data.data, data.len);
}

/* The stream in pieces; of seed 0: in one. */
static void
read_pieces(LlmFraming framing, const uint8_t *bytes, size_t size, unsigned seed,
			Log *log)
{
	LlmEventParser parser;
	size_t		done = 0;

	llmgw_sse_init(&parser, framing);
	while (done < size && log->left != 0)
	{
		size_t		n = size - done;
		char	   *piece;

		if (seed != 0)
		{
			seed = seed * 1103515245 + 12345;
			n = Min(n, (seed >> 16) % ((seed >> 12) % 4 ? 64 : 4));
		}

		/* of its own size, so that the sanitizer sees a read beyond it */
		piece = malloc(n ? n : 1);
		memcpy(piece, bytes + done, n);
		llmgw_sse_feed(&parser, piece, n, on_event, log);
		free(piece);
		done += n;
	}
	if (log->left != 0)
		llmgw_sse_finish(&parser, on_event, log);
}

static void
start(Log *log, int left)
{
	initStringInfo(&log->text);
	log->left = left;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	LlmFraming	framing;
	int			enough;
	unsigned	seeds[3];
	Log			expected;
	Log			got;

	if (size < 2)
		return 0;
	framing = data[0] & 1 ? LLMGW_FRAMING_NDJSON : LLMGW_FRAMING_SSE;
	enough = data[0] >> 1 & 7 ? data[0] >> 1 & 7 : -1;
	seeds[0] = 0;
	seeds[1] = data[1];
	seeds[2] = data[1] * 2654435761u + 1;
	data += 2;
	size -= 2;

	start(&expected, enough);
	read_plainly(framing, data, size, &expected);
	for (int i = 0; i < lengthof(seeds); i++)
	{
		start(&got, enough);
		read_pieces(framing, data, size, seeds[i], &got);
		CLAIM(got.text.len == expected.text.len);
		CLAIM(memcmp(got.text.data, expected.text.data, got.text.len) == 0);
	}
	fuzz_free_all();
	return 0;
}
