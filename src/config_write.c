/*-------------------------------------------------------------------------
 *
 * config_write.c
 *	  Rows that the extension itself writes into its tables.
 *
 * What is written is written as the executor does it, so that whatever was
 * added to a table holds for it: indexes of any kind, generated columns,
 * constraints, triggers.  As in logical replication nobody's privileges are
 * asked for.  Only our own trigger is left out: it judges what users write,
 * and a row may have to follow one that is not there yet.
 *
 * The rows are locked by now: nobody else can have changed them.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "config_check.h"

/* The ResultRelInfo has its own copy of the triggers. */
static void
leave_out_own_trigger(Relation rel, TriggerDesc *triggers)
{
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];
		char	   *function = get_func_name(trigger->tgfoid);

		if (function != NULL && strcmp(function, "_llm_config_row") == 0 &&
			get_func_namespace(trigger->tgfoid) == RelationGetNamespace(rel))
			trigger->tgenabled = TRIGGER_DISABLED;
	}
}

/* Writes new in place of the row at tid; one of them is NULL. */
static void
write_row(Relation rel, ItemPointer tid, HeapTuple new)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext context = MemoryContextSwitchTo(estate->es_query_cxt);
	ResultRelInfo *result = makeNode(ResultRelInfo);
	TupleTableSlot *old_slot = NULL;
	TupleTableSlot *slot = NULL;
	EPQState	epq;

	InitResultRelInfo(result, rel, 0, NULL, 0);
	leave_out_own_trigger(rel, result->ri_TrigDesc);
	estate->es_output_cid = GetCurrentCommandId(true);
	PushActiveSnapshot(GetTransactionSnapshot());
	estate->es_snapshot = GetActiveSnapshot();
	ExecOpenIndices(result, false);

	if (tid != NULL)
	{
		old_slot = table_slot_create(rel, &estate->es_tupleTable);
		if (!table_tuple_fetch_row_version(rel, tid, SnapshotAny, old_slot))
			elog(ERROR, "failed to fetch a row of table \"%s\"", RelationGetRelationName(rel));
	}
	if (new != NULL)
	{
		slot = table_slot_create(rel, &estate->es_tupleTable);
		ExecForceStoreHeapTuple(new, slot, false);
		slot->tts_tableOid = RelationGetRelid(rel);
	}

	/*
	 * the row is locked, so nothing is ever looked at again, but triggers ask
	 * for an EPQState
	 */
	llmgw_eval_plan_qual_init(&epq, estate);
	if (old_slot == NULL)
		ExecSimpleRelationInsert(result, estate, slot);
	else if (slot == NULL)
		ExecSimpleRelationDelete(result, estate, &epq, old_slot);
	else
		ExecSimpleRelationUpdate(result, estate, &epq, old_slot, slot);
	EvalPlanQualEnd(&epq);

	ExecCloseIndices(result);
	ExecResetTupleTable(estate->es_tupleTable, false);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	FreeExecutorState(estate);
}

void
llmgw_row_insert(Relation rel, HeapTuple new)
{
	write_row(rel, NULL, new);
}

void
llmgw_row_update(Relation rel, ItemPointer tid, HeapTuple new)
{
	write_row(rel, tid, new);
}

void
llmgw_row_delete(Relation rel, ItemPointer tid)
{
	write_row(rel, tid, NULL);
}

void
llmgw_writes_begin(void)
{
	AfterTriggerBeginQuery();
}

void
llmgw_writes_end(void)
{
	EState	   *estate = CreateExecutorState();

	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	estate->es_snapshot = GetActiveSnapshot();
	AfterTriggerEndQuery(estate);
	ExecCloseResultRelations(estate);
	ExecResetTupleTable(estate->es_tupleTable, false);
	PopActiveSnapshot();
	FreeExecutorState(estate);
}
