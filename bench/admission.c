/*-------------------------------------------------------------------------
 *
 * admission.c
 *	  What an endpoint's breaker and limiter cost a call: for benchmarks.
 *
 * Linked with the extension's own objects into a library that is preloaded in
 * their place, since that is the only way to call what SQL cannot: see
 * script/bench.  The calls ask for admission and settle it, as the pipeline does
 * for each attempt, but send nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lwlock.h"

#include "endpoint.h"
#include "shmem.h"

static int64
cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64CONST(1000000000) + ts.tv_nsec;
}

/*
 * bench_admission(calls int, limited bool) returns float8: nanoseconds of CPU time
 * that a call took; limited: with limits of all kinds, too high to be reached.
 */
PG_FUNCTION_INFO_V1(bench_admission);

Datum
bench_admission(PG_FUNCTION_ARGS)
{
	int			calls = PG_GETARG_INT32(0);
	bool		limited = PG_GETARG_BOOL(1);
	static LlmAdmission admission;
	LlmProvider provider = {0};
	LlmReady	ready = {0};
	dlist_head	list = DLIST_STATIC_INIT(list);
	int64		start;

	provider.name = limited ? "bench-limited" : "bench";
	provider.probe = LLMGW_PROBE_MODELS;
	provider.total_ms = 600000;
	provider.fingerprint = 1;
	provider.row_mark = 1;
	provider.breaker.failures = 5;
	provider.breaker.window_us = 60000000;
	provider.breaker.cooldown_us = 30000000;
	if (limited)
	{
		provider.limits.concurrency = 1000000;
		provider.limits.requests = PG_INT32_MAX;
		provider.limits.tokens = PG_INT64_MAX / 4;
	}
	ready.list = &list;

	start = cpu_ns();
	for (int i = 0; i < calls; i++)
	{
		LlmAdmitQuery query = {0};
		LlmSettlement settlement = {0};
		LlmRefusal	refusal;

		query.provider = &provider;
		query.key = "sk-bench-0123456789";
		query.who = LLMGW_ASK_CALL;
		query.rank = 2;
		query.tokens = limited ? 1000 : 0;
		query.ready = &ready;
		if (llmgw_endpoint_admit(&admission, &query, &refusal) != LLMGW_ADMITTED ||
			admission.slot == NULL)
			elog(ERROR, "not admitted to a slot");
		settlement.outcome = LLMGW_OUTCOME_SUCCESS;
		settlement.latency_us = 1000;
		settlement.tokens = 500;
		llmgw_endpoint_settle(&admission, &settlement);
	}
	PG_RETURN_FLOAT8((double) (cpu_ns() - start) / calls);
}

/*
 * bench_lock(calls int) returns float8: the same for a lock that is taken and
 * released twice, which is the least that two visits to shared memory cost.
 */
PG_FUNCTION_INFO_V1(bench_lock);

Datum
bench_lock(PG_FUNCTION_ARGS)
{
	int			calls = PG_GETARG_INT32(0);
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_BALANCE);
	int64		start = cpu_ns();

	for (int i = 0; i < 2 * calls; i++)
	{
		LWLockAcquire(lock, LW_EXCLUSIVE);
		LWLockRelease(lock);
	}
	PG_RETURN_FLOAT8((double) (cpu_ns() - start) / calls);
}
