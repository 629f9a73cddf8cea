/*-------------------------------------------------------------------------
 *
 * config_seed.c
 *	  The rows that the extension came with, in dumps and restores.
 *
 * CREATE EXTENSION makes those rows ("seeds", marked builtin), so a dump does
 * not contain them.  It must contain what became of them:
 *
 *	- an edited seed is the user's row.  The mark is cleared, which puts it
 *	  into the dump; restored, it replaces the seed that is there by then.
 *	- a deleted or renamed seed leaves a tombstone, a row of _llm_tombstones.
 *	  Restored, it deletes the seed.
 *
 * The seed that was edited first and deleted later is the reason for leaving a
 * tombstone at the first edit already: afterwards nothing tells that the key
 * once was a seed's.  A restore may bring the user's row and the tombstone in
 * either order.
 *
 * All of this goes straight to the tables, so that it neither needs a
 * privilege of whoever edits nor depends on a search_path.  Upgrade scripts of
 * this extension write seeds as seeds.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "config.h"
#include "config_check.h"

#define TOMBSTONES		"_llm_tombstones"
#define MAX_KEYS		2

/* A table with seeds; its key columns are texts. */
typedef struct SeedTable
{
	const char *name;
	int			nkeys;
	const char *keys[MAX_KEYS];
} SeedTable;

static const SeedTable seed_tables[] =
{
	{"llm_error_policies", 2, {"error_class", "provider"}},
	{"llm_priorities", 1, {"name"}},
	{"llm_tasks", 1, {"name"}},
	{"llm_tiers", 1, {"name"}},
};

static const SeedTable *
find_seed_table(const char *name)
{
	for (int i = 0; i < lengthof(seed_tables); i++)
		if (strcmp(seed_tables[i].name, name) == 0)
			return &seed_tables[i];
	return NULL;
}

/* Whether a script of this extension is writing. */
static bool
in_own_script(void)
{
	return creating_extension &&
		CurrentExtensionObject == get_extension_oid("llm_gateway", true);
}

static bool
is_seed(Relation rel, HeapTuple tuple)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, llmgw_typed_column(rel, "builtin", BOOLOID),
									 RelationGetDescr(rel), &isnull);

	return !isnull && DatumGetBool(value);
}

/* Reads a row's key; false when a part of it is NULL, which no row may have. */
static bool
read_key(Relation rel, const SeedTable *table, HeapTuple tuple, Datum *key)
{
	for (int i = 0; i < table->nkeys; i++)
	{
		bool		isnull;

		key[i] = heap_getattr(tuple, llmgw_typed_column(rel, table->keys[i], TEXTOID),
							  RelationGetDescr(rel), &isnull);
		if (isnull)
			return false;
	}
	return true;
}

/* Scans for seeds: the one with that key, or all if key is NULL. */
static SysScanDesc
begin_scan(Relation rel, const SeedTable *table, const Datum *key)
{
	ScanKeyData skey[1 + MAX_KEYS];
	int			n = 0;

	ScanKeyInit(&skey[n++], llmgw_typed_column(rel, "builtin", BOOLOID),
				BTEqualStrategyNumber, F_BOOLEQ, BoolGetDatum(true));
	if (key != NULL)
		for (int i = 0; i < table->nkeys; i++)
			ScanKeyInit(&skey[n++], llmgw_typed_column(rel, table->keys[i], TEXTOID),
						BTEqualStrategyNumber, F_TEXTEQ, key[i]);
	return systable_beginscan(rel, InvalidOid, false, NULL, n, skey);
}

/*
 * Deletes the seed with that key; whether there was one.  One that another
 * session is just editing is that session's; wait tells whether we wait for it
 * to end.
 */
static bool
delete_seed(Relation rel, const SeedTable *table, const Datum *key, bool wait)
{
	SysScanDesc scan = begin_scan(rel, table, key);
	HeapTuple	tuple;
	bool		found = false;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		TM_FailureData failure;

		if (table_tuple_delete(rel, &tuple->t_self, GetCurrentCommandId(true),
							   GetActiveSnapshot(), InvalidSnapshot, wait,
							   &failure, false) == TM_Ok)
			found = true;
	}
	systable_endscan(scan);
	return found;
}

static Jsonb *
make_key(const SeedTable *table, const Datum *key)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < table->nkeys; i++)
	{
		value.type = jbvString;
		value.val.string.val = TextDatumGetCString(key[i]);
		value.val.string.len = strlen(value.val.string.val);
		pushJsonbValue(&state, WJB_ELEM, &value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
}

/* for messages */
static char *
key_text(const SeedTable *table, const Datum *key)
{
	char	   *result = TextDatumGetCString(key[0]);

	for (int i = 1; i < table->nkeys; i++)
		result = psprintf("%s, %s", result, TextDatumGetCString(key[i]));
	return result;
}

static bool
has_tombstone(Relation tombstones, Datum table_name, Jsonb *key)
{
	int			key_column = llmgw_typed_column(tombstones, "key", JSONBOID);
	ScanKeyData skey;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	ScanKeyInit(&skey, llmgw_typed_column(tombstones, "table_name", TEXTOID),
				BTEqualStrategyNumber, F_TEXTEQ, table_name);
	/* also one that this statement has written: a restore is one COPY */
	scan = systable_beginscan(tombstones, InvalidOid, false, SnapshotSelf, 1, &skey);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, key_column,
										 RelationGetDescr(tombstones), &isnull);

		found = !isnull &&
			compareJsonbContainers(&DatumGetJsonbP(value)->root, &key->root) == 0;
	}
	systable_endscan(scan);
	return found;
}

static void
leave_tombstone(Relation rel, const SeedTable *table, const Datum *key)
{
	Relation	tombstones = llmgw_open_sibling(rel, TOMBSTONES, RowExclusiveLock);
	TupleDesc	desc = RelationGetDescr(tombstones);
	Datum		table_name = CStringGetTextDatum(table->name);
	Jsonb	   *json = make_key(table, key);

	if (!has_tombstone(tombstones, table_name, json))
	{
		Datum	   *values = palloc0(sizeof(Datum) * desc->natts);
		bool	   *nulls = palloc(sizeof(bool) * desc->natts);
		int			column;

		memset(nulls, true, desc->natts);
		column = llmgw_typed_column(tombstones, "table_name", TEXTOID);
		values[column - 1] = table_name;
		nulls[column - 1] = false;
		column = llmgw_typed_column(tombstones, "key", JSONBOID);
		values[column - 1] = JsonbPGetDatum(json);
		nulls[column - 1] = false;
		llmgw_row_insert(tombstones, heap_form_tuple(desc, values, nulls));
	}
	table_close(tombstones, NoLock);
}

HeapTuple
llmgw_seed_change(Relation rel, HeapTuple old, HeapTuple new)
{
	const SeedTable *table = find_seed_table(RelationGetRelationName(rel));
	Datum		key[MAX_KEYS];

	if (table == NULL || in_own_script())
		return new;

	if (old == NULL)
	{
		if (read_key(rel, table, new, key) && delete_seed(rel, table, key, true))
		{
			leave_tombstone(rel, table, key);

			/* ON CONFLICT DO UPDATE, too, finds nothing to update then */
			if (check_function_bodies)
				ereport(NOTICE,
						(errmsg("built-in row \"%s\" of %s was replaced",
								key_text(table, key), table->name),
						 errhint("Columns that were not given have their defaults; use UPDATE to change single ones.")));
		}
	}
	else if (is_seed(rel, old) && read_key(rel, table, old, key))
		leave_tombstone(rel, table, key);

	if (new != NULL && is_seed(rel, new))
	{
		int			column = llmgw_typed_column(rel, "builtin", BOOLOID);
		Datum		value = BoolGetDatum(false);
		bool		isnull = false;

		new = heap_modify_tuple_by_cols(new, RelationGetDescr(rel), 1, &column,
										&value, &isnull);
	}
	return new;
}

void
llmgw_seed_truncate(Relation rel)
{
	const SeedTable *table = find_seed_table(RelationGetRelationName(rel));
	SysScanDesc scan;
	HeapTuple	tuple;

	if (table == NULL || in_own_script())
		return;
	scan = begin_scan(rel, table, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Datum		key[MAX_KEYS];

		if (read_key(rel, table, tuple, key))
			leave_tombstone(rel, table, key);
	}
	systable_endscan(scan);
}

bool
llmgw_seed_bury(Relation tombstones, HeapTuple tombstone)
{
	TupleDesc	desc = RelationGetDescr(tombstones);
	const SeedTable *table;
	Relation	rel;
	Datum		table_name;
	Datum		value;
	Jsonb	   *json;
	Datum		key[MAX_KEYS];
	bool		isnull;

	/* a NULL is for the column's constraint to refuse */
	table_name = heap_getattr(tombstone, llmgw_typed_column(tombstones, "table_name", TEXTOID),
							  desc, &isnull);
	if (isnull)
		return true;
	value = heap_getattr(tombstone, llmgw_typed_column(tombstones, "key", JSONBOID),
						 desc, &isnull);
	if (isnull)
		return true;
	json = DatumGetJsonbP(value);
	if (has_tombstone(tombstones, table_name, json))
		return false;

	/* a dump of a newer version may know more tables, or more of a key */
	table = find_seed_table(TextDatumGetCString(table_name));
	if (table == NULL || !JB_ROOT_IS_ARRAY(json) || JB_ROOT_COUNT(json) != table->nkeys)
		return true;
	for (int i = 0; i < table->nkeys; i++)
	{
		JsonbValue *part = getIthJsonbValueFromContainer(&json->root, i);

		if (part == NULL || part->type != jbvString)
			return true;
		key[i] = PointerGetDatum(cstring_to_text_with_len(part->val.string.val,
														  part->val.string.len));
	}

	/*
	 * Not waiting: another session of a parallel restore may be replacing
	 * this very seed while it waits for one that we have deleted.
	 */
	rel = llmgw_open_sibling(tombstones, table->name, RowExclusiveLock);
	if (delete_seed(rel, table, key, false))
		llmgw_config_invalidate(rel);
	table_close(rel, NoLock);
	return true;
}
