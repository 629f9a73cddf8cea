/*-------------------------------------------------------------------------
 *
 * scope.c
 *	  Whom and what a rule or a budget is for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/acl.h"
#include "utils/fmgrprotos.h"

#include "scope.h"

bool
llmgw_scope_covers(const char *role, Jsonb *tags, Oid caller, Jsonb *caller_tags)
{
	if (role != NULL)
	{
		/*
		 * a superuser has every role's rights, but is not a member of every
		 * team
		 */
		Oid			oid = get_role_oid(role, true);

		if (!OidIsValid(oid) || !is_member_of_role_nosuper(caller, oid))
			return false;
	}
	return tags == NULL || JB_ROOT_COUNT(tags) == 0 ||
		(caller_tags != NULL &&
		 DatumGetBool(DirectFunctionCall2(jsonb_contains, JsonbPGetDatum(caller_tags),
										  JsonbPGetDatum(tags))));
}

/* Whether a name has the form provider/model, and is this one's. */
static bool
is_qualified_name(const char *name, const LlmModel *model)
{
	size_t		len = strlen(model->provider->name);

	return strncmp(name, model->provider->name, len) == 0 &&
		name[len] == '/' && strcmp(name + len + 1, model->name) == 0;
}

bool
llmgw_scope_names(const LlmConfig *config, const char *name, const LlmModel *model)
{
	if (is_qualified_name(name, model))
		return true;
	if (strcmp(name, model->name) != 0)
		return false;

	/* a model's name may look like another one's with its provider */
	for (int i = 0; i < config->nmodels && strchr(name, '/') != NULL; i++)
		if (is_qualified_name(name, &config->models[i]))
			return false;
	return true;
}
