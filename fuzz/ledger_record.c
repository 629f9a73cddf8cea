/*-------------------------------------------------------------------------
 *
 * ledger_record.c (fuzz)
 *	  Any bytes as the payload of a record: refused, or exactly what the
 *	  encoder makes of the result.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "backend.h"
#include "ledger_record.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	StringInfoData buf;
	const char *payload;

	if (size < 1)
		return 0;
	payload = (const char *) data + 1;
	size--;
	initStringInfo(&buf);
	if (data[0] & 2)
	{
		LlmKeep		keep;

		if (llmgw_keep_decode(payload, (uint32) size, &keep))
		{
			llmgw_keep_encode(&buf, &keep);
			CLAIM(buf.len == (int) size && memcmp(buf.data, payload, size) == 0);
			CLAIM(llmgw_keep_size(&keep) <= size);
		}
	}
	else if (data[0] & 1)
	{
		LlmNote		note;

		if (llmgw_note_decode(payload, (uint32) size, &note))
		{
			llmgw_note_encode(&buf, &note);
			CLAIM(note.attempt.ncharged <= LLMGW_MAX_CHARGED);
			/* a message that is too long was not made by the encoder */
			CLAIM(buf.len <= (int) size);
			if (!note.has_previous)
				CLAIM(buf.len == (int) size && memcmp(buf.data, payload, size) == 0);
		}
	}
	else
	{
		LlmEnd		end;

		if (llmgw_end_decode(payload, (uint32) size, &end))
		{
			llmgw_end_encode(&buf, &end);
			CLAIM(buf.len <= (int) size);
			if (!end.has_request)
				CLAIM(buf.len < LLMGW_MAX_END);
		}
	}
	fuzz_free_all();
	return 0;
}
