/*-------------------------------------------------------------------------
 *
 * functions_budget.c
 *	  The rows of llm_budget_status: how each budget stands at this moment.
 *
 * Limits and scopes are those that the session sees, in its configuration; what is
 * spent and reserved is what all sessions share (budget.h).  Just after a start of
 * the server it waits a moment for the ledger, as calls do; if that is still behind,
 * the rows say so.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "budget.h"
#include "guc.h"
#include "scope.h"
#include "timing.h"

PG_FUNCTION_INFO_V1(llmgw_sql_budget_status);

/* longest wait for a ledger that is behind, for all rows together */
#define WAIT_MS			5000

/* the columns */
enum
{
	BUDGET,
	PERIOD_START,
	LIMIT_USD,
	SPENT_USD,
	RESERVED_USD,
	REMAINING_USD,
	REMAINING_FRACTION,
	RESETS_AT,
	PERIOD,
	TIMEZONE,
	SCOPE,
	BEST_TIER,
	STRICT,
	ON_EXHAUSTED,
	AS_OF,
	REMARK,
	NCOLUMNS
};

static void
put(Datum *values, bool *nulls, int column, Datum value)
{
	values[column] = value;
	nulls[column] = false;
}

static void
put_text(Datum *values, bool *nulls, int column, const char *text)
{
	put(values, nulls, column, CStringGetTextDatum(text));
}

/* Whether the current user may see what is others': llm_grant(role, 'report'). */
static bool
reports_all(const LlmConfig *config)
{
	Oid			function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
										   CStringGetDatum("_llm_reports_all"),
										   PointerGetDatum(buildoidvector(NULL, 0)),
										   ObjectIdGetDatum(config->schema));

	return OidIsValid(function) &&
		DatumGetBool(DirectFunctionCall2(has_function_privilege_id,
										 ObjectIdGetDatum(function),
										 CStringGetTextDatum("EXECUTE")));
}

/* Whether calls of the current user may be charged to it. */
static bool
covers_user(const LlmBudget *budget)
{
	return llmgw_scope_covers(budget->role, NULL, GetUserId(), NULL);
}

/* Which calls are charged to it, in words. */
static const char *
scope(const LlmBudget *budget)
{
	const struct
	{
		const char *word;
		const char *value;
	}			parts[] = {
		{"role", budget->role},
		{"task", budget->task},
		{"provider", budget->provider},
		{"model", budget->model},
		{"tags", budget->tags == NULL ? NULL :
		JsonbToCString(NULL, &budget->tags->root, VARSIZE(budget->tags))},
	};
	StringInfoData text;

	initStringInfo(&text);
	for (int i = 0; i < lengthof(parts); i++)
		if (parts[i].value != NULL)
			appendStringInfo(&text, "%s%s %s", text.len > 0 ? ", " : "",
							 parts[i].word, parts[i].value);
	return text.len > 0 ? text.data : "all calls";
}

/* The fraction of the limit, parts in 10^9, rounded down. */
static LlmNano
fraction(LlmNano remaining, LlmNano limit)
{
	int128		scaled = (int128) remaining * LLMGW_WHOLE;
	int128		parts;

	/* a limit of 0 is all used up */
	if (limit == 0)
		return 0;
	parts = scaled / limit - (scaled % limit < 0 ? 1 : 0);
	return (LlmNano) Max(parts, -(int128) PG_INT64_MAX);
}

/*
 * The best tier that it leaves to calls of that priority.  Where it is about a
 * provider or a model, it does not choose tiers: it pays, or does not.
 */
static const char *
best_tier(const LlmBudget *budget, const LlmAccount *account, const LlmPriority *priority)
{
	LlmBudgetLevel level;

	if (budget->limit < 0)
		return "premium";
	level = llmgw_budget_level(account, budget->limit, budget->reserve_fraction,
							   &priority->thresholds);
	if (level == LLMGW_LEVEL_EXHAUSTED)
		return "none";
	if (budget->provider != NULL || budget->model != NULL)
		return "premium";
	return level == LLMGW_LEVEL_ALL ? "premium" :
		level == LLMGW_LEVEL_STANDARD ? "standard" : "economy";
}

static void
account_columns(const LlmBudget *budget, const LlmAccount *account,
				const LlmPriority *priority, Datum *values, bool *nulls)
{
	put(values, nulls, SPENT_USD, llmgw_nano_to_numeric(account->spent));
	put(values, nulls, RESERVED_USD, llmgw_nano_to_numeric(account->reserved));
	if (budget->limit >= 0)
	{
		LlmNano		remaining = llmgw_budget_remaining(account, budget->limit);

		put(values, nulls, REMAINING_USD, llmgw_nano_to_numeric(remaining));
		put(values, nulls, REMAINING_FRACTION,
			llmgw_nano_to_numeric(fraction(remaining, budget->limit)));
	}
	if (priority != NULL)
		put_text(values, nulls, BEST_TIER, best_tier(budget, account, priority));
}

/* False: what it has spent is not known. */
static bool
budget_row(const LlmConfig *config, const LlmBudget *budget, TimestampTz now, int wait_ms,
		   const LlmPriority *priority, Datum *values, bool *nulls)
{
	LlmAccount	account;
	char	   *problem;
	TimestampTz start = 0;
	TimestampTz end = 0;

	put_text(values, nulls, BUDGET, budget->name);
	if (budget->zone != NULL)
	{
		llmgw_period_of(budget->period, budget->zone, now, &start, &end);
		put(values, nulls, PERIOD_START, TimestampTzGetDatum(start));
		put(values, nulls, RESETS_AT, TimestampTzGetDatum(end));
	}
	if (budget->limit >= 0)
		put(values, nulls, LIMIT_USD, llmgw_nano_to_numeric(budget->limit));
	put_text(values, nulls, PERIOD, llmgw_period_name(budget->period));
	put_text(values, nulls, TIMEZONE, budget->timezone);
	put_text(values, nulls, SCOPE, scope(budget));
	put(values, nulls, STRICT, BoolGetDatum(budget->strict));
	put_text(values, nulls, ON_EXHAUSTED, budget->cache_only ? "cache_only" : "reject");
	put(values, nulls, AS_OF, TimestampTzGetDatum(now));

	problem = budget->zone == NULL ? psprintf("there is no time zone \"%s\"", budget->timezone) :
		llmgw_budget_view(config, budget, start, wait_ms, &account);
	if (problem != NULL)
		put_text(values, nulls, REMARK, problem);
	else
		account_columns(budget, &account, priority, values, nulls);
	return problem == NULL;
}

Datum
llmgw_sql_budget_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	LlmConfig  *config;
	const LlmPriority *priority;
	TimestampTz now = llmgw_wall_clock();
	int			wait_ms = WAIT_MS;
	bool		all;

	InitMaterializedSRF(fcinfo, 0);
	config = llmgw_config_get();

	/* reading an account may read tables, and so the configuration again */
	llmgw_config_pin(config, CurrentMemoryContext);
	priority = llmgw_config_priority(config, llmgw_default_priority);
	all = reports_all(config);
	for (int i = 0; i < config->nbudgets; i++)
	{
		const LlmBudget *budget = &config->budgets[i];
		Datum		values[NCOLUMNS] = {0};
		bool		nulls[NCOLUMNS];

		if (!all && !covers_user(budget))
			continue;
		memset(nulls, true, sizeof(nulls));
		if (!budget_row(config, budget, now, wait_ms, priority, values, nulls))
			wait_ms = 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
