/*-------------------------------------------------------------------------
 *
 * functions_prices.h
 *	  One entry of a price list in LiteLLM's format.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_FUNCTIONS_PRICES_H
#define LLMGW_FUNCTIONS_PRICES_H

#include "utils/jsonb.h"
#include "utils/numeric.h"

/* The list's prices, and what they are in llm_models and its price_tiers. */
#define LLMGW_NPRICES			4

typedef struct LlmPriceWords
{
	const char *key;
	const char *column;
	const char *member;
} LlmPriceWords;

extern const LlmPriceWords llmgw_price_words[LLMGW_NPRICES];

/* What a model can do: our words, and the list's; NULL: not a flag there. */
enum
{
	LLMGW_CAN_CHAT,
	LLMGW_CAN_COMPLETION,
	LLMGW_CAN_STREAMING,
	LLMGW_CAN_SYSTEM_PROMPT,
	LLMGW_CAN_TEMPERATURE,
	LLMGW_CAN_REASONING,
	LLMGW_CAN_TOOLS,
	LLMGW_CAN_JSON_OBJECT,
	LLMGW_CAN_JSON_SCHEMA,
	LLMGW_CAN_IMAGE,
	LLMGW_CAN_AUDIO,
	LLMGW_CAN_EMBEDDING,
	LLMGW_CAN_PROMPT_CACHE,
	LLMGW_NCAPABILITIES
};

typedef struct LlmCapabilityWords
{
	const char *name;
	const char *flag;
} LlmCapabilityWords;

extern const LlmCapabilityWords llmgw_capability_words[LLMGW_NCAPABILITIES];

typedef enum LlmClaim
{
	LLMGW_UNSAID = 0,
	LLMGW_CAN,
	LLMGW_CANNOT
} LlmClaim;

/* sizes of prompts that an entry may have prices for */
#define LLMGW_MAX_PRICE_SIZES	16

/* Prices of prompts above a size; as everywhere here, NULL: not mentioned. */
typedef struct LlmPriceSize
{
	int64		above_tokens;
	Numeric		prices[LLMGW_NPRICES];	/* USD per token, from 0 to 1 */
} LlmPriceSize;

/* An entry of the list; its numbers point into the document. */
typedef struct LlmPriceEntry
{
	char	   *provider;
	Numeric		prices[LLMGW_NPRICES];
	int			nsizes;			/* by above_tokens */
	LlmPriceSize sizes[LLMGW_MAX_PRICE_SIZES];
	int64		max_input_tokens;	/* 0: not mentioned */
	int64		max_output_tokens;
	int64		max_tokens;
	LlmClaim	claims[LLMGW_NCAPABILITIES];
} LlmPriceEntry;

/*
 * Reads an entry.  Returns NULL, or, when it is malformed, why, in words that
 * hold nothing of its values.  Palloc's in the current context.
 */
extern const char *llmgw_price_entry_read(const JsonbValue *value, LlmPriceEntry *entry);

#endif							/* LLMGW_FUNCTIONS_PRICES_H */
