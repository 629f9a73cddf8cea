/*-------------------------------------------------------------------------
 *
 * cost.h
 *	  What tokens cost, in integer nano-dollars.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_COST_H
#define LLMGW_COST_H

#include "config.h"

/* Money: 1 = 10^-9 USD.  -1: unknown, the model has no price. */
typedef int64 LlmNano;

#define LLMGW_COST_UNKNOWN		((LlmNano) -1)

/*
 * The cost of a usage: uncached input, cached input, cache writes and output
 * each at their price per million tokens, summed exactly and rounded once,
 * half up.  Without a price of its own a cached or cache-written token costs
 * what an input token costs.
 */
extern LlmNano llmgw_cost(const LlmModel *model, const LlmUsage *usage);

/*
 * An estimate before the call: characters / 4 input tokens, and as output
 * max_tokens or, where that is 0, LLMGW_EXPECTED_OUTPUT, at most what the model
 * can produce; nothing where it is LLMGW_NO_OUTPUT, of embeddings.
 */
#define LLMGW_EXPECTED_OUTPUT	256
#define LLMGW_NO_OUTPUT			(-1)
extern void llmgw_cost_expect(const LlmModel *model, int64 characters, int max_tokens,
							  LlmUsage *usage);
extern LlmNano llmgw_cost_estimate(const LlmModel *model, int64 characters, int max_tokens);

/*
 * The most that a request of at most so many input and output tokens can cost,
 * however the provider splits the input into plain, cached and newly cached tokens:
 * the dearest of all that may apply, in each price tier up to that size.
 * LLMGW_COST_UNKNOWN where one of them has no price; PG_INT64_MAX where it is
 * more than fits.
 */
extern LlmNano llmgw_cost_bound(const LlmModel *model, int64 input_tokens,
								int64 output_tokens);

/*
 * The most output tokens with which that bound is no more than room, at most
 * PG_INT32_MAX; -1: not even the input is, or it has no price.
 */
extern int64 llmgw_cost_affordable(const LlmModel *model, int64 input_tokens, LlmNano room);

/* the amount as a numeric in USD with nine decimals at most; NULL datum's caller checks */
extern Datum llmgw_nano_to_numeric(LlmNano nano);

#endif							/* LLMGW_COST_H */
