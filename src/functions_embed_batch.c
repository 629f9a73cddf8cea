/*-------------------------------------------------------------------------
 *
 * functions_embed_batch.c
 *	  llm_embed_batch: many texts become vectors.
 *
 * A batch is packed: as many inputs into one request as its provider takes, and
 * as many requests under way as it may.  A request is one call, which has one
 * outcome for all of its inputs.  Vectors of two models cannot be compared, so
 * the model is settled before the first call and is that of all of them.
 *
 * One input can make the provider refuse all that came with it.  So what was
 * refused is asked for again in halves, until the input is alone with its
 * error.  Refusals cost nothing, but time: there is a limit to them, and where
 * halves do not help, no other pack is taken apart.
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
#include "functions_embed.h"

PG_FUNCTION_INFO_V1(llmgw_sql_embed_batch);

/* of inputs in one request: less than 300,000 tokens, whatever the language */
#define MAX_PACK_BYTES		250000

/* of an answer, to keep it below llm_gateway.max_response_size */
#define USUAL_DIMENSIONS	3072
#define BYTES_PER_NUMBER	24

/* refusals for each level of halves, of one pack: room for several bad inputs */
#define REFUSALS_PER_LEVEL	4

/* so many, and nothing taken: it is not an input that is refused */
#define MANY_REFUSALS		8

/* A pack that was refused and is asked for in parts. */
typedef struct Search
{
	int			open;			/* parts without an outcome */
	int			refused;		/* of its requests */
	int			most;			/* of them, before parts are taken as they are */
	bool		taken;			/* one part was */
} Search;

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

/* A part of a pack that is yet to be asked for. */
typedef struct Part
{
	struct Part *next;
	Search	   *search;
	int			n;
	EmbedItem  *items[FLEXIBLE_ARRAY_MEMBER];
} Part;

/* A pack under way. */
typedef struct Request
{
	Pack	   *pack;
	Search	   *search;			/* that it is part of; NULL: none */
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
	Part	   *parts;			/* to be asked for before new items */
	bool		whole;			/* packs are not taken apart (any more) */
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

	llmgw_spec_query(spec, &query);
	query.needs_embedding = true;
	query.peek = true;
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

/* Whether the item is one that is asked for: not NULL, not empty, the first. */
static bool
is_asked(const Batch *batch, int i)
{
	const EmbedItem *item = &batch->items[i];

	return item->input != NULL && !is_empty(item) &&
		(batch->leaders == NULL || batch->leaders[i] == i);
}

/* Makes the items what the call asks for. */
static void
ask_for(Batch *batch, LlmCall *call, EmbedItem **items, int n, Search *search)
{
	const char **inputs = palloc(sizeof(char *) * n);
	Request    *request = palloc(sizeof(Request));

	request->items = items;
	request->search = search;
	request->pack = MemoryContextAllocZero(batch->context, sizeof(Pack));
	for (int i = 0; i < n; i++)
	{
		request->pack->waiting += 1 + items[i]->followers;
		items[i]->place = i;
		inputs[i] = text_to_cstring(items[i]->input);
	}
	call->owner = request;
	call->ninputs = n;
	call->inputs = inputs;
}

/* The next part, if there is one. */
static bool
next_part(Batch *batch, LlmCall *call)
{
	Part	   *part = batch->parts;
	Size		size;
	EmbedItem **items;

	if (part == NULL)
		return false;
	batch->parts = part->next;
	size = sizeof(EmbedItem *) * part->n;
	items = palloc(size);
	memcpy(items, part->items, size);
	ask_for(batch, call, items, part->n, part->search);
	pfree(part);
	return true;
}

/* The next items that fit into one request; there is at least one. */
static void
next_pack(Batch *batch, LlmCall *call)
{
	EmbedItem **items = palloc(sizeof(EmbedItem *) * batch->max_inputs);
	Size		bytes = 0;
	int			n = 0;

	for (; batch->started < batch->n && n < batch->max_inputs; batch->started++)
	{
		EmbedItem  *item = &batch->items[batch->started];

		if (!is_asked(batch, batch->started))
			continue;
		bytes += VARSIZE_ANY_EXHDR(item->input);
		if (n > 0 && bytes > MAX_PACK_BYTES)
			break;
		items[n++] = item;
	}
	ask_for(batch, call, items, n, NULL);
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
	if (batch->started == batch->n && batch->parts == NULL)
		return NULL;
	if (llmgw_batch_refresh(&batch->spec, &batch->generation, batch->context))
		plan(batch);
	call = llmgw_call_create(run->context, batch->spec, "");
	old = MemoryContextSwitchTo(call->context);
	if (!next_part(batch, call))
		next_pack(batch, call);
	call->prompt = prompt_of(call);
	MemoryContextSwitchTo(old);
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
			values[1] = llmgw_embed_array(pack->vectors + (Size) item->place * pack->dimensions,
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

/* Whether it may be for one input that the provider refused them all. */
static bool
is_refused(const LlmCall *call)
{
	return call->error == LLMGW_INVALID_REQUEST || call->error == LLMGW_CONTEXT_LENGTH ||
		call->error == LLMGW_CONTENT_POLICY;
}

static void
add_part(Batch *batch, Search *search, EmbedItem **items, int n)
{
	Part	   *part = MemoryContextAlloc(batch->context,
										  offsetof(Part, items) + sizeof(EmbedItem *) * n);

	part->next = batch->parts;
	part->search = search;
	part->n = n;
	memcpy(part->items, items, sizeof(EmbedItem *) * n);
	batch->parts = part;
	search->open++;
}

/*
 * The outcome of a pack or a part of one.  True: its inputs are asked for again
 * in halves, and have no outcome yet.
 */
static bool
take_apart(Batch *batch, const LlmCall *call)
{
	Request    *request = call->owner;
	Search	   *search = request->search;
	bool		refused = is_refused(call);
	int			half = call->ninputs / 2;
	bool		again = refused && half > 0 && !batch->whole;

	if (search == NULL)
	{
		if (!again)
			return false;
		search = MemoryContextAllocZero(batch->context, sizeof(Search));
		search->open = 1;
		for (int n = call->ninputs; n > 1; n = (n + 1) / 2)
			search->most += REFUSALS_PER_LEVEL;
	}
	search->open--;
	search->refused += refused;
	search->taken |= call->error == LLMGW_OK;
	if (again && search->refused <= search->most)
	{
		/* the first half's rows are waited for */
		add_part(batch, search, request->items + half, call->ninputs - half);
		add_part(batch, search, request->items, half);
		return true;
	}
	if (search->open == 0)
	{
		if (!search->taken && search->refused >= MANY_REFUSALS)
			batch->whole = true;
		pfree(search);
	}
	return false;
}

static void
done_call(LlmRun *run, LlmCall *call)
{
	Batch	   *batch = run->arg;
	Request    *request = call->owner;
	Pack	   *pack = request->pack;
	const LlmAnswer *answer = &call->answer;

	batch->recorded = Max(batch->recorded, call->entry.end);
	if (take_apart(batch, call))
	{
		pfree(pack);
		llmgw_call_free(call);
		llmgw_engine_resume(run);
		return;
	}

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

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(LLMGW_EMBED_INPUT), TEXTOID, -1, false,
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
	if (PG_ARGISNULL(LLMGW_EMBED_INPUT))
		return (Datum) 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway batch",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	batch.context = context;
	batch.result = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.spec = llmgw_embed_read_args(fcinfo, context);
	batch.generation = batch.spec->config->generation;
	batch.scratch = AllocSetContextCreate(context, "llm_gateway row",
										  ALLOCSET_DEFAULT_SIZES);
	run.max_in_flight = llmgw_args_concurrency(fcinfo, LLMGW_EMBED_MAX_CONCURRENCY);
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
