/*-------------------------------------------------------------------------
 *
 * config.c
 *	  The configuration cache: when it is stale, who still uses an old one.
 *
 * A change of a configuration table invalidates that table's relcache entry
 * (config_check.c).  The server then does what it does for catalogs: our
 * callback runs in the session that made the change at its next command and
 * at rollback, and in every other session after commit, when that session
 * next accepts invalidations.  Every call begins by accepting them, so a
 * running statement sees a change too.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "config.h"

/* the cached configuration, and whether it still is what the tables say */
static LlmConfig *current = NULL;
static bool valid = false;

/* grows with every invalidation, so that one that comes while we read is seen */
static uint64 invalidations = 0;

/* the tables that the configuration was, or is just being, read from */
static LlmConfigTables tables;

/* Runs at any time, also outside of transactions: only sets flags. */
static void
on_relcache_inval(Datum arg, Oid relid)
{
	bool		ours = relid == InvalidOid; /* "everything" */

	for (int i = 0; i < LLMGW_NCONFIG_TABLES && !ours; i++)
		ours = tables.relations[i] == relid;
	if (!ours)
		return;
	valid = false;
	invalidations++;
}

void
llmgw_config_init(void)
{
	CacheRegisterRelcacheCallback(on_relcache_inval, (Datum) 0);
}

static void
unpin(LlmConfig *config)
{
	Assert(config->pins > 0);
	if (--config->pins == 0)
		MemoryContextDelete(config->context);
}

static void
unpin_callback(void *arg)
{
	unpin(arg);
}

void
llmgw_config_pin(LlmConfig *config, MemoryContext context)
{
	MemoryContextCallback *callback =
	MemoryContextAlloc(context, sizeof(MemoryContextCallback));

	callback->func = unpin_callback;
	callback->arg = config;
	MemoryContextRegisterResetCallback(context, callback);
	config->pins++;
}

LlmConfig *
llmgw_config_get(void)
{
	AcceptInvalidationMessages();
	if (likely(valid))
		return current;

	/*
	 * Read until no invalidation came meanwhile (opening a table accepts
	 * them).  Which tables is settled first, so that one of theirs counts.
	 */
	for (int round = 0;; round++)
	{
		uint64		before;
		LlmConfig  *fresh;

		llmgw_config_find_tables(&tables);
		before = invalidations;
		fresh = llmgw_config_load(&tables);
		if (current != NULL)
			unpin(current);
		current = fresh;
		valid = before == invalidations;

		/*
		 * What was read is one consistent moment in any case.  Where
		 * everything is invalidated all the time, it is this call's, and the
		 * next call reads again.
		 */
		if (valid || round == 2)
			return current;
		CHECK_FOR_INTERRUPTS();
	}
}

void
llmgw_config_invalidate(Relation rel)
{
	CacheInvalidateRelcache(rel);
}

const LlmProvider *
llmgw_config_provider(const LlmConfig *config, const char *name)
{
	int			low = 0;
	int			high = config->nproviders;

	/* they are sorted */
	while (low < high)
	{
		int			middle = low + (high - low) / 2;
		int			c = strcmp(name, config->providers[middle].name);

		if (c == 0)
			return &config->providers[middle];
		if (c < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

const LlmPriority *
llmgw_config_priority(const LlmConfig *config, const char *name)
{
	for (int i = 0; i < config->npriorities; i++)
		if (strcmp(config->priorities[i].name, name) == 0)
			return &config->priorities[i];
	return NULL;
}

const LlmTier *
llmgw_config_tier(const LlmConfig *config, const char *name)
{
	for (int i = 0; i < config->ntiers; i++)
		if (strcmp(config->tiers[i].name, name) == 0)
			return &config->tiers[i];
	return NULL;
}

const LlmTask *
llmgw_config_task(const LlmConfig *config, const char *name)
{
	/* a probe has none */
	for (int i = 0; name != NULL && i < config->ntasks; i++)
		if (strcmp(config->tasks[i].name, name) == 0)
			return &config->tasks[i];
	return NULL;
}

const LlmPolicy *
llmgw_config_policy(const LlmConfig *config, LlmErrorClass error_class,
					const char *provider)
{
	Assert(error_class > LLMGW_OK && error_class < LLMGW_NATTEMPT_CLASSES);
	for (int i = 0; i < config->nprovider_policies; i++)
		if (config->provider_policies[i].error_class == error_class &&
			strcmp(config->provider_policies[i].provider, provider) == 0)
			return &config->provider_policies[i].policy;
	return &config->policies[error_class];
}

bool
llmgw_config_key(const LlmProvider *p, const char **key, char **reason)
{
	*key = NULL;
	switch (p->key_ref.kind)
	{
		case LLMGW_SECRET_NONE:
			return true;
		case LLMGW_SECRET_ENV:
			*key = llmgw_secret_from_env(p->key_ref.name, reason);
			return *key != NULL;
		case LLMGW_SECRET_STORED:
			if (p->stored_secret == NULL)
				*reason = psprintf("secret \"%s\" does not exist", p->key_ref.name);
			else if (p->secret_host != NULL &&
					 strcmp(p->secret_host, p->url.host) != 0 &&
					 strcmp(p->secret_host, psprintf(strchr(p->url.host, ':') ? "[%s]:%d" : "%s:%d",
													 p->url.host, p->url.port)) != 0)
				*reason = psprintf("secret \"%s\" is for host \"%s\" only",
								   p->key_ref.name, p->secret_host);
			else
				*key = p->stored_secret;
			return *key != NULL;
		case LLMGW_SECRET_FILE:
			*key = llmgw_secret_from_file(p->key_ref.name, reason);
			return *key != NULL;
	}
	return false;
}
