/*-------------------------------------------------------------------------
 *
 * functions_stream.c
 *	  llm_stream: an answer in rows, as its words come.
 *
 * In the SELECT list the executor asks for one row after the other, and each
 * request turns the loop until there is text to give.  What was given before is
 * flushed to the client before waiting: the server itself sends its buffer when
 * that is full or the statement is over.
 *
 * Until the first row the call is like any other, with retries and fallbacks.
 * Once text has been given there is no way back: a failure is raised.
 *
 * The call lives in the function's multi-call context.  Whatever ends the
 * statement early (LIMIT, CLOSE, an error) deletes that, and with it the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"

/* or libpq.h needs Kerberos' headers, for parts of a Port that are not ours */
#undef ENABLE_GSS
#include "libpq/libpq.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "engine.h"
#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_stream);

typedef struct Stream
{
	LlmRun		run;
	LlmCall    *call;
	bool		ended;
	bool		unsent;			/* rows may be in the server's buffer */
	Size		given;			/* bytes of the answer */
} Stream;

static LlmCall *
next_call(LlmRun *run)
{
	LlmCall    *call = run->arg;

	run->arg = NULL;
	return call;
}

static void
call_done(LlmRun *run, LlmCall *call)
{
	Stream	   *stream = call->owner;

	stream->ended = true;
}

static Stream *
begin(FunctionCallInfo fcinfo)
{
	Stream	   *stream = palloc0(sizeof(Stream));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
												  ALLOCSET_SMALL_SIZES);
	LlmSpec    *spec = llmgw_args_read(fcinfo, context);
	char	   *prompt = MemoryContextStrdup(context,
											 text_to_cstring(PG_GETARG_TEXT_PP(LLMGW_ARG_PROMPT)));

	llmgw_args_check_prompt(prompt);
	spec->operation = LLMGW_OP_STREAM;
	stream->call = llmgw_call_create(context, spec, prompt);
	stream->call->owner = stream;
	stream->run.context = context;
	stream->run.max_in_flight = 1;
	stream->run.next = next_call;
	stream->run.done = call_done;
	stream->run.arg = stream->call;
	llmgw_engine_begin(&stream->run);
	return stream;
}

/*
 * How much of the text may be given: not the beginning of what may become the
 * provider's key, which would be masked.
 */
static Size
safe_length(const char *words, Size len, const char *key)
{
	Size		key_len = key ? strlen(key) : 0;

	if (key_len < LLMGW_MIN_MASKED_KEY)
		return len;
	for (Size n = Min(key_len - 1, len); n > 0; n--)
		if (memcmp(words + len - n, key, n) == 0)
			return len - n;
	return len;
}

/* The text that has come since the last row; NULL: none. */
static text *
take_text(Stream *stream)
{
	LlmCall    *call = stream->call;
	const char *from;
	Size		len;
	text	   *row;

	if (stream->ended)
	{
		from = call->error == LLMGW_OK ? call->response : "";
		len = call->error == LLMGW_OK ? strlen(from) : 0;
	}
	else if (call->state == LLMGW_CALL_SENDING && call->answer.error == LLMGW_OK)
	{
		char	   *data = call->answer.text.data;

		from = data;
		len = call->answer.text.len;
		if (len > stream->given)
			llmgw_mask_key(data + stream->given, len - stream->given, call->wire.api_key);
		len = safe_length(data, len, call->wire.api_key);
		/* a dialect appends whole characters, but a key may end inside one */
		if (len > stream->given)
			len = stream->given + pg_mbcliplen(data + stream->given, len - stream->given,
											   len - stream->given);
	}
	else
		return NULL;

	if (len <= stream->given)
		return NULL;
	row = cstring_to_text_with_len(from + stream->given, len - stream->given);
	stream->given = len;
	call->streamed = len;
	return row;
}

/* What the client should see before we wait. */
static void
flush_rows(Stream *stream)
{
	if (!stream->unsent || MyProcPort == NULL || whereToSendOutput != DestRemote)
		return;
	stream->unsent = false;
	(void) pq_flush();
}

static void
raise_failure(const Stream *stream)
{
	const LlmCall *call = stream->call;
	char	   *detail = llmgw_call_detail(call);
	bool		warn = stream->given == 0 && llmgw_may_be_null(call->sqlstate);

	ereport(warn ? WARNING : ERROR,
			(errcode(call->sqlstate),
			 errmsg("%s", call->message),
			 detail ? errdetail("%s", detail) : 0,
			 errhint("%s", llmgw_call_hint(call))));
}

Datum
llmgw_sql_stream(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	Stream	   *stream;
	text	   *row;

	if (SRF_IS_FIRSTCALL())
	{
		funcctx = SRF_FIRSTCALL_INIT();
		if (!PG_ARGISNULL(LLMGW_ARG_PROMPT))
		{
			MemoryContext old = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);

			funcctx->user_fctx = begin(fcinfo);
			MemoryContextSwitchTo(old);
		}
	}
	funcctx = SRF_PERCALL_SETUP();
	stream = funcctx->user_fctx;
	if (stream == NULL)
		SRF_RETURN_DONE(funcctx);

	while ((row = take_text(stream)) == NULL && !stream->ended)
	{
		flush_rows(stream);
		(void) llmgw_engine_turn(&stream->run);
	}
	if (row != NULL)
	{
		stream->unsent = true;
		SRF_RETURN_NEXT(funcctx, PointerGetDatum(row));
	}

	flush_rows(stream);
	llmgw_ledger_wait(stream->call->spec->config, stream->call->entry.end);
	if (stream->call->error == LLMGW_OK)
		llmgw_warn_if_cut(stream->call);
	else
		raise_failure(stream);
	SRF_RETURN_DONE(funcctx);
}
