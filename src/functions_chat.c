/*-------------------------------------------------------------------------
 *
 * functions_chat.c
 *	  llm_chat: a conversation, with tools or a schema for the answer.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_chat);

enum
{
	ARG_TOOLS = LLMGW_NCOMMON_ARGS,
	ARG_TOOL_CHOICE,
	ARG_SCHEMA
};

static char *
jsonb_text(Jsonb *doc)
{
	return JsonbToCString(NULL, &doc->root, VARSIZE(doc));
}

static void
refuse(const char *reason, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s", reason),
			 errhint("%s", hint)));
}

/* Tools, tool_choice and schema go into the spec. */
static void
read_arguments(FunctionCallInfo fcinfo, LlmSpec *spec)
{
	char	   *reason;

	if (!PG_ARGISNULL(ARG_TOOLS))
	{
		Jsonb	   *tools = PG_GETARG_JSONB_P_COPY(ARG_TOOLS);

		spec->tools = llmgw_tools_parse(tools, &reason);
		if (spec->tools == NULL)
			refuse(reason, "For example tools => '[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"parameters\": {\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}}}]'.");
		spec->extra_characters += pg_mbstrlen(jsonb_text(tools));
	}
	if (!PG_ARGISNULL(ARG_TOOL_CHOICE) &&
		!llmgw_tool_choice_parse(PG_GETARG_JSONB_P_COPY(ARG_TOOL_CHOICE), spec->tools,
								 &spec->tool_choice, &reason))
		refuse(reason, "For example tool_choice => '\"required\"', beside tools.");
	if (!PG_ARGISNULL(ARG_SCHEMA))
	{
		spec->schema = PG_GETARG_JSONB_P_COPY(ARG_SCHEMA);
		llmgw_args_check_schema(spec->schema);
		spec->extra_characters += pg_mbstrlen(jsonb_text(spec->schema));
	}
}

/* Makes the call that the arguments describe; all of it lives in the context. */
static LlmCall *
chat(FunctionCallInfo fcinfo, MemoryContext context)
{
	LlmSpec    *spec = llmgw_args_read(fcinfo, context);
	MemoryContext old = MemoryContextSwitchTo(context);
	Jsonb	   *doc = PG_GETARG_JSONB_P_COPY(LLMGW_ARG_PROMPT);
	LlmMessages *messages;
	LlmCall    *call;
	char	   *reason;

	spec->operation = LLMGW_OP_CHAT;
	messages = llmgw_messages_parse(doc, &reason);
	if (messages == NULL)
		refuse(reason, "For example messages => '[{\"role\": \"user\", \"content\": \"Hello\"}]'.");
	read_arguments(fcinfo, spec);

	call = llmgw_call_create(context, spec, jsonb_text(doc));
	call->messages = messages;
	llmgw_run_single(call, context);
	MemoryContextSwitchTo(old);
	return call;
}

Datum
llmgw_sql_chat(PG_FUNCTION_ARGS)
{
	return llmgw_return_detail(fcinfo, chat);
}
