/*-------------------------------------------------------------------------
 *
 * worker_private.h
 *	  What worker*.c share.
 *
 * worker.c has the worker's life; worker_slot.c its place in shared memory;
 * worker_attempt.c runs what may fail; worker_probe.c looks after circuit
 * breakers.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_WORKER_PRIVATE_H
#define LLMGW_WORKER_PRIVATE_H

#include <signal.h>

#include "compat.h"
#include "endpoint.h"
#include "ledger_book.h"
#include "spool.h"
#include "timing.h"
#include "worker.h"

/* how long to go on after SIGTERM */
#define LLMGW_STOP_MS		500

/* set by SIGTERM */
extern volatile sig_atomic_t llmgw_worker_stop_requested;

/* its name, or until that is known its OID */
extern char llmgw_worker_database[NAMEDATALEN];

/* worker_slot.c */

/* the slot of this worker's database; NULL before it is claimed */
extern LlmSpoolShared *llmgw_worker_slot;

/* False when somebody else is the slot's worker, or none is wanted any more. */
extern bool llmgw_worker_claim(Oid database);

/*
 * For on_shmem_exit(), before the process connects: so it runs when the process
 * has left the database.
 */
extern void llmgw_worker_leave_slot(int code, Datum arg);

/* From now on writers wake this process. */
extern void llmgw_worker_begin(void);

/* Exits.  Not a failure: the next worker need not wait.  book may be NULL. */
LLMGW_NORETURN extern void llmgw_worker_leave(LlmBook *book);

/* Leaves if there is still nothing to do. */
extern void llmgw_worker_leave_idle(LlmBook *book);

/* worker_attempt.c */

/* What the worker does, for the log. */
typedef enum LlmDeed
{
	LLMGW_DEED_LEDGER,
	LLMGW_DEED_EVENTS,
	LLMGW_DEED_PROBES,
	LLMGW_NDEEDS
} LlmDeed;

/* Before the first attempt; context is where each begins. */
extern void llmgw_worker_attempt_init(MemoryContext context);

/*
 * Does something that may fail, and not take long.  0, or its SQLSTATE; then no
 * transaction is open and nothing is held, it is logged, but not each time that
 * it comes back, and is left for llm_worker_status.
 */
extern int	llmgw_worker_attempt(LlmDeed deed, void (*action) (void));

/* It works again: says so where an error was logged. */
extern void llmgw_worker_succeeded(LlmDeed deed);

/* worker_probe.c */

/*
 * Writes what breakers did, and begins the probes that are due.  Short: what
 * was begun goes on in llmgw_probes_turn().
 */
extern void llmgw_probes_step(LlmBook *book);

/* Drives the probes under way, and waits for them, until that time or the latch. */
extern void llmgw_probes_turn(LlmInstant until);

extern bool llmgw_probes_under_way(void);

/*
 * Whether a probe is under way or soon to come, or breakers have done something
 * that is not written: a reason not to leave, or to ask for another worker.
 */
extern bool llmgw_probes_wanted(void);

/* when llmgw_probes_step() is to be called, at the latest */
extern LlmInstant llmgw_probes_wake_at(void);

/* Whether breakers have done something that can be written now. */
extern bool llmgw_probes_has_news(void);

/* Takes the probes under way off the wire. */
extern void llmgw_probes_abandon(void);

#endif							/* LLMGW_WORKER_PRIVATE_H */
