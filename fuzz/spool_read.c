/*-------------------------------------------------------------------------
 *
 * spool_read.c (fuzz)
 *	  A generation with holes, torn records and forgeries in it: the reader
 *	  finds every record that is whole, in order, and nothing else.
 *
 * The input is a program that makes the generation: an operation and a length,
 * then bytes for its content.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/mman.h>
#include <unistd.h>

#include "port/pg_crc32c.h"

#include "backend.h"
#include "spool.h"

#define SALT		UINT64CONST(0x1122334455667788)
#define MAX_BYTES	(3 * LLMGW_SEGMENT_SIZE)
#define MAX_RECORDS	4096

static char *space;				/* MAX_BYTES, beginning with the first segment */
static uint64 used;

/* the reader's files */

int
llmgw_segment_open(Oid database, LlmGeneration gen, uint32 segment, int flags)
{
	int			fd;
	uint64		start = segment * LLMGW_SEGMENT_SIZE;

	if (start >= MAX_BYTES)
	{
		errno = ENOENT;
		return -1;
	}
	fd = memfd_create("segment", 0);
	CLAIM(fd >= 0);
	CLAIM(ftruncate(fd, LLMGW_SEGMENT_SIZE) == 0);
	if (used > start)
	{
		size_t		n = Min(used - start, LLMGW_SEGMENT_SIZE);

		CLAIM(write(fd, space + start, n) == n);
	}
	return fd;
}

void
llmgw_segments_range(Oid database, LlmGeneration gen, uint64 *first, uint64 *end)
{
	*first = 0;
	*end = TYPEALIGN(4096, used);	/* a whole segment of zeros takes long */
}

uint64
llmgw_spool_oldest_write(LlmSpoolShared *spool)
{
	return LLMGW_NOT_WRITING;
}

bool
llmgw_generation_marked(Oid database, LlmGeneration gen, uint64 *offset)
{
	return false;
}

static void
make_record(char *to, uint64 offset, uint64 salt, int64 id, const uint8_t *payload, uint32 len)
{
	LlmSpoolHeader header = {0};
	pg_crc32c	crc;

	header.magic = LLMGW_SPOOL_MAGIC;
	header.length = len;
	header.type = LLMGW_RECORD_NOTE + id % 5;
	header.request_id = id;
	header.offset = offset;
	INIT_CRC32C(crc);
	COMP_CRC32C(crc, &salt, sizeof(salt));
	COMP_CRC32C(crc, &header.length, sizeof(header) - offsetof(LlmSpoolHeader, length));
	COMP_CRC32C(crc, payload, len);
	FIN_CRC32C(crc);
	header.crc = crc;
	memcpy(to, &header, sizeof(header));
	memcpy(to + sizeof(header), payload, len);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint64 expected[MAX_RECORDS];
	int			n = 0;
	int			found = 0;
	LlmGeneration gen = {1, SALT};
	LlmSpoolReader *reader;
	LlmSpoolRecord record;
	LlmSpoolRead got;

	if (space == NULL)
		space = calloc(1, MAX_BYTES);
	used = 0;
	/* any bytes at all, as a whole generation */
	if (size > 0 && data[0] == 0xFF)
	{
		used = Min(size - 1, MAX_BYTES);
		memcpy(space, data + 1, used);
		n = -1;
	}
	while (n >= 0 && size >= 3 && n < MAX_RECORDS)
	{
		int			op = data[0] % 6;
		uint32		len = data[1] | data[2] << 8;
		uint32		room;

		data += 3;
		size -= 3;
		if (op == 5)
			len *= 16;			/* towards the end of the segment */
		room = LLMGW_RECORD_SIZE(len) + 64;
		if (used + room > MAX_BYTES)
			break;
		switch (op)
		{
			case 0:
			case 1:				/* a record, whole */
				len = Min(len, size);
				make_record(space + used, used, SALT, n + 1, data, len);
				expected[n++] = used;
				used += LLMGW_RECORD_SIZE(len);
				data += len;
				size -= len;
				break;
			case 2:				/* torn: one byte is another */
				len = Min(len, size);
				make_record(space + used, used, SALT, n + 1, data, len);
				space[used + (len * 7 + n) % (sizeof(LlmSpoolHeader) + len)] ^= 0x55;
				used += LLMGW_RECORD_SIZE(len);
				data += len;
				size -= len;
				break;
			case 3:				/* a forgery: right but for what is secret */
				make_record(space + used, used, SALT ^ (1 + len), n + 1, data, Min(len, size));
				used += LLMGW_RECORD_SIZE(Min(len, size));
				break;
			case 4:				/* stale: from another place */
				make_record(space + used, used + LLMGW_SEGMENT_SIZE, SALT, n + 1, data,
							Min(len, size));
				used += LLMGW_RECORD_SIZE(Min(len, size));
				break;
			case 5:				/* never written */
				used += MAXALIGN(len);
				break;
		}
	}

	reader = llmgw_spool_reader_open(NULL, 1, gen, 0, NULL);
	while ((got = llmgw_spool_read(reader, &record)) == LLMGW_READ_RECORD)
	{
		if (n < 0)
			continue;
		CLAIM(found < n);
		CLAIM(record.offset == expected[found]);
		CLAIM(record.request_id == found + 1);
		CLAIM(record.end == record.offset + LLMGW_RECORD_SIZE(record.len));
		found++;
	}
	CLAIM(got == LLMGW_READ_END);
	CLAIM(n < 0 || found == n);
	fuzz_free_all();
	memset(space, 0, used);
	return 0;
}
