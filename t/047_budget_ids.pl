# A budget's id is never given twice, whatever ends a transaction or the server, and however many
# draw and restore ids at once; a new budget begins with what calls have cost.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(error_ok);

# Nobody but a commit writes WAL out.
my $gw = LlmGateway->new(name => 'ids', conf => "wal_writer_delay = 10s\nautovacuum = off\n");
my $node = $gw->node;
$gw->add_models('fake', 'gpt-4o', { input_price => 1000, output_price => 2000 });
$gw->add_provider('second', $gw->fake->url);
$gw->add_models('second', 'gpt-4o', { input_price => 3000, output_price => 1000 });
$gw->sql('CREATE ROLE app LOGIN; CREATE ROLE team ROLE app; CREATE ROLE ops LOGIN; SELECT llm_grant($$app$$), llm_grant($$ops$$, $$admin$$)');

# What calls have cost

my $admin = $gw->admin;
my $app = $gw->session(undef, user => 'app');
my $ops = $gw->session(undef, user => 'ops');
$app->value(q{SELECT llm_complete('one', model => 'fake/gpt-4o', task => 'chat')});
$app->value(q{SELECT llm_complete('two', model => 'second/gpt-4o', tags => '{"team": "x", "n": 1}')});
$admin->value(q{SELECT llm_complete('three', model => 'fake/gpt-4o', task => 'math', tags => '{"team": "y"}')});
for my $scope (
	[ '', 'true' ],
	[ q{role = 'team'}, q{r.role = 'app'} ],
	[ q{role = 'app'}, q{r.role = 'app'} ],
	[ q{task = 'math'}, q{r.task = 'math'} ],
	[ q{tags = '{"team": "x"}'}, q{r.tags->>'team' = 'x'} ],
	[ q{provider = 'fake'}, q{r.provider = 'fake'} ],
	[ q{model = 'second/gpt-4o'}, q{r.provider = 'second'} ],
	[ q{model = 'gpt-4o'}, 'true' ],
	[ q{role = 'team', provider = 'fake'}, q{r.role = 'app' AND r.provider = 'fake'} ],
	[ q{role = 'team', task = 'math'}, 'false' ])
{
	my ($set, $where) = @$scope;
	my @set = split / *, (?=[a-z]+ =)/, $set;
	my $columns = join '', map { /^(\w+) =/; ", $1" } @set;
	my $values = join '', map { /^\w+ = (.*)/; ", $1" } @set;
	my $name = $set || 'any';
	my $cost = $admin->value("SELECT coalesce(sum(cost_usd), 0) FROM llm_requests r WHERE $where");
	cmp_ok($cost, $where eq 'false' ? '==' : '>', 0, "$name: what that cost");
	is($ops->value("INSERT INTO llm_budgets (name, period$columns) VALUES (" . LlmGateway::literal($name) . ", 'day'$values) RETURNING opening_usd"),
		$cost, "$name: what the budget begins with");
}

# A crash in the middle of a transaction that has drawn an id

for my $round (1 .. 3)
{
	my $s = $gw->session;
	my $before = $s->value(q{INSERT INTO llm_budgets (name) VALUES ('} . "before $round" . q{') RETURNING id});

	# the sequence's numbers are logged some at a time: past those that are
	my $id;
	$s->value('BEGIN');
	$id = $s->value("INSERT INTO llm_budgets (name) VALUES ('lost $round $_') RETURNING id") for 1 .. 40;
	$node->stop('immediate');
	$node->start;
	delete $gw->{admin};
	my $next = $gw->sql("INSERT INTO llm_budgets (name) VALUES ('after $round') RETURNING id");
	cmp_ok($next, '>', $id, "after crash $round: a number that nobody has had");
	is($gw->sql("SELECT count(*) FROM llm_budgets WHERE id = $before"), '1', "after crash $round: what was committed is there");
}

# Many at once: some draw, some roll back, some restore

my $first = $gw->sql('SELECT max(id) + 1 FROM llm_budgets');
my @sessions = map { $gw->session } 0 .. 5;
for my $n (0 .. $#sessions)
{
	my $sql = '';
	for my $i (1 .. 40)
	{
		my $id = $first + $i * 7 + $n;
		my $insert = "INSERT INTO llm_budgets (name) VALUES ('n$n $i') RETURNING id;";
		$sql .=
		    $n == 0 ? "INSERT INTO llm_budgets (id, name) VALUES ((SELECT last_value + 1000 FROM _llm_budget_id_seq), 'r$i') ON CONFLICT DO NOTHING;\n"
		  : $i % 3 == 0 ? "BEGIN; $insert ROLLBACK;\n"
		  :               "$insert\n";
	}
	$sessions[$n]->start($sql);
}
my %seen;
my $twice = 0;
for my $n (0 .. $#sessions)
{
	my $r = $sessions[$n]->finish;
	is($r->{sqlstate}, undef, "session $n: no error") or diag($r->{err});
	$seen{$_}++ && $twice++ for grep { /^\d+$/ } split /\n/, $r->{out};
}
is(scalar(keys %seen), 40 * $#sessions, 'every insert has drawn a number');
is($twice, 0, 'no number was drawn twice');
cmp_ok($gw->sql(q{INSERT INTO llm_budgets (name) VALUES ('the end') RETURNING id}), '>',
	$gw->sql(q{SELECT max(id) FROM llm_budgets WHERE name <> 'the end'}), 'the next one is above all');

done_testing();
