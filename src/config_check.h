/*-------------------------------------------------------------------------
 *
 * config_check.h
 *	  What guards the configuration tables, and who else needs it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CONFIG_CHECK_H
#define LLMGW_CONFIG_CHECK_H

#include "access/htup.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* config_check.c */

/*
 * Raises the error that says that an api_key is not a reference; does not
 * return.  The statement that is running holds a key in all likelihood: it is
 * neither shown to the client as context, nor logged, nor left in
 * pg_stat_activity.
 */
extern void llmgw_refuse_raw_key(const char *provider, const char *key);

/*
 * From here on the running statement is shown under another text, in
 * pg_stat_activity and where the server logs an error's statement.  Occurrences
 * of a secret in the old text are overwritten (NULL: nothing to overwrite).
 */
extern void llmgw_hide_statement(const char *instead, const char *secret);

/* the column of that name; raises 42703 when there is none */
extern int	llmgw_column_number(Relation rel, const char *name);

/* the same; raises 42804 when it is not of that type */
extern int	llmgw_typed_column(Relation rel, const char *name, Oid type);

/* opens another table of the extension */
extern Relation llmgw_open_sibling(Relation rel, const char *name, LOCKMODE lockmode);

/* config_seed.c */

/*
 * Keeps track of the rows that the extension came with, for a row that is
 * inserted (old NULL), updated, or deleted (new NULL).  Returns the row to write
 * in place of new.
 */
extern HeapTuple llmgw_seed_change(Relation rel, HeapTuple old, HeapTuple new);

/* the same for all rows, before they are truncated */
extern void llmgw_seed_truncate(Relation rel);

/*
 * A row is being inserted into _llm_tombstones: deletes the seed that it is
 * for.  False when the row is there already and need not be inserted.
 */
extern bool llmgw_seed_bury(Relation tombstones, HeapTuple tombstone);

/* config_write.c */

/*
 * Write a row as the executor does, but not judged by our own trigger.  Rows
 * at tid must be locked.  AFTER triggers are fired when the statement ends that
 * is running, which must be one that writes, or by the last of these functions.
 */
extern void llmgw_row_insert(Relation rel, HeapTuple new);
extern void llmgw_row_update(Relation rel, ItemPointer tid, HeapTuple new);
extern void llmgw_row_delete(Relation rel, ItemPointer tid);
extern void llmgw_writes_begin(void);
extern void llmgw_writes_end(void);

#endif							/* LLMGW_CONFIG_CHECK_H */
