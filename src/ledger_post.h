/*-------------------------------------------------------------------------
 *
 * ledger_post.h
 *	  What a step of the worker writes, within its transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_POST_H
#define LLMGW_LEDGER_POST_H

#include "ledger_open.h"
#include "ledger_record.h"
#include "ledger_tables.h"

/* ledger_position.c: how far a generation is booked */

typedef struct LlmPosition
{
	bool		stored;			/* there is a row */
	ItemPointerData tid;		/* where it is; a hint */
	uint64		read_offset;	/* ENDs before it are booked */
	uint64		oldest_open;	/* here the reader begins after a restart */
	bool		done;			/* nothing more is to be read */
} LlmPosition;

extern void llmgw_position_read(LlmTables *tables, uint64 spool_id, LlmPosition *position);

/*
 * Writes it in place of the one that was read or written last.  Raises 55006
 * when the row is not that one any more: somebody else booked, too.
 */
extern void llmgw_position_write(LlmTables *tables, uint64 spool_id,
								 const LlmPosition *old, LlmPosition *new);

/* Deletes rows of generations that nobody can ask for any more. */
extern void llmgw_position_clean(LlmTables *tables);

/* Open requests whose records are in no segment that must be kept. */
extern void llmgw_carried_read(LlmTables *tables, uint64 spool_id, LlmOpenRequests *open);
extern void llmgw_carried_write(LlmTables *tables, uint64 spool_id, uint64 read_offset,
								LlmOpenRequest *const *requests, int n);
extern void llmgw_carried_delete(LlmTables *tables, uint64 spool_id,
								 const int64 *ids, int n);

/* ledger_facts.c: what the records of a request say */

typedef struct LlmAttemptFacts
{
	LlmAttemptInfo info;
	LlmOutcome	outcome;
	bool		unknown;		/* the outcome is the expected one */
} LlmAttemptFacts;

typedef struct LlmFacts
{
	int64		id;
	LlmRequestInfo request;
	LlmResult	result;
	int			nattempts;
	LlmAttemptFacts *attempts;	/* by number */
	const LlmRaw *prompt;		/* NULL: not recorded */
	const LlmRaw *response;
	const LlmRaw *keep;

	/* whose answer it was, or who was tried last; NULL: nobody */
	const char *provider;
	const char *model;
	const char *model_tier;

	/* of all attempts */
	LlmUsage	usage;
	LlmNano		cost;
	LlmCostSource source;

	bool		booked;			/* for who writes it */
} LlmFacts;

/*
 * Reads them; texts are palloc'd or in the records.  False: they are damaged,
 * or some are missing.
 */
extern bool llmgw_facts_read(const LlmOpenRequest *request, LlmFacts *facts);

/* What the worker says of a request whose owner is gone. */
extern void llmgw_facts_unknown(const LlmOpenRequest *request, LlmEnd *end);

/* The owner of its first note; false: none was read. */
extern bool llmgw_facts_owner(const LlmOpenRequest *request, LlmOwnerId *owner);

/* a + b, or the largest number there is */
extern int64 llmgw_sum(int64 a, int64 b);

/* ledger_spend.c: the rows of llm_daily_spend */

typedef struct LlmSpend LlmSpend;

extern LlmSpend *llmgw_spend_begin(void);
extern void llmgw_spend_add(LlmSpend *spend, const LlmFacts *facts);
extern void llmgw_spend_write(LlmSpend *spend, LlmTables *tables);

/* ledger_budgets.c: what budgets are charged */

typedef struct LlmBudgetSums LlmBudgetSums;

extern LlmBudgetSums *llmgw_budget_sums_begin(void);
extern void llmgw_budget_sums_add(LlmBudgetSums *sums, const LlmFacts *facts);
extern void llmgw_budget_sums_write(LlmBudgetSums *sums, LlmTables *tables);

/*
 * The budgets that a request is charged to by any of its attempts, each once, by
 * id; palloc'd.  How many; 0: none, and *names is not set.
 */
extern int	llmgw_facts_budgets(const LlmFacts *facts, const char ***names);

/* ledger_keep.c: the rows of llm_cache */

/*
 * Writes those of the requests' answers that are to be kept.  What they count
 * against llm_gateway.cache_size; what they replaced is not known.
 */
extern int64 llmgw_keep_write(LlmTables *tables, const LlmFacts *facts, int nfacts);

/* ledger_post.c: requests and their attempts */

typedef struct LlmPosted
{
	bool		again;			/* nothing was written: begin a new
								 * transaction */
	int			booked;
	int			duplicates;		/* they were in the ledger before */
	int			damaged;
	int64		kept;			/* bytes of answers written to llm_cache */
	int			foreign;		/* of an extension that has been dropped */
	LlmNano		foreign_cost;
	int64		example;		/* one of those that were not booked */
} LlmPosted;

/*
 * Writes rows for the requests (a list of LlmOpenRequest.node).  Those of
 * another extension are left out: nobody keeps their ledger any more.  Raises
 * 55000 when one belongs to an extension that is being created.
 */
extern void llmgw_post(LlmTables *tables, dlist_head *requests, int n, LlmPosted *posted);

#endif							/* LLMGW_LEDGER_POST_H */
