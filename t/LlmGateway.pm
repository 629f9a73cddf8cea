package LlmGateway;

=head1 NAME

LlmGateway - a server with llm_gateway and a fake provider, for TAP tests

=head1 SYNOPSIS

    use FindBin;
    use lib $FindBin::Bin;
    use LlmGateway;

    my $gw = LlmGateway->new(name => 'errors');
    $gw->add_models('fake', 'gpt-4o', 'status-503');    # a model's name is what the fake does

    my $s = $gw->session;
    is($s->value(q{SELECT llm_complete('hi', model => 'gpt-4o')}), 'echo: hi');
    my $r = $s->run(q{SELECT llm_complete('hi', model => 'status-503')});
    is($r->{sqlstate}, 'LG004');

    $s->start(q{SELECT llm_complete('hi', model => 'silent')});
    $gw->wait_in_call($s);
    $gw->admin->run('SELECT pg_cancel_backend(' . $s->pid . ')');
    is($s->finish->{sqlstate}, '57014');

=cut

use strict;
use warnings;

use Carp qw(croak);
use Exporter qw(import);
use FakeProvider;
use File::Basename qw(dirname);
use File::Spec;
use IO::Select;
use IO::Socket::INET;
use IPC::Run;
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;
use Time::HiRes qw(sleep time);

our @EXPORT_OK = qw($KEY PROMPTLY SLOWNESS USUALLY error_ok full_listener gone literal row rows silent_listener wait_until);

# What the fake is given as its key: long, and nowhere else to be found.
our $KEY = 'sk-fake-Vq8zR2mX4tL7wN0bK5yHcD3s';

# How many times slower than usual the server is; script/valgrind says so.
use constant SLOWNESS => $ENV{LLM_GATEWAY_SLOWNESS} || 1;

# An interrupt must end a call within 50 ms. A machine that is busy with other things may hold up a
# process for seconds: one delay is bounded by PROMPTLY, the median of many by USUALLY.
use constant PROMPTLY => 3 * SLOWNESS;
use constant USUALLY  => 0.5 * SLOWNESS;

# Longest wait for anything, as in PostgreSQL's own tests.
our $PATIENCE = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

=head1 METHODS

=head2 new(%options)

Starts a server, with the extension in its database postgres, and a fake provider with the key
$KEY, which is the provider "fake".

    name        of the server
    conf        more lines for postgresql.conf
    initdb      more arguments for initdb, a reference to an array
    env         what is in the server's environment besides ours, a reference to a hash
    streaming   true: may have standbys
    extension   false: CREATE EXTENSION and what follows it are left to the test
    fake        options of FakeProvider; undef: no fake

=cut

sub new
{
	my ($class, %options) = @_;
	my $self = bless {}, $class;

	$ENV{TEST_API_KEY} = $KEY;
	$ENV{PGCLIENTENCODING} = 'UTF8';
	delete @ENV{qw(http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY no_proxy)};

	my $node = $self->{node} = PostgreSQL::Test::Cluster->new($options{name} // 'main');
	$node->init(
		allows_streaming => $options{streaming} ? 1 : 0,
		extra => [ '--encoding=UTF8', '--locale=C', @{ $options{initdb} // [] } ]);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'llm_gateway'");

	# so that an estimate does not depend on the answers before it
	$node->append_conf('postgresql.conf', 'llm_gateway.adaptive_estimates = off');
	# nor what is in the ledger after a call on how soon a busy machine runs its worker
	$node->append_conf('postgresql.conf', "llm_gateway.ledger_sync_timeout = '30s'");
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	{
		local %ENV = (%ENV, %{ $options{env} // {} });
		$node->start;
	}

	$self->{fake} = FakeProvider->new(journal => 20000, %{ $options{fake} // {} })
	  unless exists $options{fake} && !defined $options{fake};
	$self->set_up('postgres') if $options{extension} // 1;
	return $self;
}

=head2 node, fake, admin

The PostgreSQL::Test::Cluster, the FakeProvider, and a session for what the test itself asks.

=cut

sub node { return $_[0]{node} }
sub fake { return $_[0]{fake} }

sub admin
{
	my ($self) = @_;
	return $self->{admin} //= $self->session;
}

=head2 set_up($database)

Creates the extension there and adds the provider "fake", without models.

=cut

sub set_up
{
	my ($self, $database) = @_;
	$self->sql('CREATE EXTENSION llm_gateway', $database);
	$self->add_provider('fake', $self->fake->url, undef, $database) if $self->fake;
	return;
}

=head2 sql($sql, [$database])

Runs it in a session of its own and returns its output.  Dies when it fails.

=cut

sub sql
{
	my ($self, $sql, $database) = @_;
	return $self->{node}->safe_psql($database // 'postgres', $sql);
}

=head2 comes_back([$killed])

Waits until the server takes connections again after a crash, and before that until the postmaster
has seen the killed process end; whether it does.  Not with poll_query_until or psql: a psql that
cannot connect may end before it has read its input, and IPC::Run dies of the broken pipe.

=cut

sub comes_back
{
	my ($self, $killed) = @_;
	my @command = ($self->node->installed_command('psql'), '-XAtq', '-d', $self->node->connstr('postgres'), '-c', 'SELECT true');
	return 0 if $killed && !wait_until(sub { !-e "/proc/$killed" }, $PATIENCE);
	return wait_until(sub { IPC::Run::run(\@command, '<', \undef, '>', \my $out, '2>', \my $err) }, $PATIENCE);
}

=head2 add_provider($name, $url, [\%columns], [$database]), add_models($provider, @names, [\%columns])

Rows of llm_providers and llm_models.  The columns are SQL expressions.  The provider's breaker is
one that does not open for failures, unless breaker_failures is among them: most tests want to see
the same fault more than once.

=cut

sub add_provider
{
	my ($self, $name, $url, $columns, $database) = @_;
	my %row = (
		name     => literal($name),
		kind     => "'openai'",
		base_url => literal($url),
		api_key  => "'env:TEST_API_KEY'",
		breaker_failures => 1000000,
		%{ $columns // {} });
	my @keys = sort keys %row;
	$self->sql(
		sprintf('INSERT INTO llm_providers (%s) VALUES (%s)',
			join(', ', @keys), join(', ', @row{@keys})),
		$database);
	return;
}

sub add_models
{
	my ($self, $provider, @names) = @_;
	my $columns = ref $names[-1] ? pop @names : {};
	my $database = delete $columns->{database};
	my @keys = sort keys %$columns;
	my $list = join ', ', 'provider', 'name', @keys;
	my $values = join ', ', map { '(' . join(', ', literal($provider), literal($_), @{$columns}{@keys}) . ')' } @names;
	$self->sql("INSERT INTO llm_models ($list) VALUES $values", $database);
	return;
}

=head2 add_budget($name, $limit_usd, [%columns])

Adds a budget for calls with the tag {"b": NAME}, unless the columns, SQL expressions by name, say
otherwise.

=cut

sub add_budget
{
	my ($self, $name, $limit, %columns) = @_;
	my %row = (name => literal($name), limit_usd => $limit, tags => literal(qq({"b": "$name"})), %columns);
	my @keys = sort keys %row;
	$self->sql(sprintf 'INSERT INTO llm_budgets (%s) VALUES (%s)', join(', ', @keys), join(', ', @row{@keys}));
	return;
}

=head2 wrong_budgets

Budgets of which what they say is spent is not what the ledger says, or that have something
reserved, in words; empty: none.  An hour may have ended meanwhile: of that budget, only the running
one counts.

=cut

sub wrong_budgets
{
	my ($self) = @_;
	return $self->admin->value(<<'SQL');
SELECT coalesce(string_agg(format('%s: %s spent, %s in the ledger, %s in its sum, %s reserved', budget, spent_usd, ledger, sum, reserved_usd), '; '), '')
FROM (SELECT s.*, (SELECT coalesce(sum(a.cost_usd), 0) FROM llm_requests r JOIN llm_attempts a USING (request_id)
			WHERE r.budgets @> ARRAY[s.budget] AND a.started_at >= s.period_start) AS ledger,
		(SELECT coalesce(sum(spent_nano), 0) / 1e9 FROM _llm_budget_spend p
			WHERE p.budget_id = (SELECT id FROM llm_budgets b WHERE b.name = s.budget) AND p.period_start = s.period_start) AS sum
	FROM llm_budget_status s) AS q
WHERE spent_usd IS DISTINCT FROM ledger OR spent_usd IS DISTINCT FROM sum OR reserved_usd IS DISTINCT FROM 0
SQL
}

=head2 forget

Makes everybody forget that the key of a provider was refused, that it had no credit, or that it
wanted a pause.

=cut

sub forget { return $_[0]->admin->run('SELECT llm_breaker_reset(name) FROM llm_providers') }

=head2 session([$database], [%options])

A LlmGateway::Session; the options: user.

=cut

sub session
{
	my ($self, $database, %options) = @_;
	return LlmGateway::Session->new($self->{node}, $database // 'postgres', %options);
}

=head2 wait_in_call($session)

Returns when the session's backend waits inside a call.

=cut

sub wait_in_call
{
	my ($self, $session) = @_;
	my $pid = $session->pid;
	my $deadline = time + $PATIENCE;
	while (time < $deadline)
	{
		return 1
		  if $self->admin->value(
			"SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event_type = 'Extension'"
		  ) eq '1';
		sleep 0.01;
	}
	croak "backend $pid does not wait for an answer";
}

=head2 requests($code)

Runs the code and returns the requests that the fake saw meanwhile, as a reference to an array.

=cut

sub requests
{
	my ($self, $code) = @_;
	my $before = $self->fake->stats->{requests};
	$code->();
	return $self->fake->journal($before);
}

=head2 worker([$database]), drained([$seconds], [$database])

worker is the row of llm_worker_status for the database's worker, as a reference to a hash.  drained
waits until nothing is left that is not in the ledger (false: there still is), without a call that
would start the worker.

=cut

sub worker
{
	my ($self, $database) = @_;
	my ($row) = rows($self->session($database), q{SELECT * FROM llm_worker_status WHERE worker = 'ledger'});
	return $row;
}

sub drained
{
	my ($self, $seconds, $database) = @_;
	my $s = $self->session($database);
	my $spool = $self->node->data_dir . '/llm_gateway/spool/' . $s->value('SELECT oid FROM pg_database WHERE datname = current_database()');
	my $deadline = time + ($seconds // $PATIENCE);
	my $state = q{SELECT CASE WHEN (SELECT pid FROM llm_worker_status WHERE worker = 'launcher') IS NULL OR pending_bytes > 0 OR open_requests > 0
		THEN 'busy' WHEN pid IS NULL THEN 'no worker' ELSE 'idle' END FROM llm_worker_status WHERE worker = 'ledger'};
	my $without;
	while (1)
	{
		# a generation that has been booked is removed, but for the one that calls write to
		my @generations = glob "$spool/*";
		my $is = $s->value($state);
		my $done = $is ne 'busy' && @generations <= 1;
		return 1 if $done && ($is eq 'idle' || !@generations);

		# without a worker the launcher may not have come to this spool yet
		$without = $done ? $without // time : undef;
		return 1 if $done && time > $without + 3;
		return 0 if time > $deadline;
		sleep 0.02;
	}
}

=head2 ledger_load($command, @options), ledger_load_start(@options)

Runs ledger_load.py with this server and fake, and returns what it printed, decoded.  The second one
only starts a load; the result has a method finish, which returns the same.

=cut

sub ledger_load_start
{
	my ($self, $command, @options) = @_;
	my $program = File::Spec->catfile(dirname(File::Spec->rel2abs(__FILE__)), 'ledger_load.py');
	my @command = (
		$ENV{PYTHON} || 'python3', $program, $command,
		'--host', $self->node->host, '--port', $self->node->port, @options);
	push @command, '--url', $self->fake->url =~ s{/v1$}{}r if $command eq 'setup';
	push @command, '--control', $self->fake->control if $command eq 'audit';
	my $run = bless { out => '', err => '' }, __PACKAGE__ . '::Load';
	$run->{run} = IPC::Run::start(\@command, '<', \undef, '>', \$run->{out}, '2>', \$run->{err});
	return $run;
}

sub ledger_load { return ledger_load_start(@_)->finish }

sub LlmGateway::Load::finish
{
	my ($self) = @_;
	$self->{run}->finish or croak "ledger_load.py: $self->{err}";
	return decode_json($self->{out});
}

=head2 log_text

All that the server has logged.

=cut

sub log_text { return slurp_file($_[0]{node}->logfile) }

=head2 no_crash_ok

That no process of the server has crashed, a test of its own.

=cut

sub no_crash_ok
{
	my ($self) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	unlike($self->log_text, qr/terminated by signal|exited with exit code [^01]|PANIC:|TRAP:/, 'no process has crashed');
	return;
}

=head1 FUNCTIONS

=head2 literal($text)

A string literal of SQL.

=cut

sub literal
{
	my ($text) = @_;
	return 'NULL' unless defined $text;
	$text =~ s/'/''/g;
	return "'$text'";
}

=head2 rows($session, $query), row($session, $query)

What the query returns: for each row a reference to a hash of texts, NULL as undef.  row: of the
only one; dies when there are none or more.

=cut

sub rows
{
	my ($session, $query) = @_;
	my $out = $session->value("SELECT (SELECT json_object_agg(key, value) FROM jsonb_each_text(to_jsonb(q))) FROM ($query) q");
	return map { JSON::PP->new->decode($_) } split /\n/, $out;
}

sub row
{
	my ($session, $query) = @_;
	my @rows = rows($session, $query);
	croak scalar @rows . " rows instead of one: $query" if @rows != 1;
	return $rows[0];
}

=head2 wait_until($condition, [$seconds])

Calls the function until it returns something true, for at most so many seconds (default 60); whether
it did.

=cut

sub wait_until
{
	my ($condition, $seconds) = @_;
	my $deadline = time + ($seconds // 60);
	until ($condition->())
	{
		return 0 if time > $deadline;
		sleep 0.02;
	}
	return 1;
}

=head2 error_ok($result, \%want, $name)

Whether a session's result is the error that is wanted: the key sqlstate is compared; message,
detail and hint are patterns, or undef for none; rows is what was printed before (default '').

=cut

sub error_ok
{
	my ($result, $want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @wrong;

	push @wrong, 'sqlstate: ' . ($result->{sqlstate} // 'none') . " instead of $want->{sqlstate}"
	  if ($result->{sqlstate} // '') ne $want->{sqlstate};
	for my $field (qw(message detail hint))
	{
		next unless exists $want->{$field};
		my $got = $result->{$field};
		my $pattern = $want->{$field};
		push @wrong, "$field: " . ($got // 'none') . ' does not match ' . ($pattern // 'none')
		  if defined $pattern ? !defined $got || $got !~ $pattern : defined $got;
	}
	push @wrong, "printed: $result->{out}" if $result->{out} ne ($want->{rows} // '');
	ok(!@wrong, $name) or diag(join "\n", @wrong, $result->{err});
	return !@wrong;
}

=head2 gone($pid, [$seconds])

Waits until a process has ended (a zombie has), and returns how long it took; undef if it did not.

=cut

sub gone
{
	my ($pid, $seconds) = @_;
	my $start = time;
	while (1)
	{
		my $took = time - $start;
		open my $stat, '<', "/proc/$pid/stat" or return $took;
		my $line = <$stat> // '';
		close $stat;
		return $took if $line eq '' || $line =~ /^\d+ \(.*\) [ZX]/;
		return if $took > ($seconds // $PATIENCE);
		sleep 0.005;
	}
}

=head2 silent_listener, full_listener

A port of 127.0.0.1, as {port}, that lasts as long as the result.  The silent one accepts
connections (accepted() waits for the next and returns it) and never says anything.  At the full one
a connection is begun and not accepted; undef where the system does not leave it so.

=cut

sub silent_listener
{
	my ($backlog) = @_;
	my $socket = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Proto     => 'tcp',
		Listen    => $backlog // 128) or croak "cannot listen: $!";
	return bless { socket => $socket, port => $socket->sockport }, __PACKAGE__ . '::Listener';
}

sub full_listener
{
	my $self = silent_listener(0);
	for (1 .. 20)
	{
		my $client = IO::Socket::INET->new(
			PeerAddr => '127.0.0.1',
			PeerPort => $self->{port},
			Proto    => 'tcp',
			Blocking => 0) or return;
		push @{ $self->{clients} }, $client;
		return $self unless IO::Select->new($client)->can_write(0.2);
	}
	return;
}

sub LlmGateway::Listener::accepted
{
	my ($self) = @_;
	IO::Select->new($self->{socket})->can_read($PATIENCE) or croak 'nobody connects';
	push @{ $self->{clients} }, scalar $self->{socket}->accept;
	return $self->{clients}[-1];
}

=head1 LlmGateway::Session

A psql that stays connected.

=cut

package LlmGateway::Session;

use strict;
use warnings;

use Carp qw(croak);
use IPC::Run;
use Time::HiRes qw(sleep time);

sub new
{
	my ($class, $node, $database, %options) = @_;
	my $connstr = $node->connstr($database);
	$connstr .= " user=$options{user}" if $options{user};
	my $self = bless {
		node  => $node,
		owner => $$,
		n     => 0,
		in    => '',
		out   => '',
		err   => '',
		timer => IPC::Run::timeout($LlmGateway::PATIENCE)
	}, $class;
	my @command = ($node->installed_command('psql'), qw(-XAtq -f -), '-d', $connstr);
	$self->{run} = IPC::Run::start(\@command, '<', \$self->{in}, '>', \$self->{out},
		'2>', \$self->{err}, $self->{timer});
	my $r = $self->run('\set VERBOSITY verbose');
	croak "cannot connect: $r->{err}" if $r->{lost};
	$self->{pid} = $self->value('SELECT pg_backend_pid()');
	return $self;
}

=head2 start($sql), finish, run($sql)

run is both.  finish returns a reference to a hash:

    out         what psql printed, without the last line end
    err         all of its messages
    sqlstate, message, detail, hint     of the first error; undef: there was none
    notices     other messages: references to hashes with severity, sqlstate, message, detail, hint
    seconds     from start to the end
    ended       when that was
    lost        true: the connection is gone

=cut

sub start
{
	my ($self, $sql) = @_;
	$self->{marker} = 'end of statement ' . ++$self->{n};
	$sql .= "\n;" unless $sql =~ /^\\|;\s*\z/;
	$self->{timer}->start($LlmGateway::PATIENCE);
	$self->{started} = time;
	$self->{in} .= "$sql\n\\echo $self->{marker}\n\\warn $self->{marker}\n";
	eval {
		while (length $self->{in} && $self->{run}->pumpable)
		{
			$self->{run}->pump_nb;
			sleep 0.001 if length $self->{in};
		}
	};
	return;
}

sub finish
{
	my ($self) = @_;
	my $end = "$self->{marker}\n";
	my ($lost, $ended);

	while (1)
	{
		$ended = time;
		last if index($self->{out}, $end) >= 0 && index($self->{err}, $end) >= 0;
		if (!eval { $self->{run}->pumpable && $self->{run}->pump })
		{
			croak "psql does not answer: $self->{err}" if $@ =~ /timeout/;
			next if index($self->{out}, $end) >= 0 && index($self->{err}, $end) >= 0;
			$lost = 1;
			last;
		}
	}
	my ($out, $err) = @{$self}{qw(out err)};
	$self->{$_} = '' for qw(out err);
	s/^\Q$self->{marker}\E\n//m for $out, $err;
	$out =~ s/\n\z//;
	return {
		out     => $out,
		err     => $err,
		lost    => $lost,
		ended   => $ended,
		seconds => $ended - $self->{started},
		_messages($err)
	};
}

sub run
{
	my ($self, $sql) = @_;
	$self->start($sql);
	return $self->finish;
}

=head2 value($sql)

What it prints.  Dies when it fails.

=cut

sub value
{
	my ($self, $sql) = @_;
	my $r = $self->run($sql);
	croak "$sql: $r->{err}" if $r->{lost} || defined $r->{sqlstate};
	return $r->{out};
}

=head2 pid

Of its backend.

=cut

sub pid { return $_[0]{pid} }

sub quit
{
	my ($self) = @_;
	my $run = delete $self->{run} or return;
	eval { $run->kill_kill(grace => 5) };
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	$self->quit if $self->{owner} == $$;
	return;
}

# Cuts psql's messages into their fields.
sub _messages
{
	my ($err) = @_;
	my (@all, $field);
	for my $line (split /\n/, $err)
	{
		if ($line =~ /^(?:psql:[^:]*:\d+: )?(DEBUG|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC):  ([0-9A-Z]{5}): (.*)/)
		{
			push @all, { severity => $1, sqlstate => $2, message => $3 };
			$field = 'message';
		}
		elsif (@all && $line =~ /^(DETAIL|HINT|CONTEXT|LOCATION|QUERY|LINE \d+|SCHEMA NAME|TABLE NAME|COLUMN NAME|CONSTRAINT NAME):  ?(.*)/)
		{
			$field = lc $1;
			$all[-1]{$field} = $2;
		}
		elsif (@all && $field)
		{
			$all[-1]{$field} .= "\n$line";
		}
	}
	my ($error) = grep { $_->{severity} =~ /ERROR|FATAL|PANIC/ } @all;
	return (
		notices => [ grep { $_->{severity} !~ /ERROR|FATAL|PANIC/ } @all ],
		map { $_ => $error ? $error->{$_} : undef } qw(sqlstate message detail hint severity));
}

1;
