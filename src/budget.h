/*-------------------------------------------------------------------------
 *
 * budget.h
 *	  What budgets have spent, shared by all sessions: reserve and settle.
 *
 * Limits, scopes and thresholds are configuration (LlmBudget), as each call sees
 * it; so two sessions may see two limits, and neither waits for the other.  Shared
 * memory holds only accounts: (database, extension, budget id, start of the
 * period) -> spent, reserved.
 *
 *		llmgw_budget_open()		the account of the present period
 *		llmgw_budget_look()		what it says
 *		llmgw_budget_view()		the same, without an account
 *		llmgw_budget_reserve()	before an attempt: on all of them or on none
 *		llmgw_budget_settle()	the attempt has an outcome, and a cost
 *		llmgw_budget_release()	it was never sent
 *
 * THE TRUTH is _llm_budget_spend, which the ledger's worker writes in the
 * transaction that books the request, by the names (id, period) in the attempt's
 * note.  An account is made from it on first use, once all that former servers left
 * in the spool is booked; from then on every settlement adds to the account what
 * the ledger will book.  An account goes only when nothing is reserved and
 * all that was charged to it is booked: it can then be made again.
 *
 * LOCKING.  Each account has an LWLock for its numbers.  Several are taken in the
 * order of their places, whoever owns them, and only by llmgw_budget_reserve().
 * LLMGW_LOCK_BUDGETS protects which account is whose: shared to search, exclusive to
 * add or replace one; whoever holds an account's lock may check its name without.
 * It is taken before an account's lock, never after.
 *
 * Reservations are owned by a call's LlmHold, in the memory of this process, and
 * are given back by whoever ends the call, while aborting too; what is left when
 * the process exits is given back then.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BUDGET_H
#define LLMGW_BUDGET_H

#include "lib/ilist.h"

#include "budget_math.h"

/* more budgets than that for one attempt are refused */
#define LLMGW_MAX_CHARGES		32

extern void llmgw_budget_init(void);

/*
 * Makes sure that the budget's account of the period of `at` is there, and
 * remembers it (budget->period_start, ->period_end, ->account).  Reads tables on
 * first use in a period; may wait for the worker, interruptibly, for at most
 * wait_ms.  NULL, or why the account cannot be had, palloc'd: the ledger is behind,
 * or llm_gateway.max_budgets accounts are in use.
 */
extern char *llmgw_budget_open(const LlmConfig *config, LlmBudget *budget,
							   TimestampTz at, int wait_ms);

/*
 * What the account says at this moment; false: it has none, because it was not
 * opened, or has been given away since.
 */
extern bool llmgw_budget_look(LlmBudget *budget, LlmAccount *account);

/*
 * The same of the period that begins then, for who only wants to see: it makes no
 * account, and does not count as use of the one that is there.  NULL, or why it is not
 * known, palloc'd.  May wait as llmgw_budget_open(); on a standby it does not, where
 * there are no accounts, and what has been booked is all that is known.
 */
extern char *llmgw_budget_view(const LlmConfig *config, const LlmBudget *budget,
							   TimestampTz period_start, int wait_ms, LlmAccount *account);

/* What an attempt may cost one budget. */
typedef struct LlmCharge
{
	LlmBudget  *budget;			/* opened; its limit is what counts */
	LlmNano		amount;			/* to reserve */
	bool		use_reserve;	/* also what the budget keeps back */
	LlmNano		room;			/* out: what could have been reserved */
} LlmCharge;

/* What an attempt has reserved.  All zeros: nothing. */
typedef struct LlmHold
{
	dlist_node	node;			/* in the list of this process */
	int			n;				/* 0: nothing is held */
	struct LlmHeld
	{
		struct LlmBudgetAccount *account;
		int64		id;
		TimestampTz period_start;
		LlmNano		amount;
	}			held[LLMGW_MAX_CHARGES];
} LlmHold;

/*
 * Reserves on all of them, or on none and returns the number of the first that has
 * no room; -1: reserved.  A budget without a limit always has room.  An account
 * that has been given away since it was opened counts as no room.  n is at most
 * LLMGW_MAX_CHARGES.
 */
extern int	llmgw_budget_reserve(LlmHold *hold, LlmCharge *charges, int n);

/*
 * What was reserved is given back, and what was paid is spent.  Neither raises
 * nor allocates: may be called while aborting.  Nothing held: nothing done.
 */
extern void llmgw_budget_settle(LlmHold *hold, LlmNano paid);
extern void llmgw_budget_release(LlmHold *hold);

/* All accounts of this database, palloc'd, for tests and reports. */
typedef struct LlmAccountStatus
{
	int64		id;
	TimestampTz period_start;
	LlmAccount	account;
} LlmAccountStatus;

extern LlmAccountStatus *llmgw_budget_accounts(Oid extension, int *n);

/* A database is gone. */
extern void llmgw_budget_drop(Oid database);

/* budget_load.c, for budget.c */

/*
 * Whether _llm_budget_spend holds all that former starts of the server were to
 * book to this extension's budgets.  May wait for the worker, interruptibly, for
 * at most wait_ms.
 */
extern bool llmgw_budget_is_settled(const LlmConfig *config, int wait_ms);

/*
 * What a budget has spent in that period, from _llm_budget_spend and its opening,
 * as of now, in every isolation level.  Raises errors of reading a table.
 */
extern LlmNano llmgw_budget_load(const LlmConfig *config, const LlmBudget *budget,
								 TimestampTz period_start);

#endif							/* LLMGW_BUDGET_H */
