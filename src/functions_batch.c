/*-------------------------------------------------------------------------
 *
 * functions_batch.c
 *	  llm_complete_batch: many prompts in flight at once, rows in order.
 *
 * Rows go to the tuplestore as soon as all rows before them are there, so that
 * memory holds what is in flight and what waits for an earlier row, not the
 * whole result.  Each row has its own outcome: a prompt that fails does not
 * disturb the others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "engine.h"
#include "functions.h"
#include "shmem.h"

PG_FUNCTION_INFO_V1(llmgw_sql_complete_batch);

#define ARG_MAX_CONCURRENCY		LLMGW_NCOMMON_ARGS

/* One element of the array. */
typedef struct BatchItem
{
	text	   *prompt;			/* NULL: a NULL prompt */
	int			leader;			/* whose answer it shares; itself: its own */
	int			followers;		/* rows that still wait for this answer */
	LlmCall    *call;			/* its own call, from done until its rows are
								 * out */
} BatchItem;

typedef struct Batch
{
	const LlmSpec *spec;
	int			n;
	BatchItem  *items;
	int			started;		/* items before it have been started */
	int			emitted;		/* rows before it are in the tuplestore */
	int			cut;			/* answers cut by a token limit */
	ReturnSetInfo *rsinfo;
	MemoryContext row_context;	/* reset after each row */
} Batch;

typedef struct PromptEntry
{
	text	   *prompt;			/* hash key: the bytes it points to */
	int			item;
} PromptEntry;

static uint32
prompt_hash(const void *key, Size keysize)
{
	text	   *prompt = *(text *const *) key;

	return hash_bytes((unsigned char *) VARDATA_ANY(prompt),
					  VARSIZE_ANY_EXHDR(prompt));
}

static int
prompt_match(const void *key1, const void *key2, Size keysize)
{
	text	   *a = *(text *const *) key1;
	text	   *b = *(text *const *) key2;
	Size		len = VARSIZE_ANY_EXHDR(a);

	if (len != VARSIZE_ANY_EXHDR(b))
		return 1;
	return memcmp(VARDATA_ANY(a), VARDATA_ANY(b), len);
}

/* Finds the prompts that are the same: the first of them leads. */
static void
find_leaders(Batch *batch)
{
	HASHCTL		ctl = {0};
	HTAB	   *seen;

	ctl.keysize = sizeof(text *);
	ctl.entrysize = sizeof(PromptEntry);
	ctl.hash = prompt_hash;
	ctl.match = prompt_match;
	ctl.hcxt = CurrentMemoryContext;
	seen = hash_create("llm_gateway prompts", batch->n, &ctl,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	for (int i = 0; i < batch->n; i++)
	{
		PromptEntry *entry;
		bool		found;

		if (batch->items[i].prompt == NULL)
			continue;
		entry = hash_search(seen, &batch->items[i].prompt, HASH_ENTER, &found);
		if (!found)
			entry->item = i;
		else
		{
			batch->items[i].leader = entry->item;
			batch->items[entry->item].followers++;
		}
	}
	hash_destroy(seen);
}

static void
put_row(Batch *batch, int i, const LlmCall *call)
{
	Datum		values[1 + LLMGW_NDETAIL];
	bool		nulls[1 + LLMGW_NDETAIL];
	MemoryContext old = MemoryContextSwitchTo(batch->row_context);

	memset(nulls, true, sizeof(nulls));
	if (call != NULL)
		llmgw_detail_row(call, values + 1, nulls + 1);
	values[0] = Int32GetDatum(i + 1);
	nulls[0] = false;
	tuplestore_putvalues(batch->rsinfo->setResult, batch->rsinfo->setDesc,
						 values, nulls);
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->row_context);
}

/* The row of an item that shares its leader's answer, which was paid once. */
static void
put_shared_row(Batch *batch, int i, const LlmCall *leader)
{
	LlmCall		copy = *leader;

	copy.request_id = llmgw_next_request_id();
	copy.cached = leader->error == LLMGW_OK;
	copy.cost = 0;
	copy.estimate = 0;
	memset(&copy.usage, 0, sizeof(copy.usage));
	copy.nattempts = 0;
	put_row(batch, i, &copy);
}

/* Puts the rows that are next in order and have their answer. */
static void
emit(Batch *batch)
{
	for (; batch->emitted < batch->n; batch->emitted++)
	{
		int			i = batch->emitted;
		BatchItem  *item = &batch->items[i];
		BatchItem  *leader = &batch->items[item->leader];

		if (item->prompt == NULL)
			put_row(batch, i, NULL);
		else if (leader->call == NULL)
			return;
		else if (leader == item)
			put_row(batch, i, leader->call);
		else
		{
			put_shared_row(batch, i, leader->call);
			leader->followers--;
		}

		if (leader->call != NULL && leader->followers == 0)
		{
			llmgw_call_free(leader->call);
			leader->call = NULL;
		}
	}
}

static LlmCall *
next_item(LlmRun *run)
{
	Batch	   *batch = run->arg;

	while (batch->started < batch->n)
	{
		int			i = batch->started++;
		BatchItem  *item = &batch->items[i];
		LlmCall    *call;

		if (item->prompt == NULL || item->leader != i)
			continue;
		call = llmgw_call_create(run->context, batch->spec, "");
		call->owner = item;
		if (batch->spec->cache == LLMGW_CACHE_ONLY)
			llmgw_call_fail(call, LLMGW_NO_CANDIDATE,
							"no answer is cached for this prompt");
		else if (VARSIZE_ANY_EXHDR(item->prompt) == 0)
			llmgw_call_fail(call, LLMGW_INVALID_REQUEST, "the prompt is empty");
		else
		{
			MemoryContext old = MemoryContextSwitchTo(call->context);

			call->prompt = text_to_cstring(item->prompt);
			MemoryContextSwitchTo(old);
		}
		return call;
	}
	return NULL;
}

static void
done_item(LlmRun *run, LlmCall *call)
{
	Batch	   *batch = run->arg;
	BatchItem  *item = call->owner;

	item->call = call;
	if (call->error == LLMGW_OK && call->finish_reason != NULL &&
		strcmp(call->finish_reason, "length") == 0)
		batch->cut++;
	emit(batch);
}

static int
read_concurrency(FunctionCallInfo fcinfo)
{
	int			n = llmgw_batch_concurrency;

	if (!PG_ARGISNULL(ARG_MAX_CONCURRENCY))
	{
		n = PG_GETARG_INT32(ARG_MAX_CONCURRENCY);
		if (n < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_concurrency must be at least 1, not %d", n)));
	}
	if (n > llmgw_max_batch_concurrency)
	{
		ereport(NOTICE,
				(errmsg("max_concurrency of %d is capped at %d", n,
						llmgw_max_batch_concurrency),
				 errhint("A superuser can raise llm_gateway.max_batch_concurrency.")));
		n = llmgw_max_batch_concurrency;
	}
	return n;
}

Datum
llmgw_sql_complete_batch(PG_FUNCTION_ARGS)
{
	Batch		batch = {0};
	LlmRun		run = {0};
	MemoryContext context;
	MemoryContext old;
	Datum	   *elems;
	bool	   *nulls;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(LLMGW_ARG_PROMPT))
		return (Datum) 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway batch",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	batch.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	batch.spec = llmgw_args_read(fcinfo, context);
	batch.row_context = AllocSetContextCreate(context, "llm_gateway row",
											  ALLOCSET_DEFAULT_SIZES);
	run.max_in_flight = read_concurrency(fcinfo);

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(LLMGW_ARG_PROMPT), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, &nulls, &batch.n);
	batch.items = MemoryContextAllocHuge(context, sizeof(BatchItem) * Max(batch.n, 1));
	for (int i = 0; i < batch.n; i++)
	{
		memset(&batch.items[i], 0, sizeof(BatchItem));
		batch.items[i].prompt = nulls[i] ? NULL : DatumGetTextPP(elems[i]);
		batch.items[i].leader = i;
	}
	if (batch.spec->cache == LLMGW_CACHE_AUTO || batch.spec->cache == LLMGW_CACHE_ON)
		find_leaders(&batch);

	/* below a context of its own, which the engine empties on an error */
	run.context = AllocSetContextCreate(context, "llm_gateway run",
										ALLOCSET_SMALL_SIZES);
	run.next = next_item;
	run.done = done_item;
	run.arg = &batch;
	llmgw_loop_expect_connections(Min(run.max_in_flight, batch.n));
	llmgw_engine_run(&run);
	emit(&batch);

	if (batch.cut > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%d of %d answers were cut by a token limit", batch.cut, batch.n),
				 errhint("They are the rows with finish_reason 'length'. Raise max_tokens, or ask for shorter answers.")));
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
