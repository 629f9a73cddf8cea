/*-------------------------------------------------------------------------
 *
 * estimate.h
 *	  What a model's answers were like, so that the next is estimated better.
 *
 * For each model of a provider shared memory holds decaying means: how many tokens an
 * answer had, and how many tokens an input turned out to have for each that was
 * estimated from its characters.  Written after each answer whose usage the provider
 * counted; read by every estimate.  Forgotten when the server stops.
 *
 * LOCKING.  An entry is found without a lock: the table only grows, entries are
 * published by setting their key last, and new ones are added under
 * LLMGW_LOCK_ESTIMATES, exclusive.  The means are atomics, each updated on its own:
 * a lost update is one answer of many.  With no entry free there is no memory of
 * that model.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ESTIMATE_H
#define LLMGW_ESTIMATE_H

#include "cost.h"

/* answers before which the mean is not believed */
#define LLMGW_ESTIMATE_MIN		8

extern void llmgw_estimate_init(void);

/*
 * The expected usage of a request with so many characters; max_tokens as in
 * llmgw_cost_expect().  Input is characters / 4, corrected by what is known of the
 * model; output is max_tokens or else the mean of its answers, or else
 * LLMGW_EXPECTED_OUTPUT; at most what the model can produce.  With
 * llm_gateway.adaptive_estimates off, that is llmgw_cost_expect().
 */
extern void llmgw_estimate(const LlmModel *model, int64 characters, int max_tokens,
						   LlmUsage *usage);
extern LlmNano llmgw_estimate_cost(const LlmModel *model, int64 characters, int max_tokens);

/* The mean answer in tokens; LLMGW_EXPECTED_OUTPUT where it is not known. */
extern int	llmgw_estimate_output(const LlmModel *model);

/*
 * After an answer with a usage of the provider's.  Neither raises nor allocates.
 * whole: the answer says how long answers are; false where the caller's limit cut it,
 * and of embeddings.
 */
extern void llmgw_estimate_learn(const LlmModel *model, int64 characters,
								 const LlmUsage *usage, bool whole);

#endif							/* LLMGW_ESTIMATE_H */
