# Accounts of budgets in shared memory: opened once, charged together, given away, given back.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use LlmGateway qw(wait_until);
use PostgreSQL::Test::Utils qw(run_command);
use Test::More;

my $top = "$FindBin::Bin/..";
# those of its files: others may be left from an earlier build
my @objects = grep { -e } map { s/\.c$/.o/r } glob("$top/src/*.c $top/llm_gateway.c");

plan skip_all => 'needs the objects of the extension' unless @objects > 1;

# what SQL cannot call, in a library of the same name with all of the extension
my $directory = PostgreSQL::Test::Utils::tempdir_short();
my ($includes) = run_command([ 'pg_config', '--includedir-server' ]);

system($ENV{CC} || 'cc', qw(-shared -fPIC -O2), "-I$top/src", "-I$includes",
	"$FindBin::Bin/model/budget_accounts_sql.c", @objects, '-lcurl', '-o', "$directory/llm_gateway.so") == 0
  or die 'could not build the library';

my $gw = LlmGateway->new(
	name => 'accounts',
	fake => undef,
	extension => 0,
	conf => "dynamic_library_path = '$directory:\$libdir'\nllm_gateway.max_budgets = 4");

sub define
{
	my ($database) = @_;

	$gw->sql($_, $database)
	  for 'CREATE TABLE _llm_budget_spend (budget_id bigint, period_start timestamptz, spent_nano bigint, PRIMARY KEY (budget_id, period_start))',
	  'ALTER EXTENSION plpgsql ADD TABLE _llm_budget_spend',
	  map { "CREATE FUNCTION $_ LANGUAGE c STRICT AS 'llm_gateway'" }
	  'budget_open(bigint, timestamptz, bigint) RETURNS text', 'budget_look(bigint) RETURNS text',
	  'budget_reserve(bigint[], bigint, bool) RETURNS text', 'budget_settle(bigint) RETURNS void',
	  'budget_release() RETURNS void', 'budget_churn(bigint[], int) RETURNS bigint',
	  'budget_accounts() RETURNS text', 'budget_age(bigint, bigint) RETURNS void',
	  'budget_spool(bigint, bigint) RETURNS void';
	return;
}
define('postgres');

my $admin = $gw->admin;
my $s = $gw->session;
my $t = $gw->session;
my $minute = 60 * 1_000_000;

# Runs a function; NULL is ''.
sub call
{
	my ($session, $function) = @_;
	return $session->value("SELECT $function") // '';
}

# Opens a budget in some sessions, at noon of that day; why it cannot be opened.
sub opened
{
	my ($id, $limit, $day, @sessions) = @_;
	return join(', ', grep { $_ ne '' } map { call($_, "budget_open($id, '2026-05-$day 12:00+00', $limit)") } @sessions);
}

# An account begins with what is in the table, and is everybody's.
$admin->run(q{INSERT INTO _llm_budget_spend VALUES (1, '2026-05-01 00:00+00', 30), (1, '2026-05-02 00:00+00', 7)});
$admin->run('BEGIN; LOCK _llm_budget_spend');
$_->start(q{SELECT budget_open(1, '2026-05-01 12:00+00', 100)}) for $s, $t;
ok(wait_until(sub { $admin->value(q{SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '_llm_budget_spend'::regclass}) == 2 }), 'both wait for the table');
$admin->run('COMMIT');
is($_->finish->{out}, '', 'two sessions open a budget at once') for $s, $t;
is(call($admin, 'budget_accounts()'), '1: 30 0', 'and end with one account');
is(call($s, 'budget_look(1)'), '30 0', 'which has spent what the table says of its period');
is(call($s, 'budget_reserve(ARRAY[1], 50, true)'), '', 'there is room');
is(call($t, 'budget_look(1)'), '30 50', 'what one session reserves the other one sees');
is(call($t, 'budget_reserve(ARRAY[1], 21, true)'), '1: 20', 'there is no room for more than the limit');
is(call($t, 'budget_reserve(ARRAY[1], 11, false)'), '1: 10', 'nor, without the reserve, above it');
is(call($t, 'budget_reserve(ARRAY[1], 10, false)'), '', 'there is for what is left');
is(call($t, 'budget_release()'), '', 'which is given back');
is(call($s, 'budget_settle(45)'), '', 'what was paid');
is(call($t, 'budget_look(1)'), '75 0', 'is spent');
is(call($s, 'budget_settle(45)'), '', 'to settle again');
is(call($t, 'budget_look(1)'), '75 0', 'does nothing');
is(call($s, 'budget_reserve(ARRAY[1], 1, true)') . call($s, 'budget_settle(40)'), '', 'more is paid than was reserved');
is(call($s, 'budget_look(1)'), '115 0', 'it counts in full');
is(call($s, 'budget_reserve(ARRAY[1], 1, true)'), '1: 0', 'nothing is left');
is(opened(1, 200, '01', $s), '', 'one session sees a higher limit');
is(call($s, 'budget_reserve(ARRAY[1], 50, true)') . call($s, 'budget_release()'), '', 'and has room');
is(call($t, 'budget_reserve(ARRAY[1], 1, true)'), '1: 0', 'the other one has not');
is(opened(1, 100, '02', $s), '', 'the next period');
is(call($s, 'budget_look(1)'), '7 0', 'has an account of its own');
is(opened(1, 100, '01', $s), '', 'the clock is set back');
is(call($s, 'budget_look(1)'), '115 0', 'to the one before');

# On all, or on none.
is(opened(2, 50, '01', $s, $t), '', 'another budget');
is(opened(3, -1, '01', $s, $t), '', 'and one that only counts');
is(opened(1, 1000, '01', $s, $t), '', 'the first is raised');
is(call($s, 'budget_reserve(ARRAY[3, 2, 1], 51, true)'), '2: 50', 'one of three has no room');
is(join(' ', map { call($s, "budget_look($_)") } 1 .. 3), '115 0 0 0 0 0', 'nothing is reserved');
is(call($s, 'budget_reserve(ARRAY[3, 2, 1], 50, true)'), '', 'all have room');
is(join(' ', map { call($t, "budget_look($_)") } 1 .. 3), '115 50 0 50 0 50', 'all are charged');
is(call($s, 'budget_release()'), '', 'and given back');
is(join(' ', map { call($t, "budget_look($_)") } 1 .. 3), '115 0 0 0 0 0', 'all of them');

# What a process leaves behind is given back, however it ends.
for my $how ('quits', 'is terminated')
{
	my $u = $gw->session;

	is(opened(1, 1000, '01', $u) . opened(2, 50, '01', $u) . call($u, 'budget_reserve(ARRAY[1, 2], 5, true)'), '', "a session that $how has reserved");
	is(call($t, 'budget_look(2)'), '0 5', 'which others see');
	$admin->run('SELECT pg_terminate_backend(' . $u->pid . ')') if $how ne 'quits';
	$u->quit;
	ok(wait_until(sub { call($t, 'budget_look(2)') eq '0 0' }), 'it is given back');
	is(call($t, 'budget_look(1)'), '115 0', 'on both');
}

# There are four places; the one more takes that of an ended period.
call($admin, 'budget_spool(0, 1000)');
is(opened(5, 100, '03', $s, $t), '', 'one more is opened on a later day');
is(call($s, 'budget_reserve(ARRAY[5], 9, true)') . call($t, 'budget_look(5)'), '0 9', 'and charged');
like(call($admin, 'budget_accounts()'), qr/^[^,]*(, [^,]*){3}$/, 'all places are taken');
is(opened(6, 100, '01', $t), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'of the running period none is given away');
is(opened(6, 100, '03', $t), '', 'one of an ended period is');
like(call($admin, 'budget_accounts()'), qr/5: 0 9/, 'what is reserved stays');

is(opened(7, 100, '03', $t) . opened(8, 100, '03', $t), '', 'others take the places of the ended ones');
is(opened(9, 100, '03', $t), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'until all are of the running period');
is(call($t, 'budget_reserve(ARRAY[6, 7], 5, true)') . call($t, 'budget_settle(5)'), '', 'two are charged');

# What nobody has used for a minute goes, when it is booked.
is(call($t, "budget_age(7, $minute)"), '', 'one is not used for a minute');
call($admin, 'budget_spool(2000, 1000)');
is(call($s, 'budget_release()') . opened(7, 100, '03', $s) . call($s, 'budget_reserve(ARRAY[7], 1, true)') . call($s, 'budget_settle(1)'), '', 'after something that is not yet booked');
is(call($s, "budget_age(7, $minute)"), '', 'again a minute');
is(opened(9, 100, '03', $t), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'what is not booked stays');
call($admin, 'budget_spool(2000, 1999)');
is(opened(9, 100, '03', $t), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'to the last byte');
call($admin, 'budget_spool(2000, 2000)');
$admin->run(q{INSERT INTO _llm_budget_spend VALUES (7, '2026-05-03 00:00+00', 6)});
is(opened(9, 100, '03', $t), '', 'what is booked goes');
is(call($s, 'budget_look(7)'), '', 'its session finds it gone');
is(call($s, 'budget_reserve(ARRAY[7], 1, true)'), '7: 0', 'and cannot reserve');
is(call($s, 'budget_settle(1)') . call($t, 'budget_look(9)'), '0 0', 'nor charge whose place it is now');
is(call($t, "budget_age(9, $minute)") . opened(7, 100, '03', $s), '', 'it opens it again');
is(call($s, 'budget_look(7)'), '6 0', 'with what was booked');

is(call($s, 'budget_reserve(ARRAY[7], 0, true)'), '', 'a call that costs nothing');
is(call($s, "budget_age(7, $minute)"), '', 'takes more than a minute');
is(opened(9, 100, '03', $t), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'its account stays, too');
is(call($s, 'budget_release()'), '', 'to its end');

# Many sessions, in any order.
my @crowd = map { $gw->session } 1 .. 4;
for my $id (5, 6, 7)
{
	is(opened($id, 3_000_000, '03', @crowd), '', "all open $id");
}
my %before = map { $_ => (split(/ /, call($crowd[0], "budget_look($_)")))[0] } 5, 6, 7;
$_->start('SELECT budget_churn(ARRAY[5, 6, 7], 300000)') for @crowd;
my $paid = 0;
for (@crowd)
{
	my $result = $_->finish;

	is($result->{sqlstate} // '', '', 'accounts are right at all times');
	$paid += $result->{out};
}
cmp_ok($paid, '>', 2_900_000, 'they have spent the limit');
cmp_ok($before{$_} + $paid, '<=', 3_000_000, "and no more, of $_") for 5, 6, 7;
is(call($s, "budget_look(7)"), ($before{7} + $paid) . ' 0', 'what they paid is spent, and nothing is reserved');

# A database that is gone takes its accounts along.
$gw->sql('CREATE DATABASE other');
define('other');
is(call($t, "budget_age(8, $minute)"), '', 'another place');
my $other = $gw->session('other');
is(opened(6, 100, '03', $other), '', 'is for another database');
is(call($other, 'budget_look(6)'), '0 0', 'where the same id is another budget');
is(opened(9, 100, '03', $s), '4 accounts of budgets are in use (llm_gateway.max_budgets)', 'which has the last place');
$other->quit;
$gw->sql('DROP DATABASE other WITH (FORCE)');
is(opened(9, 100, '03', $s), '', 'and gives it back when it is dropped');

$gw->no_crash_ok;
done_testing();
