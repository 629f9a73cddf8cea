/*-------------------------------------------------------------------------
 *
 * llm_gateway.c
 *	  Large language models from SQL: where the server finds the module.
 *
 * Only the initialization of each module; see docs/architecture.md.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "balance.h"
#include "cache.h"
#include "budget.h"
#include "compat.h"
#include "config.h"
#include "endpoint.h"
#include "estimate.h"
#include "guc.h"
#include "launcher.h"
#include "lifecycle.h"
#include "shmem.h"
#include "spool.h"

LLMGW_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	/*
	 * pg_upgrade loads every library into servers that preload nothing; it
	 * only wants to know that the file is there.
	 */
	if (IsBinaryUpgrade)
		return;

	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("llm_gateway must be loaded via shared_preload_libraries"),
				 errhint("Add this line to postgresql.conf and restart the server: shared_preload_libraries = 'llm_gateway'")));

	llmgw_guc_init();
	llmgw_shmem_init();
	llmgw_config_init();
	llmgw_spool_init();
	llmgw_endpoint_init();
	llmgw_balance_init();
	llmgw_estimate_init();
	llmgw_cache_init();
	llmgw_budget_init();
	llmgw_launcher_init();
	llmgw_lifecycle_init();
}
