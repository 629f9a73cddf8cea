/*-------------------------------------------------------------------------
 *
 * route_order.c
 *	  In which order those that may answer a call are asked.
 *
 * Which they are is settled before.  The rules' order stands, unless the call is
 * optimized for something: then the cheapest, best or fastest come first, whichever
 * rule names them, and the rules' order decides between equals.
 *
 * Balancing comes last, among candidates between which all of that makes no
 * difference: providers of one model, named together.  A provider that is always
 * asked first because it is cheaper takes no part in it, and so nobody's turn.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "balance.h"
#include "route.h"

/* Where a candidate belongs: by class, then key, then where it was found. */
typedef struct Place
{
	int			class;
	double		key;
	int			number;
} Place;

static inline int
cmp_place(const Place *a, const Place *b)
{
	if (a->class != b->class)
		return a->class < b->class ? -1 : 1;
	if (a->key != b->key)
		return a->key < b->key ? -1 : 1;
	return a->number < b->number ? -1 : 1;
}

#define ST_SORT sort_places
#define ST_ELEMENT_TYPE Place
#define ST_COMPARE(a, b) cmp_place(a, b)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

/* What is not known is behind what is. */
static double
key_of(const LlmCandidate *c, LlmOptimize optimize)
{
	LlmHealth	health;

	switch (optimize)
	{
		case LLMGW_OPTIMIZE_NONE:
			break;
		case LLMGW_OPTIMIZE_QUALITY:
			return -c->model->quality;
		case LLMGW_OPTIMIZE_COST:
			return c->estimate == LLMGW_COST_UNKNOWN ? INFINITY : (double) c->estimate;
		case LLMGW_OPTIMIZE_SPEED:
			llmgw_endpoint_health(c->model->provider, &health);
			return health.latency_us > 0 ? (double) health.latency_us : INFINITY;
	}
	return 0;
}

/*
 * Those that may not answer are behind the others: of their group or, where
 * the call is optimized, of all, and there spares (of weight 0) are before them.
 * Without a rule they stay where their quality puts them.
 */
static void
find_place(const LlmCandidate *c, int number, LlmOptimize optimize, Place *place)
{
	bool		dropped = c->dropped != NULL;

	place->number = number;
	place->key = 0;
	if (optimize != LLMGW_OPTIMIZE_NONE)
	{
		bool		spare = c->model->weight * c->model->provider->weight <= 0;

		place->class = dropped ? 2 : spare;
		if (!dropped)
			place->key = key_of(c, optimize);
	}
	else
		place->class = c->group == LLMGW_NO_GROUP ? 0 : 2 * c->group + dropped;
}

static void
put_in_places(LlmRoute *route, Place *places, LlmOptimize optimize)
{
	int			n = route->ncandidates;
	LlmCandidate *sorted;
	bool		in_order = true;

	for (int i = 0; i < n; i++)
	{
		find_place(&route->candidates[i], i, optimize, &places[i]);
		in_order &= i == 0 || cmp_place(&places[i - 1], &places[i]) < 0;
	}
	if (in_order)
		return;
	sort_places(places, n);
	sorted = palloc(sizeof(LlmCandidate) * n);
	for (int i = 0; i < n; i++)
		sorted[i] = route->candidates[places[i].number];
	pfree(route->candidates);
	route->candidates = sorted;
}

/* Orders n candidates from start on, which have one model, as they are balanced. */
static void
balance(LlmRoute *route, int start, int n, const LlmRouteQuery *query)
{
	LlmCandidate *c = &route->candidates[start];
	const LlmModel **models;
	LlmBalanceTurn turn = LLMGW_TURN_TAKE;

	if (query->peek)
		turn = LLMGW_TURN_PEEK;
	else if (route->served)
		turn = LLMGW_TURN_DRAW;

	models = palloc(sizeof(LlmModel *) * n);
	for (int i = 0; i < n; i++)
		models[i] = c[i].model;
	if (llmgw_balance(models, n, turn))
		route->served = true;
	for (int i = 0; i < n; i++)
		for (int j = i + 1; j < n && c[i].model != models[i]; j++)
			if (c[j].model == models[i])
			{
				LlmCandidate other = c[i];

				c[i] = c[j];
				c[j] = other;
			}
	pfree(models);
}

void
llmgw_route_order(LlmRoute *route, const LlmRouteQuery *query)
{
	int			n = route->ncandidates;
	Place	   *places = palloc(sizeof(Place) * Max(n, 1));

	put_in_places(route, places, query->optimize);
	for (int i = 0, next; i < n; i = next)
	{
		const LlmCandidate *c = &route->candidates[i];

		for (next = i + 1; next < n; next++)
			if (c->group != route->candidates[next].group ||
				places[i].class != places[next].class || places[i].key != places[next].key)
				break;
		if (c->dropped == NULL && c->group != LLMGW_NO_GROUP &&
			(next > i + 1 || !route->served))
			balance(route, i, next - i, query);
	}
	pfree(places);
}
