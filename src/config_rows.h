/*-------------------------------------------------------------------------
 *
 * config_rows.h
 *	  Between config_load.c and config_rows.c: a row of a configuration table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CONFIG_ROWS_H
#define LLMGW_CONFIG_ROWS_H

#include "executor/tuptable.h"

#include "config.h"

typedef struct LlmStoredSecret
{
	const char *name;
	const char *value;
	const char *host;
} LlmStoredSecret;

/* One row, on the way from its table into the configuration. */
typedef struct LlmConfigRow
{
	const char *table;
	TupleTableSlot *slot;
	const LlmStoredSecret *secrets; /* for rows of llm_providers: all there
									 * are */
	int			nsecrets;
} LlmConfigRow;

/*
 * Reads the row into items[i], zeroed, of the type that its table has; in the
 * current memory context.  Raises 42703 and 42804 when a column is missing or
 * of another type.  A model needs the configuration's providers and tiers,
 * sorted, and is without them (NULL) when they are not there.
 */
typedef void (*LlmRowReader) (LlmConfig *config, LlmConfigRow *row, void *items, int i);

extern void llmgw_read_secret(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_tier(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_priority(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_task(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_provider(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_model(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_rule(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_budget(LlmConfig *config, LlmConfigRow *row, void *items, int i);
extern void llmgw_read_policy(LlmConfig *config, LlmConfigRow *row, void *items, int i);

#endif							/* LLMGW_CONFIG_ROWS_H */
