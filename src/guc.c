/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  The settings llm_gateway.*
 *
 * A setting that says where data or keys may go, or how much the server may
 * spend on an answer, is PGC_SUSET: a caller must not widen it.  What a caller
 * merely prefers is PGC_USERSET.  No setting holds a key: settings are shown,
 * dumped and logged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "json.h"
#include "timing.h"

int			llmgw_max_databases;
int			llmgw_max_providers;
int			llmgw_max_budgets;

int			llmgw_ledger_buffer;
int			llmgw_retention;
int			llmgw_worker_idle_timeout;
int			llmgw_probe_interval;
int			llmgw_cache_ttl;
int			llmgw_cache_size;
char	   *llmgw_cache_embedding_model;
int			llmgw_load_balancing;
bool		llmgw_adaptive_estimates;

bool		llmgw_enabled;
char	   *llmgw_allowed_hosts;
char	   *llmgw_ca_file;
char	   *llmgw_proxy;
char	   *llmgw_secret_env_pattern;
char	   *llmgw_secret_directory;
int			llmgw_max_response_size;
int			llmgw_max_batch_concurrency;
bool		llmgw_log_content;
bool		llmgw_ledger_sync;
int			llmgw_ledger_sync_timeout;

char	   *llmgw_default_priority;
int			llmgw_default_optimize;
int			llmgw_default_timeout;
int			llmgw_on_error;
int			llmgw_cache;
int			llmgw_batch_concurrency;
char	   *llmgw_tags;

#ifdef LLM_GATEWAY_TESTING
static char *testing_clock;
static TimestampTz testing_moment;	/* what it says; 0: nothing */
#endif

static const struct config_enum_entry on_error_options[] = {
	{"error", LLMGW_ON_ERROR_RAISE, false},
	{"null", LLMGW_ON_ERROR_NULL, false},
	{NULL, 0, false}
};

static const struct config_enum_entry cache_options[] = {
	{"off", LLMGW_CACHE_OFF, false},
	{"auto", LLMGW_CACHE_AUTO, false},
	{"on", LLMGW_CACHE_ON, false},
	{"refresh", LLMGW_CACHE_REFRESH, false},
	{"only", LLMGW_CACHE_ONLY, false},
	{NULL, 0, false}
};

static const struct config_enum_entry balancing_options[] = {
	{"weighted", LLMGW_BALANCE_WEIGHTED, false},
	{"round_robin", LLMGW_BALANCE_ROUND_ROBIN, false},
	{"least_busy", LLMGW_BALANCE_LEAST_BUSY, false},
	{"lowest_latency", LLMGW_BALANCE_LOWEST_LATENCY, false},
	{NULL, 0, false}
};

static const struct config_enum_entry optimize_options[] = {
	{"none", LLMGW_OPTIMIZE_NONE, false},
	{"quality", LLMGW_OPTIMIZE_QUALITY, false},
	{"cost", LLMGW_OPTIMIZE_COST, false},
	{"speed", LLMGW_OPTIMIZE_SPEED, false},
	{NULL, 0, false}
};

static int
option_from_name(const struct config_enum_entry *options, const char *name)
{
	for (; options->name; options++)
	{
		if (pg_strcasecmp(options->name, name) == 0)
			return options->val;
	}
	return -1;
}

int
llmgw_cache_mode_from_name(const char *name)
{
	return option_from_name(cache_options, name);
}

int
llmgw_optimize_from_name(const char *name)
{
	return option_from_name(optimize_options, name);
}

const char *
llmgw_optimize_name(int optimize)
{
	for (const struct config_enum_entry *e = optimize_options; e->name != NULL; e++)
		if (e->val == optimize && optimize != LLMGW_OPTIMIZE_NONE)
			return e->name;
	return NULL;
}

/*
 * Cuts the next element of a comma-separated list out of *p, without the
 * blanks around it.  False at the list's end.
 */
static bool
next_element(const char **p, char *element, size_t size)
{
	size_t		len;

	if (*p == NULL)
		return false;
	while (isspace((unsigned char) **p))
		(*p)++;
	len = strcspn(*p, ",");
	strlcpy(element, *p, Min(len + 1, size));
	*p = (*p)[len] == ',' ? *p + len + 1 : NULL;

	len = strlen(element);
	while (len > 0 && isspace((unsigned char) element[len - 1]))
		element[--len] = '\0';
	return true;
}

static bool
is_blank(const char *text)
{
	return text[strspn(text, " \t\r\n")] == '\0';
}

/* One entry of allowed_hosts: [scheme://]host[:port]; NULL when it is fine. */
static const char *
host_entry_problem(const char *entry)
{
	const char *host = entry;
	const char *host_end;
	const char *port = NULL;

	if (pg_strncasecmp(host, "https://", 8) == 0)
		host += 8;
	else if (pg_strncasecmp(host, "http://", 7) == 0)
		host += 7;
	else if (strstr(host, "://") != NULL)
		return "the scheme is neither http nor https";

	if (*host == '[')
	{
		size_t		len = strspn(host + 1, "0123456789abcdefABCDEF:.");

		if (len < 2 || host[len + 1] != ']')
			return "this is no IPv6 address in brackets";
		host_end = host + len + 2;
	}
	else
	{
		const char *name = strncmp(host, "*.", 2) == 0 ? host + 2 : host;

		host_end = name;
		while (isalnum((unsigned char) *host_end) ||
			   (*host_end != '\0' && strchr("-_.", *host_end) != NULL))
		{
			if (IS_HIGHBIT_SET(*host_end) ||
				(*host_end == '.' && (host_end == name || host_end[1] == '.')))
				return "this is no host name";
			host_end++;
		}
		if (host_end == name)
			return *name == '*' ? "\"*\" may only stand for whole labels at the left, as in \"*.example.com\"" :
				"the host is missing";
	}

	if (*host_end == ':')
	{
		size_t		len;

		port = host_end + 1;
		len = strspn(port, "0123456789");
		if (len == 0 || len > 5 || port[len] != '\0' || atoi(port) < 1 ||
			atoi(port) > 65535)
			return "the port is not a number from 1 to 65535";
		return NULL;
	}
	if (*host_end == '/')
		return "a path cannot be given";
	if (*host_end != '\0')
		return "this is no host name";
	return NULL;
}

static bool
check_allowed_hosts(char **newval, void **extra, GucSource source)
{
	const char *p = *newval;
	char		entry[512];

	if (is_blank(*newval))
		return true;
	while (next_element(&p, entry, sizeof(entry)))
	{
		const char *problem = host_entry_problem(entry);

		if (problem != NULL)
		{
			GUC_check_errdetail("Entry \"%s\": %s.", entry, problem);
			GUC_check_errhint("Entries have the form [scheme://]host[:port], where the host may begin with \"*.\".");
			return false;
		}
	}
	return true;
}

static bool
check_secret_env_pattern(char **newval, void **extra, GucSource source)
{
	const char *p = *newval;
	char		pattern[256];

	if (is_blank(*newval))
		return true;
	while (next_element(&p, pattern, sizeof(pattern)))
	{
		bool		good = pattern[0] != '\0';

		for (const char *c = pattern; *c; c++)
			good = good && !IS_HIGHBIT_SET(*c) &&
				(isalnum((unsigned char) *c) || *c == '_' || *c == '*');
		if (!good)
		{
			GUC_check_errdetail("Pattern \"%s\" is not made of letters, digits, \"_\" and \"*\".",
								pattern);
			return false;
		}
	}
	return true;
}

/*
 * [scheme://][user[:password]@]host[:port]; what libcurl would make of anything
 * else, it might say in an error, with the password.  Ours does not repeat it.
 */
static bool
check_proxy(char **newval, void **extra, GucSource source)
{
	static const char *const schemes[] = {
		"http", "https", "socks4", "socks4a", "socks5", "socks5h"
	};
	const char *rest = strstr(*newval, "://");
	const char *host;
	bool		good = true;

	if (**newval == '\0')
		return true;
	if (rest != NULL)
	{
		good = false;
		for (int i = 0; i < lengthof(schemes); i++)
			if (strlen(schemes[i]) == rest - *newval &&
				pg_strncasecmp(*newval, schemes[i], rest - *newval) == 0)
				good = true;
		rest += 3;
	}
	else
		rest = *newval;
	host = strrchr(rest, '@');
	host = host ? host + 1 : rest;
	for (const char *c = rest; c < host; c++)
		good = good && (unsigned char) *c > ' ' && *c != 0x7F && strchr("/?#", *c) == NULL;
	for (const char *c = host; *c; c++)
		good = good && !IS_HIGHBIT_SET(*c) &&
			(isalnum((unsigned char) *c) || strchr(".-_:[]", *c) != NULL);
	if (good && *host != '\0')
		return true;
	GUC_check_errmsg("invalid value for parameter \"%s\"", "llm_gateway.proxy");
	GUC_check_errdetail("It is no URL of a proxy such as http://user:password@host:3128.");
	GUC_check_errhint("Schemes are http, https, socks4, socks4a, socks5 and socks5h; in a user's name or password write / ? # as %%2F %%3F %%23.");
	return false;
}

static bool
check_default_priority(char **newval, void **extra, GucSource source)
{
	if (!is_blank(*newval))
		return true;
	GUC_check_errdetail("A priority's name is not empty.");
	return false;
}

static bool
check_tags(char **newval, void **extra, GucSource source)
{
	char	   *reason;
	Jsonb	   *tags;

	if (is_blank(*newval))
		return true;
	tags = llmgw_json_parse_text(*newval, &reason);
	if (tags == NULL)
	{
		GUC_check_errdetail("This is %s.", reason);
		pfree(reason);
	}
	else if (!JB_ROOT_IS_OBJECT(tags))
	{
		GUC_check_errdetail("This is no JSON object.");
		pfree(tags);
		tags = NULL;
	}
	else
	{
		pfree(tags);
		return true;
	}
	GUC_check_errhint("Write, for example, {\"team\": \"search\"}.");
	return false;
}

#ifdef LLM_GATEWAY_TESTING
static bool
moment_from_text(const char *text, TimestampTz *moment)
{
	char		buffer[MAXDATELEN + MAXDATEFIELDS];
	char	   *field[MAXDATEFIELDS];
	int			ftype[MAXDATEFIELDS];
	int			nf;
	int			dtype;
	struct pg_tm tm;
	fsec_t		fsec;
	int			tz;

	return ParseDateTime(text, buffer, sizeof(buffer), field, ftype, MAXDATEFIELDS, &nf) == 0 &&
		llmgw_decode_date_time(field, ftype, nf, &dtype, &tm, &fsec, &tz) == 0 &&
		dtype == DTK_DATE &&
		tm2timestamp(&tm, fsec, &tz, moment) == 0;
}

static bool
check_testing_clock(char **newval, void **extra, GucSource source)
{
	TimestampTz moment;

	if (is_blank(*newval) || moment_from_text(*newval, &moment))
		return true;
	GUC_check_errdetail("This is no timestamp with time zone.");
	return false;
}

static void
assign_testing_clock(const char *newval, void *extra)
{
	if (is_blank(newval) || !moment_from_text(newval, &testing_moment))
		testing_moment = 0;
}

int64
llmgw_wall_clock(void)
{
	return testing_moment != 0 ? testing_moment : GetCurrentTimestamp();
}
#endif							/* LLM_GATEWAY_TESTING */

static void
define_server_settings(void)
{
	DefineCustomIntVariable("llm_gateway.max_databases",
							"Sets how many databases of the cluster may make calls.",
							"Each takes less than a kilobyte of shared memory.",
							&llmgw_max_databases, 64, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.max_providers",
							"Sets how many providers of the cluster have a circuit breaker and limits.",
							"Each takes some eight kilobytes of shared memory.",
							&llmgw_max_providers, 256, 1, 10000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.max_budgets",
							"Sets how many budgets of the cluster may be charged in the same period.",
							"Each takes 128 bytes of shared memory.",
							&llmgw_max_budgets, 1000, 1, 100000,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.ledger_buffer",
							"Sets how much the spool of a database may hold.",
							"Records of calls wait there for the ledger. When it is full, calls are refused.",
							&llmgw_ledger_buffer, 256 * 1024, 4 * 1024, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.retention",
							"Sets how long llm_requests, llm_attempts and llm_breaker_events keep their rows.",
							"Zero keeps them for ever. llm_daily_spend is always kept.",
							&llmgw_retention, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.worker_idle_timeout",
							"Sets after which time without calls a database's worker exits.",
							"The next call starts another one. Zero lets it stay.",
							&llmgw_worker_idle_timeout, 60000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.probe_interval",
							"Sets after which time without calls a provider is probed.",
							"Zero probes only providers whose circuit breaker is open.",
							&llmgw_probe_interval, 0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.cache_ttl",
							"Sets for how long answers are kept where the task does not say it.",
							"Of calls with cache \"on\" or \"refresh\". Zero keeps only answers of tasks that have a cache_ttl.",
							&llmgw_cache_ttl, SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.cache_size",
							"Sets how much the answers kept in llm_cache may take.",
							"Beyond it the oldest are deleted. Zero keeps none.",
							&llmgw_cache_size, 100 * 1024, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.cache_embedding_model",
							   "Names the model that tells which prompts are similar.",
							   "Written as the argument model. It is asked for an embedding of prompts of tasks that "
							   "have a cache_similarity. When empty, answers are kept for equal prompts only.",
							   &llmgw_cache_embedding_model, "",
							   PGC_SIGHUP, 0, NULL, NULL, NULL);

	DefineCustomEnumVariable("llm_gateway.load_balancing",
							 "Sets how calls are shared out among the providers of a model.",
							 NULL,
							 &llmgw_load_balancing, LLMGW_BALANCE_WEIGHTED, balancing_options,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);

	DefineCustomBoolVariable("llm_gateway.adaptive_estimates",
							 "Estimates calls by what a model's answers have been like.",
							 "When off, by the length of the prompt and a fixed length of the answer.",
							 &llmgw_adaptive_estimates, true,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
}

static void
define_superuser_settings(void)
{
	DefineCustomBoolVariable("llm_gateway.enabled",
							 "Allows calls to providers.",
							 "When off, every call fails before anything is sent.",
							 &llmgw_enabled, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.allowed_hosts",
							   "Lists the hosts that providers may be on.",
							   "Entries have the form [scheme://]host[:port], where the host may begin with \"*.\"; "
							   "plain http is allowed to entries that say http://. When empty, any host is allowed "
							   "over https, and this machine over http.",
							   &llmgw_allowed_hosts, "",
							   PGC_SUSET, GUC_LIST_INPUT,
							   check_allowed_hosts, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.ca_file",
							   "Names a file with the certificate authorities to trust.",
							   "When empty, the operating system's are trusted.",
							   &llmgw_ca_file, "",
							   PGC_SUSET, 0, NULL, NULL, NULL);

	/* the URL may hold a user name and a password */
	DefineCustomStringVariable("llm_gateway.proxy",
							   "Sets the URL of a proxy for all requests to providers.",
							   "When empty, none is used; the server's environment is not asked.",
							   &llmgw_proxy, "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   check_proxy, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.secret_env_pattern",
							   "Lists the environment variables that may be used as keys.",
							   "A comma-separated list of names in which \"*\" stands for any characters. "
							   "When empty, no variable may be used.",
							   &llmgw_secret_env_pattern, "*_API_KEY",
							   PGC_SUSET, GUC_LIST_INPUT,
							   check_secret_env_pattern, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.secret_directory",
							   "Sets the directory of the files that may be used as keys.",
							   "A reference file:NAME is the file NAME in it. A relative path is "
							   "below the data directory. When empty, no file may be used.",
							   &llmgw_secret_directory, "",
							   PGC_SUSET, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);

	/* jsonb and text end at 1 GB, and an answer is both at some time */
	DefineCustomIntVariable("llm_gateway.max_response_size",
							"Sets the largest response that is read from a provider.",
							NULL,
							&llmgw_max_response_size, 64 * 1024, 1, 512 * 1024,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.max_batch_concurrency",
							"Sets how many calls of one batch may be under way at once.",
							"A batch that asks for more is capped, with a notice.",
							&llmgw_max_batch_concurrency, 1000, 1, 10000,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomBoolVariable("llm_gateway.log_content",
							 "Records prompts and responses in llm_requests.",
							 NULL,
							 &llmgw_log_content, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomBoolVariable("llm_gateway.ledger_sync",
							 "Lets a call return only when it is in the ledger.",
							 "When off, it returns at once, and its rows appear a moment later.",
							 &llmgw_ledger_sync, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.ledger_sync_timeout",
							"Sets how long a call waits for the ledger at most.",
							"Afterwards it warns and returns; its record stays as it is.",
							&llmgw_ledger_sync_timeout, 1000, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS, NULL, NULL, NULL);
}

static void
define_user_settings(void)
{
	DefineCustomStringVariable("llm_gateway.default_priority",
							   "Sets the priority of calls that name none.",
							   "A name in llm_priorities.",
							   &llmgw_default_priority, "normal",
							   PGC_USERSET, 0,
							   check_default_priority, NULL, NULL);

	DefineCustomEnumVariable("llm_gateway.default_optimize",
							 "Sets what calls that do not say it are routed for.",
							 "With \"none\" the order of the routing rules decides.",
							 &llmgw_default_optimize, LLMGW_OPTIMIZE_NONE,
							 optimize_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.default_timeout",
							"Sets the time limit of calls that name none, fallbacks included.",
							"Zero turns it off; the time-outs of the provider or model still hold.",
							&llmgw_default_timeout, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomEnumVariable("llm_gateway.on_error",
							 "Sets what a call does when providers fail.",
							 "With \"null\" it returns NULL and warns. Errors in budgets, privileges, "
							 "configuration and arguments are always raised.",
							 &llmgw_on_error, LLMGW_ON_ERROR_RAISE,
							 on_error_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomEnumVariable("llm_gateway.cache",
							 "Sets how calls that do not say it use stored answers.",
							 "off: every call is made. auto: equal prompts of one batch share an answer, and tasks with a "
							 "cache_ttl are stored, and served when a budget runs low. on: stored and served. "
							 "refresh: made and stored. only: served, or an error.",
							 &llmgw_cache, LLMGW_CACHE_AUTO,
							 cache_options,
							 PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("llm_gateway.batch_concurrency",
							"Sets how many calls of a batch are under way at once, unless it says so.",
							NULL,
							&llmgw_batch_concurrency, 32, 1, 10000,
							PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomStringVariable("llm_gateway.tags",
							   "Sets tags of every call: a JSON object, or nothing.",
							   "Tags given with a call are merged into it. Budgets and routing rules can match them.",
							   &llmgw_tags, "",
							   PGC_USERSET, 0, check_tags, NULL, NULL);

#ifdef LLM_GATEWAY_TESTING
	DefineCustomStringVariable("llm_gateway.testing_clock",
							   "Sets what the wall clock of this session shows: a timestamp with time zone, or nothing.",
							   "For tests of what happens in the course of days. Nothing that waits looks at it.",
							   &testing_clock, "",
							   PGC_USERSET, GUC_NOT_IN_SAMPLE,
							   check_testing_clock, assign_testing_clock, NULL);
#endif
}

void
llmgw_guc_init(void)
{
	define_server_settings();
	define_superuser_settings();
	define_user_settings();
	MarkGUCPrefixReserved("llm_gateway");
}
