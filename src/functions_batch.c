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
#include "executor/tuptable.h"
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
	int			next;			/* who shares the same answer, too; 0: none */
	int64		request_id;		/* of one that shares */
	MinimalTuple row;			/* from when its call is done until it and its
								 * followers are out; NULL otherwise */
} BatchItem;

typedef struct Batch
{
	LlmSpec    *spec;
	uint64		generation;		/* of its configuration */
	int			n;
	BatchItem  *items;
	int			started;		/* items before it have been started */
	int			emitted;		/* rows before it are in the tuplestore */
	int			cut;			/* answers cut by a token limit */
	uint64		recorded;		/* end of their records in the ledger */
	Tuplestorestate *store;
	MemoryContext context;		/* of all this; and of rows that wait */
	MemoryContext scratch;		/* for one row; reset after each */
	TupleTableSlot *virtual_slot;	/* to form a row */
	TupleTableSlot *minimal_slot;	/* to put one into the tuplestore */
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

int *
llmgw_find_equal(text *const *texts, int n)
{
	int		   *first = MemoryContextAllocHuge(CurrentMemoryContext, sizeof(int) * Max(n, 1));
	HASHCTL		ctl = {0};
	HTAB	   *seen;

	ctl.keysize = sizeof(text *);
	ctl.entrysize = sizeof(PromptEntry);
	ctl.hash = prompt_hash;
	ctl.match = prompt_match;
	ctl.hcxt = CurrentMemoryContext;
	seen = hash_create("llm_gateway prompts", n, &ctl,
					   HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
	for (int i = 0; i < n; i++)
	{
		PromptEntry *entry;
		bool		found;

		first[i] = i;
		if (texts[i] == NULL)
			continue;
		entry = hash_search(seen, &texts[i], HASH_ENTER, &found);
		if (!found)
			entry->item = i;
		first[i] = entry->item;
	}
	hash_destroy(seen);
	return first;
}

/* Finds the prompts that are the same: the first of them leads. */
static void
find_leaders(Batch *batch)
{
	text	  **prompts = MemoryContextAllocHuge(CurrentMemoryContext,
												 sizeof(text *) * Max(batch->n, 1));
	int		   *first;

	for (int i = 0; i < batch->n; i++)
		prompts[i] = batch->items[i].prompt;
	first = llmgw_find_equal(prompts, batch->n);
	for (int i = batch->n - 1; i >= 0; i--)
	{
		BatchItem  *leader = &batch->items[first[i]];

		batch->items[i].leader = first[i];
		if (first[i] == i)
			continue;
		batch->items[i].next = leader->next;
		leader->next = i;
		leader->followers++;
	}
	pfree(first);
	pfree(prompts);
}

/* The columns of a row that say that it shares another's answer. */
static void
mark_shared(Datum *values, bool *nulls, int64 request_id)
{
	bool		answered = nulls[1 + LLMGW_DETAIL_ERROR_CLASS];

	values[1 + LLMGW_DETAIL_CACHED] = BoolGetDatum(answered);
	values[1 + LLMGW_DETAIL_REQUEST_ID] = Int64GetDatum(request_id);
	values[1 + LLMGW_DETAIL_ATTEMPTS] = Int32GetDatum(0);
	for (int i = LLMGW_DETAIL_INPUT_TOKENS; i <= LLMGW_DETAIL_REASONING_TOKENS; i++)
		values[1 + i] = Int32GetDatum(0);
	values[1 + LLMGW_DETAIL_ESTIMATED_USD] = llmgw_nano_to_numeric(0);
	values[1 + LLMGW_DETAIL_COST_USD] = llmgw_nano_to_numeric(0);
	nulls[1 + LLMGW_DETAIL_ESTIMATED_USD] = nulls[1 + LLMGW_DETAIL_COST_USD] = false;
}

/* A row with its index and nothing else, ready to be filled. */
static TupleTableSlot *
empty_row(Batch *batch, int i)
{
	TupleTableSlot *slot = batch->virtual_slot;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, sizeof(bool) * (1 + LLMGW_NDETAIL));
	slot->tts_values[0] = Int32GetDatum(i + 1);
	slot->tts_isnull[0] = false;
	return slot;
}

/*
 * Puts the rows that are next in order and have their answer.  A row that
 * shares an answer, which was paid once, is made from its leader's.
 */
static void
emit(Batch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->scratch);

	for (; batch->emitted < batch->n; batch->emitted++)
	{
		int			i = batch->emitted;
		BatchItem  *item = &batch->items[i];
		BatchItem  *leader = &batch->items[item->leader];
		TupleTableSlot *slot;

		if (item->prompt == NULL)
			slot = ExecStoreVirtualTuple(empty_row(batch, i));
		else if (leader->row == NULL)
			break;
		else
		{
			ExecStoreMinimalTuple(leader->row, batch->minimal_slot, false);
			slot = batch->minimal_slot;
		}
		if (item->prompt != NULL && leader != item)
		{
			slot_getallattrs(slot);
			slot = empty_row(batch, i);
			for (int c = 1; c <= LLMGW_NDETAIL; c++)
			{
				slot->tts_values[c] = batch->minimal_slot->tts_values[c];
				slot->tts_isnull[c] = batch->minimal_slot->tts_isnull[c];
			}
			mark_shared(slot->tts_values, slot->tts_isnull, item->request_id);
			ExecStoreVirtualTuple(slot);
			leader->followers--;
		}
		tuplestore_puttupleslot(batch->store, slot);

		ExecClearTuple(batch->minimal_slot);
		if (leader->row != NULL && leader->followers == 0)
		{
			pfree(leader->row);
			leader->row = NULL;
		}
		MemoryContextReset(batch->scratch);
	}
	MemoryContextSwitchTo(old);
}

bool
llmgw_batch_refresh(LlmSpec **spec, uint64 *generation, MemoryContext context)
{
	LlmConfig  *config = llmgw_config_get();
	const LlmPriority *priority;
	const LlmTier *min_tier;
	LlmSpec    *fresh;

	if (config->generation == *generation)
		return false;
	fresh = MemoryContextAlloc(context, sizeof(LlmSpec));
	*fresh = **spec;
	llmgw_config_pin(config, context);
	fresh->config = config;

	/* one that is gone counts as it was */
	priority = llmgw_config_priority(config, (*spec)->priority->name);
	if (priority != NULL)
		fresh->priority = priority;
	min_tier = (*spec)->min_tier ? llmgw_config_tier(config, (*spec)->min_tier->name) : NULL;
	if (min_tier != NULL)
		fresh->min_tier = min_tier;
	*spec = fresh;
	*generation = config->generation;
	return true;
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
		(void) llmgw_batch_refresh(&batch->spec, &batch->generation, batch->context);
		call = llmgw_call_create(run->context, batch->spec, "");
		call->owner = item;
		if (VARSIZE_ANY_EXHDR(item->prompt) == 0)
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

/* Requests of their own, for the ledger, of those that share the call's outcome. */
static void
record_followers(Batch *batch, const LlmCall *call, const BatchItem *leader)
{
	for (int i = leader->next; i != 0; i = batch->items[i].next)
	{
		uint64		end;

		batch->items[i].request_id = llmgw_next_request_id();
		end = llmgw_call_record_shared(call, batch->items[i].request_id);
		batch->recorded = Max(batch->recorded, end);
	}
}

static void
done_item(LlmRun *run, LlmCall *call)
{
	Batch	   *batch = run->arg;
	BatchItem  *item = call->owner;

	TupleTableSlot *slot;
	MemoryContext old;

	if (call->error == LLMGW_OK && call->finish_reason != NULL &&
		strcmp(call->finish_reason, "length") == 0)
		batch->cut++;
	batch->recorded = Max(batch->recorded, call->entry.end);
	record_followers(batch, call, item);

	/* only the row is kept: it may have to wait for a slow one before it */
	old = MemoryContextSwitchTo(batch->scratch);
	slot = empty_row(batch, item - batch->items);
	llmgw_detail_row(call, slot->tts_values + 1, slot->tts_isnull + 1);
	ExecStoreVirtualTuple(slot);
	MemoryContextSwitchTo(batch->context);
	item->row = ExecCopySlotMinimalTuple(slot);
	ExecClearTuple(slot);
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->scratch);
	llmgw_call_free(call);
	emit(batch);
}

Datum
llmgw_sql_complete_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
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
	batch.context = context;
	batch.store = rsinfo->setResult;
	batch.spec = llmgw_args_read(fcinfo, context);
	batch.generation = batch.spec->config->generation;
	batch.scratch = AllocSetContextCreate(context, "llm_gateway row",
										  ALLOCSET_DEFAULT_SIZES);
	batch.virtual_slot = MakeSingleTupleTableSlot(rsinfo->setDesc, &TTSOpsVirtual);
	batch.minimal_slot = MakeSingleTupleTableSlot(rsinfo->setDesc, &TTSOpsMinimalTuple);
	run.max_in_flight = llmgw_args_concurrency(fcinfo, ARG_MAX_CONCURRENCY);

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
	llmgw_ledger_wait(batch.spec->config, batch.recorded);

	if (batch.cut > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%d of %d answers were cut by a token limit", batch.cut, batch.n),
				 errhint("They are the rows with finish_reason 'length'. Raise max_tokens, or ask for shorter answers.")));
	ExecDropSingleTupleTableSlot(batch.virtual_slot);
	ExecDropSingleTupleTableSlot(batch.minimal_slot);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
