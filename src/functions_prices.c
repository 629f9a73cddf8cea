/*-------------------------------------------------------------------------
 *
 * functions_prices.c
 *	  llm_estimate_cost() and llm_import_prices(): what a call would cost, and
 *	  where its prices come from.
 *
 * The import reads the price list that LiteLLM publishes
 * (model_prices_and_context_window.json): an object with an entry for each
 * model at each provider, prices in USD per token.  It changes models that are
 * there and adds none.  For each of them the entry is looked up by name, which
 * the binary format of jsonb does quickly; all entries are walked over only to
 * find those that are malformed.
 *
 * Prices are the list's own digits: they stay numeric all the way, moved by six
 * places.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "functions.h"
#include "functions_prices.h"
#include "json.h"
#include "presets.h"

PG_FUNCTION_INFO_V1(llmgw_sql_estimate_cost);
PG_FUNCTION_INFO_V1(llmgw_sql_import_prices);

/* malformed entries that a warning names */
#define MAX_NAMED		5

/*
 * llm_estimate_cost
 */

/* The candidate that would be tried first; NULL: there is none. */
static const LlmCandidate *
first_candidate(const LlmRoute *route)
{
	for (int i = 0; i < route->ncandidates; i++)
		if (route->candidates[i].dropped == NULL)
			return &route->candidates[i];

	/* nothing is sent: a model that is switched off has a price all the same */
	return route->ncandidates > 0 ? &route->candidates[0] : NULL;
}

/* llm_estimate_cost(prompt, model, max_tokens) */
Datum
llmgw_sql_estimate_cost(PG_FUNCTION_ARGS)
{
	LlmConfig  *config;
	LlmRouteQuery query = {0};
	LlmRoute	route;
	const LlmCandidate *candidate;
	text	   *prompt;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	prompt = PG_GETARG_TEXT_PP(0);

	config = llmgw_config_get();
	if (!PG_ARGISNULL(1))
	{
		query.model = text_to_cstring(PG_GETARG_TEXT_PP(1));
		llmgw_args_check_model(config, query.model);
	}
	if (!PG_ARGISNULL(2))
	{
		query.max_tokens = PG_GETARG_INT32(2);
		llmgw_args_check_max_tokens(query.max_tokens);
	}
	query.task = "default";
	query.optimize = llmgw_args_default_optimize(config, query.task);
	query.role = GetOuterUserId();
	query.tags = llmgw_args_default_tags();
	query.characters = pg_mbstrlen_with_len(VARDATA_ANY(prompt), VARSIZE_ANY_EXHDR(prompt));

	query.peek = true;
	llmgw_route(config, &query, &route);
	candidate = first_candidate(&route);
	if (candidate == NULL || candidate->estimate == LLMGW_COST_UNKNOWN)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(llmgw_nano_to_numeric(candidate->estimate));
}

/*
 * llm_import_prices
 */

/*
 * One warning for all entries that are malformed, wherever they belong; but for
 * the one that describes the format.
 */
static void
warn_of_malformed(Jsonb *list)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext,
												  "llm_gateway price list",
												  ALLOCSET_DEFAULT_SIZES);
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *name;
	int			malformed = 0;
	StringInfoData named;

	initStringInfo(&named);
	while (llmgw_json_next_member(&list->root, &it, &name, &value))
	{
		MemoryContext old = MemoryContextSwitchTo(scratch);
		LlmPriceEntry entry;
		const char *problem = llmgw_price_entry_read(&value, &entry);

		if (problem != NULL && strcmp(name, "sample_spec") != 0 &&
			malformed++ < MAX_NAMED)
			appendStringInfo(&named, "%s\"%s\": %s.", malformed > 1 ? "\n" : "",
							 llmgw_clean_text(name, 100), problem);
		MemoryContextSwitchTo(old);
		MemoryContextReset(scratch);
		pfree(name);
	}
	MemoryContextDelete(scratch);
	if (malformed > MAX_NAMED)
		appendStringInfoString(&named, "\n...");
	if (malformed > 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg_plural("%d malformed entry was skipped",
							   "%d malformed entries were skipped",
							   malformed, malformed),
				 errdetail("%s", named.data)));
}

static bool
entry_at(Jsonb *list, const char *key, const char *provider, LlmPriceEntry *entry)
{
	JsonbValue	value;

	return getKeyJsonValueFromContainer(&list->root, key, strlen(key), &value) != NULL &&
		llmgw_price_entry_read(&value, entry) == NULL &&
		strcmp(entry->provider, provider) == 0;
}

/*
 * Finds the entry of a model.  Whose it must be: the provider of that name; or
 * the one that is known to be at that address, as the list calls it or we do; or the one that a kind is named
 * after, which does not hold for openai, spoken by many.  What it must be
 * called: as the provider calls the model, or as we do.
 */
static bool
find_entry(Jsonb *list, const LlmModel *model, LlmPriceEntry *entry)
{
	const LlmProvider *p = model->provider;
	const LlmPreset *preset = llmgw_preset_at(p->kind, p->base_url);
	const char *providers[] = {
		p->name,
		preset ? preset->price_list_name : NULL,
		preset ? preset->name : NULL,
		strcmp(p->kind, "openai") != 0 ? p->kind : NULL,
	};
	const char *names[] = {model->upstream_name, model->name};

	for (int i = 0; i < lengthof(providers); i++)
	{
		if (providers[i] == NULL)
			continue;
		for (int k = 0; k < lengthof(names); k++)
			if (entry_at(list, psprintf("%s/%s", providers[i], names[k]), providers[i],
						 entry) ||
				entry_at(list, names[k], providers[i], entry))
				return true;
	}
	return false;
}

/* USD per token to USD per million, which is exact, without zeros at the end */
static void
put_price(StringInfo buf, const char *key, Numeric price)
{
	Datum		million = NumericGetDatum(int64_to_numeric(1000000));
	Datum		value;

	if (price == NULL)
		return;
	value = DirectFunctionCall2(numeric_mul, NumericGetDatum(price), million);
	value = DirectFunctionCall1(numeric_trim_scale, value);
	llmgw_json_key(buf, key);
	appendStringInfoString(buf, DatumGetCString(DirectFunctionCall1(numeric_out, value)));
}

static void
put_capabilities(StringInfo buf, const char *key, const bool *chosen)
{
	bool		first = true;

	llmgw_json_key(buf, key);
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < LLMGW_NCAPABILITIES; i++)
	{
		if (!chosen[i])
			continue;
		appendStringInfo(buf, "%s\"%s\"", first ? "" : ",", llmgw_capability_words[i].name);
		first = false;
	}
	appendStringInfoChar(buf, ']');
}

/*
 * What is added to a row's capabilities and what is taken away; and for a row
 * where they are unknown, all of them.  Some that every chat model has are in
 * the list as exceptions only, and some are not in it at all: without those a
 * row would become worse by becoming known.
 */
static void
put_claims(StringInfo buf, const LlmClaim *claims)
{
	bool		added[LLMGW_NCAPABILITIES];
	bool		removed[LLMGW_NCAPABILITIES];
	bool		all[LLMGW_NCAPABILITIES];
	bool		any = false;

	for (int i = 0; i < LLMGW_NCAPABILITIES; i++)
	{
		added[i] = all[i] = claims[i] == LLMGW_CAN;
		removed[i] = claims[i] == LLMGW_CANNOT;
		any = any || added[i];
	}
	if (claims[LLMGW_CAN_CHAT] == LLMGW_CAN)
	{
		all[LLMGW_CAN_STREAMING] = claims[LLMGW_CAN_STREAMING] != LLMGW_CANNOT;
		all[LLMGW_CAN_SYSTEM_PROMPT] = claims[LLMGW_CAN_SYSTEM_PROMPT] != LLMGW_CANNOT;
		all[LLMGW_CAN_TEMPERATURE] = claims[LLMGW_CAN_TEMPERATURE] == LLMGW_CAN ||
			(claims[LLMGW_CAN_TEMPERATURE] == LLMGW_UNSAID && claims[LLMGW_CAN_REASONING] != LLMGW_CAN);
	}
	all[LLMGW_CAN_JSON_OBJECT] = claims[LLMGW_CAN_JSON_SCHEMA] == LLMGW_CAN;

	put_capabilities(buf, "added", added);
	put_capabilities(buf, "removed", removed);
	if (any)
		put_capabilities(buf, "capabilities", all);
}

/* What an entry says of a model: a row for jsonb_to_recordset(). */
static void
put_entry(StringInfo buf, const LlmModel *model, const LlmPriceEntry *entry)
{
	int64		window = entry->max_input_tokens;

	/* which is the output's limit where there is one */
	if (window == 0 && entry->max_output_tokens == 0)
		window = entry->max_tokens;

	appendStringInfoString(buf, buf->len > 1 ? ",{" : "{");
	llmgw_json_put_text(buf, "provider", model->provider->name);
	llmgw_json_put_text(buf, "name", model->name);
	for (int i = 0; i < LLMGW_NPRICES; i++)
		put_price(buf, llmgw_price_words[i].column, entry->prices[i]);
	if (entry->nsizes > 0)
	{
		llmgw_json_key(buf, "price_tiers");
		appendStringInfoChar(buf, '[');
		for (int k = 0; k < entry->nsizes; k++)
		{
			appendStringInfoString(buf, k > 0 ? ",{" : "{");
			llmgw_json_put_int(buf, "above_tokens", entry->sizes[k].above_tokens);
			for (int i = 0; i < LLMGW_NPRICES; i++)
				put_price(buf, llmgw_price_words[i].member, entry->sizes[k].prices[i]);
			appendStringInfoChar(buf, '}');
		}
		appendStringInfoChar(buf, ']');
	}
	if (window > 0)
		llmgw_json_put_int(buf, "context_window", window);
	if (entry->max_output_tokens > 0)
		llmgw_json_put_int(buf, "max_output_tokens", entry->max_output_tokens);
	put_claims(buf, entry->claims);
	appendStringInfoChar(buf, '}');
}

/*
 * The statement.  It compares with the row that it changes, so it does not
 * undo what another session has just written, and a row that has it all already
 * is left alone.  IS DISTINCT FROM would take its operator from search_path.
 */
static char *
update_statement(const char *schema)
{
	static const struct
	{
		const char *name;
		const char *type;
	}			columns[] =

	{
		{"input_price", "numeric"},
		{"output_price", "numeric"},
		{"cached_input_price", "numeric"},
		{"cache_write_price", "numeric"},
		{"price_tiers", "jsonb"},
		{"context_window", "int4"},
		{"max_output_tokens", "int4"},
	};
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "UPDATE %s.llm_models AS m SET", schema);
	for (int i = 0; i < lengthof(columns); i++)
		appendStringInfo(&sql, " %s = COALESCE(p.%s, m.%s),", columns[i].name,
						 columns[i].name, columns[i].name);
	appendStringInfoString(&sql,
						   " capabilities = CASE WHEN m.capabilities IS NULL THEN p.capabilities"
						   " ELSE ARRAY(SELECT c FROM pg_catalog.unnest(m.capabilities) AS c"
						   " WHERE c OPERATOR(pg_catalog.<>) ALL (p.removed))"
						   " OPERATOR(pg_catalog.||)"
						   " ARRAY(SELECT c FROM pg_catalog.unnest(p.added) AS c"
						   " WHERE c OPERATOR(pg_catalog.<>) ALL (m.capabilities)) END"
						   " FROM pg_catalog.jsonb_to_recordset(CAST($1 AS pg_catalog.jsonb))"
						   " AS p(provider pg_catalog.text, name pg_catalog.text,"
						   " added pg_catalog.text[], removed pg_catalog.text[],"
						   " capabilities pg_catalog.text[]");
	for (int i = 0; i < lengthof(columns); i++)
		appendStringInfo(&sql, ", %s pg_catalog.%s", columns[i].name, columns[i].type);
	appendStringInfoString(&sql,
						   ") WHERE m.provider OPERATOR(pg_catalog.=) p.provider"
						   " AND m.name OPERATOR(pg_catalog.=) p.name AND (");
	for (int i = 0; i < lengthof(columns); i++)
		appendStringInfo(&sql,
						 "p.%s IS NOT NULL AND (m.%s OPERATOR(pg_catalog.=) p.%s) IS NOT TRUE OR ",
						 columns[i].name, columns[i].name, columns[i].name);
	appendStringInfoString(&sql,
						   "m.capabilities IS NULL AND p.capabilities IS NOT NULL"
						   " OR NOT m.capabilities OPERATOR(pg_catalog.@>) p.added"
						   " OR m.capabilities OPERATOR(pg_catalog.&&) p.removed)");
	return sql.data;
}

/* llm_import_prices(prices) */
Datum
llmgw_sql_import_prices(PG_FUNCTION_ARGS)
{
	Jsonb	   *list = PG_GETARG_JSONB_P(0);
	LlmConfig  *config;
	StringInfoData rows;
	Oid			type = TEXTOID;
	Datum		value;
	int			result;
	uint64		changed;

	if (!JB_ROOT_IS_OBJECT(list))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("prices must be a JSON object"),
				 errhint("It has an entry for each model, as LiteLLM's model_prices_and_context_window.json.")));
	warn_of_malformed(list);

	config = llmgw_config_get();
	initStringInfo(&rows);
	appendStringInfoChar(&rows, '[');
	for (int i = 0; i < config->nmodels; i++)
	{
		LlmPriceEntry entry;

		if (find_entry(list, &config->models[i], &entry))
			put_entry(&rows, &config->models[i], &entry);
	}
	appendStringInfoChar(&rows, ']');
	value = CStringGetTextDatum(rows.data);

	SPI_connect();
	result = SPI_execute_with_args(update_statement(quote_identifier(get_namespace_name(config->schema))),
								   1, &type, &value, NULL, false, 0);
	if (result != SPI_OK_UPDATE)
		elog(ERROR, "SPI_execute_with_args failed: %s", SPI_result_code_string(result));
	changed = SPI_processed;
	SPI_finish();
	PG_RETURN_INT32((int32) changed);
}
