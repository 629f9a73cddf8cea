/*-------------------------------------------------------------------------
 *
 * config_load.c
 *	  Reads the configuration tables.
 *
 * Tables are scanned directly, so a caller needs no privilege on them, and
 * under a fresh snapshot of the kind that catalogs are read with, so the
 * transaction's isolation level does not matter.  The scan itself asks for all
 * row versions, and visibility is judged here: an MVCC scan in a SERIALIZABLE
 * transaction would take predicate locks, and reading configuration must not
 * make a transaction fail.
 *
 * Columns are found by name: a library may be newer than the SQL objects.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "config.h"
#include "json.h"

/* One row, on the way from its table into the configuration. */
typedef struct Row
{
	const char *table;
	TupleTableSlot *slot;
} Row;

typedef void (*RowFn) (LlmConfig *config, Row *row, void *items, int i);

static void read_provider(LlmConfig *config, Row *row, void *items, int i);
static void read_model(LlmConfig *config, Row *row, void *items, int i);
static void read_tier(LlmConfig *config, Row *row, void *items, int i);
static void read_priority(LlmConfig *config, Row *row, void *items, int i);
static void read_task(LlmConfig *config, Row *row, void *items, int i);
static void read_rule(LlmConfig *config, Row *row, void *items, int i);
static void read_policy(LlmConfig *config, Row *row, void *items, int i);
static void read_secret(LlmConfig *config, Row *row, void *items, int i);

typedef struct StoredSecret
{
	const char *name;
	const char *value;
	const char *host;
} StoredSecret;

/*
 * The tables, in the order in which they are read: what others refer to comes
 * first.
 */
enum
{
	SECRETS, TIERS, PRIORITIES, TASKS, PROVIDERS, MODELS, RULES, POLICIES
};

static const struct
{
	const char *name;
	size_t		item_size;
	RowFn		read;
}			table_info[LLMGW_NCONFIG_TABLES] =

{
	[SECRETS] = {"_llm_secrets", sizeof(StoredSecret), read_secret},
	[TIERS] = {"llm_tiers", sizeof(LlmTier), read_tier},
	[PRIORITIES] = {"llm_priorities", sizeof(LlmPriority), read_priority},
	[TASKS] = {"llm_tasks", sizeof(LlmTask), read_task},
	[PROVIDERS] = {"llm_providers", sizeof(LlmProvider), read_provider},
	[MODELS] = {"llm_models", sizeof(LlmModel), read_model},
	[RULES] = {"llm_routing_rules", sizeof(LlmRule), read_rule},
	[POLICIES] = {"llm_error_policies", sizeof(struct LlmProviderPolicy), read_policy},
};

/* of the configuration under construction: its secrets, and its moment */
static StoredSecret *secrets;
static int	nsecrets;
static Snapshot snapshot;

static uint64 generations = 0;

static Oid
extension_schema(Oid extension, TransactionId *creator)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		TransactionId xmin = HeapTupleHeaderGetXmin(tuple->t_data);

		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		if (TransactionIdIsCurrentTransactionId(xmin))
			*creator = xmin;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

void
llmgw_config_find_tables(LlmConfigTables *tables)
{
	tables->extension = get_extension_oid("llm_gateway", true);
	tables->creator = InvalidTransactionId;
	tables->schema = OidIsValid(tables->extension) ?
		extension_schema(tables->extension, &tables->creator) : InvalidOid;
	if (!OidIsValid(tables->schema))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"llm_gateway\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION llm_gateway.")));

	for (int i = 0; i < LLMGW_NCONFIG_TABLES; i++)
	{
		Oid			relid = get_relname_relid(table_info[i].name, tables->schema);

		if (!OidIsValid(relid) ||
			getExtensionOfObject(RelationRelationId, relid) != tables->extension)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" of extension \"llm_gateway\" is missing",
							table_info[i].name),
					 errhint("Run ALTER EXTENSION llm_gateway UPDATE, or drop and create the extension.")));
		tables->relations[i] = relid;
	}
}

/*
 * A column's value; the columns are there, and of their types, or the row
 * cannot be understood.  InvalidOid is the type of stored keys.
 */
static Datum
column(Row *row, const char *name, Oid type, bool *isnull)
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
text_column(Row *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, TEXTOID, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
bool_column(Row *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, BOOLOID, &isnull);

	return !isnull && DatumGetBool(value);
}

static int
int_column(Row *row, const char *name, int if_null)
{
	bool		isnull;
	Datum		value = column(row, name, INT4OID, &isnull);

	return isnull ? if_null : DatumGetInt32(value);
}

static double
real_column(Row *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, FLOAT4OID, &isnull);

	return isnull ? 0 : DatumGetFloat4(value);
}

static int
ms_column(Row *row, const char *name, int if_null)
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
	return (int) Max(0, Min(ms, (double) INT_MAX));
}

static Jsonb *
jsonb_column(Row *row, const char *name)
{
	bool		isnull;
	Datum		value = column(row, name, JSONBOID, &isnull);

	return isnull ? NULL : DatumGetJsonbPCopy(value);
}

static LlmPrice
price_of(Datum value)
{
	value = DirectFunctionCall2(numeric_mul, value,
								NumericGetDatum(int64_to_numeric(INT64CONST(1000000000))));
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, value));
}

static LlmPrice
price_column(Row *row, const char *name)
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
read_price_tiers(Row *row, LlmModel *m)
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

static void
read_secret(LlmConfig *config, Row *row, void *items, int i)
{
	StoredSecret *secret = (StoredSecret *) items + i;
	bool		isnull;
	Datum		value = column(row, "value", InvalidOid, &isnull);

	secret->name = text_column(row, "name");
	secret->value = isnull ? NULL : TextDatumGetCString(value) + LLMGW_SECRET_SALT;
	secret->host = text_column(row, "allowed_host");
}

static void
read_tier(LlmConfig *config, Row *row, void *items, int i)
{
	LlmTier    *tier = (LlmTier *) items + i;

	tier->name = text_column(row, "name");
	tier->rank = int_column(row, "rank", 0);
	tier->system_prompt_suffix = text_column(row, "system_prompt_suffix");
	tier->notice = text_column(row, "notice");
}

static void
read_priority(LlmConfig *config, Row *row, void *items, int i)
{
	LlmPriority *priority = (LlmPriority *) items + i;

	priority->name = text_column(row, "name");
	priority->rank = int_column(row, "rank", 0);
	priority->required_role = text_column(row, "required_role");
}

static void
read_task(LlmConfig *config, Row *row, void *items, int i)
{
	LlmTask    *task = (LlmTask *) items + i;

	task->name = text_column(row, "name");
	task->enabled = bool_column(row, "enabled");
}

static void
read_probe(Row *row, LlmProvider *p)
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
row_mark(Row *row)
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

static void
read_provider(LlmConfig *config, Row *row, void *items, int i)
{
	LlmProvider *p = (LlmProvider *) items + i;

	p->name = text_column(row, "name");
	p->kind = text_column(row, "kind");
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
		for (int s = 0; s < nsecrets; s++)
		{
			if (strcmp(secrets[s].name, p->key_ref.name) == 0)
			{
				p->stored_secret = secrets[s].value;
				p->secret_host = secrets[s].host;
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
	p->limits.concurrency = int_column(row, "max_concurrency", 0);
	p->limits.requests = int_column(row, "requests_per_minute", 0);
	p->limits.tokens = int_column(row, "tokens_per_minute", 0);
	p->breaker.failures = int_column(row, "breaker_failures", 1);
	p->breaker.window_us = (int64) ms_column(row, "breaker_window", 0) * 1000;
	p->breaker.cooldown_us = (int64) ms_column(row, "breaker_cooldown", 0) * 1000;
	read_probe(row, p);
	p->fingerprint = hash_text(hash_text(hash_text(0, p->kind), p->base_url), p->api_key);
	p->row_mark = row_mark(row);
}

static void
read_model(LlmConfig *config, Row *row, void *items, int i)
{
	LlmModel   *m = (LlmModel *) items + i;
	const char *tier = text_column(row, "tier");
	bool		isnull;
	Datum		value;

	m->provider = llmgw_config_provider(config, text_column(row, "provider"));
	m->name = text_column(row, "name");
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

static void
read_rule(LlmConfig *config, Row *row, void *items, int i)
{
	LlmRule    *rule = (LlmRule *) items + i;
	bool		isnull;

	rule->id = DatumGetInt64(column(row, "id", INT8OID, &isnull));
	rule->task = text_column(row, "task");
	rule->alias = text_column(row, "alias");
	rule->model = text_column(row, "model");
	rule->rank = int_column(row, "rank", 0);
	rule->enabled = bool_column(row, "enabled");
	rule->role = text_column(row, "role");
	rule->tags = jsonb_column(row, "tags");
}

static void
read_policy(LlmConfig *config, Row *row, void *items, int i)
{
	struct LlmProviderPolicy *p = (struct LlmProviderPolicy *) items + i;
	const char *name = text_column(row, "error_class");

	p->error_class = llmgw_error_class_from_name(name);
	p->provider = text_column(row, "provider");
	p->policy.max_retries = int_column(row, "max_retries", 0);
	p->policy.backoff_ms = int_column(row, "backoff_ms", 0);
	p->policy.fallback = bool_column(row, "fallback");
	p->policy.trips_breaker = bool_column(row, "trips_breaker");
}

/* Reads a table into an array of items in the current memory context. */
static void *
read_table(LlmConfig *config, const LlmConfigTables *tables, int which, int *count)
{
	Relation	rel = table_open(tables->relations[which], AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);
	Row			row = {table_info[which].name, table_slot_create(rel, NULL)};
	size_t		size = table_info[which].item_size;
	int			allocated = 16;
	char	   *items = palloc0(size * allocated);
	int			n = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, row.slot))
	{
		if (!table_tuple_satisfies_snapshot(rel, row.slot, snapshot))
			continue;
		if (n == allocated)
		{
			items = repalloc_huge(items, size * allocated * 2);
			memset(items + size * allocated, 0, size * allocated);
			allocated *= 2;
		}
		table_info[which].read(config, &row, items, n++);
	}
	ExecDropSingleTupleTableSlot(row.slot);
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	*count = n;
	return items;
}

static int
by_rank_and_name(int rank_a, int rank_b, const char *a, const char *b)
{
	return rank_a != rank_b ? (rank_a < rank_b ? -1 : 1) : strcmp(a, b);
}

static int
cmp_provider(const void *a, const void *b)
{
	return strcmp(((const LlmProvider *) a)->name, ((const LlmProvider *) b)->name);
}

static int
cmp_task(const void *a, const void *b)
{
	return strcmp(((const LlmTask *) a)->name, ((const LlmTask *) b)->name);
}

static int
cmp_model(const void *a, const void *b)
{
	const LlmModel *x = a;
	const LlmModel *y = b;
	int			c = strcmp(x->name, y->name);

	return c != 0 ? c : strcmp(x->provider->name, y->provider->name);
}

static int
cmp_tier(const void *a, const void *b)
{
	const LlmTier *x = a;
	const LlmTier *y = b;

	return by_rank_and_name(x->rank, y->rank, x->name, y->name);
}

static int
cmp_priority(const void *a, const void *b)
{
	const LlmPriority *x = a;
	const LlmPriority *y = b;

	return by_rank_and_name(x->rank, y->rank, x->name, y->name);
}

static int
cmp_rule(const void *a, const void *b)
{
	const LlmRule *x = a;
	const LlmRule *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return x->id < y->id ? -1 : (x->id > y->id ? 1 : 0);
}

/*
 * Splits the policies in those for every provider, by class, and the others.
 * A class whose row was deleted neither retries nor falls back.
 */
static void
settle_policies(LlmConfig *config, struct LlmProviderPolicy *all, int n)
{
	config->provider_policies = all;
	for (int i = 0; i < n; i++)
	{
		if (all[i].error_class <= LLMGW_OK ||
			all[i].error_class >= LLMGW_NATTEMPT_CLASSES)
			continue;
		if (strcmp(all[i].provider, "*") == 0)
			config->policies[all[i].error_class] = all[i].policy;
		else
			config->provider_policies[config->nprovider_policies++] = all[i];
	}
}

LlmConfig *
llmgw_config_load(const LlmConfigTables *tables)
{
	/* below the caller's context until it is complete */
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "llm_gateway configuration",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	LlmConfig  *config = palloc0(sizeof(LlmConfig));
	struct LlmProviderPolicy *policies;
	int			npolicies;
	int			nmodels = 0;

	config->context = context;
	config->pins = 1;
	config->generation = ++generations;
	config->extension = tables->extension;
	config->creator = tables->creator;
	config->schema = tables->schema;

	snapshot = RegisterSnapshot(GetNonHistoricCatalogSnapshot(tables->relations[0]));
	secrets = read_table(config, tables, SECRETS, &nsecrets);
	config->tiers = read_table(config, tables, TIERS, &config->ntiers);
	qsort(config->tiers, config->ntiers, sizeof(LlmTier), cmp_tier);
	config->priorities = read_table(config, tables, PRIORITIES, &config->npriorities);
	qsort(config->priorities, config->npriorities, sizeof(LlmPriority), cmp_priority);
	config->tasks = read_table(config, tables, TASKS, &config->ntasks);
	qsort(config->tasks, config->ntasks, sizeof(LlmTask), cmp_task);
	config->providers = read_table(config, tables, PROVIDERS, &config->nproviders);
	qsort(config->providers, config->nproviders, sizeof(LlmProvider), cmp_provider);
	config->models = read_table(config, tables, MODELS, &config->nmodels);


	/* a partial restore can leave a model without its provider or tier */
	for (int i = 0; i < config->nmodels; i++)
		if (config->models[i].provider != NULL && config->models[i].tier != NULL)
			config->models[nmodels++] = config->models[i];
	config->nmodels = nmodels;
	qsort(config->models, config->nmodels, sizeof(LlmModel), cmp_model);
	config->rules = read_table(config, tables, RULES, &config->nrules);
	qsort(config->rules, config->nrules, sizeof(LlmRule), cmp_rule);
	policies = read_table(config, tables, POLICIES, &npolicies);
	settle_policies(config, policies, npolicies);
	UnregisterSnapshot(snapshot);

	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, TopMemoryContext);
	return config;
}
