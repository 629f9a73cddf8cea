/*-------------------------------------------------------------------------
 *
 * config_rows.c
 *	  Turns the rows of the configuration tables into structs.
 *
 * Columns are found by name: a library may be newer than the SQL objects.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "config_rows.h"
#include "guc.h"
#include "json.h"

/* the whole, in parts of 10^9; and the largest amount, in nano-dollars */
#define ONE				INT64CONST(1000000000)
#define MOST			(LLMGW_MAX_USD * ONE)

/*
 * A column's value; the columns are there, and of their types, or the row
 * cannot be understood.  InvalidOid is the type of stored keys.
 */
static Datum
column(LlmConfigRow *row, const char *name, Oid type, bool *isnull)
{
	TupleDesc	desc = row->slot->tts_tupleDescriptor;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || strcmp(NameStr(att->attname), name) != 0)
			continue;
		if (OidIsValid(type) ? att->atttypid != type : att->attlen != -1)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of table \"%s\" must be of type %s, not %s",
							name, row->table,
							OidIsValid(type) ? format_type_be(type) : "_llm_secret",
							format_type_be(att->atttypid))));
		return slot_getattr(row->slot, i + 1, isnull);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of table \"%s\" is missing", name, row->table),
			 errhint("Run ALTER EXTENSION llm_gateway UPDATE.")));
}

static const char *
text_column(LlmConfigRow *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, TEXTOID, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

/* The same of a column that says what the row is: not even an ALTER TABLE makes it NULL. */
static const char *
word_column(LlmConfigRow *row, const char *name)
{
	const char *value = text_column(row, name);

	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("column \"%s\" of table \"%s\" must not be null", name, row->table),
				 errhint("Give it a value in every row, and then: ALTER TABLE %s ALTER COLUMN %s SET NOT NULL;",
						 row->table, quote_identifier(name))));
	return value;
}

static bool
bool_column(LlmConfigRow *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, BOOLOID, &isnull);

	return !isnull && DatumGetBool(value);
}

static int
int_column(LlmConfigRow *row, const char *name, int if_null)
{
	bool		isnull;
	Datum		value = column(row, name, INT4OID, &isnull);

	return isnull ? if_null : DatumGetInt32(value);
}

static double
real_column(LlmConfigRow *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, FLOAT4OID, &isnull);

	return isnull ? 0 : DatumGetFloat4(value);
}

static int64
span_column(LlmConfigRow *row, const char *name, int64 if_null)
{
	bool		isnull;
	Datum		value = column(row, name, INTERVALOID, &isnull);
	Interval   *span;
	double		ms;

	if (isnull)
		return if_null;
	span = DatumGetIntervalP(value);
	ms = span->time / 1000.0 + span->day * (double) (SECS_PER_DAY * 1000) +
		span->month * (double) (DAYS_PER_MONTH * SECS_PER_DAY * 1000.0);

	/* what is given but shorter than a millisecond is not "no limit" */
	if (ms > 0 && ms < 1)
		ms = 1;
	return (int64) Max(0, Min(ms, 1e15));
}

static int
ms_column(LlmConfigRow *row, const char *name, int if_null)
{
	return (int) Min(span_column(row, name, if_null), INT_MAX);
}

static Jsonb *
jsonb_column(LlmConfigRow *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, JSONBOID, &isnull);

	return isnull ? NULL : DatumGetJsonbPCopy(value);
}

/*
 * An amount or a fraction in parts of 10^9, from 0 to most, as the trigger would
 * have seen to if it had been asked.  What is between two of them is rounded
 * against the caller: a limit down, everything else up.
 */
static int64
parts_column(LlmConfigRow *row, const char *name, int64 most, PGFunction round, int64 if_null)
{
	bool		isnull;
	Datum		value = column(row, name, NUMERICOID, &isnull);
	double		about;

	if (isnull)
		return if_null;
	if (numeric_is_nan(DatumGetNumeric(value)))
		return 0;
	about = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));
	if (about <= 0)
		return 0;
	if (about >= most / 1e9)
		return most;
	value = DirectFunctionCall2(numeric_mul, value,
								NumericGetDatum(int64_to_numeric(INT64CONST(1000000000))));
	return DatumGetInt64(DirectFunctionCall1(numeric_int8,
											 DirectFunctionCall1(round, value)));
}

static LlmPrice
price_of(Datum value)
{
	value = DirectFunctionCall2(numeric_mul, value,
								NumericGetDatum(int64_to_numeric(INT64CONST(1000000000))));
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, value));
}

static LlmPrice
price_column(LlmConfigRow *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, NUMERICOID, &isnull);

	return isnull ? LLMGW_PRICE_UNKNOWN : price_of(value);
}

static LlmPrice
price_member(JsonbContainer *c, const char *name)
{
	JsonbValue	v;

	if (!llmgw_json_get(c, &v, name, NULL) || v.type != jbvNumeric)
		return LLMGW_PRICE_UNKNOWN;
	return price_of(NumericGetDatum(v.val.numeric));
}

static int
cmp_price_tier(const void *a, const void *b)
{
	int64		x = ((const LlmPriceTier *) a)->above_tokens;
	int64		y = ((const LlmPriceTier *) b)->above_tokens;

	return x < y ? -1 : (x > y ? 1 : 0);
}

/* price_tiers: [{"above_tokens": 200000, "input": 6, ...}, ...] */
static void
read_price_tiers(LlmConfigRow *row, LlmModel *m)
{
	Jsonb	   *tiers = jsonb_column(row, "price_tiers");
	int			n = tiers && JB_ROOT_IS_ARRAY(tiers) ? JB_ROOT_COUNT(tiers) : 0;

	m->price_tiers = palloc0(sizeof(LlmPriceTier) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(&tiers->root, i);
		LlmPriceTier *tier = &m->price_tiers[m->nprice_tiers];

		if (v->type != jbvBinary ||
			!llmgw_json_get_int(v->val.binary.data, &tier->above_tokens, "above_tokens", NULL))
			continue;
		tier->input_price = price_member(v->val.binary.data, "input");
		tier->output_price = price_member(v->val.binary.data, "output");
		tier->cached_input_price = price_member(v->val.binary.data, "cached_input");
		tier->cache_write_price = price_member(v->val.binary.data, "cache_write");
		m->nprice_tiers++;
	}
	qsort(m->price_tiers, m->nprice_tiers, sizeof(LlmPriceTier), cmp_price_tier);
}

void
llmgw_read_secret(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmStoredSecret *secret = (LlmStoredSecret *) items + i;
	bool		isnull;
	Datum		value = column(row, "value", InvalidOid, &isnull);

	secret->name = word_column(row, "name");
	secret->value = isnull ? NULL : TextDatumGetCString(value) + LLMGW_SECRET_SALT;
	secret->host = text_column(row, "allowed_host");
}

void
llmgw_read_tier(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmTier    *tier = (LlmTier *) items + i;

	tier->name = word_column(row, "name");
	tier->rank = int_column(row, "rank", 0);
	tier->system_prompt_suffix = text_column(row, "system_prompt_suffix");
	tier->notice = text_column(row, "notice");
}

void
llmgw_read_priority(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmPriority *priority = (LlmPriority *) items + i;

	priority->name = word_column(row, "name");
	priority->rank = int_column(row, "rank", 0);
	priority->thresholds.premium_above = parts_column(row, "premium_above", ONE, numeric_ceil, 0);
	priority->thresholds.standard_above = parts_column(row, "standard_above", ONE, numeric_ceil, 0);
	priority->thresholds.economy_above = parts_column(row, "economy_above", ONE, numeric_ceil, 0);
	priority->thresholds.may_use_reserve = bool_column(row, "may_use_reserve");
	priority->required_role = text_column(row, "required_role");
}

void
llmgw_read_task(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmTask    *task = (LlmTask *) items + i;
	const char *optimize = text_column(row, "optimize");
	int			known = optimize ? llmgw_optimize_from_name(optimize) : -1;

	task->name = word_column(row, "name");
	task->optimize = known < 0 ? LLMGW_OPTIMIZE_NONE : known;
	task->cache_ttl_ms = span_column(row, "cache_ttl", -1);
	task->cache_shared = bool_column(row, "cache_shared");
	task->cache_similarity = (float4) real_column(row, "cache_similarity");
	task->cache_similar_ttl_ms = span_column(row, "cache_similar_ttl", -1);
	task->enabled = bool_column(row, "enabled");
}

static void
read_probe(LlmConfigRow *row, LlmProvider *p)
{
	const char *probe = text_column(row, "probe");

	if (probe == NULL || strcmp(probe, "models") == 0)
		p->probe = LLMGW_PROBE_MODELS;
	else if (strcmp(probe, "completion") == 0)
		p->probe = LLMGW_PROBE_COMPLETION;
	else if (strcmp(probe, "none") == 0)
		p->probe = LLMGW_PROBE_NONE;
	else
	{
		p->probe = LLMGW_PROBE_URL;
		p->probe_url = probe;
	}
}

/* Goes on with a hash; NULL is unlike every text. */
static uint64
hash_text(uint64 hash, const char *text)
{
	if (text == NULL)
		return hash_combine64(hash, 1);
	return hash_combine64(hash, DatumGetUInt64(hash_any_extended((const unsigned char *) text,
																 strlen(text), 0)));
}

/* Every write makes another version of a row, at another place. */
static uint64
row_mark(LlmConfigRow *row)
{
	bool		isnull;
	TransactionId xmin = DatumGetTransactionId(slot_getsysattr(row->slot,
															   MinTransactionIdAttributeNumber,
															   &isnull));
	ItemPointer tid = &row->slot->tts_tid;

	return hash_combine64(murmurhash32(xmin),
						  ((uint64) ItemPointerGetBlockNumberNoCheck(tid) << 16) |
						  ItemPointerGetOffsetNumberNoCheck(tid));
}

void
llmgw_read_provider(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmProvider *p = (LlmProvider *) items + i;

	p->name = word_column(row, "name");
	p->kind = word_column(row, "kind");
	p->dialect = llmgw_dialect_find(p->kind);
	p->base_url = text_column(row, "base_url");
	if (p->base_url == NULL && p->dialect != NULL)
		p->base_url = p->dialect->default_base_url;
	if (p->base_url != NULL)
		(void) llmgw_http_split_url(p->base_url, &p->url, &p->url_problem);
	p->api_key = text_column(row, "api_key");
	if (!llmgw_secret_parse(p->api_key, &p->key_ref))
		p->key_ref.kind = LLMGW_SECRET_NONE;
	if (p->key_ref.kind == LLMGW_SECRET_STORED)
	{
		for (int s = 0; s < row->nsecrets; s++)
		{
			if (strcmp(row->secrets[s].name, p->key_ref.name) == 0)
			{
				p->stored_secret = row->secrets[s].value;
				p->secret_host = row->secrets[s].host;
			}
		}
	}
	p->failure_domain = text_column(row, "failure_domain");
	if (p->failure_domain == NULL)
		p->failure_domain = p->name;
	p->enabled = bool_column(row, "enabled");
	p->weight = real_column(row, "weight");
	p->connect_ms = ms_column(row, "connect_timeout", 0);
	p->first_byte_ms = ms_column(row, "first_byte_timeout", 0);
	p->idle_ms = ms_column(row, "idle_timeout", 0);
	p->total_ms = ms_column(row, "total_timeout", 0);
	p->options = jsonb_column(row, "options");
	p->stream = p->options == NULL ||
		llmgw_json_get_bool(&p->options->root, true, "stream", NULL);
	p->keep_connection = p->options == NULL ||
		llmgw_json_get_bool(&p->options->root, true, "keep_connection", NULL);
	p->limits.concurrency = int_column(row, "max_concurrency", 0);
	p->limits.requests = int_column(row, "requests_per_minute", 0);
	p->limits.tokens = int_column(row, "tokens_per_minute", 0);
	p->breaker.failures = int_column(row, "breaker_failures", 1);
	p->breaker.window_us = (int64) ms_column(row, "breaker_window", 0) * 1000;
	p->breaker.cooldown_us = (int64) ms_column(row, "breaker_cooldown", 0) * 1000;
	read_probe(row, p);

	/*
	 * what was known before DROP EXTENSION is of no meaning after CREATE
	 * EXTENSION
	 */
	p->fingerprint = hash_text(hash_text(hash_text(config->extension, p->kind), p->base_url),
							   p->api_key);
	p->row_mark = row_mark(row);
}

void
llmgw_read_model(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmModel   *m = (LlmModel *) items + i;
	const char *tier = word_column(row, "tier");
	bool		isnull;
	Datum		value;

	m->provider = llmgw_config_provider(config, word_column(row, "provider"));
	m->name = word_column(row, "name");
	m->upstream_name = text_column(row, "upstream_name");
	if (m->upstream_name == NULL)
		m->upstream_name = m->name;
	m->tier = llmgw_config_tier(config, tier);
	m->quality = real_column(row, "quality");
	m->input_price = price_column(row, "input_price");
	m->output_price = price_column(row, "output_price");
	m->cached_input_price = price_column(row, "cached_input_price");
	m->cache_write_price = price_column(row, "cache_write_price");
	read_price_tiers(row, m);
	m->context_window = int_column(row, "context_window", 0);
	m->max_output_tokens = int_column(row, "max_output_tokens", 0);
	m->first_byte_ms = ms_column(row, "first_byte_timeout", -1);
	m->total_ms = ms_column(row, "total_timeout", -1);
	m->weight = real_column(row, "weight");
	m->enabled = bool_column(row, "enabled");

	m->ncapabilities = -1;
	value = column(row, "capabilities", TEXTARRAYOID, &isnull);
	if (!isnull)
	{
		Datum	   *elems;
		bool	   *nulls;
		int			n;

		deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false,
						  TYPALIGN_INT, &elems, &nulls, &n);
		m->capabilities = palloc(sizeof(char *) * Max(n, 1));
		m->ncapabilities = 0;
		for (int e = 0; e < n; e++)
			if (!nulls[e])
				m->capabilities[m->ncapabilities++] = TextDatumGetCString(elems[e]);
	}
}

void
llmgw_read_rule(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmRule    *rule = (LlmRule *) items + i;
	bool		isnull;

	rule->id = DatumGetInt64(column(row, "id", INT8OID, &isnull));
	rule->task = text_column(row, "task");
	rule->alias = text_column(row, "alias");
	rule->model = word_column(row, "model");
	rule->rank = int_column(row, "rank", 0);
	rule->enabled = bool_column(row, "enabled");
	rule->role = text_column(row, "role");
	rule->tags = jsonb_column(row, "tags");
}

void
llmgw_read_budget(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	LlmBudget  *budget = (LlmBudget *) items + i;
	const char *on_exhausted = word_column(row, "on_exhausted");
	const char *period = word_column(row, "period");
	int			known = llmgw_period_from_name(period);
	bool		isnull;

	budget->id = DatumGetInt64(column(row, "id", INT8OID, &isnull));
	budget->name = word_column(row, "name");
	budget->limit = parts_column(row, "limit_usd", MOST, numeric_floor, -1);
	budget->period = known < 0 ? LLMGW_PERIOD_MONTH : known;
	budget->timezone = word_column(row, "timezone");
	budget->zone = pg_tzset(budget->timezone);
	budget->reserve_fraction = parts_column(row, "reserve_fraction", ONE, numeric_ceil, 0);
	budget->strict = bool_column(row, "strict");
	budget->cache_only = strcmp(on_exhausted, "cache_only") == 0;
	budget->role = text_column(row, "role");
	budget->task = text_column(row, "task");
	budget->provider = text_column(row, "provider");
	budget->model = text_column(row, "model");
	budget->tags = jsonb_column(row, "tags");
	budget->opening = parts_column(row, "opening_usd", MOST, numeric_ceil, 0);
	budget->opening_period = DatumGetTimestampTz(column(row, "opening_period",
														TIMESTAMPTZOID, &isnull));
	if (isnull)
		budget->opening = budget->opening_period = 0;
}

void
llmgw_read_policy(LlmConfig *config, LlmConfigRow *row, void *items, int i)
{
	struct LlmProviderPolicy *p = (struct LlmProviderPolicy *) items + i;
	const char *name = word_column(row, "error_class");

	p->error_class = llmgw_error_class_from_name(name);
	p->provider = word_column(row, "provider");
	p->policy.max_retries = int_column(row, "max_retries", 0);
	p->policy.backoff_ms = int_column(row, "backoff_ms", 0);
	p->policy.fallback = bool_column(row, "fallback");
	p->policy.trips_breaker = bool_column(row, "trips_breaker");
}
