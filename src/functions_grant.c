/*-------------------------------------------------------------------------
 *
 * functions_grant.c
 *	  llm_grant() and llm_revoke(): what a role may do, in three words.
 *
 * Each runs ordinary GRANT or REVOKE statements with the rights of its caller,
 * so that PostgreSQL itself decides whether the caller may, records who
 * granted, and dumps the result.  Objects are those of the extension, whatever
 * else has the same name.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

#include "config.h"

PG_FUNCTION_INFO_V1(llmgw_sql_grant);
PG_FUNCTION_INFO_V1(llmgw_sql_revoke);

typedef enum Level
{
	CALL = 1,
	REPORT = 2,
	ADMIN = 4,
	LEDGER = 8
} Level;

/*
 * What each word gives.  LEDGER is the right to read the ledger: one's own rows,
 * or with REPORT all.  Two words give it; it is taken back with the last one.
 */
typedef struct Word
{
	const char *word;
	int			levels;
} Word;

static const Word words[] =
{
	{"call", CALL | LEDGER},
	{"report", REPORT | LEDGER},
	{"admin", CALL | REPORT | ADMIN | LEDGER},
};

/*
 * What each level is.  A kind is a keyword of GRANT, TABLE also of views.  Nobody
 * writes the ledger or objects that begin with _llm_, or reads secrets, and the
 * functions of this file are nobody's.
 */
typedef struct Privilege
{
	Level		level;
	const char *privileges;
	const char *kind;
	const char *name;
} Privilege;

static const Privilege privileges[] =
{
	{CALL, "EXECUTE", "FUNCTION", "llm_complete"},
	{CALL, "EXECUTE", "FUNCTION", "llm_complete_detail"},
	{CALL, "EXECUTE", "FUNCTION", "llm_complete_json"},
	{CALL, "EXECUTE", "FUNCTION", "llm_complete_batch"},
	{CALL, "EXECUTE", "FUNCTION", "llm_stream"},
	{CALL, "EXECUTE", "FUNCTION", "llm_chat"},
	{CALL, "EXECUTE", "FUNCTION", "llm_embed"},
	{CALL, "EXECUTE", "FUNCTION", "llm_embed_batch"},
	{CALL, "EXECUTE", "FUNCTION", "llm_route"},
	{CALL, "EXECUTE", "FUNCTION", "llm_estimate_cost"},

	{LEDGER, "SELECT", "TABLE", "llm_requests"},
	{LEDGER, "SELECT", "TABLE", "llm_attempts"},
	{LEDGER, "SELECT", "TABLE", "llm_daily_spend"},
	{LEDGER, "SELECT", "TABLE", "llm_cache"},
	{LEDGER, "SELECT", "TABLE", "llm_spend_today"},
	{LEDGER, "SELECT", "TABLE", "llm_fallback_report"},
	{LEDGER, "SELECT", "TABLE", "llm_routing_report"},
	{LEDGER, "SELECT", "TABLE", "llm_estimate_accuracy"},
	{LEDGER, "SELECT", "TABLE", "llm_downgrade_report"},
	{LEDGER, "EXECUTE", "FUNCTION", "_llm_budget_status"},
	{LEDGER, "SELECT", "TABLE", "llm_budget_status"},

	/* the ledger's policies ask for this one */
	{REPORT, "EXECUTE", "FUNCTION", "_llm_reports_all"},
	{REPORT, "EXECUTE", "FUNCTION", "_llm_worker_status"},
	{REPORT, "SELECT", "TABLE", "llm_worker_status"},
	{REPORT, "EXECUTE", "FUNCTION", "_llm_provider_status"},
	{REPORT, "SELECT", "TABLE", "llm_provider_status"},
	{REPORT, "SELECT", "TABLE", "llm_breaker_events"},
	{REPORT, "SELECT", "TABLE", "llm_budget_forecast"},
	{REPORT, "SELECT", "TABLE", "llm_savings_report"},
	{REPORT, "SELECT", "TABLE", "llm_providers"},
	{REPORT, "SELECT", "TABLE", "llm_models"},
	{REPORT, "SELECT", "TABLE", "llm_tiers"},
	{REPORT, "SELECT", "TABLE", "llm_priorities"},
	{REPORT, "SELECT", "TABLE", "llm_tasks"},
	{REPORT, "SELECT", "TABLE", "llm_routing_rules"},
	{REPORT, "SELECT", "TABLE", "llm_error_policies"},
	{REPORT, "SELECT", "TABLE", "llm_budgets"},
	/* or pg_dump could not be run by this role */
	{REPORT, "SELECT", "TABLE", "_llm_tombstones"},
	{REPORT, "SELECT", "TABLE", "_llm_budget_spend"},
	{REPORT, "SELECT", "SEQUENCE", "llm_routing_rules_id_seq"},
	{REPORT, "SELECT", "SEQUENCE", "_llm_budget_id_seq"},

	{ADMIN, "DELETE", "TABLE", "llm_cache"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_providers"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_models"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_tiers"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_priorities"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_tasks"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_routing_rules"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_error_policies"},
	{ADMIN, "INSERT, UPDATE, DELETE", "TABLE", "llm_budgets"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_add_provider"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_import_prices"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_set_secret"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_drop_secret"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_probe"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_breaker_open"},
	{ADMIN, "EXECUTE", "FUNCTION", "llm_breaker_reset"},
};

static void
run(const char *statement)
{
	int			result = SPI_execute(statement, false, 0);

	if (result != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(result));
}

/*
 * One member of the extension: grants or revokes what the table above says of
 * its name.
 */
static void
change_member(const Form_pg_depend member, int levels, const char *role, bool grant)
{
	Oid			oid = member->objid;
	bool		function = member->classid == ProcedureRelationId;
	char	   *name = function ? get_func_name(oid) : get_rel_name(oid);

	if (name == NULL)
		return;

	for (int i = 0; i < lengthof(privileges); i++)
	{
		const char *identity;

		if ((privileges[i].level & levels) == 0 ||
			strcmp(privileges[i].name, name) != 0 ||
			(strcmp(privileges[i].kind, "FUNCTION") == 0) != function)
			continue;
		if (function)
			identity = format_procedure_qualified(oid);
		else
		{
			char	   *schema = get_namespace_name(get_rel_namespace(oid));

			identity = quote_qualified_identifier(schema, name);
		}
		run(psprintf("%s %s ON %s %s %s %s", grant ? "GRANT" : "REVOKE",
					 privileges[i].privileges, privileges[i].kind, identity,
					 grant ? "TO" : "FROM", role));
	}
}

/* Whether the role itself, not one that it inherits from, may execute it. */
static bool
executes(Oid function, Oid role)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Datum		datum;
	bool		isnull;
	bool		result = false;

	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proacl, &isnull);
	if (!isnull)
	{
		Acl		   *acl = DatumGetAclP(datum);
		AclItem    *items = ACL_DAT(acl);

		for (int i = 0; i < ACL_NUM(acl); i++)
			if (items[i].ai_grantee == role &&
				(ACLITEM_GET_PRIVS(items[i]) & ACL_EXECUTE) != 0)
				result = true;
	}
	ReleaseSysCache(tuple);
	return result;
}

/* Whether the role still has a function of a word that gives LEDGER. */
static bool
keeps_ledger(List *members, Oid role)
{
	ListCell   *lc;

	foreach(lc, members)
	{
		const Form_pg_depend member = lfirst(lc);
		char	   *name;

		if (member->classid != ProcedureRelationId ||
			!executes(member->objid, role))
			continue;
		name = get_func_name(member->objid);
		for (int i = 0; name != NULL && i < lengthof(privileges); i++)
			if ((privileges[i].level & (CALL | REPORT)) != 0 &&
				strcmp(privileges[i].kind, "FUNCTION") == 0 &&
				strcmp(privileges[i].name, name) == 0)
				return true;
	}
	return false;
}

static void
change(FunctionCallInfo fcinfo, bool grant)
{
	LlmConfig  *config = llmgw_config_get();
	Oid			extension = config->extension;
	Oid			schema = config->schema;
	Oid			role_oid;
	char	   *role;
	char	   *word;
	int			levels = 0;
	Relation	depend;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *members = NIL;
	ListCell   *lc;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("role must not be null")));
	role_oid = PG_GETARG_OID(0);
	role = GetUserNameFromId(role_oid, true);
	if (role == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", role_oid)));
	role = pstrdup(quote_identifier(role));

	word = PG_ARGISNULL(1) ? pstrdup("call") : text_to_cstring(PG_GETARG_TEXT_PP(1));
	for (int i = 0; i < lengthof(words); i++)
		if (strcmp(words[i].word, word) == 0)
			levels = words[i].levels;
	if (levels == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("what a role may do must be call, report or admin, not \"%s\"", word),
				 errhint("call: make calls; report: read configuration and reports; admin: both, and configure.")));

	/* settled before the first statement changes a catalog */
	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend member = (Form_pg_depend) GETSTRUCT(tuple);

		if (member->deptype == DEPENDENCY_EXTENSION &&
			(member->classid == ProcedureRelationId ||
			 member->classid == RelationRelationId))
			members = lappend(members, memcpy(palloc(sizeof(*member)), member,
											  sizeof(*member)));
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);

	SPI_connect();

	/*
	 * The right to use the schema is given where it is missing, and never
	 * taken back: it may be there for other objects.
	 */
	if (grant &&
		!DatumGetBool(DirectFunctionCall3(has_schema_privilege_id_id,
										  ObjectIdGetDatum(role_oid),
										  ObjectIdGetDatum(schema),
										  CStringGetTextDatum("USAGE"))))
		run(psprintf("GRANT USAGE ON SCHEMA %s TO %s",
					 quote_identifier(get_namespace_name(schema)), role));
	foreach(lc, members)
		change_member(lfirst(lc), grant ? levels : levels & ~LEDGER, role, grant);
	if (!grant && !keeps_ledger(members, role_oid))
		foreach(lc, members)
			change_member(lfirst(lc), LEDGER, role, false);

	SPI_finish();
}

/* llm_grant(role, what) */
Datum
llmgw_sql_grant(PG_FUNCTION_ARGS)
{
	change(fcinfo, true);
	PG_RETURN_VOID();
}

/* llm_revoke(role, what) */
Datum
llmgw_sql_revoke(PG_FUNCTION_ARGS)
{
	change(fcinfo, false);
	PG_RETURN_VOID();
}
