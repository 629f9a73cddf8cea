/*-------------------------------------------------------------------------
 *
 * ledger_source.c
 *	  What the worker reads: the generations of a spool, one after another.
 *
 * Records of open requests are kept (ledger_open.c); with its END a request
 * moves to the list of those that ended, where it stays until it is booked.  A
 * full list is not added to, so a ledger that cannot be written does not fill
 * the memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lwlock.h"
#include "utils/memutils.h"

#include "ledger_source.h"
#include "shmem.h"

/* what a step books at most, and reads at most */
#define STEP_REQUESTS	2000
#define STEP_BYTES		(4 * 1024 * 1024)

void
llmgw_source_init(LlmSource *source, MemoryContext context, LlmSpoolShared *spool,
				  LlmTables *tables)
{
	memset(source, 0, sizeof(*source));
	source->context = context;
	source->spool = spool;
	source->tables = tables;
	dlist_init(&source->ended);
}

void
llmgw_source_close(LlmSource *source)
{
	if (source->reading == NULL)
		return;
	MemoryContextDelete(source->reading);
	source->reading = NULL;
	source->reader = NULL;
	source->open = NULL;
	dlist_init(&source->ended);
	source->nended = 0;
	source->ended_bytes = 0;
	source->stale = false;
}

/* What segments of the old generations that are not done take. */
static void
publish_old_bytes(LlmSource *source)
{
	uint64		bytes = 0;

	for (int i = source->next_old; i < source->nold; i++)
	{
		uint64		first;
		uint64		end;

		llmgw_segments_range(source->spool->database, source->old[i], &first, &end);
		bytes += end - first;
	}
	pg_atomic_write_u64(&source->spool->old_bytes, bytes);
}

/*
 * A generation is made and becomes the spool's own under the lock.  So of those
 * listed before the lock was seen free, each that is not the spool's is old.
 */
static void
list_generations(LlmSource *source)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	MemoryContext caller = MemoryContextSwitchTo(source->context);
	uint64		bytes;
	uint64		own;
	int			n = 0;

	source->old = llmgw_spool_generations(source->spool->database, &source->nold, &bytes);
	MemoryContextSwitchTo(caller);
	LWLockAcquire(lock, LW_SHARED);
	own = pg_atomic_read_u64(&source->spool->id);
	LWLockRelease(lock);
	for (int i = 0; i < source->nold; i++)
	{
		if (source->old[i].id != own)
			source->old[n++] = source->old[i];
	}
	source->nold = n;
	source->listed = true;
	publish_old_bytes(source);
}

/* Begins to read a generation where its position says. */
static void
open_source(LlmSource *source, LlmGeneration gen, bool live)
{
	MemoryContext context = AllocSetContextCreate(source->context, "llm_gateway spool source",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = CurrentMemoryContext;
	LlmPosition position = {0};
	LlmOpenRequests *open = llmgw_open_create(context);
	uint64		first;
	uint64		end;

	source->reading = context;
	source->stale = true;		/* until all of it is known */
	if (llmgw_tables_begin(source->tables))
	{
		llmgw_position_read(source->tables, gen.id, &position);
		if (!position.done)
			llmgw_carried_read(source->tables, gen.id, open);
	}
	llmgw_tables_commit(source->tables);
	MemoryContextSwitchTo(caller);

	llmgw_segments_range(source->spool->database, gen, &first, &end);

	/* what the last second before a crash wrote may not be on disk yet */
	if (!live)
		(void) llmgw_segments_sync(source->spool->database, gen,
								   Max(position.oldest_open, first), end);
	source->live = live;
	source->gen = gen;
	source->extension = llmgw_tables_extension(source->tables);
	source->position = position;
	source->begun = position.read_offset;
	source->open = open;
	source->reader = llmgw_spool_reader_open(context, source->spool->database, gen,
											 Max(position.oldest_open, first),
											 live ? source->spool : NULL);
	source->skipped = 0;
	source->stale = false;
}

void
llmgw_source_finish(LlmSource *source)
{
	LlmGeneration gen = source->gen;

	llmgw_source_close(source);
	source->next_old++;
	publish_old_bytes(source);
	llmgw_generation_remove(source->spool->database, gen);
}

bool
llmgw_source_next(LlmSource *source)
{
	if (source->stale)
		llmgw_source_close(source);
	if (!source->listed)
		list_generations(source);
	while (source->reading == NULL)
	{
		LlmGeneration gen;

		if (source->next_old < source->nold)
		{
			open_source(source, source->old[source->next_old], false);
			if (source->position.done)
				llmgw_source_finish(source);
			continue;
		}
		llmgw_spool_set_drained(source->spool);
		gen.id = pg_atomic_read_u64(&source->spool->id);
		if (gen.id == 0)
			return false;
		pg_read_barrier();
		gen.salt = source->spool->salt;
		open_source(source, gen, true);

		/* who began it counted the old ones, maybe before they were gone */
		publish_old_bytes(source);
	}
	return true;
}

static void
add_ended(LlmSource *source, LlmOpenRequest *request)
{
	dlist_push_tail(&source->ended, &request->node);
	source->nended++;
	source->ended_bytes += request->bytes + (request->end != NULL ? request->end->len : 0);
}

static void
take_record(LlmSource *source, const LlmSpoolRecord *record)
{
	if (record->type == LLMGW_RECORD_END)
	{
		LlmOpenRequest *request = llmgw_open_end(source->open, record);

		if (record->offset >= source->begun)
			add_ended(source, request);
		else
			llmgw_open_free(request);
	}
	else if ((record->type != LLMGW_RECORD_RESPONSE && record->type != LLMGW_RECORD_KEEP) ||
			 llmgw_open_find(source->open, record->request_id) != NULL)
		llmgw_open_add(source->open, record);
}

LlmBookStep
llmgw_source_read(LlmSource *source)
{
	Size		bytes = 0;
	uint64		skipped;
	LlmSpoolRead found = LLMGW_READ_RECORD;

	while (source->nended < STEP_REQUESTS && source->ended_bytes < STEP_BYTES && bytes < STEP_BYTES)
	{
		LlmSpoolRecord record;

		found = llmgw_spool_read(source->reader, &record);
		if (found != LLMGW_READ_RECORD)
			break;
		bytes += record.len;
		take_record(source, &record);
	}

	skipped = llmgw_spool_reader_skipped(source->reader);
	if (skipped != source->skipped)
	{
		ereport(LOG,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("skipped " UINT64_FORMAT " bytes of the ledger's spool that hold no record",
						skipped - source->skipped),
				 errdetail("They are before offset " UINT64_FORMAT " of spool %016llX of database %u.",
						   llmgw_spool_reader_offset(source->reader),
						   (unsigned long long) source->gen.id, source->spool->database)));
		source->skipped = skipped;
		pg_atomic_fetch_add_u64(&source->spool->records_discarded, 1);
	}
	return found == LLMGW_READ_END ? LLMGW_BOOK_IDLE :
		found == LLMGW_READ_PENDING ? LLMGW_BOOK_PENDING : LLMGW_BOOK_MORE;
}

/* Without a note nothing was sent. */
void
llmgw_source_end(LlmSource *source, LlmOpenRequest *request)
{
	const LlmRaw *raw = request->records;

	while (raw != NULL && raw->type != LLMGW_RECORD_NOTE)
		raw = raw->next;
	llmgw_open_remove(source->open, request);
	if (raw != NULL)
		add_ended(source, request);
	else
		llmgw_open_free(request);
}

static void
end_list(LlmSource *source, dlist_head *list)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, list)
		llmgw_source_end(source, dlist_container(LlmOpenRequest, node, iter.cur));
}

void
llmgw_source_end_all(LlmSource *source)
{
	end_list(source, &source->open->by_offset);
	end_list(source, &source->open->carried);
}

void
llmgw_source_booked(LlmSource *source)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &source->ended)
	{
		LlmOpenRequest *request = dlist_container(LlmOpenRequest, node, iter.cur);

		dlist_delete(&request->node);
		llmgw_open_free(request);
	}
	source->nended = 0;
	source->ended_bytes = 0;
}
