/*-------------------------------------------------------------------------
 *
 * functions_secret.c
 *	  Keys that the database stores: llm_set_secret(), llm_drop_secret().
 *
 * A key comes in as an argument, the one moment at which it is in a
 * statement.  Before anything else can happen the statement is hidden, and
 * errors lose their context, which would show it.  The table is written
 * directly: a role that may execute the functions needs no right on it, and no
 * statement with the key as a parameter exists that another module could log.
 * Nothing gives the key back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "config.h"
#include "config_check.h"

PG_FUNCTION_INFO_V1(llmgw_sql_set_secret);
PG_FUNCTION_INFO_V1(llmgw_sql_drop_secret);
PG_FUNCTION_INFO_V1(llmgw_sql_secret_in);
PG_FUNCTION_INFO_V1(llmgw_sql_secret_out);

/* a row must fit a page: its value is never moved out of line */
#define MAX_STORED_KEY	7000

static const char *const set_statement = "SELECT llm_set_secret(...)";

/*
 * Opens _llm_secrets, locked against others who write it, and looks for a
 * secret: *tuple is its row, or NULL.
 */
static Relation
open_secrets(const char *name, HeapTuple *tuple)
{
	Oid			schema = llmgw_config_get()->schema;
	Oid			relid = get_relname_relid("_llm_secrets", schema);
	Relation	rel = table_open(relid, ShareRowExclusiveLock);
	ScanKeyData key;
	SysScanDesc scan;

	ScanKeyInit(&key, llmgw_typed_column(rel, "name", TEXTOID), BTEqualStrategyNumber,
				F_TEXTEQ, CStringGetTextDatum(name));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	*tuple = systable_getnext(scan);
	if (HeapTupleIsValid(*tuple))
		*tuple = heap_copytuple(*tuple);
	systable_endscan(scan);
	return rel;
}

/* The host as it is compared with that of a URL: "host" or "host:port". */
static char *
normal_host(const char *name, const char *host)
{
	LlmUrl		url;
	const char *reason;
	const char *colon;

	/* the port's colon is behind an IPv6 address's bracket */
	colon = strrchr(host, ':');
	if (colon != NULL && strchr(colon, ']') != NULL)
		colon = NULL;
	if (host[0] == '\0' || strpbrk(host, "/*@?#, \t\r\n") != NULL ||
		!llmgw_http_split_url(psprintf("https://%s", host), &url, &reason))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("allowed_host of secret \"%s\" must be a host or host:port",
						name),
				 errhint("Give the host of the provider's base_url, such as 'api.openai.com'.")));
	if (colon == NULL)
		return url.host;
	return strchr(url.host, ':') ? psprintf("[%s]:%d", url.host, url.port) :
		psprintf("%s:%d", url.host, url.port);
}

static void
check_secret_name(const char *name)
{
	LlmSecretRef ref;

	/* not shown: the arguments may have been swapped */
	if (!llmgw_secret_parse(psprintf("secret:%s", name), &ref))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of a secret must be 1 to 63 letters, digits or any of \"_.-\""),
				 errhint("The name comes first, then the key: llm_set_secret('openai', '...').")));
}

/*
 * llm_set_secret(name, value, allowed_host): stores a key, or replaces it with
 * all that belonged to it, so that the host it was bound to cannot be changed
 * without knowing it.
 */
Datum
llmgw_sql_set_secret(PG_FUNCTION_ARGS)
{
	ErrorContextCallback *context = error_context_stack;
	char	   *value = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *name = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *host = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	const char *problem;
	Relation	rel;
	HeapTuple	tuple;
	TimestampTz now = GetCurrentTimestamp();
	const char *const columns[] = {"name", "value", "allowed_host", "created_at", "updated_at"};
	Datum	   *values;
	bool	   *nulls;
	bool	   *replace;

	llmgw_hide_statement(set_statement, value);
	error_context_stack = NULL;

	if (name == NULL || value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s of a secret must not be null", name == NULL ? "name" : "value"),
				 name == NULL ?
				 errhint("The name comes first, then the key: llm_set_secret('openai', '...').") :
				 errhint("llm_drop_secret(name) deletes a secret.")));
	check_secret_name(name);
	problem = llmgw_secret_problem(value);
	if (problem == NULL && strlen(value) > MAX_STORED_KEY)
		problem = "is longer than 7000 bytes";
	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("value of secret \"%s\" %s", name, problem),
				 errhint("Give the key as the provider shows it.")));
	if (host != NULL)
		host = normal_host(name, host);
	PreventCommandIfReadOnly("llm_set_secret()");

	rel = open_secrets(name, &tuple);
	values = palloc0(sizeof(Datum) * RelationGetNumberOfAttributes(rel));
	nulls = palloc0(sizeof(bool) * RelationGetNumberOfAttributes(rel));
	replace = palloc0(sizeof(bool) * RelationGetNumberOfAttributes(rel));
	for (int i = 0; i < lengthof(columns); i++)
	{
		int			at = llmgw_column_number(rel, columns[i]) - 1;

		replace[at] = strcmp(columns[i], "created_at") != 0;
		switch (i)
		{
			case 0:
				values[at] = CStringGetTextDatum(name);
				break;
			case 1:
				values[at] = CStringGetTextDatum(llmgw_secret_salted(value));
				break;
			case 2:
				nulls[at] = host == NULL;
				if (host != NULL)
					values[at] = CStringGetTextDatum(host);
				break;
			default:
				values[at] = TimestampTzGetDatum(now);
				break;
		}
	}
	llmgw_writes_begin();
	if (HeapTupleIsValid(tuple))
		llmgw_row_update(rel, &tuple->t_self,
						 heap_modify_tuple(tuple, RelationGetDescr(rel),
										   values, nulls, replace));
	else
		llmgw_row_insert(rel, heap_form_tuple(RelationGetDescr(rel), values, nulls));

	llmgw_config_invalidate(rel);
	table_close(rel, NoLock);
	llmgw_writes_end();
	explicit_bzero(value, strlen(value));

	error_context_stack = context;
	PG_RETURN_VOID();
}

/* llm_drop_secret(name): whether there was one */
Datum
llmgw_sql_drop_secret(PG_FUNCTION_ARGS)
{
	char	   *name;
	Relation	rel;
	HeapTuple	tuple;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("name of a secret must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	check_secret_name(name);
	PreventCommandIfReadOnly("llm_drop_secret()");

	rel = open_secrets(name, &tuple);
	llmgw_writes_begin();
	if (HeapTupleIsValid(tuple))
	{
		llmgw_row_delete(rel, &tuple->t_self);
		llmgw_config_invalidate(rel);
	}
	table_close(rel, NoLock);
	llmgw_writes_end();
	PG_RETURN_BOOL(HeapTupleIsValid(tuple));
}

/* The type of the stored value: text that only superusers see. */
Datum
llmgw_sql_secret_in(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(llmgw_secret_salted(PG_GETARG_CSTRING(0))));
}

Datum
llmgw_sql_secret_out(PG_FUNCTION_ARGS)
{
	PG_RETURN_CSTRING(pstrdup(superuser() ?
							  text_to_cstring(PG_GETARG_TEXT_PP(0)) + LLMGW_SECRET_SALT :
							  "********"));
}
