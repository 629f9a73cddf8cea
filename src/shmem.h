/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The extension's shared memory: reserved here, owned by its modules.
 *
 * A module registers its part from _PG_init.  Shared structs hold numbers,
 * atomics and bounded text, never pointers, descriptors or handles.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SHMEM_H
#define LLMGW_SHMEM_H

#include "storage/lwlock.h"

/*
 * A module's part of shared memory.  size() is asked once MaxBackends is
 * known; init() fills the part when the server starts, or starts again after a
 * crash; *address is set in every process.
 */
typedef struct LlmSharedPart
{
	const char *name;
	Size		(*size) (void);
	void		(*init) (void *part);
	void	  **address;
} LlmSharedPart;

/* The module's locks, all of the tranche "llm_gateway". */
typedef enum LlmSharedLock
{
	LLMGW_LOCK_REQUEST_ID,
	LLMGW_LOCK_SPOOL,
	LLMGW_LOCK_ENDPOINTS,		/* endpoint.h */
	LLMGW_LOCK_BALANCE,			/* balance.h */
	LLMGW_LOCK_BUDGETS,			/* budget.h */
	LLMGW_LOCK_ESTIMATES,		/* estimate.h */
	LLMGW_LOCK_FLIGHTS,			/* cache.h */
	LLMGW_NLOCKS
} LlmSharedLock;

/* Installs the hooks.  Only from _PG_init, while libraries are preloaded. */
extern void llmgw_shmem_init(void);

/* Only from _PG_init; the part must live as long as the process. */
extern void llmgw_shmem_register(const LlmSharedPart *part);

/*
 * Raises 55000 when the library was not preloaded.  Parts may use it in their
 * init(), for locks of their own of the same tranche.
 */
extern LWLock *llmgw_shmem_lock(LlmSharedLock which);

/*
 * A new request id: positive, unique and rising in the cluster, also after a
 * restart, a crash, a promotion, or a clock set back.
 *
 * Ids are microseconds since 2020-01-01 UTC when the server starts and count
 * up by one from there, so that a later start begins above them; the highest
 * id that may have been handed out is also kept in a file, for the start that
 * follows a clock set back.  Raises an error when that file cannot be written.
 */
extern int64 llmgw_next_request_id(void);

#endif							/* LLMGW_SHMEM_H */
