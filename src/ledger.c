/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  The makers of calls tell the ledger; see ledger.h.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "compat.h"
#include "guc.h"
#include "ledger_record.h"

#define END_ROOM		LLMGW_RECORD_SIZE(LLMGW_MAX_END)

static const char *const operation_names[] = {
	"complete", "chat", "json", "stream", "embed", "classify", "probe"
};
static const char *const status_names[] = {
	"ok", "error", "cached", "cancelled", "unknown", "rejected"
};
static const char *const source_names[] = {
	"none", "estimate", "usage"
};

StaticAssertDecl(lengthof(operation_names) == LLMGW_NOPERATIONS, "operations");
StaticAssertDecl(lengthof(status_names) == LLMGW_NSTATUSES, "statuses");
StaticAssertDecl(lengthof(source_names) == LLMGW_NSOURCES, "cost sources");

/* requests of this process that were noted and have not ended */
static int	noted = 0;

/* one of them could not be ended: the worker must do it */
static bool end_failed = false;

const char *
llmgw_operation_name(LlmOperation operation)
{
	return operation_names[operation];
}

const char *
llmgw_status_name(LlmStatus status)
{
	return status_names[status];
}

const char *
llmgw_cost_source_name(LlmCostSource source)
{
	return source_names[source];
}

/* Warns, once in a session, when nobody will book what it does. */
static void
warn_without_worker(LlmSpoolShared *spool)
{
	static bool warned = false;

	if (warned || !IsPostmasterEnvironment || pg_atomic_read_u32(&spool->no_worker) == 0)
		return;
	warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("no background worker could be started to write the ledger of llm_gateway"),
			 errdetail("Calls are kept in the spool until there is one."),
			 errhint("Raise max_worker_processes and restart the server.")));
}

void
llmgw_ledger_open(const LlmConfig *config)
{
	LlmSpoolShared *spool = llmgw_spool_open();

	llmgw_spool_want_worker(spool);
	warn_without_worker(spool);
}

static void
append_text(LlmLedgerEntry *entry, int64 request_id, LlmRecordType type, const char *text)
{
	Size		len = strlen(text);
	char	   *reason = llmgw_spool_reserve(LLMGW_RECORD_SIZE(len));

	if (reason == NULL &&
		!llmgw_spool_append(type, request_id, text, (uint32) len, &entry->end))
		reason = psprintf("%s", strerror(errno));
	if (reason != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_DISK_FULL),
				 errmsg("the %s could not be recorded: %s",
						type == LLMGW_RECORD_PROMPT ? "prompt" : "response", reason),
				 errdetail("All else about the request is.")));
}

/* For records that are written while nothing is being aborted. */
static StringInfo
note_buffer(void)
{
	static StringInfoData buf = {0};

	if (buf.data == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		initStringInfo(&buf);
		MemoryContextSwitchTo(old);
	}
	resetStringInfo(&buf);
	return &buf;
}

char *
llmgw_ledger_note(LlmLedgerEntry *entry, int64 request_id, const LlmRequestInfo *request,
				  const LlmAttemptInfo *attempt, const LlmOutcome *previous,
				  const char *prompt)
{
	StringInfo	buf = note_buffer();
	LlmNote		note = {0};
	Size		room;
	char	   *reason;

	Assert(!entry->ended && attempt->ncharged <= LLMGW_MAX_CHARGED);
	note.owner = llmgw_spool_owner();
	note.request = *request;
	note.attempt = *attempt;
	note.has_previous = previous != NULL;
	if (previous != NULL)
		note.previous = *previous;
	llmgw_note_encode(buf, &note);

	/* first, as it may raise; one that no note follows is forgotten */
	if (prompt != NULL && !entry->noted)
		append_text(entry, request_id, LLMGW_RECORD_PROMPT, prompt);
	room = LLMGW_RECORD_SIZE(buf->len) + (entry->noted ? 0 : END_ROOM);
	reason = llmgw_spool_reserve(room);
	if (reason != NULL)
		return reason;
	if (!llmgw_spool_append(LLMGW_RECORD_NOTE, request_id, buf->data, buf->len, &entry->end))
	{
		reason = psprintf("the spool of the ledger cannot be written: %s", strerror(errno));
		if (!entry->noted)
			llmgw_spool_release(END_ROOM);
		return reason;
	}
	if (!entry->noted)
	{
		LlmSpoolShared *spool = llmgw_spool_open();

		entry->noted = true;
		noted++;

		/* so that it is made durable while the call is under way */
		llmgw_spool_want_worker(spool);
		llmgw_spool_wake_worker(spool, false);
	}
	return NULL;
}

void
llmgw_ledger_response(LlmLedgerEntry *entry, int64 request_id, const char *response)
{
	if (entry->noted && !entry->ended)
		append_text(entry, request_id, LLMGW_RECORD_RESPONSE, response);
}

bool
llmgw_ledger_keep(LlmLedgerEntry *entry, int64 request_id, const LlmKeep *keep)
{
	StringInfoData buf;
	bool		kept;

	/* one that cache_size has no room for would only drive out the others */
	if (!entry->noted || entry->ended || llmgw_cache_size == 0 ||
		llmgw_keep_size(keep) > LLMGW_MAX_KEPT ||
		(int64) llmgw_keep_size(keep) + LLMGW_KEPT_ROW > (int64) llmgw_cache_size * 1024)
		return false;
	initStringInfo(&buf);
	llmgw_keep_encode(&buf, keep);
	kept = llmgw_spool_reserve_spare(LLMGW_RECORD_SIZE(buf.len)) &&
		llmgw_spool_append(LLMGW_RECORD_KEEP, request_id, buf.data, buf.len, &entry->end);
	pfree(buf.data);
	return kept;
}

/*
 * In a buffer that is never too small.  When the system refuses the write, the
 * request is left to the worker, as those of a dead process are.
 */
static void
end_noted(LlmLedgerEntry *entry, int64 request_id, const LlmEnd *end)
{
	static char data[LLMGW_MAX_END];
	StringInfoData buf = {.data = data,.maxlen = LLMGW_MAX_END};
	Size		used;

	llmgw_end_encode(&buf, end);
	Assert(buf.data == data && buf.len < LLMGW_MAX_END);
	used = LLMGW_RECORD_SIZE(buf.len);
	entry->ended = true;
	noted--;
	if (llmgw_spool_append(LLMGW_RECORD_END, request_id, data, buf.len, &entry->end))
		llmgw_spool_release(END_ROOM - used);
	else
	{
		/* the place is lost; the worker needs the same room for its END */
		llmgw_spool_release(-(uint64) used);
		end_failed = true;
	}
	if (end_failed && noted == 0)
	{
		llmgw_spool_renew_owner();
		end_failed = false;
	}
}

/* A request that was refused before anything was sent. */
static void
end_refused(LlmLedgerEntry *entry, int64 request_id, const LlmEnd *end)
{
	StringInfo	buf = note_buffer();
	char	   *reason;

	entry->ended = true;
	llmgw_end_encode(buf, end);
	reason = llmgw_spool_reserve(LLMGW_RECORD_SIZE(buf->len));
	if (reason != NULL)
		pfree(reason);
	else
		(void) llmgw_spool_append(LLMGW_RECORD_END, request_id, buf->data, buf->len,
								  &entry->end);
}

void
llmgw_ledger_end(LlmLedgerEntry *entry, int64 request_id, const LlmRequestInfo *request,
				 const LlmOutcome *last, const LlmResult *result)
{
	LlmEnd		end;
	LlmSpoolShared *spool = llmgw_spool_open();

	if (entry->ended)
		return;
	memset(&end, 0, sizeof(end));
	end.has_last = last != NULL;
	if (last != NULL)
		end.last = *last;
	end.result = *result;
	if (entry->noted)
		end_noted(entry, request_id, &end);
	else
	{
		end.has_request = true;
		end.request = *request;
		end_refused(entry, request_id, &end);
	}
	llmgw_spool_want_worker(spool);
	llmgw_spool_wake_worker(spool, false);
}

/* Whether this session itself holds a lock that the worker would wait for. */
static bool
in_the_way(const LlmConfig *config)
{
	static const char *const tables[] = {
		"llm_requests", "llm_attempts", "llm_daily_spend", "_llm_budget_spend",
		"_llm_spool_position", "_llm_spool_carried", "llm_cache"
	};
	LOCKTAG		tag;

	if (TransactionIdIsValid(config->creator) &&
		TransactionIdIsCurrentTransactionId(config->creator))
		return true;
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, ExtensionRelationId, config->extension, 0);
	if (llmgw_lock_held_by_me(&tag, AccessExclusiveLock))
		return true;
	for (int i = 0; i < lengthof(tables); i++)
	{
		Oid			relid = get_relname_relid(tables[i], config->schema);

		SET_LOCKTAG_RELATION(tag, MyDatabaseId, relid);

		/* those that conflict with RowExclusiveLock */
		if (OidIsValid(relid) && llmgw_lock_held_by_me(&tag, ShareLock))
			return true;
	}
	return false;
}

void
llmgw_ledger_wait(const LlmConfig *config, uint64 end)
{
	static LocalTransactionId warned = InvalidLocalTransactionId;
	static uint64 stalled_at = PG_UINT64_MAX;
	LlmSpoolShared *spool;
	uint64		booked;
	bool		timed_out;

	if (!llmgw_ledger_sync || end == 0)
		return;
	spool = llmgw_spool_open();
	booked = pg_atomic_read_u64(&spool->booked);
	if (booked >= end)
		return;

	/* this transaction has waited once for what has not moved since */
	if (booked == stalled_at && warned == llmgw_my_lxid())
		return;

	/* a worker of ours does not wait for another */
	if (MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry->bgw_library_name, "llm_gateway") == 0)
		return;
	if (in_the_way(config))
	{
		llmgw_spool_wake_worker(spool, true);
		return;
	}
	if (llmgw_spool_wait(end, llmgw_ledger_sync_timeout, &timed_out) || !timed_out)
		return;
	stalled_at = pg_atomic_read_u64(&spool->booked);
	if (warned != llmgw_my_lxid())
	{
		warned = llmgw_my_lxid();
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("the call is not in the ledger yet"),
				 errdetail("The worker did not write it within %d ms (llm_gateway.ledger_sync_timeout); it is in the spool and will be.",
						   llmgw_ledger_sync_timeout),
				 errhint("See llm_worker_status.")));
	}
}
