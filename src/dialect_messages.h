/*-------------------------------------------------------------------------
 *
 * dialect_messages.h
 *	  A conversation in no provider's words: what dialects translate.
 *
 * Users write messages, tools and tool choices as OpenAI's chat completions
 * take them; here they are checked once and become structs.  Strings are in the
 * server's encoding; everything is palloc'd in the current context.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_MESSAGES_H
#define LLMGW_DIALECT_MESSAGES_H

#include "utils/jsonb.h"

typedef enum LlmRole
{
	LLMGW_ROLE_SYSTEM,			/* also "developer" */
	LLMGW_ROLE_USER,
	LLMGW_ROLE_ASSISTANT,
	LLMGW_ROLE_TOOL				/* the result of a tool call */
} LlmRole;

typedef enum LlmPartType
{
	LLMGW_PART_TEXT,
	LLMGW_PART_IMAGE_URL,		/* an http(s) URL that the provider fetches */
	LLMGW_PART_IMAGE_DATA		/* from a data: URL */
} LlmPartType;

typedef struct LlmPart
{
	LlmPartType type;
	const char *text;			/* the text, the URL, or the base64 data */
	const char *media_type;		/* of data, e.g. image/png; else NULL */
	const char *detail;			/* of an image: auto, low, high; or NULL */
} LlmPart;

/* A call of a tool that the assistant made. */
typedef struct LlmToolUse
{
	const char *id;
	const char *name;
	const char *arguments;		/* the text of a JSON object, never empty */
	const char *signature;		/* as LlmToolCall's; NULL: none */
} LlmToolUse;

typedef struct LlmMessage
{
	LlmRole		role;
	const char *name;			/* who speaks, for providers that take it;
								 * NULL: not said */
	int			nparts;
	LlmPart    *parts;			/* no empty texts; of a tool's result texts
								 * only, or none at all */
	int			ntool_uses;		/* of an assistant only */
	LlmToolUse *tool_uses;
	const char *tool_call_id;	/* of a tool's result: which call */
	const char *tool_name;		/* and of which tool; never NULL there */
} LlmMessage;

typedef struct LlmMessages
{
	int			n;
	LlmMessage *messages;
	int64		characters;		/* of all texts and arguments */
	bool		has_images;
	bool		has_image_urls; /* that the provider would have to fetch */
	bool		has_tools;		/* calls or results of tools */
} LlmMessages;

typedef struct LlmTool
{
	const char *name;
	const char *description;	/* NULL: none */
	Jsonb	   *parameters;		/* a JSON schema, an object; NULL: none */
	bool		strict;
} LlmTool;

typedef struct LlmTools
{
	int			n;
	LlmTool    *tools;
} LlmTools;

typedef enum LlmToolChoiceMode
{
	LLMGW_CHOICE_UNSET,			/* the provider's default */
	LLMGW_CHOICE_AUTO,
	LLMGW_CHOICE_NONE,
	LLMGW_CHOICE_REQUIRED,
	LLMGW_CHOICE_NAMED
} LlmToolChoiceMode;

typedef struct LlmToolChoice
{
	LlmToolChoiceMode mode;
	const char *name;			/* when NAMED */
} LlmToolChoice;

/* dialect_messages.c, dialect_tools.c */

/*
 * Each returns NULL (false) with *reason, palloc'd, a phrase for a user that
 * names the place and the remedy ("messages[2].content must be ..."), when the
 * document is not what OpenAI's API takes:
 *	- roles system, developer, user, assistant, tool;
 *	- content a string, or an array of parts of type text or image_url (user);
 *	  null or absent where an assistant calls tools;
 *	- each tool message answers an earlier assistant's call by its id; each call
 *	  is answered before the next user or assistant message;
 *	- arguments are the text of a JSON object ("" counts as {});
 *	- at least one user or tool message, and it does not end with an assistant.
 */
extern LlmMessages *llmgw_messages_parse(Jsonb *doc, char **reason);
extern LlmTools *llmgw_tools_parse(Jsonb *doc, char **reason);
extern bool llmgw_tool_choice_parse(Jsonb *doc, const LlmTools *tools,
									LlmToolChoice *choice, char **reason);

/* Which ids of tool calls a provider takes. */
typedef struct LlmCallIds
{
	const char *characters;		/* NULL: any */
	int			length;
	bool		exactly;		/* else up to that length */
} LlmCallIds;

/*
 * The conversation with ids that fit: calls that another provider made have
 * that one's.  What fits stays; another id becomes one that follows from it
 * alone, so a call and its result, and the same conversation later, agree.
 */
extern const LlmMessages *llmgw_messages_fit_ids(const LlmMessages *messages,
												 const LlmCallIds *ids);

/* One user message with that text, as llm_complete makes it. */
extern LlmMessages *llmgw_messages_from_prompt(const char *prompt);

/*
 * For providers that take system texts apart: all of them in order, joined by
 * an empty line, the call's system prompt first; NULL: none.
 */
extern char *llmgw_messages_system(const LlmMessages *messages, const char *system_prompt);

/*
 * For providers that take them as messages: what the first one says, where the call
 * has a system prompt besides the messages (else NULL), and the first of the messages
 * that is still to be sent.  One system message is sent and not two, which templates of
 * many open models refuse.
 */
extern const char *llmgw_messages_lead(const LlmMessages *messages, const char *system_prompt,
									   int *next);

/*
 * For providers that demand alternation: the messages without system ones,
 * consecutive ones of one side joined (a tool's result is on the user's side);
 * parts, tool uses and results keep their order.  A group's members are
 * messages [first, first + n) of the result's own array.
 */
typedef struct LlmTurn
{
	bool		assistant;		/* else the user's side */
	int			n;
	const LlmMessage **messages;
} LlmTurn;

extern LlmTurn *llmgw_messages_turns(const LlmMessages *messages, int *nturns);

#endif							/* LLMGW_DIALECT_MESSAGES_H */
