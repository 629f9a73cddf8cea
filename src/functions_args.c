/*-------------------------------------------------------------------------
 *
 * functions_args.c
 *	  The arguments that every calling function has, checked.
 *
 * A bad argument is an error that names the value and the remedy, before
 * anything is sent.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/xlog.h"
#include "catalog/pg_proc.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/backend_status.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "functions.h"
#include "json_schema.h"

/* of tags as text */
#define MAX_TAGS_LENGTH	65536

/* the names of a configuration's rows, for messages */
#define LIST_NAMES(buf, array, n) \
	do { \
		initStringInfo(&(buf)); \
		for (int i_ = 0; i_ < (n); i_++) \
			appendStringInfo(&(buf), "%s%s", i_ ? ", " : "", (array)[i_].name); \
	} while (0)

/*
 * An empty string is not the same as NULL for an argument that names
 * something: it names nothing, and the lookup says so.
 */
static char *
text_arg(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

static const LlmPriority *
read_priority(FunctionCallInfo fcinfo, const LlmConfig *config, Oid role)
{
	char	   *name = text_arg(fcinfo, LLMGW_ARG_PRIORITY);
	const LlmPriority *priority;
	StringInfoData names;

	if (name == NULL)
		name = llmgw_default_priority ? llmgw_default_priority : "";
	priority = llmgw_config_priority(config, name);
	if (priority == NULL)
	{
		LIST_NAMES(names, config->priorities, config->npriorities);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("priority \"%s\" does not exist", name),
				 names.len == 0 ? errdetail("llm_priorities has no rows.") :
				 errdetail("Priorities are: %s.", names.data),
				 names.len == 0 ? 0 :
				 PG_ARGISNULL(LLMGW_ARG_PRIORITY) ?
				 errhint("Set llm_gateway.default_priority to one of them.") :
				 errhint("The second argument is the priority. To name a model, write model => %s.",
						 quote_literal_cstr(name))));
	}
	if (priority->required_role != NULL)
	{
		Oid			required = get_role_oid(priority->required_role, true);

		if (!OidIsValid(required) || !has_privs_of_role(role, required))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for priority \"%s\"", name),
					 errdetail("It requires role \"%s\".", priority->required_role),
					 errhint("Use another priority, or grant that role.")));
	}
	return priority;
}

static const char *
read_task(FunctionCallInfo fcinfo, const LlmConfig *config)
{
	char	   *name = text_arg(fcinfo, LLMGW_ARG_TASK);
	const LlmTask *task;
	StringInfoData names;

	if (name == NULL)
		return "default";
	task = llmgw_config_task(config, name);
	if (task == NULL)
	{
		LIST_NAMES(names, config->tasks, config->ntasks);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("task \"%s\" does not exist", name),
				 errdetail("Tasks are: %s.", names.data),
				 errhint("Use one of them, or add it to llm_tasks.")));
	}
	return task->enabled ? task->name : "default";
}

static const LlmTier *
read_min_tier(FunctionCallInfo fcinfo, const LlmConfig *config)
{
	char	   *name = text_arg(fcinfo, LLMGW_ARG_MIN_TIER);
	const LlmTier *tier;
	StringInfoData names;

	if (name == NULL)
		return NULL;
	tier = llmgw_config_tier(config, name);
	if (tier == NULL)
	{
		LIST_NAMES(names, config->tiers, config->ntiers);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("tier \"%s\" does not exist", name),
				 errhint("Tiers are: %s.", names.data)));
	}
	return tier;
}

static int
read_word(FunctionCallInfo fcinfo, int arg, const char *what, int dflt,
		  int (*lookup) (const char *), const char *words)
{
	char	   *name = text_arg(fcinfo, arg);
	int			value;

	if (name == NULL)
		return dflt;
	value = lookup(name);
	if (value < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for %s: \"%s\"", what, name),
				 errhint("Valid values are: %s.", words)));
	return value;
}

/* Whether the function that is called has an argument of that name. */
static bool
has_argument(FunctionCallInfo fcinfo, const char *name)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Datum		argnames;
	Datum		argmodes;
	bool		no_names;
	bool		no_modes;
	char	  **names;
	int			n = 0;
	bool		found = false;

	if (!HeapTupleIsValid(tuple))
		return false;
	argnames = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargnames, &no_names);
	argmodes = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargmodes, &no_modes);
	if (!no_names)
		n = get_func_input_arg_names(argnames, no_modes ? (Datum) 0 : argmodes, &names);
	for (int i = 0; i < n && !found; i++)
		found = names[i] != NULL && strcmp(names[i], name) == 0;
	ReleaseSysCache(tuple);
	return found;
}

static Jsonb *
read_params(FunctionCallInfo fcinfo)
{
	Jsonb	   *params;
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken tok;
	char	   *key = NULL;

	if (PG_ARGISNULL(LLMGW_ARG_PARAMS))
		return NULL;
	params = PG_GETARG_JSONB_P_COPY(LLMGW_ARG_PARAMS);
	if (!JB_ROOT_IS_OBJECT(params))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("params must be a JSON object"),
				 errhint("For example params => '{\"top_p\": 0.9}'.")));

	it = JsonbIteratorInit(&params->root);
	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		const char *problem = NULL;

		if (tok == WJB_KEY)
			key = pnstrdup(v.val.string.val, v.val.string.len);
		else if (tok == WJB_VALUE)
		{
			if (!llmgw_param_known(key, &v, &problem))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("unknown key \"%s\" in params", key),
						 errdetail("Known keys are: %s.", llmgw_param_names()),
						 has_argument(fcinfo, key) ?
						 errhint("It is an argument of its own: %s => ...", key) :
						 errhint("What only one provider understands goes into extra: params => '{\"extra\": {\"%s\": ...}}'.",
								 key)));
			if (problem != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("invalid value for key \"%s\" in params", key),
						 errdetail("It %s.", problem)));
		}
	}
	return params;
}

Jsonb *
llmgw_args_default_tags(void)
{
	if (llmgw_tags == NULL || llmgw_tags[0] == '\0')
		return NULL;
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(llmgw_tags)));
}

/*
 * Whether tags are too long as text.  A number may be much longer as text than
 * as jsonb, so they are looked at one by one.
 */
static bool
too_long(Jsonb *tags)
{
	JsonbIterator *it = JsonbIteratorInit(&tags->root);
	JsonbIteratorToken token;
	JsonbValue	v;
	Size		len = VARSIZE(tags);

	while (len <= MAX_TAGS_LENGTH && (token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if ((token == WJB_VALUE || token == WJB_ELEM) && v.type == jbvNumeric)
		{
			char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out,
																	 NumericGetDatum(v.val.numeric)));

			len += strlen(digits);
			pfree(digits);
		}
	}
	return len > MAX_TAGS_LENGTH ||
		strlen(JsonbToCString(NULL, &tags->root, len)) > MAX_TAGS_LENGTH;
}

/*
 * A name that all databases share may be in the encoding of another one.  What
 * is not valid in this one is written as \xHH.
 */
static const char *
valid_text(const char *name)
{
	StringInfoData buf;

	if (pg_verifymbstr(name, strlen(name), true))
		return name;
	initStringInfo(&buf);
	for (; *name; name++)
	{
		if (IS_HIGHBIT_SET(*name))
			appendStringInfo(&buf, "\\x%02X", (unsigned char) *name);
		else
			appendStringInfoChar(&buf, *name);
	}
	return buf.data;
}

/* The setting's tags, and over them the argument's. */
static Jsonb *
read_tags(FunctionCallInfo fcinfo)
{
	Jsonb	   *tags = NULL;
	Jsonb	   *all;

	if (!PG_ARGISNULL(LLMGW_ARG_TAGS))
	{
		tags = PG_GETARG_JSONB_P_COPY(LLMGW_ARG_TAGS);
		if (!JB_ROOT_IS_OBJECT(tags))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("tags must be a JSON object"),
					 errhint("For example tags => '{\"team\": \"search\"}'.")));
	}
	all = llmgw_args_default_tags();
	if (all == NULL || tags == NULL)
		all = all ? all : tags;
	else
		all = DatumGetJsonbP(DirectFunctionCall2(jsonb_concat, JsonbPGetDatum(all),
												 JsonbPGetDatum(tags)));

	/* they are kept with each request */
	if (all != NULL && too_long(all))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("tags are longer than %d bytes", MAX_TAGS_LENGTH),
				 errhint("Tags are labels for budgets and reports; put data into your own tables.")));
	return all;
}

void
llmgw_args_check_prompt(const char *prompt)
{
	if (prompt[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("prompt must not be empty"),
				 errhint("A NULL prompt gives NULL without a call.")));
}

void
llmgw_args_check_model(const LlmConfig *config, const char *model)
{
	if (!llmgw_route_knows(config, model))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("model \"%s\" does not exist", model),
				 errdetail("It is neither an alias in llm_routing_rules, nor provider/model or a model's name in llm_models."),
				 errhint("Add it with llm_add_provider(), or with INSERT INTO llm_models(provider, name).")));
}

void
llmgw_args_check_schema(Jsonb *schema)
{
	char	   *problem;

	if (!JB_ROOT_IS_OBJECT(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schema must be a JSON schema, an object"),
				 errhint("For example schema => '{\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}'.")));
	problem = llmgw_json_schema_problem(schema);
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("schema cannot be used: %s", problem),
				 errhint("Every keyword is enforced, or refused: say in the prompt what the supported ones cannot.")));
}

void
llmgw_args_check_max_tokens(int max_tokens)
{
	if (max_tokens <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_tokens must be positive, not %d", max_tokens)));
}

int
llmgw_args_concurrency(FunctionCallInfo fcinfo, int arg)
{
	int			n = llmgw_batch_concurrency;

	if (!PG_ARGISNULL(arg))
	{
		n = PG_GETARG_INT32(arg);
		if (n < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_concurrency must be at least 1, not %d", n)));
	}
	if (n > llmgw_max_batch_concurrency)
	{
		ereport(NOTICE,
				(errmsg("%s of %d is capped at %d",
						PG_ARGISNULL(arg) ? "llm_gateway.batch_concurrency" : "max_concurrency",
						n, llmgw_max_batch_concurrency),
				 errhint("A superuser can raise llm_gateway.max_batch_concurrency.")));
		n = llmgw_max_batch_concurrency;
	}
	return n;
}

void
llmgw_args_check_may_call(void)
{
	if (!llmgw_enabled)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("llm_gateway is switched off"),
				 errhint("A superuser can switch it on: llm_gateway.enabled.")));
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot call a model on a standby server"),
				 errdetail("What a call costs could not be recorded."),
				 errhint("Make the call on the primary server.")));
}

void
llmgw_args_set_caller(LlmSpec *spec, Oid role)
{
	spec->role = role;
	spec->role_name = valid_text(GetUserNameFromId(role, false));
	spec->application_name = application_name && application_name[0] ?
		pstrdup(application_name) : NULL;
	spec->query_id = (int64) pgstat_get_my_query_id();
}

void
llmgw_args_none(FunctionCallInfo fcinfo, FunctionCallInfo common)
{
	InitFunctionCallInfoData(*common, fcinfo->flinfo, LLMGW_NCOMMON_ARGS,
							 fcinfo->fncollation, NULL, NULL);
	for (int i = 0; i < LLMGW_NCOMMON_ARGS; i++)
	{
		common->args[i].value = (Datum) 0;
		common->args[i].isnull = true;
	}
}

LlmOptimize
llmgw_args_default_optimize(const LlmConfig *config, const char *name)
{
	const LlmTask *task = llmgw_config_task(config, name);

	return task != NULL && task->optimize != LLMGW_OPTIMIZE_NONE ? task->optimize :
		llmgw_default_optimize;
}

LlmSpec *
llmgw_args_read(FunctionCallInfo fcinfo, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	LlmSpec    *spec = palloc0(sizeof(LlmSpec));

	llmgw_args_check_may_call();
	spec->config = llmgw_config_get();
	llmgw_config_pin(spec->config, context);
	llmgw_args_set_caller(spec, GetOuterUserId());
	spec->priority = read_priority(fcinfo, spec->config, spec->role);
	spec->model = text_arg(fcinfo, LLMGW_ARG_MODEL);
	if (spec->model != NULL)
		llmgw_args_check_model(spec->config, spec->model);
	spec->task = read_task(fcinfo, spec->config);
	spec->task_source = PG_ARGISNULL(LLMGW_ARG_TASK) ? "default" : "argument";
	spec->optimize = read_word(fcinfo, LLMGW_ARG_OPTIMIZE, "optimize",
							   llmgw_args_default_optimize(spec->config, spec->task),
							   llmgw_optimize_from_name, "quality, cost, speed");
	spec->min_tier = read_min_tier(fcinfo, spec->config);
	spec->system_prompt = text_arg(fcinfo, LLMGW_ARG_SYSTEM_PROMPT);
	if (!PG_ARGISNULL(LLMGW_ARG_MAX_TOKENS))
	{
		spec->max_tokens = PG_GETARG_INT32(LLMGW_ARG_MAX_TOKENS);
		llmgw_args_check_max_tokens(spec->max_tokens);
	}
	if (!PG_ARGISNULL(LLMGW_ARG_TEMPERATURE))
	{
		spec->has_temperature = true;
		spec->temperature = PG_GETARG_FLOAT4(LLMGW_ARG_TEMPERATURE);
		if (!(spec->temperature >= 0 && spec->temperature <= 2))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("temperature must be between 0 and 2, not %g",
							spec->temperature)));
	}
	spec->params = read_params(fcinfo);
	spec->timeout_ms = llmgw_default_timeout;
	if (!PG_ARGISNULL(LLMGW_ARG_TIMEOUT_MS))
	{
		spec->timeout_ms = PG_GETARG_INT32(LLMGW_ARG_TIMEOUT_MS);
		if (spec->timeout_ms < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("timeout_ms must not be negative, but is %d", spec->timeout_ms),
					 errhint("0 means no limit.")));
	}
	spec->cache = read_word(fcinfo, LLMGW_ARG_CACHE, "cache", llmgw_cache,
							llmgw_cache_mode_from_name,
							"off, auto, on, refresh, only");
	spec->tags = read_tags(fcinfo);
	if (spec->tags != NULL)
		spec->tags_text = JsonbToCString(NULL, &spec->tags->root, VARSIZE(spec->tags));

	llmgw_ledger_open(spec->config);
	MemoryContextSwitchTo(old);
	return spec;
}
