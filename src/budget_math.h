/*-------------------------------------------------------------------------
 *
 * budget_math.h
 *	  The arithmetic of budgets: pure functions of integers.
 *
 * Amounts are nano-dollars, fractions are parts in 10^9.  Nothing here rounds in
 * the caller's favour: what is compared with a fraction of a limit is compared
 * exactly.  No clock, no memory, no locks: t/model/budget_math_model.c runs it through
 * all interleavings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BUDGET_MATH_H
#define LLMGW_BUDGET_MATH_H

#include "cost.h"

#define LLMGW_WHOLE				INT64CONST(1000000000)

/* How good a model a budget still pays for. */
typedef enum LlmBudgetLevel
{
	LLMGW_LEVEL_ALL,			/* of every tier */
	LLMGW_LEVEL_STANDARD,		/* standard and below */
	LLMGW_LEVEL_ECONOMY,		/* economy and below */
	LLMGW_LEVEL_EXHAUSTED		/* none */
} LlmBudgetLevel;

/* What a budget has paid in a period, and may have to pay for calls under way. */
typedef struct LlmAccount
{
	LlmNano		spent;			/* >= 0 */
	LlmNano		reserved;		/* >= 0 */
} LlmAccount;

/* Of a limit (>= 0) that part in 10^9 (0 .. LLMGW_WHOLE), rounded down. */
extern LlmNano llmgw_budget_share(LlmNano limit, int64 fraction);

/* limit - spent - reserved; below 0 after an overrun. */
extern LlmNano llmgw_budget_remaining(const LlmAccount *account, LlmNano limit);

/*
 * The level of a call with that priority.  Each threshold is passed while more
 * than that fraction of the limit remains; without may_use_reserve nothing is left
 * as soon as no more than the reserve remains.  DESIGN: llm_priorities.
 */
extern LlmBudgetLevel llmgw_budget_level(const LlmAccount *account, LlmNano limit,
										 int64 reserve_fraction,
										 const LlmThresholds *thresholds);

/*
 * What may be reserved now (>= 0): what remains, and without use_reserve what
 * remains above the reserve.
 */
extern LlmNano llmgw_budget_room(const LlmAccount *account, LlmNano limit,
								 int64 reserve_fraction, bool use_reserve);

/*
 * The reservation of an amount becomes what was really paid.  Sums saturate
 * rather than wrap.
 */
extern void llmgw_account_reserve(LlmAccount *account, LlmNano amount);
extern void llmgw_account_settle(LlmAccount *account, LlmNano reserved, LlmNano paid);

#endif							/* LLMGW_BUDGET_MATH_H */
