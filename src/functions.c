/*-------------------------------------------------------------------------
 *
 * functions.c
 *	  llm_complete and llm_complete_detail: one prompt, one answer.
 *
 * Both are a run of one call on the engine that batches use.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "engine.h"
#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_complete);
PG_FUNCTION_INFO_V1(llmgw_sql_complete_detail);

static LlmCall *
next_single(LlmRun *run)
{
	LlmCall    *call = run->arg;

	run->arg = NULL;
	return call;
}

static void
done_single(LlmRun *run, LlmCall *call)
{
}

void
llmgw_run_unbooked(LlmCall *call, MemoryContext context)
{
	LlmRun		run = {0};

	run.context = context;
	run.max_in_flight = 1;
	run.next = next_single;
	run.done = done_single;
	run.arg = call;
	llmgw_engine_run(&run);
}

void
llmgw_run_single(LlmCall *call, MemoryContext context)
{
	llmgw_run_unbooked(call, context);
	llmgw_ledger_wait(call->spec->config, call->entry.end);
}

/*
 * Makes the call that the arguments describe and returns when it is done.  All
 * of it lives in the given context.
 */
static LlmCall *
complete(FunctionCallInfo fcinfo, MemoryContext context)
{
	LlmSpec    *spec = llmgw_args_read(fcinfo, context);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *prompt = text_to_cstring(PG_GETARG_TEXT_PP(LLMGW_ARG_PROMPT));
	LlmCall    *call;

	llmgw_args_check_prompt(prompt);
	call = llmgw_call_create(context, spec, prompt);
	llmgw_call_allow_similar(call, llmgw_run_unbooked);
	llmgw_run_single(call, context);
	MemoryContextSwitchTo(old);
	return call;
}

void
llmgw_warn_if_cut(const LlmCall *call)
{
	const char *hint;
	char	   *message;

	if (!llmgw_call_was_cut(call))
		return;
	message = llmgw_call_cut_message(call, &hint);
	ereport(WARNING,
			(errcode(ERRCODE_WARNING_STRING_DATA_RIGHT_TRUNCATION),
			 errmsg("%s", message), errhint("%s", hint)));
}

bool
llmgw_may_be_null(int sqlstate)
{
	return llmgw_on_error == LLMGW_ON_ERROR_NULL &&
		ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_TO_CATEGORY(ERRCODE_LLM_ALL_FAILED) &&
		sqlstate != ERRCODE_LLM_BUDGET_EXCEEDED &&
		sqlstate != ERRCODE_LLM_NO_CANDIDATE;
}

void
llmgw_report_failure(const LlmCall *call)
{
	char	   *detail = llmgw_call_detail(call);

	ereport(llmgw_may_be_null(call->sqlstate) ? WARNING : ERROR,
			(errcode(call->sqlstate),
			 errmsg("%s", call->message),
			 detail ? errdetail("%s", detail) : 0,
			 errhint("%s", llmgw_call_hint(call))));
}

Datum
llmgw_sql_complete(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	LlmCall    *call;
	text	   *result = NULL;

	if (PG_ARGISNULL(LLMGW_ARG_PROMPT))
		PG_RETURN_NULL();

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	call = complete(fcinfo, context);
	if (call->error == LLMGW_OK)
	{
		llmgw_warn_if_cut(call);
		result = cstring_to_text(call->response);
	}
	else
		llmgw_report_failure(call);
	MemoryContextDelete(context);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(result);
}

/* A column that is NULL where there is nothing to say. */
static void
put_text(Datum *values, bool *nulls, int i, const char *value)
{
	nulls[i] = value == NULL;
	values[i] = value ? CStringGetTextDatum(value) : (Datum) 0;
}

static void
put_int(Datum *values, bool *nulls, int i, bool known, int64 value)
{
	nulls[i] = !known;
	values[i] = Int32GetDatum((int32) Min(value, PG_INT32_MAX));
}

static void
put_money(Datum *values, bool *nulls, int i, LlmNano nano)
{
	nulls[i] = nano == LLMGW_COST_UNKNOWN;
	values[i] = nulls[i] ? (Datum) 0 : llmgw_nano_to_numeric(nano);
}

/* Their names, as an array. */
static void
put_params(Datum *values, bool *nulls, int i, LlmParams params)
{
	Datum		names[LLMGW_NPARAMS];
	int			n = 0;

	for (int p = 0; p < LLMGW_NPARAMS; p++)
		if (params & LLMGW_PARAM_BIT(p))
			names[n++] = CStringGetTextDatum(llmgw_param_name((LlmParam) p));
	nulls[i] = n == 0;
	values[i] = n == 0 ? (Datum) 0 :
		PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * The error in one line.  That no model can answer says nothing without the
 * reasons, which are a DETAIL where it is raised.
 */
char *
llmgw_error_line(const LlmCall *call)
{
	char	   *reasons = call->error == LLMGW_NO_CANDIDATE ? llmgw_call_detail(call) : NULL;
	StringInfoData line;

	if (reasons == NULL)
		return unconstify(char *, call->message);
	initStringInfo(&line);
	appendStringInfo(&line, "%s: ", call->message);
	for (const char *c = reasons; *c; c++)
	{
		if (*c == '\n')
			appendStringInfoString(&line, "; ");
		else
			appendStringInfoChar(&line, *c);
	}
	return line.data;
}

void
llmgw_detail_row(const LlmCall *call, Datum *values, bool *nulls)
{
	const LlmModel *model = call->model;
	const LlmKept *kept = call->kept;
	bool		ok = call->error == LLMGW_OK;
	bool		said = ok && (call->response[0] != '\0' || call->tool_calls == NULL);
	int			i = 0;

	put_text(values, nulls, i++, said ? call->response : NULL);
	put_text(values, nulls, i++, kept ? kept->provider : model ? model->provider->name : NULL);
	put_text(values, nulls, i++, kept ? kept->model : model ? model->name : NULL);
	put_text(values, nulls, i++, kept ? kept->model_tier : model ? model->tier->name : NULL);
	put_text(values, nulls, i++, call->spec->task);
	put_text(values, nulls, i++, call->spec->priority->name);
	put_text(values, nulls, i++, call->finish_reason);
	put_int(values, nulls, i++, ok, call->usage.input);
	put_int(values, nulls, i++, ok, call->usage.cached_input);
	put_int(values, nulls, i++, ok, call->usage.output);
	put_int(values, nulls, i++, ok, call->usage.reasoning);
	put_money(values, nulls, i++, call->estimate);
	put_money(values, nulls, i++, call->cost);
	put_int(values, nulls, i++, true, call->latency_us / 1000);
	put_int(values, nulls, i++, call->ttft_us >= 0, call->ttft_us / 1000);
	put_int(values, nulls, i++, true, llmgw_call_attempts(call));
	nulls[i] = false;
	values[i++] = BoolGetDatum(call->fallback);
	nulls[i] = false;
	values[i++] = BoolGetDatum(kept != NULL);
	put_params(values, nulls, i++, ok ? call->degraded : 0);
	put_text(values, nulls, i++, llmgw_call_notice(call));
	nulls[i] = call->tool_calls == NULL;
	values[i] = nulls[i] ? (Datum) 0 : JsonbPGetDatum(call->tool_calls);
	i++;
	put_text(values, nulls, i++, ok ? NULL : llmgw_error_class_name(call->error));
	put_text(values, nulls, i++, ok ? NULL : llmgw_error_line(call));
	nulls[i] = false;
	values[i++] = Int64GetDatum(call->request_id);
	Assert(i == LLMGW_NDETAIL);
}

Datum
llmgw_return_detail(FunctionCallInfo fcinfo, LlmMakeCall make)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[LLMGW_NDETAIL];
	bool		nulls[LLMGW_NDETAIL];
	MemoryContext context;
	MemoryContext old;
	LlmCall    *call;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(LLMGW_ARG_PROMPT))
		return (Datum) 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	call = make(fcinfo, context);
	if (call->error == LLMGW_OK)
		llmgw_warn_if_cut(call);
	llmgw_detail_row(call, values, nulls);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}

Datum
llmgw_sql_complete_detail(PG_FUNCTION_ARGS)
{
	return llmgw_return_detail(fcinfo, complete);
}
