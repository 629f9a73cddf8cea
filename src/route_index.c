/*-------------------------------------------------------------------------
 *
 * route_index.c
 *	  What routing works out once for a configuration, rather than for each call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "guc.h"
#include "route_index.h"

static const char *
allowed_hosts(void)
{
	return llmgw_allowed_hosts != NULL ? llmgw_allowed_hosts : "";
}

/*
 * Models
 */

static int
capabilities_of(const LlmModel *model)
{
	static const char *const names[] = {
		"chat", "tools", "image", "json_schema", "embedding", "temperature", "reasoning"
	};
	int			can = 0;

	for (int i = 0; i < model->ncapabilities; i++)
		for (int j = 0; j < lengthof(names); j++)
			if (strcmp(model->capabilities[i], names[j]) == 0)
				can |= 1 << j;
	return can;
}

/* "temperature" stands for whatever changes how words are drawn. */
static LlmParams
lacks_params(const LlmModel *model, int can)
{
	LlmParams	params = 0;

	if (model->ncapabilities < 0)
		return 0;
	if (!(can & LLMGW_CAN_TEMPERATURE))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_TEMPERATURE) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_P) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_K) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_PRESENCE_PENALTY) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_FREQUENCY_PENALTY);
	if (!(can & LLMGW_CAN_REASONING))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_REASONING_EFFORT);
	if (!(can & LLMGW_CAN_TOOLS))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS);
	return params;
}

/* The first model whose name is not before this one. */
static int
first_named(const LlmConfig *config, const char *name)
{
	int			low = 0;
	int			high = config->nmodels;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (strcmp(config->models[middle].name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* A provider's name has no slash, so the first one ends it. */
static bool
is_of_provider(const LlmModel *model, const char *name, size_t len)
{
	return strncmp(model->provider->name, name, len) == 0 && model->provider->name[len] == '\0';
}

LlmModelRange
llmgw_route_named(const LlmConfig *config, const char *name)
{
	const char *slash = strchr(name, '/');
	LlmModelRange range = {0, 1};

	if (slash != NULL)
		for (range.first = first_named(config, slash + 1);
			 range.first < config->nmodels &&
			 strcmp(config->models[range.first].name, slash + 1) == 0; range.first++)
			if (is_of_provider(&config->models[range.first], name, slash - name))
				return range;

	range.first = first_named(config, name);
	for (range.n = 0; range.first + range.n < config->nmodels; range.n++)
		if (strcmp(config->models[range.first + range.n].name, name) != 0)
			break;
	return range;
}

static int
cmp_quality(const void *a, const void *b, void *arg)
{
	const LlmConfig *config = arg;
	const LlmModel *x = &config->models[*(const int *) a];
	const LlmModel *y = &config->models[*(const int *) b];
	int			c;

	if (x->quality != y->quality)
		return x->quality > y->quality ? -1 : 1;
	c = strcmp(x->provider->name, y->provider->name);
	return c != 0 ? c : strcmp(x->name, y->name);
}

/*
 * Rules
 */

static LlmRuleKind
kind_of(const LlmRule *rule)
{
	if (rule->alias != NULL)
		return LLMGW_RULES_OF_ALIAS;
	return rule->task != NULL ? LLMGW_RULES_OF_TASK : LLMGW_RULES_OF_ANY_TASK;
}

/* How a rule compares to those of a kind and name. */
static int
cmp_rule_to(const LlmRule *rule, LlmRuleKind kind, const char *name)
{
	if (kind_of(rule) != kind)
		return kind_of(rule) < kind ? -1 : 1;
	if (kind == LLMGW_RULES_OF_ANY_TASK)
		return 0;
	return strcmp(kind == LLMGW_RULES_OF_ALIAS ? rule->alias : rule->task, name);
}

static int
cmp_rule(const void *a, const void *b, void *arg)
{
	const LlmConfig *config = arg;
	int			x = *(const int *) a;
	int			y = *(const int *) b;
	const LlmRule *other = &config->rules[y];
	int			c = cmp_rule_to(&config->rules[x], kind_of(other),
								other->alias != NULL ? other->alias : other->task);

	return c != 0 ? c : x - y;
}

int
llmgw_route_rules(const LlmConfig *config, const LlmRouteIndex *index, LlmRuleKind kind,
				  const char *name, int *n)
{
	int			low = 0;
	int			high = config->nrules;
	int			end;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (cmp_rule_to(&config->rules[index->rules[middle]], kind, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	for (end = low; end < config->nrules; end++)
		if (cmp_rule_to(&config->rules[index->rules[end]], kind, name) != 0)
			break;
	*n = end - low;
	return low;
}

bool
llmgw_route_facts_hold(const LlmRouteIndex *index)
{
	return strcmp(index->allowed_hosts, allowed_hosts()) == 0;
}

static LlmRouteIndex *
make_index(LlmConfig *config)
{
	LlmRouteIndex *index = palloc(sizeof(LlmRouteIndex));

	index->allowed_hosts = pstrdup(allowed_hosts());
	index->facts = palloc0(sizeof(LlmModelFacts) * Max(config->nmodels, 1));
	index->best = palloc(sizeof(int) * Max(config->nmodels, 1));
	for (int i = 0; i < config->nmodels; i++)
	{
		LlmModelFacts *facts = &index->facts[i];

		facts->can = capabilities_of(&config->models[i]);
		facts->lacks = lacks_params(&config->models[i], facts->can);
		facts->unusable = llmgw_route_unusable(&config->models[i], &facts->hint);
		index->best[i] = i;
	}
	qsort_arg(index->best, config->nmodels, sizeof(int), cmp_quality, config);

	index->targets = palloc(sizeof(LlmModelRange) * Max(config->nrules, 1));
	index->rules = palloc(sizeof(int) * Max(config->nrules, 1));
	for (int i = 0; i < config->nrules; i++)
	{
		index->targets[i] = llmgw_route_named(config, config->rules[i].model);
		index->rules[i] = i;
	}
	qsort_arg(index->rules, config->nrules, sizeof(int), cmp_rule, config);
	return index;
}

const LlmRouteIndex *
llmgw_route_index(const LlmConfig *config)
{
	if (config->route_index == NULL)
	{
		LlmConfig  *learned = unconstify(LlmConfig *, config);
		MemoryContext old = MemoryContextSwitchTo(config->context);

		learned->route_index = make_index(learned);
		MemoryContextSwitchTo(old);
	}
	return config->route_index;
}
