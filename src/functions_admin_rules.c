/*-------------------------------------------------------------------------
 *
 * functions_admin_rules.c
 *	  The routing rules that llm_add_provider() brings.
 *
 * Rules are added for a preset only, and only where there is none at all:
 * a rule that the user did not write must not change where existing ones send
 * a call.
 *
 * So a second provider becomes no fallback by itself, except for models that
 * the first one has under the same name: a rule names a model, wherever it is.
 * Who else may read the prompts is for the user to say; a notice says how.
 *
 * Embeddings have a rule of their own, judged by itself: rules for completions
 * choose no model for them, nor the other way round.  It is one rule, since
 * another model's vectors are none for the same index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "functions_admin.h"

/*
 * What a rule calls a model of the preset: by its name alone, which stands for
 * every provider that has it; but where that reads as another provider's model
 * (openai/gpt-5 of OpenRouter), by the provider's name and its own.
 */
static const char *
rule_name(const LlmAdding *adding, const char *model)
{
	const char *slash = strchr(model, '/');
	const LlmPreset *other;

	if (slash == NULL)
		return model;
	other = llmgw_preset_find(pnstrdup(model, slash - model));
	if (other == NULL || llmgw_preset_model(other, slash + 1) == NULL)
		return model;
	return psprintf("%s/%s", adding->name, model);
}

/* Whether a rule of any kind is about that model. */
static bool
has_rule(LlmAdding *adding, const char *name)
{
	const char *args[] = {name, psprintf("%s/%s", adding->name, name)};

	return llmgw_adding_execute(adding,
								"SELECT 1 FROM %s.llm_routing_rules"
								" WHERE model OPERATOR(pg_catalog.=) ANY (ARRAY[$1, $2])"
								" LIMIT 1", lengthof(args), args) > 0;
}

/* Whether this one has a rule in the preset, for completions or embeddings. */
static bool
is_ruled(const LlmPresetModel *model, bool embedding)
{
	return model->rule_rank > 0 && (model->rule_task != NULL) == embedding;
}

/*
 * Adds the preset's rules, by rank, which is the order that they are tried in:
 * all of them, or only the first.
 */
static void
write_rules(LlmAdding *adding, bool embedding, bool all)
{
	for (int rank = 10; rank <= 100; rank += 10)
		for (int i = 0; i < adding->npresent; i++)
		{
			const char *name = adding->present[i];
			const LlmPresetModel *model = llmgw_adding_model(adding, name);
			const char *args[] = {rule_name(adding, name), psprintf("%d", rank),
			model->rule_task};

			if (model->rule_rank != rank || !is_ruled(model, embedding))
				continue;
			llmgw_adding_execute(adding,
								 "INSERT INTO %s.llm_routing_rules (model, rank, task)"
								 " VALUES ($1, CAST($2 AS pg_catalog.int4), $3)", lengthof(args), args);
			llmgw_adding_report(adding, "rule", args[0],
								psprintf("rank %d, for %s%s", rank, embedding ? "task " : "any task",
										 embedding ? model->rule_task : ""));
			if (!all)
				return;
		}
}

/* A word on how to add a rule, where the provider is in none. */
static void
notice_without_rules(LlmAdding *adding)
{
	const char *best = NULL;
	int			best_rank = INT_MAX;

	for (int i = 0; i < adding->npresent; i++)
	{
		const LlmPresetModel *model = llmgw_adding_model(adding, adding->present[i]);
		int			rank = model->rule_rank > 0 ? model->rule_rank : INT_MAX - 1;

		if (is_ruled(model, true))
			continue;
		if (has_rule(adding, adding->present[i]))
			return;
		if (rank < best_rank)
		{
			best = rule_name(adding, adding->present[i]);
			best_rank = rank;
		}
	}
	if (best != NULL)
		ereport(NOTICE,
				(errmsg("no rule was added for provider \"%s\", because llm_routing_rules has rows",
						adding->name),
				 errhint("A rule lets calls that name no model come to it: INSERT INTO llm_routing_rules(model, rank) VALUES (%s, 100);",
						 quote_literal_cstr(best))));
}

void
llmgw_adding_rules(LlmAdding *adding)
{
	if (llmgw_adding_execute(adding,
							 "SELECT 1 FROM %s.llm_routing_rules WHERE task IS NULL"
							 " OR task OPERATOR(pg_catalog.<>) 'embedding' LIMIT 1", 0, NULL) == 0)
		write_rules(adding, false, true);
	else
		notice_without_rules(adding);

	if (llmgw_adding_execute(adding,
							 "SELECT 1 FROM %s.llm_tasks WHERE name OPERATOR(pg_catalog.=) 'embedding'"
							 " AND NOT EXISTS (SELECT 1 FROM %s.llm_routing_rules AS r"
							 " WHERE r.alias IS NULL AND (r.task OPERATOR(pg_catalog.=) 'embedding'"
							 " OR r.task IS NULL AND EXISTS (SELECT 1 FROM %s.llm_models AS m"
							 " WHERE r.model OPERATOR(pg_catalog.=) ANY (ARRAY[m.name,"
							 " m.provider OPERATOR(pg_catalog.||) '/' OPERATOR(pg_catalog.||) m.name])"
							 " AND 'embedding' OPERATOR(pg_catalog.=) ANY (m.capabilities))))",
							 0, NULL) > 0)
		write_rules(adding, true, false);
}
