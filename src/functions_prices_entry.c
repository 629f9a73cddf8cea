/*-------------------------------------------------------------------------
 *
 * functions_prices_entry.c
 *	  One entry of a price list in LiteLLM's format.
 *
 * A published list is long, written by many hands, and trusted with money:
 * whatever an entry says in a way that cannot be right makes it malformed as a
 * whole.  Keys that are not known here are the business of others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "functions_prices.h"
#include "json.h"

const LlmPriceWords llmgw_price_words[LLMGW_NPRICES] =
{
	{"input_cost_per_token", "input_price", "input"},
	{"output_cost_per_token", "output_price", "output"},
	{"cache_read_input_token_cost", "cached_input_price", "cached_input"},
	{"cache_creation_input_token_cost", "cache_write_price", "cache_write"},
};

const LlmCapabilityWords llmgw_capability_words[LLMGW_NCAPABILITIES] =
{
	[LLMGW_CAN_CHAT] = {"chat", NULL},
	[LLMGW_CAN_COMPLETION] = {"completion", NULL},
	[LLMGW_CAN_STREAMING] = {"streaming", "supports_native_streaming"},
	[LLMGW_CAN_SYSTEM_PROMPT] = {"system_prompt", "supports_system_messages"},
	[LLMGW_CAN_TEMPERATURE] = {"temperature", "supports_sampling_params"},
	[LLMGW_CAN_REASONING] = {"reasoning", "supports_reasoning"},
	[LLMGW_CAN_TOOLS] = {"tools", "supports_function_calling"},
	[LLMGW_CAN_JSON_OBJECT] = {"json_object", NULL},
	[LLMGW_CAN_JSON_SCHEMA] = {"json_schema", "supports_response_schema"},
	[LLMGW_CAN_IMAGE] = {"image", "supports_vision"},
	[LLMGW_CAN_AUDIO] = {"audio", "supports_audio_input"},
	[LLMGW_CAN_EMBEDDING] = {"embedding", NULL},
	[LLMGW_CAN_PROMPT_CACHE] = {"prompt_cache", "supports_prompt_caching"},
};

/*
 * These return what is wrong with a value, or NULL; a JSON null is a value that
 * is not mentioned.
 */

static const char *
read_price(const JsonbValue *value, Numeric *price)
{
	Datum		number;

	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvNumeric)
		return "is not a number";
	number = NumericGetDatum(value->val.numeric);
	if (DatumGetBool(DirectFunctionCall2(numeric_lt, number,
										 NumericGetDatum(int64_to_numeric(0)))))
		return "is negative";

	/* the most that llm_models holds */
	if (DatumGetBool(DirectFunctionCall2(numeric_gt, number,
										 NumericGetDatum(int64_to_numeric(1)))))
		return "is more than 1 USD";
	*price = value->val.numeric;
	return NULL;
}

/* A number of tokens; 0 is in the list for "does not apply". */
static const char *
read_tokens(const JsonbValue *value, int64 *tokens)
{
	int64		number;

	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvNumeric)
		return "is not a number";
	if (!llmgw_json_value_int(value, &number) || number < 0 || number > PG_INT32_MAX ||
		!DatumGetBool(DirectFunctionCall2(numeric_eq,
										  NumericGetDatum(value->val.numeric),
										  NumericGetDatum(int64_to_numeric(number)))))
		return "is not a number of tokens";
	*tokens = number;
	return NULL;
}

static const char *
read_flag(const JsonbValue *value, LlmClaim *claim)
{
	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvBool)
		return "is neither true nor false";
	*claim = value->val.boolean ? LLMGW_CAN : LLMGW_CANNOT;
	return NULL;
}

static const char *
read_text(const JsonbValue *value, char **result)
{
	if (value->type == jbvNull)
		return NULL;
	if (value->type != jbvString)
		return "is not a string";
	*result = pnstrdup(value->val.string.val, value->val.string.len);
	return NULL;
}

/*
 * Whether this is the rest of a key such as input_cost_per_token_above_200k_tokens,
 * and for which size.
 */
static bool
is_size(const char *rest, int64 *above_tokens)
{
	static const char before[] = "_above_";
	size_t		digits;

	if (strncmp(rest, before, strlen(before)) != 0)
		return false;
	rest += strlen(before);
	digits = strspn(rest, "0123456789");

	/* six digits and three zeros: an int's worth */
	if (digits == 0 || digits > 6 || strcmp(rest + digits, "k_tokens") != 0)
		return false;
	*above_tokens = atoi(rest) * INT64CONST(1000);
	return true;
}

/* The prices above that size: a place for them, in order; NULL: no room. */
static LlmPriceSize *
size_of(LlmPriceEntry *entry, int64 above_tokens)
{
	int			i = 0;

	while (i < entry->nsizes && entry->sizes[i].above_tokens < above_tokens)
		i++;
	if (i < entry->nsizes && entry->sizes[i].above_tokens == above_tokens)
		return &entry->sizes[i];
	if (entry->nsizes == LLMGW_MAX_PRICE_SIZES)
		return NULL;
	memmove(&entry->sizes[i + 1], &entry->sizes[i],
			sizeof(LlmPriceSize) * (entry->nsizes - i));
	entry->nsizes++;
	memset(&entry->sizes[i], 0, sizeof(LlmPriceSize));
	entry->sizes[i].above_tokens = above_tokens;
	return &entry->sizes[i];
}

/* One member of an entry; most of the list's keys are none of ours. */
static const char *
read_member(LlmPriceEntry *entry, const char *key, const JsonbValue *value, char **mode)
{
	if (strcmp(key, "litellm_provider") == 0)
		return read_text(value, &entry->provider);
	if (strcmp(key, "mode") == 0)
		return read_text(value, mode);
	if (strcmp(key, "max_input_tokens") == 0)
		return read_tokens(value, &entry->max_input_tokens);
	if (strcmp(key, "max_output_tokens") == 0)
		return read_tokens(value, &entry->max_output_tokens);
	if (strcmp(key, "max_tokens") == 0)
		return read_tokens(value, &entry->max_tokens);

	for (int i = 0; i < LLMGW_NPRICES; i++)
	{
		size_t		len = strlen(llmgw_price_words[i].key);
		int64		above_tokens;

		if (strncmp(key, llmgw_price_words[i].key, len) != 0)
			continue;
		if (key[len] == '\0')
			return read_price(value, &entry->prices[i]);
		if (is_size(key + len, &above_tokens) && value->type != jbvNull)
		{
			LlmPriceSize *size = size_of(entry, above_tokens);

			return size ? read_price(value, &size->prices[i]) : "is one size too many";
		}
	}
	for (int i = 0; i < LLMGW_NCAPABILITIES; i++)
		if (llmgw_capability_words[i].flag != NULL && strcmp(key, llmgw_capability_words[i].flag) == 0)
			return read_flag(value, &entry->claims[i]);
	return NULL;
}

const char *
llmgw_price_entry_read(const JsonbValue *value, LlmPriceEntry *entry)
{
	JsonbIterator *it = NULL;
	JsonbValue	member;
	char	   *key;
	char	   *mode = NULL;

	memset(entry, 0, sizeof(*entry));
	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		return "it is not an object";
	while (llmgw_json_next_member(value->val.binary.data, &it, &key, &member))
	{
		const char *problem = read_member(entry, key, &member, &mode);

		if (problem != NULL)
			return psprintf("%s %s", key, problem);
	}
	if (entry->provider == NULL)
		return "litellm_provider is missing";

	if (mode != NULL && strcmp(mode, "chat") == 0)
		entry->claims[LLMGW_CAN_CHAT] = LLMGW_CAN;
	else if (mode != NULL && strcmp(mode, "completion") == 0)
		entry->claims[LLMGW_CAN_COMPLETION] = LLMGW_CAN;
	else if (mode != NULL && strcmp(mode, "embedding") == 0)
		entry->claims[LLMGW_CAN_EMBEDDING] = LLMGW_CAN;
	return NULL;
}
