-- The names and types that applications rely on: functions, columns, settings, rows to begin with.
-- What fails here breaks somebody's code.
\set VERBOSITY default
DROP EXTENSION llm_gateway;
CREATE EXTENSION llm_gateway;
\a
\t on

-- the columns of DETAIL, the arguments that most calls share (...), each function
CREATE FUNCTION pg_temp.brief(text) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace($1, 'DEFAULT NULL::\w+(\[\])?', 'DEFAULT NULL', 'g')
$$;
CREATE TEMP TABLE fn AS
SELECT p.oid, p.proname AS name, pg_temp.brief(pg_get_function_arguments(p.oid)) AS args,
    replace(pg_get_function_result(p.oid), pg_get_function_result('llm_complete_detail'::regproc), 'TABLE(DETAIL)') AS result,
    p.provolatile, p.proparallel, p.procost, p.proisstrict, p.prosecdef
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND e.extname = 'llm_gateway'
WHERE p.proname ~ '^llm_';
SELECT pg_get_function_result('llm_complete_detail'::regproc) AS detail;
SELECT substr(args, 12) AS common FROM fn WHERE name = 'llm_complete';
SELECT format('%s(%s) %s', name, replace(args, (SELECT substr(args, 12) FROM fn WHERE name = 'llm_complete'), '...'),
    replace(result, substr(pg_get_function_result('llm_complete_detail'::regproc), 7), 'DETAIL)')) AS function
FROM fn ORDER BY name COLLATE "C";

-- none runs with others' rights or is evaluated ahead; what writes tables stays out of parallel plans
SELECT provolatile, proparallel, procost, proisstrict, prosecdef, string_agg(name::text, ' ' ORDER BY name COLLATE "C") AS functions
FROM fn GROUP BY 1, 2, 3, 4, 5 ORDER BY 3 DESC, 2, 4;

-- tables and views; views with the rights of who reads them
SELECT format('%s %s(%s)', CASE c.relkind WHEN 'r' THEN 'table' ELSE 'view' END, c.relname,
    string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
        || coalesce(' default ' || pg_get_expr(ad.adbin, ad.adrelid), ''), ', ' ORDER BY a.attnum)) AS relation
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef ad ON ad.adrelid = c.oid AND ad.adnum = a.attnum
WHERE c.relname ~ '^llm_' AND c.relkind IN ('r', 'v')
GROUP BY c.oid, c.relname, c.relkind ORDER BY c.relname COLLATE "C";
SELECT conrelid::regclass, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid::regclass::text ~ '^llm_' AND contype IN ('p', 'u', 'f') ORDER BY conrelid::regclass::text COLLATE "C", contype;
SELECT relname FROM pg_class WHERE relkind = 'v' AND relname ~ '^llm_' AND NOT coalesce(reloptions @> '{security_invoker=true}', false);

-- settings: unit, context and what they are at first
SELECT context, name, boot_val, unit, min_val, max_val, enumvals FROM pg_settings
WHERE name ~ '^llm_gateway\.' AND name <> 'llm_gateway.testing_clock' ORDER BY context COLLATE "C", name COLLATE "C";

-- each object is described, and nobody may do anything before llm_grant; row types and arrays go with what they are of
CREATE TEMP TABLE member AS
SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE e.extname = 'llm_gateway' AND d.deptype = 'e' AND NOT (d.classid = 'pg_type'::regclass
    AND EXISTS (SELECT FROM pg_type t WHERE t.oid = d.objid AND (t.typrelid <> 0 OR t.typelem <> 0)));
SELECT pg_describe_object(classid, objid, 0) FROM member WHERE obj_description(objid, classid::regclass::name) IS NULL
UNION ALL
SELECT pg_describe_object(classid, objid, a.attnum) FROM member JOIN pg_class c ON classid = 'pg_class'::regclass AND objid = c.oid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind IN ('r', 'v') AND col_description(c.oid, a.attnum) IS NULL;
CREATE ROLE regress_contract;
SELECT pg_describe_object(classid, objid, 0) FROM member WHERE
    CASE classid WHEN 'pg_proc'::regclass THEN has_function_privilege('regress_contract', objid, 'EXECUTE')
    WHEN 'pg_type'::regclass THEN has_type_privilege('regress_contract', objid, 'USAGE')
    WHEN 'pg_class'::regclass THEN CASE (SELECT relkind FROM pg_class WHERE oid = objid)
        WHEN 'S' THEN has_sequence_privilege('regress_contract', objid, 'USAGE, SELECT, UPDATE')
        ELSE has_table_privilege('regress_contract', objid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') END
    ELSE false END;
DROP ROLE regress_contract;

-- rows to begin with
SELECT name, rank FROM llm_tiers ORDER BY rank;
SELECT name, rank, premium_above, standard_above, economy_above, may_use_reserve, required_role FROM llm_priorities ORDER BY rank;
SELECT string_agg(name, ' ' ORDER BY name COLLATE "C") FROM llm_tasks;
SELECT error_class, provider, max_retries, backoff_ms, fallback, trips_breaker FROM llm_error_policies ORDER BY error_class COLLATE "C";

-- an INSERT of the key is enough
BEGIN;
INSERT INTO llm_providers (name) VALUES ('p');
INSERT INTO llm_models (provider, name) VALUES ('p', 'm');
INSERT INTO llm_tiers (name) VALUES ('t');
INSERT INTO llm_priorities (name) VALUES ('x');
INSERT INTO llm_tasks (name) VALUES ('k');
INSERT INTO llm_routing_rules (model) VALUES ('m');
INSERT INTO llm_budgets (name) VALUES ('b');
INSERT INTO llm_error_policies (error_class, provider) VALUES ('timeout', 'p');
ROLLBACK;
\t off
\a
