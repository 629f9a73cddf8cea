/*-------------------------------------------------------------------------
 *
 * budget_period_sql.c
 *	  Budgets' periods as a function, to be compared with date_trunc().
 *
 * A library of its own, built by t/042_budget_period.pl:
 *
 *		cc -shared -fPIC -Isrc -I... budget_period_sql.c src/budget_period.c
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "budget_period.h"

PG_MODULE_MAGIC;

/*
 * period_bound(period text, zone text, at timestamptz, upper bool) returns
 * timestamptz: the start of the period, or its end.
 */
PG_FUNCTION_INFO_V1(period_bound);

Datum
period_bound(PG_FUNCTION_ARGS)
{
	int			period = llmgw_period_from_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	pg_tz	   *zone = pg_tzset(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	TimestampTz start;
	TimestampTz end;

	if (period < 0 || zone == NULL)
		elog(ERROR, "no such period or zone");
	llmgw_period_of(period, zone, PG_GETARG_TIMESTAMPTZ(2), &start, &end);
	PG_RETURN_TIMESTAMPTZ(PG_GETARG_BOOL(3) ? end : start);
}

/* period_name(text) returns text: there and back; NULL when it is none */
PG_FUNCTION_INFO_V1(period_name);

Datum
period_name(PG_FUNCTION_ARGS)
{
	int			period = llmgw_period_from_name(text_to_cstring(PG_GETARG_TEXT_PP(0)));

	if (period < 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(llmgw_period_name(period)));
}
