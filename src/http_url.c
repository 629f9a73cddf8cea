/*-------------------------------------------------------------------------
 *
 * http_url.c
 *	  The parts of a URL, and of a block of headers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>

#include "http.h"

char *
llmgw_http_header(const char *headers, const char *name)
{
	size_t		name_len = strlen(name);
	const char *found = NULL;
	size_t		found_len = 0;

	for (const char *line = headers; *line != '\0';)
	{
		const char *end = strchr(line, '\n');
		size_t		len = end ? end - line : strlen(line);

		if (len > name_len && line[name_len] == ':' &&
			pg_strncasecmp(line, name, name_len) == 0)
		{
			found = line + name_len + 1;
			found_len = len - name_len - 1;
		}
		line += len + (end ? 1 : 0);
	}
	if (found == NULL)
		return NULL;
	while (found_len > 0 && (*found == ' ' || *found == '\t'))
		found++, found_len--;
	while (found_len > 0 && strchr(" \t\r", found[found_len - 1]))
		found_len--;
	return pnstrdup(found, found_len);
}

/*
 * Copies one part of a parsed URL; an absent part is the empty string.  False
 * when it does not fit.
 */
static bool
url_part(CURLU *url, CURLUPart part, unsigned int flags, char *dst, size_t size)
{
	char	   *value = NULL;
	bool		ok = true;

	dst[0] = '\0';
	if (curl_url_get(url, part, &value, flags) == CURLUE_OK && value != NULL)
		ok = strlcpy(dst, value, size) < size;
	curl_free(value);
	return ok;
}

bool
llmgw_http_split_url(const char *url, LlmUrl *result, const char **reason)
{
	CURLU	   *u = curl_url();
	char		scheme[16];
	char		host[256];
	char		port[16];
	char		other[8];
	size_t		len;

	*reason = NULL;
	if (u == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));

	/* nothing between here and the cleanup raises an error */
	for (const char *c = url; *c != '\0'; c++)
		if ((unsigned char) *c <= ' ' || *c == 0x7f)
			*reason = "it contains a space or a control character";
	if (*reason == NULL &&
		curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) != CURLUE_OK)
		*reason = "it is not a URL such as https://api.example.com/v1";
	else if (*reason == NULL)
	{
		if (!url_part(u, CURLUPART_SCHEME, 0, scheme, sizeof(scheme)) ||
			(strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
			*reason = "it must begin with https:// or http://";
		else if (!url_part(u, CURLUPART_USER, 0, other, sizeof(other)) || other[0] ||
				 !url_part(u, CURLUPART_PASSWORD, 0, other, sizeof(other)) || other[0])
			*reason = "it contains credentials";
		else if (strchr(url, '#') != NULL)
			*reason = "it contains a fragment";
		else if (strchr(url, '?') != NULL)
			*reason = "it contains a query";
		else if (!url_part(u, CURLUPART_HOST, 0, host, sizeof(host)) || !host[0])
			*reason = "it has no host, or one that is too long";
		else if (!url_part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT, port, sizeof(port)) ||
				 atoi(port) <= 0)
			*reason = "it has no usable port";
	}
	curl_url_cleanup(u);
	if (*reason != NULL)
		return false;

	len = strlen(host);
	if (len > 2 && host[0] == '[' && host[len - 1] == ']')
	{
		memmove(host, host + 1, len - 2);
		host[len - 2] = '\0';
	}
	for (char *c = host; *c != '\0'; c++)
		*c = pg_tolower((unsigned char) *c);
	result->scheme = pstrdup(scheme);
	result->host = pstrdup(host);
	result->port = atoi(port);
	return true;
}
