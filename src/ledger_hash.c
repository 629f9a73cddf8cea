/*-------------------------------------------------------------------------
 *
 * ledger_hash.c
 *	  The keyed hash of a prompt.
 *
 * Equal prompts have equal hashes, so that reports can group by them without
 * the ledger holding any text.  A plain hash would let who reads it try likely
 * prompts; with a key that only the server's files hold, it does not.  The key
 * comes first and half of the digest is dropped, so that a hash cannot be
 * continued either (FIPS 180-4 leaves the full state in the digest).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/cryptohash.h"
#include "common/file_perm.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lwlock.h"

#include "ledger.h"
#include "shmem.h"

#define KEY_FILE		"llm_gateway/hash_key"
#define KEY_LEN			32

/* False when there is none yet. */
static bool
read_key(uint8 *key)
{
	int			fd = OpenTransientFile(KEY_FILE, O_RDONLY | PG_BINARY);
	ssize_t		n;

	if (fd < 0)
	{
		if (errno == ENOENT)
			return false;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\": %m", KEY_FILE)));
	}
	n = read(fd, key, KEY_LEN);
	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", KEY_FILE)));
	CloseTransientFile(fd);
	if (n != KEY_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("file \"%s\" is damaged", KEY_FILE),
				 errdetail("It has %zd bytes instead of %d.", n, KEY_LEN),
				 errhint("Restore it from a backup, or remove it: a new key makes other hashes of the same prompts.")));
	return true;
}

static void
make_key(uint8 *key)
{
	int			fd;

	if (!pg_strong_random(key, KEY_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random values")));
	if (MakePGDirectory("llm_gateway") < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", "llm_gateway")));
	fd = OpenTransientFile(KEY_FILE ".tmp", O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	errno = fd < 0 ? errno : ENOSPC;	/* a short write says nothing */
	if (fd < 0 || write(fd, key, KEY_LEN) != KEY_LEN || pg_fsync(fd) != 0 ||
		CloseTransientFile(fd) != 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", KEY_FILE ".tmp")));
	(void) durable_rename(KEY_FILE ".tmp", KEY_FILE, ERROR);
}

static const uint8 *
hash_key(void)
{
	static uint8 key[KEY_LEN];
	static bool known = false;

	if (!known)
	{
		if (!read_key(key))
		{
			LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_SPOOL);

			LWLockAcquire(lock, LW_EXCLUSIVE);
			if (!read_key(key))
				make_key(key);
			LWLockRelease(lock);
		}
		known = true;
	}
	return key;
}

void
llmgw_ledger_hash(const char *prompt, Size len, char *hash)
{
	const uint8 *key = hash_key();
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);
	uint8		digest[PG_SHA256_DIGEST_LENGTH];

	if (ctx == NULL ||
		pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, key, KEY_LEN) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) prompt, len) < 0 ||
		pg_cryptohash_final(ctx, digest, sizeof(digest)) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not compute the hash of a prompt: %s",
						ctx ? pg_cryptohash_error(ctx) : "out of memory")));
	pg_cryptohash_free(ctx);
	memcpy(hash, digest, LLMGW_HASH_LEN);
}
