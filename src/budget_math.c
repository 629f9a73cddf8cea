/*-------------------------------------------------------------------------
 *
 * budget_math.c
 *	  The arithmetic of budgets: pure functions of integers.
 *
 * Products and sums of amounts are formed in 128 bits, where nothing overflows.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "budget_math.h"

/* The nearest amount that 64 bits hold. */
static LlmNano
clamp(int128 amount)
{
	if (amount > PG_INT64_MAX)
		return PG_INT64_MAX;
	if (amount < PG_INT64_MIN)
		return PG_INT64_MIN;
	return (LlmNano) amount;
}

/* Whether more than that part of the limit remains, exactly. */
static bool
is_above(LlmNano remaining, LlmNano limit, int64 fraction)
{
	return (int128) remaining * LLMGW_WHOLE > (int128) limit * fraction;
}

LlmNano
llmgw_budget_share(LlmNano limit, int64 fraction)
{
	return (LlmNano) ((int128) limit * fraction / LLMGW_WHOLE);
}

LlmNano
llmgw_budget_remaining(const LlmAccount *account, LlmNano limit)
{
	if (limit < 0)
		return PG_INT64_MAX;
	return clamp((int128) limit - account->spent - account->reserved);
}

LlmBudgetLevel
llmgw_budget_level(const LlmAccount *account, LlmNano limit, int64 reserve_fraction,
				   const LlmThresholds *thresholds)
{
	LlmNano		remaining = llmgw_budget_remaining(account, limit);

	if (limit < 0)
		return LLMGW_LEVEL_ALL;
	if (!thresholds->may_use_reserve && !is_above(remaining, limit, reserve_fraction))
		return LLMGW_LEVEL_EXHAUSTED;
	if (is_above(remaining, limit, thresholds->premium_above))
		return LLMGW_LEVEL_ALL;
	if (is_above(remaining, limit, thresholds->standard_above))
		return LLMGW_LEVEL_STANDARD;
	if (is_above(remaining, limit, thresholds->economy_above))
		return LLMGW_LEVEL_ECONOMY;
	return LLMGW_LEVEL_EXHAUSTED;
}

LlmNano
llmgw_budget_room(const LlmAccount *account, LlmNano limit, int64 reserve_fraction,
				  bool use_reserve)
{
	LlmNano		room = llmgw_budget_remaining(account, limit);

	if (limit < 0)
		return room;

	/* a part of a nano-dollar that is kept back is one that is not given */
	if (!use_reserve)
		room = clamp((int128) room -
					 ((int128) limit * reserve_fraction + LLMGW_WHOLE - 1) / LLMGW_WHOLE);
	return Max(room, 0);
}

void
llmgw_account_reserve(LlmAccount *account, LlmNano amount)
{
	account->reserved = clamp((int128) account->reserved + Max(amount, 0));
}

void
llmgw_account_settle(LlmAccount *account, LlmNano reserved, LlmNano paid)
{
	account->reserved = Max(account->reserved - Max(reserved, 0), 0);
	account->spent = clamp((int128) account->spent + Max(paid, 0));
}
