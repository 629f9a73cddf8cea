# Before the first call: the library must be preloaded, planning makes no call, a call is made only
# where it must be, and only by whom it was granted.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(error_ok);

# Without shared_preload_libraries

my $bare = PostgreSQL::Test::Cluster->new('bare');
$bare->init;
$bare->start;
my $s = LlmGateway::Session->new($bare, 'postgres');
my %preload = (
	sqlstate => '55000',
	message  => qr/must be loaded via shared_preload_libraries/,
	hint     => qr/shared_preload_libraries = 'llm_gateway'/);
error_ok($s->run('CREATE EXTENSION llm_gateway'), \%preload, 'CREATE EXTENSION without the library');
error_ok($s->run(q{LOAD 'llm_gateway'}), \%preload, 'LOAD');
is($s->value(q{SELECT count(*) FROM pg_extension WHERE extname = 'llm_gateway'}), '0', 'nothing was created');
$s->run(q{SET session_preload_libraries = 'llm_gateway'});
is($s->value('SELECT 1'), '1', 'the session goes on');
$s->quit;
$bare->append_conf('postgresql.conf', "shared_preload_libraries = 'llm_gateway'");
$bare->restart;
is($bare->safe_psql('postgres', q{CREATE EXTENSION llm_gateway; SELECT extversion FROM pg_extension WHERE extname = 'llm_gateway'}), '1.0', 'with the line it works');

# a server whose extension is there but whose library no longer is
$bare->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$bare->restart;
$s = LlmGateway::Session->new($bare, 'postgres');
error_ok($s->run(q{SELECT llm_complete('hi')}), \%preload, 'a call without the library');
is($s->value('SELECT count(*) > 0 FROM llm_tasks'), 't', 'tables can be read');
$s->quit;
$bare->stop;

# Calls that are not made

my $gw = LlmGateway->new(name => 'preload');
my $fake = $gw->fake;
$gw->add_models('fake', 'gpt-4o');
$s = $gw->session;
my $seen;
$gw->sql(q{CREATE TABLE mails AS SELECT g AS id, 'mail ' || g AS body, g % 2 = 0 AS seen FROM generate_series(1, 50) g; ANALYZE mails});
my $call = q{llm_complete(body, model => 'gpt-4o')};

for my $sql (
	"EXPLAIN SELECT $call FROM mails",
	"EXPLAIN (VERBOSE) SELECT * FROM mails WHERE $call = 'yes'",
	q{EXPLAIN SELECT llm_complete('constant', model => 'gpt-4o')},
	q{EXPLAIN SELECT * FROM mails WHERE body = llm_complete('constant', model => 'gpt-4o')},
	q{EXPLAIN SELECT * FROM llm_complete_batch('{a}', model => 'gpt-4o')},
	"PREPARE p AS SELECT $call FROM mails",
	"CREATE VIEW answered AS SELECT id, $call AS answer FROM mails",
	"CREATE FUNCTION f(body text) RETURNS text LANGUAGE sql AS 'SELECT $call'" =~ s/'gpt-4o'/''gpt-4o''/r)
{
	$seen = $gw->requests(sub { $s->value($sql) });
	is(scalar @$seen, 0, 'no call: ' . $sql);
}
$seen = $gw->requests(sub { $s->value("EXPLAIN ANALYZE SELECT $call FROM mails WHERE id <= 3") });
is(scalar @$seen, 3, 'EXPLAIN ANALYZE does make calls');

for my $case (
	[ "SELECT count(*) FROM mails WHERE id = 7 AND $call = 'echo: mail 7'", 1, '1' ],
	[ "SELECT count(*) FROM mails WHERE $call = 'echo: mail 7' AND id = 7", 1, '1' ],
	[ "SELECT count(*) FROM mails WHERE $call LIKE 'echo%' AND seen AND body LIKE '%8'", 5, '5' ],
	[ "SELECT count(*) FROM mails WHERE $call LIKE 'echo%' AND (SELECT count(*) FROM mails m WHERE m.id <= mails.id) < 4", 3, '3' ],
	[ "SELECT count(*) FROM (SELECT $call FROM mails ORDER BY id LIMIT 4) x", 4, '4' ],
	[ "SELECT count(*) FROM mails WHERE false AND $call = ''", 0, '0' ],
	[ "SELECT answer FROM answered WHERE id = 9", 1, 'echo: mail 9' ],
	[ "SELECT f(body) FROM mails WHERE id = 9", 1, 'echo: mail 9' ],
	[ "SELECT d.response FROM mails, llm_complete_detail(body, model => 'gpt-4o') d WHERE id = 9", 1, 'echo: mail 9' ],
	[ "SELECT llm_complete(NULL, model => 'gpt-4o') IS NULL", 0, 't' ],
	[ "SELECT CASE WHEN id = 9 THEN $call ELSE 'no' END FROM mails WHERE id IN (8, 9) ORDER BY id", 1, "no\necho: mail 9" ])
{
	my ($sql, $count, $want) = @$case;
	my $got;
	$seen = $gw->requests(sub { $got = $s->value($sql) });
	is($got, $want, $sql);
	is(scalar @$seen, $count, 'calls it makes');
}

# a parallel plan calls from the leader only, and works
$s->run('SET debug_parallel_query = on');
$s->run('SET force_parallel_mode = on');
$s->run('SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0');
is($s->value("SELECT count($call) FROM mails"), '50', 'parallel query');
is($s->value(q{SELECT proparallel::text || provolatile::text FROM pg_proc WHERE proname = 'llm_complete'}), 'rv', 'parallel restricted, volatile');
$s->run('RESET ALL');

# Who may call

$gw->sql('CREATE ROLE app LOGIN; CREATE ROLE nobody LOGIN');
$gw->sql(q{SELECT llm_grant('app')});
my $app = $gw->session('postgres', user => 'app');
my $nobody = $gw->session('postgres', user => 'nobody');
for my $sql (
	q{SELECT llm_complete('hi', model => 'gpt-4o')},
	q{SELECT response FROM llm_complete_detail('hi', model => 'gpt-4o')},
	q{SELECT response FROM llm_complete_batch('{hi}', model => 'gpt-4o')})
{
	$seen = $gw->requests(sub { error_ok($nobody->run($sql), { sqlstate => '42501' }, "not granted: $sql") });
	is(scalar @$seen, 0, 'no request');
	is($app->value($sql), 'echo: hi', "granted: $sql");
}
for my $sql (
	q{SELECT * FROM llm_providers},
	q{UPDATE llm_models SET enabled = false},
	q{SELECT * FROM _llm_secrets},
	q{SELECT llm_set_secret('x', 'a-secret-of-app')},
	q{SELECT llm_drop_secret('x')},
	q{SELECT llm_grant('nobody')},
	q{SELECT * FROM llm_add_provider('mock')},
	q{SET llm_gateway.allowed_hosts = 'example.com'},
	q{SET llm_gateway.secret_env_pattern = '*'},
	q{SET llm_gateway.ca_file = '/tmp/x'},
	q{SET llm_gateway.proxy = 'http://example.com'},
	q{SET llm_gateway.max_response_size = '1GB'})
{
	error_ok($app->run($sql), { sqlstate => '42501' }, "whoever may call may not: $sql");
}
is($app->value(q{SET llm_gateway.batch_concurrency = 3; SHOW llm_gateway.batch_concurrency}), '3', 'but may set preferences');
$gw->sql(q{CREATE FUNCTION ask(text) RETURNS text SECURITY DEFINER LANGUAGE sql AS $$ SELECT llm_complete($1, model => 'gpt-4o') $$});
is($nobody->value(q{SELECT ask('hi')}), 'echo: hi', 'a SECURITY DEFINER function lends the right');
$gw->sql(q{SELECT llm_revoke('app')});
error_ok($app->run(q{SELECT llm_complete('hi', model => 'gpt-4o')}), { sqlstate => '42501' }, 'llm_revoke');

# Switched off
$gw->sql(q{ALTER SYSTEM SET llm_gateway.enabled = off});
$gw->node->reload;
ok($gw->node->poll_query_until('postgres', 'SHOW llm_gateway.enabled', 'off'), 'llm_gateway.enabled = off');
$seen = $gw->requests(sub { error_ok($s->run(q{SELECT llm_complete('hi', model => 'gpt-4o')}), { sqlstate => '55000', hint => qr/llm_gateway.enabled/ }, 'refuses every call') });
is(scalar @$seen, 0, 'no request');

done_testing();
