/*-------------------------------------------------------------------------
 *
 * http_url.c
 *	  The parts of a URL and of a block of headers; addresses that no call goes to.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>

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

int
llmgw_http_codings(const char *line, size_t n)
{
	static const char *const names[] = {"content-encoding:", "transfer-encoding:"};
	int			count = 0;

	for (int i = 0; i < lengthof(names); i++)
	{
		size_t		at = strlen(names[i]);

		if (n < at || pg_strncasecmp(line, names[i], at) != 0)
			continue;
		while (at < n)
		{
			size_t		from = at;

			while (at < n && strchr(", \t", line[at]) == NULL)
				at++;
			if (at > from &&
				!(at - from == 8 && pg_strncasecmp(line + from, "identity", 8) == 0) &&
				!(at - from == 7 && pg_strncasecmp(line + from, "chunked", 7) == 0))
				count++;
			at++;
		}
	}
	return count;
}

bool
llmgw_http_forbids(const struct sockaddr *addr)
{
	uint32		v4;

	if (addr->sa_family == AF_INET6)
	{
		const struct in6_addr *v6 = &((const struct sockaddr_in6 *) addr)->sin6_addr;
		static const uint8 metadata[][16] = {
			{0xfd, 0x00, 0x0e, 0xc2,[14] = 0x02,[15] = 0x54},	/* AWS */
			{0xfd, 0x20, 0x00, 0xce,[14] = 0x02,[15] = 0x54},	/* Google */
			{0xfd, 0x00, 0x00, 0xc1,[12] = 0xa9, 0xfe, 0xa9, 0xfe}, /* Oracle */
		};
		static const uint8 nat64[12] = {0x00, 0x64, 0xff, 0x9b};

		if (IN6_IS_ADDR_LINKLOCAL(v6))
			return true;
		for (int i = 0; i < lengthof(metadata); i++)
			if (memcmp(v6, metadata[i], 16) == 0)
				return true;

		/* IPv4 addresses in the clothes of IPv6 */
		if (IN6_IS_ADDR_V4MAPPED(v6) || IN6_IS_ADDR_V4COMPAT(v6) ||
			memcmp(v6, nat64, sizeof(nat64)) == 0)
			memcpy(&v4, &v6->s6_addr[12], sizeof(v4));
		else if (v6->s6_addr[0] == 0x20 && v6->s6_addr[1] == 0x02)
			memcpy(&v4, &v6->s6_addr[2], sizeof(v4));	/* 6to4 */
		else
			return false;
	}
	else if (addr->sa_family == AF_INET)
		v4 = ((const struct sockaddr_in *) addr)->sin_addr.s_addr;
	else
		return false;

	v4 = ntohl(v4);
	return (v4 & 0xffff0000) == 0xa9fe0000 ||	/* 169.254.0.0/16 */
		v4 == 0xa83f8110 ||		/* 168.63.129.16, Azure */
		v4 == 0x646464c8;		/* 100.100.100.200, Alibaba */
}
