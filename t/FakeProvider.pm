package FakeProvider;

=head1 NAME

FakeProvider - runs fake_provider.py for a TAP test

=head1 SYNOPSIS

    use FindBin;
    use lib $FindBin::Bin;
    use FakeProvider;

    my $fake = FakeProvider->new;                        # or new(tls => 1)
    ... base_url => $fake->url ...

    $fake->script('gpt-4o', 'status-429', { text => 'Hello', delay_ms => 100 });
    $fake->script('*', { behaviour => 'status-503', repeat => 'forever' });
    my ($request) = @{ $fake->journal };
    is($request->{body}{temperature}, 0.5);

The behaviours are listed by C<python3 t/fake_provider.py --list>, the keys of a step in
F<fake/scripts.py>, those of the journal in F<fake/journal.py>.

=head1 METHODS

Whatever the fake refuses (a behaviour misspelt, say) dies with its reason.

=cut

use strict;
use warnings;

use Carp qw(croak);
use Errno qw(ECHILD);
use File::Basename qw(dirname);
use File::Spec;
use File::Temp;
use HTTP::Tiny;
use IPC::Open2 qw(open2);
use JSON::PP;
use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

my $PROGRAM = File::Spec->catfile(dirname(File::Spec->rel2abs(__FILE__)), 'fake_provider.py');
my %OPTION  = map { $_ => 1 } qw(port tls tls_san journal);

=head2 new(%options)

Starts a fake on a free port of 127.0.0.1.  It ends with this object, and also with this process,
however that dies: the fake watches a pipe from it.

    port      instead of a free one
    tls       true: TLS, with a new self-signed certificate; see ca_file
    tls_san   its subjectAltName (default 'IP:127.0.0.1,DNS:localhost'; another: a certificate
              that is not for this host)
    journal   how many requests the journal remembers

The interpreter is $ENV{PYTHON}, by default python3.

=cut

sub new
{
	my ($class, %options) = @_;
	my @unknown = grep { !$OPTION{$_} } sort keys %options;
	croak "unknown option: @unknown" if @unknown;

	my $self = bless { owner => $$, tls => $options{tls} }, $class;
	my @command = ($ENV{PYTHON} || 'python3', $PROGRAM);
	push @command, '--port', $options{port} if defined $options{port};
	push @command, '--journal', $options{journal} if defined $options{journal};
	if ($options{tls})
	{
		$self->_make_certificate($options{tls_san});
		push @command, '--tls-cert', $self->{ca_file}, '--tls-key', $self->{key_file};
	}

	# The handles are closed on exec, so that no server started by the test keeps the fake alive.
	$self->{pid} = open2(my $out, $self->{stdin}, @command);
	for my $name (qw(PORT CONTROL))
	{
		my $line = <$out> // '';
		$line =~ /^$name (\d+)$/ or croak "fake_provider.py did not start";
		$self->{ lc $name } = $1;
	}
	close $out;

	# The environment's proxies are not for us.
	$self->{http} = HTTP::Tiny->new(
		timeout     => 120,
		proxy       => undef,
		http_proxy  => undef,
		https_proxy => undef);
	return $self;
}

=head2 url([$prefix]), port, host, control, pid, ca_file

url is what an OpenAI SDK takes as its base URL: C<http://127.0.0.1:PORT/v1>.  With a prefix, as in
url('/eu'), it is C<http://127.0.0.1:PORT/eu/v1>: the same fake as another provider, which scripts
can tell apart by path.  control is the port of the control endpoints.  ca_file is the
certificate that a TLS client must trust.

=cut

sub url
{
	my ($self, $prefix) = @_;
	my $scheme = $self->{tls} ? 'https' : 'http';
	return "$scheme://" . $self->host . ':' . $self->port . ($prefix // '') . '/v1';
}

sub host { return '127.0.0.1' }
sub port { return $_[0]{port} }
sub control { return $_[0]{control} }
sub pid { return $_[0]{pid} }
sub ca_file { return $_[0]{ca_file} }

=head2 script($model, @steps)

What the next requests for that model get: each step, the name of a behaviour or a hash, serves one
request, or as many as its C<repeat> says.  Replaces an earlier script for the model; without steps
it only removes that.  '*' is any model without a script of its own, and any probe.  Instead of the
model, a hash may say more: { model => 'm', path => '/eu', append => 1 }.

=cut

sub script
{
	my ($self, $model, @steps) = @_;
	my %script = ref $model ? %$model : (model => $model);
	return $self->_control('POST', 'script', { %script, steps => \@steps });
}

=head2 journal([$since])

The requests after number $since (default: all since the last reset), oldest first, as a reference
to an array of hashes.

=head2 asked([$since])

Likewise, but of each request only what it asks for, as its dialect is understood, in the same words
for all dialects: a hash with model, messages, tools and so on (see Ask.asked in F<fake/model.py>).

=head2 last_request

The newest entry of the journal; while there is none, an empty hash.

=head2 stats

The counts since the last reset: requests, in_flight, max_in_flight, outcomes, connections,
max_connections, connections_total and others.

=head2 reset

Forgets journal, scripts and counts, and comes up if it was down.

=head2 down([for_ms => $n], [reset => 1]), up

Refuses connections, until up or for that time.  Idle connections are closed; busy ones finish
their answer, or with reset get RST.

=cut

sub journal
{
	my ($self, $since) = @_;
	return $self->_control('GET', 'journal' . ($since ? "?since=$since" : ''));
}

sub asked
{
	my ($self, $since) = @_;
	return [ map { $_->{asked} } @{ $self->_control('GET', 'journal?asked=1&since=' . ($since // 0)) } ];
}

sub last_request { return $_[0]->journal->[-1] // {} }

sub stats { return $_[0]->_control('GET',  'stats') }
sub reset { return $_[0]->_control('POST', 'reset') }    ## no critic (ProhibitBuiltinHomonyms)
sub up    { return $_[0]->_control('POST', 'up') }

sub down
{
	my ($self, %how) = @_;
	$how{reset} = $how{reset} ? JSON::PP::true : JSON::PP::false;
	return $self->_control('POST', 'down', \%how);
}

=head2 wait_for($condition, [$seconds])

Calls the function with the journal and the stats until it returns something true, and returns
that; after so many seconds (default 60), the last false one.  Requests and outcomes are known to the
fake a moment after the client has acted.

    ok($fake->wait_for(sub { ($fake->last_request->{outcome} // '') eq 'client_closed' }));

=cut

sub wait_for
{
	my ($self, $condition, $seconds) = @_;
	my $deadline = time + ($seconds // 60);
	while (1)
	{
		my $result = $condition->($self->journal, $self->stats);
		return $result if $result || time > $deadline;
		sleep 0.01;
	}
}

=head2 wait_for_stats($condition, [$seconds])

The same with the stats alone, for a journal that is long.

=cut

sub wait_for_stats
{
	my ($self, $condition, $seconds) = @_;
	my $deadline = time + ($seconds // 60);
	while (1)
	{
		my $result = $condition->($self->stats);
		return $result if $result || time > $deadline;
		sleep 0.01;
	}
}

=head2 stop

Ends the fake; returns when it is gone.

=cut

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} or return;
	close delete $self->{stdin};    # it ends by that alone
	kill TERM => $pid;
	my $deadline = time + 5;
	while (1)
	{
		my $gone = waitpid $pid, WNOHANG;
		last if $gone == $pid || ($gone == -1 && $!{ECHILD});
		kill KILL => $pid if time > $deadline;
		sleep 0.005;
	}
	return;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!, $@);
	# A forked child has a copy of this object, but not the fake.
	$self->stop if $self->{owner} == $$;
	return;
}

# An exchange with the control port; returns the decoded answer.
sub _control
{
	my ($self, $method, $endpoint, $body) = @_;
	my $url = 'http://' . $self->host . ":$self->{control}/_control/$endpoint";
	my %request = (headers => { 'content-type' => 'application/json' });
	$request{content} = encode_json($body) if $body;
	my $response = $self->{http}->request($method, $url, \%request);
	my $answer = $response->{success} ? decode_json($response->{content}) : undef;
	croak "fake provider: $method $endpoint: $response->{status} $response->{content}"
	  unless defined $answer;
	return $answer;
}

# Makes a key and a self-signed certificate, which last as long as this object.
sub _make_certificate
{
	my ($self, $san) = @_;
	$san //= 'IP:127.0.0.1,DNS:localhost';
	$self->{directory} = File::Temp->newdir;
	$self->{$_} = "$self->{directory}/$_.pem" for qw(ca_file key_file);
	my @command = (
		qw(openssl req -x509 -nodes -days 2 -subj /CN=fake-provider),
		qw(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1),
		'-addext', "subjectAltName=$san",
		'-keyout', $self->{key_file}, '-out', $self->{ca_file});
	open my $openssl, '-|', join(' ', map { quotemeta } @command) . ' 2>&1'
	  or croak "cannot run openssl: $!";
	my $said = do { local $/; <$openssl> };
	close $openssl or croak "openssl: $said";
	return;
}

1;
