/*-------------------------------------------------------------------------
 *
 * cost.c
 *	  What tokens cost, in integer nano-dollars.
 *
 * A price of p USD per million tokens is stored as p * 10^9 nano-dollars per
 * million tokens, which is exact for prices with up to nine decimals.  Sums
 * are formed in 128 bits, where nothing overflows: 2^31 tokens at the largest
 * price that a row may hold (10^6 USD) are below 2^81.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "cost.h"

#define TOKENS_PER_PRICE	1000000

/* What applies to a request of some size; LLMGW_PRICE_UNKNOWN. */
typedef struct Prices
{
	LlmPrice	input;
	LlmPrice	cached;
	LlmPrice	write;
	LlmPrice	output;
} Prices;

static void
base_prices(const LlmModel *model, Prices *prices)
{
	prices->input = model->input_price;
	prices->cached = model->cached_input_price;
	prices->write = model->cache_write_price;
	prices->output = model->output_price;
}

/* What a tier does not say stays as it was below it. */
static void
apply_tier(const LlmPriceTier *tier, Prices *prices)
{
	prices->input = tier->input_price >= 0 ? tier->input_price : prices->input;
	prices->cached = tier->cached_input_price >= 0 ? tier->cached_input_price : prices->cached;
	prices->write = tier->cache_write_price >= 0 ? tier->cache_write_price : prices->write;
	prices->output = tier->output_price >= 0 ? tier->output_price : prices->output;
}

static LlmPrice
cached_price(const Prices *prices)
{
	return prices->cached >= 0 ? prices->cached : prices->input;
}

static LlmPrice
write_price(const Prices *prices)
{
	return prices->write >= 0 ? prices->write : prices->input;
}

LlmNano
llmgw_cost(const LlmModel *model, const LlmUsage *usage)
{
	int64		plain = Max(usage->input - usage->cached_input - usage->cache_write, 0);
	Prices		prices;
	int128		sum;

	/* a size tier prices the whole request; the largest that applies wins */
	base_prices(model, &prices);
	for (int i = 0; i < model->nprice_tiers; i++)
	{
		if (usage->input <= model->price_tiers[i].above_tokens)
			break;
		apply_tier(&model->price_tiers[i], &prices);
	}
	if (prices.input < 0 || (prices.output < 0 && usage->output > 0))
		return LLMGW_COST_UNKNOWN;
	sum = (int128) plain * prices.input +
		(int128) usage->cached_input * cached_price(&prices) +
		(int128) usage->cache_write * write_price(&prices);
	if (usage->output > 0)
		sum += (int128) usage->output * prices.output;
	return (LlmNano) ((sum + TOKENS_PER_PRICE / 2) / TOKENS_PER_PRICE);
}

/*
 * Bounds.  Sizes fall into ranges with prices of their own: that below the first
 * tier, and one above each.  Within one the dearest request is the largest, all of
 * its input at the dearest price that is had there.
 */

/*
 * The dearest input of each range that a request of at most so many tokens may be
 * in, and its output price.  First call: range = 0; false: there is none left.
 */
static bool
dearest_input(const LlmModel *model, int64 input_tokens, int range, Prices *prices, int128 *sum)
{
	int64		largest = Max(input_tokens, 0);

	if (range == 0)
		base_prices(model, prices);
	else
	{
		if (range > model->nprice_tiers ||
			largest <= model->price_tiers[range - 1].above_tokens)
			return false;
		apply_tier(&model->price_tiers[range - 1], prices);
	}
	if (range < model->nprice_tiers)
		largest = Min(largest, model->price_tiers[range].above_tokens);
	*sum = (int128) largest * Max(prices->input, Max(cached_price(prices), write_price(prices)));
	return true;
}

LlmNano
llmgw_cost_bound(const LlmModel *model, int64 input_tokens, int64 output_tokens)
{
	Prices		prices;
	int128		sum;
	int128		most = 0;

	for (int range = 0; dearest_input(model, input_tokens, range, &prices, &sum); range++)
	{
		if (prices.input < 0 || (prices.output < 0 && output_tokens > 0))
			return LLMGW_COST_UNKNOWN;
		if (output_tokens > 0)
			sum += (int128) output_tokens * prices.output;
		most = Max(most, sum);
	}
	most = (most + TOKENS_PER_PRICE / 2) / TOKENS_PER_PRICE;
	return (LlmNano) Min(most, PG_INT64_MAX);
}

int64
llmgw_cost_affordable(const LlmModel *model, int64 input_tokens, LlmNano room)
{
	int64		affordable = PG_INT32_MAX;
	Prices		prices;
	int128		sum;

	for (int range = 0; dearest_input(model, input_tokens, range, &prices, &sum); range++)
	{
		/* the largest sum that is rounded to no more than room */
		int128		left = (int128) room * TOKENS_PER_PRICE + (TOKENS_PER_PRICE - 1) / 2 - sum;

		if (prices.input < 0 || left < 0)
			return -1;
		if (prices.output < 0)
			affordable = 0;
		else if (prices.output > 0)
			affordable = Min(affordable, left / prices.output);
	}
	return affordable;
}

void
llmgw_cost_expect(const LlmModel *model, int64 characters, int max_tokens, LlmUsage *usage)
{
	memset(usage, 0, sizeof(*usage));
	usage->input = (characters + 3) / 4;
	if (max_tokens == LLMGW_NO_OUTPUT)
		return;
	usage->output = max_tokens > 0 ? max_tokens : LLMGW_EXPECTED_OUTPUT;
	if (model->max_output_tokens > 0)
		usage->output = Min(usage->output, model->max_output_tokens);
}

LlmNano
llmgw_cost_estimate(const LlmModel *model, int64 characters, int max_tokens)
{
	LlmUsage	usage;

	llmgw_cost_expect(model, characters, max_tokens, &usage);
	return llmgw_cost(model, &usage);
}

Datum
llmgw_nano_to_numeric(LlmNano nano)
{
	/* value / 10^9, without the zeros at the end */
	return DirectFunctionCall1(numeric_trim_scale,
							   NumericGetDatum(int64_div_fast_to_numeric(nano, 9)));
}
