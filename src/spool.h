/*-------------------------------------------------------------------------
 *
 * spool.h
 *	  The queue in front of the ledger: an append-only file per database.
 *
 * What a call does to the outside world cannot be rolled back, so its record
 * must not be part of the caller's transaction, and must outlive the backend
 * and the server.  Callers append records here; the database's worker reads
 * them in order and books them (ledger_book.h).
 *
 * FORMAT
 *
 * Below the data directory,
 *
 *		llm_gateway/spool/DATABASE/ID-SALT/SEGMENT
 *
 * DATABASE is the database's OID in decimal.  ID (16 hex digits) names a
 * generation: each start of the server begins a new one in each database that
 * calls; it is drawn from the request ids, so that a later one is higher.  SALT
 * (16 hex digits) is random.  SEGMENT (8 hex digits) counts from 0; segments
 * have LLMGW_SEGMENT_SIZE bytes, preallocated with zeros.  Byte n of the
 * generation is byte n % LLMGW_SEGMENT_SIZE of segment n / LLMGW_SEGMENT_SIZE.
 * Segments that nobody needs any more are removed, the oldest first.  A worker
 * that leaves with all records booked writes their end, in decimal, into the
 * file "booked" beside the segments.
 *
 * A record begins at a multiple of 8 with an LlmSpoolHeader, is followed by its
 * payload and padded with zeros to a multiple of 8; it may continue in the
 * next segment.  All numbers are in the machine's byte order.  The checksum is
 * CRC-32C over the generation's salt, then the record from its length on,
 * without the padding.
 *
 * A writer takes its place by adding to `written` and then writes there, so
 * records are in order but may appear out of order.  A place that holds no
 * valid record is
 *	- being written, while some process says so (LlmSpoolOwner.writing_from);
 *	- otherwise abandoned (the write failed, or the server died meanwhile) or
 *	  torn (the machine died): the reader goes on at the next multiple of 8
 *	  where a valid record begins.
 * The salt and the offset are part of what is checked, so neither a stale
 * block nor text that a user sends along can pass for a record.
 *
 * LOCKING
 *
 * The lock is LLMGW_LOCK_SPOOL.  See each field below.  Nothing waits for the
 * lock on a call's way, but for the first call of a process and the call that
 * makes a new segment.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SPOOL_H
#define LLMGW_SPOOL_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/s_lock.h"
#include "utils/timestamp.h"

#define LLMGW_SPOOL_DIR			"llm_gateway/spool"
#define LLMGW_SEGMENT_SIZE		UINT64CONST(1048576)

#define LLMGW_SPOOL_MAGIC		0x4C475331	/* "LGS1": version 1 */

typedef struct LlmSpoolHeader
{
	uint32		magic;
	uint32		crc;
	uint32		length;			/* of the payload, in bytes */
	uint32		type;			/* LlmRecordType */
	int64		request_id;
	uint64		offset;			/* of this record in the generation */
} LlmSpoolHeader;

/* What a record says is ledger_record.h's business. */
typedef enum LlmRecordType
{
	LLMGW_RECORD_NOTE = 1,		/* an attempt is about to be sent */
	LLMGW_RECORD_END,			/* the request has ended */
	LLMGW_RECORD_PROMPT,		/* its text, for log_content */
	LLMGW_RECORD_RESPONSE,
	LLMGW_RECORD_KEEP			/* its answer, for llm_cache */
} LlmRecordType;

/* bytes that a record with a payload of n bytes takes */
#define LLMGW_RECORD_SIZE(n)	MAXALIGN(sizeof(LlmSpoolHeader) + (Size) (n))

/* how a database's worker stands */
typedef enum LlmWorkerState
{
	LLMGW_WORKER_NONE,			/* there is none */
	LLMGW_WORKER_WANTED,		/* the launcher has been asked for one */
	LLMGW_WORKER_STARTING,		/* the launcher has registered one */
	LLMGW_WORKER_RUNNING
} LlmWorkerState;

/* how a running worker waits */
typedef enum LlmWorkerSleep
{
	LLMGW_WORKER_AWAKE,
	LLMGW_WORKER_NAPS,			/* 100 ms at most: only who waits wakes it */
	LLMGW_WORKER_SLEEPS			/* until somebody writes */
} LlmWorkerSleep;

/* A database's spool and worker. */
typedef struct LlmSpoolShared
{
	/*
	 * InvalidOid: a free slot.  Changed under the lock, exclusive; the
	 * database's own processes may read it, and keep a pointer to the slot,
	 * without: a slot is freed only with its database.
	 */
	Oid			database;

	/*
	 * The generation; id 0: none yet.  Set once under the lock, exclusive;
	 * the salt before the id.
	 */
	pg_atomic_uint64 id;
	uint64		salt;

	/* bytes that may be written: written ones, and promised to calls */
	pg_atomic_uint64 promised;
	/* where the next record goes; never above promised */
	pg_atomic_uint64 written;
	/* end of the last segment that exists; raised under the lock, exclusive */
	pg_atomic_uint64 allocated;
	/* all records before it are in the ledger; raised by the worker */
	pg_atomic_uint64 booked;
	/* first byte that the worker may need again; raised by the worker */
	pg_atomic_uint64 needed;
	/* bytes of segments of older generations; set by launcher and worker */
	pg_atomic_uint64 old_bytes;
	/* 1: older generations hold nothing that is not in the ledger; stays */
	pg_atomic_uint32 drained;

	/*
	 * LlmWorkerState.  NONE -> WANTED by anybody (compare and exchange), all
	 * other changes under the lock, exclusive.
	 */
	pg_atomic_uint32 worker_state;

	/*
	 * Of the worker, valid while it runs; under the lock.  worker_started is
	 * set with STARTING, too, and is 0 once it has left on purpose
	 * (worker.h).
	 */
	int			worker_pid;
	int			worker_procno;
	TimestampTz worker_started;

	/*
	 * Process that needs the database without a worker; 0: nobody.  Under the
	 * lock; the worker and waiters may read it without.
	 */
	int			inhibited_by;

	/* LlmWorkerSleep, set by the worker; who wakes it sets it back */
	pg_atomic_uint32 worker_sleeps;
	/* 1: the worker cannot write the ledger for now; callers do not wait */
	pg_atomic_uint32 blocked;

	/*
	 * 1: the launcher found no free worker slot, or is not there itself;
	 * callers do not wait
	 */
	pg_atomic_uint32 no_worker;

	/* for llm_worker_status; written by the worker */
	pg_atomic_uint64 requests_booked;
	pg_atomic_uint64 requests_open;
	pg_atomic_uint64 records_discarded; /* of dropped extensions, or damaged */
	slock_t		mutex;			/* protects what follows */
	TimestampTz last_booked;
	TimestampTz last_error_at;	/* 0: none since it was set up */
	char		last_error[256];

	/*
	 * broadcast when booked, drained, blocked, no_worker or worker_state
	 * changes
	 */
	ConditionVariable changed;
} LlmSpoolShared;

/*
 * A process that writes records, by its place in ProcGlobal.  Atomics that
 * only the process itself changes.
 */
typedef struct LlmSpoolOwner
{
	/*
	 * Unique name of the process as an owner of requests; 0: gone, or never
	 * was one.  Cleared when it exits, after the last of its records.
	 */
	pg_atomic_uint64 incarnation;
	/* its database's slot; written before incarnation */
	pg_atomic_uint32 slot;

	/*
	 * While it writes a record, an offset at or before it; else
	 * LLMGW_NOT_WRITING.
	 */
	pg_atomic_uint64 writing_from;
} LlmSpoolOwner;

#define LLMGW_NOT_WRITING		PG_UINT64_MAX

/* who owns a request, in its notes */
typedef struct LlmOwnerId
{
	int32		procno;
	uint64		incarnation;
} LlmOwnerId;

/* spool.c: set-up */

extern void llmgw_spool_init(void);

/*
 * This database's slot, made on first use; NULL when all are taken
 * (llm_gateway.max_databases).  For the launcher also another database's.
 */
extern LlmSpoolShared *llmgw_spool_slot(Oid database, bool create);

/* The slots, for those who look at all of them; under the lock, shared. */
extern LlmSpoolShared *llmgw_spool_slots(int *n);

/*
 * The launcher makes itself known, with its place in ProcGlobal; 0 as pid: it
 * goes.  Whether there is one; wakes it.
 */
extern void llmgw_spool_set_launcher(int pid, int procno);
extern bool llmgw_spool_get_launcher(int *pid, int *procno);
extern void llmgw_spool_wake_launcher(void);

/* Frees a dropped database's slot and removes its files. */
extern void llmgw_spool_drop(Oid database);

/* spool_write.c: for processes that make calls */

/*
 * Makes this process ready to write: slot, generation, owner.  Cheap when it
 * is.  Raises 53400 when all slots are taken, and file errors.
 */
extern LlmSpoolShared *llmgw_spool_open(void);

/*
 * Promises room for so many bytes of records (LLMGW_RECORD_SIZE each).  NULL, or
 * why there is none, palloc'd: the spool or the disk is full (53100).  Does not
 * raise.
 */
extern char *llmgw_spool_reserve(uint64 bytes);

/*
 * The same for what can be done without: only while the spool is not half full, so that
 * it takes no room from calls when the ledger cannot be written.
 */
extern bool llmgw_spool_reserve_spare(uint64 bytes);

/* Gives back what is not needed.  Never fails; may be called while aborting. */
extern void llmgw_spool_release(uint64 bytes);

/*
 * Appends a record within what was promised, and reports its end.  Takes
 * LLMGW_RECORD_SIZE(len) from the promise.  Neither raises nor allocates: may be
 * called while aborting.  False when the system refused the write: errno.
 */
extern bool llmgw_spool_append(LlmRecordType type, int64 request_id,
							   const void *payload, uint32 len, uint64 *end);

/* This process as an owner. */
extern LlmOwnerId llmgw_spool_owner(void);

/*
 * A record of this process could not be written.  Its requests so far are left
 * to the worker, as if it had died; call when it has none under way.
 */
extern void llmgw_spool_renew_owner(void);

/* Makes sure that a worker is there or on its way. */
extern void llmgw_spool_want_worker(LlmSpoolShared *spool);

/* Says that older generations hold nothing any more; wakes who waits for it. */
extern void llmgw_spool_set_drained(LlmSpoolShared *spool);

/* Wakes the worker if it sleeps or, for somebody who waits, naps. */
extern void llmgw_spool_wake_worker(LlmSpoolShared *spool, bool waiting);

/*
 * Waits until all records before the offset are booked.  False when that is
 * not to be expected soon: no worker, one that is blocked or has to leave, or
 * the time is over (*timed_out).  Interruptible.
 */
extern bool llmgw_spool_wait(uint64 offset, int timeout_ms, bool *timed_out);

/* spool_drain.c */

/*
 * Whether all that former starts of the server left in this database's spool is
 * in the ledger.  If not, asks for a worker and waits for it, for at most wait_ms;
 * 0: does not wait.  Interruptible.  Needs neither slot nor generation, and makes
 * none unless there is something to be booked.  Cheap once true, which it stays.
 * Raises file errors.
 */
extern bool llmgw_spool_drained(int wait_ms);

/* spool_file.c: generations and segments; paths and descriptors */

typedef struct LlmGeneration
{
	uint64		id;
	uint64		salt;
} LlmGeneration;

/* All generations of a database, ascending, palloc'd; *bytes in all of them. */
extern LlmGeneration *llmgw_spool_generations(Oid database, int *n, uint64 *bytes);

/* The databases that have a spool, palloc'd. */
extern Oid *llmgw_spool_databases(int *n);

extern void llmgw_generation_create(Oid database, LlmGeneration gen);
extern void llmgw_generation_remove(Oid database, LlmGeneration gen);
extern void llmgw_spool_remove_files(Oid database);

/* Makes segments until `allocated` is at or above the offset.  False: errno. */
extern bool llmgw_spool_allocate(LlmSpoolShared *spool, uint64 offset);

/* Makes and preallocates a segment.  False: errno. */
extern bool llmgw_segment_create(Oid database, LlmGeneration gen, uint32 segment);

/* A descriptor that the caller closes with close(); -1: errno.  Does not raise. */
extern int	llmgw_segment_open(Oid database, LlmGeneration gen, uint32 segment, int flags);

/* Removes the segments that end at or before the offset. */
extern void llmgw_segments_remove(Oid database, LlmGeneration gen, uint64 offset);

/* Bytes of the generation's segments: from the first that exists to the last. */
extern void llmgw_segments_range(Oid database, LlmGeneration gen, uint64 *first, uint64 *end);

/*
 * Leaves word that all records before the offset are booked, and that no
 * request is open: whoever finds none behind it need not look any further.
 * What goes wrong is only logged.
 */
extern void llmgw_generation_mark(Oid database, LlmGeneration gen, uint64 offset);

/* The offset that was left; false when there is none. */
extern bool llmgw_generation_marked(Oid database, LlmGeneration gen, uint64 *offset);

/* Makes [from, to) durable.  False: errno. */
extern bool llmgw_segments_sync(Oid database, LlmGeneration gen, uint64 from, uint64 to);

/* spool_read.c: for the worker */

typedef struct LlmSpoolRecord
{
	LlmRecordType type;
	int64		request_id;
	uint64		offset;
	uint64		end;			/* where the next one begins */
	uint32		len;
	const char *payload;		/* until the next read */
} LlmSpoolRecord;

/* Where records are read from: a file, or in tests memory. */
typedef struct LlmSpoolReader LlmSpoolReader;

/*
 * A reader of a generation from the given offset on.  live: the running
 * server's, the slot tells how far it goes; NULL: an old one, to the end of its
 * last segment.
 */
extern LlmSpoolReader *llmgw_spool_reader_open(MemoryContext context, Oid database,
											   LlmGeneration gen, uint64 offset,
											   LlmSpoolShared *live);
extern void llmgw_spool_reader_close(LlmSpoolReader *reader);

typedef enum LlmSpoolRead
{
	LLMGW_READ_RECORD,
	LLMGW_READ_END,				/* nothing more for now, or at all */
	LLMGW_READ_PENDING			/* the next place is being written */
} LlmSpoolRead;

/*
 * The next record.  Skips what is torn or abandoned, and counts it.  Raises
 * file errors other than a missing segment, which is skipped, too.
 */
extern LlmSpoolRead llmgw_spool_read(LlmSpoolReader *reader, LlmSpoolRecord *record);

/* where the next read begins; bytes skipped since it was opened */
extern uint64 llmgw_spool_reader_offset(const LlmSpoolReader *reader);
extern uint64 llmgw_spool_reader_skipped(const LlmSpoolReader *reader);

/* Whether an old generation was left with all its records booked. */
extern bool llmgw_generation_finished(Oid database, LlmGeneration gen);

/*
 * The lowest offset at which some process may be writing; LLMGW_NOT_WRITING:
 * none is.  To be asked before reading a place, see spool_read.c.
 */
extern uint64 llmgw_spool_oldest_write(LlmSpoolShared *spool);

/* Whether the owner lives.  After false, all its records are in the spool. */
extern bool llmgw_spool_owner_lives(LlmOwnerId owner);

/*
 * Whether bytes [0, len) are a valid record at that offset.  Reads nothing
 * beyond len.  For the reader, and for the fuzzer.
 */
extern bool llmgw_spool_record_valid(const char *data, Size len, uint64 offset, uint64 salt);

#endif							/* LLMGW_SPOOL_H */
