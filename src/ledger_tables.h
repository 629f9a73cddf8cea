/*-------------------------------------------------------------------------
 *
 * ledger_tables.h
 *	  The ledger's tables, as the worker writes them.
 *
 * Every transaction of the ledger runs between llmgw_tables_begin() and
 * llmgw_tables_commit().  Whoever calls from within may raise at any point; the
 * worker then aborts the transaction, and nothing is left to clean up.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LEDGER_TABLES_H
#define LLMGW_LEDGER_TABLES_H

#include "access/tupdesc.h"
#include "executor/spi.h"
#include "utils/timestamp.h"

#include "ledger.h"

/* In the order in which they are locked. */
typedef enum LlmLedgerTable
{
	LLMGW_TABLE_POSITION,
	LLMGW_TABLE_REQUESTS,
	LLMGW_TABLE_ATTEMPTS,
	LLMGW_TABLE_SPEND,
	LLMGW_TABLE_BUDGETS,
	LLMGW_TABLE_CARRIED,
	LLMGW_TABLE_CACHE,

	/* on its own: who locks it holds up no request, and the reverse */
	LLMGW_TABLE_EVENTS,
	LLMGW_NLEDGER_TABLES
} LlmLedgerTable;

#define LLMGW_MAX_COLUMNS	48

typedef struct LlmColumn
{
	const char *name;
	Oid			type;
} LlmColumn;

/* Our columns of a table; others are the user's. */
typedef struct LlmTableInfo
{
	const char *name;
	const char *after;			/* ends the statement that inserts into it */
	LlmColumn	columns[LLMGW_MAX_COLUMNS];
} LlmTableInfo;

extern const LlmTableInfo llmgw_table_info[LLMGW_NLEDGER_TABLES];

/* One for each process: statements are prepared once. */
typedef struct LlmTables LlmTables;

extern LlmTables *llmgw_tables_create(MemoryContext context);

/*
 * Starts a transaction that nobody can drop the extension or change its tables
 * under, with SPI connected.  Each statement is executed as the owner of its
 * table, so that what an owner has added to a table can do what that owner can
 * do, and no more.  False when the
 * extension is not installed: then there is a transaction, and nothing else.
 * Raises 55P03 when a lock is not to be had within lock_timeout, 55000, 42703
 * and 42804 when the tables are not as they should be.
 */
extern bool llmgw_tables_begin(LlmTables *tables);

/* The same for llm_cache or llm_breaker_events alone. */
extern bool llmgw_tables_begin_cache(LlmTables *tables);
extern bool llmgw_tables_begin_events(LlmTables *tables);
extern void llmgw_tables_commit(LlmTables *tables);

/* The extension that the transaction writes for; InvalidOid: none. */
extern Oid	llmgw_tables_extension(const LlmTables *tables);

/* Changes whenever the tables are others than before; never 0. */
extern uint64 llmgw_tables_epoch(const LlmTables *tables);

/* The owner of the extension, in a transaction of any kind; InvalidOid: none. */
extern Oid	llmgw_tables_extension_owner(void);

/* Whether the extension has been installed since llmgw_tables_begin(). */
extern bool llmgw_tables_appeared(const LlmTables *tables);

/* A statement; a static variable of who executes it. */
typedef struct LlmStatement
{
	const char *sql;			/* @ stands for the schema */
	int			nargs;
	Oid			argtypes[20];
	/* private */
	SPIPlanPtr	plan;
	uint64		epoch;
	LlmLedgerTable table;		/* the first that it names */
} LlmStatement;

/* Executes it; the rows touched.  Those returned are in SPI_tuptable. */
extern uint64 llmgw_tables_execute(LlmTables *tables, LlmStatement *statement,
								   Datum *values, const char *nulls);

/* ledger_rows.c */

/*
 * Rows on their way into a table: the values of our columns in their order,
 * row by row, and then all at once.
 */
typedef struct LlmRows LlmRows;

extern LlmRows *llmgw_rows_begin(LlmTables *tables, LlmLedgerTable table);
extern void llmgw_rows_null(LlmRows *rows);
extern void llmgw_rows_bool(LlmRows *rows, bool value);
extern void llmgw_rows_int4(LlmRows *rows, int32 value);
extern void llmgw_rows_int8(LlmRows *rows, int64 value);
extern void llmgw_rows_oid(LlmRows *rows, Oid value);
extern void llmgw_rows_date(LlmRows *rows, int32 value);
extern void llmgw_rows_time(LlmRows *rows, TimestampTz value);
extern void llmgw_rows_text(LlmRows *rows, const char *value);	/* may be NULL */
extern void llmgw_rows_text_len(LlmRows *rows, const char *value, Size len);
extern void llmgw_rows_bytea(LlmRows *rows, const char *value, Size len);
extern void llmgw_rows_texts(LlmRows *rows, const char *const *values, int n);
extern void llmgw_rows_floats(LlmRows *rows, const float4 *values, int n);
extern void llmgw_rows_nano(LlmRows *rows, LlmNano value);	/* unknown: NULL */
extern void llmgw_rows_jsonb(LlmRows *rows, Datum value);
extern void llmgw_rows_next(LlmRows *rows);

/* Writes them; how many were new.  What is returned is in SPI_tuptable. */
extern uint64 llmgw_rows_insert(LlmRows *rows);

/*
 * The same of rows that can be done without, which must be the last that were begun.
 * False: what a user has added to the table refuses them (an index, a constraint, a
 * trigger), or it is damaged; none is written, and the log has it.  What may be
 * over soon, such as a lock, is raised.
 */
extern bool llmgw_rows_try_insert(LlmRows *rows);

#endif							/* LLMGW_LEDGER_TABLES_H */
