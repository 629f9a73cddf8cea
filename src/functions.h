/*-------------------------------------------------------------------------
 *
 * functions.h
 *	  What the SQL functions that make calls share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_FUNCTIONS_H
#define LLMGW_FUNCTIONS_H

#include "fmgr.h"

#include "call.h"

/*
 * Positions of the arguments that every calling function begins with; the
 * first one is its prompt, or its prompts.
 */
enum
{
	LLMGW_ARG_PROMPT = 0,
	LLMGW_ARG_PRIORITY,
	LLMGW_ARG_MODEL,
	LLMGW_ARG_TASK,
	LLMGW_ARG_OPTIMIZE,
	LLMGW_ARG_MIN_TIER,
	LLMGW_ARG_SYSTEM_PROMPT,
	LLMGW_ARG_MAX_TOKENS,
	LLMGW_ARG_TEMPERATURE,
	LLMGW_ARG_PARAMS,
	LLMGW_ARG_TIMEOUT_MS,
	LLMGW_ARG_CACHE,
	LLMGW_ARG_TAGS,
	LLMGW_NCOMMON_ARGS
};

/* the columns of DETAIL, and those of them that somebody needs by name */
#define LLMGW_NDETAIL	24

enum
{
	LLMGW_DETAIL_INPUT_TOKENS = 7,
	LLMGW_DETAIL_REASONING_TOKENS = 10,
	LLMGW_DETAIL_ESTIMATED_USD = 11,
	LLMGW_DETAIL_COST_USD = 12,
	LLMGW_DETAIL_ATTEMPTS = 15,
	LLMGW_DETAIL_CACHED = 17,
	LLMGW_DETAIL_ERROR_CLASS = 21,
	LLMGW_DETAIL_REQUEST_ID = 23
};

/* functions_args.c */

/*
 * Checks the common arguments and returns them in the given context, which
 * also pins the configuration.  Raises 22023, 42501, 42704 and 55000.
 */
extern LlmSpec *llmgw_args_read(FunctionCallInfo fcinfo, MemoryContext context);

/*
 * For functions with other arguments: a frame for llmgw_args_read() of
 * LLMGW_NCOMMON_ARGS arguments, all NULL.
 */
extern void llmgw_args_none(FunctionCallInfo fcinfo, FunctionCallInfo common);

/* Raises 55000 and 25006 where nobody may make a call. */
extern void llmgw_args_check_may_call(void);

/* Fills in who calls; in the current context. */
extern void llmgw_args_set_caller(LlmSpec *spec, Oid role);

/* Raises 22023 for a prompt that no provider takes. */
extern void llmgw_args_check_prompt(const char *prompt);

/* Raises 42704 for a name that is neither an alias nor a model's. */
extern void llmgw_args_check_model(const LlmConfig *config, const char *model);

/* What a call of a task is optimized for, unless it says so itself. */
extern LlmOptimize llmgw_args_default_optimize(const LlmConfig *config, const char *task);

/* Raises 22023 for a schema that answers cannot be held to. */
extern void llmgw_args_check_schema(Jsonb *schema);

/* Raises 22023 for a limit of tokens that is not positive. */
extern void llmgw_args_check_max_tokens(int max_tokens);

/*
 * How many calls of a batch may be under way: that argument, or the setting.
 * Raises 22023; caps it with a NOTICE.
 */
extern int	llmgw_args_concurrency(FunctionCallInfo fcinfo, int arg);

/* The tags of llm_gateway.tags; NULL: none. */
extern Jsonb *llmgw_args_default_tags(void);

/* functions.c */

/*
 * Drives one call to its end, without other calls beside it, and returns when
 * its record is booked.  The context is the one that the call was created in.
 */
extern void llmgw_run_single(LlmCall *call, MemoryContext context);

/* The same, but does not wait for its record. */
extern void llmgw_run_unbooked(LlmCall *call, MemoryContext context);

/* Raises a call's error, or warns of it where on_error makes it NULL. */
extern void llmgw_report_failure(const LlmCall *call);

/* An answer that ends because of a token limit: says so, and whose it was. */
extern void llmgw_warn_if_cut(const LlmCall *call);

/*
 * The one row of a function that returns DETAIL; none for a NULL prompt.  make()
 * makes the call that the arguments describe, in the context, and drives it.
 */
typedef LlmCall *(*LlmMakeCall) (FunctionCallInfo fcinfo, MemoryContext context);
extern Datum llmgw_return_detail(FunctionCallInfo fcinfo, LlmMakeCall make);

/* Whether on_error = 'null' turns an error of that SQLSTATE into NULL. */
extern bool llmgw_may_be_null(int sqlstate);

/* Fills DETAIL from a call that is done; palloc'd in the current context. */
extern void llmgw_detail_row(const LlmCall *call, Datum *values, bool *nulls);

/* The error of a call in one line. */
extern char *llmgw_error_line(const LlmCall *call);

/* functions_batch.c */

/*
 * A batch may run for long: calls that it has not started yet are made with the
 * configuration of their moment.  True when that is another than before
 * (*generation): then *spec is a copy with it, in the context.
 */
extern bool llmgw_batch_refresh(LlmSpec **spec, uint64 *generation, MemoryContext context);

/*
 * For each text the number of the first one that is equal to it: its own where
 * there is none before it, and of NULLs.
 */
extern int *llmgw_find_equal(text *const *texts, int n);

#endif							/* LLMGW_FUNCTIONS_H */
