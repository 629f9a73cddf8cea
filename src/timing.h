/*-------------------------------------------------------------------------
 *
 * timing.h
 *	  The clock that deadlines, time-outs and latencies are measured with.
 *
 * Everything that waits uses this monotonic clock, so that a wall clock set
 * forwards or back neither ends a call nor makes it hang.  Wall-clock time is
 * only for what people read (GetCurrentTimestamp()).
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_TIMING_H
#define LLMGW_TIMING_H

#include <time.h>

/* A point on the monotonic clock, in microseconds; 0 means "no time". */
typedef int64 LlmInstant;

#define LLMGW_NEVER		PG_INT64_MAX

static inline LlmInstant
llmgw_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (LlmInstant) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* the instant that lies ms milliseconds after from; ms <= 0 means no limit */
static inline LlmInstant
llmgw_after_ms(LlmInstant from, int64 ms)
{
	return ms <= 0 ? LLMGW_NEVER : from + ms * 1000;
}

/*
 * The wall clock, for the periods of budgets, the ages of kept answers and the times
 * in the ledger.  Built with -DLLM_GATEWAY_TESTING it can be set:
 * llm_gateway.testing_clock, a timestamp with time zone.
 */
#ifdef LLM_GATEWAY_TESTING
extern int64 llmgw_wall_clock(void);
#else
#define llmgw_wall_clock()	GetCurrentTimestamp()
#endif

#endif							/* LLMGW_TIMING_H */
