/*-------------------------------------------------------------------------
 *
 * secret.c
 *	  References to keys: their form, and reading what they refer to.
 *
 * Reasons that this file gives name the reference, never the value; what does
 * not parse as a reference may be a key pasted in its place, so it is not
 * repeated either.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "storage/fd.h"

#include "guc.h"
#include "secret.h"

#define MAX_KEY_LENGTH		8192
#define MAX_NAME_LENGTH		63

/* [A-Za-z_][A-Za-z0-9_]*: what POSIX shells accept */
static bool
is_env_name(const char *name)
{
	if (!isalpha((unsigned char) *name) && *name != '_')
		return false;
	for (; *name; name++)
	{
		if (IS_HIGHBIT_SET(*name) ||
			(!isalnum((unsigned char) *name) && *name != '_'))
			return false;
	}
	return true;
}

/*
 * [A-Za-z0-9_.-]{1,63}.  A file's name has no directory, and does not begin
 * with a dot, so that it stays below llm_gateway.secret_directory.
 */
static bool
is_plain_name(const char *name, bool leading_dot)
{
	size_t		len = strlen(name);

	if (len == 0 || len > MAX_NAME_LENGTH || (*name == '.' && !leading_dot))
		return false;
	for (; *name; name++)
	{
		if (IS_HIGHBIT_SET(*name) ||
			(!isalnum((unsigned char) *name) && strchr("_.-", *name) == NULL))
			return false;
	}
	return true;
}

bool
llmgw_secret_parse(const char *str, LlmSecretRef *ref)
{
	ref->kind = LLMGW_SECRET_NONE;
	ref->name = NULL;
	if (str == NULL)
		return true;

	if (strncmp(str, "env:", 4) == 0 && is_env_name(str + 4))
	{
		ref->kind = LLMGW_SECRET_ENV;
		ref->name = str + 4;
	}
	else if (strncmp(str, "file:", 5) == 0 && is_plain_name(str + 5, false))
	{
		ref->kind = LLMGW_SECRET_FILE;
		ref->name = str + 5;
	}
	else if (strncmp(str, "secret:", 7) == 0 && is_plain_name(str + 7, true))
	{
		ref->kind = LLMGW_SECRET_STORED;
		ref->name = str + 7;
	}
	return ref->kind != LLMGW_SECRET_NONE;
}

/*
 * Whether the name matches a pattern of that length, in which '*' stands for
 * any characters.  Goes back only to the last '*': linear in practice.
 */
static bool
glob_matches(const char *pattern, size_t len, const char *name)
{
	const char *end = pattern + len;
	const char *star = NULL;	/* behind the last '*' */
	const char *retry = NULL;	/* where in name to try it next */

	while (*name != '\0')
	{
		if (pattern < end && *pattern == '*')
		{
			star = ++pattern;
			retry = name;
		}
		else if (pattern < end && *pattern == *name)
		{
			pattern++;
			name++;
		}
		else if (star != NULL)
		{
			pattern = star;
			name = ++retry;
		}
		else
			return false;
	}
	while (pattern < end && *pattern == '*')
		pattern++;
	return pattern == end;
}

bool
llmgw_secret_env_allowed(const char *name)
{
	const char *p = llmgw_secret_env_pattern ? llmgw_secret_env_pattern : "";

	for (;;)
	{
		size_t		len;
		const char *next;

		while (isspace((unsigned char) *p))
			p++;
		len = strcspn(p, ",");
		next = p + len;
		while (len > 0 && isspace((unsigned char) p[len - 1]))
			len--;
		if (len > 0 && glob_matches(p, len, name))
			return true;
		if (*next == '\0')
			return false;
		p = next + 1;
	}
}

const char *
llmgw_secret_from_env(const char *name, char **reason)
{
	const char *value;
	const char *problem;

	*reason = NULL;
	if (!llmgw_secret_env_allowed(name))
	{
		*reason = psprintf("llm_gateway.secret_env_pattern does not allow the environment variable \"%s\"",
						   name);
		return NULL;
	}
	value = getenv(name);
	if (value == NULL)
	{
		*reason = psprintf("environment variable \"%s\" is not set for the server",
						   name);
		return NULL;
	}
	problem = llmgw_secret_problem(value);
	if (problem != NULL)
	{
		*reason = psprintf("environment variable \"%s\" %s", name, problem);
		return NULL;
	}
	return value;
}

char *
llmgw_secret_from_file(const char *name, char **reason)
{
	char		path[MAXPGPATH];
	char		value[MAX_KEY_LENGTH + 2];
	struct stat st;
	const char *problem;
	ssize_t		len;
	int			fd;

	*reason = NULL;
	if (llmgw_secret_directory == NULL || llmgw_secret_directory[0] == '\0')
	{
		*reason = psprintf("key file \"%s\" cannot be read: llm_gateway.secret_directory is not set",
						   name);
		return NULL;
	}

	/*
	 * The name has no slash and no leading dot (llmgw_secret_parse), so the
	 * file is in that directory.  Not blocking: it might be a pipe.
	 */
	snprintf(path, sizeof(path), "%s/%s", llmgw_secret_directory, name);
	fd = BasicOpenFile(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
	{
		*reason = psprintf("key file \"%s\" cannot be read: %m", name);
		return NULL;
	}
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
	{
		close(fd);
		*reason = psprintf("key file \"%s\" is not a regular file", name);
		return NULL;
	}
	len = read(fd, value, sizeof(value) - 1);
	close(fd);
	if (len < 0)
	{
		*reason = psprintf("key file \"%s\" cannot be read: %m", name);
		return NULL;
	}
	value[len] = '\0';

	/* editors end a file with a line break */
	if (len > 0 && value[len - 1] == '\n')
		value[--len] = '\0';
	if (len > 0 && value[len - 1] == '\r')
		value[--len] = '\0';
	if (strlen(value) != len)
		problem = "contains a NUL byte";
	else if (strchr(value, '\n') != NULL)
		problem = "has several lines, and must be one with the key";
	else
		problem = llmgw_secret_problem(value);
	if (problem != NULL)
	{
		explicit_bzero(value, sizeof(value));
		*reason = psprintf("key file \"%s\" %s", name, problem);
		return NULL;
	}
	return pstrdup(value);
}

const char *
llmgw_secret_problem(const char *value)
{
	bool		blank = true;

	if (value == NULL || *value == '\0')
		return "is empty";
	if (strnlen(value, MAX_KEY_LENGTH + 1) > MAX_KEY_LENGTH)
		return "is longer than 8 kB";
	for (; *value; value++)
	{
		/* a line break would end the header that carries the key */
		if ((unsigned char) *value < ' ' || *value == 0x7F)
			return "contains a control character";
		if (*value != ' ')
			blank = false;
	}
	return blank ? "is blank" : NULL;
}

char *
llmgw_secret_salted(const char *key)
{
	unsigned char salt[LLMGW_SECRET_SALT / 2];
	StringInfoData buf;

	if (!pg_strong_random(salt, sizeof(salt)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	initStringInfo(&buf);
	for (int i = 0; i < lengthof(salt); i++)
		appendStringInfo(&buf, "%02x", salt[i]);
	appendStringInfoString(&buf, key);
	return buf.data;
}
