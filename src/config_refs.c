/*-------------------------------------------------------------------------
 *
 * config_refs.c
 *	  References between the configuration tables.
 *
 * They behave as foreign keys do, with their SQLSTATE, and are none for one
 * reason: pg_dump restores the definition of an extension's table before all
 * data, its foreign keys included, and a parallel restore knows no order among
 * the data of tables.  It would lose models whose provider comes a moment
 * later.  Here a row is taken on trust while a superuser restores a dump.  What a
 * subscriber replays is another server's, where its references were looked after and
 * what follows was written, too: it comes in an order of its own.
 *
 * Races are excluded in the way of foreign keys: who refers to a row locks it,
 * and who deletes or renames a row has locked it before the trigger runs and
 * looks for references.  Those that are there by then are locked one by one.
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
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
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
	bool		loose;			/* the name may be that of no row */
	bool		prefix;			/* "NAME/..." refers to it, if it has that */
} Reference;

static const Reference references[] =
{
	{"llm_models", "provider", "llm_providers", "provider",.cascade = true},
	{"llm_models", "tier", "llm_tiers", "tier"},
	{"llm_routing_rules", "task", "llm_tasks", "task"},
	{"llm_budgets", "task", "llm_tasks", "task"},
	{"llm_budgets", "provider", "llm_providers", "provider"},
	{"llm_error_policies", "provider", "llm_providers", "provider",.cascade = true,.loose = true},
	{"llm_routing_rules", "model", "llm_providers", "provider",.loose = true,.prefix = true},
	{"llm_budgets", "model", "llm_providers", "provider",.loose = true,.prefix = true},
};

/* As triggers of foreign keys, ours leave alone what is replayed. */
static bool
replaying(void)
{
	return SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA;
}

/* Scans for rows whose column has that value; by the primary key if that begins with it. */
static SysScanDesc
begin_scan(Relation rel, int column, const char *value, Snapshot snapshot)
{
	Oid			collation = TupleDescAttr(RelationGetDescr(rel), column - 1)->attcollation;
	Oid			index = InvalidOid;
	ScanKeyData key;

	list_free(RelationGetIndexList(rel));
	if (OidIsValid(rel->rd_pkindex))
	{
		Relation	primary = index_open(rel->rd_pkindex, AccessShareLock);

		if (primary->rd_index->indisvalid && primary->rd_rel->relam == BTREE_AM_OID &&
			primary->rd_index->indkey.values[0] == column &&
			primary->rd_indcollation[0] == collation)
			index = rel->rd_pkindex;
		index_close(primary, AccessShareLock);
	}
	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(value));
	key.sk_collation = collation;
	return systable_beginscan(rel, index, OidIsValid(index), snapshot, 1, &key);
}

/*
 * Locks the row of that name against deletion and renaming until the end of
 * the transaction; false when there is none.
 */
static bool
lock_target(Relation rel, const char *name)
{
	int			column = llmgw_typed_column(rel, "name", TEXTOID);

	/*
	 * One statement may write both rows (WITH p AS (INSERT ...) INSERT ...):
	 * SnapshotSelf sees the earlier one.  But it can miss a row that is being
	 * updated under it, so a true snapshot is asked as well.
	 */
	for (int attempt = 0;; attempt++)
	{
		bool		last = attempt % 2 == 1;
		TM_Result	result = TM_Deleted;
		SysScanDesc scan = begin_scan(rel, column, name, last ? NULL : SnapshotSelf);
		HeapTuple	tuple = systable_getnext(scan);
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

		/* this very statement wrote it, and it is still there */
		if (result == TM_Ok || (result == TM_Invisible && !last))
			return true;

		/* or it is gone, which that snapshot does not see yet */
		if (last && (!found || result == TM_SelfModified))
			return false;
		CHECK_FOR_INTERRUPTS();
	}
}

static void
check_reference(const LlmRow *row, const Reference *ref, const char *name)
{
	Relation	target = llmgw_open_sibling(row->rel, ref->target, RowShareLock);

	if (!lock_target(target, name))
		ereport(ref->loose ? WARNING : ERROR,
				(errcode(ref->loose ? ERRCODE_WARNING : ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("%s \"%s\" of %s does not exist", ref->noun, name, row->what),
				 ref->loose ? errhint("Until it does, the row has no effect.") :
				 errhint("Insert it into %s first.", ref->target),
				 errtablecol(row->rel, llmgw_column_number(row->rel, ref->column))));
	table_close(target, NoLock);
}

void
llmgw_refs_check(const LlmRow *row, const LlmRow *old)
{
	if (replaying())
		return;
	for (int i = 0; i < lengthof(references); i++)
	{
		const Reference *ref = &references[i];
		char	   *name;
		char	   *before;

		if (ref->prefix || strcmp(ref->table, RelationGetRelationName(row->rel)) != 0)
			continue;

		/* a restore; CREATE FUNCTION, too, knows it by that */
		if (!check_function_bodies && (superuser() || ref->loose))
			continue;
		name = llmgw_row_text(row, ref->column);
		before = old ? llmgw_row_text(old, ref->column) : NULL;
		if (name == NULL || (before != NULL && strcmp(before, name) == 0) ||
			(ref->loose && strcmp(name, "*") == 0))
			continue;
		check_reference(row, ref, name);
	}
}

/* What follows the name in a column that refers to it; NULL if it does not. */
static const char *
rest_of(const Reference *ref, const char *text, const char *name)
{
	size_t		len = strlen(name);

	if (strncmp(text, name, len) != 0 || text[len] != (ref->prefix ? '/' : '\0'))
		return NULL;
	return text +len;
}

/*
 * Locks a row that a snapshot has shown, waiting for whoever is writing it;
 * slot is its newest version.  False when it is gone.
 */
static bool
lock_row(Relation rel, ItemPointer tid, LockTupleMode mode, TupleTableSlot *slot)
{
	TM_FailureData failure;

	switch (table_tuple_lock(rel, tid, GetActiveSnapshot(), slot,
							 GetCurrentCommandId(false), mode, LockWaitBlock,
							 IsolationUsesXactSnapshot() ? 0 : TUPLE_LOCK_FLAG_FIND_LAST_VERSION,
							 &failure))
	{
		case TM_Ok:
			return true;
		case TM_Updated:
		case TM_Deleted:
			if (IsolationUsesXactSnapshot())
				ereport(ERROR,
						(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						 errmsg("could not serialize access due to concurrent update")));
			return false;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("a row of %s was already changed by an operation that the same command triggered",
							RelationGetRelationName(rel))));
			return false;		/* keep compiler quiet */
	}
}

/* Whether this transaction wrote the row, and not before that command. */
static bool
written_since(TupleTableSlot *slot, CommandId command)
{
	bool		free_tuple;
	HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, &free_tuple);
	bool		result;

	result = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)) &&
		HeapTupleHeaderGetCmin(tuple->t_data) >= command;
	if (free_tuple)
		heap_freetuple(tuple);
	return result;
}

static void
follow_row(Relation rel, const Reference *ref, TupleTableSlot *slot,
		   const char *name, const char *new_name)
{
	if (new_name != NULL)
	{
		int			column = llmgw_typed_column(rel, ref->column, TEXTOID);
		bool		isnull = false;
		char	   *old = TextDatumGetCString(slot_getattr(slot, column, &isnull));
		Datum		value;
		bool		free_tuple;
		HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, &free_tuple);

		value = CStringGetTextDatum(psprintf("%s%s", new_name, rest_of(ref, old, name)));
		llmgw_row_update(rel, &slot->tts_tid,
						 heap_modify_tuple_by_cols(tuple, RelationGetDescr(rel), 1,
												   &column, &value, &isnull));
	}
	else if (ref->cascade)
		llmgw_row_delete(rel, &slot->tts_tid);
	else if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("cannot truncate %s, which rows of %s refer to",
						ref->target, ref->table),
				 errhint("Delete those rows first.")));
	else
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("%s \"%s\" is still used in %s", ref->noun, name, ref->table),
				 errhint("Change or delete those rows first: SELECT * FROM %s WHERE %s = %s;",
						 ref->table, ref->column, quote_literal_cstr(name))));
}

/*
 * Rows that refer to a name (NULL: to any) which is deleted (new_name NULL) or
 * changed: they follow it, or are a reason to refuse.  Who inserted one had
 * locked the name's row and is done, so a snapshot of now has them all.
 */
static void
follow(Relation target, const Reference *ref, const char *name, const char *new_name,
	   CommandId command)
{
	Relation	rel = llmgw_open_sibling(target, ref->table, RowExclusiveLock);
	int			column = llmgw_typed_column(rel, ref->column, TEXTOID);
	LockTupleMode mode = new_name || ref->cascade ? LockTupleExclusive : LockTupleKeyShare;
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	SysScanDesc scan = name == NULL || ref->prefix ?
	systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL) :
	begin_scan(rel, column, name, NULL);
	HeapTuple	tuple;
	bool		changed = false;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		ItemPointerData tid = tuple->t_self;
		bool		isnull;
		Datum		value = heap_getattr(tuple, column, RelationGetDescr(rel), &isnull);

		if (isnull || (name != NULL && !rest_of(ref, TextDatumGetCString(value), name)) ||
			(ref->loose && strcmp(TextDatumGetCString(value), "*") == 0) ||
			!lock_row(rel, &tid, mode, slot))
			continue;

		/*
		 * "openai/x" may also be the name of a model at another provider.
		 * Models follow first: ours has its new name by now.
		 */
		if (ref->prefix &&
			!llmgw_model_exists(rel, psprintf("%s%s", new_name,
											  rest_of(ref, TextDatumGetCString(value), name)), NULL))
			continue;

		/* it may have got another value while we waited */
		value = slot_getattr(slot, column, &isnull);
		if (isnull || (name != NULL && !rest_of(ref, TextDatumGetCString(value), name)))
			continue;
		if (written_since(slot, command))
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("a row of %s was written by the same command that deletes or changes the %s it refers to",
							ref->table, ref->noun),
					 errhint("Use two commands.")));
		follow_row(rel, ref, slot, name, new_name);
		ExecClearTuple(slot);
		changed = true;
	}
	systable_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	if (changed)
		llmgw_config_invalidate(rel);
	table_close(rel, NoLock);
}

/* For all that refer to the table; names as for follow(). */
static void
follow_all(Relation target, const char *name, const char *new_name)
{
	CommandId	command = GetCurrentCommandId(false);
	const char *table = RelationGetRelationName(target);

	if (replaying())
		return;
	for (int i = 0; i < lengthof(references); i++)
	{
		const Reference *ref = &references[i];

		/* a rule for a model that is gone stays and chooses nothing */
		if (strcmp(ref->target, table) != 0 || (ref->prefix && new_name == NULL))
			continue;

		/* see what the statement itself has written, and the one before */
		(void) GetCurrentCommandId(true);
		CommandCounterIncrement();
		follow(target, ref, name, new_name, command);
	}
}

void
llmgw_refs_follow(const LlmRow *old, const LlmRow *new)
{
	char	   *name;
	char	   *new_name = NULL;
	bool		referred = false;

	for (int i = 0; i < lengthof(references) && !referred; i++)
		referred = strcmp(references[i].target, RelationGetRelationName(old->rel)) == 0;
	if (!referred)
		return;
	name = llmgw_row_text(old, "name");
	new_name = new ? llmgw_row_text(new, "name") : NULL;

	/* a NULL is for the column's constraint to refuse */
	if (name == NULL || (new != NULL && (new_name == NULL || strcmp(name, new_name) == 0)))
		return;
	follow_all(old->rel, name, new_name);
}

void
llmgw_refs_truncate(Relation target)
{
	follow_all(target, NULL, NULL);
}
