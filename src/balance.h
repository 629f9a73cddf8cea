/*-------------------------------------------------------------------------
 *
 * balance.h
 *	  Shares the calls for a model out among the providers that have it.
 *
 * llm_gateway.load_balancing:
 *
 *	weighted		in proportion to provider's weight times model's weight
 *	round_robin		the same with equal weights
 *	least_busy		fewest calls under way for its weight; among those that
 *					have equally few, weighted
 *	lowest_latency	the faster of two drawn at random (power of two choices);
 *					one call in fifty asks the first drawn, whatever its
 *					latency, so that it is known when a slow one is slow no more
 *
 * A weight of 0 takes part only after all others.
 *
 * TURNS
 *
 * weighted and round_robin are exact: while nothing fails, after any number of
 * calls by all sessions together each provider's count differs from its share
 * by less than one.  Each call adds to every provider's lag what is its share of
 * that call, and takes 1 from the one that gets it.  That one is, of those with a
 * lag above zero, the one whose next call has the earliest deadline: who has
 * to be served before its lag reaches 1.  (Without the first condition, heavy
 * ones would run ahead by more than one call, at the light ones' expense.)
 *
 * A provider that fails, or is far slower than the fastest, gets less before its
 * breaker opens: its weight is multiplied by llmgw_balance_shed().  As a lag
 * grows by the share of the moment, it does not catch up on what it missed.
 *
 * One whose breaker is not closed keeps its turns: the calls skip it and count
 * as fallbacks.  Who gets those is the second list of lags, of what each of the
 * others has served; it does not catch up there, either.  least_busy and
 * lowest_latency ask it after the others, but first when its time has come and
 * only a call can find out how it is.
 *
 * SHARED STATE
 *
 * The lags of a group of providers are in one of llm_gateway.max_providers groups,
 * found by a hash of database, setting, model's name and the endpoints with their
 * weights: changed weights begin anew.  The least recently used group
 * gives way.  Which group has which place is under LLMGW_LOCK_BALANCE: shared to
 * look and to use a group, exclusive to give a place to another one; what is in
 * a group is under its spinlock, held for loops over at most
 * LLMGW_BALANCE_MEMBERS numbers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_BALANCE_H
#define LLMGW_BALANCE_H

#include "endpoint.h"

/* more providers of one model than that are ordered by weight only */
#define LLMGW_BALANCE_MEMBERS	16

typedef enum LlmBalanceTurn
{
	LLMGW_TURN_TAKE,			/* the call's turn */
	LLMGW_TURN_PEEK,			/* changes nothing: what the next call would
								 * get */
	LLMGW_TURN_DRAW				/* asked only when others have failed: instead
								 * of a turn, by chance in proportion */
} LlmBalanceTurn;

extern void llmgw_balance_init(void);

/*
 * Sorts n models, of the same name at different providers, which may all
 * answer: who is to be asked first, and where the call goes when that fails.
 * Returns whether any of them has a closed breaker, as far as is known.
 */
extern bool llmgw_balance(const LlmModel **models, int n, LlmBalanceTurn turn);

/*
 * What is left of a provider's weight, 0.02 .. 1: 1 while nothing fails and it is
 * not far behind the fastest (latency_us of it; 0: not known).
 */
extern double llmgw_balance_shed(const LlmHealth *health, int64 fastest_us);

#endif							/* LLMGW_BALANCE_H */
