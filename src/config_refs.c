/*-------------------------------------------------------------------------
 *
 * config_refs.c
 *	  References between the configuration tables.
 *
 * They behave as foreign keys do, with their SQLSTATE, and are none for one
 * reason: pg_dump restores the definition of an extension's table before all
 * data, its foreign keys included, and a parallel restore knows no order among
 * the data of tables.  It would lose models whose provider comes a moment
 * later.  Here a row is taken on trust while a dump is being restored.
 *
 * Races are excluded in the way of foreign keys: who refers to a row locks it,
 * and who deletes or renames a row has locked it before the trigger runs and
 * looks for references.
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
#include "catalog/indexing.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "config.h"
#include "config_check.h"
#include "config_rules.h"

/* A text column that holds the name of a row of another table. */
typedef struct Reference
{
	const char *table;
	const char *column;
	const char *target;
	const char *noun;			/* what the target's rows are */
	bool		cascade;		/* rows go with what they refer to */
} Reference;

static const Reference references[] =
{
	{"llm_models", "provider", "llm_providers", "provider", true},
	{"llm_models", "tier", "llm_tiers", "tier", false},
	{"llm_routing_rules", "task", "llm_tasks", "task", false},
};

/* Scans for rows whose column has that value. */
static SysScanDesc
begin_scan(Relation rel, const char *column, const char *value, Snapshot snapshot)
{
	ScanKeyData key;

	ScanKeyInit(&key, llmgw_column_number(rel, column), BTEqualStrategyNumber,
				F_TEXTEQ, CStringGetTextDatum(value));
	return systable_beginscan(rel, InvalidOid, false, snapshot, 1, &key);
}

/*
 * Locks the row of that name against deletion and renaming until the end of
 * the transaction; false when there is none.
 */
static bool
lock_target(Relation rel, const char *name)
{
	/*
	 * One statement may write both rows (WITH p AS (INSERT ...) INSERT ...):
	 * SnapshotSelf sees the earlier one.  But it can miss a row that is being
	 * updated under it, so a true snapshot is asked as well.
	 */
	for (int attempt = 0;; attempt++)
	{
		bool		last = attempt % 2 == 1;
		SysScanDesc scan = begin_scan(rel, "name", name, last ? NULL : SnapshotSelf);
		HeapTuple	tuple = systable_getnext(scan);
		TM_Result	result = TM_Deleted;
		bool		found = HeapTupleIsValid(tuple);

		if (found)
		{
			TupleTableSlot *slot = table_slot_create(rel, NULL);
			TM_FailureData failure;

			result = table_tuple_lock(rel, &tuple->t_self, GetActiveSnapshot(), slot,
									  GetCurrentCommandId(false), LockTupleKeyShare,
									  LockWaitBlock, 0, &failure);
			ExecDropSingleTupleTableSlot(slot);
		}
		systable_endscan(scan);

		/* invisible and self-modified: this very statement wrote it */
		if (result == TM_Ok || result == TM_Invisible || result == TM_SelfModified)
			return true;
		if (!found && last)
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}

void
llmgw_refs_check(const LlmRow *row, const LlmRow *old)
{
	/* the sign by which CREATE FUNCTION knows a restore, too */
	if (!check_function_bodies)
		return;

	for (int i = 0; i < lengthof(references); i++)
	{
		const Reference *ref = &references[i];
		char	   *name;
		char	   *before;
		Relation	target;

		if (strcmp(ref->table, RelationGetRelationName(row->rel)) != 0)
			continue;
		name = llmgw_row_text(row, ref->column);
		before = old ? llmgw_row_text(old, ref->column) : NULL;
		if (name == NULL || (before != NULL && strcmp(before, name) == 0))
			continue;

		target = llmgw_open_sibling(row->rel, ref->target, RowShareLock);
		if (!lock_target(target, name))
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("%s \"%s\" of %s does not exist", ref->noun, name, row->what),
					 errhint("Insert it into %s first.", ref->target),
					 errtablecol(row->rel, llmgw_column_number(row->rel, ref->column))));
		table_close(target, NoLock);
	}
}

/*
 * Rows that refer to a name which is deleted (new_name NULL) or changed: they
 * follow it, or are a reason to refuse.  Other writers of their table are kept
 * out, so that SnapshotSelf sees each row as it is, also what this very
 * statement did to it.
 */
static void
follow(Relation target, const Reference *ref, const char *name, const char *new_name)
{
	Relation	rel = llmgw_open_sibling(target, ref->table, ShareRowExclusiveLock);
	SysScanDesc scan = begin_scan(rel, ref->column, name, SnapshotSelf);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (new_name != NULL)
		{
			int			column = llmgw_column_number(rel, ref->column);
			Datum		value = CStringGetTextDatum(new_name);
			bool		isnull = false;
			ItemPointerData tid = tuple->t_self;

			CatalogTupleUpdate(rel, &tid,
							   heap_modify_tuple_by_cols(tuple, RelationGetDescr(rel), 1,
														 &column, &value, &isnull));
		}
		else if (ref->cascade)
			CatalogTupleDelete(rel, &tuple->t_self);
		else
			ereport(ERROR,
					(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
					 errmsg("%s \"%s\" is still used in %s", ref->noun, name, ref->table),
					 errhint("Change or delete those rows first: SELECT * FROM %s WHERE %s = %s;",
							 ref->table, ref->column, quote_literal_cstr(name))));
	}
	systable_endscan(scan);
	llmgw_config_invalidate(rel);
	table_close(rel, NoLock);
}

void
llmgw_refs_follow(const LlmRow *old, const LlmRow *new)
{
	char	   *name = NULL;
	char	   *new_name = NULL;

	for (int i = 0; i < lengthof(references); i++)
	{
		const Reference *ref = &references[i];

		if (strcmp(ref->target, RelationGetRelationName(old->rel)) != 0)
			continue;
		if (name == NULL)
		{
			name = llmgw_row_text(old, "name");
			new_name = new ? llmgw_row_text(new, "name") : NULL;

			/* a NULL is for the column's constraint to refuse */
			if (new != NULL && (new_name == NULL || strcmp(name, new_name) == 0))
				return;
		}
		follow(old->rel, ref, name, new_name);
	}
}

void
llmgw_refs_truncate(Relation target)
{
	for (int i = 0; i < lengthof(references); i++)
	{
		const Reference *ref = &references[i];
		Relation	rel;
		SysScanDesc scan;
		HeapTuple	tuple;
		int			column;

		if (strcmp(ref->target, RelationGetRelationName(target)) != 0)
			continue;
		rel = llmgw_open_sibling(target, ref->table, ShareRowExclusiveLock);
		column = llmgw_column_number(rel, ref->column);
		scan = systable_beginscan(rel, InvalidOid, false, SnapshotSelf, 0, NULL);
		while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		{
			if (heap_attisnull(tuple, column, RelationGetDescr(rel)))
				continue;
			if (!ref->cascade)
				ereport(ERROR,
						(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
						 errmsg("cannot truncate %s, which rows of %s refer to",
								ref->target, ref->table),
						 errhint("Delete those rows first.")));
			CatalogTupleDelete(rel, &tuple->t_self);
		}
		systable_endscan(scan);
		llmgw_config_invalidate(rel);
		table_close(rel, NoLock);
	}
}
