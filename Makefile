# llm_gateway: PGXS build.
#
#   make && sudo make install        (PG_CONFIG=/path/to/pg_config for another server)
#   make installcheck                against a running server that preloads llm_gateway

EXTENSION = llm_gateway
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/llm_gateway.control)
PGFILEDESC = "llm_gateway - large language models from SQL"

MODULE_big = llm_gateway
OBJS = \
	llm_gateway.o \
	src/balance.o \
	src/breaker.o \
	src/budget.o \
	src/budget_accounts.o \
	src/budget_load.o \
	src/budget_math.o \
	src/budget_period.o \
	src/cache.o \
	src/cache_flight.o \
	src/cache_similar.o \
	src/cache_vector.o \
	src/call.o \
	src/call_budget.o \
	src/call_cache.o \
	src/call_degrade.o \
	src/call_end.o \
	src/call_next.o \
	src/call_probe.o \
	src/call_record.o \
	src/call_schema.o \
	src/call_similar.o \
	src/config.o \
	src/config_budgets.o \
	src/config_check.o \
	src/config_host.o \
	src/config_load.o \
	src/config_refs.o \
	src/config_rows.o \
	src/config_rules.o \
	src/config_seed.o \
	src/config_write.o \
	src/cost.o \
	src/dialect.o \
	src/dialect_answer.o \
	src/dialect_anthropic.o \
	src/dialect_anthropic_answer.o \
	src/dialect_azure.o \
	src/dialect_gemini.o \
	src/dialect_gemini_answer.o \
	src/dialect_limits.o \
	src/dialect_messages.o \
	src/dialect_mock.o \
	src/dialect_mock_content.o \
	src/dialect_ollama.o \
	src/dialect_ollama_answer.o \
	src/dialect_openai.o \
	src/dialect_openai_answer.o \
	src/dialect_openai_schema.o \
	src/dialect_params.o \
	src/dialect_reader.o \
	src/dialect_request.o \
	src/dialect_tools.o \
	src/dialect_vectors.o \
	src/endpoint.o \
	src/endpoint_admit.o \
	src/endpoint_events.o \
	src/endpoint_health.o \
	src/endpoint_look.o \
	src/endpoint_status.o \
	src/engine.o \
	src/errors.o \
	src/estimate.o \
	src/functions.o \
	src/functions_admin.o \
	src/functions_admin_rules.o \
	src/functions_args.o \
	src/functions_batch.o \
	src/functions_budget.o \
	src/functions_chat.o \
	src/functions_embed.o \
	src/functions_embed_batch.o \
	src/functions_grant.o \
	src/functions_json.o \
	src/functions_prices.o \
	src/functions_prices_entry.o \
	src/functions_provider.o \
	src/functions_route.o \
	src/functions_secret.o \
	src/functions_status.o \
	src/functions_stream.o \
	src/guc.o \
	src/http.o \
	src/http_url.o \
	src/json.o \
	src/json_schema_check.o \
	src/json_schema_ecma.o \
	src/json_schema_format.o \
	src/json_schema_keywords.o \
	src/json_schema_pattern.o \
	src/json_schema_reason.o \
	src/json_schema_text.o \
	src/json_schema_validate.o \
	src/json_schema_value.o \
	src/judge.o \
	src/launcher.o \
	src/ledger.o \
	src/ledger_book.o \
	src/ledger_budgets.o \
	src/ledger_events.o \
	src/ledger_facts.o \
	src/ledger_hash.o \
	src/ledger_keep.o \
	src/ledger_open.o \
	src/ledger_position.o \
	src/ledger_post.o \
	src/ledger_record.o \
	src/ledger_retain.o \
	src/ledger_rows.o \
	src/ledger_source.o \
	src/ledger_spend.o \
	src/ledger_tables.o \
	src/lifecycle.o \
	src/limiter.o \
	src/loop.o \
	src/presets.o \
	src/route.o \
	src/route_index.o \
	src/route_order.o \
	src/scope.o \
	src/secret.o \
	src/shmem.o \
	src/spool.o \
	src/spool_drain.o \
	src/spool_file.o \
	src/spool_read.o \
	src/spool_write.o \
	src/sse.o \
	src/tier.o \
	src/worker.o \
	src/worker_attempt.o \
	src/worker_probe.o \
	src/worker_settings.o \
	src/worker_slot.o

DATA = llm_gateway--1.0.sql

REGRESS = $(sort $(patsubst $(srcdir)/sql/%.sql,%,$(wildcard $(srcdir)/sql/*.sql)))
ISOLATION = $(sort $(patsubst $(srcdir)/specs/%.spec,%,$(wildcard $(srcdir)/specs/*.spec)))
TAP_TESTS = 1
REGRESS_OPTS = --inputdir=$(srcdir) --load-extension=llm_gateway
ISOLATION_OPTS = $(REGRESS_OPTS)

srcdir ?= .
PG_CPPFLAGS = -I$(srcdir)/src $(shell curl-config --cflags) -DLLM_GATEWAY_VERSION='"$(EXTVERSION)"' \
	-Wall -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	$(LLM_GATEWAY_CFLAGS)
SHLIB_LINK = $(shell curl-config --libs)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Debian's PGXS is built without dependency tracking: track headers ourselves,
# or an edited header leaves stale objects behind.
COMPILE.c += -MMD -MP -MF $(@:.o=.d)
-include $(OBJS:.o=.d)
EXTRA_CLEAN += $(OBJS:.o=.d)

# PGXS declares every file secondary, so make would not miss the object of a
# file that was just added to OBJS.
$(shlib): $(srcdir)/Makefile
