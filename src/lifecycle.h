/*-------------------------------------------------------------------------
 *
 * lifecycle.h
 *	  Lets go of a database that a statement needs for itself.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LIFECYCLE_H
#define LLMGW_LIFECYCLE_H

/* Installs the hook.  Only from _PG_init. */
extern void llmgw_lifecycle_init(void);

#endif							/* LLMGW_LIFECYCLE_H */
