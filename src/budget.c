/*-------------------------------------------------------------------------
 *
 * budget.c
 *	  What budgets have spent, shared by all sessions: reserve and settle.
 *
 * To reserve takes the locks of all accounts, in the order of their places, and holds
 * them until it is known whether all have room.  What is given back is given back
 * account by account.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/ipc.h"

#include "budget_private.h"
#include "spool.h"

/* what this process has reserved, and neither settled nor released */
static dlist_head holds = DLIST_STATIC_INIT(holds);

/*
 * For what is still there when all that should have given it back has gone:
 * transactions are aborted, and with them calls, before on_shmem_exit callbacks run.
 */
static void
give_back_all(int code, Datum arg)
{
	while (!dlist_is_empty(&holds))
		llmgw_budget_release(dlist_head_element(LlmHold, node, &holds));
}

static void
set_up_process(void)
{
	static bool done = false;

	if (done)
		return;
	on_shmem_exit(give_back_all, (Datum) 0);
	done = true;
}

bool
llmgw_budget_look(LlmBudget *budget, LlmAccount *account)
{
	LlmBudgetAccount *of = budget->account;
	bool		current;

	if (of == NULL)
		return false;
	LWLockAcquire(&of->lock, LW_SHARED);
	current = llmgw_budget_is_current(of, budget);
	if (current)
		*account = of->account;
	LWLockRelease(&of->lock);
	return current;
}

/* By id, then period. */
static bool
comes_before(const LlmBudget *a, const LlmBudget *b)
{
	if (a->id != b->id)
		return a->id < b->id;
	return a->period_start < b->period_start;
}

static void
sort_charges(LlmCharge *charges, int n)
{
	for (int i = 1; i < n; i++)
	{
		LlmCharge	charge = charges[i];
		int			at = i;

		while (at > 0 && comes_before(charge.budget, charges[at - 1].budget))
		{
			charges[at] = charges[at - 1];
			at--;
		}
		charges[at] = charge;
	}
}

/* Under the account's lock: finds out what the charge has room for. */
static bool
has_room(LlmCharge *charge)
{
	LlmBudget  *budget = charge->budget;
	LlmBudgetAccount *of = budget->account;

	if (of == NULL || !llmgw_budget_is_current(of, budget))
	{
		charge->room = 0;
		return false;
	}
	charge->room = llmgw_budget_room(&of->account, budget->limit, budget->reserve_fraction,
									 charge->use_reserve);
	return charge->amount <= charge->room;
}

/*
 * The accounts of charges in the order in which they are locked, that of their places,
 * each once; how many.  Whose they are does not matter: one may have been given to
 * another budget since it was opened.
 */
static int
sort_accounts(const LlmCharge *charges, int n, LlmBudgetAccount **accounts)
{
	int			naccounts = 0;

	for (int i = 0; i < n; i++)
	{
		LlmBudgetAccount *of = charges[i].budget->account;
		int			at = naccounts;

		while (at > 0 && of < accounts[at - 1])
			at--;
		if (of == NULL || (at > 0 && accounts[at - 1] == of))
			continue;
		memmove(&accounts[at + 1], &accounts[at], sizeof(*accounts) * (naccounts - at));
		accounts[at] = of;
		naccounts++;
	}
	return naccounts;
}

int
llmgw_budget_reserve(LlmHold *hold, LlmCharge *charges, int n)
{
	LlmBudgetAccount *accounts[LLMGW_MAX_CHARGES];
	int			naccounts;
	int			refused = -1;

	Assert(hold->n == 0);
	Assert(n <= LLMGW_MAX_CHARGES);
	if (n == 0)
		return -1;
	set_up_process();
	sort_charges(charges, n);
	naccounts = sort_accounts(charges, n, accounts);
	for (int i = 0; i < naccounts; i++)
		LWLockAcquire(&accounts[i]->lock, LW_EXCLUSIVE);
	for (int i = 0; i < n; i++)
	{
		Assert(i == 0 || comes_before(charges[i - 1].budget, charges[i].budget));
		if (!has_room(&charges[i]) && refused < 0)
			refused = i;
	}
	if (refused < 0)
	{
		LlmInstant	now = llmgw_now();

		for (int i = 0; i < n; i++)
		{
			LlmBudget  *budget = charges[i].budget;
			LlmBudgetAccount *of = budget->account;
			LlmNano		amount = Max(charges[i].amount, 0);

			llmgw_account_reserve(&of->account, amount);
			of->nholds++;
			pg_atomic_write_u64(&of->last_used, now);
			hold->held[i].account = of;
			hold->held[i].id = budget->id;
			hold->held[i].period_start = budget->period_start;
			hold->held[i].amount = amount;
		}
		hold->n = n;
		dlist_push_tail(&holds, &hold->node);
	}
	for (int i = naccounts - 1; i >= 0; i--)
		LWLockRelease(&accounts[i]->lock);
	return refused;
}

/*
 * The attempt's note is in the spool, before what is written there now, and the
 * worker needs it until the request's end is booked.
 */
static uint64
charged_until(const LlmBudgetAccount *of)
{
	int			n;

	return pg_atomic_read_u64(&llmgw_spool_slots(&n)[of->spool_slot].written);
}

static void
give_back(LlmHold *hold, LlmNano paid)
{
	LlmInstant	now;

	if (hold->n == 0)
		return;
	now = llmgw_now();
	for (int i = 0; i < hold->n; i++)
	{
		LlmBudgetAccount *of = hold->held[i].account;

		LWLockAcquire(&of->lock, LW_EXCLUSIVE);
		Assert(of->id == hold->held[i].id && of->period_start == hold->held[i].period_start);
		Assert(of->nholds > 0);
		llmgw_account_settle(&of->account, hold->held[i].amount, paid);
		if (paid > 0)
			of->charged_until = charged_until(of);
		of->nholds--;
		pg_atomic_write_u64(&of->last_used, now);
		LWLockRelease(&of->lock);
	}
	hold->n = 0;
	dlist_delete(&hold->node);
}

void
llmgw_budget_settle(LlmHold *hold, LlmNano paid)
{
	give_back(hold, paid);
}

void
llmgw_budget_release(LlmHold *hold)
{
	give_back(hold, 0);
}
