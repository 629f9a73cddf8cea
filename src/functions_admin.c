/*-------------------------------------------------------------------------
 *
 * functions_admin.c
 *	  llm_add_provider(): a provider, its models and rules in one call.
 *
 * It only inserts what is not there, with the rights of its caller, and the
 * triggers of the tables judge the rows as they judge anybody's.  What a user
 * has changed stays as it is, so the call may be repeated, for instance after
 * an upgrade that brought new models.
 *
 * Three cases:
 *	- no kind: the preset of that name, with its models;
 *	- a kind: the provider as described, with the models that are named; of
 *	  those, the ones that a preset at the same host knows get its prices;
 *	- models named: those and no others, in either case.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "config.h"
#include "config_check.h"
#include "functions_admin.h"
#include "presets.h"

PG_FUNCTION_INFO_V1(llmgw_sql_add_provider);

void
llmgw_adding_report(LlmAdding *adding, const char *object, const char *name, const char *detail)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	values[0] = CStringGetTextDatum(object);
	values[1] = CStringGetTextDatum(name);
	values[2] = CStringGetTextDatum(detail);
	tuplestore_putvalues(adding->result->setResult, adding->result->setDesc,
						 values, nulls);
	adding->nadded++;
}

uint64
llmgw_adding_execute(LlmAdding *adding, const char *statement, int nargs, const char *const *args)
{
	Oid			types[16];
	Datum		values[16];
	char		nulls[17];
	StringInfoData sql;
	int			result;

	Assert(nargs <= lengthof(types));
	for (int i = 0; i < nargs; i++)
	{
		types[i] = TEXTOID;
		nulls[i] = args[i] == NULL ? 'n' : ' ';
		values[i] = args[i] == NULL ? (Datum) 0 : CStringGetTextDatum(args[i]);
	}
	nulls[nargs] = '\0';

	initStringInfo(&sql);
	for (const char *s = statement; *s; s++)
	{
		if (s[0] == '%' && s[1] == 's')
		{
			appendStringInfoString(&sql, adding->schema);
			s++;
		}
		else
			appendStringInfoChar(&sql, *s);
	}
	result = SPI_execute_with_args(sql.data, nargs, types, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * A provider of that name is there: it stays.  It must be the same kind of
 * thing, or the models would be added to something else; other differences are
 * said.  False when there is none.
 */
static bool
keep_provider(LlmAdding *adding)
{
	const char *args[] = {adding->name};
	char	   *kind;
	char	   *api_key;
	char	   *base_url;

	if (llmgw_adding_execute(adding,
							 "SELECT kind, api_key, base_url FROM %s.llm_providers"
							 " WHERE name OPERATOR(pg_catalog.=) $1", 1, args) == 0)
		return false;
	kind = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	api_key = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);
	base_url = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3);

	if (kind == NULL || strcmp(kind, adding->kind) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("provider \"%s\" is already there and is of kind \"%s\", not \"%s\"",
						adding->name, kind ? kind : "", adding->kind),
				 errhint("Add the new one under another name, and give its kind.")));

	if (adding->own_api_key &&
		(api_key == NULL || strcmp(api_key, adding->api_key) != 0))
		ereport(NOTICE,
				(errmsg("provider \"%s\" is already there, with %s%s", adding->name,
						api_key ? "key " : "no key", api_key ? api_key : ""),
				 errhint("To change it: UPDATE llm_providers SET api_key = %s WHERE name = %s;",
						 quote_literal_cstr(adding->api_key),
						 quote_literal_cstr(adding->name))));
	if (adding->own_base_url &&
		(base_url == NULL || strcmp(base_url, adding->base_url) != 0))
		ereport(NOTICE,
				(errmsg("provider \"%s\" is already there, with another base_url",
						adding->name),
				 errhint("To change it: UPDATE llm_providers SET base_url = %s WHERE name = %s;",
						 quote_literal_cstr(adding->base_url),
						 quote_literal_cstr(adding->name))));
	return true;
}

/* A kind that has no endpoint for everybody, and no URL. */
static void
refuse_without_url(LlmAdding *adding)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("provider \"%s\" needs a base_url", adding->name),
			 errdetail("Kind \"%s\" has no public endpoint: each resource has a host of its own, and each deployment a name.",
					   adding->kind),
			 errhint("SELECT * FROM llm_add_provider(%s,%s base_url => 'https://NAME.openai.azure.com', models => ARRAY['DEPLOYMENT']);",
					 quote_literal_cstr(adding->name),
					 adding->preset ? "" :
					 psprintf(" kind => %s,", quote_literal_cstr(adding->kind)))));
}

static void
add_provider(LlmAdding *adding)
{
	const char *args[] = {adding->name, adding->kind, adding->base_url, adding->api_key,
	adding->failure_domain, adding->options};

	/*
	 * One that is there need not be writable by this caller, nor its URL be
	 * repeated.  But a URL that was given is for the trigger to judge first:
	 * it may hold a password, and notices show it.  So may a kind that is
	 * none, and an error shows that.
	 */
	if (llmgw_dialect_find(adding->kind) != NULL && !adding->own_base_url &&
		keep_provider(adding))
		return;
	if (strcmp(adding->kind, llmgw_dialect_azure.kind) == 0 && adding->base_url == NULL)
		refuse_without_url(adding);

	if (llmgw_adding_execute(adding,
							 "INSERT INTO %s.llm_providers (name, kind, base_url, api_key,"
							 " failure_domain, options)"
							 " VALUES ($1, $2, $3, $4, $5, CAST($6 AS pg_catalog.jsonb))"
							 " ON CONFLICT DO NOTHING", lengthof(args), args) > 0)
		llmgw_adding_report(adding, "provider", adding->name,
							adding->api_key ? psprintf("added, key from %s", adding->api_key) :
							"added, without a key");
	else if (!keep_provider(adding))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("provider \"%s\" was added by another transaction", adding->name),
				 errhint("Try again.")));
}

/* A warning, now rather than at the first call, when the key cannot be read. */
static void
check_key(LlmAdding *adding)
{
	const LlmProvider *provider = llmgw_config_provider(llmgw_config_get(), adding->name);
	char	   *reason = NULL;
	char	   *hint = NULL;
	const char *set_secret;

	if (provider == NULL)
		return;
	set_secret = psprintf("SELECT llm_set_secret(%s, '...');",
						  quote_literal_cstr(provider->key_ref.kind == LLMGW_SECRET_STORED ?
											 provider->key_ref.name : adding->name));
	switch (provider->key_ref.kind)
	{
		case LLMGW_SECRET_NONE:
			return;
		case LLMGW_SECRET_ENV:
			if (llmgw_secret_from_env(provider->key_ref.name, &reason) != NULL)
				return;
			hint = psprintf("Set %s in the server's environment and restart it; or %s UPDATE llm_providers SET api_key = %s WHERE name = %s;",
							provider->key_ref.name, set_secret,
							quote_literal_cstr(psprintf("secret:%s", adding->name)),
							quote_literal_cstr(adding->name));
			break;
		case LLMGW_SECRET_FILE:
			if (llmgw_secret_from_file(provider->key_ref.name, &reason) != NULL)
				return;
			hint = psprintf("Put the key, one line, into the file \"%s\" in llm_gateway.secret_directory.",
							provider->key_ref.name);
			break;
		case LLMGW_SECRET_STORED:
			if (provider->stored_secret != NULL)
				return;
			reason = psprintf("there is no secret \"%s\"", provider->key_ref.name);
			hint = psprintf("Store the key: %s", set_secret);
			break;
	}
	ereport(WARNING,
			(errcode(ERRCODE_WARNING),
			 errmsg("the key of provider \"%s\" (%s) cannot be read: %s",
					adding->name, provider->api_key, reason),
			 errhint("%s", hint)));
}

/* The tier to use where the preset's is gone: the cheapest that there is. */
static const char *
existing_tier(const char *tier)
{
	LlmConfig  *config = llmgw_config_get();

	if (config->ntiers == 0 || llmgw_config_tier(config, tier) != NULL)
		return tier;
	return pstrdup(config->tiers[config->ntiers - 1].name);
}

const LlmPresetModel *
llmgw_adding_model(const LlmAdding *adding, const char *name)
{
	static const LlmPresetModel unknown = {NULL, "standard", "50"};
	static const LlmPresetModel self_hosted = {NULL, "economy", "50", "0", "0"};
	const LlmPresetModel *model = NULL;

	if (adding->known != NULL)
		model = llmgw_preset_model(adding->known, name);
	if (model != NULL)
		return model;

	/* what is free is for every budget, so it is of the last tier */
	return adding->known != NULL && adding->known->self_hosted ? &self_hosted : &unknown;
}

static void
add_model(LlmAdding *adding, const char *name)
{
	const LlmPresetModel *model = llmgw_adding_model(adding, name);
	const char *tier = existing_tier(model->tier);
	const char *detail;
	const char *args[] = {
		adding->name,
		name,
		tier,
		model->quality,
		model->input_price,
		model->output_price,
		model->cached_input_price,
		model->cache_write_price,
		model->price_tiers,
		model->context_window,
		model->max_output_tokens,
		model->capabilities,
	};

	if (llmgw_adding_execute(adding,
							 "INSERT INTO %s.llm_models (provider, name, tier, quality, input_price,"
							 " output_price, cached_input_price, cache_write_price, price_tiers,"
							 " context_window, max_output_tokens, capabilities)"
							 " VALUES ($1, $2, $3, CAST($4 AS pg_catalog.float4),"
							 " CAST($5 AS pg_catalog.numeric), CAST($6 AS pg_catalog.numeric),"
							 " CAST($7 AS pg_catalog.numeric), CAST($8 AS pg_catalog.numeric),"
							 " CAST($9 AS pg_catalog.jsonb), CAST($10 AS pg_catalog.int4),"
							 " CAST($11 AS pg_catalog.int4), CAST($12 AS pg_catalog.text[]))"
							 " ON CONFLICT DO NOTHING", lengthof(args), args) == 0)
		return;
	if (model->input_price == NULL)
		detail = psprintf("%s tier, price unknown", tier);
	else if (strcmp(model->input_price, "0") == 0 && strcmp(model->output_price, "0") == 0)
		detail = psprintf("%s tier, free", tier);
	else
		detail = psprintf("%s tier, $%s in / $%s out per 1 M tokens", tier,
						  model->input_price, model->output_price);
	llmgw_adding_report(adding, "model", psprintf("%s/%s", adding->name, name), detail);
}

/* Reads which models the provider has by now. */
static void
read_present(LlmAdding *adding)
{
	const char *args[] = {adding->name};

	adding->npresent = llmgw_adding_execute(adding,
											"SELECT name FROM %s.llm_models"
											" WHERE provider OPERATOR(pg_catalog.=) $1"
											" ORDER BY name COLLATE pg_catalog.\"C\"", 1, args);
	adding->present = palloc(sizeof(char *) * Max(adding->npresent, 1));
	for (int i = 0; i < adding->npresent; i++)
		adding->present[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
}

/* Says how to add models to a provider that has none. */
static void
notice_without_models(LlmAdding *adding)
{
	const LlmPreset *preset = adding->preset;

	ereport(NOTICE,
			(errmsg("provider \"%s\" has no models", adding->name),
			 preset != NULL && preset->named_only ?
			 errhint("Name %s: SELECT * FROM llm_add_provider(%s, models => ARRAY['%s']);",
					 preset->self_hosted ? "those that the server has" : "your deployments",
					 quote_literal_cstr(adding->name), preset->example) :
			 errhint("INSERT INTO llm_models(provider, name) VALUES (%s, '...');",
					 quote_literal_cstr(adding->name))));
}

/* The argument models; NULL when it was not given. */
static char **
read_models(FunctionCallInfo fcinfo, int argument, int *n)
{
	Datum	   *elems;
	bool	   *nulls;
	char	  **models;

	*n = 0;
	if (PG_ARGISNULL(argument))
		return NULL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, &nulls, n);
	models = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a name in models must not be null")));
		models[i] = TextDatumGetCString(elems[i]);
	}
	return models;
}

static char *
text_argument(FunctionCallInfo fcinfo, int argument)
{
	return PG_ARGISNULL(argument) ? NULL :
		text_to_cstring(PG_GETARG_TEXT_PP(argument));
}

/* The preset that a call without a kind is about; raises when there is none. */
static const LlmPreset *
named_preset(const char *name)
{
	const LlmPreset *preset = llmgw_preset_find(name);

	if (preset == NULL && strlen(name) > 24)
	{
		/* longer than a provider's name is: perhaps a key in its place */
		llmgw_hide_statement("<statement with an API key>", name);
		error_context_stack = NULL;
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no preset of that name"),
				 errhint("Presets are %s. For another provider give its name, kind and base_url.",
						 llmgw_preset_names()),
				 errhidestmt(true)));
	}
	if (preset == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no preset for a provider \"%s\"", name),
				 errhint("Presets are %s. For another provider give its kind and base_url: llm_add_provider(%s, kind => 'openai', base_url => 'https://...', api_key => 'env:...', models => '{...}').",
						 llmgw_preset_names(), quote_literal_cstr(name))));
	return preset;
}

/* What the arguments mean: fills in the rest of adding. */
static void
resolve(LlmAdding *adding)
{
	if (adding->kind == NULL)
	{
		adding->preset = adding->known = named_preset(adding->name);
		adding->kind = adding->preset->kind;
		if (adding->base_url == NULL)
			adding->base_url = adding->preset->base_url;
		if (adding->api_key == NULL)
			adding->api_key = adding->preset->api_key;
	}
	else
	{
		/* an unknown kind is for the table's trigger to refuse */
		const LlmDialect *dialect = llmgw_dialect_find(adding->kind);
		const char *url = adding->base_url;

		if (url == NULL && dialect != NULL)
			url = dialect->default_base_url;
		adding->known = llmgw_preset_at(adding->kind, url);
	}

	/* it is down when the preset's is, and wants the same of a request */
	if (adding->known != NULL)
	{
		adding->options = adding->known->options;
		adding->failure_domain = adding->known->failure_domain;
		if (adding->failure_domain != NULL &&
			strcmp(adding->failure_domain, adding->name) == 0)
			adding->failure_domain = NULL;	/* as it is by default */
	}
}

/* llm_add_provider(name, kind, api_key, base_url, models) */
Datum
llmgw_sql_add_provider(PG_FUNCTION_ARGS)
{
	LlmAdding	adding = {0};
	LlmSecretRef ref;
	char	  **models;
	int			nmodels;

	adding.name = text_argument(fcinfo, 0);
	adding.kind = text_argument(fcinfo, 1);
	adding.api_key = text_argument(fcinfo, 2);
	adding.base_url = text_argument(fcinfo, 3);
	adding.own_api_key = adding.api_key != NULL;
	adding.own_base_url = adding.base_url != NULL;

	/* first of all, so that no other error can show a key */
	if (!llmgw_secret_parse(adding.api_key, &ref))
		llmgw_refuse_raw_key(adding.name ? adding.name : "", adding.api_key);

	models = read_models(fcinfo, 4, &nmodels);
	if (adding.name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a provider must not be null"),
				 errhint("Presets are %s.", llmgw_preset_names())));
	adding.schema = quote_identifier(get_namespace_name(llmgw_config_get()->schema));
	resolve(&adding);
	InitMaterializedSRF(fcinfo, 0);
	adding.result = (ReturnSetInfo *) fcinfo->resultinfo;

	SPI_connect();
	add_provider(&adding);
	check_key(&adding);

	if (models != NULL)
		for (int i = 0; i < nmodels; i++)
			add_model(&adding, models[i]);
	else if (adding.preset != NULL)
	{
		for (int i = 0; i < adding.preset->nmodels; i++)
			if (llmgw_preset_brings(adding.preset, &adding.preset->models[i]))
				add_model(&adding, adding.preset->models[i].name);
	}

	read_present(&adding);
	if (adding.npresent == 0)
		notice_without_models(&adding);
	else if (adding.preset != NULL)
		llmgw_adding_rules(&adding);
	SPI_finish();

	if (adding.nadded == 0 && adding.npresent > 0)
		ereport(NOTICE,
				(errmsg("nothing was added for provider \"%s\", because all of it is already there",
						adding.name)));

	return (Datum) 0;
}
