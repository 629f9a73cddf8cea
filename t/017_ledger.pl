# The ledger: every request that may have reached a provider is in it exactly once, with what it cost,
# whatever became of its transaction; it never holds a caller up, and no caller holds it up.
#
# LLM_GATEWAY_LEDGER_CALLS sets how many prompts the load at the end sends, LLM_GATEWAY_SEED which.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok gone literal row rows wait_until);

my $CALLS = $ENV{LLM_GATEWAY_LEDGER_CALLS} || 4000;

# What must not wait must be back after this time; what does wait, waits for longer.
use constant AT_ONCE => 20;
use constant LONGER  => "'60s'";

my @tables = qw(llm_requests llm_attempts llm_daily_spend);

is(system($ENV{PYTHON} || 'python3', "$FindBin::Bin/ledger_load_test.py", '-q'), 0, 'the audit at the end finds what is wrong');

my $gw = LlmGateway->new(
	name      => 'ledger',
	streaming => 1,
	fake      => { journal => 200_000 },
	conf      => <<'CONF');
wal_level = logical
max_connections = 200
max_worker_processes = 16
compute_query_id = on
llm_gateway.log_content = on
llm_gateway.ledger_sync_timeout = '30s'
CONF
my $node = $gw->node;
my $fake = $gw->fake;
my $admin = $gw->admin;
my $s = $gw->session;
my ($r, $row, @rows, $when);

# Money in USD, from nano-dollars, as numeric prints it without zeros at the end.
sub usd
{
	my ($nano) = @_;
	my $text = sprintf '%d.%09d', $nano / 1_000_000_000, $nano % 1_000_000_000;
	return $text =~ s/\.?0+\z//r;
}

# Half up, as costs are rounded; tokens, and prices in nano-dollars for a million of them.
sub cost
{
	my $sum = 0;
	while (my ($tokens, $price) = splice @_, 0, 2)
	{
		$sum += $tokens * $price;
	}
	return usd(int(($sum + 500_000) / 1_000_000));
}

my %price = (input => 150_000_000, cached => 75_000_000, output => 600_000_000);
my $prices = { input_price => '0.15', cached_input_price => '0.075', output_price => '0.6' };
$gw->add_models('fake', qw(gpt-4o silent status-500 cut other), $prices);
$gw->add_models('fake', qw(unpriced));
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 1, max_retries = 0});

my $marks = 0;

# A prompt that no other call has, and the columns of the request that had it.
sub mark { return sprintf 'mark-%06d', ++$marks }

sub booked
{
	my ($mark, $session) = @_;
	my $request = row($session // $admin, 'SELECT r.*, a.attempts_made FROM llm_requests r LEFT JOIN LATERAL'
		  . " (SELECT jsonb_agg(to_jsonb(a) ORDER BY attempt) AS attempts_made FROM llm_attempts a WHERE a.request_id = r.request_id) a ON true WHERE prompt = '$mark'");
	$request->{made} = [ rows($session // $admin, "SELECT * FROM llm_attempts WHERE request_id = $request->{request_id} ORDER BY attempt") ];
	delete $request->{attempts_made};
	return $request;
}

# Whether the columns named have these values.
sub columns_ok
{
	my ($got, $want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @wrong = map { my ($g, $w) = map { $_ // 'NULL' } $got->{$_}, $want->{$_}; $g eq $w ? () : "$_: $g instead of $w" } sort keys %$want;
	ok(!@wrong, $name) or diag(join "\n", @wrong);
	return !@wrong;
}

sub count_booked
{
	my ($where, $session) = @_;
	return ($session // $admin)->value("SELECT count(*) FROM llm_requests WHERE $where");
}

# Waits for rows that nobody has waited for.
sub booked_later_ok
{
	my ($where, $count, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + $LlmGateway::PATIENCE;
	sleep 0.02 while count_booked($where) < $count && time < $deadline;
	return is(count_booked($where), $count, $name);
}

# What the tables say of all time: the day's spend is the sum of the others.
sub in_step_ok
{
	my ($name, $session) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $got = ($session // $admin)->value(<<'SQL');
SELECT sum(requests), sum(failures), sum(unpriced), sum(input_tokens), sum(output_tokens), sum(estimated_usd), sum(cost_usd) FROM llm_daily_spend
UNION ALL
SELECT (SELECT count(*) FROM llm_requests), (SELECT count(*) FROM llm_requests WHERE status IN ('error', 'unknown')),
       count(*) FILTER (WHERE cost_usd IS NULL), sum(input_tokens), sum(output_tokens),
       (SELECT sum(estimated_usd) FROM llm_requests), sum(cost_usd)
FROM llm_attempts
SQL
	my ($spend, $sums) = split /\n/, $got;
	return is($spend, $sums, $name);
}

# A call is there when it returns ---------------------------------------------------------------

$gw->sql('CREATE DATABASE fresh');
$gw->set_up('fresh');
$gw->add_models('fake', 'gpt-4o', { %$prices, database => 'fresh' });
my $fresh = $gw->session('fresh');
my $mark = mark();
$fake->script('gpt-4o', { usage => { prompt => 1000, cached => 300, completion => 77, reasoning => 40 } });
$r = $fresh->run("SELECT request_id, cost_usd, estimated_usd, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens FROM llm_complete_detail('$mark', model => 'gpt-4o')");
is($r->{err}, '', 'the first call in a new database');
my %told;
@told{qw(request_id cost_usd estimated_usd input_tokens cached_input_tokens output_tokens reasoning_tokens)} = split /\|/, $r->{out};
$row = booked($mark, $fresh);
columns_ok($row, \%told, 'is in the ledger with what its caller was told');
columns_ok($row, {
		cost_usd             => cost(700, $price{input}, 300, $price{cached}, 77, $price{output}),
		estimated_usd        => cost(3, $price{input}, 256, $price{output}),
		cost_source          => 'usage',
		input_tokens         => 1000,
		cached_input_tokens  => 300,
		cache_write_tokens   => 0,
		output_tokens        => 77,
		reasoning_tokens     => 40,
		operation            => 'complete',
		role                 => $fresh->value('SELECT current_user'),
		role_oid             => $fresh->value('SELECT current_user::regrole::oid'),
		application_name     => $fresh->value('SHOW application_name'),
		task                 => 'default',
		task_source          => 'default',
		priority             => 'normal',
		model_tier           => 'standard',
		optimize             => undef,
		requested_model      => 'gpt-4o',
		provider             => 'fake',
		model                => 'gpt-4o',
		status               => 'ok',
		error_class          => undef,
		finish_reason        => 'stop',
		attempts             => 1,
		fallback             => 'false',
		tags                 => undef,
		prompt               => $mark,
		response             => "echo: $mark"
	},
	'its columns');
columns_ok($row->{made}[0], {
		attempt => 1, provider => 'fake', model => 'gpt-4o', http_status => 200, error_class => undef, message => undef, cost_source => 'usage',
		map { $_ => $row->{$_} } qw(request_id input_tokens cached_input_tokens cache_write_tokens output_tokens cost_usd)
	},
	'its attempt');
is(scalar @{ $row->{made} }, 1, 'the only one');
is( $fresh->value("SELECT created_at BETWEEN now() - interval '1 min' AND now(), latency_ms BETWEEN 0 AND 60000, ttft_ms BETWEEN 0 AND latency_ms, queue_ms BETWEEN 0 AND latency_ms FROM llm_requests"),
	't|t|t|t', 'its times');
columns_ok(row($fresh, 'SELECT * FROM llm_daily_spend'), {
		day => $fresh->value(q{SELECT (created_at AT TIME ZONE 'UTC')::date FROM llm_requests}),
		requests => 1, failures => 0, cached => 0, fallbacks => 0, unpriced => 0,
		map { $_ => $row->{$_} } qw(provider model task model_tier priority role input_tokens output_tokens estimated_usd cost_usd)
	},
	'the day it belongs to');
columns_ok($gw->worker('fresh'), { state => 'running', pending_bytes => 0, open_requests => 0, booked => 1, discarded => 0, last_error => undef }, 'llm_worker_status');

# Whatever becomes of the transaction -------------------------------------------------------------

sub call_sql
{
	my ($prompt, $model) = @_;
	return sprintf q{SELECT llm_complete('%s', model => '%s')}, $prompt, $model // 'gpt-4o';
}

$mark = mark();
$s->value('BEGIN');
$s->value(call_sql($mark));
columns_ok(booked($mark, $s), { status => 'ok' }, 'the next query of the same transaction sees it');
$s->value('ROLLBACK');
columns_ok(booked($mark), { status => 'ok', cost_source => 'usage' }, 'ROLLBACK');

$mark = mark();
$s->value('BEGIN; SAVEPOINT s; ' . call_sql($mark) . '; ROLLBACK TO s; COMMIT');
columns_ok(booked($mark), { status => 'ok' }, 'ROLLBACK TO a savepoint');

$mark = mark();
is($s->value(qq{DO \$\$ BEGIN PERFORM llm_complete('$mark', model => 'gpt-4o'); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END \$\$}), '', 'a block with EXCEPTION');
columns_ok(booked($mark), { status => 'ok' }, 'its call');

$mark = mark();
error_ok($s->run("SELECT 1 / (length(llm_complete('$mark', model => 'gpt-4o')) - 17)"), { sqlstate => '22012' }, 'a statement that fails after its call');
columns_ok(booked($mark), { status => 'ok' }, 'its call, too');

$mark = mark();
$s->value(q{BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM llm_requests; } . call_sql($mark));
is(count_booked("prompt = '$mark'", $s), '0', 'a snapshot from before the call does not see it');
$s->value('COMMIT');
columns_ok(booked($mark), { status => 'ok' }, 'all others do');

$mark = mark();
$s->value(q{BEGIN READ ONLY; } . call_sql($mark) . '; COMMIT');
columns_ok(booked($mark), { status => 'ok' }, 'a read-only transaction');

$mark = mark();
$s->value(qq{BEGIN; DECLARE c CURSOR FOR SELECT llm_complete('$mark' || g, model => 'gpt-4o') FROM generate_series(1, 5) g; FETCH 2 FROM c; ROLLBACK});
is(count_booked("prompt LIKE '$mark%'"), '2', 'a cursor books what was fetched');

# A batch

$mark = mark();
$r = $s->run("SELECT count(DISTINCT request_id), sum(cost_usd) FROM llm_complete_batch(ARRAY['$mark a', '$mark b', '$mark a', '$mark c', '$mark b', '$mark a'], model => 'gpt-4o', tags => '{\"batch\": true}')");
@rows = rows($s, "SELECT * FROM llm_requests WHERE prompt LIKE '$mark%' ORDER BY prompt");
is(join(',', map { $_->{prompt} } @rows), "$mark a,$mark b,$mark c", 'a batch: one row for each prompt, none for those that share its answer');
is($s->value("SELECT sum(cost_usd) FROM llm_requests WHERE prompt LIKE '$mark%'"), (split /\|/, $r->{out})[1], 'the costs are those of the rows');
columns_ok($rows[0], { operation => 'complete', status => 'ok', tags => '{"batch": true}', attempts => 1 }, 'each like a single call');

# Failures ---------------------------------------------------------------------------------------

$mark = mark();
error_ok($s->run(call_sql($mark, 'status-500')), { sqlstate => 'LG004' }, 'an HTTP error');
$row = booked($mark, $s);
columns_ok($row, {
		status => 'error', error_class => 'server_error', attempts => 1, cost_usd => 0, cost_source => 'none', input_tokens => 0, output_tokens => 0,
		provider => 'fake', model => 'status-500', response => undef, finish_reason => undef, estimated_usd => cost(3, $price{input}, 256, $price{output})
	},
	'costs nothing');
columns_ok($row->{made}[0], { http_status => 500, error_class => 'server_error', cost_usd => 0, cost_source => 'none' }, 'its attempt');
like($row->{made}[0]{message}, qr/The server had an error/, 'with what the provider said');

# an answer that breaks off after 8 characters
my $cut = { chunks => [ map { "data: $_\n\n" } '{"choices":[{"index":0,"delta":{"content":"four"}}]}', '{"choices":[{"index":0,"delta":{"content":"five"}}]}' ], then => 'close' };
$mark = mark();
$fake->script('gpt-4o', $cut);
is($s->value("SELECT error_class, cost_usd FROM llm_complete_detail('$mark', model => 'gpt-4o', system_prompt => 'system')"),
	'malformed|' . cost(5, $price{input}, 2, $price{output}), 'an answer that breaks off costs its input and what was seen, by estimate');
columns_ok(booked($mark, $s), { status => 'error', error_class => 'malformed', cost_source => 'estimate', input_tokens => 5, output_tokens => 2, cost_usd => cost(5, $price{input}, 2, $price{output}) }, 'the same in the ledger');

# a whole one that cannot be read: it was made, so it is paid, but for no more than was asked for
for my $case ([ '', '{' . "\x{e9}" x 39, 10 ], [ ', max_tokens => 4', '{' . 'x' x 99, 4 ], [ '', '<html>nobody here</html>', 6 ], [ '', '', 0 ], [ '', '{"error": {"message": "an error is no output"}}', 0, 'server_error' ])
{
	my ($arguments, $body, $tokens, $class) = @$case;
	$mark = mark();
	$fake->script('gpt-4o', { body => $body });
	is($s->value("SELECT error_class FROM llm_complete_detail('$mark', model => 'gpt-4o'$arguments)"), $class // 'malformed', 'an answer that cannot be read');
	columns_ok(booked($mark, $s), { status => 'error', cost_source => 'estimate', input_tokens => 3, output_tokens => $tokens, cost_usd => cost(3, $price{input}, $tokens, $price{output}) }, "costs its input and $tokens tokens");
}

$mark = mark();
error_ok($s->run("SELECT llm_complete('$mark', model => 'silent', timeout_ms => 1000)"), { sqlstate => 'LG003' }, 'timeout_ms');
columns_ok(booked($mark, $s), { status => 'error', error_class => 'timeout', cost_source => 'estimate', cost_usd => cost(3, $price{input}), input_tokens => 3, output_tokens => 0 }, 'costs its input');

$mark = mark();
is($s->value("SELECT cost_usd IS NULL, estimated_usd IS NULL FROM llm_complete_detail('$mark', model => 'unpriced')"), 't|t', 'a model without a price');
columns_ok(booked($mark, $s), { status => 'ok', cost_usd => undef, estimated_usd => undef, cost_source => 'none', output_tokens => 5 }, 'tokens and no cost');
is($s->value(q{SELECT requests, unpriced, cost_usd, output_tokens FROM llm_daily_spend WHERE model = 'unpriced'}), '1|1|0|5', 'counted as unpriced');

$mark = mark();
$fake->script('gpt-4o', { behaviour => 'no-usage' });
$s->value(call_sql($mark));
columns_ok(booked($mark, $s), { status => 'ok', cost_source => 'estimate', input_tokens => 3, output_tokens => 5, cost_usd => cost(3, $price{input}, 5, $price{output}) }, 'a provider that counts no tokens');

$mark = mark();
$s->run("SELECT llm_complete('$mark', model => 'gpt-4o', max_tokens => 2)");
columns_ok(booked($mark, $s), { status => 'ok', finish_reason => 'length', output_tokens => 2, estimated_usd => cost(3, $price{input}, 2, $price{output}) }, 'max_tokens');

# nothing sent
my $before = $fake->stats->{requests};
for my $case (
	[ 'no candidate', 'off', 'LG005', 'rejected', 'no_candidate' ],
	[ 'not in the cache', 'gpt-4o', 'LG005', 'rejected', 'no_candidate', q{, cache => 'only'} ],
	[ 'a key that cannot be read', 'nokey', 'LG009', 'error', 'auth' ])
{
	my ($name, $model, $sqlstate, $status, $class, $more) = @$case;
	$mark = mark();
	if ($model eq 'off')
	{
		$gw->add_models('fake', 'off', { %$prices, enabled => 'false' });
	}
	elsif ($model eq 'nokey')
	{
		$gw->add_provider('nokey', $fake->url('/nokey'), { api_key => "'env:NO_SUCH_API_KEY'" });
		$gw->add_models('nokey', 'nokey', $prices);
	}
	error_ok($s->run("SELECT llm_complete('$mark', model => '$model'" . ($more // '') . ')'), { sqlstate => $sqlstate }, $name);
	columns_ok(booked($mark, $s), { status => $status, error_class => $class, attempts => 0, cost_usd => 0, cost_source => 'none', response => undef }, "$name: a request without attempts")
	  if count_booked("prompt = '$mark'", $s);
	columns_ok(row($s, 'SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT 1'), { status => $status, error_class => $class, attempts => 0, cost_usd => 0, cost_source => 'none' }, "$name: in the ledger");
}
is($fake->stats->{requests}, $before, 'nothing was sent');

# Fallback and retry

$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('second', 'other', 1), ('second', 'gpt-4o', 2)});
$gw->sql(q{UPDATE llm_models SET tier = 'premium', input_price = 2, output_price = 8 WHERE name = 'other'});
$mark = mark();
$fake->script('other', $cut);
is($s->value("SELECT fallback, attempts, cost_usd FROM llm_complete_detail('$mark', model => 'second')"),
	't|2|' . cost(3, 2_000_000_000 + $price{input}, 2, 8_000_000_000, 5, $price{output}), 'a fallback costs both attempts');
$row = booked($mark, $s);
columns_ok($row, {
		status => 'ok', fallback => 'true', attempts => 2, provider => 'fake', model => 'gpt-4o', requested_model => 'second', cost_source => 'estimate',
		input_tokens => 6, output_tokens => 7, cost_usd => cost(3, 2_000_000_000 + $price{input}, 2, 8_000_000_000, 5, $price{output}),
		estimated_usd => cost(3, 2_000_000_000, 256, 8_000_000_000)
	},
	'its request');
columns_ok($row->{made}[0], { attempt => 1, model => 'other', error_class => 'malformed', http_status => 200, input_tokens => 3, output_tokens => 2, cost_source => 'estimate' }, 'the first attempt');
columns_ok($row->{made}[1], { attempt => 2, model => 'gpt-4o', error_class => undef, http_status => 200, input_tokens => 3, output_tokens => 5, cost_source => 'usage' }, 'the second one');
is($s->value(q{SELECT requests, failures, fallbacks, input_tokens, output_tokens, cost_usd, model_tier FROM llm_daily_spend WHERE model = 'other'}),
	'0|0|0|3|2|' . cost(3, 2_000_000_000, 2, 8_000_000_000) . '|premium', 'the day books a cost where it was made');
is($s->value(q{SELECT sum(fallbacks) FROM llm_daily_spend WHERE model = 'gpt-4o'}), '1', 'and the request where the answer came from');

$gw->sql(q{UPDATE llm_error_policies SET max_retries = 2 WHERE error_class IN ('server_error', 'overloaded')});
$mark = mark();
$fake->script('gpt-4o', 'status-500', 'status-503', 'default');
is($s->value(call_sql($mark)), "echo: $mark", 'retries');
$row = booked($mark, $s);
columns_ok($row, { status => 'ok', attempts => 3, fallback => 'false', cost_usd => cost(3, $price{input}, 5, $price{output}), cost_source => 'usage' }, 'cost what the answer costs');
is(join(' ', map { "$_->{attempt}:$_->{http_status}:" . ($_->{error_class} // '') . ":$_->{cost_source}" } @{ $row->{made} }), '1:500:server_error:none 2:503:overloaded:none 3:200::usage', 'three attempts');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0});

# Calls that are ended

for my $case (
	[ 'cancelled', sub { $admin->value('SELECT pg_cancel_backend(' . $_[0]->pid . ')') }, '57014' ],
	[ 'terminated', sub { $admin->value('SELECT pg_terminate_backend(' . $_[0]->pid . ')') }, '57P01' ])
{
	my ($name, $end, $sqlstate) = @$case;
	my $victim = $gw->session;
	$mark = mark();
	$before = $fake->stats->{requests};
	$victim->start(call_sql($mark, 'silent'));
	ok($fake->wait_for_stats(sub { $_[0]{requests} > $before }), 'a call waits');
	$end->($victim);
	is($victim->finish->{sqlstate}, $sqlstate, "it is $name");
	booked_later_ok("prompt = '$mark'", 1, 'and in the ledger');
	columns_ok(booked($mark), { status => 'cancelled', attempts => 1, cost_source => 'estimate', input_tokens => 3, output_tokens => 0, cost_usd => cost(3, $price{input}), provider => 'fake', model => 'silent' }, "$name: with the cost of its input");
}
$s->value(q{SET statement_timeout = '1s'});
$mark = mark();
error_ok($s->run("SELECT count(*) FROM llm_complete_batch(ARRAY['$mark a', '$mark b', '$mark c'], model => 'silent', max_concurrency => 2)"), { sqlstate => '57014' }, 'statement_timeout, of a batch');
$s->value('RESET statement_timeout');
booked_later_ok("prompt LIKE '$mark%' AND status = 'cancelled' AND attempts = 1", 2, 'what was sent is in the ledger');
is(count_booked("prompt LIKE '$mark%'"), 2, 'and what was not is not');

# Who, and what for ------------------------------------------------------------------------------

$gw->sql(q{CREATE ROLE app LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE analyst LOGIN; GRANT nobody TO app;
	SELECT llm_grant('app'), llm_grant('analyst', 'report');
	CREATE FUNCTION ask(text) RETURNS text SECURITY DEFINER LANGUAGE sql AS $$ SELECT llm_complete($1, model => 'gpt-4o') $$});
my $app = $gw->session('postgres', user => 'app');
$mark = mark();
$app->value(q{SET application_name = 'billing'; SET llm_gateway.tags = '{"team": "x", "n": 1.0}'});
$app->value(qq{SELECT llm_complete('$mark', priority => 'low', model => 'gpt-4o', task => 'coding', optimize => 'cost', tags => '{"n": 2, "who": "Zo\\u00eb"}')});
$row = booked($mark);
columns_ok($row, { role => 'app', application_name => 'billing', task => 'coding', task_source => 'argument', priority => 'low', optimize => 'cost', tags => '{"n": 2, "who": "Zo' . "\xc3\xab" . '", "team": "x"}' }, 'role, application, task, priority and tags');
is(row($admin, q{SELECT * FROM llm_daily_spend WHERE role = 'app'})->{task}, 'coding', 'in the day, too');
my ($query_id) = $app->value("EXPLAIN (VERBOSE) SELECT llm_complete('x', priority => 'low', model => 'gpt-4o', task => 'coding', optimize => 'cost', tags => '{}')") =~ /Query Identifier: (-?\d+)/;
is($row->{query_id}, $query_id, 'query_id');
$app->value(q{SELECT set_config('application_name', '', false)});

my $nobody = $gw->session('postgres', user => 'nobody');
$mark = mark();
$nobody->value("SELECT ask('$mark')");
columns_ok(booked($mark), { role => 'nobody', status => 'ok' }, 'a SECURITY DEFINER function charges its caller');
$mark = mark();
$app->value("SET ROLE nobody; SELECT ask('$mark')");
columns_ok(booked($mark), { role => 'nobody', application_name => undef }, 'SET ROLE');
$app->value('RESET ROLE');
is($app->value('SELECT count(*), count(DISTINCT role) FROM llm_requests'), '1|1', 'a role sees its own rows');
is($app->value('SELECT count(*) FROM llm_attempts'), '1', 'its attempts');
is($app->value('SELECT sum(requests) FROM llm_daily_spend'), '1', 'and its spend');
is($gw->session('postgres', user => 'analyst')->value('SELECT count(*) FROM llm_requests'), count_booked('true'), 'one with report sees all');
for my $table (@tables)
{
	error_ok($app->run("DELETE FROM $table"), { sqlstate => '42501' }, "and nobody changes $table");
}

# log_content

$s->value('SET llm_gateway.log_content = off');
my @ids = map { $s->value("SELECT request_id FROM llm_complete_detail('$_', model => 'gpt-4o')") } 'an equal prompt', 'an equal prompt', 'another prompt';
@rows = map { row($s, "SELECT * FROM llm_requests WHERE request_id = $_") } @ids;
ok(!(grep { defined $_->{prompt} || defined $_->{response} } @rows), 'log_content = off: no prompt and no response');
like($rows[0]{prompt_hash}, qr/^\\x[0-9a-f]{16,}$/, 'but a hash of the prompt');
is($rows[1]{prompt_hash}, $rows[0]{prompt_hash}, 'equal for equal prompts');
isnt($rows[2]{prompt_hash}, $rows[0]{prompt_hash}, 'and only for them');
my $id = $fresh->value(q{SELECT request_id FROM llm_complete_detail('an equal prompt', model => 'gpt-4o')});
is(row($fresh, "SELECT * FROM llm_requests WHERE request_id = $id")->{prompt_hash}, $rows[0]{prompt_hash}, 'also in another database');
$s->value('RESET llm_gateway.log_content');

# sync off
$s->value('SET llm_gateway.ledger_sync = off');
$mark = mark();
$s->value("SELECT count(*) FROM generate_series(1, 20) g, LATERAL llm_complete_detail('$mark' || g, model => 'gpt-4o')");
booked_later_ok("prompt LIKE '$mark%'", 20, 'ledger_sync = off: the rows come a moment later');
$s->value('RESET llm_gateway.ledger_sync');
in_step_ok('the day is the sum of all that');

# Nobody waits for the ledger --------------------------------------------------------------------

# A worker with nothing to do leaves, and the next call has its row all the same
my $worker = $gw->worker->{pid};
$gw->sql(q{ALTER SYSTEM SET llm_gateway.worker_idle_timeout = '300ms'});
$node->reload;
ok(defined gone($worker, 30), 'an idle worker leaves');
$mark = mark();
$s->value(call_sql($mark));
columns_ok(booked($mark, $s), { status => 'ok' }, 'a call starts another one, and has its row');
isnt($gw->worker->{pid}, $worker, 'which is another process');
$gw->sql('ALTER SYSTEM RESET llm_gateway.worker_idle_timeout');
$node->reload;

# Makes calls in many sessions, while the code runs; returns the longest.
sub calls_meanwhile
{
	my ($sessions, $calls, $prefix, $code) = @_;
	my $sync = 'SET llm_gateway.ledger_sync_timeout = ' . LONGER;
	$_->value($sync) for @$sessions;
	my $n = 0;
	$_->start(sprintf q{SELECT count(llm_complete('%s ' || %d || ' ' || g, model => 'gpt-4o')) FROM generate_series(1, %d) g}, $prefix, ++$n, $calls) for @$sessions;
	$code->() if $code;
	my @results = map { $_->finish } @$sessions;
	is_deeply([ map { $_->{out} . $_->{err} } @results ], [ ($calls) x @results ], 'all calls are answered, without a word');
	my ($longest) = sort { $b <=> $a } map { $_->{seconds} } @results;
	return $longest;
}

my @sessions = map { $gw->session } 1 .. 32;
my $locker = $gw->session;
$s->value('SET llm_gateway.ledger_sync_timeout = ' . LONGER);
for my $table (@tables)
{
	$locker->value("BEGIN; LOCK TABLE $table IN ACCESS EXCLUSIVE MODE");
	$mark = mark();
	my $callers = $table eq 'llm_requests' ? \@sessions : [ @sessions[ 0 .. 3 ] ];
	cmp_ok(calls_meanwhile($callers, 1, $mark), '<', AT_ONCE, "LOCK TABLE $table: calls return");
	is($fake->stats->{in_flight}, 0, 'all of them');
	$locker->value('COMMIT');
	booked_later_ok("prompt LIKE '$mark%'", scalar @$callers, 'afterwards all of them are in the ledger');
}
ok(wait_until(sub { $gw->worker->{state} eq 'running' }), 'the worker goes on');
$mark = mark();
$when = time;
$s->value(call_sql($mark));
columns_ok(booked($mark, $s), { status => 'ok' }, 'and calls have their rows again');

# The caller's own locks
for my $lock (
	'LOCK TABLE llm_requests',
	'LOCK TABLE llm_daily_spend IN SHARE MODE',
	'UPDATE llm_daily_spend SET requests = requests',
	'DELETE FROM llm_daily_spend',
	'CREATE INDEX ON llm_attempts (model)',
	'ALTER TABLE llm_requests ADD COLUMN note text',
	'TRUNCATE llm_attempts')
{
	$mark = mark();
	$s->value("BEGIN; $lock");
	$r = $s->run(call_sql($mark));
	is($r->{out} . $r->{err}, "echo: $mark", "a call in a transaction after $lock");
	cmp_ok($r->{seconds}, '<', AT_ONCE, 'returns at once');
	$s->value('ROLLBACK');
	booked_later_ok("prompt = '$mark'", 1, 'and is in the ledger afterwards');
}

# Created in the same transaction
$gw->sql('CREATE DATABASE created');
my $creator = $gw->session('created');
$creator->value('SET llm_gateway.ledger_sync_timeout = ' . LONGER);
for my $end (qw(ROLLBACK COMMIT))
{
	$mark = mark();
	$creator->value("BEGIN; CREATE EXTENSION llm_gateway; INSERT INTO llm_providers (name, base_url, api_key) VALUES ('fake', " . literal($fake->url) . ", 'env:TEST_API_KEY'); INSERT INTO llm_models (provider, name) VALUES ('fake', 'gpt-4o')");
	$r = $creator->run(call_sql($mark));
	is($r->{out} . $r->{err}, "echo: $mark", "CREATE EXTENSION, a call, $end");
	cmp_ok($r->{seconds}, '<', AT_ONCE, 'returns at once');
	$creator->value($end);
}
ok($gw->drained(undef, 'created'), 'all is booked');
$creator->value(call_sql('later'));

# One of an extension that never was is discarded if the worker comes to it before there is another
like($creator->value('SELECT string_agg(prompt, \' \' ORDER BY request_id) FROM llm_requests'), qr/^(?:\S+ )?$mark later$/, 'in the ledger that there is');
$creator->quit;

# Maintenance while calls are made, and mischief
my $processes = 'FROM llm_worker_status WHERE pid IS NOT NULL';
for my $work (
	[ 'pg_cancel_backend', ("SELECT pg_cancel_backend(pid) $processes") x 3 ],
	[ 'pg_terminate_backend', ("SELECT pg_terminate_backend(pid) $processes") x 3 ],
	[ 'VACUUM FULL', map { "VACUUM FULL $_" } @tables ],
	[ 'CREATE INDEX', map { "CREATE INDEX $_->[0]_test ON $_->[0] ($_->[1])" } [ 'llm_requests', 'role' ], [ 'llm_attempts', 'provider' ], [ 'llm_daily_spend', 'model' ] ],
	[ 'REINDEX and CLUSTER', 'REINDEX TABLE llm_requests', 'CLUSTER llm_attempts USING llm_attempts_pkey', 'REINDEX TABLE CONCURRENTLY llm_daily_spend' ],
	[ 'TRUNCATE', ('TRUNCATE llm_requests, llm_attempts') x 3 ])
{
	my ($name, @statements) = @$work;
	$mark = mark();
	my $requests = $admin->value(q{SELECT sum(requests) FROM llm_daily_spend WHERE model = 'gpt-4o'});
	my $longest = calls_meanwhile([ @sessions[ 0 .. 7 ] ], 25, $mark, sub {
		for my $statement (@statements)
		{
			sleep 0.05;
			$r = $locker->run($statement);
			is($r->{sqlstate}, undef, $statement) or diag($r->{err});
			cmp_ok($r->{seconds}, '<', 45, 'does not hang');
		}
	});
	cmp_ok($longest, '<', 45, "$name: nor do the calls");
	ok($gw->drained, 'all is booked');
	is(count_booked("prompt LIKE '$mark%'"), 200, "$name: nothing is lost") if $name ne 'TRUNCATE';
	is($admin->value("SELECT sum(requests) - $requests FROM llm_daily_spend WHERE model = 'gpt-4o'"), 200, "$name: the day has all of them");
}
$gw->sql('DROP INDEX llm_requests_test, llm_attempts_test, llm_daily_spend_test; TRUNCATE llm_requests, llm_attempts, llm_daily_spend');
@sessions = @sessions[ 0 .. 3 ];

# A worker that does not answer

sub freeze
{
	$s->value(call_sql('a worker, please'));
	my $pid;
	wait_until(sub { $pid = $gw->worker->{pid} }) or die 'there is no worker';
	wait_until(sub { $admin->value("SELECT state = 'idle' AND xact_start IS NULL FROM pg_stat_activity WHERE pid = $pid") eq 't' }) or die 'the worker is busy';
	sleep 1.2;    # nor does it nap any more: it holds nothing that others need
	kill STOP => $pid;
	return $pid;
}

my $frozen = freeze();
my @marks = map { mark() } 1 .. 4;
$s->value(q{SET llm_gateway.ledger_sync_timeout = '700ms'});
$s->value('BEGIN');
$r = $s->run(call_sql($marks[0]));
is($r->{out}, "echo: $marks[0]", 'a worker that does not answer: the call returns');
cmp_ok($r->{seconds}, '>=', 0.6, 'after ledger_sync_timeout');
cmp_ok($r->{seconds}, '<', 0.7 + AT_ONCE, 'and not much later');
is(join(' ', map { "$_->{severity} $_->{sqlstate}" } @{ $r->{notices} }), 'WARNING 01000', 'with a warning');
like($r->{notices}[0]{detail} // '', qr/ledger_sync_timeout/, 'that names the setting');
$r = $s->run(call_sql($marks[1]));
is($r->{out} . $r->{err}, "echo: $marks[1]", 'the next call of the transaction does not warn again');
$s->value('COMMIT');
$r = $s->run(call_sql($marks[2]));
is(scalar @{ $r->{notices} }, 1, 'one of another transaction does');

# the wait can be cancelled; the call itself has succeeded
$s->value('SET llm_gateway.ledger_sync_timeout = ' . LONGER);
$before = $fake->stats->{outcomes}{delivered};
$s->start(call_sql($marks[3]));
ok($fake->wait_for_stats(sub { $_[0]{outcomes}{delivered} > $before }), 'a call has its answer, and waits for the ledger');
sleep 1;
$when = time;
$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
$r = $s->finish;
error_ok($r, { sqlstate => '57014' }, 'the wait is cancelled');
cmp_ok($r->{ended} - $when, '<', PROMPTLY, 'at once');

# who is in the way of the ledger does not even wait to see whether it goes on
for my $lock ('LOCK TABLE llm_requests', 'LOCK TABLE llm_attempts IN SHARE ROW EXCLUSIVE MODE', 'CREATE INDEX ON llm_daily_spend (model)')
{
	push @marks, mark();
	$s->value("BEGIN; $lock");
	$r = $s->run(call_sql($marks[-1]));
	is($r->{out} . $r->{err}, "echo: $marks[-1]", "a call after $lock");
	cmp_ok($r->{seconds}, '<', AT_ONCE, 'does not wait');
	$s->value('ROLLBACK');
}
my $in_marks = 'prompt IN (' . join(', ', map { literal($_) } @marks) . ')';
is(count_booked($in_marks), 0, 'nothing is in the ledger');
kill CONT => $frozen;
booked_later_ok("$in_marks AND status = 'ok'", scalar @marks, 'until the worker goes on: then all calls are');

# A spool that is full

$gw->sql(q{ALTER SYSTEM SET llm_gateway.ledger_buffer = '4MB'});
$node->reload;
ok($gw->drained, 'all is booked');
$frozen = freeze();
my $filler = $gw->session;
$filler->value('SET llm_gateway.ledger_sync = off; SET llm_gateway.log_content = off');
my $calls = '';
my $accepted = 0;
my $seen = $gw->requests(sub {
	for my $i (1 .. 2000)
	{
		# tags are part of what cannot be left out
		my $size = 1000 + $i * 7919 % 40_000;
		$r = $filler->run("SELECT llm_complete('full $i', model => 'gpt-4o', tags => jsonb_build_object('t', repeat('x', $size)))");
		last if defined $r->{sqlstate};
		$accepted++;
	}
});
error_ok($r, { sqlstate => '53100', message => qr/spool|ledger/, hint => qr/ledger_buffer/ }, 'a full spool refuses a call');
cmp_ok($accepted, '>', 50, "after $accepted others");
is(scalar @$seen, $accepted, 'before it is sent');
$seen = $gw->requests(sub {
	is($filler->value("SELECT string_agg(error_class, ' ') FROM llm_complete_batch(ARRAY['full a', 'full b'], model => 'gpt-4o', tags => jsonb_build_object('t', repeat('x', 60000)))"), 'unavailable unavailable', 'the calls of a batch');
	error_ok($filler->run("SET llm_gateway.on_error = 'null'; SELECT llm_complete('full c', model => 'gpt-4o', tags => jsonb_build_object('t', repeat('x', 60000)))"), { sqlstate => '53100' }, q{on_error = 'null'});
	$filler->value('RESET llm_gateway.on_error');
});
is(scalar @$seen, 0, 'are refused, too');
kill CONT => $frozen;
my $deadline = time + $LlmGateway::PATIENCE;
do { sleep 0.05; $r = $filler->run("SELECT llm_complete('full again', model => 'gpt-4o', tags => jsonb_build_object('t', repeat('x', 60000)))") } while ($r->{sqlstate} // '') eq '53100' && time < $deadline;
is($r->{out}, 'echo: full again', 'when the worker goes on, so do calls');
ok($gw->drained, 'all is booked');
is(count_booked(q{tags ? 't' AND status = 'ok' AND prompt_hash IS NOT NULL}), $accepted + 1, 'each that was sent');
is(count_booked(q{tags ? 't' AND attempts > 0}), $accepted + 1, 'and none that was not');
for my $case ([ 3, 3_000_011, 0 ], [ 5, undef, 1 ])
{
	my ($size, $length, $warnings) = @$case;
	$r = $s->run("SELECT count(llm_complete(repeat('$size', ${size}000000) || 'characters!', model => 'gpt-4o', max_tokens => 1))");
	is($r->{out}, 1, "a prompt of $size MB");
	is(scalar(grep { $_->{sqlstate} eq '53100' } @{ $r->{notices} }), $warnings, "warnings for a spool of 4 MB: $warnings");
	columns_ok(row($s, 'SELECT status, input_tokens, length(prompt), response FROM llm_requests ORDER BY request_id DESC LIMIT 1'),
		{ status => 'ok', input_tokens => int(($size * 1_000_000 + 11 + 3) / 4), length => $length, response => 'echo' }, 'is booked with as much of it as there was room for');
}
$gw->sql('ALTER SYSTEM RESET llm_gateway.ledger_buffer');
$node->reload;
in_step_ok('the day is the sum of all that');

# Retention

my $spent = $admin->value('SELECT sum(requests) FROM llm_daily_spend');
my $old = $admin->value(q{SELECT max(request_id) FROM (SELECT request_id FROM llm_requests ORDER BY request_id LIMIT 30) x});
$gw->sql("UPDATE llm_requests SET created_at = now() - interval '1 day' WHERE request_id <= $old");
my $kept = count_booked("request_id > $old");
$gw->sql(q{ALTER SYSTEM SET llm_gateway.retention = '12h'});
$node->reload;
$s->value(call_sql(mark()));
$deadline = time + $LlmGateway::PATIENCE;
sleep 0.05 while count_booked("request_id <= $old") && time < $deadline;
is($admin->value("SELECT (SELECT count(*) FROM llm_requests WHERE request_id <= $old), (SELECT count(*) FROM llm_attempts WHERE request_id <= $old)"), '0|0', 'retention deletes old requests with their attempts');
is(count_booked("request_id > $old"), $kept + 1, 'and no others');
is($admin->value('SELECT sum(requests) FROM llm_daily_spend'), $spent + 1, 'the day keeps all');
$gw->sql('ALTER SYSTEM RESET llm_gateway.retention; TRUNCATE llm_requests, llm_attempts, llm_daily_spend');
$node->reload;

# Load -------------------------------------------------------------------------------------------

# Another cluster, which gets the ledger by logical replication from here on
my $subscriber = PostgreSQL::Test::Cluster->new('subscriber');
$subscriber->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$subscriber->append_conf('postgresql.conf', "shared_preload_libraries = 'llm_gateway'");
$subscriber->start;
$subscriber->safe_psql('postgres', 'CREATE EXTENSION llm_gateway');
$gw->sql('CREATE PUBLICATION ledger FOR TABLE ' . join ', ', @tables);
$subscriber->safe_psql('postgres', 'CREATE SUBSCRIPTION ledger CONNECTION ' . literal($node->connstr('postgres')) . ' PUBLICATION ledger');
$subscriber->wait_for_subscription_sync($node, 'ledger');

$gw->ledger_load('setup');
$fake->wait_for_stats(sub { $_[0]{in_flight} == 0 });
my $records = PostgreSQL::Test::Utils::tempdir() . '/records.json';
my $since = $admin->value('SELECT coalesce(max(request_id), 0) FROM llm_requests');
my $journal = $fake->stats->{requests};
my $load = $gw->ledger_load('load', '--records', $records, '--calls', $CALLS, '--sessions', 64, '--sync', 'mixed', '--seed', $ENV{LLM_GATEWAY_SEED} || 1);
note(join ', ', map { "$_: $load->{counts}{$_}" } sort keys %{ $load->{counts} });
is(join("\n", grep { defined } @{ $load->{faults} }[ 0 .. 19 ]), '', "$CALLS prompts of 64 sessions: rows are there when calls return, and sums agree in every snapshot");
cmp_ok($load->{counts}{$_} // 0, '>', 0, "$_: some") for 'answered', 'cancelled 57014', 'connections lost', 'error LG004', 'error malformed', 'snapshots', 'rows seen at once';
ok($gw->drained, 'all is booked');
ok($fake->wait_for_stats(sub { $_[0]{in_flight} == 0 }), 'the provider has no request left');
my $audit = $gw->ledger_load('audit', '--records', $records, '--since', $since, '--journal-since', $journal);
note(join ', ', map { "$_: $audit->{counts}{$_}" } sort keys %{ $audit->{counts} });
is(join("\n", grep { defined } @{ $audit->{findings} }[ 0 .. 39 ]), '', 'clients, provider and ledger agree');
is($fake->stats->{internal_errors}, 0, 'the fake itself is sound');
is($fake->stats->{forgotten}, 0, 'and remembers all');

# Copies of the ledger -----------------------------------------------------------------------------

sub contents
{
	my ($server, $database) = @_;
	return join "\n", map { $server->safe_psql($database, "SELECT '$_', count(*), md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))) FROM $_ t") } @tables;
}

my $contents = contents($node, 'postgres');
$node->wait_for_catchup('ledger');
is(contents($subscriber, 'postgres'), $contents, 'logical replication');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION ledger');
$subscriber->stop;

my $dump = PostgreSQL::Test::Utils::tempdir() . '/ledger.dump';
$node->command_ok([ 'pg_dump', '-Fc', '--no-publications', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
$gw->sql('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
is(contents($node, 'restored'), $contents, 'keep the ledger');
$mark = mark();
my $restored = $gw->session('restored');
$restored->value(call_sql($mark));
columns_ok(booked($mark, $restored), { status => 'ok' }, 'the restored database goes on with it');
in_step_ok('and its day', $restored);
$restored->quit;

# A standby, made while records wait in the spool

$s->value(q{SET llm_gateway.ledger_sync_timeout = '100ms'});
$frozen = freeze();
my %slow = map { $_ => mark() } qw(ended open);
my %slow_session = map { $_ => $gw->session } keys %slow;
$slow_session{$_}->start(call_sql($slow{$_}, 'silent')) for keys %slow;
ok($fake->wait_for_stats(sub { $_[0]{in_flight} == 2 }), 'two calls are under way');
@marks = map { mark() } 1 .. 10;
$s->run(call_sql($_)) for @marks;
$node->backup('base');
kill CONT => $frozen;
$in_marks = 'prompt IN (' . join(', ', map { literal($_) } @marks) . ')';
booked_later_ok($in_marks, 10, 'calls before a base backup');
$admin->value('SELECT pg_cancel_backend(' . $slow_session{ended}->pid . ')');
$slow_session{ended}->finish;
booked_later_ok("prompt = '$slow{ended}'", 1, 'a call that began before it, and ended after it');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$s->value('RESET llm_gateway.ledger_sync_timeout');
$mark = mark();
$s->value(call_sql($mark));
$node->wait_for_catchup($standby);
my $reader = LlmGateway::Session->new($standby, 'postgres');
is(count_booked("$in_marks OR prompt = '$mark'", $reader), 11, 'their rows reach the standby');
$seen = $gw->requests(sub {
	error_ok($reader->run(call_sql('refused')), { sqlstate => '25006', message => qr/on a standby/ }, 'which makes no calls');
});
is(scalar @$seen, 0, 'none at all');
my $count = count_booked('true');
$node->stop('immediate');
$slow_session{open}->finish;
$standby->promote;
my $promoted = mark();
$reader->value(call_sql($promoted));
columns_ok(booked($promoted, $reader), { status => 'ok' }, 'after promotion calls work, and are in its ledger');
is(count_booked("prompt = '$promoted'", $reader), 1, 'once');
is(count_booked($in_marks, $reader), 10, 'what waited in the spool of the backup was not booked twice');
columns_ok(booked($slow{ended}, $reader), { status => 'cancelled', attempts => 1 }, 'nor was the call that had ended');
columns_ok(booked($slow{open}, $reader), { status => 'unknown', attempts => 1, cost_source => 'estimate', cost_usd => cost(3, $price{input}, 256, $price{output}) }, 'the one that had not is booked with what it may have cost');
in_step_ok('the day is the sum of all that', $reader);
is(count_booked('true', $reader), $count + 2, 'and nothing else has come');

$gw->no_crash_ok;
unlike($gw->log_text, qr/in the ledger before they were booked|damaged|hold no record/, 'no record was read twice, or not at all');
done_testing();
