# At the edges of breakers and limits: a deadline that passes in a queue, a breaker that opens before
# those who wait, providers that only a call brings back, slots of rows that have gone.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok row rows wait_until);

my $gw = LlmGateway->new(
	name => 'edges',
	conf => "llm_gateway.worker_idle_timeout = 0\nllm_gateway.max_providers = 6\n");
my $fake = $gw->fake;
my $s = $gw->session;
my $other = $gw->session;
my ($r, $row);

# How often a provider was asked for an answer since the fake was reset.
sub asked
{
	my ($prefix) = @_;
	return scalar grep { $_->{path} =~ m{^/$prefix/} && $_->{method} eq 'POST' } @{ $fake->journal };
}

sub status { return row($gw->admin, "SELECT * FROM llm_provider_status WHERE provider = '$_[0]'") }
sub waiting { my ($name, $n) = @_; return wait_until(sub { status($name)->{waiting} == $n }) }
sub idle { my ($name) = @_; return wait_until(sub { my $is = status($name); $is->{waiting} == 0 && $is->{in_flight} == 0 }, 5) }

sub cancel
{
	my ($session) = @_;
	$gw->admin->run('SELECT pg_cancel_backend(' . $session->pid . ')');
	return $session->finish;
}

# A deadline while a call waits for a limit

$gw->add_provider('narrow', $fake->url('/n'), { max_concurrency => 1 });
$gw->add_provider('wide', $fake->url('/w'));
$gw->add_models('narrow', 'tight');
$gw->add_models('wide', 'loose');
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('tight', 1), ('loose', 2)});
$fake->script({ model => 'tight', path => '/n' }, { behaviour => 'silent' });
$s->start(q{SELECT llm_complete('first', model => 'tight')});
$gw->wait_in_call($s);

$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 20000 WHERE error_class = 'rate_limit'});
$row = row($other, q{SELECT * FROM llm_complete_detail('second', timeout_ms => 5000)});
is($row->{model}, 'loose', 'a call that cannot wait for the first model goes to the second');
cmp_ok($row->{latency_ms}, '<', 4500, 'before its time is over');
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 2000 WHERE error_class = 'rate_limit'});
$fake->script({ model => 'loose', path => '/w' }, { behaviour => 'silent' });
$row = row($other, q{SELECT * FROM llm_complete_detail('third', timeout_ms => 5000)});
is($row->{error_class}, 'timeout', 'which may end it');
cmp_ok($row->{latency_ms}, '<', 5000 + 1000 * PROMPTLY, 'in time');
is($row->{attempts}, 1, 'with one attempt');
$r = $other->run(q{SELECT llm_complete('fourth', model => 'tight', timeout_ms => 300)});
error_ok($r, { sqlstate => 'LG002', message => qr/all 1 of max_concurrency are in use/ }, 'where there is nothing else it waits, and says for what');
cmp_ok($r->{seconds}, '>=', 0.28, 'until then');

# a queue
$fake->reset;
$other->run(q{BEGIN});
$other->run(q{DECLARE c CURSOR FOR SELECT response FROM llm_complete_batch(ARRAY['a', 'b', 'c'], model => 'tight', timeout_ms => 20000, max_concurrency => 2)});
$other->start(q{FETCH 1 FROM c});
ok(waiting('narrow', 2), 'a batch waits');
is(cancel($s)->{sqlstate}, '57014', 'what it waits for is cancelled');
is($other->finish->{out}, 'echo: a', 'it goes on');
is($other->value(q{FETCH ALL FROM c}), "echo: b\necho: c", 'to its end');
$other->run(q{ROLLBACK});
ok(idle('narrow'), 'nothing is left of it');

my $before;

# A limit of ours is waited for, however long

$gw->add_provider('few', $fake->url('/f'), { requests_per_minute => 2 });
$gw->add_models('few', 'rpm');
$other->start(q{SELECT count(*) FROM llm_complete_batch(ARRAY['a', 'b', 'c'], model => 'rpm')});
ok(waiting('few', 1), 'the third request of a minute waits for the next minute');
is(cancel($other)->{sqlstate}, '57014', 'it can be cancelled');
ok(idle('few'), 'nothing is left of it');
$r = $other->run(q{SELECT llm_complete('x', model => 'rpm', timeout_ms => 20000)});
error_ok($r, { sqlstate => 'LG002', message => qr/all 2 of requests_per_minute are used for \d+ s/ }, 'but not beyond the deadline');
cmp_ok($r->{seconds}, '<', 5, 'then it says so at once');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'few'; DELETE FROM llm_providers WHERE name = 'few'});

# What a failed attempt did not use is there for the next one

$gw->add_provider('tokens', $fake->url('/t'), { tokens_per_minute => 100 });
$gw->add_models('tokens', 'tpm');
$fake->script({ model => 'tpm', path => '/t' }, 'status-500', 'default', 'default');
$row = row($other, q{SELECT * FROM llm_complete_detail('x', model => 'tpm', max_tokens => 60, timeout_ms => 20000)});
is("$row->{attempts} " . ($row->{response} // $row->{error_message}), '2 echo: x', 'tokens_per_minute has room for a retry after an error');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'tokens'; DELETE FROM llm_providers WHERE name = 'tokens'});

# A provider that wants a longer pause than is waited for beside another one, which is out of service

$fake->reset;
$gw->admin->run(q{SELECT llm_breaker_open('wide')});
$fake->script({ model => 'tight', path => '/n' }, { behaviour => 'status-429', headers => { 'retry-after' => '15' } });
$other->start(q{SELECT llm_complete('x')});
sleep 1.5;
$r = cancel($other);
is($r->{sqlstate}, '57014', 'it is waited for, since there is nobody else') or diag($r->{err});
$gw->admin->run(q{SELECT llm_breaker_reset(name) FROM llm_providers});
$fake->script({ model => 'tight', path => '/n' }, { behaviour => 'status-429', headers => { 'retry-after' => '15' } });
is($other->value(q{SELECT model FROM llm_complete_detail('x')}), 'loose', 'in service, it is asked instead');
$gw->admin->run(q{SELECT llm_breaker_reset(name) FROM llm_providers});

# The breaker opens while others wait

$gw->add_provider('dead', $fake->url('/d'), { max_concurrency => 1, breaker_failures => 1, first_byte_timeout => "'2 s'", probe => "'none'" });
$gw->add_models('dead', 'never');
$gw->sql('UPDATE llm_error_policies SET max_retries = 0');
$fake->script({ model => 'never', path => '/d' }, { behaviour => 'silent', repeat => 'forever' });
my @sessions = map { $gw->session } 1 .. 4;
$sessions[0]->start(q{SELECT llm_complete('x', model => 'never')});
$gw->wait_in_call($sessions[0]);
$_->start(q{SELECT llm_complete('x', model => 'never')}) for @sessions[ 1 .. 3 ];
ok(waiting('dead', 3), 'the others wait');
my @states = map { $_->finish } @sessions;
is(join(' ', sort map { $_->{sqlstate} } @states), 'LG003 LG003 LG012 LG012',
	'of four that wait for a dead provider one finds out, one makes sure, two are told');
my ($told) = grep { $_->{sqlstate} eq 'LG012' } @states;
error_ok($told, { sqlstate => 'LG012', message => qr/its breaker is open/, detail => qr/unavailable, not tried: its breaker is open/ }, 'what they are told');
ok(idle('dead'), 'nothing is left of them');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'dead'; DELETE FROM llm_providers WHERE name = 'dead'});

# All breakers are open, and the one that is nearest to its probe has no room

$gw->add_provider('near', $fake->url('/n'), { max_concurrency => 1, breaker_failures => 1, breaker_cooldown => "'60 s'", probe => "'none'" });
$gw->add_provider('far', $fake->url('/f'), { breaker_failures => 1, breaker_cooldown => "'300 s'", probe => "'none'" });
$gw->add_models('near', 'full');
$gw->add_models('far', 'free');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('both', 'full', 1), ('both', 'free', 2)});
$fake->script({ model => 'full', path => '/n' }, 'status-503', { behaviour => 'silent' });
$fake->script({ model => 'free', path => '/f' }, 'status-503');
is(row($other, q{SELECT * FROM llm_complete_detail('x', model => 'both')})->{error_class}, 'overloaded', 'both fail');
is(status($_)->{state}, 'open', "$_ is open") for qw(near far);
$s->start(q{SELECT llm_complete('x', model => 'both')});
$gw->wait_in_call($s);
is($other->value(q{SELECT provider FROM llm_route('x', model => 'both') WHERE chosen}), 'far', 'llm_route knows that the nearest has no room');
$row = row($other, q{SELECT * FROM llm_complete_detail('x', model => 'both')});
is("$row->{provider} $row->{attempts} " . ($row->{response} // $row->{error_message}), 'far 1 echo: x', 'one that has no room is not the last that is tried');
cancel($s);
ok(idle('near'), 'nothing is left');

# and the one that is nearest is not paid for, in the place of which a worse one is not wanted
$fake->script({ model => 'free', path => '/f' }, 'status-503');
row($other, q{SELECT * FROM llm_complete_detail('x', model => 'far/free')});
is(status($_)->{state}, 'open', "$_ is open again") for qw(near far);
$gw->sql(q{UPDATE llm_models SET tier = 'premium', input_price = 0, output_price = 1000000 WHERE name = 'full';
	UPDATE llm_models SET tier = 'economy', input_price = 0, output_price = 0 WHERE name = 'free';
	INSERT INTO llm_budgets (name, limit_usd, provider) VALUES ('of near', 1, 'near')});
$row = row($other, q{SELECT * FROM llm_complete_detail('x', 'critical', model => 'both', max_tokens => 100)});
is("$row->{error_class} $row->{attempts}", 'budget 0', 'want of money is the error, not a breaker that would not have been minded');
$row = row($other, q{SELECT * FROM llm_complete_detail('x', model => 'both', max_tokens => 100)});
is("$row->{provider} $row->{attempts} " . ($row->{response} // $row->{error_message}), 'far 1 echo: x', 'where a worse one will do, the next nearest is tried');
$gw->sql('DELETE FROM llm_budgets');
$gw->sql(q{DELETE FROM llm_routing_rules WHERE alias = 'both'; DELETE FROM llm_models WHERE provider IN ('near', 'far'); DELETE FROM llm_providers WHERE name IN ('near', 'far')});

# A provider that only a call can bring back, beside one that takes all calls

for my $how (qw(least_busy lowest_latency weighted))
{
	$fake->reset;
	$gw->sql("ALTER SYSTEM SET llm_gateway.load_balancing = '$how'");
	$gw->sql('SELECT pg_reload_conf()');
	ok(wait_until(sub { $s->value('SHOW llm_gateway.load_balancing') eq $how }), "$how: set");
	for my $name (qw(x y))
	{
		$gw->add_provider($name, $fake->url("/$name"), { breaker_failures => 1, breaker_cooldown => "'300 ms'", probe => "'none'" });
		$gw->add_models($name, 'both');
	}
	$fake->script({ model => 'both', path => '/x' }, { behaviour => 'status-500' });
	$s->run(q{SELECT llm_complete('hi', model => 'x/both')});
	is(status('x')->{state}, 'open', "$how: open");
	$s->run(q{SELECT llm_complete('hi', model => 'both')}) for 1 .. 5;
	ok(wait_until(sub { $s->run(q{SELECT llm_complete('hi', model => 'both')}); status('x')->{state} eq 'closed' }, 20), "$how: and closed by a call");

	# parked for its key, until its row is written
	$fake->script({ model => 'both', path => '/x' }, { behaviour => 'status-401' });
	is($s->run(q{SELECT llm_complete('hi', model => 'x/both')})->{sqlstate}, 'LG009', "$how: a key is refused");
	is(status('x')->{reason}, 'auth', "$how: parked");
	$gw->sql(q{UPDATE llm_providers SET api_key = api_key WHERE name = 'x'});
	$row = status('x');
	ok($row->{state} eq 'closed' && !defined $row->{reason} && !defined $row->{next_probe_at}, "$how: its row is written: closed");
	is($s->value(q{SELECT reason LIKE '%parked%' FROM llm_route('hi', model => 'x/both')}), 'f', "$how: llm_route knows");
	$before = asked('x');
	$s->run(q{SELECT llm_complete('hi', model => 'both')}) for 1 .. 20;
	cmp_ok(asked('x') - $before, '>', 0, "$how: calls go there again") if $how ne 'lowest_latency';

	# what an operator has reset has its share at once
	$fake->script({ model => 'both', path => '/x' }, ('status-500') x 5);
	for (1 .. 5)
	{
		$s->run(q{SELECT llm_complete('hi', model => 'x/both')});
		$gw->admin->run(q{SELECT llm_breaker_reset('x')});
	}
	$before = asked('x');
	$s->run(q{SELECT llm_complete('hi', model => 'both')}) for 1 .. 20;
	cmp_ok(asked('x') - $before, '>=', 8, "$how: and at once after llm_breaker_reset") if $how ne 'lowest_latency';
	$gw->sql(q{SELECT llm_breaker_reset('x'); DELETE FROM llm_models WHERE name = 'both'; DELETE FROM llm_providers WHERE name IN ('x', 'y')});
}

# Providers that were parked, or put out of service, and whose rows have gone

$fake->reset;
$gw->sql('ALTER SYSTEM RESET llm_gateway.load_balancing');
$gw->sql('SELECT pg_reload_conf()');
$fake->script({ model => 'gone' }, { behaviour => 'status-401', repeat => 'forever' });
for my $i (1 .. 6)
{
	$s->run('BEGIN');
	$s->run("INSERT INTO llm_providers (name, kind, base_url, api_key) VALUES ('gone$i', 'openai', '" . $fake->url("/gone$i") . "', 'env:TEST_API_KEY')");
	$s->run("INSERT INTO llm_models (provider, name) VALUES ('gone$i', 'gone')");
	is($s->run("SELECT llm_complete('x', model => 'gone$i/gone')")->{sqlstate}, 'LG009', "a key of a new provider is refused, $i");
	$s->run('ROLLBACK');
}
$gw->add_provider('next', $fake->url('/next'), { breaker_failures => 1 });
$gw->add_models('next', 'down');
$fake->script({ model => 'down' }, { behaviour => 'status-500', repeat => 'forever' });
ok(wait_until(sub { $s->run(q{SELECT llm_complete('x', model => 'next/down')}); status('next')->{state} eq 'open' }, 40),
	'they give their slots back');

# A provider that wants to be left alone for weeks

$gw->admin->run(q{SELECT llm_breaker_reset('next')});
$fake->script({ model => 'down' }, { behaviour => 'status-503', headers => { 'retry-after' => '2000000' }, repeat => 'forever' });
$s->run(q{SELECT llm_complete('x', model => 'next/down')});
is($s->value(q{SELECT next_probe_at - now() BETWEEN '58 min' AND '60 min' FROM llm_provider_status WHERE provider = 'next'}), 't',
	'it is probed again after an hour');

# A new extension knows nothing of what an earlier one knew

$gw->admin->run(q{SELECT llm_breaker_open('next')});
is(status('next')->{reason}, 'operator', 'put out of service');
$gw->sql('DROP EXTENSION llm_gateway');
$gw->set_up('postgres');
$gw->add_provider('next', $fake->url('/next'));
is(status('next')->{state}, 'closed', 'and in service after CREATE EXTENSION');

$gw->no_crash_ok;
done_testing();
