/*-------------------------------------------------------------------------
 *
 * http.h
 *	  One HTTP request and the bytes that come back.
 *
 * A transfer is started in a memory context and belongs to it: deleting the
 * context, at any moment and for any reason, takes the request off the wire
 * and frees every handle and buffer.  Bytes are collected in malloc'd memory
 * by curl's callbacks, which cannot raise errors; the owner takes them out
 * between turns of the loop (loop.h).
 *
 * A transfer may instead replay bytes that were made in this process (the mock
 * dialect): they are delivered by the loop's timers, so that time-outs, size
 * limits, cancel and parsing are the same code as for the network.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_HTTP_H
#define LLMGW_HTTP_H

#include <sys/socket.h>

#include "loop.h"

typedef enum LlmHttpOutcome
{
	LLMGW_HTTP_RUNNING = 0,
	LLMGW_HTTP_DONE,			/* the response ended as HTTP says it should */
	LLMGW_HTTP_STALE,			/* nothing was sent: the kept connection was
								 * closed; start again, with fresh set */
	LLMGW_HTTP_FAILED_RESOLVE,
	LLMGW_HTTP_FAILED_PROXY,	/* the proxy's name, or its scheme */
	LLMGW_HTTP_FAILED_CONNECT,
	LLMGW_HTTP_FAILED_TLS,
	LLMGW_HTTP_FAILED_ADDRESS,	/* resolved to an address we do not talk to */
	LLMGW_HTTP_FAILED_NETWORK,	/* cut, reset, protocol violated */
	LLMGW_HTTP_TIMEOUT_CONNECT,
	LLMGW_HTTP_TIMEOUT_FIRST_BYTE,
	LLMGW_HTTP_TIMEOUT_IDLE,
	LLMGW_HTTP_TIMEOUT_TOTAL,
	LLMGW_HTTP_TOO_LARGE,
	LLMGW_HTTP_FAILED_INTERNAL	/* out of memory or descriptors */
} LlmHttpOutcome;

/* Bytes to be delivered without a network, each step after its delay. */
typedef struct LlmReplayStep
{
	int			delay_ms;
	const char *bytes;			/* UTF-8; must live as long as the transfer */
	size_t		len;
} LlmReplayStep;

typedef enum LlmReplayEnd
{
	LLMGW_REPLAY_DONE,			/* the response ends well after the last step */
	LLMGW_REPLAY_CUT,			/* the connection breaks after the last step */
	LLMGW_REPLAY_STALL			/* nothing comes after the last step */
} LlmReplayEnd;

typedef struct LlmReplay
{
	int			http_status;
	const char *content_type;
	const char *headers;		/* further header lines, each ended by CRLF */
	int			nsteps;
	LlmReplayStep *steps;
	LlmReplayEnd end;
} LlmReplay;

#define LLMGW_MAX_HEADERS	32

/*
 * What to send.  Everything pointed to must live as long as the transfer.
 * Times in milliseconds, 0: no limit.  first_byte counts from the start to the
 * first byte of the body, idle between two bytes of it.
 */
typedef struct LlmHttpRequest
{
	const char *url;
	int			nheaders;
	const char *headers[LLMGW_MAX_HEADERS]; /* "Name: value" */
	const char *body;			/* NULL: a GET */
	size_t		body_len;
	const LlmReplay *replay;	/* not NULL: no network */
	int			connect_ms;
	int			first_byte_ms;
	int			idle_ms;
	int			total_ms;
	int64		max_response;	/* bytes of body; 0: no limit */
	bool		fresh;			/* on a new connection, not a kept one */
	bool		last;			/* the connection is not kept for another one */
	const char *ca_file;		/* NULL: the system's */
	const char *proxy;			/* NULL: none; never the environment's */
} LlmHttpRequest;

typedef struct LlmTransfer
{
	/* for the owner to read between turns of the loop */
	LlmHttpOutcome outcome;
	int			http_status;	/* 0 until the headers are there */
	const char *headers;		/* "name: value\n" lines, NUL-terminated */
	char	   *data;			/* body bytes not yet taken */
	size_t		len;
	size_t		total;			/* all body bytes so far */
	LlmInstant	started;
	LlmInstant	requested_at;	/* when the request went out; 0: not yet */
	LlmInstant	first_byte_by;	/* the limits: LLMGW_NEVER: none */
	LlmInstant	ended_by;
	LlmInstant	first_byte;		/* 0: none yet */
	LlmInstant	last_byte;
	LlmInstant	ended;
	char		message[CURL_ERROR_SIZE];	/* why it failed, in curl's words */

	/* private to http.c */
	LlmCurlDone done;
	LlmReady	ready;
	LlmTimer	timer;
	MemoryContextCallback reset;
	int64		idle_us;		/* 0: no limit */
	int64		max_response;
	CURL	   *easy;
	struct curl_slist *slist;
	bool		custom_ca;		/* the handle is of no use to others */
	bool		stale;			/* the kept connection was closed already */
	bool		lost_connection;	/* after the request went out */
	bool		refused_address;
	bool		no_socket;
	bool		no_memory;
	int			ncodings;		/* layers of compression of the answer */
	size_t		size;			/* allocated bytes of data */
	char	   *header_buf;		/* what headers points to, when not NULL */
	size_t		header_len;
	size_t		header_size;
	const LlmReplay *replay;
	int			replay_step;
} LlmTransfer;

/*
 * Starts a request.  When bytes arrive or it ends, *ready_list gets the
 * transfer's LlmReady, whose owner field is the given owner.  The list must
 * outlive the transfer.  Raises only out-of-memory and 53000.
 */
extern LlmTransfer *llmgw_http_start(MemoryContext context,
									 const LlmHttpRequest *request,
									 dlist_head *ready_list, void *owner);

/* The bytes were read: makes room for the next ones. */
extern void llmgw_http_consume(LlmTransfer *transfer);

/*
 * Takes the transfer off the wire now; its data stays readable until its
 * context goes.  Harmless when it has ended.
 */
extern void llmgw_http_stop(LlmTransfer *transfer);

/*
 * The value of a header, palloc'd, trimmed; NULL when it was not sent.  The
 * name in lower case.  The last one wins.
 */
extern char *llmgw_http_header(const char *headers, const char *name);

/* The parts of a URL that policy is about. */
typedef struct LlmUrl
{
	char	   *scheme;			/* "http" or "https" */
	char	   *host;			/* lower case; an IPv6 address without
								 * brackets */
	int			port;			/* the scheme's default where none is given */
} LlmUrl;

/*
 * Splits a URL, palloc'd.  False with *reason set (a phrase, in words for a
 * user; it never repeats credentials) when it is none, is neither http nor
 * https, or has credentials, a query or a fragment.
 */
extern bool llmgw_http_split_url(const char *url, LlmUrl *result,
								 const char **reason);

/*
 * How many layers of compression a header line announces.  libcurl undoes them
 * while it cannot be interrupted.  What one makes of a network buffer is bounded,
 * and max_response_size ends it; of several, a few bytes can be minutes of work
 * that yields nothing.
 */
extern int	llmgw_http_codings(const char *line, size_t n);

/*
 * Addresses that no call goes to: link-local ones and those where clouds publish
 * a machine's credentials.  Checked on the resolved address, so that a name
 * cannot hide one.
 */
extern bool llmgw_http_forbids(const struct sockaddr *addr);

#endif							/* LLMGW_HTTP_H */
