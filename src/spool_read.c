/*-------------------------------------------------------------------------
 *
 * spool_read.c
 *	  Reads the records of a generation in order; see spool.h.
 *
 * A window of the file is kept in memory, read in large pieces.  Between the
 * end of what a live spool has written and the last look at it there may be
 * places that were empty then, so a place that holds no valid record is read
 * again before it is judged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "port/pg_crc32c.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "spool.h"

#define WINDOW_SIZE		(256 * 1024)

/* No writer makes a larger one; it bounds what a damaged length can ask for. */
#define MAX_PAYLOAD		UINT64CONST(0x30000000)

struct LlmSpoolReader
{
	MemoryContext context;
	Oid			database;
	LlmGeneration gen;
	LlmSpoolShared *live;		/* NULL: an old generation */
	uint64		offset;			/* of the next record */
	uint64		limit;			/* of what may hold records, as last seen */
	uint64		skipped;
	int			fd;
	uint32		fd_segment;
	char	   *window;
	Size		window_size;
	uint64		window_start;	/* offset of its first byte */
	Size		window_len;		/* valid bytes in it */
	MemoryContextCallback reset;
};

static void
close_file(void *arg)
{
	LlmSpoolReader *reader = arg;

	if (reader->fd >= 0)
		close(reader->fd);
	reader->fd = -1;
}

LlmSpoolReader *
llmgw_spool_reader_open(MemoryContext context, Oid database, LlmGeneration gen,
						uint64 offset, LlmSpoolShared *live)
{
	MemoryContext own = AllocSetContextCreate(context, "llm_gateway spool reader",
											  ALLOCSET_DEFAULT_SIZES);
	LlmSpoolReader *reader = MemoryContextAllocZero(own, sizeof(LlmSpoolReader));

	reader->context = own;
	reader->database = database;
	reader->gen = gen;
	reader->live = live;
	reader->offset = offset;
	reader->fd = -1;
	reader->reset.func = close_file;
	reader->reset.arg = reader;
	MemoryContextRegisterResetCallback(own, &reader->reset);
	reader->window_size = WINDOW_SIZE;
	reader->window = MemoryContextAlloc(own, reader->window_size);
	if (live == NULL)
	{
		uint64		first;

		llmgw_segments_range(database, gen, &first, &reader->limit);
		reader->offset = Max(reader->offset, first);
	}
	return reader;
}

void
llmgw_spool_reader_close(LlmSpoolReader *reader)
{
	MemoryContextDelete(reader->context);
}

uint64
llmgw_spool_reader_offset(const LlmSpoolReader *reader)
{
	return reader->offset;
}

uint64
llmgw_spool_reader_skipped(const LlmSpoolReader *reader)
{
	return reader->skipped;
}

/*
 * Reads bytes of the generation; what is in no segment reads as zeros.  Raises
 * file errors.
 */
static void
read_bytes(LlmSpoolReader *reader, char *to, Size len, uint64 offset)
{
	while (len > 0)
	{
		uint32		segment = (uint32) (offset / LLMGW_SEGMENT_SIZE);
		uint64		at = offset % LLMGW_SEGMENT_SIZE;
		Size		n = Min(len, LLMGW_SEGMENT_SIZE - at);
		ssize_t		got = 0;

		if (reader->fd >= 0 && reader->fd_segment != segment)
			close_file(reader);
		if (reader->fd < 0)
		{
			reader->fd = llmgw_segment_open(reader->database, reader->gen, segment, O_RDONLY);
			reader->fd_segment = segment;
			if (reader->fd < 0 && errno != ENOENT)
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not open segment %08X of the spool of database %u: %m",
								segment, reader->database)));
		}
		if (reader->fd >= 0)
		{
			do
				got = pg_pread(reader->fd, to, n, at);
			while (got < 0 && errno == EINTR);
			if (got < 0)
				ereport(ERROR,
						(errcode_for_file_access(),
						 errmsg("could not read segment %08X of the spool of database %u: %m",
								segment, reader->database)));
		}
		if (got == 0)
		{
			memset(to, 0, n);
			got = n;
		}
		to += got;
		offset += got;
		len -= got;
	}
}

/*
 * Makes [offset, offset + len) readable and returns it.  fresh: not as it was
 * when it was read before.
 */
static char *
look_at(LlmSpoolReader *reader, uint64 offset, Size len, bool fresh)
{
	Size		want;

	if (!fresh && offset >= reader->window_start &&
		offset + len <= reader->window_start + reader->window_len)
		return reader->window + (offset - reader->window_start);

	if (len > reader->window_size)
	{
		reader->window_len = 0;
		reader->window = repalloc_huge(reader->window, len);
		reader->window_size = len;
	}
	else if (reader->window_size > WINDOW_SIZE && len <= WINDOW_SIZE)
	{
		/* a large record has passed */
		reader->window_len = 0;
		reader->window = repalloc(reader->window, WINDOW_SIZE);
		reader->window_size = WINDOW_SIZE;
	}
	want = (Size) Min(reader->window_size, reader->limit - offset);
	want = Max(want, len);
	reader->window_len = 0;
	read_bytes(reader, reader->window, want, offset);
	reader->window_start = offset;
	reader->window_len = want;
	return reader->window;
}

bool
llmgw_spool_record_valid(const char *data, Size len, uint64 offset, uint64 salt)
{
	LlmSpoolHeader header;
	pg_crc32c	crc;

	if (len < sizeof(header))
		return false;
	memcpy(&header, data, sizeof(header));
	if (header.magic != LLMGW_SPOOL_MAGIC || header.offset != offset ||
		header.type < LLMGW_RECORD_NOTE || header.type > LLMGW_RECORD_KEEP ||
		header.length > len - sizeof(header))
		return false;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &salt, sizeof(salt));
	COMP_CRC32C(crc, data + offsetof(LlmSpoolHeader, length),
				sizeof(header) - offsetof(LlmSpoolHeader, length) + header.length);
	FIN_CRC32C(crc);
	return EQ_CRC32C(crc, header.crc);
}

/*
 * Whether a valid record begins at the offset.  Only a header that fits is
 * worth reading the rest of.
 */
static char *
record_at(LlmSpoolReader *reader, uint64 offset, bool fresh)
{
	LlmSpoolHeader header;
	char	   *data;

	if (offset + sizeof(header) > reader->limit)
		return NULL;
	data = look_at(reader, offset, sizeof(header), fresh);
	memcpy(&header, data, sizeof(header));
	if (header.magic != LLMGW_SPOOL_MAGIC || header.offset != offset ||
		header.length > MAX_PAYLOAD ||
		offset + sizeof(header) + header.length > reader->limit)
		return NULL;
	data = look_at(reader, offset, sizeof(header) + header.length, false);
	return llmgw_spool_record_valid(data, sizeof(header) + header.length, offset,
									reader->gen.salt) ? data : NULL;
}

LlmSpoolRead
llmgw_spool_read(LlmSpoolReader *reader, LlmSpoolRecord *record)
{
	LlmSpoolHeader header;
	char	   *data;
	uint64		at = reader->offset;

	if (reader->live != NULL)
		reader->limit = pg_atomic_read_u64(&reader->live->written);
	if (at >= reader->limit)
		return LLMGW_READ_END;

	data = record_at(reader, at, false);
	if (data == NULL)
	{
		/*
		 * Who writes says so before taking a place, and ceases to say so
		 * after the record is there.  So what is empty below the oldest of
		 * those places, when it is read after asking for it, stays empty.
		 */
		uint64		oldest = reader->live ?
		llmgw_spool_oldest_write(reader->live) : LLMGW_NOT_WRITING;

		data = at < oldest ? record_at(reader, at, true) : NULL;
		while (data == NULL)
		{
			if (at >= oldest)
			{
				reader->skipped += at - reader->offset;
				reader->offset = at;
				return LLMGW_READ_PENDING;
			}
			at += 8;
			if (at >= reader->limit)
			{
				/* an old generation ends with room that was never used */
				if (reader->live != NULL)
					reader->skipped += reader->limit - reader->offset;
				reader->offset = reader->limit;
				return LLMGW_READ_END;
			}
			if (at < oldest)
				data = record_at(reader, at, false);
		}
		reader->skipped += at - reader->offset;
	}
	memcpy(&header, data, sizeof(header));
	record->type = (LlmRecordType) header.type;
	record->request_id = header.request_id;
	record->offset = at;
	record->end = at + LLMGW_RECORD_SIZE(header.length);
	record->len = header.length;
	record->payload = data + sizeof(header);
	reader->offset = record->end;
	return LLMGW_READ_RECORD;
}

bool
llmgw_generation_finished(Oid database, LlmGeneration gen)
{
	uint64		offset;
	LlmSpoolReader *reader;
	LlmSpoolRecord record;
	bool		finished;

	if (!llmgw_generation_marked(database, gen, &offset))
		return false;
	reader = llmgw_spool_reader_open(CurrentMemoryContext, database, gen, offset, NULL);
	finished = llmgw_spool_read(reader, &record) == LLMGW_READ_END;
	llmgw_spool_reader_close(reader);
	return finished;
}
