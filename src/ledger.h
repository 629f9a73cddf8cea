/*-------------------------------------------------------------------------
 *
 * ledger.h
 *	  The books, as the makers of calls see them.
 *
 * A call tells the ledger of each attempt before it is sent, and of its end,
 * whatever ends it.  Both go to the spool (spool.h), from where the database's
 * worker books them: caller's rollback, cancel or death change nothing.
 *
 *		llmgw_ledger_open()		before anything: may refuse the call
 *		llmgw_ledger_note()		before each attempt: may refuse to send it
 *		llmgw_ledger_end()		once: cannot fail
 *		llmgw_ledger_wait()		before the function returns
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_H
#define LLMGW_LEDGER_H

#include "utils/timestamp.h"

#include "cost.h"
#include "errors.h"

#define LLMGW_HASH_LEN			16

/* longer ones are cut, at a character */
#define LLMGW_MAX_MESSAGE		300
#define LLMGW_MAX_FINISH_REASON	64
#define LLMGW_MAX_PASSED_OVER	200

/* budgets that one attempt can be charged to */
#define LLMGW_MAX_CHARGED		32

typedef enum LlmOperation
{
	LLMGW_OP_COMPLETE,
	LLMGW_OP_CHAT,
	LLMGW_OP_JSON,
	LLMGW_OP_STREAM,
	LLMGW_OP_EMBED,
	LLMGW_OP_CLASSIFY,
	LLMGW_OP_PROBE,
	LLMGW_NOPERATIONS
} LlmOperation;

typedef enum LlmStatus
{
	LLMGW_STATUS_OK,
	LLMGW_STATUS_ERROR,
	LLMGW_STATUS_CACHED,
	LLMGW_STATUS_CANCELLED,
	LLMGW_STATUS_UNKNOWN,
	LLMGW_STATUS_REJECTED,
	LLMGW_NSTATUSES
} LlmStatus;

/* what an attempt's cost is made from */
typedef enum LlmCostSource
{
	LLMGW_SOURCE_NONE,			/* nothing to pay, or no price */
	LLMGW_SOURCE_ESTIMATE,
	LLMGW_SOURCE_USAGE,
	LLMGW_NSOURCES
} LlmCostSource;

/* What is known of a request before it is sent.  Texts may be NULL. */
typedef struct LlmRequestInfo
{
	TimestampTz created_at;
	Oid			extension;		/* whose ledger */
	TransactionId creator;		/* that has yet to commit it; else invalid */
	LlmOperation operation;
	Oid			role_oid;
	int64		query_id;		/* 0: none */
	bool		has_hash;
	char		prompt_hash[LLMGW_HASH_LEN];
	LlmNano		estimate;		/* of the first candidate */
	const char *role;
	const char *application_name;
	const char *task;
	const char *task_source;
	const char *priority;
	const char *optimize;
	const char *requested_model;
	const char *tags;			/* jsonb as text */

	/*
	 * the budget that took better models away, and the best tier that it
	 * took; NULL: none did
	 */
	const char *downgraded_by;
	const char *downgraded_from;
} LlmRequestInfo;

/* A budget that an attempt is charged to, and in which period. */
typedef struct LlmCharged
{
	int64		id;
	TimestampTz period_start;
	const char *name;
} LlmCharged;

/* An attempt, before it is sent. */
typedef struct LlmAttemptInfo
{
	int			number;			/* from 1 */
	TimestampTz started_at;
	int64		queued_us;		/* the call waited before it was sent */
	const char *provider;
	const char *model;
	const char *model_tier;
	/* booked when nobody lives to say what became of it */
	int64		expected_input; /* tokens */
	int64		expected_output;
	LlmNano		expected_cost;
	int			ncharged;		/* at most LLMGW_MAX_CHARGED */
	LlmCharged *charged;		/* each budget once */
} LlmAttemptInfo;

/* What became of an attempt. */
typedef struct LlmOutcome
{
	LlmErrorClass error;		/* LLMGW_OK: answered */
	bool		cancelled;		/* nobody waited for its end */
	int			http_status;	/* 0: none */
	int64		latency_us;
	LlmUsage	usage;			/* zeros where nothing is to be paid */
	LlmNano		cost;
	LlmCostSource source;
	const char *message;		/* NULL: none; at most LLMGW_MAX_MESSAGE bytes */
} LlmOutcome;

/* What became of the request. */
typedef struct LlmResult
{
	LlmStatus	status;
	LlmErrorClass error;		/* LLMGW_OK: none */
	const char *finish_reason;	/* at most LLMGW_MAX_FINISH_REASON bytes */
	int			attempts;
	bool		fallback;
	const char *passed_over;	/* provider of the first candidate, if it was
								 * not even asked; at most
								 * LLMGW_MAX_PASSED_OVER bytes; NULL: it was */
	LlmErrorClass passed_over_class;	/* why; LLMGW_OK: it was */
	int64		latency_us;
	int64		ttft_us;		/* -1: none */
	int64		queue_us;		/* -1: the sum of the attempts' */

	/*
	 * Whose answer it was, where nothing was noted: of LLMGW_STATUS_CACHED.
	 * Ignored where an attempt was.
	 */
	const char *provider;
	const char *model;
	const char *model_tier;
} LlmResult;

/*
 * An answer to be kept in llm_cache.  All else about it - who asked, whose answer
 * it is, what it did cost - is what its request and its last attempt say.
 */
typedef struct LlmKeep
{
	char		key[LLMGW_HASH_LEN];	/* LlmCacheKey */
	TimestampTz created_at;
	TimestampTz expires_at;
	const char *response;		/* may be NULL */
	const char *tool_calls;		/* jsonb as text; NULL: none */

	/* of its prompt, so that similar ones may have the answer, too */
	char		scope[LLMGW_HASH_LEN];
	int			dimensions;		/* at most LLMGW_MAX_DIMENSIONS; 0: no
								 * embedding */
	const float4 *embedding;
} LlmKeep;

/* more than any model makes */
#define LLMGW_MAX_DIMENSIONS	65536

/* answers with more text than that are not kept */
#define LLMGW_MAX_KEPT			(1024 * 1024)

/* what a row of llm_cache takes beside the texts */
#define LLMGW_KEPT_ROW			256

/*
 * A request's place in the ledger; part of its call.  All zeros: nothing noted
 * yet.  Private to ledger.c but for end.
 */
typedef struct LlmLedgerEntry
{
	bool		noted;			/* the ledger knows of it */
	bool		ended;
	uint64		promised;		/* room for its END */
	uint64		end;			/* of its last record; for llmgw_ledger_wait() */
} LlmLedgerEntry;

/*
 * Before the first call: this process can write to the spool, and a worker is
 * there or asked for.  Raises 53400 and file errors; warns once per session
 * when no worker can be had.
 */
extern void llmgw_ledger_open(const LlmConfig *config);

/*
 * Notes an attempt; previous is the outcome of the one before it, NULL for the
 * first.  NULL, or why it must not be sent, palloc'd (53100).  A prompt that is
 * not NULL is recorded, too; where there is no room for it, a WARNING.
 */
extern char *llmgw_ledger_note(LlmLedgerEntry *entry, int64 request_id,
							   const LlmRequestInfo *request,
							   const LlmAttemptInfo *attempt,
							   const LlmOutcome *previous, const char *prompt);

/*
 * Ends the request.  last is the outcome of the attempt noted last, NULL where
 * none was.  For a noted request it neither raises nor allocates, may be called
 * while aborting, and request is ignored.  For another one it may fail: nothing
 * was sent, and what is lost is the record of a refusal.
 */
extern void llmgw_ledger_end(LlmLedgerEntry *entry, int64 request_id,
							 const LlmRequestInfo *request,
							 const LlmOutcome *last, const LlmResult *result);

/* Records an answer's text, before its end; where there is no room, a WARNING. */
extern void llmgw_ledger_response(LlmLedgerEntry *entry, int64 request_id,
								  const char *response);

/*
 * Records an answer that is to be kept, before its end; once the request is
 * booked, and ended as LLMGW_STATUS_OK, it is in llm_cache in place of any that has
 * the key.  False, and nothing is said, when it will not be: nothing was noted, it
 * is too large, no room for it.
 */
extern bool llmgw_ledger_keep(LlmLedgerEntry *entry, int64 request_id, const LlmKeep *keep);

/*
 * llm_gateway.ledger_sync: returns when everything before the offset (of the
 * largest entry.end; 0: nothing) is in the ledger, or that cannot be waited for.
 * Interruptible.  One WARNING per transaction after ledger_sync_timeout.
 */
extern void llmgw_ledger_wait(const LlmConfig *config, uint64 end);

/*
 * Keyed hash of a prompt, the same in all databases of the cluster: who reads it
 * cannot try prompts against it.  The key is the file llm_gateway/hash_key in the
 * data directory.  Raises file errors.
 */
extern void llmgw_ledger_hash(const char *prompt, Size len, char *hash);

/* the words in the ledger's columns */
extern const char *llmgw_operation_name(LlmOperation operation);
extern const char *llmgw_status_name(LlmStatus status);
extern const char *llmgw_cost_source_name(LlmCostSource source);

#endif							/* LLMGW_LEDGER_H */
