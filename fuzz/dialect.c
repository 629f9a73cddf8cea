/*-------------------------------------------------------------------------
 *
 * dialect.c (fuzz)
 *	  Any bytes as what a provider sends, in every dialect: an answer, a stream
 *	  in any pieces, an error, headers, embeddings.
 *
 * Dialects need jsonb and the rest of a server, so this is a module for one:
 * fuzz_dialect(text) hands the server's process to libFuzzer, with these
 * options, and does not return.
 *
 * The input is four bytes that choose, then what the provider sends: the
 * dialect; what it answers; the call and the status; the pieces.  '0' to '9'
 * count as 0 to 9, for seeds that people can read.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>
#include <signal.h>
#include <unistd.h>

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "backend.h"
#include "dialect.h"
#include "dialect_answer.h"
#include "json.h"

PG_MODULE_MAGIC;

#define API_KEY			"sk-secret-0123456789"
#define MAX_MESSAGE		(LLMGW_MAX_SHOWN + 200)
#define MAX_REASON		60
#define MAX_ARGS		64

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*test) (const uint8_t *data, size_t size));

static MemoryContext answer_context;
static MemoryContext scratch;
static Jsonb *schemas[2];

static const char *const kinds[] = {
	"openai", "azure", "anthropic", "gemini", "ollama", "mock"
};

static const char *const entries[] = {
	"answer", "stream", "error", "limits", "embedding", "url"
};

typedef struct Stream
{
	const LlmDialect *dialect;
	const LlmWireCall *call;
	LlmAnswer  *answer;
} Stream;

/*
 * Of blocks so small that each chunk is a block, and so an allocation of its
 * own, of which the sanitizer sees the end.  A server with assertions wants
 * blocks of a kilobyte at least: then only chunks of more than some 200 bytes
 * are.
 */
static MemoryContext
make_context(const char *name)
{
	const char *assertions = GetConfigOption("debug_assertions", false, false);
	Size		block = strcmp(assertions, "on") == 0 ? 1024 : 144;

	return AllocSetContextCreateInternal(TopMemoryContext, name, 0, block, block);
}

/* A copy of exactly its size. */
static char *
exactly(const void *bytes, size_t len)
{
	char	   *copy = malloc(len ? len : 1);

	memcpy(copy, bytes, len);
	return copy;
}

/* Text as it may go to SQL.  What comes from a provider stays UTF-8 in SQL_ASCII. */
static void
check_text(const char *text, size_t len)
{
	int			encoding = GetDatabaseEncoding();

	if (encoding == PG_SQL_ASCII)
		encoding = PG_UTF8;
	CLAIM(strlen(text) == len);
	CLAIM(pg_encoding_verifymbstr(encoding, text, (int) len) == (int) len);
}

/* Text that is shown to people. */
static void
check_shown(const char *text, size_t max)
{
	size_t		len = strlen(text);

	check_text(text, len);
	CLAIM(len <= max);
	CLAIM(strstr(text, API_KEY) == NULL);
	for (const char *c = text; *c; c++)
		CLAIM((unsigned char) *c >= ' ' && *c != 0x7F);
}

static bool
decided(const LlmAnswer *answer)
{
	return answer->ended || (answer->error != LLMGW_OK && !answer->hopeless &&
							 answer->error != LLMGW_CONTENT_POLICY);
}

static bool
on_event(void *arg, const char *name, char *data, size_t len)
{
	Stream	   *s = arg;

	CLAIM(strlen(name) < 64);
	CLAIM(data[len] == '\0');
	MemoryContextSwitchTo(scratch);
	s->dialect->parse_event(s->call, name, data, len, s->answer);
	CLAIM(CurrentMemoryContext == scratch);
	MemoryContextSwitchTo(answer_context);
	MemoryContextReset(scratch);
	return !decided(s->answer);
}

/* A stream in pieces; of seed 0: in one. */
static void
feed(Stream *s, const uint8_t *data, size_t size, unsigned seed)
{
	LlmEventParser parser;
	size_t		done = 0;

	llmgw_sse_init(&parser, s->dialect->framing);
	while (done < size && !decided(s->answer))
	{
		size_t		n = size - done;
		char	   *piece;

		if (seed != 0)
		{
			seed = seed * 1103515245 + 12345;
			n = Min(n, 1 + (seed >> 16) % ((seed >> 12) % 4 ? 64 : 4));
		}
		piece = exactly(data + done, n);
		llmgw_sse_feed(&parser, piece, n, on_event, s);
		free(piece);
		done += n;
	}
	if (!decided(s->answer))
		llmgw_sse_finish(&parser, on_event, s);
}

static void
check_usage(const LlmUsage *u)
{
	int64		max = INT64CONST(4) * PG_INT32_MAX;

	if (!u->known)
		return;
	CLAIM(u->input >= 0 && u->input <= max);
	CLAIM(u->output >= 0 && u->output <= max);
	CLAIM(u->cached_input >= 0 && u->cache_write >= 0 &&
		  u->cached_input + u->cache_write <= u->input);
	CLAIM(u->reasoning >= 0 && u->reasoning <= u->output);
}

static void
check_tools(const LlmAnswer *answer)
{
	bool		whole = answer->complete && answer->error == LLMGW_OK;

	CLAIM(answer->ntool_calls >= 0 && answer->ntool_calls <= LLMGW_MAX_TOOL_CALLS);
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		const LlmToolCall *tool = &answer->tool_calls[i];

		check_text(tool->arguments.data, tool->arguments.len);
		if (tool->id != NULL)
			check_text(tool->id, strlen(tool->id));
		if (tool->name != NULL)
			check_text(tool->name, strlen(tool->name));
		if (tool->signature != NULL)
			check_text(tool->signature, strlen(tool->signature));
		if (whole)
			CLAIM(tool->id && *tool->id && tool->name && *tool->name);
	}
	if (whole && answer->ntool_calls > 0)
	{
		Jsonb	   *calls = llmgw_answer_tool_calls(answer);

		CLAIM(calls != NULL && JB_ROOT_IS_ARRAY(calls));
		CLAIM(JB_ROOT_COUNT(calls) == answer->ntool_calls);
	}
}

static void
check_answer(const LlmAnswer *answer)
{
	check_text(answer->text.data, answer->text.len);
	CLAIM(answer->error >= LLMGW_OK && answer->error < LLMGW_NATTEMPT_CLASSES);
	CLAIM((answer->error == LLMGW_OK) == (answer->message == NULL));
	CLAIM(!answer->hopeless || answer->error != LLMGW_OK);
	if (answer->message != NULL)
		check_shown(answer->message, MAX_MESSAGE);
	if (answer->finish_reason != NULL)
		check_shown(answer->finish_reason, MAX_REASON);
	if (answer->refusal != NULL)
		check_text(answer->refusal, strlen(answer->refusal));
	if (answer->complete && answer->error == LLMGW_OK)
		CLAIM(answer->has_content);
	check_usage(&answer->usage);
	check_tools(answer);
}

/* What llmgw_judge() does with an answer that is over. */
static void
end_answer(LlmAnswer *answer)
{
	MemoryContextReset(scratch);
	if (answer->complete && answer->ntool_calls > 0)
	{
		MemoryContextSwitchTo(scratch);
		llmgw_answer_end_tools(answer, "call_1");
		MemoryContextSwitchTo(answer_context);
		MemoryContextReset(scratch);
	}
	MemoryContextSwitchTo(scratch);
	check_answer(answer);
	MemoryContextSwitchTo(answer_context);
}

static void
check_embedding(const LlmWireCall *call, const LlmAnswer *answer)
{
	if (!answer->complete || answer->error != LLMGW_OK)
		return;
	CLAIM(answer->nvectors == call->ninputs && answer->dimensions > 0);
	CLAIM(call->dimensions == 0 || answer->dimensions == call->dimensions);
	for (size_t i = 0; i < (size_t) answer->nvectors * answer->dimensions; i++)
		CLAIM(isfinite(answer->vectors[i]));
}

static void
read_stream(const LlmDialect *dialect, const LlmWireCall *call,
			const uint8_t *data, size_t size, unsigned seed)
{
	LlmAnswer	whole;
	LlmAnswer	cut;
	Stream		s = {dialect, call, &whole};

	llmgw_answer_init(&whole, call->api_key);
	feed(&s, data, size, 0);
	end_answer(&whole);

	/* how it was cut on the way changes nothing */
	llmgw_answer_init(&cut, call->api_key);
	s.answer = &cut;
	feed(&s, data, size, seed ? seed : 1);
	end_answer(&cut);
	CLAIM(whole.error == cut.error && whole.complete == cut.complete &&
		  whole.ended == cut.ended && whole.ntool_calls == cut.ntool_calls);
	CLAIM(strcmp(whole.text.data, cut.text.data) == 0);
	CLAIM(whole.message == NULL || strcmp(whole.message, cut.message) == 0);
	CLAIM(memcmp(&whole.usage, &cut.usage, sizeof(LlmUsage)) == 0);
}

/* Header lines up to an empty one, and what follows as the body. */
static void
read_limits(const LlmDialect *dialect, const char *data, size_t size)
{
	const char *gap = memmem(data, size, "\n\n", 2);
	size_t		head = gap ? gap - data + 1 : size;
	const char *nul = memchr(data, '\0', head);
	size_t		len = gap ? size - head - 1 : 0;
	char	   *headers = exactly(data, head + 1 > size ? size : head + 1);
	char	   *body = gap ? exactly(gap + 2, len) : NULL;
	LlmRateInfo info;

	/* a C string, in just as many bytes */
	head = nul ? nul - data : head;
	headers = realloc(headers, head + 1);
	headers[head] = '\0';
	memset(&info, 0x55, sizeof(info));
	MemoryContextSwitchTo(scratch);
	dialect->read_limits(headers, body, len, INT64CONST(1790000000), &info);
	MemoryContextSwitchTo(answer_context);
	CLAIM(info.retry_after_ms >= -1 && info.retry_after_ms <= INT64CONST(86400000));
	CLAIM(info.remaining_requests >= -1 && info.remaining_requests <= PG_INT32_MAX);
	CLAIM(info.remaining_tokens >= -1 && info.remaining_tokens <= PG_INT32_MAX);
	CLAIM(info.reset_requests_ms >= -1 && info.reset_requests_ms <= INT64CONST(86400000));
	CLAIM(info.reset_tokens_ms >= -1 && info.reset_tokens_ms <= INT64CONST(86400000));
	free(headers);
	free(body);
}

static void
read_url(const char *data, size_t size)
{
	char	   *text = exactly(data, size + 1);
	const char *reason;
	LlmUrl		url;

	if (llmgw_http_split_url(text, &url, &reason))
	{
		CLAIM(reason == NULL);
		CLAIM(strcmp(url.scheme, "http") == 0 || strcmp(url.scheme, "https") == 0);
		CLAIM(url.host[0] != '\0' && url.port > 0 && url.port <= 65535);
	}
	else
		CLAIM(reason != NULL);
	free(text);
}

static void
test(const uint8_t *data, size_t size)
{
	static const int statuses[] = {
		400, 401, 402, 403, 404, 408, 413, 422, 429, 500, 503, 504, 529, 302, 498, 599
	};
	const LlmDialect *dialect = llmgw_dialect_find(kinds[(data[0] - '0') % 6u]);
	unsigned	entry = (data[1] - '0') % 6u;
	unsigned	how = (uint8_t) (data[2] - '0');
	unsigned	seed = (uint8_t) (data[3] - '0');
	LlmWireCall call = {
		.api_key = API_KEY,.model = how & 64 ? "gpt-5" : "claude-x",
		.base_url = how & 128 ? NULL : "http://localhost/v1",
		.max_tokens = how & 4 ? 0 : 100,.stream = entry == 1,
		.schema = how & 1 ? schemas[how >> 1 & 1] : NULL,
	};
	LlmAnswer	answer;
	char	   *body;

	data += 4;
	size -= 4;
	MemoryContextSwitchTo(answer_context);
	if (strcmp(entries[entry], "stream") == 0)
	{
		read_stream(dialect, &call, data, size, seed);
		return;
	}
	body = exactly(data, size);
	llmgw_answer_init(&answer, call.api_key);
	switch (entry)
	{
		case 0:
			MemoryContextSwitchTo(scratch);
			dialect->parse_response(&call, body, size, &answer);
			CLAIM(CurrentMemoryContext == scratch);
			MemoryContextSwitchTo(answer_context);
			CLAIM(answer.ended);
			CLAIM(answer.complete || answer.error != LLMGW_OK);
			end_answer(&answer);
			break;
		case 2:
			MemoryContextSwitchTo(scratch);
			dialect->read_error(&call, statuses[how % lengthof(statuses)], body, size,
								&answer);
			llmgw_params_read_refusal(statuses[how % lengthof(statuses)], body, size, &answer);
			CLAIM(CurrentMemoryContext == scratch);
			MemoryContextSwitchTo(answer_context);
			CLAIM(answer.error != LLMGW_OK && !answer.complete);
			CLAIM(answer.refused >> LLMGW_NPARAMS == 0);
			CLAIM(answer.refused == 0 || (answer.error == LLMGW_INVALID_REQUEST &&
										  answer.how_refused != LLMGW_REFUSED_NOTHING));
			end_answer(&answer);
			break;
		case 3:
			read_limits(dialect, body, size);
			break;
		case 4:
			call.ninputs = 1 + how % 4;
			call.dimensions = seed % 5;
			if (dialect->parse_embedding == NULL)
				break;
			MemoryContextSwitchTo(scratch);
			dialect->parse_embedding(&call, body, size, &answer);
			CLAIM(CurrentMemoryContext == scratch);
			MemoryContextSwitchTo(answer_context);
			CLAIM(answer.ended);
			CLAIM(answer.complete || answer.error != LLMGW_OK);
			end_answer(&answer);
			check_embedding(&call, &answer);
			break;
		case 5:
			body = realloc(body, size + 1);
			body[size] = '\0';
			read_url(body, strlen(body));
			break;
	}
	free(body);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	MemoryContext caller = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	if (size < 4)
		return 0;
	PG_TRY();
	{
		test(data, size);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* no provider's bytes may raise one */
		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		fprintf(stderr, "%s:%d: error %s: %s\n", error->filename, error->lineno,
				unpack_sql_state(error->sqlerrcode), error->message);
		abort();
	}
	PG_END_TRY();
	CLAIM(InterruptHoldoffCount == holdoff);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(scratch);
	MemoryContextReset(answer_context);
	return 0;
}

/* before the server's own, which would shut it down in the middle of a query */
static void
leave(int status, void *arg)
{
	fflush(NULL);
	_exit(status);
}

PG_FUNCTION_INFO_V1(fuzz_dialect);

Datum
fuzz_dialect(PG_FUNCTION_ARGS)
{
	static const char *const documents[] = {
		"{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"string\"}}}",
		"{\"type\": \"array\", \"items\": {\"type\": \"string\"}}"
	};
	static const int signals[] = {SIGALRM, SIGINT, SIGTERM, SIGFPE, SIGUSR1, SIGUSR2};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	char	   *options = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	  **argv = palloc0(MAX_ARGS * sizeof(char *));
	char	   *reason;
	int			argc = 1;

	argv[0] = "fuzz_dialect";
	for (char *arg = strtok(options, " "); arg; arg = strtok(NULL, " "))
	{
		CLAIM(argc < MAX_ARGS - 1);
		argv[argc++] = arg;
	}
	for (int i = 0; i < lengthof(documents); i++)
		schemas[i] = llmgw_json_parse_text(documents[i], &reason);
	answer_context = make_context("answer");
	scratch = make_context("scratch");
	MemoryContextSwitchTo(old);

	/* libFuzzer leaves handlers alone that it finds */
	for (int i = 0; i < lengthof(signals); i++)
		signal(signals[i], SIG_DFL);
	on_exit(leave, NULL);
	exit(LLVMFuzzerRunDriver(&argc, &argv, LLVMFuzzerTestOneInput));
}
