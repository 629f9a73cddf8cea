/*-------------------------------------------------------------------------
 *
 * tier.h
 *	  What the budgets let a call have: the best tier, and which candidates.
 *
 * A view is taken once, when a call is routed: the budgets that match its
 * caller, what they said at that moment, and what follows for the call's priority.
 * Budgets of the caller (scope: role, task, tags) decide the tier together:
 * the lowest counts.  Budgets that name a provider or a model only take those
 * candidates away, when they are exhausted.  What a request may really cost is then
 * decided when it is reserved.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_TIER_H
#define LLMGW_TIER_H

#include "budget.h"

/* A budget, as it was when the view was taken. */
typedef struct LlmTierBudget
{
	LlmBudget  *budget;
	LlmAccount	account;
	LlmBudgetLevel level;
	bool		of_caller;		/* it names neither provider nor model */
	char	   *unknown;		/* why its account cannot be had; NULL: it can */
} LlmTierBudget;

typedef struct LlmTierView
{
	const LlmConfig *config;
	const LlmPriority *priority;
	int			nbudgets;		/* that match the caller */
	LlmTierBudget *budgets;
	LlmBudgetLevel level;		/* of those of the caller, the lowest */
	const LlmTierBudget *binding;	/* which one that is; NULL: none binds */
	int			best_rank;		/* of the best tier that is allowed */
	bool		strict;			/* one of them is */
	const char *reason;			/* of that, in words; NULL: every tier is
								 * allowed */
	const char *hint;			/* what would help */
} LlmTierView;

/* What is asked. */
typedef struct LlmTierQuery
{
	const LlmPriority *priority;
	const char *task;
	Oid			role;
	Jsonb	   *tags;			/* NULL: none */
	TimestampTz now;
	int			wait_ms;		/* for a ledger that is behind; 0: do not wait */
} LlmTierQuery;

/* palloc'd in the current context */
extern void llmgw_tier(LlmConfig *config, const LlmTierQuery *query, LlmTierView *view);

/* A request to one model. */
typedef struct LlmTierRequest
{
	const LlmModel *model;
	bool		unpriced;		/* what it costs is not known */
	const char *unbounded;		/* why it is not known what it costs at most;
								 * NULL: it is */
	const char *unbounded_hint;
	const LlmBudget *by;		/* out: which budget keeps it */
	bool		unfit;			/* out: however much is left of that */
} LlmTierRequest;

/*
 * Why the budgets keep this request from its model, palloc'd, with a hint; NULL:
 * they do not.
 */
extern const char *llmgw_tier_refuses(const LlmTierView *view,
									  LlmTierRequest *request, const char **hint);

/*
 * The budgets that an attempt at this model is charged to, by id, at most
 * LLMGW_MAX_CHARGES; how many.  More than that: llmgw_tier_refuses() says so.
 */
extern int	llmgw_tier_charged(const LlmTierView *view, const LlmModel *model,
							   LlmBudget **budgets);

/* in words: 'budget "team-a" has $0.62 of $10 left (6.2 %), $0.5 of it in reserve, until 2027-01-01 00:00:00+00' */
extern char *llmgw_tier_describe(const LlmBudget *budget, const LlmAccount *account,
								 bool use_reserve);

/* '$1.5', palloc'd */
extern char *llmgw_tier_dollars(LlmNano nano);

#endif							/* LLMGW_TIER_H */
