/*-------------------------------------------------------------------------
 *
 * functions_embed.h
 *	  What llm_embed and llm_embed_batch have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_FUNCTIONS_EMBED_H
#define LLMGW_FUNCTIONS_EMBED_H

#include "functions.h"

/*
 * Positions of the arguments, which are those of every call but for what has no
 * meaning here.
 */
enum
{
	LLMGW_EMBED_INPUT = LLMGW_ARG_PROMPT,
	LLMGW_EMBED_TASK = LLMGW_ARG_TASK,
	LLMGW_EMBED_PARAMS = LLMGW_ARG_SYSTEM_PROMPT,
	LLMGW_EMBED_TIMEOUT_MS,
	LLMGW_EMBED_CACHE,
	LLMGW_EMBED_TAGS,
	LLMGW_EMBED_DIMENSIONS,
	LLMGW_EMBED_MAX_CONCURRENCY
};

/*
 * Reads the arguments of either, but for the input, into a new LlmSpec, as
 * llmgw_args_read() does.
 */
extern LlmSpec *llmgw_embed_read_args(FunctionCallInfo fcinfo, MemoryContext context);

/* a vector as an array of SQL, palloc'd */
extern Datum llmgw_embed_array(const float4 *vector, int dimensions);

#endif							/* LLMGW_FUNCTIONS_EMBED_H */
