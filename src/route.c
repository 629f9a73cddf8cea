/*-------------------------------------------------------------------------
 *
 * route.c
 *	  Which models may answer a call, in which order.
 *
 * Rules name models the way a caller does: "provider/model" where both exist,
 * else a model's name, which stands for every provider that has it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "estimate.h"
#include "json.h"
#include "route.h"
#include "route_index.h"
#include "scope.h"

/* a prompt is dropped only when it is longer than the window by this much */
#define WINDOW_TOLERANCE	1.25

/* A call, its configuration, and what was found out about that before. */
typedef struct Search
{
	const LlmConfig *config;
	const LlmRouteIndex *index;
	const LlmRouteQuery *query;
	bool		facts_hold;
	bool	   *found;			/* of each model: it is a candidate */
	LlmRoute   *route;
} Search;

/* Whether it can be held to a JSON schema, as far as is known. */
static bool
takes_schema(const LlmModel *model, int can)
{
	return model->provider->dialect->takes_schema &&
		(model->ncapabilities < 0 || (can & LLMGW_CAN_JSON_SCHEMA));
}

/*
 * Whether the server may fetch an image from where a caller says.  One of the
 * user's own sees what callers of the database do not, unless its row says that
 * this is no matter.
 */
static bool
may_fetch(const LlmProvider *provider)
{
	bool		near = provider->base_url != NULL && provider->url_problem == NULL &&
	provider->dialect != &llmgw_dialect_mock && llmgw_url_is_near(&provider->url);

	return provider->options == NULL ? !near :
		llmgw_json_get_bool(&provider->options->root, !near, "image_urls", NULL);
}

/* What the call needs and a model says that it does not have. */
static const char *
lacks_capability(int can, const LlmRouteQuery *query, const char **hint)
{
#define LACKS(name) \
	(*hint = "Use a model with \"" name "\" in llm_models.capabilities, or add it there.", \
	 "lacks " name)

	if (query->needs_tools && !(can & LLMGW_CAN_TOOLS))
		return LACKS("tools");
	if (query->needs_images && !(can & LLMGW_CAN_IMAGE))
		return LACKS("image");
	if (query->needs_schema && !query->may_advise && !(can & LLMGW_CAN_JSON_SCHEMA))
		return LACKS("json_schema");
	if (query->needs_embedding && !(can & LLMGW_CAN_EMBEDDING))
	{
		*hint = "Name a model with \"embedding\" in llm_models.capabilities, in the call or in a rule: INSERT INTO llm_routing_rules(task, model) VALUES ('embedding', '...');";
		return "lacks embedding";
	}
	return NULL;
}

/*
 * What the call needs and this model cannot do; NULL: nothing.  Of a model that
 * does not say what it can do, all is believed.
 */
static const char *
lacks_feature(const LlmModel *model, int can, const LlmRouteQuery *query, const char **hint)
{
	const LlmDialect *dialect = model->provider->dialect;
	const char *lacks = NULL;

	if (model->ncapabilities >= 0)
		lacks = lacks_capability(can, query, hint);
	if (lacks != NULL)
		return lacks;
	if (query->needs_embedding && dialect->max_inputs == 0)
		return psprintf("kind \"%s\" makes no embeddings", dialect->kind);
	if (query->needs_schema && !query->may_advise && !dialect->takes_schema)
		return psprintf("kind \"%s\" takes no JSON schema", dialect->kind);
	if (query->needs_image_urls && !dialect->fetches_images)
	{
		*hint = "Give the image's data: data:image/png;base64,...";
		return psprintf("kind \"%s\" does not fetch images by URL", dialect->kind);
	}
	if (query->needs_image_urls && !may_fetch(model->provider))
	{
		*hint = psprintf("Give the image's data: data:image/png;base64,... Or let the server fetch what callers name: set \"image_urls\": true in options of provider \"%s\".",
						 model->provider->name);
		return "it may not fetch images by URL";
	}
	if (query->params != NULL && dialect->cannot != NULL)
		return dialect->cannot(query->params);
	return NULL;
}

/* Why this model's window is too small; NULL: it is not, or nobody knows. */
static const char *
exceeds_window(const LlmModel *model, const LlmRouteQuery *query)
{
	int64		characters = query->needs_embedding ? query->longest_input : query->characters;
	int64		tokens = (characters + 3) / 4;

	if (model->context_window <= 0 ||
		tokens <= model->context_window * WINDOW_TOLERANCE)
		return NULL;
	return psprintf("the %s of about " INT64_FORMAT " tokens is longer than its context window of %d",
					query->needs_embedding ? "input" : "prompt", tokens,
					model->context_window);
}

const char *
llmgw_route_unreachable(const LlmProvider *provider, const char **hint)
{
	char	   *refused;
	char	   *refused_hint = NULL;

	if (provider->dialect == NULL)
		return psprintf("kind \"%s\" is not known to this version", provider->kind);
	if (provider->base_url == NULL && provider->dialect->default_base_url == NULL &&
		provider->dialect != &llmgw_dialect_mock)
	{
		*hint = "Set llm_providers.base_url.";
		return "the provider has no base_url";
	}
	if (provider->url_problem != NULL)
		return psprintf("its base_url cannot be used: %s", provider->url_problem);
	if (provider->base_url != NULL && provider->dialect != &llmgw_dialect_mock)
	{
		refused = llmgw_url_refused(&provider->url, &refused_hint);
		if (refused != NULL)
		{
			*hint = refused_hint;
			return refused;
		}
	}
	return NULL;
}

const char *
llmgw_route_unusable(const LlmModel *model, const char **hint)
{
	const LlmProvider *provider = model->provider;

	if (!provider->enabled)
	{
		*hint = psprintf("Enable it: UPDATE llm_providers SET enabled = true WHERE name = %s;",
						 quote_literal_cstr(provider->name));
		return "the provider is disabled";
	}
	if (!model->enabled)
	{
		*hint = psprintf("Enable it: UPDATE llm_models SET enabled = true WHERE provider = %s AND name = %s;",
						 quote_literal_cstr(provider->name),
						 quote_literal_cstr(model->name));
		return "the model is disabled";
	}
	return llmgw_route_unreachable(provider, hint);
}

/* Why this model may not answer; NULL when it may. */
static const char *
drop_reason(const Search *search, const LlmModel *model, const char **hint)
{
	const LlmModelFacts *facts = &search->index->facts[model - search->config->models];
	const LlmRouteQuery *query = search->query;
	const char *reason = facts->unusable;

	if (search->facts_hold)
		*hint = facts->hint;
	else
		reason = llmgw_route_unusable(model, hint);
	if (reason != NULL)
		return reason;

	/* a model that says what it can do, and that is only embeddings */
	if (!query->needs_embedding &&
		(facts->can & (LLMGW_CAN_EMBEDDING | LLMGW_CAN_CHAT)) == LLMGW_CAN_EMBEDDING)
		return "it makes embeddings, not completions";
	reason = lacks_feature(model, facts->can, query, hint);
	if (reason != NULL)
		return reason;
	return query->needs_embedding ? NULL : exceeds_window(model, query);
}

/* Why it is not known what a request costs at most; NULL: it is. */
static const char *
unbounded(const LlmModel *model, const LlmRouteQuery *query, const char **hint)
{
	static const char *const tools[] = {
		"tools", "web_search_options", "search_parameters", "plugins"
	};
	Jsonb	   *options = model->provider->options;
	JsonbValue	v;

	if (query->max_tokens == 0 && model->max_output_tokens == 0)
	{
		*hint = psprintf("Give max_tokens, or set max_output_tokens of model \"%s\" of provider \"%s\" in llm_models.",
						 model->name, model->provider->name);
		return "it is not known how long an answer may get";
	}
	if (query->needs_images)
	{
		*hint = "Send no images under a strict budget.";
		return "it is not known what an image counts as";
	}
	if (query->params != NULL && llmgw_json_get(&query->params->root, &v, "extra", NULL))
	{
		*hint = "Leave \"extra\" out of params.";
		return "params.extra may change what a call costs";
	}

	/*
	 * what the provider's tools find is input, and they may have a price
	 * themselves
	 */
	for (int i = 0; options != NULL && i < lengthof(tools); i++)
	{
		if (!llmgw_json_get(&options->root, &v, "extra", tools[i], NULL))
			continue;
		*hint = psprintf("Let calls under a strict budget go to a provider whose options have no \"%s\".",
						 tools[i]);
		return psprintf("options.extra of provider \"%s\" lets it use tools (\"%s\")",
						model->provider->name, tools[i]);
	}
	return NULL;
}

static void
ask_budgets(LlmCandidate *c, const LlmRouteQuery *query)
{
	LlmTierRequest request = {0};

	request.model = c->model;
	request.unpriced = c->estimate == LLMGW_COST_UNKNOWN;
	if (query->budgets->strict)
		request.unbounded = unbounded(c->model, query, &request.unbounded_hint);
	c->dropped = llmgw_tier_refuses(query->budgets, &request, &c->hint);
	c->denied_by = c->dropped != NULL ? request.by : NULL;
	c->unfit = request.unfit;
}

/* Adds a model by its number, unless it is there already. */
static void
add_candidate(Search *search, int number, const LlmRule *rule, int group)
{
	const LlmModel *model = &search->config->models[number];
	const LlmModelFacts *facts = &search->index->facts[number];
	const LlmRouteQuery *query = search->query;
	LlmRoute   *route = search->route;
	LlmCandidate *c;

	if (search->found[number])
		return;
	search->found[number] = true;
	c = &route->candidates[route->ncandidates++];
	memset(c, 0, sizeof(*c));
	c->model = model;
	c->rule = rule;
	c->group = group;
	c->dropped = drop_reason(search, model, &c->hint);
	if (c->dropped == NULL && query->min_tier != NULL &&
		model->tier->rank > query->min_tier->rank)
	{
		c->dropped = psprintf("its tier \"%s\" is below min_tier \"%s\"",
							  model->tier->name, query->min_tier->name);
		route->below_tier = true;
	}
	c->advised = c->dropped == NULL && query->needs_schema &&
		!takes_schema(model, facts->can);
	c->lacks = facts->lacks;
	c->estimate = llmgw_estimate_cost(model, query->characters, query->max_tokens);
	if (c->dropped == NULL && query->budgets != NULL)
		ask_budgets(c, query);
}

/*
 * Adds the models that a name stands for.  The rule that names them is NULL where the
 * caller does.
 */
static void
add_range(Search *search, LlmModelRange range, const LlmRule *rule)
{
	int			group = ++search->route->ngroups;

	for (int i = range.first; i < range.first + range.n; i++)
		add_candidate(search, i, rule, group);
}

/* Whether a rule is for this call's task, role and tags. */
static bool
rule_applies(const LlmRule *rule, const LlmRouteQuery *query)
{
	if (!rule->enabled)
		return false;
	if (rule->task != NULL && strcmp(rule->task, query->task) != 0)
		return false;
	return llmgw_scope_covers(rule->role, rule->tags, query->role, query->tags);
}

/* Adds what a rule names; a rule that names nothing is remembered. */
static void
add_rule(Search *search, int number)
{
	LlmRoute   *route = search->route;
	const LlmRule *rule = &search->config->rules[number];
	LlmModelRange range = search->index->targets[number];

	if (range.n > 0)
		add_range(search, range, rule);
	else
		route->unresolved = psprintf("%s%srouting rule " INT64_FORMAT ": no provider has model \"%s\"",
									 route->unresolved ? route->unresolved : "",
									 route->unresolved ? "\n" : "",
									 rule->id, rule->model);
}

/* Adds what the rules of a kind and name say.  Whether some apply, and how many there are. */
static bool
add_rules(Search *search, LlmRuleKind kind, const char *name, int *n)
{
	int			first = llmgw_route_rules(search->config, search->index, kind, name, n);
	bool		matched = false;

	for (int i = first; i < first + *n; i++)
	{
		int			number = search->index->rules[i];

		if (!rule_applies(&search->config->rules[number], search->query))
			continue;
		matched = true;
		add_rule(search, number);
	}
	return matched;
}

bool
llmgw_route_knows(const LlmConfig *config, const char *model)
{
	int			n;

	(void) llmgw_route_rules(config, llmgw_route_index(config), LLMGW_RULES_OF_ALIAS, model, &n);
	return n > 0 || llmgw_route_named(config, model).n > 0;
}

static void
add_candidates(Search *search)
{
	const LlmRouteQuery *query = search->query;
	LlmRoute   *route = search->route;
	int			n;

	if (query->model != NULL)
	{
		LlmModelRange range;

		(void) add_rules(search, LLMGW_RULES_OF_ALIAS, query->model, &n);
		if (n > 0)
			return;
		range = llmgw_route_named(search->config, query->model);
		route->pinned = true;
		route->unknown_model = range.n == 0;
		add_range(search, range, NULL);
		return;
	}

	/* the task's own rules, or else those for any task, or else all models */
	if (add_rules(search, LLMGW_RULES_OF_TASK, query->task, &n) ||
		add_rules(search, LLMGW_RULES_OF_ANY_TASK, NULL, &n))
		return;
	for (int i = 0; i < search->config->nmodels; i++)
		add_candidate(search, search->index->best[i], NULL, LLMGW_NO_GROUP);
}

const LlmCandidate *
llmgw_route_first(const LlmRoute *route)
{
	for (int i = 0; i < route->ncandidates; i++)
		if (route->candidates[i].dropped == NULL)
			return &route->candidates[i];
	return NULL;
}

/* Drops what is not the model that makes these embeddings. */
static void
keep_one_model(LlmRoute *route, const LlmRouteQuery *query)
{
	const char *name = query->only_model;

	/* a budget may keep the model from the call, but not choose another one */
	for (int i = 0; i < route->ncandidates && name == NULL; i++)
		if (route->candidates[i].dropped == NULL || route->candidates[i].denied_by != NULL)
			name = route->candidates[i].model->name;
	for (int i = 0; i < route->ncandidates; i++)
	{
		LlmCandidate *c = &route->candidates[i];

		if (c->dropped != NULL && c->denied_by == NULL)
			continue;
		if (strcmp(c->model->name, name) != 0)
		{
			c->dropped = "embeddings never change model";
			c->denied_by = NULL;
			c->unfit = false;
			c->hint = NULL;
		}
		else if (c->dropped == NULL)
			c->dropped = exceeds_window(c->model, query);
	}
}

void
llmgw_route(const LlmConfig *config, const LlmRouteQuery *query, LlmRoute *route)
{
	Search		search;

	memset(route, 0, sizeof(*route));
	route->candidates = palloc(sizeof(LlmCandidate) * Max(config->nmodels, 1));
	search.config = config;
	search.index = llmgw_route_index(config);
	search.query = query;
	search.facts_hold = llmgw_route_facts_hold(search.index);
	search.found = palloc0(sizeof(bool) * Max(config->nmodels, 1));
	search.route = route;
	add_candidates(&search);
	pfree(search.found);

	/* which model embeds is settled before anything reorders them */
	if (query->needs_embedding)
		keep_one_model(route, query);
	llmgw_route_order(route, query);
}

void
llmgw_route_prefer(LlmRoute *route, const LlmModel *model)
{
	for (int i = 1; i < route->ncandidates; i++)
	{
		LlmCandidate c = route->candidates[i];

		if (c.model != model || c.dropped != NULL)
			continue;
		memmove(&route->candidates[1], &route->candidates[0], sizeof(LlmCandidate) * i);
		route->candidates[0] = c;
		return;
	}
}
