/*-------------------------------------------------------------------------
 *
 * ledger_open.c
 *	  The requests of a generation that have begun and are not yet booked.
 *
 * There may be thousands of them, and each is here for a moment only: a record
 * is one allocation, freed with its request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "ledger_open.h"

typedef struct OpenSlot
{
	int64		id;
	LlmOpenRequest *request;
	char		status;
} OpenSlot;

#define SH_PREFIX		openhash
#define SH_ELEMENT_TYPE OpenSlot
#define SH_KEY_TYPE		int64
#define SH_KEY			id
#define SH_HASH_KEY(table, key) murmurhash32((uint32) (key) ^ (uint32) ((uint64) (key) >> 32))
#define SH_EQUAL(table, a, b)	((a) == (b))
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* What precedes each payload of a packed request. */
typedef struct PackedHeader
{
	uint32		type;
	uint32		len;
} PackedHeader;

LlmOpenRequests *
llmgw_open_create(MemoryContext context)
{
	LlmOpenRequests *open = MemoryContextAllocZero(context, sizeof(LlmOpenRequests));

	open->context = context;
	open->hash = openhash_create(context, 256, NULL);
	dlist_init(&open->by_offset);
	dlist_init(&open->carried);
	return open;
}

int
llmgw_open_count(const LlmOpenRequests *open)
{
	return (int) open->hash->members;
}

LlmOpenRequest *
llmgw_open_find(LlmOpenRequests *open, int64 id)
{
	OpenSlot   *slot = openhash_lookup(open->hash, id);

	return slot != NULL ? slot->request : NULL;
}

static LlmRaw *
copy_payload(LlmOpenRequests *open, LlmRecordType type, const char *data, uint32 len)
{
	LlmRaw	   *raw = MemoryContextAllocHuge(open->context, offsetof(LlmRaw, data) + len);

	raw->next = NULL;
	raw->type = type;
	raw->len = len;
	memcpy(raw->data, data, len);
	return raw;
}

static void
add_payload(LlmOpenRequests *open, LlmOpenRequest *request, LlmRecordType type,
			const char *data, uint32 len)
{
	LlmRaw	   *raw = copy_payload(open, type, data, len);

	if (request->last == NULL)
		request->records = raw;
	else
		request->last->next = raw;
	request->last = raw;
	request->bytes += len;
}

/* A request that is on no list. */
static LlmOpenRequest *
new_request(LlmOpenRequests *open, int64 id)
{
	LlmOpenRequest *request = MemoryContextAllocZero(open->context, sizeof(LlmOpenRequest));

	request->id = id;
	return request;
}

static void
enter(LlmOpenRequests *open, LlmOpenRequest *request)
{
	bool		found;

	openhash_insert(open->hash, request->id, &found)->request = request;
	Assert(!found);
}

/* Offsets of records rise, so the new one is the last of the list. */
static void
list_by_offset(LlmOpenRequests *open, LlmOpenRequest *request, uint64 first)
{
	request->first = first;
	dlist_push_tail(&open->by_offset, &request->node);
}

static bool
is_carried(const LlmOpenRequest *request)
{
	return request->carried_until > request->first;
}

LlmOpenRequest *
llmgw_open_add(LlmOpenRequests *open, const LlmSpoolRecord *record)
{
	LlmOpenRequest *request = llmgw_open_find(open, record->request_id);

	if (request == NULL)
	{
		request = new_request(open, record->request_id);
		if (record->type == LLMGW_RECORD_PROMPT)
			request->seen = llmgw_now();
		enter(open, request);
		list_by_offset(open, request, record->offset);
	}
	else if (record->offset < request->carried_until)
		return request;			/* read again: it is there already */
	else if (is_carried(request))
	{
		dlist_delete(&request->node);
		list_by_offset(open, request, record->offset);
	}
	add_payload(open, request, record->type, record->payload, record->len);
	return request;
}

LlmOpenRequest *
llmgw_open_end(LlmOpenRequests *open, const LlmSpoolRecord *record)
{
	LlmOpenRequest *request = llmgw_open_find(open, record->request_id);

	if (request != NULL)
		llmgw_open_remove(open, request);
	else
		request = new_request(open, record->request_id);
	request->end = copy_payload(open, record->type, record->payload, record->len);
	return request;
}

void
llmgw_open_remove(LlmOpenRequests *open, LlmOpenRequest *request)
{
	dlist_delete(&request->node);
	openhash_delete(open->hash, request->id);
}

void
llmgw_open_free(LlmOpenRequest *request)
{
	LlmRaw	   *raw = request->records;

	while (raw != NULL)
	{
		LlmRaw	   *next = raw->next;

		pfree(raw);
		raw = next;
	}
	if (request->end != NULL)
		pfree(request->end);
	pfree(request);
}

uint64
llmgw_open_oldest(const LlmOpenRequests *open, uint64 otherwise)
{
	dlist_head *list = unconstify(dlist_head *, &open->by_offset);

	if (dlist_is_empty(list))
		return otherwise;
	return dlist_head_element(LlmOpenRequest, node, list)->first;
}

void
llmgw_open_pack(const LlmOpenRequest *request, StringInfo buf)
{
	for (const LlmRaw *raw = request->records; raw != NULL; raw = raw->next)
	{
		PackedHeader header = {raw->type, raw->len};

		appendBinaryStringInfo(buf, (const char *) &header, sizeof(header));
		appendBinaryStringInfo(buf, raw->data, raw->len);
	}
}

bool
llmgw_open_unpack(LlmOpenRequests *open, int64 id, uint64 carried_until,
				  const char *data, Size len)
{
	LlmOpenRequest *request = new_request(open, id);

	while (len > 0)
	{
		PackedHeader header;

		if (len < sizeof(header))
			break;
		memcpy(&header, data, sizeof(header));
		data += sizeof(header);
		len -= sizeof(header);
		if (header.len > len)
			break;
		add_payload(open, request, (LlmRecordType) header.type, data, header.len);
		data += header.len;
		len -= header.len;
	}
	if (len > 0 || llmgw_open_find(open, id) != NULL)
	{
		llmgw_open_free(request);
		return false;
	}
	request->carried_until = carried_until;
	enter(open, request);
	dlist_push_tail(&open->carried, &request->node);
	return true;
}

void
llmgw_open_carried(LlmOpenRequests *open, LlmOpenRequest *request, uint64 until)
{
	Assert(until > request->first);
	request->carried_until = until;
	dlist_delete(&request->node);
	dlist_push_tail(&open->carried, &request->node);
}
