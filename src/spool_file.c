/*-------------------------------------------------------------------------
 *
 * spool_file.c
 *	  The spool's directories and segments on disk; see spool.h.
 *
 * Paths are relative to the data directory, which is the working directory of
 * every process.  Descriptors are plain ones: a call's last record is written
 * while its transaction is being aborted, when fd.c's are on their way out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "spool.h"

#define SPOOL_PATH_LEN	96		/* of the longest path below */

static void
database_path(char *path, Oid database)
{
	snprintf(path, SPOOL_PATH_LEN, LLMGW_SPOOL_DIR "/%u", database);
}

static void
generation_path(char *path, Oid database, LlmGeneration gen)
{
	snprintf(path, SPOOL_PATH_LEN, LLMGW_SPOOL_DIR "/%u/%016llX-%016llX", database,
			 (unsigned long long) gen.id, (unsigned long long) gen.salt);
}

static void
segment_path(char *path, Oid database, LlmGeneration gen, uint32 segment)
{
	snprintf(path, SPOOL_PATH_LEN, LLMGW_SPOOL_DIR "/%u/%016llX-%016llX/%08X", database,
			 (unsigned long long) gen.id, (unsigned long long) gen.salt, segment);
}

/* Whether the text is exactly n upper-case hex digits, and their value. */
static bool
read_hex(const char *text, int n, uint64 *value)
{
	*value = 0;
	for (int i = 0; i < n; i++)
	{
		const char *digits = "0123456789ABCDEF";
		const char *digit = text[i] ? strchr(digits, text[i]) : NULL;

		if (digit == NULL)
			return false;
		*value = *value * 16 + (digit - digits);
	}
	return true;
}

static int
compare_generations(const void *a, const void *b)
{
	uint64		x = ((const LlmGeneration *) a)->id;
	uint64		y = ((const LlmGeneration *) b)->id;

	return x < y ? -1 : x > y;
}

static void
make_directory(const char *path)
{
	if (MakePGDirectory(path) < 0 && errno != EEXIST)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not create directory \"%s\": %m", path)));
}

/*
 * Calls fn for each segment of a generation.  A directory that is not there
 * has none.
 */
static void
each_segment(Oid database, LlmGeneration gen,
			 void (*fn) (const char *path, uint32 segment, void *arg), void *arg)
{
	char		path[SPOOL_PATH_LEN];
	DIR		   *dir;
	struct dirent *entry;

	generation_path(path, database, gen);
	dir = AllocateDir(path);
	if (dir == NULL && errno == ENOENT)
		return;
	while ((entry = ReadDir(dir, path)) != NULL)
	{
		char		file[SPOOL_PATH_LEN];
		uint64		number;

		if (!read_hex(entry->d_name, 8, &number) || entry->d_name[8] != '\0')
			continue;
		segment_path(file, database, gen, (uint32) number);
		fn(file, (uint32) number, arg);
	}
	FreeDir(dir);
}

static void
add_segment_size(const char *path, uint32 segment, void *arg)
{
	*(uint64 *) arg += LLMGW_SEGMENT_SIZE;
}

LlmGeneration *
llmgw_spool_generations(Oid database, int *n, uint64 *bytes)
{
	char		path[SPOOL_PATH_LEN];
	LlmGeneration *gens = palloc(sizeof(LlmGeneration) * 8);
	int			size = 8;
	DIR		   *dir;
	struct dirent *entry;

	*n = 0;
	*bytes = 0;
	database_path(path, database);
	dir = AllocateDir(path);
	if (dir == NULL && errno == ENOENT)
		return gens;
	while ((entry = ReadDir(dir, path)) != NULL)
	{
		LlmGeneration gen;

		if (!read_hex(entry->d_name, 16, &gen.id) || entry->d_name[16] != '-' ||
			!read_hex(entry->d_name + 17, 16, &gen.salt) || entry->d_name[33] != '\0')
			continue;
		if (*n == size)
		{
			size *= 2;
			gens = repalloc(gens, sizeof(LlmGeneration) * size);
		}
		gens[(*n)++] = gen;
	}
	FreeDir(dir);
	qsort(gens, *n, sizeof(LlmGeneration), compare_generations);
	for (int i = 0; i < *n; i++)
		each_segment(database, gens[i], add_segment_size, bytes);
	return gens;
}

Oid *
llmgw_spool_databases(int *n)
{
	Oid		   *databases = palloc(sizeof(Oid) * 8);
	int			size = 8;
	DIR		   *dir;
	struct dirent *entry;

	*n = 0;
	dir = AllocateDir(LLMGW_SPOOL_DIR);
	if (dir == NULL && errno == ENOENT)
		return databases;
	while ((entry = ReadDir(dir, LLMGW_SPOOL_DIR)) != NULL)
	{
		char	   *end;
		unsigned long oid = strtoul(entry->d_name, &end, 10);

		if (*end != '\0' || oid == 0 || oid > PG_UINT32_MAX)
			continue;
		if (*n == size)
		{
			size *= 2;
			databases = repalloc(databases, sizeof(Oid) * size);
		}
		databases[(*n)++] = (Oid) oid;
	}
	FreeDir(dir);
	return databases;
}

/* The names are durable before the first record relies on them. */
void
llmgw_generation_create(Oid database, LlmGeneration gen)
{
	char		path[SPOOL_PATH_LEN];

	make_directory("llm_gateway");
	make_directory(LLMGW_SPOOL_DIR);
	database_path(path, database);
	make_directory(path);
	generation_path(path, database, gen);
	make_directory(path);

	fsync_fname("llm_gateway", true);
	fsync_fname(LLMGW_SPOOL_DIR, true);
	database_path(path, database);
	fsync_fname(path, true);
}

void
llmgw_generation_remove(Oid database, LlmGeneration gen)
{
	char		path[SPOOL_PATH_LEN];

	generation_path(path, database, gen);
	if (!rmtree(path, true))
		ereport(WARNING,
				(errmsg("could not remove all of directory \"%s\"", path)));
	database_path(path, database);
	fsync_fname(path, true);
}

void
llmgw_spool_remove_files(Oid database)
{
	char		path[SPOOL_PATH_LEN];
	struct stat st;

	database_path(path, database);
	if (stat(path, &st) != 0)
		return;
	if (!rmtree(path, true))
		ereport(WARNING,
				(errmsg("could not remove all of directory \"%s\"", path)));
}

bool
llmgw_segment_create(Oid database, LlmGeneration gen, uint32 segment)
{
	char		path[SPOOL_PATH_LEN];
	int			fd;
	int			rc;

	segment_path(path, database, gen, segment);
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
		return false;
	do
		rc = posix_fallocate(fd, 0, LLMGW_SEGMENT_SIZE);
	while (rc == EINTR);
	if (rc == 0 && pg_fsync(fd) != 0)
		rc = errno;
	close(fd);
	if (rc == 0)
	{
		char		dir[SPOOL_PATH_LEN];

		generation_path(dir, database, gen);
		fd = BasicOpenFile(dir, O_RDONLY | PG_BINARY);
		if (fd < 0)
			rc = errno;
		else
		{
			if (pg_fsync(fd) != 0)
				rc = errno;
			close(fd);
		}
	}
	if (rc != 0)
	{
		unlink(path);
		errno = rc;
		return false;
	}
	return true;
}

int
llmgw_segment_open(Oid database, LlmGeneration gen, uint32 segment, int flags)
{
	char		path[SPOOL_PATH_LEN];

	segment_path(path, database, gen, segment);
	return BasicOpenFile(path, flags | PG_BINARY);
}

static void
remove_segment_before(const char *path, uint32 segment, void *arg)
{
	uint64		offset = *(uint64 *) arg;

	if (((uint64) segment + 1) * LLMGW_SEGMENT_SIZE <= offset &&
		unlink(path) != 0 && errno != ENOENT)
		ereport(WARNING,
				(errcode_for_file_access(),
				 errmsg("could not remove file \"%s\": %m", path)));
}

void
llmgw_segments_remove(Oid database, LlmGeneration gen, uint64 offset)
{
	each_segment(database, gen, remove_segment_before, &offset);
}

static void
widen_range(const char *path, uint32 segment, void *arg)
{
	uint64	   *range = arg;
	uint64		start = (uint64) segment * LLMGW_SEGMENT_SIZE;

	range[0] = Min(range[0], start);
	range[1] = Max(range[1], start + LLMGW_SEGMENT_SIZE);
}

void
llmgw_segments_range(Oid database, LlmGeneration gen, uint64 *first, uint64 *end)
{
	uint64		range[2] = {PG_UINT64_MAX, 0};

	each_segment(database, gen, widen_range, range);
	*first = range[1] == 0 ? 0 : range[0];
	*end = range[1];
}

bool
llmgw_segments_sync(Oid database, LlmGeneration gen, uint64 from, uint64 to)
{
	if (from >= to)
		return true;
	for (uint64 s = from / LLMGW_SEGMENT_SIZE; s <= (to - 1) / LLMGW_SEGMENT_SIZE; s++)
	{
		int			fd = llmgw_segment_open(database, gen, (uint32) s, O_RDWR);
		int			rc;

		/* removed meanwhile: all of it is booked */
		if (fd < 0 && errno == ENOENT)
			continue;
		if (fd < 0)
			return false;
		rc = pg_fdatasync(fd) != 0 ? errno : 0;
		close(fd);
		if (rc != 0)
		{
			errno = rc;
			return false;
		}
	}
	return true;
}

static void
mark_path(char *path, Oid database, LlmGeneration gen)
{
	generation_path(path, database, gen);
	strlcat(path, "/booked", SPOOL_PATH_LEN);
}

void
llmgw_generation_mark(Oid database, LlmGeneration gen, uint64 offset)
{
	char		path[SPOOL_PATH_LEN];
	char text[	32];
	int			len = snprintf(text, sizeof(text), UINT64_FORMAT "\n", offset);
	int			fd;
	bool		ok;

	/* a torn one is none: it has no line end */
	mark_path(path, database, gen);
	fd = BasicOpenFile(path, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
	ok = fd >= 0 && write(fd, text, len) == len && pg_fsync(fd) == 0;
	if (!ok)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", path)));
	if (fd >= 0)
		close(fd);
}

bool
llmgw_generation_marked(Oid database, LlmGeneration gen, uint64 *offset)
{
	char		path[SPOOL_PATH_LEN];
	FILE	   *file;
	unsigned long long n;
	char		end = '\0';
	bool		found;

	mark_path(path, database, gen);
	file = AllocateFile(path, "r");
	if (file == NULL)
		return false;
	found = fscanf(file, "%llu%c", &n, &end) == 2 && end == '\n';
	FreeFile(file);
	*offset = n;
	return found;
}
