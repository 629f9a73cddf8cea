/*-------------------------------------------------------------------------
 *
 * budget_period.c
 *	  Hours, days, weeks and months of a time zone.
 *
 * Days and what is made of them begin at a midnight, and end at the next one that
 * begins a period.  What moment a midnight is, DetermineTimeZoneOffset() says, as for
 * date_trunc(): where a clock that is set forwards skips it, that of the change;
 * where one that is set back shows it twice, the second.  In the hour between two
 * such midnights the clock shows the new day already; the old one lasts until
 * the second, so that every moment has exactly one day.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/datetime.h"

#include "budget_period.h"

/* months are counted from here; before it there are no timestamps */
#define FIRST_YEAR		(-5000)

static const char *const names[LLMGW_NPERIODS] = {"hour", "day", "week", "month"};

int
llmgw_period_from_name(const char *name)
{
	for (int i = 0; i < LLMGW_NPERIODS; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	return -1;
}

const char *
llmgw_period_name(LlmPeriod period)
{
	return names[period];
}

/* The number of the period with that date: a day's, its Monday's, a month's. */
static int
number_of(LlmPeriod period, const struct pg_tm *tm)
{
	int			day;

	if (period == LLMGW_PERIOD_MONTH)
		return (tm->tm_year - FIRST_YEAR) * MONTHS_PER_YEAR + tm->tm_mon - 1;
	day = date2j(tm->tm_year, tm->tm_mon, tm->tm_mday);
	if (period == LLMGW_PERIOD_WEEK)
		day -= (j2day(day) + 6) % 7;
	return day;
}

/* When the period with that number begins.  Rises with the number. */
static TimestampTz
beginning(LlmPeriod period, int number, pg_tz *zone)
{
	struct pg_tm tm = {0};
	TimestampTz at;
	int			offset;

	if (period == LLMGW_PERIOD_MONTH)
	{
		tm.tm_year = number / MONTHS_PER_YEAR + FIRST_YEAR;
		tm.tm_mon = number % MONTHS_PER_YEAR + 1;
		tm.tm_mday = 1;
	}
	else
		j2date(number, &tm.tm_year, &tm.tm_mon, &tm.tm_mday);
	offset = DetermineTimeZoneOffset(&tm, zone);
	if (tm2timestamp(&tm, 0, &offset, &at) == 0)
		return at;
	return tm.tm_year < 0 ? DT_NOBEGIN : DT_NOEND;
}

void
llmgw_period_of(LlmPeriod period, pg_tz *zone, TimestampTz at,
				TimestampTz *start, TimestampTz *end)
{
	int			step = period == LLMGW_PERIOD_WEEK ? 7 : 1;
	struct pg_tm tm;
	fsec_t		fsec;
	int			offset;
	int			number;

	if (TIMESTAMP_NOT_FINITE(at) || timestamp2tm(at, &offset, &tm, &fsec, NULL, zone) != 0)
	{
		*start = DT_NOBEGIN;
		*end = DT_NOEND;
		return;
	}
	if (period == LLMGW_PERIOD_HOUR)
	{
		*start = at - (tm.tm_min * SECS_PER_MINUTE + tm.tm_sec) * USECS_PER_SEC - fsec;
		*end = *start + USECS_PER_HOUR;
		if (!IS_VALID_TIMESTAMP(*start))
			*start = DT_NOBEGIN;
		if (!IS_VALID_TIMESTAMP(*end))
			*end = DT_NOEND;
		return;
	}
	number = number_of(period, &tm);
	*start = beginning(period, number, zone);
	*end = beginning(period, number + step, zone);
	while (*start > at)
	{
		number -= step;
		*end = *start;
		*start = beginning(period, number, zone);
	}
	while (*end <= at)
	{
		number += step;
		*start = *end;
		*end = beginning(period, number + step, zone);
	}
}
