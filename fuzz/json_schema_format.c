/*-------------------------------------------------------------------------
 *
 * json_schema_format.c (fuzz)
 *	  Any bytes as a value with a format: read within their bounds, and what
 *	  passes has no byte that its grammar does not know.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "backend.h"
#include "json_schema_private.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const names[] = {
		"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6",
		"time", "uri", "uri-reference", "uuid"
	};
	const LlmFormat *format;
	const char *s;
	char	   *copy;

	if (size < 1)
		return 0;
	format = llmgw_format_find(names[data[0] % lengthof(names)],
							   strlen(names[data[0] % lengthof(names)]));
	CLAIM(format != NULL);
	size--;

	/* of its own size, so that the sanitizer sees a read beyond it */
	copy = malloc(size ? size : 1);
	memcpy(copy, data + 1, size);
	if (format->fits(copy, size))
	{
		CLAIM(size > 0 || strcmp(format->name, "uri-reference") == 0);
		for (s = copy; s < copy + size; s++)
			CLAIM(*s > ' ' - (copy[0] == '"') && *s < 0x7F);

		/* every URI is a reference */
		if (strcmp(format->name, "uri") == 0)
			CLAIM(llmgw_format_find("uri-reference", 13)->fits(copy, size));
	}
	free(copy);
	return 0;
}
