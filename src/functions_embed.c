/*-------------------------------------------------------------------------
 *
 * functions_embed.c
 *	  llm_embed: a text becomes a vector.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "engine.h"
#include "functions_embed.h"

PG_FUNCTION_INFO_V1(llmgw_sql_embed);

#define EMBEDDING_TASK		"embedding"

LlmSpec *
llmgw_embed_read_args(FunctionCallInfo fcinfo, MemoryContext context)
{
	static const int places[] = {
		LLMGW_EMBED_PARAMS, LLMGW_ARG_PARAMS,
		LLMGW_EMBED_TIMEOUT_MS, LLMGW_ARG_TIMEOUT_MS,
		LLMGW_EMBED_CACHE, LLMGW_ARG_CACHE,
		LLMGW_EMBED_TAGS, LLMGW_ARG_TAGS
	};

	LOCAL_FCINFO(common, LLMGW_NCOMMON_ARGS);
	LlmSpec    *spec;

	llmgw_args_none(fcinfo, common);
	for (int i = 0; i <= LLMGW_ARG_MIN_TIER; i++)
		common->args[i] = fcinfo->args[i];
	for (int i = 0; i < lengthof(places); i += 2)
		common->args[places[i + 1]] = fcinfo->args[places[i]];

	spec = llmgw_args_read(common, context);
	spec->operation = LLMGW_OP_EMBED;
	spec->max_tokens = LLMGW_NO_OUTPUT;
	if (PG_ARGISNULL(LLMGW_EMBED_TASK))
	{
		spec->task = EMBEDDING_TASK;
		if (PG_ARGISNULL(LLMGW_ARG_OPTIMIZE))
			spec->optimize = llmgw_args_default_optimize(spec->config, spec->task);
	}
	if (!PG_ARGISNULL(LLMGW_EMBED_DIMENSIONS))
	{
		spec->dimensions = PG_GETARG_INT32(LLMGW_EMBED_DIMENSIONS);
		if (spec->dimensions < 1 || spec->dimensions > LLMGW_MAX_DIMENSIONS)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("dimensions must be between 1 and %d, not %d",
							LLMGW_MAX_DIMENSIONS, spec->dimensions),
					 errhint("Leave it out for as many as the model makes.")));
	}
	return spec;
}

Datum
llmgw_embed_array(const float4 *vector, int dimensions)
{
	Size		size = ARR_OVERHEAD_NONULLS(1) + sizeof(float4) * dimensions;
	ArrayType  *array = palloc0(size);

	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->dataoffset = 0;
	array->elemtype = FLOAT4OID;
	ARR_DIMS(array)[0] = dimensions;
	ARR_LBOUND(array)[0] = 1;
	memcpy(ARR_DATA_PTR(array), vector, sizeof(float4) * dimensions);
	return PointerGetDatum(array);
}

static LlmCall *
embed(FunctionCallInfo fcinfo, MemoryContext context)
{
	LlmSpec    *spec = llmgw_embed_read_args(fcinfo, context);
	MemoryContext old = MemoryContextSwitchTo(context);
	const char *input = text_to_cstring(PG_GETARG_TEXT_PP(LLMGW_EMBED_INPUT));
	const char **inputs = palloc(sizeof(char *));
	LlmCall    *call;

	if (input[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("input must not be empty"),
				 errhint("A NULL input gives NULL without a call.")));
	inputs[0] = input;
	call = llmgw_call_create(context, spec, input);
	call->ninputs = 1;
	call->inputs = inputs;
	llmgw_run_single(call, context);
	MemoryContextSwitchTo(old);
	return call;
}

Datum
llmgw_sql_embed(PG_FUNCTION_ARGS)
{
	MemoryContext context;
	LlmCall    *call;
	Datum		result = (Datum) 0;
	bool		answered;

	if (PG_ARGISNULL(LLMGW_EMBED_INPUT))
		PG_RETURN_NULL();

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	call = embed(fcinfo, context);
	answered = call->error == LLMGW_OK;
	if (answered)
		result = llmgw_embed_array(call->answer.vectors, call->answer.dimensions);
	else
		llmgw_report_failure(call);
	MemoryContextDelete(context);
	if (!answered)
		PG_RETURN_NULL();
	return result;
}
