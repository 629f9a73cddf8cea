/*-------------------------------------------------------------------------
 *
 * route_index.h
 *	  What routing works out once for a configuration, rather than for each call.
 *
 * Made when the first call is routed by a configuration, in its memory; afterwards
 * only read.  Part of route.c: private to the process, no locks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ROUTE_INDEX_H
#define LLMGW_ROUTE_INDEX_H

#include "config.h"

/* llm_models.capabilities that routing asks for, as bits */
#define LLMGW_CAN_CHAT			(1 << 0)
#define LLMGW_CAN_TOOLS			(1 << 1)
#define LLMGW_CAN_IMAGE			(1 << 2)
#define LLMGW_CAN_JSON_SCHEMA	(1 << 3)
#define LLMGW_CAN_EMBEDDING		(1 << 4)
#define LLMGW_CAN_TEMPERATURE	(1 << 5)
#define LLMGW_CAN_REASONING		(1 << 6)

typedef struct LlmModelFacts
{
	int			can;			/* 0 where nothing is known, too */
	LlmParams	lacks;			/* what can be left out, and will have to be */
	const char *unusable;		/* why it can never answer, while
								 * allowed_hosts is as it was; NULL: it can */
	const char *hint;			/* what would allow it; may be NULL */
} LlmModelFacts;

/* Models of one name, or the one of a qualified name: adjacent in the configuration. */
typedef struct LlmModelRange
{
	int			first;
	int			n;				/* 0: there is none */
} LlmModelRange;

/* Which rules may apply to a call; they are kept together. */
typedef enum LlmRuleKind
{
	LLMGW_RULES_OF_ALIAS,
	LLMGW_RULES_OF_TASK,
	LLMGW_RULES_OF_ANY_TASK
} LlmRuleKind;

typedef struct LlmRouteIndex
{
	const char *allowed_hosts;	/* as they were */
	LlmModelFacts *facts;		/* of each model */
	LlmModelRange *targets;		/* of each rule */
	int		   *rules;			/* by kind, alias or task, then as they are */
	int		   *best;			/* models by quality, best first */
} LlmRouteIndex;

extern const LlmRouteIndex *llmgw_route_index(const LlmConfig *config);

/* The facts of a model hold as they are; else what is unusable is not known. */
extern bool llmgw_route_facts_hold(const LlmRouteIndex *index);

extern LlmModelRange llmgw_route_named(const LlmConfig *config, const char *name);

/*
 * The rules of a kind for an alias or task (NULL: of LLMGW_RULES_OF_ANY_TASK):
 * where they are in index->rules.
 */
extern int	llmgw_route_rules(const LlmConfig *config, const LlmRouteIndex *index,
							  LlmRuleKind kind, const char *name, int *n);

/* route.c: why nothing is ever sent to a model, whatever is asked; NULL: it may be. */
extern const char *llmgw_route_unusable(const LlmModel *model, const char **hint);

#endif							/* LLMGW_ROUTE_INDEX_H */
