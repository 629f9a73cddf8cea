/*-------------------------------------------------------------------------
 *
 * route.c
 *	  What a routing decision costs: for benchmarks.
 *
 * Linked like admission.c; see script/bench.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <time.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "guc.h"
#include "route.h"

static int64
cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64CONST(1000000000) + ts.tv_nsec;
}

/*
 * bench_route(calls int, task text, model text, optimize text, tags jsonb) returns
 * float8: nanoseconds of CPU time that a decision took, with the configuration as
 * the session has it; model and tags may be NULL.  Each takes its turn, as a
 * call does.
 */
PG_FUNCTION_INFO_V1(bench_route);

Datum
bench_route(PG_FUNCTION_ARGS)
{
	int			calls = PG_GETARG_INT32(0);
	LlmRouteQuery query = {0};
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "bench",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	int64		start;

	query.task = text_to_cstring(PG_GETARG_TEXT_PP(1));
	query.model = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	query.optimize = llmgw_optimize_from_name(text_to_cstring(PG_GETARG_TEXT_PP(3)));
	query.tags = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	query.role = GetUserId();
	query.characters = 400;

	old = MemoryContextSwitchTo(context);
	start = cpu_ns();
	for (int i = 0; i < calls; i++)
	{
		LlmRoute	route;

		llmgw_route(llmgw_config_get(), &query, &route);
		if (llmgw_route_first(&route) == NULL)
			elog(ERROR, "no model may answer");
		MemoryContextReset(context);
	}
	start = cpu_ns() - start;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	PG_RETURN_FLOAT8((double) start / calls);
}
