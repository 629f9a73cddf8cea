/*-------------------------------------------------------------------------
 *
 * functions_admin.h
 *	  What the parts of llm_add_provider() share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_FUNCTIONS_ADMIN_H
#define LLMGW_FUNCTIONS_ADMIN_H

#include "funcapi.h"

#include "presets.h"

/* One call of the function. */
typedef struct LlmAdding
{
	ReturnSetInfo *result;
	const char *schema;			/* quoted */
	const LlmPreset *preset;	/* NULL: none, or one for its prices only */
	const LlmPreset *known;		/* whose models are known; may be NULL */
	const char *name;
	const char *kind;
	const char *api_key;
	const char *base_url;
	const char *failure_domain;
	const char *options;
	bool		own_api_key;	/* the caller's, not the preset's */
	bool		own_base_url;
	int			npresent;		/* models that the provider has in the end */
	char	  **present;
	int			nadded;			/* rows that the function returns */
} LlmAdding;

/* Adds a row to what the function returns: something has been added. */
extern void llmgw_adding_report(LlmAdding *adding, const char *object, const char *name,
								const char *detail);

/*
 * Runs a statement, in which %s stands for the schema, with texts as its
 * parameters; returns the number of rows.
 */
extern uint64 llmgw_adding_execute(LlmAdding *adding, const char *statement, int nargs,
								   const char *const *args);

/* What is known of a model, if only by where it runs; never NULL. */
extern const LlmPresetModel *llmgw_adding_model(const LlmAdding *adding, const char *name);

/*
 * Adds the preset's rules for those of its models that are there, or says how
 * to add some.
 */
extern void llmgw_adding_rules(LlmAdding *adding);

#endif							/* LLMGW_FUNCTIONS_ADMIN_H */
