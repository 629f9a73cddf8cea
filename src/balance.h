/*-------------------------------------------------------------------------
 *
 * balance.h
 *	  Shares the calls for a model out among the providers that have it.
 *
 * llm_gateway.load_balancing:
 *
 *	weighted		in proportion to provider's weight times model's weight: exact
 *					over any number of calls, by all sessions together (each
 *					provider is as far behind its share as possible: the one with
 *					the smallest virtual time, (calls + 1) / weight, is next)
 *	round_robin		the same with equal weights
 *	least_busy		fewest calls under way for its weight
 *	lowest_latency	the faster of two drawn at random (power of two choices)
 *
 * A weight of 0 takes part only after all others.  In weighted and
 * round_robin a provider that fails, or is far slower than the fastest, gets less
 * than its share before its breaker opens: its weight is multiplied by
 * llmgw_balance_shed().  One that was away does not catch up on what it missed.
 *
 * The state (virtual times of a group of providers) is in shared memory, in
 * llm_gateway.max_providers groups, found by a hash of database, model's name and
 * the endpoints with their weights: changed weights begin anew.  Each
 * group has a spinlock, held for a loop over at most
 * LLMGW_BALANCE_MEMBERS numbers.  The least recently used group gives way.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BALANCE_H
#define LLMGW_BALANCE_H

#include "endpoint.h"

/* more providers of one model than that are ordered by weight only */
#define LLMGW_BALANCE_MEMBERS	16

extern void llmgw_balance_init(void);

/*
 * Sorts n models, of the same name at different providers, which may all
 * answer: who is to be asked first, and where the call goes when that fails.  With
 * peek it changes nothing and says what the next call would get.
 */
extern void llmgw_balance(const LlmModel **models, int n, bool peek);

/*
 * What is left of a provider's weight, 0.02 .. 1: 1 while nothing fails and it is
 * not far behind the fastest (latency_us of it; 0: not known).
 */
extern double llmgw_balance_shed(const LlmHealth *health, int64 fastest_us);

#endif							/* LLMGW_BALANCE_H */
