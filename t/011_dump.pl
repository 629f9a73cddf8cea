# Configuration is dumped and restored exactly: by pg_dump in each format and by pg_upgrade; what
# became of the rows that the extension came with is in the dump, and stored keys never are.
use strict;
use warnings;

use Cwd qw(getcwd);
use File::Find qw(find);
use File::Spec::Functions qw(rel2abs);
use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok);

my $SECRET = 'stored-key-Vb72-Tq39-Zx81';
my @tables = qw(_llm_budget_spend llm_attempts llm_budgets llm_daily_spend llm_error_policies llm_models llm_priorities llm_providers llm_requests llm_routing_rules
  llm_tasks llm_tiers _llm_tombstones);
my @options = ('--encoding=UTF8', '--locale=C');

# A dump says nothing of the order of rows: no vacuum gives them another.
my $gw = LlmGateway->new(name => 'old', conf => "autovacuum = off\n");
my $node = $gw->node;
my $directory = PostgreSQL::Test::Utils::tempdir();
$gw->sql($_) for 'CREATE ROLE app LOGIN', 'CREATE ROLE analyst LOGIN', 'CREATE ROLE ops LOGIN', 'CREATE ROLE boss';

sub url { return LlmGateway::literal($gw->fake->url) }

# In every table: a row that is edited, one that is deleted, one that is replaced, one that is added.
sub configure
{
	my ($database) = @_;
	$gw->sql(<<"SQL", $database);
INSERT INTO llm_providers (name, kind, base_url, api_key, failure_domain, enabled, weight, max_concurrency, requests_per_minute,
    tokens_per_minute, connect_timeout, first_byte_timeout, idle_timeout, total_timeout, breaker_failures, breaker_window,
    breaker_cooldown, probe, options) VALUES
    ('with \\ and "quotes"', 'openai', @{[ url() ]}, 'secret:stored', 'Zürich', false, 0.1, 1, 2, 3, '1.5 s', '1 day -1 hour',
     '0', '24 hours', 9, '1 us', '2 min', 'completion', '{"stream": false, "headers": {"X-Title": "a\\"b"}, "extra": {"n2": [1.10, null]}}'),
    ('edited', 'mock', NULL, NULL, NULL, true, 1, NULL, NULL, NULL, '5 s', '30 s', '30 s', '120 s', 3, '60 s', '30 s', 'https://probe.example.com/x', NULL),
    ('replaced', 'mock', NULL, NULL, NULL, true, 1, NULL, NULL, NULL, '5 s', '30 s', '30 s', '120 s', 3, '60 s', '30 s', 'none', NULL),
    ('renamed', 'mock', NULL, NULL, NULL, true, 1, NULL, NULL, NULL, '5 s', '30 s', '30 s', '120 s', 3, '60 s', '30 s', 'none', NULL),
    ('deleted', 'mock', NULL, NULL, NULL, true, 1, NULL, NULL, NULL, '5 s', '30 s', '30 s', '120 s', 3, '60 s', '30 s', 'none', NULL),
    ('stored', 'openai', @{[ url() ]}, 'secret:stored', NULL, true, 1, NULL, NULL, NULL, '5 s', '30 s', '30 s', '120 s', 3, '60 s', '30 s', 'models', NULL);
UPDATE llm_providers SET options = '{"reply": "edited"}', enabled = false, weight = 1.0000001 WHERE name = 'edited';
DELETE FROM llm_providers WHERE name = 'replaced';
INSERT INTO llm_providers (name, kind, options) VALUES ('replaced', 'mock', '{"reply": "replaced"}');

INSERT INTO llm_tiers (name, rank, system_prompt_suffix, notice) VALUES ('added', 4, E'line 1\nline 2\t\\\\N', ''), ('gone', 5, NULL, NULL);
DELETE FROM llm_tiers WHERE name = 'gone';
UPDATE llm_tiers SET notice = NULL WHERE name = 'economy';
INSERT INTO llm_tiers (name, rank, notice) VALUES ('standard', 20, 'replaced');

INSERT INTO llm_models (provider, name, upstream_name, tier, quality, input_price, output_price, cached_input_price, cache_write_price,
    price_tiers, context_window, max_output_tokens, capabilities, first_byte_timeout, total_timeout, weight, enabled) VALUES
    ('with \\ and "quotes"', 'org/"m"', 'u\\n', 'added', 0.1, 0.0000001, 1000000, 0, 1e-20, '[{"above_tokens": 10, "input": 1.50}]',
     1, 2, '{chat,json_schema}', '1 us', '1 day', 0.3, false),
    ('edited', 'm', NULL, 'economy', 50, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, true),
    ('replaced', 'm', NULL, 'premium', 50, 0, 0.00, NULL, NULL, NULL, NULL, NULL, '{}', NULL, NULL, 1, true),
    ('renamed', 'm', NULL, 'premium', 50, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, true),
    ('deleted', 'm', NULL, 'premium', 50, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, true),
    ('fake', 'gpt-4o', NULL, 'standard', 50, 1, 2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, true),
    ('stored', 'stored', 'gpt-4o', 'standard', 50, 1, 2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, true);
UPDATE llm_models SET quality = 51 WHERE provider = 'edited';
DELETE FROM llm_models WHERE provider = 'replaced';
INSERT INTO llm_models (provider, name, quality) VALUES ('replaced', 'm', 52);
UPDATE llm_providers SET name = 'has a new name' WHERE name = 'renamed';
UPDATE llm_tiers SET name = 'first' WHERE name = 'premium';
DELETE FROM llm_providers WHERE name = 'deleted';

INSERT INTO llm_priorities (name, rank, premium_above, required_role, builtin) VALUES ('added', 9, 0.2, 'boss', true);
UPDATE llm_priorities SET rank = 10 WHERE name = 'low';
DELETE FROM llm_priorities WHERE name = 'critical';
INSERT INTO llm_priorities (name, rank) VALUES ('high', 3);

INSERT INTO llm_tasks (name, keywords, pattern, cache_ttl) VALUES ('added', '{"two words","a,b","\\"",NULLE}', '\\m(x|y)\\M', '36 hours');
UPDATE llm_tasks SET description = NULL, keywords = NULL, cache_shared = true WHERE name = 'coding';
DELETE FROM llm_tasks WHERE name = 'math';
INSERT INTO llm_tasks (name, description) VALUES ('creative', 'replaced');
UPDATE llm_tasks SET name = 'talk' WHERE name = 'chat';
UPDATE llm_tasks SET enabled = false WHERE name = 'lookup';
DELETE FROM llm_tasks WHERE name = 'lookup';
DELETE FROM llm_tasks WHERE name = 'analysis';
INSERT INTO llm_tasks (name, description) VALUES ('analysis', 'deleted, and there again');
BEGIN;
DELETE FROM llm_tasks WHERE name = 'embedding';
ROLLBACK;

INSERT INTO llm_error_policies (error_class, provider, max_retries) VALUES ('auth', 'fake', 5);
UPDATE llm_error_policies SET backoff_ms = 1 WHERE error_class = 'rate_limit';
DELETE FROM llm_error_policies WHERE error_class = 'quota';
INSERT INTO llm_error_policies (error_class, max_retries, trips_breaker) VALUES ('timeout', 2, true);

INSERT INTO llm_routing_rules (model, task, alias, rank, enabled, role, tags) VALUES
    ('gpt-4o', NULL, 'route', 10, true, NULL, NULL), ('m', 'talk', E'a\\\\b', -1, false, 'boss', '{"team": "x", "n": 1.0}'),
    ('m', 'added', NULL, 10, true, NULL, NULL), ('m', NULL, 'deleted', 10, true, NULL, NULL), ('stored', NULL, 'stored', 10, true, NULL, NULL);
INSERT INTO llm_routing_rules (id, model, alias) VALUES (1000000000000, 'm', 'by number');
UPDATE llm_routing_rules SET rank = 11 WHERE task = 'added';
DELETE FROM llm_routing_rules WHERE alias = 'deleted';
SELECT nextval('llm_routing_rules_id_seq') FROM generate_series(1, 10);

INSERT INTO llm_requests (request_id, created_at, operation, role, role_oid, status, attempts, fallback, cost_usd, cost_source, tags, prompt_hash, prompt)
VALUES (1, now(), 'complete', 'app', 1, 'ok', 1, false, 0.000000001, 'usage', '{"n": 1.10}', '\\x00ff', E'a\\tb\\\\N');
INSERT INTO llm_attempts (request_id, attempt, provider, model, started_at, cost_usd, cost_source) VALUES (1, 1, 'p', 'm', now(), 0.000000001, 'usage');
INSERT INTO llm_budgets (name, limit_usd, period, timezone, reserve_fraction, strict, on_exhausted, role, task, provider, model, tags) VALUES
    ('plain', NULL, 'month', 'UTC', 0.05, false, 'reject', NULL, NULL, NULL, NULL, NULL),
    (E'with \\ and "all"', 0.10, 'week', 'Europe/Berlin', 0.125, true, 'cache_only', 'boss', 'talk', 'replaced', 'replaced/m', '{"n": 1.0}'),
    ('moved', 5, 'day', 'UTC', 0, false, 'reject', NULL, NULL, NULL, NULL, NULL), ('deleted', 1, 'hour', 'UTC', 0, false, 'reject', NULL, NULL, NULL, NULL, NULL);
UPDATE llm_budgets SET provider = 'fake' WHERE name = 'moved';
INSERT INTO llm_budgets (id, name, opening_usd, opening_period) VALUES (1000, 'by number', 1.50, '2025-03-01 00:00:00.000001+00');
INSERT INTO _llm_budget_spend SELECT id, '2025-03-01', id * 1000000007 FROM llm_budgets;
INSERT INTO llm_budgets (name) VALUES ('the last, and deleted');
DELETE FROM llm_budgets WHERE name IN ('deleted', 'the last, and deleted');

INSERT INTO llm_daily_spend VALUES ('2025-03-01', 'p', 'm', '', '', '', 'app', 1, 0, 0, 0, 0, 1, 1, 0, 0.000000001);
INSERT INTO _llm_budget_spend VALUES (2000001, '2025-03-01 00:00+00', 9223372036854775807), (2000001, '2025-02-28 23:30+00', 0), (2000007, '-infinity', 1);

SELECT llm_grant('app', 'call'), llm_grant('analyst', 'report'), llm_grant('ops', 'admin');
SELECT llm_set_secret('stored', '$SECRET', allowed_host => '127.0.0.1');
SQL
	return;
}

# All rows of all tables, a text for each table; the sequence and who may do what besides.  Tombstones
# are a set: two sessions of a parallel restore may leave the same one.
sub contents
{
	my ($database, $server, $path) = @_;
	my %contents = map {
		my $rows = /tombstones/ ? "(SELECT DISTINCT * FROM $_)" : $_;
		$_ => ($server // $node)->safe_psql($database, ($path // '') . "COPY (SELECT * FROM $rows t ORDER BY t::text COLLATE \"C\") TO stdout")
	} @tables;
	$contents{sequence} = ($server // $node)->safe_psql($database, ($path // '') . 'SELECT last_value, is_called FROM llm_routing_rules_id_seq');
	$contents{budget_ids} = ($server // $node)->safe_psql($database, ($path // '') . 'SELECT last_value, is_called FROM _llm_budget_id_seq');
	$contents{privileges} = ($server // $node)->safe_psql($database, <<'SQL');
SELECT coalesce(c.relname, p.proname), r.rolname, string_agg(x.privilege_type, ' ' ORDER BY x.privilege_type)
FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid,
LATERAL aclexplode(coalesce(c.relacl, p.proacl)) x LEFT JOIN pg_roles r ON r.oid = x.grantee
WHERE e.extname = 'llm_gateway' AND coalesce(r.rolname, '') IN ('', 'app', 'analyst', 'ops') GROUP BY 1, 2 ORDER BY 1, 2
SQL
	return \%contents;
}

sub same_ok
{
	my ($got, $want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($got->{$_}, $want->{$_}, "$name: $_") for sort keys %$want;
	return;
}

# A dump, without what differs from run to run; the rows of a table in any order.
sub normal
{
	my ($dump) = @_;
	my (@lines, @rows, $copying);
	for my $line (split /\n/, $dump)
	{
		next if $line =~ /^\\(?:un)?restrict |^SET row_security = /;
		if ($copying && $line eq '\.')
		{
			push @lines, sort @rows;
			(@rows, $copying) = ();
		}
		if ($copying) { push @rows, $line; next }
		$copying = 1 if $line =~ /^COPY .* FROM stdin;$/;
		push @lines, $line;
	}
	return join "\n", @lines;
}

sub connect_to
{
	my ($database, $server) = @_;
	return ('-d', ($server // $node)->connstr($database));
}

# Runs a program of PostgreSQL's, which must succeed; what it said to stderr.
sub program
{
	my ($name, $server, @command) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$command[0] = $server->installed_command($command[0]);
	my ($out, $err) = ('', '');
	my $ok = IPC::Run::run(\@command, '<', \undef, '>', \$out, '2>', \$err);
	ok($ok, $name) or diag($out, $err);
	return $err;
}

# Whether nothing of a key is in it.
sub keyless_ok
{
	my ($text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(index($text, substr $_, 4, -4) < 0, $name) for $KEY, $SECRET;
	return;
}

# That calls can be made there; secrets are to be stored again.
sub works_ok
{
	my ($database, $name, $server, $stored) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $s = LlmGateway::Session->new($server // $node, $database);
	is($s->value(q{SELECT llm_complete('hi', model => 'route')}), 'echo: hi', "$name: a call");
	is($s->value(q{SELECT llm_complete('hi', model => 'replaced/m')}), 'replaced', "$name: the mock provider");
	error_ok($s->run(q{SELECT llm_complete('hi', 'critical')}), { sqlstate => '42704', message => qr/priority "critical" does not exist/ }, "$name: a priority that was deleted");
	if (!$stored)
	{
		error_ok($s->run(q{SELECT llm_complete('hi', model => 'stored')}), { sqlstate => 'LG009', message => qr/secret "stored" does not exist/ }, "$name: no secret");
		$s->value("SELECT llm_set_secret('stored', '$SECRET')");
	}
	is($s->value(q{SELECT llm_complete('hi', model => 'stored')}), 'echo: hi', "$name: a secret");
	is($gw->fake->last_request->{headers}{authorization}, "Bearer $SECRET", "$name: the right one");
	my $last = $s->value('SELECT greatest(max(id), 0) FROM llm_routing_rules WHERE id < 1000000000000');
	cmp_ok($s->value(q{BEGIN; INSERT INTO llm_routing_rules (alias, model) VALUES ('next', 'm') RETURNING id}), '>', $last + 10, "$name: the next number of a rule");
	$s->value('ROLLBACK');
	is($s->value(q{BEGIN; INSERT INTO llm_budgets (name) VALUES ('next') RETURNING id > 1001}), 't', "$name: the next budget's number was never another's");
	$s->value('ROLLBACK');
	$s = LlmGateway::Session->new($server // $node, $database, user => 'app');
	is($s->value(q{SELECT llm_complete('hi', model => 'route')}), 'echo: hi', "$name: privileges");
	return;
}

configure('postgres');
my $want = contents('postgres');
unlike($want->{$_}, qr/\A\s*\z/, "$_ is compared") for sort keys %$want;
is(scalar(() = $want->{_llm_tombstones} =~ /^/mg), 15, 'a tombstone for each seed that is not as it was');

# Plain text

program('pg_dump', $node, 'pg_dump', connect_to('postgres'), '-f', "$directory/1.sql");
my $dump = slurp_file("$directory/1.sql");
keyless_ok($dump, 'no key in the dump');
unlike($dump, qr/COPY \S*_llm_secrets/, 'no secrets');
like($dump, qr/^COPY public\.$_ /m, "$_ is in the dump") for @tables;
unlike($dump, qr/^default\t/m, 'a row as the extension made it is not');
$gw->sql('CREATE DATABASE plain');
is(program('restore', $node, 'psql', '-X', '-q', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', connect_to('plain'), '-f', "$directory/1.sql"), '', 'psql has nothing to say');
same_ok(contents('plain'), $want, 'restored');
is($gw->sql('SELECT count(*) FROM _llm_secrets', 'plain'), '0', 'restored: no secrets');
program('pg_dump of what was restored', $node, 'pg_dump', connect_to('plain'), '-f', "$directory/2.sql");
is(normal(slurp_file("$directory/2.sql")), normal($dump), 'the second dump equals the first');
works_ok('plain', 'restored');

# What is edited after a restore is dumped again
$gw->sql(q{DELETE FROM llm_tasks WHERE name = 'default'; UPDATE llm_tiers SET rank = 7 WHERE name = 'first'; DELETE FROM llm_tasks WHERE name = 'creative'}, 'plain');
program('pg_dump', $node, 'pg_dump', connect_to('plain'), '-f', "$directory/3.sql");
$gw->sql('CREATE DATABASE again');
program('a restore of a restored database', $node, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', connect_to('again'), '-f', "$directory/3.sql");
same_ok(contents('again'), contents('plain'), 'edited after a restore');
is($gw->sql(q{SELECT count(*) FROM llm_tasks WHERE name IN ('default', 'creative')}, 'again'), '0', 'seeds stay deleted');

# By a role that may read the configuration and all of the ledger, which has row security
program('pg_dump by who has "report"', $node, 'pg_dump', '--enable-row-security', '-U', 'analyst', connect_to('postgres'), '-f', "$directory/analyst.sql");
is(normal(slurp_file("$directory/analyst.sql")), normal($dump), 'gives the same');

# In one transaction, and as INSERTs

$gw->sql('CREATE DATABASE single');
program('restore in one transaction', $node, 'psql', '-X', '-q', '-1', '-v', 'ON_ERROR_STOP=1', connect_to('single'), '-f', "$directory/1.sql");
same_ok(contents('single'), $want, 'in one transaction');
for my $form ([ 'inserts', '--inserts' ], [ 'columns', '--column-inserts', '--rows-per-insert=3' ], [ 'conflict', '--inserts', '--on-conflict-do-nothing' ])
{
	my ($name, @how) = @$form;
	$gw->sql("CREATE DATABASE $name");
	program("pg_dump @how", $node, 'pg_dump', @how, connect_to('postgres'), '-f', "$directory/$name.sql");
	program("restore of $name", $node, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', connect_to($name), '-f', "$directory/$name.sql");
	same_ok(contents($name), $want, "pg_dump @how");
}

# Archives, restored in parallel

program('pg_dump -Fc', $node, 'pg_dump', '-Fc', '-Z0', connect_to('postgres'), '-f', "$directory/1.dump");
keyless_ok(slurp_file("$directory/1.dump"), 'no key in an archive');
for my $round (1 .. 5)
{
	$gw->sql("CREATE DATABASE parallel$round");
	is(program('pg_restore -j 4', $node, 'pg_restore', '-j', '4', '-e', connect_to("parallel$round"), "$directory/1.dump"), '', "parallel $round: pg_restore has nothing to say");
	same_ok(contents("parallel$round"), $want, "parallel $round");
}
works_ok('parallel1', 'parallel');
program('pg_dump -Fd -j 4', $node, 'pg_dump', '-Fd', '-j', '4', connect_to('postgres'), '-f', "$directory/1.dir");
$gw->sql('CREATE DATABASE directory');
program('pg_restore -Fd', $node, 'pg_restore', '-j', '4', '-e', connect_to('directory'), "$directory/1.dir");
same_ok(contents('directory'), $want, 'directory format');

# Rows alone, into a database that has the extension
$gw->sql($_) for 'CREATE DATABASE rows';
$gw->sql('CREATE EXTENSION llm_gateway', 'rows');
program('pg_restore --data-only', $node, 'pg_restore', '--data-only', '-j', '4', '-e', connect_to('rows'), "$directory/1.dump");
my $rows = contents('rows');
$rows->{privileges} = $want->{privileges};
same_ok($rows, $want, 'rows alone');

# Into a server that allows less: warnings, and the rows as they were
{
	local $ENV{PGOPTIONS} = '-c llm_gateway.allowed_hosts=api.example.com -c llm_gateway.secret_env_pattern=OTHER_*';
	$gw->sql('CREATE DATABASE elsewhere');
	my $said = program('restore where hosts and variables are not allowed', $node, 'psql', '-X', '-q', '-o', '/dev/null', '-v', 'ON_ERROR_STOP=1', connect_to('elsewhere'), '-f', "$directory/1.sql");
	like($said, qr/WARNING: .*calls to provider "fake" are not allowed: host "127\.0\.0\.1"/, 'a warning of the host');
	like($said, qr/WARNING: .*probes of provider "edited" are not allowed: host "probe\.example\.com"/, 'a warning of a probe');
	like($said, qr/WARNING: .*api_key of provider "fake" names an environment variable that may not be used/, 'a warning of the variable');
	unlike($said, qr/ERROR/, 'no error');
}
same_ok(contents('elsewhere'), $want, 'elsewhere');
works_ok('elsewhere', 'elsewhere');

# In a schema of its own
$gw->sql($_) for 'CREATE DATABASE odd', 'CREATE DATABASE odd2';
$gw->sql('CREATE SCHEMA "Odd schema"; CREATE EXTENSION llm_gateway SCHEMA "Odd schema"; ALTER DATABASE odd SET search_path = "Odd schema", public', 'odd');
$gw->sql('INSERT INTO llm_providers (name, base_url, api_key) VALUES (\'fake\', ' . url() . q{, 'env:TEST_API_KEY')}, 'odd');
configure('odd');
program('pg_dump of another schema', $node, 'pg_dump', connect_to('odd'), '-f', "$directory/odd.sql");
program('restore of another schema', $node, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', connect_to('odd2'), '-f', "$directory/odd.sql");
same_ok(contents('odd2', $node, 'SET search_path = "Odd schema";'), contents('odd'), 'in another schema');

# Whoever dumps the table of secrets by name gets none
program('pg_dump -t', $node, 'pg_dump', '-t', '*_llm_secrets', '-t', 'llm_*', connect_to('postgres'), '-f', "$directory/secrets.sql");
keyless_ok(slurp_file("$directory/secrets.sql"), 'no key in a dump of that table');
program('pg_dumpall', $node, 'pg_dumpall', connect_to('postgres'), '-f', "$directory/all.sql");
keyless_ok(slurp_file("$directory/all.sql"), 'no key in a dump of everything');

# pg_upgrade: secrets too, which are the server's own

$gw->sql("DROP DATABASE $_") for qw(plain again single inserts columns conflict directory rows elsewhere odd2), map { "parallel$_" } 1 .. 5;
$want->{secrets} = $gw->sql('SELECT name, value, allowed_host, created_at FROM _llm_secrets');
like($want->{secrets}, qr/\Q$SECRET\E/, 'there is a secret');
my $want_odd = contents('odd');
$node->stop;
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init(extra => \@options);
$new->append_conf('postgresql.conf', "shared_preload_libraries = 'llm_gateway'\nautovacuum = off\n");
{
	# it writes where it is run
	my $here = getcwd;
	my $bin = $node->config_data('--bindir');
	my @directories = ('-d', rel2abs($node->data_dir), '-D', rel2abs($new->data_dir), '-b', $bin, '-B', $bin, '-s', $new->host);
	chdir $directory or die "cannot change to $directory: $!";
	program('pg_upgrade', $node, 'pg_upgrade', '--retain', @directories, '-p', $node->port, '-P', $new->port);
	chdir $here or die "cannot change to $here: $!";
}
my @written;
find({ no_chdir => 1, wanted => sub { push @written, $_ if -f && m{/pg_upgrade_output\.d/} } }, $new->data_dir);
ok(scalar @written, 'what pg_upgrade has written');
keyless_ok(join('', map { slurp_file($_) } @written), 'has no key in it');
$new->start;
my $got = contents('postgres', $new);
$got->{secrets} = $new->safe_psql('postgres', 'SELECT name, value, allowed_host, created_at FROM _llm_secrets');
same_ok($got, $want, 'upgraded');
same_ok(contents('odd', $new), $want_odd, 'upgraded, another schema');

# and what was upgraded can be dumped and restored like the original
program('pg_dump after pg_upgrade', $new, 'pg_dump', connect_to('postgres', $new), '-f', "$directory/upgraded.sql");
is(normal(slurp_file("$directory/upgraded.sql")), normal($dump), 'the dump equals that before');
$new->safe_psql('postgres', 'CREATE DATABASE restored');
program('restore after pg_upgrade', $new, 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', connect_to('restored', $new), '-f', "$directory/upgraded.sql");
delete @$want{qw(secrets)};
same_ok(contents('restored', $new), $want, 'restored after pg_upgrade');
works_ok('postgres', 'upgraded', $new, 1);

done_testing();
