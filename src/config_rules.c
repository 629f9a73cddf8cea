/*-------------------------------------------------------------------------
 *
 * config_rules.c
 *	  Rules that the rows of the configuration tables are held to.
 *
 * llm_providers has its own in config_check.c, where keys and hosts are.
 * A rule that only a slip is likely to break (a role that does not exist yet,
 * a model that no provider has) is a warning: the row may come first.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "regex/regex.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "config.h"
#include "config_check.h"
#include "config_rules.h"
#include "guc.h"

#define MAX_MODEL_NAME	200
#define MAX_PATTERN		1000
#define MAX_PRICE		1000000.0
#define MAX_RETRIES		10
#define MAX_BACKOFF_MS	600000
#define MAX_CACHE_US	(INT64CONST(3650) * USECS_PER_DAY)

#define PRICE_HINT \
	"Prices are USD per 1 million tokens; 0 is free, NULL unknown."

int
llmgw_column_number(Relation rel, const char *name)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return i + 1;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s\" is missing",
					name, RelationGetRelationName(rel)),
			 errhint("Run ALTER EXTENSION llm_gateway UPDATE.")));
	return 0;					/* keep compiler quiet */
}

int
llmgw_typed_column(Relation rel, const char *name, Oid type)
{
	int			number = llmgw_column_number(rel, name);
	Oid			actual = TupleDescAttr(RelationGetDescr(rel), number - 1)->atttypid;

	if (actual != type)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\" must be of type %s, not %s",
						name, RelationGetRelationName(rel), format_type_be(type),
						format_type_be(actual)),
				 errhint("ALTER TABLE %s ALTER COLUMN %s TYPE %s;",
						 RelationGetRelationName(rel), quote_identifier(name),
						 format_type_be(type)),
				 errtablecol(rel, number)));
	return number;
}

Relation
llmgw_open_sibling(Relation rel, const char *name, LOCKMODE lockmode)
{
	Oid			relid = get_relname_relid(name, RelationGetNamespace(rel));
	Relation	sibling;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" of extension \"llm_gateway\" is missing", name)));
	sibling = table_open(relid, lockmode);
	llmgw_check_scannable(sibling);
	return sibling;
}

Datum
llmgw_row_value(const LlmRow *row, const char *column, Oid type, bool *isnull)
{
	return heap_getattr(row->tuple, llmgw_typed_column(row->rel, column, type),
						RelationGetDescr(row->rel), isnull);
}

char *
llmgw_row_text(const LlmRow *row, const char *column)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, TEXTOID, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

Jsonb *
llmgw_row_object(const LlmRow *row, const char *column)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, JSONBOID, &isnull);
	Jsonb	   *json;

	if (isnull)
		return NULL;
	json = DatumGetJsonbP(value);
	if (!JB_ROOT_IS_OBJECT(json))
		llmgw_reject(row, column, "be a JSON object",
					 "Write it like '{\"key\": \"value\"}', or NULL for none.");
	return json;
}

void
llmgw_reject(const LlmRow *row, const char *column, const char *rule,
			 const char *hint)
{
	int			number = llmgw_column_number(row->rel, column);
	Oid			type = TupleDescAttr(RelationGetDescr(row->rel), number - 1)->atttypid;
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, type, &isnull);
	char	   *text = pstrdup("NULL");

	if (!isnull)
	{
		Oid			output;
		bool		varlena;

		getTypeOutputInfo(type, &output, &varlena);
		text = llmgw_clean_text(OidOutputFunctionCall(output, value), 200);

		if (type == TEXTOID || type == INTERVALOID)
			text = psprintf("\"%s\"", text);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s of %s must %s%s %s", column, row->what, rule,
					strncmp(rule, "not ", 4) == 0 ? ":" : ", not", text),
			 errhint("%s", hint),
			 errtablecol(row->rel, number)));
}

void
llmgw_check_name(const LlmRow *row, const char *column, int max_len)
{
	char	   *name = llmgw_row_text(row, column);
	size_t		len;

	if (name == NULL)
		return;
	len = strlen(name);
	if (len == 0)
		llmgw_reject(row, column, "not be empty", "Give a name.");
	if (len > max_len)
		llmgw_reject(row, column, psprintf("have at most %d bytes", max_len),
					 "Give a shorter name.");
	for (size_t i = 0; i < len; i++)
		if ((unsigned char) name[i] < 0x20 || name[i] == 0x7f)
			llmgw_reject(row, column, "not contain control characters",
						 "Give a name that can be typed.");
	if (name[0] == ' ' || name[len - 1] == ' ')
		llmgw_reject(row, column, "not begin or end with a blank",
					 "Remove the blank.");
}

void
llmgw_check_int(const LlmRow *row, const char *column, int min, int max,
				const char *hint)
{
	bool		isnull;
	int			value = DatumGetInt32(llmgw_row_value(row, column, INT4OID, &isnull));

	if (isnull || (value >= min && value <= max))
		return;
	llmgw_reject(row, column,
				 max == INT_MAX ? psprintf("be at least %d", min) :
				 psprintf("be from %d to %d", min, max), hint);
}

void
llmgw_check_real(const LlmRow *row, const char *column, double min, double max,
				 const char *hint)
{
	bool		isnull;
	Datum		datum = llmgw_row_value(row, column, FLOAT4OID, &isnull);
	double		value;

	if (isnull)
		return;
	value = DatumGetFloat4(datum);
	if (isfinite(value) && value >= min && value <= max)
		return;
	llmgw_reject(row, column,
				 isinf(max) ? psprintf("be a number that is at least %g", min) :
				 psprintf("be from %g to %g", min, max), hint);
}

void
llmgw_check_span(const LlmRow *row, const char *column, int64 max_us)
{
	bool		isnull;
	Datum		datum = llmgw_row_value(row, column, INTERVALOID, &isnull);
	Interval   *span;
	double		us;

	if (isnull)
		return;
	span = DatumGetIntervalP(datum);
	us = (double) span->day * USECS_PER_DAY + span->time;
	if (span->month != 0 || us < 0 || us > max_us)
		llmgw_reject(row, column,
					 max_us == USECS_PER_DAY ? "be a time from 0 to 1 day, without months" :
					 psprintf("be a time from 0 to %d days, without months",
							  (int) (max_us / USECS_PER_DAY)),
					 "Write it like '30 s' or '5 min'.");
}

static bool
numeric_within(Numeric number, double max)
{
	double		value;

	if (numeric_is_nan(number) || numeric_is_inf(number))
		return false;
	value = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											   NumericGetDatum(number)));
	return value >= 0 && value <= max;
}

void
llmgw_check_numeric(const LlmRow *row, const char *column, double max, const char *hint)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, NUMERICOID, &isnull);

	if (!isnull && !numeric_within(DatumGetNumeric(value), max))
		llmgw_reject(row, column, psprintf("be from 0 to %.0f", max), hint);
}

/* The elements of a text array, palloc'd; none may be NULL or empty. */
static char **
text_array(const LlmRow *row, const char *column, int *n)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, TEXTARRAYOID, &isnull);
	Datum	   *elems;
	bool	   *nulls;
	char	  **result;

	*n = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, n);
	result = palloc(sizeof(char *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
	{
		result[i] = nulls[i] ? NULL : TextDatumGetCString(elems[i]);
		if (result[i] == NULL || result[i][0] == '\0')
			llmgw_reject(row, column, "not have NULL or empty elements",
						 "Leave the element out.");
	}
	return result;
}

void
llmgw_check_role(const LlmRow *row, const LlmRow *old, const char *column)
{
	char	   *role = llmgw_row_text(row, column);
	char	   *before = old ? llmgw_row_text(old, column) : NULL;

	llmgw_check_name(row, column, NAMEDATALEN - 1);
	if (role != NULL && (before == NULL || strcmp(role, before) != 0) &&
		!OidIsValid(get_role_oid(role, true)))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("%s of %s: role \"%s\" does not exist", column, row->what, role),
				 errhint("Until it does, the row is for nobody.")));
}

void
llmgw_check_tier(LlmRow *row, const LlmRow *old)
{
	row->what = psprintf("tier \"%s\"", llmgw_row_text(row, "name"));
	llmgw_check_name(row, "name", NAMEDATALEN - 1);
	llmgw_check_int(row, "rank", 1, INT_MAX, "1 is the best tier.");
}

/* [{"above_tokens": 200000, "input": 2.5, ...}, ...] */
static void
check_price_tiers(const LlmRow *row)
{
	static const char *const prices[] = {"input", "output", "cached_input", "cache_write"};
	static const char *const hint =
	"Write it like '[{\"above_tokens\": 200000, \"input\": 2.5, \"output\": 15}]'; cached_input and cache_write are the other prices.";
	bool		isnull;
	Datum		value = llmgw_row_value(row, "price_tiers", JSONBOID, &isnull);
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	v;
	Jsonb	   *json;
	bool		above = true;

	if (isnull)
		return;
	json = DatumGetJsonbP(value);
	if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json))
		llmgw_reject(row, "price_tiers", "be an array of objects", hint);

	it = JsonbIteratorInit(&json->root);
	(void) JsonbIteratorNext(&it, &v, false);	/* the array itself */
	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_END_ARRAY)
	{
		if (token == WJB_END_OBJECT)
		{
			if (!above)
				llmgw_reject(row, "price_tiers", "have above_tokens in every object", hint);
		}
		else if (token == WJB_BEGIN_OBJECT)
			above = false;
		else if (token != WJB_KEY)
			llmgw_reject(row, "price_tiers", "be an array of objects", hint);
		else
		{
			char	   *key = pnstrdup(v.val.string.val, v.val.string.len);
			bool		known = false;

			if (JsonbIteratorNext(&it, &v, true) != WJB_VALUE || v.type != jbvNumeric ||
				!numeric_within(v.val.numeric, strcmp(key, "above_tokens") == 0 ?
								(double) INT_MAX : MAX_PRICE))
				llmgw_reject(row, "price_tiers",
							 "have numbers that are not negative and not absurd", hint);
			if (strcmp(key, "above_tokens") == 0)
				above = known = true;
			for (int i = 0; i < lengthof(prices) && !known; i++)
				known = strcmp(key, prices[i]) == 0;
			if (!known)
				llmgw_reject(row, "price_tiers",
							 psprintf("not have the key \"%s\"", llmgw_clean_text(key, 60)),
							 hint);
		}
	}
}

void
llmgw_check_model(LlmRow *row, const LlmRow *old)
{
	static const char *const known[] = {
		"chat", "completion", "streaming", "system_prompt", "temperature", "reasoning",
		"tools", "json_object", "json_schema", "image", "audio", "embedding", "prompt_cache",
	};
	char	  **capabilities;
	int			n;

	row->what = psprintf("model \"%s/%s\"", llmgw_row_text(row, "provider"),
						 llmgw_row_text(row, "name"));
	llmgw_check_name(row, "name", MAX_MODEL_NAME);
	llmgw_check_name(row, "upstream_name", MAX_MODEL_NAME);
	llmgw_check_real(row, "quality", 0, 100, "100 is the best model there can be.");
	llmgw_check_numeric(row, "input_price", MAX_PRICE, PRICE_HINT);
	llmgw_check_numeric(row, "output_price", MAX_PRICE, PRICE_HINT);
	llmgw_check_numeric(row, "cached_input_price", MAX_PRICE, PRICE_HINT);
	llmgw_check_numeric(row, "cache_write_price", MAX_PRICE, PRICE_HINT);
	check_price_tiers(row);
	llmgw_check_int(row, "context_window", 1, INT_MAX, "Use NULL where it is unknown.");
	llmgw_check_int(row, "max_output_tokens", 1, INT_MAX, "Use NULL where it is unknown.");
	llmgw_check_span(row, "first_byte_timeout", USECS_PER_DAY);
	llmgw_check_span(row, "total_timeout", USECS_PER_DAY);
	llmgw_check_real(row, "weight", 0, HUGE_VAL,
					 "Use 0 for a model that gets calls only when no other can take them.");

	capabilities = text_array(row, "capabilities", &n);
	for (int i = 0; i < n; i++)
	{
		bool		found = false;

		for (int k = 0; k < lengthof(known) && !found; k++)
			found = strcmp(capabilities[i], known[k]) == 0;
		if (!found)
			ereport(WARNING,
					(errcode(ERRCODE_WARNING),
					 errmsg("capability \"%s\" of %s is not a known one",
							llmgw_clean_text(capabilities[i], 60), row->what),
					 errhint("Known are chat, completion, streaming, system_prompt, temperature, reasoning, tools, json_object, json_schema, image, audio, embedding and prompt_cache.")));
	}
}

static double
fraction(const LlmRow *row, const char *column)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, column, NUMERICOID, &isnull);

	if (isnull)
		return 0;
	if (!numeric_within(DatumGetNumeric(value), 1))
		llmgw_reject(row, column, "be from 0 to 1",
					 "It is the fraction of a budget that remains.");
	return DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));
}

void
llmgw_check_priority(LlmRow *row, const LlmRow *old)
{
	static const char *const hint =
	"A better tier needs more of the budget: premium_above >= standard_above >= economy_above.";
	double		premium;
	double		standard;
	double		economy;

	row->what = psprintf("priority \"%s\"", llmgw_row_text(row, "name"));
	llmgw_check_name(row, "name", NAMEDATALEN - 1);
	llmgw_check_int(row, "rank", 1, INT_MAX, "The lowest rank is served first.");
	premium = fraction(row, "premium_above");
	standard = fraction(row, "standard_above");
	economy = fraction(row, "economy_above");
	if (standard > premium)
		llmgw_reject(row, "standard_above", "be at most premium_above", hint);
	if (economy > standard)
		llmgw_reject(row, "economy_above", "be at most standard_above", hint);
	llmgw_check_role(row, old, "required_role");
}

static void
pattern_context(void *arg)
{
	errcontext("pattern of %s", (const char *) arg);
}

/* A time for which answers are used, which is not nothing. */
static void
check_some_time(LlmRow *row, const char *column, const char *hint)
{
	bool		isnull;
	Datum		value;

	llmgw_check_span(row, column, MAX_CACHE_US);
	value = llmgw_row_value(row, column, INTERVALOID, &isnull);
	if (!isnull &&
		DatumGetIntervalP(value)->time + DatumGetIntervalP(value)->day * USECS_PER_DAY == 0)
		llmgw_reject(row, column, "be more than nothing", hint);
}

static void
check_similarity(LlmRow *row)
{
	bool		isnull;
	Datum		value = llmgw_row_value(row, "cache_similarity", FLOAT4OID, &isnull);

	if (!isnull && !(DatumGetFloat4(value) > 0 && DatumGetFloat4(value) <= 1))
		llmgw_reject(row, "cache_similarity", "be more than 0 and at most 1",
					 "Use NULL for a task whose answers are for equal prompts only.");
}

void
llmgw_check_task(LlmRow *row, const LlmRow *old)
{
	char	   *optimize = llmgw_row_text(row, "optimize");
	char	   *pattern = llmgw_row_text(row, "pattern");
	int			n;

	row->what = psprintf("task \"%s\"", llmgw_row_text(row, "name"));
	llmgw_check_name(row, "name", NAMEDATALEN - 1);
	(void) text_array(row, "keywords", &n);
	if (optimize != NULL && llmgw_optimize_from_name(optimize) <= LLMGW_OPTIMIZE_NONE)
		llmgw_reject(row, "optimize", "be quality, cost or speed",
					 "Use NULL for llm_gateway.default_optimize.");
	check_some_time(row, "cache_ttl", "Use NULL for a task whose answers are not kept.");
	check_similarity(row);
	check_some_time(row, "cache_similar_ttl", "Use NULL for as long as they are kept.");

	if (pattern != NULL)
	{
		ErrorContextCallback context = {error_context_stack, pattern_context,
		unconstify(char *, row->what)};

		if (strlen(pattern) > MAX_PATTERN)
			llmgw_reject(row, "pattern", psprintf("have at most %d bytes", MAX_PATTERN),
						 "Use keywords for words.");

		/* raises PostgreSQL's own error for what is no regular expression */
		error_context_stack = &context;
		(void) RE_compile_and_cache(cstring_to_text(pattern), REG_ADVANCED | REG_NOSUB,
									DEFAULT_COLLATION_OID);
		error_context_stack = context.previous;
	}
}

bool
llmgw_model_exists(Relation rules, const char *model, bool *qualified)
{
	LlmRow		row = {0};
	SysScanDesc scan;
	bool		found = false;
	bool		at_provider = false;

	row.rel = llmgw_open_sibling(rules, "llm_models", AccessShareLock);
	scan = systable_beginscan(row.rel, InvalidOid, false, NULL, 0, NULL);
	while (!at_provider && HeapTupleIsValid(row.tuple = systable_getnext(scan)))
	{
		char	   *name = llmgw_row_text(&row, "name");

		if (strcmp(model, name) == 0)
			found = true;
		else if (strcmp(model, psprintf("%s/%s", llmgw_row_text(&row, "provider"), name)) == 0)
			at_provider = true;
	}
	systable_endscan(scan);
	table_close(row.rel, AccessShareLock);
	if (qualified != NULL)
		*qualified = at_provider;
	return found || at_provider;
}

void
llmgw_check_model_name(const LlmRow *row, const LlmRow *old, const char *hint)
{
	char	   *model = llmgw_row_text(row, "model");
	char	   *before = old ? llmgw_row_text(old, "model") : NULL;

	llmgw_check_name(row, "model", MAX_MODEL_NAME);

	/* in a dump the models may come later */
	if (model != NULL && (before == NULL || strcmp(model, before) != 0) &&
		check_function_bodies && !llmgw_model_exists(row->rel, model, NULL))
		ereport(WARNING,
				(errcode(ERRCODE_WARNING),
				 errmsg("model of %s: no provider has a model \"%s\"", row->what, model),
				 errhint("%s", hint)));
}

void
llmgw_check_routing_rule(LlmRow *row, const LlmRow *old)
{
	bool		isnull;

	row->what = psprintf("routing rule " INT64_FORMAT,
						 DatumGetInt64(llmgw_row_value(row, "id", INT8OID, &isnull)));
	llmgw_check_name(row, "alias", MAX_MODEL_NAME);
	(void) llmgw_row_object(row, "tags");
	llmgw_check_role(row, old, "role");
	llmgw_check_model_name(row, old,
						   "Until one does, the rule chooses nothing: INSERT INTO llm_models(provider, name) ..., or llm_add_provider().");
}

void
llmgw_check_error_policy(LlmRow *row, const LlmRow *old)
{
	char	   *name = llmgw_row_text(row, "error_class");

	row->what = psprintf("error policy \"%s\"", name);
	if (name != NULL)
	{
		LlmErrorClass error_class = llmgw_error_class_from_name(name);

		if (error_class == LLMGW_OK || error_class >= LLMGW_NATTEMPT_CLASSES)
		{
			StringInfoData classes;

			initStringInfo(&classes);
			for (int i = LLMGW_OK + 1; i < LLMGW_NATTEMPT_CLASSES; i++)
				appendStringInfo(&classes, "%s%s", i > LLMGW_OK + 1 ? ", " : "",
								 llmgw_error_class_name(i));
			llmgw_reject(row, "error_class", "be the class of an attempt's error",
						 psprintf("Classes are %s.", classes.data));
		}
	}
	llmgw_check_name(row, "provider", NAMEDATALEN - 1);
	llmgw_check_int(row, "max_retries", 0, MAX_RETRIES,
					"Other candidates are better than many retries.");
	llmgw_check_int(row, "backoff_ms", 0, MAX_BACKOFF_MS, "It is a time in milliseconds.");
}
