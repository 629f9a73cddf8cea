/*-------------------------------------------------------------------------
 *
 * functions_embed.c
 *	  llm_embed and llm_embed_batch: texts become vectors.
 *
 * A batch is packed: as many inputs into one request as its provider takes, and
 * as many requests under way as it may.  A request is one call, which has one
 * outcome for all of its inputs.  Vectors of two models cannot be compared, so
 * the model is settled before the first call and is that of all of them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "engine.h"
#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_embed);
PG_FUNCTION_INFO_V1(llmgw_sql_embed_batch);

/*
 * Positions of the arguments, which are those of every call but for what has no
 * meaning here.
 */
enum
{
	ARG_INPUT = LLMGW_ARG_PROMPT,
	ARG_TASK = LLMGW_ARG_TASK,
	ARG_PARAMS = LLMGW_ARG_SYSTEM_PROMPT,
	ARG_TIMEOUT_MS,
	ARG_CACHE,
	ARG_TAGS,
	ARG_DIMENSIONS,
	ARG_MAX_CONCURRENCY
};

#define EMBEDDING_TASK		"embedding"

/* more than any model makes */
#define MAX_DIMENSIONS		65536

/* of inputs in one request: less than 300,000 tokens, whatever the language */
#define MAX_PACK_BYTES		250000

/* of an answer, to keep it below llm_gateway.max_response_size */
#define USUAL_DIMENSIONS	3072
#define BYTES_PER_NUMBER	24

/* The inputs of one request, and what became of it. */
typedef struct Pack
{
	int			waiting;		/* rows that are yet to be made from it */
	int			dimensions;
	float4	   *vectors;		/* NULL: it failed */
	const char *error_class;
	char	   *message;
} Pack;

/* One element of the array. */
typedef struct EmbedItem
{
	text	   *input;			/* NULL: a NULL input */
	int			followers;		/* items with the same input, which share the
								 * vector */
	int			place;			/* in its pack */
	Pack	   *pack;			/* NULL: not yet; of an item that shares one:
								 * never */
} EmbedItem;

/* A pack under way. */
typedef struct Request
{
	Pack	   *pack;
	EmbedItem **items;			/* by place */
} Request;

typedef struct Batch
{
	LlmSpec    *spec;
	uint64		generation;		/* of its configuration */
	int			max_inputs;		/* of one request */
	int			n;
	EmbedItem  *items;
	int		   *leaders;		/* by item: whose vector it shares; NULL: each
								 * has its own */
	int			started;		/* items before it have been started */
	int			emitted;		/* rows before it are in the tuplestore */
	uint64		recorded;		/* end of their records in the ledger */
	ReturnSetInfo *result;
	MemoryContext context;		/* of all this; and of packs that wait */
	MemoryContext scratch;		/* for one row; reset after each */
} Batch;

static bool
is_empty(const EmbedItem *item)
{
	return VARSIZE_ANY_EXHDR(item->input) == 0;
}

/* The same arguments in the places that they have in other functions. */
static LlmSpec *
read_arguments(FunctionCallInfo fcinfo, MemoryContext context)
{
	static const int places[] = {
		ARG_PARAMS, LLMGW_ARG_PARAMS,
		ARG_TIMEOUT_MS, LLMGW_ARG_TIMEOUT_MS,
		ARG_CACHE, LLMGW_ARG_CACHE,
		ARG_TAGS, LLMGW_ARG_TAGS
	};

	LOCAL_FCINFO(common, LLMGW_NCOMMON_ARGS);
	LlmSpec    *spec;

	InitFunctionCallInfoData(*common, fcinfo->flinfo, LLMGW_NCOMMON_ARGS,
							 fcinfo->fncollation, NULL, NULL);
	for (int i = 0; i < LLMGW_NCOMMON_ARGS; i++)
	{
		common->args[i].value = (Datum) 0;
		common->args[i].isnull = true;
	}
	for (int i = 0; i <= LLMGW_ARG_MIN_TIER; i++)
		common->args[i] = fcinfo->args[i];
	for (int i = 0; i < lengthof(places); i += 2)
		common->args[places[i + 1]] = fcinfo->args[places[i]];

	spec = llmgw_args_read(common, context);
	spec->operation = LLMGW_OP_EMBED;
	spec->max_tokens = LLMGW_NO_OUTPUT;
	if (PG_ARGISNULL(ARG_TASK))
		spec->task = EMBEDDING_TASK;
	if (!PG_ARGISNULL(ARG_DIMENSIONS))
	{
		spec->dimensions = PG_GETARG_INT32(ARG_DIMENSIONS);
		if (spec->dimensions < 1 || spec->dimensions > MAX_DIMENSIONS)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("dimensions must be between 1 and %d, not %d",
							MAX_DIMENSIONS, spec->dimensions),
					 errhint("Leave it out for as many as the model makes.")));
	}
	return spec;
}

/* A vector as an array of SQL. */
static Datum
make_array(const float4 *vector, int dimensions)
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

/*
 * llm_embed
 */

static LlmCall *
embed(FunctionCallInfo fcinfo, MemoryContext context)
{
	LlmSpec    *spec = read_arguments(fcinfo, context);
	MemoryContext old = MemoryContextSwitchTo(context);
	const char *input = text_to_cstring(PG_GETARG_TEXT_PP(ARG_INPUT));
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

	if (PG_ARGISNULL(ARG_INPUT))
		PG_RETURN_NULL();

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	call = embed(fcinfo, context);
	answered = call->error == LLMGW_OK;
	if (answered)
		result = make_array(call->answer.vectors, call->answer.dimensions);
	else
	{
		char	   *detail = llmgw_call_detail(call);

		ereport(llmgw_may_be_null(call->sqlstate) ? WARNING : ERROR,
				(errcode(call->sqlstate),
				 errmsg("%s", call->message),
				 detail ? errdetail("%s", detail) : 0,
				 errhint("%s", llmgw_call_hint(call))));
	}
	MemoryContextDelete(context);
	if (!answered)
		PG_RETURN_NULL();
	return result;
}

/*
 * llm_embed_batch
 */

/*
 * Settles the model, if it is not yet, and how many inputs all of its providers
 * take at once.
 */
static void
plan(Batch *batch)
{
	LlmSpec    *spec = batch->spec;
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	LlmRouteQuery query = {0};
	LlmRoute	route;
	const LlmCandidate *first;
	int64		numbers = spec->dimensions > 0 ? spec->dimensions : USUAL_DIMENSIONS;

	query.model = spec->model;
	query.task = spec->task;
	query.min_tier = spec->min_tier;
	query.role = spec->role;
	query.tags = spec->tags;
	query.max_tokens = spec->max_tokens;
	query.only_model = spec->only_model;
	query.needs_embedding = true;
	llmgw_route(spec->config, &query, &route);

	first = llmgw_route_first(&route);
	if (first != NULL && spec->only_model == NULL)
		spec->only_model = pstrdup(first->model->name);

	batch->max_inputs = (int) Min((int64) llmgw_max_response_size * 1024 /
								  (numbers * BYTES_PER_NUMBER),
								  LLMGW_OPENAI_MAX_INPUTS);
	for (int i = 0; i < route.ncandidates; i++)
		if (route.candidates[i].dropped == NULL)
			batch->max_inputs = Min(batch->max_inputs,
									route.candidates[i].model->provider->dialect->max_inputs);
	batch->max_inputs = Max(batch->max_inputs, 1);
	MemoryContextSwitchTo(old);
}

/*
 * A batch may run for long: calls that it has not started yet are made with the
 * configuration of their moment, but for the model.
 */
static void
refresh_config(Batch *batch)
{
	LlmConfig  *config = llmgw_config_get();
	LlmSpec    *spec;

	if (config->generation == batch->generation)
		return;
	spec = MemoryContextAlloc(batch->context, sizeof(LlmSpec));
	*spec = *batch->spec;
	spec->config = config;		/* which each call pins */
	batch->spec = spec;
	batch->generation = config->generation;
	plan(batch);
}

/* Whether the item is one that is asked for: not NULL, not empty, the first. */
static bool
is_asked(const Batch *batch, int i)
{
	const EmbedItem *item = &batch->items[i];

	return item->input != NULL && !is_empty(item) &&
		(batch->leaders == NULL || batch->leaders[i] == i);
}

/* The next items that fit into one request; false: there are none. */
static bool
next_pack(Batch *batch, LlmCall *call)
{
	const char **inputs = palloc(sizeof(char *) * batch->max_inputs);
	Request    *request = palloc(sizeof(Request));
	Size		bytes = 0;
	int			n = 0;

	request->items = palloc(sizeof(EmbedItem *) * batch->max_inputs);
	request->pack = MemoryContextAllocZero(batch->context, sizeof(Pack));
	for (; batch->started < batch->n && n < batch->max_inputs; batch->started++)
	{
		EmbedItem  *item = &batch->items[batch->started];

		if (!is_asked(batch, batch->started))
			continue;
		bytes += VARSIZE_ANY_EXHDR(item->input);
		if (n > 0 && bytes > MAX_PACK_BYTES)
			break;
		request->pack->waiting += 1 + item->followers;
		request->items[n] = item;
		item->place = n;
		inputs[n++] = text_to_cstring(item->input);
	}
	call->owner = request;
	call->ninputs = n;
	call->inputs = inputs;
	return n > 0;
}

/* What the ledger knows as the prompt: the input, or an array of them. */
static char *
prompt_of(const LlmCall *call)
{
	StringInfoData buf;

	if (call->ninputs == 1)
		return unconstify(char *, call->inputs[0]);
	initStringInfo(&buf);
	for (int i = 0; i < call->ninputs; i++)
	{
		appendStringInfoString(&buf, i > 0 ? ", " : "[");
		escape_json(&buf, call->inputs[i]);
	}
	appendStringInfoChar(&buf, ']');
	return buf.data;
}

static LlmCall *
next_call(LlmRun *run)
{
	Batch	   *batch = run->arg;
	MemoryContext old;
	LlmCall    *call;

	while (batch->started < batch->n && !is_asked(batch, batch->started))
		batch->started++;
	if (batch->started == batch->n)
		return NULL;
	refresh_config(batch);
	call = llmgw_call_create(run->context, batch->spec, "");
	old = MemoryContextSwitchTo(call->context);
	if (next_pack(batch, call))
		call->prompt = prompt_of(call);
	MemoryContextSwitchTo(old);
	if (batch->spec->cache == LLMGW_CACHE_ONLY)
		llmgw_call_fail(call, LLMGW_NO_CANDIDATE,
						"no answer is cached for this input");
	return call;
}

static void
put_text(Datum *values, bool *nulls, int i, const char *text)
{
	nulls[i] = false;
	values[i] = CStringGetTextDatum(text);
}

/*
 * Puts the rows that are next in order and have their outcome.
 */
static void
emit(Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->scratch);

	for (; batch->emitted < batch->n; batch->emitted++)
	{
		int			i = batch->emitted;
		const EmbedItem *item = &batch->items[batch->leaders ? batch->leaders[i] : i];
		Pack	   *pack = item->pack;
		Datum		values[4] = {Int32GetDatum(i + 1)};
		bool		nulls[4] = {false, true, true, true};

		if (item->input != NULL && is_empty(item))
		{
			put_text(values, nulls, 2, llmgw_error_class_name(LLMGW_INVALID_REQUEST));
			put_text(values, nulls, 3, "the input is empty");
		}
		else if (item->input != NULL && pack == NULL)
			break;
		else if (pack != NULL && pack->vectors != NULL)
		{
			nulls[1] = false;
			values[1] = make_array(pack->vectors + (Size) item->place * pack->dimensions,
								   pack->dimensions);
		}
		else if (pack != NULL)
		{
			put_text(values, nulls, 2, pack->error_class);
			put_text(values, nulls, 3, pack->message);
		}
		tuplestore_putvalues(batch->result->setResult, batch->result->setDesc,
							 values, nulls);
		MemoryContextReset(batch->scratch);

		if (pack != NULL && --pack->waiting == 0)
		{
			if (pack->vectors != NULL)
				pfree(pack->vectors);
			else
				pfree(pack->message);
			pfree(pack);
		}
	}
	MemoryContextSwitchTo(old);
}

static void
done_call(LlmRun *run, LlmCall *call)
{
	Batch	   *batch = run->arg;
	Request    *request = call->owner;
	Pack	   *pack = request->pack;
	const LlmAnswer *answer = &call->answer;

	batch->recorded = Max(batch->recorded, call->entry.end);

	/* only the vectors are kept: they may have to wait for a slow pack */
	if (call->error == LLMGW_OK)
	{
		Size		size = sizeof(float4) * call->ninputs * answer->dimensions;

		Assert(answer->nvectors == call->ninputs);
		pack->dimensions = answer->dimensions;
		pack->vectors = MemoryContextAllocHuge(batch->context, size);
		memcpy(pack->vectors, answer->vectors, size);
	}
	else
	{
		MemoryContext old = MemoryContextSwitchTo(call->context);

		pack->error_class = llmgw_error_class_name(call->error);
		pack->message = MemoryContextStrdup(batch->context, llmgw_error_line(call));
		MemoryContextSwitchTo(old);
	}
	for (int i = 0; i < call->ninputs; i++)
		request->items[i]->pack = pack;
	llmgw_call_free(call);
	emit(batch);
}

/* The elements of the array; equal ones share a vector, unless told not to. */
static void
read_inputs(FunctionCallInfo fcinfo, Batch *batch)
{
	Datum	   *elems;
	bool	   *nulls;
	text	  **inputs;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_INPUT), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, &nulls, &batch->n);
	batch->items = MemoryContextAllocHuge(batch->context, sizeof(EmbedItem) * Max(batch->n, 1));
	inputs = MemoryContextAllocHuge(batch->context, sizeof(text *) * Max(batch->n, 1));
	for (int i = 0; i < batch->n; i++)
	{
		memset(&batch->items[i], 0, sizeof(EmbedItem));
		inputs[i] = nulls[i] ? NULL : DatumGetTextPP(elems[i]);
		batch->items[i].input = inputs[i];
	}
	if (batch->spec->cache == LLMGW_CACHE_AUTO || batch->spec->cache == LLMGW_CACHE_ON)
	{
		batch->leaders = llmgw_find_equal(inputs, batch->n);
		for (int i = 0; i < batch->n; i++)
			if (batch->leaders[i] != i)
				batch->items[batch->leaders[i]].followers++;
	}
	pfree(inputs);
}

/* How many connections are worth keeping: about as many as there are packs. */
static int
expected_connections(const Batch *batch, int max_in_flight)
{
	Size		bytes = 0;

	for (int i = 0; i < batch->n; i++)
		if (is_asked(batch, i))
			bytes += VARSIZE_ANY_EXHDR(batch->items[i].input);
	return (int) Min((Size) max_in_flight,
					 1 + batch->n / batch->max_inputs + bytes / MAX_PACK_BYTES);
}

Datum
llmgw_sql_embed_batch(PG_FUNCTION_ARGS)
{
	Batch		batch = {0};
	LlmRun		run = {0};
	MemoryContext context;
	MemoryContext old;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(ARG_INPUT))
		return (Datum) 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway batch",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	batch.context = context;
	batch.result = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.spec = read_arguments(fcinfo, context);
	batch.generation = batch.spec->config->generation;
	batch.scratch = AllocSetContextCreate(context, "llm_gateway row",
										  ALLOCSET_DEFAULT_SIZES);
	run.max_in_flight = llmgw_args_concurrency(fcinfo, ARG_MAX_CONCURRENCY);
	read_inputs(fcinfo, &batch);
	plan(&batch);

	/* below a context of its own, which the engine empties on an error */
	run.context = AllocSetContextCreate(context, "llm_gateway run",
										ALLOCSET_SMALL_SIZES);
	run.next = next_call;
	run.done = done_call;
	run.arg = &batch;
	llmgw_loop_expect_connections(expected_connections(&batch, run.max_in_flight));
	llmgw_engine_run(&run);
	emit(&batch);
	llmgw_ledger_wait(batch.spec->config, batch.recorded);

	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
