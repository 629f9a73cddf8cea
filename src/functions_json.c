/*-------------------------------------------------------------------------
 *
 * functions_json.c
 *	  llm_complete_json: an answer that satisfies a JSON schema, or an error.
 *
 * Models that can be held to a schema are; others are told of it.  What comes
 * back is checked in either case, and once the model is shown what is wrong and
 * asked again: a second request, with a record of its own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_complete_json);

enum
{
	ARG_SCHEMA = LLMGW_NCOMMON_ARGS,
	ARG_DEGRADE
};

/* What became of it; the repair is NULL where there was none. */
typedef struct Rounds
{
	LlmCall    *first;
	LlmCall    *repair;
} Rounds;

static void
read_arguments(FunctionCallInfo fcinfo, LlmSpec *spec)
{
	char	   *schema;

	if (PG_ARGISNULL(ARG_SCHEMA))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schema must not be null"),
				 errhint("For example schema => '{\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}'; '{}' takes any JSON.")));
	spec->schema = PG_GETARG_JSONB_P_COPY(ARG_SCHEMA);
	llmgw_args_check_schema(spec->schema);
	schema = JsonbToCString(NULL, &spec->schema->root, VARSIZE(spec->schema));
	spec->extra_characters += pg_mbstrlen(schema);
	if (PG_ARGISNULL(ARG_DEGRADE) || PG_GETARG_BOOL(ARG_DEGRADE))
		spec->advice = psprintf("%s%sAnswer with one JSON document only, without explanations and without Markdown. It must satisfy this JSON schema:\n%s",
								spec->system_prompt ? spec->system_prompt : "",
								spec->system_prompt ? "\n\n" : "", schema);
}

static void
put_message(LlmMessages *messages, LlmRole role, const char *content)
{
	LlmMessage *m = &messages->messages[messages->n++];

	m->role = role;
	m->nparts = 1;
	m->parts = palloc0(sizeof(LlmPart));
	m->parts[0].type = LLMGW_PART_TEXT;
	m->parts[0].text = content;
	messages->characters += pg_mbstrlen(content);
}

/* The prompt, the answer, and what is wrong with it. */
static LlmMessages *
repair_messages(const LlmCall *first)
{
	LlmMessages *messages = palloc0(sizeof(LlmMessages));

	messages->messages = palloc0(3 * sizeof(LlmMessage));
	put_message(messages, LLMGW_ROLE_USER, first->prompt);

	/* no provider takes an empty message */
	if (first->response[strspn(first->response, " \t\r\n")] != '\0')
		put_message(messages, LLMGW_ROLE_ASSISTANT, first->response);
	put_message(messages, LLMGW_ROLE_USER,
				psprintf("That answer does not satisfy the JSON schema: %s\nAnswer again with the corrected JSON document only, without explanations and without Markdown.",
						 first->mismatch));
	return messages;
}

/* In the same context as the first, whose deadline it keeps. */
static LlmCall *
repair(const LlmCall *first, MemoryContext context)
{
	LlmCall    *call = llmgw_call_create(context, first->spec, first->prompt);

	call->messages = repair_messages(first);
	call->preferred = first->model;
	call->mends = first;
	call->deadline = first->deadline;
	if (llmgw_now() >= call->deadline)
		llmgw_call_fail(call, LLMGW_TIMEOUT,
						psprintf("the call was not done within its %d ms (timeout_ms)",
								 call->spec->timeout_ms));
	llmgw_run_unbooked(call, context);
	return call;
}

/* Makes the calls that the arguments describe; all of it lives in the context. */
static Rounds
complete(FunctionCallInfo fcinfo, MemoryContext context)
{
	LlmSpec    *spec = llmgw_args_read(fcinfo, context);
	MemoryContext old = MemoryContextSwitchTo(context);
	char	   *prompt = text_to_cstring(PG_GETARG_TEXT_PP(LLMGW_ARG_PROMPT));
	Rounds		rounds = {0};
	uint64		recorded;

	llmgw_args_check_prompt(prompt);
	spec->operation = LLMGW_OP_JSON;
	read_arguments(fcinfo, spec);

	rounds.first = llmgw_call_create(context, spec, prompt);
	llmgw_run_unbooked(rounds.first, context);
	recorded = rounds.first->entry.end;

	/* a limit that cut one answer would cut the next */
	if (rounds.first->error == LLMGW_SCHEMA && !llmgw_call_was_cut(rounds.first))
	{
		rounds.repair = repair(rounds.first, context);
		recorded = Max(recorded, rounds.repair->entry.end);
	}
	llmgw_ledger_wait(spec->config, recorded);
	MemoryContextSwitchTo(old);
	return rounds;
}

/* The attempts of both rounds, then the candidates that were dropped. */
static char *
detail_of(const Rounds *rounds)
{
	StringInfoData buf;
	char	   *rest;

	if (rounds->repair == NULL)
		return llmgw_call_detail(rounds->first);
	initStringInfo(&buf);
	llmgw_call_append_attempts(rounds->first, &buf);
	rest = llmgw_call_detail(rounds->repair);
	if (rest != NULL)
		appendStringInfo(&buf, "\n%s", rest);
	return buf.data;
}

/* An error, or the warning that on_error makes of it. */
static void
report(const Rounds *rounds)
{
	const LlmCall *call = rounds->repair ? rounds->repair : rounds->first;
	char	   *detail = detail_of(rounds);
	const char *message;

	/*
	 * That there is no room for the question what is wrong, or nobody to ask
	 * it, is no fault of the caller's: the answer was.
	 */
	if (call->error == LLMGW_NO_CANDIDATE || call->error == LLMGW_CONTEXT_LENGTH)
		call = rounds->first;
	message = call->message;
	if (call == rounds->repair && call->error == LLMGW_SCHEMA && !llmgw_call_was_cut(call))
		message = psprintf("%s (asked twice)", message);
	ereport(llmgw_may_be_null(call->sqlstate) ? WARNING : ERROR,
			(errcode(call->sqlstate),
			 errmsg("%s", message),
			 detail ? errdetail("%s", detail) : 0,
			 errhint("%s", llmgw_call_hint(call))));
}

Datum
llmgw_sql_complete_json(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	Rounds		rounds;
	const LlmCall *last;
	Jsonb	   *result = NULL;

	if (PG_ARGISNULL(LLMGW_ARG_PROMPT))
		PG_RETURN_NULL();

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	rounds = complete(fcinfo, context);
	last = rounds.repair ? rounds.repair : rounds.first;
	if (last->error == LLMGW_OK && last->document == NULL)
		elog(ERROR, "a call with a schema has no document");
	if (last->error == LLMGW_OK)
	{
		result = palloc(VARSIZE(last->document));
		memcpy(result, last->document, VARSIZE(last->document));
	}
	else
		report(&rounds);
	MemoryContextDelete(context);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(result);
}
