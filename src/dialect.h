/*-------------------------------------------------------------------------
 *
 * dialect.h
 *	  How to speak with one kind of provider: a table of pure functions.
 *
 * A dialect turns what a call wants into an HTTP request and the bytes that
 * come back into an answer or an error class.  It does no I/O, reads no
 * table and no setting, and keeps no state: all that it knows is in its
 * arguments, and what it allocates is in the current memory context.  A
 * provider that speaks a new wire format is a new file with such a table and a
 * line in dialect.c.
 *
 * Strings are in the server's encoding, except the bodies that go to and come
 * from the wire, which are UTF-8.  Nothing in a provider's bytes makes these
 * functions raise an error: what is wrong with an answer is a field of it.
 *
 * What becomes part of an answer is allocated where llmgw_answer_init() was
 * called; everything else is garbage in the current memory context, which the
 * caller resets after each event or response.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_H
#define LLMGW_DIALECT_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "errors.h"
#include "http.h"
#include "sse.h"

/* Which of OpenAI's two names for the output limit a model accepts. */
typedef enum LlmTokenParam
{
	LLMGW_TOKENS_AUTO = 0,		/* the dialect knows or guesses */
	LLMGW_TOKENS_MAX_TOKENS,
	LLMGW_TOKENS_MAX_COMPLETION_TOKENS
} LlmTokenParam;

/* What one attempt wants, in no provider's words. */
typedef struct LlmWireCall
{
	/* the endpoint */
	const char *base_url;		/* NULL: the dialect's default */
	const char *api_key;		/* NULL: send none */
	Jsonb	   *options;		/* llm_providers.options; may be NULL */
	const char *model;			/* the provider's own name of the model */
	LlmTokenParam token_param;	/* what an earlier error taught, or AUTO */
	bool		stream;

	/* the content */
	const char *system_prompt;	/* NULL: none */
	const char *prompt;
	int			max_tokens;		/* 0: not limited by the caller */
	bool		has_temperature;
	float4		temperature;
	Jsonb	   *params;			/* checked; may be NULL */
} LlmWireCall;

/* Tokens as the provider counted them: input includes cached, output reasoning. */
typedef struct LlmUsage
{
	bool		known;
	int64		input;
	int64		cached_input;
	int64		cache_write;
	int64		output;
	int64		reasoning;
} LlmUsage;

/* A tool call under construction (its arguments come in pieces). */
typedef struct LlmToolCall
{
	char	   *id;
	char	   *name;
	StringInfoData arguments;	/* JSON text */
} LlmToolCall;

/*
 * An answer under construction, and at the end the outcome of the attempt.  It
 * is whole only if error is LLMGW_OK and complete is true.
 */
typedef struct LlmAnswer
{
	StringInfoData text;
	const char *finish_reason;	/* stop, length, tool_calls, content_filter,
								 * or the provider's own word; NULL: not said */
	bool		has_content;	/* a choice was seen, if only an empty one */
	bool		complete;		/* the model is done: nothing is missing */
	bool		ended;			/* the provider said that nothing more comes */
	char	   *refusal;		/* the model's words of refusal, or NULL */
	LlmUsage	usage;
	int			ntool_calls;
	LlmToolCall *tool_calls;

	const char *api_key;		/* masked in all that is shown; may be NULL */
	bool		hopeless;		/* an error that trying again cannot change */
	LlmErrorClass error;
	char	   *message;		/* what the provider said, cleaned; NULL:
								 * nothing */
	LlmTokenParam wants_token_param;	/* set by an error that asks for the
										 * other */
} LlmAnswer;

/* What a provider's headers and error body say about its limits; -1: nothing. */
typedef struct LlmRateInfo
{
	int64		retry_after_ms;
	int64		remaining_requests;
	int64		remaining_tokens;
	int64		reset_requests_ms;
	int64		reset_tokens_ms;
} LlmRateInfo;

typedef struct LlmDialect
{
	const char *kind;			/* llm_providers.kind */
	const char *default_base_url;	/* NULL: the kind has no public endpoint */
	LlmFraming	framing;		/* of a streamed answer */

	/*
	 * Fills url, headers, body or replay of a zeroed request.  Raises 22021
	 * when the prompt cannot be sent as UTF-8, nothing else.
	 */
	void		(*build_request) (const LlmWireCall *call, LlmHttpRequest *request);

	/* A whole JSON body with a 2xx status. */
	void		(*parse_response) (const LlmWireCall *call, const char *body,
								   size_t len, LlmAnswer *answer);

	/*
	 * One event of a streamed answer.  The first error stays; events after it
	 * are still read for the usage, so the caller may go on to the end.
	 */
	void		(*parse_event) (const LlmWireCall *call, const char *name,
								const char *data, size_t len, LlmAnswer *answer);

	/*
	 * The body of an error status: sets error and message.  The status
	 * decides first, then code, type and text of the body.
	 */
	void		(*read_error) (const LlmWireCall *call, int http_status,
							   const char *body, size_t len, LlmAnswer *answer);

	/*
	 * Limits, from the headers ("name: value" lines) and, in an error, the
	 * body (may be NULL).  wall_clock: seconds since the Unix epoch, for
	 * headers that give a date.
	 */
	void		(*read_limits) (const char *headers, const char *body, size_t len,
								int64 wall_clock, LlmRateInfo *info);

	/* A request that costs nothing and shows whether the endpoint is there. */
	void		(*probe_request) (const LlmWireCall *call, LlmHttpRequest *request);

	/*
	 * Checks llm_providers.options: NULL when fine, else a palloc'd reason
	 * for a user that names the key.
	 */
	char	   *(*check_options) (Jsonb *options);
} LlmDialect;

/* dialect.c */

/* the dialect of that kind; NULL when there is none */
extern const LlmDialect *llmgw_dialect_find(const char *kind);

/* the kinds there are, for messages: "openai, mock" */
extern const char *llmgw_dialect_kinds(void);

/*
 * Sets text to an empty buffer in the current context and the rest to zero.  The
 * key must live as long as the answer.
 */
extern void llmgw_answer_init(LlmAnswer *answer, const char *api_key);

/* Text from the provider, palloc'd, the key masked, then as llmgw_clean_text(). */
extern char *llmgw_answer_clean(const LlmAnswer *answer, const char *text,
								size_t max_bytes);

/* the context that the answer's parts live in */
#define llmgw_answer_context(answer)	GetMemoryChunkContext((answer)->text.data)

/* sets error and a copy of message, unless there is an error already */
extern void llmgw_answer_fail(LlmAnswer *answer, LlmErrorClass class,
							  const char *message);

/* the tool calls as a jsonb array in OpenAI's shape; NULL when there are none */
extern Jsonb *llmgw_answer_tool_calls(const LlmAnswer *answer);

/*
 * Whether a key is one of llm_complete's params; *problem is set to a phrase
 * for a user ("must be a number") when its value has the wrong type.
 */
extern bool llmgw_param_known(const char *key, const JsonbValue *value,
							  const char **problem);

/* the known keys, for messages */
extern const char *llmgw_param_names(void);

/* One key of a JSON object that a user writes. */
typedef enum LlmOptionType
{
	LLMGW_OPTION_BOOL,
	LLMGW_OPTION_INT,
	LLMGW_OPTION_NUMBER,
	LLMGW_OPTION_TEXT,
	LLMGW_OPTION_STOP,			/* a string or an array of up to 16 */
	LLMGW_OPTION_EXTRA,			/* members for the request's body */
	LLMGW_OPTION_HEADERS		/* strings that become HTTP headers */
} LlmOptionType;

typedef struct LlmOption
{
	const char *name;
	LlmOptionType type;
	int64		min;			/* of an integer */
	int64		max;
} LlmOption;

/*
 * Checks an object against n known keys, for check_options.  A null counts as
 * not given.
 */
extern char *llmgw_options_check(Jsonb *options, const LlmOption *known, int n);

/*
 * Limits as most providers send them: Retry-After and its relatives, OpenAI's
 * x-ratelimit-*, Google's RetryInfo, and "try again in 5.2s" in a message.
 */
extern void llmgw_read_limits(const char *headers, const char *body, size_t len,
							  int64 wall_clock, LlmRateInfo *info);

/* dialect_openai.c, used by dialects that share its wire format */
extern const LlmDialect llmgw_dialect_openai;

/* which name of the output limit a request will use; never AUTO */
extern LlmTokenParam llmgw_openai_token_param(const LlmWireCall *call);

/* dialect_openai_answer.c */
extern void llmgw_openai_parse_response(const LlmWireCall *call, const char *body,
										size_t len, LlmAnswer *answer);
extern void llmgw_openai_parse_event(const LlmWireCall *call, const char *name,
									 const char *data, size_t len, LlmAnswer *answer);
extern void llmgw_openai_read_error(const LlmWireCall *call, int http_status,
									const char *body, size_t len, LlmAnswer *answer);

/* dialect_mock.c */
extern const LlmDialect llmgw_dialect_mock;

#endif							/* LLMGW_DIALECT_H */
