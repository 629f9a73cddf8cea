/*-------------------------------------------------------------------------
 *
 * config.h
 *	  The configuration cache: the tables that a user edits, as structs.
 *
 * A configuration is a snapshot of all those tables, read at one moment, in a
 * memory context of its own, and never changed afterwards (but for the fields
 * marked "learned").  A change of any row makes the next call read a new one;
 * calls that are under way keep theirs until they end, by pinning it.
 *
 * Private to the process: nothing here is shared or locked.  Only
 * config_load.c reads the tables, only config_check.c (row triggers) judges
 * what is written to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CONFIG_H
#define LLMGW_CONFIG_H

#include "utils/jsonb.h"
#include "utils/relcache.h"

#include "breaker.h"
#include "budget_period.h"
#include "dialect.h"
#include "errors.h"
#include "limiter.h"
#include "secret.h"

/* USD per one million tokens in nano-dollars; -1: unknown */
typedef int64 LlmPrice;

#define LLMGW_PRICE_UNKNOWN		((LlmPrice) -1)

/* How it is asked whether an endpoint works (llm_providers.probe). */
typedef enum LlmProbeKind
{
	LLMGW_PROBE_MODELS,			/* its list of models */
	LLMGW_PROBE_COMPLETION,		/* a tiny completion */
	LLMGW_PROBE_URL,
	LLMGW_PROBE_NONE			/* not at all: the next call finds out */
} LlmProbeKind;

typedef struct LlmProvider
{
	const char *name;
	const char *kind;
	const LlmDialect *dialect;	/* NULL: no dialect of that kind in this
								 * version */
	const char *base_url;		/* never NULL if the kind has a default */
	LlmUrl		url;			/* of base_url */
	const char *url_problem;	/* why base_url cannot be used; NULL: it can */
	const char *api_key;		/* the reference as written; NULL: none */
	LlmSecretRef key_ref;
	const char *stored_secret;	/* value of a secret: reference; NULL: no such */
	const char *secret_host;	/* host that the stored secret is bound to */
	const char *failure_domain;
	bool		enabled;
	double		weight;
	int			connect_ms;		/* times in ms, 0: no limit */
	int			first_byte_ms;
	int			idle_ms;
	int			total_ms;
	Jsonb	   *options;		/* NULL: none */
	bool		stream;			/* options.stream, default true */
	bool		keep_connection;	/* options.keep_connection, default true */
	LlmLimits	limits;
	LlmBreakerSettings breaker;
	LlmProbeKind probe;
	const char *probe_url;		/* of LLMGW_PROBE_URL */
	uint64		fingerprint;	/* of kind, URL and key reference */
	uint64		row_mark;		/* another one after any write of the row */

	/* learned: where its slot was last seen; see endpoint.h */
	struct LlmEndpoint *endpoint;
	uint64		no_endpoint;	/* it had none when so many had been taken,
								 * plus one; 0: not known */
} LlmProvider;

typedef struct LlmTier
{
	const char *name;
	int			rank;			/* 1: the best */
	const char *system_prompt_suffix;	/* may be NULL */
	const char *notice;			/* may be NULL */
} LlmTier;

/* Prices of a request with more input tokens than that; unknown: the model's. */
typedef struct LlmPriceTier
{
	int64		above_tokens;
	LlmPrice	input_price;
	LlmPrice	output_price;
	LlmPrice	cached_input_price;
	LlmPrice	cache_write_price;
} LlmPriceTier;

typedef struct LlmModel
{
	const LlmProvider *provider;
	const char *name;
	const char *upstream_name;	/* what the provider is asked for; never NULL */
	const LlmTier *tier;
	double		quality;
	LlmPrice	input_price;
	LlmPrice	output_price;
	LlmPrice	cached_input_price;
	LlmPrice	cache_write_price;
	int			nprice_tiers;
	LlmPriceTier *price_tiers;	/* by above_tokens */
	int			context_window; /* tokens; 0: unknown */
	int			max_output_tokens;	/* 0: unknown */
	int			ncapabilities;	/* -1: unknown */
	const char **capabilities;
	int			first_byte_ms;	/* -1: the provider's */
	int			total_ms;		/* -1: the provider's */
	double		weight;
	bool		enabled;

	/* learned: set when the provider asked for the other name of the limit */
	LlmTokenParam token_param;

	/* learned: set when the provider refused to be asked for a stream's usage */
	bool		no_usage;

	/* learned: what the provider refused, and answered without */
	LlmParams	refused;

	/* learned: where what is known of its answers was seen; see estimate.c */
	struct LlmEstimate *estimate;
	uint32		no_estimate;	/* it had none when so many had been taken,
								 * plus one; 0: not known */
} LlmModel;

/* How much of a budget must remain for each tier; fractions in parts of 10^9. */
typedef struct LlmThresholds
{
	int64		premium_above;
	int64		standard_above;
	int64		economy_above;
	bool		may_use_reserve;
} LlmThresholds;

typedef struct LlmPriority
{
	const char *name;
	int			rank;			/* 1 is served first */
	LlmThresholds thresholds;
	const char *required_role;	/* NULL: anybody may use it */
} LlmPriority;

typedef struct LlmTask
{
	const char *name;
	int			optimize;		/* LlmOptimize; NONE: not said */
	int64		cache_ttl_ms;	/* -1: answers are not kept */
	bool		cache_shared;
	float4		cache_similarity;	/* 0: answers are for equal prompts only */
	int64		cache_similar_ttl_ms;	/* -1: as long as they are kept */
	bool		enabled;
} LlmTask;

/* the largest limit; in nano-dollars it is an int64 */
#define LLMGW_MAX_USD			INT64CONST(9000000000)

typedef struct LlmBudget
{
	int64		id;				/* names its accounts; see budget.h */
	const char *name;
	int64		limit;			/* nano-dollars; -1: none, it only counts */
	LlmPeriod	period;
	const char *timezone;
	pg_tz	   *zone;			/* NULL: there is no such zone any more */
	int64		reserve_fraction;	/* parts in 10^9 */
	bool		strict;
	bool		cache_only;		/* when exhausted, rather than reject */
	const char *role;			/* scope; NULL: any */
	const char *task;
	const char *provider;
	const char *model;			/* written as in a rule */
	Jsonb	   *tags;

	/* what it had spent in the period in which it was made, before it was */
	int64		opening;		/* nano-dollars */
	TimestampTz opening_period; /* start of that period */

	/* learned: the period seen last, and where its account is; see budget.h */
	TimestampTz period_start;
	TimestampTz period_end;		/* 0: none seen yet */
	struct LlmBudgetAccount *account;
	uint64		account_serial; /* which owner of that account it was */
} LlmBudget;

typedef struct LlmRule
{
	int64		id;
	const char *task;			/* NULL: any */
	const char *alias;			/* NULL: not an alias */
	const char *model;
	int			rank;
	bool		enabled;
	const char *role;			/* NULL: any */
	Jsonb	   *tags;			/* NULL: any */
} LlmRule;

typedef struct LlmPolicy
{
	int			max_retries;
	int			backoff_ms;
	bool		fallback;
	bool		trips_breaker;
} LlmPolicy;

typedef struct LlmConfig
{
	MemoryContext context;
	int			pins;			/* calls that use it, plus one for the cache */
	uint64		generation;		/* no other configuration has the same */
	Oid			extension;
	TransactionId creator;		/* that created the extension, if it was this
								 * session's when it was read; else invalid */
	Oid			schema;

	int			nproviders;		/* by name */
	LlmProvider *providers;
	int			nmodels;		/* by name, then provider's name */
	LlmModel   *models;
	int			ntiers;			/* by rank, then name */
	LlmTier    *tiers;
	int			npriorities;	/* by rank, then name */
	LlmPriority *priorities;
	int			ntasks;			/* by name */
	LlmTask    *tasks;
	int			nrules;			/* by rank, then id */
	LlmRule    *rules;
	/* learned: see route_index.h */
	struct LlmRouteIndex *route_index;

	int			nbudgets;		/* by id */
	LlmBudget  *budgets;

	/* by class, for every provider; see llmgw_config_policy() */
	LlmPolicy	policies[LLMGW_NATTEMPT_CLASSES];
	int			nprovider_policies;
	struct LlmProviderPolicy
	{
		const char *provider;
		LlmErrorClass error_class;
		LlmPolicy	policy;
	}		   *provider_policies;
} LlmConfig;

/* config.c */

extern void llmgw_config_init(void);

/*
 * The configuration as of now: what this transaction has changed and what
 * others have committed, in every isolation level.  Reads the tables when
 * something changed.  Raises 55000 when the extension is not installed in this
 * database, and 53200.  The result is valid until the next call of this
 * function, or as long as it is pinned.
 */
extern LlmConfig *llmgw_config_get(void);

/* Keeps it until the memory context is reset or deleted. */
extern void llmgw_config_pin(LlmConfig *config, MemoryContext context);

/* Lookups; NULL when there is none. */
extern const LlmProvider *llmgw_config_provider(const LlmConfig *config, const char *name);
extern const LlmPriority *llmgw_config_priority(const LlmConfig *config, const char *name);
extern const LlmTier *llmgw_config_tier(const LlmConfig *config, const char *name);
extern const LlmTask *llmgw_config_task(const LlmConfig *config, const char *name);
extern const LlmPolicy *llmgw_config_policy(const LlmConfig *config, LlmErrorClass error_class,
											const char *provider);

/*
 * Finds the key of a provider; NULL where it needs none.  False with a reason when
 * there should be one but it cannot be used.
 */
extern bool llmgw_config_key(const LlmProvider *provider, const char **key, char **reason);

/*
 * Tells this session at its next command, and others at commit, that a
 * configuration table changed; undone by rollback.
 */
extern void llmgw_config_invalidate(Relation rel);

/*
 * Raises unless the rows of a table of the extension can be scanned directly:
 * those of a partitioned or foreign table, or of a view in its place, cannot.
 */
extern void llmgw_check_scannable(Relation rel);

/* config_load.c, for config.c and the admin functions */

#define LLMGW_NCONFIG_TABLES	9

typedef struct LlmConfigTables
{
	Oid			extension;
	TransactionId creator;		/* as in LlmConfig */
	Oid			schema;
	Oid			relations[LLMGW_NCONFIG_TABLES];
} LlmConfigTables;

/*
 * Finds the extension's tables by its OID, never by search_path.  Raises 55000
 * when the extension is not installed in this database.
 */
extern void llmgw_config_find_tables(LlmConfigTables *tables);

/*
 * Reads all tables into a new configuration (pins = 1) below TopMemoryContext.
 * Leaves nothing behind when it raises.
 */
extern LlmConfig *llmgw_config_load(const LlmConfigTables *tables);

/* config_host.c */

/*
 * Whether a host may be talked to (llm_gateway.allowed_hosts): NULL when it
 * may, else a palloc'd reason, and *hint the remedy.  The same check for the
 * row trigger, which has the text, and for each connection.
 */
extern char *llmgw_host_refused(const char *base_url, char **hint);
extern char *llmgw_url_refused(const LlmUrl *url, char **hint);

/*
 * Whether a server there is one of the user's own network, as far as its URL
 * tells: a private address, a name that only such a network knows, or http
 * without TLS, which no public provider speaks.
 */
extern bool llmgw_url_is_near(const LlmUrl *url);

#endif							/* LLMGW_CONFIG_H */
