/*-------------------------------------------------------------------------
 *
 * shmem.c
 *	  The extension's shared memory, and the source of request ids.
 *
 * Locking: next_id and limit are atomics that anybody reads and next_id that
 * anybody adds to.  Setting either, and writing the file, needs
 * LLMGW_LOCK_REQUEST_ID, exclusively.  The lock is held while a file is written and synced, which
 * happens once per start and then once per ID_BLOCK ids.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "shmem.h"

#define TRANCHE		"llm_gateway"

/* below the data directory; copied by pg_basebackup */
#define STATE_DIR	"llm_gateway"
#define ID_FILE		STATE_DIR "/request_id"

/*
 * The file is written once for so many ids.  Ids are microseconds, so this is
 * also how far a start after a crash may run ahead of the clock.
 */
#define ID_BLOCK	INT64CONST(10000000)

/* 2020-01-01 00:00:00 UTC as a TimestampTz */
#define ID_EPOCH	((TimestampTz) 7305 * USECS_PER_DAY)

typedef struct LlmIdShared
{
	pg_atomic_uint64 next_id;	/* the next id to hand out */
	pg_atomic_uint64 limit;		/* ids below it are covered by the file; 0:
								 * not set up since the server started */
} LlmIdShared;

static LlmIdShared *shared = NULL;
static LWLockPadded *locks = NULL;

#define MAX_PARTS	16

static const LlmSharedPart *parts[MAX_PARTS];
static int	nparts = 0;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static Size
id_size(void)
{
	return sizeof(LlmIdShared);
}

static void
id_init(void *part)
{
	LlmIdShared *ids = part;

	pg_atomic_init_u64(&ids->next_id, 0);
	pg_atomic_init_u64(&ids->limit, 0);
}

static const LlmSharedPart id_part =
{
	"llm_gateway request ids", id_size, id_init, (void **) &shared
};

static void
shmem_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	for (int i = 0; i < nparts; i++)
		RequestAddinShmemSpace(MAXALIGN(parts[i]->size()));
	RequestNamedLWLockTranche(TRANCHE, LLMGW_NLOCKS);
}

static void
shmem_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	/* a restart within the postmaster runs this again */
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	locks = GetNamedLWLockTranche(TRANCHE);
	for (int i = 0; i < nparts; i++)
	{
		bool		found;

		*parts[i]->address = ShmemInitStruct(parts[i]->name, parts[i]->size(), &found);
		if (!found)
			parts[i]->init(*parts[i]->address);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
llmgw_shmem_register(const LlmSharedPart *part)
{
	Assert(nparts < MAX_PARTS);
	parts[nparts++] = part;
}

void
llmgw_shmem_init(void)
{
	llmgw_shmem_register(&id_part);
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
}

LWLock *
llmgw_shmem_lock(LlmSharedLock which)
{
	if (locks == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("llm_gateway must be loaded via shared_preload_libraries")));
	return &locks[which].lock;
}

/* The limit that the file holds; 0 when there is none. */
static uint64
read_limit(void)
{
	FILE	   *file = AllocateFile(ID_FILE, "r");
	unsigned long long limit = 0;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(ERROR,
					(errcode_for_file_access(),
					 errmsg("could not open file \"%s\": %m", ID_FILE)));
		return 0;
	}
	if (fscanf(file, "%llu", &limit) != 1 || limit > PG_INT64_MAX / 2)
	{
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is damaged", ID_FILE),
				 errdetail("Request ids continue from the clock.")));
		limit = 0;
	}
	FreeFile(file);
	return limit;
}

static void
write_limit(uint64 limit)
{
	char text[	32];
	int			len = snprintf(text, sizeof(text), UINT64_FORMAT "\n", limit);
	int			fd;

	if (MakePGDirectory(STATE_DIR) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", STATE_DIR)));
	fd = OpenTransientFile(ID_FILE ".tmp", O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	errno = fd < 0 ? errno : ENOSPC;	/* a short write says nothing */
	if (fd < 0 || write(fd, text, len) != len || pg_fsync(fd) != 0 ||
		CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", ID_FILE ".tmp")));
	(void) durable_rename(ID_FILE ".tmp", ID_FILE, ERROR);
}

/* Makes room for more ids; sets up the source when this is the first. */
static void
extend_limit(void)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_REQUEST_ID);
	uint64		limit;
	uint64		next;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	limit = pg_atomic_read_u64(&shared->limit);
	next = pg_atomic_read_u64(&shared->next_id);
	if (limit == 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		next = read_limit();
		next = Max(next, (uint64) Max(now - ID_EPOCH, 1));
		write_limit(next + ID_BLOCK);
		pg_atomic_write_u64(&shared->next_id, next);

		/* who sees the limit also sees the first id */
		pg_write_barrier();
		pg_atomic_write_u64(&shared->limit, next + ID_BLOCK);
	}
	else if (next >= limit)
	{
		write_limit(next + ID_BLOCK);
		pg_atomic_write_u64(&shared->limit, next + ID_BLOCK);
	}
	LWLockRelease(lock);
}

int64
llmgw_next_request_id(void)
{
	if (unlikely(shared == NULL))
		(void) llmgw_shmem_lock(LLMGW_LOCK_REQUEST_ID); /* raises */

	for (;;)
	{
		/* read first: an id taken before the set-up must not pass */
		uint64		limit = pg_atomic_read_u64(&shared->limit);

		if (limit != 0)
		{
			uint64		id = pg_atomic_fetch_add_u64(&shared->next_id, 1);

			if (id < limit)
				return (int64) id;
		}
		extend_limit();
	}
}
