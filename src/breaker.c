/*-------------------------------------------------------------------------
 *
 * breaker.c
 *	  The circuit breaker of an endpoint: a state machine and nothing else.
 *
 * What each state remembers:
 *
 *	CLOSED		the failures since the last success, and how often it has opened
 *				since then
 *	OPEN		the later of all deadlines that were asked for: cool-down, Retry-After,
 *				parking (probe_at)
 *	HALF_OPEN	which pass is the probe, and until when; deadlines that came
 *				meanwhile (probe_at, too)
 *
 * Each change of state or reason makes another epoch, by which passes given
 * before it are known.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "breaker.h"

/* The moment us later; never beyond LLMGW_NEVER. */
static LlmInstant
later(LlmInstant at, int64 us)
{
	return us >= LLMGW_NEVER - at ? LLMGW_NEVER : at + us;
}

static bool
is_stopped_by_operator(const LlmBreaker *breaker)
{
	return breaker->state != LLMGW_BREAKER_CLOSED && breaker->reason == LLMGW_BREAKER_OPERATOR;
}

static bool
is_parked(const LlmBreaker *breaker)
{
	return breaker->state != LLMGW_BREAKER_CLOSED &&
		(breaker->reason == LLMGW_BREAKER_AUTH || breaker->reason == LLMGW_BREAKER_QUOTA);
}

/* Goes into a state other than CLOSED. */
static void
enter(LlmBreaker *breaker, LlmBreakerState state, LlmBreakerReason reason, LlmInstant now)
{
	if (breaker->state == LLMGW_BREAKER_CLOSED)
		breaker->opened_at = now;
	breaker->state = state;
	breaker->reason = reason;
	breaker->epoch++;
}

/* Closes it; what was probed and what was waited for is over. */
static void
close_it(LlmBreaker *breaker, bool forget_openings)
{
	breaker->state = LLMGW_BREAKER_CLOSED;
	breaker->reason = LLMGW_BREAKER_OUTAGE;
	breaker->epoch++;
	breaker->nfailures = 0;
	if (forget_openings)
		breaker->openings = 0;
	breaker->opened_at = 0;
	breaker->probe_at = 0;
	breaker->probe_until = 0;
	breaker->parked_mark = 0;
}

static void
count_failure(LlmBreaker *breaker, LlmInstant now)
{
	/* the place in the ring stays the same */
	if (breaker->nfailures == PG_INT32_MAX)
		breaker->nfailures -= LLMGW_BREAKER_MEMORY;
	breaker->failures[breaker->nfailures % LLMGW_BREAKER_MEMORY] = now;
	breaker->nfailures++;
}

/* Whether the last failure is one too many. */
static bool
enough_failures(const LlmBreaker *breaker, const LlmBreakerSettings *settings, LlmInstant now)
{
	int			remembered = Min(settings->failures, LLMGW_BREAKER_MEMORY);
	LlmInstant	first;

	if (breaker->nfailures < settings->failures)
		return false;
	first = breaker->failures[(breaker->nfailures - remembered) % LLMGW_BREAKER_MEMORY];
	return settings->window_us == 0 || now - first <= settings->window_us;
}

/* The cool-down after so many openings in a row. */
static int64
cooldown(const LlmBreakerSettings *settings, int openings)
{
	int64		longest = Max(settings->cooldown_us, LLMGW_BREAKER_MAX_COOLDOWN);
	int			doublings = Min(openings - 1, 62);

	return settings->cooldown_us > (longest >> doublings) ? longest :
		settings->cooldown_us << doublings;
}

/* Opens it for an outage, once more. */
static void
open_for_outage(LlmBreaker *breaker, const LlmBreakerSettings *settings,
				int64 retry_after_us, LlmInstant now)
{
	if (breaker->openings < PG_INT32_MAX)
		breaker->openings++;
	enter(breaker, LLMGW_BREAKER_OPEN, LLMGW_BREAKER_OUTAGE, now);
	breaker->parked_mark = 0;
	breaker->probe_at = Max(breaker->probe_at,
							later(now, Max(cooldown(settings, breaker->openings), retry_after_us)));
}

/*
 * Parks it.  Of two reasons to park it the one that keeps it for longer counts; an
 * outage's deadline that is later still is kept, too.
 */
static void
park(LlmBreaker *breaker, LlmBreakerReason reason, uint64 mark, LlmInstant until, LlmInstant now)
{
	if (is_parked(breaker) && breaker->state == LLMGW_BREAKER_OPEN && breaker->probe_at >= until)
		return;
	if (breaker->state != LLMGW_BREAKER_OPEN || breaker->reason != reason)
		enter(breaker, LLMGW_BREAKER_OPEN, reason, now);
	breaker->parked_mark = mark;
	breaker->probe_at = Max(breaker->probe_at, until);
}

LlmInstant
llmgw_breaker_may_probe_at(const LlmBreaker *breaker, LlmBreakerAsk who)
{
	LlmInstant	at = breaker->probe_at;

	if (breaker->state == LLMGW_BREAKER_CLOSED)
		return LLMGW_NEVER;
	if (breaker->state == LLMGW_BREAKER_HALF_OPEN)
		at = Max(at, breaker->probe_until);

	/*
	 * Only a call shows whether there is credit again.  A list of models,
	 * say, costs nothing, and a page that is probed may need no key.
	 */
	if (is_parked(breaker))
		return who == LLMGW_ASK_PROBE ? LLMGW_NEVER : at;
	return who == LLMGW_ASK_CALL ? later(at, LLMGW_PROBE_GRACE) : at;
}

LlmBreakerAnswer
llmgw_breaker_ask(LlmBreaker *breaker, LlmBreakerAsk who, uint64 mark, int64 probe_us,
				  LlmInstant now, bool peek, LlmBreakerPass *pass)
{
	LlmBreakerAnswer answer;

	if (is_stopped_by_operator(breaker))
		return LLMGW_BREAKER_STOPPED;

	if (breaker->state == LLMGW_BREAKER_CLOSED)
		answer = LLMGW_BREAKER_PASS;
	else if (is_parked(breaker) && mark != breaker->parked_mark)
	{
		/* another row or key: nothing is known of it */
		answer = LLMGW_BREAKER_PASS;
		if (!peek)
			close_it(breaker, true);
	}
	else if (who == LLMGW_ASK_FORCE && !is_parked(breaker))
		answer = LLMGW_BREAKER_PASS;
	else if (who != LLMGW_ASK_FORCE && now >= llmgw_breaker_may_probe_at(breaker, who))
	{
		answer = LLMGW_BREAKER_PROBE;
		if (!peek)
		{
			if (breaker->state == LLMGW_BREAKER_OPEN)
				enter(breaker, LLMGW_BREAKER_HALF_OPEN, breaker->reason, now);
			if (++breaker->probe == 0)
				breaker->probe = 1;
			breaker->probe_until = later(now, probe_us);
		}
	}
	else
		return is_parked(breaker) ? LLMGW_BREAKER_STOPPED : LLMGW_BREAKER_REFUSED;

	if (!peek)
	{
		pass->epoch = breaker->epoch;
		pass->probe = answer == LLMGW_BREAKER_PROBE ? breaker->probe : 0;
		pass->forced = answer == LLMGW_BREAKER_PASS && breaker->state != LLMGW_BREAKER_CLOSED;
	}
	return answer;
}

/* A result that counts, while it is closed. */
static void
result_while_closed(LlmBreaker *breaker, const LlmBreakerSettings *settings,
					LlmBreakerOutcome outcome, int64 retry_after_us, LlmInstant now)
{
	if (outcome == LLMGW_OUTCOME_SUCCESS)
	{
		breaker->nfailures = 0;
		breaker->openings = 0;
	}
	else if (outcome == LLMGW_OUTCOME_FAILURE)
	{
		count_failure(breaker, now);
		if (enough_failures(breaker, settings, now))
			open_for_outage(breaker, settings, retry_after_us, now);
	}
}

/* A result that counts, of the probe or of a call by force, while it is not. */
static void
result_while_broken(LlmBreaker *breaker, const LlmBreakerSettings *settings, bool probe,
					LlmBreakerOutcome outcome, int64 retry_after_us, LlmInstant now)
{
	if (outcome == LLMGW_OUTCOME_SUCCESS)
		close_it(breaker, true);
	else if (outcome == LLMGW_OUTCOME_ALIVE && !is_parked(breaker))
		close_it(breaker, false);
	else if (outcome == LLMGW_OUTCOME_FAILURE && probe)
	{
		count_failure(breaker, now);
		open_for_outage(breaker, settings, retry_after_us, now);
	}
	else
	{
		/* nobody knows: the next one may probe at once */
		if (probe)
		{
			enter(breaker, LLMGW_BREAKER_OPEN, breaker->reason, now);
			breaker->probe_at = Max(breaker->probe_at, now);
		}
		if (retry_after_us > 0)
			breaker->probe_at = Max(breaker->probe_at, later(now, retry_after_us));
	}
}

void
llmgw_breaker_result(LlmBreaker *breaker, const LlmBreakerSettings *settings,
					 const LlmBreakerPass *pass, LlmBreakerOutcome outcome,
					 uint64 mark, int64 retry_after_us, LlmInstant now)
{
	if (is_stopped_by_operator(breaker))
		return;
	if (outcome == LLMGW_OUTCOME_AUTH)
		park(breaker, LLMGW_BREAKER_AUTH, mark,
			 later(now, Max(LLMGW_PARK_AUTH, retry_after_us)), now);
	else if (outcome == LLMGW_OUTCOME_QUOTA)
		park(breaker, LLMGW_BREAKER_QUOTA, mark,
			 later(now, Max(LLMGW_PARK_QUOTA, retry_after_us)), now);
	else if (pass->epoch != breaker->epoch)
		return;
	else if (pass->probe != 0 && pass->probe != breaker->probe)
		return;
	else if (breaker->state == LLMGW_BREAKER_CLOSED)
		result_while_closed(breaker, settings, outcome, retry_after_us, now);
	else
		result_while_broken(breaker, settings, pass->probe != 0, outcome, retry_after_us, now);
}

void
llmgw_breaker_open(LlmBreaker *breaker, LlmInstant now)
{
	if (is_stopped_by_operator(breaker))
		return;
	enter(breaker, LLMGW_BREAKER_OPEN, LLMGW_BREAKER_OPERATOR, now);
	breaker->parked_mark = 0;
	breaker->probe_at = LLMGW_NEVER;
}

/* In a closed one the results of what is under way do not count any more. */
void
llmgw_breaker_reset(LlmBreaker *breaker, LlmInstant now)
{
	close_it(breaker, true);
}

const char *
llmgw_breaker_state_name(LlmBreakerState state)
{
	static const char *const names[] = {
		[LLMGW_BREAKER_CLOSED] = "closed",
		[LLMGW_BREAKER_OPEN] = "open",
		[LLMGW_BREAKER_HALF_OPEN] = "half_open",
	};

	return names[state];
}

const char *
llmgw_breaker_reason_name(LlmBreakerReason reason)
{
	static const char *const names[] = {
		[LLMGW_BREAKER_OUTAGE] = "outage",
		[LLMGW_BREAKER_AUTH] = "auth",
		[LLMGW_BREAKER_QUOTA] = "quota",
		[LLMGW_BREAKER_OPERATOR] = "operator",
	};

	return names[reason];
}
