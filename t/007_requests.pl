# Request ids are unique in the cluster and rise: across sessions, databases, restarts, a crash, a
# clock that was set back, and the promotion of a standby.  A standby makes no calls.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(error_ok);

my $gw = LlmGateway->new(name => 'primary', streaming => 1, fake => undef, conf => 'restart_after_crash = on');
my $node = $gw->node;
my $id = q{SELECT request_id FROM llm_complete_detail('x', model => 'mock-standard')};
my $highest = 0;

# Whether all of these are new and higher than any before.
sub rising_ok
{
	my ($name, @ids) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my %seen = map { $_ => 1 } @ids;
	my ($least) = sort { $a <=> $b } @ids;
	ok(keys %seen == @ids && $least > $highest, $name) or diag("after $highest: @ids");
	($highest) = sort { $b <=> $a } @ids;
	return;
}

$gw->sql(q{SELECT count(*) FROM llm_add_provider('mock')});
rising_ok('ids of a session', split /\n/, $gw->sql("$id; $id; $id"));
rising_ok('of another', $gw->sql($id));
rising_ok('of a statement', split /\n/, $gw->sql(q{SELECT d.request_id FROM generate_series(1, 100) g, llm_complete_detail('x' || g, model => 'mock-standard') d}));
rising_ok('of a batch', split /\n/, $gw->sql(q{SELECT request_id FROM llm_complete_batch(array(SELECT 'x' || g % 10 FROM generate_series(1, 100) g), model => 'mock-standard') ORDER BY 1}));
is($gw->sql(q{BEGIN; SELECT count(*) FROM llm_complete_detail('x', model => 'mock-standard'); ROLLBACK}), '1', 'a transaction that rolls back');
rising_ok('uses up its id', $gw->sql($id));

# sessions at the same time
my @sessions = map { $gw->session } 1 .. 4;
$_->start(q{SELECT request_id FROM llm_complete_batch(array(SELECT 'x' || g FROM generate_series(1, 250) g), model => 'mock-standard')}) for @sessions;
rising_ok('of four sessions at the same time', map { split /\n/, $_->finish->{out} } @sessions);
@sessions = ();

# databases
$gw->sql('CREATE DATABASE other');
$gw->sql('CREATE EXTENSION llm_gateway', 'other');
$gw->sql(q{SELECT count(*) FROM llm_add_provider('mock')}, 'other');
rising_ok('of another database', $gw->sql($id, 'other'));
rising_ok('and of the first again', $gw->sql($id));

# restarts
$node->restart;
rising_ok('after a restart', $gw->sql($id));
$node->stop('immediate');
$node->start;
rising_ok('after an immediate stop', $gw->sql($id));
my $killed = $gw->session;
$killed->start(q{SELECT pg_sleep(60)});
kill KILL => $killed->pid;
$killed->finish;
$gw->comes_back($killed->pid) or die 'the server does not come back';
rising_ok('after a crash of a backend', $gw->sql($id));

# A clock that was set back a year ago is the same as ids that are a year ahead.
$node->stop;
my $file = $node->data_dir . '/llm_gateway/request_id';
ok(-f $file, 'the limit is kept in a file');
my $ahead = $highest + 365 * 86_400 * 1_000_000;
open my $out, '>', $file or die "$file: $!";
print {$out} "$ahead\n";
close $out;
$node->start;
rising_ok('after the clock was set back', $gw->sql($id));
cmp_ok($highest, '>=', $ahead, 'and not below what may have been used');
$node->restart;
rising_ok('also after the next restart', $gw->sql($id));

# A standby

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$gw->sql(q{UPDATE llm_models SET quality = 71 WHERE name = 'mock-standard'});
$node->wait_for_catchup($standby);
my $s = LlmGateway::Session->new($standby, 'postgres');
is($s->value(q{SELECT quality FROM llm_models WHERE name = 'mock-standard'}), '71', 'configuration reaches the standby');
for my $call (
	q{SELECT llm_complete('x', model => 'mock-standard')},
	q{SELECT * FROM llm_complete_detail('x', model => 'mock-standard')},
	q{SELECT * FROM llm_complete_batch('{x}', model => 'mock-standard')})
{
	error_ok($s->run($call), { sqlstate => '25006', message => qr/on a standby/, hint => qr/primary/ }, 'a standby refuses: ' . substr $call, 7, 20);
}
is($s->value(q{SELECT llm_complete(NULL) IS NULL}), 't', 'but a NULL prompt is no call');
rising_ok('of the primary meanwhile', $gw->sql($id));

# what budgets have spent is what has reached the standby, and after promotion, too
my $spent = q{SELECT spent_usd FROM llm_budget_status};
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd) VALUES ('all', 1000)});
$node->wait_for_catchup($standby);
is($s->value($spent), $gw->sql($spent), 'a standby knows what a budget has spent');
$s->run(q{SELECT * FROM llm_route('x', model => 'mock-standard')});
rising_ok('of the primary again', $gw->sql($id));
ok($gw->drained, 'it is booked');
my $paid = $gw->sql($spent);
$node->wait_for_catchup($standby);
is($s->value($spent), $paid, 'and what it has spent since');
is(LlmGateway::Session->new($standby, 'postgres')->value($spent), $paid, 'also to a new session');
$node->stop;
$standby->promote;
is($s->value($spent), $paid, 'so it does after promotion');
rising_ok('after promotion, in the same session', $s->value($id));
rising_ok('and in a new one', $standby->safe_psql('postgres', $id));
is($s->value(q{UPDATE llm_models SET enabled = false WHERE name = 'mock-standard' RETURNING enabled}), 'f', 'configuration can be changed');
error_ok($s->run($id =~ s/_detail//r =~ s/request_id FROM //r), { sqlstate => 'LG005' }, 'and the change is seen');

done_testing();
