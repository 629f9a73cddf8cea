/*-------------------------------------------------------------------------
 *
 * route.h
 *	  Which models may answer a call, in which order.
 *
 * Depends on the configuration and on what the call says of itself, but for the
 * order among the providers of one model, which is balanced (balance.h).  What
 * depends on the moment (breakers, limits, budgets) adds its reasons to the same
 * list.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ROUTE_H
#define LLMGW_ROUTE_H

#include "config.h"
#include "cost.h"
#include "endpoint.h"
#include "guc.h"
#include "tier.h"

#define LLMGW_NO_GROUP	0

typedef struct LlmCandidate
{
	const LlmModel *model;
	const LlmRule *rule;		/* the first that names it; NULL: the caller
								 * does, or no rule applies */
	int			group;			/* of one model, that were found together; or
								 * LLMGW_NO_GROUP: they are not balanced */
	const char *dropped;		/* why it may not answer; NULL: it may */
	const char *hint;			/* what would allow it; may be NULL */
	const LlmBudget *denied_by; /* that is what keeps it from the call; NULL:
								 * no budget does */
	bool		unfit;			/* and not for want of money */
	LlmNano		estimate;		/* cost; LLMGW_COST_UNKNOWN */
	bool		advised;		/* it is told of the schema in words only */
	LlmParams	lacks;			/* what its capabilities do not have, and a
								 * call can do without */

	/* how the call fares with it; call_next.c's */
	bool		spent;			/* it failed, or was given up: not again */
	bool		behind;			/* others of its failure domain failed */
	int			retries;
	LlmAdmit	refused;		/* why it was not asked when it was looked at
								 * last; LLMGW_ADMITTED: it was not refused */
	LlmRefusal	refusal;
	const char *shortage;		/* why there was no room in a budget when it
								 * was to be sent; NULL: there was */
	const LlmBudget *short_of;	/* in which one */
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
	int64		longest_input;	/* of embeddings: characters of one */
	int			max_tokens;		/* 0: not given; or LLMGW_NO_OUTPUT */
	const char *only_model;		/* of embeddings: as below, once known */
	bool		peek;			/* only looks: takes no turn of a provider */
	LlmOptimize optimize;		/* which of those that may answer are first */
	const LlmTierView *budgets; /* NULL: none have a say */

	/* what the model must be able to do */
	bool		needs_tools;
	bool		needs_schema;
	bool		may_advise;		/* or be told of the schema in words */
	bool		needs_images;
	bool		needs_image_urls;	/* that its provider fetches */
	bool		needs_embedding;	/* instead of an answer */
	Jsonb	   *params;			/* some of them; NULL: none */
} LlmRouteQuery;

typedef struct LlmRoute
{
	bool		pinned;			/* the caller named a model */
	bool		unknown_model;	/* and there is none of that name */
	bool		below_tier;		/* some would do but for min_tier */
	bool		served;			/* some may answer and, as far as is known,
								 * can be sent to at this moment */
	int			ngroups;
	int			ncandidates;
	LlmCandidate *candidates;
	char	   *unresolved;		/* rules that name no model there is, a line
								 * each; NULL: none */
} LlmRoute;

/* The first that may answer; NULL: none. */
extern const LlmCandidate *llmgw_route_first(const LlmRoute *route);

/* Whether a name is an alias, or stands for a model that there is. */
extern bool llmgw_route_knows(const LlmConfig *config, const char *model);

/*
 * The candidates, each once, palloc'd in the current context, in the order of the
 * rules or, where the call is optimized for something, by that.  A call takes one
 * turn: among the providers of the first model that can be sent to at this
 * moment, as far as they are equal in what it is optimized for.  Those that come behind are there for when it fails, and ordered by
 * chance, in proportion.  Embeddings of two
 * models cannot be compared: there only the first model that may answer is kept,
 * with all its providers, and how long an input is has no say in which it is.
 */
extern void llmgw_route(const LlmConfig *config, const LlmRouteQuery *query,
						LlmRoute *route);

/*
 * Why nothing may be sent to a provider, whatever it is, in words; NULL: it may.
 * *hint is set to what would allow it, where there is something.
 */
extern const char *llmgw_route_unreachable(const LlmProvider *provider, const char **hint);

/* route_order.c, for route.c: puts them in order. */
extern void llmgw_route_order(LlmRoute *route, const LlmRouteQuery *query);

/* Puts this model first, where it may answer at all. */
extern void llmgw_route_prefer(LlmRoute *route, const LlmModel *model);

#endif							/* LLMGW_ROUTE_H */
