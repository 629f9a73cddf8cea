/*-------------------------------------------------------------------------
 *
 * ledger_post.c
 *	  Turns finished requests into rows of the ledger.
 *
 * A request is booked once because the position is written in the same
 * transaction.  Should its row be there nevertheless (somebody copied rows, or
 * files), it is left as it is, and neither attempts nor the day's spend are
 * booked: the rows of one request stay in step.
 *
 * Nothing in a record may keep the ledger from going on.  What is too large for
 * a row, or does not read, is left out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/procarray.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "ledger_post.h"

/* A row, with room for all else in it, must be smaller than MaxAllocSize. */
#define MAX_TEXTS		((Size) 900 * 1024 * 1024)

#define US_PER_MS		1000

/* Set while tags are read: what was raised last was raised by them. */
static bool reading_tags = false;

/* Microseconds in milliseconds; what is negative is not known. */
static void
put_ms(LlmRows *rows, int64 us)
{
	if (us < 0)
		llmgw_rows_null(rows);
	else
		llmgw_rows_int4(rows, (int32) Min(us / US_PER_MS, PG_INT32_MAX));
}

static void
put_raw(LlmRows *rows, const LlmRaw *raw)
{
	if (raw == NULL)
		llmgw_rows_null(rows);
	else
		llmgw_rows_text_len(rows, raw->data, raw->len);
}

/* In a subtransaction; false: it raised, and the log has it. */
static bool
try_jsonb(const char *text, int64 id, Datum *value)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool ok = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		*value = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		errcontext("tags of request " INT64_FORMAT ", which is booked without them", id);
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ok = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return ok;
}

/*
 * They were jsonb once, so they will be again.  A subtransaction for each would
 * be paid for nothing; it is for the second try, when a first has failed here.
 */
static void
put_tags(LlmRows *rows, const LlmFacts *facts, bool careful)
{
	Datum		value;

	if (facts->request.tags == NULL)
		llmgw_rows_null(rows);
	else if (!careful)
	{
		reading_tags = true;
		value = DirectFunctionCall1(jsonb_in, CStringGetDatum(facts->request.tags));
		reading_tags = false;
		llmgw_rows_jsonb(rows, value);
	}
	else if (try_jsonb(facts->request.tags, facts->id, &value))
		llmgw_rows_jsonb(rows, value);
	else
		llmgw_rows_null(rows);
}

static void
put_request(LlmRows *rows, const LlmFacts *facts, bool careful)
{
	const LlmRequestInfo *request = &facts->request;
	const LlmResult *result = &facts->result;
	const LlmRaw *prompt = facts->prompt;
	const LlmRaw *response = facts->response;
	int64		queue_us = result->queue_us;
	const char **budgets;
	int			nbudgets;

	if (queue_us < 0 && facts->nattempts > 0)
	{
		queue_us = 0;
		for (int i = 0; i < facts->nattempts; i++)
			queue_us = llmgw_sum(queue_us, Max(facts->attempts[i].info.queued_us, 0));
	}
	if (prompt != NULL && response != NULL && (Size) prompt->len + response->len > MAX_TEXTS)
		prompt = NULL;

	llmgw_rows_int8(rows, facts->id);
	llmgw_rows_time(rows, request->created_at);
	llmgw_rows_text(rows, llmgw_operation_name(request->operation));
	llmgw_rows_text(rows, request->role);
	llmgw_rows_oid(rows, request->role_oid);
	llmgw_rows_text(rows, request->application_name);
	if (request->query_id != 0)
		llmgw_rows_int8(rows, request->query_id);
	else
		llmgw_rows_null(rows);
	llmgw_rows_text(rows, request->task);
	llmgw_rows_text(rows, request->task_source);
	llmgw_rows_text(rows, request->priority);
	llmgw_rows_text(rows, facts->model_tier);
	llmgw_rows_text(rows, request->optimize);
	llmgw_rows_text(rows, request->requested_model);
	llmgw_rows_text(rows, facts->provider);
	llmgw_rows_text(rows, facts->model);
	llmgw_rows_text(rows, llmgw_status_name(result->status));
	llmgw_rows_text(rows, result->error != LLMGW_OK ? llmgw_error_class_name(result->error) : NULL);
	llmgw_rows_text(rows, result->finish_reason);
	llmgw_rows_int4(rows, result->attempts);
	llmgw_rows_bool(rows, result->fallback);
	llmgw_rows_int8(rows, facts->usage.input);
	llmgw_rows_int8(rows, facts->usage.cached_input);
	llmgw_rows_int8(rows, facts->usage.cache_write);
	llmgw_rows_int8(rows, facts->usage.output);
	llmgw_rows_int8(rows, facts->usage.reasoning);
	llmgw_rows_nano(rows, request->estimate);
	llmgw_rows_nano(rows, facts->cost);
	llmgw_rows_text(rows, llmgw_cost_source_name(facts->source));
	put_ms(rows, result->latency_us);
	put_ms(rows, result->ttft_us);
	put_ms(rows, queue_us);
	nbudgets = llmgw_facts_budgets(facts, &budgets);
	if (nbudgets > 0)
		llmgw_rows_texts(rows, budgets, nbudgets);
	else
		llmgw_rows_null(rows);
	put_tags(rows, facts, careful);
	if (request->has_hash)
		llmgw_rows_bytea(rows, request->prompt_hash, LLMGW_HASH_LEN);
	else
		llmgw_rows_null(rows);
	put_raw(rows, prompt);
	put_raw(rows, response);
	llmgw_rows_text(rows, result->passed_over);
	llmgw_rows_text(rows, result->passed_over_class != LLMGW_OK ?
					llmgw_error_class_name(result->passed_over_class) : NULL);
	llmgw_rows_text(rows, request->downgraded_by);
	llmgw_rows_text(rows, request->downgraded_from);
	llmgw_rows_next(rows);
}

static void
put_attempt(LlmRows *rows, int64 id, const LlmAttemptFacts *attempt)
{
	const LlmOutcome *outcome = &attempt->outcome;
	const char *error = NULL;
	const char *message = outcome->message;

	if (attempt->unknown)
	{
		error = "unknown";
		message = "the process or the server ended before the answer";
	}
	else if (outcome->cancelled)
		error = "cancelled";
	else if (outcome->error != LLMGW_OK)
		error = llmgw_error_class_name(outcome->error);

	llmgw_rows_int8(rows, id);
	llmgw_rows_int4(rows, attempt->info.number);
	llmgw_rows_text(rows, attempt->info.provider);
	llmgw_rows_text(rows, attempt->info.model);
	llmgw_rows_time(rows, attempt->info.started_at);
	put_ms(rows, outcome->latency_us);
	if (outcome->http_status != 0)
		llmgw_rows_int4(rows, outcome->http_status);
	else
		llmgw_rows_null(rows);
	llmgw_rows_text(rows, error);
	llmgw_rows_text(rows, message);
	llmgw_rows_int8(rows, outcome->usage.input);
	llmgw_rows_int8(rows, outcome->usage.cached_input);
	llmgw_rows_int8(rows, outcome->usage.cache_write);
	llmgw_rows_int8(rows, outcome->usage.output);
	llmgw_rows_nano(rows, outcome->cost);
	llmgw_rows_text(rows, llmgw_cost_source_name(outcome->source));
	llmgw_rows_next(rows);
}

/*
 * Marks those that are new.  What the statement returned is in the order of
 * the facts.
 */
static void
mark_booked(LlmFacts *facts, int nfacts, uint64 inserted)
{
	uint64		at = 0;

	for (int i = 0; i < nfacts; i++)
	{
		bool		isnull;

		if (inserted == nfacts)
			facts[i].booked = true;
		else if (at < inserted &&
				 DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[at], SPI_tuptable->tupdesc,
											 1, &isnull)) == facts[i].id)
		{
			facts[i].booked = true;
			at++;
		}
	}
}

static void
write_rows(LlmTables *tables, LlmFacts *facts, int nfacts, LlmPosted *posted)
{
	bool		careful = reading_tags;
	LlmRows    *rows = llmgw_rows_begin(tables, LLMGW_TABLE_REQUESTS);
	LlmSpend   *spend;
	LlmBudgetSums *sums;

	reading_tags = false;
	for (int i = 0; i < nfacts; i++)
		put_request(rows, &facts[i], careful);
	posted->booked = (int) llmgw_rows_insert(rows);
	mark_booked(facts, nfacts, posted->booked);

	rows = llmgw_rows_begin(tables, LLMGW_TABLE_ATTEMPTS);
	spend = llmgw_spend_begin();
	sums = llmgw_budget_sums_begin();
	for (int i = 0; i < nfacts; i++)
	{
		if (!facts[i].booked)
		{
			posted->duplicates++;
			posted->example = facts[i].id;
			continue;
		}
		for (int j = 0; j < facts[i].nattempts; j++)
			put_attempt(rows, facts[i].id, &facts[i].attempts[j]);
		llmgw_spend_add(spend, &facts[i]);
		llmgw_budget_sums_add(sums, &facts[i]);
	}
	llmgw_rows_insert(rows);
	llmgw_spend_write(spend, tables);
	llmgw_budget_sums_write(sums, tables);
	posted->kept = llmgw_keep_write(tables, facts, nfacts);
}

/*
 * Budgets of an extension that never was are not those that have their ids now,
 * nor are its answers made with this one's models.
 */
static void
forget_former(LlmFacts *facts)
{
	facts->keep = NULL;
	for (int i = 0; i < facts->nattempts; i++)
		facts->attempts[i].info.ncharged = 0;
}

/* One that the server forgot when it crashed was never committed. */
static bool
in_progress(TransactionId xid)
{
	return TransactionIdIsNormal(xid) &&
		TransactionIdPrecedes(xid, ReadNextTransactionId()) &&
		TransactionIdIsInProgress(xid);
}

/*
 * An extension whose creation was rolled back never was: the request belongs to
 * the one that is there.  Of a transaction so old that its outcome has been
 * forgotten, nothing is known.
 */
static bool
was_rolled_back(TransactionId xid)
{
	if (!TransactionIdIsNormal(xid) || in_progress(xid))
		return false;
	if (!TransactionIdPrecedes(xid, ReadNextTransactionId()))
		return true;
	return !TransactionIdPrecedes(xid, llmgw_oldest_clog_xid()) &&
		!TransactionIdDidCommit(xid);
}

void
llmgw_post(LlmTables *tables, dlist_head *requests, int n, LlmPosted *posted)
{
	Oid			extension = llmgw_tables_extension(tables);
	LlmFacts   *facts = MemoryContextAllocHuge(CurrentMemoryContext,
											   sizeof(LlmFacts) * Max(n, 1));
	int			nfacts = 0;
	dlist_iter	iter;

	memset(posted, 0, sizeof(*posted));
	dlist_foreach(iter, requests)
	{
		LlmOpenRequest *request = dlist_container(LlmOpenRequest, node, iter.cur);
		LlmFacts   *next = &facts[nfacts];

		Assert(nfacts < n);
		if (!llmgw_facts_read(request, next))
		{
			posted->damaged++;
			posted->example = request->id;
		}
		else if (next->request.extension == extension)
			nfacts++;
		else if (OidIsValid(extension) && was_rolled_back(next->request.creator))
		{
			forget_former(next);
			nfacts++;
		}
		else if (in_progress(next->request.creator))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the transaction that created the extension has not ended"),
					 errdetail("Request " INT64_FORMAT " was made in it.", request->id)));
		else
		{
			posted->foreign++;
			posted->example = request->id;
			posted->foreign_cost = llmgw_sum(posted->foreign_cost, Max(next->cost, 0));
		}
	}

	/*
	 * The creator may have committed after this transaction looked for the
	 * extension.  (Where there is one it is locked, and no other can come.)
	 */
	if (posted->foreign > 0 && llmgw_tables_appeared(tables))
		posted->again = true;
	else if (nfacts > 0)
		write_rows(tables, facts, nfacts, posted);
}
