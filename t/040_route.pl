# llm_route while other sessions use the same providers: where a call would wait for room, for how long,
# and that the call then does just that.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway;

my $gw = LlmGateway->new(name => 'route', fake => undef);
my $s = $gw->session;
my $busy = $gw->session;

$gw->sql(q{
	INSERT INTO llm_providers(name, kind, max_concurrency, options) VALUES
		('full', 'mock', 1, '{"latency_ms": 600000}'), ('near', 'mock', 1, NULL), ('other', 'mock', NULL, NULL);
	INSERT INTO llm_models(provider, name) VALUES ('full', 'm'), ('near', 'm'), ('other', 'elsewhere');
	INSERT INTO llm_routing_rules(alias, model, rank) VALUES
		('two', 'full/m', 10), ('two', 'elsewhere', 20),
		('three', 'full/m', 10), ('three', 'elsewhere', 20), ('three', 'near/m', 30);
});

# Who is chosen, and all that is in a candidate's way: provider, chosen, reason without the rule's number.
sub route
{
	my ($model) = @_;
	return $s->value("SELECT string_agg(concat_ws(' ', provider, CASE WHEN chosen THEN '*' END, regexp_replace(reason, '^.*?(; |\$)', '')), ' | ' ORDER BY rank) FROM llm_route('hi', model => '$model')");
}
sub answers { return $s->value("SELECT provider FROM llm_complete_detail('hi', model => '$_[0]')") }

sub backoff
{
	$gw->sql("UPDATE llm_error_policies SET backoff_ms = $_[0] WHERE error_class = 'rate_limit'");
	return;
}

is(route('two'), 'full *  | other ', 'there is room');
$busy->start(q{SELECT llm_complete('hi', model => 'full/m')});
my $deadline = time + 60;
sleep 0.02 until $s->value(q{SELECT in_flight FROM llm_provider_status WHERE provider = 'full'}) == 1 || time > $deadline;

my $full = 'no room now: all 1 of max_concurrency are in use';
is(route('two'), "full * $full; a call waits for it up to 2 s | other ", 'a call waits, then goes to another model');
is(route('full/m'), "full * $full; a call waits for it up to 60 s", 'where there is nothing else, for longer');
$s->run('SET llm_gateway.default_timeout = 5000');
is(route('full/m'), "full * $full; a call waits for it up to 5 s", 'but no longer than the call may take');
$s->run('RESET llm_gateway.default_timeout');
is(route('three'), "full $full | other  | near * ", 'another provider of the same model is asked at once');
is(answers('three'), 'near', 'as it is');

backoff(0);
is(route('two'), "full $full | other * ", 'a policy without patience');
is(answers('two'), 'other', 'is followed');
is(route('three'), "full $full | other *  | near ", 'also where the same model comes later');
is(answers('three'), 'other', 'and by the call');
backoff(2000);

is($s->value(q{SELECT waiting FROM llm_provider_status WHERE provider = 'full'}), 0, 'who looks does not queue up');
$gw->admin->run('SELECT pg_cancel_backend(' . $busy->pid . ')');
is($busy->finish->{sqlstate}, '57014', 'the busy one is cancelled');
is(route('two'), 'full *  | other ', 'there is room again');
is($s->value(q{SELECT count(*) FROM llm_requests WHERE provider = 'full' AND status <> 'cancelled'}), 0, 'no call was made to look');

$gw->no_crash_ok;
done_testing();
