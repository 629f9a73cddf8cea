/*-------------------------------------------------------------------------
 *
 * budget_period.h
 *	  Hours, days, weeks and months of a time zone.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BUDGET_PERIOD_H
#define LLMGW_BUDGET_PERIOD_H

#include "pgtime.h"
#include "utils/timestamp.h"

typedef enum LlmPeriod
{
	LLMGW_PERIOD_HOUR,
	LLMGW_PERIOD_DAY,
	LLMGW_PERIOD_WEEK,			/* from Monday */
	LLMGW_PERIOD_MONTH,
	LLMGW_NPERIODS
} LlmPeriod;

/* the words of llm_budgets.period; -1: none */
extern int	llmgw_period_from_name(const char *name);
extern const char *llmgw_period_name(LlmPeriod period);

/*
 * The period of that zone in which a moment lies: start <= at < end.  Periods
 * follow on one another without gaps but for hours where a zone's offset changes by
 * a part of an hour; a day has 23 or 25 hours where the clock is changed.  Does not
 * raise for any moment that the clock may show; beyond the range of timestamps
 * the end is the end of time.
 */
extern void llmgw_period_of(LlmPeriod period, pg_tz *zone, TimestampTz at,
							TimestampTz *start, TimestampTz *end);

#endif							/* LLMGW_BUDGET_PERIOD_H */
