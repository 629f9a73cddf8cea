/*-------------------------------------------------------------------------
 *
 * budget_private.h
 *	  What budget.c and budget_accounts.c share: the account.
 *
 * Locks: see budget.h.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BUDGET_PRIVATE_H
#define LLMGW_BUDGET_PRIVATE_H

#include "port/atomics.h"
#include "storage/lwlock.h"

#include "budget.h"
#include "timing.h"

typedef struct LlmBudgetAccount
{
	LWLock		lock;

	/*
	 * Whose account it is.  Changed under the table's lock and the account's
	 * own, both exclusive: either is enough to read it.  The serial is
	 * another one for each owner, 0: nobody; as a hint it may be read without
	 * a lock.
	 */
	pg_atomic_uint64 serial;
	Oid			database;
	Oid			extension;
	int64		id;
	TimestampTz period_start;
	TimestampTz period_end;
	int			spool_slot;		/* of the database; see llmgw_spool_slots() */

	int			nholds;			/* under the account's lock, like what follows */
	LlmAccount	account;

	/*
	 * All that was charged is in the ledger when the worker needs nothing of
	 * the spool before this.
	 */
	uint64		charged_until;

	/* LlmInstant; set under either lock, so that it is not given away then */
	pg_atomic_uint64 last_used;
} LlmBudgetAccount;

/* Under the account's lock: whether it is still the one that was opened. */
static inline bool
llmgw_budget_is_current(LlmBudgetAccount *account, const LlmBudget *budget)
{
	return pg_atomic_read_u64(&account->serial) == budget->account_serial;
}

#endif							/* LLMGW_BUDGET_PRIVATE_H */
