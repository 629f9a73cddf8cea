/*-------------------------------------------------------------------------
 *
 * engine.h
 *	  Drives calls until they are done: one, or a thousand at a time.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ENGINE_H
#define LLMGW_ENGINE_H

#include "call.h"

typedef struct LlmRun LlmRun;
struct LlmRun
{
	/* set by the caller */
	MemoryContext context;		/* in which next() makes its calls */
	int			max_in_flight;
	LlmCall    *(*next) (LlmRun *run);	/* the next call, or NULL when there
										 * is none left */
	void		(*done) (LlmRun *run, LlmCall *call);	/* takes what it needs
														 * and frees the call */
	void	   *arg;

	/* private to engine.c */
	dlist_head	ready;
	int			in_flight;
	bool		exhausted;
};

/*
 * A run whose owner looks at its calls between turns of the loop: begin, then
 * turns until one returns false, which then has no call under way and none left.
 * What was begun ends with run->context, whenever that goes.
 */
extern void llmgw_engine_begin(LlmRun *run);
extern bool llmgw_engine_turn(LlmRun *run);

/* The same, but waits no longer than that. */
extern bool llmgw_engine_turn_until(LlmRun *run, LlmInstant until);

/*
 * next() has more again, after it has returned NULL: the run goes on, also one
 * that had ended.  May be called by done().
 */
extern void llmgw_engine_resume(LlmRun *run);

/*
 * Returns when next() has no more and every call is done.  When it raises (an
 * interrupt, out of memory, an error of next() or done()), it first resets
 * run->context: nothing of the run is left on the wire.
 */
extern void llmgw_engine_run(LlmRun *run);

#endif							/* LLMGW_ENGINE_H */
