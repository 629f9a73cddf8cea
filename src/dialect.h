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

#include "dialect_messages.h"
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

/*
 * What a request can do without, where a model or a server cannot take it: it
 * changes how an answer reads, not what is asked.  In the order in which they
 * are named.
 */
typedef enum LlmParam
{
	LLMGW_PARAM_TEMPERATURE,
	LLMGW_PARAM_TOP_P,
	LLMGW_PARAM_TOP_K,
	LLMGW_PARAM_MIN_P,
	LLMGW_PARAM_SEED,
	LLMGW_PARAM_PRESENCE_PENALTY,
	LLMGW_PARAM_FREQUENCY_PENALTY,
	LLMGW_PARAM_REASONING_EFFORT,
	LLMGW_PARAM_VERBOSITY,
	LLMGW_PARAM_USER,
	LLMGW_PARAM_TOOLS,			/* that must not be called */
	LLMGW_PARAM_TOOL_CHOICE,	/* any but "none" */
	LLMGW_PARAM_JSON_SCHEMA,	/* where words will do */
	LLMGW_NPARAMS
} LlmParam;

/* a set of them */
typedef uint32 LlmParams;

#define LLMGW_PARAM_BIT(param)	((LlmParams) 1 << (param))

/* How an error refuses the parameters that it names. */
typedef enum LlmParamRefusal
{
	LLMGW_REFUSED_NOTHING = 0,
	LLMGW_REFUSED_VALUE,		/* the value is wrong, or nobody knows */
	LLMGW_REFUSED_HERE,			/* the model does not take it, so */
	LLMGW_REFUSED_EVER			/* the model does not have it at all */
} LlmParamRefusal;

/* What one attempt wants, in no provider's words. */
typedef struct LlmWireCall
{
	/* the endpoint */
	const char *base_url;		/* NULL: the dialect's default */
	const char *api_key;		/* NULL: send none */
	Jsonb	   *options;		/* llm_providers.options; may be NULL */
	const char *model;			/* the provider's own name of the model */
	LlmTokenParam token_param;	/* what an earlier error taught, or AUTO */
	bool		no_usage;		/* nor to ask for the usage of a stream */
	bool		stream;

	/* the content */
	const char *system_prompt;	/* NULL: none; goes before all messages */
	const LlmMessages *messages;
	const LlmTools *tools;		/* NULL: none */
	LlmToolChoice tool_choice;
	Jsonb	   *schema;			/* the answer must be JSON of this schema, in
								 * the provider's own way; NULL: any text */
	int			max_tokens;		/* 0: not limited by the caller; no more than
								 * max_output_tokens */
	int			max_output_tokens;	/* what the model can give; 0: unknown */
	bool		has_temperature;
	float4		temperature;
	Jsonb	   *params;			/* checked; may be NULL */

	/* or, for an embedding request, the inputs instead of messages */
	int			ninputs;
	const char *const *inputs;
	int			dimensions;		/* 0: the model's own */
} LlmWireCall;

/*
 * Tokens as the provider counted them: input includes cached, output reasoning.
 * Not known, but with some: the provider has counted only so many as yet.
 */
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
	char	   *signature;		/* what the provider wants back with it, in
								 * base64 (Gemini); NULL: nothing */
	StringInfoData arguments;	/* JSON text */
	int64		block;			/* where pieces name the part of the answer
								 * that they belong to: its number */
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
	bool		usage_apart;	/* it came in an event of its own */
	int64		output_alone;	/* the output as the provider counted it,
								 * where it did not count the input; else 0 */
	int			ntool_calls;
	LlmToolCall *tool_calls;

	/* of an embedding request: nvectors × dimensions numbers, by input */
	int			nvectors;
	int			dimensions;
	float4	   *vectors;

	const char *api_key;		/* masked in all that is shown; may be NULL */
	bool		hopeless;		/* an error that trying again cannot change */
	LlmErrorClass error;
	char	   *message;		/* what the provider said, cleaned; NULL:
								 * nothing */
	LlmTokenParam wants_token_param;	/* set by an error that asks for the
										 * other */
	bool		wants_no_usage; /* set by an error that refuses to be asked
								 * for the usage of a stream */
	LlmParams	refused;		/* that an error names */
	LlmParamRefusal how_refused;
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
	bool		ends_with_connection;	/* nothing else says that a stream is
										 * whole */
	bool		fetches_images; /* takes the URL of an image, not only data */
	bool		takes_schema;	/* can be told a JSON schema for the answer */
	int			max_inputs;		/* of one embedding request; 0: the kind makes
								 * none */

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
	 * headers that give a date where there is no header Date to compare it
	 * with.
	 */
	void		(*read_limits) (const char *headers, const char *body, size_t len,
								int64 wall_clock, LlmRateInfo *info);

	/*
	 * An embedding request, and the whole body of its answer with a 2xx
	 * status: sets vectors, usage and complete, or an error.  NULL where
	 * max_inputs is 0.
	 */
	void		(*build_embedding) (const LlmWireCall *call, LlmHttpRequest *request);
	void		(*parse_embedding) (const LlmWireCall *call, const char *body,
									size_t len, LlmAnswer *answer);

	/* A request that costs nothing and shows whether the endpoint is there. */
	void		(*probe_request) (const LlmWireCall *call, LlmHttpRequest *request);

	/*
	 * Checks llm_providers.options: NULL when fine, else a palloc'd reason
	 * for a user that names the key.
	 */
	char	   *(*check_options) (Jsonb *options);

	/*
	 * Those of the call's parameters that the kind or the endpoint has no
	 * words for.  NULL: it has them for all.
	 */
	LlmParams	(*lacks) (const LlmWireCall *call);

	/*
	 * Why the kind cannot do what params demand and the answer's meaning
	 * depends on; NULL: it can.  A NULL function: it can do all.
	 */
	const char *(*cannot) (Jsonb *params);
} LlmDialect;

/* dialect.c */

/* the dialect of that kind; NULL when there is none */
extern const LlmDialect *llmgw_dialect_find(const char *kind);

/* the kinds there are, for messages: "openai, anthropic, mock" */
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

/*
 * Of an answer that is complete: fails it when a tool call cannot be made as it
 * is, and gives each an id, from the prefix, where the provider gave none or the
 * same twice.
 */
extern void llmgw_answer_end_tools(LlmAnswer *answer, const char *prefix);

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
	LLMGW_OPTION_CALLER_EXTRA,	/* the same, but for what changes the price */
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

/* dialect_params.c */

/* a parameter's name, as users write it */
extern const char *llmgw_param_name(LlmParam param);

/*
 * The parameters that the request would have from us; not those that "extra"
 * writes.  Of a schema it is not known here whether words would do.
 */
extern LlmParams llmgw_params_given(const LlmWireCall *call);

/* Whether its value in params says no more than leaving it out. */
extern bool llmgw_param_is_idle(Jsonb *params, LlmParam param);

/* Takes parameters out of the call; the JSON that is changed is a copy. */
extern void llmgw_params_leave_out(LlmWireCall *call, LlmParams params);

/*
 * Of an answer that failed with LLMGW_INVALID_REQUEST, by the status and body of
 * the error: sets refused and how_refused.
 */
extern void llmgw_params_read_refusal(int http_status, const char *body, size_t len,
									  LlmAnswer *answer);

/* How many strings a "stop" in params has; of one that is a string, 1. */
extern int	llmgw_params_stops(Jsonb *params);

/* One of them, palloc'd. */
extern char *llmgw_params_stop(Jsonb *params, int i);

/* dialect_limits.c */

/*
 * Limits as most providers send them: Retry-After and its relatives, OpenAI's
 * x-ratelimit-*, Anthropic's anthropic-ratelimit-*, Google's RetryInfo, and
 * "try again in 5.2s" in a message.
 */
extern void llmgw_read_limits(const char *headers, const char *body, size_t len,
							  int64 wall_clock, LlmRateInfo *info);

/* dialect_openai.c, used by dialects that share its wire format */
extern const LlmDialect llmgw_dialect_openai;

/* whether the endpoint is OpenAI's own */
extern bool llmgw_openai_is_original(const LlmWireCall *call);

/* OpenAI's "string too long. Expected a string with maximum length 40" */
#define LLMGW_OPENAI_MAX_CALL_ID	40

/* which name of the output limit a request will use; never AUTO */
extern LlmTokenParam llmgw_openai_token_param(const LlmWireCall *call);

/* Each writes the body, and nothing else, of a request. */
extern void llmgw_openai_put_chat(const LlmWireCall *call, LlmHttpRequest *request);
extern void llmgw_openai_put_embedding(const LlmWireCall *call, LlmHttpRequest *request);

/* for check_options: what is wrong with "token_parameter"; NULL: nothing */
extern char *llmgw_openai_check_token_param(Jsonb *options);

/* inputs of one embedding request */
#define LLMGW_OPENAI_MAX_INPUTS		2048

/* dialect_openai_schema.c */

/* whether the provider can hold an answer to it, rather than only advise the model */
extern bool llmgw_openai_schema_is_strict(Jsonb *schema);

/* dialect_openai_answer.c */
extern void llmgw_openai_parse_embedding(const LlmWireCall *call, const char *body,
										 size_t len, LlmAnswer *answer);
extern void llmgw_openai_parse_response(const LlmWireCall *call, const char *body,
										size_t len, LlmAnswer *answer);
extern void llmgw_openai_parse_event(const LlmWireCall *call, const char *name,
									 const char *data, size_t len, LlmAnswer *answer);
extern void llmgw_openai_read_error(const LlmWireCall *call, int http_status,
									const char *body, size_t len, LlmAnswer *answer);

/* dialect_anthropic.c */
extern const LlmDialect llmgw_dialect_anthropic;

/*
 * The name of the tool that stands for an answer in the call's schema; NULL:
 * none is offered.  *wrapped says whether the answer is its input's only
 * member.
 */
extern const char *llmgw_anthropic_answer_tool(const LlmWireCall *call, bool *wrapped);

/* dialect_anthropic_answer.c */
extern void llmgw_anthropic_parse_response(const LlmWireCall *call, const char *body,
										   size_t len, LlmAnswer *answer);
extern void llmgw_anthropic_parse_event(const LlmWireCall *call, const char *name,
										const char *data, size_t len, LlmAnswer *answer);
extern void llmgw_anthropic_read_error(const LlmWireCall *call, int http_status,
									   const char *body, size_t len, LlmAnswer *answer);

/* dialect_azure.c */
extern const LlmDialect llmgw_dialect_azure;

/* dialect_gemini.c */
extern const LlmDialect llmgw_dialect_gemini;

/* dialect_gemini_answer.c */
extern void llmgw_gemini_parse_response(const LlmWireCall *call, const char *body,
										size_t len, LlmAnswer *answer);
extern void llmgw_gemini_parse_event(const LlmWireCall *call, const char *name,
									 const char *data, size_t len, LlmAnswer *answer);
extern void llmgw_gemini_parse_embedding(const LlmWireCall *call, const char *body,
										 size_t len, LlmAnswer *answer);
extern void llmgw_gemini_read_error(const LlmWireCall *call, int http_status,
									const char *body, size_t len, LlmAnswer *answer);

/* dialect_ollama.c */
extern const LlmDialect llmgw_dialect_ollama;

/* dialect_ollama_answer.c */
extern void llmgw_ollama_parse_response(const LlmWireCall *call, const char *body,
										size_t len, LlmAnswer *answer);
extern void llmgw_ollama_parse_event(const LlmWireCall *call, const char *name,
									 const char *data, size_t len, LlmAnswer *answer);
extern void llmgw_ollama_parse_embedding(const LlmWireCall *call, const char *body,
										 size_t len, LlmAnswer *answer);
extern void llmgw_ollama_read_error(const LlmWireCall *call, int http_status,
									const char *body, size_t len, LlmAnswer *answer);

/* dialect_mock.c */
extern const LlmDialect llmgw_dialect_mock;

#endif							/* LLMGW_DIALECT_H */
