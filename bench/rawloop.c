/*-------------------------------------------------------------------------
 *
 * rawloop.c
 *	  The least that an HTTP call can cost with libcurl: the baseline.
 *
 * One easy handle, one warm connection, the same request again and again, the
 * answer copied into a buffer and not looked at.
 *
 * Usage: rawloop URL CALLS [PROMPT_BYTES]	prints microseconds per call, and how
 * many of them until the first bytes of the answer.
 *
 *-------------------------------------------------------------------------
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char *buffer = NULL;
static size_t used = 0;
static size_t size = 0;
static double first = 0;

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}

static size_t
on_body(char *bytes, size_t one, size_t n, void *arg)
{
	(void) one;
	(void) arg;
	if (used + n > size)
	{
		size = (used + n) * 2;
		buffer = realloc(buffer, size);
		if (buffer == NULL)
			return 0;
	}
	if (used == 0)
		first = now();
	memcpy(buffer + used, bytes, n);
	used += n;
	return n;
}

int
main(int argc, char **argv)
{
	CURL	   *curl = curl_easy_init();
	struct curl_slist *headers = NULL;
	long		calls = argc > 2 ? atol(argv[2]) : 1;
	long		bytes = argc > 3 ? atol(argv[3]) : 5;
	char	   *body = malloc(bytes + 200);
	double		start = 0;
	double		waited = 0;

	if (argc < 3 || curl == NULL || body == NULL)
	{
		fprintf(stderr, "usage: rawloop URL CALLS [PROMPT_BYTES]\n");
		return 2;
	}
	strcpy(body, "{\"model\":\"stub\",\"messages\":[{\"role\":\"user\",\"content\":\"");
	{
		size_t		len = strlen(body);

		memset(body + len, 'x', bytes);
		strcpy(body + len + bytes, "\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
	}
	headers = curl_slist_append(headers, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Authorization: Bearer sk-bench-0123456789");
	headers = curl_slist_append(headers, "Expect:");
	curl_easy_setopt(curl, CURLOPT_URL, argv[1]);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) strlen(body));
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);

	/* the first call connects, and is not counted */
	for (long i = 0; i <= calls; i++)
	{
		double		began = now();
		CURLcode	rc;

		used = 0;
		rc = curl_easy_perform(curl);
		if (rc != CURLE_OK)
		{
			fprintf(stderr, "rawloop: %s\n", curl_easy_strerror(rc));
			return 1;
		}
		if (i == 0)
			start = now();
		else
			waited += first - began;
	}
	printf("%.2f %.2f\n", (now() - start) / calls, waited / calls);
	curl_easy_cleanup(curl);
	return 0;
}
