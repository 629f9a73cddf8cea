/*-------------------------------------------------------------------------
 *
 * tier.c
 *	  What the budgets let a call have: the best tier, and which candidates.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "scope.h"
#include "tier.h"

/* Whether a budget of that scope is one of the caller's, whatever the model. */
static bool
matches_caller(const LlmBudget *budget, const LlmTierQuery *query)
{
	if (budget->task != NULL &&
		(query->task == NULL || strcmp(budget->task, query->task) != 0))
		return false;
	return llmgw_scope_covers(budget->role, budget->tags, query->role, query->tags);
}

static bool
matches_model(const LlmTierView *view, const LlmBudget *budget, const LlmModel *model)
{
	if (budget->provider != NULL && strcmp(budget->provider, model->provider->name) != 0)
		return false;
	return budget->model == NULL || llmgw_scope_names(view->config, budget->model, model);
}

char *
llmgw_tier_dollars(LlmNano nano)
{
	return psprintf("%s$%s", nano < 0 ? "-" : "",
					DatumGetCString(DirectFunctionCall1(numeric_out,
														llmgw_nano_to_numeric(nano < 0 ? -nano : nano))));
}

/* What remains of the limit, in per cent with one decimal, rounded down. */
static char *
percent(const LlmBudget *budget, const LlmAccount *account)
{
	LlmNano		left = Max(llmgw_budget_remaining(account, budget->limit), 0);
	int64		tenths = budget->limit > 0 ? (int64) ((int128) left * 1000 / budget->limit) : 0;

	return tenths % 10 == 0 ? psprintf(INT64_FORMAT " %%", tenths / 10) :
		psprintf(INT64_FORMAT "." INT64_FORMAT " %%", tenths / 10, tenths % 10);
}

/* How much of what is left is out of a call's reach. */
static char *
in_reserve(const LlmBudget *budget, const LlmAccount *account, bool use_reserve)
{
	LlmNano		left = Max(llmgw_budget_remaining(account, budget->limit), 0);
	LlmNano		room = llmgw_budget_room(account, budget->limit, budget->reserve_fraction,
										 use_reserve);

	if (room >= left)
		return "";
	if (room == 0)
		return ", all of it in reserve";
	return psprintf(", %s of it in reserve", llmgw_tier_dollars(left - room));
}

char *
llmgw_tier_describe(const LlmBudget *budget, const LlmAccount *account, bool use_reserve)
{
	LlmNano		left = llmgw_budget_remaining(account, budget->limit);

	return psprintf("budget \"%s\" has %s of %s left (%s)%s%s%s, until %s", budget->name,
					llmgw_tier_dollars(left), llmgw_tier_dollars(budget->limit), percent(budget, account),
					in_reserve(budget, account, use_reserve),
					account->reserved > 0 ? ", with calls under way for " : "",
					account->reserved > 0 ? llmgw_tier_dollars(account->reserved) : "",
					DatumGetCString(DirectFunctionCall1(timestamptz_out,
														TimestampTzGetDatum(budget->period_end))));
}

/* The rank of the best tier of a level, and its name. */
static int
best_rank(const LlmConfig *config, LlmBudgetLevel level, const char **name)
{
	const char *wanted = level == LLMGW_LEVEL_STANDARD ? "standard" : "economy";
	const LlmTier *tier = NULL;

	*name = NULL;
	if (level == LLMGW_LEVEL_ALL || config->ntiers == 0)
		return PG_INT32_MIN;
	tier = llmgw_config_tier(config, wanted);

	/*
	 * other names: what comes after the premium one or else the first, and
	 * the last
	 */
	if (tier == NULL)
	{
		const LlmTier *premium = llmgw_config_tier(config, "premium");
		int			after = 1;

		while (premium != NULL && after < config->ntiers &&
			   config->tiers[after].rank <= premium->rank)
			after++;
		tier = &config->tiers[level == LLMGW_LEVEL_STANDARD ? Min(after, config->ntiers - 1) :
							  config->ntiers - 1];
	}
	*name = tier->name;
	return tier->rank;
}

/* What the account says; a second time if it was given away meanwhile. */
static void
look_at(LlmConfig *config, const LlmTierQuery *query, LlmTierBudget *b)
{
	for (int i = 0; i < 2; i++)
	{
		b->unknown = llmgw_budget_open(config, b->budget, query->now, query->wait_ms);
		if (b->unknown != NULL)
			break;
		if (llmgw_budget_look(b->budget, &b->account))
		{
			b->level = b->budget->limit < 0 ? LLMGW_LEVEL_ALL :
				llmgw_budget_level(&b->account, b->budget->limit,
								   b->budget->reserve_fraction,
								   &query->priority->thresholds);
			return;
		}
	}
	if (b->unknown == NULL)
		b->unknown = pstrdup("all places for budgets are in use");
	b->level = LLMGW_LEVEL_EXHAUSTED;
}

/* Why there is nothing left of it for that priority. */
static char *
describe_exhausted(const LlmTierView *view, const LlmTierBudget *b)
{
	const LlmThresholds *thresholds = &view->priority->thresholds;
	const char *beyond;

	if (b->unknown != NULL)
		return psprintf("what budget \"%s\" has spent is not known: %s", b->budget->name,
						b->unknown);
	if (llmgw_budget_room(&b->account, b->budget->limit, b->budget->reserve_fraction,
						  thresholds->may_use_reserve) > 0)
		beyond = psprintf(", of which it gets what is above %g %%",
						  thresholds->economy_above * 100.0 / LLMGW_WHOLE);
	else
		beyond = in_reserve(b->budget, &b->account, thresholds->may_use_reserve);
	return psprintf("budget \"%s\" is exhausted for priority \"%s\": it has %s of %s left (%s)%s%s%s, until %s",
					b->budget->name, view->priority->name,
					llmgw_tier_dollars(llmgw_budget_remaining(&b->account, b->budget->limit)),
					llmgw_tier_dollars(b->budget->limit), percent(b->budget, &b->account),
					beyond,
					b->account.reserved > 0 ? ", with calls under way for " : "",
					b->account.reserved > 0 ? llmgw_tier_dollars(b->account.reserved) : "",
					DatumGetCString(DirectFunctionCall1(timestamptz_out,
														TimestampTzGetDatum(b->budget->period_end))));
}

/* what helps against it */
static char *
hint_for(const LlmTierBudget *b)
{
	if (b->unknown != NULL)
		return pstrdup("See llm_worker_status for what keeps the ledger from being written, and llm_gateway.max_budgets.");
	return psprintf("Wait until it begins anew, raise it (UPDATE llm_budgets SET limit_usd = ... WHERE name = %s;), or use a priority that may spend more of it (llm_priorities).",
					quote_literal_cstr(b->budget->name));
}

/* What the level of the caller's budgets means, in words. */
static void
explain(const LlmConfig *config, LlmTierView *view)
{
	const LlmTierBudget *b = view->binding;
	const char *tier;

	view->best_rank = best_rank(config, view->level, &tier);
	if (b == NULL)
		return;
	view->hint = hint_for(b);
	if (view->level == LLMGW_LEVEL_EXHAUSTED)
		view->reason = describe_exhausted(view, b);
	else
		view->reason = psprintf("budget \"%s\" is at %s, priority \"%s\": %s%s only",
								b->budget->name, percent(b->budget, &b->account),
								view->priority->name, tier ? tier : "",
								view->level == LLMGW_LEVEL_STANDARD ? " and below" : "");
}

void
llmgw_tier(LlmConfig *config, const LlmTierQuery *query, LlmTierView *view)
{
	memset(view, 0, sizeof(*view));
	view->config = config;
	view->priority = query->priority;
	view->best_rank = PG_INT32_MIN;
	if (config->nbudgets == 0)
		return;
	view->budgets = palloc(sizeof(LlmTierBudget) * config->nbudgets);
	for (int i = 0; i < config->nbudgets; i++)
	{
		LlmTierBudget *b = &view->budgets[view->nbudgets];

		if (!matches_caller(&config->budgets[i], query))
			continue;
		memset(b, 0, sizeof(*b));
		b->budget = &config->budgets[i];
		b->of_caller = b->budget->provider == NULL && b->budget->model == NULL;
		look_at(config, query, b);
		view->nbudgets++;
		view->strict |= b->budget->strict;
		if (!b->of_caller)
			continue;
		if (b->level > view->level)
		{
			view->level = b->level;
			view->binding = b;
		}
	}
	explain(config, view);
}

int
llmgw_tier_charged(const LlmTierView *view, const LlmModel *model, LlmBudget **budgets)
{
	int			n = 0;

	for (int i = 0; i < view->nbudgets; i++)
	{
		if (!matches_model(view, view->budgets[i].budget, model))
			continue;
		if (n == LLMGW_MAX_CHARGES)
			return LLMGW_MAX_CHARGES + 1;
		budgets[n++] = view->budgets[i].budget;
	}
	return n;
}

const char *
llmgw_tier_refuses(const LlmTierView *view, LlmTierRequest *request, const char **hint)
{
	const LlmModel *model = request->model;
	int			charged = 0;

	if (view->nbudgets == 0)
		return NULL;
	if (view->level == LLMGW_LEVEL_EXHAUSTED || model->tier->rank < view->best_rank)
	{
		*hint = view->hint;
		request->by = view->binding->budget;
		return view->reason;
	}
	for (int i = 0; i < view->nbudgets; i++)
	{
		const LlmTierBudget *b = &view->budgets[i];

		if (!matches_model(view, b->budget, model))
			continue;
		request->by = b->budget;
		if (b->level == LLMGW_LEVEL_EXHAUSTED)
		{
			*hint = hint_for(b);
			return describe_exhausted(view, b);
		}
		if (request->unpriced && b->budget->limit >= 0)
		{
			request->unfit = true;
			*hint = psprintf("Set input_price and output_price of model \"%s\" of provider \"%s\" in llm_models; 0 where it is free.",
							 model->name, model->provider->name);
			return psprintf("it has no price, and budget \"%s\" counts what it costs",
							b->budget->name);
		}
		if (b->budget->strict && request->unbounded != NULL)
		{
			request->unfit = true;
			*hint = request->unbounded_hint;
			return psprintf("budget \"%s\" is strict, and %s", b->budget->name,
							request->unbounded);
		}
		if (++charged > LLMGW_MAX_CHARGES)
		{
			request->unfit = true;
			*hint = "Delete budgets, or give them scopes of which fewer match one call.";
			return psprintf("it would be charged to more than %d budgets", LLMGW_MAX_CHARGES);
		}
	}
	return NULL;
}
