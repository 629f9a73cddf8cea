/*-------------------------------------------------------------------------
 *
 * call_budget.c
 *	  What a call may spend: the budgets' view of it, and what its attempts
 *	  reserve.
 *
 * An attempt is sent only once all budgets that it is charged to hold what it may
 * cost: of a strict budget an upper bound, of another one the estimate.  The bound
 * rests on how long the answer may get, so that limit is then always sent, and is
 * lowered to what a strict budget still holds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "call.h"
#include "estimate.h"
#include "json.h"

/* longest wait for a ledger that is behind */
#define WAIT_MS				10000

/*
 * What providers add to the texts of a request, in tokens: roles and separators
 * of each message and of its parts, the frames of tools, and what tells the model how
 * to use tools or to keep to a schema (Anthropic: 159 to 804).
 */
#define TOKENS_PER_MESSAGE	16
#define TOKENS_PER_REQUEST	64
#define TOKENS_PER_TOOL		32
#define TOKENS_OF_TOOLS		1024

/* A lowered limit must leave room for that many tokens, or for a mean answer. */
#define LEAST_OUTPUT		256

/* Between looking and reserving others may reserve: so often it is tried again. */
#define MAX_TRIES			5

void
llmgw_call_budgets(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	LlmTierQuery query = {0};

	query.priority = spec->priority;
	query.task = spec->task;
	query.role = spec->role;
	query.tags = spec->tags;
	query.now = llmgw_wall_clock();
	query.wait_ms = spec->timeout_ms > 0 ? Min(spec->timeout_ms, WAIT_MS) : WAIT_MS;
	llmgw_tier(spec->config, &query, &call->tier);
}

int64
llmgw_call_characters(const LlmCall *call, const LlmModel *model)
{
	const char *suffix = call->inputs == NULL ? model->tier->system_prompt_suffix : NULL;

	return call->characters + (suffix ? pg_mbstrlen(suffix) : 0);
}

/* The messages, of which number i, a system message, has more to say. */
static const LlmMessages *
say_more(const LlmMessages *messages, int i, const char *text)
{
	LlmMessages *copy = palloc(sizeof(LlmMessages));
	LlmMessage *m;
	LlmPart    *last;

	*copy = *messages;
	copy->messages = palloc(sizeof(LlmMessage) * messages->n);
	memcpy(copy->messages, messages->messages, sizeof(LlmMessage) * messages->n);
	m = &copy->messages[i];
	m->parts = palloc(sizeof(LlmPart) * m->nparts);
	memcpy(m->parts, messages->messages[i].parts, sizeof(LlmPart) * m->nparts);
	last = &m->parts[m->nparts - 1];
	last->text = psprintf("%s\n\n%s", last->text, text);
	return copy;
}

void
llmgw_call_put_messages(LlmCall *call, const LlmCandidate *c, const char *system_prompt)
{
	const char *suffix = c->model->tier->system_prompt_suffix;
	const LlmMessages *messages = call->messages;
	int			n = 0;			/* system messages that it begins with */

	call->wire.messages = messages;
	call->wire.system_prompt = system_prompt;
	if (suffix == NULL || suffix[0] == '\0')
		return;
	while (messages != NULL && n < messages->n &&
		   messages->messages[n].role == LLMGW_ROLE_SYSTEM && messages->messages[n].nparts > 0)
		n++;
	if (n > 0)
		call->wire.messages = say_more(messages, n - 1, suffix);
	else
		call->wire.system_prompt = system_prompt == NULL ? suffix :
			psprintf("%s\n\n%s", system_prompt, suffix);
}

static int64
length(const char *text)
{
	return text !=NULL ? (int64) strlen(text) : 0;
}

static int64
message_bytes(const LlmMessage *m)
{
	int64		bytes = length(m->name) + length(m->tool_call_id) + length(m->tool_name);

	for (int i = 0; i < m->nparts; i++)
		bytes += length(m->parts[i].text);
	for (int i = 0; i < m->ntool_uses; i++)
	{
		const LlmToolUse *use = &m->tool_uses[i];

		bytes += length(use->id) + length(use->name) + length(use->arguments) +
			length(use->signature);
	}
	return bytes;
}

/*
 * The most tokens that the request's input may count as: no token stands for less
 * than a byte of UTF-8.
 */
static int64
most_input(const LlmCall *call, const LlmCandidate *c)
{
	const LlmSpec *spec = call->spec;
	Jsonb	   *options = c->model->provider->options;
	int			encoding = GetDatabaseEncoding();
	JsonbValue	v;
	int64		bytes = 0;
	int64		tokens = TOKENS_PER_REQUEST;

	for (int i = 0; i < call->ninputs; i++)
		bytes += length(call->inputs[i]);
	tokens += (int64) TOKENS_PER_MESSAGE * call->ninputs;
	if (call->messages != NULL)
	{
		for (int i = 0; i < call->messages->n; i++)
		{
			const LlmMessage *m = &call->messages->messages[i];

			bytes += message_bytes(m);
			tokens += (int64) TOKENS_PER_MESSAGE * (m->nparts + m->ntool_uses + 1);
		}
		tokens += TOKENS_PER_MESSAGE;
	}

	/* the advice, which has the system prompt in it, may yet have to be sent */
	bytes += length(spec->advice != NULL ? spec->advice : spec->system_prompt) +
		length(c->model->tier->system_prompt_suffix);
	bytes += spec->extra_characters * pg_database_encoding_max_length();
	if (spec->tools != NULL || spec->schema != NULL)
		tokens += TOKENS_OF_TOOLS;
	if (spec->tools != NULL)
		tokens += (int64) TOKENS_PER_TOOL * spec->tools->n;

	/* what the provider's row adds to each request */
	if (options != NULL && llmgw_json_get(&options->root, &v, "extra", NULL))
		bytes += strlen(JsonbToCString(NULL, &options->root, VARSIZE(options)));

	/* a byte of any other encoding is at most three in UTF-8 */
	if (encoding != PG_UTF8 && encoding != PG_SQL_ASCII)
		bytes *= 3;
	return tokens + bytes;
}

/* The longest answer that the call and its model allow, in tokens. */
static int64
most_output(const LlmCall *call, const LlmModel *model)
{
	int			asked = call->spec->max_tokens;

	if (asked == LLMGW_NO_OUTPUT)
		return 0;
	if (asked > 0 && model->max_output_tokens > 0)
		return Min(asked, model->max_output_tokens);
	return asked > 0 ? asked : model->max_output_tokens;
}

/*
 * How long an answer the strict budgets can pay for, at most output; -1 where that
 * is too short to be one, with *poor the budget that says so.
 */
static int64
affordable_output(const LlmCandidate *c, LlmCharge *charges, int n, int64 input,
				  int64 output, LlmBudget **poor)
{
	int64		least = Min(Min(LEAST_OUTPUT, llmgw_estimate_output(c->model)), output);

	for (int i = 0; i < n; i++)
	{
		LlmBudget  *budget = charges[i].budget;
		LlmAccount	account;
		int64		most;

		if (!budget->strict || budget->limit < 0 || !llmgw_budget_look(budget, &account))
			continue;
		most = llmgw_cost_affordable(c->model, input,
									 llmgw_budget_room(&account, budget->limit,
													   budget->reserve_fraction,
													   charges[i].use_reserve));
		if (most < least)
		{
			*poor = budget;
			return -1;
		}
		output = Min(output, most);
	}
	return output;
}

/* A budget has no room: why, palloc'd. */
static char *
describe_shortage(LlmCall *call, LlmBudget *budget, LlmNano amount, bool use_reserve)
{
	LlmAccount	account;

	call->short_of++;
	call->short_rejects |= !budget->cache_only;
	if (!llmgw_budget_look(budget, &account))
		return psprintf("what budget \"%s\" has spent is not known", budget->name);
	return psprintf("it may cost %s, and %s", llmgw_tier_dollars(amount),
					llmgw_tier_describe(budget, &account, use_reserve));
}

/* The notes name what an attempt is charged to. */
static void
remember_charged(LlmCall *call, const LlmCharge *charges, int n)
{
	if (call->charged == NULL)
		call->charged = MemoryContextAlloc(call->context,
										   sizeof(LlmCharged) * LLMGW_MAX_CHARGES);
	for (int i = 0; i < n; i++)
	{
		call->charged[i].id = charges[i].budget->id;
		call->charged[i].period_start = charges[i].budget->period_start;
		call->charged[i].name = charges[i].budget->name;
	}
	call->ncharged = n;
}

/*
 * What an attempt at a candidate may cost each budget, as they are now.
 */
typedef struct Plan
{
	TimestampTz at;
	int			n;
	LlmCharge	charges[LLMGW_MAX_CHARGES];
	bool		strict;			/* one of them is */
	LlmNano		bound;			/* then: what it costs at most */
	int64		input;			/* tokens of that */
	int64		output;
	bool		lowered;		/* which is less than was allowed */
} Plan;

/* The budgets that it is charged to; NULL, or why that cannot be said. */
static const char *
find_charges(LlmCall *call, const LlmCandidate *c, Plan *plan, const LlmBudget **by)
{
	LlmBudget  *budgets[LLMGW_MAX_CHARGES];

	plan->n = llmgw_tier_charged(&call->tier, c->model, budgets);
	Assert(plan->n <= LLMGW_MAX_CHARGES);
	plan->strict = false;
	if (plan->n == 0)
		return NULL;
	plan->at = llmgw_wall_clock();
	for (int i = 0; i < plan->n; i++)
	{
		/* a period may have ended while the call waited */
		char	   *unknown = llmgw_budget_open(call->spec->config, budgets[i], plan->at,
												0);

		*by = budgets[i];
		if (unknown != NULL)
			return psprintf("what budget \"%s\" has spent is not known: %s",
							budgets[i]->name, unknown);
		plan->charges[i].budget = budgets[i];
		plan->strict |= budgets[i]->strict;
		plan->charges[i].use_reserve = call->spec->priority->thresholds.may_use_reserve ||
			llmgw_call_attempts(call) > 0 || call->mends != NULL;
	}
	return NULL;
}

/* How much of each; NULL, or why that is too much already. */
static const char *
find_amounts(LlmCall *call, const LlmCandidate *c, Plan *plan, const LlmBudget **by)
{
	LlmBudget  *poor = NULL;
	LlmUsage	expected;
	LlmNano		estimate;

	llmgw_estimate(c->model, llmgw_call_characters(call, c->model), call->spec->max_tokens,
				   &expected);
	plan->bound = LLMGW_COST_UNKNOWN;
	if (plan->strict)
	{
		int64		most = most_output(call, c->model);

		plan->input = most_input(call, c);
		plan->output = affordable_output(c, plan->charges, plan->n, plan->input, most, &poor);
		*by = poor;
		if (plan->output < 0)
			return describe_shortage(call, poor,
									 llmgw_cost_bound(c->model, plan->input,
													  Min(most, LEAST_OUTPUT)),
									 plan->charges[0].use_reserve);
		plan->bound = llmgw_cost_bound(c->model, plan->input, plan->output);
		plan->lowered = plan->output < most;
		expected.output = Min(expected.output, plan->output);
	}
	estimate = Max(llmgw_cost(c->model, &expected), 0);
	for (int i = 0; i < plan->n; i++)
		plan->charges[i].amount = plan->charges[i].budget->strict ? plan->bound : estimate;
	return NULL;
}

const char *
llmgw_call_reserve(LlmCall *call, const LlmCandidate *c, const LlmBudget **by)
{
	Plan		plan;
	const char *problem;

	call->output_cap = 0;
	call->lowered = false;
	call->bound = LLMGW_COST_UNKNOWN;
	call->ncharged = 0;
	if (call->tier.nbudgets == 0)
		return NULL;
	problem = find_charges(call, c, &plan, by);
	if (problem != NULL || plan.n == 0)
		return problem;
	for (int try = 0;; try++)
	{
		LlmAccount	account;
		int			short_of;

		problem = find_amounts(call, c, &plan, by);
		if (problem != NULL)
			return problem;
		short_of = llmgw_budget_reserve(&call->hold, plan.charges, plan.n);
		if (short_of < 0)
			break;

		*by = plan.charges[short_of].budget;

		/*
		 * whose account has just been given away: it was unused, or its
		 * period over
		 */
		if (try < MAX_TRIES && !llmgw_budget_look(plan.charges[short_of].budget, &account))
		{
			problem = find_charges(call, c, &plan, by);
			if (problem != NULL)
				return problem;
			continue;
		}

		/* of a strict one there may be enough for a shorter answer */
		if (!plan.charges[short_of].budget->strict || try >= MAX_TRIES)
			return describe_shortage(call, plan.charges[short_of].budget,
									 plan.charges[short_of].amount,
									 plan.charges[short_of].use_reserve);
	}
	if (plan.strict)
	{
		call->bound = plan.bound;
		call->input_cap = plan.input;
		call->output_cap = (int) Min(plan.output, PG_INT32_MAX);
		call->lowered = plan.lowered;
	}
	remember_charged(call, plan.charges, plan.n);
	call->charged_at = plan.at;
	return NULL;
}

void
llmgw_call_cap(const LlmCall *call, LlmUsage *estimate)
{
	if (call->bound == LLMGW_COST_UNKNOWN)
		return;
	estimate->input = Min(estimate->input, call->input_cap);
	estimate->output = Min(estimate->output, call->output_cap);
}

bool
llmgw_call_keeps_tier(const LlmCall *call)
{
	const LlmThresholds *thresholds = &call->spec->priority->thresholds;

	return thresholds->premium_above == 0 && thresholds->standard_above == 0;
}

const char *
llmgw_call_shortage(LlmCall *call, const LlmCandidate *c)
{
	const LlmBudget *budget;
	const LlmBudget **by = &budget;
	Plan		plan;
	const char *problem;

	if (call->tier.nbudgets == 0)
		return NULL;
	problem = find_charges(call, c, &plan, by);
	if (problem == NULL && plan.n > 0)
		problem = find_amounts(call, c, &plan, by);
	for (int i = 0; i < plan.n && problem == NULL; i++)
	{
		const LlmCharge *charge = &plan.charges[i];
		LlmAccount	account;

		if (charge->budget->limit < 0)
			continue;
		if (!llmgw_budget_look(charge->budget, &account) ||
			charge->amount > llmgw_budget_room(&account, charge->budget->limit,
											   charge->budget->reserve_fraction,
											   charge->use_reserve))
			problem = describe_shortage(call, charge->budget, charge->amount,
										charge->use_reserve);
	}
	return problem;
}

void
llmgw_call_pay(LlmCall *call, LlmNano cost)
{
	bool		overrun = call->hold.n > 0 && call->bound >= 0 && cost > call->bound;

	llmgw_budget_settle(&call->hold, Max(cost, 0));
	if (overrun)
	{
		const LlmModel *model = call->route.candidates[call->current].model;

		ereport(WARNING,
				(errmsg("model \"%s\" of provider \"%s\" cost %s, more than the %s that a strict budget held for it",
						model->name, model->provider->name, llmgw_tier_dollars(cost),
						llmgw_tier_dollars(call->bound)),
				 errdetail("The provider did not keep to max_tokens, or its prices in llm_models are wrong.")));
	}
}

/* The tier of its answer; NULL: there is none. */
static const LlmTier *
answering_tier(const LlmCall *call)
{
	if (call->kept != NULL)
		return llmgw_config_tier(call->spec->config, call->kept->model_tier);
	return call->model != NULL ? call->model->tier : NULL;
}

/* One that answers only where nobody else does. */
static bool
is_spare(const LlmCandidate *c)
{
	return c->model->weight * c->model->provider->weight <= 0;
}

/*
 * Whether a candidate that the budgets keep from the call would have been asked before
 * this one.  Where the call is optimized, those that are denied are behind the others
 * (route_order.c); how fast one would be is not asked again.
 */
static bool
would_be_before(const LlmCall *call, const LlmCandidate *denied, const LlmCandidate *c)
{
	if (call->spec->optimize != LLMGW_OPTIMIZE_NONE && is_spare(denied) != is_spare(c))
		return is_spare(c);
	switch (call->spec->optimize)
	{
		case LLMGW_OPTIMIZE_NONE:
			break;
		case LLMGW_OPTIMIZE_QUALITY:
			if (denied->model->quality != c->model->quality)
				return denied->model->quality > c->model->quality;
			return denied->group < c->group;
		case LLMGW_OPTIMIZE_COST:
			if (denied->estimate != c->estimate)
				return denied->estimate != LLMGW_COST_UNKNOWN &&
					(c->estimate == LLMGW_COST_UNKNOWN || denied->estimate < c->estimate);
			return denied->group < c->group;
		case LLMGW_OPTIMIZE_SPEED:
			return true;
	}
	return denied < c;
}

/*
 * Whether a budget took a candidate away that would have been asked before this one;
 * NULL: before anybody.
 */
static bool
was_taken_away(const LlmCall *call, const LlmCandidate *c, const LlmCandidate *asked)
{
	return ((c->denied_by != NULL && !c->unfit) || c->shortage != NULL) &&
		(asked == NULL || would_be_before(call, c, asked));
}

const LlmCandidate *
llmgw_call_first(const LlmCall *call)
{
	const LlmCandidate *first = llmgw_route_first(&call->route);

	for (int i = 0; first != NULL && i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		/*
		 * a budget of all models has a say in the tier, which these are not
		 * about; and without a price it may not answer whatever is left
		 */
		if (c->denied_by == NULL || c->unfit || c->estimate == LLMGW_COST_UNKNOWN ||
			(c->denied_by->provider == NULL && c->denied_by->model == NULL))
			continue;

		/* how fast it would be is not known */
		if (call->spec->optimize != LLMGW_OPTIMIZE_SPEED && would_be_before(call, c, first))
			return c;
	}
	return first;
}

const char *
llmgw_call_notice(const LlmCall *call)
{
	const LlmTier *tier;
	const LlmCandidate *asked;

	if (call->error != LLMGW_OK)
		return NULL;
	if (call->kept != NULL && call->kept->similarity > 0)
		return llmgw_call_similar_notice(call->kept);
	tier = answering_tier(call);
	asked = call->kept != NULL ? llmgw_route_first(&call->route) :
		&call->route.candidates[call->current];

	/* a kept answer that is worse than what a call would get */
	if (call->kept != NULL && tier != NULL && asked != NULL &&
		asked->model->tier->rank < tier->rank)
		return tier->notice;
	for (int i = 0; tier != NULL && i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];
		bool		failed = call->kept == NULL && c->dropped == NULL && c < asked;

		if (c->model->tier->rank < tier->rank && (failed || was_taken_away(call, c, asked)))
			return tier->notice;
	}
	return NULL;
}

void
llmgw_call_say_downgraded(LlmCall *call, const LlmCandidate *asked, const LlmTier *to)
{
	const LlmCandidate *best = NULL;

	call->request.downgraded_by = NULL;
	call->request.downgraded_from = NULL;
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		if (was_taken_away(call, c, asked) && (to == NULL || c->model->tier->rank < to->rank) &&
			(best == NULL || c->model->tier->rank < best->model->tier->rank))
			best = c;
	}
	if (best == NULL)
		return;
	call->request.downgraded_by = (best->denied_by ? best->denied_by : best->short_of)->name;
	call->request.downgraded_from = best->model->tier->name;
}
