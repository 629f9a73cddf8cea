/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  The extension's shared memory: reserved here, owned by its modules.
 *
 * Today it holds the source of request ids.  Shared structs hold numbers and
 * atomics, never pointers, descriptors or handles.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SHMEM_H
#define LLMGW_SHMEM_H

/* Installs the hooks.  Only from _PG_init, while libraries are preloaded. */
extern void llmgw_shmem_init(void);

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
