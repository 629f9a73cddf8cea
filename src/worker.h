/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  A database's worker: writes its ledger.
 *
 * The launcher makes a slot STARTING, sets worker_pid to 0 and worker_started
 * to now, and starts the process; the process sets worker_pid, then RUNNING,
 * and NONE when it is gone.  One that leaves on purpose sets worker_started to
 * 0 first; where that is not 0 and no worker is left, the worker has failed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_WORKER_H
#define LLMGW_WORKER_H

/* bgw_type of the processes, and their backend_type in pg_stat_activity */
#define LLMGW_WORKER_TYPE		"llm_gateway worker"
#define LLMGW_LAUNCHER_TYPE		"llm_gateway launcher"

/* The argument is the database's OID. */
extern PGDLLEXPORT void llmgw_worker_main(Datum arg);

/*
 * worker_settings.c: overrides what ALTER DATABASE or ALTER ROLE may have set.
 * After connecting.
 */
extern void llmgw_worker_force_settings(void);

#endif							/* LLMGW_WORKER_H */
