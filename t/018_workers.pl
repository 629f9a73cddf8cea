# The worker of a database is there when there is something to book, and in nobody's way: not of
# statements that need the database for themselves, not of DROP EXTENSION, not of a shutdown.  Whatever
# ends it, what calls have done is booked once.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(error_ok gone row rows wait_until);

# A statement that waits for a worker to leave is back after this many seconds; the server itself
# gives up after five.
use constant SOON => 4.9;

my $gw = LlmGateway->new(
	name => 'workers',
	conf => <<'CONF');
max_worker_processes = 16
llm_gateway.ledger_sync_timeout = '10s'
CONF
my $node = $gw->node;
my $fake = $gw->fake;
my $admin = $gw->admin;
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0});
my $spool = $node->data_dir . '/llm_gateway/spool';
my ($s, $r, $row, $pid, $other);

my $call = q{SELECT llm_complete('hi', model => 'gpt-4o')};
my $slow = q{SELECT llm_complete('hi', model => 'slow-3000')};
my $slower = q{SELECT llm_complete('hi', model => 'slow-12000')};

# A database with the extension and the fake; returns its OID.
sub new_database
{
	my ($name) = @_;
	$admin->value("CREATE DATABASE $name");
	$gw->set_up($name);
	$gw->add_models('fake', qw(gpt-4o slow-3000 slow-12000), { database => $name });
	return $admin->value("SELECT oid FROM pg_database WHERE datname = '$name'");
}

# The process ids of a database's workers, of which there should be one at most.
sub workers
{
	my ($database) = @_;
	$database //= 'postgres';
	my @pids = split /\n/, $admin->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'llm_gateway worker' AND datname = '$database'");
	return @pids;
}

sub worker_of
{
	my ($database) = @_;
	my @pids;
	wait_until(sub { (@pids = workers($database)) <= 1 }, 10);    # one that leaves may still be seen
	return @pids == 1 ? $pids[0] : undef;
}

sub status
{
	my ($session) = @_;
	return { map { $_->{worker} => $_ } rows($session // $admin, 'SELECT * FROM llm_worker_status') };
}

# How many requests are in the ledger, by status: '2 ok 1 cancelled'.
sub ledger
{
	my ($database) = @_;
	my $query = q{SELECT string_agg(n || ' ' || status, ' ' ORDER BY status DESC) FROM (SELECT status, count(*) AS n FROM llm_requests GROUP BY status) s};
	return $gw->sql($query, $database);
}

sub drained_ok
{
	my ($database, $want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($gw->drained(60, $database), "$name: all is booked");
	is(ledger($database), $want, "$name: once");
	return;
}

sub set_conf
{
	my ($name, $value) = @_;
	$node->append_conf('postgresql.conf', "$name = $value");
	$node->reload;
	return;
}

# Starts and stops

$gw->add_models('fake', qw(gpt-4o silent));
is($admin->value(q{SELECT count(*), min(datname) FROM pg_stat_activity WHERE backend_type = 'llm_gateway launcher'}), '1|', 'the launcher runs, in no database');
$row = status();
is($row->{launcher}{state}, 'running', 'llm_worker_status knows the launcher');
is($row->{launcher}{pid}, $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'llm_gateway launcher'}), 'and its process');
is_deeply(
	$row->{ledger},
	{
		worker => 'ledger', database => 'postgres', pid => undef, state => 'none', started_at => undef,
		pending_bytes => 0, open_requests => 0, booked => 0, discarded => 0, last_booked => undef,
		last_error => undef, last_error_at => undef, notice => undef
	},
	'no worker before the first call');
is(scalar workers(), 0, 'nor a process');

$s = $gw->session;
$s->value($call);
is($s->value(q{SELECT count(*) FROM llm_requests}), '1', 'the first call is in the ledger when it returns');
$pid = worker_of('postgres');
ok($pid, 'it has started a worker');
$row = status()->{ledger};
is("$row->{pid} $row->{state} $row->{booked} $row->{pending_bytes} $row->{open_requests}", "$pid running 1 0 0", 'which llm_worker_status shows');
ok($row->{started_at} && $row->{last_booked}, 'with its times');
ok(wait_until(sub { $admin->value("SELECT application_name, backend_xmin IS NULL, state, xact_start IS NULL FROM pg_stat_activity WHERE pid = $pid") eq 'llm_gateway worker|t|idle|t' }),
	'it holds nothing while it waits');
is($admin->value("SELECT count(*) FROM pg_locks WHERE pid = $pid"), '0', 'no lock either');
$s->value($call) for 1 .. 5;
is(worker_of('postgres'), $pid, 'it stays for the next calls');
is($s->value(q{SELECT count(*) FROM llm_requests}), '6', 'and books them');

set_conf('llm_gateway.worker_idle_timeout', q{'300ms'});
ok(wait_until(sub { !workers() }), 'an idle worker leaves');
ok(defined gone($pid, 10), 'for good');
is(status()->{ledger}{state}, 'none', 'and says so');
$s->value($call);
is($s->value(q{SELECT count(*) FROM llm_requests}), '7', 'the next call is in the ledger when it returns');
isnt($pid, worker_of('postgres') // 0, 'by another worker');
for (1 .. 20)
{
	sleep 0.29 + rand 0.04;
	$s->value($call);
}
is($s->value(q{SELECT count(*) FROM llm_requests}), '27', 'calls that come while it leaves are booked');
set_conf('llm_gateway.worker_idle_timeout', 0);
$s->value($call);
$pid = worker_of('postgres');
sleep 1.5;
is(worker_of('postgres'), $pid, 'with 0 it never leaves');

# Signals

$admin->value("SELECT pg_cancel_backend($pid)");
$s->value($call);
is(worker_of('postgres'), $pid, 'a cancel does not end it');
is(status()->{ledger}{state}, 'running', 'nor is it taken for an error that lasts');
$admin->value("SELECT pg_terminate_backend($pid)");
ok(defined gone($pid, 10), 'pg_terminate_backend does');
$s->value($call);
is($s->value(q{SELECT count(*) FROM llm_requests}), '30', 'the next call is in the ledger when it returns');
$pid = worker_of('postgres');

$s->start(q{SELECT llm_complete('hi', model => 'silent')});
$gw->wait_in_call($s);
ok(wait_until(sub { status()->{ledger}{open_requests} == 1 }), 'a request is open');
$admin->value("SELECT pg_terminate_backend($pid)");
ok(defined gone($pid, 10), 'the worker is terminated meanwhile');
ok(wait_until(sub { worker_of('postgres') }, 20), 'another one comes without a call');
ok(wait_until(sub { status()->{ledger}{open_requests} == 1 }), 'and knows of the request');
$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
is($s->finish->{sqlstate}, '57014', 'the call is cancelled');
drained_ok('postgres', '30 ok 1 cancelled', 'cancelled');

$pid = status()->{launcher}{pid};
$other = worker_of('postgres');
$admin->value("SELECT pg_cancel_backend($pid)");
sleep 0.2;
is(status()->{launcher}{pid}, $pid, 'a cancel means nothing to the launcher');
$admin->value("SELECT pg_terminate_backend($pid)");
ok(defined gone($pid, 10), 'the launcher is terminated');
$s->value($call);
is(worker_of('postgres'), $other, 'the worker goes on without it');
ok(wait_until(sub { (status()->{launcher}{pid} // $pid) != $pid }, 30), 'another launcher comes');
$admin->value("SELECT pg_terminate_backend($other)");
ok(defined gone($other, 10), 'a worker that an earlier launcher has started ends');
$s->value($call);
drained_ok('postgres', '32 ok 1 cancelled', 'after it');

# What a database or a user may have set

my $config = $gw->session;
new_database('settings');
for my $setting (
	q{default_transaction_read_only = on}, q{default_transaction_isolation = 'serializable'}, q{default_transaction_deferrable = on},
	q{statement_timeout = '1ms'}, q{lock_timeout = '1ms'}, q{idle_in_transaction_session_timeout = '1ms'},
	q{search_path = 'nowhere'}, q{role = 'nobody'}, q{row_security = off}, q{synchronous_commit = 'off'}, q{TimeZone = 'Asia/Kathmandu'},
	q{DateStyle = 'SQL, DMY'}, q{IntervalStyle = 'iso_8601'}, q{standard_conforming_strings = off}, q{client_encoding = 'LATIN1'}, q{bytea_output = 'escape'})
{
	$config->value('CREATE ROLE nobody') if $setting =~ /^role/;
	$config->value("ALTER DATABASE settings SET $setting");
}
{
	my $options = join ' ', map { "-c $_" } qw(default_transaction_read_only=off default_transaction_deferrable=off statement_timeout=0
	  idle_in_transaction_session_timeout=0 role=none search_path=public);
	local $ENV{PGOPTIONS} = $options;
	my $t = $gw->session('settings');
	$t->value(q{SET client_encoding = 'UTF8'});
	$r = $t->run($call);
	is("$r->{out} $r->{err}", 'echo: hi ', 'a call in a database with such settings');
	is($t->value(q{SELECT count(*) FROM llm_requests}), '1', 'is booked');
	is(status($t)->{ledger}{last_error}, undef, 'without an error');
	is(
		$t->value(q{SELECT day = (now() AT TIME ZONE 'UTC')::date, requests FROM llm_daily_spend}),
		't|1', 'under the right day');
	$t->quit;
}
$r = $admin->run('DROP DATABASE settings');
is($r->{err}, '', 'and it can be dropped');

# A table that somebody has locked

$s->value($call);
$other = $gw->session;
$other->value('BEGIN; LOCK TABLE llm_requests IN ACCESS EXCLUSIVE MODE');
$r = $s->run($call);
is($r->{out}, 'echo: hi', 'a call while the ledger is locked');
cmp_ok($r->{seconds}, '<', 5, 'does not wait for it');
ok(wait_until(sub { status()->{ledger}{state} eq 'blocked' }), 'the worker is blocked');
$row = status()->{ledger};
like($row->{last_error}, qr/lock timeout/, 'llm_worker_status says why');
cmp_ok($row->{pending_bytes}, '>', 0, 'and that something waits');
cmp_ok($s->run($call)->{seconds}, '<', 9, 'nor does the next call');
sleep 1;
$other->value('COMMIT');
drained_ok('postgres', '35 ok 1 cancelled', 'after the lock');
is(status()->{ledger}{state}, 'running', 'the worker is no longer blocked');
my @complaints = $gw->log_text =~ /LOG:  llm_gateway cannot write the ledger of database "postgres" for now: canceling statement due to lock timeout/g;
is(scalar @complaints, 1, 'which the log says once');
like($gw->log_text, qr/LOG:  llm_gateway writes the ledger of database "postgres" again/, 'as well as its end');

# Statements that need the database for themselves

my $tablespace = PostgreSQL::Test::Utils::tempdir();
$admin->value("CREATE TABLESPACE elsewhere LOCATION '$tablespace'");
my $oid = new_database('one');

sub soon_ok
{
	my ($sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $result = $admin->run($sql);
	is($result->{err}, '', $name);
	cmp_ok($result->{seconds}, '<', SOON, "$name: soon");
	return;
}

# Leaves a worker that is connected, and nobody else.
sub call_in
{
	my ($database) = @_;
	my $session = $gw->session($database);
	$session->value($call);
	my $booked = $session->value('SELECT count(*) FROM llm_requests');
	my $backend = $session->pid;
	$session->quit;
	gone($backend);
	die "no worker in $database" unless worker_of($database);
	return $booked;
}

call_in('one');
soon_ok('ALTER DATABASE one RENAME TO two', 'RENAME');
is(call_in('two'), '2', 'RENAME: calls go on');
soon_ok('BEGIN; ALTER DATABASE two RENAME TO three; ROLLBACK', 'RENAME in a transaction, rolled back');
is(call_in('two'), '3', 'rolled back: calls go on');
soon_ok(q{DO 'BEGIN EXECUTE ''ALTER DATABASE two RENAME TO three''; END'}, 'RENAME in a function');
is(call_in('three'), '4', 'in a function: calls go on');
soon_ok('ALTER DATABASE three SET TABLESPACE elsewhere', 'SET TABLESPACE');
is(call_in('three'), '5', 'SET TABLESPACE: calls go on');
soon_ok('CREATE DATABASE copy TEMPLATE three', 'CREATE DATABASE ... TEMPLATE');
is(call_in('three'), '6', 'TEMPLATE: calls go on');
is(call_in('copy'), '6', 'in the copy, too, which has the rows of the original');
my $copy_oid = $admin->value(q{SELECT oid FROM pg_database WHERE datname = 'copy'});
ok(-d "$spool/$copy_oid", 'a database has a spool of its own');
soon_ok('DROP DATABASE copy', 'DROP DATABASE');
ok(!-e "$spool/$copy_oid", 'DROP DATABASE: its spool is gone');
call_in('three');
$admin->value('SELECT pg_sleep(0.5)');
ok(worker_of('three'), 'the other database has its worker');

# none of these may stop it
$pid = worker_of('three');
$admin->value(q{CREATE ROLE stranger LOGIN; CREATE ROLE builder LOGIN CREATEDB});
my $stranger = $gw->session('postgres', user => 'stranger');
my $builder = $gw->session('postgres', user => 'builder');
for my $sql ('DROP DATABASE three', 'DROP DATABASE three WITH (FORCE)', 'ALTER DATABASE three RENAME TO four', 'ALTER DATABASE three SET TABLESPACE pg_default')
{
	error_ok($stranger->run($sql), { sqlstate => '42501' }, "not an owner: $sql");
	error_ok($builder->run($sql), { sqlstate => '42501' }, "nor one who may create databases: $sql");
}
error_ok($stranger->run('CREATE DATABASE theirs TEMPLATE three'), { sqlstate => '42501' }, 'CREATE DATABASE by somebody else');
error_ok($builder->run('CREATE DATABASE theirs TEMPLATE three'), { sqlstate => '42501' }, 'a template that is not theirs');
error_ok($admin->run('BEGIN; DROP DATABASE three'), { sqlstate => '25001' }, 'DROP DATABASE in a transaction');
$admin->value('ROLLBACK');
$admin->value('ALTER DATABASE three CONNECTION LIMIT 100');
$admin->run('DROP DATABASE IF EXISTS missing');
is(worker_of('three'), $pid, 'none of them has stopped the worker');

# while calls are under way
my %while = (
	drop     => 'DROP DATABASE while_drop',
	rename   => 'ALTER DATABASE while_rename RENAME TO renamed',
	move     => 'ALTER DATABASE while_move SET TABLESPACE elsewhere',
	template => 'CREATE DATABASE copy TEMPLATE while_template');
my (%caller, %statement);
for my $name (sort keys %while)
{
	new_database("while_$name");
	$caller{$name} = $gw->session("while_$name");
	$statement{$name} = $gw->session;
	$caller{$name}->value($call);
}
for my $name (sort keys %while)
{
	$caller{$name}->start($slower);
	$gw->wait_in_call($caller{$name});
	$statement{$name}->start($while{$name});
}
for my $name (sort keys %while)
{
	error_ok($statement{$name}->finish, { sqlstate => '55006', message => qr/being accessed by other users/ }, "with a call under way: $while{$name}");
	$r = $caller{$name}->finish;
	is("$r->{out} $r->{err}", 'echo: hi ', 'the call ends well');
	is($caller{$name}->value(q{SELECT count(*) FROM llm_requests}), '2', 'and is in the ledger when it returns');
	$_->quit for delete $caller{$name}, delete $statement{$name};
	soon_ok("DROP DATABASE while_$name WITH (FORCE)", 'then it can be dropped');
}

# who is cancelled, or ended, while it waits lets go of the database, too
my $busy = $gw->session('three');
for my $end (qw(pg_cancel_backend pg_terminate_backend))
{
	my $dropper = $gw->session;
	$busy->value($call);
	$pid = worker_of('three');
	$dropper->start('DROP DATABASE three');
	ok(defined gone($pid, 10), 'the worker leaves for DROP DATABASE');
	$admin->value("SELECT $end(" . $dropper->pid . ')');
	isnt($dropper->finish->{err}, '', "$end ends it");
	$busy->value($call);
	ok(worker_of('three'), 'and the worker comes back');
}

$busy->start($slower);
$gw->wait_in_call($busy);
ok(-d "$spool/$oid", 'the spool has been kept through all of it');
soon_ok('DROP DATABASE three WITH (FORCE)', 'DROP DATABASE WITH (FORCE)');
ok($busy->finish->{lost}, 'ends the call');
ok(!-e "$spool/$oid", 'and the spool is gone');

# an owner who is no superuser
new_database('owned');
$admin->value('ALTER DATABASE owned OWNER TO stranger');
call_in('owned');
$r = $stranger->run('DROP DATABASE owned WITH (FORCE)');
is($r->{err}, '', 'an owner may force it though the worker is a superuser\'s');
cmp_ok($r->{seconds}, '<', SOON, 'soon');

# The same again and again, with calls coming in all the time

new_database('turning');
my $perform = q{DO $$ BEGIN PERFORM llm_complete('hi', model => 'gpt-4o'); END $$};
my $started = time;
my $turns = 0;
while (time < $started + 8)
{
	$gw->sql($perform, 'turning');
	$admin->value('ALTER DATABASE turning RENAME TO turned');
	$gw->sql($perform, 'turned');
	$admin->value('ALTER DATABASE turned RENAME TO turning');
	$turns++;
}
note("$turns turns");
drained_ok('turning', 2 * $turns . ' ok', 'renamed again and again');
$admin->value('DROP DATABASE turning');

# The extension

new_database('extension');
my $a = $gw->session('extension');
my $b = $gw->session('extension');
$a->value($call);
$pid = worker_of('extension');
$b->start($slow);
$gw->wait_in_call($b);
$r = $a->run('BEGIN; DROP EXTENSION llm_gateway CASCADE');
is("$r->{err}", '', 'DROP EXTENSION with a worker and a call under way');
cmp_ok($r->{seconds}, '<', SOON, 'soon');
$a->value('ROLLBACK');
is(worker_of('extension'), $pid, 'has not ended the worker');
$a->value($call);
$r = $b->finish;
is("$r->{out} $r->{err}", 'echo: hi ', 'the call ends well');
drained_ok('extension', '3 ok', 'DROP EXTENSION rolled back');

# a call that ends while the extension is locked waits for nobody
$b->start($slow);
$gw->wait_in_call($b);
$a->value('BEGIN; DROP EXTENSION llm_gateway CASCADE');
$r = $b->finish;
is($r->{out}, 'echo: hi', 'a call that ends while the extension is being dropped');
cmp_ok($r->{seconds}, '<', 8, 'does not wait for that');
$a->value('ROLLBACK');
drained_ok('extension', '4 ok', 'rolled back then');

$b->start($slow);
$gw->wait_in_call($b);
$a->value('DROP EXTENSION llm_gateway CASCADE');
$r = $b->finish;
ok(!$r->{lost}, 'a call whose extension is dropped ends');
$a->value('CREATE EXTENSION llm_gateway');
$gw->add_provider('fake', $fake->url, undef, 'extension');
$gw->add_models('fake', qw(gpt-4o), { database => 'extension' });
is($a->value($call), 'echo: hi', 'DROP and CREATE EXTENSION: calls go on');
drained_ok('extension', '1 ok', 'in the new ledger is what was called since');
is(status($a)->{ledger}{state}, 'running', 'and the worker goes on');
cmp_ok(status($a)->{ledger}{discarded}, '>', 0, 'the old one\'s record had no ledger left');
$_->quit for $a, $b;
$admin->value('DROP DATABASE extension');

# CREATE EXTENSION, calls and all in one transaction
for my $end (qw(COMMIT ROLLBACK))
{
	my $name = lc "created_$end";
	$admin->value("CREATE DATABASE $name");
	$a = $gw->session($name);
	$r = $a->run(q{BEGIN; CREATE EXTENSION llm_gateway; SELECT count(*) FROM llm_add_provider('mock')});
	is($r->{err}, '', "CREATE EXTENSION in a transaction ($end)");
	$r = $a->run(q{SELECT count(llm_complete('x', model => 'mock-standard')) FROM generate_series(1, 3)});
	is($r->{out}, '3', 'calls in the same transaction');
	cmp_ok($r->{seconds}, '<', 5, 'do not wait for a ledger that nobody else can see');
	sleep 0.5;
	$a->value($end);
	if ($end eq 'COMMIT')
	{
		drained_ok($name, '3 ok', 'after COMMIT');
	}
	else
	{
		ok(wait_until(sub { $gw->log_text =~ /discarded 3 requests of an extension/ }, 20), 'after ROLLBACK there is no ledger: discarded, and logged');
		$a->value('CREATE EXTENSION llm_gateway');
		is($a->value('SELECT count(*) FROM llm_requests'), '0', 'a later one has nothing of them');
		is(status($a)->{ledger}{discarded}, '3', 'and says so');
	}
	$pid = $a->pid;
	$a->quit;
	gone($pid);
	soon_ok("DROP DATABASE $name", "DROP DATABASE after it ($end)");
}

# DROP OWNED, which drops the extension
$admin->value('CREATE ROLE keeper SUPERUSER LOGIN');
$admin->value('CREATE DATABASE kept OWNER keeper');
$a = $gw->session('kept', user => 'keeper');
$a->value(q{CREATE EXTENSION llm_gateway; SELECT count(*) FROM llm_add_provider('mock'); SELECT llm_complete('x', model => 'mock-standard')});
$r = $a->run('DROP OWNED BY keeper CASCADE');
is($r->{err} =~ s/^.*NOTICE.*\n//mgr, '', 'DROP OWNED with a worker');
is($a->value(q{SELECT count(*) FROM pg_extension WHERE extname = 'llm_gateway'}), '0', 'drops the extension');
$a->quit;
$admin->value('DROP DATABASE kept WITH (FORCE)');

# Shutdown: a call under way is booked before the server has stopped

$s->start(q{SELECT llm_complete('hi', model => 'silent')});
$gw->wait_in_call($s);
$r = time;
delete $gw->{admin};
undef $admin;
$_->quit for $config, $other, $stranger, $builder;
my $before = ledger('postgres');
$node->stop('fast');
cmp_ok(time - $r, '<', 10, 'a fast shutdown is fast');
$s->quit;
$node->start;
$admin = $gw->admin;
drained_ok('postgres', '35 ok 2 cancelled', 'what it has ended is in the ledger');
$gw->no_crash_ok;

# A spool is booked after a restart without a call; without one there is no worker

ok($gw->drained(60), 'the spool of the last start is done');
ok(wait_until(sub { my @left = glob "$spool/*/*"; !@left }), 'and its files are gone') or diag(glob "$spool/*/*");
$node->restart;
delete $gw->{admin};
$admin = $gw->admin;
sleep 2;
is(scalar workers(), 0, 'a restart with nothing left starts no worker');
new_database('other');
$s = $gw->session;
$b = $gw->session('other');
$other = $gw->session;
my $other_b = $gw->session('other');
$_->value('BEGIN; LOCK TABLE llm_requests IN ACCESS EXCLUSIVE MODE') for $other, $other_b;
for my $session ($s, $b)
{
	$session->run($call) for 1 .. 3;
	is(status($session)->{ledger}{open_requests}, 0, 'calls that cannot be booked');
}
$_->quit for $s, $b, $other, $other_b;
$gw->admin->quit;
delete $gw->{admin};
$node->stop('immediate');
$node->start;
$admin = $gw->admin;
ok(wait_until(sub { workers() && workers('other') }, 20), 'after an immediate stop each database that left something has a worker');
drained_ok('postgres', '38 ok 2 cancelled', 'without a call');
drained_ok('other', '3 ok', 'also the other one');

# a database that is dropped while the server could not clean up
my $left = "$spool/4000000000";
mkdir $left or die "$left: $!";
append_to_file("$left/file", 'x');
$node->restart;
delete $gw->{admin};
$admin = $gw->admin;
ok(wait_until(sub { !-e $left }, 20), 'the spool of a database that does not exist is removed');

# No place for a worker

$node->append_conf('postgresql.conf', "max_worker_processes = 1\nmax_logical_replication_workers = 0");
$node->restart;
delete $gw->{admin};
$admin = $gw->admin;
$s = $gw->session;
my @warnings;
for (1 .. 4)
{
	$r = $s->run($call);
	is($r->{out}, 'echo: hi', 'calls go on without a worker');
	cmp_ok($r->{seconds}, '<', 9, 'and wait for nobody');
	push @warnings, @{ $r->{notices} };
	ok(wait_until(sub { status()->{ledger}{state} eq 'no worker slot' }, 20), 'llm_worker_status says why');
}
is(scalar @warnings, 1, 'one warning in a session');
is($warnings[0]{sqlstate}, '53400', 'with its code');
like($warnings[0]{hint}, qr/max_worker_processes/, 'and what to do');
is($s->value('SELECT count(*) FROM llm_requests'), '40', 'nothing is booked');
$s->quit;

# nor for the launcher
$node->append_conf('postgresql.conf', 'max_worker_processes = 0');
delete $gw->{admin};
$node->restart;
$admin = $gw->admin;
$s = $gw->session;
$s->value(q{SET llm_gateway.ledger_sync_timeout = '100ms'});
$s->run($call);
sleep 10.5;
$s->value('RESET llm_gateway.ledger_sync_timeout');
$r = $s->run($call);
is($r->{out}, 'echo: hi', 'calls go on without a launcher');
cmp_ok($r->{seconds}, '<', 9, 'and wait for nobody');
is(join(' ', map { $_->{sqlstate} } @{ $r->{notices} }), '53400', 'with one warning');
$r = $s->run($call);
cmp_ok($r->{seconds}, '<', 9, 'nor does the next');
is(scalar @{ $r->{notices} }, 0, 'which is quiet');
is(status()->{ledger}{state}, 'no worker slot', 'llm_worker_status says why');
$s->quit;
$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
delete $gw->{admin};
$node->restart;
$admin = $gw->admin;
drained_ok('postgres', '45 ok 2 cancelled', 'with a place for it');
$gw->no_crash_ok;

# More databases than there are places

$admin->value('DROP DATABASE other');
delete $gw->{admin};
$node->append_conf('postgresql.conf', 'llm_gateway.max_databases = 1');
$node->restart;
$admin = $gw->admin;
$s = $gw->session;
is($s->run($call)->{out}, 'echo: hi', 'a call in one database');
new_database('second');
$b = $gw->session('second');
error_ok($b->run($call), { sqlstate => '53400', message => qr/too many databases/, hint => qr/restart/ }, 'one in a second');
is(status($b)->{ledger}{state}, 'none', 'which has no worker');
$b->quit;
soon_ok('DROP DATABASE second', 'and can be dropped');

# Single-user mode, where there are no workers at all

delete $gw->{admin};
$s->quit;
$node->stop;
$r = time;
my ($single, $said) = ('', '');
{
	local $ENV{PGOPTIONS};
	my $statements = join '', map { "$call;\n" } 1 .. 4;
	IPC::Run::run([ $node->installed_command('postgres'), '--single', '-j', '-D', $node->data_dir, 'postgres' ],
		'<', \$statements, '>', \$single, '2>', \$said);
}
is(() = $single =~ /"echo: hi"/g, 4, 'in single-user mode calls are made') or diag($single, $said);
cmp_ok(time - $r, '<', 8, 'and wait for nobody');
unlike($said, qr/WARNING/, 'without a word');
$node->start;
$admin = $gw->admin;
ok($gw->drained(60), 'the next start books them');

# A crash

$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$node->reload;
$s = $gw->session;
$s->value($call);
$pid = worker_of('postgres');
my $signalled = kill KILL => $pid;
is($signalled, 1, 'a worker is killed');
ok(defined gone($pid), 'it is gone');
$_->quit for $s, delete $gw->{admin};
ok($gw->comes_back($pid), 'the server comes back');
$admin = $gw->admin;
$s = $gw->session;
ok(wait_until(sub { status()->{launcher}{state} eq 'running' }, 20), 'with the launcher');
$s->value($call);
is($s->value(q{SELECT count(*) FROM llm_requests WHERE status = 'ok'}), '52', 'calls are in the ledger when they return');
unlike($gw->log_text, qr/PANIC:|TRAP:|signal (?!9:)\d+/, 'nothing else has crashed');

done_testing();
