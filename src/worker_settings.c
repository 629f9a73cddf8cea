/*-------------------------------------------------------------------------
 *
 * worker_settings.c
 *	  The settings that a worker works with, whatever its database says.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "worker.h"

/*
 * What the database, or a role, may have set for its sessions and must not
 * hold up or change the ledger.
 */
static const char *const forced_settings[][2] =
{
	/* what names and literals mean */
	{"search_path", "pg_catalog, pg_temp"},
	{"role", "none"},
	{"row_security", "off"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"bytea_output", "hex"},
	{"array_nulls", "on"},
	{"standard_conforming_strings", "on"},
	{"transform_null_equals", "off"},

	/* transactions; where there is an error, it shall come soon */
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_deferrable", "off"},
	{"lock_timeout", "100ms"},
	{"statement_timeout", "0"},
	{"transaction_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},

	/* durable here; callers wait for no standby */
	{"synchronous_commit", "local"},

	/* short statements that need no help */
	{"jit", "off"},
	{"max_parallel_workers_per_gather", "0"},

	{"application_name", LLMGW_WORKER_TYPE},
};

void
llmgw_worker_force_settings(void)
{
	for (int i = 0; i < lengthof(forced_settings); i++)
	{
		const char *name = forced_settings[i][0];

		/* some are unknown to older servers, or to one built without it */
		if (GetConfigOption(name, true, false) != NULL)
			SetConfigOption(name, forced_settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}
