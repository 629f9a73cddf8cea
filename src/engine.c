/*-------------------------------------------------------------------------
 *
 * engine.c
 *	  Drives calls until they are done.
 *
 * A run keeps max_in_flight calls going and starts the next as soon as one
 * ends.  Runs may be nested: an inner one turns the same loop, which also
 * moves the outer's bytes; what became ready there waits on the outer's list.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "engine.h"

static void
start_some(LlmRun *run)
{
	/* never more than there are descriptors for */
	int			most = Min(run->max_in_flight, llmgw_loop_max_connections());

	while (!run->exhausted && run->in_flight < most)
	{
		LlmCall    *call;

		CHECK_FOR_INTERRUPTS();
		call = run->next(run);
		if (call == NULL)
			run->exhausted = true;
		else if (call->state == LLMGW_CALL_DONE ||
				 llmgw_call_start(call, &run->ready))
			run->done(run, call);
		else
			run->in_flight++;
	}
}

static bool
turn(LlmRun *run, LlmInstant until)
{
	start_some(run);
	if (run->in_flight == 0)
		return false;
	if (dlist_is_empty(&run->ready))
		llmgw_loop_turn(until);

	while (!dlist_is_empty(&run->ready))
	{
		LlmReady   *ready = dlist_head_element(LlmReady, node, &run->ready);
		LlmCall    *call = ready->owner;

		llmgw_ready_clear(ready);
		if (llmgw_call_advance(call))
		{
			run->in_flight--;

			/*
			 * As the run dies out, let its connections go, too: hundreds of
			 * idle ones would leave other features of the server without
			 * descriptors.
			 */
			if (run->exhausted)
				llmgw_loop_expect_connections(run->in_flight);
			run->done(run, call);
		}
	}
	return true;
}

void
llmgw_engine_begin(LlmRun *run)
{
	dlist_init(&run->ready);
	run->in_flight = 0;
	run->exhausted = false;
}

void
llmgw_engine_resume(LlmRun *run)
{
	run->exhausted = false;
}

bool
llmgw_engine_turn(LlmRun *run)
{
	return llmgw_engine_turn_until(run, LLMGW_NEVER);
}

bool
llmgw_engine_turn_until(LlmRun *run, LlmInstant until)
{
	volatile bool more = false;

	/*
	 * The transfers point to run->ready, which is our caller's: they must be
	 * gone before an error unwinds its frame.
	 */
	PG_TRY();
	{
		more = turn(run, until);
	}
	PG_CATCH();
	{
		MemoryContextReset(run->context);
		llmgw_loop_expect_connections(0);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return more;
}

void
llmgw_engine_run(LlmRun *run)
{
	llmgw_engine_begin(run);
	while (llmgw_engine_turn(run))
		;
}
