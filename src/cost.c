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

LlmNano
llmgw_cost(const LlmModel *model, const LlmUsage *usage)
{
	LlmPrice	in = model->input_price;
	LlmPrice	out = model->output_price;
	LlmPrice	cached = model->cached_input_price;
	LlmPrice	write = model->cache_write_price;
	int64		plain = Max(usage->input - usage->cached_input - usage->cache_write, 0);
	int128		sum;

	/* a size tier prices the whole request; the largest that applies wins */
	for (int i = 0; i < model->nprice_tiers; i++)
	{
		const LlmPriceTier *tier = &model->price_tiers[i];

		if (usage->input <= tier->above_tokens)
			break;
		in = tier->input_price >= 0 ? tier->input_price : in;
		out = tier->output_price >= 0 ? tier->output_price : out;
		cached = tier->cached_input_price >= 0 ? tier->cached_input_price : cached;
		write = tier->cache_write_price >= 0 ? tier->cache_write_price : write;
	}
	if (in < 0 || (out < 0 && usage->output > 0))
		return LLMGW_COST_UNKNOWN;
	if (cached < 0)
		cached = in;
	if (write < 0)
		write = in;
	sum = (int128) plain * in + (int128) usage->cached_input * cached +
		(int128) usage->cache_write * write;
	if (usage->output > 0)
		sum += (int128) usage->output * out;
	return (LlmNano) ((sum + TOKENS_PER_PRICE / 2) / TOKENS_PER_PRICE);
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
