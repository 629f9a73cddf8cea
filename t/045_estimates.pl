# Estimates that learn from the answers: from when on, shared by all sessions, forgotten with a restart,
# switched off, with more models than there are places.
use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(row);

# what the fake says of each answer: ten times of what is estimated at first
my $usage = 'usage-100-2560-0-0';
my $prompt = 'x' x 40;

my $gw = LlmGateway->new(name => 'estimates', conf => 'llm_gateway.adaptive_estimates = on');
$gw->add_models('fake', $usage, 'tokens-40', 'usage-100-0-0-0', 'no-usage', 'default',
	{ input_price => 10, output_price => 2 });
my $s = $gw->session;
my $other = $gw->session;

sub estimate
{
	my ($session, $model, $more) = @_;
	return $session->value("SELECT llm_estimate_cost('$prompt', '$model'" . ($more // '') . ')');
}

sub ask
{
	my ($n, $model, $more) = @_;
	$s->value("SELECT count(*) FROM generate_series(1, $n) g, LATERAL (SELECT llm_complete('$prompt', model => '$model'" . ($more // '') . ') WHERE g > 0) q');
	return;
}

# Learning

is(estimate($s, $usage), '0.000612', 'nothing is known: 10 tokens in, 256 out');
ask(7, $usage);
is(estimate($s, $usage), '0.000612', 'seven answers are not believed');
is(row($s, 'SELECT count(*) AS n, max(estimated_usd)::float8 AS estimated, max(cost_usd)::float8 AS cost FROM llm_requests')->{cost}, 0.00612, 'although ten times as much was paid');
ask(1, $usage);
is(estimate($s, $usage), '0.00612', 'eight are: what the next will cost');
ask(1, $usage);
my $r = row($s, 'SELECT estimated_usd::text, cost_usd::text FROM llm_requests ORDER BY request_id DESC LIMIT 1');
is_deeply($r, { estimated_usd => '0.00612', cost_usd => '0.00612' }, 'so does a call estimate itself');
is(estimate($other, $usage), '0.00612', 'another session knows it, too');
is(estimate($s, $usage, ', 50'), '0.0011', 'max_tokens is what is expected where it is given; the input is what it turned out to be');
is($s->value("SELECT llm_estimate_cost(repeat('x', 400), '$usage')"), '0.01512', 'a prompt ten times as long: ten times the input');
is(estimate($s, 'default'), '0.000612', 'another model is not known by it');
is($s->value("SELECT estimated_usd FROM llm_route('$prompt', model => '$usage')"), '0.00612', 'llm_route says the same');

$s->value("BEGIN; UPDATE llm_models SET upstream_name = 'default' WHERE name = '$usage'");
is(estimate($s, $usage), '0.000612', 'what was learned of another model under that name is not believed');
$s->value('ROLLBACK');
is(estimate($s, $usage), '0.00612', 'nor forgotten');
$gw->sql("UPDATE llm_models SET output_price = 3 WHERE name = '$usage'");
is(estimate($s, $usage), '0.00868', 'tokens are remembered, not money');
$gw->sql("UPDATE llm_models SET output_price = 2 WHERE name = '$usage'");

# What is learned from

ask(8, 'tokens-40', ', max_tokens => 5');
is(estimate($s, 'tokens-40'), '0.000612', 'answers that the caller cut say nothing of how long answers are');
ask(8, 'tokens-40', ', max_tokens => 100');
is(estimate($s, 'tokens-40'), '0.00018', 'those that the limit did not touch do');
ask(8, 'no-usage');
is(estimate($s, 'no-usage'), '0.000612', 'nothing is learned from what the provider did not count');
ask(8, 'usage-100-0-0-0');
is(estimate($s, 'usage-100-0-0-0'), '0.001002', 'an answer without a token: at least one is expected');
$s->value("UPDATE llm_models SET max_output_tokens = 1000 WHERE name = '$usage'");
is(estimate($s, $usage), '0.003', 'no more than the model can produce');
$s->value("UPDATE llm_models SET max_output_tokens = NULL WHERE name = '$usage'");

# Two providers say of themselves what cannot be: they are believed up to 16 times.
$gw->add_models('fake', 'usage-100000-1-0-0', 'usage-1-1-0-0', { input_price => 10, output_price => 0 });
ask(8, $_) for 'usage-100000-1-0-0', 'usage-1-1-0-0';
is(estimate($s, 'usage-100000-1-0-0'), '0.0016', 'sixteen times the input at most');
is(estimate($s, 'usage-1-1-0-0', ', 1'), '0.00002', 'a quarter at least, in whole tokens');


# All sessions together: each has seen less than eight
$gw->add_models('fake', 'usage-200-1000-0-0', { input_price => 0, output_price => 1 });
for my $session ($s, $other)
{
	$session->value("SELECT count(llm_complete('$prompt', model => 'usage-200-1000-0-0')) FROM generate_series(1, 4)");
}
is(estimate($_, 'usage-200-1000-0-0'), '0.001', 'two sessions learn together') for $s, $other;

# Off, and on again

$gw->sql('ALTER SYSTEM SET llm_gateway.adaptive_estimates = off');
$gw->sql('SELECT pg_reload_conf()');
ok(LlmGateway::wait_until(sub { $s->value('SHOW llm_gateway.adaptive_estimates') eq 'off' }), 'switched off');
is(estimate($s, $usage), '0.000612', 'off: estimates are as at first');
ask(9, 'default');
is(estimate($s, 'default'), '0.000612', 'and stay so');
$gw->sql('ALTER SYSTEM RESET llm_gateway.adaptive_estimates');
$gw->sql('SELECT pg_reload_conf()');
ok(LlmGateway::wait_until(sub { $s->value('SHOW llm_gateway.adaptive_estimates') eq 'on' }), 'switched on again');
is(estimate($s, $usage), '0.00612', 'what was known is');
$r = $s->run('SET llm_gateway.adaptive_estimates = off');
is($r->{sqlstate}, '55P02', 'a session cannot switch it');

# A restart forgets

$_->quit for $s, $other;
$gw->node->restart;
$s = $gw->session;
is(estimate($s, $usage), '0.000612', 'a restart forgets');
$s->quit;

# More models than places: one provider's worth of them, 16

$gw->node->append_conf('postgresql.conf', 'llm_gateway.max_providers = 1');
$gw->node->restart;
$s = $gw->session;
my @models = map { "usage-100-" . (1000 + $_) . '-0-0' } 1 .. 20;
$gw->add_models('fake', @models, { input_price => 0, output_price => 1 });
ask(8, $_) for @models;
my @known = grep { estimate($s, $_) ne '0.000256' } @models;
is("@known", "@models[0 .. 15]", 'the first sixteen are known, the others are estimated as before');
is(estimate($s, $models[0]), '0.001001', 'each by its own answers');
is($s->value("SELECT llm_complete('hi', model => '$models[19]')"), 'echo: hi', 'calls go on');

$gw->no_crash_ok;
done_testing();
