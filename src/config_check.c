/*-------------------------------------------------------------------------
 *
 * config_check.c
 *	  Row triggers of the configuration tables: what may be written.
 *
 * A row is judged here, in C and before any constraint, for three reasons: a
 * constraint's error prints the row, and with it a key that somebody wrote
 * where a reference belongs; most rules are about things that SQL does not
 * know (dialects, hosts, the server's settings); and it works the same under
 * any search_path and for any role.  A mistake is found when it is made,
 * not when a call needs the row.
 *
 * What depends on a server's settings or roles must not keep a dump from being
 * restored elsewhere: a superuser is warned instead.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"

#include "config.h"
#include "config_check.h"
#include "config_rules.h"
#include "guc.h"
#include "presets.h"

PG_FUNCTION_INFO_V1(llmgw_sql_config_row);
PG_FUNCTION_INFO_V1(llmgw_sql_config_truncate);

#define MAX_SPAN_US		USECS_PER_DAY

void
llmgw_hide_statement(const char *instead, const char *secret)
{
	/* what it is shown as, and what the client sent */
	static const char *shown = NULL;
	static const char *sent = NULL;

	if (debug_query_string != shown || shown == NULL)
		sent = debug_query_string;
	shown = instead;

	/*
	 * The text that the client sent is in this process's memory and is used
	 * again when the statement ends (log_min_duration_statement).  Only its
	 * bytes are changed, not its length: others know the positions of its
	 * parts.
	 */
	if (secret != NULL && *secret != '\0' && sent != NULL &&
		MyBackendType == B_BACKEND)
	{
		size_t		len = strlen(secret);
		char	   *at = unconstify(char *, sent);
		bool		found = false;

		while ((at = strstr(at, secret)) != NULL)
		{
			memset(at, '*', len);
			at += len;
			found = true;
		}

		/* it may be written in another way: E'\x73k-...', or with '' in it */
		if (!found && strchr(sent, '\'') != NULL)
			memset(unconstify(char *, sent), '*', strlen(sent));
	}
	debug_query_string = instead;
	pgstat_report_activity(STATE_RUNNING, instead);
}

void
llmgw_refuse_raw_key(const char *provider, const char *key)
{
	llmgw_hide_statement("<statement with an API key>", key);

	/* COPY's context is the input line, a function's is its statement */
	error_context_stack = NULL;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("api_key of provider \"%s\" must be a reference to a key, not the key itself",
					provider),
			 errhint("Use 'env:NAME' for a variable of the server's environment, 'file:NAME' for a file in llm_gateway.secret_directory, or store the key with llm_set_secret('NAME', ...) and use 'secret:NAME'."),
			 errhidestmt(true),
			 errhidecontext(true)));
}

/*
 * A dump that is being restored: its settings are another server's.  The same
 * sign by which CREATE FUNCTION knows one.
 */
static bool
restoring(void)
{
	return superuser() && !check_function_bodies;
}

/* The reference to the key, without ever showing it. */
static void
check_api_key(const LlmRow *row, const char *name)
{
	char	   *api_key = llmgw_row_text(row, "api_key");
	LlmSecretRef ref;

	if (api_key == NULL)
		return;
	if (!llmgw_secret_parse(api_key, &ref))
		llmgw_refuse_raw_key(name, api_key);
	if (ref.kind == LLMGW_SECRET_ENV && !llmgw_secret_env_allowed(ref.name))
		ereport(restoring() ? WARNING : ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("api_key of provider \"%s\" names an environment variable that may not be used as a key",
						name),
				 errdetail("Only names that match llm_gateway.secret_env_pattern (%s) may be used.",
						   llmgw_secret_env_pattern),
				 errhint("Rename the variable, or let a superuser change the setting: ALTER SYSTEM SET llm_gateway.secret_env_pattern = '...'; SELECT pg_reload_conf();")));
}

/*
 * Where calls or probes, and with them the key, are sent.  Everybody is held
 * to llm_gateway.allowed_hosts.  Who is not a superuser must not choose a host
 * freely even where that is empty, or could send any key anywhere.
 */
static void
check_host(const LlmUrl *url, const char *name, bool probe, bool chosen)
{
	char	   *hint = NULL;
	char	   *refused = llmgw_url_refused(url, &hint);

	if (refused != NULL)
		ereport(superuser() ? WARNING : ERROR,
				(errcode(superuser() ? ERRCODE_WARNING :
						 ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("%s provider \"%s\" are not allowed: %s",
						probe ? "probes of" : "calls to", name, refused),
				 errhint("%s", hint)));
	else if (chosen && !superuser() &&
			 (llmgw_allowed_hosts == NULL ||
			  llmgw_allowed_hosts[strspn(llmgw_allowed_hosts, " ,\t")] == '\0') &&
			 !llmgw_preset_has_host(url))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to send %s of provider \"%s\" to host \"%s\"",
						probe ? "probes" : "calls", name, url->host),
				 errdetail("Only superusers choose a host that llm_gateway.allowed_hosts does not name and no preset has."),
				 errhint("Let a superuser write this row, or list every host in use: ALTER SYSTEM SET llm_gateway.allowed_hosts = '...'; SELECT pg_reload_conf();")));
}

/*
 * Who is not a superuser does not send a preset's key, which is known by its
 * variable's name, to another host than that preset's: neither that the host is
 * another preset's nor that it is listed says that this key may go there.
 */
static void
check_key_host(const LlmRow *row, const LlmUrl *url, const char *name)
{
	char	   *api_key = llmgw_row_text(row, "api_key");
	LlmSecretRef ref;
	const LlmPreset *preset;

	if (superuser() || api_key == NULL || !llmgw_secret_parse(api_key, &ref) ||
		ref.kind != LLMGW_SECRET_ENV ||
		(preset = llmgw_preset_of_key(ref.name)) == NULL ||
		llmgw_preset_is_at(preset, url))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to send the key of provider \"%s\" to host \"%s\"",
					name, url->host),
			 errdetail("Environment variable \"%s\" has the key of preset \"%s\".",
					   ref.name, preset->name),
			 errhint("Use a variable of another name, or let a superuser write this row.")));
}

static bool
same_text(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* Whether the row has a key, and not the one that it had. */
static bool
has_new_key(const LlmRow *row, const LlmRow *old)
{
	char	   *api_key = llmgw_row_text(row, "api_key");

	return api_key != NULL &&
		(old == NULL || !same_text(api_key, llmgw_row_text(old, "api_key")));
}

static void
check_base_url(const LlmRow *row, const LlmRow *old, const char *name,
			   const LlmDialect *dialect)
{
	char	   *base_url = llmgw_row_text(row, "base_url");
	const char *written = base_url;
	const char *reason;
	LlmUrl		url;

	if (dialect == &llmgw_dialect_mock)
		return;
	if (base_url == NULL && dialect->default_base_url == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("provider \"%s\" needs a base_url", name),
				 errdetail("Kind \"%s\" has no public endpoint.", dialect->kind)));
	if (base_url == NULL)
		base_url = pstrdup(dialect->default_base_url);

	/* never shown: it may hold a password */
	if (!llmgw_http_split_url(base_url, &url, &reason))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("base_url of provider \"%s\" cannot be used: %s", name, reason),
				 errhint("Give a URL as the provider's own SDK takes it, such as https://api.openai.com/v1; the key belongs into api_key.")));

	/*
	 * Who changes another column does not choose where a key goes.  The kind
	 * is none of those: what the mock had was not judged.  Nor is the key: a
	 * host that was allowed without one was not trusted with this one.  A
	 * kind's own endpoint is trusted with keys only where it is a provider's,
	 * not whoever listens on this machine.
	 */
	if (old == NULL || !same_text(written, llmgw_row_text(old, "base_url")) ||
		!same_text(dialect->kind, llmgw_row_text(old, "kind")) || has_new_key(row, old))
	{
		check_host(&url, name, false, written != NULL ||
				   (strcmp(url.scheme, "https") != 0 &&
					llmgw_row_text(row, "api_key") != NULL));
		check_key_host(row, &url, name);
	}
}

/* One of three words, or a URL that the provider may be reached by. */
static void
check_probe(const LlmRow *row, const LlmRow *old, const char *name)
{
	char	   *probe = llmgw_row_text(row, "probe");
	const char *reason;
	LlmUrl		url;

	if (probe == NULL || strcmp(probe, "models") == 0 ||
		strcmp(probe, "completion") == 0 || strcmp(probe, "none") == 0)
		return;
	if (!llmgw_http_split_url(probe, &url, &reason))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("probe of %s cannot be used: %s", row->what, reason),
				 errhint("Use models, completion, none, or the URL of a health check.")));
	if (old == NULL || !same_text(probe, llmgw_row_text(old, "probe")))
		check_host(&url, name, true, true);
	if (old == NULL || !same_text(probe, llmgw_row_text(old, "probe")) || has_new_key(row, old))
		check_key_host(row, &url, name);
}

/*
 * A kind that is none.  One that is not a word may be a key: llm_add_provider's
 * second argument is the kind, and somebody's guess.
 */
static void
refuse_kind(const LlmRow *row, const char *kind)
{
	size_t		len = strlen(kind);
	bool		word;

	word = len <= 20 &&
		strspn(kind, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_") == len;
	if (!word)
	{
		llmgw_hide_statement("<statement with an API key>", kind);
		error_context_stack = NULL;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 word ? errmsg("kind of %s must be a known one, not \"%s\"", row->what, kind) :
			 errmsg("kind of %s must be a known one", row->what),
			 errhint("Known kinds are %s; kind openai is also for every server that is compatible with OpenAI's.",
					 llmgw_dialect_kinds()),
			 errhidestmt(!word)));
}

static void
check_provider(LlmRow *row, const LlmRow *old)
{
	char	   *name = llmgw_row_text(row, "name");
	char	   *kind = llmgw_row_text(row, "kind");
	Jsonb	   *options;
	const LlmDialect *dialect;

	row->what = psprintf("provider \"%s\"", name ? name : "");

	/* first of all, so that no other error can show a key */
	check_api_key(row, name ? name : "");

	llmgw_check_name(row, "name", NAMEDATALEN - 1);
	if (name != NULL && strchr(name, '/') != NULL)
		llmgw_reject(row, "name", "not contain a slash",
					 "A slash separates provider and model in names such as openai/gpt-5.");
	if (name != NULL && strcmp(name, "*") == 0)
		llmgw_reject(row, "name", "be a name",
					 "In llm_error_policies * stands for every provider.");
	llmgw_check_name(row, "failure_domain", NAMEDATALEN - 1);

	if (kind == NULL)
		return;					/* the column's constraint says it */
	dialect = llmgw_dialect_find(kind);
	if (dialect == NULL)
		refuse_kind(row, kind);
	check_base_url(row, old, name ? name : "", dialect);

	llmgw_check_real(row, "weight", 0, HUGE_VAL,
					 "Use 0 for a provider that gets calls only when no other can take them.");
	llmgw_check_int(row, "max_concurrency", 1, INT_MAX, "Use NULL for no limit.");
	llmgw_check_int(row, "requests_per_minute", 1, INT_MAX, "Use NULL for no limit.");
	llmgw_check_int(row, "tokens_per_minute", 1, INT_MAX, "Use NULL for no limit.");
	llmgw_check_span(row, "connect_timeout", MAX_SPAN_US);
	llmgw_check_span(row, "first_byte_timeout", MAX_SPAN_US);
	llmgw_check_span(row, "idle_timeout", MAX_SPAN_US);
	llmgw_check_span(row, "total_timeout", MAX_SPAN_US);
	llmgw_check_int(row, "breaker_failures", 1, INT_MAX,
					"Use a large number for a provider that is never to be skipped.");
	llmgw_check_span(row, "breaker_window", MAX_SPAN_US);
	llmgw_check_span(row, "breaker_cooldown", MAX_SPAN_US);

	check_probe(row, old, name ? name : "");

	options = llmgw_row_object(row, "options");
	if (options != NULL)
	{
		char	   *problem = dialect->check_options(options);

		if (problem != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("options of %s cannot be used: %s", row->what, problem),
					 errhint("Options are those of kind \"%s\".", kind)));
	}
}

static void
check_secret(LlmRow *row, const LlmRow *old)
{
	row->what = "a secret";
	llmgw_check_name(row, "name", NAMEDATALEN - 1);
}

typedef struct Check
{
	const char *table;
	void		(*check) (LlmRow *row, const LlmRow *old);
} Check;

static const Check checks[] =
{
	{"_llm_secrets", check_secret},
	{"llm_budgets", llmgw_check_budget},
	{"llm_error_policies", llmgw_check_error_policy},
	{"llm_models", llmgw_check_model},
	{"llm_priorities", llmgw_check_priority},
	{"llm_providers", check_provider},
	{"llm_routing_rules", llmgw_check_routing_rule},
	{"llm_tasks", llmgw_check_task},
	{"llm_tiers", llmgw_check_tier},
};

/*
 * BEFORE INSERT OR UPDATE OR DELETE FOR EACH ROW: raises 22023 for a row that
 * must not be, marks edited seeds, and makes the configuration stale.
 */
Datum
llmgw_sql_config_row(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	rel;
	const char *table;
	HeapTuple	old = NULL;
	HeapTuple	new = NULL;
	LlmRow		row = {0};
	LlmRow		before = {0};

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired before a row is changed",
						"_llm_config_row")));

	rel = row.rel = before.rel = trigger->tg_relation;
	table = RelationGetRelationName(rel);
	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		new = trigger->tg_trigtuple;
	else
	{
		old = trigger->tg_trigtuple;
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
			new = trigger->tg_newtuple;
	}

	/*
	 * llm_set_secret() does not come this way.  Who does could bind a key to
	 * another host, or copy it to a name that is bound to none, unseen.
	 */
	if (strcmp(table, "_llm_secrets") == 0 && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for table %s", table),
				 errhint("Use llm_set_secret() and llm_drop_secret().")));

	if (strcmp(table, "_llm_tombstones") == 0)
	{
		if (old == NULL && !llmgw_seed_bury(rel, new))
			return PointerGetDatum(NULL);
		return PointerGetDatum(new ? new : old);
	}

	row.tuple = new;
	before.tuple = old;
	if (new != NULL)
	{
		for (int i = 0; i < lengthof(checks); i++)
			if (strcmp(checks[i].table, table) == 0)
				checks[i].check(&row, old ? &before : NULL);
		llmgw_refs_check(&row, old ? &before : NULL);
		if (strcmp(table, "llm_budgets") == 0)
			row.tuple = new = llmgw_budget_change(&row, old ? &before : NULL);
	}
	if (old != NULL)
		llmgw_refs_follow(&before, new ? &row : NULL);
	new = llmgw_seed_change(rel, old, new);
	llmgw_config_invalidate(rel);
	return PointerGetDatum(new ? new : old);
}

/* BEFORE TRUNCATE FOR EACH STATEMENT */
Datum
llmgw_sql_config_truncate(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be fired before a table is truncated",
						"_llm_config_truncate")));

	llmgw_refs_truncate(trigger->tg_relation);
	llmgw_seed_truncate(trigger->tg_relation);
	llmgw_config_invalidate(trigger->tg_relation);
	return PointerGetDatum(NULL);
}
