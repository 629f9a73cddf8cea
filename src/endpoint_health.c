/*-------------------------------------------------------------------------
 *
 * endpoint_health.c
 *	  How an endpoint is doing: learned from attempts, told to those who choose.
 *
 * Latency and the share of failures are decaying means.  A new sample weighs
 * SAMPLE_WEIGHT, and more the older the last one is.  While nothing happens
 * failures fade, so that an endpoint that was shunned for them is tried again;
 * latencies do not, since nobody knows a better one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/timestamp.h"

#include "endpoint_private.h"

#define SAMPLE_WEIGHT	0.2
#define HALF_LIFE		30e6	/* microseconds */
#define MILLION			1e6

/* a time that is further back is told with its date */
#define SAME_DAY		(12 * SECS_PER_HOUR)

/* What is left of something that was learned then. */
static double
faded(LlmInstant then, LlmInstant now)
{
	return then == 0 || now <= then ? 1 : exp2(-(now - then) / HALF_LIFE);
}

void
llmgw_endpoint_learn(LlmEndpoint *slot, const LlmSettlement *settlement, LlmInstant now)
{
	LlmBreakerOutcome outcome = settlement->outcome;
	bool		failed = outcome == LLMGW_OUTCOME_FAILURE || outcome == LLMGW_OUTCOME_AUTH ||
	outcome == LLMGW_OUTCOME_QUOTA;
	bool		succeeded = outcome == LLMGW_OUTCOME_SUCCESS;

	if (succeeded)
		slot->successes++;
	else if (outcome == LLMGW_OUTCOME_FAILURE)
		slot->failures++;

	/* operators see it, and others: what a prompt is blamed for may quote it */
	if (failed || settlement->error == LLMGW_RATE_LIMIT)
	{
		const char *message = settlement->message != NULL ? settlement->message : "";
		int			len = pg_mbcliplen(message, strlen(message), sizeof(slot->last_message) - 1);

		slot->last_error = settlement->error;
		slot->last_error_at = GetCurrentTimestamp();
		memcpy(slot->last_message, message, len);
		slot->last_message[len] = '\0';
	}

	if (failed || succeeded)
	{
		double		rest = faded(pg_atomic_read_u64(&slot->settled_at), now);
		double		share = pg_atomic_read_u64(&slot->failure_ppm) * rest;
		double		latency = pg_atomic_read_u64(&slot->latency_us);

		share += SAMPLE_WEIGHT * ((failed ? MILLION : 0) - share);
		pg_atomic_write_u64(&slot->failure_ppm, (uint64) share);
		if (succeeded && settlement->latency_us > 0)
		{
			double		old = latency > 0 ? (1 - SAMPLE_WEIGHT) * rest : 0;

			latency = latency * old + settlement->latency_us * (1 - old);
			pg_atomic_write_u64(&slot->latency_us, (uint64) Max(latency, 1));
		}
		pg_atomic_write_u64(&slot->settled_at, now);
	}
}

bool
llmgw_endpoint_outdated(const LlmProvider *provider, uint64 parked_mark)
{
	const char *key;
	char	   *reason;

	return parked_mark != 0 && llmgw_config_key(provider, &key, &reason) &&
		llmgw_endpoint_mark(provider, key) != parked_mark;
}

void
llmgw_endpoint_health(const LlmProvider *provider, LlmHealth *health)
{
	LlmEndpoint *slot = provider->endpoint;
	uint64		failure_ppm;
	bool		outdated;

	memset(health, 0, sizeof(*health));
	health->closed = true;

	/* what was remembered may be another's by now: then it is looked up */
	if (slot == NULL || slot->database != MyDatabaseId ||
		slot->fingerprint != provider->fingerprint)
	{
		slot = llmgw_endpoint_lock(provider, false);
		if (slot == NULL)
			return;
		LWLockRelease(&slot->lock);
	}
	health->known = true;
	outdated = llmgw_endpoint_outdated(provider, pg_atomic_read_u64(&slot->parked_mark));
	health->closed = outdated || pg_atomic_read_u32(&slot->closed) != 0;
	health->due = !health->closed &&
		(LlmInstant) pg_atomic_read_u64(&slot->due_at) <= llmgw_now();
	health->in_flight = pg_atomic_read_u32(&slot->in_flight);
	health->latency_us = pg_atomic_read_u64(&slot->latency_us);
	failure_ppm = pg_atomic_read_u64(&slot->failure_ppm);
	if (failure_ppm > 0 && !outdated)
		health->failures = failure_ppm / MILLION *
			faded(pg_atomic_read_u64(&slot->settled_at), llmgw_now());
}

/* In whole seconds, at least one. */
static int
seconds_until(LlmInstant at, LlmInstant now)
{
	int64		us = Max(at - now, 1);

	return (int) Min((us + 999999) / 1000000, PG_INT32_MAX);
}

/* A moment of the past, for people. */
static char *
time_of_day(LlmInstant at)
{
	pg_time_t	then = timestamptz_to_time_t(llmgw_endpoint_wall_time(at));
	pg_time_t	now = timestamptz_to_time_t(GetCurrentTimestamp());
	char text[	64];

	pg_strftime(text, sizeof(text), now - then < SAME_DAY ? "%H:%M:%S" : "%Y-%m-%d %H:%M:%S",
				pg_localtime(&then, session_timezone));
	return pstrdup(text);
}

/* " (class: message)", or nothing. */
static char *
last_error_words(LlmErrorClass error, const char *message)
{
	if (error == LLMGW_OK)
		return "";
	if (message[0] == '\0')
		return psprintf(" (%s)", llmgw_error_class_name(error));
	return psprintf(" (%s: %s)", llmgw_error_class_name(error), message);
}

static char *
breaker_words(const LlmBreaker *breaker, const char *error, LlmInstant now)
{
	const char *parked = NULL;

	switch (breaker->reason)
	{
		case LLMGW_BREAKER_OPERATOR:
			return psprintf("opened by an operator at %s", time_of_day(breaker->opened_at));
		case LLMGW_BREAKER_AUTH:
			parked = "the key is refused";
			break;
		case LLMGW_BREAKER_QUOTA:
			parked = "no credit is left";
			break;
		case LLMGW_BREAKER_OUTAGE:
			break;
	}
	if (parked != NULL && breaker->state == LLMGW_BREAKER_HALF_OPEN)
		return psprintf("parked: %s; a call is trying again%s", parked, error);
	if (parked != NULL)
		return psprintf("parked for %d s: %s%s", seconds_until(breaker->probe_at, now), parked,
						error);
	if (breaker->state == LLMGW_BREAKER_HALF_OPEN)
		return psprintf("its breaker is open since %s after %d %s, a probe is under way%s",
						time_of_day(breaker->opened_at), breaker->nfailures,
						breaker->nfailures == 1 ? "failure" : "failures", error);
	return psprintf("its breaker is open since %s after %d %s, next probe %s%s",
					time_of_day(breaker->opened_at), breaker->nfailures,
					breaker->nfailures == 1 ? "failure" : "failures",
					breaker->probe_at <= now ? "now" :
					psprintf("in %d s", seconds_until(breaker->probe_at, now)), error);
}

static char *
limiter_words(LlmObstacle obstacle, const LlmLimits *limits, int nwaiters, int easing,
			  int64 tokens, LlmInstant until, LlmInstant now)
{
	char	   *wait = nwaiters == 0 ? "" :
	psprintf(nwaiters == 1 ? ", %d waits" : ", %d wait", nwaiters);

	switch (obstacle)
	{
		case LLMGW_OBSTACLE_NONE:
			return NULL;
		case LLMGW_OBSTACLE_CONCURRENCY:
			return psprintf("all %d of max_concurrency are in use%s", limits->concurrency, wait);
		case LLMGW_OBSTACLE_PAUSE:
			return psprintf("rate limited for %d s%s", seconds_until(until, now), wait);
		case LLMGW_OBSTACLE_EASING:
			return psprintf("it was rate limited and gets %d at a time for now%s", easing, wait);
		case LLMGW_OBSTACLE_REQUESTS:
			return psprintf("all %d of requests_per_minute are used for %d s%s", limits->requests,
							seconds_until(until, now), wait);
		case LLMGW_OBSTACLE_TOKENS:
			return psprintf("tokens_per_minute (" INT64_FORMAT ") has no room for " INT64_FORMAT
							" more for %d s%s", limits->tokens, tokens, seconds_until(until, now),
							wait);
		case LLMGW_OBSTACLE_QUEUE:
			return psprintf("%d %s for it already", nwaiters, nwaiters == 1 ? "waits" : "wait");
	}
	return NULL;
}

char *
llmgw_endpoint_problem(const LlmProvider *provider, int rank, int64 tokens)
{
	LlmBreakerAsk who = llmgw_endpoint_ask(provider, LLMGW_ASK_CALL);
	LlmEndpoint *slot = llmgw_endpoint_lock(provider, false);
	LlmBreaker	breaker;
	LlmBreakerPass pass;
	LlmBreakerAnswer answer;
	LlmErrorClass error;
	char		message[sizeof(slot->last_message)];
	LlmObstacle obstacle;
	LlmInstant	now;
	LlmInstant	until;
	int			nwaiters;
	int			easing;

	if (slot == NULL)
		return NULL;
	now = llmgw_now();
	breaker = slot->breaker;
	obstacle = llmgw_limiter_obstacle(&slot->limiter, LLMGW_WAITERS, &provider->limits,
									  now + rank * LLMGW_RANK_US, tokens, now, &until);
	nwaiters = slot->limiter.nwaiters;
	easing = slot->limiter.easing;
	error = slot->last_error;
	strlcpy(message, slot->last_message, sizeof(message));
	LWLockRelease(&slot->lock);

	if (llmgw_endpoint_outdated(provider, breaker.parked_mark))
		return limiter_words(obstacle, &provider->limits, nwaiters, easing, tokens, until, now);
	answer = llmgw_breaker_ask(&breaker, who, breaker.parked_mark,
							   llmgw_endpoint_probe_us(provider), now, true, &pass);
	if (answer == LLMGW_BREAKER_REFUSED || answer == LLMGW_BREAKER_STOPPED)
		return breaker_words(&breaker, last_error_words(error, message), now);
	return limiter_words(obstacle, &provider->limits, nwaiters, easing, tokens, until, now);
}
