/*-------------------------------------------------------------------------
 *
 * spool_private.h
 *	  Between spool.c and spool_write.c: the root of the shared state.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SPOOL_PRIVATE_H
#define LLMGW_SPOOL_PRIVATE_H

#include "spool.h"

typedef struct LlmSpoolRoot
{
	int			launcher_pid;	/* 0: none; written by the launcher only */
	int			launcher_procno;
	pg_atomic_uint64 launcher_missed;	/* when somebody first missed it; 0:
										 * nobody has since it was there */
	pg_atomic_uint64 next_incarnation;
	int			nslots;			/* these three never change */
	int			nowners;
	Size		slots_at;		/* of the slots, from the root's beginning */
	LlmSpoolOwner owners[FLEXIBLE_ARRAY_MEMBER];	/* by place in ProcGlobal */
	/* then the slots */
} LlmSpoolRoot;

extern LlmSpoolRoot *llmgw_spool_root;

static inline LlmSpoolShared *
llmgw_root_slots(LlmSpoolRoot *root)
{
	return (LlmSpoolShared *) ((char *) root + root->slots_at);
}

#endif							/* LLMGW_SPOOL_PRIVATE_H */
