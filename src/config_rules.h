/*-------------------------------------------------------------------------
 *
 * config_rules.h
 *	  Rules that the rows of the configuration tables are held to.
 *
 * For config_check.c.  Every rule raises 22023 with the column, the row and the
 * value in its message and the remedy in its hint.  A NULL passes: where it is
 * not allowed, the column's own constraint says so.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CONFIG_RULES_H
#define LLMGW_CONFIG_RULES_H

#include "access/htup.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

/* A row as it is about to be. */
typedef struct LlmRow
{
	Relation	rel;
	HeapTuple	tuple;
	const char *what;			/* what it is, for messages: tier "premium" */
} LlmRow;

/* config_rules.c */

/* the value of a column of that type */
extern Datum llmgw_row_value(const LlmRow *row, const char *column, Oid type, bool *isnull);

/* the value of a column as text; NULL when it is NULL */
extern char *llmgw_row_text(const LlmRow *row, const char *column);

/* the value of a jsonb column, which must be an object; NULL when it is NULL */
extern Jsonb *llmgw_row_object(const LlmRow *row, const char *column);

/* raises the error: "COLUMN of WHAT must RULE, not VALUE" (or "must not ...: VALUE") */
extern void llmgw_reject(const LlmRow *row, const char *column,
						 const char *rule, const char *hint);

/* a text that is not empty, not too long (in bytes), and one line */
extern void llmgw_check_name(const LlmRow *row, const char *column, int max_len);

/* a number within bounds */
extern void llmgw_check_int(const LlmRow *row, const char *column, int min, int max,
							const char *hint);
extern void llmgw_check_real(const LlmRow *row, const char *column, double min,
							 double max, const char *hint);

/* a numeric from 0 to max */
extern void llmgw_check_numeric(const LlmRow *row, const char *column, double max,
								const char *hint);

/* a role's name; a warning if there is no such role */
extern void llmgw_check_role(const LlmRow *row, const LlmRow *old, const char *column);

/* a model's name as a rule has it; a warning with that hint if there is no such model */
extern void llmgw_check_model_name(const LlmRow *row, const LlmRow *old, const char *hint);

/* an interval without months that is not negative */
extern void llmgw_check_span(const LlmRow *row, const char *column, int64 max_us);

/* the tables' own rules; old is NULL for a new row */
extern void llmgw_check_budget(LlmRow *row, const LlmRow *old);
extern void llmgw_check_error_policy(LlmRow *row, const LlmRow *old);
extern void llmgw_check_model(LlmRow *row, const LlmRow *old);
extern void llmgw_check_priority(LlmRow *row, const LlmRow *old);
extern void llmgw_check_routing_rule(LlmRow *row, const LlmRow *old);
extern void llmgw_check_task(LlmRow *row, const LlmRow *old);
extern void llmgw_check_tier(LlmRow *row, const LlmRow *old);

/* config_budgets.c */

/*
 * Gives a budget its id and what it has spent already, when it is new or another one
 * than before.  Returns the row to write in place of row's.
 */
extern HeapTuple llmgw_budget_change(const LlmRow *row, const LlmRow *old);

/* config_refs.c */

/* raises 23503 when a name in the row is that of no row of its table */
extern void llmgw_refs_check(const LlmRow *row, const LlmRow *old);

/*
 * A row is deleted (new NULL) or changed: rows that refer to it go with it or
 * are changed, or 23503 is raised.
 */
extern void llmgw_refs_follow(const LlmRow *old, const LlmRow *new);

/* the same for a table that is truncated */
extern void llmgw_refs_truncate(Relation target);

/*
 * Whether llm_models, the sibling of that table, has a model of that name, alone
 * or behind its provider's and a slash.  *qualified (NULL: not asked for): the
 * latter, which is what the name means then.
 */
extern bool llmgw_model_exists(Relation rules, const char *model, bool *qualified);

#endif							/* LLMGW_CONFIG_RULES_H */
