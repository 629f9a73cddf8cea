/*-------------------------------------------------------------------------
 *
 * route.h
 *	  Which models may answer a call, in which order.
 *
 * A pure function of the configuration and of what the call says of itself.
 * What depends on the moment (breakers, limits, budgets) adds its reasons to
 * the same list.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ROUTE_H
#define LLMGW_ROUTE_H

#include "config.h"
#include "cost.h"

typedef struct LlmCandidate
{
	const LlmModel *model;
	const char *dropped;		/* why it may not answer; NULL: it may */
	const char *hint;			/* what would allow it; may be NULL */
	LlmNano		estimate;		/* cost; LLMGW_COST_UNKNOWN */
} LlmCandidate;

/* What routing needs to know of a call. */
typedef struct LlmRouteQuery
{
	const char *model;			/* the argument; NULL: the gateway chooses */
	const char *task;
	const LlmTier *min_tier;	/* NULL: any */
	Oid			role;
	Jsonb	   *tags;			/* NULL: none */
	int64		characters;		/* of all that is sent */
	int			max_tokens;		/* 0: not given */

	/* what the model must be able to do */
	bool		needs_tools;
	bool		needs_schema;
	bool		needs_images;
	bool		needs_image_urls;	/* that its provider fetches */
} LlmRouteQuery;

typedef struct LlmRoute
{
	bool		pinned;			/* the caller named a model */
	bool		unknown_model;	/* and there is none of that name */
	bool		below_tier;		/* some would do but for min_tier */
	int			ncandidates;
	LlmCandidate *candidates;
	char	   *unresolved;		/* rules that name no model there is, a line
								 * each; NULL: none */
} LlmRoute;

/* Whether a name is an alias, or stands for a model that there is. */
extern bool llmgw_route_knows(const LlmConfig *config, const char *model);

/* The candidates, each once, palloc'd in the current context. */
extern void llmgw_route(const LlmConfig *config, const LlmRouteQuery *query,
						LlmRoute *route);

#endif							/* LLMGW_ROUTE_H */
