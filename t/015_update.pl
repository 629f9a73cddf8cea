# ALTER EXTENSION UPDATE to a throw-away next version, in a private copy of the installation.

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use FindBin;
use lib $FindBin::Bin;
use LlmGateway;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# PostgreSQL finds its files relative to its programs, so a copy that keeps their relative places runs.
my %from;
for my $what (qw(bindir pkglibdir sharedir))
{
	chomp($from{$what} = `pg_config --$what`);
}
my ($prefix) = $from{bindir} =~ m{^(/[^/]+)/};
plan skip_all => "the installation is not below one directory" if grep { index($_, "$prefix/") != 0 } values %from;

my $root = abs_path(PostgreSQL::Test::Utils::tempdir);
my %to = map { $_ => $root . substr($from{$_}, length $prefix) } keys %from;
for my $what (sort keys %from)
{
	make_path(dirname($to{$what}));
	next if -e $to{$what};
	PostgreSQL::Test::Utils::system_or_bail('cp', '-RL', $from{$what}, $to{$what});
}

my $next = "$to{sharedir}/extension/llm_gateway--1.0--1.1.sql";
PostgreSQL::Test::Utils::append_to_file(
	$next, <<'END');
\echo Use "ALTER EXTENSION llm_gateway UPDATE TO '1.1'" to load this file. \quit
ALTER TABLE @extschema@.llm_models ADD COLUMN region text DEFAULT 'anywhere';
CREATE FUNCTION @extschema@.llm_next_version() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 'the next one';
END

my $node = PostgreSQL::Test::Cluster->new('update', install_path => dirname($to{bindir}));
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'llm_gateway'");
$node->start;

sub sql { return $node->safe_psql('postgres', $_[0]) }

is(sql('SHOW data_directory'), $node->data_dir, 'the private copy runs');
sql(q{
	CREATE EXTENSION llm_gateway VERSION '1.0';
	INSERT INTO llm_providers(name, kind, options) VALUES ('m', 'mock', '{"reply": "still here"}');
	INSERT INTO llm_models(provider, name, input_price, output_price) VALUES ('m', 'm', 1, 2);
	INSERT INTO llm_routing_rules(alias, model) VALUES ('a', 'm');
	UPDATE llm_tiers SET notice = 'edited' WHERE name = 'economy';
	DELETE FROM llm_tasks WHERE name = 'math';
	SELECT llm_set_secret('s', 'a-secret-key-1');
	CREATE ROLE app; SELECT llm_grant('app');
});
my $rows = q{
	SELECT 'tiers', t.* FROM llm_tiers t ORDER BY name COLLATE "C";
	SELECT 'tasks', name, builtin FROM llm_tasks ORDER BY name COLLATE "C";
	SELECT 'policies', p.* FROM llm_error_policies p ORDER BY error_class COLLATE "C";
	SELECT 'models', provider, name, input_price, output_price FROM llm_models;
	SELECT 'secrets', name, allowed_host FROM _llm_secrets;
	SELECT 'app', has_function_privilege('app', p.oid, 'EXECUTE') FROM pg_proc p WHERE proname = 'llm_complete';
};
my $before = sql($rows);

# a session that has called before, and goes on
my $s = LlmGateway::Session->new($node, 'postgres');
is($s->value(q{SELECT llm_complete('x', model => 'a')}), 'still here', 'a call before');
sql(q{ALTER EXTENSION llm_gateway UPDATE TO '1.1'});
is(sql(q{SELECT extversion FROM pg_extension WHERE extname = 'llm_gateway'}), '1.1', 'updated');
is(sql(q{SELECT llm_next_version()}), 'the next one', 'to what the next version has');
is(sql($rows), $before, 'no row was touched');
is($s->value(q{SELECT llm_complete('x', model => 'a')}), 'still here', 'the same session calls on');
is(sql(q{SELECT llm_complete('x', model => 'a')}), 'still here', 'and a new one');

# an update that fails leaves the old version whole
PostgreSQL::Test::Utils::append_to_file("$to{sharedir}/extension/llm_gateway--1.1--1.2.sql",
	"DROP FUNCTION \@extschema\@.llm_next_version();\nSELECT 1 / 0;\n");
my ($rc, $out, $err) = $node->psql('postgres', q{ALTER EXTENSION llm_gateway UPDATE TO '1.2'});
isnt($rc, 0, 'an update that fails');
like($err, qr/division by zero/, 'says why');
is(sql(q{SELECT extversion, llm_next_version() FROM pg_extension WHERE extname = 'llm_gateway'}), '1.1|the next one', 'and changes nothing');
is($s->value(q{SELECT llm_complete('x', model => 'a')}), 'still here', 'calls go on');

undef $s;
$node->stop;
done_testing();
