/*-------------------------------------------------------------------------
 *
 * scope.h
 *	  Whom and what a rule or a budget is for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SCOPE_H
#define LLMGW_SCOPE_H

#include "config.h"

/*
 * Whether a caller is within a role (NULL: any) and tags (NULL or {}: any): a member of that
 * role, not merely a superuser, and its own tags (NULL: none) contain those.
 */
extern bool llmgw_scope_covers(const char *role, Jsonb *tags, Oid caller, Jsonb *caller_tags);

/*
 * Whether a name, written as in a rule, stands for this model among others:
 * "provider/model", or a model's name at every provider that has it.  Where both
 * could be meant, it is the former.
 */
extern bool llmgw_scope_names(const LlmConfig *config, const char *name,
							  const LlmModel *model);

#endif							/* LLMGW_SCOPE_H */
