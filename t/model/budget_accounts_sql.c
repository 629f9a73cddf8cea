/*-------------------------------------------------------------------------
 *
 * budget_accounts_sql.c
 *	  Budgets' accounts as functions: for t/044_budget_accounts.pl.
 *
 * Linked with the extension's own objects into a library that is preloaded in
 * their place.  Budgets are made up here, by id; only the table of what they have
 * spent is there.  See bench/budget.c for why it is plpgsql's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "common/pg_prng.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "budget_private.h"
#include "spool.h"

#define BUDGETS		64

static LlmBudget budgets[BUDGETS];
static LlmHold hold;

/* budget_open(id bigint, at timestamptz, limit bigint) returns text: why it has no account */
PG_FUNCTION_INFO_V1(budget_open);

Datum
budget_open(PG_FUNCTION_ARGS)
{
	LlmBudget  *budget = &budgets[PG_GETARG_INT64(0) % BUDGETS];
	LlmConfig	config = {0};
	char	   *problem;

	config.extension = get_extension_oid("plpgsql", false);
	config.schema = PG_PUBLIC_NAMESPACE;
	budget->id = PG_GETARG_INT64(0);
	budget->name = "made up";
	budget->limit = PG_GETARG_INT64(2);
	budget->period = LLMGW_PERIOD_DAY;
	budget->timezone = "UTC";
	budget->zone = pg_tzset("UTC");
	budget->reserve_fraction = LLMGW_WHOLE / 10;
	problem = llmgw_budget_open(&config, budget, PG_GETARG_TIMESTAMPTZ(1), 0);
	if (problem == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(problem));
}

/* budget_look(id bigint) returns text: spent and reserved; NULL: it has no account */
PG_FUNCTION_INFO_V1(budget_look);

Datum
budget_look(PG_FUNCTION_ARGS)
{
	LlmAccount	account;

	if (!llmgw_budget_look(&budgets[PG_GETARG_INT64(0) % BUDGETS], &account))
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(INT64_FORMAT " " INT64_FORMAT,
											  account.spent, account.reserved)));
}

static int
make_charges(ArrayType *array, LlmCharge *charges, int64 amount, bool use_reserve)
{
	int			n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
	int64	   *ids = (int64 *) ARR_DATA_PTR(array);

	memset(charges, 0, n * sizeof(*charges));
	for (int i = 0; i < n; i++)
	{
		charges[i].budget = &budgets[ids[i] % BUDGETS];
		charges[i].amount = amount;
		charges[i].use_reserve = use_reserve;
	}
	return n;
}

/*
 * budget_reserve(ids bigint[], amount bigint, use_reserve bool) returns text: which budget has no
 * room, and how much it has
 */
PG_FUNCTION_INFO_V1(budget_reserve);

Datum
budget_reserve(PG_FUNCTION_ARGS)
{
	LlmCharge	charges[LLMGW_MAX_CHARGES];
	int			n = make_charges(PG_GETARG_ARRAYTYPE_P(0), charges, PG_GETARG_INT64(1), PG_GETARG_BOOL(2));
	int			refused = llmgw_budget_reserve(&hold, charges, n);

	if (refused < 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(INT64_FORMAT ": " INT64_FORMAT,
											  charges[refused].budget->id, charges[refused].room)));
}

/* budget_settle(paid bigint); budget_release() */
PG_FUNCTION_INFO_V1(budget_settle);
PG_FUNCTION_INFO_V1(budget_release);

Datum
budget_settle(PG_FUNCTION_ARGS)
{
	llmgw_budget_settle(&hold, PG_GETARG_INT64(0));
	PG_RETURN_VOID();
}

Datum
budget_release(PG_FUNCTION_ARGS)
{
	llmgw_budget_release(&hold);
	PG_RETURN_VOID();
}

/*
 * budget_churn(ids bigint[], calls int) returns bigint: what so many calls have paid for
 * each of the budgets, which are charged in any order, and never beyond their limits
 */
PG_FUNCTION_INFO_V1(budget_churn);

Datum
budget_churn(PG_FUNCTION_ARGS)
{
	LlmCharge	charges[LLMGW_MAX_CHARGES];
	int64		paid = 0;

	for (int i = 0; i < PG_GETARG_INT32(1); i++)
	{
		int64		amount = 1 + pg_prng_uint64_range(&pg_global_prng_state, 0, 9);
		int			n = make_charges(PG_GETARG_ARRAYTYPE_P(0), charges, amount, true);

		for (int j = n - 1; j > 0; j--)
		{
			int			other = pg_prng_uint64_range(&pg_global_prng_state, 0, j);
			LlmCharge	charge = charges[j];

			charges[j] = charges[other];
			charges[other] = charge;
		}
		if (llmgw_budget_reserve(&hold, charges, n) >= 0)
			continue;
		for (int j = 0; j < n; j++)
		{
			LlmAccount	account;

			if (!llmgw_budget_look(charges[j].budget, &account) ||
				account.spent + account.reserved > charges[j].budget->limit ||
				account.reserved < amount || account.spent < paid)
				elog(ERROR, "the account is wrong");
		}
		if (i % 7 == 0)
			llmgw_budget_release(&hold);
		else
		{
			llmgw_budget_settle(&hold, amount - i % 2);
			paid += amount - i % 2;
		}
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_INT64(paid);
}

/* budget_accounts() returns text: all, each as id|start: spent reserved */
PG_FUNCTION_INFO_V1(budget_accounts);

Datum
budget_accounts(PG_FUNCTION_ARGS)
{
	int			n;
	LlmAccountStatus *all = llmgw_budget_accounts(get_extension_oid("plpgsql", false), &n);
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < n; i++)
		appendStringInfo(&text, "%s" INT64_FORMAT ": " INT64_FORMAT " " INT64_FORMAT, i > 0 ? ", " : "",
						 all[i].id, all[i].account.spent, all[i].account.reserved);
	PG_RETURN_TEXT_P(cstring_to_text(text.data));
}

/* budget_age(id bigint, us bigint): as if it had not been used for so long */
PG_FUNCTION_INFO_V1(budget_age);

Datum
budget_age(PG_FUNCTION_ARGS)
{
	LlmBudgetAccount *of = budgets[PG_GETARG_INT64(0) % BUDGETS].account;

	pg_atomic_write_u64(&of->last_used, llmgw_now() - PG_GETARG_INT64(1));
	PG_RETURN_VOID();
}

/* budget_spool(written bigint, needed bigint): as if so much had been written, and booked */
PG_FUNCTION_INFO_V1(budget_spool);

Datum
budget_spool(PG_FUNCTION_ARGS)
{
	LlmSpoolShared *spool = llmgw_spool_slot(MyDatabaseId, true);

	pg_atomic_write_u64(&spool->written, PG_GETARG_INT64(0));
	pg_atomic_write_u64(&spool->needed, PG_GETARG_INT64(1));
	PG_RETURN_VOID();
}
