/*-------------------------------------------------------------------------
 *
 * functions_provider.c
 *	  Watching providers: llm_provider_status, llm_probe, llm_breaker_open,
 *	  llm_breaker_reset.
 *
 * A provider is looked up as the session sees its row; which endpoint, and so
 * which circuit breaker, that is follows from the row (endpoint.h).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "endpoint.h"
#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_provider_status);
PG_FUNCTION_INFO_V1(llmgw_sql_probe);
PG_FUNCTION_INFO_V1(llmgw_sql_breaker_open);
PG_FUNCTION_INFO_V1(llmgw_sql_breaker_reset);

/* the columns of _llm_provider_status() */
enum
{
	PROVIDER,
	STATE,
	CONSECUTIVE_FAILURES,
	OPENED_AT,
	NEXT_PROBE_AT,
	IN_FLIGHT,
	LATENCY_MS,
	SUCCESSES,
	FAILURES,
	RATE_LIMITED_UNTIL,
	REASON,
	WAITING,
	LAST_ERROR,
	LAST_ERROR_AT,
	LAST_PROBE_AT,
	LAST_PROBE_OK,
	NSTATUS
};

/* the columns of llm_probe() */
enum
{
	PROBE_PROVIDER,
	PROBE_OK,
	PROBE_LATENCY_MS,
	PROBE_ERROR_CLASS,
	PROBE_MESSAGE,
	NPROBE
};

static int32
to_ms(int64 us)
{
	return (int32) Min((us + 500) / 1000, PG_INT32_MAX);
}

static void
put(Datum *values, bool *nulls, int column, Datum value)
{
	values[column] = value;
	nulls[column] = false;
}

/* 0: never, or not now */
static void
put_time(Datum *values, bool *nulls, int column, TimestampTz time)
{
	if (time != 0)
		put(values, nulls, column, TimestampTzGetDatum(time));
}

static void
status_row(const LlmProvider *provider, Datum *values, bool *nulls)
{
	LlmEndpointStatus s;

	if (!llmgw_endpoint_status(provider, &s))
		memset(&s, 0, sizeof(s));

	put(values, nulls, PROVIDER, CStringGetTextDatum(provider->name));
	put(values, nulls, STATE, CStringGetTextDatum(llmgw_breaker_state_name(s.state)));
	put(values, nulls, CONSECUTIVE_FAILURES, Int32GetDatum(s.consecutive_failures));
	put_time(values, nulls, OPENED_AT, s.opened_at);
	put_time(values, nulls, NEXT_PROBE_AT, s.next_probe_at);
	put(values, nulls, IN_FLIGHT, Int32GetDatum(s.in_flight));
	if (s.latency_us > 0)
		put(values, nulls, LATENCY_MS, Int32GetDatum(to_ms(s.latency_us)));
	put(values, nulls, SUCCESSES, Int64GetDatum((int64) s.successes));
	put(values, nulls, FAILURES, Int64GetDatum((int64) s.failures));
	put_time(values, nulls, RATE_LIMITED_UNTIL, s.rate_limited_until);
	if (s.state != LLMGW_BREAKER_CLOSED)
		put(values, nulls, REASON, CStringGetTextDatum(llmgw_breaker_reason_name(s.reason)));
	put(values, nulls, WAITING, Int32GetDatum(s.waiting));
	if (s.last_error != LLMGW_OK)
	{
		const char *class = llmgw_error_class_name(s.last_error);

		put(values, nulls, LAST_ERROR,
			CStringGetTextDatum(s.last_message[0] == '\0' ? class :
								psprintf("%s: %s", class, s.last_message)));
		put_time(values, nulls, LAST_ERROR_AT, s.last_error_at);
	}
	if (s.last_probe_at != 0)
	{
		put_time(values, nulls, LAST_PROBE_AT, s.last_probe_at);
		put(values, nulls, LAST_PROBE_OK, BoolGetDatum(s.last_probe_ok));
	}
}

Datum
llmgw_sql_provider_status(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	LlmConfig  *config;

	InitMaterializedSRF(fcinfo, 0);
	config = llmgw_config_get();
	for (int i = 0; i < config->nproviders; i++)
	{
		Datum		values[NSTATUS] = {0};
		bool		nulls[NSTATUS];

		memset(nulls, true, sizeof(nulls));
		status_row(&config->providers[i], values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* The provider that the first argument names; raises 22004 and 42704. */
static const LlmProvider *
provider_arg(FunctionCallInfo fcinfo, const LlmConfig *config)
{
	const LlmProvider *provider;
	StringInfoData names;
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("provider must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	provider = llmgw_config_provider(config, name);
	if (provider != NULL)
		return provider;

	initStringInfo(&names);
	for (int i = 0; i < config->nproviders; i++)
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", config->providers[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("provider \"%s\" does not exist", name),
			 config->nproviders > 0 ? errhint("Providers are: %s.", names.data) :
			 errhint("There is none; add one, for example: SELECT * FROM llm_add_provider('openai');")));
	return NULL;				/* not reached */
}

/* What came of a probe.  Whether it was sent or not, a provider's failure is no error. */
static void
probe_row(const LlmCall *call, Datum *values, bool *nulls)
{
	const LlmAttempt *last = call->nattempts > 0 ? &call->attempts[call->nattempts - 1] : NULL;
	bool		ok = call->error == LLMGW_OK;

	put(values, nulls, PROBE_PROVIDER, CStringGetTextDatum(call->spec->probe->name));
	put(values, nulls, PROBE_OK, BoolGetDatum(ok));
	if (last != NULL && last->sent)
		put(values, nulls, PROBE_LATENCY_MS, Int32GetDatum(to_ms(last->latency_us)));
	if (!ok)
	{
		put(values, nulls, PROBE_ERROR_CLASS,
			CStringGetTextDatum(llmgw_error_class_name(call->error)));
		put(values, nulls, PROBE_MESSAGE,
			CStringGetTextDatum(last != NULL && last->message != NULL ?
								last->message : call->message));
	}
}

Datum
llmgw_sql_probe(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[NPROBE] = {0};
	bool		nulls[NPROBE];
	MemoryContext context;
	MemoryContext old;
	LlmConfig  *config;
	LlmSpec    *spec;
	LlmCall    *call;

	InitMaterializedSRF(fcinfo, 0);
	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway run",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);

	llmgw_args_check_may_call();
	config = llmgw_config_get();
	llmgw_config_pin(config, context);
	spec = llmgw_probe_spec(config, provider_arg(fcinfo, config), LLMGW_ASK_FORCE);
	llmgw_args_set_caller(spec, GetOuterUserId());
	llmgw_ledger_open(config);
	call = llmgw_call_create(context, spec, "");
	llmgw_run_single(call, context);

	memset(nulls, true, sizeof(nulls));
	probe_row(call, values, nulls);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}

Datum
llmgw_sql_breaker_open(PG_FUNCTION_ARGS)
{
	const LlmProvider *provider = provider_arg(fcinfo, llmgw_config_get());

	if (!llmgw_endpoint_open(provider))
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("provider \"%s\" cannot be taken out of service: all slots are in use",
						provider->name),
				 errhint("Raise llm_gateway.max_providers and restart the server, or set llm_providers.enabled to false.")));
	PG_RETURN_VOID();
}

/* A provider that has no slot, and can have none, is in service as it is. */
Datum
llmgw_sql_breaker_reset(PG_FUNCTION_ARGS)
{
	(void) llmgw_endpoint_reset(provider_arg(fcinfo, llmgw_config_get()));
	PG_RETURN_VOID();
}
