/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  The settings llm_gateway.*
 *
 * Defined once by _PG_init; other modules only read them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_GUC_H
#define LLMGW_GUC_H

typedef enum LlmOnError
{
	LLMGW_ON_ERROR_RAISE,
	LLMGW_ON_ERROR_NULL
} LlmOnError;

typedef enum LlmCacheMode
{
	LLMGW_CACHE_OFF,
	LLMGW_CACHE_AUTO,
	LLMGW_CACHE_ON,
	LLMGW_CACHE_REFRESH,
	LLMGW_CACHE_ONLY
} LlmCacheMode;

typedef enum LlmOptimize
{
	LLMGW_OPTIMIZE_NONE,
	LLMGW_OPTIMIZE_QUALITY,
	LLMGW_OPTIMIZE_COST,
	LLMGW_OPTIMIZE_SPEED
} LlmOptimize;

/* Among providers of one model; see balance.h. */
typedef enum LlmBalancing
{
	LLMGW_BALANCE_WEIGHTED,
	LLMGW_BALANCE_ROUND_ROBIN,
	LLMGW_BALANCE_LEAST_BUSY,
	LLMGW_BALANCE_LOWEST_LATENCY
} LlmBalancing;

/* set when the server starts */
extern int	llmgw_max_databases;
extern int	llmgw_max_providers;
extern int	llmgw_max_budgets;

/* set in postgresql.conf */
extern int	llmgw_ledger_buffer;	/* kB */
extern int	llmgw_retention;	/* minutes; 0: for ever */
extern int	llmgw_worker_idle_timeout;	/* ms; 0: never */
extern int	llmgw_probe_interval;	/* ms; 0: idle providers are not probed */
extern int	llmgw_cache_ttl;	/* s; 0: only what a task has a cache_ttl for */
extern int	llmgw_cache_size;	/* kB; 0: no answers are kept */
extern char *llmgw_cache_embedding_model;	/* as the argument model; "": no
											 * prompts are similar */
extern int	llmgw_load_balancing;	/* LlmBalancing */
extern bool llmgw_adaptive_estimates;

/* set by superusers */
extern bool llmgw_enabled;
extern char *llmgw_allowed_hosts;
extern char *llmgw_ca_file;
extern char *llmgw_proxy;
extern char *llmgw_secret_env_pattern;
extern char *llmgw_secret_directory;
extern int	llmgw_max_response_size;	/* kB */
extern int	llmgw_max_batch_concurrency;
extern bool llmgw_log_content;
extern bool llmgw_ledger_sync;
extern int	llmgw_ledger_sync_timeout;	/* ms */

/* set by anyone */
extern char *llmgw_default_priority;
extern int	llmgw_default_optimize; /* LlmOptimize */
extern int	llmgw_default_timeout;	/* ms; 0: none */
extern int	llmgw_on_error;		/* LlmOnError */
extern int	llmgw_cache;		/* LlmCacheMode */
extern int	llmgw_batch_concurrency;
extern char *llmgw_tags;		/* a JSON object, or "" */

extern void llmgw_guc_init(void);

/* the value of a word as the arguments cache and optimize spell it; -1: none */
extern int	llmgw_cache_mode_from_name(const char *name);
extern int	llmgw_optimize_from_name(const char *name);

/* the word; NULL for none */
extern const char *llmgw_optimize_name(int optimize);

#endif							/* LLMGW_GUC_H */
