/*-------------------------------------------------------------------------
 *
 * backend.c
 *	  What the fuzzed modules need of a server, in a program of its own.
 *
 * Memory comes from malloc and is freed after each input, so that the address
 * sanitizer sees every allocation by itself.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "backend.h"

static void **chunks = NULL;
static size_t nchunks = 0;
static size_t chunks_size = 0;
static MemoryContextCallback *callbacks = NULL;

MemoryContext TopMemoryContext = (MemoryContext) &chunks;
MemoryContext CurrentMemoryContext = (MemoryContext) &chunks;

static void
remember(void *chunk)
{
	if (nchunks == chunks_size)
	{
		chunks_size = chunks_size * 2 + 64;
		chunks = realloc(chunks, chunks_size * sizeof(void *));
	}
	chunks[nchunks++] = chunk;
}

void
fuzz_free_all(void)
{
	while (callbacks != NULL)
	{
		callbacks->func(callbacks->arg);
		callbacks = callbacks->next;
	}
	for (size_t i = 0; i < nchunks; i++)
		free(chunks[i]);
	nchunks = 0;
}

void *
palloc(Size size)
{
	void	   *chunk = malloc(size ? size : 1);

	remember(chunk);
	return chunk;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
repalloc(void *old, Size size)
{
	for (size_t i = 0; i < nchunks; i++)
		if (chunks[i] == old)
			return chunks[i] = realloc(old, size);
	abort();
}

void *
repalloc_huge(void *old, Size size)
{
	return repalloc(old, size);
}

void
pfree(void *chunk)
{
	for (size_t i = 0; i < nchunks; i++)
		if (chunks[i] == chunk)
		{
			chunks[i] = chunks[--nchunks];
			free(chunk);
			return;
		}
	abort();
}

char *
pnstrdup(const char *in, Size len)
{
	char	   *out = palloc(len + 1);

	memcpy(out, in, len);
	out[len] = '\0';
	return out;
}

void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	return palloc(size);
}

void *
MemoryContextAllocZero(MemoryContext context, Size size)
{
	return palloc0(size);
}

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size minContextSize,
							  Size initBlockSize, Size maxBlockSize)
{
	return CurrentMemoryContext;
}

void
MemoryContextRegisterResetCallback(MemoryContext context, MemoryContextCallback *cb)
{
	cb->next = callbacks;
	callbacks = cb;
}

void
MemoryContextDelete(MemoryContext context)
{
}

/* an error ends the program: none is expected of what is fuzzed here */
bool
errstart(int elevel, const char *domain)
{
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return true;
}

int
errmsg(const char *fmt,...)
{
	fprintf(stderr, "error: %s\n", fmt);
	return 0;
}

int
errcode_for_file_access(void)
{
	return 0;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	abort();
}

void
ExceptionalCondition(const char *conditionName,
#if PG_VERSION_NUM < 160000
					 const char *errorType,
#endif
					 const char *fileName, int lineNumber)
{
	fprintf(stderr, "%s:%d: %s\n", fileName, lineNumber, conditionName);
	abort();
}

int
pg_mbcliplen(const char *mbstr, int len, int limit)
{
	return Min(len, limit);
}

void
resetStringInfo(StringInfo str)
{
	str->data[0] = '\0';
	str->len = 0;
	str->cursor = 0;
}

void
initStringInfo(StringInfo str)
{
	str->maxlen = 1024;
	str->data = palloc(str->maxlen);
	resetStringInfo(str);
}

void
appendBinaryStringInfo(StringInfo str,
#if PG_VERSION_NUM < 160000
					   const char *data,
#else
					   const void *data,
#endif
					   int len)
{
	while (str->len + len >= str->maxlen)
	{
		str->maxlen *= 2;
		str->data = repalloc(str->data, str->maxlen);
	}
	memcpy(str->data + str->len, data, len);
	str->len += len;
	str->data[str->len] = '\0';
}
