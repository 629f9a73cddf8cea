/*-------------------------------------------------------------------------
 *
 * ledger_book.c
 *	  Books the spool's records: for the database's worker.
 *
 * A step reads records (ledger_source.c), and books the requests that ended
 * together with the position behind them, in one transaction.  If that fails,
 * the requests are still there, so the next step tries the same again.
 *
 * A request that nobody ends: the owner of a request of the running server may
 * be gone.  Once all that it wrote is read, the worker writes an END for it.
 * In an old generation everything that is still open at its end is booked at
 * once.  The status is unknown, the cost what was expected.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "storage/spin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "guc.h"
#include "ledger_events.h"
#include "ledger_retain.h"
#include "ledger_source.h"
#include "timing.h"

/* owners are looked for no more often */
#define OWNERS_MS		100

/* A prompt whose first attempt does not follow is of a request never sent. */
#define PROMPT_MS		10000

/* A slow request is carried over when it holds back more than that. */
#define MAX_LAG			UINT64CONST(0x4000000)
/* what is carried over at once, if not one request is larger */
#define CARRY_BYTES		(16 * 1024 * 1024)
#define MAX_CARRIED		(256 * 1024 * 1024)

#define END_ROOM		LLMGW_RECORD_SIZE(LLMGW_MAX_END)

struct LlmBook
{
	MemoryContext context;
	MemoryContext step_context; /* reset after each step */
	LlmSpoolShared *spool;
	LlmTables  *tables;
	LlmSource	source;
	int64		retained;		/* see llmgw_retain() */
	LlmKeptBytes kept;
	LlmInstant	owners_checked;
	uint64		synced;			/* before it, all is durable or booked */
};

LlmBook *
llmgw_book_open(MemoryContext context, LlmSpoolShared *spool)
{
	MemoryContext own = AllocSetContextCreate(context, "llm_gateway book",
											  ALLOCSET_DEFAULT_SIZES);
	LlmBook    *book = MemoryContextAllocZero(own, sizeof(LlmBook));

	book->context = own;
	book->step_context = AllocSetContextCreate(own, "llm_gateway book step",
											   ALLOCSET_DEFAULT_SIZES);
	book->spool = spool;
	book->tables = llmgw_tables_create(own);
	book->retained = PG_INT64_MIN;
	llmgw_source_init(&book->source, own, spool, book->tables);
	return book;
}

void
llmgw_book_close(LlmBook *book)
{
	llmgw_source_close(&book->source);
	MemoryContextDelete(book->context);
}

int
llmgw_book_open_requests(const LlmBook *book)
{
	return book->source.open != NULL ? llmgw_open_count(book->source.open) : 0;
}

/* Writes an END in the place of an owner that is gone, in the room it had. */
static bool
write_end(LlmBook *book, LlmOpenRequest *request)
{
	StringInfoData buf;
	LlmEnd		end;
	uint64		used;
	uint64		at;

	llmgw_spool_open();
	llmgw_facts_unknown(request, &end);
	initStringInfo(&buf);
	llmgw_end_encode(&buf, &end);
	used = LLMGW_RECORD_SIZE(buf.len);
	if (llmgw_spool_append(LLMGW_RECORD_END, request->id, buf.data, buf.len, &at))
	{
		llmgw_spool_release(END_ROOM - used);
		request->end_written = true;
		return true;
	}

	/* the place is lost; the next try needs the same room */
	if (!request->complained)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write the end of request " INT64_FORMAT " to the ledger's spool: %m",
						request->id)));
	request->complained = true;
	llmgw_spool_release(-used);
	return false;
}

/*
 * Looks after one open request: whether somebody still is to end it.  True:
 * an END was written.
 */
static bool
check_owner(LlmBook *book, LlmOpenRequest *request, LlmInstant now)
{
	if (!request->owner_known &&
		!(request->owner_known = llmgw_facts_owner(request, &request->owner)))
	{
		if (now - request->seen >= PROMPT_MS * 1000)
			llmgw_source_end(&book->source, request);
		return false;
	}
	if (request->end_written || llmgw_spool_owner_lives(request->owner))
		return false;
	if (request->gone_at == 0)
		request->gone_at = pg_atomic_read_u64(&book->spool->written);
	return llmgw_spool_reader_offset(book->source.reader) >= request->gone_at &&
		write_end(book, request);
}

/* True: an END was written. */
static bool
check_owners(LlmBook *book)
{
	LlmInstant	now = llmgw_now();
	LlmOpenRequests *open = book->source.open;
	dlist_head *lists[] = {&open->by_offset, &open->carried};
	bool		written = false;

	if (now - book->owners_checked < OWNERS_MS * 1000)
		return false;
	book->owners_checked = now;
	for (int i = 0; i < lengthof(lists); i++)
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, lists[i])
		{
			LlmOpenRequest *request = dlist_container(LlmOpenRequest, node, iter.cur);

			written |= check_owner(book, request, now);
		}
		MemoryContextReset(book->step_context);
	}
	return written;
}

/*
 * The requests to carry over: when the oldest holds back too much, all that are
 * in the older half.
 */
static int
choose_carried(LlmSource *source, LlmOpenRequest ***chosen)
{
	uint64		offset = llmgw_spool_reader_offset(source->reader);
	uint64		lag = Min((uint64) llmgw_ledger_buffer * 1024 / 2, MAX_LAG);
	Size		bytes = 0;
	int			n = 0;
	int			size = 64;
	dlist_iter	iter;

	*chosen = NULL;
	if (!source->live || llmgw_open_oldest(source->open, offset) + lag >= offset)
		return 0;
	*chosen = palloc(sizeof(LlmOpenRequest *) * size);
	dlist_foreach(iter, &source->open->by_offset)
	{
		LlmOpenRequest *request = dlist_container(LlmOpenRequest, node, iter.cur);

		if (request->first + lag / 2 >= offset || request->bytes > MAX_CARRIED ||
			(n > 0 && bytes + request->bytes > CARRY_BYTES))
			break;
		if (n == size)
			*chosen = repalloc_huge(*chosen, sizeof(LlmOpenRequest *) * (size *= 2));
		(*chosen)[n++] = request;
		bytes += request->bytes;
	}
	return n;
}

/* Forgets those requests whose records the tables keep for it. */
static void
delete_carried(LlmSource *source)
{
	int64	   *ids = MemoryContextAllocHuge(CurrentMemoryContext,
											 sizeof(int64) * Max(source->nended, 1));
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &source->ended)
	{
		LlmOpenRequest *request = dlist_container(LlmOpenRequest, node, iter.cur);

		if (request->carried_until > 0)
			ids[n++] = request->id;
	}
	if (n > 0)
		llmgw_carried_delete(source->tables, source->gen.id, ids, n);
}

static void
log_posted(const LlmPosted *posted)
{
	if (posted->foreign > 0)
		ereport(LOG,
				(errmsg("discarded %d requests of an extension \"llm_gateway\" that is gone, with its ledger",
						posted->foreign),
				 errdetail("They cost %s USD; one of them is %lld.",
						   DatumGetCString(DirectFunctionCall1(numeric_out,
															   llmgw_nano_to_numeric(posted->foreign_cost))),
						   (long long) posted->example)));
	if (posted->duplicates > 0)
		ereport(WARNING,
				(errmsg("%d requests were in the ledger already, or kept out of it by a trigger", posted->duplicates),
				 errdetail("They were left as they are; one of them is %lld.", (long long) posted->example)));
	if (posted->damaged > 0)
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("%d requests could not be booked: their records are damaged or incomplete",
						posted->damaged),
				 errdetail("One of them is %lld.", (long long) posted->example)));
}

/* After commit: nothing here raises. */
static void
apply(LlmBook *book, const LlmPosition *position, const LlmPosted *posted,
	  LlmOpenRequest **carried, int ncarried)
{
	LlmSpoolShared *spool = book->spool;
	LlmSource  *source = &book->source;

	source->position = *position;
	for (int i = 0; i < ncarried; i++)
		llmgw_open_carried(source->open, carried[i], position->read_offset);
	llmgw_source_booked(source);
	llmgw_kept_add(&book->kept, posted->kept);
	pg_atomic_fetch_add_u64(&spool->requests_booked, posted->booked);
	pg_atomic_fetch_add_u64(&spool->records_discarded, posted->foreign + posted->damaged);
	if (posted->booked > 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		SpinLockAcquire(&spool->mutex);
		spool->last_booked = now;
		SpinLockRelease(&spool->mutex);
	}
}

/*
 * What is to be stored when all that ended is booked, and these are carried
 * over: the first requests of the list.
 */
static void
next_position(LlmSource *source, LlmOpenRequest **carried, int ncarried, bool done,
			  LlmPosition *position)
{
	memset(position, 0, sizeof(*position));
	position->done = done;
	position->read_offset = llmgw_spool_reader_offset(source->reader);
	if (ncarried == 0)
		position->oldest_open = llmgw_open_oldest(source->open, position->read_offset);
	else
	{
		dlist_head *list = &source->open->by_offset;
		dlist_node *last = &carried[ncarried - 1]->node;

		position->oldest_open = !dlist_has_next(list, last) ? position->read_offset :
			dlist_container(LlmOpenRequest, node, dlist_next_node(list, last))->first;
	}
}

/* Books what has ended.  False: it has to be tried again. */
static bool
book_ended(LlmBook *book, bool done)
{
	LlmSource  *source = &book->source;
	LlmPosition position;
	LlmPosted	posted;
	LlmOpenRequest **carried;
	int			ncarried;
	bool		installed;

	ncarried = choose_carried(source, &carried);
	next_position(source, carried, ncarried, done, &position);
	if (source->nended == 0 && !done && ncarried == 0 &&
		position.oldest_open < source->position.oldest_open + LLMGW_SEGMENT_SIZE)
		return true;			/* only notes: they may be read again */

	installed = llmgw_tables_begin(book->tables);
	if (llmgw_tables_extension(book->tables) != source->extension)
	{
		/*
		 * What was read so far belonged to the former one, or to none, and is
		 * booked or discarded.  This one's ledger is empty.
		 */
		source->extension = llmgw_tables_extension(book->tables);
		source->position.stored = false;
	}
	if (installed)
	{
		/* first, so that of two workers one gets no further */
		source->stale = true;
		llmgw_position_write(book->tables, source->gen.id, &source->position, &position);
		source->stale = false;
	}
	llmgw_post(book->tables, &source->ended, source->nended, &posted);
	if (installed)
	{
		if (ncarried > 0)
			llmgw_carried_write(book->tables, source->gen.id, position.read_offset,
								carried, ncarried);
		delete_carried(source);
		if (done)
			llmgw_position_clean(book->tables);
	}
	llmgw_tables_commit(book->tables);
	MemoryContextSwitchTo(book->step_context);
	if (posted.again)
		return false;
	position.stored = installed;
	apply(book, &position, &posted, carried, ncarried);
	log_posted(&posted);
	return true;
}

/* Tells callers how far it is, and removes what nobody needs any more. */
static void
publish(LlmBook *book)
{
	LlmSpoolShared *spool = book->spool;
	LlmSource  *source = &book->source;
	uint64		booked = llmgw_spool_reader_offset(source->reader);
	uint64		needed = source->position.oldest_open;
	uint64		needed_before = pg_atomic_read_u64(&spool->needed);

	pg_atomic_write_u64(&spool->requests_open, llmgw_open_count(source->open));
	if (!source->live)
		return;
	if (booked > pg_atomic_read_u64(&spool->booked))
	{
		pg_atomic_write_u64(&spool->booked, booked);
		ConditionVariableBroadcast(&spool->changed);
	}
	if (needed > needed_before)
	{
		pg_atomic_write_u64(&spool->needed, needed);
		if (needed / LLMGW_SEGMENT_SIZE > needed_before / LLMGW_SEGMENT_SIZE)
			llmgw_segments_remove(spool->database, source->gen, needed);
	}
}

/*
 * Makes the next segment before a call has to.  When there is no room for it,
 * the call that needs it says so.
 */
static void
keep_room(LlmBook *book)
{
	LlmSpoolShared *spool = book->spool;
	uint64		wanted = pg_atomic_read_u64(&spool->promised) + LLMGW_SEGMENT_SIZE / 2;

	if (pg_atomic_read_u64(&spool->allocated) < wanted)
		(void) llmgw_spool_allocate(spool, wanted);
}

static LlmBookStep
step(LlmBook *book)
{
	LlmSource  *source = &book->source;
	LlmBookStep state;
	bool		done;

	if (!llmgw_source_next(source))
		return LLMGW_BOOK_IDLE;
	state = llmgw_source_read(source);
	done = !source->live && state == LLMGW_BOOK_IDLE;
	if (done)
		llmgw_source_end_all(source);
	if (!book_ended(book, done))
		return LLMGW_BOOK_MORE;
	publish(book);
	if (done)
	{
		llmgw_source_finish(source);
		return LLMGW_BOOK_MORE;
	}
	if (source->live)
	{
		keep_room(book);
		if (check_owners(book))
			return LLMGW_BOOK_MORE;
	}
	return state;
}

LlmBookStep
llmgw_book_step(LlmBook *book)
{
	MemoryContext caller = MemoryContextSwitchTo(book->step_context);
	LlmBookStep state;

	Assert(!IsTransactionState());
	MemoryContextReset(book->step_context); /* of one that failed */
	state = step(book);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(book->step_context);
	return state;
}

/*
 * A note matters as long as its request is not booked.  It outlives the server
 * without this, but not the machine.
 */
void
llmgw_book_sync(LlmBook *book)
{
	LlmSpoolShared *spool = book->spool;
	uint64		written = pg_atomic_read_u64(&spool->written);
	uint64		writing;
	uint64		complete;

	if (written == book->synced)
		return;

	/* from here on some are still being written, and are for the next time */
	writing = llmgw_spool_oldest_write(spool);
	complete = Min(written, writing);
	if (pg_atomic_read_u64(&spool->booked) < written ||
		pg_atomic_read_u64(&spool->requests_open) > 0)
	{
		uint64		needed = pg_atomic_read_u64(&spool->needed);
		LlmGeneration gen;

		gen.id = pg_atomic_read_u64(&spool->id);
		pg_read_barrier();
		gen.salt = spool->salt;
		if (!llmgw_segments_sync(spool->database, gen, Max(book->synced, needed), written))
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not sync the ledger's spool: %m")));
	}
	book->synced = Max(book->synced, complete);
}

bool
llmgw_book_retain(LlmBook *book)
{
	MemoryContext caller = MemoryContextSwitchTo(book->step_context);
	bool		more;

	more = llmgw_retain_events(book->tables);
	more |= llmgw_retain(book->tables, &book->retained);
	more |= llmgw_retain_kept(book->tables, &book->kept);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(book->step_context);
	return more;
}

bool
llmgw_book_cache_full(const LlmBook *book)
{
	return llmgw_kept_too_many(&book->kept);
}

void
llmgw_book_events(LlmBook *book, const LlmBreakerEvent *events, int n)
{
	MemoryContext caller = MemoryContextSwitchTo(book->step_context);

	MemoryContextReset(book->step_context); /* of one that failed */
	llmgw_events_write(book->tables, events, n);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(book->step_context);
}

void
llmgw_book_leave(LlmBook *book)
{
	LlmSource  *source = &book->source;
	uint64		offset;

	if (source->stale || !source->live || source->reader == NULL || source->nended > 0 ||
		llmgw_book_open_requests(book) > 0)
		return;
	offset = llmgw_spool_reader_offset(source->reader);
	if (offset == pg_atomic_read_u64(&book->spool->written) &&
		offset == pg_atomic_read_u64(&book->spool->booked))
		llmgw_generation_mark(book->spool->database, source->gen, offset);
}
