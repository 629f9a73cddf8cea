/*-------------------------------------------------------------------------
 *
 * budget.c
 *	  What budgets cost a call: for benchmarks.
 *
 * Linked like admission.c; see script/bench.  Configuration and budgets are made up
 * here.  Their accounts are real ones, which all sessions of the database share.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "catalog/pg_namespace.h"
#include "commands/extension.h"
#include "fmgr.h"

#include "budget.h"
#include "timing.h"

#define BUDGETS		5

static int64
cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64CONST(1000000000) + ts.tv_nsec;
}

static const LlmConfig *
make_config(void)
{
	static LlmConfig config;

	config.extension = get_extension_oid("llm_gateway", false);
	config.schema = PG_PUBLIC_NAMESPACE;
	return &config;
}

static LlmBudget *
make_budgets(void)
{
	static LlmBudget budgets[BUDGETS];

	for (int i = 0; i < BUDGETS; i++)
	{
		budgets[i].id = INT64CONST(1000000000) + i;
		budgets[i].name = "bench";
		budgets[i].limit = PG_INT64_MAX / 2;
		budgets[i].period = LLMGW_PERIOD_MONTH;
		budgets[i].timezone = "UTC";
		budgets[i].zone = pg_tzset("UTC");
		budgets[i].reserve_fraction = LLMGW_WHOLE / 20;
	}
	return budgets;
}

static void
open_all(const LlmConfig *config, LlmBudget *budgets, TimestampTz now)
{
	for (int i = 0; i < BUDGETS; i++)
	{
		char	   *problem = llmgw_budget_open(config, &budgets[i], now, 0);

		if (problem != NULL)
			elog(ERROR, "%s", problem);
	}
}

/*
 * bench_budget_open(calls int) returns float8: nanoseconds of CPU time that it took to
 * make sure that one budget's account is there.
 */
PG_FUNCTION_INFO_V1(bench_budget_open);

Datum
bench_budget_open(PG_FUNCTION_ARGS)
{
	int			calls = PG_GETARG_INT32(0);
	const LlmConfig *config = make_config();
	LlmBudget  *budgets = make_budgets();
	TimestampTz now = llmgw_wall_clock();
	int64		start;

	open_all(config, budgets, now);
	start = cpu_ns();
	for (int i = 0; i < calls; i++)
		open_all(config, budgets, now);
	PG_RETURN_FLOAT8((double) (cpu_ns() - start) / calls / BUDGETS);
}

/*
 * bench_budgets(calls int) returns float8: the same, to reserve and settle on five
 * budgets, as each attempt does.
 */
PG_FUNCTION_INFO_V1(bench_budgets);

Datum
bench_budgets(PG_FUNCTION_ARGS)
{
	int			calls = PG_GETARG_INT32(0);
	const LlmConfig *config = make_config();
	LlmBudget  *budgets = make_budgets();
	TimestampTz now = llmgw_wall_clock();
	static LlmHold hold;
	int64		start;

	open_all(config, budgets, now);
	start = cpu_ns();
	for (int i = 0; i < calls; i++)
	{
		LlmCharge	charges[BUDGETS] = {0};

		for (int j = 0; j < BUDGETS; j++)
		{
			charges[j].budget = &budgets[j];
			charges[j].amount = 1000000;
		}
		if (llmgw_budget_reserve(&hold, charges, BUDGETS) >= 0)
			elog(ERROR, "no room");
		llmgw_budget_settle(&hold, 500000);
	}
	PG_RETURN_FLOAT8((double) (cpu_ns() - start) / calls);
}
