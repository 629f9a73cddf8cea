/*
 * stall_resolver.c: preloaded, makes the resolver hang, as with a name server
 * that does not answer.
 *
 * Host names that end in ".stall.test" take 20 seconds and are then not found;
 * others are resolved as ever.  Each such look-up first creates the file that
 * STALL_MARKER names, so that a test knows that it has begun.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int (*resolver) (const char *, const char *, const struct addrinfo *,
						 struct addrinfo **);

int
getaddrinfo(const char *node, const char *service,
			const struct addrinfo *hints, struct addrinfo **result)
{
	static const char suffix[] = ".stall.test";
	size_t		len = node ? strlen(node) : 0;
	resolver	real;

	if (len >= sizeof(suffix) - 1 &&
		strcmp(node + len - (sizeof(suffix) - 1), suffix) == 0)
	{
		struct timespec left = {20, 0};
		const char *marker = getenv("STALL_MARKER");
		int			fd = marker ? open(marker, O_WRONLY | O_CREAT, 0600) : -1;

		if (fd >= 0)
			close(fd);
		while (nanosleep(&left, &left) != 0 && errno == EINTR)
			;
		return EAI_AGAIN;
	}

	*(void **) &real = dlsym(RTLD_NEXT, "getaddrinfo");
	return real(node, service, hints, result);
}
