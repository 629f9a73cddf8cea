/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between versions of PostgreSQL and libcurl.
 *
 * No other file tests PG_VERSION_NUM or LIBCURL_VERSION_NUM.  A file that uses
 * one of the names below includes this header after PostgreSQL's own and, for
 * the libcurl part, after <curl/curl.h>.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_COMPAT_H
#define LLMGW_COMPAT_H

#include "fmgr.h"
#include "storage/latch.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "llm_gateway supports PostgreSQL 15 to 18"
#endif

/* 18: modules may name themselves and their version */
#if PG_VERSION_NUM >= 180000
#define LLMGW_MODULE_MAGIC \
	PG_MODULE_MAGIC_EXT(.name = "llm_gateway", .version = LLM_GATEWAY_VERSION)
#else
#define LLMGW_MODULE_MAGIC	PG_MODULE_MAGIC
#endif

/*
 * 17: a WaitEventSet belongs to a resource owner (NULL: to the process);
 * before, to a memory context.  Ours lives as long as the process.
 */
#if PG_VERSION_NUM >= 170000
#define llmgw_create_wait_event_set(n)	CreateWaitEventSet(NULL, (n))
#else
#define llmgw_create_wait_event_set(n)	CreateWaitEventSet(TopMemoryContext, (n))
#endif

/* 18: a keyword before a declaration, no attribute behind it */
#if PG_VERSION_NUM >= 180000
#define LLMGW_NORETURN		pg_noreturn
#else
#define LLMGW_NORETURN		__attribute__((noreturn))
#endif

/* 18: a scan of an index may be measured */
#if PG_VERSION_NUM >= 180000
#define llmgw_index_beginscan(rel, index, snapshot, nkeys, norderbys) \
	index_beginscan((rel), (index), (snapshot), NULL, (nkeys), (norderbys))
#else
#define llmgw_index_beginscan(rel, index, snapshot, nkeys, norderbys) \
	index_beginscan((rel), (index), (snapshot), (nkeys), (norderbys))
#endif

/* 17: extensions may name their wait events */
#if PG_VERSION_NUM >= 170000
#define llmgw_wait_event(name)	WaitEventExtensionNew(name)
#else
#define llmgw_wait_event(name)	PG_WAIT_EXTENSION
#endif

/* 17: a process's place in ProcGlobal has a name */
#if PG_VERSION_NUM >= 170000
#define llmgw_my_procno()	((int) MyProcNumber)
#define llmgw_proc(n)		GetPGProcByNumber(n)
#define llmgw_my_lxid()		(MyProc->vxid.lxid)
#else
#define llmgw_my_procno()	(MyProc->pgprocno)
#define llmgw_proc(n)		(&ProcGlobal->allProcs[(n)])
#define llmgw_my_lxid()		(MyProc->lxid)
#endif

/*
 * 17: LockHeldByMe() can be asked for stronger modes, too.  Here: whether this
 * process holds the lock in that mode or one with a higher number.
 */
#if PG_VERSION_NUM >= 170000
#define llmgw_lock_held_by_me(tag, mode)	LockHeldByMe((tag), (mode), true)
#else
#define llmgw_lock_held_by_me(tag, mode)	llmgw_lock_held_by_me_15((tag), (mode))
#define llmgw_lock_held_by_me_15(tag, mode) \
	(LockHeldByMe((tag), AccessExclusiveLock) || \
	 ((mode) <= ExclusiveLock && LockHeldByMe((tag), ExclusiveLock)) || \
	 ((mode) <= ShareRowExclusiveLock && LockHeldByMe((tag), ShareRowExclusiveLock)) || \
	 ((mode) <= ShareLock && LockHeldByMe((tag), ShareLock)))
#endif

/* 16: one function for owners of all kinds */
#if PG_VERSION_NUM >= 160000
#define llmgw_owns_database(database, role) \
	object_ownercheck(DatabaseRelationId, (database), (role))
#else
#define llmgw_owns_database(database, role) \
	pg_database_ownercheck((database), (role))
#endif

/* 16: one more argument, which lists more tables to look into; without a plan there are none */
#if PG_VERSION_NUM >= 160000
#define llmgw_eval_plan_qual_init(epq, estate) \
	EvalPlanQualInit((epq), (estate), NULL, NIL, -1, NIL)
#else
#define llmgw_eval_plan_qual_init(epq, estate) \
	EvalPlanQualInit((epq), (estate), NULL, NIL, -1)
#endif

/* 16: one more argument, for errors that are not reported here */
#if PG_VERSION_NUM >= 160000
#define llmgw_decode_date_time(field, ftype, nf, dtype, tm, fsec, tz) \
	DecodeDateTime((field), (ftype), (nf), (dtype), (tm), (fsec), (tz), &(DateTimeErrorExtra) {0})
#else
#define llmgw_decode_date_time(field, ftype, nf, dtype, tm, fsec, tz) \
	DecodeDateTime((field), (ftype), (nf), (dtype), (tm), (fsec), (tz))
#endif

/* 17: the shared variables about transactions have another name */
#if PG_VERSION_NUM >= 170000
#define llmgw_oldest_clog_xid()	(TransamVariables->oldestClogXid)
#else
#define llmgw_oldest_clog_xid()	(ShmemVariableCache->oldestClogXid)
#endif

#ifdef LIBCURL_VERSION_NUM

/* 7.85: protocols as a string; the bit mask is deprecated since */
#if LIBCURL_VERSION_NUM >= 0x075500
#define LLMGW_CURL_PROTOCOLS			CURLOPT_PROTOCOLS_STR
#define LLMGW_CURL_PROTOCOLS_VALUE		"http,https"
#else
#define LLMGW_CURL_PROTOCOLS			CURLOPT_PROTOCOLS
#define LLMGW_CURL_PROTOCOLS_VALUE		((long) (CURLPROTO_HTTP | CURLPROTO_HTTPS))
#endif

/*
 * 7.87: a cancelled call need not wait for the resolver's thread.  Older
 * versions cannot keep the promise that a cancel ends a call at once.
 */
#if LIBCURL_VERSION_NUM < 0x075700
#error "llm_gateway needs libcurl 7.87 or newer"
#endif

#endif							/* LIBCURL_VERSION_NUM */

#endif							/* LLMGW_COMPAT_H */
