/* llm_gateway--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION llm_gateway" to load this file. \quit

-- Order: the tables that a user edits, their rows, their triggers, what a dump
-- holds of them; the ledger and its views; then the functions.  Names carry the
-- schema, because another role may own objects of the same name in a schema that
-- existed before.
--
-- Rows that are created here are marked "builtin".  A row that a user writes,
-- and a seed that a user edits, is not; those are what a dump contains.


-- ---------------------------------------------------------------------------
-- Stored secrets
-- ---------------------------------------------------------------------------

-- A key as text would be readable by roles that bypass row security; as a type
-- of its own it is printed to superusers only.  Stored plain, so that no part
-- of it ever is in a TOAST table.
CREATE TYPE @extschema@._llm_secret;

CREATE FUNCTION @extschema@._llm_secret_in(pg_catalog.cstring)
RETURNS @extschema@._llm_secret
AS 'MODULE_PATHNAME', 'llmgw_sql_secret_in'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 1;
REVOKE ALL ON FUNCTION @extschema@._llm_secret_in(pg_catalog.cstring) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_secret_in(pg_catalog.cstring)
IS 'internal: input function of _llm_secret';

CREATE FUNCTION @extschema@._llm_secret_out(@extschema@._llm_secret)
RETURNS pg_catalog.cstring
AS 'MODULE_PATHNAME', 'llmgw_sql_secret_out'
LANGUAGE C STABLE STRICT PARALLEL SAFE COST 1;
REVOKE ALL ON FUNCTION @extschema@._llm_secret_out(@extschema@._llm_secret) FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_secret_out(@extschema@._llm_secret)
IS 'internal: output function of _llm_secret; asterisks for all but superusers';

CREATE TYPE @extschema@._llm_secret (
    INPUT = @extschema@._llm_secret_in,
    OUTPUT = @extschema@._llm_secret_out,
    INTERNALLENGTH = VARIABLE,
    ALIGNMENT = int4,
    STORAGE = plain
);
REVOKE ALL ON TYPE @extschema@._llm_secret FROM PUBLIC;
COMMENT ON TYPE @extschema@._llm_secret
IS 'internal: the bytes of a key';

CREATE TABLE @extschema@._llm_secrets (
    name text PRIMARY KEY,
    value @extschema@._llm_secret NOT NULL,
    allowed_host text,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) USING heap;
-- Never dumped, never sampled: statistics would hold keys.
ALTER TABLE @extschema@._llm_secrets ALTER COLUMN value SET STATISTICS 0;
ALTER TABLE @extschema@._llm_secrets ENABLE ROW LEVEL SECURITY;
ALTER TABLE @extschema@._llm_secrets FORCE ROW LEVEL SECURITY;
REVOKE ALL ON TABLE @extschema@._llm_secrets FROM PUBLIC;
COMMENT ON TABLE @extschema@._llm_secrets
IS 'internal: keys stored by llm_set_secret; readable by no role short of superuser, and never dumped';
COMMENT ON COLUMN @extschema@._llm_secrets.name
IS 'what llm_providers.api_key refers to as secret:NAME';
COMMENT ON COLUMN @extschema@._llm_secrets.value
IS 'the key';
COMMENT ON COLUMN @extschema@._llm_secrets.allowed_host
IS 'the only host[:port] that the key is sent to; NULL: any host that llm_gateway.allowed_hosts permits';
COMMENT ON COLUMN @extschema@._llm_secrets.created_at
IS 'when the secret was first set';
COMMENT ON COLUMN @extschema@._llm_secrets.updated_at
IS 'when the secret was last set';


-- ---------------------------------------------------------------------------
-- Configuration.  References between these tables are kept by their triggers,
-- not by foreign keys, which a parallel restore would break.
-- ---------------------------------------------------------------------------

CREATE TABLE @extschema@.llm_tiers (
    name text PRIMARY KEY,
    rank integer NOT NULL DEFAULT 100,
    system_prompt_suffix text,
    notice text,
    builtin boolean NOT NULL DEFAULT false
);
REVOKE ALL ON TABLE @extschema@.llm_tiers FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_tiers
IS 'classes of models, from the best to the cheapest; a budget that runs low takes the better ones away';
COMMENT ON COLUMN @extschema@.llm_tiers.name
IS 'what llm_models.tier and the argument min_tier refer to';
COMMENT ON COLUMN @extschema@.llm_tiers.rank
IS '1 is the best tier; a higher number is a cheaper one';
COMMENT ON COLUMN @extschema@.llm_tiers.system_prompt_suffix
IS 'text added to the system prompt of a call that this tier answers; NULL: none';
COMMENT ON COLUMN @extschema@.llm_tiers.notice
IS 'what the caller is told when a call is answered by this tier because a better one was not to be had; NULL: nothing';
COMMENT ON COLUMN @extschema@.llm_tiers.builtin
IS 'whether the row is as the extension created it; cleared by any edit';

CREATE TABLE @extschema@.llm_providers (
    name text PRIMARY KEY,
    kind text NOT NULL DEFAULT 'openai',
    base_url text,
    api_key text,
    failure_domain text,
    enabled boolean NOT NULL DEFAULT true,
    weight real NOT NULL DEFAULT 1,
    max_concurrency integer,
    requests_per_minute integer,
    tokens_per_minute integer,
    connect_timeout interval NOT NULL DEFAULT '5 s',
    first_byte_timeout interval NOT NULL DEFAULT '30 s',
    idle_timeout interval NOT NULL DEFAULT '30 s',
    total_timeout interval NOT NULL DEFAULT '120 s',
    breaker_failures integer NOT NULL DEFAULT 3,
    breaker_window interval NOT NULL DEFAULT '60 s',
    breaker_cooldown interval NOT NULL DEFAULT '30 s',
    probe text NOT NULL DEFAULT 'models',
    options jsonb
);
REVOKE ALL ON TABLE @extschema@.llm_providers FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_providers
IS 'endpoints that models are asked at; llm_add_provider fills in well-known ones';
COMMENT ON COLUMN @extschema@.llm_providers.name
IS 'any name without a slash';
COMMENT ON COLUMN @extschema@.llm_providers.kind
IS 'the wire format that the endpoint speaks: openai (also any compatible server), azure, anthropic, gemini, ollama, or mock (none: answers itself)';
COMMENT ON COLUMN @extschema@.llm_providers.base_url
IS 'as the provider''s own SDK takes it, such as https://api.openai.com/v1; NULL: the public endpoint of the kind';
COMMENT ON COLUMN @extschema@.llm_providers.api_key
IS 'a reference to the key, env:NAME, file:NAME or secret:NAME, never the key itself; NULL: none is sent';
COMMENT ON COLUMN @extschema@.llm_providers.failure_domain
IS 'providers that go down together share one; NULL: the name of the provider';
COMMENT ON COLUMN @extschema@.llm_providers.enabled
IS 'false: none of its models is a candidate';
COMMENT ON COLUMN @extschema@.llm_providers.weight
IS 'share of the calls among providers of one model, multiplied by the weight of the model; 0: only after all others';
COMMENT ON COLUMN @extschema@.llm_providers.max_concurrency
IS 'most calls under way at one time; NULL: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.requests_per_minute
IS 'most requests a minute; NULL: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.tokens_per_minute
IS 'most tokens a minute, input and output; NULL: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.connect_timeout
IS 'longest time to resolve the name, connect and agree on TLS; 0: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.first_byte_timeout
IS 'longest time from the request to the first byte of the answer; 0: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.idle_timeout
IS 'longest silence within an answer; 0: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.total_timeout
IS 'longest time of one attempt; 0: not limited';
COMMENT ON COLUMN @extschema@.llm_providers.breaker_failures
IS 'failures in a row after which the provider is skipped for a while';
COMMENT ON COLUMN @extschema@.llm_providers.breaker_window
IS 'the time within which those failures must happen';
COMMENT ON COLUMN @extschema@.llm_providers.breaker_cooldown
IS 'how long the provider is skipped before it is tried again';
COMMENT ON COLUMN @extschema@.llm_providers.probe
IS 'how it is asked whether it works: models (its list of models, free), completion (a tiny one), a URL to get, or none';
COMMENT ON COLUMN @extschema@.llm_providers.options
IS 'settings of the kind, a JSON object, such as {"stream": false}';

CREATE TABLE @extschema@.llm_models (
    provider text NOT NULL,
    name text NOT NULL,
    upstream_name text,
    tier text NOT NULL DEFAULT 'standard',
    quality real NOT NULL DEFAULT 50,
    input_price numeric,
    output_price numeric,
    cached_input_price numeric,
    cache_write_price numeric,
    price_tiers jsonb,
    context_window integer,
    max_output_tokens integer,
    capabilities text[],
    first_byte_timeout interval,
    total_timeout interval,
    weight real NOT NULL DEFAULT 1,
    enabled boolean NOT NULL DEFAULT true,
    PRIMARY KEY (provider, name)
) USING heap;
REVOKE ALL ON TABLE @extschema@.llm_models FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_models
IS 'models, each at a provider that has it; the same name at several providers is one model that they share the calls of';
COMMENT ON COLUMN @extschema@.llm_models.provider
IS 'the provider, a row of llm_providers';
COMMENT ON COLUMN @extschema@.llm_models.name
IS 'what the argument model and llm_routing_rules.model refer to';
COMMENT ON COLUMN @extschema@.llm_models.upstream_name
IS 'what the provider calls the model; NULL: the same name';
COMMENT ON COLUMN @extschema@.llm_models.tier
IS 'the class of the model, a row of llm_tiers';
COMMENT ON COLUMN @extschema@.llm_models.quality
IS 'from 0 to 100; the order of models where no rule says otherwise';
COMMENT ON COLUMN @extschema@.llm_models.input_price
IS 'USD per 1 million input tokens; NULL: unknown, 0: free';
COMMENT ON COLUMN @extschema@.llm_models.output_price
IS 'USD per 1 million output tokens; NULL: unknown, 0: free';
COMMENT ON COLUMN @extschema@.llm_models.cached_input_price
IS 'USD per 1 million input tokens that the provider had cached; NULL: input_price';
COMMENT ON COLUMN @extschema@.llm_models.cache_write_price
IS 'USD per 1 million input tokens that the provider stored in its cache; NULL: input_price';
COMMENT ON COLUMN @extschema@.llm_models.price_tiers
IS 'prices of long prompts, such as [{"above_tokens": 200000, "input": 2.5, "output": 15}]; also cached_input and cache_write; NULL: none';
COMMENT ON COLUMN @extschema@.llm_models.context_window
IS 'most tokens of prompt and answer together; NULL: unknown';
COMMENT ON COLUMN @extschema@.llm_models.max_output_tokens
IS 'most tokens of an answer; NULL: unknown';
COMMENT ON COLUMN @extschema@.llm_models.capabilities
IS 'what the model can do: chat, temperature, reasoning, tools, json_schema, image, embedding, ...; a call that requires more is kept from it, what is only wanted is left out; NULL: unknown, no call is kept from it';
COMMENT ON COLUMN @extschema@.llm_models.first_byte_timeout
IS 'in place of the one of the provider; NULL: that one';
COMMENT ON COLUMN @extschema@.llm_models.total_timeout
IS 'in place of the one of the provider; NULL: that one';
COMMENT ON COLUMN @extschema@.llm_models.weight
IS 'share of the calls among providers of this model, multiplied by the weight of the provider; 0: only after all others';
COMMENT ON COLUMN @extschema@.llm_models.enabled
IS 'false: the model is no candidate';

CREATE TABLE @extschema@.llm_priorities (
    name text PRIMARY KEY,
    rank integer NOT NULL DEFAULT 100,
    premium_above numeric NOT NULL DEFAULT 0.80,
    standard_above numeric NOT NULL DEFAULT 0.20,
    economy_above numeric NOT NULL DEFAULT 0,
    may_use_reserve boolean NOT NULL DEFAULT false,
    required_role text,
    builtin boolean NOT NULL DEFAULT false
);
REVOKE ALL ON TABLE @extschema@.llm_priorities FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_priorities
IS 'how important a call is: who is served first, and how much of a budget must remain for each tier';
COMMENT ON COLUMN @extschema@.llm_priorities.name
IS 'what the argument priority refers to';
COMMENT ON COLUMN @extschema@.llm_priorities.rank
IS 'the lowest is served first';
COMMENT ON COLUMN @extschema@.llm_priorities.premium_above
IS 'every tier is allowed while more than this fraction of the budget remains';
COMMENT ON COLUMN @extschema@.llm_priorities.standard_above
IS 'standard and economy are allowed while more than this fraction of the budget remains';
COMMENT ON COLUMN @extschema@.llm_priorities.economy_above
IS 'economy is allowed while more than this fraction of the budget remains; below, the budget counts as exhausted';
COMMENT ON COLUMN @extschema@.llm_priorities.may_use_reserve
IS 'whether calls may use what a budget keeps in reserve';
COMMENT ON COLUMN @extschema@.llm_priorities.required_role
IS 'the role whose members may use this priority; NULL: everyone';
COMMENT ON COLUMN @extschema@.llm_priorities.builtin
IS 'whether the row is as the extension created it; cleared by any edit';

CREATE TABLE @extschema@.llm_tasks (
    name text PRIMARY KEY,
    description text,
    keywords text[],
    pattern text,
    optimize text,
    high_stakes boolean NOT NULL DEFAULT false,
    cache_ttl interval,
    cache_shared boolean NOT NULL DEFAULT false,
    cache_similarity real,
    cache_similar_ttl interval,
    enabled boolean NOT NULL DEFAULT true,
    builtin boolean NOT NULL DEFAULT false
);
REVOKE ALL ON TABLE @extschema@.llm_tasks FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_tasks
IS 'kinds of work that prompts are sorted into, so that rules can name the models for each';
COMMENT ON COLUMN @extschema@.llm_tasks.name
IS 'what the argument task and llm_routing_rules.task refer to';
COMMENT ON COLUMN @extschema@.llm_tasks.description
IS 'what belongs to the task, in words';
COMMENT ON COLUMN @extschema@.llm_tasks.keywords
IS 'words and phrases of prompts that belong to the task; NULL: none';
COMMENT ON COLUMN @extschema@.llm_tasks.pattern
IS 'a regular expression that prompts of the task match; NULL: none';
COMMENT ON COLUMN @extschema@.llm_tasks.optimize
IS 'quality, cost or speed, where the call does not say; NULL: llm_gateway.default_optimize';
COMMENT ON COLUMN @extschema@.llm_tasks.high_stakes
IS 'whether a wrong answer is costly, so that a model may be asked to sort the prompt';
COMMENT ON COLUMN @extschema@.llm_tasks.cache_ttl
IS 'how long answers are kept for equal prompts; NULL: not at all';
COMMENT ON COLUMN @extschema@.llm_tasks.cache_shared
IS 'whether roles share the kept answers';
COMMENT ON COLUMN @extschema@.llm_tasks.cache_similarity
IS 'how close the meaning of another prompt must be for its kept answer to be served: cosine similarity of the embeddings that llm_gateway.cache_embedding_model makes, such as 0.95; NULL: only equal prompts'' answers are';
COMMENT ON COLUMN @extschema@.llm_tasks.cache_similar_ttl
IS 'up to which age an answer is served to a prompt that is only similar; NULL: as long as it is kept';
COMMENT ON COLUMN @extschema@.llm_tasks.enabled
IS 'false: no prompt is sorted into the task';
COMMENT ON COLUMN @extschema@.llm_tasks.builtin
IS 'whether the row is as the extension created it; cleared by any edit';

CREATE TABLE @extschema@.llm_routing_rules (
    id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    task text,
    alias text,
    model text NOT NULL,
    rank integer NOT NULL DEFAULT 100,
    enabled boolean NOT NULL DEFAULT true,
    role text,
    tags jsonb
) USING heap;
REVOKE ALL ON TABLE @extschema@.llm_routing_rules FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.llm_routing_rules_id_seq FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_routing_rules
IS 'which models answer which calls, in order of rank, then id; with no row at all: every model by quality';
COMMENT ON SEQUENCE @extschema@.llm_routing_rules_id_seq
IS 'numbers of llm_routing_rules';
COMMENT ON COLUMN @extschema@.llm_routing_rules.id
IS 'a number; the order of rules of one rank';
COMMENT ON COLUMN @extschema@.llm_routing_rules.task
IS 'the task that the rule is for; NULL: any task that has no rules of its own';
COMMENT ON COLUMN @extschema@.llm_routing_rules.alias
IS 'a name that callers may give as the argument model; NULL: the rule is for calls that name no model';
COMMENT ON COLUMN @extschema@.llm_routing_rules.model
IS 'a model at all its providers, or provider/model';
COMMENT ON COLUMN @extschema@.llm_routing_rules.rank
IS 'the lowest is tried first';
COMMENT ON COLUMN @extschema@.llm_routing_rules.enabled
IS 'false: the rule does not count';
COMMENT ON COLUMN @extschema@.llm_routing_rules.role
IS 'the role whose members the rule is for; NULL: everyone';
COMMENT ON COLUMN @extschema@.llm_routing_rules.tags
IS 'a JSON object that must be contained in the tags of the call; NULL: any';

CREATE TABLE @extschema@.llm_error_policies (
    error_class text NOT NULL,
    provider text NOT NULL DEFAULT '*',
    max_retries integer NOT NULL DEFAULT 0,
    backoff_ms integer NOT NULL DEFAULT 0,
    fallback boolean NOT NULL DEFAULT true,
    trips_breaker boolean NOT NULL DEFAULT false,
    builtin boolean NOT NULL DEFAULT false,
    PRIMARY KEY (error_class, provider)
);
REVOKE ALL ON TABLE @extschema@.llm_error_policies FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_error_policies
IS 'what happens after an attempt has failed, by the class of its error: retry there, go to the next candidate, or stop';
COMMENT ON COLUMN @extschema@.llm_error_policies.error_class
IS 'rate_limit, auth, timeout, network, server_error, overloaded, malformed, quota, not_found, context_length, content_policy or invalid_request';
COMMENT ON COLUMN @extschema@.llm_error_policies.provider
IS 'the provider that the row is for; *: those without a row of their own';
COMMENT ON COLUMN @extschema@.llm_error_policies.max_retries
IS 'how often the same candidate is tried again';
COMMENT ON COLUMN @extschema@.llm_error_policies.backoff_ms
IS 'wait before the first of those retries, in milliseconds; it doubles with each, and a Retry-After of the provider replaces it';
COMMENT ON COLUMN @extschema@.llm_error_policies.fallback
IS 'whether the next candidate is tried; after context_length only one with a larger context window; an invalid_request of a candidate after the first goes on all the same';
COMMENT ON COLUMN @extschema@.llm_error_policies.trips_breaker
IS 'whether it counts as a failure of the provider, not only of the call';
COMMENT ON COLUMN @extschema@.llm_error_policies.builtin
IS 'whether the row is as the extension created it; cleared by any edit';

-- An id names what has been spent, in the ledger and in memory, so none is given
-- twice: by the trigger, not by a default, which would ask for a privilege.
CREATE SEQUENCE @extschema@._llm_budget_id_seq;
REVOKE ALL ON SEQUENCE @extschema@._llm_budget_id_seq FROM PUBLIC;
COMMENT ON SEQUENCE @extschema@._llm_budget_id_seq
IS 'internal: numbers of llm_budgets, never given twice';

CREATE TABLE @extschema@.llm_budgets (
    id bigint NOT NULL UNIQUE,
    name text PRIMARY KEY,
    limit_usd numeric,
    period text NOT NULL DEFAULT 'month',
    timezone text NOT NULL DEFAULT 'UTC',
    reserve_fraction numeric NOT NULL DEFAULT 0.05,
    strict boolean NOT NULL DEFAULT false,
    on_exhausted text NOT NULL DEFAULT 'reject',
    role text,
    task text,
    provider text,
    model text,
    tags jsonb,
    opening_usd numeric NOT NULL DEFAULT 0,
    opening_period timestamptz
) USING heap;
REVOKE ALL ON TABLE @extschema@.llm_budgets FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_budgets
IS 'how much calls may cost in a period; all budgets that match a call are charged and limit it';
COMMENT ON COLUMN @extschema@.llm_budgets.id
IS 'the number that what was spent is kept under; another one when the scope, the period or the time zone changes';
COMMENT ON COLUMN @extschema@.llm_budgets.name
IS 'what reports and messages call the budget';
COMMENT ON COLUMN @extschema@.llm_budgets.limit_usd
IS 'most USD to spend in a period; NULL: what is spent is counted and not limited';
COMMENT ON COLUMN @extschema@.llm_budgets.period
IS 'hour, day, week (from Monday) or month; with each the budget starts anew';
COMMENT ON COLUMN @extschema@.llm_budgets.timezone
IS 'the time zone in which periods begin at midnight, a name of pg_timezone_names';
COMMENT ON COLUMN @extschema@.llm_budgets.reserve_fraction
IS 'the part of the limit that is kept for priorities with may_use_reserve, from 0 to below 1';
COMMENT ON COLUMN @extschema@.llm_budgets.strict
IS 'whether the most that a call can cost is reserved for it, rather than what it is expected to cost';
COMMENT ON COLUMN @extschema@.llm_budgets.on_exhausted
IS 'what becomes of calls when nothing is left: reject, or cache_only (answered where an answer is kept)';
COMMENT ON COLUMN @extschema@.llm_budgets.role
IS 'the role whose members'' calls count; NULL: everyone''s';
COMMENT ON COLUMN @extschema@.llm_budgets.task
IS 'the task whose calls count; NULL: any';
COMMENT ON COLUMN @extschema@.llm_budgets.provider
IS 'the provider at which they count; NULL: any';
COMMENT ON COLUMN @extschema@.llm_budgets.model
IS 'the model that they count for, at all its providers, or provider/model; NULL: any';
COMMENT ON COLUMN @extschema@.llm_budgets.tags
IS 'a JSON object that must be contained in the tags of a call for it to count; NULL: any';
COMMENT ON COLUMN @extschema@.llm_budgets.opening_usd
IS 'what calls of its scope had cost in the running period when the budget got its id';
COMMENT ON COLUMN @extschema@.llm_budgets.opening_period
IS 'the start of that period';

-- No unique key: sessions that edit seeds need not wait for each other, and a
-- parallel restore cannot deadlock.
CREATE TABLE @extschema@._llm_tombstones (
    table_name text NOT NULL,
    key jsonb NOT NULL
) USING heap;
REVOKE ALL ON TABLE @extschema@._llm_tombstones FROM PUBLIC;
COMMENT ON TABLE @extschema@._llm_tombstones
IS 'internal: rows of the extension that were edited or deleted; restoring one deletes the row that CREATE EXTENSION made';
COMMENT ON COLUMN @extschema@._llm_tombstones.table_name
IS 'the table of the row';
COMMENT ON COLUMN @extschema@._llm_tombstones.key
IS 'the values of its primary key, a JSON array';


-- ---------------------------------------------------------------------------
-- Rows to begin with
-- ---------------------------------------------------------------------------

INSERT INTO @extschema@.llm_tiers (name, rank, notice, builtin) VALUES
    ('premium', 1, NULL, true),
    ('standard', 2, 'Answered by a standard model.', true),
    ('economy', 3, 'Answered by an economy model: the answer may be less thorough than usual.', true);

INSERT INTO @extschema@.llm_priorities
    (name, rank, premium_above, standard_above, economy_above, may_use_reserve, builtin) VALUES
    ('critical', 1, 0, 0, 0, true, true),
    ('high', 2, 0.40, 0.10, 0, false, true),
    ('normal', 3, 0.80, 0.20, 0, false, true),
    ('low', 4, 0.90, 0.50, 0.10, false, true);

INSERT INTO @extschema@.llm_tasks (name, description, keywords, builtin) VALUES
    ('coding', 'Writing, explaining, reviewing and repairing programs and queries',
     '{code,program,script,function,class,method,variable,algorithm,bug,debug,refactor,compile,compiler,exception,stack trace,unit test,regex,api,sql,query,select,python,java,javascript,typescript,rust,golang,c++,bash,html,css,json,yaml,docker,git}', true),
    ('creative', 'Stories, poems, slogans and other texts where invention counts',
     '{story,poem,haiku,lyrics,song,novel,fiction,screenplay,dialogue,character,plot,slogan,tagline,joke,imagine,creative,brainstorm,blog post,write a letter}', true),
    ('analysis', 'Summaries, comparisons, extraction, sorting and judgement of given texts and data',
     '{summarise,summarize,summary,analyse,analyze,analysis,compare,comparison,evaluate,assess,classify,categorise,categorize,extract,sentiment,trend,report,pros and cons,strengths,weaknesses,key points,review,explain why,root cause}', true),
    ('chat', 'Conversation and small talk',
     '{hello,hi,hey,thanks,thank you,good morning,good evening,how are you,bye,goodbye,nice to meet you}', true),
    ('math', 'Calculation, algebra, statistics and proofs',
     '{calculate,compute,solve,equation,integral,derivative,matrix,probability,theorem,proof,prove,algebra,geometry,calculus,arithmetic,percentage,square root,sum of,how many}', true),
    ('lookup', 'Short questions of fact',
     '{what is,what are,who is,who was,when was,when did,where is,which,define,definition,meaning of,capital of,translate,synonym,acronym}', true),
    ('embedding', 'Vectors for search and comparison; the task of embedding calls', NULL, true),
    ('default', 'Everything else, and every prompt that could not be sorted', NULL, true);

INSERT INTO @extschema@.llm_error_policies
    (error_class, max_retries, backoff_ms, fallback, trips_breaker, builtin) VALUES
    ('rate_limit', 1, 2000, true, false, true),
    ('auth', 0, 0, true, false, true),
    ('timeout', 1, 0, true, true, true),
    ('network', 1, 200, true, true, true),
    ('server_error', 1, 500, true, true, true),
    ('overloaded', 1, 1000, true, true, true),
    ('malformed', 1, 0, true, true, true),
    ('quota', 0, 0, true, false, true),
    ('not_found', 0, 0, true, false, true),
    ('context_length', 0, 0, true, false, true),
    ('content_policy', 0, 0, false, false, true),
    ('invalid_request', 0, 0, false, false, true);


-- ---------------------------------------------------------------------------
-- Triggers: what is written is judged, and seen by the next call
-- ---------------------------------------------------------------------------

CREATE FUNCTION @extschema@._llm_config_row()
RETURNS trigger
AS 'MODULE_PATHNAME', 'llmgw_sql_config_row'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@._llm_config_row() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_config_row()
IS 'internal: checks a row of the configuration and keeps track of edited seeds';

CREATE FUNCTION @extschema@._llm_config_truncate()
RETURNS trigger
AS 'MODULE_PATHNAME', 'llmgw_sql_config_truncate'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@._llm_config_truncate() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_config_truncate()
IS 'internal: keeps track of seeds that TRUNCATE removes';

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@._llm_secrets
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@._llm_secrets
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@._llm_secrets ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@._llm_secrets ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_tiers
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_tiers
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_tiers ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_tiers ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_providers
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_providers
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_providers ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_providers ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_models
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_models
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_models ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_models ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_priorities
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_priorities
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_priorities ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_priorities ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_tasks
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_tasks ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_tasks ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_routing_rules
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_routing_rules
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_routing_rules ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_routing_rules ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_error_policies
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_error_policies
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_error_policies ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_error_policies ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@.llm_budgets
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
CREATE TRIGGER llm_config_truncate BEFORE TRUNCATE ON @extschema@.llm_budgets
    FOR EACH STATEMENT EXECUTE FUNCTION @extschema@._llm_config_truncate();
ALTER TABLE @extschema@.llm_budgets ENABLE ALWAYS TRIGGER llm_config_row;
ALTER TABLE @extschema@.llm_budgets ENABLE ALWAYS TRIGGER llm_config_truncate;

CREATE TRIGGER llm_config_row BEFORE INSERT OR UPDATE OR DELETE ON @extschema@._llm_tombstones
    FOR EACH ROW EXECUTE FUNCTION @extschema@._llm_config_row();
ALTER TABLE @extschema@._llm_tombstones ENABLE ALWAYS TRIGGER llm_config_row;


-- ---------------------------------------------------------------------------
-- What a dump contains: never _llm_secrets
-- ---------------------------------------------------------------------------

SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_tiers', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_providers', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_models', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_priorities', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_tasks', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_routing_rules', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_routing_rules_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_error_policies', 'WHERE NOT builtin');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_budgets', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@._llm_budget_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@._llm_tombstones', '');


-- ---------------------------------------------------------------------------
-- The ledger.  Only the worker writes it.  No foreign keys and no checks: what
-- has been paid for is recorded whatever it looks like.  Many rows, one index
-- more than the key: inserts stay cheap.
--
-- A role sees its own rows, one that llm_grant gave "report" sees all.  Being
-- the one who called is a name and an OID: a restored ledger has OIDs of
-- another cluster, and a new role may have the name of an old one.
-- ---------------------------------------------------------------------------

-- Never called: the right to execute it is what "report" is known by, in the
-- policies below.  A role inherits it as it does any privilege.
CREATE FUNCTION @extschema@._llm_reports_all()
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE COST 1
SET search_path = pg_catalog, pg_temp
AS $$ SELECT true $$;
REVOKE ALL ON FUNCTION @extschema@._llm_reports_all() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_reports_all()
IS 'internal: who may execute it sees the rows of all roles in the ledger';

CREATE TABLE @extschema@.llm_requests (
    request_id bigint PRIMARY KEY,
    created_at timestamptz NOT NULL,
    operation text NOT NULL,
    role text NOT NULL,
    role_oid oid NOT NULL,
    application_name text,
    query_id bigint,
    task text,
    task_source text,
    priority text,
    model_tier text,
    optimize text,
    requested_model text,
    provider text,
    model text,
    status text NOT NULL,
    error_class text,
    finish_reason text,
    attempts integer NOT NULL,
    fallback boolean NOT NULL,
    input_tokens bigint,
    cached_input_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    estimated_usd numeric,
    cost_usd numeric,
    cost_source text NOT NULL,
    latency_ms integer,
    ttft_ms integer,
    queue_ms integer,
    budgets text[],
    tags jsonb,
    prompt_hash bytea,
    prompt text,
    response text,
    passed_over text,
    passed_over_class text,
    downgraded_by text,
    downgraded_from text
) USING heap;
CREATE INDEX llm_requests_created_at_idx ON @extschema@.llm_requests
    USING brin (created_at) WITH (autosummarize = on);
ALTER TABLE @extschema@.llm_requests ENABLE ROW LEVEL SECURITY;
CREATE POLICY llm_own_or_report ON @extschema@.llm_requests FOR SELECT USING (
    (SELECT pg_catalog.has_function_privilege('@extschema@._llm_reports_all()'::pg_catalog.regprocedure, 'EXECUTE'))
    OR (role OPERATOR(pg_catalog.=) CURRENT_USER
        AND role_oid OPERATOR(pg_catalog.=) (SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(CURRENT_USER)))));
REVOKE ALL ON TABLE @extschema@.llm_requests FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_requests
IS 'every request for a model, once: who asked, who answered, what it cost and how it ended';
COMMENT ON INDEX @extschema@.llm_requests_created_at_idx
IS 'for ranges of time';
COMMENT ON POLICY llm_own_or_report ON @extschema@.llm_requests
IS 'a role sees its own rows, one granted report sees all';
COMMENT ON COLUMN @extschema@.llm_requests.request_id
IS 'a number that rises with time, unique in the cluster; as llm_complete_detail returns it';
COMMENT ON COLUMN @extschema@.llm_requests.created_at
IS 'when the request was made';
COMMENT ON COLUMN @extschema@.llm_requests.operation
IS 'complete, chat, json, stream, embed, classify or probe';
COMMENT ON COLUMN @extschema@.llm_requests.role
IS 'the role that asked; of a SECURITY DEFINER function its caller';
COMMENT ON COLUMN @extschema@.llm_requests.role_oid
IS 'the OID that this role had';
COMMENT ON COLUMN @extschema@.llm_requests.application_name
IS 'application_name of the session';
COMMENT ON COLUMN @extschema@.llm_requests.query_id
IS 'queryid of the statement in pg_stat_statements; NULL: compute_query_id was off';
COMMENT ON COLUMN @extschema@.llm_requests.task
IS 'the task that the routing rules were chosen by';
COMMENT ON COLUMN @extschema@.llm_requests.task_source
IS 'how the task was found: by the argument, a classifier, or as the default';
COMMENT ON COLUMN @extschema@.llm_requests.priority
IS 'the priority, a row of llm_priorities';
COMMENT ON COLUMN @extschema@.llm_requests.model_tier
IS 'the tier of the model';
COMMENT ON COLUMN @extschema@.llm_requests.optimize
IS 'quality, cost or speed';
COMMENT ON COLUMN @extschema@.llm_requests.requested_model
IS 'the argument model; NULL: the routing rules chose';
COMMENT ON COLUMN @extschema@.llm_requests.provider
IS 'where the answer came from; without an answer, the provider that was tried last; NULL: none was';
COMMENT ON COLUMN @extschema@.llm_requests.model
IS 'the model that answered, or was tried last; NULL: none was';
COMMENT ON COLUMN @extschema@.llm_requests.status
IS 'ok; error: no attempt succeeded, or none could be made; cached: no call was needed; cancelled: nobody waited for the answer; unknown: nobody was left to see the end; rejected: the gateway sent nothing, because no model could take it';
COMMENT ON COLUMN @extschema@.llm_requests.error_class
IS 'why there is no answer, in the words of llm_error_policies, or budget, no_candidate, schema, unavailable, all_failed';
COMMENT ON COLUMN @extschema@.llm_requests.finish_reason
IS 'why the answer ends where it does: stop, length, ...';
COMMENT ON COLUMN @extschema@.llm_requests.attempts
IS 'how often something was sent; each is a row of llm_attempts';
COMMENT ON COLUMN @extschema@.llm_requests.fallback
IS 'whether the answer came from another than the first candidate';
COMMENT ON COLUMN @extschema@.llm_requests.input_tokens
IS 'tokens of the prompt, in all attempts';
COMMENT ON COLUMN @extschema@.llm_requests.cached_input_tokens
IS 'those of them that the provider had cached';
COMMENT ON COLUMN @extschema@.llm_requests.cache_write_tokens
IS 'those of them that the provider stored in its cache';
COMMENT ON COLUMN @extschema@.llm_requests.output_tokens
IS 'tokens of the answer, in all attempts';
COMMENT ON COLUMN @extschema@.llm_requests.reasoning_tokens
IS 'those of them that the model spent on thinking';
COMMENT ON COLUMN @extschema@.llm_requests.estimated_usd
IS 'the estimate before the call, for the first candidate; NULL: it has no price';
COMMENT ON COLUMN @extschema@.llm_requests.cost_usd
IS 'the cost of all attempts; NULL: one of them has no price';
COMMENT ON COLUMN @extschema@.llm_requests.cost_source
IS 'what the cost is made from: usage (the provider counted), estimate (of an attempt at least), none (nothing to pay, or no price)';
COMMENT ON COLUMN @extschema@.llm_requests.latency_ms
IS 'from the call to its end, in milliseconds';
COMMENT ON COLUMN @extschema@.llm_requests.ttft_ms
IS 'from the call to the first token of the answer, in milliseconds';
COMMENT ON COLUMN @extschema@.llm_requests.queue_ms
IS 'how much of that the call waited before it was sent, in milliseconds';
COMMENT ON COLUMN @extschema@.llm_requests.budgets
IS 'the names of the budgets that the attempts were charged to, in the order of their ids; NULL: none';
COMMENT ON COLUMN @extschema@.llm_requests.tags
IS 'the tags of the call, with those of llm_gateway.tags';
COMMENT ON COLUMN @extschema@.llm_requests.prompt_hash
IS 'equal for equal prompts, in all databases of the cluster; made with a key, so that nobody without calls of their own can try guesses against it';
COMMENT ON COLUMN @extschema@.llm_requests.prompt
IS 'the prompt; NULL unless llm_gateway.log_content is on and something was sent';
COMMENT ON COLUMN @extschema@.llm_requests.response
IS 'the answer; NULL unless llm_gateway.log_content is on';
COMMENT ON COLUMN @extschema@.llm_requests.passed_over
IS 'the provider of the first candidate where it was not even asked; NULL: it was';
COMMENT ON COLUMN @extschema@.llm_requests.passed_over_class
IS 'why: unavailable (its circuit breaker was open, or it was parked), rate_limit (it had no room), auth (its key could not be read), budget (it might have cost more than was left)';
COMMENT ON COLUMN @extschema@.llm_requests.downgraded_by
IS 'the budget because of which better models were left out, or all of them; NULL: none was';
COMMENT ON COLUMN @extschema@.llm_requests.downgraded_from
IS 'the best tier that was left out for it';

CREATE TABLE @extschema@.llm_attempts (
    request_id bigint,
    attempt integer,
    provider text NOT NULL,
    model text NOT NULL,
    started_at timestamptz NOT NULL,
    latency_ms integer,
    http_status integer,
    error_class text,
    message text,
    input_tokens bigint,
    cached_input_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    cost_usd numeric,
    cost_source text NOT NULL,
    PRIMARY KEY (request_id, attempt)
) USING heap;
ALTER TABLE @extschema@.llm_attempts ENABLE ROW LEVEL SECURITY;
-- llm_requests has row security as well: what is seen there is seen here
CREATE POLICY llm_own_or_report ON @extschema@.llm_attempts FOR SELECT USING (
    (SELECT pg_catalog.has_function_privilege('@extschema@._llm_reports_all()'::pg_catalog.regprocedure, 'EXECUTE'))
    OR EXISTS (SELECT FROM @extschema@.llm_requests r
               WHERE r.request_id OPERATOR(pg_catalog.=) llm_attempts.request_id));
REVOKE ALL ON TABLE @extschema@.llm_attempts FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_attempts
IS 'everything that was sent to a provider: the first try, retries and fallbacks of each request';
COMMENT ON POLICY llm_own_or_report ON @extschema@.llm_attempts
IS 'a role sees attempts of its own requests, one granted report sees all';
COMMENT ON COLUMN @extschema@.llm_attempts.request_id
IS 'the request, a row of llm_requests';
COMMENT ON COLUMN @extschema@.llm_attempts.attempt
IS 'its number in the request, from 1';
COMMENT ON COLUMN @extschema@.llm_attempts.provider
IS 'where it was sent';
COMMENT ON COLUMN @extschema@.llm_attempts.model
IS 'the model that was asked';
COMMENT ON COLUMN @extschema@.llm_attempts.started_at
IS 'when it was sent';
COMMENT ON COLUMN @extschema@.llm_attempts.latency_ms
IS 'from then to its end, in milliseconds; NULL: nobody saw the end';
COMMENT ON COLUMN @extschema@.llm_attempts.http_status
IS 'the status of the answer; NULL: there was none';
COMMENT ON COLUMN @extschema@.llm_attempts.error_class
IS 'why it failed, in the words of llm_error_policies, or cancelled, or unknown: nobody was left to see its end; NULL: it did not fail';
COMMENT ON COLUMN @extschema@.llm_attempts.message
IS 'what the provider or the network said of it, shortened';
COMMENT ON COLUMN @extschema@.llm_attempts.input_tokens
IS 'tokens of the prompt';
COMMENT ON COLUMN @extschema@.llm_attempts.cached_input_tokens
IS 'those of them that the provider had cached';
COMMENT ON COLUMN @extschema@.llm_attempts.cache_write_tokens
IS 'those of them that the provider stored in its cache';
COMMENT ON COLUMN @extschema@.llm_attempts.output_tokens
IS 'tokens of the answer, thinking included';
COMMENT ON COLUMN @extschema@.llm_attempts.cost_usd
IS 'what it cost; NULL: the model has no price';
COMMENT ON COLUMN @extschema@.llm_attempts.cost_source
IS 'what the cost is made from: usage (the provider counted), estimate, none (nothing to pay, or no price)';

CREATE TABLE @extschema@.llm_daily_spend (
    day date,
    provider text,
    model text,
    task text,
    model_tier text,
    priority text,
    role text,
    requests bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    cached bigint NOT NULL DEFAULT 0,
    fallbacks bigint NOT NULL DEFAULT 0,
    unpriced bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    estimated_usd numeric NOT NULL DEFAULT 0,
    cost_usd numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (day, provider, model, task, model_tier, priority, role)
) USING heap;
ALTER TABLE @extschema@.llm_daily_spend ENABLE ROW LEVEL SECURITY;
CREATE POLICY llm_own_or_report ON @extschema@.llm_daily_spend FOR SELECT USING (
    (SELECT pg_catalog.has_function_privilege('@extschema@._llm_reports_all()'::pg_catalog.regprocedure, 'EXECUTE'))
    OR role OPERATOR(pg_catalog.=) CURRENT_USER);
REVOKE ALL ON TABLE @extschema@.llm_daily_spend FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_daily_spend
IS 'sums of llm_requests and llm_attempts for each UTC day, written in the same transaction and kept when those are deleted';
COMMENT ON POLICY llm_own_or_report ON @extschema@.llm_daily_spend
IS 'a role sees its own rows, one granted report sees all';
COMMENT ON COLUMN @extschema@.llm_daily_spend.day
IS 'the day in UTC: of the attempt for tokens and cost, of the request for everything else';
COMMENT ON COLUMN @extschema@.llm_daily_spend.provider
IS 'for tokens and cost, where they were spent; for everything else, where the answer came from, or what was tried last; empty: nothing was sent';
COMMENT ON COLUMN @extschema@.llm_daily_spend.model
IS 'the model at that provider; empty: nothing was sent';
COMMENT ON COLUMN @extschema@.llm_daily_spend.task
IS 'the task of the request; empty: none';
COMMENT ON COLUMN @extschema@.llm_daily_spend.model_tier
IS 'the tier of the model; empty: nothing was sent';
COMMENT ON COLUMN @extschema@.llm_daily_spend.priority
IS 'the priority of the request; empty: none';
COMMENT ON COLUMN @extschema@.llm_daily_spend.role
IS 'the role that asked';
COMMENT ON COLUMN @extschema@.llm_daily_spend.requests
IS 'requests, however they ended';
COMMENT ON COLUMN @extschema@.llm_daily_spend.failures
IS 'those with status error or unknown';
COMMENT ON COLUMN @extschema@.llm_daily_spend.cached
IS 'those with status cached';
COMMENT ON COLUMN @extschema@.llm_daily_spend.fallbacks
IS 'those answered by another than the first candidate';
COMMENT ON COLUMN @extschema@.llm_daily_spend.unpriced
IS 'attempts whose cost is unknown, because the model has no price';
COMMENT ON COLUMN @extschema@.llm_daily_spend.input_tokens
IS 'tokens of prompts';
COMMENT ON COLUMN @extschema@.llm_daily_spend.output_tokens
IS 'tokens of answers';
COMMENT ON COLUMN @extschema@.llm_daily_spend.estimated_usd
IS 'what the requests were estimated to cost';
COMMENT ON COLUMN @extschema@.llm_daily_spend.cost_usd
IS 'what the attempts cost, without the unpriced ones';

-- What budgets have spent.  In nano-dollars, as they are reckoned; a budget that
-- is gone leaves its rows, and its id is not used again.
CREATE TABLE @extschema@._llm_budget_spend (
    budget_id bigint,
    period_start timestamptz,
    spent_nano bigint NOT NULL,
    PRIMARY KEY (budget_id, period_start)
) USING heap;
REVOKE ALL ON TABLE @extschema@._llm_budget_spend FROM PUBLIC;
COMMENT ON TABLE @extschema@._llm_budget_spend
IS 'internal: what attempts charged to a budget cost in each of its periods, written with their rows in llm_attempts';
COMMENT ON COLUMN @extschema@._llm_budget_spend.budget_id
IS 'llm_budgets.id';
COMMENT ON COLUMN @extschema@._llm_budget_spend.period_start
IS 'when the period begins in which the attempts were made';
COMMENT ON COLUMN @extschema@._llm_budget_spend.spent_nano
IS 'the sum, in nano-dollars: 1000000000 is one USD';

-- Answers that are kept for calls that ask for the same.  They hold texts, so a role
-- sees its own, even of a task that shares them; whom they may be given to is in
-- the key.  Written by the worker, made again at any time, so never dumped.
CREATE TABLE @extschema@.llm_cache (
    key bytea PRIMARY KEY,
    role text NOT NULL,
    role_oid oid NOT NULL,
    task text,
    provider text NOT NULL,
    model text NOT NULL,
    model_tier text,
    response text,
    tool_calls jsonb,
    finish_reason text,
    input_tokens bigint,
    cached_input_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    cost_usd numeric,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    size bigint NOT NULL,
    request_id bigint NOT NULL,
    scope bytea,
    embedding real[]
) USING heap;
ALTER TABLE @extschema@.llm_cache ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX llm_cache_created_at_idx ON @extschema@.llm_cache (created_at);
CREATE INDEX llm_cache_expires_at_idx ON @extschema@.llm_cache (expires_at);
CREATE INDEX llm_cache_scope_idx ON @extschema@.llm_cache (scope, created_at DESC);
ALTER TABLE @extschema@.llm_cache ENABLE ROW LEVEL SECURITY;
CREATE POLICY llm_own_or_report ON @extschema@.llm_cache FOR SELECT USING (
    (SELECT pg_catalog.has_function_privilege('@extschema@._llm_reports_all()'::pg_catalog.regprocedure, 'EXECUTE'))
    OR (role OPERATOR(pg_catalog.=) CURRENT_USER
        AND role_oid OPERATOR(pg_catalog.=) (SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(CURRENT_USER)))));
CREATE POLICY llm_delete ON @extschema@.llm_cache FOR DELETE USING (true);
REVOKE ALL ON TABLE @extschema@.llm_cache FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_cache
IS 'answers that are kept, each until it expires or llm_gateway.cache_size is reached; rows may be deleted at any time';
COMMENT ON INDEX @extschema@.llm_cache_created_at_idx
IS 'for the oldest';
COMMENT ON INDEX @extschema@.llm_cache_expires_at_idx
IS 'for those that have expired';
COMMENT ON INDEX @extschema@.llm_cache_scope_idx
IS 'for answers to similar prompts';
COMMENT ON POLICY llm_own_or_report ON @extschema@.llm_cache
IS 'a role sees answers to its own calls, one granted report sees all';
COMMENT ON POLICY llm_delete ON @extschema@.llm_cache
IS 'who may delete, may delete what it sees';
COMMENT ON COLUMN @extschema@.llm_cache.key
IS 'a keyed hash of all that shapes the answer, and of who may have it';
COMMENT ON COLUMN @extschema@.llm_cache.role
IS 'the role whose call it answered';
COMMENT ON COLUMN @extschema@.llm_cache.role_oid
IS 'the OID that this role had';
COMMENT ON COLUMN @extschema@.llm_cache.task
IS 'the task of that call';
COMMENT ON COLUMN @extschema@.llm_cache.provider
IS 'where the answer came from';
COMMENT ON COLUMN @extschema@.llm_cache.model
IS 'the model that answered';
COMMENT ON COLUMN @extschema@.llm_cache.model_tier
IS 'its tier at that time';
COMMENT ON COLUMN @extschema@.llm_cache.response
IS 'the answer';
COMMENT ON COLUMN @extschema@.llm_cache.tool_calls
IS 'the tools that it calls; NULL: none';
COMMENT ON COLUMN @extschema@.llm_cache.finish_reason
IS 'why the answer ends where it does: stop, length, ...';
COMMENT ON COLUMN @extschema@.llm_cache.input_tokens
IS 'tokens of the prompt';
COMMENT ON COLUMN @extschema@.llm_cache.cached_input_tokens
IS 'those of them that the provider had cached';
COMMENT ON COLUMN @extschema@.llm_cache.cache_write_tokens
IS 'those of them that the provider stored in its cache';
COMMENT ON COLUMN @extschema@.llm_cache.output_tokens
IS 'tokens of the answer';
COMMENT ON COLUMN @extschema@.llm_cache.reasoning_tokens
IS 'those of them that the model spent on thinking';
COMMENT ON COLUMN @extschema@.llm_cache.cost_usd
IS 'what the attempt did cost that it answered; NULL: the model has no price';
COMMENT ON COLUMN @extschema@.llm_cache.created_at
IS 'when the answer came';
COMMENT ON COLUMN @extschema@.llm_cache.expires_at
IS 'from when it is not given any more';
COMMENT ON COLUMN @extschema@.llm_cache.size
IS 'the bytes that count against llm_gateway.cache_size';
COMMENT ON COLUMN @extschema@.llm_cache.request_id
IS 'the request that it answered, a row of llm_requests';
COMMENT ON COLUMN @extschema@.llm_cache.scope
IS 'a keyed hash of the same but for the prompt''s words: prompts are similar only within it; NULL: the answer is for equal prompts only';
COMMENT ON COLUMN @extschema@.llm_cache.embedding
IS 'the meaning of the prompt, as llm_gateway.cache_embedding_model has it; NULL: the answer is for equal prompts only';

-- What circuit breakers did.  Few rows; what they say of a provider is no
-- secret of a role, so they have no row security.
CREATE TABLE @extschema@.llm_breaker_events (
    event_id bigint PRIMARY KEY,
    at timestamptz NOT NULL,
    provider text NOT NULL,
    from_state text NOT NULL,
    to_state text NOT NULL,
    reason text,
    error_class text,
    message text,
    consecutive_failures integer NOT NULL,
    next_probe_at timestamptz
) USING heap;
REVOKE ALL ON TABLE @extschema@.llm_breaker_events FROM PUBLIC;
COMMENT ON TABLE @extschema@.llm_breaker_events
IS 'every change of a circuit breaker: when a provider was no longer asked, why, and when it was again';
COMMENT ON COLUMN @extschema@.llm_breaker_events.event_id
IS 'a number that rises with time, unique in the cluster; from the same source as request_id';
COMMENT ON COLUMN @extschema@.llm_breaker_events.at
IS 'when it changed';
COMMENT ON COLUMN @extschema@.llm_breaker_events.provider
IS 'the provider; a long name is shortened';
COMMENT ON COLUMN @extschema@.llm_breaker_events.from_state
IS 'closed, open or half_open: the state before';
COMMENT ON COLUMN @extschema@.llm_breaker_events.to_state
IS 'the state after';
COMMENT ON COLUMN @extschema@.llm_breaker_events.reason
IS 'why it is, or was, not closed: outage (failures), auth (the key is refused), quota (no credit is left) or operator (opened by hand)';
COMMENT ON COLUMN @extschema@.llm_breaker_events.error_class
IS 'the error that made the change, in the words of llm_error_policies; NULL: none did';
COMMENT ON COLUMN @extschema@.llm_breaker_events.message
IS 'what the provider or the network said of it, shortened';
COMMENT ON COLUMN @extschema@.llm_breaker_events.consecutive_failures
IS 'failures in a row up to then';
COMMENT ON COLUMN @extschema@.llm_breaker_events.next_probe_at
IS 'from when the provider is asked again whether it works; NULL: it is not, or need not be';

-- From where the worker reads on.  Written with the rows that it read, so that
-- each record is booked once; of no meaning elsewhere, so never dumped.
CREATE TABLE @extschema@._llm_spool_position (
    spool_id bigint PRIMARY KEY,
    read_offset bigint NOT NULL,
    oldest_open bigint NOT NULL,
    done boolean NOT NULL,
    updated_at timestamptz NOT NULL
) USING heap;
REVOKE ALL ON TABLE @extschema@._llm_spool_position FROM PUBLIC;
COMMENT ON TABLE @extschema@._llm_spool_position
IS 'internal: how much of the spool is in the ledger';
COMMENT ON COLUMN @extschema@._llm_spool_position.spool_id
IS 'the spool';
COMMENT ON COLUMN @extschema@._llm_spool_position.read_offset
IS 'requests that ended before it are in the ledger';
COMMENT ON COLUMN @extschema@._llm_spool_position.oldest_open
IS 'where reading begins after a restart: at the oldest request that had not ended';
COMMENT ON COLUMN @extschema@._llm_spool_position.done
IS 'whether nothing more is to be read from it';
COMMENT ON COLUMN @extschema@._llm_spool_position.updated_at
IS 'when the row was written';

-- Or a request that is open for days would keep all of the spool since then.
CREATE TABLE @extschema@._llm_spool_carried (
    spool_id bigint,
    request_id bigint,
    read_offset bigint NOT NULL,
    records bytea NOT NULL,
    PRIMARY KEY (spool_id, request_id)
) USING heap;
REVOKE ALL ON TABLE @extschema@._llm_spool_carried FROM PUBLIC;
COMMENT ON TABLE @extschema@._llm_spool_carried
IS 'internal: what the spool said of requests that have not ended, where it is no longer kept';
COMMENT ON COLUMN @extschema@._llm_spool_carried.spool_id
IS 'the spool';
COMMENT ON COLUMN @extschema@._llm_spool_carried.request_id
IS 'the request';
COMMENT ON COLUMN @extschema@._llm_spool_carried.read_offset
IS 'its records before this place in the spool are here';
COMMENT ON COLUMN @extschema@._llm_spool_carried.records
IS 'the records';

SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_requests', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_attempts', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_daily_spend', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@._llm_budget_spend', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.llm_breaker_events', '');

CREATE FUNCTION @extschema@._llm_worker_status()
RETURNS TABLE (
    worker text,
    database name,
    pid integer,
    state text,
    started_at timestamptz,
    pending_bytes bigint,
    open_requests bigint,
    booked bigint,
    discarded bigint,
    last_booked timestamptz,
    last_error text,
    last_error_at timestamptz,
    notice text)
AS 'MODULE_PATHNAME', 'llmgw_sql_worker_status'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10 ROWS 2;
REVOKE ALL ON FUNCTION @extschema@._llm_worker_status() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_worker_status()
IS 'internal: the rows of llm_worker_status';

CREATE FUNCTION @extschema@._llm_provider_status()
RETURNS TABLE (
    provider text,
    state text,
    consecutive_failures integer,
    opened_at timestamptz,
    next_probe_at timestamptz,
    in_flight integer,
    latency_ms integer,
    successes bigint,
    failures bigint,
    rate_limited_until timestamptz,
    reason text,
    waiting integer,
    last_error text,
    last_error_at timestamptz,
    last_probe_at timestamptz,
    last_probe_ok boolean)
AS 'MODULE_PATHNAME', 'llmgw_sql_provider_status'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@._llm_provider_status() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_provider_status()
IS 'internal: the rows of llm_provider_status';

CREATE FUNCTION @extschema@._llm_budget_status()
RETURNS TABLE (
    budget text,
    period_start timestamptz,
    limit_usd numeric,
    spent_usd numeric,
    reserved_usd numeric,
    remaining_usd numeric,
    remaining_fraction numeric,
    resets_at timestamptz,
    period text,
    timezone text,
    scope text,
    best_tier text,
    strict boolean,
    on_exhausted text,
    as_of timestamptz,
    notice text)
AS 'MODULE_PATHNAME', 'llmgw_sql_budget_status'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 100 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@._llm_budget_status() FROM PUBLIC;
COMMENT ON FUNCTION @extschema@._llm_budget_status()
IS 'internal: the rows of llm_budget_status';


-- ---------------------------------------------------------------------------
-- Views of the ledger.  Each acts with the rights of who reads it: own rows, or
-- all of them.  Days are UTC days, whatever the session's time zone.
-- ---------------------------------------------------------------------------

CREATE VIEW @extschema@.llm_spend_today WITH (security_invoker = true) AS
SELECT d.provider,
       d.model,
       d.model_tier,
       pg_catalog.sum(d.requests)::bigint AS requests,
       pg_catalog.sum(d.failures)::bigint AS failures,
       pg_catalog.sum(d.cached)::bigint AS cached,
       pg_catalog.sum(d.fallbacks)::bigint AS fallbacks,
       pg_catalog.sum(d.unpriced)::bigint AS unpriced,
       pg_catalog.sum(d.input_tokens)::bigint AS input_tokens,
       pg_catalog.sum(d.output_tokens)::bigint AS output_tokens,
       pg_catalog.sum(d.cost_usd) AS cost_usd
FROM @extschema@.llm_daily_spend d
WHERE d.day OPERATOR(pg_catalog.=) (pg_catalog.now() AT TIME ZONE 'UTC')::pg_catalog.date
GROUP BY d.provider, d.model, d.model_tier
ORDER BY pg_catalog.sum(d.cost_usd) DESC, d.provider, d.model, d.model_tier;
REVOKE ALL ON TABLE @extschema@.llm_spend_today FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_spend_today
IS 'what this UTC day has cost so far, by provider and model, the dearest first';
COMMENT ON COLUMN @extschema@.llm_spend_today.provider
IS 'as in llm_daily_spend; empty: nothing was sent';
COMMENT ON COLUMN @extschema@.llm_spend_today.model
IS 'the model at that provider';
COMMENT ON COLUMN @extschema@.llm_spend_today.model_tier
IS 'the tier of the model';
COMMENT ON COLUMN @extschema@.llm_spend_today.requests
IS 'requests, however they ended';
COMMENT ON COLUMN @extschema@.llm_spend_today.failures
IS 'those with status error or unknown';
COMMENT ON COLUMN @extschema@.llm_spend_today.cached
IS 'those with status cached';
COMMENT ON COLUMN @extschema@.llm_spend_today.fallbacks
IS 'those answered by another than the first candidate';
COMMENT ON COLUMN @extschema@.llm_spend_today.unpriced
IS 'attempts whose cost is unknown, because the model has no price';
COMMENT ON COLUMN @extschema@.llm_spend_today.input_tokens
IS 'tokens of prompts';
COMMENT ON COLUMN @extschema@.llm_spend_today.output_tokens
IS 'tokens of answers';
COMMENT ON COLUMN @extschema@.llm_spend_today.cost_usd
IS 'what it cost, without the unpriced attempts';

CREATE VIEW @extschema@.llm_fallback_report WITH (security_invoker = true) AS
SELECT (f.created_at AT TIME ZONE 'UTC')::pg_catalog.date AS day,
       f.from_provider,
       f.to_provider,
       f.error_class,
       pg_catalog.count(DISTINCT f.request_id) AS requests
FROM (SELECT r.created_at, r.request_id, a.provider AS from_provider, a.error_class,
             CASE WHEN r.status OPERATOR(pg_catalog.=) 'ok' THEN r.provider END AS to_provider
      FROM @extschema@.llm_requests r
      JOIN @extschema@.llm_attempts a ON a.request_id OPERATOR(pg_catalog.=) r.request_id
      WHERE a.error_class OPERATOR(pg_catalog.<>) ALL ('{cancelled,unknown}')
        AND r.operation OPERATOR(pg_catalog.<>) 'probe'
        AND (r.status OPERATOR(pg_catalog.<>) 'ok' OR r.provider OPERATOR(pg_catalog.<>) a.provider)
      UNION ALL
      SELECT r.created_at, r.request_id, r.passed_over, r.passed_over_class,
             CASE WHEN r.status OPERATOR(pg_catalog.=) 'ok' THEN r.provider END
      FROM @extschema@.llm_requests r
      WHERE r.passed_over IS NOT NULL AND r.operation OPERATOR(pg_catalog.<>) 'probe') f
GROUP BY 1, 2, 3, 4
ORDER BY 1 DESC, 5 DESC, 2, 3, 4;
REVOKE ALL ON TABLE @extschema@.llm_fallback_report FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_fallback_report
IS 'which provider failed or was passed over, why, and which one answered in its place; without probes';
COMMENT ON COLUMN @extschema@.llm_fallback_report.day
IS 'the UTC day of the requests';
COMMENT ON COLUMN @extschema@.llm_fallback_report.from_provider
IS 'the provider that failed or, being the first candidate, was not even asked';
COMMENT ON COLUMN @extschema@.llm_fallback_report.to_provider
IS 'the provider that answered; NULL: none did';
COMMENT ON COLUMN @extschema@.llm_fallback_report.error_class
IS 'why it failed, in the words of llm_error_policies; unavailable: its circuit breaker was open, or it was parked; budget: it might have cost more than was left';
COMMENT ON COLUMN @extschema@.llm_fallback_report.requests
IS 'requests to which that happened; one that tried several providers counts for each of them';

CREATE VIEW @extschema@.llm_routing_report WITH (security_invoker = true) AS
SELECT (r.created_at AT TIME ZONE 'UTC')::pg_catalog.date AS day,
       r.task,
       r.task_source,
       r.model,
       pg_catalog.count(*) AS requests,
       pg_catalog.count(*) FILTER (WHERE r.status OPERATOR(pg_catalog.=) ANY ('{error,unknown}')) AS failures,
       pg_catalog.count(*) FILTER (WHERE r.fallback) AS fallbacks,
       pg_catalog.sum(r.cost_usd) AS cost_usd,
       pg_catalog.round(pg_catalog.avg(r.latency_ms)
           FILTER (WHERE r.status OPERATOR(pg_catalog.=) 'ok'))::integer AS avg_latency_ms,
       pg_catalog.percentile_disc(0.95) WITHIN GROUP (ORDER BY r.latency_ms)
           FILTER (WHERE r.status OPERATOR(pg_catalog.=) 'ok') AS p95_latency_ms
FROM @extschema@.llm_requests r
GROUP BY 1, 2, 3, 4
ORDER BY 1 DESC, 5 DESC, 2, 3, 4;
REVOKE ALL ON TABLE @extschema@.llm_routing_report FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_routing_report
IS 'which models answered which tasks, at what cost and how fast';
COMMENT ON COLUMN @extschema@.llm_routing_report.day
IS 'the UTC day of the requests';
COMMENT ON COLUMN @extschema@.llm_routing_report.task
IS 'the task';
COMMENT ON COLUMN @extschema@.llm_routing_report.task_source
IS 'how the task was found';
COMMENT ON COLUMN @extschema@.llm_routing_report.model
IS 'the model that answered, or was tried last; NULL: nothing was sent';
COMMENT ON COLUMN @extschema@.llm_routing_report.requests
IS 'requests, however they ended';
COMMENT ON COLUMN @extschema@.llm_routing_report.failures
IS 'those with status error or unknown';
COMMENT ON COLUMN @extschema@.llm_routing_report.fallbacks
IS 'those answered by another than the first candidate';
COMMENT ON COLUMN @extschema@.llm_routing_report.cost_usd
IS 'what they cost, all attempts included; NULL: no cost is known';
COMMENT ON COLUMN @extschema@.llm_routing_report.avg_latency_ms
IS 'mean time to an answer, in milliseconds';
COMMENT ON COLUMN @extschema@.llm_routing_report.p95_latency_ms
IS 'the time within which 95 of 100 answers came, in milliseconds';

CREATE VIEW @extschema@.llm_estimate_accuracy WITH (security_invoker = true) AS
SELECT r.provider,
       r.model,
       pg_catalog.count(*) AS requests,
       pg_catalog.sum(r.estimated_usd) AS estimated_usd,
       pg_catalog.sum(r.cost_usd) AS cost_usd,
       CASE WHEN pg_catalog.sum(r.estimated_usd) OPERATOR(pg_catalog.>) 0
           THEN pg_catalog.round(pg_catalog.sum(r.cost_usd) OPERATOR(pg_catalog./) pg_catalog.sum(r.estimated_usd), 3)
           END AS ratio,
       pg_catalog.count(*) FILTER (WHERE r.cost_usd OPERATOR(pg_catalog.>) r.estimated_usd) AS underestimated
FROM @extschema@.llm_requests r
WHERE r.status OPERATOR(pg_catalog.=) 'ok'
  AND NOT r.fallback
  AND r.estimated_usd IS NOT NULL
  AND r.cost_usd IS NOT NULL
GROUP BY r.provider, r.model
ORDER BY pg_catalog.sum(r.cost_usd) DESC, r.provider, r.model;
REVOKE ALL ON TABLE @extschema@.llm_estimate_accuracy FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_estimate_accuracy
IS 'estimates made before calls against what the calls cost; of requests that the first candidate answered, since the estimate is for that one';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.provider
IS 'the provider';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.model
IS 'the model';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.requests
IS 'requests with status ok, an estimate and a cost';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.estimated_usd
IS 'what they were estimated to cost';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.cost_usd
IS 'what they cost';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.ratio
IS 'cost divided by estimate; below 1 the estimates are too high';
COMMENT ON COLUMN @extschema@.llm_estimate_accuracy.underestimated
IS 'requests that cost more than estimated';

CREATE VIEW @extschema@.llm_worker_status WITH (security_invoker = true) AS
SELECT * FROM @extschema@._llm_worker_status();
REVOKE ALL ON TABLE @extschema@.llm_worker_status FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_worker_status
IS 'the background processes: whether they run, and how far the ledger is behind';
COMMENT ON COLUMN @extschema@.llm_worker_status.worker
IS 'launcher, or ledger: the worker of this database';
COMMENT ON COLUMN @extschema@.llm_worker_status.database
IS 'the database that it works for; NULL: all of them';
COMMENT ON COLUMN @extschema@.llm_worker_status.pid
IS 'its process id; NULL: it does not run';
COMMENT ON COLUMN @extschema@.llm_worker_status.state
IS 'running, blocked (somebody has locked a table of the ledger), starting, none (no call has asked for one), no worker slot, ...';
COMMENT ON COLUMN @extschema@.llm_worker_status.started_at
IS 'when it started';
COMMENT ON COLUMN @extschema@.llm_worker_status.pending_bytes
IS 'bytes in the spool that are not yet in the ledger';
COMMENT ON COLUMN @extschema@.llm_worker_status.open_requests
IS 'requests that have begun and not yet ended';
COMMENT ON COLUMN @extschema@.llm_worker_status.booked
IS 'requests written to the ledger since the server started';
COMMENT ON COLUMN @extschema@.llm_worker_status.discarded
IS 'records that were damaged, or of an extension that has been dropped, since the server started';
COMMENT ON COLUMN @extschema@.llm_worker_status.last_booked
IS 'when a request was last written to the ledger';
COMMENT ON COLUMN @extschema@.llm_worker_status.last_error
IS 'what last went wrong; NULL: nothing has since the server started';
COMMENT ON COLUMN @extschema@.llm_worker_status.last_error_at
IS 'when that was';
COMMENT ON COLUMN @extschema@.llm_worker_status.notice
IS 'what an administrator should know: of the launcher, providers that found no free slot (llm_gateway.max_providers); NULL: nothing';

CREATE VIEW @extschema@.llm_provider_status WITH (security_invoker = true) AS
SELECT * FROM @extschema@._llm_provider_status();
REVOKE ALL ON TABLE @extschema@.llm_provider_status FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_provider_status
IS 'how each provider is doing at this moment, as all sessions of this database know it; counts begin when the server starts, or when kind, URL or key reference change';
COMMENT ON COLUMN @extschema@.llm_provider_status.provider
IS 'the provider, a row of llm_providers';
COMMENT ON COLUMN @extschema@.llm_provider_status.state
IS 'of its circuit breaker: closed (calls go there), open (they do not), half_open (a probe is under way)';
COMMENT ON COLUMN @extschema@.llm_provider_status.consecutive_failures
IS 'failures in a row, since the last success';
COMMENT ON COLUMN @extschema@.llm_provider_status.opened_at
IS 'since when it is not closed; NULL: it is';
COMMENT ON COLUMN @extschema@.llm_provider_status.next_probe_at
IS 'from when it is asked whether it works; NULL: no probe is to come';
COMMENT ON COLUMN @extschema@.llm_provider_status.in_flight
IS 'calls under way';
COMMENT ON COLUMN @extschema@.llm_provider_status.latency_ms
IS 'mean time to an answer, in milliseconds, recent ones counting most; NULL: none yet';
COMMENT ON COLUMN @extschema@.llm_provider_status.successes
IS 'attempts that were answered';
COMMENT ON COLUMN @extschema@.llm_provider_status.failures
IS 'attempts that failed';
COMMENT ON COLUMN @extschema@.llm_provider_status.rate_limited_until
IS 'until when the provider asked to be left alone; NULL: it did not';
COMMENT ON COLUMN @extschema@.llm_provider_status.reason
IS 'why it is not closed: outage (failures), auth (the key is refused), quota (no credit is left) or operator (opened by hand); NULL: it is closed';
COMMENT ON COLUMN @extschema@.llm_provider_status.waiting
IS 'calls that wait for one of its limits';
COMMENT ON COLUMN @extschema@.llm_provider_status.last_error
IS 'the last error that counts against the provider, or its last rate limit: class and message; NULL: none yet';
COMMENT ON COLUMN @extschema@.llm_provider_status.last_error_at
IS 'when that was';
COMMENT ON COLUMN @extschema@.llm_provider_status.last_probe_at
IS 'when it was last probed; NULL: never';
COMMENT ON COLUMN @extschema@.llm_provider_status.last_probe_ok
IS 'whether that probe was answered';

-- Whose rows these are, the function decides, as row security does for the ledger.
CREATE VIEW @extschema@.llm_budget_status WITH (security_invoker = true) AS
SELECT * FROM @extschema@._llm_budget_status();
REVOKE ALL ON TABLE @extschema@.llm_budget_status FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_budget_status
IS 'how each budget stands at this moment, calls under way included; a role sees those that its calls may be charged to, one granted report sees all';
COMMENT ON COLUMN @extschema@.llm_budget_status.budget
IS 'the budget, a row of llm_budgets';
COMMENT ON COLUMN @extschema@.llm_budget_status.period_start
IS 'when the running period began';
COMMENT ON COLUMN @extschema@.llm_budget_status.limit_usd
IS 'what may be spent in a period; NULL: the budget only counts';
COMMENT ON COLUMN @extschema@.llm_budget_status.spent_usd
IS 'what calls that have ended have cost; NULL: not known yet, see notice';
COMMENT ON COLUMN @extschema@.llm_budget_status.reserved_usd
IS 'what calls under way may cost';
COMMENT ON COLUMN @extschema@.llm_budget_status.remaining_usd
IS 'the limit without both; negative after an overrun; NULL: there is no limit';
COMMENT ON COLUMN @extschema@.llm_budget_status.remaining_fraction
IS 'the part of the limit that remains, which llm_priorities are compared with';
COMMENT ON COLUMN @extschema@.llm_budget_status.resets_at
IS 'when the next period begins, with nothing spent';
COMMENT ON COLUMN @extschema@.llm_budget_status.period
IS 'hour, day, week or month';
COMMENT ON COLUMN @extschema@.llm_budget_status.timezone
IS 'where periods begin and end';
COMMENT ON COLUMN @extschema@.llm_budget_status.scope
IS 'which calls are charged to it, in words';
COMMENT ON COLUMN @extschema@.llm_budget_status.best_tier
IS 'the best tier that it leaves to calls of priority llm_gateway.default_priority: premium, standard, economy, or none';
COMMENT ON COLUMN @extschema@.llm_budget_status.strict
IS 'whether it reserves the most that a call can cost';
COMMENT ON COLUMN @extschema@.llm_budget_status.on_exhausted
IS 'what becomes of calls when nothing is left: reject, or cache_only';
COMMENT ON COLUMN @extschema@.llm_budget_status.as_of
IS 'the moment that the row is about';
COMMENT ON COLUMN @extschema@.llm_budget_status.notice
IS 'why there are no numbers; NULL: there are';

CREATE VIEW @extschema@.llm_budget_forecast WITH (security_invoker = true) AS
SELECT f.budget,
       f.period_start,
       f.resets_at,
       f.limit_usd,
       f.spent_usd,
       pg_catalog.trim_scale(pg_catalog.round(f.elapsed OPERATOR(pg_catalog./) f.whole, 4)) AS elapsed_fraction,
       CASE WHEN f.elapsed OPERATOR(pg_catalog.>) 0
           THEN pg_catalog.trim_scale(pg_catalog.round(f.spent_usd OPERATOR(pg_catalog.*) 3600 OPERATOR(pg_catalog./) f.elapsed, 6))
           END AS usd_per_hour,
       CASE WHEN f.elapsed OPERATOR(pg_catalog.>) 0
           THEN pg_catalog.trim_scale(pg_catalog.round(f.spent_usd OPERATOR(pg_catalog.*) f.whole OPERATOR(pg_catalog./) f.elapsed, 6))
           END AS projected_usd,
       pg_catalog.trim_scale(pg_catalog.round(f.recent_usd OPERATOR(pg_catalog.*) 3600 OPERATOR(pg_catalog./) f.recent, 6)) AS recent_usd_per_hour,
       pg_catalog.trim_scale(pg_catalog.round(f.recent_projected_usd, 6)) AS recent_projected_usd,
       CASE WHEN f.spent_usd OPERATOR(pg_catalog.>=) f.limit_usd THEN f.as_of
           WHEN f.recent_projected_usd OPERATOR(pg_catalog.>=) f.limit_usd
           THEN f.as_of OPERATOR(pg_catalog.+) (interval '1 second' OPERATOR(pg_catalog.*)
               ((f.limit_usd OPERATOR(pg_catalog.-) f.spent_usd) OPERATOR(pg_catalog.*) f.recent
                   OPERATOR(pg_catalog./) f.recent_usd)::double precision)
           END AS exhausted_at
FROM (SELECT e.*,
             e.spent_usd OPERATOR(pg_catalog.+)
                 (e.recent_usd OPERATOR(pg_catalog.*) (e.whole OPERATOR(pg_catalog.-) e.elapsed)
                     OPERATOR(pg_catalog./) e.recent) AS recent_projected_usd
      FROM (SELECT w.*,
                   (SELECT coalesce(pg_catalog.sum(a.cost_usd), 0)
                    FROM @extschema@.llm_requests r
                    JOIN @extschema@.llm_attempts a ON a.request_id OPERATOR(pg_catalog.=) r.request_id
                    WHERE r.created_at OPERATOR(pg_catalog.>)
                          (w.as_of OPERATOR(pg_catalog.-) (interval '1 second' OPERATOR(pg_catalog.*) w.recent::double precision))
                      AND r.created_at OPERATOR(pg_catalog.<=) w.as_of
                      AND w.budget OPERATOR(pg_catalog.=) ANY (r.budgets)
                      AND (b.provider IS NULL OR a.provider OPERATOR(pg_catalog.=) b.provider)
                      AND (b.model IS NULL OR a.model OPERATOR(pg_catalog.=) b.model
                          OR (a.provider OPERATOR(pg_catalog.||) '/' OPERATOR(pg_catalog.||) a.model)
                              OPERATOR(pg_catalog.=) b.model)) AS recent_usd
            FROM (SELECT s.*,
                         EXTRACT(epoch FROM s.as_of OPERATOR(pg_catalog.-) s.period_start) AS elapsed,
                         EXTRACT(epoch FROM s.resets_at OPERATOR(pg_catalog.-) s.period_start) AS whole,
                         CASE WHEN s.period OPERATOR(pg_catalog.=) 'hour' THEN 900
                             WHEN s.period OPERATOR(pg_catalog.=) 'day' THEN 10800
                             ELSE 86400 END::numeric AS recent
                  FROM @extschema@._llm_budget_status() s) w
            JOIN @extschema@.llm_budgets b ON b.name OPERATOR(pg_catalog.=) w.budget) e) f
ORDER BY f.budget;
REVOKE ALL ON TABLE @extschema@.llm_budget_forecast FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_budget_forecast
IS 'what each budget will have spent when its period ends, if it goes on as in the whole period so far, or as it did recently: in the last 24 hours, of a day in its last 3, of an hour in its last 15 minutes';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.budget
IS 'the budget, a row of llm_budgets';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.period_start
IS 'when the running period began';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.resets_at
IS 'when it ends';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.limit_usd
IS 'what may be spent in it; NULL: the budget only counts';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.spent_usd
IS 'what has been spent so far; NULL: not known yet, see notice of llm_budget_status';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.elapsed_fraction
IS 'the part of the period that is over';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.usd_per_hour
IS 'spent in an hour on average, since the period began';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.projected_usd
IS 'spent at the end of the period at that rate';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.recent_usd_per_hour
IS 'spent in an hour on average, recently';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.recent_projected_usd
IS 'spent at the end of the period at the recent rate from now on';
COMMENT ON COLUMN @extschema@.llm_budget_forecast.exhausted_at
IS 'when the limit is reached at the recent rate; now, if it has been; NULL: not in this period';

CREATE VIEW @extschema@.llm_downgrade_report WITH (security_invoker = true) AS
SELECT pg_catalog.date_trunc('hour', r.created_at, 'UTC') AS hour,
       r.downgraded_by AS budget,
       r.priority,
       r.downgraded_from AS from_tier,
       r.model_tier AS to_tier,
       pg_catalog.count(*) AS requests,
       pg_catalog.count(*) FILTER (WHERE r.status OPERATOR(pg_catalog.=) 'cached') AS cached,
       pg_catalog.count(*) FILTER (WHERE r.status OPERATOR(pg_catalog.=) 'rejected') AS rejected,
       pg_catalog.sum(r.cost_usd) AS cost_usd
FROM @extschema@.llm_requests r
WHERE r.downgraded_by IS NOT NULL
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1 DESC, 6 DESC, 2, 3, 4, 5;
REVOKE ALL ON TABLE @extschema@.llm_downgrade_report FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_downgrade_report
IS 'requests that a budget kept from better models, by hour';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.hour
IS 'the hour of the requests';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.budget
IS 'the budget that took the better models away';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.priority
IS 'the priority of the requests';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.from_tier
IS 'the best tier that was left out';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.to_tier
IS 'the tier of the model that answered, or was tried last; NULL: none was asked';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.requests
IS 'requests, however they ended';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.cached
IS 'those that a kept answer was good enough for';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.rejected
IS 'those of which nothing was sent';
COMMENT ON COLUMN @extschema@.llm_downgrade_report.cost_usd
IS 'what they cost, all attempts included; NULL: no cost is known';

CREATE VIEW @extschema@.llm_savings_report WITH (security_invoker = true) AS
SELECT s.day,
       s.saved_by,
       s.task,
       s.model,
       s.compared_with,
       pg_catalog.count(*) AS requests,
       pg_catalog.sum(s.cost_usd) AS cost_usd,
       pg_catalog.trim_scale(pg_catalog.round(pg_catalog.sum(s.otherwise_usd), 9)) AS otherwise_usd,
       pg_catalog.trim_scale(pg_catalog.round(pg_catalog.sum(s.otherwise_usd OPERATOR(pg_catalog.-) s.cost_usd), 9)) AS saved_usd
FROM (SELECT (r.created_at AT TIME ZONE 'UTC')::pg_catalog.date AS day,
             CASE WHEN r.downgraded_by IS NULL THEN 'routing' ELSE 'budget' END AS saved_by,
             r.task,
             a.model,
             b.provider OPERATOR(pg_catalog.||) '/' OPERATOR(pg_catalog.||) b.name AS compared_with,
             a.cost_usd,
             (((a.input_tokens OPERATOR(pg_catalog.-) a.cached_input_tokens OPERATOR(pg_catalog.-) a.cache_write_tokens)::numeric
                     OPERATOR(pg_catalog.*) b.input_price)
               OPERATOR(pg_catalog.+)
               (a.cached_input_tokens::numeric OPERATOR(pg_catalog.*) coalesce(b.cached_input_price, b.input_price))
               OPERATOR(pg_catalog.+)
               (a.cache_write_tokens::numeric OPERATOR(pg_catalog.*) coalesce(b.cache_write_price, b.input_price))
               OPERATOR(pg_catalog.+)
               (a.output_tokens::numeric OPERATOR(pg_catalog.*) b.output_price))
               OPERATOR(pg_catalog./) 1000000 AS otherwise_usd
      FROM @extschema@.llm_requests r
      JOIN @extschema@.llm_attempts a ON a.request_id OPERATOR(pg_catalog.=) r.request_id
      -- what would be asked if quality alone decided
      CROSS JOIN (SELECT m.*, t.rank
                  FROM @extschema@.llm_models m
                  JOIN @extschema@.llm_providers p ON p.name OPERATOR(pg_catalog.=) m.provider
                  JOIN @extschema@.llm_tiers t ON t.name OPERATOR(pg_catalog.=) m.tier
                  WHERE m.enabled AND p.enabled AND m.input_price IS NOT NULL AND m.output_price IS NOT NULL
                    AND (m.capabilities IS NULL OR NOT m.capabilities OPERATOR(pg_catalog.<@) ARRAY['embedding'])
                  ORDER BY t.rank, m.quality DESC, m.provider, m.name
                  LIMIT 1) b
      LEFT JOIN @extschema@.llm_tiers tier ON tier.name OPERATOR(pg_catalog.=) r.model_tier
      WHERE r.status OPERATOR(pg_catalog.=) 'ok'
        AND r.operation OPERATOR(pg_catalog.=) ANY ('{complete,chat,json,stream}')
        AND a.error_class IS NULL
        AND a.cost_usd IS NOT NULL
        AND (tier.rank IS NULL OR tier.rank OPERATOR(pg_catalog.>) b.rank)
        -- a model that the caller named was no choice of the gateway's
        AND (r.requested_model IS NULL
            OR EXISTS (SELECT FROM @extschema@.llm_routing_rules rule
                       WHERE rule.alias OPERATOR(pg_catalog.=) r.requested_model))
      UNION ALL
      SELECT (r.created_at AT TIME ZONE 'UTC')::pg_catalog.date,
             'cache',
             r.task,
             r.model,
             NULL,
             0,
             coalesce(paid.cost_usd, CASE WHEN r.estimated_usd OPERATOR(pg_catalog.>) 0 THEN r.estimated_usd END)
      FROM @extschema@.llm_requests r
      LEFT JOIN (SELECT o.prompt_hash, pg_catalog.avg(o.cost_usd) AS cost_usd
                 FROM @extschema@.llm_requests o
                 WHERE o.status OPERATOR(pg_catalog.=) 'ok' AND o.prompt_hash IS NOT NULL
                 GROUP BY o.prompt_hash) paid ON paid.prompt_hash OPERATOR(pg_catalog.=) r.prompt_hash
      WHERE r.status OPERATOR(pg_catalog.=) 'cached') s
GROUP BY 1, 2, 3, 4, 5
ORDER BY 1 DESC, 9 DESC NULLS LAST, 2, 3, 4, 5;
REVOKE ALL ON TABLE @extschema@.llm_savings_report FROM PUBLIC;
COMMENT ON VIEW @extschema@.llm_savings_report
IS 'what routing, budgets and kept answers have saved, at the prices of llm_models as they are now';
COMMENT ON COLUMN @extschema@.llm_savings_report.day
IS 'the UTC day of the requests';
COMMENT ON COLUMN @extschema@.llm_savings_report.saved_by
IS 'routing: rules chose a cheaper tier; budget: a budget did; cache: no call was needed';
COMMENT ON COLUMN @extschema@.llm_savings_report.task
IS 'the task';
COMMENT ON COLUMN @extschema@.llm_savings_report.model
IS 'the model that answered; NULL: not recorded';
COMMENT ON COLUMN @extschema@.llm_savings_report.compared_with
IS 'the model whose prices it is compared with: of those that have prices the one of the best tier with the highest quality; NULL, of cache: what answers to the same prompt cost on average, or else the estimate, if there is one';
COMMENT ON COLUMN @extschema@.llm_savings_report.requests
IS 'answers; not those of the best tier, nor of models that the caller named';
COMMENT ON COLUMN @extschema@.llm_savings_report.cost_usd
IS 'what they cost, without attempts that failed';
COMMENT ON COLUMN @extschema@.llm_savings_report.otherwise_usd
IS 'what their tokens would have cost; NULL: not known';
COMMENT ON COLUMN @extschema@.llm_savings_report.saved_usd
IS 'the difference; negative where the cheaper tier was the dearer one';


-- ---------------------------------------------------------------------------
-- Calls.  They cost money: nobody may make one before llm_grant.  A cost this
-- high makes every other condition of a WHERE clause come first.
-- ---------------------------------------------------------------------------

CREATE FUNCTION @extschema@.llm_complete(
    prompt text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'llmgw_sql_complete'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000;
REVOKE ALL ON FUNCTION @extschema@.llm_complete FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_complete
IS 'the answer of a language model to a prompt';

CREATE FUNCTION @extschema@.llm_complete_detail(
    prompt text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL)
RETURNS TABLE (
    response text,
    provider text,
    model text,
    model_tier text,
    task text,
    priority text,
    finish_reason text,
    input_tokens integer,
    cached_input_tokens integer,
    output_tokens integer,
    reasoning_tokens integer,
    estimated_usd numeric,
    cost_usd numeric,
    latency_ms integer,
    ttft_ms integer,
    attempts integer,
    fallback boolean,
    cached boolean,
    degraded text[],
    notice text,
    tool_calls jsonb,
    error_class text,
    error_message text,
    request_id bigint)
AS 'MODULE_PATHNAME', 'llmgw_sql_complete_detail'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 1;
REVOKE ALL ON FUNCTION @extschema@.llm_complete_detail FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_complete_detail
IS 'the answer of a language model with who gave it, what it cost, what the model was not sent because it cannot take it (degraded) and, if there is no answer, why';

CREATE FUNCTION @extschema@.llm_complete_json(
    prompt text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    schema jsonb DEFAULT NULL,
    degrade boolean DEFAULT true)
RETURNS jsonb
AS 'MODULE_PATHNAME', 'llmgw_sql_complete_json'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000;
REVOKE ALL ON FUNCTION @extschema@.llm_complete_json FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_complete_json
IS 'the answer of a language model to a prompt as JSON that satisfies the schema; degrade: also of models that can only be told of it';

CREATE FUNCTION @extschema@.llm_chat(
    messages jsonb,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    tools jsonb DEFAULT NULL,
    tool_choice jsonb DEFAULT NULL,
    schema jsonb DEFAULT NULL)
RETURNS TABLE (
    response text,
    provider text,
    model text,
    model_tier text,
    task text,
    priority text,
    finish_reason text,
    input_tokens integer,
    cached_input_tokens integer,
    output_tokens integer,
    reasoning_tokens integer,
    estimated_usd numeric,
    cost_usd numeric,
    latency_ms integer,
    ttft_ms integer,
    attempts integer,
    fallback boolean,
    cached boolean,
    degraded text[],
    notice text,
    tool_calls jsonb,
    error_class text,
    error_message text,
    request_id bigint)
AS 'MODULE_PATHNAME', 'llmgw_sql_chat'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 1;
REVOKE ALL ON FUNCTION @extschema@.llm_chat FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_chat
IS 'the next message of a conversation, written as OpenAI''s API takes it; tools that the model may call, and a JSON schema for the answer';

-- Rows reach the client as they come when it is in the SELECT list; in FROM the
-- executor collects them all first.
CREATE FUNCTION @extschema@.llm_stream(
    prompt text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL)
RETURNS SETOF text
AS 'MODULE_PATHNAME', 'llmgw_sql_stream'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 100;
REVOKE ALL ON FUNCTION @extschema@.llm_stream FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_stream
IS 'the answer of a language model, in pieces as they come; their concatenation is the answer';

CREATE FUNCTION @extschema@.llm_complete_batch(
    prompts text[],
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    temperature real DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    max_concurrency integer DEFAULT NULL)
RETURNS TABLE (
    idx integer,
    response text,
    provider text,
    model text,
    model_tier text,
    task text,
    priority text,
    finish_reason text,
    input_tokens integer,
    cached_input_tokens integer,
    output_tokens integer,
    reasoning_tokens integer,
    estimated_usd numeric,
    cost_usd numeric,
    latency_ms integer,
    ttft_ms integer,
    attempts integer,
    fallback boolean,
    cached boolean,
    degraded text[],
    notice text,
    tool_calls jsonb,
    error_class text,
    error_message text,
    request_id bigint)
AS 'MODULE_PATHNAME', 'llmgw_sql_complete_batch'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 100;
REVOKE ALL ON FUNCTION @extschema@.llm_complete_batch FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_complete_batch
IS 'the answers to many prompts, asked for at the same time; idx is the place of the prompt in the array';

-- real[] has a cast to pgvector's type vector, which comes with that extension.
CREATE FUNCTION @extschema@.llm_embed(
    input text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    dimensions integer DEFAULT NULL)
RETURNS real[]
AS 'MODULE_PATHNAME', 'llmgw_sql_embed'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000;
REVOKE ALL ON FUNCTION @extschema@.llm_embed FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_embed
IS 'the embedding of a text: a vector that is close to those of texts that mean the same';

CREATE FUNCTION @extschema@.llm_embed_batch(
    inputs text[],
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    params jsonb DEFAULT NULL,
    timeout_ms integer DEFAULT NULL,
    cache text DEFAULT NULL,
    tags jsonb DEFAULT NULL,
    dimensions integer DEFAULT NULL,
    max_concurrency integer DEFAULT NULL)
RETURNS TABLE (
    idx integer,
    embedding real[],
    error_class text,
    error_message text)
AS 'MODULE_PATHNAME', 'llmgw_sql_embed_batch'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 100;
REVOKE ALL ON FUNCTION @extschema@.llm_embed_batch FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_embed_batch
IS 'the embeddings of many texts, many in one request; idx is the place of the text in the array';

-- Makes no call and takes no provider's turn.
CREATE FUNCTION @extschema@.llm_route(
    prompt text,
    priority text DEFAULT NULL,
    model text DEFAULT NULL,
    task text DEFAULT NULL,
    optimize text DEFAULT NULL,
    min_tier text DEFAULT NULL,
    system_prompt text DEFAULT NULL,
    max_tokens integer DEFAULT NULL,
    params jsonb DEFAULT NULL,
    tags jsonb DEFAULT NULL)
RETURNS TABLE (
    rank integer,
    provider text,
    model text,
    model_tier text,
    task text,
    task_source text,
    estimated_usd numeric,
    chosen boolean,
    reason text)
AS 'MODULE_PATHNAME', 'llmgw_sql_route'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.llm_route FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_route
IS 'which models llm_complete would ask with the same arguments, in which order, which one it would ask now (chosen), and why; makes no call';

-- Makes no call; reads the configuration as of now.
CREATE FUNCTION @extschema@.llm_estimate_cost(
    prompt text,
    model text,
    max_tokens integer DEFAULT NULL)
RETURNS numeric
AS 'MODULE_PATHNAME', 'llmgw_sql_estimate_cost'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000;
REVOKE ALL ON FUNCTION @extschema@.llm_estimate_cost FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_estimate_cost
IS 'what a call would cost by estimate, in USD; NULL: the price is unknown';


-- ---------------------------------------------------------------------------
-- Administration
-- ---------------------------------------------------------------------------

-- Acts with the privileges of its caller; what it writes, the triggers judge.
CREATE FUNCTION @extschema@.llm_add_provider(
    name text,
    kind text DEFAULT NULL,
    api_key text DEFAULT NULL,
    base_url text DEFAULT NULL,
    models text[] DEFAULT NULL)
RETURNS TABLE (object text, name text, detail text)
AS 'MODULE_PATHNAME', 'llmgw_sql_add_provider'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 1000 ROWS 10;
REVOKE ALL ON FUNCTION @extschema@.llm_add_provider FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_add_provider
IS 'adds a provider, its models and, where there are none, routing rules; returns what it added';

-- Acts with the privileges of its caller; adds no model.
CREATE FUNCTION @extschema@.llm_import_prices(prices jsonb)
RETURNS integer
AS 'MODULE_PATHNAME', 'llmgw_sql_import_prices'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE COST 1000;
REVOKE ALL ON FUNCTION @extschema@.llm_import_prices FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_import_prices
IS 'sets prices, limits and capabilities of the models that there are from a price list as LiteLLM publishes it; returns how many models it changed';

-- Whoever may execute it may store a key, without any right on the table.
CREATE FUNCTION @extschema@.llm_set_secret(
    name text,
    value text,
    allowed_host text DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'llmgw_sql_set_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_set_secret FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_set_secret
IS 'stores a key for api_key = ''secret:NAME'', bound to one host if allowed_host is given';

-- The same right as llm_set_secret's.
CREATE FUNCTION @extschema@.llm_drop_secret(name text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'llmgw_sql_drop_secret'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_drop_secret FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_drop_secret
IS 'deletes a stored key; whether there was one';

-- At once, for all sessions, and not undone by ROLLBACK: what it asks is asked,
-- what it changes is in shared memory.
CREATE FUNCTION @extschema@.llm_probe(provider text)
RETURNS TABLE (provider text, ok boolean, latency_ms integer, error_class text, message text)
AS 'MODULE_PATHNAME', 'llmgw_sql_probe'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 10000 ROWS 1;
REVOKE ALL ON FUNCTION @extschema@.llm_probe FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_probe
IS 'asks a provider, as llm_providers.probe says, whether it works, and lets its circuit breaker know';

CREATE FUNCTION @extschema@.llm_breaker_open(provider text)
RETURNS void
AS 'MODULE_PATHNAME', 'llmgw_sql_breaker_open'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_breaker_open FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_breaker_open
IS 'takes a provider out of service, at once and for all sessions, until llm_breaker_reset; not undone by ROLLBACK, and forgotten when the server restarts';

CREATE FUNCTION @extschema@.llm_breaker_reset(provider text)
RETURNS void
AS 'MODULE_PATHNAME', 'llmgw_sql_breaker_reset'
LANGUAGE C VOLATILE PARALLEL RESTRICTED COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_breaker_reset FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_breaker_reset
IS 'closes a provider''s circuit breaker, whatever opened it, and forgets its failures; at once and for all sessions, not undone by ROLLBACK';

-- Grants what its caller could grant by hand; nothing that it gives includes
-- these two.
CREATE FUNCTION @extschema@.llm_grant(
    role pg_catalog.regrole,
    what text DEFAULT 'call')
RETURNS void
AS 'MODULE_PATHNAME', 'llmgw_sql_grant'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_grant FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_grant
IS 'lets a role call models and see its own part of the ledger (call), read configuration and the whole ledger (report), or do both and configure (admin)';

-- As llm_grant.
CREATE FUNCTION @extschema@.llm_revoke(
    role pg_catalog.regrole,
    what text DEFAULT 'call')
RETURNS void
AS 'MODULE_PATHNAME', 'llmgw_sql_revoke'
LANGUAGE C VOLATILE PARALLEL UNSAFE COST 100;
REVOKE ALL ON FUNCTION @extschema@.llm_revoke FROM PUBLIC;
COMMENT ON FUNCTION @extschema@.llm_revoke
IS 'takes back what llm_grant gave';
