/*-------------------------------------------------------------------------
 *
 * config_host.c
 *	  Which hosts may be talked to.
 *
 * llm_gateway.allowed_hosts is a comma-separated list of entries
 * [scheme://]host[:port]; a host may begin with "*." for any name below it.
 * An entry without a scheme means https; one with http:// allows plain http
 * there.  Without a port any port is meant.  An empty list allows every host
 * over https, and plain http to this machine.
 *
 * And which of them are near: servers that see what is behind the firewall.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ctype.h>

#include "config.h"
#include "guc.h"

/* one entry of the list, not NUL-terminated */
typedef struct Entry
{
	const char *host;
	size_t		host_len;
	bool		http;
	int			port;			/* 0: any */
} Entry;

/* Takes the next entry off the list; false at its end. */
static bool
next_entry(const char **list, Entry *entry)
{
	const char *s = *list;
	const char *end;
	const char *colon;

	while (*s == ',' || isspace((unsigned char) *s))
		s++;
	if (*s == '\0')
		return false;
	end = s + strcspn(s, ", \t\n\r");
	*list = end;

	entry->http = false;
	entry->port = 0;
	if (end - s > 7 && pg_strncasecmp(s, "http://", 7) == 0)
	{
		entry->http = true;
		s += 7;
	}
	else if (end - s > 8 && pg_strncasecmp(s, "https://", 8) == 0)
		s += 8;

	if (*s == '[' && (colon = memchr(s, ']', end - s)) != NULL)
	{
		/* an IPv6 address */
		entry->host = s + 1;
		entry->host_len = colon - s - 1;
		colon = colon + 1 < end && colon[1] == ':' ? colon + 1 : NULL;
	}
	else
	{
		colon = memchr(s, ':', end - s);
		entry->host = s;
		entry->host_len = (colon ? colon : end) - s;
	}
	if (colon != NULL)
		entry->port = atoi(colon + 1);
	return true;
}

static bool
matches(const Entry *entry, const LlmUrl *url)
{
	const char *host = url->host;

	if (entry->http != (strcmp(url->scheme, "http") == 0))
		return false;
	if (entry->port != 0 && entry->port != url->port)
		return false;
	if (entry->host_len > 2 && entry->host[0] == '*' && entry->host[1] == '.')
	{
		/* "*.x.y" is any name that ends in ".x.y" */
		size_t		tail = entry->host_len - 1;
		size_t		len = strlen(host);

		return len > tail &&
			pg_strncasecmp(host + len - tail, entry->host + 1, tail) == 0;
	}
	return strlen(host) == entry->host_len &&
		pg_strncasecmp(host, entry->host, entry->host_len) == 0;
}

static bool
is_loopback(const char *host)
{
	size_t		len = strlen(host);

	if (strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0)
		return true;
	if (len > 10 && strcmp(host + len - 10, ".localhost") == 0)
		return true;

	/* 127.0.0.0/8, but not a name that looks like it ("127.0.0.1.example") */
	return strncmp(host, "127.", 4) == 0 &&
		strspn(host, "0123456789.") == len;
}

char *
llmgw_url_refused(const LlmUrl *url, char **hint)
{
	const char *list = llmgw_allowed_hosts ? llmgw_allowed_hosts : "";
	bool		plain = strcmp(url->scheme, "http") == 0;
	bool		any = false;
	bool		v6 = strchr(url->host, ':') != NULL;
	Entry		entry;

	while (next_entry(&list, &entry))
	{
		any = true;
		if (matches(&entry, url))
			return NULL;
	}
	if (!any && (!plain || is_loopback(url->host)))
		return NULL;

	*hint = psprintf("A superuser can allow it%s: ALTER SYSTEM SET llm_gateway.allowed_hosts = '%s%s%s%s%s%s:%d'; SELECT pg_reload_conf();",
					 any ? "" : ", in a list that then has to name every host in use",
					 any ? llmgw_allowed_hosts : "", any ? ", " : "",
					 plain ? "http://" : "", v6 ? "[" : "", url->host, v6 ? "]" : "",
					 url->port);
	if (!any)
		return psprintf("plain http is allowed only to this machine, not to \"%s\"",
						url->host);
	return psprintf("host \"%s\" (%s, port %d) is not in llm_gateway.allowed_hosts",
					url->host, url->scheme, url->port);
}

char *
llmgw_host_refused(const char *base_url, char **hint)
{
	LlmUrl		url;
	const char *reason;

	if (!llmgw_http_split_url(base_url, &url, &reason))
	{
		*hint = pstrdup("Give a URL such as https://api.example.com/v1.");
		return pstrdup(reason);
	}
	return llmgw_url_refused(&url, hint);
}

/* Loopback, private, carriers', link-local, or "this network" (RFC 6890) */
static bool
is_private_v4(uint32 address)
{
	static const struct
	{
		uint32		net;
		int			bits;
	}			nets[] = {
		{0x00000000, 8}, {0x0A000000, 8}, {0x64400000, 10}, {0x7F000000, 8},
		{0xA9FE0000, 16}, {0xAC100000, 12}, {0xC0A80000, 16}
	};

	for (int i = 0; i < lengthof(nets); i++)
		if ((address ^ nets[i].net) >> (32 - nets[i].bits) == 0)
			return true;
	return false;
}

static bool
is_private_v6(const struct in6_addr *address)
{
	const uint8 *b = address->s6_addr;

	if (IN6_IS_ADDR_V4MAPPED(address))
		return is_private_v4((uint32) b[12] << 24 | b[13] << 16 | b[14] << 8 | b[15]);
	return IN6_IS_ADDR_LOOPBACK(address) || IN6_IS_ADDR_UNSPECIFIED(address) ||
		IN6_IS_ADDR_LINKLOCAL(address) || (b[0] & 0xFE) == 0xFC;
}

/* Names that no public server has (RFC 6761, 6762, 8375; Kubernetes). */
static bool
is_private_name(const char *host)
{
	static const char *const domains[] = {
		"localhost", "local", "internal", "intranet", "lan", "home.arpa", "svc",
		"svc.cluster.local"
	};
	size_t		len = strlen(host);

	if (len > 0 && host[len - 1] == '.')
		len--;
	if (memchr(host, '.', len) == NULL)
		return true;
	for (int i = 0; i < lengthof(domains); i++)
	{
		size_t		tail = strlen(domains[i]);

		if (len > tail && host[len - tail - 1] == '.' &&
			strncmp(host + len - tail, domains[i], tail) == 0)
			return true;
	}
	return false;
}

bool
llmgw_url_is_near(const LlmUrl *url)
{
	struct in6_addr v6;
	struct in_addr v4;

	if (strcmp(url->scheme, "http") == 0)
		return true;
	if (inet_pton(AF_INET6, url->host, &v6) == 1)
		return is_private_v6(&v6);
	/* reads every form that libcurl does, such as 127.1 or 0x7f000001 */
	if (inet_aton(url->host, &v4) != 0)
		return is_private_v4(ntohl(v4.s_addr));
	return is_private_name(url->host);
}
