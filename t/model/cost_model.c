/*-------------------------------------------------------------------------
 *
 * cost_model.c
 *	  Holds the bounds of what a request may cost against all that it may cost
 *	  (src/cost.h).
 *
 *		cc -DCOST_C='"cost.c"' -Isrc -I... cost_model.c && ./a.out
 *
 * Models with prices that are drawn, among them none, zero and some that make halves,
 * with up to three price tiers.  For each, every request of few tokens is priced in
 * every way its input can be split; what llmgw_cost() says of the dearest is what
 * the bound has to be: no less, and no more, since what is reserved for nothing
 * is kept from other calls.
 *
 * Prints the number of requests, or what does not hold, and then exits with 1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cost.h"

/* of a program without the server's library */
#undef printf

#include <stdio.h>

#include COST_C

/* what a program that only computes never calls */
Datum
DirectFunctionCall1Coll(PGFunction func, Oid collation, Datum arg1)
{
	abort();
}

Datum
numeric_trim_scale(PG_FUNCTION_ARGS)
{
	abort();
}

Numeric
int64_div_fast_to_numeric(int64 val1, int log10val2)
{
	abort();
}

#define MODELS			400
#define MOST_INPUT		9
#define MOST_OUTPUT		4

/* the largest that a row may hold */
#define MOST_PRICE		INT64CONST(1000000000000000)

static const LlmPrice some_prices[] = {
	LLMGW_PRICE_UNKNOWN, 0, 1, 100000, 250000, 500000, 700000, 1000000, 1500000, 3333333,
	2500000000, MOST_PRICE
};

static uint64 seed = 20260101;
static int64 states = 0;

static uint32
draw(uint32 below)
{
	seed = seed * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
	return (uint32) (seed >> 33) % below;
}

static LlmPrice
draw_price(bool may_lack)
{
	int			from = may_lack ? 0 : 1;

	return some_prices[from + draw(lengthof(some_prices) - from)];
}

static void
draw_model(LlmModel *model, LlmPriceTier *tiers)
{
	int64		above = 0;

	memset(model, 0, sizeof(*model));
	model->input_price = draw_price(draw(8) == 0);
	model->output_price = draw_price(draw(8) == 0);
	model->cached_input_price = draw_price(true);
	model->cache_write_price = draw_price(true);
	model->nprice_tiers = draw(4);
	model->price_tiers = tiers;
	for (int i = 0; i < model->nprice_tiers; i++)
	{
		above += i == 0 ? draw(4) : 1 + draw(4);
		tiers[i].above_tokens = above;
		tiers[i].input_price = draw_price(true);
		tiers[i].output_price = draw_price(true);
		tiers[i].cached_input_price = draw_price(true);
		tiers[i].cache_write_price = draw_price(true);
	}
}

static void
print_model(const LlmModel *model)
{
	printf("input " INT64_FORMAT " cached " INT64_FORMAT " write " INT64_FORMAT " output " INT64_FORMAT "\n",
		   model->input_price, model->cached_input_price, model->cache_write_price,
		   model->output_price);
	for (int i = 0; i < model->nprice_tiers; i++)
		printf("  above " INT64_FORMAT ": input " INT64_FORMAT " cached " INT64_FORMAT " write " INT64_FORMAT " output " INT64_FORMAT "\n",
			   model->price_tiers[i].above_tokens, model->price_tiers[i].input_price,
			   model->price_tiers[i].cached_input_price, model->price_tiers[i].cache_write_price,
			   model->price_tiers[i].output_price);
}

static void
fail(const LlmModel *model, const char *what, int64 input, int64 output, int64 is, int64 want)
{
	printf("does not hold: %s, of " INT64_FORMAT " and " INT64_FORMAT " tokens: " INT64_FORMAT " instead of " INT64_FORMAT "\n",
		   what, input, output, is, want);
	print_model(model);
	exit(1);
}

/* The dearest of all requests up to that size. */
static LlmNano
dearest(const LlmModel *model, int64 input, int64 output)
{
	LlmNano		most = 0;

	for (int64 n = 0; n <= input; n++)
		for (int64 cached = 0; cached <= n; cached++)
			for (int64 write = 0; cached + write <= n; write++)
				for (int64 out = 0; out <= output; out++)
				{
					LlmUsage	usage = {0};
					LlmNano		cost;

					usage.input = n;
					usage.cached_input = cached;
					usage.cache_write = write;
					usage.output = out;
					cost = llmgw_cost(model, &usage);
					states++;
					if (cost == LLMGW_COST_UNKNOWN)
						return LLMGW_COST_UNKNOWN;
					most = Max(most, cost);
				}
	return most;
}

static void
check_bound(const LlmModel *model)
{
	for (int64 input = 0; input <= MOST_INPUT; input++)
		for (int64 output = 0; output <= MOST_OUTPUT; output++)
		{
			LlmNano		want = dearest(model, input, output);
			LlmNano		is = llmgw_cost_bound(model, input, output);

			if (is != want)
				fail(model, "the bound is the dearest", input, output, is, want);
		}
}

/* Whether that many output tokens may be had for what there is room for. */
static bool
fits(const LlmModel *model, int64 input, int64 output, LlmNano room)
{
	LlmNano		bound = llmgw_cost_bound(model, input, output);

	return bound != LLMGW_COST_UNKNOWN && bound <= room;
}

static void
check_affordable(const LlmModel *model, int64 input, LlmNano room)
{
	int64		n = llmgw_cost_affordable(model, input, room);

	states++;
	if (n > PG_INT32_MAX || n < -1)
		fail(model, "it is a number of tokens", input, n, n, 0);
	if (n < 0 && fits(model, input, 0, room))
		fail(model, "not even the input fits", input, 0, n, 0);
	if (n >= 0 && !fits(model, input, n, room))
		fail(model, "what is affordable fits", input, n,
			 llmgw_cost_bound(model, input, n), room);
	if (n >= 0 && n < PG_INT32_MAX && fits(model, input, n + 1, room))
		fail(model, "one more does not fit", input, n + 1,
			 llmgw_cost_bound(model, input, n + 1), room);
}

/* Nothing is too large: neither a sum in between nor the result. */
static void
check_large(void)
{
	LlmModel	model = {0};

	model.input_price = MOST_PRICE;
	model.cached_input_price = model.cache_write_price = LLMGW_PRICE_UNKNOWN;
	model.output_price = MOST_PRICE;
	if (llmgw_cost_bound(&model, PG_INT32_MAX, 0) != PG_INT32_MAX * (MOST_PRICE / 1000000))
		fail(&model, "a large bound", PG_INT32_MAX, 0,
			 llmgw_cost_bound(&model, PG_INT32_MAX, 0), PG_INT32_MAX * (MOST_PRICE / 1000000));
	if (llmgw_cost_bound(&model, PG_INT64_MAX, PG_INT64_MAX) != PG_INT64_MAX)
		fail(&model, "one that does not fit", PG_INT64_MAX, PG_INT64_MAX,
			 llmgw_cost_bound(&model, PG_INT64_MAX, PG_INT64_MAX), PG_INT64_MAX);
	if (llmgw_cost_affordable(&model, 0, PG_INT64_MAX) != PG_INT32_MAX)
		fail(&model, "all tokens that there are", 0, 0,
			 llmgw_cost_affordable(&model, 0, PG_INT64_MAX), PG_INT32_MAX);
}

int
main(void)
{
	for (int i = 0; i < MODELS; i++)
	{
		LlmModel	model;
		LlmPriceTier tiers[3];

		draw_model(&model, tiers);
		check_bound(&model);
		for (int64 input = 0; input <= MOST_INPUT; input++)
		{
			for (LlmNano room = -1; room <= 40; room++)
				check_affordable(&model, input, room);
			for (int more = 0; more < 40; more++)
				check_affordable(&model, input * 1000, (LlmNano) draw(2000000000) * draw(2000000));
		}
	}
	check_large();
	printf(INT64_FORMAT " states\nall of it holds\n", states);
	return 0;
}
