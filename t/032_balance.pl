# Sharing calls out among the providers of a model: exact shares, other rules of balancing, providers
# that fail, are slow, or were away.
use strict;
use warnings;

use FindBin;
use List::Util qw(max sum0);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(row);

my $gw = LlmGateway->new(name => 'balance');
my $fake = $gw->fake;
my $s = $gw->session;
my @sessions = map { $gw->session } 1 .. 4;
my ($r, $seen, $counts, $more);

$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 0, max_retries = 0});

# Who gets how many of calls to a model, one after the other in one session, as they were answered
sub answered
{
	my ($model, $n, $session) = @_;
	return ($session // $s)->value("SELECT string_agg(d.provider, ' ' ORDER BY g) FROM generate_series(1, $n) g, llm_complete_detail('hi ' || g, model => '$model') d");
}

# How often each provider is in a list
sub counts
{
	my %n;
	$n{$_}++ for map { split } @_;
	return \%n;
}

# Who was sent how many of these requests, by the first part of the path
sub sent
{
	my ($requests) = @_;
	my %n;
	$n{ $_->{path} =~ m{^/(\w+)/v1/} ? $1 : 'fake' }++ for @$requests;
	return \%n;
}

# Whether each count differs from its share by less than one
sub shares_ok
{
	my ($counts, $weights, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $n = sum0(values %$counts);
	my $total = sum0(values %$weights);
	my @off = grep { abs(($counts->{$_} // 0) - $n * $weights->{$_} / $total) >= 1 } sort keys %$weights;
	ok(!@off && $n == sum0(map { $counts->{$_} // 0 } keys %$weights), $name)
	  or diag("of $n: " . join ', ', map { "$_ $counts->{$_}" } sort keys %$counts);
	return;
}

# The same after each call of a list, which follows on earlier ones
sub always_shares_ok
{
	my ($list, $weights, $name, $earlier) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $total = sum0(values %$weights);
	my %n = %{ $earlier // {} };
	my $calls = sum0(values %n);
	my @off;
	for my $provider (split ' ', $list)
	{
		$n{$provider}++;
		$calls++;
		push @off, "$_ $n{$_} after $calls"
		  for grep { abs(($n{$_} //= 0) - $calls * $weights->{$_} / $total) >= 1 } sort keys %$weights;
	}
	ok(!@off, $name) or diag("@off");
	return;
}

sub set_balancing
{
	my ($how) = @_;
	$gw->sql("ALTER SYSTEM SET llm_gateway.load_balancing = '$how'");
	$gw->node->reload;
	for my $session ($s, @sessions)
	{
		select undef, undef, undef, 0.01 until $session->value('SHOW llm_gateway.load_balancing') eq $how;
	}
	return;
}

# Providers with one model, each with its own path
sub add_group
{
	my ($model, %weights) = @_;
	for my $name (sort keys %weights)
	{
		$gw->add_provider($name, $fake->url("/$name"), { weight => $weights{$name}, breaker_failures => 100000 });
		$gw->add_models($name, $model);
	}
	return;
}

sub add_mocks
{
	my ($model, %weights) = @_;
	for my $name (sort keys %weights)
	{
		$gw->add_provider($name, undef, { kind => "'mock'", api_key => 'NULL', weight => $weights{$name} });
		$gw->add_models($name, $model);
	}
	return;
}

# weighted, the default

is($s->value('SHOW llm_gateway.load_balancing'), 'weighted', 'weighted is the default');

my %odd = (p1 => 0.1, p2 => 0.7, p3 => 1, p4 => 3.3, p5 => 17, p6 => 17, p7 => 40);
add_mocks('odd', %odd);
always_shares_ok(answered('odd', 700), \%odd, 'weighted: exact after every call');
$gw->sql(q{UPDATE llm_providers SET weight = 1 WHERE name LIKE 'p_'});
like(answered('odd', 14), qr/^(p1 p2 p3 p4 p5 p6 p7 ?){2}$/, 'equal weights: in turn');

add_group('m', a => 5, b => 1, c => 2, d => 0.5);
$gw->sql(q{UPDATE llm_models SET weight = 3 WHERE provider = 'b'});
my %weights = (a => 5, b => 3, c => 2, d => 0.5);
$seen = $gw->requests(
	sub {
		for my $i (0 .. 3)
		{
			$sessions[$i]->start(
				qq{SET llm_gateway.ledger_sync = off;
				SELECT d.provider FROM generate_series(1, 150) g, llm_complete_detail('scalar $i ' || g, model => 'm') d
				UNION ALL SELECT provider FROM llm_complete_batch(array(SELECT 'batch $i ' || g FROM generate_series(1, 100) g), model => 'm', max_concurrency => 5)});
		}
		$counts = counts(map { $_->finish->{out} } @sessions);
		is(sum0(values %$counts), 1000, '1000 calls of four sessions, one by one and in batches');
	});
$more = answered('m', 100);
SKIP:
{
	# who takes a second and a half is slow, and sheds load
	ok($gw->drained, 'all is booked');
	skip 'the machine stood still', 3 if $gw->sql('SELECT count(*) FROM llm_attempts WHERE latency_ms > 1000') > 0;
	shares_ok($counts, \%weights, 'weighted: exact by all sessions together');
	shares_ok(sent($seen), \%weights, 'weighted: what was sent');
	always_shares_ok($more, \%weights, 'weighted: exact in the calls that follow', $counts);
}
my $earlier = counts($more, map { ("$_ ") x $counts->{$_} } keys %$counts);

# what takes no turn of its own
add_group('pair', e => 1, f => 1);
is(answered('pair', 4), 'e f e f', 'equal weights');
is( $s->value(q{SELECT string_agg(d.provider, ' ' ORDER BY g) FROM generate_series(1, 4) g,
	LATERAL (SELECT llm_estimate_cost('hi' || g, 'pair') OFFSET 0) e, LATERAL llm_complete_detail('hi' || g, model => 'pair') d}),
	'e f e f', 'an estimate takes no turn');
$r = $s->run(q{BEGIN; SELECT provider FROM llm_complete_detail('hi', model => 'pair'); ROLLBACK});
is($r->{out} . ' ' . answered('pair', 3), 'e f e f', 'a call that was rolled back has had its turn');
is( join(' ', map { $s->value(q{SELECT provider FROM llm_complete_batch('{x,x,x,x,x}', model => 'pair')}) =~ s/\n/ /gr } 1 .. 2),
	'e e e e e f f f f f', 'a shared answer takes no turn');
$fake->script({ model => 'pair', path => "/$_" }, map { ({ text => 'no JSON' }, { text => '{"x": 1}' }) } 1 .. 2) for qw(e f);
$seen = $gw->requests(sub { $s->value(q{SELECT llm_complete_json('hi ' || g, model => 'pair', schema => '{"type": "object"}') FROM generate_series(1, 4) g}) });
is(join(' ', map { $_->{path} =~ m{^/(\w)/} } @$seen), 'e e f f e e f f', 'a repair of JSON takes no turn, and stays with the provider');

add_group('vectors', g => 1, h => 1);
$seen = $gw->requests(sub { $s->value(qq{SELECT count(*) FROM llm_embed_batch('{input $_}', model => 'vectors')}) for 1 .. 4 });
is(join(' ', map { $_->{path} =~ m{^/(\w)/} } @$seen), 'g h g h', 'llm_embed_batch takes one turn');

# a model that only stands by
$gw->add_models('fake', 'solo');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('safe', 'solo', 10), ('safe', 'pair', 20), ('alone', 'f/pair', 10), ('alone', 'pair', 20)});
is( $s->value(q{SELECT string_agg(d.provider, ' ' ORDER BY g) FROM generate_series(1, 8) g,
	LATERAL llm_complete_detail('hi' || g, model => CASE WHEN g % 2 = 1 THEN 'safe' ELSE 'pair' END) d}),
	'fake e fake f fake e fake f', 'calls that do not come to a model take no turn of its providers');
$fake->script('solo', { behaviour => 'status-400', repeat => 'forever' });
$gw->sql(q{UPDATE llm_error_policies SET fallback = true WHERE error_class = 'invalid_request'});
$counts = counts(answered('safe', 60));
is(sum0(values %$counts), 60, 'calls that fall back to it');
cmp_ok($counts->{$_}, '>=', 10, "go to $_, too") for qw(e f);
$fake->script('solo');
$gw->sql(q{UPDATE llm_error_policies SET fallback = false WHERE error_class = 'invalid_request'});
is(answered('alone', 3) . ' ' . answered('pair', 2), 'f f f e f', 'provider/model has nothing to balance');

# Changed weights

$gw->sql(q{UPDATE llm_providers SET weight = 3 WHERE name = 'f'});
always_shares_ok(answered('pair', 8), { e => 1, f => 3 }, 'a changed weight takes effect at the next call');
$gw->sql(q{UPDATE llm_models SET weight = 0.25 WHERE provider = 'f' AND name = 'pair'});
always_shares_ok(answered('pair', 14), { e => 1, f => 0.75 }, 'so does one of a model');
$s->value(q{BEGIN; UPDATE llm_models SET weight = 0 WHERE provider = 'e' AND name = 'pair'});
is(answered('pair', 3), 'f f f', 'one that is not committed: in its transaction');
always_shares_ok(answered('pair', 7, $sessions[0]), { e => 1, f => 0.75 }, 'not elsewhere');
$s->value('ROLLBACK');
always_shares_ok(answered('pair', 7), { e => 1, f => 0.75 }, 'nor after rollback');
$gw->sql(q{UPDATE llm_providers SET weight = 1 WHERE name = 'f'; UPDATE llm_models SET weight = 1 WHERE provider = 'f' AND name = 'pair'});

# Weight 0

$gw->sql(q{UPDATE llm_providers SET weight = 0 WHERE name = 'e'});
is(answered('pair', 5), 'f f f f f', 'weight 0: not while there is another');
$fake->script({ model => '*', path => '/f' }, { behaviour => 'status-503', repeat => 2 });
is($s->value(q{SELECT provider, fallback FROM llm_complete_detail('hi', model => 'pair')}), 'e|t', 'but after it has failed');
$fake->script({ model => '*', path => '/f' });
$gw->sql(q{UPDATE llm_providers SET enabled = false WHERE name = 'f'});
is($s->value(q{SELECT provider, fallback FROM llm_complete_detail('hi', model => 'pair')}), 'e|f', 'or where it may not answer');
$gw->sql(q{UPDATE llm_providers SET enabled = true, weight = 1 WHERE name IN ('e', 'f')});
is(answered('pair', 4), 'e f e f', 'one that could not answer does not catch up');

# round_robin, and the setting

set_balancing('round_robin');
always_shares_ok(answered('m', 41), { a => 1, b => 1, c => 1, d => 1 }, 'round_robin: whatever the weights');
$gw->sql(q{UPDATE llm_providers SET weight = 0 WHERE name = 'd'});
always_shares_ok(answered('m', 10), { a => 1, b => 1, c => 1 }, 'but 0');
$gw->sql(q{UPDATE llm_providers SET weight = 0.5 WHERE name = 'd'});
set_balancing('weighted');
always_shares_ok(answered('m', 41), \%weights, 'weighted again', $earlier);
is($s->run('SET llm_gateway.load_balancing = round_robin')->{sqlstate}, '55P02', 'the setting is of the configuration file');

# Many providers

add_mocks('many', map { sprintf('q%02d', $_) => $_ == 7 ? 2 : 1 } 1 .. 17);
is(answered('many', 3), 'q07 q07 q07', 'more than sixteen: the heaviest');
$gw->sql(q{UPDATE llm_providers SET weight = 0 WHERE name = 'q17'});
always_shares_ok(answered('many', 34), { map { sprintf('q%02d', $_) => $_ == 7 ? 2 : 1 } 1 .. 16 }, 'sixteen: exact');

# More groups than places: the least recently used one gives way
{
	my $small = LlmGateway->new(name => 'small', fake => undef, conf => 'llm_gateway.max_providers = 2');
	$small->sql(q{INSERT INTO llm_providers (name, kind) VALUES ('a', 'mock'), ('b', 'mock');
		INSERT INTO llm_models (provider, name) SELECT p, m FROM unnest('{a,b}'::text[]) p, unnest('{m1,m2,m3}'::text[]) m});
	my $t = $small->session;
	is(answered('m1', 3, $t), 'a b a', 'one group');
	is(answered('m2', 3, $t), 'a b a', 'two groups');
	is(answered('m1', 1, $t) . answered('m2', 1, $t), 'bb', 'each has its place');
	is(answered('m3', 1, $t), 'a', 'a third one takes a place');
	is(answered('m2', 1, $t), 'a', 'not that of the last used');
	is(answered('m1', 1, $t), 'a', 'the first one begins anew');
	$small->no_crash_ok;
}

# Providers that fail

# Half of what one provider of the pair is sent fails, by turns
sub fail_by_turns
{
	my ($name) = @_;
	$fake->script({ model => '*', path => "/$name" }, map { ('status-500', 'default') } 1 .. 500);
	return;
}

sub calls
{
	my ($model, $n) = @_;
	return counts($s->value("SELECT string_agg(provider, ' ') FROM llm_complete_batch(array(SELECT 'call ' || g FROM generate_series(1, $n) g), model => '$model', max_concurrency => 4, cache => 'off')"));
}

add_group('ill', i => 1, j => 1);
fail_by_turns('j');
$seen = $gw->requests(sub { $counts = calls('ill', 300) });
is(sum0(values %$counts), 300, 'one provider fails every second time: all calls are answered');
cmp_ok(sent($seen)->{j}, '<', 120, 'it is asked less');
cmp_ok(sent($seen)->{j}, '>', 3, 'but asked');

# it recovers: little by little, and no more than its share at any time
$fake->script({ model => '*', path => '/j' });
my @back = map { calls('ill', 40)->{j} // 0 } 1 .. 25;
cmp_ok($back[0], '<', 20, 'when it has recovered it comes back little by little');
cmp_ok(max(@back), '<=', 22, 'it does not catch up');
cmp_ok($back[-1], '>=', 16, 'and gets its share again') or diag("@back");

# Providers that are slow

add_group('lame', k => 1, l => 1);
$fake->script({ model => '*', path => '/l' }, { delay_ms => 800, repeat => 'forever' });
$counts = calls('lame', 200);
is(sum0(values %$counts), 200, 'one provider is slow');
cmp_ok($counts->{l}, '<', 70, 'it gets less');
cmp_ok($counts->{l}, '>', 1, 'but something');

# least_busy: by what is under way

set_balancing('least_busy');
add_group('busy', n => 1, o => 1, p => 2);
$counts = calls('busy', 4);
always_shares_ok(answered('busy', 20), { n => 1, o => 1, p => 2 }, 'least_busy: one by one, weighted');
$fake->script({ model => '*', path => '/o' }, { delay_ms => 400, repeat => 'forever' });
$fake->script({ model => '*', path => "/$_" }, { delay_ms => 40, repeat => 'forever' }) for qw(n p);
$counts = calls('busy', 120);
is(sum0(values %$counts), 120, 'least_busy: one is slow');
cmp_ok($counts->{o}, '<', 25, 'it gets less');
cmp_ok($counts->{o}, '>', 1, 'but something');

# who only fails is never busy
$fake->script({ model => '*', path => '/o' }, { behaviour => 'status-500', repeat => 'forever' });
$seen = $gw->requests(sub { $counts = calls('busy', 120) });
is(sum0(values %$counts), 120, 'least_busy: one fails at once');
cmp_ok(sent($seen)->{o}, '<', 30, 'that is not for being idle');

# lowest_latency

set_balancing('lowest_latency');
add_group('fast', q => 1, r => 1);
$fake->script({ model => '*', path => '/q' }, { delay_ms => 150, repeat => 'forever' });
calls('fast', 20);
$counts = calls('fast', 100);
cmp_ok($counts->{r} // 0, '>', 80, 'lowest_latency: most go to the faster one');
$fake->script({ model => '*', path => '/q' });
$fake->script({ model => '*', path => '/r' }, { delay_ms => 300, repeat => 'forever' });
calls('fast', 60);
$counts = calls('fast', 100);
cmp_ok($counts->{q} // 0, '>', 80, 'and to the other when that is faster');
$fake->script({ model => '*', path => '/q' }, { behaviour => 'status-500', repeat => 'forever' });
$seen = $gw->requests(sub { calls('fast', 80) });
cmp_ok(sent($seen)->{q} // 0, '<', 25, 'not to one that fails at once');
set_balancing('weighted');

# One whose breaker is open

add_group('trio', u => 1, v => 1, w => 1);
is(answered('trio', 3), 'u v w', 'three in turn');
$s->value(q{SELECT llm_breaker_open('v')});
$r = $s->value(q{SELECT provider || CASE WHEN fallback THEN '+' ELSE '' END FROM generate_series(1, 60) g, llm_complete_detail('hi ' || g, model => 'trio') d});
$counts = counts($r =~ s/\+//gr);
shares_ok($counts, { u => 1, w => 1 }, 'a breaker is open: the others have equal shares');
is(scalar(() = $r =~ /\+/g), 20, 'what would have been its calls are fallbacks');
$s->value(q{SELECT llm_breaker_reset('v')});
always_shares_ok(answered('trio', 30), { u => 1, v => 1, w => 1 }, 'closed again it does not catch up');

$gw->no_crash_ok;
done_testing();
