/*-------------------------------------------------------------------------
 *
 * spool_write.c
 *	  Appends records to this database's spool; see spool.h.
 *
 * A call is promised room for all it will write before it sends anything, so
 * that its last record, which may be written while its transaction is being
 * aborted or its process exits, needs neither memory nor a decision: it takes
 * a place and writes there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "guc.h"
#include "shmem.h"
#include "spool_private.h"

/* A process has one database, so one spool. */
static LlmSpoolShared *mine = NULL;
static LlmSpoolOwner *owner = NULL;
static uint64 incarnation = 0;

/* the segment written last; calls have their records in few of them */
static int	fd = -1;
static uint32 fd_segment;

/* most records fit, and are written with one system call */
#define SMALL_RECORD	8192

static LlmGeneration
current_generation(const LlmSpoolShared *spool)
{
	LlmGeneration gen;

	gen.id = pg_atomic_read_u64((pg_atomic_uint64 *) &spool->id);
	pg_read_barrier();
	gen.salt = spool->salt;
	return gen;
}

/* After the last record, which is written while transactions are aborted. */
static void
on_exit_owner(int code, Datum arg)
{
	pg_atomic_write_u64(&owner->writing_from, LLMGW_NOT_WRITING);
	pg_memory_barrier();
	pg_atomic_write_u64(&owner->incarnation, 0);
}

/* Begins the generation of this start of the server. */
static void
begin_generation(LlmSpoolShared *spool)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

	LWLockAcquire(lock, LW_EXCLUSIVE);
	if (pg_atomic_read_u64(&spool->id) == 0)
	{
		LlmGeneration gen;
		LlmGeneration *old;
		uint64		old_bytes;
		int			nold;

		old = llmgw_spool_generations(spool->database, &nold, &old_bytes);
		pfree(old);
		gen.id = (uint64) llmgw_next_request_id();
		if (!pg_strong_random(&gen.salt, sizeof(gen.salt)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		llmgw_generation_create(spool->database, gen);
		if (!llmgw_segment_create(spool->database, gen, 0))
		{
			int			save_errno = errno;

			llmgw_generation_remove(spool->database, gen);
			errno = save_errno;
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not create the spool of the ledger: %m"),
					 errhint("It is in directory \"%s\" below the data directory.", LLMGW_SPOOL_DIR)));
		}
		pg_atomic_write_u64(&spool->old_bytes, old_bytes);
		pg_atomic_write_u64(&spool->allocated, LLMGW_SEGMENT_SIZE);
		spool->salt = gen.salt;
		pg_write_barrier();
		pg_atomic_write_u64(&spool->id, gen.id);
	}
	LWLockRelease(lock);
}

LlmSpoolShared *
llmgw_spool_open(void)
{
	LlmSpoolShared *spool;

	if (likely(owner != NULL))
		return mine;

	spool = llmgw_spool_slot(MyDatabaseId, true);
	if (spool == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases make calls"),
				 errdetail("llm_gateway.max_databases is %d.", llmgw_max_databases),
				 errhint("Raise it in postgresql.conf and restart the server.")));
	if (pg_atomic_read_u64(&spool->id) == 0)
		begin_generation(spool);

	mine = spool;
	ReserveExternalFD();
	incarnation = pg_atomic_fetch_add_u64(&llmgw_spool_root->next_incarnation, 1);
	owner = &llmgw_spool_root->owners[llmgw_my_procno()];
	pg_atomic_write_u32(&owner->slot, spool - llmgw_root_slots(llmgw_spool_root));
	pg_atomic_write_u64(&owner->writing_from, LLMGW_NOT_WRITING);
	pg_write_barrier();
	pg_atomic_write_u64(&owner->incarnation, incarnation);
	on_shmem_exit(on_exit_owner, 0);
	return mine;
}

LlmOwnerId
llmgw_spool_owner(void)
{
	LlmOwnerId	id;

	id.procno = llmgw_my_procno();
	id.incarnation = incarnation;
	return id;
}

void
llmgw_spool_renew_owner(void)
{
	incarnation = pg_atomic_fetch_add_u64(&llmgw_spool_root->next_incarnation, 1);
	pg_memory_barrier();
	pg_atomic_write_u64(&owner->incarnation, incarnation);
}

bool
llmgw_spool_allocate(LlmSpoolShared *spool, uint64 offset)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);
	LlmGeneration gen = current_generation(spool);
	uint64		allocated;
	int			save_errno = 0;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	allocated = pg_atomic_read_u64(&spool->allocated);
	while (allocated < offset)
	{
		if (!llmgw_segment_create(spool->database, gen,
								  (uint32) (allocated / LLMGW_SEGMENT_SIZE)))
		{
			save_errno = errno;
			break;
		}
		allocated += LLMGW_SEGMENT_SIZE;
		pg_atomic_write_u64(&spool->allocated, allocated);
	}
	LWLockRelease(lock);
	errno = save_errno;
	return allocated >= offset;
}

/* What the spool would hold with so many bytes more, which are promised. */
static uint64
promise(uint64 bytes, uint64 *promised)
{
	/* read first: what others book meanwhile must not make less than nothing */
	uint64		booked = pg_atomic_read_u64(&mine->booked);
	uint64		old_bytes = pg_atomic_read_u64(&mine->old_bytes);

	pg_memory_barrier();
	*promised = pg_atomic_fetch_add_u64(&mine->promised, bytes) + bytes;
	return *promised - booked + old_bytes;
}

char *
llmgw_spool_reserve(uint64 bytes)
{
	uint64		promised;
	uint64		held = promise(bytes, &promised);

	if (held > (uint64) llmgw_ledger_buffer * 1024)
	{
		llmgw_spool_release(bytes);
		return psprintf("the spool of the ledger is full: it holds " UINT64_FORMAT " kB of %d kB (llm_gateway.ledger_buffer)",
						(held - bytes + 1023) / 1024, llmgw_ledger_buffer);
	}
	if (promised > pg_atomic_read_u64(&mine->allocated) &&
		!llmgw_spool_allocate(mine, promised))
	{
		char	   *reason = psprintf("the spool of the ledger cannot grow: %s", strerror(errno));

		llmgw_spool_release(bytes);
		return reason;
	}
	return NULL;
}

bool
llmgw_spool_reserve_spare(uint64 bytes)
{
	uint64		promised;

	if (promise(bytes, &promised) <= (uint64) llmgw_ledger_buffer * 1024 / 2 &&
		(promised <= pg_atomic_read_u64(&mine->allocated) ||
		 llmgw_spool_allocate(mine, promised)))
		return true;
	llmgw_spool_release(bytes);
	return false;
}

void
llmgw_spool_release(uint64 bytes)
{
	pg_atomic_fetch_sub_u64(&mine->promised, bytes);
}

/* Writes bytes of the generation.  False: errno. */
static bool
write_bytes(const char *from, Size len, uint64 offset)
{
	while (len > 0)
	{
		uint32		segment = (uint32) (offset / LLMGW_SEGMENT_SIZE);
		uint64		at = offset % LLMGW_SEGMENT_SIZE;
		Size		n = Min(len, LLMGW_SEGMENT_SIZE - at);
		ssize_t		done;

		if (fd >= 0 && fd_segment != segment)
		{
			close(fd);
			fd = -1;
		}
		if (fd < 0)
		{
			fd = llmgw_segment_open(mine->database, current_generation(mine), segment, O_RDWR);
			fd_segment = segment;
			if (fd < 0)
				return false;
		}
		done = pg_pwrite(fd, from, n, at);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
		{
			errno = done < 0 ? errno : ENOSPC;
			return false;
		}
		from += done;
		offset += done;
		len -= done;
	}
	return true;
}

bool
llmgw_spool_append(LlmRecordType type, int64 request_id, const void *payload,
				   uint32 len, uint64 *end)
{
	static union
	{
		LlmSpoolHeader header;
		char		bytes[SMALL_RECORD];
	}			record;
	Size		size = LLMGW_RECORD_SIZE(len);
	LlmSpoolHeader *header = &record.header;
	pg_crc32c	crc;
	bool		ok;

	/* before taking a place: the reader must not take it for abandoned */
	pg_atomic_write_u64(&owner->writing_from, pg_atomic_read_u64(&mine->written));
	pg_memory_barrier();

	memset(header, 0, sizeof(*header));
	header->magic = LLMGW_SPOOL_MAGIC;
	header->length = len;
	header->type = type;
	header->request_id = request_id;
	header->offset = pg_atomic_fetch_add_u64(&mine->written, size);
	*end = header->offset + size;

	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &mine->salt, sizeof(mine->salt));
	COMP_CRC32C(crc, &header->length, sizeof(*header) - offsetof(LlmSpoolHeader, length));
	COMP_CRC32C(crc, payload, len);
	FIN_CRC32C(crc);
	header->crc = crc;

	/* the padding is zeros already, as segments are made of them */
	if (sizeof(*header) + len <= SMALL_RECORD)
	{
		memcpy(record.bytes + sizeof(*header), payload, len);
		ok = write_bytes(record.bytes, sizeof(*header) + len, header->offset);
	}
	else
		ok = write_bytes(record.bytes, sizeof(*header), header->offset) &&
			write_bytes(payload, len, header->offset + sizeof(*header));

	pg_memory_barrier();
	pg_atomic_write_u64(&owner->writing_from, LLMGW_NOT_WRITING);
	return ok;
}

bool
llmgw_spool_wait(uint64 offset, int timeout_ms, bool *timed_out)
{
	static uint32 wait_event = 0;
	TimestampTz start = 0;
	bool		booked = false;

	if (wait_event == 0)
		wait_event = llmgw_wait_event("LlmGatewayLedger");

	*timed_out = false;
	ConditionVariablePrepareToSleep(&mine->changed);
	for (;;)
	{
		TimestampTz now;
		long		left = timeout_ms;

		if (pg_atomic_read_u64(&mine->booked) >= offset)
		{
			booked = true;
			break;
		}
		if (pg_atomic_read_u32(&mine->blocked) != 0 ||
			pg_atomic_read_u32(&mine->no_worker) != 0 ||
			mine->inhibited_by != 0)
			break;
		llmgw_spool_want_worker(mine);
		llmgw_spool_wake_worker(mine, true);

		now = GetCurrentTimestamp();
		if (start == 0)
			start = now;
		else
			left -= TimestampDifferenceMilliseconds(start, now);
		if (left <= 0 ||
			ConditionVariableTimedSleep(&mine->changed, left, wait_event))
		{
			*timed_out = pg_atomic_read_u64(&mine->booked) < offset;
			booked = !*timed_out;
			break;
		}
	}
	ConditionVariableCancelSleep();
	return booked;
}
