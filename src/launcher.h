/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  The process that starts the databases' workers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LAUNCHER_H
#define LLMGW_LAUNCHER_H

/* Registers it.  Only from _PG_init, while libraries are preloaded. */
extern void llmgw_launcher_init(void);

extern PGDLLEXPORT void llmgw_launcher_main(Datum arg);

#endif							/* LLMGW_LAUNCHER_H */
