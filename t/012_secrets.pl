# A key is used, never seen: by no role short of superuser, in no log at any level, no view of
# activity or statistics, no dump and no message.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok literal);

# each written once, so that whoever finds one knows where it came from
my %key = (
	env      => $KEY,
	stored   => 'stored-key-Vb72-Tq39-Zx81-Lm40',
	open     => 'open-key-Hs62-Rw19-Jd57-Kc28',
	block    => 'block-key-Pf93-Yt46-Gn05-Xe71',
	prepared => 'prepared-key-Da84-Ub20-Wm63-Qi17',
	failed   => 'failed-key-Oz35-Ev98-Nh41-Bs06',
	raw      => 'raw-key-Fy77-Cl24-Mp50-Tj89');

my $sharedir = `pg_config --sharedir`;
chomp $sharedir;
my $has_statements = -e "$sharedir/extension/pg_stat_statements.control";
my $libraries = $has_statements ? 'llm_gateway,pg_stat_statements' : 'llm_gateway';
my $gw = LlmGateway->new(
	name => 'secrets',
	conf => <<"CONF");
shared_preload_libraries = '$libraries'
log_statement = none
log_min_duration_statement = 0
log_parameter_max_length_on_error = -1
compute_query_id = on
@{[ $has_statements ? "pg_stat_statements.track = 'all'" : '' ]}
CONF
my $node = $gw->node;
my $fake = $gw->fake;
my $everything = '';    # that clients have been told

$gw->sql('CREATE EXTENSION pg_stat_statements') if $has_statements;
$gw->sql($_)
  for 'CREATE ROLE caller LOGIN', 'CREATE ROLE gateway_admin LOGIN', 'CREATE ROLE reader LOGIN IN ROLE pg_read_all_data, pg_monitor',
  'CREATE ROLE bypass LOGIN BYPASSRLS IN ROLE pg_read_all_data, pg_monitor', 'GRANT CREATE ON SCHEMA public TO gateway_admin',
  q{SELECT llm_grant('caller'), llm_grant('reader'), llm_grant('bypass'), llm_grant('gateway_admin', 'admin')},
  'UPDATE llm_error_policies SET backoff_ms = 0, max_retries = 0';
$gw->add_provider('stored', $fake->url('/stored'), { api_key => q{'secret:stored'} });
my @models = qw(gpt-4o leak-key leak-key-in-answer silent status-401);
$gw->add_models($_, @models) for qw(fake stored);

# Whether a text has none of the keys, nor most of one.
sub keyless_ok
{
	my ($text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @found = grep { index($text, substr $key{$_}, 6, 18) >= 0 } sort keys %key;
	is("@found", '', $name);
	return;
}

sub run
{
	my ($session, $sql) = @_;

	# that a key was refused is remembered: that is a test of its own
	$gw->forget if $sql =~ /llm_complete|outer_function/;
	my $r = $session->run($sql);
	$everything .= "$r->{out}\n$r->{err}\n";
	return $r;
}

# The same test would find a key.
ok(index("x $key{stored} y", substr $key{stored}, 6, 18) >= 0, 'a key is found where it is');

# How a key gets in: sessions as docs/security.md describes them, which log the duration of each
# statement, and the statement of each error.

my $admin = $gw->session(undef, user => 'gateway_admin');
my $super = $gw->session;
my $watch = $gw->session(undef, user => 'reader');

sub activity
{
	my ($session) = @_;
	my $r = run($watch, 'SELECT query FROM pg_stat_activity WHERE pid = ' . $session->pid);
	return $r->{out};
}

is(run($admin, "SELECT llm_set_secret('stored', '$key{stored}')")->{err}, '', 'llm_set_secret');
like(activity($admin), qr/^SELECT llm_set_secret\(\.\.\.\)$/, 'its text is replaced in pg_stat_activity');
run($admin, "BEGIN; SELECT llm_set_secret('open', '$key{open}')");
keyless_ok(activity($admin), 'pg_stat_activity while its transaction is open');
keyless_ok(run($watch, 'SELECT a FROM pg_stat_activity a')->{out}, 'nor anywhere else in it');
run($admin, 'COMMIT');

# while a statement that has stored a key goes on: one of several, and within a block
for my $case (
	[ 'several statements', "SELECT llm_set_secret('open', '$key{open}')\\; SELECT pg_sleep(60)" ],
	[ 'one statement',      "SELECT llm_set_secret('open', '$key{open}'), pg_sleep(60)" ],
	[ 'a block',            "DO \$\$ BEGIN PERFORM llm_set_secret('block', '$key{block}'); PERFORM pg_sleep(60); END \$\$" ],
	[ 'another schema',     "WITH s AS MATERIALIZED (SELECT public.llm_set_secret('open', '$key{open}')) SELECT pg_sleep(60) FROM s" ])
{
	my ($name, $sql) = @$case;
	$admin->start($sql);
	my $pid = $admin->pid;
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = $pid AND wait_event = 'PgSleep'")
	  or die 'the statement does not sleep';
	my $seen = activity($admin);
	keyless_ok($seen, "$name: pg_stat_activity");
	like($seen, qr/llm_set_secret\(\.\.\.\)/, "$name: says what it is");
	run($super, "SELECT pg_cancel_backend($pid)");
	my $r = $admin->finish;
	$everything .= $r->{err};
	is($r->{sqlstate}, '57014', "$name: cancelled");
}
run($admin, 'PREPARE p(text) AS SELECT llm_set_secret($$prepared$$, $1)');
run($admin, "EXECUTE p('$key{prepared}')");
run($admin, "DO \$\$ BEGIN PERFORM llm_set_secret('block', '$key{block}'); END \$\$");
keyless_ok(activity($admin), 'pg_stat_activity afterwards');

# errors: of the function itself, and of what comes after it
for my $case (
	[ '22023', "SELECT llm_set_secret('failed', '$key{failed}', 'no host/')" ],
	[ '22023', "SELECT llm_set_secret('failed', E'$key{failed}\\n')" ],
	[ '22023', "SELECT llm_set_secret('no name', '$key{failed}')" ],
	[ '22012', "SELECT llm_set_secret('failed', '$key{failed}'), 1 / (random() * 0)::int" ],
	[ '22023', "DO \$\$ BEGIN PERFORM llm_set_secret('failed', '$key{failed}', '*'); END \$\$" ],
	[ '25006', "BEGIN READ ONLY\\; SELECT llm_set_secret('failed', '$key{failed}')" ])
{
	my ($sqlstate, $sql) = @$case;
	my $r = run($admin, $sql);
	is($r->{sqlstate}, $sqlstate, "an error: $sqlstate");
	keyless_ok($r->{err}, 'does not repeat the key');
	run($admin, 'ROLLBACK') if $sqlstate eq '25006';
}

# Keys in the place of a reference

for my $statement (
	"INSERT INTO llm_providers (name, api_key) VALUES ('x', '$key{raw}')",
	"UPDATE llm_providers SET api_key = '$key{raw}'",
	"UPDATE llm_providers SET api_key = 'secret:' || '$key{raw} '",
	"INSERT INTO llm_providers (name, api_key) VALUES ('stored', 'Bearer $key{raw}') ON CONFLICT (name) DO UPDATE SET api_key = excluded.api_key",
	"INSERT INTO llm_providers (name, kind, base_url, api_key, weight) VALUES (NULL, 'x', 'x', '$key{raw}', 'NaN')",
	"COPY llm_providers (name, api_key) FROM stdin;\nx\t$key{raw}\n\\.\nSELECT 1",
	"SELECT * FROM llm_add_provider('openai', api_key => '$key{raw}')",
	"SELECT * FROM llm_add_provider('openai', '$key{raw}')",
	"INSERT INTO llm_providers (name, kind) VALUES ('x', '$key{raw}')",
	"DO \$\$ BEGIN UPDATE llm_providers SET api_key = '$key{raw}'; END \$\$",
	"WITH p AS (INSERT INTO llm_providers (name, api_key) VALUES ('x', '$key{raw}') RETURNING *) SELECT * FROM p",
	"INSERT INTO llm_providers (name, base_url) VALUES ('x', 'https://user:$key{raw}\@api.openai.com/v1')",
	"INSERT INTO llm_providers (name, base_url) VALUES ('x', 'https://api.openai.com/v1?key=$key{raw}')",
	"INSERT INTO llm_providers (name, options) VALUES ('x', '{\"headers\": {\"Authorization\": \"Bearer $key{raw}\"}}')",
	"INSERT INTO llm_providers (name, options) VALUES ('x', '{\"api_key\": \"$key{raw}\"}')")
{
	my ($what) = $statement =~ /^([^'\$\n]*)/;
	my $r = run($admin, $statement);
	is($r->{sqlstate}, '22023', "refused: $what");
	keyless_ok("$r->{out}$r->{err}", 'without repeating it');
	keyless_ok(activity($admin), 'nor in pg_stat_activity') if $statement !~ /base_url|options/;
}
is(run($admin, q{SELECT count(*) FROM llm_providers WHERE name = 'x'})->{out}, '0', 'nothing is stored');

# What the server has logged so far, with durations and the statements of errors.  What a base_url
# or options held is not recognised as a key; those statements are in the log.
my $log = $gw->log_text;
ok($log =~ /duration: .* statement: SELECT llm_set_secret\('stored', '\*+'\)/, 'durations are logged');
ok($log =~ /STATEMENT:  SELECT llm_set_secret\(\.\.\.\)/, 'and statements of errors');
$log =~ s/^.*(?:INSERT INTO llm_providers \(name, (?:base_url|options)\)).*\n//mg;
keyless_ok($log, 'the log');

# From here on everything is logged that can be.  Not from the start on: then PostgreSQL itself logs
# its environment, keys and all.
$node->append_conf('postgresql.conf', <<'CONF');
log_min_messages = debug5
log_min_error_statement = debug5
log_error_verbosity = verbose
log_statement = all
log_duration = on
log_lock_waits = on
debug_print_parse = on
debug_print_plan = on
CONF
$node->reload;
my $before = length $gw->log_text;
$node->poll_query_until('postgres', q{SELECT current_setting('log_statement') = 'all'}) or die 'no reload';

# Calls with keys of both kinds, at a provider that sends them back, by everybody

$gw->sql(<<'SQL');
CREATE FUNCTION outer_function(model text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN llm_complete('hi', model => model); END $$;
SQL
my %session = map { $_ => $gw->session(undef, user => $_) } qw(caller gateway_admin reader bypass);
for my $role (sort keys %session)
{
	my $s = $session{$role};
	for my $provider (qw(fake stored))
	{
		my $kind = $provider eq 'fake' ? 'env' : 'stored';
		my $requests = $gw->requests(
			sub {
				error_ok(
					run($s, "SELECT llm_complete('hi', model => '$provider/leak-key')"),
					{ sqlstate => 'LG009', message => qr/Incorrect API key provided: \*{7,}/, detail => qr/\*{7,}/ },
					"$role, $kind: a key in an error");
				is( run($s, "SELECT llm_complete('hi', model => '$provider/leak-key-in-answer')")->{out},
					'your key is ' . '*' x length($key{$kind}) . ', is it not?',
					"$role, $kind: a key in an answer");
				like(run($s, "SELECT error_message FROM llm_complete_detail('hi', model => '$provider/leak-key')")->{out},
					qr/\*{7,}/, "$role, $kind: llm_complete_detail");
				run($s, "SELECT d FROM llm_complete_detail('hi', model => '$provider/leak-key-in-answer') d");
				run($s, "SELECT b FROM llm_complete_batch('{a,b,c}', model => '$provider/leak-key') b");
				run($s, "SELECT b FROM llm_complete_batch('{a,b,c}', model => '$provider/leak-key-in-answer') b");
				error_ok(run($s, "SELECT outer_function('$provider/leak-key')"), { sqlstate => 'LG009' }, "$role, $kind: within a function");
				run($s, "SET llm_gateway.on_error = 'null'");
				run($s, "SELECT llm_complete('hi', model => '$provider/leak-key')");
				run($s, 'RESET llm_gateway.on_error');
				run($s, "EXPLAIN (ANALYZE, VERBOSE, SETTINGS) SELECT llm_complete('hi', model => '$provider/gpt-4o')");
			});
		is(scalar(grep { ($_->{headers}{authorization} // '') eq "Bearer $key{$kind}" } @$requests), 13, "$role, $kind: the key was sent");
	}
}

# what is not JSON, not streamed, and all that surrounds it
$gw->sql(q{UPDATE llm_providers SET options = '{"stream": false}'});
is( run($session{caller}, q{SELECT llm_complete('hi', model => 'stored/leak-key-in-answer')})->{out},
	'your key is ' . '*' x length($key{stored}) . ', is it not?', 'not streamed');
run($session{caller}, q{SELECT llm_complete('hi', model => 'stored/leak-key')});
$gw->sql(q{UPDATE llm_providers SET options = NULL});

# While a call is under way

$session{caller}->start(q{SELECT llm_complete('hi', model => 'stored/silent')});
$gw->wait_in_call($session{caller});
for my $s ($watch, $session{bypass}, $super)
{
	run($s, "SELECT $_") for map { "v FROM $_ v" } qw(pg_stat_activity pg_locks pg_stat_get_activity(NULL));
}
# memory contexts' names go to the log
run($super, 'SELECT pg_log_backend_memory_contexts(' . $session{caller}->pid . ')');
run($super, 'SELECT pg_cancel_backend(' . $session{caller}->pid . ')');
my $r = $session{caller}->finish;
$everything .= $r->{err};
is($r->{sqlstate}, '57014', 'a call was cancelled');

# All that a role can read: every table and view that there is, the secrets too

my @relations = split /\n/, $gw->sql(<<'SQL');
SELECT c.oid::regclass FROM pg_class c WHERE c.relkind IN ('r', 'v', 'm')
    AND c.oid <> 'pg_catalog.pg_largeobject'::regclass AND c.relpersistence = 'p' AND c.relnamespace::regnamespace::text IN ('pg_catalog', 'public')
ORDER BY 1
SQL
cmp_ok(scalar @relations, '>', 130, 'relations to read');
my %rows;
for my $role (sort keys %session)
{
	my $s = $session{$role};
	for my $relation (@relations)
	{
		$r = run($s, "SELECT r FROM $relation r");
		$rows{$role}{$relation} = $r->{out} if !defined $r->{sqlstate};
	}
	run($s, "COPY $_ TO stdout") for qw(llm_providers llm_models llm_tiers llm_priorities llm_tasks llm_routing_rules llm_error_policies _llm_secrets _llm_tombstones);
	run($s, $_)
	  for 'SELECT name, value, value::text, to_jsonb(value), format(\'%s\', value), ARRAY[value], to_json(s), s::text, s FROM _llm_secrets s',
	  'SELECT jsonb_agg(s), array_agg(value), string_agg(value::text, \',\'), xmlforest(value::text) FROM _llm_secrets s',
	  'COPY _llm_secrets TO stdout (FORMAT binary)',
	  'SELECT query_to_xml(\'SELECT * FROM _llm_secrets\', true, true, \'\'), table_to_xml(\'_llm_secrets\', true, true, \'\')',
	  'SELECT encode(textsend(value::text), \'escape\'), value::text::bytea FROM _llm_secrets',
	  'SELECT _llm_secret_out(value) FROM _llm_secrets',
	  'DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM _llm_secrets LOOP RAISE NOTICE \'%\', r; END LOOP; END $$',
	  'SELECT 1 / (position(\'-key-\' in value::text) - position(\'-key-\' in value::text)) FROM _llm_secrets',
	  'SELECT value::text::int FROM _llm_secrets',
	  'SELECT pg_read_file(\'/proc/self/environ\')', 'SHOW ALL', 'SELECT * FROM pg_show_all_settings()';
}
ok(!exists $rows{$_->[0]}{$_->[1]}, "$_->[1] is not for $_->[0]") for [ 'caller', '_llm_secrets' ], [ 'gateway_admin', '_llm_secrets' ], [ 'caller', '_llm_tombstones' ];
is($rows{reader}{_llm_secrets}, '', 'row security lets no reader in');
like($rows{bypass}{_llm_secrets}, qr/^\(stored,\*{8},/m, 'who bypasses it reads asterisks');
SKIP:
{
	skip 'no pg_stat_statements', 2 unless $has_statements;
	like($rows{reader}{pg_stat_statements}, qr/llm_set_secret\(\$1, \$2/, 'pg_stat_statements has the statements');
	like($rows{bypass}{pg_stat_statements}, qr/llm_complete/, 'for others, too');
}

# a superuser reads the same, and no key but in the table itself
for my $relation (grep { $_ ne '_llm_secrets' } @relations)
{
	run($super, "SELECT r FROM $relation r");
}
is($super->value(q{SELECT value FROM _llm_secrets WHERE name = 'stored'}), $key{stored}, 'which a superuser can read');
keyless_ok($everything, 'no client has been told a key');

# Dumps

for my $command ([ 'pg_dump', '-d', $node->connstr('postgres') ], [ 'pg_dumpall', '-d', $node->connstr('postgres') ])
{
	my ($out, $err) = ('', '');
	ok(IPC::Run::run([ $node->installed_command($command->[0]), @$command[ 1 .. $#$command ] ], '<', \undef, '>', \$out, '2>', \$err), $command->[0])
	  or diag($err);
	like($out, qr/secret:stored/, 'has the reference');
	keyless_ok("$out$err", 'has no key');
}

# The log of all this, at every level.  (A superuser's answers are not logged.)
$log = substr $gw->log_text, $before;
ok($log =~ /DEBUG:  00000: /, 'everything was logged');
ok($log =~ /LOG:  00000: statement: SELECT llm_complete\('hi', model => 'stored\/leak-key'\)/, 'with statements');
ok($log =~ /LG009: .*Incorrect API key provided: \*{7,}/, 'and errors');
keyless_ok($log, 'the log has no key');

# nor has the next start, or the statistics' file
$node->restart;
keyless_ok(join('', map { slurp_file($_) } glob $node->data_dir . '/pg_stat/*'), 'files of statistics');
$gw->no_crash_ok;

done_testing();
