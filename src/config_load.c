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
 * make a transaction fail.  What a row says is config_rows.c's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/tuptable.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "config_rows.h"

/*
 * The tables, in the order in which they are read: what others refer to comes
 * first.
 */
enum
{
	SECRETS, TIERS, PRIORITIES, TASKS, PROVIDERS, MODELS, RULES, POLICIES, BUDGETS
};

static const struct
{
	const char *name;
	size_t		item_size;
	LlmRowReader read;
}			table_info[LLMGW_NCONFIG_TABLES] =

{
	[SECRETS] = {"_llm_secrets", sizeof(LlmStoredSecret), llmgw_read_secret},
	[TIERS] = {"llm_tiers", sizeof(LlmTier), llmgw_read_tier},
	[PRIORITIES] = {"llm_priorities", sizeof(LlmPriority), llmgw_read_priority},
	[TASKS] = {"llm_tasks", sizeof(LlmTask), llmgw_read_task},
	[PROVIDERS] = {"llm_providers", sizeof(LlmProvider), llmgw_read_provider},
	[MODELS] = {"llm_models", sizeof(LlmModel), llmgw_read_model},
	[RULES] = {"llm_routing_rules", sizeof(LlmRule), llmgw_read_rule},
	[POLICIES] = {"llm_error_policies", sizeof(struct LlmProviderPolicy), llmgw_read_policy},
	[BUDGETS] = {"llm_budgets", sizeof(LlmBudget), llmgw_read_budget},
};

/* of the configuration under construction: its secrets, and its moment */
static LlmStoredSecret *secrets;
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

void
llmgw_check_scannable(Relation rel)
{
	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" of extension \"llm_gateway\" must be an ordinary table",
						RelationGetRelationName(rel)),
				 errdetail_relkind_not_supported(rel->rd_rel->relkind),
				 errhint("Put the extension's own table back in its place.")));
}

/* Reads a table into an array of items in the current memory context. */
static void *
read_table(LlmConfig *config, const LlmConfigTables *tables, int which, int *count)
{
	Relation	rel = table_open(tables->relations[which], AccessShareLock);
	TableScanDesc scan;
	LlmConfigRow row = {table_info[which].name, NULL, secrets, nsecrets};
	size_t		size = table_info[which].item_size;
	int			allocated = 16;
	char	   *items = palloc0(size * allocated);
	int			n = 0;

	llmgw_check_scannable(rel);
	row.slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, SnapshotAny, 0, NULL);
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

static int
cmp_budget(const void *a, const void *b)
{
	int64		x = ((const LlmBudget *) a)->id;
	int64		y = ((const LlmBudget *) b)->id;

	return x < y ? -1 : (x > y ? 1 : 0);
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
	config->budgets = read_table(config, tables, BUDGETS, &config->nbudgets);
	qsort(config->budgets, config->nbudgets, sizeof(LlmBudget), cmp_budget);
	UnregisterSnapshot(snapshot);

	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, TopMemoryContext);
	return config;
}
